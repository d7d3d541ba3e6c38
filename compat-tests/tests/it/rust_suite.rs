//! Runs the suite that the etcd-client crate ships, as it is but for the endpoint that is fixed in it.
//!
//! The crate is that of `rust-client/Cargo.lock`. It is copied, since the suite is compiled with the address of
//! the server in it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use starling_compat_tests::server::{self, Kind};
use starling_compat_tests::tools::EtcdTools;
use starling_compat_tests::{Server, client, tools};

const PACKAGE: &str = "etcd-client";
/// What the suite has in it, and what stands there instead.
const ENDPOINT: (&str, &str) = ("\"localhost:2379\"", "env!(\"COMPAT_ENDPOINT\")");
/// Where the suite adds a member, and what stands there instead.
const ADDED: (&str, &str) = ("\"http://node4:2380\"", "env!(\"COMPAT_ADDED\")");
const ADDED_NAME: &str = "node4";
/// What adds it. Others look for a member meanwhile that may be taken for the leader, which a learner may not.
const ADDS: &str = "test_cluster";
/// How often it is looked whether the suite has added that.
const POLL: Duration = Duration::from_millis(100);
/// What the suite wants of its server: tokens that expire in a test, answers that come in parts.
const FLAGS: &[&str] = &["--auth-token-ttl=2", "--max-request-bytes=10240"];

#[test]
fn rust_etcd_client() {
    let Some(version) = tools::toolchain("cargo", "--version", "no suite of Rust is run") else {
        return;
    };
    let pins =
        format!("{version}{ENDPOINT:?}{ADDED:?}{}", include_str!("../../rust-client/Cargo.lock"));
    let dir = client::install("rust-etcd-client", &pins, |dir| {
        copy_suite(dir);
        tools::succeed(suite(dir, "localhost:2379", "http://localhost:2380").arg("--no-run"));
    });
    let Some(etcd) = tools::etcd() else { return };
    let server = Server::start(Kind::Starling, FLAGS);
    add_root(&server, etcd);
    let ports = server::free_ports();
    let added = format!("http://127.0.0.1:{}", ports.1);
    let tests = |which: &[&str]| {
        let mut tests = suite(&dir, &server.address(), &added);
        // Without `--exact`, names are parts of names. Those that are ignored want a server that is new enough.
        tests.args(["--offline", "--", "--exact", "--include-ignored"]).args(which);
        tests
    };
    client::run(&mut tests(&["--skip", ADDS]), server.kind());
    let (is_over, ended) = mpsc::channel();
    thread::scope(|scope| {
        // The end of this closure, however it comes, is the end of the wait.
        let (server, is_over): (_, mpsc::Sender<()>) = (&server, is_over);
        let member = scope.spawn(move || start_when_added(server, etcd, ports, &ended));
        client::run(&mut tests(&[ADDS]), server.kind());
        drop(is_over);
        assert!(member.join().is_ok_and(|started| started), "the suite has added a member");
    });
}

/// Starts the member that the suite adds, when it has added it, and lets it run until the suite is over. Answers whether it did.
fn start_when_added(
    server: &Server,
    etcd: &EtcdTools,
    ports: (u16, u16),
    ended: &mpsc::Receiver<()>,
) -> bool {
    let is_added = || {
        let mut list = Command::new(&etcd.etcdctl);
        // Authentication comes and goes.
        list.args(["--user=root:rootpwd", "--endpoints", &server.url(), "member", "list"]);
        let output = list.output().expect("etcdctl can be run");
        String::from_utf8_lossy(&output.stdout).contains("unstarted")
    };
    let is_over = |wait| ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
    while !is_added() {
        if is_over(POLL) {
            return false;
        }
    }
    let _added = server.join(ADDED_NAME, ports);
    let _ = ended.recv();
    true
}

/// Copies the package from where cargo unpacks it, and puts the endpoint in.
fn copy_suite(dir: &Path) {
    let copy = source(dir);
    tools::succeed(Command::new("cp").arg("-R").arg(unpacked()).arg(&copy));
    replace(&copy.join("tests/testing.rs"), |text| {
        assert!(text.contains(ENDPOINT.0), "the suite has another endpoint:\n{text}");
        text.replace(ENDPOINT.0, ENDPOINT.1)
    });
    replace(&copy.join("tests/client.rs"), |text| {
        assert!(text.contains(ADDED.0), "the suite adds another member:\n{text}");
        text.replace(ADDED.0, ADDED.1)
    });
    // It lies in the folder of a workspace and is not of it.
    replace(&copy.join("Cargo.toml"), |text| format!("{text}\n[workspace]\n"));
}

fn replace(file: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(file).expect("a package is there once cargo has named it");
    fs::write(file, change(text)).expect("the target directory is writable");
}

/// The folder of the package in cargo's cache, downloaded if need be.
fn unpacked() -> PathBuf {
    let mut metadata = Command::new(cargo());
    metadata.args(["metadata", "--locked", "--format-version", "1", "--manifest-path"]);
    metadata.arg(tools::package_dir().join("rust-client/Cargo.toml"));
    let output = tools::succeed(&mut metadata).stdout;
    let output: serde_json::Value = serde_json::from_slice(&output).expect("cargo writes JSON");
    let packages = output["packages"].as_array().expect("there are packages");
    let package = packages.iter().find(|package| package["name"] == PACKAGE);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = Path::new(manifest.expect("rust-client depends on the package"));
    manifest.parent().expect("a manifest is in a folder").to_owned()
}

fn source(dir: &Path) -> PathBuf {
    dir.join(PACKAGE)
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn suite(dir: &Path, endpoint: &str, added: &str) -> Command {
    let mut cargo = Command::new(cargo());
    cargo
        .args(["test", "--quiet", "--locked", "--tests", "--target-dir"])
        .arg(dir.join("build"))
        .current_dir(source(dir))
        .env("PROTOC", env!("CARGO_BIN_EXE_protoc"))
        .env("COMPAT_ENDPOINT", endpoint)
        .env("COMPAT_ADDED", added)
        // Most of the time goes into compiling, and nobody looks at it with a debugger.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo
}

/// The user that the suite enables authentication with.
fn add_root(server: &Server, etcd: &EtcdTools) {
    for command in [
        &["user", "add", "root", "--new-user-password=rootpwd"][..],
        &["user", "grant-role", "root", "root"],
    ] {
        tools::succeed(
            Command::new(&etcd.etcdctl).arg("--endpoints").arg(server.url()).args(command),
        );
    }
}
