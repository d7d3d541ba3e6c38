//! How far this member holds the entries of each origin, and what of that has changed since some moment.
//!
//! Heads are kept in the order in which they last moved. A peer that says up to which move it has been told gets the
//! heads that have moved since, at a cost of those and no others (as CouchDB's `_changes`). A sum over all heads, the
//! root, tells two members at a glance that they hold the same; sums over parts of it find out where they do not.
//!
//! A run that has ended, and that everybody holds to its end, is *retired*: nobody needs to be told of it, but for members
//! that are not complete up to then, which need more than heads anyhow. It still counts in the sums. So what members tell
//! each other does not grow with each start of one of them.
//!
//! Invariants
//! * A head never goes back, and what is applied is never behind it.
//! * `root` and `buckets` are the sums over all heads above zero.

use std::collections::BTreeMap;

use super::message::Head;
use crate::types::Origin;

/// Parts of the heads that are compared when the roots differ.
pub const BUCKETS: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Durable up to here.
    seq: u64,
    /// Given to the engine up to here.
    applied: u64,
    /// The number of its last move; zero if it never moved.
    arrival: u64,
    /// Whether it is left out of what is told.
    is_retired: bool,
}

/// The heads of a member.
#[derive(Clone, Debug)]
pub struct Heads {
    slots: BTreeMap<Origin, Slot>,
    /// Those that are told.
    by_arrival: BTreeMap<u64, Origin>,
    /// The last move of those that are not.
    retired_arrival: u64,
    arrivals: u64,
    buckets: [u64; BUCKETS],
    root: u64,
}

impl Heads {
    /// No heads yet.
    #[expect(clippy::new_without_default, reason = "an empty digest is worth a name")]
    pub fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
            by_arrival: BTreeMap::new(),
            retired_arrival: 0,
            arrivals: 0,
            buckets: [0; BUCKETS],
            root: 0,
        }
    }

    /// How far an origin's entries are held, durably.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.slots.get(&origin).map_or(0, |slot| slot.seq)
    }

    /// How far an origin's entries have been given to the engine.
    pub fn applied(&self, origin: Origin) -> u64 {
        self.slots.get(&origin).map_or(0, |slot| slot.applied)
    }

    /// How often heads have moved.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// A hash of all heads.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Sums over parts of the heads.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// How many origins are told of.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether there are none")]
    pub fn len(&self) -> usize {
        self.by_arrival.len()
    }

    /// The heads that are told, oldest move first.
    pub fn told(&self) -> impl Iterator<Item = Head> {
        self.by_arrival.values().map(|origin| Head { origin: *origin, seq: self.seq(*origin) })
    }

    /// Everybody holds this origin to its end: leaves it out of what is told. Should its head move, it comes back.
    pub fn retire(&mut self, origin: Origin) {
        let Some(slot) = self.slots.get_mut(&origin).filter(|slot| slot.arrival > 0) else {
            return;
        };
        slot.is_retired = true;
        self.by_arrival.remove(&slot.arrival);
        self.retired_arrival = self.retired_arrival.max(slot.arrival);
    }

    /// Whether something retired has moved since so many arrivals: then what is told is not all.
    pub fn leaves_out_since(&self, arrivals: u64) -> bool {
        self.retired_arrival > arrivals
    }

    /// All heads, by origin.
    pub fn all(&self) -> Vec<Head> {
        let held = self.slots.iter().filter(|(_, slot)| slot.seq > 0);
        held.map(|(origin, slot)| Head { origin: *origin, seq: slot.seq }).collect()
    }

    /// Takes note of entries that are on their way to the disk.
    pub fn note_applied(&mut self, origin: Origin, through: u64) {
        let slot = self.slots.entry(origin).or_default();
        slot.applied = slot.applied.max(through);
    }

    /// What is on its way to the disk.
    pub fn on_their_way(&self) -> impl Iterator<Item = (Origin, u64)> {
        let slots = self.slots.iter().filter(|(_, slot)| slot.applied > slot.seq);
        slots.map(|(origin, slot)| (*origin, slot.applied))
    }

    /// What was on its way to the disk does not get there.
    pub fn forget_applied(&mut self, origin: Origin) {
        if let Some(slot) = self.slots.get_mut(&origin) {
            slot.applied = slot.seq;
        }
    }

    /// Moves a head, whose entries are durable now. Answers whether it was behind.
    pub fn advance(&mut self, head: Head) -> bool {
        let slot = self.slots.entry(head.origin).or_default();
        if head.seq <= slot.seq {
            return false;
        }
        let before = std::mem::replace(&mut slot.seq, head.seq);
        slot.applied = slot.applied.max(head.seq);
        self.arrivals += 1;
        if slot.arrival > 0 {
            self.by_arrival.remove(&slot.arrival);
        }
        slot.arrival = self.arrivals;
        slot.is_retired = false;
        self.by_arrival.insert(self.arrivals, head.origin);
        let moved = hash(head).wrapping_sub(hash(Head { seq: before, ..head }));
        self.root = self.root.wrapping_add(moved);
        let bucket = &mut self.buckets[bucket(head.origin)];
        *bucket = bucket.wrapping_add(moved);
        true
    }

    /// The heads that have moved since so many arrivals, oldest move first, `max` at most, and up to which arrival they are
    /// all of them.
    pub fn moved_since(&self, arrivals: u64, max: usize) -> (Vec<Head>, u64) {
        let mut moved = Vec::new();
        for (arrival, origin) in self.by_arrival.range(arrivals.saturating_add(1)..) {
            if moved.len() == max {
                return (moved, arrival - 1);
            }
            moved.push(Head { origin: *origin, seq: self.seq(*origin) });
        }
        (moved, self.arrivals)
    }

    /// The buckets in which these sums are not ours, one bit each.
    pub fn differing(&self, sums: &[u64]) -> u64 {
        let pairs = self.buckets.iter().zip(sums).enumerate();
        pairs.fold(0, |mask, (i, (ours, theirs))| mask | u64::from(ours != theirs) << i)
    }

    /// The heads in some buckets, but for those that are retired.
    pub fn in_buckets(&self, mask: u64) -> Vec<Head> {
        let told = self.slots.iter().filter(|(_, slot)| slot.seq > 0 && !slot.is_retired);
        let heads = told.map(|(origin, slot)| Head { origin: *origin, seq: slot.seq });
        heads.filter(|head| mask >> bucket(head.origin) & 1 == 1).collect()
    }
}

