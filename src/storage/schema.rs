//! Every record that a store holds: key layout, value layout, one type each.
//!
//! The log's key is `(revision, n)`, both big-endian, so that rows are appended in key order. One row is one
//! op; the ops of an entry are neighbours, and each row carries its entry's origin, seq and time, so that a
//! row can go without a look at the others. An entry that shows takes the next revision and starts at `n = 0`;
//! what takes none (internal records, and entries of others that change nothing here) stands under the current
//! revision with the next `n`.
//!
//! Of revisions only the counters are stored. Their tag is in one row of its own, so that a store can take another; whoever
//! reads a place says under which tag to show it.
//!
//! `docs/storage-format.md` has the bytes. Change it, [`FORMAT_VERSION`] and this file together.

pub mod auth;
pub mod member;
pub mod setting;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Reader, corrupt, put_bytes, put_varint, put_zigzag, take_varint, zigzag};
use crate::error::StoreError;
use crate::time::Timestamp;
use crate::types::{
    Alarm, AlarmKind, ClusterId, KeyValue, LeaseId, MediaType, MemberId, Origin, Revision,
};

/// The version of everything in this file. A store of any other one is refused.
pub const FORMAT_VERSION: u32 = 2;

/// The bytes of a log key.
pub(super) const PLACE_BYTES: usize = 12;
/// The bytes of a row that hold neither key nor value, roughly, for a first allocation.
pub(super) const ROW_HEADER_BYTES: usize = 40;

/// Where a row of the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The revision of the entry, or the one that was current.
    pub revision: Revision,
    /// Its number under that revision.
    pub n: u32,
}

impl Place {
    /// The first place of a revision.
    pub fn first_of(revision: Revision) -> Self {
        Self { revision, n: 0 }
    }

    /// The same place, shown under a tag.
    #[must_use]
    pub fn with_tag(self, tag: u16) -> Self {
        Self { revision: self.revision.with_tag(tag), ..self }
    }

    /// The key of the row.
    pub fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&self.encoded())
    }

    pub(super) fn encoded(self) -> [u8; PLACE_BYTES] {
        let mut key = [0; PLACE_BYTES];
        key[..8].copy_from_slice(&self.revision.counter().to_be_bytes());
        key[8..].copy_from_slice(&self.n.to_be_bytes());
        key
    }

    /// Reads a key, and shows it under a tag.
    pub fn decode(key: &[u8], tag: u16) -> Result<Self, StoreError> {
        let (counter, n) =
            key.split_first_chunk().ok_or_else(|| corrupt("log key is too short"))?;
        let n = n.try_into().map_err(|_| corrupt("log key has the wrong length"))?;
        let revision = revision_of(u64::from_be_bytes(*counter))?.with_tag(tag);
        Ok(Self { revision, n: u32::from_be_bytes(n) })
    }
}

/// The revision of a counter as it is stored, under the tag 0.
fn revision_of(counter: u64) -> Result<Revision, StoreError> {
    if counter < Revision::COUNTER_END {
        return Ok(Revision(counter));
    }
    Err(corrupt("counter of a revision is out of range"))
}

/// An origin by its number in this store: see [`Meta::Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginIndex(pub u32);

/// What orders entries everywhere, as a row stores it. An origin never gives two entries the same time, so time and
/// origin name an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowStamp {
    /// When the entry was accepted.
    pub time: Timestamp,
    /// By which run of which member.
    pub origin: OriginIndex,
}

/// One row of the log: one op of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When and where the entry was accepted.
    pub stamp: RowStamp,
    /// As which entry of its origin; the first is 1.
    pub seq: u64,
    /// Which of the entry's ops this is.
    pub op_number: u32,
    /// Whether it is the entry's last op.
    pub last: bool,
    /// Whether it changed nothing when it came: a put or delete that had lost already, or a record that was not the
    /// latest. It is kept for other members only, and never read back into the state.
    pub hidden: bool,
    /// What it does.
    pub op: Op,
}

