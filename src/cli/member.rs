//! A running member that a command asks.

use std::time::Duration;

use starling_proto::etcdserverpb::AuthenticateRequest;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use tokio::runtime;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::ToolError;
use super::flags::{Flag, flag};

/// Where a member listens that was told nothing else.
const ENDPOINT_DEFAULT: &str = "127.0.0.1:2379";

/// Which member is asked, ...
pub(super) const ENDPOINT: Flag =
    flag("endpoint", ENDPOINT_DEFAULT, "the member to ask: host:port, where it serves clients");
/// ... how it is known to be that, ...
pub(super) const CA_CERT: Flag = flag(
    "cacert",
    "",
    "who has signed the member's certificate, for https://; the system's trust without it",
);
/// ... and who asks: by a certificate, ...
pub(super) const CERT: Flag = flag("cert", "", "certificate to show");
/// ... with its key, ...
pub(super) const KEY: Flag = flag("key", "", "its key");
/// ... or by a password.
pub(super) const USER: Flag =
    flag("user", "", "name:password, where members ask who their clients are");

/// How long a member may take to answer, its connection included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A reply with 1000 members and all their addresses fits.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What a server says where nobody needs to say who they are.
const AUTH_NOT_ENABLED: &str = "authentication is not enabled";

/// The files that `--cacert`, `--cert` and `--key` name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
}

impl TlsFiles {
    /// Without a CA, those that the system trusts.
    fn read(&self) -> Result<ClientTlsConfig, ToolError> {
        let read = |file: &String| {
            std::fs::read(file)
                .map_err(|error| ToolError::Failed(format!("cannot read {file}: {error}")))
        };
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(read(ca)?)),
            None => config.with_native_roots(),
        };
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                Ok(config.identity(Identity::from_pem(read(cert)?, read(key)?)))
            }
            (None, None) => Ok(config),
            _ => Err(ToolError::Usage("--cert and --key are needed both".to_owned())),
        }
    }
}

/// A member.
pub(super) struct Member {
    address: String,
    endpoint: Endpoint,
    /// Name and password, if it has to be known who asks.
    user: Option<(String, String)>,
    runtime: runtime::Runtime,
}

impl Member {
    /// The member at `host:port`, `http://host:port` or `https://host:port`. By TLS, too, if any file for that is named.
    pub(super) fn at(address: &str, files: &TlsFiles) -> Result<Self, ToolError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| ToolError::Failed(format!("cannot start: {error}")))?;
        let (address, endpoint) = endpoint(address, files)?;
        let endpoint = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT);
        Ok(Self { address, endpoint, user: None, runtime })
    }

    /// Asks as a user: `name:password`; nothing for nobody.
    pub(super) fn with_user(self, name: &str) -> Result<Self, ToolError> {
        Ok(Self { user: user(name)?, ..self })
    }

    /// The same, with more time for each request.
    pub(super) fn with_timeout(self, timeout: Duration) -> Self {
        Self { endpoint: self.endpoint.timeout(timeout), ..self }
    }

    /// Where it is, as it was said.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Does something on the thread that asks it.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A connection, or why there is none.
    pub(super) async fn channel(&self) -> Result<Channel, String> {
        self.endpoint.connect().await.map_err(|error| innermost(&error))
    }

    /// A connection, and the token of the user. What does not work out is told with the member's address.
    pub(super) async fn connect(&self) -> Result<(Channel, Option<AsciiMetadataValue>), Status> {
        let failed = |why| Status::unavailable(format!("{}: {why}", self.address));
        let channel = self.channel().await.map_err(failed)?;
        let token = authenticate(&channel, self.user.as_ref()).await?;
        Ok((channel, token))
    }

    /// How its cluster is, with so many members at most.
    pub(super) fn status(&self, members_max: u32) -> Result<pb::StatusReply, ToolError> {
        let request = pb::StatusRequest { members_max };
        self.ask(request, async |client, request| client.status(request).await)
    }

    /// Writes that were lost, so many at most.
    pub(super) fn conflicts(&self, conflicts_max: u32) -> Result<pb::ConflictsReply, ToolError> {
        let request = pb::ConflictsRequest { conflicts_max };
        self.ask(request, async |client, request| client.conflicts(request).await)
    }

    /// Changes whom it does not talk to.
    pub(super) fn block(&self, request: pb::BlockRequest) -> Result<pb::BlockReply, ToolError> {
        self.ask(request, async |client, request| client.block(request).await)
    }

    fn ask<Q, T>(
        &self,
        message: Q,
        call: impl AsyncFnOnce(
            &mut ClusterClient<Channel>,
            Request<Q>,
        ) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ToolError> {
        let address = &self.address;
        let failed = |why: &str| ToolError::Failed(format!("{address}: {why}"));
        self.runtime.block_on(async {
            let channel = self.channel().await.map_err(|why| failed(&why))?;
            let token = authenticate(&channel, self.user.as_ref()).await;
            let token = token.map_err(|status| failed(status.message()))?;
            let mut request = Request::new(message);
            if let Some(token) = token {
                request.metadata_mut().insert("token", token);
            }
            let mut client = ClusterClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
            let reply = call(&mut client, request).await.map_err(|status| match status.code() {
                Code::Unimplemented => failed("whoever is there knows nothing of Starling"),
                _ => failed(status.message()),
            });
            reply.map(tonic::Response::into_inner)
        })
    }
}

