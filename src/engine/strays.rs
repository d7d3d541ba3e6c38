//! Strays: what a store holds from before it joined others.
//!
//! Nobody knows the entries that it was written by, and nobody may take them: they are older than times up to which all
//! members hold everything, so deletes that would hide them may be forgotten by some members and not by others. So they
//! are set aside when the store joins. The data of the others comes first; of each key the later write counts, as ever.
//! What is left then is written anew by entries of this member like any other, in the order in which it was written.
//!
//! Invariants
//! * No head covers a stray, and none is sent to anybody.
//! * A crash loses nothing: how far it is done is on record, in the batch that does it.

use std::ops::Bound;

use super::Writer;
use super::graves::Grave;
use super::records;
use super::writer::Visibility;
use crate::error::StoreError;
use crate::storage::Space;
use crate::storage::schema::{Meta, Op, OriginIndex, Place, Row, RowStamp, Table};
use crate::time::{Now, Timestamp};

/// Rows that are looked at in one batch.
const ROWS_MAX: usize = 4096;
/// Bytes of rows that are read for one batch, give or take an entry.
const BYTES_MAX: usize = 4 << 20;

/// Some of the strays.
pub(super) struct Slice {
    /// Whole entries, but for what is not wanted.
    pub(super) rows: Vec<(Place, Row)>,
    /// Where to go on.
    pub(super) next: Option<Place>,
}

impl Writer {
    /// The store is about to join others for the first time: what it holds has to be written anew. To be called before
    /// there is any peer, and before this run has written anything.
    pub fn set_aside(&mut self) {
        let is_empty = self.replica.heads.values().all(|seq| *seq == 0);
        if self.is_peered() || is_empty || self.seq > 0 {
            return;
        }
        let former: Vec<_> = self.replica.heads.keys().copied().collect();
        for index in former.into_iter().filter(|index| *index != self.origin) {
            self.replica.heads.remove(&index);
            let (key, _) = Meta::Head(index, 0).encode();
            self.batch.delete(Space::Meta, key);
        }
        self.set_strays(Some((self.newest.with_tag(0), None)));
        // Nobody has to take over what nobody gets.
        self.become_peered(Timestamp::default());
    }

    /// Whether something is left to be written anew: until then this member lacks what it had.
    pub fn has_strays(&self) -> bool {
        self.replica.strays.is_some()
    }

    /// Writes the next strays anew, with the open batch. To be called when the others' data is here.
    pub fn write_strays(&mut self, now: Now) -> Result<(), StoreError> {
        let Some((until, next)) = self.replica.strays else { return Ok(()) };
        let Slice { rows, next } = self.read_strays(until, next, Self::is_stray)?;
        let mut rest = &rows[..];
        while let Some((_, first)) = rest.first() {
            let is_same =
                |(_, row): &(Place, Row)| (row.stamp, row.seq) == (first.stamp, first.seq);
            let (entry, others) = rest.split_at(rest.iter().take_while(|row| is_same(row)).count());
            rest = others;
            self.write_stray_entry(entry, now)?;
        }
        self.set_strays(next.map(|next| (until, Some(next))));
        Ok(())
    }

    /// The next rows that are wanted, whole entries, and where to go on.
    pub(super) fn read_strays(
        &self,
        until: Place,
        next: Option<Place>,
        is_wanted: impl Fn(&Self, Place, &Row) -> bool,
    ) -> Result<Slice, StoreError> {
        let (from, to) = (next.map(Place::encode), until.encode());
        let from = from.as_ref().map_or(Bound::Unbounded, |from| Bound::Excluded(from.as_ref()));
        let (mut rows, mut bytes, mut current, mut last) = (Vec::new(), 0, None, None);
        let log = self.store().rows(Space::Log, from, Bound::Included(&to));
        for (i, item) in log.enumerate() {
            let (key, value) = item?;
            let place = Place::decode(&key, self.tag())?;
            bytes += value.len();
            let row = Row::decode(place, value)?;
            let entry = (row.stamp.origin, row.seq);
            let is_new = current.replace(entry) != Some(entry);
            if is_new && (i >= ROWS_MAX || bytes >= BYTES_MAX) {
                return Ok(Slice { rows, next: last });
            }
            last = Some(place.with_tag(0));
            if is_wanted(self, place, &row) {
                rows.push((place, row));
            }
        }
        Ok(Slice { rows, next: None })
    }

    /// Whether a row from before is one that counts, and that nobody knows.
    fn is_stray(&self, place: Place, row: &Row) -> bool {
        let is_known = |origin: OriginIndex| self.replica.head(origin) >= row.seq;
        let counts = match &row.op {
            Op::Put(kv) => {
                let latest = self.mvcc.latest(&kv.key);
                !row.hidden && latest.is_some_and(|latest| latest.head.place() == place)
            }
            Op::InternalPut { table, .. } => {
                matches!(table, Table::Lease | Table::Alarm)
                    && !row.hidden
                    && self.mvcc.records().read().newest_place(&row.op) == Some(place)
            }
            // The others may have a put which that hides here: it hides it everywhere then.
            Op::Delete { key, .. } => !row.hidden && self.mvcc.tombstone(key) == Some(place),
            Op::InternalDelete { .. } => false,
        };
        counts && !is_known(row.stamp.origin)
    }

    fn write_stray_entry(&mut self, rows: &[(Place, Row)], now: Now) -> Result<(), StoreError> {
        let stamp = self.begin_entry(now);
        for (_, row) in rows {
            self.write_stray(&row.op, stamp, now)?;
        }
        let _ = self.end_entry_alone();
        Ok(())
    }

    fn write_stray(&mut self, op: &Op, stamp: RowStamp, now: Now) -> Result<(), StoreError> {
        match op {
            Op::Put(kv) => {
                let latest = self.mvcc.latest(&kv.key);
                let version = (kv.key.clone(), kv.value.clone(), kv.lease);
                self.put_version(version, latest, stamp);
                Ok(())
            }
            Op::InternalPut { table, key, value, .. } => {
                records::check(*table, key, Some(value))?;
                self.put_record((*table, key.clone()), value.clone(), stamp, now)
            }
            Op::Delete { key, seen } => {
                let op = Op::Delete { key: key.clone(), seen: *seen };
                let place = self.append(op, stamp, Visibility::Hidden);
                let grave = Grave { seen: *seen, time: stamp.time, place, hidden: true };
                self.mvcc.bury(key, grave);
                Ok(())
            }
            Op::InternalDelete { .. } => Ok(()),
        }
    }

    pub(super) fn set_strays(&mut self, strays: Option<(Place, Option<Place>)>) {
        self.replica.strays = strays;
        match strays {
            Some((until, next)) => self.put_meta(Meta::Strays(until, next)),
            None => {
                let (key, _) = Meta::Strays(self.newest, None).encode();
                self.batch.delete(Space::Meta, key);
            }
        }
    }
}
