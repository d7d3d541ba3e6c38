//! Members that find each other by DNS: SRV and address records of a name server of our own, as the resolver of the system and
//! resolv.conf see it. It runs in the namespaces of [`super::namespaces`], and is skipped where there are none.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use starling_compat_tests::tools;
use tokio::time::{Instant, sleep};

use super::checker::Report;
use super::load::Load;
use super::member::{Cluster, Place};
use super::namespaces::{self, CLIENT_PORT, MEMBERS, Namespaces, PEER_PORT};
use super::{
    CLIENTS, SEEDED, SOME, check_no_resyncs, check_own_reads, check_seeded, finish, run, watch_all,
};

const DOMAIN: &str = "starling.test";
const SERVICE: &str = "_etcd-server._tcp.starling.test";
/// The same with `--discovery-srv-name blue`.
const BLUE_SERVICE: &str = "_etcd-server-blue._tcp.starling.test";
const BLUE: [&str; 4] = ["--discovery-srv", DOMAIN, "--discovery-srv-name", "blue"];
/// Names all members.
const ALL: &str = "all.starling.test";
const DNS_PORT: u16 = 53;
const TTL_SECONDS: u32 = 1;
const DATAGRAM_BYTES_MAX: usize = 4096;
/// The one that moves.
const MOVES: usize = 2;
/// Nobody is there.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 213, 1, 99);
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// What the name server knows, which may change at any time.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    services: BTreeMap<String, Vec<(String, u16)>>,
    asked: BTreeMap<String, u64>,
}

impl Records {
    fn set_addresses(&self, name: &str, addresses: Vec<Ipv4Addr>) {
        self.0.lock().expect("no panic").addresses.insert(name.to_owned(), addresses);
    }

    fn set_services(&self, name: &str, services: Vec<(String, u16)>) {
        self.0.lock().expect("no panic").services.insert(name.to_owned(), services);
    }

    /// How often a name was asked for.
    fn asked(&self, name: &str) -> u64 {
        self.0.lock().expect("no panic").asked.get(name).copied().unwrap_or(0)
    }

