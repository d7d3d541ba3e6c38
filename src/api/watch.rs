//! `etcdserverpb.Watch`: one stream per client, with any number of watchers on it.
//!
//! Each stream has a task that takes the client's requests and the member's replies. Replies are taken from
//! the member only when there is room for them on the way out, so a client that does not read costs what fits
//! in [`BATCHES_MAX`] batches and in the connection's buffers, and its events wait where they are shared with
//! every other watcher. Its requests are still heard, up to [`UNANSWERED_MAX`] of them.

use std::pin::Pin;
use std::task::{self, Poll};
use std::vec;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::etcdserverpb::watch_server::Watch;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{Context, convert, fragment, header, status};
use crate::engine::watch::{Event, WatchRefusal, WatchReply};
use crate::node::WatchStream;

/// Batches on their way out: one that is being written, one that is ready.
const BATCHES_MAX: usize = 2;

/// A batch is full with so many bytes; that is what one write takes.
const BATCH_BYTES: usize = 32 * 1024;

/// ... or with so many replies.
const BATCH_REPLIES: usize = 128;

/// Answers that wait for room before no more requests are heard.
const UNANSWERED_MAX: usize = 1024;

/// What an event takes apart from its keys and values, roughly.
const EVENT_BYTES: usize = 32;

/// The id in replies that are about no watcher, or about all of them.
const NO_WATCHER: i64 = -1;

pub(crate) struct WatchService {
    context: Context,
}

impl WatchService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Replies;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, batches) = mpsc::channel(BATCHES_MAX);
        tokio::spawn(run(self.context.clone(), request.into_inner(), out));
        Ok(Response::new(Replies { batches, batch: Vec::new().into_iter() }))
    }
}

type Batch = Result<Vec<pb::WatchResponse>, Status>;

/// Serves one client until it is gone; its watchers go with it.
async fn run(context: Context, requests: Streaming<pb::WatchRequest>, out: mpsc::Sender<Batch>) {
    let mut watchers = context.node.watch();
    // `None` once the client has said that it has no more requests, which ends nothing.
    let mut requests = Some(requests);
    loop {
        let hear = watchers.backlog() < UNANSWERED_MAX;
        tokio::select! {
            () = out.closed() => return,
            request = next_request(&mut requests), if hear => match request {
                Ok(request) => handle(&mut watchers, request),
                Err(error) => return drop(out.send(Err(error)).await),
            },
            reply = next_reply(&out, &mut watchers) => match reply {
                Some((room, Ok(first))) => room.send(Ok(batch(&context, first, &mut watchers))),
                Some((room, Err(error))) => return room.send(Err(error.into())),
                None => return,
            },
        }
    }
}

/// Requests without any content are ignored, as in etcd.
fn handle(watchers: &mut WatchStream, request: pb::WatchRequest) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            watchers.create(convert::watch_create(&create));
        }
        Some(RequestUnion::CancelRequest(cancel)) => watchers.cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => watchers.request_progress(),
        None => {}
    }
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
    watchers: &mut WatchStream,
) -> Option<(mpsc::Permit<'a, Batch>, crate::error::Result<WatchReply>)> {
    let room = out.reserve().await.ok()?;
    Some((room, watchers.next().await))
}

/// The first reply, and what else is there already.
fn batch(
    context: &Context,
    first: WatchReply,
    watchers: &mut WatchStream,
) -> Vec<pb::WatchResponse> {
    let mut bytes = reply_bytes(&first);
    let mut responses = responses(context, first);
    while bytes < BATCH_BYTES && responses.len() < BATCH_REPLIES {
        // A failure shows again at the next call.
        let Ok(Some(reply)) = watchers.try_next() else { break };
        bytes += reply_bytes(&reply);
        responses.extend(self::responses(context, reply));
    }
    responses
}

/// Roughly what a reply takes on the wire.
fn reply_bytes(reply: &WatchReply) -> usize {
    let event_bytes = |event: &Event| {
        let previous = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
        EVENT_BYTES + event.kv.key.len() + event.kv.value.len() + previous
    };
    match reply {
        WatchReply::Events { events, .. } => {
            EVENT_BYTES + events.iter().map(event_bytes).sum::<usize>()
        }
        _ => EVENT_BYTES,
    }
}

fn responses(context: &Context, reply: WatchReply) -> Vec<pb::WatchResponse> {
    let split = matches!(reply, WatchReply::Events { fragment: true, .. });
    let response = response(context, reply);
    if split { fragment::split(response, context.max_message_bytes()) } else { vec![response] }
}

fn response(context: &Context, reply: WatchReply) -> pb::WatchResponse {
    let header = |revision| Some(header::at(&context.node, revision));
    let empty = pb::WatchResponse::default();
    match reply {
        WatchReply::Created { id, revision } => {
            pb::WatchResponse { header: header(revision), watch_id: id, created: true, ..empty }
        }
        WatchReply::Refused { reason, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason: refusal(reason).to_owned(),
            ..empty
        },
        WatchReply::Events { id, revision, events, fragment: _ } => pb::WatchResponse {
            header: header(revision),
            watch_id: id,
            events: events.into_iter().map(convert::event).collect(),
            ..empty
        },
        WatchReply::Canceled { id, revision } => {
            pb::WatchResponse { header: header(revision), watch_id: id, canceled: true, ..empty }
        }
        // Clients tell this end by its revision; etcd gives neither a reason nor a current revision.
        WatchReply::Compacted { id, compacted } => pb::WatchResponse {
            header: Some(header::without_revision(&context.node)),
            watch_id: id,
            canceled: true,
            compact_revision: compacted.shown(),
            ..empty
        },
        WatchReply::Progress { id, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: id.unwrap_or(NO_WATCHER),
            ..empty
        },
    }
}

/// etcd's texts.
fn refusal(reason: WatchRefusal) -> &'static str {
    match reason {
        WatchRefusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
        WatchRefusal::EmptyRange => "mvcc: watcher range is empty",
        WatchRefusal::NegativeStart => status::COMPACTED,
    }
}

/// The replies of a stream, one by one.
pub(crate) struct Replies {
    batches: mpsc::Receiver<Batch>,
    batch: vec::IntoIter<pb::WatchResponse>,
}

impl Stream for Replies {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(response) = self.batch.next() {
                return Poll::Ready(Some(Ok(response)));
            }
            match task::ready!(self.batches.poll_recv(cx)) {
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
