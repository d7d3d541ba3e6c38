//! A member that finds itself removed.
//!
//! It may learn that by the entry that removes it, from a peer that does not talk to it any more, or at its next start. In any
//! case it puts that on record and ends. The next one that opens the store is somebody else, who may join again: see
//! `engine/former.rs`.

use super::{Effect, Replica};
use crate::time::Now;

/// Whoever was in touch with a peer so recently was not removed for being dead.
const IN_TOUCH_MILLIS: u64 = 5000;

/// What has become of a removal of this member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Removal {
    /// When a peer was heard of last.
    heard_millis: Option<u64>,
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
        self.heard_millis = Some(now.monotonic_millis);
    }

    fn is_in_touch(&self, now: Now) -> bool {
        let since = self.heard_millis.map(|heard| now.monotonic_millis.saturating_sub(heard));
        since.is_some_and(|since| since < IN_TOUCH_MILLIS)
    }
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
