//! Graves: deletes that count although the index does not know them.
//!
//! A delete names the put that it saw. That put, and those before it, may still be on their way when the tombstone has
//! left the index after a compaction, or if the key was not there when the delete came. As long as that can be, the
//! greatest `seen` of the key's deletes is here. Only entries of other members ask for it: a put of our own is later than
//! everything we know.

use std::collections::BTreeMap;

use super::origins::Origins;
use crate::storage::schema::{Place, RowStamp};
use crate::time::Timestamp;

/// The latest delete of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grave {
    /// Puts up to this one are dead.
    pub(super) seen: RowStamp,
    /// When it was deleted.
    pub(super) time: Timestamp,
    /// The row that says so.
    pub(super) place: Place,
    /// Whether that row is hidden: then it hides nothing that is visible in the log.
    pub(super) hidden: bool,
}

/// Graves by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Graves {
    graves: BTreeMap<Box<[u8]>, Grave>,
}

impl Graves {
    pub(super) fn get(&self, key: &[u8]) -> Option<&Grave> {
        self.graves.get(key)
    }

    /// Adds a delete, unless a later one is known.
    pub(super) fn bury(&mut self, key: &[u8], grave: Grave, origins: &Origins) {
        let is_known = self
            .graves
            .get(key)
            .is_some_and(|known| origins.compare(known.seen, grave.seen).is_ge());
        if !is_known {
            self.graves.insert(key.into(), grave);
        }
    }

    /// The key lives again, by a put that is later.
    pub(super) fn exhume(&mut self, key: &[u8]) {
        self.graves.remove(key);
    }

    /// Shows all places under another tag.
    pub(super) fn retag(&mut self, tag: u16) {
        self.graves.values_mut().for_each(|grave| grave.place = grave.place.with_tag(tag));
    }

    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&Grave) -> bool) {
        self.graves.retain(|_, grave| is_kept(grave));
    }

    pub(super) fn len(&self) -> usize {
        self.graves.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.graves.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::schema::OriginIndex;
    use crate::types::{MemberId, Origin, Revision};

    /// Of equal times the origins decide, by their names and not by their numbers.
    #[test]
    fn the_latest_delete_counts() {
        let mut origins = Origins::default();
        origins.insert(OriginIndex(0), Origin { member: MemberId(9), run: 1 });
        origins.insert(OriginIndex(1), Origin { member: MemberId(3), run: 1 });
        let grave = |time, origin| Grave {
            seen: RowStamp { time: Timestamp(time), origin: OriginIndex(origin) },
            time: Timestamp(99),
            place: Place::first_of(Revision(2)),
            hidden: true,
        };
        let mut graves = Graves::default();
        for (time, origin, latest) in
            [(5, 1, (5, 1)), (5, 0, (5, 0)), (5, 1, (5, 0)), (6, 1, (6, 1))]
        {
            graves.bury(b"key", grave(time, origin), &origins);
            assert_eq!(graves.get(b"key"), Some(&grave(latest.0, latest.1)));
        }
        graves.exhume(b"key");
        assert!(graves.is_empty());
    }
}
