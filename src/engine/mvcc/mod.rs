//! Versions of keys: the index in memory, the rows in the log, and reading both at one revision.
//!
//! The writer changes the index as it evaluates, before anything is durable. That is safe because readers read
//! at the *published* revision, which moves only after the fsync: a version above it is not there for them, and
//! whatever it replaced is found among the older ones. So nobody waits for the disk, and the lock around
//! the index is held for microseconds.
//!
//! A reader also holds on to the *era* in which it started. Compaction begins a new era and frees nothing before
//! the last reader of the former one is done, so what a reader has found it can fetch.
//!
//! When the store takes another tag all revisions here are renumbered at once, under the lock around the index. A reader
//! from before would find nonsense by its own numbers; so each look at the index compares the count of retags, and the
//! read fails as if it were compacted. What was found before stays good: the log knows no tags. So a read is either
//! what it would have been before, or an error, and the writer waits for nobody.
//!
//! Invariants
//! * `compacted <= published`, and neither goes back, but for a change of the tag. Both have the tag of all revisions here.
//! * Every version in the index has a row in the log or in the writer's open batch.
//! * `live_bytes` is the sum of the sizes of all versions in the index.

mod catch_up;
mod compact;
mod create;
mod dead;
mod doorkeeper;
mod fingerprint;
mod hash;
mod history;
mod index;
mod marks;
mod range;
mod segments;
mod sorted;
mod walk;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::command::{Filter, Range, RangeReply, Reply, SortTarget};
use super::early::{Floor, Floors};
use super::graves::{Grave, Graves};
use super::origins::Origins;
use super::records::Records;
use super::{Failure, Pair, tags};
use crate::error::{Error, StoreError};
use crate::replication::message::{Head, OriginFloor};
use crate::storage::schema::{Op, Place, Row, RowStamp};
use crate::storage::{Space, Store};
use crate::time::Timestamp;
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

pub use catch_up::{Claims, Onward, StatePart};
pub use compact::Sweep;
pub(super) use compact::{Reclaim, SLICE_KEYS, SLICE_KEYS_BUSY};
use dead::DeadBytes;
use doorkeeper::Doorkeeper;
pub use hash::StateHash;
pub use history::KeyVersion;
pub(super) use index::Latest;
use index::{Index, Version};
use marks::Marks;

/// What a row costs beyond its key and value: header, key in the log and its share of table overhead.
const ROW_OVERHEAD_BYTES: usize = 36;
/// What a cached pair costs beyond its encoding: its place, the cache's own links, and what the allocator rounds up.
const CACHED_OVERHEAD_BYTES: u64 = 96;
/// The part of the cache that is left when it counts as full.
const CACHE_SLACK: u64 = 16;
/// A typical cached pair, to size the cache's own tables.
const CACHED_TYPICAL_BYTES: u64 = 512;
/// How many births and deaths of keys are remembered, to count the keys of recent revisions without a walk.
const RECENT_MAX: usize = 1 << 16;
/// How many keys a reader takes from the index before it lets go of the lock.
const CHUNK_KEYS: usize = 512;
/// Rows are read in one sweep if there is at most this many revisions per row that is wanted.
const SWEEP_GAP_MAX: u64 = 4;

/// The bytes that a row counts for, against the quota and in `dbSizeInUse`.
pub(super) fn row_bytes(op: &Op) -> u32 {
    let payload = match op {
        Op::Put(kv) => kv.key.len() + kv.value.len() + kv.media_type.as_str().len(),
        Op::Delete { key, .. } | Op::InternalDelete { key, .. } => key.len(),
        Op::InternalPut { key, value, .. } => key.len() + value.len(),
    };
    bytes_of_row(payload)
}

fn bytes_of_row(payload: usize) -> u32 {
    u32::try_from(payload + ROW_OVERHEAD_BYTES).unwrap_or(u32::MAX >> 1)
}

/// How much of a cache a pair takes.
#[derive(Clone)]
struct PairWeighter;

impl Weighter<Place, Pair> for PairWeighter {
    fn weight(&self, _place: &Place, pair: &Pair) -> u64 {
        pair.wire().len() as u64 + CACHED_OVERHEAD_BYTES
    }
}

/// Readers of one stretch of time between two compactions.
#[derive(Debug, Default)]
struct Era;

