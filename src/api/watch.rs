//! `etcdserverpb.Watch`: one stream per client, with any number of watchers on it.
//!
//! Each stream has a task that takes the client's requests and the member's replies. Replies are taken from
//! the member only when there is room for them on the way out, so a client that does not read costs what fits
//! in [`BATCHES_MAX`] batches and in the connection's buffers, and its events wait where they are shared with
//! every other watcher. Its requests are still heard, up to [`UNANSWERED_MAX`] of them. Watchers that another member has to
//! serve are the business of [`super::relay`].

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use prost::Message;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::access::Access;
use super::relay::{Relayed, Relays};
use super::wire::{self, Messages};
use super::{Context, convert, events};
use crate::engine::watch::WatchReply;
use crate::error::{AuthError, Error};
use crate::node::{Handle, WatchStream};
use crate::types::KeyRange;

/// Batches on their way out: one that is being written, one that is ready.
const BATCHES_MAX: usize = 2;

/// A batch is full with so many bytes; that is what one write takes.
const BATCH_BYTES: usize = 32 * 1024;

/// ... or with so many replies.
const BATCH_REPLIES: usize = 128;

/// Answers that wait for room before no more requests are heard.
const UNANSWERED_MAX: usize = 1024;

/// Serves one call: the stream of a client.
pub(super) fn serve<B>(context: Context, request: Request<B>) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Send + 'static,
{
    if wire::is_compressed(request.headers()) {
        return wire::refuse_compressed(request.headers()).into_http();
    }
    let (head, body) = request.into_parts();
    // The size of messages is checked before, with etcd's text.
    let unlimited = Some(usize::MAX);
    let requests = Streaming::new_request(Requests, body, None, unlimited);
    let (out, batches) = mpsc::channel(BATCHES_MAX);
    let access =
        Access::of(&context, &MetadataMap::from_headers(head.headers), head.extensions.get());
    tokio::spawn(run(context, access, requests, out));
    wire::response(Messages::new(batches))
}

/// Decodes what clients ask.
struct Requests;

impl Decoder for Requests {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = pb::WatchRequest::decode(source);
        request.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

type Batch = Result<Bytes, Status>;

/// Serves one client until it is gone; its watchers go with it.
async fn run(
    context: Context,
    access: Result<Access, Error>,
    requests: Streaming<pb::WatchRequest>,
    out: mpsc::Sender<Batch>,
) {
    let mut changes = context.node.auth_changes();
    let mut watchers = Watchers {
        access,
        context: context.clone(),
        own: context.node.watch(),
        others: Relays::new(context.node.clone()),
        node: context.node.clone(),
    };
    // `None` once the client has said that it has no more requests, which ends nothing.
    let mut requests = Some(requests);
    loop {
        let hear = watchers.own.backlog() < UNANSWERED_MAX && watchers.others.can_hear();
        // Whoever asks much must not keep their own events waiting.
        let next = async {
            tokio::select! {
                request = next_request(&mut requests), if hear => Next::Request(request),
                reply = next_reply(&out, &mut watchers) => Next::Reply(reply),
            }
        };
        let next = tokio::select! {
            biased;
            () = out.closed() => return,
            // First of all, so that nobody sees what they may not see any more.
            _ = changes.changed() => Next::Withdraw,
            next = next => next,
        };
        match next {
            Next::Withdraw => watchers.withdraw(),
            Next::Request(Ok(request)) => watchers.handle(request),
            Next::Request(Err(error)) => return drop(out.send(Err(error)).await),
            Next::Reply(Some((room, Reply::Own(Ok(first))))) => {
                room.send(batch(&context, &first, &mut watchers.own));
            }
            Next::Reply(Some((room, Reply::Own(Err(error))))) => {
                return room.send(Err(error.into()));
            }
            Next::Reply(Some((room, Reply::Relayed(first)))) => {
                match relayed_batch(first, &mut watchers) {
                    Ok(batch) if batch.is_empty() => {}
                    batch => room.send(batch),
                }
            }
            Next::Reply(None) => return,
        }
    }
}

/// What there is to do next for a client.
enum Next<'a> {
    /// Users or roles have changed.
    Withdraw,
    Request(Result<pb::WatchRequest, Status>),
    /// `None` when the client is gone.
    Reply(Option<(mpsc::Permit<'a, Batch>, Reply)>),
}

/// The watchers of a client.
struct Watchers {
    /// Who watches; or why nobody may.
    access: Result<Access, Error>,
    context: Context,
    own: WatchStream,
    others: Relays,
    node: Handle,
}

impl Watchers {
    /// Requests without any content are ignored, as in etcd.
    fn handle(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                self.own.request_progress();
                self.others.request_progress();
            }
            None => {}
        }
    }

