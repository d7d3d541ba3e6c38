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
//!         7 put with a media type    lease (8 bytes, 0 for none), media type, key, value
//! seen:   origin (varint), time (8 bytes)
//! key:    length (varint), bytes; values and media types likewise
//! ```
//!
//! Numbers of 8 bytes are little-endian. Varints are those of protobuf.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::entry::{Entry, EntryOp};
use crate::storage::codec::{put_bytes, put_varint, take_varint};
use crate::storage::schema::{PutView, Table};
use crate::time::{Stamp, Timestamp};
use crate::types::{LeaseId, MediaType, Origin};

const KIND_PUT: u8 = 1;
const KIND_PUT_LEASED: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_INTERNAL_PUT: u8 = 4;
const KIND_INTERNAL_PUT_SEEN: u8 = 5;
const KIND_INTERNAL_DELETE: u8 = 6;
const KIND_PUT_TYPED: u8 = 7;
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
    bounds: Bounds,
}

/// What is true of all of some entries, found when they are read: whoever wants to know need not go through them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The least of their numbers.
    pub seq_min: u64,
    /// The greatest of their numbers.
    pub seq_max: u64,
    /// The greatest of their times.
    pub time_max: Timestamp,
    /// Whether each is one put and nothing else.
    pub are_puts: bool,
}

impl Default for Bounds {
    /// Of no entries.
    fn default() -> Self {
        Self { seq_min: u64::MAX, seq_max: 0, time_max: Timestamp(0), are_puts: true }
    }
}

impl Bounds {
    fn note(&mut self, seq: u64, time: Timestamp) {
        self.seq_min = self.seq_min.min(seq);
        self.seq_max = self.seq_max.max(seq);
        self.time_max = self.time_max.max(time);
    }
}

impl PackedEntries {
    /// Takes what a peer has sent, if it is what it should be. Allocates nothing.
    pub fn read(origins: Vec<Origin>, bytes: Bytes) -> Result<Self, Unreadable> {
        let mut rest = bytes.as_ref();
        let (mut entries, mut ops, mut bounds) = (0, 0, Bounds::default());
        while !rest.is_empty() {
            let (_, seq, time) = take_header(&mut rest, &origins)?;
            bounds.note(seq, time);
            entries += 1;
            loop {
                ops += 1;
                let op = take_op(&mut rest, &origins)?;
                bounds.are_puts &= op.is_put() && !op.more;
                if !op.more {
                    break;
                }
            }
        }
        Ok(Self { origins, bytes, entries, ops, bounds })
    }

    /// What is true of all of them.
    pub fn bounds(&self) -> Bounds {
        self.bounds
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

/// What a put writes. Key and value share the memory of all entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedPut {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Its lease, if any.
    pub lease: LeaseId,
    /// What the value is, if that was said.
    pub media_type: MediaType,
}

impl<'a> PackedEntry<'a> {
    /// The same as [`Self::put`], where it lies.
    pub fn put_view(&self) -> Option<PutView<'a>> {
        let RawOp { lease, media_type, key, value, .. } = self.first;
        self.is_put().then_some(PutView { key, value, lease, media_type })
    }

    /// What it writes if it is one put and nothing else, as most are.
    pub fn put(&self) -> Option<PackedPut> {
        self.is_put().then(|| self.packed_put(self.first))
    }

    /// Whether it is one put and nothing else.
    pub fn is_put(&self) -> bool {
        self.first.is_put() && !self.first.more
    }

