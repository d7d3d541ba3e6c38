//! Client libraries: installed from their registries, run against a server.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::{Kind, Log, Server};
use crate::tools::{self, EtcdTools};

/// No run takes half of it; a client that waits for something that never comes is the reason for one.
const DEADLINE: Duration = Duration::from_secs(300);

/// Fills the folder `name` of the target directory by `install`, unless that was done with the same `pins`:
/// the versions to install and that of the toolchain.
///
/// # Panics
///
/// When the folder cannot be written.
pub fn install(name: &str, pins: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let clients = tools::target_dir().join("clients");
    let _lock = tools::lock(&clients);
    let dir = clients.join(name);
    let stamp = dir.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == pins) {
        return dir;
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).expect("the target directory is writable");
    }
    fs::create_dir_all(&dir).expect("the target directory is writable");
    install(&dir);
    fs::write(stamp, pins).expect("the target directory is writable");
    dir
}

/// Waits until the members of a cluster know each other by name, as suites expect it of whatever has started them.
///
/// # Panics
///
/// When that takes too long.
pub fn wait_until_formed(cluster: &[Server], etcd: &EtcdTools) {
    const POLL: Duration = Duration::from_millis(50);
    let started = Instant::now();
    for server in cluster {
        loop {
            let mut etcdctl = Command::new(&etcd.etcdctl);
            etcdctl.args(["--endpoints", &server.address(), "member", "list"]);
            let output = etcdctl.output().expect("etcdctl can be run");
            let list = String::from_utf8_lossy(&output.stdout);
            if list.matches(", started, ").count() == cluster.len() {
                break;
            }
            assert!(started.elapsed() < DEADLINE, "{}: {list}", server.address());
            thread::sleep(POLL);
        }
    }
}

/// Runs the tests of a client library and tells them which server it is.
///
/// # Panics
///
/// When they fail or do not end, with what they have written.
pub fn run(tests: &mut Command, kind: Kind) {
    tests.env("COMPAT_SERVER", kind.name());
    let mut child = tests
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tests:?}: {error}"));
    let log = Arc::new(Log::default());
    log.follow(child.stdout.take().expect("stdout is a pipe"));
    log.follow(child.stderr.take().expect("stderr is a pipe"));
    log.wait_for_end(DEADLINE);
    // Whoever still has a pipe open is stuck; for the others this does nothing.
    let _ = child.kill();
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "on {kind:?}: {status}\n{}", log.text());
}

/// Lets tests in other languages restart the server: each line they send does so once, and is answered.
///
/// Returns the address to send lines to.
///
/// # Panics
///
/// When there is no free port.
pub fn control(server: &Arc<Mutex<Server>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    // The thread must not keep the server alive beyond its test, since nothing would stop it then.
    let server = Arc::downgrade(server);
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            restart_on_lines(&socket, &server);
        }
    });
    address
}

fn restart_on_lines(mut socket: &TcpStream, server: &Weak<Mutex<Server>>) {
    for _ in BufReader::new(socket).lines().map_while(Result::ok) {
        let Some(server) = server.upgrade() else { return };
        server.lock().expect("a restart does not panic").restart();
        if socket.write_all(b"restarted\n").is_err() {
            return;
        }
    }
}
