//! Giving up history: the mark is moved at once, memory follows in slices, the disk now and then.
//!
//! * A compaction at revision F forbids reads below F: one small durable row.
//! * [`Reclaim`] takes what it gave up out of the index, a slice at a time between two commits. It visits only keys that
//!   have anything to free. After a crash it starts again from the mark on disk.
//! * A [`Sweep`] rewrites the log without the rows that the index has let go, once that is worth the work. Removing
//!   them one by one would cost three times the CPU and the writes of the puts themselves (`docs/storage-spike.md`).
//!
//! Rows go in no particular order, and the process may die in the middle. An old put that outlives its tombstone
//! would come back at the next start; so a tombstone goes only if a former sweep, complete and on record, has removed
//! everything below it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use super::{Era, Mvcc, row_bytes};
use crate::engine::collection::Rules;
use crate::engine::early::Floors;
use crate::engine::graves::Grave;
use crate::engine::records::RowStanding;
use crate::engine::tags;
use crate::error::{Error, StoreError};
use crate::storage::schema::{Op, Place, Row, RowStamp};
use crate::time::Timestamp;
use crate::types::Revision;

/// Stale keys that one slice looks at when nobody waits: about 50 microseconds under the lock.
pub(in crate::engine) const SLICE_KEYS: usize = 256;
/// The same when commands wait for the batch.
pub(in crate::engine) const SLICE_KEYS_BUSY: usize = 32;
/// A sweep is worth it when it gives back this many bytes, and ...
const SWEEP_BYTES_MIN: u64 = 16 << 20;
/// ... this part of what it has to rewrite.
const SWEEP_FRACTION: u64 = 2;
/// For a client that waits for the space, this part is enough: less is not worth a rewrite of the log.
const SWEEP_WANTED_FRACTION: u64 = 64;

/// The walk that takes what a compaction gave up out of the index.
pub(in crate::engine) struct Reclaim {
    floor: Revision,
    /// The eras that have ended: while someone else holds one, nothing is freed.
    former: Vec<Arc<Era>>,
    from: Option<Box<[u8]>>,
    done: bool,
}

impl Reclaim {
    /// Everything below `floor` is to be freed, once the readers of former eras are done. Takes the place of a walk
    /// that is under way.
    pub(in crate::engine) fn begin(mvcc: &Mvcc, floor: Revision, under_way: Option<Self>) -> Self {
        let mut former = under_way.map_or_else(Vec::new, |reclaim| reclaim.former);
        let mut guarded = mvcc.guarded.write();
        guarded.era_number += 1;
        former.push(std::mem::take(&mut guarded.era));
        drop(guarded);
        Self { floor, former, from: None, done: false }
    }

    /// The compaction that it works for.
    pub(in crate::engine) fn floor(&self) -> Revision {
        self.floor
    }

    /// Whether everything is freed.
    pub(in crate::engine) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether readers that started before the compaction still hold it up.
    pub(in crate::engine) fn is_waiting(&self) -> bool {
        self.former.iter().any(|era| Arc::strong_count(era) > 1)
    }

    /// Frees a slice of so many stale keys. With peers, everything that it frees is older than `clock`, and waits until
    /// that is settled.
    pub(in crate::engine) fn step(&mut self, mvcc: &Mvcc, keys: usize, clock: Option<Timestamp>) {
        if self.done || self.is_waiting() {
            return;
        }
        self.former.clear();
        let mut freed = Vec::new();
        {
            let mut guarded = mvcc.guarded.write();
            let mut buried = Vec::new();
            let wanted = clock.is_some().then_some(&mut buried);
            self.from = guarded.index.prune(self.floor, self.from.take(), keys, &mut freed, wanted);
            let bytes: u64 = freed.iter().map(|version| u64::from(version.size())).sum();
            guarded.live_bytes -= bytes;
            guarded.dead.add(bytes, clock);
            // Before anybody can find that the index has let go.
            for (key, grave) in buried {
                mvcc.bury(&key, grave);
            }
        }
        self.done = self.from.is_none();
        for version in freed {
            mvcc.cache.remove(&version.place());
        }
    }
}

