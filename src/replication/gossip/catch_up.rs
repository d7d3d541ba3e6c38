//! Taking over the data of a peer as a whole, where its log does not reach back far enough.
//!
//! The peer goes through its log and sends what still means anything: what lives, and tombstones that are kept. It
//! keeps no state for it, but sends a few parts for each request. The heads that it named at the start hold for whoever has all parts: what was superseded
//! meanwhile is followed, later in the log, by what superseded it. Until then no head moves, so that a catch-up that
//! breaks off claims nothing.

use std::cmp::Ordering;

use super::{CATCH_UP_BYTES_MAX, CatchingUp, Gossip, Output};
use crate::replication::message::{CatchUp, CatchUpPart, Message};
use crate::time::Now;
use crate::types::MemberId;

/// Who has not answered at all after so long may not have got the question: it is asked again...
const FIRST_PART_PATIENCE_MILLIS: u64 = 1000;
/// ...and who has not sent a further part after so long.
const PART_PATIENCE_MILLIS: u64 = 10_000;

impl Gossip {
    /// Starts to take over a peer's data, unless that is under way with someone.
    pub(super) fn begin_catch_up(&mut self, from: MemberId, now: Now) {
        if self.catching_up.is_some() || self.merging.is_some() {
            return;
        }
        let deadline_millis = now.monotonic_millis + FIRST_PART_PATIENCE_MILLIS;
        self.catching_up =
            Some(CatchingUp { from, claims: None, cursor: None, progress: 0, deadline_millis });
        self.had_data = self.had_data || !self.heads.all().is_empty();
        self.ask_for_part();
    }

    /// This member has data that it may share with those it joins, though no head says so: what they have deleted of it has to go,
    /// too.
    pub fn note_shared_data(&mut self) {
        self.had_data = true;
    }

    fn ask_for_part(&mut self) {
        let Some(CatchingUp { from, cursor, .. }) = self.catching_up else { return };
        let (heads, bytes_max) = (self.heads.all(), self.options.catch_up_bytes);
        self.send(from, Message::CatchUp(CatchUp { heads, cursor, bytes_max }));
    }

    pub(super) fn serve_catch_up(&mut self, to: MemberId, request: CatchUp) {
        if !self.may_load(to) {
            return;
        }
        let bytes_max = request.bytes_max.min(CATCH_UP_BYTES_MAX);
        self.outputs.push(Output::LoadCatchUp(to, CatchUp { bytes_max, ..request }));
    }

    pub(super) fn take_part(&mut self, from: MemberId, part: CatchUpPart, now: Now) {
        let Some(catching_up) = self.catching_up.as_mut().filter(|it| it.from == from) else {
            return;
        };
        match part.after.cmp(&catching_up.cursor) {
            Ordering::Equal => {}
            // It came twice.
            Ordering::Less => return,
            // One before it was lost, and so nothing that follows unasked can be taken.
            Ordering::Greater if part.more => return,
            Ordering::Greater => {
                self.ask_for_part();
                return;
            }
        }
        catching_up.deadline_millis = now.monotonic_millis + PART_PATIENCE_MILLIS;
        catching_up.cursor = part.next;
        catching_up.progress = part.progress;
        let (heads, complete) =
            catching_up.claims.get_or_insert((part.heads, part.complete)).clone();
        self.counts.taken += part.entries.len() as u64;
        self.outputs.push(Output::ApplyCatchUp(part.entries));
        if part.next.is_some() {
            if !part.more {
                self.ask_for_part();
            }
            return;
        }
        self.catching_up = None;
        self.counts.catch_ups += 1;
        for head in &heads {
            self.heads.note_applied(head.origin, head.seq);
            self.pulls.satisfy(head.origin, &self.heads);
        }
        let (collected, floors) = (part.collected, part.floors);
        self.outputs.push(Output::FinishCatchUp { heads, collected, floors });
        if self.had_data {
            // Some of it may be gone elsewhere, and nobody knows any more that it was ever there.
            self.begin_merge(from, complete, now);
        } else {
            self.outputs.push(Output::Complete(complete));
        }
    }

    /// Asks again when nothing has come for too long; from the start, of somebody else, if the peer seems dead.
    pub(super) fn catch_up_timeout(&mut self, now: Now) {
        let Some(catching_up) = &mut self.catching_up else { return };
        if catching_up.deadline_millis > now.monotonic_millis {
            return;
        }
        let is_first = catching_up.claims.is_none();
        let patience = if is_first { FIRST_PART_PATIENCE_MILLIS } else { PART_PATIENCE_MILLIS };
        catching_up.deadline_millis = now.monotonic_millis + patience;
        let from = catching_up.from;
        if self.live.binary_search(&from).is_err()
            && let Some(other) = self.somebody()
        {
            self.catching_up = None;
            self.begin_catch_up(other, now);
            return;
        }
        self.ask_for_part();
    }
}
