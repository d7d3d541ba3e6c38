//! Runs the Go tests of `go/`, which use etcd's own client library, against both servers.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};

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
    go.env("COMPAT_ENDPOINT", endpoint).env("COMPAT_CONTROL", control(Arc::downgrade(&server)));
    let output = go.output().expect("go can be started");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "on {kind:?}\n{text}\n{errors}");
}

/// Lets the Go tests restart the server: each line they send does so once, and is answered.
///
/// The thread must not keep the server alive beyond its test, since nothing would stop it then.
fn control(server: Weak<Mutex<Server>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            serve(&socket, &server);
        }
    });
    address
}

fn serve(mut socket: &TcpStream, server: &Weak<Mutex<Server>>) {
    for _ in BufReader::new(socket).lines().map_while(Result::ok) {
        let Some(server) = server.upgrade() else { return };
        server.lock().expect("a restart does not panic").restart();
        if socket.write_all(b"restarted\n").is_err() {
            return;
        }
    }
}
