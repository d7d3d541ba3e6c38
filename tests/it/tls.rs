//! TLS for clients: who is let in, by which certificates, and when these change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use starling_proto::authpb;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};

use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::api::put;
use crate::process::{Process, free_port};

/// Those that there are.
static CAS: AtomicU64 = AtomicU64::new(0);

/// Signs certificates into a directory.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key.
#[derive(Clone)]
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Ca {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Or else nobody could tell one from the other.
        let serial = CAS.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("ca {serial}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate of a name, which is for this machine.
    fn pair(&self, name: &str) -> Pair {
        self.pair_with(name, |_| {})
    }

    fn pair_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert, key_file) =
            (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::write(&cert, certificate.pem()).unwrap();
        Pair { cert, key: key_file }
    }
}

/// A member with a port for TLS, besides the plain one.
struct Secured {
    _process: Process,
    directory: TempDir,
    port: u16,
}

impl Secured {
    fn start(server: &Pair, flags: &[&str]) -> Self {
        let files = [
            "--cert-file",
            server.cert.to_str().unwrap(),
            "--key-file",
            server.key.to_str().unwrap(),
        ];
        Self::start_with(&[&files, flags].concat())
    }

    fn start_with(flags: &[&str]) -> Self {
        let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
        let url = format!("https://127.0.0.1:{port}");
        let flags = [&["--listen-client-urls", &url, "--advertise-client-urls", &url], flags];
        let process = Process::start(directory.path(), &flags.concat());
        Self { _process: process, directory, port }
    }

    /// A connection that has been greeted.
    async fn connect(
        &self,
        ca: &Path,
        pair: Option<&Pair>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_by(ca, pair, &[&version::TLS12, &version::TLS13]).await
    }

