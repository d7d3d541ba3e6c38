//! A member that finds itself removed.
//!
//! It may learn that by the entry that removes it, from a peer that does not talk to it any more, or at its next start. In any
//! case it puts that on record and ends. The next one that opens the store is somebody else, who may join again: see
//! `engine/former.rs`.
//!
//! A member that leaves removes itself, and keeps its data: see `engine/parted.rs`.

use super::{Effect, Replica};
use crate::error::StoreError;
use crate::time::Now;

/// Without so long a silence nobody was removed for being dead.
const IN_TOUCH_MILLIS: u64 = 5000;

/// What has become of a removal of this member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Removal {
    /// When a peer was heard of last.
    heard_millis: Option<u64>,
    /// When the last long silence ended, if there was one.
    back_millis: Option<u64>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Member,
    /// It is in the open batch that it was removed.
    Open { was_live: bool },
    /// Its owner has been told.
    Told,
    /// It has left, in the open batch or before.
    Left,
}

impl Removal {
    pub(super) fn heard(&mut self, now: Now) {
        let before = self.heard_millis.replace(now.monotonic_millis);
        if before.is_some_and(|before| !is_recent(before, now)) {
            self.back_millis = Some(now.monotonic_millis);
        }
    }

    /// Whether this member is none any more, by the will of others or its own.
    pub(super) fn is_over(&self) -> bool {
        self.stage != Stage::Member
    }

    fn is_in_touch(&self, now: Now) -> bool {
        // What was on its way in a cut may arrive after it, before the word of the removal.
        let was_away = self.back_millis.is_some_and(|back| is_recent(back, now));
        self.heard_millis.is_some_and(|heard| is_recent(heard, now)) && !was_away
    }
}

fn is_recent(millis: u64, now: Now) -> bool {
    now.monotonic_millis.saturating_sub(millis) < IN_TOUCH_MILLIS
}

impl Replica {
    /// This member has heard that it was removed: [`Effect::Removed`] follows when that is on disk.
    pub fn note_removal(&mut self, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.removal.stage == Stage::Member {
            let was_live = cluster.removal.is_in_touch(now);
            cluster.removal.stage = Stage::Open { was_live };
            self.writer.mark_removed();
        }
    }

    /// Whether this member has heard that others have removed it: nobody takes anything of it any more.
    pub fn is_removed(&self) -> bool {
        let stage = self.cluster.as_ref().map(|cluster| cluster.removal.stage);
        matches!(stage, Some(Stage::Open { .. } | Stage::Told))
    }

    /// This member leaves its cluster, with the open batch: the others hear of it by the entry whose seq is answered, and whoever
    /// opens the store next is somebody else, alone, with all of its data. `None` if there is nobody to leave, or if it is on
    /// its way out already.
    pub fn leave(&mut self, now: Now) -> Result<Option<u64>, StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(None) };
        if cluster.removal.stage != Stage::Member {
            return Ok(None);
        }
        self.end_doubt_now(now)?;
        let Some(cluster) = &mut self.cluster else { return Ok(None) };
        cluster.removal.stage = Stage::Left;
        let removal = self.removal_of(self.writer.identity().member);
        self.write(removal, now)?;
        self.writer.mark_left();
        Ok(Some(self.writer.seq()))
    }

    /// Everything so far is on disk.
    pub(super) fn tell_removal(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Stage::Open { was_live } = cluster.removal.stage {
            cluster.removal.stage = Stage::Told;
            self.effects.push(Effect::Removed { was_live });
        }
    }
}