    /// Whether it writes or removes records.
    pub fn has_records(&self) -> bool {
        let (mut rest, mut op) = (self.ops, self.first);
        while op.more
            && op.table.is_none()
            && let Ok(next) = take_op(&mut rest, &self.within.origins)
        {
            op = next;
        }
        op.table.is_some()
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

    fn packed_put(&self, op: RawOp<'_>) -> PackedPut {
        let RawOp { lease, media_type, key, value, .. } = op;
        let slice = |bytes| self.within.bytes.slice_ref(bytes);
        let media_type = MediaType::parse(media_type).unwrap_or_default();
        PackedPut { key: slice(key), value: slice(value), lease, media_type }
    }

    fn entry_op(&self, op: RawOp<'_>) -> EntryOp {
        let (kind, table, seen) = (op.kind, op.table, op.seen);
        let PackedPut { key, value, lease, media_type } = self.packed_put(op);
        match (kind, table, seen) {
            (KIND_DELETE, _, Some(seen)) => EntryOp::Delete { key, seen },
            (KIND_INTERNAL_DELETE, Some(table), _) => EntryOp::InternalDelete { table, key },
            (_, Some(table), seen) => EntryOp::InternalPut { table, key, value, seen },
            _ => EntryOp::Put { key, value, lease, media_type },
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
    /// Empty for none.
    media_type: &'a [u8],
    key: &'a [u8],
    value: &'a [u8],
}

impl RawOp<'_> {
    fn is_put(&self) -> bool {
        matches!(self.kind, KIND_PUT | KIND_PUT_LEASED | KIND_PUT_TYPED)
    }
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

#[inline]
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

#[inline]
fn take_op<'a>(rest: &mut &'a [u8], origins: &[Origin]) -> Result<RawOp<'a>, Unreadable> {
    let kind = take_u8(rest)?;
    let (kind, more) = (kind & !FLAG_MORE, kind & FLAG_MORE != 0);
    let (table, seen, lease) = (None, None, LeaseId::NONE);
    let (media_type, key, value) = Default::default();
    let mut op = RawOp { kind, more, table, seen, lease, media_type, key, value };
    match kind {
        KIND_PUT | KIND_DELETE => {}
        KIND_PUT_LEASED => {
            op.lease = LeaseId(take_u64(rest)?.cast_signed());
            if !op.lease.is_some() {
                return Err(Unreadable("a lease in entries that is none"));
            }
        }
        KIND_PUT_TYPED => {
            op.lease = LeaseId(take_u64(rest)?.cast_signed());
            op.media_type = take_bytes(rest)?;
            if op.media_type.is_empty() || !MediaType::is_sound(op.media_type) {
                return Err(Unreadable("a media type in entries that is none"));
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
    bounds: Bounds,
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
            self.bounds.are_puts = false;
            return;
        }
        self.last = Some((origin, seq));
        self.bounds.note(seq, time);
        self.entries += 1;
        self.put_origin(origin);
        put_varint(&mut self.out, seq);
        self.out.put_u64_le(time.0);
    }

    /// A put. An empty media type is none.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId, media_type: &[u8]) {
        if !media_type.is_empty() {
            self.kind(KIND_PUT_TYPED);
            self.out.put_i64_le(lease.0);
            put_bytes(&mut self.out, media_type);
        } else if lease.is_some() {
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
        self.bounds.are_puts &= matches!(op, EntryOp::Put { .. });
        match op {
            EntryOp::Put { key, value, lease, media_type } => {
                self.put(key, value, *lease, media_type.as_str().as_bytes());
            }
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
        let Self { origins, out, entries, ops, bounds, .. } = self;
        PackedEntries { origins, bytes: out.freeze(), entries, ops, bounds }
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
    use std::mem::take;

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
        let media_type = prop_oneof![Just(String::new()), "[ -~]{1,255}"];
        let put = (prop_oneof![Just(0), any::<i64>()], media_type);
        let seen = proptest::option::of(stamp());
        (0..4, key, value, put, table, seen, stamp()).prop_map(
            |(kind, key, value, (lease, media_type), table, seen, stamp)| match kind {
                0 => {
                    let media_type = MediaType::parse(media_type.as_bytes());
                    let media_type = media_type.expect("it is printable");
                    EntryOp::Put { key, value, lease: LeaseId(lease), media_type }
                }
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
                let put = match entry.ops.clone().as_mut_slice() {
                    [EntryOp::Put { key, value, lease, media_type }] => Some(PackedPut {
                        key: take(key),
                        value: take(value),
                        lease: *lease,
                        media_type: take(media_type),
                    }),
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

    fn origin_of_one() -> Origin {
        Origin { member: MemberId(1), run: 2 }
    }

    fn one_put(lease: LeaseId, media_type: &[u8]) -> PackedEntries {
        let mut packer = Packer::default();
        packer.begin(origin_of_one(), 3, Timestamp(4));
        packer.put(b"key", b"value", lease, media_type);
        packer.finish()
    }

    #[test]
    fn what_ends_early_or_goes_on_is_refused() {
        let typed = one_put(LeaseId(5), b"text/css");
        for packed in [one_put(LeaseId::NONE, b""), one_put(LeaseId(5), b""), typed] {
            let read = |bytes| PackedEntries::read(vec![origin_of_one()], bytes);
            for len in 1..packed.bytes() {
                assert!(read(packed.packed().slice(..len)).is_err(), "{len}");
            }
            assert!(read([packed.packed(), &[0][..]].concat().into()).is_err());
            let read = PackedEntries::read(Vec::new(), packed.packed().clone());
            assert_eq!(read, Err(Unreadable("an origin of entries that is not named")));
        }
    }

    #[test]
    fn what_no_member_packs_is_refused() {
        let entry = |ops: &[u8]| [&[0, 3][..], &4_u64.to_le_bytes(), ops].concat();
        let read = |bytes: Vec<u8>| PackedEntries::read(vec![origin_of_one()], bytes.into());
        let lease =
            |lease: u64| [&[KIND_PUT_LEASED][..], &lease.to_le_bytes(), b"\x01k\x01v"].concat();
        let stamp = |origin| [&[KIND_DELETE, origin][..], &[0; 8], b"\x01k"].concat();
        let seen = |origin: u8| {
            let table = Table::Lease as u8;
            [&[KIND_INTERNAL_PUT_SEEN, table, origin][..], &[0; 8], b"\x01k\x01v"].concat()
        };
        let internal = |kind, table: u8| [&[kind, table][..], b"\x01k\x01v"].concat();
        let (put, lists) = (b"\x01\x01k\x01v".to_vec(), Table::Lease as u8);
        for sound in [&put, &lease(5), &stamp(0), &seen(0), &internal(KIND_INTERNAL_PUT, lists)] {
            assert!(read(entry(sound)).is_ok_and(|it| (it.len(), it.ops()) == (1, 1)), "{sound:?}");
        }
        let several = [&[KIND_PUT | FLAG_MORE][..], &put[1..], &stamp(0)].concat();
        let two = [entry(&several), entry(&put)].concat();
        assert!(read(two).is_ok_and(|it| (it.len(), it.ops()) == (2, 3)));

        let endless = [&[1][..], &[0xff; 11], b"k\x01v"].concat();
        let huge = [&[1][..], &[0xff; 9], &[1], b"k\x01v"].concat();
        let table = [&[KIND_INTERNAL_DELETE, 0][..], b"\x01k"].concat();
        let cases = [
            ("an unknown op", b"\x09\x01k\x01v".to_vec(), "an unknown op in entries"),
            ("no op", b"\x00\x01k\x01v".to_vec(), "an unknown op in entries"),
            ("an empty key", b"\x01\x00\x01v".to_vec(), "an empty key in entries"),
            ("no lease", lease(0), "a lease in entries that is none"),
            ("a stamp of nobody", stamp(1), "an origin of entries that is not named"),
            ("a record's stamp of nobody", seen(1), "an origin of entries that is not named"),
            ("no kind of record", table, "an unknown kind of record in entries"),
            (
                "an unknown kind of record",
                internal(KIND_INTERNAL_PUT, 99),
                "an unknown kind of record in entries",
            ),
            ("a length without an end", endless, "a number in entries that is none"),
            ("a key of all memory", huge, ENDS_EARLY.0),
            ("an op that is missing", several[..several.len() - 10].to_vec(), ENDS_EARLY.0),
        ];
        for (what, ops, why) in cases {
            assert_eq!(read(entry(&ops)), Err(Unreadable(why)), "{what}");
            // Behind what is sound, too.
            let second = [entry(&put), entry(&ops)].concat();
            assert_eq!(read(second), Err(Unreadable(why)), "{what}, behind another entry");
        }
    }

    #[test]
    fn a_media_type_is_one_or_is_refused() {
        let read = |media_type: &[u8]| {
            let packed = one_put(LeaseId::NONE, media_type);
            PackedEntries::read(vec![origin_of_one()], packed.packed().clone()).is_ok()
        };
        let (longest, longer) = ([b'a'; MediaType::BYTES_MAX], [b'a'; MediaType::BYTES_MAX + 1]);
        assert!(read(&longest), "that is as long as one may be");
        assert!(!read(&longer) && !read(b"a\nb") && !read(b"\xc3\xa4"));
        // One that is empty only others can have packed.
        let mut bytes = one_put(LeaseId::NONE, b"a").packed().to_vec();
        let at = bytes.windows(2).position(|it| it == b"\x01a").expect("it is there");
        bytes.splice(at..at + 2, [0]);
        let read = PackedEntries::read(vec![origin_of_one()], bytes.into());
        assert_eq!(read, Err(Unreadable("a media type in entries that is none")));
    }
}
