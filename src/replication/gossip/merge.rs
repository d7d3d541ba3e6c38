//! State merge: what a member holds that others have deleted, and forgotten that they have.
//!
//! A member that comes back with an old disk gets what it lacks by a catch-up. What it holds too much cannot come that way
//! where the tombstones are gone. So it asks a peer, by sums over ranges of keys, where the two differ, and in the end
//! names the puts there. The *dot rule*: a put that the peer lacks, though the peer holds the entry that made it and
//! has no greater put there, was deleted. The member then deletes it, too, by an entry of its own like any other.

use super::compare::Comparison;
use super::{Gossip, Output};
use crate::replication::message::{Compare, Compared};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// Where a state merge stands.
#[derive(Clone, Debug)]
pub(super) struct Merging {
    pub(super) comparison: Comparison,
    /// Up to when this member will be complete when it is done.
    complete: Timestamp,
}

impl Gossip {
    /// Begins to compare everything with a peer whose data has just been taken over.
    pub(super) fn begin_merge(&mut self, from: MemberId, complete: Timestamp, now: Now) {
        let comparison = Comparison::new(from, Timestamp(u64::MAX));
        self.merging = Some(Merging { comparison, complete });
        self.ask_where_it_differs(now);
    }

    fn ask_where_it_differs(&mut self, now: Now) {
        let Some(merging) = &mut self.merging else { return };
        if let Some(question) = merging.comparison.ask(now) {
            self.outputs.push(question);
            return;
        }
        let complete = merging.complete;
        self.merging = None;
        self.counts.merges += 1;
        self.outputs.push(Output::Complete(complete));
    }

    /// A peer asks where it differs from us.
    pub(super) fn serve_compare(&mut self, to: MemberId, compare: Compare) {
        if self.may_load(to) {
            self.outputs.push(Output::AnswerCompare(to, compare));
        }
    }

    pub(super) fn take_compared(&mut self, from: MemberId, compared: Compared, now: Now) {
        let Some(merging) = self.merging.as_mut().filter(|it| it.comparison.with == from) else {
            self.take_scrubbed(from, compared, now);
            return;
        };
        merging.comparison.answered(compared.differing);
        if !compared.gone.is_empty() {
            self.outputs.push(Output::Drop(compared.gone));
        }
        self.ask_where_it_differs(now);
    }

    /// Asks again when no answer has come for too long; somebody else, from the start, if the peer seems dead.
    pub(super) fn merge_timeout(&mut self, now: Now) {
        let Some(merging) = &mut self.merging else { return };
        if merging.comparison.deadline_millis > now.monotonic_millis {
            return;
        }
        if self.live.binary_search(&merging.comparison.with).is_err() {
            self.merging = None;
            if let Some(other) = self.dice.pick(&self.live).copied() {
                self.begin_catch_up(other, now);
            }
            return;
        }
        merging.comparison.unanswered();
        self.ask_where_it_differs(now);
    }
}