/// What a row does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key. `mod_revision` is the revision of the row's place.
    Put(KeyValue),
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// The put that it removed.
        seen: RowStamp,
    },
    /// Writes an internal record, which takes no revision.
    InternalPut {
        /// Of which kind.
        table: Table,
        /// Its key within that kind.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// Removals of the record up to this one were known to whoever wrote it.
        seen: Option<RowStamp>,
    },
    /// Removes an internal record, and whoever wrote it without knowing of this.
    InternalDelete {
        /// Of which kind.
        table: Table,
        /// Its key within that kind.
        key: Bytes,
    },
}

/// The kinds of internal records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Leases: `id (i64 big-endian) -> ttl in seconds (varint), owner (u64 little-endian)`.
    Lease = 1,
    /// Alarms of clients: `kind (u8), member (u64 big-endian) -> 0`.
    Alarm = 2,
    /// Members: `id (u64 big-endian) -> who it is`.
    Member = 3,
    /// How far an origin that has ended is known to whom: `member, run, reporter (u64 big-endian each) -> seq (varint)`.
    Seal = 4,
    /// The current run of each member: `id (u64 big-endian) -> run (varint)`. Whoever holds it knows that the runs before it
    /// have ended.
    Run = 5,
    /// Users, roles, and whether they matter: see [`auth`].
    Auth = 6,
    /// What clients have set for the whole cluster: see [`setting`].
    Setting = 7,
}

impl Table {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::Lease,
            Self::Alarm,
            Self::Member,
            Self::Seal,
            Self::Run,
            Self::Auth,
            Self::Setting,
        ];
        all.into_iter().find(|table| *table as u8 == number)
    }
}

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_INTERNAL_PUT: u8 = 3;
const KIND_INTERNAL_DELETE: u8 = 4;
const KIND_PUT_TYPED: u8 = 5;
/// Set on the last op of an entry.
const FLAG_LAST: u8 = 0x80;
/// Set on what changed nothing when it came.
const FLAG_HIDDEN: u8 = 0x40;

impl Row {
    /// The value of the row at `place`.
    pub fn encode(&self, place: Place) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes_at_most());
        self.encode_into(place, &mut out);
        out.freeze()
    }

    fn bytes_at_most(&self) -> usize {
        ROW_HEADER_BYTES + self.op.payload_bytes()
    }

    /// Appends the value of the row at `place`.
    pub(super) fn encode_into(&self, place: Place, out: &mut BytesMut) {
        let last = if self.last { FLAG_LAST } else { 0 };
        let hidden = if self.hidden { FLAG_HIDDEN } else { 0 };
        out.put_u8(self.op.kind() | last | hidden);
        put_stamp(out, self.stamp);
        put_varint(out, self.seq);
        put_varint(out, u64::from(self.op_number));
        self.op.encode(place, out);
    }

    /// Reads the row at `place`. Keys and values share the memory of `row`.
    pub fn decode(place: Place, row: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(row);
        let kind = reader.u8()?;
        let stamp = take_stamp(&mut reader)?;
        let seq = reader.varint()?;
        let op_number = take_u32(&mut reader)?;
        let op = Op::decode(kind & !(FLAG_LAST | FLAG_HIDDEN), place, reader)?;
        let (last, hidden) = (kind & FLAG_LAST != 0, kind & FLAG_HIDDEN != 0);
        Ok(Self { stamp, seq, op_number, last, hidden, op })
    }
}

/// Appends the value of a row of an entry that creates one key and does nothing else, as most do: see [`Row::encode`].
pub(super) fn encode_creation(stamp: RowStamp, seq: u64, put: &PutView<'_>, out: &mut BytesMut) {
    let kind = if put.media_type.is_empty() { KIND_PUT } else { KIND_PUT_TYPED };
    out.put_u8(kind | FLAG_LAST);
    put_stamp(out, stamp);
    put_varint(out, seq);
    let (op_number, age, version) = (0, 0, 1);
    put_varint(out, op_number);
    encode_put((age, version), put, out);
}

