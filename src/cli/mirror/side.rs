//! One of the two clusters that a mirror stands between: its endpoints, one of which is asked at a time, and what becomes of
//! a request that fails.

use std::time::Duration;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::Progress;
use crate::cli::ToolError;
use crate::cli::member::{TlsFiles, authenticate, endpoint, innermost, user};

/// How long a connection may take, and an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent server is pinged, and how long it has for an answer. More often than every five seconds, etcd hangs up.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before another try: twice as long each time, up to the second.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The largest message that is taken. A page is a tenth of it, unless values are very large.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A member of etcd's that has lost the others says so at once.
const HAS_LEADER: &str = "hasleader";
const TOKEN: &str = "token";
/// By these texts etcd tells that another token is needed.
const TOKEN_TEXTS: &[&str] = &["invalid auth token", "revision of auth store is old"];

/// Why a request got no answer that can be used.
#[derive(Debug)]
pub(super) enum CallError {
    /// It was refused, and would be again.
    Refused { status: Status, by: String },
    /// It could not be asked.
    Unreachable(String),
}

impl From<CallError> for ToolError {
    fn from(error: CallError) -> Self {
        Self::Failed(match error {
            CallError::Refused { status, by } => format!("{by}: {}", status.message()),
            CallError::Unreachable(text) => text,
        })
    }
}

struct Connection {
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

/// A cluster.
pub(super) struct Side {
    what: &'static str,
    endpoints: Vec<(String, Endpoint)>,
    user: Option<(String, String)>,
    turn: usize,
    connection: Option<Connection>,
    /// Failures since the last answer.
    failures: u32,
    /// Whether anything was ever answered. Whoever cannot be reached from the start has probably another address.
    was_reached: bool,
    /// Whether a new token was asked for since the last answer.
    has_new_token: bool,
}

impl Side {
    pub(super) fn new(
        what: &'static str,
        addresses: &str,
        files: &TlsFiles,
        name: &str,
    ) -> Result<Self, ToolError> {
        let endpoint = |address: &str| {
            let (shown, endpoint) = endpoint(address.trim(), files)?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true);
            Ok((shown, endpoint))
        };
        Ok(Self {
            what,
            endpoints: addresses.split(',').map(endpoint).collect::<Result<_, ToolError>>()?,
            user: user(name)?,
            turn: 0,
            connection: None,
            failures: 0,
            was_reached: false,
            has_new_token: false,
        })
    }

    fn address(&self) -> String {
        let (address, _) = &self.endpoints[self.turn % self.endpoints.len()];
        format!("{} {address}", self.what)
    }

    /// Asks, and asks again while that may help.
    pub(super) async fn call<Q: Clone, T>(
        &mut self,
        message: &Q,
        call: impl AsyncFn(Channel, Request<Q>) -> Result<Response<T>, Status>,
        progress: &mut Progress,
    ) -> Result<T, CallError> {
        loop {
            let (channel, mut request) = self.request(message.clone(), progress).await?;
            request.set_timeout(ANSWER_TIMEOUT);
            match call(channel, request).await {
                Ok(reply) => {
                    self.answered();
                    return Ok(reply.into_inner());
                }
                Err(status) => self.failed(status, progress).await?,
            }
        }
    }

    /// A connection, and a request for it.
    pub(super) async fn request<Q>(
        &mut self,
        message: Q,
        progress: &mut Progress,
    ) -> Result<(Channel, Request<Q>), CallError> {
        let mut request = Request::new(message);
        loop {
            if let Some(Connection { channel, token }) = &self.connection {
                request.metadata_mut().insert(HAS_LEADER, AsciiMetadataValue::from_static("true"));
                if let Some(token) = token {
                    request.metadata_mut().insert(TOKEN, token.clone());
                }
                return Ok((channel.clone(), request));
            }
            if let Err(status) = self.connect().await {
                self.failed(status, progress).await?;
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Status> {
        let (_, endpoint) = &self.endpoints[self.turn % self.endpoints.len()];
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(innermost(&error)))?;
        let token = authenticate(&channel, self.user.as_ref()).await?;
        self.connection = Some(Connection { channel, token });
        Ok(())
    }

    /// Whoever answers is well.
    pub(super) fn answered(&mut self) {
        self.was_reached = true;
        self.failures = 0;
        self.has_new_token = false;
    }

    /// After a failure: returns when it is time for another try, or says that none will help.
    pub(super) async fn failed(
        &mut self,
        status: Status,
        progress: &mut Progress,
    ) -> Result<(), CallError> {
        let by = self.address();
        if self.user.is_some()
            && !self.has_new_token
            && TOKEN_TEXTS.iter().any(|text| status.message().contains(text))
        {
            self.has_new_token = true;
            self.connection = None;
            return Ok(());
        }
        if !may_pass(&status) {
            return Err(CallError::Refused { status, by });
        }
        self.connection = None;
        self.turn += 1;
        self.failures += 1;
        let why = match std::error::Error::source(&status) {
            Some(source) => innermost(source),
            None => status.message().to_owned(),
        };
        let tried = usize::try_from(self.failures).unwrap_or(usize::MAX);
        if !self.was_reached && tried >= self.endpoints.len() {
            return Err(CallError::Unreachable(format!("{by}: {why}")));
        }
        progress.line(&format!("{by}: {why}; trying again"));
        let pause = PAUSE.saturating_mul(1 << self.failures.min(16));
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
        Ok(())
    }

    pub(super) async fn range(
        &mut self,
        request: &pb::RangeRequest,
        progress: &mut Progress,
    ) -> Result<pb::RangeResponse, CallError> {
        let range = async |channel, request| {
            KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).range(request).await
        };
        self.call(request, range, progress).await
    }

    /// Where it is now: a linearizable read of next to nothing.
    pub(super) async fn header(
        &mut self,
        progress: &mut Progress,
    ) -> Result<pb::ResponseHeader, CallError> {
        let (key, _) = super::range_of(super::RESERVED);
        let request = pb::RangeRequest { key, count_only: true, ..Default::default() };
        Ok(self.range(&request, progress).await?.header.unwrap_or_default())
    }
}

/// Whether another try, maybe of another member, may bring an answer.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => true,
        // Of which the store being full is the other kind.
        Code::ResourceExhausted => status.message().contains("too many requests"),
        // A connection that broke has its error behind it; what a server has said has none.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again() {
        for status in [
            Status::unavailable("etcdserver: no leader"),
            Status::deadline_exceeded("context deadline exceeded"),
            Status::resource_exhausted("etcdserver: too many requests"),
            Status::from_error(Box::new(std::io::Error::other("broken pipe"))),
        ] {
            assert!(may_pass(&status), "{status}");
        }
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
            Status::invalid_argument("etcdserver: request is too large"),
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
            Status::unknown("what a server says"),
        ] {
            assert!(!may_pass(&status), "{status}");
        }
    }
}
