//! State merge: what a member holds that others have deleted, and forgotten that they have.
//!
//! A member that comes back with an old disk gets what it lacks by a catch-up. What it holds too much cannot come that way
//! where the tombstones are gone. So it asks a peer, by sums over ranges of keys, where the two differ, and in the end
//! names the puts there. The *dot rule*: a put that the peer lacks, though the peer holds the entry that made it and
//! has no greater put there, was deleted. The member then deletes it, too, by an entry of its own like any other.

use super::compare::{Comparison, Fit};
use super::{CATCH_UP_PATIENCE_MILLIS, Gossip, Output};
use crate::replication::message::{Compare, Compared, Message};
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
        if let Some(question) = merging.comparison.ask(self.dice.roll(), now) {
            self.outputs.push(question);
            return;
        }
        let complete = merging.complete;
        self.merging = None;
        self.counts.merges += 1;
        self.outputs.push(Output::Complete(complete));
    }

    /// What a question is about has been read: sends it, unless it has come to nothing meanwhile.
    pub(super) fn send_compare(&mut self, to: MemberId, compare: Compare) {
        let merging = self.merging.as_mut().map(|merging| &mut merging.comparison);
        let is_ours = |it: &mut Comparison| it.note_question(to, &compare);
        if merging.into_iter().chain(self.scrub.comparison()).any(is_ours) {
            self.send(to, Message::Compare(compare));
        }
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
        match merging.comparison.fit(&compared) {
            Fit::Fits => {}
            Fit::Stale => return,
            Fit::Wrong => {
                self.misanswered(from);
                self.merge_with_another(now);
                return;
            }
        }
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
        let is_live = self.live.binary_search(&merging.comparison.with).is_ok();
        if !is_live || merging.comparison.is_mute() {
            self.merge_with_another(now);
        }
        let Some(merging) = &mut self.merging else { return };
        let with = merging.comparison.with;
        match merging.comparison.again(now) {
            Some(question) => self.send(with, Message::Compare(question)),
            None => self.ask_where_it_differs(now),
        }
    }

    /// Starts again with another peer; while there is none, with the same, a while later.
    fn merge_with_another(&mut self, now: Now) {
        let Some(merging) = &mut self.merging else { return };
        let with = merging.comparison.with;
        let others: Vec<MemberId> = self.live.iter().copied().filter(|it| *it != with).collect();
        if let Some(other) = self.dice.pick(&others).copied() {
            self.merging = None;
            self.begin_catch_up(other, now);
            return;
        }
        merging.comparison = Comparison::new(with, Timestamp(u64::MAX));
        merging.comparison.deadline_millis = now.monotonic_millis + CATCH_UP_PATIENCE_MILLIS;
    }

    /// A peer has answered what it was not asked, or what cannot be.
    pub(super) fn misanswered(&mut self, peer: MemberId) {
        self.counts.misanswers += 1;
        self.outputs.push(Output::Misanswered(peer));
    }
}