fn encode_put((age, version): (u64, u64), put: &PutView<'_>, out: &mut BytesMut) {
    put_varint(out, age);
    put_varint(out, version);
    put_zigzag(out, put.lease.0);
    if !put.media_type.is_empty() {
        put_bytes(out, put.media_type);
    }
    put_bytes(out, put.key);
    out.put_slice(put.value);
}

/// What a row says of itself, read where it lies: for those who look at a great many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowView<'a> {
    /// See [`Row::stamp`].
    pub stamp: RowStamp,
    /// See [`Row::seq`].
    pub seq: u64,
    /// See [`Row::hidden`].
    pub hidden: bool,
    /// What it writes, if it is a put.
    pub put: Option<PutView<'a>>,
}

/// A put within a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutView<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Its lease, if any.
    pub lease: LeaseId,
    /// What the value is; empty if that was not said.
    pub media_type: &'a [u8],
}

impl<'a> PutView<'a> {
    fn of(kv: &'a KeyValue) -> Self {
        let media_type = kv.media_type.as_str().as_bytes();
        Self { key: &kv.key, value: &kv.value, lease: kv.lease, media_type }
    }
}

impl<'a> RowView<'a> {
    /// Looks at the value of a row. Whether all of it is sound, [`Row::decode`] says.
    pub fn of(row: &'a [u8]) -> Result<Self, StoreError> {
        let short = || corrupt("record is too short");
        let (kind, mut rest) = row.split_first().ok_or_else(short)?;
        let origin = u32::try_from(take_varint(&mut rest)?);
        let origin = OriginIndex(origin.map_err(|_| corrupt("number is out of range"))?);
        let (time, mut rest) = rest.split_first_chunk().ok_or_else(short)?;
        let stamp = RowStamp { time: Timestamp(u64::from_le_bytes(*time)), origin };
        let seq = take_varint(&mut rest)?;
        let _op_number = take_varint(&mut rest)?;
        let hidden = kind & FLAG_HIDDEN != 0;
        let kind = kind & !(FLAG_LAST | FLAG_HIDDEN);
        let mut put = None;
        if matches!(kind, KIND_PUT | KIND_PUT_TYPED) {
            let _age = take_varint(&mut rest)?;
            let _version = take_varint(&mut rest)?;
            let lease = LeaseId(zigzag(take_varint(&mut rest)?));
            let media_type =
                if kind == KIND_PUT_TYPED { view_bytes(&mut rest)? } else { Default::default() };
            let key = view_bytes(&mut rest)?;
            put = Some(PutView { key, value: rest, lease, media_type });
        }
        Ok(Self { stamp, seq, hidden, put })
    }
}

impl Op {
    fn kind(&self) -> u8 {
        match self {
            Self::Put(kv) if kv.media_type.is_some() => KIND_PUT_TYPED,
            Self::Put(_) => KIND_PUT,
            Self::Delete { .. } => KIND_DELETE,
            Self::InternalPut { .. } => KIND_INTERNAL_PUT,
            Self::InternalDelete { .. } => KIND_INTERNAL_DELETE,
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Put(kv) => kv.key.len() + kv.value.len() + kv.media_type.as_str().len(),
            Self::Delete { key, .. } | Self::InternalDelete { key, .. } => key.len(),
            Self::InternalPut { key, value, .. } => key.len() + value.len(),
        }
    }

