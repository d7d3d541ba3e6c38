//! What was given up for space, before everybody had it.
//!
//! A member that is away holds back what may leave the log, for as long as it likes. When that has become too much, writes
//! that were replaced go earlier: those that all the others hold. Who was away cannot be given the entries around them
//! any more, since there are holes in them, and takes the state as a whole. Tombstones stay.
//!
//! Invariants
//! * A floor is on disk before anything below it is removed.
//! * Whoever is given entries by the log holds that origin up to its floor already.

use std::collections::BTreeMap;

use crate::storage::schema::OriginIndex;
use crate::time::Timestamp;

/// Up to where writes of an origin that were replaced may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    /// Up to this entry.
    pub(super) seq: u64,
    /// None of those is later than this.
    pub(super) time: Timestamp,
}

/// The floors of those origins that have any.
#[derive(Clone, Debug, Default)]
pub(super) struct Floors(BTreeMap<OriginIndex, Floor>);

impl Floors {
    /// Takes over what is on record.
    pub(super) fn new(floors: impl IntoIterator<Item = (OriginIndex, Floor)>) -> Self {
        Self(floors.into_iter().collect())
    }

    /// Zero if nothing of it was given up.
    pub(super) fn seq(&self, origin: OriginIndex) -> u64 {
        self.0.get(&origin).map_or(0, |floor| floor.seq)
    }

    /// In the order of the origins' numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = (OriginIndex, Floor)> {
        self.0.iter().map(|(origin, floor)| (*origin, *floor))
    }

    /// Raises a floor. Answers it if it was lower.
    pub(super) fn raise(&mut self, origin: OriginIndex, floor: Floor) -> Option<Floor> {
        let known = self.0.entry(origin).or_insert(Floor { seq: 0, time: floor.time });
        if floor.seq <= known.seq {
            return None;
        }
        *known = Floor { seq: floor.seq, time: known.time.max(floor.time) };
        Some(*known)
    }

    /// Forgets the floors of what everybody has by now; answers whose they were.
    pub(super) fn settle(&mut self, collected: Timestamp) -> Vec<OriginIndex> {
        self.0
            .extract_if(.., |_, floor| floor.time <= collected)
            .map(|(origin, _)| origin)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: OriginIndex = OriginIndex(3);

    fn floor(seq: u64, time: u64) -> Floor {
        Floor { seq, time: Timestamp(time) }
    }

    #[test]
    fn floors_rise_until_everybody_is_above_them() {
        let mut floors = Floors::default();
        assert_eq!(floors.raise(ORIGIN, floor(5, 10)), Some(floor(5, 10)));
        assert_eq!(floors.raise(ORIGIN, floor(5, 11)), None);
        assert_eq!(floors.raise(ORIGIN, floor(7, 9)), Some(floor(7, 10)), "the fifth is that late");
        assert_eq!((floors.seq(ORIGIN), floors.seq(OriginIndex(4))), (7, 0));
        assert_eq!(floors.settle(Timestamp(9)), []);
        assert_eq!(floors.settle(Timestamp(10)), [ORIGIN]);
        assert_eq!(floors.seq(ORIGIN), 0);
    }
}
