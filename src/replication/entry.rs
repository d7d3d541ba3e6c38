//! What travels between members: entries, and stretches of one origin's entries.

use std::sync::Arc;

use bytes::Bytes;

use crate::storage::schema::Table;
use crate::time::{Stamp, Timestamp};
use crate::types::{LeaseId, MediaType, Origin};

/// What an entry costs beyond its keys and values, in bytes, roughly: for budgets.
const ENTRY_OVERHEAD_BYTES: usize = 24;
/// The same of an op.
const OP_OVERHEAD_BYTES: usize = 8;

/// One accepted write, or what is left of it: ops that mean nothing any more may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number at its origin; the first is 1.
    pub seq: u64,
    /// When it was accepted. Greater than everything its origin had seen.
    pub time: Timestamp,
    /// What it does, all at once and in this order.
    pub ops: Vec<EntryOp>,
}

impl Entry {
    /// What it takes in memory and in messages, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        self.ops.iter().fold(ENTRY_OVERHEAD_BYTES, |sum, op| sum + op.bytes())
    }
}

/// One change of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryOp {
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// Its lease, if any.
        lease: LeaseId,
        /// What the value is, if that was said.
        media_type: MediaType,
    },
    /// Removes a key, as far as it was seen.
    Delete {
        /// The key.
        key: Bytes,
        /// The put that was current at the origin.
        seen: Stamp,
    },
    /// Writes an internal record.
    InternalPut {
        /// Of which kind.
        table: Table,
        /// Its key within that kind.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// The last removal of the record that the origin knew of: a removal that it did not know of wins.
        seen: Option<Stamp>,
    },
    /// Removes an internal record, whoever writes it meanwhile.
    InternalDelete {
        /// Of which kind.
        table: Table,
        /// Its key within that kind.
        key: Bytes,
    },
}

impl EntryOp {
    /// What it takes in memory and in messages, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        let payload = match self {
            Self::Put { key, value, media_type, .. } => {
                key.len() + value.len() + media_type.as_str().len()
            }
            Self::InternalPut { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } | Self::InternalDelete { key, .. } => key.len(),
        };
        payload + OP_OVERHEAD_BYTES
    }
}

/// All entries of one origin in `(after, through]`. Those of which nothing means anything any more are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose.
    pub origin: Origin,
    /// It begins behind this one.
    pub after: u64,
    /// It ends with this one.
    pub through: u64,
    /// In the order of their seqs.
    pub entries: Vec<Arc<Entry>>,
}

impl Segment {
    /// What its entries take, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes()).sum()
    }

    /// Whether it is what it says. What comes from outside has to be asked.
    pub fn is_sound(&self) -> bool {
        let in_order = self.entries.is_sorted_by(|a, b| a.seq < b.seq && a.time < b.time);
        let within = self.entries.iter().all(|e| e.seq > self.after && e.seq <= self.through);
        self.after < self.through && in_order && within
    }

    /// The part behind `seq`, if there is any.
    #[must_use]
    pub fn behind(mut self, seq: u64) -> Option<Self> {
        if seq >= self.through {
            return None;
        }
        if seq > self.after {
            self.entries.retain(|entry| entry.seq > seq);
            self.after = seq;
        }
        Some(self)
    }
}
