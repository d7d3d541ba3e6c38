//! Traced writes in the writer's thread: how long they waited for it, for the disk, and for other members.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::replication::message::TracedEntry;
use crate::traces::{Attribute, Done, Kind, RequestSpan, Traces, integer};
use crate::types::{MemberId, Origin, TraceContext};

/// Own entries, and those of others, that are followed at the same time; of more, the oldest are not followed to their
/// end.
const FOLLOWED_MAX: usize = 1024;

/// A traced request in the queue.
#[derive(Debug)]
pub(super) struct Queued {
    context: TraceContext,
    since: SystemTime,
}

impl Queued {
    pub(super) fn now(span: &RequestSpan) -> Self {
        Self { context: span.context(), since: SystemTime::now() }
    }

    pub(super) fn context(&self) -> TraceContext {
        self.context
    }
}

/// An own entry that is followed.
struct Own {
    seq: u64,
    context: TraceContext,
    taken: SystemTime,
    is_durable: bool,
    /// Who does not have it yet.
    missing: BTreeSet<MemberId>,
}

/// Follows traced writes.
pub(super) struct WriteTraces {
    traces: Arc<Traces>,
    me: Origin,
    own: VecDeque<Own>,
    /// Entries of others that are not durable here yet, and when somebody told of them.
    arrived: VecDeque<(TracedEntry, SystemTime)>,
}

impl WriteTraces {
    pub(super) fn new(traces: Arc<Traces>, me: Origin) -> Self {
        Self { traces, me, own: VecDeque::new(), arrived: VecDeque::new() }
    }

    /// A command has been evaluated; `wrote` is the entry that it became, if it did, and `awaited` are those who will
    /// acknowledge it.
    pub(super) fn took(&mut self, queued: &Queued, wrote: Option<u64>, awaited: &[MemberId]) {
        let taken = SystemTime::now();
        let context = queued.context;
        self.record(context, "queue", Kind::Internal, (queued.since, taken), Vec::new());
        let Some(seq) = wrote else { return };
        if self.own.len() == FOLLOWED_MAX {
            self.own.pop_front();
        }
        let missing = awaited.iter().copied().collect();
        self.own.push_back(Own { seq, context, taken, is_durable: false, missing });
    }

    /// A peer has named entries that are traced; `head` is how far those of an origin are here.
    pub(super) fn heard(&mut self, entries: &[TracedEntry], head: impl Fn(Origin) -> u64) {
        let now = SystemTime::now();
        for entry in entries {
            let is_known = self
                .arrived
                .iter()
                .any(|(other, _)| (other.origin, other.seq) == (entry.origin, entry.seq));
            if is_known || entry.origin.member == self.me.member || entry.seq <= head(entry.origin)
            {
                continue;
            }
            if self.arrived.len() == FOLLOWED_MAX {
                self.arrived.pop_front();
            }
            self.arrived.push_back((*entry, now));
        }
    }

    /// Before a commit: when it begins, if it is of interest.
    pub(super) fn begin_commit(&self) -> Option<SystemTime> {
        let is_awaited = !self.arrived.is_empty() || self.own.iter().any(|own| !own.is_durable);
        is_awaited.then(SystemTime::now)
    }

    /// After it: what is durable now is visible, too.
    pub(super) fn committed(&mut self, begun: SystemTime, head: impl Fn(Origin) -> u64) {
        let now = SystemTime::now();
        let durable = head(self.me);
        let mut done = Vec::new();
        for own in self.own.iter_mut().filter(|own| !own.is_durable && own.seq <= durable) {
            own.is_durable = true;
            done.push((own.context, own.seq));
        }
        for (context, seq) in done {
            let attributes = vec![Attribute::new("starling.seq", integer(seq))];
            self.record(context, "commit", Kind::Internal, (begun, now), attributes);
        }
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.retain(|(entry, since)| {
            if entry.seq > head(entry.origin) {
                return true;
            }
            self.record(entry.context, "apply", Kind::Consumer, (*since, now), self.about(entry));
            false
        });
        self.arrived = arrived;
        self.forget_done();
    }

    fn about(&self, entry: &TracedEntry) -> Vec<Attribute> {
        vec![
            Attribute::new("starling.member", self.me.member.to_string()),
            Attribute::new("starling.origin", entry.origin.to_string()),
            Attribute::new("starling.seq", integer(entry.seq)),
        ]
    }

    /// A peer has own entries up to this one.
    pub(super) fn acknowledged(&mut self, peer: MemberId, seq: u64) {
        if self.own.is_empty() {
            return;
        }
        let now = SystemTime::now();
        let mut done = Vec::new();
        for own in self.own.iter_mut().filter(|own| own.seq <= seq) {
            if own.missing.remove(&peer) {
                done.push((own.context, own.taken));
            }
        }
        for (context, taken) in done {
            let attributes = vec![Attribute::new("starling.peer", peer.to_string())];
            self.record(context, "replicate", Kind::Producer, (taken, now), attributes);
        }
        self.forget_done();
    }

    fn forget_done(&mut self) {
        while self.own.pop_front_if(|own| own.is_durable && own.missing.is_empty()).is_some() {}
    }

    fn record(
        &self,
        parent: TraceContext,
        name: &'static str,
        kind: Kind,
        (start, end): (SystemTime, SystemTime),
        attributes: Vec<Attribute>,
    ) {
        self.traces.record(parent, Done { name, kind, start, end, attributes });
    }
}
