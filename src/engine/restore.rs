//! Start: what a store says about itself, and its log read back into memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::collection::Collection;
use super::early::Floor;
use super::graves::Grave;
use super::lease::Lessor;
use super::mvcc::{Mvcc, Standing, row_bytes};
use super::origins::Origins;
use super::records;
use crate::error::StoreError;
use crate::storage::schema::{Identity, Meta, Op, OriginIndex, Place, Row, RowStamp};
use crate::storage::{Space, Store};
use crate::time::Timestamp;
use crate::types::{LeaseId, Origin, Revision, TAG_MAX};

/// More than any store counts to. Up to here sums do not overflow, and clients see what is stored.
pub(super) const COUNT_MAX: u64 = 1 << 53;
/// A store whose counter comes this far is refused: what is left is for one that runs.
pub(super) const COUNTER_MAX: u64 = Revision::COUNTER_END - (1 << 20);
/// Where the counters of new stores with a tag start: at multiples of a power of two, ...
const START_BITS: u32 = 26;
/// ... below this one: half of all counters.
const STARTS: u64 = Revision::COUNTER_END >> 1 >> START_BITS;
/// Some 4000 years from now.
pub(super) const TIME_MAX: Timestamp = Timestamp(1 << 63);

/// The rows about the store, read at start.
#[derive(Debug, Default)]
pub(super) struct StoreMeta {
    pub(super) identity: Option<Identity>,
    pub(super) compacted: Option<Revision>,
    pub(super) swept: (Revision, Timestamp),
    pub(super) origins: Origins,
    /// The newest run of this member, and the entries before it.
    pub(super) run: Option<(OriginIndex, u64)>,
    pub(super) heads: Vec<(OriginIndex, u64)>,
    pub(super) settled: Timestamp,
    pub(super) collected: Timestamp,
    pub(super) peered: Option<Timestamp>,
    pub(super) promised: Timestamp,
    pub(super) complete: Timestamp,
    pub(super) tag: u16,
    pub(super) strays: Option<(Place, Option<Place>)>,
    /// Whether this store's member was removed, so that its next one is somebody else.
    pub(super) removed: bool,
    /// Rows up to here do not count. Under the tag 0.
    pub(super) former: Option<Place>,
    /// Whether this store's member has left its cluster, so that its next one is somebody else, alone.
    pub(super) left: bool,
    /// Who the members were does not count in rows up to here. Under the tag 0.
    pub(super) parted: Option<Place>,
    pub(super) floors: Vec<(OriginIndex, Floor)>,
    /// Whether the tag is yet to be written.
    pub(super) takes_tag: bool,
}

impl StoreMeta {
    /// Whether nothing was ever written, by nobody.
    pub(super) fn is_blank(&self, store: &Store) -> Result<bool, StoreError> {
        let is_nobodys = !self.removed && !self.left && self.former.is_none();
        let mut log = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        Ok(is_nobodys && log.next().transpose()?.is_none())
    }

    pub(super) fn read(store: &Store) -> Result<Self, StoreError> {
        let mut meta = Self::default();
        for row in store.rows(Space::Meta, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = row?;
            let row = Meta::decode(&key, value)?;
            if !is_possible(&row) {
                return Err(StoreError::Corrupt(format!("no store has {row:?}")));
            }
            match row {
                Meta::Identity(identity) => meta.identity = Some(identity),
                Meta::Compacted(revision) => meta.compacted = Some(revision),
                Meta::Swept(revision, settled) => meta.swept = (revision, settled),
                Meta::Run(index, entries) => meta.run = Some((index, entries)),
                Meta::Head(index, seq) => meta.heads.push((index, seq)),
                Meta::Settled(time) => meta.settled = time,
                Meta::Collected(time) => meta.collected = time,
                Meta::Peered(time) => meta.peered = Some(time),
                Meta::Promised(time, complete) => {
                    (meta.promised, meta.complete) = (time, complete);
                }
                Meta::Origin(index, origin) => meta.add_origin(index, origin)?,
                Meta::Tag(tag) => meta.tag = tag,
                Meta::Strays(until, next) => meta.strays = Some((until, next)),
                Meta::Removed => meta.removed = true,
                Meta::Former(place) => meta.former = Some(place),
                Meta::Left => meta.left = true,
                Meta::Parted(place) => meta.parted = Some(place),
                Meta::Floor(index, seq, time) => meta.floors.push((index, Floor { seq, time })),
            }
        }
        if meta.tag != 0 && meta.compacted.is_none() {
            return Err(StoreError::Corrupt("no store has a tag and all of its past".to_owned()));
        }
        let heads = meta.heads.iter().map(|(index, _)| *index);
        let floors = meta.floors.iter().map(|(index, _)| *index);
        for index in heads.chain(floors).chain(meta.run.map(|(index, _)| index)) {
            meta.check_origin(index)?;
        }
        Ok(meta)
    }