/// A pass over the log that removes the rows nobody can read. It runs beside everything else, a change of the tag too: so its
/// revisions and places are those of the log, under the tag 0.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Every version that a compaction here gave up has left the index.
    floor: Revision,
    /// Nothing younger is removed.
    through: Timestamp,
    rules: Rules,
    /// What may go before everybody has it.
    early: Arc<Early>,
    /// The newest row when it began. That one stays, to mark the end of the log.
    newest: Place,
    /// The bytes that could leave when it began.
    dead_bytes: u64,
}

/// What a sweep may remove for space.
#[derive(Debug)]
struct Early {
    floors: Floors,
    /// What it has removed so.
    bytes: AtomicU64,
}

impl Sweep {
    pub(in crate::engine) fn new(
        mvcc: &Mvcc,
        (floor, through): (Revision, Timestamp),
        rules: Rules,
        newest: Place,
    ) -> Self {
        let dead_bytes = mvcc.guarded.read().dead.ready();
        let early = Early { floors: mvcc.floors.read().clone(), bytes: AtomicU64::new(0) };
        Self { floor, through, rules, early: Arc::new(early), newest, dead_bytes }
    }

    /// Removes the rows. Blocks for as long as it takes to rewrite the log; commits and reads go on.
    pub fn run(&self, mvcc: &Arc<Mvcc>) -> Result<(), StoreError> {
        let (sweep, of) = (self.clone(), Arc::clone(mvcc));
        mvcc.store.sweep(Arc::new(move |key, value| sweep.is_dead(&of, key, value)))
    }

    /// The compaction that it worked for, and the time of the last entry that it could remove.
    pub(in crate::engine) fn floor(&self) -> (Revision, Timestamp) {
        (self.floor, self.through)
    }

    /// What it may remove, or has removed, of what is not settled; `None` for nothing.
    fn early_bytes(&self) -> Option<u64> {
        let has_floors = self.early.floors.all().next().is_some();
        has_floors.then(|| self.early.bytes.load(Atomic::Relaxed))
    }

    /// Whether a row of the log can go.
    pub(in crate::engine) fn is_dead(
        &self,
        mvcc: &Mvcc,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, StoreError> {
        let place = Place::decode(key, 0)?;
        if place >= self.newest {
            return Ok(false);
        }
        if mvcc.is_former(place) {
            return Ok(true);
        }
        let row = Row::decode(place, bytes::Bytes::copy_from_slice(value))?;
        if !self.rules.allow(row.stamp.time) {
            let is_dead = self.is_dead_early(mvcc, place, &row);
            if is_dead {
                self.early.bytes.fetch_add(u64::from(row_bytes(&row.op)), Atomic::Relaxed);
            }
            return Ok(is_dead);
        }
        let (time, rules) = (row.stamp.time, &self.rules);
        // As long as it is locked, all that is in memory has places of one tag.
        let guarded = mvcc.guarded.read();
        let shown = place.with_tag(mvcc.tag());
        Ok(match &row.op {
            Op::Put(kv) => !guarded.holds(&kv.key, shown),
            Op::Delete { key, .. } if row.hidden => {
                rules.allow_hidden_tombstone(time) || !mvcc.is_grave(key, shown)
            }
            Op::Delete { key, .. } => {
                rules.allow_tombstone(place, time) && !guarded.holds(key, shown)
            }
            Op::InternalPut { .. } | Op::InternalDelete { .. } if row.hidden => true,
            op => match mvcc.standing_of_record(op, row.stamp, shown) {
                RowStanding::Current => false,
                RowStanding::Superseded => true,
                RowStanding::Removal { newest_put } => rules.allow_removal(place, time, newest_put),
            },
        })
    }

    /// The same before everybody has it: only what was replaced, by something that stays.
    fn is_dead_early(&self, mvcc: &Mvcc, place: Place, row: &Row) -> bool {
        if row.seq > self.early.floors.seq(row.stamp.origin) {
            return false;
        }
        let guarded = mvcc.guarded.read();
        let shown = place.with_tag(mvcc.tag());
        match &row.op {
            Op::Put(kv) => !guarded.holds(&kv.key, shown),
            Op::Delete { .. } | Op::InternalDelete { .. } => false,
            Op::InternalPut { .. } if row.hidden => true,
            op => mvcc.standing_of_record(op, row.stamp, shown) == RowStanding::Superseded,
        }
    }
}

impl Mvcc {
    /// Checks that a client may compact at `revision`.
    pub(in crate::engine) fn check_compaction(
        &self,
        revision: i64,
        current: Revision,
    ) -> Result<Revision, Error> {
        if tags::is_unknown(revision, current) {
            return Err(Error::Compacted { compacted: current });
        }
        let mark = self.compacted_mark.load(Atomic::Acquire);
        match u64::try_from(revision) {
            Ok(revision) if revision >= mark && revision > current.0 => Err(Error::FutureRevision),
            Ok(revision) if revision >= mark => Ok(Revision(revision)),
            _ => Err(Error::Compacted { compacted: self.compacted() }),
        }
    }

