//! Asking a peer, range by range, where it holds something else: what a state merge and a scrub have in common.

use bytes::Bytes;

use super::{CATCH_UP_PATIENCE_MILLIS, Output};
use crate::replication::message::Span;
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// Ranges that one question is about.
const SPANS_MAX: usize = 64;

/// Where a comparison stands.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) with: MemberId,
    /// What was put later does not count.
    upto: Timestamp,
    /// The ranges that are not settled yet.
    pending: Vec<Span>,
    /// Those that the question under way is about.
    asked: Vec<Span>,
    /// When the answer is late.
    pub(super) deadline_millis: u64,
}

impl Comparison {
    /// Of everything.
    pub(super) fn new(with: MemberId, upto: Timestamp) -> Self {
        let everything = Span { from: Bytes::new(), to: None };
        let (pending, asked) = (vec![everything], Vec::new());
        Self { with, upto, pending, asked, deadline_millis: 0 }
    }

    /// The next question; `None` when there is nothing left to ask.
    pub(super) fn ask(&mut self, now: Now) -> Option<Output> {
        let first = self.pending.len().saturating_sub(SPANS_MAX);
        self.asked = self.pending.split_off(first);
        self.deadline_millis = now.monotonic_millis + CATCH_UP_PATIENCE_MILLIS;
        let (to, spans, upto) = (self.with, self.asked.clone(), self.upto);
        (!spans.is_empty()).then_some(Output::Compare { to, spans, upto })
    }

    /// Whether an answer is awaited.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The answer has come: these have to be looked into.
    pub(super) fn answered(&mut self, differing: impl IntoIterator<Item = Span>) {
        self.asked.clear();
        self.pending.extend(differing);
    }

    /// No answer has come: the same is to be asked again.
    pub(super) fn unanswered(&mut self) {
        self.pending.append(&mut self.asked);
    }
}
