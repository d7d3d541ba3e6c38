//! Entries in one piece of memory, one after the other, as the state of a member travels.
//!
//! Such a state is a million entries of one put each. As values of their own each of them would be allocated, counted and
//! freed several times on both sides, which costs more than everything else that is done with it. So they are written
//! straight from the rows of the log, go through the transport as one string, and are read where they are applied.
//!
//! ```text
//! entry:  origin (varint: which of those named besides), seq (varint), time (8 bytes), ops
//! op:     kind (1 byte; with 0x80 another op of the entry follows), then
//!         1 put                      key, value
//!         2 put with a lease         lease (8 bytes), key, value
//!         3 delete                   seen, key
//!         4 internal put             table (1 byte), key, value
//!         5 internal put, has seen   table (1 byte), seen, key, value
//!         6 internal delete          table (1 byte), key
//! seen:   origin (varint), time (8 bytes)
//! key:    length (varint), bytes; values likewise
//! ```
//!
//! Numbers of 8 bytes are little-endian. Varints are those of protobuf.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::entry::{Entry, EntryOp};
use crate::storage::codec::{put_bytes, put_varint, take_varint};
use crate::storage::schema::Table;
use crate::time::{Stamp, Timestamp};
use crate::types::{LeaseId, Origin};

const KIND_PUT: u8 = 1;
const KIND_PUT_LEASED: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_INTERNAL_PUT: u8 = 4;
const KIND_INTERNAL_PUT_SEEN: u8 = 5;
const KIND_INTERNAL_DELETE: u8 = 6;
/// Set if another op of the same entry follows.
const FLAG_MORE: u8 = 0x80;

/// Bytes that are no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(pub &'static str);

/// Entries that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedEntries {
    origins: Vec<Origin>,
    bytes: Bytes,
    entries: usize,
    ops: usize,
}

impl PackedEntries {
    /// Takes what a peer has sent, if it is what it should be. Allocates nothing.
    pub fn read(origins: Vec<Origin>, bytes: Bytes) -> Result<Self, Unreadable> {
        let mut rest = bytes.as_ref();
        let (mut entries, mut ops) = (0, 0);
        while !rest.is_empty() {
            take_header(&mut rest, &origins)?;
            entries += 1;
            loop {
                ops += 1;
                if !take_op(&mut rest, &origins)?.more {
                    break;
                }
            }
        }
        Ok(Self { origins, bytes, entries, ops })
    }

    /// The origins that are named in the bytes, by their rows here.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// The entries.
    pub fn packed(&self) -> &Bytes {
        &self.bytes
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many ops they have, all together.
    pub fn ops(&self) -> usize {
        self.ops
    }

    /// What they take in memory and in messages, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The entries, one by one.
    pub fn iter(&self) -> impl Iterator<Item = PackedEntry<'_>> {
        let mut rest = self.bytes.as_ref();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (origin, seq, time) = take_header(&mut rest, &self.origins).ok()?;
            let first = take_op(&mut rest, &self.origins).ok()?;
            let ops = rest;
            let mut more = first.more;
            while more {
                more = take_op(&mut rest, &self.origins).ok()?.more;
            }
            Some(PackedEntry { origin, seq, time, first, ops, within: self })
        })
    }

    /// The same as values of their own.
    pub fn unpack(&self) -> Vec<(Origin, Arc<Entry>)> {
        self.iter().map(|entry| (entry.origin, Arc::new(entry.unpack()))).collect()
    }
}

impl FromIterator<(Origin, Arc<Entry>)> for PackedEntries {
    /// Entries without ops mean nothing, and are left out.
    fn from_iter<I: IntoIterator<Item = (Origin, Arc<Entry>)>>(entries: I) -> Self {
        let mut packer = Packer::default();
        for (origin, entry) in entries {
            for op in &entry.ops {
                packer.begin(origin, entry.seq, entry.time);
                packer.op(op);
            }
        }
        packer.finish()
    }
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct PackedEntry<'a> {
    /// Whose.
    pub origin: Origin,
    /// Its number there.
    pub seq: u64,
    /// When it was accepted.
    pub time: Timestamp,
    first: RawOp<'a>,
    /// What follows the first op.
    ops: &'a [u8],
    within: &'a PackedEntries,
}