    fn encode(&self, place: Place, out: &mut BytesMut) {
        match self {
            Self::Put(kv) => {
                let age = place.revision.0.checked_sub(kv.create_revision.0);
                let age = age.expect("a key is created before it is modified");
                encode_put((age, kv.version), &PutView::of(kv), out);
            }
            Self::Delete { key, seen } => {
                put_stamp(out, *seen);
                put_bytes(out, key);
            }
            Self::InternalPut { table, key, value, seen } => {
                out.put_u8(*table as u8);
                put_seen(out, *seen);
                put_bytes(out, key);
                out.put_slice(value);
            }
            Self::InternalDelete { table, key } => {
                out.put_u8(*table as u8);
                put_bytes(out, key);
            }
        }
    }

    fn decode(kind: u8, place: Place, mut reader: Reader) -> Result<Self, StoreError> {
        match kind {
            KIND_PUT | KIND_PUT_TYPED => {
                let age = reader.varint()?;
                let create = place.revision.0.checked_sub(age);
                let create = create.ok_or_else(|| corrupt("key is older than the store"))?;
                let version = reader.varint()?;
                let lease = LeaseId(reader.zigzag()?);
                let media_type = match kind {
                    KIND_PUT_TYPED => take_media_type(&mut reader)?,
                    _ => MediaType::NONE,
                };
                let key = reader.bytes()?;
                Ok(Self::Put(KeyValue {
                    key,
                    create_revision: Revision(create),
                    mod_revision: place.revision,
                    version,
                    value: reader.rest(),
                    lease,
                    media_type,
                }))
            }
            KIND_DELETE => {
                let seen = take_stamp(&mut reader)?;
                let key = reader.bytes()?;
                reader.end()?;
                Ok(Self::Delete { key, seen })
            }
            KIND_INTERNAL_PUT => {
                let table = take_table(&mut reader)?;
                let seen = take_seen(&mut reader)?;
                let key = reader.bytes()?;
                Ok(Self::InternalPut { table, key, value: reader.rest(), seen })
            }
            KIND_INTERNAL_DELETE => {
                let table = take_table(&mut reader)?;
                let key = reader.bytes()?;
                reader.end()?;
                Ok(Self::InternalDelete { table, key })
            }
            _ => Err(StoreError::Corrupt(format!("row at {place:?} is of unknown kind {kind}"))),
        }
    }
}

/// A lease as it is stored: everything but its deadline, which only memory knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its id.
    pub id: LeaseId,
    /// Its time to live, in seconds, as granted.
    pub ttl_seconds: u64,
    /// The member that keeps its deadline.
    pub owner: MemberId,
}

impl LeaseRecord {
    /// The key of the record of lease `id`.
    pub fn key(id: LeaseId) -> Bytes {
        Bytes::copy_from_slice(&id.0.to_be_bytes())
    }

    /// The value of this record.
    pub fn value(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_varint(&mut out, self.ttl_seconds);
        out.put_u64_le(self.owner.0);
        out.freeze()
    }

    /// Reads the id out of a key.
    pub fn id(key: &[u8]) -> Result<LeaseId, StoreError> {
        let id = key.try_into().map_err(|_| corrupt("lease id has the wrong length"))?;
        Ok(LeaseId(i64::from_be_bytes(id)))
    }

    /// Reads a record.
    pub fn decode(key: &[u8], value: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(value);
        let (id, ttl_seconds) = (Self::id(key)?, reader.varint()?);
        let record = Self { id, ttl_seconds, owner: MemberId(reader.u64()?) };
        reader.end()?;
        Ok(record)
    }
}

/// An alarm that a client has raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmRecord {
    /// Which.
    pub alarm: Alarm,
}

impl AlarmRecord {
    /// The key of the record of an alarm.
    pub fn key(alarm: Alarm) -> Bytes {
        let mut key = BytesMut::new();
        key.put_u8(alarm.kind as u8);
        key.put_u64(alarm.member.0);
        key.freeze()
    }

    /// The value of this record.
    pub fn value(&self) -> Bytes {
        // All is in the key. Members know each other's times, but not their revisions.
        Bytes::from_static(&[0])
    }

