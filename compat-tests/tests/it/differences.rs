//! The differences that are meant: a case for each row of the table in `docs/compatibility.md`, which asserts what
//! etcd does and what starling does.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use starling_compat_tests::server::{self, Kind, Process};
use starling_compat_tests::{Server, tools};
use starling_proto::authpb::Permission;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::alarm_request::AlarmAction;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::http2::{Connection, grpc_headers};

/// Where the table is, and where it ends.
const TABLE: &str = "## Differences that are meant\n";
const NEXT_HEADING: &str = "\n## ";

/// Set when etcd is started in starling's place: then there is nothing that differs.
const COMPAT_SELF: &str = "COMPAT_SELF";

const DEADLINE: Duration = Duration::from_secs(20);

/// Small enough to fill, large enough for an empty store of either server.
pub(super) const QUOTA: &str = "--quota-backend-bytes=4194304";
const QUOTA_BYTES: i64 = 4_194_304;
/// The bytes of an incompressible value.
pub(super) const VALUE: usize = 500_000;
const FULL: &str = "etcdserver: mvcc: database space exceeded";

/// `RangeRequest { key: "a" }`.
const GET: &[u8] = &[0x0a, 1, b'a'];
const RANGE: &str = "/etcdserverpb.KV/Range";

macro_rules! differences {
    ($($name:ident: $row:literal)*) => {
        /// The rows that have a case.
        pub(super) const ROWS: &[&str] = &[$($row),*];

        mod etcd_and_starling {
            $(#[test]
            fn $name() {
                if super::differ() {
                    super::$name();
                }
            })*
        }
    };
}

differences! {
    sorted_streams: "`KV.RangeStream` of sorted or filtered ranges"
    types_of_permissions: "users: a permission of a type that is none"
    auto_compaction: "auto-compaction"
    end_of_an_alarm: "end of a NOSPACE alarm"
    start_of_an_alarm: "start of a NOSPACE alarm"
    what_the_quota_counts: "what the quota counts"
    defragment: "`Defragment`"
    hashes: "`HashKV`, `Hash`"
    ids: "member and cluster ids"
    default_data_directory: "default data directory"
    term: "`raft_term`"
    leader: "leader"
    variable_and_flag: "a variable and a flag for the same setting"
    pings: "pings of a client"
    authority: "`:authority` of a request"
    deadline: "deadline of a request (`grpc-timeout`)"
    files: "files on disk"
}

#[test]
fn every_difference_has_a_case() {
    let path = tools::package_dir().join("../docs/compatibility.md");
    let text = fs::read_to_string(path).expect("the page of differences is there");
    let (_, table) = text.split_once(TABLE).expect("the page has a table of differences");
    let (table, _) = table.split_once(NEXT_HEADING).expect("other headings follow it");
    // The first two are the head and the line under it.
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    let rows: BTreeSet<_> = rows.filter_map(|row| row.split(" | ").next()).collect();
    assert_eq!(rows, ROWS.iter().copied().collect(), "rows are on the left, cases on the right");
}

/// Whether both servers are here to be compared.
fn differ() -> bool {
    std::env::var_os(COMPAT_SELF).is_none() && tools::etcd().is_some()
}

fn both(flags: &[&str]) -> (Server, Server) {
    (Server::start(Kind::Etcd, flags), Server::start(Kind::Starling, flags))
}

fn sorted_streams() {
    let code = |server: &Server, request: pb::RangeRequest| {
        let client = Client::of(server);
        client.runtime.block_on(async {
            let mut pieces = client.kv().range_stream(request).await?.into_inner();
            while pieces.message().await?.is_some() {}
            Ok::<_, Status>(())
        })
    };
    let (etcd, starling) = both(&[]);
    let sorted = pb::RangeRequest { sort_order: 1, sort_target: 2, ..get("a") };
    for request in [sorted, pb::RangeRequest { min_mod_revision: 1, ..get("a") }] {
        let refusal = code(&etcd, request.clone()).expect_err("etcd refuses it");
        assert_eq!(refusal.code(), Code::Unimplemented, "{refusal}");
        assert!(code(&starling, request).is_ok());
    }
}

