//! Clusters of Starling beside clusters of real etcd, and what a newcomer costs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::Outcome;
use crate::client::Connection;
use crate::data;
use crate::measure::{Figures, median, medians};
use crate::server::{Kind, Ports, Recipe, Server};
use crate::work::{self, Load, Work};

/// Keys that puts go to.
const PUT_KEYS: u64 = 100_000;
/// Clients of a load, and the connections that they share.
const CLIENTS: usize = 64;
const CONNECTIONS: usize = 8;
/// Clients beside whom a newcomer catches up.
const CLIENTS_BESIDE: usize = 8;
/// Puts and gets before a window.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long idle members are looked at.
const IDLE: Duration = Duration::from_secs(30);
/// A cluster that has just been started settles: members find each other, logs are compacted.
const SETTLE: Duration = Duration::from_secs(3);
/// The priority of a newcomer that should not be felt.
const NEWCOMER_NICE: i32 = 19;
/// What a plain copy reads and writes at once.
const COPY_BYTES: usize = 256 << 10;
/// What a page of keys is compared by.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(300);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binaries.
    pub starling: PathBuf,
    /// Likewise.
    pub etcd: PathBuf,
    /// For the data.
    pub directory: PathBuf,
    /// Windows of each kind.
    pub rounds: usize,
    /// How long one is.
    pub window: Duration,
    /// What a newcomer gets.
    pub keys: u64,
    /// Which parts; all if empty.
    pub only: Vec<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    fn program(&self, kind: Kind) -> PathBuf {
        if kind == Kind::Etcd { self.etcd.clone() } else { self.starling.clone() }
    }
}

/// Members that form a cluster, on loopback.
pub struct Cluster {
    /// In the order in which they were started.
    pub members: Vec<Server>,
    ports: Vec<Ports>,
    directory: PathBuf,
    program: PathBuf,
}

impl Cluster {
    /// Founds one.
    pub fn found(
        kind: Kind,
        program: PathBuf,
        directory: PathBuf,
        members: usize,
        flags: &[&str],
    ) -> Outcome<Self> {
        let ports: Vec<_> = (0..members).map(|_| Ports::free()).collect::<Outcome<_>>()?;
        let name = |number: usize| format!("m{number}");
        let url = |ports: &Ports| format!("http://127.0.0.1:{}", ports.peer);
        let list = ports.iter().enumerate().map(|(n, ports)| format!("{}={}", name(n), url(ports)));
        let initial = list.collect::<Vec<_>>().join(",");
        let mut cluster = Self { members: Vec::new(), ports: ports.clone(), directory, program };
        for (number, ports) in ports.iter().enumerate() {
            let mut words = vec!["--name".to_owned(), name(number), "--initial-cluster".to_owned()];
            words.push(initial.clone());
            for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
                words.extend([flag.to_owned(), url(ports)]);
            }
            words.extend(flags.iter().map(ToString::to_string));
            cluster.start(kind, number, *ports, words)?;
        }
        cluster.members.iter_mut().try_for_each(Server::wait_for_answer)?;
        Ok(cluster)
    }

    fn start(&mut self, kind: Kind, number: usize, ports: Ports, flags: Vec<String>) -> Outcome {
        let directory = self.directory.join(format!("m{number}"));
        let recipe = Recipe { kind, program: self.program.clone(), directory, flags };
        self.members.push(Server::spawn(&recipe, ports)?);
        Ok(())
    }

    /// Starts a newcomer, which asks the first member. It would be on a machine of its own, so it yields to the others where
    /// that matters.
    pub fn join(&mut self, yields: bool) -> Outcome<&mut Server> {
        let (number, ports) = (self.ports.len(), Ports::free()?);
        let url = format!("http://127.0.0.1:{}", ports.peer);
        let contact = format!("127.0.0.1:{}", self.ports[0].peer);
        let words = ["--name", &format!("m{number}"), "--join", &contact];
        let urls = ["--listen-peer-urls", &url, "--initial-advertise-peer-urls", &url];
        let words = words.into_iter().chain(urls).map(str::to_owned).collect();
        self.start(Kind::Starling, number, ports, words)?;
        self.ports.push(ports);
        let newcomer = self.members.last_mut().ok_or("it was just started")?;
        if yields {
            newcomer.step_back(NEWCOMER_NICE)?;
        }
        Ok(newcomer)
    }

    /// Stops the last member, which is no member any more then.
    fn leave(&mut self) -> Outcome {
        let server = self.members.pop().ok_or("no members")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (_, id) = runtime.block_on(leader(server.port()))?;
        server.end(Signal::TERM)?;
        self.ports.pop();
        runtime.block_on(remove(self.members[0].port(), id))?;
        let directory = self.directory.join(format!("m{}", self.members.len()));
        Ok(std::fs::remove_dir_all(directory)?)
    }

    fn cpu(&self) -> Duration {
        self.members.iter().map(Server::cpu).sum()
    }

    /// Where puts are cheapest: with a leader, there.
    fn best(&self) -> Outcome<&Server> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for member in &self.members {
            let (leader, id) = runtime.block_on(leader(member.port()))?;
            if leader == id {
                return Ok(member);
            }
        }
        self.members.first().ok_or_else(|| "no members".into())
    }
}

