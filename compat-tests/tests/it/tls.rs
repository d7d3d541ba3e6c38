//! etcdctl by TLS, and users that certificates name: what it prints has to be the same on both servers.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use starling_compat_tests::server::{Kind, free_ports};
use starling_compat_tests::tools::EtcdTools;
use starling_compat_tests::{Server, tools};
use tempfile::TempDir;

/// Who runs a command, and the command.
const COMMANDS: &[(&str, &str)] = &[
    ("root", "put a 1"),
    ("root", "get a"),
    ("", "--command-timeout=2s get a"),
    ("root", "role add r"),
    ("root", "role grant-permission r readwrite a"),
    ("root", "user add root:secret"),
    ("root", "user add alice --no-password"),
    ("root", "user grant-role root root"),
    ("root", "user grant-role alice r"),
    ("root", "auth enable"),
    ("root", "put b 1"),
    ("alice", "get a"),
    ("alice", "put a 2"),
    ("alice", "put b 2"),
    ("alice", "user list"),
    ("mallory", "get a"),
    ("alice", "--user root:secret get b"),
    ("alice", "--user root:wrong get b"),
    ("root", "auth disable"),
    ("mallory", "get b"),
];

/// A CA, and a certificate of each name, which is for this machine.
pub(crate) fn write_certificates(directory: &Path, names: &[&str]) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(params, key);
    let write = |name: &str, text: String| {
        fs::write(directory.join(name), text).expect("the directory is ours");
    };
    write("ca.pem", ca.pem());
    for name in names {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, *name);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

/// Starts a server that clients reach by TLS, with certificates of their own. Answers its URL, too.
pub(crate) fn start(kind: Kind, directory: &Path) -> (Server, String) {
    let file = |name: &str| directory.join(name).display().to_string();
    let (port, _) = free_ports();
    let url = format!("https://127.0.0.1:{port}");
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let flags = ["--listen-client-urls", &url, "--advertise-client-urls", &url];
    let files = ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca];
    let server = Server::start(kind, &[&flags[..], &files[..], &["--client-cert-auth"]].concat());
    (server, url)
}

/// What all commands print on a server.
fn record(kind: Kind, tools: &EtcdTools, directory: &Path) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    let (server, url) = start(kind, directory);
    let ca = file("ca.pem");
    let mut text = String::new();
    for (user, words) in COMMANDS {
        let mut etcdctl = Command::new(&tools.etcdctl);
        etcdctl.args(["--endpoints", &url, "--cacert", &ca]);
        if !user.is_empty() {
            let (cert, key) = (file(&format!("{user}.pem")), file(&format!("{user}.key")));
            etcdctl.args(["--cert", &cert, "--key", &key]);
        }
        let output = etcdctl.args(words.split(' ')).output().expect("etcdctl can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().find(|line| line.starts_with("Error:")).unwrap_or_default();
        let printed = String::from_utf8_lossy(&output.stdout);
        let _ = writeln!(text, "{user}: {words}\n{printed}{why}");
    }
    drop(server);
    text
}

#[test]
fn etcdctl_prints_the_same_by_tls() {
    let Some(tools) = tools::etcd() else { return };
    let directory = TempDir::new().expect("the temporary directory is writable");
    write_certificates(directory.path(), &["server", "root", "alice", "mallory"]);
    let etcd = record(Kind::Etcd, tools, directory.path());
    let starling = record(Kind::Starling, tools, directory.path());
    assert!(etcd.contains("permission denied"), "{etcd}");
    assert_eq!(starling, etcd);
}
