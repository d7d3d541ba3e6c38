//! What the writer knows of other members, and what it tells them.
//!
//! Invariants
//! * A head that is told covers durable rows only, and never goes back.
//! * What has been committed is handed out once, in the order of the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::is_head;
use super::directory::Standing;
use super::early::Floor;
use super::entries::entry_op;
use super::records::{self, RecordChange};
use super::restore::TIME_MAX;
use super::{Failure, Writer};
use crate::replication::entry::Entry;
use crate::replication::message::{Head, OriginFloor};
use crate::storage::schema::{Meta, OriginIndex, Place, Table};
use crate::time::{Now, Timestamp};
use crate::types::{ClusterId, Origin};

/// How far the entries of all origins are here, and what is new since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Replicated {
    /// Heads that are durable; that of the own run, too.
    pub(super) heads: BTreeMap<OriginIndex, u64>,
    /// Heads that the open batch moves.
    pub(super) moved: BTreeMap<OriginIndex, u64>,
    /// Whether anybody wants to hear of entries.
    replicating: bool,
    /// The entries of the open batch.
    pub(super) open: Vec<(Origin, Arc<Entry>)>,
    committed: Vec<(Origin, Arc<Entry>)>,
    /// The time of the last promise.
    promised: Timestamp,
    /// Up to when everything is here that anyone wrote.
    complete: Timestamp,
    /// The changes of records in the open batch.
    pub(super) open_changes: Vec<RecordChange>,
    changes: Vec<RecordChange>,
    /// What was here before the store joined others: up to where, and behind where that is to be looked at. Under the tag 0.
    pub(super) strays: Option<(Place, Option<Place>)>,
}

impl Replicated {
    pub(super) fn new(
        heads: impl IntoIterator<Item = (OriginIndex, u64)>,
        (promised, complete): (Timestamp, Timestamp),
    ) -> Self {
        Self { heads: heads.into_iter().collect(), promised, complete, ..Self::default() }
    }

    /// Up to which seq an origin's entries are here, durable or not.
    pub(super) fn head(&self, origin: OriginIndex) -> u64 {
        let head = self.moved.get(&origin).or_else(|| self.heads.get(&origin));
        head.copied().unwrap_or(0)
    }

    /// Whether the open batch is nothing to anybody else.
    pub(super) fn is_quiet(&self) -> bool {
        self.moved.is_empty() && self.open.is_empty() && self.open_changes.is_empty()
    }

    /// Everything has become durable.
    pub(super) fn commit(&mut self, own: (OriginIndex, u64)) {
        self.heads.insert(own.0, own.1);
        self.heads.append(&mut self.moved);
        self.committed.append(&mut self.open);
        self.changes.append(&mut self.open_changes);
    }
}

/// A change of an internal record to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordWrite {
    /// Of which kind.
    pub table: Table,
    /// Its key within that kind.
    pub key: Bytes,
    /// Its value; `None` removes it.
    pub value: Option<Bytes>,
}

impl Writer {
    /// From now on there are peers: nothing leaves the log before everybody has it. This is for good, and to be durable
    /// before the first of them gets anything.
    pub fn set_peered(&mut self) {
        if self.collection.is_peered() {
            return;
        }
        self.become_peered(self.clock.last());
    }

    /// There are peers from now on, which have to take over everything up to a time as a whole.
    pub(super) fn become_peered(&mut self, time: Timestamp) {
        self.forget_former_cluster();
        self.put_meta(Meta::Peered(time));
        self.put_meta(Meta::Collected(time));
        self.collection.resume(time, Timestamp::default(), time);
        let mut marks = self.mvcc.marks().write();
        marks.keep();
        for (index, seq) in &self.replica.heads {
            marks.begin(*index, *seq);
        }
        marks.begin(self.origin, self.seq);
        drop(marks);
        self.mvcc.set_durable(self.durable);
    }

    /// Whether there are, or were, peers.
    pub fn is_peered(&self) -> bool {
        self.collection.is_peered()
    }

    /// Whether committed entries are kept for [`Self::take_committed`].
    pub fn set_replicating(&mut self, on: bool) {
        self.replica.replicating = on;
        if !on {
            self.replica.open.clear();
            self.replica.committed.clear();
        }
    }

