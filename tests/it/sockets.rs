//! Where a member listens: on sockets with a path, by TLS or not, and on ports that others have, too.

use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::version;

use crate::process::{Process, free_port};
use crate::tls::{Ca, ask, greet, is_healthy};

#[tokio::test]
async fn sockets_and_ports_for_metrics_speak_tls_if_they_are_to() {
    let ca = Ca::new();
    let (ca_file, server) = (ca.file("ca.pem"), ca.pair("server"));
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let url = |scheme: &str, name: &str| format!("{scheme}://{}", path(name).display());
    let port = free_port();
    let clients = [url("unix", "plain"), url("unixs", "secure")].join(",");
    let metrics = [url("unixs", "metrics"), format!("https://127.0.0.1:{port}")].join(",");
    let flags = [
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-metrics-urls",
        &metrics,
        "--cert-file",
        server.cert.to_str().unwrap(),
        "--key-file",
        server.key.to_str().unwrap(),
    ];
    let member = Process::start(&path("data"), &flags);
    let versions = &[&version::TLS12, &version::TLS13];
    let answer = ask(UnixStream::connect(path("plain")).await.unwrap(), "/health").await;
    assert!(is_healthy(&answer), "{answer:?}");
    for name in ["secure", "metrics"] {
        let stream = UnixStream::connect(path(name)).await.unwrap();
        let stream = greet(stream, &ca_file, None, versions).await.unwrap();
        let answer = ask(stream, "/health").await;
        assert!(is_healthy(&answer), "{name}: {answer:?}");
        let plain = ask(UnixStream::connect(path(name)).await.unwrap(), "/health").await;
        assert!(!is_healthy(&plain), "{name}: {plain:?}");
    }
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let answer = ask(greet(stream, &ca_file, None, versions).await.unwrap(), "/metrics").await;
    assert!(answer.as_ref().is_ok_and(|it| it.contains("etcd_server_version")), "{answer:?}");
    tokio::task::spawn_blocking(|| member.stop()).await.unwrap();
    for name in ["plain", "secure", "metrics"] {
        assert!(!path(name).exists(), "{name} is left");
    }
}

#[test]
fn a_port_is_shared_if_both_want_it() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let start = |flags: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let urls = ["--listen-client-urls", &url, "--advertise-client-urls", &url];
        let process = Process::try_start(directory.path(), &[&urls, flags].concat());
        process.map(|process| (process, directory))
    };
    let shared = "--socket-reuse-port";
    let _first = start(&[shared]).unwrap_or_else(|log| panic!("{log}"));
    let _second = start(&[shared]).unwrap_or_else(|log| panic!("{log}"));
    match start(&[]) {
        Ok(_) => panic!("the port is taken"),
        Err(log) => assert!(log.contains("in use"), "{log}"),
    }
}