    fn create(&mut self, create: pb::WatchCreateRequest) {
        let wanted = convert::watch_create(&create);
        if let Err(reason) = self.may_watch(&wanted.range) {
            return self.own.deny(reason);
        }
        match self.node.elsewhere(|tag| wanted.names(tag)) {
            Some(member) => self.others.create(member, &wanted, create, &mut self.own),
            None => self.own.create(wanted),
        }
    }

    fn may_watch(&self, range: &KeyRange) -> Result<(), AuthError> {
        match &self.access {
            Ok(access) => access.read(range),
            Err(Error::Auth(reason)) => Err(*reason),
            Err(_) => Err(AuthError::InvalidToken),
        }
    }

    /// Users or roles have changed: some may not watch any more what they did.
    fn withdraw(&mut self) {
        if let Ok(access) = &mut self.access {
            *access = access.renewed(&self.context);
        }
        let Self { access, own, others, .. } = self;
        let access = &*access;
        let relayed = own.withdraw(|range| match access {
            Ok(access) => access.read(range),
            Err(_) => Ok(()),
        });
        relayed.into_iter().for_each(|id| others.forget(id));
    }

    fn cancel(&mut self, id: i64) {
        if !self.others.cancel(id) {
            self.own.cancel(id);
        }
    }

    /// The next reply. What this member has ready goes first: it confirms what the client has asked for before.
    async fn next(&mut self) -> Reply {
        if self.others.is_in_pieces() {
            return Reply::Relayed(self.others.next().await);
        }
        if self.own.backlog() > 0 {
            return Reply::Own(self.own.next().await);
        }
        tokio::select! {
            reply = self.own.next() => Reply::Own(reply),
            relayed = self.others.next() => Reply::Relayed(relayed),
        }
    }
}

/// What there is to say.
enum Reply {
    Own(crate::error::Result<WatchReply>),
    Relayed(Relayed),
}

/// The client's next request; after its last one, waits for ever.
async fn next_request(
    requests: &mut Option<Streaming<pb::WatchRequest>>,
) -> Result<pb::WatchRequest, Status> {
    if let Some(stream) = requests
        && let Some(request) = stream.message().await?
    {
        return Ok(request);
    }
    *requests = None;
    std::future::pending().await
}

/// The next reply, once there is room for it; `None` when the client is gone. Loses nothing when dropped.
async fn next_reply<'a>(
    out: &'a mpsc::Sender<Batch>,
    watchers: &mut Watchers,
) -> Option<(mpsc::Permit<'a, Batch>, Reply)> {
    let room = out.reserve().await.ok()?;
    Some((room, watchers.next().await))
}

/// The first reply, and what else is there already.
fn batch(context: &Context, first: &WatchReply, watchers: &mut WatchStream) -> Batch {
    let mut batch = BytesMut::new();
    events::append(context, first, &mut batch)?;
    for _ in 1..BATCH_REPLIES {
        if batch.len() >= BATCH_BYTES {
            break;
        }
        // A failure shows again at the next call.
        let Ok(Some(reply)) = watchers.try_next() else { break };
        events::append(context, &reply, &mut batch)?;
    }
    Ok(batch.freeze())
}

/// The same of what comes from other members.
fn relayed_batch(first: Relayed, watchers: &mut Watchers) -> Batch {
    let mut batch = BytesMut::new();
    let mut next = Some(first);
    while let Some(relayed) = next {
        for answer in watchers.others.take(relayed, &mut watchers.own) {
            wire::append(&answer, &mut batch)?;
        }
        // What this member has to say of it goes first.
        let is_full = batch.len() >= BATCH_BYTES || watchers.own.backlog() > 0;
        next = if is_full { None } else { watchers.others.try_next() };
    }
    Ok(batch.freeze())
}