    async fn connect_by(
        &self,
        ca: &Path,
        pair: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match pair {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// What `/health` answers by HTTP/1.1, or why there is no answer.
    async fn health(&self, ca: &Path, pair: Option<&Pair>) -> Result<String, String> {
        let ask = async {
            let mut stream = self.connect(ca, pair).await?;
            let request = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            match stream.read_to_string(&mut answer).await {
                // Whoever closes without a farewell has answered all the same.
                Err(_) if answer.contains("\r\n\r\n") => Ok(answer),
                Err(error) => Err(error),
                Ok(_) => Ok(answer),
            }
        };
        match ask.await {
            Ok(answer) if answer.is_empty() => Err("closed".to_owned()),
            answer => answer.map_err(|error: std::io::Error| error.to_string()),
        }
    }
}

fn is_healthy(answer: &Result<String, String>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}

#[tokio::test]
async fn a_client_comes_by_tls_if_it_trusts_the_server() {
    let (ca, other) = (Ca::new(), Ca::new());
    let member = Secured::start(&ca.pair("server"), &[]);
    let answer = member.health(&ca.file("ca.pem"), None).await;
    assert!(is_healthy(&answer), "{answer:?}");
    let error = member.health(&other.file("ca.pem"), None).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    // Not by plain HTTP on the same port.
    let mut plain = TcpStream::connect(("127.0.0.1", member.port)).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn clients_show_certificates_where_they_have_to() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ca_file = ca.file("ca.pem");
    let flags = ["--client-cert-auth", "--trusted-ca-file", ca_file.to_str().unwrap()];
    let member = Secured::start(&ca.pair("server"), &flags);
    let answer = member.health(&ca_file, Some(&ca.pair("client"))).await;
    assert!(is_healthy(&answer), "{answer:?}");
    let error = member.health(&ca_file, None).await.unwrap_err();
    assert!(error.contains("CertificateRequired"), "{error}");
    let stranger = other.pair("client");
    let error = member.health(&ca_file, Some(&stranger)).await.unwrap_err();
    assert!(error.contains("UnknownCA"), "{error}");
    let expired = ca.pair_with("expired", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let error = member.health(&ca_file, Some(&expired)).await.unwrap_err();
    assert!(error.contains("CertificateExpired"), "{error}");
}

#[tokio::test]
async fn certificates_of_the_server_change_while_it_runs() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = ca.pair("server");
    let member = Secured::start(&server, &[]);
    assert!(is_healthy(&member.health(&ca.file("ca.pem"), None).await));
    let renewed = other.pair("renewed");
    // Half a change is none.
    fs::copy(&renewed.key, &server.key).unwrap();
    assert!(is_healthy(&member.health(&ca.file("ca.pem"), None).await));
    fs::copy(&renewed.cert, &server.cert).unwrap();
    assert!(is_healthy(&member.health(&other.file("ca.pem"), None).await));
    let error = member.health(&ca.file("ca.pem"), None).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        fs::write(&server.cert, broken).unwrap();
        assert!(is_healthy(&member.health(&other.file("ca.pem"), None).await), "{broken}");
    }
    fs::remove_file(&server.cert).unwrap();
    assert!(is_healthy(&member.health(&other.file("ca.pem"), None).await));
}

#[tokio::test]
async fn certificates_that_were_revoked_are_refused() {
    let ca = Ca::new();
    let serial = |n: u64| {
        move |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(n))
    };
    let (good, bad) = (ca.pair_with("good", serial(7)), ca.pair_with("bad", serial(8)));
    let (ca_file, crl) = (ca.file("ca.pem"), ca.file("crl.pem"));
    let write = |revoked: &[u64]| {
        let revoked = revoked.iter().map(|n| RevokedCertParams {
            serial_number: SerialNumber::from(*n),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        fs::write(&crl, list.signed_by(&ca.issuer).unwrap().pem().unwrap()).unwrap();
    };
    write(&[8]);
    let flags =
        ["--client-cert-auth", "--trusted-ca-file", ca_file.to_str().unwrap(), "--client-crl-file"];
    let flags = [&flags[..], &[crl.to_str().unwrap()]].concat();
    let member = Secured::start(&ca.pair("server"), &flags);
    assert!(is_healthy(&member.health(&ca_file, Some(&good)).await));
    let error = member.health(&ca_file, Some(&bad)).await.unwrap_err();
    assert!(error.contains("CertificateRevoked"), "{error}");
    write(&[7, 8]);
    let error = member.health(&ca_file, Some(&good)).await.unwrap_err();
    assert!(error.contains("CertificateRevoked"), "{error}");
}

#[tokio::test]
async fn certificates_of_clients_are_for_hosts_that_are_allowed() {
    let ca = Ca::new();
    let ca_file = ca.file("ca.pem");
    let named = |name: &str, host: &str| {
        let host = vec![rcgen::SanType::DnsName(host.try_into().unwrap())];
        ca.pair_with(name, |params| params.subject_alt_names = host)
    };
    let flags = ["--client-cert-auth", "--trusted-ca-file", ca_file.to_str().unwrap()];
    let flags =
        [&flags[..], &["--client-cert-allowed-hostname", "a.example.org,b.example.org"]].concat();
    let member = Secured::start(&ca.pair("server"), &flags);
    for (name, host, allowed) in [
        ("one", "b.example.org", true),
        ("two", "c.example.org", false),
        ("three", "*.example.org", true),
    ] {
        let answer = member.health(&ca_file, Some(&named(name, host))).await;
        assert_eq!(is_healthy(&answer), allowed, "{host}: {answer:?}");
    }
}

#[tokio::test]
async fn versions_of_tls_are_bounded() {
    let ca = Ca::new();
    let ca_file = ca.file("ca.pem");
    let server = ca.pair("server");
    for (flag, allowed, refused) in [
        ("--tls-min-version=TLS1.3", &version::TLS13, &version::TLS12),
        ("--tls-max-version=TLS1.2", &version::TLS12, &version::TLS13),
    ] {
        let member = Secured::start(&server, &[flag]);
        member.connect_by(&ca_file, None, &[allowed]).await.unwrap();
        let error = member.connect_by(&ca_file, None, &[refused]).await.unwrap_err().to_string();
        assert!(error.contains("ProtocolVersion"), "{error}");
    }
}

#[tokio::test]
async fn a_member_makes_its_own_certificate() {
    let member = Secured::start_with(&["--auto-tls", "--self-signed-cert-validity", "2"]);
    let cert = member.directory.path().join("fixtures/client/cert.pem");
    let answer = member.health(&cert, None).await;
    assert!(is_healthy(&answer), "{answer:?}");
    assert!(member.directory.path().join("fixtures/client/key.pem").exists());
}

impl Secured {
    /// gRPC by somebody's certificate.
    async fn channel(&self, ca: &Path, pair: &Pair) -> Channel {
        let read = |path: &Path| fs::read(path).unwrap();
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(read(ca)))
            .identity(Identity::from_pem(read(&pair.cert), read(&pair.key)));
        let endpoint = Channel::from_shared(format!("https://127.0.0.1:{}", self.port)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    async fn http(&self, ca: &Path, pair: &Pair, line: &str, headers: &str) -> String {
        let mut stream = self.connect(ca, Some(pair)).await.unwrap();
        let json = r#"{"key":"YQ=="}"#;
        let request = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{json}",
            json.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn a_certificate_makes_no_user_by_the_gateway() {
    let ca = Ca::new();
    let ca_file = ca.file("ca.pem");
    let (root, ann) = (ca.pair("root"), ca.pair("ann"));
    let flags = ["--client-cert-auth", "--trusted-ca-file", ca_file.to_str().unwrap()];
    let member = Secured::start(&ca.pair("server"), &flags);
    let channel = member.channel(&ca_file, &root).await;
    let mut auth = AuthClient::new(channel.clone());
    for name in ["root", "ann"] {
        let options = Some(authpb::UserAddOptions { no_password: true });
        let user = pb::AuthUserAddRequest { name: name.to_owned(), options, ..Default::default() };
        auth.user_add(user).await.unwrap();
    }
    let grant = pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    KvClient::new(channel).put(put("a", "1")).await.expect("by gRPC it is root");

    // By gRPC it is what the certificate says, whatever else is said.
    let mut kv = KvClient::new(member.channel(&ca_file, &ann).await);
    for (name, value, code) in [
        ("x-forwarded-client-cert", "Subject=\"CN=root\"", Code::PermissionDenied),
        ("x-ssl-client-s-dn", "CN=root", Code::PermissionDenied),
        ("token", "x", Code::Unauthenticated),
        ("authorization", "x", Code::Unauthenticated),
    ] {
        let mut request = tonic::Request::new(put("a", "2"));
        request.metadata_mut().insert(name, value.parse().unwrap());
        let refused = kv.put(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused:?}");
    }
    // By the gateway it is nobody, by any path, and told so.
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    for (line, headers, status) in [
        ("POST /v3/kv/range", "", "400"),
        ("POST /v3beta/kv/range", "", "400"),
        ("POST https://localhost/v3/kv/range", "", "400"),
        ("POST /v3/kv/range", "Authorization: x\r\n", "400"),
        ("OPTIONS /v3/kv/range", "", "400"),
        ("GET /v3/kv/range", websocket, "400"),
        ("POST //v3/kv/range", "", "307"),
        ("POST /x/../v3/kv/range", "", "307"),
        ("POST /V3/kv/range", "", "404"),
    ] {
        let answer = member.http(&ca_file, &root, line, headers).await;
        assert_eq!(answer.get(9..12), Some(status), "{line} {headers}: {answer}");
        let is_told = answer.contains("CommonName of client");
        assert_eq!(is_told, status == "400", "{line} {headers}: {answer}");
    }
    assert!(is_healthy(&member.health(&ca_file, Some(&root)).await));
}