    fn add_origin(&mut self, index: OriginIndex, origin: Origin) -> Result<(), StoreError> {
        if self.origins.index(origin).is_some() {
            return Err(StoreError::Corrupt(format!("origin {origin} has two numbers")));
        }
        self.origins.insert(index, origin);
        Ok(())
    }

    fn check_origin(&self, index: OriginIndex) -> Result<(), StoreError> {
        if self.origins.contains(index) {
            return Ok(());
        }
        Err(StoreError::Corrupt(format!("no origin has the number {}", index.0)))
    }

    /// Gives a store that has no tag this one.
    pub(super) fn take_tag(&mut self, tag: Option<u16>) {
        let Some(tag) = tag.filter(|_| self.tag == 0) else { return };
        assert!((1..=TAG_MAX).contains(&tag), "{tag} is no tag");
        (self.tag, self.takes_tag) = (tag, true);
    }

    /// A store that takes a tag is compacted at its current revision: what clients remember has no tag. One that nothing
    /// was written to goes on from any number, so that another holder of the tag is hardly ever at the same.
    fn compact_for_tag(&mut self, end: &mut LogEnd, entropy: u64) {
        if end.is_empty {
            let counter = (1 + entropy % (STARTS - 1)) << START_BITS;
            end.newest.revision = Revision(counter).with_tag(self.tag);
        }
        self.compacted = Some(end.newest.revision.with_tag(0));
    }

    /// Where the log begins.
    fn beginning(&self) -> Place {
        let first =
            if self.tag == 0 { Revision::FIRST } else { self.compacted.unwrap_or_default() };
        Place::first_of(first.max(Revision::FIRST).with_tag(self.tag))
    }

    /// Checks it against the log.
    fn check(&self, end: &LogEnd) -> Result<(), StoreError> {
        let newest = end.newest.revision.with_tag(0);
        let compacted = self.compacted.unwrap_or_default();
        let (swept, _) = self.swept;
        if swept <= compacted && compacted <= newest {
            return Ok(());
        }
        Err(StoreError::Corrupt(format!(
            "swept at {swept} and compacted at {compacted}, but the log ends at {newest}"
        )))
    }

    pub(super) fn collection(&self, gc_age_millis: u64) -> Collection {
        let mut collection = Collection::new(self.swept, gc_age_millis);
        if let Some(peered) = self.peered {
            collection.resume(peered, self.settled, self.collected);
        }
        collection
    }

    /// How far the newest run has come, as far as it was written down.
    fn seq_on_record(&self) -> u64 {
        let run = self.run.map(|(run, _)| run);
        let head = self.heads.iter().find(|(index, _)| Some(*index) == run);
        head.map_or(0, |(_, seq)| *seq)
    }

    /// The greatest time that these rows name.
    pub(super) fn time(&self) -> Timestamp {
        let peered = self.peered.unwrap_or_default();
        let floor = self.floors.iter().map(|(_, floor)| floor.time).max().unwrap_or_default();
        let times = [self.settled, self.collected, self.swept.1, peered, self.promised, floor];
        times.into_iter().fold(Timestamp::default(), Timestamp::max)
    }
}

