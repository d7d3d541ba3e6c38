//! Members that prove who they are.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;

/// Signs certificates.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Writes a certificate for a host, its key, and this CA.
    fn write(&self, directory: &TempDir, host: &str) -> TlsFiles {
        let file = |name: &str| directory.path().join(name);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([host.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = TlsFiles {
            cert: file("cert.pem"),
            key: file("key.pem"),
            ca: Some(file("ca.pem")),
            ..TlsFiles::default()
        };
        fs::write(&files.key, key.serialize_pem()).expect("it can be written");
        fs::write(&files.cert, certificate.pem()).expect("it can be written");
        fs::write(file("ca.pem"), self.certificate.pem()).expect("it can be written");
        files
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn secured(id: u64, files: &TlsFiles) -> TransportOptions {
    TransportOptions { tls: Some(files.clone()), ..options(id) }
}

#[tokio::test]
async fn members_with_certificates_of_one_ca_talk() {
    let (ca, directories) = (Ca::new(), [directory(), directory()]);
    let files = directories.each_ref().map(|directory| ca.write(directory, "127.0.0.1"));
    let one = Member::start_with(secured(1, &files[0]));
    let two = Member::start_with(secured(2, &files[1]));
    introduce(&[&one, &two]);
    one.reach(&two, 1).await;
    two.reach(&one, 2).await;
    let candidate = two.candidate().await;
    let reply = one.transport.hello(candidate, pb::HelloRequest::default()).await;
    reply.expect("an answer");
    one.transport.channel(MemberId(2)).expect("it is known");
}

#[tokio::test]
async fn a_member_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let directories = [directory(), directory()];
    let one = Member::start_with(secured(1, &ca.write(&directories[0], "127.0.0.1")));
    let two = Member::start_with(secured(2, &other.write(&directories[1], "127.0.0.1")));
    introduce(&[&one, &two]);
    one.send(&two, busy(1)).expect("there is room");
    let why = one.diary.unreachable(MemberId(2)).await;
    assert!(why.contains("certificate"), "{why}");
    assert_eq!(*two.diary.events.borrow(), []);
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let (ca, directories) = (Ca::new(), [directory(), directory()]);
    let one = Member::start_with(secured(1, &ca.write(&directories[0], "127.0.0.1")));
    let two = Member::start_with(secured(2, &ca.write(&directories[1], "elsewhere.org")));
    introduce(&[&one, &two]);
    one.send(&two, busy(1)).expect("there is room");
    let why = one.diary.unreachable(MemberId(2)).await;
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn whoever_shows_no_certificate_is_refused() {
    let (ca, directory) = (Ca::new(), directory());
    let member = Member::start_with(secured(1, &ca.write(&directory, "127.0.0.1")));
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.der().clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", member.url.port)).await.expect("it listens");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    // In TLS 1.3 the client is done before the server has seen that there is no certificate.
    let refused = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    let error = timeout(PATIENCE, refused).await.expect("an answer").expect_err("no certificate");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn who_has_no_tls_does_not_talk_to_who_has() {
    let (ca, directory) = (Ca::new(), directory());
    let plain = Member::start(1);
    let secure = Member::start_with(secured(2, &ca.write(&directory, "127.0.0.1")));
    introduce(&[&plain, &secure]);
    plain.send(&secure, busy(1)).expect("there is room");
    let why = plain.diary.unreachable(MemberId(2)).await;
    assert!(why.contains("no certificate for tls"), "{why}");
    let url = PeerUrl { tls: false, ..secure.url.clone() };
    plain.transport.set_peers(vec![PeerAddress { member: MemberId(2), urls: vec![url] }]);
    plain.send_surely(MemberId(2), &busy(2)).await;
    let failures = |events: &[Event]| events.len() >= 2;
    plain.diary.wait("a second failure", failures).await;
    assert_eq!(*secure.diary.events.borrow(), []);
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let (ca, other) = (Ca::new(), Ca::new());
    let directories = [directory(), directory()];
    let one = Member::start_with(secured(1, &ca.write(&directories[0], "127.0.0.1")));
    let files = other.write(&directories[1], "127.0.0.1");
    let two = Member::start_with(secured(2, &files));
    introduce(&[&one, &two]);
    one.send(&two, busy(1)).expect("there is room");
    one.diary.unreachable(MemberId(2)).await;

    ca.write(&directories[1], "127.0.0.1");
    one.reach(&two, 2).await;

    // Damaged files change nothing.
    fs::write(&files.cert, "nothing").expect("it can be written");
    one.transport.set_identity(Identity { run: 7, ..identity(1) });
    one.reach(&two, 3).await;
    two.diary.wait_for(Event::Connected(MemberId(1), 7)).await;
}

#[tokio::test]
async fn files_of_no_use_are_named_at_the_start() {
    let (ca, directory) = (Ca::new(), directory());
    let files = ca.write(&directory, "127.0.0.1");
    let empty = directory.path().join("empty.pem");
    fs::write(&empty, "").expect("it can be written");
    let missing = PathBuf::from("missing.pem");
    let cases = [
        (TlsFiles { cert: missing.clone(), ..files.clone() }, "missing.pem", "No such file"),
        (TlsFiles { key: missing.clone(), ..files.clone() }, "missing.pem", "No such file"),
        (TlsFiles { ca: Some(missing), ..files.clone() }, "missing.pem", "No such file"),
        (TlsFiles { cert: empty.clone(), ..files.clone() }, "empty.pem", "no certificate"),
        (TlsFiles { key: empty.clone(), ..files.clone() }, "empty.pem", "no "),
        (TlsFiles { ca: Some(empty), ..files.clone() }, "empty.pem", "no certificate"),
        (TlsFiles { key: files.cert.clone(), ..files.clone() }, "cert.pem", "no "),
    ];
    let start = |files: TlsFiles| {
        let handler = Arc::new(Diary::default());
        Transport::start(secured(1, &files), handler, &runtime::Handle::current())
    };
    for (files, file, why) in cases {
        let error = start(files).expect_err("it is of no use").to_string();
        assert!(error.contains(file) && error.contains(why), "{error}");
    }
    start(files).expect("it is as it should be");
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused() {
    let (ca, directories) = (Ca::new(), [directory(), directory()]);
    let files = directories.each_ref().map(|directory| ca.write(directory, "127.0.0.1"));
    let mixed = TlsFiles { key: files[1].key.clone(), ..files[0].clone() };
    let handler = Arc::new(Diary::default());
    let error = Transport::start(secured(1, &mixed), handler, &runtime::Handle::current())
        .expect_err("they do not belong together");
    assert!(error.to_string().contains("cert.pem"), "{error}");
}

#[tokio::test]
async fn there_is_no_tls_without_certificates() {
    let diary = Arc::new(Diary::default());
    let runtime = runtime::Handle::current();
    let transport = Transport::start(options(1), diary, &runtime).expect("no files are needed");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners = vec![PeerListener { socket, tls: true }];
    transport.serve(listeners, &transport.router()).expect_err("there is no certificate");
}
