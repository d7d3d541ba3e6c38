//! Requests that are another member's to answer: the way there.
//!
//! They are etcd's own requests, sent to the port for members over a connection of their own. Each is marked with the member
//! that sends it on and the one that it is for. Over there it gets a handle that has no way on, so what was forwarded is
//! never forwarded again.
//!
//! ```text
//! let forward = handle.forward(member)?;
//! let mut kv = KvClient::new(forward.channel());
//! let reply = forward.answer(kv.range(forward.request(range))).await?;
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::handle::Handle;
use crate::error::{Error, Result};
use crate::traces::RequestSpan;
use crate::transport::Transport;
use crate::types::{MemberId, ReadLevel, WriteAck};

/// The metadata that names the member which sends a request on.
pub const FORWARDED_BY: &str = "starling-forwarded-by";
/// The metadata that names the member which it is for: an address may be somebody else's by now.
pub const FORWARDED_TO: &str = "starling-forwarded-to";
/// The metadata of an error that says whose it is. Without it, the request got lost somewhere.
pub const FORWARDED: &str = "starling-forwarded";
/// It is the answer ...
pub const FORWARDED_ANSWERED: &str = "answered";
/// ... or the member has not looked at the request, since it is not for this member.
pub const FORWARDED_REFUSED: &str = "refused";

/// Overrides `--write-ack` for one request.
pub const WRITE_ACK: &str = "starling-write-ack";
/// Overrides `--linearizable-reads` for one request.
pub const READ: &str = "starling-read";
/// The metadata that names the span of a request, as W3C Trace Context has it.
const TRACEPARENT: &str = "traceparent";

/// What serves the requests that other members send on, given the handle for it.
pub struct Services(Box<dyn FnOnce(Handle) -> axum::Router + Send>);

impl Services {
    /// Services at their paths.
    pub fn new(services: impl FnOnce(Handle) -> axum::Router + Send + 'static) -> Self {
        Self(Box::new(services))
    }

    pub(super) fn router(self, handle: Handle) -> axum::Router {
        (self.0)(handle)
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// The way to one other member.
#[derive(Clone, Debug)]
pub struct Forward {
    channel: Channel,
    by: MemberId,
    to: MemberId,
    timeout: Duration,
    ack: WriteAck,
    reads: ReadLevel,
    live: watch::Receiver<Arc<[MemberId]>>,
    /// The request that it is part of, if that is traced.
    span: Option<Arc<RequestSpan>>,
}

impl Forward {
    /// Where the request goes, for a client of the service in question.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where it goes.
    pub fn to(&self) -> MemberId {
        self.to
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns when the member does not seem alive any more.
    pub async fn lost(&self) {
        let mut live = self.live.clone();
        // An error means that this member is gone, too.
        let _gone = live.wait_for(|live| !live.contains(&self.to)).await.is_err();
    }

    /// Marks a request, which keeps what else is said of it. Whoever answers it waits for those whom this member would wait for.
    pub fn mark(&self, metadata: &mut MetadataMap) {
        metadata.insert(WRITE_ACK, AsciiMetadataValue::from_static(self.ack.name()));
        metadata.insert(READ, AsciiMetadataValue::from_static(self.reads.name()));
        metadata.insert(FORWARDED_BY, AsciiMetadataValue::from(self.by.0));
        metadata.insert(FORWARDED_TO, AsciiMetadataValue::from(self.to.0));
        if let Some(span) = &self.span
            && let Ok(parent) = AsciiMetadataValue::try_from(span.traceparent())
        {
            metadata.insert(TRACEPARENT, parent);
        }
    }

    /// A request of nobody but this member, marked.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.mark(request.metadata_mut());
        request
    }

    /// Waits for an answer as long as a request may take, and no longer.
    pub async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the member does not answer")),
        }
    }
}

impl Handle {
    /// The way to a member, for a request that is its to answer. There is none for what was forwarded already, and none to
    /// members that nobody knows.
    pub fn forward(&self, to: MemberId) -> Result<Forward> {
        self.forward_by(to, Transport::channel)
    }

    /// The same for watches.
    pub fn forward_watches(&self, to: MemberId) -> Result<Forward> {
        self.forward_by(to, Transport::watch_channel)
    }

    fn forward_by(
        &self,
        to: MemberId,
        channel: impl FnOnce(&Transport, MemberId) -> Option<Channel>,
    ) -> Result<Forward> {
        let transport = self.transport.as_ref().ok_or(Error::OwnerChanged)?;
        if self.shared.blocks(to) {
            return Err(Error::Timeout);
        }
        let channel = channel(transport, to).ok_or(Error::Timeout)?;
        let (by, timeout) = (self.shared.member.id, self.shared.options.timeout);
        let (live, span) = (self.shared.follow_live(), self.span.clone());
        Ok(Forward { channel, by, to, timeout, ack: self.ack, reads: self.reads, live, span })
    }

    /// Whether a member may send requests for another one on to this one.
    pub fn takes_forwarded(&self, by: MemberId, to: MemberId) -> bool {
        to == self.shared.member.id && self.shared.admits(by) && !self.shared.blocks(by)
    }

    /// Whether requests can be forwarded at all.
    pub(super) fn can_forward(&self) -> bool {
        self.transport.is_some()
    }

    /// The same handle with a way to other members.
    pub(super) fn with_transport(&self, transport: Transport) -> Self {
        Self { transport: Some(transport), ..self.clone() }
    }
}
