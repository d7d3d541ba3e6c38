//! Members that find each other by etcd's v3 discovery: those of one server in a registry of the other, both ways.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use starling_compat_tests::server::{Kind, Process, READY, START_DEADLINE, free_ports, wait};
use starling_compat_tests::tools::EtcdTools;
use starling_compat_tests::{Server, tools};
use tempfile::TempDir;

use crate::differences::flags;
use crate::tls;

const NAMES: [&str; 3] = ["one", "two", "three"];
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A member that is to found a cluster with those in a registry.
struct Member {
    running: Process,
    url: String,
    _dir: TempDir,
}

impl Member {
    fn start(program: &Path, name: &str, registry: &Server, token: &str) -> Self {
        Self::start_with(program, name, &registry.url(), &[format!("--discovery-token={token}")])
    }

    fn start_with(program: &Path, name: &str, registry: &str, more: &[String]) -> Self {
        let (client, peer) = free_ports();
        let dir = TempDir::new().expect("the temporary directory is writable");
        let mut flags = flags(name, client, peer);
        flags.retain(|flag| !flag.starts_with("--initial-cluster="));
        flags.push(format!("--discovery-endpoints={registry}"));
        flags.extend_from_slice(more);
        let running = Process::start(Command::new(program).args(&flags).current_dir(&dir));
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
        assert!(
            member.running.log.wait_for(READY, START_DEADLINE),
            "{}",
            member.running.log.text()
        );
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

/// What etcdctl says to a registry that is reached by TLS, as this user if any.
struct Keeper<'a> {
    etcd: &'a EtcdTools,
    url: String,
    files: [String; 3],
}

impl Keeper<'_> {
    fn say(&self, user: Option<&str>, words: &[&str]) -> String {
        let [ca, cert, key] = &self.files;
        let mut args = vec!["--cacert", ca, "--cert", cert, "--key", key];
        args.extend(user.into_iter().flat_map(|user| ["--user", user]));
        etcdctl(self.etcd, &self.url, &[&args[..], words].concat())
    }
}

/// The registry has TLS and users, and goes away while the first member waits there for the others.
fn found_behind_a_lock(etcd: &EtcdTools, kind: Kind, program: &Path) {
    const ROOT: Option<&str> = Some("root:secret");
    let directory = TempDir::new().expect("the temporary directory is writable");
    tls::write_certificates(directory.path(), &["server", "member"]);
    let (mut registry, url) = tls::start(kind, directory.path());
    let files = ["ca.pem", "member.pem", "member.key"];
    let files = files.map(|name| directory.path().join(name).display().to_string());
    let keeper = Keeper { etcd, url: url.clone(), files: files.clone() };
    for words in [
        "put /_etcd/registry/blue/_config/size 3",
        "user add root:secret",
        "user grant-role root root",
        "role add finders",
        "role grant-permission --prefix=true finders readwrite /_etcd/registry/blue/",
        "user add finder:found",
        "user grant-role finder finders",
        "auth enable",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        let said = keeper.say(None, &words);
        assert!(!said.is_empty(), "{words:?}");
    }
    let [ca, cert, key] = &files;
    let flags = [
        "--discovery-token=blue".to_owned(),
        "--discovery-insecure-transport=false".to_owned(),
        format!("--discovery-cacert={ca}"),
        format!("--discovery-cert={cert}"),
        format!("--discovery-key={key}"),
        "--discovery-user=finder".to_owned(),
        "--discovery-password=found".to_owned(),
    ];
    let start = |name| Member::start_with(program, name, &url, &flags);
    let wrong = [&flags[..flags.len() - 1], &["--discovery-password=lost".to_owned()]].concat();
    let wrong = Member::start_with(program, NAMES[0], &url, &wrong).end();
    assert!(wrong.contains("authentication failed, invalid user ID or password"), "{wrong}");
    let registered = |name: &str| {
        let get = ["get", "--prefix", "/_etcd/registry/blue/members/"];
        let got = keeper.say(ROOT, &get);
        (got.contains(&format!("\n{name}=http://127.0.0.1:")), got)
    };
    let first = start(NAMES[0]);
    until("the first one waits", || registered(NAMES[0]));
    registry.restart();
    let members = [first, start(NAMES[1]), start(NAMES[2])];
    for member in &members {
        let log = &member.running.log;
        assert!(log.wait_for(READY, START_DEADLINE), "{}", log.text());
    }
    until("all know each other", || {
        let list = etcdctl(etcd, &members[0].url, &["member", "list"]);
        (list.matches(", started, ").count() == NAMES.len(), list)
    });
    // Once, not once more after the registry had been away.
    let (_, got) = registered(NAMES[0]);
    assert_eq!(got.matches("=http://127.0.0.1:").count(), NAMES.len(), "{got}");
}

#[test]
fn starling_in_a_registry_of_etcd_with_tls_and_users() {
    let Some(etcd) = tools::etcd() else { return };
    found_behind_a_lock(etcd, Kind::Etcd, tools::starling());
}

#[test]
fn etcd_in_a_registry_of_starling_with_tls_and_users() {
    let Some(etcd) = tools::etcd() else { return };
    found_behind_a_lock(etcd, Kind::Starling, &etcd.etcd);
}
