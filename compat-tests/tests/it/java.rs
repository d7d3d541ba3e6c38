//! Runs `java/`, which uses jetcd.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use starling_compat_tests::{Server, client, tools};
use tempfile::TempDir;

use crate::tls;

#[test]
fn java_jetcd() {
    let maven = tools::toolchain("mvn", "--version", "no client of Java is run");
    let Some(version) = maven else { return };
    let pins = format!("{version}{}", include_str!("../../java/pom.xml"));
    // Without a server all tests are skipped, after Maven has fetched whatever they need.
    let dir = client::install("java", &pins, |dir| {
        tools::succeed(&mut maven_test(dir));
    });
    let server = Server::starling();
    let (kind, endpoint) = (server.kind(), server.url());
    let certificates = TempDir::new().expect("the temporary directory is writable");
    tls::write_certificates(certificates.path(), &["server", "client"]);
    let (_secure, secure_endpoint) = tls::start(kind, certificates.path());
    let server = Arc::new(Mutex::new(server));
    let mut tests = maven_test(&dir);
    tests
        .arg("--offline")
        .env("COMPAT_ENDPOINT", endpoint)
        .env("COMPAT_TLS_ENDPOINT", secure_endpoint)
        .env("COMPAT_CERTIFICATES", certificates.path())
        .env("COMPAT_CONTROL", client::control(&server));
    client::run(&mut tests, kind);
}

fn maven_test(dir: &Path) -> Command {
    let mut maven = Command::new("mvn");
    maven
        .args(["--batch-mode", "--no-transfer-progress", "test"])
        .arg(format!("-Dmaven.repo.local={}", dir.join("repository").display()))
        .arg(format!("-Dcompat.build={}", dir.join("build").display()))
        .current_dir(tools::package_dir().join("java"))
        .env_remove("COMPAT_ENDPOINT");
    maven
}
