//! Where in the log the entries of each origin are, roughly: one mark for each few of them.
//!
//! The entries of an origin stand in the log in their order, as a rule. But what came by catching up stands where it
//! came, and entries of lower seqs may follow it. Those are *late*; whoever reads the log must read up to the last of
//! them before it can tell that nothing is missing.
//!
//! Invariants
//! * No row of an entry whose seq is at least that of a mark stands before the mark.
//! * Behind the last late entry the seqs only grow, above all that stand before.

use std::collections::BTreeMap;

use crate::storage::schema::{OriginIndex, Place};

/// Each so many entries of an origin there is a mark.
const ENTRIES_PER_MARK: u64 = 64;
/// Before every row, whatever the tag.
const BEGINNING: Place = Place { revision: crate::types::Revision(0), n: 0 };

#[derive(Clone, Debug)]
struct OriginMarks {
    /// Seqs and places, both in order.
    marks: Vec<(u64, Place)>,
    /// The greatest seq so far.
    last: u64,
    /// Entries since the last mark.
    since: u64,
    /// The greatest seq of all late entries, and the place of the last one.
    late: Option<(u64, Place)>,
}

impl OriginMarks {
    fn new(place: Place, last: u64) -> Self {
        // What is yet to come, of whatever seq, stands behind the first entry.
        Self { marks: vec![(0, place)], last, since: 0, late: None }
    }
}

/// The marks of all origins.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Marks {
    origins: BTreeMap<OriginIndex, OriginMarks>,
    /// Whether all entries are marked: those of a store without peers are not.
    is_kept: bool,
    /// The newest row that is durable.
    pub(super) durable: Option<Place>,
}

impl Marks {
    /// From now on all entries are marked.
    pub(in crate::engine) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Starts with an origin of which entries up to `last` may stand anywhere.
    pub(in crate::engine) fn begin(&mut self, origin: OriginIndex, last: u64) {
        self.origins.insert(origin, OriginMarks::new(BEGINNING, last));
    }

    /// Shows all places under another tag.
    pub(super) fn retag(&mut self, tag: u16) {
        for marks in self.origins.values_mut() {
            let marked = marks.marks.iter_mut().map(|(_, place)| place);
            let places = marked.chain(marks.late.as_mut().map(|(_, place)| place));
            places.for_each(|place| *place = place.with_tag(tag));
        }
        self.durable = self.durable.map(|place| place.with_tag(tag));
    }

    /// Takes note of an entry whose rows begin at `place`, behind all others.
    pub(in crate::engine) fn note(&mut self, origin: OriginIndex, seq: u64, place: Place) {
        let marks = self.origins.entry(origin).or_insert_with(|| OriginMarks::new(place, 0));
        if seq <= marks.last {
            let late = marks.late.map_or(seq, |(late, _)| late.max(seq));
            marks.late = Some((late, place));
            return;
        }
        marks.last = seq;
        marks.since += 1;
        if marks.since > ENTRIES_PER_MARK {
            marks.marks.push((seq, place));
            marks.since = 0;
        }
    }

    /// From where on the log has to be read for the entries of an origin behind `seq`; `None` if it has no entries.
    pub(super) fn start(&self, origin: OriginIndex, seq: u64) -> Option<Place> {
        if !self.is_kept {
            return Some(BEGINNING);
        }
        let marks = &self.origins.get(&origin)?.marks;
        let behind = marks.partition_point(|(mark, _)| *mark <= seq + 1);
        Some(marks[behind.saturating_sub(1)].1)
    }

    /// Up to where it has to be read before it is sure that none of the entries behind `seq` is still to come, out of
    /// order.
    pub(super) fn jumbled_until(&self, origin: OriginIndex, seq: u64) -> Option<Place> {
        let (late, place) = self.origins.get(&origin)?.late?;
        (late > seq).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    const ORIGIN: OriginIndex = OriginIndex(3);

    fn at(revision: u64) -> Place {
        Place::first_of(Revision(revision))
    }

    #[test]
    fn no_entry_stands_before_its_mark() {
        let mut marks = Marks::default();
        assert_eq!(marks.start(ORIGIN, 5), Some(BEGINNING), "nothing is marked");
        marks.keep();
        // In order, but for two.
        let mut seqs: Vec<u64> = (10..400).collect();
        seqs.swap(100, 200);
        for (revision, seq) in (2..).zip(&seqs) {
            marks.note(ORIGIN, *seq, at(revision));
        }
        for wanted in 0..400 {
            let start = marks.start(ORIGIN, wanted).unwrap();
            let missed =
                (2..).zip(&seqs).find(|(revision, seq)| **seq > wanted && at(*revision) < start);
            assert_eq!(missed, None, "behind {wanted}, from {start:?}");
        }
        assert!(marks.start(ORIGIN, 350).unwrap() > at(250), "most of the log is passed over");
        assert_eq!(marks.start(OriginIndex(4), 0), None);
    }

    #[test]
    fn late_entries_are_waited_for() {
        let mut marks = Marks::default();
        for (seq, revision) in [(1, 2), (5, 3), (3, 4), (4, 5), (6, 6)] {
            marks.note(ORIGIN, seq, at(revision));
        }
        for (wanted, until) in [(0, Some(at(5))), (3, Some(at(5))), (4, None), (9, None)] {
            assert_eq!(marks.jumbled_until(ORIGIN, wanted), until, "behind {wanted}");
        }
    }

    #[test]
    fn what_is_older_than_the_marks_may_be_anywhere() {
        let mut marks = Marks::default();
        marks.keep();
        marks.begin(ORIGIN, 7);
        marks.note(ORIGIN, 8, at(9));
        assert_eq!(marks.start(ORIGIN, 3), Some(BEGINNING));
        assert_eq!(marks.jumbled_until(ORIGIN, 3), None);
    }
}
