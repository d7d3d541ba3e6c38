//! What may leave the log for good.
//!
//! A store that never had a peer keeps nothing for anybody. One that has peers lets go of an op only when everybody has
//! it: when its entry is not younger than the *settled* time, up to which all members, dead or alive, hold everything.
//! Tombstones, and removals of records, wait longer:
//!
//! * Rows leave in no particular order, and the process may die in the middle. So what hides others goes only after a
//!   former sweep, complete and on record, has removed all that it hides.
//! * A removal of a record wins over whoever writes the record without knowing of it. Such a put is older than the
//!   moment at which its author got to know of the removal. When the settled time has passed the removal, all have got to
//!   know of it, and no clock that we have heard of since then was behind that moment; when it has passed our clock of then,
//!   too, everybody has all such puts. Only then nothing can come any more that the removal must stop.

use crate::storage::schema::Place;
use crate::time::Timestamp;
use crate::types::Revision;

/// What a store knows about what everybody has. Revisions and places here are those of the log, under the tag 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Collection {
    peered: bool,
    settled: Timestamp,
    /// As it was written last.
    recorded: Timestamp,
    collected: Timestamp,
    /// The compaction and the settled time that the last complete sweep has worked with.
    swept: (Revision, Timestamp),
    gc_age_millis: u64,
    /// Nothing can come any more that removals older than this would have to stop.
    confirmed: Timestamp,
    /// This will be confirmed once that is settled.
    confirming: (Timestamp, Timestamp),
}

/// What one sweep may remove.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    settled: Timestamp,
    tombstones: Timestamp,
    removals: Timestamp,
    /// What a former sweep has worked with: it has removed everything below both that was hidden.
    below: Revision,
    swept: Timestamp,
}

/// Later than everything.
const ALWAYS: Timestamp = Timestamp(u64::MAX);

impl Collection {
    pub(super) fn new(swept: (Revision, Timestamp), gc_age_millis: u64) -> Self {
        Self {
            peered: false,
            settled: Timestamp::default(),
            recorded: Timestamp::default(),
            collected: Timestamp::default(),
            swept,
            gc_age_millis,
            confirmed: Timestamp::default(),
            confirming: (Timestamp::default(), ALWAYS),
        }
    }

    /// Takes over what a store with peers has on record.
    pub(super) fn resume(&mut self, peered: Timestamp, settled: Timestamp, collected: Timestamp) {
        self.peered = true;
        self.collected = collected.max(peered);
        self.settled = settled.max(self.collected);
        self.recorded = settled;
        // Before there were peers, nobody wrote anything without knowing of everything.
        self.confirmed = peered;
    }

    pub(super) fn is_peered(&self) -> bool {
        self.peered
    }

    pub(super) fn settled(&self) -> Timestamp {
        self.settled
    }

    pub(super) fn collected(&self) -> Timestamp {
        self.collected
    }

    pub(super) fn swept(&self) -> (Revision, Timestamp) {
        self.swept
    }

    /// Something was collected elsewhere. Answers whether that is news.
    pub(super) fn raise_collected(&mut self, collected: Timestamp) -> bool {
        let is_news = collected > self.collected;
        self.collected = self.collected.max(collected);
        is_news
    }

    /// Moves the settled time on. `clock` is later than all that this member has heard of.
    pub(super) fn settle(&mut self, settled: Timestamp, clock: Timestamp) {
        if !self.peered || settled <= self.settled {
            return;
        }
        self.settled = settled;
        let (confirming, once_settled) = self.confirming;
        if settled >= once_settled {
            self.confirmed = self.confirmed.max(confirming);
            self.confirming = (settled, clock);
        } else if once_settled == ALWAYS {
            self.confirming = (settled, clock);
        }
    }

    /// The settled time, if it has to be written again.
    pub(super) fn take_unrecorded(&mut self) -> Option<Timestamp> {
        if !self.peered || self.recorded >= self.settled {
            return None;
        }
        self.recorded = self.settled;
        Some(self.settled)
    }

