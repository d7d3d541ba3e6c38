//! Adoption that is reversible: what Starling holds is restored into real etcd, and what that holds is imported again.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use starling_compat_tests::tools::{EtcdTools, succeed};
use starling_compat_tests::{Server, tools};

const ROOT: &str = "root:secret";

#[test]
fn there_and_back() {
    let Some(tools) = tools::etcd() else { return };
    let dir = tempfile::tempdir().expect("there is room for a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let starling = Server::starling();
    fill(tools, &starling);
    let before = state(tools, &starling);

    let snapshot = path("starling.db");
    etcdctl(tools, &starling, &["--user", ROOT, "snapshot", "save", &snapshot]);
    check(tools, &snapshot, &path("raw.db"), &before);
    let mut etcd = Server::etcd();
    let peer = format!("http://{}", etcd.peer_address());
    etcd.replace_data(|data| {
        let mut restore = Command::new(&tools.etcdutl);
        restore.args(["snapshot", "restore", &snapshot, "--name=solo", "--data-dir"]).arg(data);
        restore.arg(format!("--initial-cluster=solo={peer}"));
        restore.arg(format!("--initial-advertise-peer-urls={peer}"));
        succeed(&mut restore);
    });
    assert_eq!(state(tools, &etcd), before, "etcd has what Starling had");

    etcdctl(tools, &etcd, &["--user", ROOT, "put", "key/0001", "by etcd"]);
    etcdctl(tools, &etcd, &["--user", ROOT, "del", "key/0002"]);
    let before = state(tools, &etcd);
    let snapshot = path("etcd.db");
    etcdctl(tools, &etcd, &["--user", ROOT, "snapshot", "save", &snapshot]);
    let mut starling = starling;
    starling.replace_data(|data| import(&["import", &snapshot], data));
    assert_eq!(state(tools, &starling), before, "Starling has what etcd had");
    starling.replace_data(|data| import(&["snapshot", "restore", &snapshot], data));
    assert_eq!(state(tools, &starling), before, "and by the other command");
    etcd.stop();
    let database = etcd.data_dir().join("member/snap/db").display().to_string();
    starling.replace_data(|data| import(&["import", &database], data));
    assert_eq!(state(tools, &starling), before, "and from the database itself");
}

fn import(command: &[&str], data: &Path) {
    succeed(Command::new(tools::starling()).args(command).arg("--data-dir").arg(data));
}

/// Enough for a tree of several pages; a value of many pages, leases, users, and a delete at the end.
fn fill(tools: &EtcdTools, server: &Server) {
    let run = |args: &[&str]| etcdctl(tools, server, args);
    for i in 0..60 {
        run(&["put", &format!("key/{i:04}"), &"v".repeat(i * 7)]);
    }
    run(&["put", "key/0001", "again"]);
    run(&["put", "large", &"x".repeat(100_000)]);
    run(&["lease", "grant", "600"]);
    let granted = run(&["lease", "grant", "700"]);
    let lease = granted.split(' ').nth(1).expect("a lease has an id").to_owned();
    run(&["put", "leased", "value", "--lease", &lease]);
    run(&["put", "gone", "value"]);
    run(&["del", "gone"]);
    run(&["user", "add", ROOT]);
    run(&["user", "add", "bob:word"]);
    run(&["user", "add", "nobody", "--no-password"]);
    run(&["role", "add", "root"]);
    run(&["role", "add", "reader"]);
    run(&["role", "grant-permission", "reader", "read", "key/", "--prefix"]);
    run(&["role", "grant-permission", "reader", "readwrite", "leased"]);
    run(&["user", "grant-role", "root", "root"]);
    run(&["user", "grant-role", "bob", "reader"]);
    run(&["auth", "enable"]);
}

/// All that counts, as clients see it.
fn state(tools: &EtcdTools, server: &Server) -> Vec<String> {
    let run = |args: &[&str]| etcdctl(tools, server, &[&["--user", ROOT], args].concat());
    let json = |args: &[&str]| -> Value {
        let text = run(&[args, &["-w", "json"]].concat());
        serde_json::from_str(&text).expect("etcdctl writes JSON")
    };
    let all = json(&["get", "", "--from-key"]);
    let mut state = vec![all["header"]["revision"].to_string(), all["kvs"].to_string()];
    let leases = json(&["lease", "list"]);
    let mut ids: Vec<i64> = leases["leases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|lease| lease["id"].as_i64())
        .collect();
    ids.sort_unstable();
    for id in ids {
        let lease = json(&["lease", "timetolive", "--keys", &format!("{id:x}")]);
        state.push(format!("{id:x} {} {}", lease["granted-ttl"], lease["keys"]));
    }
    for args in [&["user", "list"][..], &["role", "list"], &["role", "get", "reader"]] {
        state.push(run(args));
    }
    for user in ["root", "bob", "nobody"] {
        state.push(run(&["user", "get", user]));
    }
    state.push(etcdctl(tools, server, &["--user", "bob:word", "get", "key/0005"]));
    state
}

/// etcd's tools find nothing wrong with a snapshot.
fn check(tools: &EtcdTools, snapshot: &str, raw: &str, state: &[String]) {
    let status = ["snapshot", "status", snapshot, "-w", "json"];
    let status = succeed(Command::new(&tools.etcdutl).args(status));
    let status: Value = serde_json::from_slice(&status.stdout).expect("etcdutl writes JSON");
    assert_eq!(status["revision"].to_string(), state[0]);
    let mut bytes = std::fs::read(snapshot).expect("the snapshot is there");
    bytes.truncate(bytes.len() - 32);
    std::fs::write(raw, bytes).expect("there is room");
    let check = succeed(Command::new(&tools.bbolt).args(["check", raw]));
    assert_eq!(String::from_utf8_lossy(&check.stdout).trim(), "OK");
}

fn etcdctl(tools: &EtcdTools, server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(&tools.etcdctl);
    command.args(["--endpoints", &server.address()]).args(args);
    String::from_utf8_lossy(&succeed(&mut command).stdout).into_owned()
}