/// Where a server is: `host:port`, `http://host:port` or `https://host:port`. By TLS, too, if any file for that is named. Answers
/// host and port, and how to get there.
pub(super) fn endpoint(address: &str, files: &TlsFiles) -> Result<(String, Endpoint), ToolError> {
    let usage = |why: &str| ToolError::Usage(format!("endpoint {address:?}: {why}"));
    let (scheme, host) = match address.split_once("://") {
        Some((scheme @ ("http" | "https"), host)) => (scheme, host),
        Some(_) => return Err(usage("expected http:// or https://")),
        None if *files == TlsFiles::default() => ("http", address),
        None => ("https", address),
    };
    let host = host.trim_end_matches('/');
    let uri: http::Uri =
        format!("{scheme}://{host}").parse().map_err(|_| usage("expected host:port"))?;
    if uri.port().is_none() || !matches!(uri.path(), "" | "/") {
        return Err(usage("expected host:port"));
    }
    let mut endpoint = Endpoint::from(uri);
    if scheme == "https" {
        let unusable = |error| ToolError::Failed(format!("cannot use tls: {error}"));
        endpoint = endpoint.tls_config(files.read()?).map_err(unusable)?;
    }
    Ok((host.to_owned(), endpoint))
}

/// A user and its password, from `name:password`; nothing for nobody.
pub(super) fn user(text: &str) -> Result<Option<(String, String)>, ToolError> {
    match text.split_once(':') {
        Some((name, password)) => Ok(Some((name.to_owned(), password.to_owned()))),
        None if text.is_empty() => Ok(None),
        None => Err(ToolError::Usage("--user: expected name:password".to_owned())),
    }
}

/// The token of a user, if there is one.
pub(super) async fn authenticate(
    channel: &Channel,
    user: Option<&(String, String)>,
) -> Result<Option<AsciiMetadataValue>, Status> {
    let Some((name, password)) = user.cloned() else { return Ok(None) };
    let request = AuthenticateRequest { name, password };
    let reply = AuthClient::new(channel.clone()).authenticate(request).await;
    let reply = match reply {
        // As etcd's own clients: a password is no harm where nobody asks for one.
        Err(status) if status.message().contains(AUTH_NOT_ENABLED) => return Ok(None),
        reply => reply?.into_inner(),
    };
    let token = reply.token.parse().map_err(|_| Status::unknown("the token is no text"))?;
    Ok(Some(token))
}

/// The first cause of an error, which says most.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_hosts_and_ports() {
        let files = TlsFiles::default();
        for address in
            ["127.0.0.1:2379", "http://localhost:1/", "[::1]:2379", "a.example:80", "https://a:1"]
        {
            assert!(Member::at(address, &files).is_ok(), "{address}");
        }
        for address in ["", "localhost", "unix://localhost:1", "a:b", "a:1/path", "http://"] {
            let refused = Member::at(address, &files);
            assert!(matches!(refused, Err(ToolError::Usage(_))), "{address}");
        }
        let half = TlsFiles { cert: Some("Cargo.toml".to_owned()), ..files };
        assert!(matches!(Member::at("https://a:1", &half), Err(ToolError::Usage(_))));
    }
}