    /// Starts a sweep: what it works with counts as collected.
    pub(super) fn begin_sweep(&mut self, clock: Timestamp) -> Rules {
        let (below, swept) = self.swept;
        if !self.peered {
            return Rules {
                settled: ALWAYS,
                tombstones: ALWAYS,
                removals: ALWAYS,
                below,
                swept: ALWAYS,
            };
        }
        self.collected = self.collected.max(self.settled);
        let old = clock.max(self.settled).millis().saturating_sub(self.gc_age_millis);
        let old = Timestamp::from_millis(old).min(self.settled);
        Rules {
            settled: self.settled,
            tombstones: old,
            removals: old.min(self.confirmed),
            below,
            swept,
        }
    }

    /// Takes note of a sweep that is complete.
    pub(super) fn end_sweep(&mut self, floor: Revision, settled: Timestamp) {
        let (below, before) = self.swept;
        self.swept = (below.max(floor), before.max(settled));
    }
}

impl Rules {
    /// Whether a row may go that says nothing any more.
    pub(super) fn allow(&self, time: Timestamp) -> bool {
        time <= self.settled
    }

    /// Whether a tombstone may go that no reader can see.
    pub(super) fn allow_tombstone(&self, place: Place, time: Timestamp) -> bool {
        time <= self.tombstones && place.revision < self.below && time <= self.swept
    }

    /// Whether a tombstone may go that has never hidden anything that is visible in the log.
    pub(super) fn allow_hidden_tombstone(&self, time: Timestamp) -> bool {
        time <= self.tombstones
    }

    /// Whether the removal of a record may go.
    pub(super) fn allow_removal(
        &self,
        place: Place,
        time: Timestamp,
        newest_put: Timestamp,
    ) -> bool {
        time < self.removals && place.revision < self.below && newest_put.max(time) <= self.swept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: u64 = 10;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn peered(settled: u64) -> Collection {
        let mut collection = Collection::new((Revision(9), at(1000)), AGE);
        collection.resume(at(0), at(settled), at(0));
        collection
    }

    #[test]
    fn alone_everything_may_go() {
        let mut alone = Collection::new((Revision(9), at(1)), AGE);
        alone.settle(at(50), at(50));
        assert_eq!((alone.settled(), alone.take_unrecorded()), (at(0), None));
        let rules = alone.begin_sweep(at(0));
        let place = Place::first_of(Revision(8));
        assert!(rules.allow(at(u64::MAX >> 16)));
        assert!(rules.allow_tombstone(place, at(99)) && rules.allow_removal(place, at(99), at(99)));
        assert!(!rules.allow_tombstone(Place::first_of(Revision(9)), at(99)));
    }

    #[test]
    fn tombstones_wait_for_all_and_for_their_age() {
        let mut collection = peered(100);
        let rules = collection.begin_sweep(at(105));
        assert_eq!(collection.collected(), at(100));
        let place = Place::first_of(Revision(8));
        assert!(rules.allow(at(100)) && !rules.allow(at(101)));
        assert!(rules.allow_tombstone(place, at(95)) && !rules.allow_tombstone(place, at(96)));
        let rules = collection.begin_sweep(at(500));
        assert!(rules.allow_tombstone(place, at(100)) && !rules.allow_tombstone(place, at(101)));
        collection.swept = (Revision(9), at(50));
        let rules = collection.begin_sweep(at(500));
        assert!(rules.allow_tombstone(place, at(50)) && !rules.allow_tombstone(place, at(51)));
    }

    #[test]
    fn removals_wait_until_nobody_can_have_missed_them() {
        let mut collection = peered(0);
        let place = Place::first_of(Revision(8));
        let may_go = |collection: &mut Collection| {
            collection.begin_sweep(at(900)).allow_removal(place, at(100), at(90))
        };
        collection.settle(at(150), at(200));
        assert!(!may_go(&mut collection), "a put of up to 200 may be on its way");
        collection.settle(at(190), at(300));
        assert!(!may_go(&mut collection));
        collection.settle(at(200), at(300));
        assert!(may_go(&mut collection));
        assert!(!collection.begin_sweep(at(900)).allow_removal(place, at(150), at(90)));
    }

    #[test]
    fn the_settled_time_is_written_once() {
        let mut collection = peered(5);
        assert_eq!(collection.take_unrecorded(), None);
        collection.settle(at(7), at(9));
        collection.settle(at(6), at(9));
        assert_eq!(collection.take_unrecorded(), Some(at(7)));
        assert_eq!(collection.take_unrecorded(), None);
    }
}