fn types_of_permissions() {
    let outcome = |server: &Server| {
        let client = Client::of(server);
        let mut auth = AuthClient::new(client.channel.clone());
        client.wait(auth.role_add(pb::AuthRoleAddRequest { name: "r".into() }));
        let perm = Some(Permission { perm_type: 3, key: "a".into(), ..Default::default() });
        let request = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm };
        client.runtime.block_on(auth.role_grant_permission(request)).map(drop)
    };
    let (etcd, starling) = both(&[]);
    assert!(outcome(&etcd).is_ok());
    assert_eq!(outcome(&starling).expect_err("it is refused").code(), Code::InvalidArgument);
}

/// A day is too long to wait for. What the flag does when it is given is compared in `raw/limits.rs`.
fn auto_compaction() {
    let default = |program: &Path| {
        let help = Command::new(program).arg("--help").output().expect("a program can be started");
        // etcd writes it to one, starling to the other.
        let help = [help.stdout, help.stderr].concat();
        let help = String::from_utf8_lossy(&help).into_owned();
        let line = help.lines().find(|line| line.contains("--auto-compaction-retention"));
        line.unwrap_or_else(|| panic!("no such flag in\n{help}")).trim().to_owned()
    };
    assert_eq!(default(etcd_program()), "--auto-compaction-retention '0'");
    assert_eq!(default(tools::starling()), "--auto-compaction-retention '24h'");
}

fn end_of_an_alarm() {
    let (etcd, starling) = both(&[QUOTA]);
    let (there, here) = (full(&etcd), full(&starling));
    for client in [&there, &here] {
        assert_eq!(client.alarms().len(), 1);
        client.make_room();
    }
    until("starling ends the alarm by itself", || here.alarms().is_empty());
    here.try_put(put("after", b"1")).expect("there is room again");
    there.defragment();
    assert_eq!(there.alarms().len(), 1, "etcd has all the room there is, and waits");
    assert_eq!(message(there.try_put(put("after", b"1"))), FULL);
    there.disarm();
    there.try_put(put("after", b"1")).expect("there is room again");
}

/// A quarter of a disk at most is left free, or 64 MiB. Needs a small disk: one in memory, in a name space of its own.
#[expect(clippy::print_stderr, reason = "a skipped test has to be seen")]
fn start_of_an_alarm() {
    const MOUNT: &str = "mount -t tmpfs -o size=192m none \"$0\" && exec \"$@\"";
    let name_space = ["unshare", "--user", "--map-root-user", "--mount"];
    let probe = TempDir::new().expect("the temporary directory is writable");
    let [unshare, flags @ ..] = name_space;
    let can = Command::new(unshare)
        .args(flags)
        .args(["sh", "-c", MOUNT])
        .arg(probe.path())
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success());
    if !can {
        let in_ci = std::env::var("CI").as_deref() == Ok("true");
        assert!(!in_ci, "no name space of one's own here, and CI must fill a disk");
        eprintln!("*** SKIPPED: no name space of one's own here, so no disk can be filled ***");
        return;
    }
    let small_disk = |data: &Path| {
        let mut words: Vec<String> = name_space.map(str::to_owned).into();
        words.extend(["sh", "-c", MOUNT].map(str::to_owned));
        words.push(data.display().to_string());
        words
    };
    let mut etcd = Server::start_under(Kind::Etcd, &[], small_disk);
    let mut starling = Server::start_under(Kind::Starling, &[], small_disk);
    let (there, here) = (Client::of(&etcd), Client::of(&starling));
    // A log that is flushed makes room again, once or twice.
    until("an alarm stays until it is seen", || {
        assert_eq!(message(fill(&here)), FULL);
        here.alarms().len() == 1
    });
    assert!(here.status().db_size < here.status().db_size_quota);
    assert_eq!(here.range(get("big0")).count, 1);
    assert!(!starling.has_ended());
    // Not by an answer of its own.
    assert_ne!(message(fill(&there)), FULL);
    until("etcd ends", || etcd.has_ended());
}