    /// Reads the alarm out of a key.
    pub fn alarm(key: &[u8]) -> Result<Alarm, StoreError> {
        let (kind, member) = key.split_first().ok_or_else(|| corrupt("alarm key is empty"))?;
        let kind = match kind {
            1 => AlarmKind::NoSpace,
            2 => AlarmKind::Corrupt,
            kind => return Err(StoreError::Corrupt(format!("unknown kind of alarm {kind}"))),
        };
        let member = member.try_into().map_err(|_| corrupt("alarm key has the wrong length"))?;
        Ok(Alarm { kind, member: MemberId(u64::from_be_bytes(member)) })
    }

    /// Reads a record.
    pub fn decode(key: &[u8], value: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(value);
        reader.varint()?;
        reader.end()?;
        Ok(Self { alarm: Self::alarm(key)? })
    }
}

/// The rows about the store itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Who this store belongs to.
    Identity(Identity),
    /// An origin whose entries are here, by its number.
    Origin(OriginIndex, Origin),
    /// The last compaction: older revisions cannot be read. When it is read its tag is 0.
    Compacted(Revision),
    /// The newest run of this member, and how many entries it had accepted before.
    Run(OriginIndex, u64),
    /// Every row that a compaction at this revision gave up is gone from the disk if its entry is not younger than this,
    /// but for tombstones: those below both hide nothing any more. When it is read its tag is 0.
    Swept(Revision, Timestamp),
    /// Up to which seq the entries of an origin are here. That of the own run, as long as it lasts, is the last one in
    /// the log.
    Head(OriginIndex, u64),
    /// Every member holds everything up to here.
    Settled(Timestamp),
    /// Nothing younger than this has been collected.
    Collected(Timestamp),
    /// The store has, or had, peers. Everything up to here was written before that.
    Peered(Timestamp),
    /// The last promise: every entry of this member up to the first time is in the log. And up to when this member held what
    /// anyone wrote.
    Promised(Timestamp, Timestamp),
    /// The tag of the store's revisions, which is not 0. Without this row it is.
    Tag(u16),
    /// Everything up to this place was written before the store joined others, who may not know of it. What of it counts is
    /// written anew; behind the second place that is yet to be done. There is none until the data of the others has come.
    /// When it is read their tags are 0.
    Strays(Place, Option<Place>),
    /// This member was removed from its cluster: whoever opens the store next is somebody else.
    Removed,
    /// Everything up to this place was written under a former member id, and does not count. When it is read its tag is 0.
    Former(Place),
    /// This member has left its cluster of its own will: whoever opens the store next is somebody else, alone, with all
    /// of its data.
    Left,
    /// Everything up to this place was written before this store's member last left a cluster: who the members were then
    /// does not count. When it is read its tag is 0.
    Parted(Place),
    /// Entries of an origin up to this seq, none of which is later than this, may lack writes that were replaced: they were
    /// given up for space before everybody had them.
    Floor(OriginIndex, u64, Timestamp),
}

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
}

const META_IDENTITY: u8 = 1;
const META_ORIGIN: u8 = 2;
const META_COMPACTED: u8 = 3;
const META_RUN: u8 = 4;
const META_SWEPT: u8 = 5;
const META_HEAD: u8 = 6;
const META_SETTLED: u8 = 7;
const META_COLLECTED: u8 = 8;
const META_PEERED: u8 = 9;
const META_PROMISED: u8 = 10;
const META_TAG: u8 = 11;
const META_STRAYS: u8 = 12;
const META_REMOVED: u8 = 13;
const META_FORMER: u8 = 14;
const META_FLOOR: u8 = 15;
const META_LEFT: u8 = 16;
const META_PARTED: u8 = 17;

/// The values of the rows that say so.
const REMOVED: u8 = 1;
const LEFT: u8 = 1;

