//! Rows as other members get them: ops of entries.

use super::origins::Origins;
use crate::replication::entry::EntryOp;
use crate::storage::schema::Op;

/// What a row does, in words that every member understands.
pub(super) fn entry_op(op: &Op, origins: &Origins) -> EntryOp {
    match op {
        Op::Put(kv) => {
            let (key, value, media_type) = (&kv.key, &kv.value, &kv.media_type);
            EntryOp::Put {
                key: key.clone(),
                value: value.clone(),
                lease: kv.lease,
                media_type: media_type.clone(),
            }
        }
        Op::Delete { key, seen } => {
            EntryOp::Delete { key: key.clone(), seen: origins.stamp(*seen) }
        }
        Op::InternalPut { table, key, value, seen } => EntryOp::InternalPut {
            table: *table,
            key: key.clone(),
            value: value.clone(),
            seen: seen.map(|seen| origins.stamp(seen)),
        },
        Op::InternalDelete { table, key } => {
            EntryOp::InternalDelete { table: *table, key: key.clone() }
        }
    }
}