fn what_the_quota_counts() {
    let (etcd, starling) = both(&[QUOTA]);
    let (there, here) = (full(&etcd), full(&starling));
    for client in [&there, &here] {
        client.make_room();
        client.disarm();
    }
    // What is free in the file counts until it is rewritten.
    until("etcd has freed it", || {
        // The pages of one write are free from the next one on.
        there.write_something();
        there.status().db_size_in_use < QUOTA_BYTES / 2
    });
    assert!(there.status().db_size > QUOTA_BYTES - 500_000);
    assert_eq!(message(there.try_put(put("after", &incompressible(0)))), FULL);
    until("starling takes it", || here.try_put(put("after", &incompressible(0))).is_ok());
}

fn defragment() {
    let (etcd, starling) = both(&[]);
    let (there, here) = (Client::of(&etcd), Client::of(&starling));
    for client in [&there, &here] {
        client.try_put(put("a", &incompressible(1))).expect("a put succeeds");
        client.make_room();
    }
    let before = there.status().db_size;
    assert!(there.defragment().is_none());
    assert!(there.status().db_size < before);
    let entries = here.status().raft_index;
    assert!(here.defragment().is_none());
    assert_eq!(here.status().raft_index, entries);
}

/// A compaction takes history away and leaves the state as it is.
fn hashes() {
    let hashes = |server: &Server| {
        let client = Client::of(server);
        for (key, value) in [("a", b"1"), ("a", b"2"), ("b", b"1")] {
            client.try_put(put(key, value)).expect("a put succeeds");
        }
        let before = client.hash_kv(4);
        client.compact(3);
        assert_ne!(client.hash(), 0);
        (before, client.hash_kv(4))
    };
    let (etcd, starling) = both(&[]);
    let (before, after) = hashes(&etcd);
    assert_ne!(before, after);
    let (same, again) = hashes(&starling);
    assert_eq!(same, again);
    assert!(same != 0 && same != before && same != after);
}

fn ids() {
    let ids = |server: &Server| {
        let header = Client::of(server).header();
        (header.cluster_id, header.member_id)
    };
    let (mut etcd, mut starling) = both(&[]);
    let (there, here) = (ids(&etcd), ids(&starling));
    etcd.restart();
    starling.restart();
    assert_eq!((ids(&etcd), ids(&starling)), (there, here), "they stay with the data");
    etcd.start_over();
    starling.start_over();
    assert_eq!(ids(&etcd), there);
    let new = ids(&starling);
    assert!(new.0 != here.0 && new.1 != here.1);
}

fn default_data_directory() {
    let made = |program: &Path, called: &str| {
        let dir = TempDir::new().expect("the temporary directory is writable");
        let link = dir.path().join(called);
        symlink(program, &link).expect("the temporary directory has links");
        let (client, peer) = server::free_ports();
        let _running = start(&link, dir.path(), &flags("x", client, peer));
        let entries = fs::read_dir(dir.path()).expect("a directory can be read");
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| name.starts_with("x."));
        names
    };
    assert_eq!(made(etcd_program(), "etcd"), ["x.etcd"]);
    assert_eq!(made(tools::starling(), "starling"), ["x.starling"]);
    assert_eq!(made(tools::starling(), "etcd"), ["x.etcd"]);
}

fn term() {
    let (mut etcd, mut starling) = both(&[]);
    let mut terms = Vec::new();
    for _ in 0..3 {
        terms
            .push((Client::of(&etcd).status().raft_term, Client::of(&starling).status().raft_term));
        etcd.restart();
        starling.restart();
    }
    let (there, here): (Vec<_>, Vec<_>) = terms.into_iter().unzip();
    assert!(there.is_sorted() && there.iter().all(|term| *term > 0), "{there:?}");
    assert_eq!(here, [2, 3, 4]);
}

fn leader() {
    let (etcd, starling) = both(&[]);
    let (first, here) = (Client::of(&etcd), Client::of(&starling));
    let (client, peer) = server::free_ports();
    let peers = format!("solo=http://{},second=http://127.0.0.1:{peer}", etcd.peer_address());
    first.add_learner(format!("http://127.0.0.1:{peer}"));
    let dir = TempDir::new().expect("the temporary directory is writable");
    let mut flags = flags("second", client, peer);
    flags.extend([format!("--initial-cluster={peers}"), "--initial-cluster-state=existing".into()]);
    let _running = start(etcd_program(), dir.path(), &flags);
    let second = Client::connect(format!("http://127.0.0.1:{client}"));
    until("etcd's second member knows the leader", || second.status().leader != 0);
    let (one, other) = (first.status(), second.status());
    assert_eq!(one.leader, first.header().member_id);
    assert_eq!(other.leader, one.leader);
    assert_eq!(here.status().leader, here.header().member_id);
}