impl Meta {
    /// The key and value of the row.
    pub fn encode(self) -> (Bytes, Bytes) {
        let (mut key, mut value) = (BytesMut::new(), BytesMut::new());
        match self {
            Self::Identity(identity) => {
                key.put_u8(META_IDENTITY);
                value.put_u64_le(identity.member.0);
                value.put_u64_le(identity.cluster.0);
            }
            Self::Origin(index, origin) => {
                key.put_u8(META_ORIGIN);
                key.put_u32(index.0);
                value.put_u64_le(origin.member.0);
                value.put_u64_le(origin.run);
            }
            Self::Compacted(revision) => {
                key.put_u8(META_COMPACTED);
                value.put_u64_le(revision.counter());
            }
            Self::Run(index, entries) => {
                key.put_u8(META_RUN);
                put_varint(&mut value, u64::from(index.0));
                value.put_u64_le(entries);
            }
            Self::Swept(revision, settled) => {
                key.put_u8(META_SWEPT);
                value.put_u64_le(revision.counter());
                value.put_u64_le(settled.0);
            }
            Self::Head(index, seq) => {
                key.put_u8(META_HEAD);
                key.put_u32(index.0);
                value.put_u64_le(seq);
            }
            Self::Settled(time) => {
                key.put_u8(META_SETTLED);
                value.put_u64_le(time.0);
            }
            Self::Collected(time) => {
                key.put_u8(META_COLLECTED);
                value.put_u64_le(time.0);
            }
            Self::Peered(time) => {
                key.put_u8(META_PEERED);
                value.put_u64_le(time.0);
            }
            Self::Promised(time, complete) => {
                key.put_u8(META_PROMISED);
                value.put_u64_le(time.0);
                value.put_u64_le(complete.0);
            }
            Self::Tag(tag) => {
                key.put_u8(META_TAG);
                put_varint(&mut value, u64::from(tag));
            }
            Self::Floor(index, seq, time) => {
                key.put_u8(META_FLOOR);
                key.put_u32(index.0);
                value.put_u64_le(seq);
                value.put_u64_le(time.0);
            }
            Self::Strays(until, next) => {
                key.put_u8(META_STRAYS);
                value.put_slice(&until.encode());
                value.put_u8(u8::from(next.is_some()));
                if let Some(next) = next {
                    value.put_slice(&next.encode());
                }
            }
            Self::Removed => {
                key.put_u8(META_REMOVED);
                value.put_u8(REMOVED);
            }
            Self::Former(place) => {
                key.put_u8(META_FORMER);
                value.put_slice(&place.encode());
            }
            Self::Left => {
                key.put_u8(META_LEFT);
                value.put_u8(LEFT);
            }
            Self::Parted(place) => {
                key.put_u8(META_PARTED);
                value.put_slice(&place.encode());
            }
        }
        (key.freeze(), value.freeze())
    }

