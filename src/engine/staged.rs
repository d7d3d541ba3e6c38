//! The state of another member, set aside until all of it is there.
//!
//! A member that serves clients must not show them half of it: an entry whose other half has been replaced by another entry that
//! is still on its way, say. So the entries are gathered, on disk if they are many, and brought into the order of
//! their stamps. Then they are written a group at a time: what a group changes shows under one revision. So a state that fits into
//! one group comes like the write of another client, and of a larger one clients see groups in the order in which
//! their entries were written.
//!
//! What is set aside is gone when the process ends, and is then asked for again.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::entries::entry_op;
use super::{Conflict, Outcome, Writer};
use crate::error::StoreError;
use crate::replication::entry::{Entry, EntryOp};
use crate::replication::packed::PackedEntries;
use crate::storage::schema::{Op, Place, Row, RowStamp};
use crate::storage::{Sorted, Sorter};
use crate::time::Now;
use crate::types::{KeyValue, Origin, Revision};

/// What a group changes, in bytes, give or take an entry: no more than a large transaction, since watchers get it at once.
const GROUP_BYTES: usize = 1 << 20;
/// Rows that are set aside have no place yet.
const NOWHERE: Place = Place { revision: Revision(1), n: 0 };

/// Entries that are gathered.
pub struct Staged {
    sorter: Sorter,
}

/// Entries in the order of their stamps.
pub struct StagedInOrder {
    rows: Sorted,
    /// The first row of the next entry.
    row: Option<(Bytes, Bytes)>,
    /// An entry that the group before had no room for.
    entry: Option<(Origin, Arc<Entry>)>,
}

/// What has become of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupApplied {
    /// It is in the open batch.
    Taken(Vec<Conflict>),
    /// The disk is full.
    NoRoom,
    /// There is no group left.
    None,
}

impl Writer {
    /// Begins to gather.
    pub fn begin_staging(&self) -> Staged {
        Staged { sorter: Sorter::new(self.store().clone()) }
    }

    /// Sets aside some entries.
    pub fn stage(
        &mut self,
        staged: &mut Staged,
        entries: &PackedEntries,
    ) -> Result<Outcome, StoreError> {
        if !Self::are_sound(entries) {
            return Ok(Outcome::Unsound);
        }
        // What was set aside has taken room that no commit knows of.
        self.look_at_disk()?;
        if !self.has_room_for(entries.bytes()) {
            return Ok(Outcome::NoRoom);
        }
        for packed in entries.iter() {
            let (origin, entry) = (packed.origin, packed.unpack());
            let stamp = RowStamp { time: entry.time, origin: self.intern(origin) };
            for (op_number, op) in (0..).zip(&entry.ops) {
                let op = self.row_op(op);
                let (seq, last, hidden) = (entry.seq, false, false);
                let row = Row { stamp, seq, op_number, last, hidden, op };
                let mut key = BytesMut::new();
                key.put_u64(entry.time.0);
                key.put_u64(origin.member.0);
                key.put_u64(origin.run);
                key.put_u64(entry.seq);
                key.put_u32(op_number);
                staged.sorter.add(key.freeze(), row.encode(NOWHERE))?;
            }
        }
        Ok(Outcome::Taken)
    }

    fn row_op(&mut self, op: &EntryOp) -> Op {
        match op {
            EntryOp::Put { key, value, lease, media_type } => Op::Put(KeyValue {
                key: key.clone(),
                create_revision: NOWHERE.revision,
                mod_revision: NOWHERE.revision,
                version: 1,
                value: value.clone(),
                lease: *lease,
                media_type: media_type.clone(),
            }),
            EntryOp::Delete { key, seen } => {
                Op::Delete { key: key.clone(), seen: self.row_stamp(*seen) }
            }
            EntryOp::InternalPut { table, key, value, seen } => Op::InternalPut {
                table: *table,
                key: key.clone(),
                value: value.clone(),
                seen: seen.map(|seen| self.row_stamp(seen)),
            },
            EntryOp::InternalDelete { table, key } => {
                Op::InternalDelete { table: *table, key: key.clone() }
            }
        }
    }

    /// Writes the next group, with the open batch. What is here by now is left out.
    pub fn apply_staged(
        &mut self,
        staged: &mut StagedInOrder,
        now: Now,
    ) -> Result<GroupApplied, StoreError> {
        let group = self.next_group(staged)?;
        if group.is_empty() {
            return Ok(GroupApplied::None);
        }
        let applied = self.apply_catch_up_at_once(&group.into_iter().collect(), now)?;
        Ok(match applied.outcome {
            Outcome::Taken => GroupApplied::Taken(applied.conflicts),
            _ => GroupApplied::NoRoom,
        })
    }

    fn next_group(
        &self,
        staged: &mut StagedInOrder,
    ) -> Result<Vec<(Origin, Arc<Entry>)>, StoreError> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut keys = BTreeSet::new();
        while bytes < GROUP_BYTES
            && let Some((origin, entry)) = self.next_staged(staged)?
        {
            // Of a key that several write, the versions have to come one after the other.
            if keys_of(&entry).any(|key| keys.contains(key)) {
                staged.entry = Some((origin, entry));
                break;
            }
            keys.extend(keys_of(&entry).cloned());
            bytes += entry.bytes();
            group.push((origin, entry));
        }
        Ok(group)
    }

    fn next_staged(
        &self,
        staged: &mut StagedInOrder,
    ) -> Result<Option<(Origin, Arc<Entry>)>, StoreError> {
        if let Some(entry) = staged.entry.take() {
            return Ok(Some(entry));
        }
        let Some((key, value)) = staged.row.take() else { return Ok(None) };
        let first = Row::decode(NOWHERE, value)?;
        let origins = self.mvcc.origins().read();
        let mut ops = vec![entry_op(&first.op, &origins)];
        let mut last = key;
        while let Some((key, value)) = staged.rows.take()? {
            if key == last {
                // It has come twice.
                continue;
            }
            let row = Row::decode(NOWHERE, value.clone())?;
            if (row.stamp, row.seq) != (first.stamp, first.seq) {
                staged.row = Some((key, value));
                break;
            }
            ops.push(entry_op(&row.op, &origins));
            last = key;
        }
        let origin = origins.name(first.stamp.origin);
        let entry = Entry { seq: first.seq, time: first.stamp.time, ops };
        Ok(Some((origin, Arc::new(entry))))
    }
}

impl Staged {
    /// All entries are there.
    pub fn in_order(self) -> Result<StagedInOrder, StoreError> {
        let mut rows = self.sorter.finish()?;
        let row = rows.take()?;
        Ok(StagedInOrder { rows, row, entry: None })
    }
}

fn keys_of(entry: &Entry) -> impl Iterator<Item = &Bytes> {
    entry.ops.iter().filter_map(|op| match op {
        EntryOp::Put { key, .. } | EntryOp::Delete { key, .. } => Some(key),
        EntryOp::InternalPut { .. } | EntryOp::InternalDelete { .. } => None,
    })
}