async fn leader(port: u16) -> Outcome<(u64, u64)> {
    let connection = Connection::open(port).await?;
    let origin = format!("http://127.0.0.1:{port}").parse()?;
    let mut client = MaintenanceClient::with_origin(connection, origin);
    let status = client.status(pb::StatusRequest {}).await?.into_inner();
    Ok((status.leader, status.header.map_or(0, |header| header.member_id)))
}

async fn remove(port: u16, id: u64) -> Outcome {
    let connection = Connection::open(port).await?;
    let origin = format!("http://127.0.0.1:{port}").parse()?;
    let mut client = ClusterClient::with_origin(connection, origin);
    client.member_remove(pb::MemberRemoveRequest { id }).await?;
    Ok(())
}

/// Measures what was asked for; the answer is Markdown.
pub fn run(options: &Options) -> Outcome<String> {
    let mut text = String::new();
    if options.wants("puts") {
        puts(options, &mut text)?;
    }
    if options.wants("idle") {
        idle(options, &mut text)?;
    }
    if options.wants("join") {
        join(options, &mut text)?;
    }
    Ok(text)
}

/// A window on one member; besides what that says, the CPU time of all members.
fn window(cluster: &Cluster, server: &Server, load: &Load) -> Outcome<(Figures, Duration)> {
    let mut cpu = Duration::ZERO;
    let window = work::run_until(server, load, || {
        let before = cluster.cpu();
        std::thread::sleep(load.window);
        cpu = cluster.cpu() - before;
    })?;
    let per = u32::try_from(window.operations.max(1)).unwrap_or(u32::MAX);
    Ok((window.figures(), cpu / per))
}

