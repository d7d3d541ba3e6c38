//! Members that find each other by etcd's v3 discovery: those of one server in a registry of the other, both ways.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use starling_compat_tests::server::{Kind, free_ports, wait};
use starling_compat_tests::tools::EtcdTools;
use starling_compat_tests::{Server, tools};
use tempfile::TempDir;

use crate::differences::{Running, flags};

const NAMES: [&str; 3] = ["one", "two", "three"];
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A member that is to found a cluster with those in a registry.
struct Member {
    running: Running,
    url: String,
    _dir: TempDir,
}

impl Member {
    fn start(program: &Path, name: &str, registry: &Server, token: &str) -> Self {
        let (client, peer) = free_ports();
        let dir = TempDir::new().expect("the temporary directory is writable");
        let mut flags = flags(name, client, peer);
        flags.retain(|flag| !flag.starts_with("--initial-cluster="));
        flags.push(format!("--discovery-endpoints={}", registry.url()));
        flags.push(format!("--discovery-token={token}"));
        let running = Running::start(program, dir.path(), &flags);
        Self { running, url: format!("http://127.0.0.1:{client}"), _dir: dir }
    }

    /// How a member ends that cannot found anything.
    fn end(mut self) -> String {
        let code = wait(&mut self.running.child, DEADLINE);
        let log = self.running.log.text();
        assert!(code.is_some_and(|code| code != 0), "{code:?}: {log}");
        log
    }
}

fn etcdctl(etcd: &EtcdTools, url: &str, args: &[&str]) -> String {
    let mut etcdctl = Command::new(&etcd.etcdctl);
    let output = etcdctl.args(["--endpoints", url]).args(args).output();
    let output = output.expect("etcdctl can be run");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn until(what: &str, mut look: impl FnMut() -> (bool, String)) {
    let started = Instant::now();
    loop {
        let (is, seen) = look();
        if is {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{what}: {seen}");
        std::thread::sleep(POLL);
    }
}

#[test]
fn starling_in_a_registry_of_etcd() {
    let Some(etcd) = tools::etcd() else { return };
    found(etcd, Kind::Etcd, tools::starling());
}

#[test]
fn etcd_in_a_registry_of_starling() {
    let Some(etcd) = tools::etcd() else { return };
    found(etcd, Kind::Starling, &etcd.etcd);
}

fn found(etcd: &EtcdTools, kind: Kind, program: &Path) {
    let registry = Server::start(kind, &[]);
    etcdctl(etcd, &registry.url(), &["put", "/_etcd/registry/blue/_config/size", "3"]);
    let members = NAMES.map(|name| Member::start(program, name, &registry, "blue"));
    for member in &members {
        assert!(member.running.is_ready(), "{}", member.running.log.text());
    }
    until("all know each other", || {
        let list = etcdctl(etcd, &members[0].url, &["member", "list"]);
        (list.matches(", started, ").count() == NAMES.len(), list)
    });
    etcdctl(etcd, &members[0].url, &["put", "key", "value"]);
    for member in &members {
        until("what is written on one is on all", || {
            let got = etcdctl(etcd, &member.url, &["get", "key"]);
            (got == "key\nvalue\n", got)
        });
    }
    let registered =
        etcdctl(etcd, &registry.url(), &["get", "--prefix", "/_etcd/registry/blue/members/"]);
    for name in NAMES {
        assert!(registered.contains(&format!("\n{name}=http://127.0.0.1:")), "{registered}");
    }

    let late = Member::start(program, "four", &registry, "blue").end();
    assert!(late.contains("cluster is full"), "{late}");
    let unknown = Member::start(program, "one", &registry, "green").end();
    assert!(unknown.contains("size key not found"), "{unknown}");
    etcdctl(etcd, &registry.url(), &["put", "/_etcd/registry/red/_config/size", "some"]);
    let bad = Member::start(program, "one", &registry, "red").end();
    assert!(bad.contains("size key is bad"), "{bad}");
}
