//! How the writer changes internal records, and what follows from a change: leases and alarms are views of them.

use bytes::Bytes;

use super::Writer;
use super::records::RecordChange;
use super::writer::Visibility;
use crate::error::StoreError;
use crate::storage::schema::{AlarmRecord, LeaseRecord, Op, RowStamp, Table};
use crate::time::{Now, Timestamp};

impl Writer {
    /// Writes a record, as an op of the entry that is being executed.
    pub(super) fn put_record(
        &mut self,
        (table, key): (Table, Bytes),
        value: Bytes,
        stamp: RowStamp,
        now: Now,
    ) -> Result<(), StoreError> {
        let seen = self.seen_of_record(table, &key, stamp);
        self.append_record(Op::InternalPut { table, key, value, seen }, stamp, now)
    }

    /// Removes a record, as an op of the entry that is being executed.
    pub(super) fn remove_record(
        &mut self,
        (table, key): (Table, Bytes),
        stamp: RowStamp,
        now: Now,
    ) -> Result<(), StoreError> {
        self.append_record(Op::InternalDelete { table, key }, stamp, now)
    }

    /// The removals of a record that a put at `stamp` has seen. Where nothing is known of the record, removals of it may
    /// have been forgotten, but none that is younger than what everybody has.
    fn seen_of_record(&self, table: Table, key: &Bytes, stamp: RowStamp) -> Option<RowStamp> {
        if let Some(seen) = self.mvcc.records().read().seen(table, key) {
            return seen.map(|seen| self.mvcc.origins().read().row_stamp(seen));
        }
        let time = if self.collection.is_peered() {
            self.collection.settled().min(Timestamp(stamp.time.0 - 1))
        } else {
            Timestamp(stamp.time.0 - 1)
        };
        (time > Timestamp::default()).then_some(RowStamp { time, ..stamp })
    }

    /// Adds the row of a record that changes, and does what follows from it.
    pub(super) fn append_record(
        &mut self,
        op: Op,
        stamp: RowStamp,
        now: Now,
    ) -> Result<(), StoreError> {
        self.append(op, stamp, Visibility::Internal);
        let (place, row) = self.open.last().expect("it was just appended");
        let change = {
            let mut records = self.mvcc.records().write();
            let change = records.apply(*place, row, &self.mvcc.origins().read());
            if let Op::InternalDelete { table, key } = &row.op
                && !self.collection.is_peered()
            {
                records.forget(*table, key);
            }
            change
        };
        change.map_or(Ok(()), |change| self.show_record(&change, now))
    }

    /// Does what follows from a change of a record.
    fn show_record(&mut self, change: &RecordChange, now: Now) -> Result<(), StoreError> {
        match (change.table, &change.value) {
            (Table::Lease, Some(value)) => {
                let LeaseRecord { id, ttl_seconds, owner } =
                    LeaseRecord::decode(&change.key, value.clone())?;
                self.lessor.grant(id, ttl_seconds, owner, now);
            }
            (Table::Lease, None) => {
                // A lease that was revoked here has gone already.
                let _ = self.lessor.revoke(LeaseRecord::id(&change.key)?);
            }
            (Table::Alarm, Some(_)) => self.alarms.raise(AlarmRecord::alarm(&change.key)?),
            (Table::Alarm, None) => self.alarms.end(AlarmRecord::alarm(&change.key)?),
            (Table::Auth, _) => self.auth.show(change)?,
            (Table::Setting, value) => self.settings.show(&change.key, value.as_ref())?,
            (Table::Member | Table::Seal | Table::Run, _) => {
                self.replica.open_changes.push(change.clone());
            }
        }
        Ok(())
    }

    /// Does what follows from all records that are in force, at start.
    pub(super) fn show_records(&self, now: Now) -> Result<(), StoreError> {
        let records = self.mvcc.records().read();
        for (key, put) in records.in_force(Table::Lease) {
            let lease = LeaseRecord::decode(key, put.value.clone())?;
            self.lessor.grant(lease.id, lease.ttl_seconds, lease.owner, now);
        }
        for (key, _) in records.in_force(Table::Alarm) {
            self.alarms.raise(AlarmRecord::alarm(key)?);
        }
        for (key, put) in records.in_force(Table::Setting) {
            self.settings.show(key, Some(&put.value))?;
        }
        for (key, put) in records.in_force(Table::Auth) {
            let (key, value) = (key.clone(), Some(put.value.clone()));
            self.auth.show(&RecordChange { table: Table::Auth, key, value })?;
        }
        Ok(())
    }
}