fn variable_and_flag() {
    const VARIABLE: (&str, &str) = ("ETCD_NAME", "from-the-variable");
    let mut etcd = Command::new(etcd_program());
    let refused =
        etcd.args(["--name", "solo"]).env(VARIABLE.0, VARIABLE.1).output().expect("etcd ends");
    let log = [refused.stdout, refused.stderr].concat();
    let log = String::from_utf8_lossy(&log);
    assert!(!refused.status.success() && log.contains("conflicting environment variable"), "{log}");
    // The flags of the tests have `--name solo` among them.
    let starling = Server::start_under(Kind::Starling, &[], |_| {
        vec!["env".into(), format!("{}={}", VARIABLE.0, VARIABLE.1)]
    });
    assert_eq!(Client::of(&starling).members(), ["solo"]);
}

fn pings() {
    const PINGS: usize = 20;
    let (etcd, starling) = both(&["--grpc-keepalive-min-time=1h"]);
    assert!(!Connection::open(&etcd).ping(PINGS));
    assert!(Connection::open(&starling).ping(PINGS));
}

fn authority() {
    let (etcd, starling) = both(&[]);
    // The second is what clientv3 3.5.0 sends.
    for authority in ["", "#initially=[http://127.0.0.1:2379]", "/run/etcd.sock", "%2Frun", "a b"] {
        let header = [(":authority", authority)];
        assert_eq!(ask(&etcd, &header), "a message", "{authority:?}");
        assert_eq!(ask(&starling, &header), "the stream is reset", "{authority:?}");
    }
    assert_eq!(ask(&etcd, &[]), "an error");
    assert_eq!(ask(&starling, &[]), "a message");
}

fn deadline() {
    let (etcd, starling) = both(&[]);
    let headers = [(":authority", "localhost"), ("grpc-timeout", "1n")];
    let there = ask(&etcd, &headers);
    assert!(there == "an error" || there == "the stream is reset", "{there}");
    assert_eq!(ask(&starling, &headers), "a message");
}

fn files() {
    let (etcd, starling) = both(&[]);
    for server in [&etcd, &starling] {
        Client::of(server).try_put(put("a", b"1")).expect("a put succeeds");
    }
    for path in ["member/snap/db", "member/wal"] {
        assert!(etcd.data_dir().join(path).exists(), "{path}");
        assert!(!starling.data_dir().join(path).exists(), "{path}");
    }
    assert!(fs::read_dir(starling.data_dir()).is_ok_and(|mut files| files.next().is_some()));
}

fn ask(server: &Server, headers: &[(&str, &str)]) -> String {
    let mut all = grpc_headers(RANGE);
    let (pseudo, others): (Vec<_>, Vec<_>) =
        headers.iter().copied().partition(|(name, _)| name.starts_with(':'));
    all.splice(1..1, pseudo);
    all.extend(others);
    Connection::open(server).call(&all, GET)
}

fn etcd_program() -> &'static Path {
    &tools::etcd().expect("these cases are run where etcd is").etcd
}

pub(super) fn flags(name: &str, client: u16, peer: u16) -> Vec<String> {
    let mut flags = vec![format!("--name={name}")];
    for (flag, port) in [
        ("listen-client-urls", client),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer),
        ("initial-advertise-peer-urls", peer),
    ] {
        flags.push(format!("--{flag}=http://127.0.0.1:{port}"));
    }
    flags.push(format!("--initial-cluster={name}=http://127.0.0.1:{peer}"));
    flags
}

/// Starts a program where it stands.
fn start(program: &Path, dir: &Path, flags: &[String]) -> Process {
    let running = Process::start(Command::new(program).args(flags).current_dir(dir));
    let is_ready = running.log.wait_for(server::READY, server::START_DEADLINE);
    assert!(is_ready, "{}", running.log.text());
    running
}

fn until(what: &str, is: impl FnMut() -> bool) {
    server::until(what, DEADLINE, is);
}

fn message<T>(answer: Result<T, Status>) -> String {
    answer.err().map(|status| status.message().to_owned()).unwrap_or_default()
}

