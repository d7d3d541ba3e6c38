//! Watchers that start at a revision of another member: served by a watch there, whose answers are passed on.
//!
//! ```text
//!   client ==stream==> run +--> WatchStream            (watchers of this member)
//!                          +--> Relay --call--> member (all watchers of the stream that this one serves)
//!                          +--> Relay --call--> member
//! ```
//!
//! A member's answers are only asked for when there is room on the way to the client, so a client that does not read costs a small
//! window here and the usual over there. All ends with the client's stream. When the member is lost, its watchers end
//! as compacted, and their client looks anew.
//!
//! Invariants
//! * Watchers are confirmed in the order in which the client has asked for them. So no request is heard while another member is to
//!   confirm one.
//! * Pieces of one answer follow each other, since clients put them together.
//! * "All have been told everything" is said of the stream only while one member serves all of it; otherwise of each watcher, as
//!   the revisions of several members cannot be compared.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::events::NO_WATCHER;
use crate::engine::watch::WatchCreate;
use crate::node::{Forward, Handle, WatchStream};
use crate::types::MemberId;

/// Requests on their way to a member before no more of the client's are heard.
const REQUESTS_MAX: usize = 64;

/// The watchers of a client's stream that other members serve.
pub(super) struct Relays {
    node: Handle,
    relays: Vec<Relay>,
    /// The watcher that is to be confirmed.
    starting: Option<Starting>,
    /// Who is asked first for the next answer.
    turn: usize,
    /// Who has begun an answer in pieces.
    in_pieces: Option<MemberId>,
}

struct Starting {
    member: MemberId,
    id: i64,
    deadline: Instant,
}

/// The watchers that one member serves, by one call to it.
struct Relay {
    member: MemberId,
    requests: mpsc::Sender<pb::WatchRequest>,
    /// Ends when the member is lost.
    answers: BoxStream<'static, Result<pb::WatchResponse, Status>>,
    /// Its ids, and those that the client knows.
    watchers: BTreeMap<i64, i64>,
}

/// What comes of a member.
pub(super) enum Relayed {
    Answer(MemberId, pb::WatchResponse),
    /// It is not reached, or not any more.
    Lost(MemberId),
}

impl Relays {
    pub(super) fn new(node: Handle) -> Self {
        Self { node, relays: Vec::new(), starting: None, turn: 0, in_pieces: None }
    }

    /// Whether another request of the client can be taken.
    pub(super) fn can_hear(&self) -> bool {
        self.starting.is_none() && self.relays.iter().all(|relay| relay.requests.capacity() > 0)
    }

    /// Whether nothing else may be said to the client.
    pub(super) fn is_in_pieces(&self) -> bool {
        self.in_pieces.is_some()
    }

    /// Has a watcher made by another member.
    pub(super) fn create(
        &mut self,
        member: MemberId,
        wanted: &WatchCreate,
        create: pb::WatchCreateRequest,
        watchers: &mut WatchStream,
    ) {
        let Some(id) = watchers.adopt(wanted) else { return };
        let Some(timeout) = self.connect(member) else { return watchers.lose(id, true) };
        self.starting = Some(Starting { member, id, deadline: Instant::now() + timeout });
        let create = pb::WatchCreateRequest { watch_id: 0, ..create };
        self.ask(member, RequestUnion::CreateRequest(create));
    }

    /// How long the member has to confirm a watcher; `None` if there is no way to it.
    fn connect(&mut self, member: MemberId) -> Option<Duration> {
        let forward = self.node.forward_watches(member).ok()?;
        let timeout = forward.timeout();
        if !self.relays.iter().any(|relay| relay.member == member) {
            self.relays.push(Relay::new(forward));
        }
        Some(timeout)
    }

    /// There is room: see [`Self::can_hear`].
    fn ask(&mut self, member: MemberId, request: RequestUnion) {
        if let Some(relay) = self.relays.iter().find(|relay| relay.member == member) {
            // A member that is lost says so by the end of its answers.
            let _ = relay.requests.try_send(pb::WatchRequest { request_union: Some(request) });
        }
    }

