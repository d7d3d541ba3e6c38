//! A running member that a command asks.

use std::time::Duration;

use starling_proto::etcdserverpb::AuthenticateRequest;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use tokio::runtime;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::ToolError;

/// Where a member listens that was told nothing else.
pub(super) const ENDPOINT_DEFAULT: &str = "127.0.0.1:2379";
/// How long a member may take to answer, its connection included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A reply with 1000 members and all their addresses fits.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A member.
pub(super) struct Member {
    address: String,
    endpoint: Endpoint,
    /// Name and password, if it has to be known who asks.
    user: Option<(String, String)>,
    runtime: runtime::Runtime,
}

impl Member {
    /// The member at `host:port` or `http://host:port`.
    pub(super) fn at(address: &str) -> Result<Self, ToolError> {
        let usage = |why: &str| ToolError::Usage(format!("--endpoint {address:?}: {why}"));
        if address.starts_with("https://") {
            return Err(usage("TLS between clients and members is not there yet"));
        }
        let host = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let uri: http::Uri =
            format!("http://{host}").parse().map_err(|_| usage("expected host:port"))?;
        if uri.port().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(usage("expected host:port"));
        }
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| ToolError::Failed(format!("cannot start: {error}")))?;
        let endpoint = Endpoint::from(uri).connect_timeout(TIMEOUT).timeout(TIMEOUT);
        Ok(Self { address: host.to_owned(), endpoint, user: None, runtime })
    }

    /// Asks as a user: `name:password`; nothing for nobody.
    pub(super) fn with_user(self, user: &str) -> Result<Self, ToolError> {
        let user = match user.split_once(':') {
            Some((name, password)) => Some((name.to_owned(), password.to_owned())),
            None if user.is_empty() => None,
            None => return Err(ToolError::Usage("--user: expected name:password".to_owned())),
        };
        Ok(Self { user, ..self })
    }

    /// The token of the user, if any is needed.
    async fn token(&self, channel: &Channel) -> Result<Option<AsciiMetadataValue>, Status> {
        let Some((name, password)) = self.user.clone() else { return Ok(None) };
        let request = AuthenticateRequest { name, password };
        let reply = AuthClient::new(channel.clone()).authenticate(request).await?.into_inner();
        let token = reply.token.parse().map_err(|_| Status::unknown("the token is no text"))?;
        Ok(Some(token))
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
            let channel = self.endpoint.connect().await;
            let channel = channel.map_err(|error| failed(&innermost(&error)))?;
            let token = self.token(&channel).await.map_err(|status| failed(status.message()))?;
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

/// The first cause of an error, which says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_hosts_and_ports() {
        for address in ["127.0.0.1:2379", "http://localhost:1/", "[::1]:2379", "a.example:80"] {
            assert!(Member::at(address).is_ok(), "{address}");
        }
        for address in ["", "localhost", "https://localhost:1", "a:b", "a:1/path", "http://"] {
            assert!(matches!(Member::at(address), Err(ToolError::Usage(_))), "{address}");
        }
    }
}
