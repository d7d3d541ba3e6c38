//! Taking over the data of a peer as a whole, where its log does not reach back far enough.
//!
//! The peer goes through its log and sends what still means anything: what lives, and tombstones that are kept. It
//! keeps no state for it, but sends a few parts for each request. The heads that it named at the start hold for whoever has all parts: what was superseded
//! meanwhile is followed, later in the log, by what superseded it, or is newer than those heads. Until then no head moves, so
//! that a catch-up that breaks off claims nothing.
//!
//! It ends whatever the peer says. With the first part the peer names the end of its log and what that takes. Each part
//! goes on strictly behind the one before, and none beyond that end; together they bring no more than there can be. A peer
//! that breaks this is left, and somebody else is asked, from the start.

use super::{CATCH_UP_BYTES_MAX, CATCH_UP_PATIENCE_MILLIS, Gossip, Output};
use crate::replication::message::{CatchUp, CatchUpPart, Cursor, Head, Message};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// Who has not answered at all after so long may not have got the question: it is asked again...
const FIRST_PART_PATIENCE_MILLIS: u64 = 1000;
/// ...and who has not sent a further part after so long.
const PART_PATIENCE_MILLIS: u64 = 10_000;
/// Who has sent nothing for so long, or nothing but that it is busy, is left for somebody else.
const SILENCE_MAX_MILLIS: u64 = 30_000;
/// A part that is not the last one counts as so much of what was asked for at once at least: half a part of the smallest kind.
/// What brings less is the work of many rows that are of no use here.
const PARTS_ASKED_FOR: u64 = 64;
/// No log is as long as that: the keys of every row in it have to be in memory.
const LOG_BYTES_MAX: u64 = 1 << 40;
/// What comes may be so many times what the log takes, which is an estimate ...
const BYTES_PER_LOG_BYTE: u64 = 2;
/// ... and so much more: records, and a few parts of a short log.
const BYTES_MORE: u64 = 64 << 20;

/// Where a catch-up from a peer stands.
#[derive(Clone, Debug)]
pub(super) struct CatchingUp {
    pub(super) from: MemberId,
    stage: Stage,
    /// Of the first part.
    claims: Option<Claims>,
    cursor: Option<Cursor>,
    pub(super) progress: u16,
    /// When the last part came, or the first was asked for.
    heard_millis: u64,
    pub(super) deadline_millis: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The peer is to be asked when the deadline has passed: there is nobody else.
    Resting,
    /// Parts are on their way.
    Asking,
    /// All parts are here, and the engine makes their contents its own.
    Applying,
}

/// What a peer has said with the first part.
#[derive(Clone, Debug)]
struct Claims {
    heads: Vec<Head>,
    complete: Timestamp,
    end: Cursor,
    /// What may still come.
    bytes_left: u64,
}

impl CatchingUp {
    fn begin(from: MemberId, now: Now) -> Self {
        let deadline_millis = now.monotonic_millis + FIRST_PART_PATIENCE_MILLIS;
        let stage = Stage::Asking;
        let (claims, cursor, progress, heard_millis) = (None, None, 0, now.monotonic_millis);
        Self { from, stage, claims, cursor, progress, heard_millis, deadline_millis }
    }

    /// The peer serves nobody for a while.
    pub(super) fn postpone(&mut self, until_millis: u64) {
        if self.stage != Stage::Applying {
            self.deadline_millis = until_millis.min(self.heard_millis + SILENCE_MAX_MILLIS);
        }
    }

    /// Takes note of a part that follows those before. Answers whether it may be one.
    fn note(&mut self, part: &CatchUpPart, bytes_asked: u64) -> bool {
        let CatchUpPart { heads, complete, log_bytes, end, after, next, .. } = part;
        let claims = self.claims.get_or_insert_with(|| Claims {
            heads: heads.clone(),
            complete: *complete,
            end: *end,
            bytes_left: log_bytes.saturating_mul(BYTES_PER_LOG_BYTE).saturating_add(BYTES_MORE),
        });
        let is_plausible = claims.bytes_left <= LOG_BYTES_MAX * BYTES_PER_LOG_BYTE + BYTES_MORE;
        let goes_on = next.is_none_or(|next| Some(next) > *after && next < claims.end);
        let bytes = part.entries.bytes() as u64;
        let least = if next.is_some() { (bytes_asked / PARTS_ASKED_FOR).max(1) } else { 0 };
        let left = claims.bytes_left.checked_sub(bytes.max(least));
        claims.bytes_left = left.unwrap_or(0);
        (self.cursor, self.progress) = (*next, part.progress);
        is_plausible && goes_on && left.is_some()
    }
}

impl Gossip {
    /// Starts to take over a peer's data, unless that is under way with someone.
    pub(super) fn begin_catch_up(&mut self, from: MemberId, now: Now) {
        if self.catching_up.is_some() || self.merging.is_some() {
            return;
        }
        self.catching_up = Some(CatchingUp::begin(from, now));
        self.had_data = self.had_data || !self.heads.all().is_empty();
        self.ask_for_part();
    }

    /// This member has data that it may share with those it joins, though no head says so: what they have deleted of it has to go,
    /// too.
    pub fn note_shared_data(&mut self) {
        self.had_data = true;
    }

    fn ask_for_part(&mut self) {
        let Some(CatchingUp { from, cursor, claims, .. }) = &self.catching_up else { return };
        let (from, cursor, end) = (*from, *cursor, claims.as_ref().map(|claims| claims.end));
        let (heads, bytes_max) = (self.heads.all(), self.options.catch_up_bytes);
        self.send(from, Message::CatchUp(CatchUp { heads, cursor, end, bytes_max }));
    }

