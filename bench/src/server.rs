//! A server under test: a child process, and what the system says about it.

use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::client::Connection;
use crate::work::get_request;

const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);
const TICKS_PER_SECOND: f64 = 100.0;
const QUOTA_BYTES: &str = "8589934592";
const MIB: f64 = 1024.0 * 1024.0;
/// What `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The one that is measured.
    Starling,
    /// What it is measured by.
    Etcd,
    /// The ceiling.
    Noop,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starling => "starling",
            Self::Etcd => "etcd",
            Self::Noop => "no-op",
        })
    }
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Which it is.
    pub kind: Kind,
    /// Its binary.
    pub program: PathBuf,
    /// Where its data goes.
    pub directory: PathBuf,
    /// Besides those that every server gets.
    pub flags: Vec<String>,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For clients.
    pub client: u16,
    /// For other members.
    pub peer: u16,
}

impl Ports {
    /// Two that are free.
    pub fn free() -> Outcome<Self> {
        Ok(Self { client: free_port()?, peer: free_port()? })
    }
}

/// A server that runs. It ends with this value.
pub struct Server {
    recipe: Recipe,
    child: Child,
    port: u16,
    begun: Instant,
    /// From its start to its first answer.
    pub start_up: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server and waits until it answers a read.
    pub fn start(recipe: &Recipe) -> Outcome<Self> {
        let mut server = Self::spawn(recipe, Ports::free()?)?;
        server.wait_for_answer()?;
        Ok(server)
    }

    /// Starts a server that may depend on others to answer.
    pub fn spawn(recipe: &Recipe, ports: Ports) -> Outcome<Self> {
        let mut command = command(recipe, ports);
        let begun = Instant::now();
        let child = command.stdout(Stdio::null()).spawn()?;
        let (port, start_up) = (ports.client, Duration::ZERO);
        Ok(Self { recipe: recipe.clone(), child, port, begun, start_up })
    }

    /// Waits until it answers a read.
    pub fn wait_for_answer(&mut self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let deadline = Instant::now() + START_PATIENCE;
        while !runtime.block_on(answers(self.port)) {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended: {status}", self.recipe.kind).into());
            }
            if Instant::now() > deadline {
                return Err(format!("{} did not come up", self.recipe.kind).into());
            }
            std::thread::sleep(POLL);
        }
        self.start_up = self.begun.elapsed();
        Ok(())
    }

    /// Stops it in an orderly way and starts it again.
    pub fn restart(self) -> Outcome<Self> {
        let recipe = self.recipe.clone();
        self.end(Signal::TERM)?;
        Self::start(&recipe)
    }

    /// Sends it a signal and waits for its end.
    pub fn end(mut self, signal: Signal) -> Outcome<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.ok_or("no process")?, signal)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("{} did not stop", self.recipe.kind).into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lets everybody else go before it. To be called at its start: only threads that start later are concerned.
    pub fn step_back(&self, nice: i32) -> Outcome {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(rustix::process::setpriority_process(pid, nice)?)
    }

    /// Its status, if it has ended by itself.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        self.recipe.kind
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The CPU time that it has used, user and system.
    pub fn cpu(&self) -> Duration {
        let text = self.proc("stat");
        // User and system time are the 14th and 15th field, the 12th and 13th behind the name.
        let fields =
            text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
        Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
    }

    /// The memory that it has now.
    pub fn rss_mib(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    }

    /// Its open files and sockets.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// The blocks that its data takes.
    pub fn disk_mib(&self) -> f64 {
        blocks(&self.recipe.directory) as f64 * BLOCK_BYTES as f64 / MIB
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }
}

fn command(recipe: &Recipe, ports: Ports) -> Command {
    let Ports { client: port, peer: peer_port } = ports;
    let mut command = Command::new(&recipe.program);
    if recipe.kind == Kind::Noop {
        command.args(["noop", &port.to_string()]);
        return command;
    }
    let client = format!("http://127.0.0.1:{port}");
    command.arg("--data-dir").arg(&recipe.directory);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--quota-backend-bytes", QUOTA_BYTES, "--log-level", "error"]);
    command.args(&recipe.flags);
    let is_alone = !recipe.flags.iter().any(|flag| flag == "--initial-cluster");
    if recipe.kind == Kind::Etcd && is_alone {
        let peer = format!("http://127.0.0.1:{peer_port}");
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
    }
    command
}

async fn answers(port: u16) -> bool {
    let Ok(connection) = Connection::open(port).await else { return false };
    connection.kv().range(get_request(0)).await.is_ok()
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // Files come and go while the server works.
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let within = std::fs::read_dir(path).into_iter().flatten().flatten();
    metadata.blocks() + within.map(|entry| blocks(&entry.path())).sum::<u64>()
}
