//! Start: what a store says about itself, and its log read back into memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::lease::Lessor;
use super::mvcc::Mvcc;
use crate::error::StoreError;
use crate::storage::schema::{
    AlarmRecord, Identity, LeaseRecord, Meta, Op, OriginIndex, Place, Row,
};
use crate::storage::{Space, Store};
use crate::time::Timestamp;
use crate::types::{LeaseId, MemberId, Origin, Revision};

/// More than any store counts to. Up to here sums do not overflow, and clients see what is stored.
const COUNT_MAX: u64 = 1 << 53;
/// Some 4000 years from now.
const TIME_MAX: Timestamp = Timestamp(1 << 63);

/// The rows about the store, read at start.
#[derive(Debug, Default)]
pub(super) struct StoreMeta {
    pub(super) identity: Option<Identity>,
    pub(super) compacted: Option<Revision>,
    pub(super) swept: Revision,
    pub(super) origins: BTreeMap<OriginIndex, Origin>,
    pub(super) entries: u64,
    pub(super) leases: Vec<LeaseRecord>,
    pub(super) alarms: Vec<AlarmRecord>,
}

impl StoreMeta {
    pub(super) fn read(store: &Store) -> Result<Self, StoreError> {
        let mut meta = Self::default();
        for row in store.rows(Space::Meta, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = row?;
            let row = Meta::decode(&key, value)?;
            if !is_possible(&row) {
                return Err(StoreError::Corrupt(format!("no store has {row:?}")));
            }
            match row {
                Meta::Identity(identity) => meta.identity = Some(identity),
                Meta::Compacted(revision) => meta.compacted = Some(revision),
                Meta::Swept(revision) => meta.swept = revision,
                Meta::Entries(entries) => meta.entries = entries,
                Meta::Lease(record) => meta.leases.push(record),
                Meta::Alarm(record) => meta.alarms.push(record),
                Meta::Origin(index, origin) => {
                    meta.origins.insert(index, origin);
                }
            }
        }
        Ok(meta)
    }

    /// Checks it against the log.
    pub(super) fn check(&self, end: &LogEnd) -> Result<(), StoreError> {
        let (compacted, newest) = (self.compacted.unwrap_or_default(), end.newest.revision);
        if self.swept <= compacted && compacted <= newest {
            return Ok(());
        }
        let swept = self.swept;
        Err(StoreError::Corrupt(format!(
            "swept at {swept} and compacted at {compacted}, but the log ends at {newest}"
        )))
    }

    /// The newest run of a member, and its number here.
    pub(super) fn newest_run_of(&self, member: MemberId) -> Option<(OriginIndex, u64)> {
        let runs = self.origins.iter().filter(|(_, origin)| origin.member == member);
        runs.map(|(index, origin)| (*index, origin.run)).max_by_key(|(_, run)| *run)
    }

    pub(super) fn next_origin(&self) -> OriginIndex {
        OriginIndex(self.origins.keys().next_back().map_or(0, |last| last.0 + 1))
    }
}

/// Whether a row about the store can be there at all.
fn is_possible(row: &Meta) -> bool {
    match row {
        Meta::Identity(_) => true,
        Meta::Origin(index, origin) => index.0 < u32::MAX && origin.run <= COUNT_MAX,
        Meta::Compacted(revision) | Meta::Swept(revision) => revision.0 <= COUNT_MAX,
        Meta::Entries(entries) => *entries <= COUNT_MAX,
        Meta::Alarm(record) => record.raised.0 <= COUNT_MAX,
        Meta::Lease(record) => record.id.is_some() && record.ttl_seconds <= COUNT_MAX,
    }
}

/// Checks that a row of the log is one that an engine can have written.
fn check_row(place: Place, row: &Row) -> Result<(), StoreError> {
    let is_counted = |count: u64| (1..=COUNT_MAX).contains(&count);
    let is_sound = match &row.op {
        Op::Put(kv) => {
            !kv.key.is_empty() && is_counted(kv.version) && is_counted(kv.create_revision.0)
        }
        Op::Delete { key, .. } => !key.is_empty(),
        Op::InternalPut { .. } | Op::InternalDelete { .. } => true,
    };
    let is_placed = is_counted(place.revision.0) && place.n < u32::MAX;
    if is_sound && is_placed && row.seq <= COUNT_MAX && row.stamp.time < TIME_MAX {
        return Ok(());
    }
    // Not what is in it: that may be long, and somebody's.
    Err(StoreError::Corrupt(format!("the row at {place:?} is none that can have been written")))
}

