//! Internal records: leases, alarms and whatever else members share beside the keys. A remove wins here.
//!
//! Of each record there are two numbers: `R`, the greatest stamp of its removals, and `P`, the greatest of its puts by
//! (what removal it has seen, its stamp). The record is in force iff the put had seen the removal: `P.seen >= R`. Two
//! states merge by taking both maxima, so the order in which puts and removals come does not matter. A put that was
//! dead once stays dead, since `R` only grows; so only puts in force, and removals, need to be remembered.
//!
//! The log is where records are kept. This is what it says, in memory, for the writer, the sweep and members that catch
//! up.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::directory::Standing;
use super::origins::Origins;
use crate::error::StoreError;
use crate::storage::schema::auth::{AuthKey, AuthValue};
use crate::storage::schema::member::{self, MemberRecord};
use crate::storage::schema::setting::Setting;
use crate::storage::schema::{AlarmRecord, LeaseRecord, Op, Place, Row, Table};
use crate::time::{Stamp, Timestamp};

/// The greatest TTL, in seconds, that can be stored: more than any client can ask for.
const TTL_SECONDS_MAX: u64 = 1 << 53;

/// A put.
#[derive(Clone, Debug)]
pub(super) struct RecordPut {
    pub(super) seen: Option<Stamp>,
    pub(super) stamp: Stamp,
    pub(super) place: Place,
    pub(super) value: Bytes,
}

impl RecordPut {
    fn order(&self) -> (Option<Stamp>, Stamp) {
        (self.seen, self.stamp)
    }
}

/// What is known of one record.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// The greatest put, while it is in force.
    put: Option<RecordPut>,
    /// The greatest removal.
    removed: Option<(Stamp, Place)>,
    /// The latest put that was ever in force: the removal stays as long as its row may be there.
    newest_put: Timestamp,
}

impl Record {
    fn removed_at(&self) -> Option<Stamp> {
        self.removed.map(|(stamp, _)| stamp)
    }

    /// The removals that whoever writes the record now has seen.
    fn seen(&self) -> Option<Stamp> {
        self.removed_at().max(self.put.as_ref().and_then(|put| put.seen))
    }

    fn would_put(&self, seen: Option<Stamp>, stamp: Stamp) -> bool {
        seen >= self.removed_at() && self.put.as_ref().is_none_or(|put| put.order() < (seen, stamp))
    }

    fn would_remove(&self, stamp: Stamp) -> bool {
        self.seen() < Some(stamp)
    }
}

/// What an op does to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It is the latest from now on.
    Changes,
    /// It comes too late.
    None,
    /// It is known already.
    Known,
}

/// A record that was written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChange {
    /// Of which kind.
    pub table: Table,
    /// Its key within that kind.
    pub key: Bytes,
    /// Its value; `None` if it is gone.
    pub value: Option<Bytes>,
}

/// All records, with those that are not in force any more but whose removal still matters.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    records: BTreeMap<(Table, Bytes), Record>,
}

impl Records {
    fn get(&self, table: Table, key: &Bytes) -> Option<&Record> {
        self.records.get(&(table, key.clone()))
    }

    /// The value of a record that is in force.
    pub(super) fn value(&self, table: Table, key: &Bytes) -> Option<Bytes> {
        Some(self.get(table, key)?.put.as_ref()?.value.clone())
    }

    /// What a put has to name as seen; `None` where nothing is known of the record.
    pub(super) fn seen(&self, table: Table, key: &Bytes) -> Option<Option<Stamp>> {
        self.get(table, key).map(Record::seen)
    }

    /// The greatest removal of a record that is remembered.
    pub(super) fn removed_at(&self, table: Table, key: &Bytes) -> Option<Stamp> {
        self.get(table, key)?.removed_at()
    }

    /// What a put would do.
    pub(super) fn judge_put(
        &self,
        (table, key): (Table, &Bytes),
        seen: Option<Stamp>,
        stamp: Stamp,
    ) -> Effect {
        let Some(record) = self.get(table, key) else { return Effect::Changes };
        match &record.put {
            Some(put) if put.order() == (seen, stamp) => Effect::Known,
            _ if record.would_put(seen, stamp) => Effect::Changes,
            _ => Effect::None,
        }
    }

    /// What a removal would do.
    pub(super) fn judge_removal(&self, table: Table, key: &Bytes, stamp: Stamp) -> Effect {
        let Some(record) = self.get(table, key) else { return Effect::Changes };
        if record.removed_at() == Some(stamp) {
            Effect::Known
        } else if record.would_remove(stamp) {
            Effect::Changes
        } else {
            Effect::None
        }
    }

    /// Takes a row in that is not hidden. Answers what it changes in what is in force.
    pub(super) fn apply(
        &mut self,
        place: Place,
        row: &Row,
        origins: &Origins,
    ) -> Option<RecordChange> {
        let stamp = origins.stamp(row.stamp);
        match &row.op {
            Op::InternalPut { table, key, value, seen } => {
                let seen = seen.map(|seen| origins.stamp(seen));
                let put = RecordPut { seen, stamp, place, value: value.clone() };
                self.put(*table, key, put)
            }
            Op::InternalDelete { table, key } => self.remove(*table, key, stamp, place),
            Op::Put(_) | Op::Delete { .. } => None,
        }
    }

    fn put(&mut self, table: Table, key: &Bytes, put: RecordPut) -> Option<RecordChange> {
        let record = self.records.entry((table, key.clone())).or_default();
        if !record.would_put(put.seen, put.stamp) {
            return None;
        }
        record.newest_put = record.newest_put.max(put.stamp.time);
        let value = Some(put.value.clone());
        record.put = Some(put);
        Some(RecordChange { table, key: key.clone(), value })
    }