/// Whether a row about the store can be there at all.
fn is_possible(row: &Meta) -> bool {
    match row {
        Meta::Identity(_) | Meta::Removed | Meta::Left => true,
        Meta::Origin(index, origin) => index.0 < u32::MAX && origin.run <= COUNT_MAX,
        Meta::Compacted(revision) => revision.0 <= COUNTER_MAX,
        Meta::Swept(revision, settled) => revision.0 <= COUNTER_MAX && *settled < TIME_MAX,
        Meta::Run(_, count) | Meta::Head(_, count) => *count <= COUNT_MAX,
        Meta::Floor(_, count, time) => *count <= COUNT_MAX && *time < TIME_MAX,
        Meta::Settled(time) | Meta::Collected(time) | Meta::Peered(time) => *time < TIME_MAX,
        Meta::Promised(time, complete) => *time < TIME_MAX && *complete < TIME_MAX,
        Meta::Strays(until, next) => until.revision.0 <= COUNTER_MAX && *next <= Some(*until),
        Meta::Former(place) | Meta::Parted(place) => place.revision.0 <= COUNTER_MAX,
        Meta::Tag(tag) => (1..=TAG_MAX).contains(tag),
    }
}

/// Checks that a row of the log is one that an engine can have written.
fn check_row(place: Place, row: &Row, origins: &Origins) -> Result<(), StoreError> {
    let is_counted = |count: u64| (1..=COUNT_MAX).contains(&count);
    let is_revision = |revision: Revision| {
        revision.tag() == place.revision.tag() && (1..=COUNTER_MAX).contains(&revision.counter())
    };
    let is_stamp = |stamp: RowStamp| stamp.time < TIME_MAX && origins.contains(stamp.origin);
    let is_sound = match &row.op {
        Op::Put(kv) => {
            !kv.key.is_empty() && is_counted(kv.version) && is_revision(kv.create_revision)
        }
        Op::Delete { key, seen } => !key.is_empty() && is_stamp(*seen),
        Op::InternalPut { table, key, value, seen } => {
            records::check(*table, key, Some(value))?;
            seen.is_none_or(is_stamp)
        }
        Op::InternalDelete { table, key } => {
            records::check(*table, key, None)?;
            true
        }
    };
    let is_placed = is_revision(place.revision) && place.n < u32::MAX;
    if is_sound && is_placed && row.seq <= COUNT_MAX && is_stamp(row.stamp) {
        return Ok(());
    }
    // Not what is in it: that may be long, and somebody's.
    Err(StoreError::Corrupt(format!("the row at {place:?} is none that can have been written")))
}

/// What the log says about how far the store has come.
#[derive(Debug)]
pub(super) struct LogEnd {
    pub(super) newest: Place,
    /// Whether there is no row.
    is_empty: bool,
    pub(super) time: Timestamp,
    /// The last entry of the newest run.
    pub(super) seq: u64,
    /// What hidden rows take.
    pub(super) hidden_bytes: u64,
    /// The members as they were when this one was removed: where the others may be found.
    pub(super) former_members: BTreeMap<Bytes, Bytes>,
}

/// Reads the whole log back into memory, and finds out how the store goes on.
pub(super) fn restore(
    mvcc: &Mvcc,
    lessor: &Lessor,
    meta: &mut StoreMeta,
    revision_entropy: u64,
) -> Result<LogEnd, StoreError> {
    let mut end = read_log(mvcc, lessor, meta)?;
    if meta.removed {
        meta.leave_behind(&end);
    }
    if meta.left {
        meta.parted = Some(end.newest.with_tag(0));
    }
    if meta.takes_tag {
        meta.compact_for_tag(&mut end, revision_entropy);
    }
    if let Some(former) = meta.former {
        mvcc.set_former(former);
    }
    meta.check(&end)?;
    Ok(end)
}