/// A key came to life or died.
#[derive(Debug)]
struct Turn {
    revision: Revision,
    born: bool,
    key: Box<[u8]>,
}

/// The index, and what must change together with it.
struct Guarded {
    index: Index,
    era: Arc<Era>,
    /// How many eras there were before.
    era_number: u64,
    /// How often all revisions have been renumbered.
    retags: u64,
    /// The latest births and deaths, oldest first.
    recent: VecDeque<Turn>,
    /// All births and deaths above this revision are in `recent`.
    recent_after: Revision,
    live_bytes: u64,
    /// Rows that have left the index but not the disk yet.
    dead: DeadBytes,
}

/// What counts of a key: its greatest put or its greatest delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Neither.
    Unknown,
    /// It lives, by this put.
    Alive(RowStamp),
    /// It is dead: puts up to this one are deleted.
    Dead(RowStamp),
}

/// The versions of all keys. Shared by the writer and all readers.
pub struct Mvcc {
    guarded: RwLock<Guarded>,
    /// The origins whose numbers rows have.
    origins: RwLock<Origins>,
    /// The internal records, as of the open batch.
    records: RwLock<Records>,
    /// The deletes that count but have left the index. Locked after the index and before the origins.
    graves: RwLock<Graves>,
    /// Where the entries of each origin are, if there are peers.
    marks: RwLock<Marks>,
    /// Rows up to here do not count, under the tag 0, if there are any such.
    former: OnceLock<Place>,
    /// Locked after the origins.
    floors: RwLock<Floors>,
    store: Store,
    cache: Cache<Place, Pair, PairWeighter>,
    /// Guards it once it is full.
    doorkeeper: Doorkeeper,
    published: AtomicU64,
    /// The last compaction plus one; zero if there was none, since a fresh store may be compacted at 0, once.
    compacted_mark: AtomicU64,
}

impl fmt::Debug for Mvcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (revision, compacted) = (self.revision(), self.compacted());
        f.debug_struct("Mvcc")
            .field("revision", &revision)
            .field("compacted", &compacted)
            .finish_non_exhaustive()
    }
}

impl Mvcc {
    /// An empty keyspace on `store`, to be filled by [`Self::restore`]. `cache_bytes` bounds the values in memory.
    pub(super) fn new(store: Store, cache_bytes: u64, tag: u16) -> Self {
        let items = usize::try_from(cache_bytes / CACHED_TYPICAL_BYTES).unwrap_or(usize::MAX);
        let guarded = Guarded {
            index: Index::new(),
            era: Arc::new(Era),
            era_number: 0,
            retags: 0,
            recent: VecDeque::new(),
            recent_after: Revision(0),
            live_bytes: 0,
            dead: DeadBytes::default(),
        };
        Self {
            guarded: RwLock::new(guarded),
            origins: RwLock::default(),
            records: RwLock::default(),
            graves: RwLock::default(),
            marks: RwLock::default(),
            former: OnceLock::new(),
            floors: RwLock::default(),
            store,
            cache: Cache::with_weighter(items.max(1), cache_bytes, PairWeighter),
            doorkeeper: Doorkeeper::new(),
            published: AtomicU64::new(Revision::FIRST.with_tag(tag).0),
            compacted_mark: AtomicU64::new(0),
        }
    }

    /// Rows up to here do not count, and are in nobody's way. To be said once, before anybody reads.
    pub(super) fn set_former(&self, former: Place) {
        let former = former.with_tag(0);
        let known = self.former.get_or_init(|| former);
        assert_eq!(*known, former, "what does not count is settled at the start");
    }

    /// Up to where rows do not count, under the tag 0.
    pub(super) fn former(&self) -> Option<Place> {
        self.former.get().copied()
    }

    /// Whether a row, under whatever tag, is one of those that do not count.
    fn is_former(&self, place: Place) -> bool {
        self.former.get().is_some_and(|former| place.with_tag(0) <= *former)
    }

    /// The revision that readers see.
    pub fn revision(&self) -> Revision {
        Revision(self.published.load(Atomic::Acquire))
    }

    /// The tag of all revisions here.
    pub fn tag(&self) -> u16 {
        self.revision().tag()
    }