    /// Forbids reads below `revision`, which is durable as the mark now.
    pub(in crate::engine) fn set_compacted(&self, revision: Revision) {
        let before = self.compacted_mark.swap(revision.0 + 1, Atomic::AcqRel);
        assert!(before <= revision.0, "compaction went from {before} to {revision}");
    }

    /// Whether a sweep would give back enough.
    pub(in crate::engine) fn is_worth_sweeping(&self) -> bool {
        let guarded = self.guarded.read();
        guarded.dead.ready() >= SWEEP_BYTES_MIN.max(guarded.live_bytes / SWEEP_FRACTION)
    }

    /// Whether a sweep that somebody waits for would give back anything to speak of.
    pub(in crate::engine) fn can_be_swept(&self) -> bool {
        let guarded = self.guarded.read();
        guarded.dead.ready() > 0
            && guarded.dead.ready() >= guarded.live_bytes / SWEEP_WANTED_FRACTION
    }

    /// Whether a sweep for space, of what waits for members that are away, may give back enough.
    pub(in crate::engine) fn is_worth_sweeping_early(&self) -> bool {
        let guarded = self.guarded.read();
        guarded.dead.waiting_anew() >= SWEEP_BYTES_MIN.max(guarded.live_bytes / SWEEP_FRACTION)
    }

    /// Takes note of a sweep that is complete.
    pub(in crate::engine) fn note_swept(&self, sweep: &Sweep) {
        self.guarded.write().dead.remove(sweep.dead_bytes, sweep.early_bytes());
        let is_gone = |place: Place, time, newest_put| {
            let place = place.with_tag(0);
            place < sweep.newest && sweep.rules.allow_removal(place, time, newest_put)
        };
        self.records
            .write()
            .retain(|stamp, place, newest_put| !is_gone(place, stamp.time, newest_put));
        self.graves.write().retain(|grave| {
            let Grave { time, hidden, .. } = *grave;
            let place = grave.place.with_tag(0);
            let may_go = if hidden {
                sweep.rules.allow_hidden_tombstone(time)
            } else {
                sweep.rules.allow_tombstone(place, time)
            };
            place >= sweep.newest || !may_go
        });
    }

    pub(super) fn standing_of_record(&self, op: &Op, stamp: RowStamp, place: Place) -> RowStanding {
        let stamp = self.origins.read().stamp(stamp);
        self.records.read().standing(op, stamp, place)
    }

    fn is_grave(&self, key: &[u8], place: Place) -> bool {
        self.graves.read().get(key).is_some_and(|grave| grave.place == place)
    }
}