impl PackedEntry<'_> {
    /// Key, value and lease if it is one put and nothing else, as most are. They share the memory of all entries.
    pub fn put(&self) -> Option<(Bytes, Bytes, LeaseId)> {
        let RawOp { key, value, lease, .. } = self.first;
        let slice = |bytes| self.within.bytes.slice_ref(bytes);
        self.is_put().then(|| (slice(key), slice(value), lease))
    }

    /// Whether it is one put and nothing else.
    pub fn is_put(&self) -> bool {
        matches!(self.first.kind, KIND_PUT | KIND_PUT_LEASED) && !self.first.more
    }

    /// All of it. Keys and values share the memory of all entries.
    pub fn unpack(&self) -> Entry {
        let mut ops = vec![self.entry_op(self.first)];
        let (mut rest, mut more) = (self.ops, self.first.more);
        while more && let Ok(op) = take_op(&mut rest, &self.within.origins) {
            more = op.more;
            ops.push(self.entry_op(op));
        }
        Entry { seq: self.seq, time: self.time, ops }
    }

    fn entry_op(&self, op: RawOp<'_>) -> EntryOp {
        let slice = |bytes| self.within.bytes.slice_ref(bytes);
        let RawOp { kind, table, seen, lease, key, value, .. } = op;
        let (key, value) = (slice(key), slice(value));
        match (kind, table, seen) {
            (KIND_DELETE, _, Some(seen)) => EntryOp::Delete { key, seen },
            (KIND_INTERNAL_DELETE, Some(table), _) => EntryOp::InternalDelete { table, key },
            (_, Some(table), seen) => EntryOp::InternalPut { table, key, value, seen },
            _ => EntryOp::Put { key, value, lease },
        }
    }
}

/// An op as it stands among others.
#[derive(Clone, Copy, Debug)]
struct RawOp<'a> {
    kind: u8,
    more: bool,
    table: Option<Table>,
    seen: Option<Stamp>,
    lease: LeaseId,
    key: &'a [u8],
    value: &'a [u8],
}

const ENDS_EARLY: Unreadable = Unreadable("entries that end early");

fn take_u8(rest: &mut &[u8]) -> Result<u8, Unreadable> {
    let (first, behind) = rest.split_first().ok_or(ENDS_EARLY)?;
    *rest = behind;
    Ok(*first)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, Unreadable> {
    let (first, behind) = rest.split_first_chunk().ok_or(ENDS_EARLY)?;
    *rest = behind;
    Ok(u64::from_le_bytes(*first))
}

fn take_number(rest: &mut &[u8]) -> Result<u64, Unreadable> {
    take_varint(rest).map_err(|_| Unreadable("a number in entries that is none"))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let len = usize::try_from(take_number(rest)?).map_err(|_| ENDS_EARLY)?;
    let (bytes, behind) = rest.split_at_checked(len).ok_or(ENDS_EARLY)?;
    *rest = behind;
    Ok(bytes)
}

fn take_origin(rest: &mut &[u8], origins: &[Origin]) -> Result<Origin, Unreadable> {
    let number = usize::try_from(take_number(rest)?).ok();
    let origin = number.and_then(|number| origins.get(number));
    origin.copied().ok_or(Unreadable("an origin of entries that is not named"))
}

fn take_header(
    rest: &mut &[u8],
    origins: &[Origin],
) -> Result<(Origin, u64, Timestamp), Unreadable> {
    let origin = take_origin(rest, origins)?;
    Ok((origin, take_number(rest)?, Timestamp(take_u64(rest)?)))
}

fn take_stamp(rest: &mut &[u8], origins: &[Origin]) -> Result<Stamp, Unreadable> {
    let origin = take_origin(rest, origins)?;
    Ok(Stamp { time: Timestamp(take_u64(rest)?), origin })
}

fn take_op<'a>(rest: &mut &'a [u8], origins: &[Origin]) -> Result<RawOp<'a>, Unreadable> {
    let kind = take_u8(rest)?;
    let (kind, more) = (kind & !FLAG_MORE, kind & FLAG_MORE != 0);
    let mut op =
        RawOp { kind, more, table: None, seen: None, lease: LeaseId::NONE, key: &[], value: &[] };
    match kind {
        KIND_PUT | KIND_DELETE => {}
        KIND_PUT_LEASED => {
            op.lease = LeaseId(take_u64(rest)?.cast_signed());
            if !op.lease.is_some() {
                return Err(Unreadable("a lease in entries that is none"));
            }
        }
        KIND_INTERNAL_PUT | KIND_INTERNAL_PUT_SEEN | KIND_INTERNAL_DELETE => {
            let table = Table::from_number(take_u8(rest)?);
            op.table = Some(table.ok_or(Unreadable("an unknown kind of record in entries"))?);
        }
        _ => return Err(Unreadable("an unknown op in entries")),
    }
    if matches!(kind, KIND_DELETE | KIND_INTERNAL_PUT_SEEN) {
        op.seen = Some(take_stamp(rest, origins)?);
    }
    op.key = take_bytes(rest)?;
    if op.key.is_empty() {
        return Err(Unreadable("an empty key in entries"));
    }
    if !matches!(kind, KIND_DELETE | KIND_INTERNAL_DELETE) {
        op.value = take_bytes(rest)?;
    }
    Ok(op)
}