    /// Shows all revisions under another tag, and compacts at the current one. Takes as long as a walk over all versions.
    pub(super) fn retag(&self, tag: u16) {
        let revision = self.revision().with_tag(tag);
        let mut guarded = self.guarded.write();
        guarded.retag(tag);
        self.graves.write().retag(tag);
        self.records.write().retag(tag);
        self.marks.write().retag(tag);
        // In this order, since some look at them without the lock: what is compacted is not above what is published.
        self.compacted_mark.store(0, Atomic::Release);
        self.published.store(revision.0, Atomic::Release);
        self.compacted_mark.store(revision.0 + 1, Atomic::Release);
        drop(guarded);
        // Under their former places nobody asks for them any more.
        self.cache.clear();
    }

    /// Does what looks at memory and log in turn, once more if the revisions were renumbered meanwhile.
    fn under_one_tag<T>(&self, f: impl Fn(u16) -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            let (retags, tag) = {
                let guarded = self.guarded.read();
                (guarded.retags, self.tag())
            };
            let result = f(tag);
            if self.guarded.read().retags == retags {
                return result;
            }
        }
    }

    /// The last compaction; zero if there was none. It is the oldest revision that can be read.
    pub fn compacted(&self) -> Revision {
        Revision(self.compacted_mark.load(Atomic::Acquire).saturating_sub(1))
    }

    /// Whether there ever was a compaction, at revision 0 too.
    pub fn was_compacted(&self) -> bool {
        self.compacted_mark.load(Atomic::Acquire) > 0
    }

    /// The bytes of all versions that are kept.
    pub fn live_bytes(&self) -> u64 {
        self.guarded.read().live_bytes
    }

    /// The bytes of all rows of the log but records, roughly.
    pub(super) fn log_bytes(&self) -> u64 {
        let guarded = self.guarded.read();
        guarded.live_bytes + guarded.dead.ready() + guarded.dead.waiting()
    }

    /// The keys that live now.
    #[expect(
        clippy::misnamed_getters,
        reason = "keys without a live version are no keys to anyone"
    )]
    pub fn keys(&self) -> u64 {
        self.guarded.read().index.summary().live
    }

    /// The bytes that the store takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    /// How many keys a range looks at: a measure of its cost.
    pub fn cost(&self, range: &Range) -> u64 {
        if range.count_only || range.range.is_single() {
            return 1;
        }
        let walks_all = range.filter != Filter::default()
            || range.sort.is_some_and(|sort| sort.target != SortTarget::Key);
        let limit = range.limit.filter(|_| !walks_all).map_or(u64::MAX, |limit| limit as u64);
        // A small limit is an answer without a look at the index.
        if limit <= CHUNK_KEYS as u64 {
            return limit;
        }
        self.guarded.read().index.sum(&range.range).keys.min(limit)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The origins that rows name.
    pub(super) fn origins(&self) -> &RwLock<Origins> {
        &self.origins
    }

    /// The internal records, as the writer sees them.
    pub(super) fn records(&self) -> &RwLock<Records> {
        &self.records
    }

    /// Takes a visible row back into the index at start; rows come in log order. Answers the lease that the key had
    /// before.
    pub(super) fn restore(&self, place: Place, row: &Row) -> LeaseId {
        let mut guarded = self.guarded.write();
        guarded.recent_after = place.revision;
        let mut former = LeaseId::NONE;
        guarded
            .add(place, row, |before| former = before.map_or(LeaseId::NONE, |latest| latest.lease));
        former
    }

    /// What is known of a key's newest version, if the key lives. For the writer, who sees its own open batch.
    pub(super) fn latest(&self, key: &[u8]) -> Option<Latest> {
        self.guarded.read().index.find(key)?.alive().copied()
    }

    /// Where the index has the delete of a key that does not live.
    pub(super) fn tombstone(&self, key: &[u8]) -> Option<Place> {
        let guarded = self.guarded.read();
        let latest = *guarded.index.find(key)?.latest();
        latest.head.is_dead().then(|| latest.head.place())
    }

    /// Where the entries of each origin are, for members that want them.
    pub(super) fn marks(&self) -> &RwLock<Marks> {
        &self.marks
    }

    /// Everything up to a row is durable.
    pub(super) fn set_durable(&self, newest: Place) {
        self.marks.write().durable = Some(newest);
    }

    /// What counts of a key, as the writer sees it, and what is known of its newest version if it lives.
    pub(super) fn standing(&self, key: &[u8]) -> (Standing, Option<Latest>) {
        let guarded = self.guarded.read();
        let latest = guarded.index.find(key).map(|history| *history.latest());
        let tombstone = match latest {
            Some(latest) if !latest.head.is_dead() => {
                return (Standing::Alive(latest.stamp), Some(latest));
            }
            latest => latest.map(|latest| latest.stamp),
        };
        let grave = self.graves.read().get(key).map(|grave| grave.seen);
        let standing = match (tombstone, grave) {
            (None, None) => Standing::Unknown,
            (Some(seen), None) | (None, Some(seen)) => Standing::Dead(seen),
            (Some(a), Some(b)) => Standing::Dead(self.origins.read().max(a, b)),
        };
        (standing, None)
    }

    /// Remembers a delete that the index does not know.
    pub(super) fn bury(&self, key: &[u8], grave: Grave) {
        self.graves.write().bury(key, grave, &self.origins.read());
    }

    /// Forgets the deletes of a key that lives by a later put.
    pub(super) fn exhume(&self, key: &[u8]) {
        if !self.graves.read().is_empty() {
            self.graves.write().exhume(key);
        }
    }

    /// How many deletes are remembered only because entries of other members may still be on their way.
    pub fn graves(&self) -> usize {
        self.graves.read().len()
    }

    /// Counts the bytes of rows that nobody here can read; with peers they wait until that time is settled.
    pub(super) fn add_dead(&self, bytes: u64, clock: Option<Timestamp>) {
        self.guarded.write().dead.add(bytes, clock);
    }

    /// What waited for this time can be swept.
    pub(super) fn settle(&self, settled: Timestamp) {
        self.guarded.write().dead.settle(settled);
    }

    /// The bytes of rows that nobody here can read, but members that are away may want.
    pub fn waiting_bytes(&self) -> u64 {
        self.guarded.read().dead.waiting()
    }

    /// What was given up before everybody had it.
    pub(super) fn floors(&self) -> &RwLock<Floors> {
        &self.floors
    }

    /// Whether these cannot be given entries by the log, since some of what they lack was given up for space. To be asked when
    /// the log has been read.
    pub fn has_holes_behind(&self, wants: &[Head]) -> bool {
        let (origins, floors) = (self.origins.read(), self.floors.read());
        let is_below = |want: &Head| {
            origins.index(want.origin).is_some_and(|index| want.seq < floors.seq(index))
        };
        wants.iter().any(is_below)
    }

    /// What was given up for space, for a member that takes over the state: it has holes there, too.
    pub fn origin_floors(&self) -> Vec<OriginFloor> {
        let (origins, floors) = (self.origins.read(), self.floors.read());
        let named = floors.all().map(|(index, Floor { seq, time })| {
            let head = Head { origin: origins.name(index), seq };
            OriginFloor { head, time }
        });
        named.collect()
    }

    /// Adds a visible row of the open batch to the index.
    pub(super) fn add(&self, place: Place, row: &Row) {
        let mut guarded = self.guarded.write();
        let mut was_alive = false;
        guarded.add(place, row, |before| {
            was_alive = before.is_some_and(|latest| !latest.head.is_dead());
        });
        match &row.op {
            Op::Put(kv) if !was_alive => guarded.remember(place.revision, true, &kv.key),
            Op::Delete { key, .. } => {
                assert!(was_alive, "{key:?} is deleted twice, at {place:?}");
                guarded.remember(place.revision, false, key);
            }
            _ => {}
        }
    }

    /// The live keys of a range and their places, as the writer sees them.
    pub(super) fn live_keys(&self, range: &KeyRange) -> Vec<(Bytes, Latest)> {
        let guarded = self.guarded.read();
        let mut keys = Vec::new();
        guarded.index.visit(range, None, &mut |key, history| {
            if let Some(latest) = history.alive() {
                keys.push((Bytes::copy_from_slice(key), *latest));
            }
            std::ops::ControlFlow::Continue(())
        });
        keys
    }

    /// Keeps a pair that was just written where readers find it without the disk.
    pub(super) fn warm(&self, place: Place, pair: Pair) {
        self.cache.insert(place, pair);
    }

    /// Whether the cache takes whatever is read.
    fn has_room(&self) -> bool {
        let capacity = self.cache.capacity();
        self.cache.weight() < capacity - capacity / CACHE_SLACK
    }

    /// Makes room where that was, for a pair that hardly anybody wants any more.
    pub(super) fn cool(&self, place: Place) {
        self.cache.remove(&place);
    }

    /// Answers a get of one key as it is now, with one look at the index. `None`: ask a [`Reader`].
    pub fn get_now(&self, range: &Range) -> Result<Option<Reply<RangeReply>>, Failure> {
        let wants_more = range.keys_only || range.count_only || range.filter != Filter::default();
        if !range.range.is_single() || range.revision > 0 || wants_more {
            return Ok(None);
        }
        let (revision, version, era) = {
            let guarded = self.guarded.read();
            let revision = self.revision();
            let key = guarded.index.find(&range.range.start);
            (revision, key.and_then(|key| key.at(revision)), guarded.era_number)
        };
        let Some(version) = version.filter(|version| !version.is_dead()) else {
            return Ok(Some(Reply { revision, body: RangeReply::default() }));
        };
        // What a place has never changes, so the cache may be asked without holding an era; the disk may not.
        let pair = match self.cache.get(&version.place()) {
            Some(pair) => pair,
            None => match self.reader_of_era(era) {
                Some(reader) => reader.fetch_from_disk(version.place())?,
                None => return Ok(None),
            },
        };
        Ok(Some(Reply { revision, body: RangeReply { kvs: vec![pair], more: false, count: 1 } }))
    }

    /// A reader for what was found in an era, if that has not ended.
    fn reader_of_era(&self, number: u64) -> Option<Reader<'_>> {
        let guarded = self.guarded.read();
        (guarded.era_number == number).then(|| self.reader_of(&guarded))
    }

    /// Lets readers see everything up to `revision`, which is durable now.
    pub(super) fn publish(&self, revision: Revision) {
        let before = self.published.swap(revision.0, Atomic::Release);
        assert!(before <= revision.0, "revision went from {before} to {revision}");
    }

    /// A reader at the revision that is current now.
    pub fn reader(&self) -> Reader<'_> {
        self.reader_of(&self.guarded.read())
    }

    fn reader_of(&self, guarded: &Guarded) -> Reader<'_> {
        // First the compaction, then the revision: so it is never above it. Both under the lock, since a compaction
        // is marked before it ends the era: what this era keeps is all that this mark allows to be read.
        let compacted = self.compacted();
        let revision = self.revision();
        let era = Arc::clone(&guarded.era);
        Reader { mvcc: self, revision, compacted, era, retags: guarded.retags, open: &[] }
    }

    /// A reader that also sees what the writer's open batch has: the rows, up to `revision`, and the compaction.
    pub(super) fn reader_of_open<'a>(
        &'a self,
        revision: Revision,
        compacting: Option<Revision>,
        open: &'a [(Place, Row)],
    ) -> Reader<'a> {
        let (era, retags) = {
            let guarded = self.guarded.read();
            (Arc::clone(&guarded.era), guarded.retags)
        };
        let compacted = compacting.unwrap_or_else(|| self.compacted());
        Reader { mvcc: self, revision, compacted, era, retags, open }
    }
}