/// What the log says about how far the store has come.
#[derive(Debug)]
pub(super) struct LogEnd {
    pub(super) newest: Place,
    pub(super) time: Timestamp,
    /// The origin and seq of the newest row.
    pub(super) entry: Option<(OriginIndex, u64)>,
}

/// Reads the whole log back into memory. The leases are there already, for the keys to be attached to them.
pub(super) fn restore(mvcc: &Mvcc, lessor: &Lessor) -> Result<LogEnd, StoreError> {
    let newest = Place { revision: Revision::FIRST, n: 0 };
    let mut end = LogEnd { newest, time: Timestamp::default(), entry: None };
    for item in mvcc.store().rows(Space::Log, Bound::Unbounded, Bound::Unbounded) {
        let (key, value) = item?;
        let place = Place::decode(&key)?;
        let row = Row::decode(place, value)?;
        check_row(place, &row)?;
        end.newest = place;
        end.time = end.time.max(row.stamp.time);
        end.entry = Some((row.stamp.origin, row.seq));
        match &row.op {
            Op::Put(kv) => {
                let former = mvcc.restore(place, &row);
                lessor.reattach(&kv.key, former, kv.lease);
            }
            Op::Delete { key, .. } => {
                let former = mvcc.restore(place, &row);
                lessor.reattach(key, former, LeaseId::NONE);
            }
            Op::InternalPut { .. } | Op::InternalDelete { .. } => {}
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::{Options, Writer};
    use crate::storage::schema::RowStamp;
    use crate::storage::{Batch, Durability, Memory};
    use crate::time::Now;
    use crate::types::{ClusterId, KeyValue};

    const NOW: Now = Now { wall_millis: 1_000, monotonic_millis: 0 };

    fn row(revision: Revision) -> Row {
        let kv = KeyValue {
            key: Bytes::from_static(b"key"),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            ..KeyValue::default()
        };
        let stamp = RowStamp { time: Timestamp(1), origin: OriginIndex(0) };
        Row { stamp, seq: 1, op_number: 0, last: true, op: Op::Put(kv) }
    }

    /// Opens a store with these rows.
    fn open(place: Place, row: &Row, meta: Option<Meta>) -> Result<Writer, StoreError> {
        let store = Store::Memory(Memory::new());
        let mut batch = Batch::default();
        batch.put(Space::Log, place.encode(), row.encode(place));
        if let Some((key, value)) = meta.map(Meta::encode) {
            batch.put(Space::Meta, key, value);
        }
        store.commit(batch, Durability::Fsync)?;
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        Writer::open(store, &Options::new(identity), NOW)
    }

    #[test]
    fn what_no_engine_has_written_is_refused() {
        let second = Place::first_of(Revision(2));
        let good = || row(Revision(2));
        assert!(open(second, &good(), None).is_ok());
        let places = [
            Place::first_of(Revision(0)),
            Place::first_of(Revision(u64::MAX)),
            Place { n: u32::MAX, ..second },
        ];
        let odd = [
            Row { seq: u64::MAX, ..good() },
            Row { stamp: RowStamp { time: Timestamp(u64::MAX), ..good().stamp }, ..good() },
        ];
        let origin = Origin { member: MemberId(1), run: 1 };
        let metas = [
            Meta::Compacted(Revision(3)),
            Meta::Swept(Revision(1)),
            Meta::Entries(u64::MAX),
            Meta::Lease(LeaseRecord { id: LeaseId::NONE, ttl_seconds: 60 }),
            Meta::Origin(OriginIndex(u32::MAX), origin),
            Meta::Origin(OriginIndex(0), Origin { run: u64::MAX, ..origin }),
        ];
        let stores = places.map(|place| open(place, &row(place.revision), None));
        let stores = stores.into_iter().chain(odd.map(|row| open(second, &row, None)));
        let stores = stores.chain(metas.map(|meta| open(second, &good(), Some(meta))));
        for (i, store) in stores.enumerate() {
            assert!(matches!(store, Err(StoreError::Corrupt(_))), "case {i}");
        }
    }
}