/// Puts entries one behind the other.
#[derive(Debug, Default)]
pub struct Packer {
    origins: Vec<Origin>,
    numbers: BTreeMap<Origin, u64>,
    /// The origin that was named last.
    recent: Option<(Origin, u64)>,
    out: BytesMut,
    /// The last entry, and where its last op begins.
    last: Option<(Origin, u64)>,
    last_op: usize,
    entries: usize,
    ops: usize,
}

impl Packer {
    /// With room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: BytesMut::with_capacity(bytes), ..Self::default() }
    }

    /// Whether the next op of this entry would be one of the entry that was begun last.
    pub fn is_in(&self, origin: Origin, seq: u64) -> bool {
        self.last == Some((origin, seq))
    }

    /// What there is by now, in bytes.
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Says of which entry the next op is. Exactly one must follow.
    pub fn begin(&mut self, origin: Origin, seq: u64, time: Timestamp) {
        self.ops += 1;
        if self.is_in(origin, seq) {
            self.out[self.last_op] |= FLAG_MORE;
            return;
        }
        self.last = Some((origin, seq));
        self.entries += 1;
        self.put_origin(origin);
        put_varint(&mut self.out, seq);
        self.out.put_u64_le(time.0);
    }

    /// A put.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) {
        if lease.is_some() {
            self.kind(KIND_PUT_LEASED);
            self.out.put_i64_le(lease.0);
        } else {
            self.kind(KIND_PUT);
        }
        put_bytes(&mut self.out, key);
        put_bytes(&mut self.out, value);
    }

    /// Any op.
    pub fn op(&mut self, op: &EntryOp) {
        match op {
            EntryOp::Put { key, value, lease } => self.put(key, value, *lease),
            EntryOp::Delete { key, seen } => {
                self.kind(KIND_DELETE);
                self.put_stamp(*seen);
                put_bytes(&mut self.out, key);
            }
            EntryOp::InternalPut { table, key, value, seen } => {
                self.kind(if seen.is_some() { KIND_INTERNAL_PUT_SEEN } else { KIND_INTERNAL_PUT });
                self.out.put_u8(*table as u8);
                if let Some(seen) = seen {
                    self.put_stamp(*seen);
                }
                put_bytes(&mut self.out, key);
                put_bytes(&mut self.out, value);
            }
            EntryOp::InternalDelete { table, key } => {
                self.kind(KIND_INTERNAL_DELETE);
                self.out.put_u8(*table as u8);
                put_bytes(&mut self.out, key);
            }
        }
    }

    /// All of them.
    pub fn finish(self) -> PackedEntries {
        let Self { origins, out, entries, ops, .. } = self;
        PackedEntries { origins, bytes: out.freeze(), entries, ops }
    }

    fn kind(&mut self, kind: u8) {
        self.last_op = self.out.len();
        self.out.put_u8(kind);
    }

    fn put_stamp(&mut self, stamp: Stamp) {
        self.put_origin(stamp.origin);
        self.out.put_u64_le(stamp.time.0);
    }

    /// Mostly it is the same as before.
    fn put_origin(&mut self, origin: Origin) {
        let number = match self.recent {
            Some((recent, number)) if recent == origin => number,
            _ => *self.numbers.entry(origin).or_insert_with(|| {
                self.origins.push(origin);
                self.origins.len() as u64 - 1
            }),
        };
        self.recent = Some((origin, number));
        put_varint(&mut self.out, number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::MemberId;

    fn origin() -> impl Strategy<Value = Origin> {
        (0..3_u64, 0..3_u64).prop_map(|(member, run)| Origin { member: MemberId(member), run })
    }

    fn stamp() -> impl Strategy<Value = Stamp> {
        (any::<u64>(), origin()).prop_map(|(time, origin)| Stamp { time: Timestamp(time), origin })
    }

    fn op() -> impl Strategy<Value = EntryOp> {
        let key = vec(any::<u8>(), 1..200).prop_map(Bytes::from);
        let value = vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let table = (1..8_u8).prop_map(|number| Table::from_number(number).expect("there is one"));
        let seen = proptest::option::of(stamp());
        (0..4, key, value, any::<i64>(), table, seen, stamp()).prop_map(
            |(kind, key, value, lease, table, seen, stamp)| match kind {
                0 => EntryOp::Put { key, value, lease: LeaseId(lease % 2) },
                1 => EntryOp::Delete { key, seen: stamp },
                2 => EntryOp::InternalPut { table, key, value, seen },
                _ => EntryOp::InternalDelete { table, key },
            },
        )
    }

    fn entries() -> impl Strategy<Value = Vec<(Origin, Arc<Entry>)>> {
        let entry = (origin(), any::<u64>(), vec(op(), 1..4));
        vec(entry, 0..8).prop_map(|entries| {
            let entry = |(seq, (origin, time, ops))| {
                (origin, Arc::new(Entry { seq, time: Timestamp(time), ops }))
            };
            (1..).zip(entries).map(entry).collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(entries in entries()) {
            let packed: PackedEntries = entries.iter().cloned().collect();
            prop_assert_eq!(packed.len(), entries.len());
            prop_assert_eq!(packed.unpack(), entries.clone());
            let read = PackedEntries::read(packed.origins().to_vec(), packed.packed().clone());
            prop_assert_eq!(read, Ok(packed.clone()));
            for (packed, (_, entry)) in packed.iter().zip(&entries) {
                let put = match entry.ops.as_slice() {
                    [EntryOp::Put { key, value, lease }] => Some((key.clone(), value.clone(), *lease)),
                    _ => None,
                };
                prop_assert_eq!(packed.put(), put);
            }
        }

        /// Whatever it is, it is read as a whole or refused.
        #[test]
        fn damaged_entries_do_no_harm(
            entries in entries(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in any::<prop::sample::Index>(),
        ) {
            let packed: PackedEntries = entries.iter().cloned().collect();
            let mut bytes = packed.packed().to_vec();
            for (at, byte) in damage {
                if !bytes.is_empty() {
                    *at.get_mut(&mut bytes) = byte;
                }
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(read) = PackedEntries::read(packed.origins().to_vec(), bytes.into()) {
                let entries = read.unpack();
                prop_assert_eq!(entries.len(), read.len());
                prop_assert_eq!(entries.iter().map(|(_, it)| it.ops.len()).sum::<usize>(), read.ops());
            }
        }
    }

    #[test]
    fn what_ends_early_is_refused() {
        let origin = Origin { member: MemberId(1), run: 2 };
        let mut packer = Packer::default();
        packer.begin(origin, 3, Timestamp(4));
        packer.put(b"key", b"value", LeaseId(5));
        let packed = packer.finish();
        for len in 1..packed.bytes() {
            let read = PackedEntries::read(vec![origin], packed.packed().slice(..len));
            assert!(read.is_err(), "{len}");
        }
        let read = PackedEntries::read(Vec::new(), packed.packed().clone());
        assert_eq!(read, Err(Unreadable("an origin of entries that is not named")));
    }
}