impl Guarded {
    /// Adds a version; `before` gets to see what it follows.
    fn add(&mut self, place: Place, row: &Row, before: impl FnOnce(Option<&Latest>)) {
        let size = row_bytes(&row.op);
        let (key, latest) = match &row.op {
            Op::Put(kv) => {
                let head = Version::put(place, size);
                let KeyValue { create_revision, version, lease, .. } = *kv;
                (&kv.key, Latest { head, create_revision, version, lease, stamp: row.stamp })
            }
            Op::Delete { key, seen } => {
                let head = Version::tombstone(place, size);
                (key, Latest::tombstone(head, *seen, row.stamp.time))
            }
            internal => unreachable!("{internal:?} is not visible"),
        };
        self.index.write(key, |former| {
            before(former);
            Some(latest)
        });
        self.live_bytes += u64::from(size);
    }

    fn retag(&mut self, tag: u16) {
        self.index.retag(tag);
        self.recent.iter_mut().for_each(|turn| turn.revision = turn.revision.with_tag(tag));
        self.recent_after = self.recent_after.with_tag(tag);
        self.retags += 1;
        self.era_number += 1;
    }

    fn holds(&self, key: &[u8], place: Place) -> bool {
        self.index.find(key).is_some_and(|history| history.holds(place))
    }

