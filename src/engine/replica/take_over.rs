//! Taking over the data of a peer: where its parts go until all of them are here.
//!
//! A member that serves nobody writes them at once. One that serves clients sets them aside, and makes them its own when it
//! has all, a group with each commit, so that clients wait for none of it.

use super::Replica;
use crate::engine::staged::{GroupApplied, Staged, StagedInOrder};
use crate::engine::{Applied, Outcome};
use crate::error::StoreError;
use crate::replication::gossip::Input;
use crate::replication::message::{Head, OriginFloor};
use crate::replication::packed::PackedEntries;
use crate::time::{Now, Timestamp};

/// What a catch-up ends with.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) heads: Vec<Head>,
    pub(super) collected: Timestamp,
    pub(super) floors: Vec<OriginFloor>,
}

/// What has come of the data of a peer and is not written yet.
#[derive(Default)]
pub(super) enum TakeOver {
    /// Nothing.
    #[default]
    None,
    /// Some of it.
    Gathering(Staged),
    /// All of it, of which some may be written.
    Writing(StagedInOrder, End),
}

impl Replica {
    /// A part has come.
    pub(super) fn take_part(
        &mut self,
        entries: &PackedEntries,
        now: Now,
    ) -> Result<(), StoreError> {
        let outcome = if self.is_ready() {
            self.set_aside(entries)?
        } else {
            // Nobody waits for the data of a member that serves nobody yet.
            let applied = self.writer.apply_catch_up_at_leisure(entries, now)?;
            let Applied { outcome, conflicts, .. } = applied;
            self.note_conflicts(conflicts, now);
            outcome
        };
        match outcome {
            Outcome::Taken | Outcome::Gap => Ok(()),
            Outcome::Unsound => self.give_up_take_over(true, now),
            Outcome::NoRoom => self.give_up_take_over(false, now),
        }
    }

    fn set_aside(&mut self, entries: &PackedEntries) -> Result<Outcome, StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(Outcome::Taken) };
        if !matches!(cluster.take_over, TakeOver::Gathering(_)) {
            cluster.take_over = TakeOver::Gathering(self.writer.begin_staging());
        }
        let TakeOver::Gathering(staged) = &mut cluster.take_over else {
            return Ok(Outcome::Taken);
        };
        self.writer.stage(staged, entries)
    }

    /// What has come so far is of no use.
    pub(super) fn abandon_take_over(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.take_over = TakeOver::None;
        }
    }

    fn give_up_take_over(&mut self, is_unsound: bool, now: Now) -> Result<(), StoreError> {
        self.abandon_take_over();
        self.step(Input::NotTakenOver { is_unsound }, now)
    }

    /// All parts have come.
    pub(super) fn finish_take_over(&mut self, end: End, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        match std::mem::take(&mut cluster.take_over) {
            TakeOver::Gathering(staged) => {
                cluster.take_over = TakeOver::Writing(staged.in_order()?, end);
                self.write_taken_over(now)
            }
            TakeOver::None | TakeOver::Writing(..) => self.end_take_over(&end, now),
        }
    }

    /// Writes some of it with the open batch, when all of it is here.
    pub(super) fn write_taken_over(&mut self, now: Now) -> Result<(), StoreError> {
        while let Some(cluster) = &mut self.cluster
            && let TakeOver::Writing(staged, _) = &mut cluster.take_over
        {
            match self.writer.apply_staged(staged, now)? {
                GroupApplied::Taken(conflicts) => {
                    self.note_conflicts(conflicts, now);
                    if self.writer.has_open_batch() {
                        // The rest comes with the next one.
                        return Ok(());
                    }
                }
                GroupApplied::NoRoom => return self.give_up_take_over(false, now),
                GroupApplied::None => {
                    if let TakeOver::Writing(_, end) = std::mem::take(&mut cluster.take_over) {
                        return self.end_take_over(&end, now);
                    }
                }
            }
        }
        Ok(())
    }

    fn end_take_over(&mut self, end: &End, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        self.writer.set_collected(end.collected);
        self.writer.set_floors(&end.floors);
        self.writer.finish_catch_up(&end.heads);
        cluster.applied.extend_from_slice(&end.heads);
        self.step(Input::TakenOver, now)
    }
}