fn puts(options: &Options, text: &mut String) -> Outcome {
    let plans: [(&str, Kind, usize, &[&str]); 6] = [
        ("etcd, 3 members", Kind::Etcd, 3, &[]),
        ("starling, 3 members, majority", Kind::Starling, 3, &["--write-ack", "majority"]),
        ("starling, 3 members, one", Kind::Starling, 3, &["--write-ack", "one"]),
        ("starling, 3 members, local", Kind::Starling, 3, &["--write-ack", "local"]),
        ("starling, alone", Kind::Starling, 1, &[]),
        ("etcd, alone", Kind::Etcd, 1, &[]),
    ];
    let mut clusters = Vec::new();
    for (number, (_, kind, members, flags)) in plans.iter().enumerate() {
        let directory = options.directory.join(format!("puts{number}"));
        clusters.push(Cluster::found(*kind, options.program(*kind), directory, *members, flags)?);
    }
    std::thread::sleep(SETTLE);
    let load = Load {
        work: Work::Put,
        clients: CLIENTS,
        connections: CONNECTIONS,
        threads: 1,
        keys: PUT_KEYS,
        warm_up: WARM_UP,
        window: options.window,
    };
    let mut rounds: Vec<Vec<(Figures, f64)>> = vec![Vec::new(); plans.len()];
    for round in 0..options.rounds {
        for turn in 0..plans.len() {
            let which = (round + turn) % plans.len();
            let cluster = &clusters[which];
            let (figures, cpu) = window(cluster, cluster.best()?, &load)?;
            rounds[which].push((figures, cpu.as_secs_f64() * 1e6));
        }
    }
    writeln!(text, "Puts of 256 bytes by {CLIENTS} clients on one member, all on one machine.\n")?;
    writeln!(
        text,
        "| cluster | puts/s | to etcd's 3 | p50 ms | p99 ms | CPU of the member, us/put | CPU of all, us/put |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for (which, (name, ..)) in plans.iter().enumerate() {
        let of_etcd = rounds[which].iter().zip(&rounds[0]);
        let ratio = median(of_etcd.map(|(own, etcd)| own.0.per_second / etcd.0.per_second));
        let figures: Vec<_> = rounds[which].iter().map(|(figures, _)| *figures).collect();
        let (f, all) = (medians(&figures), median(rounds[which].iter().map(|(_, cpu)| *cpu)));
        let (p50, p99) = (f.p50_us / 1e3, f.p99_us / 1e3);
        writeln!(
            text,
            "| {name} | {:.0} | {ratio:.2} | {p50:.1} | {p99:.1} | {:.1} | {all:.1} |",
            f.per_second, f.cpu_us
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn idle(options: &Options, text: &mut String) -> Outcome {
    writeln!(text, "Three members, idle for {} s.\n", IDLE.as_secs())?;
    writeln!(text, "| cluster | CPU of a member, % of a core | memory of a member, MiB |")?;
    writeln!(text, "|---|---|---|")?;
    for (name, kind) in [("starling", Kind::Starling), ("etcd", Kind::Etcd)] {
        let directory = options.directory.join(format!("idle-{name}"));
        let cluster = Cluster::found(kind, options.program(kind), directory, 3, &[])?;
        std::thread::sleep(SETTLE);
        let before = cluster.cpu();
        std::thread::sleep(IDLE);
        let used = (cluster.cpu() - before).as_secs_f64() / IDLE.as_secs_f64() / 3.0 * 100.0;
        let memory = cluster.members.iter().map(Server::rss_mib).sum::<f64>() / 3.0;
        writeln!(text, "| {name} | {used:.2} | {memory:.1} |")?;
    }
    writeln!(text)?;
    Ok(())
}

fn join(options: &Options, text: &mut String) -> Outcome {
    let directory = options.directory.join("join");
    let program = options.program(Kind::Starling);
    let mut cluster = Cluster::found(Kind::Starling, program, directory.clone(), 2, &[])?;
    let load = Load {
        work: Work::Mixed,
        clients: CLIENTS,
        connections: CONNECTIONS,
        threads: 1,
        keys: options.keys,
        warm_up: WARM_UP,
        window: options.window,
    };
    eprintln!("filling {} keys", options.keys);
    work::fill(&cluster.members[0], &load)?;
    std::thread::sleep(SETTLE);
    let bytes: u64 = (0..options.keys).map(|n| data::key(n).len() as u64 + 256).sum();
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(newcomer(&mut cluster, bytes, &directory)?);
    }
    let beside = Load { clients: CLIENTS_BESIDE, ..load };
    let calm = work::run(&cluster.members[0], &beside)?.figures();
    let mut newcomer = None;
    let busy = work::run_until(&cluster.members[0], &beside, || {
        let begun = Instant::now();
        newcomer = Some(cluster_join(options, &cluster, begun));
    })?;
    let beside_took = newcomer.ok_or("it was started")??;
    let busy = busy.figures();
    let mb = bytes as f64 / 1e6;
    let of = |field: fn(&Newcomer) -> Duration| {
        median(rounds.iter().map(|round| field(round).as_secs_f64()))
    };
    let (copied, joined) = (of(|it| it.copied), of(|it| it.joined));
    let ratios = rounds.iter().map(|it| it.copied.as_secs_f64() / it.joined.as_secs_f64());
    let per_key = |cpu: f64| cpu * 1e6 / options.keys.max(1) as f64;
    writeln!(
        text,
        "A newcomer gets {} keys of 256 bytes, {mb:.0} MB; medians of {} rounds.\n",
        options.keys, options.rounds
    )?;
    writeln!(text, "| what | s | MB/s |\n|---|---|---|")?;
    writeln!(
        text,
        "| a plain copy over TCP into a file, synced | {copied:.2} | {:.0} |",
        mb / copied
    )?;
    writeln!(
        text,
        "| an empty member, from its start to its first answer | {joined:.2} | {:.0} |",
        mb / joined
    )?;
    writeln!(
        text,
        "| another one, at the lowest priority, beside {CLIENTS_BESIDE} clients of its contact | {:.2} | {:.0} |\n",
        beside_took.as_secs_f64(),
        mb / beside_took.as_secs_f64()
    )?;
    writeln!(
        text,
        "The newcomer's speed to that of the copy just before it: {:.2}. CPU time, us/key: {:.2} of the newcomer, {:.2} of its contact.\n",
        median(ratios),
        per_key(of(|it| it.cpu)),
        per_key(of(|it| it.contact_cpu))
    )?;
    writeln!(
        text,
        "Its contact's p99 for gets and puts 4:1: {:.2} ms before, {:.2} ms meanwhile ({:.1} x).\n",
        calm.p99_us / 1e3,
        busy.p99_us / 1e3,
        busy.p99_us / calm.p99_us,
    )?;
    Ok(())
}

/// A plain copy, and a newcomer right after it.
struct Newcomer {
    /// How long the copy took.
    copied: Duration,
    /// How long the newcomer took.
    joined: Duration,
    /// CPU time of the newcomer.
    cpu: Duration,
    /// CPU time of the member that it asks.
    contact_cpu: Duration,
}

/// Copies so many bytes, and lets a newcomer take the data of the cluster, which it leaves again.
fn newcomer(cluster: &mut Cluster, bytes: u64, directory: &Path) -> Outcome<Newcomer> {
    let begun = Instant::now();
    copy(bytes, &directory.join("copy"))?;
    let copied = begun.elapsed();
    let (begun, before) = (Instant::now(), cluster.members[0].cpu());
    let newcomer = cluster.join(false)?;
    newcomer.wait_for_answer()?;
    let (joined, cpu) = (begun.elapsed(), newcomer.cpu());
    let contact_cpu = cluster.members[0].cpu() - before;
    cluster.leave()?;
    Ok(Newcomer { copied, joined, cpu, contact_cpu })
}

/// Another newcomer; answers how long it took.
fn cluster_join(options: &Options, cluster: &Cluster, begun: Instant) -> Outcome<Duration> {
    let mut joining = Cluster {
        members: Vec::new(),
        ports: cluster.ports.clone(),
        directory: cluster.directory.join("beside"),
        program: options.program(Kind::Starling),
    };
    joining.join(true)?.wait_for_answer()?;
    assert!(begun.elapsed() < CATCH_UP_PATIENCE, "catching up took {:?}", begun.elapsed());
    Ok(begun.elapsed())
}

/// Sends so many bytes over TCP to a file on the same disk, and syncs it.
fn copy(bytes: u64, path: &Path) -> Outcome {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let mut random = data::Random::new(1);
        let chunk: Vec<u8> =
            (0..COPY_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            stream.write_all(&chunk[..now])?;
            left -= now as u64;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept()?;
    std::fs::create_dir_all(path.parent().ok_or("it has a parent")?)?;
    let mut file = File::create(path)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
    }
    file.sync_all()?;
    sender.join().map_err(|_| "the sender panicked")??;
    std::fs::remove_file(path)?;
    Ok(())
}