    fn remember(&mut self, revision: Revision, born: bool, key: &[u8]) {
        if self.recent.len() == RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_after = oldest.revision;
        }
        self.recent.push_back(Turn { revision, born, key: key.into() });
    }

    /// The keys of a range that live at `revision`. O(log n) where few keys came and went since.
    fn count(&self, range: &KeyRange, revision: Revision) -> u64 {
        let sum = self.index.sum(range);
        let since = self.recent.partition_point(|turn| turn.revision <= revision);
        let turns = self.recent.len() - since;
        if revision < self.recent_after || turns as u64 > sum.keys {
            return self.count_by_walk(range, revision);
        }
        // Newest first, so that every step is a state that was, and no count goes below zero.
        let undone = self.recent.range(since..).rev().filter(|turn| range.contains(&turn.key));
        undone.fold(sum.live, |live, turn| if turn.born { live - 1 } else { live + 1 })
    }

    fn count_by_walk(&self, range: &KeyRange, revision: Revision) -> u64 {
        let mut count = 0;
        self.index.visit(range, None, &mut |_, history| {
            count += u64::from(history.at(revision).is_some_and(|version| !version.is_dead()));
            std::ops::ControlFlow::Continue(())
        });
        count
    }
}

/// Reads everything at one revision, or at an older one that was kept when it was made. Later compactions are
/// nothing to it.
pub struct Reader<'a> {
    mvcc: &'a Mvcc,
    revision: Revision,
    /// The last compaction when it was made.
    compacted: Revision,
    /// Keeps compaction from freeing what this reader may still fetch.
    #[expect(dead_code, reason = "it is held, not read")]
    era: Arc<Era>,
    /// Under which numbering of the revisions.
    retags: u64,
    /// The rows of the writer's open batch, in order.
    open: &'a [(Place, Row)],
}

