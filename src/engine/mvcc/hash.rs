//! A hash over the live state at a revision, equal on all members that hold the same keys.

use std::ops::Bound;

use super::{Failure, Reader};
use crate::error::StoreError;
use crate::storage::Space;
use crate::storage::schema::{Op, Row};
use crate::time::Stamp;
use crate::types::Revision;

/// What was hashed, and the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The sum of the CRC-32C of every live pair with its lease and stamp. A sum, so that it does not matter in which
    /// order a member has received them.
    pub hash: u32,
    /// The revision that was hashed.
    pub revision: Revision,
    /// The last compaction, if there was one.
    pub compacted: Option<Revision>,
}

/// The hash of no keys at all: zero is what clients take for "no answer".
const EMPTY: u32 = 0x5374_6172;

impl Reader<'_> {
    /// Hashes what lives at a revision (zero or less: the current one). Reads the log once, in order.
    pub fn hash(&self, revision: i64) -> Result<StateHash, Failure> {
        let revision = self.resolve(revision)?;
        let compacted = self.mvcc.was_compacted().then(|| self.compacted());
        let mut hash = EMPTY;
        // All origins of rows that are visible now.
        let origins = self.mvcc.origins.read().clone();
        self.visit_live(revision, |_, row| {
            hash = hash.wrapping_add(hash_of(row, origins.stamp(row.stamp)));
            Ok::<_, Failure>(())
        })?;
        Ok(StateHash { hash, revision, compacted })
    }

    /// Hashes every row of the log as it is stored, whatever it is, up to now.
    pub fn hash_log(&self) -> Result<u32, StoreError> {
        let mut hash = EMPTY;
        for item in self.mvcc.store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = item?;
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &value);
        }
        Ok(hash)
    }
}

fn hash_of(row: &Row, stamp: Stamp) -> u32 {
    let Op::Put(kv) = &row.op else { unreachable!("a live pair is a put, not {row:?}") };
    let length = (kv.key.len() as u64).to_le_bytes();
    let Stamp { time, origin } = stamp;
    let numbers = [kv.lease.0.cast_unsigned(), time.0, origin.member.0, origin.run];
    let [lease, time, member, run] = numbers.map(u64::to_le_bytes);
    let fields: [&[u8]; 7] = [&length, &kv.key, &kv.value, &lease, &time, &member, &run];
    fields.iter().fold(0, |hash, field| crc32c::crc32c_append(hash, field))
}
