//! TLS for clients and between members: certificates from files, which may change while the member runs.

mod names;
mod rules;
mod self_signed;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName,
};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub(crate) use names::SubjectNames;
pub use rules::{TlsRules, Version, suite};
pub use self_signed::self_signed;

/// HTTP/2, of which gRPC is made; and HTTP/1.1, since probes ask by that.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How a member proves who it is, and whom it trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of this member, and those between it and the CA, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Whoever signed the certificates of those who connect, in PEM. Then each has to show one that these have signed.
    /// Without this, those that the system trusts may have signed certificates of servers, and clients need none.
    pub ca: Option<PathBuf>,
    /// Another certificate and its key, for when this member connects to others. On the port for clients it is looked at, as
    /// in etcd, and not used.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Certificates that are not good any more, in PEM.
    pub crl: Option<PathBuf>,
    /// What else has to be.
    pub rules: TlsRules,
}

/// Files that are no use for TLS.
#[derive(Debug)]
pub struct TlsError {
    file: PathBuf,
    why: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use {} for tls: {}", self.file.display(), self.why)
    }
}

impl std::error::Error for TlsError {}

fn unusable(file: &Path) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> TlsError {
    let file = file.to_owned();
    |why| TlsError { file, why }
}

/// What the files say, as of the last handshake.
pub struct Tls {
    files: TlsFiles,
    purpose: Purpose,
    loaded: Mutex<Loaded>,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Clients, which connect.
    Clients,
    /// Members, which connect and are connected to.
    Members,
}

struct Loaded {
    /// Of each file, in order. None when one was not there.
    stamps: Option<Vec<Stamp>>,
    configs: Configs,
}

#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    /// For members.
    client: Option<Arc<ClientConfig>>,
}

/// Tells whether a file is still the same, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsFiles, purpose: Purpose) -> Result<Self, TlsError> {
        let stamps = Some(files.stamps()?);
        let configs = Configs::load(&files, purpose)?;
        Ok(Self { files, purpose, loaded: Mutex::new(Loaded { stamps, configs }) })
    }

    /// As the files are now: what a look at them costs is nothing beside a handshake. When they are of no use, as when
    /// only one of two has been replaced yet, as they were.
    fn current(&self) -> Configs {
        let mut loaded = self.loaded.lock();
        let found = self.files.stamps();
        let stamps = found.as_ref().ok().cloned();
        if stamps != loaded.stamps {
            // Not read again, and not complained of, before they change again.
            loaded.stamps = stamps;
            match found.and_then(|_| Configs::load(&self.files, self.purpose)) {
                Ok(configs) => {
                    tracing::info!(file = %self.files.cert.display(), "certificates have been read again");
                    loaded.configs = configs;
                }
                Err(error) => tracing::warn!(%error, "the former certificates go on"),
            }
        }
        loaded.configs.clone()
    }

    /// Greets whoever has connected.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<server::TlsStream<S>> {
        let stream = TlsAcceptor::from(self.current().server).accept(stream).await?;
        self.check_names(stream.get_ref().1.peer_certificates())?;
        Ok(stream)
    }

    /// Greets the member that is reached by a host, for which its certificate has to be.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> io::Result<client::TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let config = self.current().client;
        let config = config.ok_or_else(|| io::Error::other("these files are for clients"))?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        self.check_names(stream.get_ref().1.peer_certificates())?;
        Ok(stream)
    }

    /// The user that a client's certificate names, where certificates do that.
    pub(crate) fn user(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
        if !self.files.rules.demand_certificates {
            return None;
        }
        names::common_name(certificates?.first()?).filter(|name| !name.is_empty())
    }

    /// Where whoever shows a certificate has to come from: `None` if that does not matter, or the certificate does not say.
    pub(crate) fn origins(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
    ) -> Option<SubjectNames> {
        if !self.files.rules.check_sans {
            return None;
        }
        let names = names::subject_names(certificates?.first()?);
        (names != SubjectNames::default()).then_some(names)
    }

    fn check_names(&self, certificates: Option<&[CertificateDer<'_>]>) -> io::Result<()> {
        let TlsRules { allowed_names, allowed_hosts, .. } = &self.files.rules;
        if allowed_names.is_empty() && allowed_hosts.is_empty() {
            return Ok(());
        }
        let certificate = certificates.and_then(|certificates| certificates.first());
        let is_allowed = certificate.is_some_and(|certificate| {
            let has_name =
                names::common_name(certificate).is_some_and(|name| allowed_names.contains(&name));
            has_name || allowed_hosts.iter().any(|host| names::is_for_host(certificate, host))
        });
        let refused = || io::Error::other("the certificate has none of the names that are allowed");
        is_allowed.then_some(()).ok_or_else(refused)
    }
}