    /// Ends a watcher, if another member serves it.
    pub(super) fn cancel(&mut self, id: i64) -> bool {
        let found = self.relays.iter().find_map(|relay| Some((relay.member, relay.theirs(id)?)));
        let Some((member, watch_id)) = found else { return false };
        self.ask(member, RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }));
        true
    }

    /// Forgets a watcher, whatever its member still says of it.
    pub(super) fn forget(&mut self, id: i64) {
        self.cancel(id);
        for relay in &mut self.relays {
            relay.watchers.retain(|_, known| *known != id);
        }
        // The rest of a reply in pieces would be dropped.
        self.in_pieces = None;
        self.tidy();
    }

    /// Asks all members how far they are.
    pub(super) fn request_progress(&mut self) {
        let members: Vec<_> = self.relays.iter().map(|relay| relay.member).collect();
        for member in members {
            self.ask(member, RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        }
    }

    /// The next answer. Waits for ever when nothing happens, and loses nothing when dropped.
    pub(super) async fn next(&mut self) -> Relayed {
        if self.relays.is_empty() {
            return pending().await;
        }
        let starting = self.starting.as_ref().map(|starting| (starting.member, starting.deadline));
        let next = poll_fn(|cx| self.poll(cx));
        match starting {
            None => next.await,
            Some((member, deadline)) => {
                timeout_at(deadline, next).await.unwrap_or(Relayed::Lost(member))
            }
        }
    }

    /// The next answer if there is one already.
    pub(super) fn try_next(&mut self) -> Option<Relayed> {
        poll_fn(|cx| self.poll(cx)).now_or_never()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Relayed> {
        let count = self.relays.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let relay = &mut self.relays[at];
            if self.in_pieces.is_some_and(|member| member != relay.member) {
                continue;
            }
            let Poll::Ready(answer) = relay.answers.poll_next_unpin(cx) else { continue };
            self.turn = at + 1;
            let member = relay.member;
            return Poll::Ready(match answer {
                Some(Ok(answer)) => Relayed::Answer(member, answer),
                Some(Err(_)) | None => Relayed::Lost(member),
            });
        }
        Poll::Pending
    }

    /// What the client is to be told of an answer.
    pub(super) fn take(
        &mut self,
        relayed: Relayed,
        watchers: &mut WatchStream,
    ) -> Vec<pb::WatchResponse> {
        match relayed {
            Relayed::Lost(member) => {
                self.lose(member, watchers);
                Vec::new()
            }
            Relayed::Answer(member, answer) => {
                let told = self.translate(member, answer, watchers);
                self.tidy();
                told
            }
        }
    }

    fn translate(
        &mut self,
        member: MemberId,
        answer: pb::WatchResponse,
        watchers: &mut WatchStream,
    ) -> Vec<pb::WatchResponse> {
        let is_alone = self.relays.len() == 1 && self.starting.is_none() && watchers.is_idle();
        let starting =
            self.starting.take_if(|starting| answer.created && starting.member == member);
        let Some(relay) = self.relays.iter_mut().find(|relay| relay.member == member) else {
            return Vec::new();
        };
        if let Some(Starting { id, .. }) = starting {
            if answer.canceled {
                watchers.release(id);
                return vec![answer];
            }
            relay.watchers.insert(answer.watch_id, id);
        }
        if answer.watch_id == NO_WATCHER && !is_alone {
            let ids = relay.watchers.values();
            return ids.map(|id| pb::WatchResponse { watch_id: *id, ..answer.clone() }).collect();
        }
        if answer.watch_id == NO_WATCHER {
            return vec![answer];
        }
        let Some(id) = relay.watchers.get(&answer.watch_id).copied() else { return Vec::new() };
        if answer.canceled {
            relay.watchers.remove(&answer.watch_id);
            let end = if answer.compact_revision == 0 {
                WatchStream::release
            } else {
                WatchStream::expire
            };
            end(watchers, id);
        }
        self.in_pieces = answer.fragment.then_some(member);
        vec![pb::WatchResponse { watch_id: id, ..answer }]
    }

    fn lose(&mut self, member: MemberId, watchers: &mut WatchStream) {
        tracing::debug!(%member, "watches on another member are lost");
        self.in_pieces.take_if(|broken| *broken == member);
        if let Some(at) = self.relays.iter().position(|relay| relay.member == member) {
            let relay = self.relays.remove(at);
            relay.watchers.into_values().for_each(|id| watchers.lose(id, false));
        }
        if let Some(Starting { id, .. }) = self.starting.take_if(|it| it.member == member) {
            watchers.lose(id, true);
        }
    }

    /// Ends calls that are for no watcher any more.
    fn tidy(&mut self) {
        let starting = self.starting.as_ref().map(|starting| starting.member);
        self.relays.retain(|it| !it.watchers.is_empty() || Some(it.member) == starting);
    }
}

impl Relay {
    fn new(forward: Forward) -> Self {
        let member = forward.to();
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let lost = forward.clone();
        let call = async move {
            let client = WatchClient::new(forward.channel());
            // The member has its own limits.
            let mut client = client.max_decoding_message_size(usize::MAX);
            let answers = client.watch(forward.request(ReceiverStream::new(waiting))).await?;
            Ok::<_, Status>(answers.into_inner())
        };
        let answers = stream::once(call).try_flatten();
        let answers = answers.take_until(async move { lost.lost().await }).boxed();
        Self { member, requests, answers, watchers: BTreeMap::new() }
    }

    /// The member's id of a watcher.
    fn theirs(&self, ours: i64) -> Option<i64> {
        self.watchers.iter().find_map(|(theirs, id)| (*id == ours).then_some(*theirs))
    }
}
