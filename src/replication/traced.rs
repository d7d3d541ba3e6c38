//! Which of the newest entries are traced, so that whoever gets them from memory can say so in the same trace.
//!
//! Invariant: there are never more than a fixed number; the oldest are forgotten first.

use std::collections::{BTreeMap, VecDeque};

use super::entry::Segment;
use super::message::{TRACES_MAX, TracedEntry};
use crate::types::{Origin, TraceContext};

/// How many are remembered.
const REMEMBERED_MAX: usize = 4096;

/// Entries that are traced. Empty, and without cost, as long as nobody traces anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Traced {
    contexts: BTreeMap<(Origin, u64), TraceContext>,
    /// Oldest first.
    order: VecDeque<(Origin, u64)>,
}

impl Traced {
    /// Remembers one more.
    pub(super) fn note(&mut self, TracedEntry { origin, seq, context }: TracedEntry) {
        if self.contexts.insert((origin, seq), context).is_some() {
            return;
        }
        self.order.push_back((origin, seq));
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.contexts.remove(&oldest);
        }
    }

    /// Those of some segments, as many as a message may have.
    pub(super) fn within(&self, segments: &[Segment]) -> Vec<TracedEntry> {
        if self.contexts.is_empty() {
            return Vec::new();
        }
        let of_segment = |segment: &Segment| {
            let Segment { origin, after, through, .. } = *segment;
            let rows = self.contexts.range((origin, after + 1)..=(origin, through));
            rows.map(move |((origin, seq), context)| TracedEntry {
                origin: *origin,
                seq: *seq,
                context: *context,
            })
        };
        segments.iter().flat_map(of_segment).take(TRACES_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    fn entry(member: u64, seq: u64) -> TracedEntry {
        let context = TraceContext { trace: [1; 16], span: seq.to_be_bytes(), flags: 1 };
        TracedEntry { origin: Origin { member: MemberId(member), run: 1 }, seq, context }
    }

    fn segment(member: u64, after: u64, through: u64) -> Segment {
        let origin = Origin { member: MemberId(member), run: 1 };
        Segment { origin, after, through, entries: Vec::new() }
    }

    #[test]
    fn a_segment_has_its_own() {
        let mut traced = Traced::default();
        assert_eq!(traced.within(&[segment(1, 0, 9)]), []);
        for (member, seq) in [(1, 3), (1, 5), (2, 4), (1, 3)] {
            traced.note(entry(member, seq));
        }
        let both = [segment(2, 0, 9), segment(1, 3, 5)];
        assert_eq!(traced.within(&both), [entry(2, 4), entry(1, 5)]);
        assert_eq!(traced.within(&[segment(1, 2, 4)]), [entry(1, 3)]);
        assert_eq!(traced.within(&[segment(3, 0, 9)]), []);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut traced = Traced::default();
        let last = REMEMBERED_MAX as u64 + 2;
        for seq in 1..=last {
            traced.note(entry(1, seq));
        }
        assert_eq!(traced.contexts.len(), REMEMBERED_MAX);
        assert_eq!(traced.within(&[segment(1, 0, 3)]), [entry(1, 3)]);
        assert_eq!(traced.within(&[segment(1, 0, last)]).len(), TRACES_MAX);
    }
}
