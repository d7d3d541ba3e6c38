//! A member that finds itself removed.
//!
//! It may learn that by the entry that removes it, from a peer that does not talk to it any more, or at its next start. In any
//! case it puts that on record and ends. The next one that opens the store is somebody else, who may join again: see
//! `engine/former.rs`.

use super::{Effect, Replica};
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
}

impl Removal {
    pub(super) fn heard(&mut self, now: Now) {
        let before = self.heard_millis.replace(now.monotonic_millis);
        if before.is_some_and(|before| !is_recent(before, now)) {
            self.back_millis = Some(now.monotonic_millis);
        }
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

    /// Everything so far is on disk.
    pub(super) fn tell_removal(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Stage::Open { was_live } = cluster.removal.stage {
            cluster.removal.stage = Stage::Told;
            self.effects.push(Effect::Removed { was_live });
        }
    }
}
