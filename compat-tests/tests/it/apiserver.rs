//! Runs `apiserver/`: Kubernetes' API machinery with the server as its storage.

use std::process::Command;
use std::sync::{Arc, Mutex};

use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, client, tools};

#[test]
fn kubernetes_storage() {
    let go = tools::toolchain("go", "version", "nothing of Kubernetes is run");
    if go.is_none() {
        return;
    }
    // As kubeadm has it.
    let server = Server::start(Kind::Starling, &["--watch-progress-notify-interval=5s"]);
    let (kind, endpoint) = (server.kind(), server.address());
    // It is as large as all the other clients together, so that it takes its time on a fresh machine.
    let binary = build();
    let server = Arc::new(Mutex::new(server));
    let mut tests = Command::new(binary);
    tests
        .args(["-test.v", "-test.timeout=240s"])
        .current_dir(tools::package_dir().join("apiserver"))
        .env("COMPAT_ENDPOINT", endpoint)
        .env("COMPAT_CONTROL", client::control(&server));
    client::run(&mut tests, kind);
}

fn build() -> std::path::PathBuf {
    let binary = tools::target_dir().join("clients/apiserver.test");
    let _lock = tools::lock(&tools::target_dir().join("clients"));
    let mut go = Command::new("go");
    // Nobody looks at it with a debugger, and to link is faster without.
    go.args(["test", "-c", "-ldflags=-s -w", "-o"]).arg(&binary).arg(".");
    tools::succeed(go.current_dir(tools::package_dir().join("apiserver")));
    binary
}
