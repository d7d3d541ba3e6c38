//! TLS between members: certificates from files, which may change while the member runs.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::resolve::PeerUrl;

/// HTTP/2, of which gRPC is made; and HTTP/1.1, since probes ask by that.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How a member proves who it is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of this member, and those between it and the CA, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Whoever signed the certificates of members, in PEM. Then each member has to show one that these have signed.
    /// Without this, those that the system trusts may have signed certificates of servers, and clients need none.
    pub ca: Option<PathBuf>,
}

/// Files that are no use for TLS.
#[derive(Debug)]
pub struct TlsError {
    file: PathBuf,
    why: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use {} for tls between members: {}", self.file.display(), self.why)
    }
}

impl std::error::Error for TlsError {}

fn unusable(file: &Path) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> TlsError {
    let file = file.to_owned();
    |why| TlsError { file, why }
}

/// What the files say, as of the last handshake.
pub(super) struct Tls {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    /// Of each file, in order.
    stamps: Vec<Stamp>,
    configs: Configs,
}

#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Tells whether a file is still the same, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Tls {
    pub(super) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let stamps = files.stamps()?;
        let configs = Configs::load(&files)?;
        Ok(Self { files, loaded: Mutex::new(Loaded { stamps, configs }) })
    }

    /// As the files are now. When they are of no use, as when only one of two has been replaced yet, as they were.
    fn current(&self) -> Configs {
        let mut loaded = self.loaded.lock();
        let reloaded = self.files.stamps().and_then(|stamps| {
            if stamps == loaded.stamps {
                return Ok(None);
            }
            // Not read again before they change again.
            loaded.stamps.clone_from(&stamps);
            Configs::load(&self.files).map(Some)
        });
        match reloaded {
            Ok(None) => {}
            Ok(Some(configs)) => {
                tracing::info!("certificates for members have been read again");
                loaded.configs = configs;
            }
            Err(error) => tracing::warn!(%error, "the former certificates go on"),
        }
        loaded.configs.clone()
    }

    /// Greets a member that has connected.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(self.current().server).accept(stream).await
    }

    /// Greets the member at a URL, whose certificate has to be for its host.
    pub(super) async fn connect(
        &self,
        url: &PeerUrl,
        stream: TcpStream,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
        TlsConnector::from(self.current().client).connect(name, stream).await
    }
}

impl TlsFiles {
    fn stamps(&self) -> Result<Vec<Stamp>, TlsError> {
        let files = [&self.cert, &self.key].into_iter().chain(&self.ca);
        files.map(|file| Stamp::of(file).map_err(|error| unusable(file)(error.into()))).collect()
    }
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(file)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl Configs {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&files.cert)?;
        let key = private_key(&files.key)?;
        let trusted = Arc::new(trusted(files.ca.as_deref())?);

        let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = with_versions(server, &files.cert)?;
        let server = match &files.ca {
            None => server.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::clone(&trusted);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let verifier = verifier.build().map_err(|error| unusable(ca)(error.into()))?;
                server.with_client_cert_verifier(verifier)
            }
        };
        let mut server = server
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&files.cert)(error.into()))?;
        server.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];

        let client = ClientConfig::builder_with_provider(provider);
        let mut client = with_versions(client, &files.cert)?
            .with_root_certificates(trusted)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&files.cert)(error.into()))?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// TLS 1.2 and 1.3.
fn with_versions<Side: rustls::ConfigSide>(
    builder: ConfigBuilder<Side, rustls::WantsVersions>,
    file: &Path,
) -> Result<ConfigBuilder<Side, rustls::WantsVerifier>, TlsError> {
    builder.with_safe_default_protocol_versions().map_err(|error| unusable(file)(error.into()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || -> Result<Vec<_>, Box<dyn std::error::Error + Send + Sync>> {
        let reader = BufReader::new(File::open(file)?);
        let certificates =
            CertificateDer::pem_reader_iter(reader).collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() { Err("it has no certificate".into()) } else { Ok(certificates) }
    };
    read().map_err(unusable(file))
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let read = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        Ok(PrivateKeyDer::from_pem_reader(BufReader::new(File::open(file)?))?)
    };
    read().map_err(unusable(file))
}

fn trusted(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let Some(file) = ca else {
        let found = rustls_native_certs::load_native_certs();
        let (known, _) = store.add_parsable_certificates(found.certs);
        if known == 0 {
            tracing::warn!("the system trusts no certificates, so no member can be reached by tls");
        }
        return Ok(store);
    };
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|error| unusable(file)(error.into()))?;
    }
    Ok(store)
}