impl TlsFiles {
    fn stamps(&self) -> Result<Vec<Stamp>, TlsError> {
        let client = self.client.iter().flat_map(|(cert, key)| [cert, key]);
        let files = [&self.cert, &self.key].into_iter().chain(&self.ca).chain(&self.crl);
        files
            .chain(client)
            .map(|file| Stamp::of(file).map_err(|error| unusable(file)(error.into())))
            .collect()
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
    fn load(files: &TlsFiles, purpose: Purpose) -> Result<Self, TlsError> {
        let provider = Arc::new(files.rules.provider());
        let needs_roots = purpose == Purpose::Members || files.rules.demand_certificates;
        let trusted = match &files.ca {
            Some(ca) => named(ca)?,
            None if needs_roots && !files.rules.trust_anybody => of_the_system(),
            None => RootCertStore::empty(),
        };
        let trusted = Arc::new(trusted);
        let client = match purpose {
            Purpose::Clients if files.client.is_none() => None,
            _ => Some(Arc::new(files.client(&provider, &trusted)?)),
        };
        Ok(Self { server: Arc::new(files.server(&provider, &trusted)?), client })
    }
}

impl TlsFiles {
    fn server(
        &self,
        provider: &Arc<CryptoProvider>,
        trusted: &Arc<RootCertStore>,
    ) -> Result<ServerConfig, TlsError> {
        let server = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&self.rules.versions())
            .map_err(|error| unusable(&self.cert)(error.into()))?;
        let server = if self.ca.is_some() || self.rules.demand_certificates {
            let (roots, provider) = (Arc::clone(trusted), Arc::clone(provider));
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            if let Some(file) = &self.crl {
                // As etcd: a certificate is good unless it is on the list.
                verifier = verifier
                    .with_crls(revoked(file)?)
                    .only_check_end_entity_revocation()
                    .allow_unknown_revocation_status();
            }
            let file = self.crl.as_ref().or(self.ca.as_ref()).unwrap_or(&self.cert);
            let verifier = verifier.build().map_err(|error| unusable(file)(error.into()))?;
            server.with_client_cert_verifier(verifier)
        } else {
            server.with_no_client_auth()
        };
        let mut server = server
            .with_single_cert(certificates(&self.cert)?, private_key(&self.key)?)
            .map_err(|error| unusable(&self.cert)(error.into()))?;
        server.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok(server)
    }

    fn client(
        &self,
        provider: &Arc<CryptoProvider>,
        trusted: &Arc<RootCertStore>,
    ) -> Result<ClientConfig, TlsError> {
        let (cert, key) =
            self.client.as_ref().map_or((&self.cert, &self.key), |(cert, key)| (cert, key));
        let client = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&self.rules.versions())
            .map_err(|error| unusable(cert)(error.into()))?;
        let client = if self.rules.trust_anybody {
            let verifier = names::Anybody(Arc::clone(provider));
            client.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        } else {
            client.with_root_certificates(Arc::clone(trusted))
        };
        let mut client = client
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| unusable(cert)(error.into()))?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(client)
    }
}

/// How a server is greeted that is no member: trusted is whom a CA has signed, or those whom the system trusts have.
pub(crate) fn of_a_client(
    ca: Option<&Path>,
    pair: Option<&(PathBuf, PathBuf)>,
) -> Result<ClientConfig, TlsError> {
    let rules = TlsRules::default();
    let trusted = ca.map_or_else(|| Ok(of_the_system()), named)?;
    let file = ca.unwrap_or_else(|| Path::new("the certificates of the system"));
    let config = ClientConfig::builder_with_provider(Arc::new(rules.provider()))
        .with_protocol_versions(&rules.versions())
        .map_err(|error| unusable(file)(error.into()))?
        .with_root_certificates(trusted);
    match pair {
        None => Ok(config.with_no_client_auth()),
        Some((cert, key)) => config
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| unusable(cert)(error.into())),
    }
}

type Read<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || -> Read<Vec<_>> {
        let reader = BufReader::new(File::open(file)?);
        let certificates =
            CertificateDer::pem_reader_iter(reader).collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() { Err("it has no certificate".into()) } else { Ok(certificates) }
    };
    read().map_err(unusable(file))
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let read =
        || -> Read<_> { Ok(PrivateKeyDer::from_pem_reader(BufReader::new(File::open(file)?))?) };
    read().map_err(unusable(file))
}

/// The lists of a file, which may be PEM or, as etcd takes it, DER.
fn revoked(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    const PEM: &[u8] = b"-----BEGIN";
    let read = || -> Read<Vec<_>> {
        let bytes = fs::read(file)?;
        if !bytes.windows(PEM.len()).any(|window| window == PEM) {
            return Ok(vec![CertificateRevocationListDer::from(bytes)]);
        }
        let lists = CertificateRevocationListDer::pem_slice_iter(&bytes);
        let lists = lists.collect::<Result<Vec<_>, _>>()?;
        if lists.is_empty() { Err("it has no revocation list".into()) } else { Ok(lists) }
    };
    read().map_err(unusable(file))
}

fn named(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|error| unusable(file)(error.into()))?;
    }
    Ok(store)
}

fn of_the_system() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (known, _) = store.add_parsable_certificates(found.certs);
    if known == 0 {
        tracing::warn!("the system trusts no certificates, so nobody's can be checked");
    }
    store
}
