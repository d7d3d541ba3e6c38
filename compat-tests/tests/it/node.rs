//! Runs `node/`, which uses the npm package etcd3.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use starling_compat_tests::{Server, client, tools};
use tempfile::TempDir;

use crate::tls;

#[test]
fn node_etcd3() {
    let node = tools::toolchain("node", "--version", "no client of JavaScript is run");
    let Some(version) = node else { return };
    let source = tools::package_dir().join("node");
    let pins = format!("{version}{}", include_str!("../../node/package-lock.json"));
    let dir = client::install("node", &pins, |dir| install(&source, dir));
    let server = Server::starling();
    let (kind, endpoint) = (server.kind(), server.url());
    let certificates = TempDir::new().expect("the temporary directory is writable");
    tls::write_certificates(certificates.path(), &["server", "client"]);
    let (_secure, secure_endpoint) = tls::start(kind, certificates.path());
    let server = Arc::new(Mutex::new(server));
    let mut tests = Command::new("node");
    tests
        .args(["--test", "--test-reporter=spec", "etcd3.test.js"])
        .current_dir(source)
        // The source tree has no node_modules.
        .env("NODE_PATH", dir.join("node_modules"))
        .env("COMPAT_ENDPOINT", endpoint)
        .env("COMPAT_TLS_ENDPOINT", secure_endpoint)
        .env("COMPAT_CERTIFICATES", certificates.path())
        .env("COMPAT_CONTROL", client::control(&server));
    client::run(&mut tests, kind);
}

fn install(source: &Path, dir: &Path) {
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), dir.join(file)).expect("the target directory is writable");
    }
    // Nothing that the packages would run at their installation is needed.
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(dir);
    tools::succeed(&mut npm);
}
