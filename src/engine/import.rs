//! A new store with what another one held: its pairs, leases, users and roles, and its revision. Everything is of one run
//! of the new member, which ended before it was started for the first time.

use crate::error::StoreError;
use crate::storage::schema::auth::{AuthKey, AuthValue};
use crate::storage::schema::{
    Identity, LeaseRecord, Meta, Op, OriginIndex, Place, Row, RowStamp, Table,
};
use crate::storage::{Batch, Durability, Space, Store};
use crate::time::Timestamp;
use crate::types::{KeyValue, Origin, Revision, TAG_MAX};

use super::restore::{COUNT_MAX, COUNTER_MAX};

/// So much is written at once.
const BATCH_BYTES: usize = 4 << 20;
const ORIGIN: OriginIndex = OriginIndex(0);
const RUN: u64 = 1;

/// A store that is being filled: first with pairs in the order of their revisions, then with the rest.
pub struct Import<'a> {
    store: &'a Store,
    identity: Identity,
    revision: Revision,
    now: Timestamp,
    batch: Batch,
    /// The rows of the entry that is not complete yet.
    entry: Vec<Op>,
    /// Where it begins.
    place: Place,
    seq: u64,
    records: u64,
}

impl<'a> Import<'a> {
    /// Begins. In the end the store is at `revision`.
    pub fn new(
        store: &'a Store,
        identity: Identity,
        revision: Revision,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let is_usable =
            revision.tag() <= TAG_MAX && (1..=COUNTER_MAX).contains(&revision.counter());
        if !is_usable {
            return Err(StoreError::Refused(format!("there is no revision {revision} here")));
        }
        let place = Place::first_of(Revision::FIRST.with_tag(revision.tag()));
        let (batch, entry) = (Batch::default(), Vec::new());
        Ok(Self { store, identity, revision, now, batch, entry, place, seq: 0, records: 0 })
    }

    /// Adds a pair that lives. Those of one revision follow each other.
    pub fn put(&mut self, pair: KeyValue) -> Result<(), StoreError> {
        let (created, modified) = (pair.create_revision, pair.mod_revision);
        let is_sound = !pair.key.is_empty()
            && (1..=COUNT_MAX).contains(&pair.version)
            && created.counter() > 0
            && created <= modified
            && created.tag() == self.revision.tag()
            && modified.tag() == self.revision.tag()
            && (self.place.revision..=self.revision).contains(&modified);
        if !is_sound {
            return Err(StoreError::Refused(format!(
                "a pair at revision {modified} cannot be: created at {created}, version {}",
                pair.version
            )));
        }
        if modified > self.place.revision {
            self.end_entry(self.time_of(self.place.revision))?;
            self.place = Place::first_of(modified);
        }
        self.entry.push(Op::Put(pair));
        Ok(())
    }

    /// Adds a lease.
    pub fn lease(&mut self, lease: &LeaseRecord) -> Result<(), StoreError> {
        self.record(Table::Lease, LeaseRecord::key(lease.id), lease.value())
    }

    /// Adds a record of users or roles.
    pub fn auth(&mut self, key: &AuthKey, value: &AuthValue) -> Result<(), StoreError> {
        self.record(Table::Auth, key.encode(), value.encode())
    }

    /// Completes the store. Before that it is none.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.end_pairs()?;
        if self.records == 0 {
            return Err(StoreError::Refused("nothing says at which revision it ends".to_owned()));
        }
        let Identity { member, .. } = self.identity;
        let mut rows = vec![
            Meta::Origin(ORIGIN, Origin { member, run: RUN }),
            Meta::Run(ORIGIN, 0),
            Meta::Compacted(self.revision),
            Meta::Identity(self.identity),
        ];
        rows.extend(Some(self.revision.tag()).filter(|tag| *tag != 0).map(Meta::Tag));
        for (key, value) in rows.into_iter().map(Meta::encode) {
            self.batch.put(Space::Meta, key, value);
        }
        self.store.commit(self.batch, Durability::Fsync)
    }

    /// A record stands behind the last pair, at the current revision, as an entry of its own.
    fn record(
        &mut self,
        table: Table,
        key: bytes::Bytes,
        value: bytes::Bytes,
    ) -> Result<(), StoreError> {
        self.end_pairs()?;
        super::records::check(table, &key, Some(&value))?;
        self.entry.push(Op::InternalPut { table, key, value, seen: None });
        self.records += 1;
        self.end_entry(Timestamp(self.now.0 + self.records))
    }

    fn end_pairs(&mut self) -> Result<(), StoreError> {
        self.end_entry(self.time_of(self.place.revision))?;
        if self.place.revision < self.revision {
            self.place = Place::first_of(self.revision);
        }
        Ok(())
    }

    /// The pairs of each revision have a time of their own, in the same order.
    fn time_of(&self, revision: Revision) -> Timestamp {
        let age = self.revision.counter() - revision.counter();
        Timestamp(self.now.0.saturating_sub(age))
    }

    fn end_entry(&mut self, time: Timestamp) -> Result<(), StoreError> {
        let ops = std::mem::take(&mut self.entry);
        let count = ops.len();
        self.seq += u64::from(count > 0);
        for (op_number, op) in (0..).zip(ops) {
            let last = op_number as usize + 1 == count;
            let stamp = RowStamp { time, origin: ORIGIN };
            let row = Row { stamp, seq: self.seq, op_number, last, hidden: false, op };
            self.batch.put(Space::Log, self.place.encode(), row.encode(self.place));
            self.place.n += 1;
        }
        if self.batch.bytes() >= BATCH_BYTES {
            self.store.commit(std::mem::take(&mut self.batch), Durability::Buffered)?;
        }
        Ok(())
    }
}
