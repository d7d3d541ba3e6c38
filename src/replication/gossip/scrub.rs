//! The scrub: in the background, now and then, two members compare what everybody has held for long.
//!
//! What is settled is the same everywhere; if it is not, a disk has lost something, or this program is wrong. Sums over
//! ranges of keys find the puts that are here and not there, as in a state merge. A write on its way looks the same,
//! so what was found is looked at once more later on, and counts only if nothing has changed.
//!
//! Nobody can tell by then whether a put was lost there or should be gone here. It is written anew: what was there for no
//! reason can be deleted again, what was lost could not be brought back.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::compare::{Comparison, Fit};
use super::{Gossip, Output};
use crate::replication::message::{Compared, Dot, Span};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// How long after it was found a difference is looked at again: longer than any write is on its way.
const CONFIRM_MILLIS: u64 = 10_000;
/// Differences that one scrub looks into; the next one finds the rest.
const SUSPECTS_MAX: usize = 1024;

/// When a scrub is due, and the one under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrub {
    /// When the next one begins; `None` for never.
    next_millis: Option<u64>,
    round: Option<Round>,
    /// When the last one ended.
    last_millis: Option<u64>,
}

#[derive(Clone, Debug)]
struct Round {
    comparison: Comparison,
    /// What the other one seems to lack, by key.
    suspects: BTreeMap<Bytes, Dot>,
    /// Of those, what it still lacks; `None` at the first look.
    confirmed: Option<Vec<Dot>>,
}

impl Scrub {
    /// The first one begins after so long; `None` for never.
    pub(super) fn new(first_millis: Option<u64>) -> Self {
        Self { next_millis: first_millis, ..Self::default() }
    }

    pub(super) fn wake_at(&self) -> Option<u64> {
        self.round.as_ref().map(|round| round.comparison.deadline_millis).or(self.next_millis)
    }

    /// The comparison under way.
    pub(super) fn comparison(&mut self) -> Option<&mut Comparison> {
        self.round.as_mut().map(|round| &mut round.comparison)
    }

    /// When the last one ended, in monotonic milliseconds.
    pub(super) fn last_millis(&self) -> Option<u64> {
        self.last_millis
    }
}

impl Gossip {
    /// Begins, goes on, or gives up.
    pub(super) fn scrub_when_due(&mut self, now: Now) {
        let millis = now.monotonic_millis;
        if self.scrub.wake_at().is_none_or(|at| at > millis) {
            return;
        }
        match &mut self.scrub.round {
            // The second look.
            Some(round) if !round.comparison.is_asking() => self.ask_what_differs(now),
            Some(_) => self.scrub.round = None,
            None => {
                let interval = self.options.scrub_millis;
                self.scrub.next_millis =
                    interval.map(|interval| millis + self.dice.jitter(interval));
                self.begin_scrub(now);
            }
        }
    }

    fn begin_scrub(&mut self, now: Now) {
        let upto = self.frontier.settled();
        let is_busy = self.catching_up.is_some() || self.merging.is_some();
        let Some(with) = self.dice.pick(&self.live).copied() else { return };
        if is_busy || upto == Timestamp::default() || !self.membership.members.contains_key(&with) {
            return;
        }
        self.scrub.round = Some(Round {
            comparison: Comparison::new(with, upto),
            suspects: BTreeMap::new(),
            confirmed: None,
        });
        self.ask_what_differs(now);
    }

    fn ask_what_differs(&mut self, now: Now) {
        let Some(round) = &mut self.scrub.round else { return };
        if let Some(question) = round.comparison.ask(self.dice.roll(), now) {
            self.outputs.push(question);
            return;
        }
        if round.confirmed.is_none() && !round.suspects.is_empty() {
            round.confirmed = Some(Vec::new());
            round.comparison.answered(round.suspects.keys().map(span_of));
            round.comparison.deadline_millis = now.monotonic_millis + CONFIRM_MILLIS;
            return;
        }
        let (with, differences) =
            (round.comparison.with, round.confirmed.take().unwrap_or_default());
        self.scrub.round = None;
        self.scrub.last_millis = Some(now.monotonic_millis);
        self.counts.scrubs += 1;
        self.counts.differences += differences.len() as u64;
        if !differences.is_empty() {
            self.outputs.push(Output::Differ(with, differences));
        }
    }

    /// Takes an answer, if it is one to a scrub's question.
    pub(super) fn take_scrubbed(&mut self, from: MemberId, compared: Compared, now: Now) {
        let Some(round) = self.scrub.round.as_mut().filter(|it| it.comparison.with == from) else {
            return;
        };
        match round.comparison.fit(&compared) {
            Fit::Fits => {}
            Fit::Stale => return,
            Fit::Wrong => {
                // The next scrub is with somebody else, unless there is nobody.
                self.scrub.round = None;
                self.misanswered(from);
                return;
            }
        }
        let Round { suspects, confirmed, comparison } = round;
        if let Some(confirmed) = confirmed {
            let stays = |dot: &Dot| suspects.get(&dot.key) == Some(dot);
            comparison.answered([]);
            confirmed.extend(compared.gone.into_iter().filter(stays));
        } else {
            comparison.answered(compared.differing);
            let room = SUSPECTS_MAX - suspects.len().min(SUSPECTS_MAX);
            let found = compared.gone.into_iter().take(room);
            suspects.extend(found.map(|dot| (dot.key.clone(), dot)));
        }
        self.ask_what_differs(now);
    }
}

/// The range of one key.
fn span_of(key: &Bytes) -> Span {
    let next = [key.as_ref(), &[0]].concat();
    Span { from: key.clone(), to: Some(next.into()) }
}