/// A client of a server that is filled up to its quota.
pub(super) fn full(server: &Server) -> Client {
    let client = Client::of(server);
    assert_eq!(message(fill(&client)), FULL);
    client
}

/// Puts until it is refused. etcd knows of its size only after it has committed, so small puts are refused later.
fn fill(client: &Client) -> Result<(), Status> {
    const PUTS: u64 = 1000;
    for number in 0..PUTS {
        client.try_put(put(&format!("big{number}"), &incompressible(number)))?;
    }
    Ok(())
}

/// Bytes that no compression makes room for.
pub(super) fn incompressible(seed: u64) -> Vec<u8> {
    let mut state = seed + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..VALUE).map(|_| next()).collect()
}

fn put(key: &str, value: &[u8]) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_vec().into(),
        ..Default::default()
    }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// A client that waits for each answer.
pub(super) struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    fn of(server: &Server) -> Self {
        Self::connect(server.url())
    }

    fn connect(url: String) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let endpoint = Endpoint::from_shared(url).expect("a server has a valid address");
        let endpoint = endpoint.timeout(DEADLINE);
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// The answer to what does not fail.
    fn wait<T>(&self, answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> T {
        self.runtime.block_on(answer).expect("a server answers").into_inner()
    }

    fn try_put(&self, request: pb::PutRequest) -> Result<(), Status> {
        self.runtime.block_on(self.kv().put(request)).map(drop)
    }

    fn range(&self, request: pb::RangeRequest) -> pb::RangeResponse {
        self.wait(self.kv().range(request))
    }

    fn header(&self) -> pb::ResponseHeader {
        self.range(get("a")).header.expect("an answer has a header")
    }

    fn status(&self) -> pb::StatusResponse {
        self.wait(self.maintenance().status(pb::StatusRequest {}))
    }

    fn defragment(&self) -> Option<pb::ResponseHeader> {
        self.wait(self.maintenance().defragment(pb::DefragmentRequest {})).header
    }

    fn hash_kv(&self, revision: i64) -> u32 {
        self.wait(self.maintenance().hash_kv(pb::HashKvRequest { revision })).hash
    }

    fn hash(&self) -> u32 {
        self.wait(self.maintenance().hash(pb::HashRequest {})).hash
    }

    fn compact(&self, revision: i64) {
        self.wait(self.kv().compact(pb::CompactionRequest { revision, physical: true }));
    }

    fn alarms(&self) -> Vec<pb::AlarmMember> {
        self.wait(self.maintenance().alarm(pb::AlarmRequest::default())).alarms
    }

    /// Raises the alarm, and ends it: two writes, of which a full etcd takes few.
    fn write_something(&self) {
        let member_id = self.header().member_id;
        let alarm = pb::AlarmType::Nospace.into();
        let request = pb::AlarmRequest { action: AlarmAction::Activate.into(), member_id, alarm };
        self.wait(self.maintenance().alarm(request));
        self.disarm();
    }

    /// A server that has ended the alarm by itself has none to disarm.
    fn disarm(&self) {
        for pb::AlarmMember { member_id, alarm } in self.alarms() {
            let request =
                pb::AlarmRequest { action: AlarmAction::Deactivate.into(), member_id, alarm };
            self.wait(self.maintenance().alarm(request));
        }
    }

    /// Deletes all keys, and their history.
    fn make_room(&self) {
        let all = pb::DeleteRangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            ..Default::default()
        };
        let header = self.wait(self.kv().delete_range(all)).header;
        self.compact(header.expect("an answer has a header").revision);
    }

    fn members(&self) -> Vec<String> {
        let mut client = ClusterClient::new(self.channel.clone());
        let answer = self.wait(client.member_list(pb::MemberListRequest::default()));
        answer.members.into_iter().map(|member| member.name).collect()
    }

    /// A cluster that has just begun may not be healthy yet.
    fn add_learner(&self, url: String) {
        let request = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
        let mut client = ClusterClient::new(self.channel.clone());
        until("etcd takes a learner", || {
            let answer = self.runtime.block_on(client.member_add(request.clone()));
            !answer.is_err_and(|status| status.code() == Code::Unavailable)
        });
    }
}