    /// Reads a row.
    pub fn decode(key: &[u8], value: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(value);
        let meta = match key {
            [META_IDENTITY] => Self::Identity(Identity {
                member: MemberId(reader.u64()?),
                cluster: ClusterId(reader.u64()?),
            }),
            [META_ORIGIN, index @ ..] => {
                let origin = Origin { member: MemberId(reader.u64()?), run: reader.u64()? };
                Self::Origin(index_of(index)?, origin)
            }
            [META_COMPACTED] => Self::Compacted(revision_of(reader.u64()?)?),
            [META_RUN] => Self::Run(OriginIndex(take_u32(&mut reader)?), reader.u64()?),
            [META_SWEPT] => Self::Swept(revision_of(reader.u64()?)?, Timestamp(reader.u64()?)),
            [META_HEAD, index @ ..] => Self::Head(index_of(index)?, reader.u64()?),
            [META_SETTLED] => Self::Settled(Timestamp(reader.u64()?)),
            [META_COLLECTED] => Self::Collected(Timestamp(reader.u64()?)),
            [META_PEERED] => Self::Peered(Timestamp(reader.u64()?)),
            [META_PROMISED] => Self::Promised(Timestamp(reader.u64()?), Timestamp(reader.u64()?)),
            [META_TAG] => Self::Tag(take_tag(&mut reader)?),
            [META_FLOOR, index @ ..] => {
                Self::Floor(index_of(index)?, reader.u64()?, Timestamp(reader.u64()?))
            }
            [META_STRAYS] => {
                let places = reader.rest();
                let (until, next) = places.split_at(places.len().min(PLACE_BYTES));
                let next = match next {
                    [0] => None,
                    [1, next @ ..] => Some(Place::decode(next, 0)?),
                    _ => return Err(corrupt("neither one place nor none")),
                };
                return Ok(Self::Strays(Place::decode(until, 0)?, next));
            }
            [META_REMOVED] if reader.u8()? == REMOVED => Self::Removed,
            [META_REMOVED] => return Err(corrupt("a member is removed, or there is no such row")),
            [META_FORMER] => return Ok(Self::Former(Place::decode(&reader.rest(), 0)?)),
            [META_LEFT] if reader.u8()? == LEFT => Self::Left,
            [META_LEFT] => return Err(corrupt("a member has left, or there is no such row")),
            [META_PARTED] => return Ok(Self::Parted(Place::decode(&reader.rest(), 0)?)),
            _ => return Err(StoreError::Corrupt(format!("unknown row {key:?} about the store"))),
        };
        reader.end()?;
        Ok(meta)
    }
}

/// Any number of that width: whether it is a tag of revisions, the engine says.
fn take_tag(reader: &mut Reader) -> Result<u16, StoreError> {
    u16::try_from(reader.varint()?).map_err(|_| corrupt("tag is out of range"))
}

fn index_of(key: &[u8]) -> Result<OriginIndex, StoreError> {
    let index = key.try_into().map_err(|_| corrupt("origin number has the wrong length"))?;
    Ok(OriginIndex(u32::from_be_bytes(index)))
}

fn put_seen(out: &mut BytesMut, seen: Option<RowStamp>) {
    out.put_u8(u8::from(seen.is_some()));
    if let Some(seen) = seen {
        put_stamp(out, seen);
    }
}

fn take_seen(reader: &mut Reader) -> Result<Option<RowStamp>, StoreError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => take_stamp(reader).map(Some),
        _ => Err(corrupt("neither one stamp nor none")),
    }
}

fn put_stamp(out: &mut BytesMut, stamp: RowStamp) {
    put_varint(out, u64::from(stamp.origin.0));
    out.put_u64_le(stamp.time.0);
}

fn take_stamp(reader: &mut Reader) -> Result<RowStamp, StoreError> {
    let origin = OriginIndex(take_u32(reader)?);
    Ok(RowStamp { time: Timestamp(reader.u64()?), origin })
}

fn take_u32(reader: &mut Reader) -> Result<u32, StoreError> {
    u32::try_from(reader.varint()?).map_err(|_| corrupt("number is out of range"))
}

fn view_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], StoreError> {
    let len = usize::try_from(take_varint(rest)?).unwrap_or(usize::MAX);
    let (bytes, behind) =
        rest.split_at_checked(len).ok_or_else(|| corrupt("record ends within its bytes"))?;
    *rest = behind;
    Ok(bytes)
}

fn take_media_type(reader: &mut Reader) -> Result<MediaType, StoreError> {
    let media_type = MediaType::parse(&reader.bytes()?).filter(MediaType::is_some);
    media_type.ok_or_else(|| corrupt("media type is none"))
}

fn take_table(reader: &mut Reader) -> Result<Table, StoreError> {
    let number = reader.u8()?;
    Table::from_number(number)
        .ok_or_else(|| StoreError::Corrupt(format!("unknown internal table {number}")))
}

#[cfg(test)]
mod tests;
