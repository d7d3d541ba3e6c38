//! Asking a peer, range by range, where it holds something else: what a state merge and a scrub have in common.
//!
//! How long that takes does not depend on what the peer says. An answer picks from what was in the question, and that were
//! parts of our own data: a sixteenth of a range at most, or the puts of a few keys. So each range is asked about once,
//! and after as many halvings as our keys allow there is nothing left. An answer to anything else is refused, and with it
//! the peer.

use bytes::Bytes;

use super::{CATCH_UP_PATIENCE_MILLIS, Output};
use crate::replication::message::{Compare, Compared, Span};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// Ranges that one question is about.
const SPANS_MAX: usize = 64;
/// Questions in a row without an answer after which somebody else is asked.
const MISSES_MAX: u32 = 8;

/// Where a comparison stands.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) with: MemberId,
    /// What was put later does not count.
    upto: Timestamp,
    /// The ranges that are not settled yet. None of them overlap, and the next question is about the last ones: so for each
    /// time that everything was split there are the parts of one question at most.
    pending: Vec<Span>,
    /// Those that the question under way is about.
    asked: Vec<Span>,
    /// Names that question.
    number: u64,
    /// What was sent; `None` while it is being read.
    question: Option<Compare>,
    /// Questions without an answer since the last one that had one.
    misses: u32,
    /// When the answer is late.
    pub(super) deadline_millis: u64,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// One to the question under way.
    Fits,
    /// One to some other question, late or twice.
    Stale,
    /// One that names what was not in the question.
    Wrong,
}

impl Comparison {
    /// Of everything.
    pub(super) fn new(with: MemberId, upto: Timestamp) -> Self {
        Self {
            with,
            upto,
            pending: vec![Span { from: Bytes::new(), to: None }],
            asked: Vec::new(),
            number: 0,
            question: None,
            misses: 0,
            deadline_millis: 0,
        }
    }

    /// The next question, by this number; `None` when there is nothing left to ask.
    pub(super) fn ask(&mut self, number: u64, now: Now) -> Option<Output> {
        let first = self.pending.len().saturating_sub(SPANS_MAX);
        self.asked = self.pending.split_off(first);
        // They may come from several answers.
        self.asked.sort_unstable_by(|a, b| a.from.cmp(&b.from));
        (self.number, self.question) = (number, None);
        self.deadline_millis = now.monotonic_millis + CATCH_UP_PATIENCE_MILLIS;
        let (to, spans, upto) = (self.with, self.asked.clone(), self.upto);
        (!spans.is_empty()).then_some(Output::Compare { to, spans, upto, number })
    }

    /// The question has been read: whether it is the one under way, and has to be sent.
    pub(super) fn note_question(&mut self, to: MemberId, question: &Compare) -> bool {
        let is_ours = self.with == to && self.is_asking() && self.number == question.number;
        if is_ours {
            self.question = Some(question.clone());
        }
        is_ours
    }

    /// Whether an answer is awaited.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// How many ranges are known to be left.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether the peer has not answered for so long that another should be asked.
    pub(super) fn is_mute(&self) -> bool {
        self.misses > MISSES_MAX
    }

    /// Whether this answers the question under way.
    pub(super) fn fit(&self, compared: &Compared) -> Fit {
        let Some(question) = self.question.as_ref().filter(|_| self.number == compared.number)
        else {
            return Fit::Stale;
        };
        let asked = question.sums.iter().map(|sum| &sum.span);
        let is_asked = picks(&compared.differing, asked) && picks(&compared.gone, &question.dots);
        if is_asked { Fit::Fits } else { Fit::Wrong }
    }

    /// The answer has come: these have to be looked into.
    pub(super) fn answered(&mut self, differing: impl IntoIterator<Item = Span>) {
        self.asked.clear();
        (self.question, self.misses) = (None, 0);
        self.pending.extend(differing);
    }

    /// No answer has come: the same question again, so that a late answer still is one; `None` if it has not been read.
    pub(super) fn again(&mut self, now: Now) -> Option<Compare> {
        self.misses += 1;
        self.deadline_millis = now.monotonic_millis + CATCH_UP_PATIENCE_MILLIS;
        if self.question.is_none() {
            self.pending.append(&mut self.asked);
        }
        self.question.clone()
    }
}

/// Whether all of `picked` are in `from`, once, and in that order.
fn picks<'a, T: PartialEq + 'a>(picked: &[T], from: impl IntoIterator<Item = &'a T>) -> bool {
    let mut from = from.into_iter();
    picked.iter().all(|one| from.any(|other| other == one))
}
