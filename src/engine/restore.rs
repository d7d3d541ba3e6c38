//! Start: what a store says about itself, and its log read back into memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::lease::Lessor;
use super::mvcc::Mvcc;
use crate::error::StoreError;
use crate::storage::schema::{
    AlarmRecord, Identity, LeaseRecord, Meta, Op, Origin, OriginIndex, Place, Row,
};
use crate::storage::{Space, Store};
use crate::time::Timestamp;
use crate::types::{LeaseId, MemberId, Revision};

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
            match Meta::decode(&key, value)? {
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

    /// The newest run of a member, and its number here.
    pub(super) fn newest_run_of(&self, member: MemberId) -> Option<(OriginIndex, u64)> {
        let runs = self.origins.iter().filter(|(_, origin)| origin.member == member);
        runs.map(|(index, origin)| (*index, origin.run)).max_by_key(|(_, run)| *run)
    }

    pub(super) fn next_origin(&self) -> OriginIndex {
        OriginIndex(self.origins.keys().next_back().map_or(0, |last| last.0 + 1))
    }
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
