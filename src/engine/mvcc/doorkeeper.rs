//! Who may enter a full cache: what was asked for before, not long ago.
//!
//! To take a pair in and put another out costs more than half of what a read from the disk does. Most of what is read
//! once over a large store is not read again before it would be put out, so the first time it is only noted.
//! (The doorkeeper of TinyLFU: Einziger, Friedman, Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017,
//! section 3.4.2; with a table of marks for a Bloom filter, so that old notes give way by themselves.)

use std::sync::atomic::{AtomicU32, Ordering};

use crate::storage::schema::Place;

/// How many places are remembered, about. A power of two; four bytes each.
const MARKS: usize = 1 << 16;
/// 2^64 over the golden ratio: neighbours get marks far from each other.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Remembers the places that were asked for last.
pub(super) struct Doorkeeper {
    marks: Box<[AtomicU32]>,
}

impl Doorkeeper {
    pub(super) fn new() -> Self {
        Self { marks: (0..MARKS).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Whether a place was asked for lately. From now on it was.
    pub(super) fn admits(&self, place: Place) -> bool {
        let (at, mark) = mark(place);
        // Two readers at once may both be turned away, or both let in: either is as good.
        self.marks[at].swap(mark, Ordering::Relaxed) == mark
    }
}

/// Where a place is remembered, and as what.
#[expect(clippy::cast_possible_truncation, reason = "two parts of one hash")]
fn mark(place: Place) -> (usize, u32) {
    let hash = (place.revision.0.rotate_left(20) ^ u64::from(place.n)).wrapping_mul(SPREAD);
    let hash = (hash ^ hash >> 29).wrapping_mul(SPREAD);
    ((hash >> 32) as usize % MARKS, hash as u32 | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    fn places(from: u64, count: usize) -> impl Iterator<Item = Place> {
        (from..).map(|revision| Place { revision: Revision(revision), n: 0 }).take(count)
    }

    #[test]
    fn what_comes_again_soon_is_let_in() {
        let door = Doorkeeper::new();
        let few = MARKS / 16;
        assert_eq!(places(2, few).filter(|place| door.admits(*place)).count(), 0);
        let again = places(2, few).filter(|place| door.admits(*place)).count();
        assert!(again > few * 9 / 10, "{again} of {few}");
    }

    #[test]
    fn a_scan_of_many_is_turned_away_each_time() {
        let door = Doorkeeper::new();
        let many = MARKS * 8;
        for _ in 0..2 {
            let admitted = places(2, many).filter(|place| door.admits(*place)).count();
            assert!(admitted < many / 50, "{admitted} of {many}");
        }
    }
}