fn read_log(mvcc: &Mvcc, lessor: &Lessor, meta: &StoreMeta) -> Result<LogEnd, StoreError> {
    mvcc.origins().write().clone_from(&meta.origins);
    let (newest, time, seq) = (meta.beginning(), meta.time(), meta.seq_on_record());
    let mut end = LogEnd {
        newest,
        is_empty: true,
        time,
        seq,
        hidden_bytes: 0,
        former_members: BTreeMap::new(),
    };
    if meta.peered.is_some() {
        mvcc.marks().write().keep();
    }
    let mut current = None;
    mvcc.store().for_each_row(Space::Log, |key, value| {
        let place = Place::decode(&key, meta.tag)?;
        let mut row = Row::decode(place, value)?;
        check_row(place, &row, &meta.origins)?;
        detach_record(&mut row.op);
        end.newest = place;
        end.is_empty = false;
        end.time = end.time.max(row.stamp.time);
        if meta.run.is_some_and(|(run, _)| run == row.stamp.origin) {
            end.seq = end.seq.max(row.seq);
        }
        if meta.removed || meta.former.is_some_and(|former| place.with_tag(0) <= former) {
            end.note_former(&row);
            return Ok(());
        }
        if meta.is_of_former_cluster(place, &row) {
            end.hidden_bytes += u64::from(row_bytes(&row.op));
            return Ok(());
        }
        let entry = (row.stamp.origin, row.seq);
        if meta.peered.is_some() && current.replace(entry) != Some(entry) {
            mvcc.marks().write().note(entry.0, entry.1, place);
        }
        if row.hidden {
            restore_hidden(mvcc, place, &row);
            end.hidden_bytes += u64::from(row_bytes(&row.op));
            return Ok(());
        }
        match &row.op {
            Op::Put(kv) => {
                let former = mvcc.restore(place, &row);
                mvcc.exhume(&kv.key);
                lessor.reattach(&kv.key, former, kv.lease);
            }
            Op::Delete { key, .. } => {
                let former = mvcc.restore(place, &row);
                lessor.reattach(key, former, LeaseId::NONE);
            }
            Op::InternalPut { .. } | Op::InternalDelete { .. } => {
                mvcc.records().write().apply(place, &row, &meta.origins);
            }
        }
        Ok(())
    })?;
    Ok(end)
}

/// Records are kept as they are. All else goes soon, and may share memory with the block that it was read from.
fn detach_record(op: &mut Op) {
    match op {
        Op::InternalPut { key, value, .. } => {
            *key = Bytes::copy_from_slice(key);
            *value = Bytes::copy_from_slice(value);
        }
        Op::InternalDelete { key, .. } => *key = Bytes::copy_from_slice(key),
        Op::Put(_) | Op::Delete { .. } => {}
    }
}

