//! The newest entries of all origins, in memory: what peers most often lack.
//!
//! Invariant: of each origin it holds a stretch without gaps, up to its newest entry here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::entry::{Entry, Segment};
use super::message::Head;
use crate::types::Origin;

/// Entries that were committed lately.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    by_origin: BTreeMap<Origin, Stretch>,
    /// Oldest first.
    order: VecDeque<Origin>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Clone, Debug, Default)]
struct Stretch {
    /// The entry before the first.
    after: u64,
    /// Where it ends, whether or not anything is left of the last entries.
    through: u64,
    entries: VecDeque<Arc<Entry>>,
}

impl Recent {
    /// Nothing yet.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { by_origin: BTreeMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the next entry of an origin, whose head was `after` before it.
    pub(super) fn push(&mut self, origin: Origin, after: u64, entry: Arc<Entry>) {
        let stretch = self.by_origin.entry(origin).or_default();
        if stretch.through != after {
            // What is between was not seen here, so what was before is of no use.
            self.bytes -= stretch.entries.iter().map(|entry| entry.bytes()).sum::<usize>();
            stretch.entries.clear();
            stretch.after = after;
        }
        stretch.through = entry.seq;
        self.bytes += entry.bytes();
        stretch.entries.push_back(entry);
        self.order.push_back(origin);
        while self.bytes > self.bytes_max {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(origin) = self.order.pop_front() else { return };
        let Some(stretch) = self.by_origin.get_mut(&origin) else { return };
        if let Some(entry) = stretch.entries.pop_front() {
            stretch.after = entry.seq;
            self.bytes -= entry.bytes();
        }
        if stretch.entries.is_empty() {
            self.by_origin.remove(&origin);
        }
    }

    /// The entries behind a head, as many as fit, at least one. `None` if they are not all here.
    pub(super) fn behind(&self, head: Head, bytes_max: usize) -> Option<Segment> {
        let stretch = self.by_origin.get(&head.origin)?;
        if head.seq < stretch.after || head.seq >= stretch.through {
            return None;
        }
        let first = stretch.entries.partition_point(|entry| entry.seq <= head.seq);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in stretch.entries.range(first..) {
            bytes += entry.bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(Arc::clone(entry));
        }
        let through = entries.last().map_or(stretch.through, |entry| entry.seq);
        Some(Segment { origin: head.origin, after: head.seq, through, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::types::MemberId;

    const ORIGIN: Origin = Origin { member: MemberId(1), run: 1 };

    fn entry(seq: u64) -> Arc<Entry> {
        Arc::new(Entry { seq, time: Timestamp(seq), ops: Vec::new() })
    }

    fn seqs(segment: Option<Segment>) -> Option<(u64, u64, Vec<u64>)> {
        let seqs = |s: &Segment| s.entries.iter().map(|entry| entry.seq).collect();
        segment.map(|segment| (segment.after, segment.through, seqs(&segment)))
    }

    fn behind(recent: &Recent, seq: u64, entries: usize) -> Option<(u64, u64, Vec<u64>)> {
        seqs(recent.behind(Head { origin: ORIGIN, seq }, entries * entry(0).bytes()))
    }

    #[test]
    fn it_has_the_newest_entries_without_gaps() {
        let mut recent = Recent::new(3 * entry(0).bytes());
        for seq in 1..=5 {
            recent.push(ORIGIN, seq - 1, entry(seq));
        }
        assert_eq!(behind(&recent, 2, 9), Some((2, 5, vec![3, 4, 5])));
        assert_eq!(behind(&recent, 3, 1), Some((3, 4, vec![4])));
        assert_eq!(behind(&recent, 1, 9), None, "too long ago");
        assert_eq!(behind(&recent, 5, 9), None, "nothing behind it");
        recent.push(ORIGIN, 8, entry(9));
        assert_eq!(behind(&recent, 5, 9), None, "a gap");
        assert_eq!(behind(&recent, 8, 9), Some((8, 9, vec![9])));
    }
}