    fn remove(
        &mut self,
        table: Table,
        key: &Bytes,
        stamp: Stamp,
        place: Place,
    ) -> Option<RecordChange> {
        let record = self.records.entry((table, key.clone())).or_default();
        if !record.would_remove(stamp) {
            return None;
        }
        record.removed = Some((stamp, place));
        record.put.take().map(|_| RecordChange { table, key: key.clone(), value: None })
    }

    /// Forgets a removal that nobody has to be told of. Its row may go later than that.
    pub(super) fn forget(&mut self, table: Table, key: &Bytes) {
        let entry = (table, key.clone());
        if self.records.get(&entry).is_some_and(|record| record.put.is_none()) {
            self.records.remove(&entry);
        }
    }

    /// The records of a kind that are in force, in the order of their keys.
    pub(super) fn in_force(&self, table: Table) -> impl Iterator<Item = (&Bytes, &RecordPut)> {
        let all = self.records.range((table, Bytes::new())..);
        all.take_while(move |((of, _), _)| *of == table)
            .filter_map(|((_, key), record)| record.put.as_ref().map(|put| (key, put)))
    }

    /// All records of a kind that are in force, and removals.
    pub(super) fn standings(&self, table: Table) -> Vec<Standing> {
        let all = self.records.range((table, Bytes::new())..);
        let standing = |((_, key), record): (&(Table, Bytes), &Record)| {
            let put = record.put.as_ref().map(|put| (put.stamp, Some(put.value.clone())));
            let (stamp, value) = put.or_else(|| Some((record.removed_at()?, None)))?;
            Some(Standing { table, key: key.clone(), value, stamp })
        };
        all.take_while(|((of, _), _)| *of == table).filter_map(standing).collect()
    }

    /// What the row of an internal op at `place` still says.
    pub(super) fn standing(&self, op: &Op, stamp: Stamp, place: Place) -> RowStanding {
        match op {
            Op::InternalPut { table, key, .. } => {
                let put = self.get(*table, key).and_then(|record| record.put.as_ref());
                if put.is_some_and(|put| put.place == place) {
                    RowStanding::Current
                } else {
                    RowStanding::Superseded
                }
            }
            Op::InternalDelete { table, key } => match self.get(*table, key) {
                None => RowStanding::Removal { newest_put: Timestamp::default() },
                Some(record) if record.removed == Some((stamp, place)) && record.put.is_none() => {
                    RowStanding::Removal { newest_put: record.newest_put }
                }
                Some(_) => RowStanding::Superseded,
            },
            Op::Put(_) | Op::Delete { .. } => unreachable!("{op:?} is no internal op"),
        }
    }

    /// Shows all places under another tag.
    pub(super) fn retag(&mut self, tag: u16) {
        for record in self.records.values_mut() {
            let put = record.put.as_mut().map(|put| &mut put.place);
            let removed = record.removed.as_mut().map(|(_, place)| place);
            put.into_iter().chain(removed).for_each(|place| *place = place.with_tag(tag));
        }
    }

    /// How many records are remembered, those too that are not in force.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The newest row that counts of the record of an op.
    pub(super) fn newest_place(&self, op: &Op) -> Option<Place> {
        let (Op::InternalPut { table, key, .. } | Op::InternalDelete { table, key }) = op else {
            return None;
        };
        let record = self.get(*table, key)?;
        let put = record.put.as_ref().map(|put| put.place);
        put.max(record.removed.map(|(_, place)| place))
    }

    /// Forgets removals whose rows have left the disk.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(Stamp, Place, Timestamp) -> bool) {
        self.records.retain(|_, record| match (record.put.is_some(), record.removed) {
            (false, Some((stamp, place))) => is_kept(stamp, place, record.newest_put),
            _ => true,
        });
    }
}

/// What is left of the meaning of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowStanding {
    /// It is in force.
    Current,
    /// It removes what may come yet, or what may be on the disk still.
    Removal {
        /// The latest put that it may hide on the disk.
        newest_put: Timestamp,
    },
    /// A later row says all that it says.
    Superseded,
}

/// Whether the record of a number is one, if it is there.
fn is_number(value: Option<&Bytes>) -> bool {
    value.is_none_or(|value| member::number(value.clone()).is_ok())
}

/// Checks that a record can be read by whoever it is for.
pub(super) fn check(table: Table, key: &[u8], value: Option<&Bytes>) -> Result<(), StoreError> {
    let is_sound = match (table, value) {
        (Table::Lease, None) => LeaseRecord::id(key)?.is_some(),
        (Table::Lease, Some(value)) => {
            let record = LeaseRecord::decode(key, value.clone())?;
            record.id.is_some() && record.ttl_seconds <= TTL_SECONDS_MAX
        }
        (Table::Alarm, None) => AlarmRecord::alarm(key).is_ok(),
        (Table::Alarm, Some(value)) => AlarmRecord::decode(key, value.clone()).is_ok(),
        (Table::Setting, None) => Setting::check_key(key).is_ok(),
        (Table::Setting, Some(value)) => Setting::decode(key, value).is_ok(),
        (Table::Auth, value) => {
            let key = AuthKey::decode(&Bytes::copy_from_slice(key))?;
            value.is_none_or(|value| AuthValue::decode(&key, value.clone()).is_ok())
        }
        (Table::Member, value) => {
            let is_read = value.is_none_or(|value| MemberRecord::decode(value.clone()).is_ok());
            MemberRecord::member(key).is_ok() && is_read
        }
        (Table::Run, value) => MemberRecord::member(key).is_ok() && is_number(value),
        (Table::Seal, value) => member::seal(key).is_ok() && is_number(value),
    };
    let why = || StoreError::Corrupt(format!("a record of {table:?} is none"));
    if is_sound { Ok(()) } else { Err(why()) }
}