/// A hidden delete may count, for what is on its way.
fn restore_hidden(mvcc: &Mvcc, place: Place, row: &Row) {
    let Op::Delete { key, seen } = &row.op else { return };
    if !matches!(mvcc.standing(key).0, Standing::Alive(_)) {
        mvcc.bury(key, Grave { seen: *seen, time: row.stamp.time, place, hidden: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Options, Writer};
    use crate::storage::schema::RowStamp;
    use crate::storage::schema::{AlarmRecord, LeaseRecord, Table};
    use crate::storage::{Batch, Durability, Memory};
    use crate::time::Now;
    use crate::types::{ClusterId, KeyValue, MemberId};

    const NOW: Now = Now { wall_millis: 1_000, monotonic_millis: 0 };
    const ORIGIN: Origin = Origin { member: MemberId(1), run: 1 };
    const STAMP: RowStamp = RowStamp { time: Timestamp(1), origin: OriginIndex(0) };

    fn row(revision: Revision) -> Row {
        let kv = KeyValue {
            key: Bytes::from_static(b"key"),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            ..KeyValue::default()
        };
        Row { stamp: STAMP, seq: 1, op_number: 0, last: true, hidden: false, op: Op::Put(kv) }
    }

    /// Opens a store with these rows.
    fn open(place: Place, row: &Row, meta: Option<Meta>) -> Result<Writer, StoreError> {
        let store = Store::Memory(Memory::new());
        let mut batch = Batch::default();
        let (key, value) = Meta::Origin(STAMP.origin, ORIGIN).encode();
        batch.put(Space::Meta, key, value);
        batch.put(Space::Log, place.encode(), row.encode(place));
        if let Some((key, value)) = meta.map(Meta::encode) {
            batch.put(Space::Meta, key, value);
        }
        store.commit(batch, Durability::Fsync)?;
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        Writer::open(store, &Options::new(identity), NOW)
    }

    #[test]
    fn what_no_engine_has_written_is_refused() {
        let second = Place::first_of(Revision(2));
        let good = || row(Revision(2));
        assert!(open(second, &good(), None).is_ok());
        let places = [
            Place::first_of(Revision(0)),
            Place::first_of(Revision(u64::MAX)),
            Place { n: u32::MAX, ..second },
        ];
        let no_time = RowStamp { time: Timestamp(u64::MAX), ..STAMP };
        let nobody = RowStamp { origin: OriginIndex(7), ..STAMP };
        let lease = |ttl_seconds| Op::InternalPut {
            table: Table::Lease,
            key: LeaseRecord::key(LeaseId(7)),
            value: LeaseRecord { id: LeaseId(7), ttl_seconds, owner: MemberId(1) }.value(),
            seen: None,
        };
        let seen = |seen| Op::Delete { key: Bytes::from("key"), seen };
        let no_alarm = AlarmRecord::key(crate::types::Alarm {
            kind: crate::types::AlarmKind::NoSpace,
            member: MemberId(1),
        });
        let ops = [
            seen(no_time),
            seen(nobody),
            lease(u64::MAX),
            Op::InternalDelete { table: Table::Lease, key: LeaseRecord::key(LeaseId::NONE) },
            Op::InternalDelete { table: Table::Alarm, key: no_alarm.slice(1..) },
            Op::InternalDelete { table: Table::Member, key: Bytes::new() },
        ];
        let odd = [
            Row { seq: u64::MAX, ..good() },
            Row { stamp: no_time, ..good() },
            Row { stamp: nobody, ..good() },
        ];
        let odd = odd.into_iter().chain(ops.map(|op| Row { op, ..good() }));
        assert!(open(second, &Row { op: lease(60), ..good() }, None).is_ok());
        assert!(open(second, &Row { op: seen(STAMP), ..good() }, None).is_ok());
        let metas = [
            Meta::Compacted(Revision(3)),
            Meta::Swept(Revision(1), Timestamp(0)),
            Meta::Run(STAMP.origin, u64::MAX),
            Meta::Run(OriginIndex(7), 0),
            Meta::Head(STAMP.origin, u64::MAX),
            Meta::Head(OriginIndex(7), 1),
            Meta::Floor(STAMP.origin, u64::MAX, Timestamp(0)),
            Meta::Floor(STAMP.origin, 1, Timestamp(u64::MAX)),
            Meta::Floor(OriginIndex(7), 1, Timestamp(0)),
            Meta::Settled(Timestamp(u64::MAX)),
            Meta::Collected(Timestamp(u64::MAX)),
            Meta::Peered(Timestamp(u64::MAX)),
            Meta::Origin(OriginIndex(u32::MAX), Origin { run: 2, ..ORIGIN }),
            Meta::Origin(OriginIndex(1), Origin { run: u64::MAX, ..ORIGIN }),
            Meta::Origin(OriginIndex(1), ORIGIN),
        ];
        let stores = places.map(|place| open(place, &row(place.revision), None));
        let stores = stores.into_iter().chain(odd.map(|row| open(second, &row, None)));
        let stores = stores.chain(metas.map(|meta| open(second, &good(), Some(meta))));
        for (i, store) in stores.enumerate() {
            assert!(matches!(store, Err(StoreError::Corrupt(_))), "case {i}");
        }
    }
}
