//! In etcd's place: what others start under the name `etcd`, with the flags that they have for it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use starling_compat_tests::server::{Kind, free_ports};
use starling_compat_tests::{Server, client, tools};
use tempfile::TempDir;

use crate::python::{parent, path_with};
use crate::tls::write_certificates;

/// What fixtures of Python projects start etcd with.
const PIFPAF: &str = "pifpaf==3.4.0";
/// How often it is started until all ports that it takes are free.
const PORT_ATTEMPTS: usize = 10;
/// What runs inside of it; etcdctl has its endpoints from there.
/// It asks another member than it has told, which hears of it a little later.
const SESSION: &str = "etcdctl put greeting hello && timeout 30 sh -c \
                       'until etcdctl get greeting --print-value-only | grep hello; do :; done'";
/// What `kubeadm init` writes into the manifest of its etcd.
const KUBEADM: &[&str] = &[
    "--client-cert-auth=true",
    "--feature-gates=InitialCorruptCheck=true",
    "--peer-client-cert-auth=true",
    "--snapshot-count=10000",
    "--watch-progress-notify-interval=5s",
];
const PROBES: &[&str] = &["/livez", "/readyz", "/health"];

/// pifpaf waits for a line of etcd's log, and asks for its health by etcdctl.
#[test]
fn pifpaf_starts_it_as_etcd() {
    let python = tools::toolchain("python3", "--version", "pifpaf is not run");
    let (Some(version), Some(etcd)) = (python, tools::etcd()) else { return };
    let dir = client::install("python-pifpaf", &format!("{version}{PIFPAF}"), |dir| {
        tools::succeed(Command::new("python3").args(["-m", "venv"]).arg(dir));
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIFPAF]);
        tools::succeed(&mut pip);
    });
    let programs = TempDir::new().expect("the temporary directory is writable");
    symlink(tools::starling(), programs.path().join("etcd")).expect("the directory is ours");
    for cluster in [false, true] {
        // With `--cluster` it takes the ports behind the one that it is told, too, which may be somebody else's.
        let output = (0..PORT_ATTEMPTS).find_map(|_| {
            let (port, peer) = free_ports();
            let mut pifpaf = Command::new(dir.join("bin/pifpaf"));
            pifpaf.args(["run", "etcd", "--port", &port.to_string()]);
            if cluster {
                pifpaf.arg("--cluster");
            } else {
                pifpaf.args(["--peer-port", &peer.to_string()]);
            }
            pifpaf.args(["--", "sh", "-c", SESSION]);
            pifpaf.env("PATH", path_with(&[programs.path(), parent(&etcd.etcdctl)]));
            let output = pifpaf.output().expect("pifpaf can be run");
            let errors = String::from_utf8_lossy(&output.stderr);
            let is_taken = errors.contains("Address already in use");
            assert!(output.status.success() || is_taken, "cluster: {cluster}: {errors}");
            output.status.success().then_some(output.stdout)
        });
        let output = output.expect("there are free ports next to each other");
        assert_eq!(String::from_utf8_lossy(&output), "OK\nhello\n", "cluster: {cluster}");
    }
}

#[test]
fn kubeadm_starts_it_as_etcd() {
    let Some(etcd) = tools::etcd() else { return };
    let directory = TempDir::new().expect("the temporary directory is writable");
    write_certificates(directory.path(), &["server", "peer", "healthcheck-client"]);
    let answers = |kind| {
        let (server, url, metrics) = start_as_kubeadm(kind, directory.path());
        let health = |who: &str| {
            let mut etcdctl = Command::new(&etcd.etcdctl);
            etcdctl.args(["--endpoints", &url, "--cacert"]).arg(directory.path().join("ca.pem"));
            if !who.is_empty() {
                etcdctl.arg("--cert").arg(directory.path().join(format!("{who}.pem")));
                etcdctl.arg("--key").arg(directory.path().join(format!("{who}.key")));
            }
            etcdctl.args(["endpoint", "health", "--command-timeout=2s"]);
            etcdctl.output().expect("etcdctl can be run").status.success()
        };
        assert!(health("healthcheck-client") && !health(""), "{}", server.log());
        PROBES.iter().map(|path| get(metrics, path)).collect::<Vec<_>>()
    };
    let etcd = answers(Kind::Etcd);
    assert_eq!(etcd[0], ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(answers(Kind::Starling), etcd);
}

/// Starts a member by TLS on all ports but that of the probes. Answers the URL for clients, and that port.
fn start_as_kubeadm(kind: Kind, certificates: &Path) -> (Server, String, u16) {
    let (client, peer) = free_ports();
    let (metrics, _) = free_ports();
    let url = |port| format!("https://127.0.0.1:{port}");
    let file = |name: &str| certificates.join(name).display().to_string();
    let mut flags: Vec<String> = KUBEADM.iter().map(|&flag| flag.to_owned()).collect();
    for (flag, value) in [
        ("advertise-client-urls", url(client)),
        ("cert-file", file("server.pem")),
        ("initial-advertise-peer-urls", url(peer)),
        ("initial-cluster", format!("solo={}", url(peer))),
        ("key-file", file("server.key")),
        ("listen-client-urls", url(client)),
        ("listen-metrics-urls", format!("http://127.0.0.1:{metrics}")),
        ("listen-peer-urls", url(peer)),
        ("peer-cert-file", file("peer.pem")),
        ("peer-key-file", file("peer.key")),
        ("peer-trusted-ca-file", file("ca.pem")),
        ("trusted-ca-file", file("ca.pem")),
    ] {
        flags.push(format!("--{flag}={value}"));
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    (Server::start(kind, &flags), url(client), metrics)
}

/// The first line and the body of an answer.
fn get(port: u16, path: &str) -> (String, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("a request can be sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// Tools read the release off the first line; the others are there, and ours comes below.
#[test]
fn the_version_is_told_as_by_etcd() {
    let Some(etcd) = tools::etcd() else { return };
    let labels = |program: &Path| {
        let output = tools::succeed(Command::new(program).arg("--version")).stdout;
        let text = String::from_utf8_lossy(&output).into_owned();
        let labels = text.lines().filter_map(|line| line.split_once(": "));
        labels.map(|(label, value)| (label.to_owned(), value.to_owned())).collect::<Vec<_>>()
    };
    let (theirs, ours) = (labels(&etcd.etcd), labels(tools::starling()));
    assert_eq!(theirs.len(), 4);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.0, theirs.0);
    }
    let is_plain = |version: &str| version.split('.').all(|part| part.parse::<u32>().is_ok());
    assert!(ours[0].0 == "etcd Version" && is_plain(&ours[0].1), "{ours:?}");
}
