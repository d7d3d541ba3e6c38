//! The origins that this store has heard of. Rows name them by small numbers, members by name.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::storage::schema::{OriginIndex, RowStamp};
use crate::time::Stamp;
use crate::types::{MemberId, Origin};

/// Origins by number and back. Numbers are never given up, since rows name them.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    by_index: BTreeMap<OriginIndex, Origin>,
    by_name: BTreeMap<Origin, OriginIndex>,
}

impl Origins {
    pub(super) fn insert(&mut self, index: OriginIndex, origin: Origin) {
        self.by_index.insert(index, origin);
        self.by_name.insert(origin, index);
    }

    /// The number that the next new origin gets.
    pub(super) fn next(&self) -> OriginIndex {
        OriginIndex(self.by_index.keys().next_back().map_or(0, |last| last.0 + 1))
    }

    pub(super) fn index(&self, origin: Origin) -> Option<OriginIndex> {
        self.by_name.get(&origin).copied()
    }

    pub(super) fn contains(&self, index: OriginIndex) -> bool {
        self.by_index.contains_key(&index)
    }

    /// The origin of a number that is in the store. Every number is checked when it is read.
    pub(super) fn name(&self, index: OriginIndex) -> Origin {
        *self.by_index.get(&index).unwrap_or_else(|| panic!("no origin has the number {}", index.0))
    }

    /// A stamp as everybody understands it.
    pub(super) fn stamp(&self, stamp: RowStamp) -> Stamp {
        Stamp { time: stamp.time, origin: self.name(stamp.origin) }
    }

    /// A stamp as rows store it, of an origin that is known.
    pub(super) fn row_stamp(&self, stamp: Stamp) -> RowStamp {
        let origin = self.index(stamp.origin);
        let origin = origin.unwrap_or_else(|| panic!("{} has no number", stamp.origin));
        RowStamp { time: stamp.time, origin }
    }

    /// Compares as stamps of the whole cluster. Times differ nearly always, so names are hardly ever looked up.
    pub(super) fn compare(&self, a: RowStamp, b: RowStamp) -> Ordering {
        match a.time.cmp(&b.time) {
            Ordering::Equal if a.origin != b.origin => {
                self.name(a.origin).cmp(&self.name(b.origin))
            }
            order => order,
        }
    }

    /// The greater of two stamps.
    pub(super) fn max(&self, a: RowStamp, b: RowStamp) -> RowStamp {
        if self.compare(a, b).is_lt() { b } else { a }
    }

    /// The runs of a member.
    pub(super) fn runs_of(&self, member: MemberId) -> impl Iterator<Item = u64> {
        let (least, greatest) = (Origin { member, run: 0 }, Origin { member, run: u64::MAX });
        self.by_name.range(least..=greatest).map(|(origin, _)| origin.run)
    }
}
