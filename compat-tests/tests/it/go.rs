//! Runs the Go tests of `go/`, which use etcd's own client library, against both servers.

use std::process::Command;
use std::sync::{Arc, Mutex};

use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, client, tools};

#[test]
fn go_client_on_etcd() {
    run(Kind::Etcd);
}

#[test]
fn go_client_on_starling() {
    run(Kind::Starling);
}

fn run(kind: Kind) {
    if tools::etcd().is_none() {
        return;
    }
    let server =
        Arc::new(Mutex::new(Server::start(kind, &["--watch-progress-notify-interval=500ms"])));
    let endpoint = server.lock().expect("nothing has panicked yet").address();
    let mut go = Command::new("go");
    go.args(["test", "-count=1", "-timeout=150s", "./..."])
        .current_dir(tools::package_dir().join("go"));
    go.env("COMPAT_ENDPOINT", endpoint).env("COMPAT_CONTROL", client::control(&server));
    let output = go.output().expect("go can be started");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "on {kind:?}\n{text}\n{errors}");
}