impl<'a> Reader<'a> {
    /// The newest revision that it sees.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Checks a revision that a client asks for; zero and less is the current one.
    pub(super) fn resolve(&self, revision: i64) -> Result<Revision, Error> {
        let revision = match u64::try_from(revision) {
            Err(_) | Ok(0) => self.revision,
            Ok(revision) => Revision(revision),
        };
        if tags::is_unknown(revision.shown(), self.revision) {
            return Err(Error::Compacted { compacted: self.revision });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.check_kept(revision)?;
        Ok(revision)
    }

    /// Checks the revisions that a Range names. Answers the one that it asks for.
    pub(super) fn check(&self, range: &Range) -> Result<Revision, Error> {
        if range.filter.is_unknown(self.revision) {
            return Err(Error::Compacted { compacted: self.revision });
        }
        self.resolve(range.revision)
    }

    /// Checks that a revision has not been compacted.
    pub(super) fn check_kept(&self, revision: Revision) -> Result<(), Error> {
        let compacted = self.compacted;
        if revision < compacted { Err(Error::Compacted { compacted }) } else { Ok(()) }
    }

    /// The last compaction when it was made; zero if there was none.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Whether a key lives at the reader's revision.
    pub(crate) fn exists(&self, key: &[u8]) -> Result<bool, Error> {
        let guarded = self.index()?;
        let version = guarded.index.find(key).and_then(|history| history.at(self.revision));
        Ok(version.is_some_and(|version| !version.is_dead()))
    }

    /// One live pair at a revision that is kept.
    pub(super) fn get(&self, key: &[u8], revision: Revision) -> Result<Option<Pair>, Failure> {
        let place = {
            let guarded = self.index()?;
            guarded.index.find(key).and_then(|history| history.at(revision))
        };
        match place {
            Some(version) if !version.is_dead() => self.fetch(version.place()).map(Some),
            _ => Ok(None),
        }
    }

    /// The pair whose put stands at `place`, if that takes no look at the disk.
    fn cached(&self, place: Place) -> Option<Pair> {
        if let Some(pair) = self.mvcc.cache.get(&place) {
            return Some(pair);
        }
        let i = self.open.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        if let Op::Put(kv) = &self.open[i].1.op { Some(kv.into()) } else { None }
    }

    /// The pair whose put stands at `place`.
    pub(super) fn fetch(&self, place: Place) -> Result<Pair, Failure> {
        match self.cached(place) {
            Some(pair) => Ok(pair),
            None => self.fetch_from_disk(place),
        }
    }

    fn fetch_from_disk(&self, place: Place) -> Result<Pair, Failure> {
        let pair = self.read(place)?;
        if self.mvcc.has_room() || self.mvcc.doorkeeper.admits(place) {
            self.mvcc.cache.insert(place, pair.clone());
        }
        Ok(pair)
    }

    /// Reads pairs off the log: in one sweep if they stand close together, one by one if not. They are in order.
    fn read_all(
        &self,
        places: &[(Place, usize)],
        pairs: &mut [Option<Pair>],
    ) -> Result<(), Failure> {
        let span = match places {
            [(first, _), .., (last, _)] => last.revision.0 - first.revision.0,
            _ => u64::MAX,
        };
        if span / SWEEP_GAP_MAX < places.len() as u64 {
            self.sweep(places, pairs)?;
        } else {
            for (place, i) in places {
                pairs[*i] = Some(self.read(*place)?);
            }
        }
        let has_room = self.mvcc.has_room();
        for (place, i) in places {
            if has_room || self.mvcc.doorkeeper.admits(*place) {
                self.mvcc.cache.insert(*place, pairs[*i].clone().expect("it was just read"));
            }
        }
        Ok(())
    }

    /// Reads the pairs at some places, in order, by one sweep over the log between them.
    fn sweep(&self, places: &[(Place, usize)], pairs: &mut [Option<Pair>]) -> Result<(), Failure> {
        let [(first, _), .., (last, _)] = places else { return Ok(()) };
        let (first, last) = (first.encode(), last.encode());
        let mut rows =
            self.mvcc.store.rows(Space::Log, Bound::Included(&first), Bound::Included(&last));
        for (place, i) in places {
            let key = place.encode();
            let value = loop {
                let (at, value) = rows.next().ok_or_else(|| missing(*place))??;
                match at.cmp(&key) {
                    Ordering::Less => {}
                    Ordering::Equal => break value,
                    Ordering::Greater => return Err(missing(*place).into()),
                }
            };
            pairs[*i] = Some(pair_of(*place, value)?);
        }
        Ok(())
    }

    fn read(&self, place: Place) -> Result<Pair, Failure> {
        Ok(pair_of(place, self.row(place)?)?)
    }

    fn row(&self, place: Place) -> Result<Bytes, StoreError> {
        self.mvcc.store.row(Space::Log, &place.encode())?.ok_or_else(|| missing(place))
    }

    /// The put at `place` with all that its row says of it, which the cache does not know.
    pub(super) fn fetch_put(&self, place: Place) -> Result<(KeyValue, RowStamp), Failure> {
        let row = match self.open.binary_search_by_key(&place, |(place, _)| *place) {
            Ok(i) => self.open[i].1.clone(),
            Err(_) => Row::decode(place, self.row(place)?)?,
        };
        match row.op {
            Op::Put(kv) => Ok((kv, row.stamp)),
            _ => Err(not_a_put(place).into()),
        }
    }

    /// The index, unless its revisions have been renumbered since this reader was made.
    fn index(&self) -> Result<RwLockReadGuard<'a, Guarded>, Error> {
        let guarded = self.mvcc.guarded.read();
        if guarded.retags == self.retags {
            return Ok(guarded);
        }
        Err(Error::Compacted { compacted: self.mvcc.compacted() })
    }
}

/// The pair that a row puts.
fn pair_of(place: Place, row: Bytes) -> Result<Pair, StoreError> {
    match Row::decode(place, row)?.op {
        Op::Put(kv) => Ok((&kv).into()),
        _ => Err(not_a_put(place)),
    }
}

fn not_a_put(place: Place) -> StoreError {
    StoreError::Corrupt(format!("the row at {place:?} is no put"))
}

fn missing(place: Place) -> StoreError {
    StoreError::Corrupt(format!("the row at {place:?} is missing"))
}