/// The part of the heads that an origin belongs to.
fn bucket(origin: Origin) -> usize {
    let bits = mix(mix(origin.member.0) ^ origin.run) >> (u64::BITS - BUCKETS.ilog2());
    usize::try_from(bits).expect("less than the number of buckets")
}

/// A head as a number that says nothing else. No head at all is zero.
fn hash(head: Head) -> u64 {
    match head.seq {
        0 => 0,
        seq => mix(mix(mix(head.origin.member.0) ^ head.origin.run) ^ seq),
    }
}

/// Spreads the bits of a number over all others (the finalizer of `SplitMix64`). Part of what members compare: it must
/// never change.
pub(crate) fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::MemberId;

    fn head(member: u64, seq: u64) -> Head {
        Head { origin: Origin { member: MemberId(member), run: 1 }, seq }
    }

    fn heads(moves: &[(u64, u64)]) -> Heads {
        let mut heads = Heads::new();
        for (member, seq) in moves {
            heads.advance(head(*member, *seq));
        }
        heads
    }

    #[test]
    fn each_head_is_told_once_in_the_order_of_its_last_move() {
        let mut heads = heads(&[(1, 5), (2, 7), (1, 6)]);
        assert_eq!(heads.moved_since(0, 9), (vec![head(2, 7), head(1, 6)], 3));
        assert_eq!(heads.moved_since(2, 9), (vec![head(1, 6)], 3));
        assert_eq!(heads.moved_since(0, 1), (vec![head(2, 7)], 2));
        assert_eq!(heads.moved_since(3, 9), (vec![], 3));
        assert!(!heads.advance(head(1, 6)), "no move");
        assert_eq!(heads.arrivals(), 3);
    }

    #[test]
    fn who_is_retired_counts_but_is_not_told_of() {
        let mut heads = heads(&[(1, 5), (2, 7), (3, 1)]);
        let (root, buckets) = (heads.root(), *heads.buckets());
        heads.retire(head(2, 0).origin);
        heads.retire(head(9, 0).origin);
        assert_eq!(
            (heads.root(), *heads.buckets(), heads.seq(head(2, 0).origin)),
            (root, buckets, 7)
        );
        assert_eq!(heads.moved_since(0, 9), (vec![head(1, 5), head(3, 1)], 3));
        assert_eq!(heads.in_buckets(u64::MAX), [head(1, 5), head(3, 1)]);
        assert_eq!((heads.len(), heads.told().count(), heads.all().len()), (2, 2, 3));
        assert!(heads.leaves_out_since(1) && !heads.leaves_out_since(2));
        heads.advance(head(2, 8));
        assert_eq!(heads.moved_since(0, 9), (vec![head(1, 5), head(3, 1), head(2, 8)], 4));
        assert_eq!(heads.len(), 3);
    }

    #[test]
    fn what_is_applied_is_not_behind_the_head() {
        let mut heads = heads(&[(1, 5)]);
        assert_eq!(heads.applied(head(1, 0).origin), 5);
        heads.note_applied(head(1, 0).origin, 9);
        assert_eq!((heads.seq(head(1, 0).origin), heads.applied(head(1, 0).origin)), (5, 9));
    }

    proptest! {
        #[test]
        fn sums_say_where_two_members_differ(
            ours in prop::collection::vec((0_u64..200, 1_u64..9), 0..60),
            theirs in prop::collection::vec((0_u64..200, 1_u64..9), 0..60),
        ) {
            let (ours, theirs) = (heads(&ours), heads(&theirs));
            let mask = ours.differing(theirs.buckets());
            prop_assert_eq!(mask == 0, ours.all() == theirs.all());
            prop_assert_eq!(ours.root() == theirs.root(), mask == 0);
            let (a, b) = (ours.in_buckets(!mask), theirs.in_buckets(!mask));
            prop_assert_eq!(a, b, "equal sums, equal heads");
        }

        #[test]
        fn a_peer_that_is_told_of_all_moves_has_all_heads(
            moves in prop::collection::vec((0_u64..20, 1_u64..99), 0..80),
            max in 1_usize..9,
        ) {
            let mut ours = Heads::new();
            let (mut theirs, mut told) = (Heads::new(), 0);
            for (member, seq) in moves {
                ours.advance(head(member, seq));
                let (moved, until) = ours.moved_since(told, max);
                for head in moved {
                    theirs.advance(head);
                }
                told = until;
            }
            while told < ours.arrivals() {
                let (moved, until) = ours.moved_since(told, max);
                for head in moved {
                    theirs.advance(head);
                }
                told = until;
            }
            prop_assert_eq!(ours.all(), theirs.all());
            prop_assert_eq!(ours.root(), theirs.root());
        }
    }
}