    /// The entries that have become durable since the last call, own ones and others', in the order of the log.
    pub fn take_committed(&mut self) -> Vec<(Origin, Arc<Entry>)> {
        std::mem::take(&mut self.replica.committed)
    }

    /// The entries of the open batch, own ones and others', in the order of the log.
    pub fn open_entries(&self) -> &[(Origin, Arc<Entry>)] {
        &self.replica.open
    }

    /// The records that have changed, durably, since the last call: those whose meaning the engine does not know.
    pub fn take_changed_records(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.replica.changes)
    }

    /// The last entry of this run, durable or not.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// How far the entries of every origin are here, durably, in the order of the origins.
    pub fn heads(&self) -> Vec<Head> {
        let origins = self.mvcc.origins().read();
        let heads = self.replica.heads.iter().filter(|(_, seq)| **seq > 0);
        let mut heads: Vec<Head> =
            heads.map(|(index, seq)| Head { origin: origins.name(*index), seq: *seq }).collect();
        heads.sort_unstable();
        heads
    }

    /// How far the entries of an origin are here, durably; zero for none.
    pub fn head(&self, origin: Origin) -> u64 {
        let index = self.mvcc.origins().read().index(origin);
        let seq: Option<&u64> = index.and_then(|index| self.replica.heads.get(&index));
        seq.copied().unwrap_or(0)
    }

    /// The greatest time that this member has given out or heard of.
    pub fn time(&self) -> Timestamp {
        self.clock.last()
    }

    /// It is so late now: time goes on from there with the monotonic clock.
    pub fn trust_clock(&mut self, wall_millis: u64, now: Now) {
        self.clock.trust(wall_millis, now);
    }

    /// What the clock shows that entries follow.
    pub fn clock_millis(&self, now: Now) -> u64 {
        self.clock.millis(now)
    }

    /// Takes note of the time of another member, so that everything that is written here is later.
    pub fn observe(&mut self, time: Timestamp) {
        self.clock.observe(time);
    }

    /// Everybody holds everything up to here. Never goes back.
    pub fn set_settled(&mut self, settled: Timestamp) {
        self.clock.observe(settled);
        self.collection.settle(settled, self.clock.last());
        self.mvcc.settle(self.collection.settled());
    }

    /// Up to where everybody holds everything.
    pub fn settled(&self) -> Timestamp {
        self.collection.settled()
    }

    /// Something up to here may be missing, since it was when this came from another member.
    pub fn set_collected(&mut self, collected: Timestamp) {
        if self.collection.raise_collected(collected) {
            self.clock.observe(collected);
            self.put_meta(Meta::Collected(self.collection.collected()));
        }
    }

    /// The member whose state was taken over had given this up for space: it is missing here, too.
    pub fn set_floors(&mut self, floors: &[OriginFloor]) {
        let is_sound = |floor: &&OriginFloor| is_head(&floor.head) && floor.time < TIME_MAX;
        for OriginFloor { head: Head { origin, seq }, time } in
            floors.iter().filter(is_sound).copied()
        {
            let index = self.intern(origin);
            let raised = self.mvcc.floors().write().raise(index, Floor { seq, time });
            if let Some(Floor { seq, time }) = raised {
                self.put_meta(Meta::Floor(index, seq, time));
            }
        }
    }

    /// Up to where something may have been collected: whoever is not complete up to there cannot be given segments.
    pub fn collected(&self) -> Timestamp {
        self.collection.collected()
    }

    /// Moves the store to another cluster, with the next commit.
    pub fn set_cluster(&mut self, cluster: ClusterId) {
        self.identity.cluster = cluster;
        self.put_meta(Meta::Identity(self.identity));
    }

    /// Writes and removes internal records by one entry, whose seq it answers. What is gone already is not removed again.
    pub fn write_records(
        &mut self,
        writes: Vec<RecordWrite>,
        now: Now,
    ) -> Result<Option<u64>, Failure> {
        for RecordWrite { table, key, value } in &writes {
            records::check(*table, key, value.as_ref())?;
        }
        let stamp = self.begin_entry(now);
        for RecordWrite { table, key, value } in writes {
            match value {
                Some(value) => self.put_record((table, key), value, stamp, now)?,
                None if self.record(table, &key).is_none() => {}
                None => self.remove_record((table, key), stamp, now)?,
            }
        }
        Ok(self.end_entry_alone())
    }

    /// Writes one internal record.
    pub fn record_put(
        &mut self,
        table: Table,
        key: Bytes,
        value: Bytes,
        now: Now,
    ) -> Result<Option<u64>, Failure> {
        self.write_records(vec![RecordWrite { table, key, value: Some(value) }], now)
    }

    /// Removes one internal record, if it is there.
    pub fn record_delete(
        &mut self,
        table: Table,
        key: Bytes,
        now: Now,
    ) -> Result<Option<u64>, Failure> {
        self.write_records(vec![RecordWrite { table, key, value: None }], now)
    }

    /// The value of a record that is in force, the open batch included.
    pub fn record(&self, table: Table, key: &Bytes) -> Option<Bytes> {
        self.mvcc.records().read().value(table, key)
    }

    /// The records of a kind that are in force, the open batch included: keys and values, in the order of the keys.
    pub fn records(&self, table: Table) -> Vec<(Bytes, Bytes)> {
        let records = self.mvcc.records().read();
        records.in_force(table).map(|(key, put)| (key.clone(), put.value.clone())).collect()
    }

    /// The records of a kind, and the removals of such records, the open batch included.
    pub fn standings(&self, table: Table) -> Vec<Standing> {
        self.mvcc.records().read().standings(table)
    }

    /// Promises, with the open batch, that all own entries up to a time are those up to a seq; and notes up to when this member
    /// holds what anyone wrote.
    pub fn pledge(&mut self, complete: Timestamp, now: Now) -> (Timestamp, u64) {
        let time = self.clock.tick(now);
        self.replica.complete = self.replica.complete.max(complete);
        self.replica.promised = time;
        self.put_meta(Meta::Promised(time, self.replica.complete));
        (time, self.seq)
    }

    /// Notes, with the open batch, up to when this member holds what anyone wrote.
    pub fn set_complete(&mut self, complete: Timestamp) {
        self.replica.complete = self.replica.complete.max(complete);
        self.put_meta(Meta::Promised(self.replica.promised, self.replica.complete));
    }

    /// Up to when this member holds what anyone wrote, as it has noted.
    pub fn complete(&self) -> Timestamp {
        self.replica.complete
    }

    /// The number of an origin, which it gets with the open batch if it is new.
    pub(super) fn intern(&mut self, origin: Origin) -> OriginIndex {
        let mut origins = self.mvcc.origins().write();
        if let Some(index) = origins.index(origin) {
            return index;
        }
        let index = origins.next();
        origins.insert(index, origin);
        drop(origins);
        self.put_meta(Meta::Origin(index, origin));
        self.open_origins += 1;
        index
    }

    /// Keeps an own entry for the others, whose rows are the last of the open batch.
    pub(super) fn note_own_entry(&mut self) {
        if !self.replica.replicating {
            return;
        }
        let rows = &self.open[self.entry_start..];
        let Some((_, first)) = rows.first() else { return };
        let origins = self.mvcc.origins().read();
        let ops = rows.iter().map(|(_, row)| entry_op(&row.op, &origins)).collect();
        let entry = Entry { seq: first.seq, time: first.stamp.time, ops };
        let origin = origins.name(self.origin);
        self.replica.open.push((origin, Arc::new(entry)));
    }

    /// Keeps an entry of another member for the rest.
    pub(super) fn note_entry(&mut self, origin: Origin, entry: &Arc<Entry>) {
        if self.replica.replicating {
            self.replica.open.push((origin, Arc::clone(entry)));
        }
    }

    /// Adds the heads that move, and what else is due, to the batch.
    pub(super) fn record_heads(&mut self) {
        let moved: Vec<_> = self.replica.moved.iter().map(|(index, seq)| (*index, *seq)).collect();
        for (index, seq) in moved {
            self.put_meta(Meta::Head(index, seq));
        }
        if let Some(settled) = self.collection.take_unrecorded() {
            self.put_meta(Meta::Settled(settled));
        }
    }
}