    pub(super) fn serve_catch_up(&mut self, to: MemberId, request: CatchUp) {
        if !self.may_load(to) {
            return;
        }
        let bytes_max = request.bytes_max.min(CATCH_UP_BYTES_MAX);
        self.outputs.push(Output::LoadCatchUp(to, CatchUp { bytes_max, ..request }));
    }

    pub(super) fn take_part(&mut self, from: MemberId, part: CatchUpPart, now: Now) {
        let bytes_asked = self.options.catch_up_bytes;
        let is_awaited = |it: &&mut CatchingUp| it.from == from && it.stage == Stage::Asking;
        let Some(catching_up) = self.catching_up.as_mut().filter(is_awaited) else { return };
        // It answers a question that has been asked anew since.
        if catching_up.claims.as_ref().is_some_and(|claims| claims.end != part.end) {
            return;
        }
        let goes_back = part.next.is_some_and(|next| Some(next) <= part.after);
        if part.after > catching_up.cursor && !goes_back {
            // One before it was lost, and so nothing that follows unasked can be taken.
            if !part.more {
                self.ask_for_part();
            }
            return;
        }
        // One that overlaps those before is as good as one that follows them: the same question twice, with writes in between,
        // is answered by parts that end elsewhere.
        if part.next.is_some_and(|next| Some(next) <= catching_up.cursor) && !goes_back {
            // It came twice.
            return;
        }
        if !catching_up.note(&part, bytes_asked) {
            self.leave_catch_up(from, now);
            return;
        }
        catching_up.heard_millis = now.monotonic_millis;
        catching_up.deadline_millis = now.monotonic_millis + PART_PATIENCE_MILLIS;
        self.counts.taken += part.entries.len() as u64;
        self.outputs.push(Output::ApplyCatchUp(part.entries));
        if part.next.is_some() {
            if !part.more {
                self.ask_for_part();
            }
            return;
        }
        (catching_up.stage, catching_up.deadline_millis) = (Stage::Applying, u64::MAX);
        let heads = catching_up.claims.iter().flat_map(|it| it.heads.iter().copied()).collect();
        let (collected, floors) = (part.collected, part.floors);
        self.outputs.push(Output::FinishCatchUp { heads, collected, floors });
    }

    /// The engine has made all of it its own.
    pub(super) fn taken_over(&mut self, now: Now) {
        let is_done = |it: &mut CatchingUp| it.stage == Stage::Applying;
        let Some(CatchingUp { from, claims, .. }) = self.catching_up.take_if(is_done) else {
            return;
        };
        let Some(Claims { heads, complete, .. }) = claims else { return };
        self.counts.catch_ups += 1;
        for head in &heads {
            self.heads.note_applied(head.origin, head.seq);
            self.pulls.satisfy(head.origin, &self.heads);
        }
        if self.had_data {
            // Some of it may be gone elsewhere, and nobody knows any more that it was ever there.
            self.begin_merge(from, complete, now);
        } else {
            self.outputs.push(Output::Complete(complete));
        }
    }

    /// The engine could not take what has come: it makes no sense, or there is no room for it.
    pub(super) fn not_taken_over(&mut self, is_unsound: bool, now: Now) {
        let Some(CatchingUp { from, .. }) = self.catching_up else { return };
        if is_unsound {
            self.leave_catch_up(from, now);
        } else {
            self.rest_before_catch_up(now);
        }
    }

    /// Asks somebody else, from the start. Answers whether there is anybody.
    fn catch_up_with_another(&mut self, now: Now) -> bool {
        let Some(CatchingUp { from, .. }) = self.catching_up else { return false };
        let near = self.somebody().filter(|it| *it != from);
        let others: Vec<MemberId> = self.live.iter().copied().filter(|it| *it != from).collect();
        let Some(other) = near.or_else(|| self.dice.pick(&others).copied()) else { return false };
        self.catching_up = None;
        self.outputs.push(Output::AbandonCatchUp);
        self.begin_catch_up(other, now);
        true
    }

    /// The peer is broken: asks somebody else; while there is nobody, the same, a while later.
    fn leave_catch_up(&mut self, from: MemberId, now: Now) {
        self.misanswered(from);
        if !self.catch_up_with_another(now) {
            self.rest_before_catch_up(now);
        }
    }

    fn rest_before_catch_up(&mut self, now: Now) {
        let Some(CatchingUp { from, .. }) = self.catching_up else { return };
        let deadline_millis = now.monotonic_millis + CATCH_UP_PATIENCE_MILLIS;
        let stage = Stage::Resting;
        self.catching_up =
            Some(CatchingUp { stage, deadline_millis, ..CatchingUp::begin(from, now) });
        self.outputs.push(Output::AbandonCatchUp);
    }

    /// Asks again when nothing has come for too long; from the start, of somebody else, if the peer seems dead.
    pub(super) fn catch_up_timeout(&mut self, now: Now) {
        let Some(catching_up) = &mut self.catching_up else { return };
        if catching_up.deadline_millis > now.monotonic_millis {
            return;
        }
        if catching_up.stage == Stage::Resting {
            catching_up.heard_millis = now.monotonic_millis;
        }
        catching_up.stage = Stage::Asking;
        let is_first = catching_up.claims.is_none();
        let patience = if is_first { FIRST_PART_PATIENCE_MILLIS } else { PART_PATIENCE_MILLIS };
        catching_up.deadline_millis = now.monotonic_millis + patience;
        let is_silent = now.monotonic_millis >= catching_up.heard_millis + SILENCE_MAX_MILLIS;
        let is_live = self.live.binary_search(&catching_up.from).is_ok();
        if (is_silent || !is_live) && self.catch_up_with_another(now) {
            return;
        }
        self.ask_for_part();
    }
}