    /// Answers questions until the process ends.
    fn serve(&self) {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DNS_PORT)).expect("a namespace of ours");
        let records = self.clone();
        thread::spawn(move || {
            let mut question = [0; DATAGRAM_BYTES_MAX];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                if let Some(answer) = records.answer(&question[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Packet::parse(question).ok()?;
        let asked = question.questions.first()?.clone();
        let name = asked.qname.to_string().to_lowercase();
        let mut table = self.0.lock().expect("no panic");
        *table.asked.entry(name.clone()).or_default() += 1;
        let mut reply = question.clone().into_reply();
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
        let found: Vec<RData<'_>> = match asked.qtype {
            QTYPE::TYPE(TYPE::A) => {
                let addresses = table.addresses.get(&name).into_iter().flatten();
                addresses.map(|address| RData::A(A { address: (*address).into() })).collect()
            }
            QTYPE::TYPE(TYPE::SRV) => {
                let services = table.services.get(&name).into_iter().flatten();
                let srv = |(host, port): &(String, u16)| {
                    let target = Name::new(host).expect("a name of ours").into_owned();
                    RData::SRV(SRV { priority: 0, weight: 0, port: *port, target })
                };
                services.map(srv).collect()
            }
            _ => Vec::new(),
        };
        let is_known = table.addresses.contains_key(&name) || table.services.contains_key(&name);
        if !is_known {
            *reply.rcode_mut() = RCODE::NameError;
        }
        let record = |data| ResourceRecord::new(asked.qname.clone(), CLASS::IN, TTL_SECONDS, data);
        reply.answers = found.into_iter().map(record).collect();
        reply.build_bytes_vec().ok()
    }
}

fn name(number: usize) -> String {
    format!("m{number}.{DOMAIN}")
}

fn address(number: usize) -> Ipv4Addr {
    namespaces::address(number).parse().expect("an address")
}

#[test]
fn members_find_each_other_by_dns() {
    in_namespaces("dns", "cluster::discovery::inside");
}

/// Members that know no more than a domain found a cluster together.
#[test]
fn members_found_a_cluster_by_dns() {
    in_namespaces("srv", "cluster::discovery::inside_founding");
}

fn in_namespaces(label: &str, test: &str) {
    let Some(namespaces) = Namespaces::create_or_skip(label) else { return };
    let files: Vec<_> = (0..MEMBERS).map(|number| ResolvConf::write(&namespaces, number)).collect();
    namespaces.run_inside(test);
    drop(files);
}

/// The file that stands in the place of resolv.conf in a member's namespace.
struct ResolvConf(std::path::PathBuf);

impl ResolvConf {
    fn write(namespaces: &Namespaces, number: usize) -> Self {
        let dir = std::path::Path::new("/etc/netns").join(namespaces.member(number));
        fs::create_dir_all(&dir).expect("root may");
        let text =
            format!("nameserver {}\noptions timeout:1\n", namespaces::router_address(number));
        fs::write(dir.join("resolv.conf"), text).expect("root may");
        Self(dir)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Unless somebody else has something there.
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// Runs in the router's namespace.
#[test]
#[ignore = "started by members_find_each_other_by_dns"]
fn inside() {
    let namespaces = Namespaces::of_this_run();
    run(scenario(&namespaces));
}

/// Runs in the router's namespace.
#[test]
#[ignore = "started by members_found_a_cluster_by_dns"]
fn inside_founding() {
    let namespaces = Namespaces::of_this_run();
    run(founding(&namespaces));
}

fn place(namespaces: &Namespaces, number: usize) -> Place {
    Place {
        wrapper: namespaces.wrapper(number),
        host: namespaces::address(number),
        advertised_host: Some(name(number)),
        client_port: CLIENT_PORT,
        peer_port: PEER_PORT,
        advertised_port: PEER_PORT,
    }
}

async fn scenario(namespaces: &Namespaces) {
    let mut report = Report::new("members_find_each_other_by_dns");
    let records = Records::default();
    records.serve();
    (0..MEMBERS).for_each(|number| records.set_addresses(&name(number), vec![address(number)]));
    let mut cluster = Cluster::alone(tools::starling(), place(namespaces, 0)).await;

    // One looks for services, which are not there before it has asked for them.
    let services = ["--discovery-srv", DOMAIN].map(str::to_owned);
    let by_services = cluster.join_at(place(namespaces, 1), services.into());
    until("the services are asked for", || records.asked(SERVICE) > 1).await;
    let members = (0..MEMBERS).map(|number| (name(number), PEER_PORT));
    records.set_services(SERVICE, members.collect());
    cluster.members[by_services].ready().await;
    report.say("one has joined by services");

    // Another by one name, of which the first address does not answer.
    let addresses = [NOBODY].into_iter().chain((0..MEMBERS).map(address));
    records.set_addresses(ALL, addresses.collect());
    let by_name = ["--join".to_owned(), format!("{ALL}:{PEER_PORT}")];
    let by_name = cluster.join_at(place(namespaces, MOVES), by_name.into());
    cluster.members[by_name].ready().await;
    let formed = cluster.formed(MEMBERS).await;
    report.check(formed.is_ok(), || formed.err().unwrap_or_default());
    report.say("another has joined by name");

    let mut load = Load::new(31);
    load.on_all(&cluster, CLIENTS);
    let mut watchers = watch_all(&cluster).await;
    for number in 0..MEMBERS {
        load.answered(number, SOME).await;
    }
    load.stop().await;
    watchers.pop();

    // It comes back at another address, and the others hear of that from DNS alone.
    cluster.members[MOVES].terminate().await;
    let moved = namespaces.renumber(MOVES);
    records.set_addresses(&name(MOVES), vec![moved.parse().expect("an address")]);
    cluster.members[MOVES].move_to(&moved);
    cluster.start_member(MOVES);
    cluster.members[MOVES].ready().await;
    load.on_all(&cluster, CLIENTS);
    load.mark(&cluster, 0, "mark").await;
    let started = Instant::now();
    while !cluster.members[MOVES].has("mark").await {
        assert!(started.elapsed() < DEADLINE, "nobody finds it again\n{}", cluster.logs());
        sleep(POLL).await;
    }
    report.say("one is found at another address");
    load.answered(MOVES, SOME).await;
    check_own_reads(&mut report, &load);
    check_no_resyncs(&mut report, &watchers);
    finish(report, cluster, load, watchers).await;
}

async fn founding(namespaces: &Namespaces) {
    let mut report = Report::new("members_found_a_cluster_by_dns");
    let records = Records::default();
    records.serve();
    (0..MEMBERS).for_each(|number| records.set_addresses(&name(number), vec![address(number)]));
    let members = (0..MEMBERS).map(|number| (name(number), PEER_PORT));
    records.set_services(BLUE_SERVICE, members.collect());

    // One of three is no majority: it might not see a cluster that is there.
    let mut cluster = Cluster::empty(tools::starling());
    let by_services = || BLUE.map(str::to_owned).to_vec();
    cluster.join_at(place(namespaces, 0), by_services());
    until("it waits for the others", || cluster.members[0].logged("a majority of those named"))
        .await;
    let asked = records.asked(BLUE_SERVICE);
    until("it looks again", || records.asked(BLUE_SERVICE) > asked + 2).await;
    let alone = cluster.members[0].state().await;
    report.check(alone.is_err(), || "one of three serves alone".to_owned());

    // Two are; and the third one comes when they serve. It is known by its address, which the records do not have.
    cluster.join_at(place(namespaces, 1), by_services());
    cluster.ready().await;
    let third = Place { advertised_host: None, ..place(namespaces, 2) };
    cluster.join_at(third, by_services());
    cluster.ready().await;
    let formed = cluster.formed(MEMBERS).await;
    report.check(formed.is_ok(), || formed.err().unwrap_or_default());
    let mut clusters = Vec::new();
    for member in &cluster.members {
        let state = member.state().await.expect("it serves");
        clusters.push(state.header.unwrap_or_default().cluster_id);
    }
    report.check(clusters.iter().all(|id| *id == clusters[0]), || {
        format!("{clusters:x?} are several clusters")
    });
    report.say("three have founded a cluster");
    let mut load = Load::new(32);
    load.seed(&cluster, SEEDED).await;
    load.on_all(&cluster, CLIENTS);
    let mut watchers = watch_all(&cluster).await;
    for number in 0..MEMBERS {
        load.answered(number, SOME).await;
    }

    // One that has lost its disk finds the cluster there, and joins it.
    let former = cluster.members[1].id().await;
    cluster.members[1].kill();
    watchers.remove(1);
    cluster.members[1].wipe();
    cluster.start_member(1);
    cluster.members[1].ready().await;
    check_seeded(&mut report, &cluster, 1).await;
    let id = cluster.members[1].id().await;
    report.check(id != former, || format!("the wiped member is {id:x} again"));
    let formed = cluster.formed(MEMBERS).await;
    report.check(formed.is_ok(), || formed.err().unwrap_or_default());
    report.say("one has come back without its disk");
    load.answered(1, SOME).await;

    // Whoever is gone from the records is still a member.
    records.set_services(BLUE_SERVICE, Vec::new());
    cluster.members[0].terminate().await;
    cluster.start_member(0);
    cluster.members[0].ready().await;
    let formed = cluster.formed(MEMBERS).await;
    report.check(formed.is_ok(), || formed.err().unwrap_or_default());
    load.answered(0, SOME).await;
    check_own_reads(&mut report, &load);
    finish(report, cluster, load, watchers).await;
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "{what}: not in time");
        sleep(POLL).await;
    }
}
