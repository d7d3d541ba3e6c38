//! The three candidates, on the same fjall with the same group commit.
//!
//! * `log`: `(revision, n) -> record`; the index in memory holds places, values come from fjall.
//! * `keys`: `(key, newest revision first) -> record`; nothing in memory.
//! * `memory`: `log`, with every value in the index.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fjall::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
    HashRatioPolicy, PinningPolicy, RestartIntervalPolicy,
};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
};
use parking_lot::RwLock;
use quick_cache::sync::Cache;

use crate::Outcome;
use crate::load::{KEY_BYTES, Key, Put, VALUE_BYTES};
use crate::options::Options;

/// Kind, flags, lengths, checksum, origin: as much as the frozen record will have.
const HEADER_BYTES: usize = 16;
const PLACE_BYTES: usize = 12;
/// What a cached value costs beside its own bytes.
const CACHE_ENTRY_BYTES: u64 = 96;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) revision: u64,
    pub(crate) n: u32,
}

impl Place {
    pub(crate) fn encode(self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.n.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (revision, n) = bytes.split_at_checked(8)?;
        Some(Self {
            revision: u64::from_be_bytes(revision.try_into().ok()?),
            n: u32::from_be_bytes(n.try_into().ok()?),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Log,
    Keys,
    Memory,
}

/// How the hundred places of a range are read from the log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RangeRead {
    InKeyOrder,
    InPlaceOrder,
    /// One iterator over the span of the places, where they are dense in it.
    Span,
    /// What the cache has; then the rest in order of place, by an iterator where it is dense.
    CacheFirst,
}

#[derive(Clone)]
pub(crate) struct Weigh;

impl quick_cache::Weighter<Place, Bytes> for Weigh {
    fn weight(&self, _: &Place, value: &Bytes) -> u64 {
        value.len() as u64 + CACHE_ENTRY_BYTES
    }
}

pub(crate) type Index = BTreeMap<Box<[u8]>, Place>;
type Values = BTreeMap<Box<[u8]>, Box<[u8]>>;

pub(crate) struct Store {
    pub(crate) db: Database,
    pub(crate) log: Keyspace,
    pub(crate) heads: Option<Keyspace>,
    pub(crate) index: Arc<RwLock<Index>>,
    values: RwLock<Values>,
    cache: Option<Cache<Place, Bytes, Weigh>>,
    cache_puts: bool,
    pub(crate) layout: Layout,
    pub(crate) revision: u64,
    /// Dead places for [`Remove::Deferred`], the lowest last.
    pub(crate) pending: Vec<Place>,
}

impl Store {
    pub(crate) fn open(directory: &Path, options: &Options) -> Outcome<Self> {
        let layout = match options.text("layout", "log") {
            "keys" => Layout::Keys,
            "memory" => Layout::Memory,
            _ => Layout::Log,
        };
        let index = Arc::new(RwLock::new(Index::new()));
        let db = open_database(directory, options, &index)?;
        let log = db.keyspace("log", || keyspace_options(options))?;
        // A second, small keyspace, as the server's heads: does it keep journals alive?
        let heads = match options.flag("heads", true) {
            true => Some(db.keyspace("heads", || {
                keyspace_options(options)
                    .max_memtable_size(options.bytes_of_mib("heads_memtable", 1))
            })?),
            false => None,
        };
        let cache_bytes = options.bytes_of_mib("value_cache", 0);
        let estimate = cache_bytes as usize / (VALUE_BYTES + CACHE_ENTRY_BYTES as usize);
        let cache = (cache_bytes > 0).then(|| Cache::with_weighter(estimate, cache_bytes, Weigh));
        let cache_puts = options.flag("cache_puts", false);
        Ok(Self {
            db,
            log,
            heads,
            index,
            values: RwLock::default(),
            cache,
            cache_puts,
            layout,
            revision: 0,
            pending: Vec::new(),
        })
    }

    /// Rebuilds the index from the whole log; returns the number of records read.
    pub(crate) fn rebuild(&mut self) -> Outcome<u64> {
        if self.layout == Layout::Keys {
            return Ok(0);
        }
        let mut records = 0;
        let mut index = self.index.write();
        let mut values = self.values.write();
        for guard in self.log.iter() {
            let (place, record) = guard.into_inner()?;
            let place = Place::decode(&place).ok_or("a place has 12 bytes")?;
            let (key, value) = split_record(&record)?;
            match index.get_mut(key) {
                Some(latest) => *latest = place,
                None => drop(index.insert(key.into(), place)),
            }
            if self.layout == Layout::Memory {
                values.insert(key.into(), value.into());
            }
            self.revision = place.revision;
            records += 1;
        }
        Ok(records)
    }

    /// One group commit: one revision, one fsync. Returns the places that the new records replace.
    pub(crate) fn commit(
        &mut self,
        puts: &[Put],
        remove: Remove,
        dead: &mut Vec<Place>,
    ) -> Outcome {
        let mut batch = OwnedWriteBatch::with_capacity(self.db.clone(), puts.len() + 1)
            .durability(Some(PersistMode::SyncData));
        let first = self.revision + 1;
        for (offset, (key, value)) in puts.iter().enumerate() {
            let place = Place { revision: first + offset as u64, n: 0 };
            let record = record(key, value);
            match self.layout {
                Layout::Keys => batch.insert(&self.log, versioned(key, place.revision), record),
                Layout::Log | Layout::Memory => batch.insert(&self.log, place.encode(), record),
            }
        }
        self.revision += puts.len() as u64;
        if let Some(heads) = &self.heads {
            batch.insert(heads, *b"head", self.revision.to_be_bytes());
        }
        match remove {
            Remove::Nothing => {}
            Remove::Deferred => self.remove_pending(&mut batch, REMOVALS_PER_PUT * puts.len()),
            Remove::Tombstone | Remove::WeakTombstone => {
                self.remove_replaced(&mut batch, puts, remove);
            }
        }
        batch.commit()?;
        if self.layout != Layout::Keys {
            self.publish(first, puts, dead);
        }
        Ok(())
    }

    /// Hands back what nobody needs while it is quiet: the memtable of the log, and the files and
    /// memtables that only old versions of the trees hold.
    pub(crate) fn trim(&self) -> Outcome {
        self.log.rotate_memtable_and_wait()?;
        match &self.heads {
            Some(heads) => forget_old_versions(heads),
            None => Ok(()),
        }
    }

    fn remove_replaced(&self, batch: &mut OwnedWriteBatch, puts: &[Put], remove: Remove) {
        let index = self.index.read();
        for (key, _) in puts {
            if let Some(place) = index.get(key.as_slice()) {
                match remove {
                    Remove::Tombstone => batch.remove(&self.log, place.encode()),
                    _ => batch.remove_weak(&self.log, place.encode()),
                }
            }
        }
    }

    fn remove_pending(&mut self, batch: &mut OwnedWriteBatch, count: usize) {
        let rest = self.pending.len().saturating_sub(count);
        for place in self.pending.drain(rest..).rev() {
            batch.remove_weak(&self.log, place.encode());
        }
    }

    fn publish(&self, first: u64, puts: &[Put], dead: &mut Vec<Place>) {
        let mut index = self.index.write();
        for (offset, (key, value)) in puts.iter().enumerate() {
            let place = Place { revision: first + offset as u64, n: 0 };
            match index.get_mut(key.as_slice()) {
                Some(latest) => dead.push(std::mem::replace(latest, place)),
                None => drop(index.insert(key.as_slice().into(), place)),
            }
            if self.layout == Layout::Memory {
                self.values.write().insert(key.as_slice().into(), value.as_slice().into());
            }
            if let (true, Some(cache)) = (self.cache_puts, &self.cache) {
                cache.insert(place, Bytes::copy_from_slice(value));
            }
        }
    }

    /// Appends the newest value of a key to a reply.
    pub(crate) fn get(&self, key: &Key, reply: &mut Vec<u8>) -> Outcome {
        match self.layout {
            Layout::Keys => {
                if let Some(guard) = self.log.prefix(key).next() {
                    reply.extend_from_slice(split_record(&guard.value()?)?.1);
                }
            }
            Layout::Memory => {
                if let Some(value) = self.values.read().get(key.as_slice()) {
                    reply.extend_from_slice(value);
                }
            }
            Layout::Log => {
                let place = self.index.read().get(key.as_slice()).copied();
                if let Some(place) = place {
                    self.read(place, |value| reply.extend_from_slice(value))?;
                }
            }
        }
        Ok(())
    }

    fn read(&self, place: Place, use_value: impl FnOnce(&[u8])) -> Outcome {
        if let Some(value) = self.cache.as_ref().and_then(|cache| cache.get(&place)) {
            use_value(&value);
            return Ok(());
        }
        let record = self.log.get(place.encode())?.ok_or("a place of the index is in the log")?;
        let value = split_record(&record)?.1;
        if let Some(cache) = &self.cache {
            // A slice of fjall's would keep its whole block.
            cache.insert(place, Bytes::copy_from_slice(value));
        }
        use_value(value);
        Ok(())
    }

    /// Appends keys and newest values of `[start, end)` to a reply; returns how many.
    pub(crate) fn range(
        &self,
        start: &Key,
        end: &Key,
        how: RangeRead,
        reply: &mut Vec<u8>,
    ) -> Outcome<usize> {
        match self.layout {
            Layout::Keys => self.range_of_keys(start, end, reply),
            Layout::Memory => {
                let mut count = 0;
                for (key, value) in self.values.read().range::<[u8], _>(bounds(start, end)) {
                    reply.extend_from_slice(key);
                    reply.extend_from_slice(value);
                    count += 1;
                }
                Ok(count)
            }
            Layout::Log => self.range_of_log(start, end, how, reply),
        }
    }

    fn range_of_keys(&self, start: &Key, end: &Key, reply: &mut Vec<u8>) -> Outcome<usize> {
        let mut last: Option<fjall::Slice> = None;
        let mut count = 0;
        for guard in self.log.range(start.as_slice()..end.as_slice()) {
            let (versioned, record) = guard.into_inner()?;
            if last.as_ref().is_some_and(|last| last[..KEY_BYTES] == versioned[..KEY_BYTES]) {
                continue;
            }
            let (key, value) = split_record(&record)?;
            reply.extend_from_slice(key);
            reply.extend_from_slice(value);
            last = Some(versioned);
            count += 1;
        }
        Ok(count)
    }

    fn range_of_log(
        &self,
        start: &Key,
        end: &Key,
        how: RangeRead,
        reply: &mut Vec<u8>,
    ) -> Outcome<usize> {
        let mut found: Vec<(usize, Place)> = Vec::with_capacity(128);
        let mut keys: Vec<u8> = Vec::with_capacity(128 * KEY_BYTES);
        for (key, place) in self.index.read().range::<[u8], _>(bounds(start, end)) {
            keys.extend_from_slice(key);
            found.push((found.len(), *place));
        }
        if how == RangeRead::InKeyOrder {
            for ((_, place), key) in found.iter().zip(keys.chunks_exact(KEY_BYTES)) {
                reply.extend_from_slice(key);
                self.read(*place, |value| reply.extend_from_slice(value))?;
            }
            return Ok(found.len());
        }
        let count = found.len();
        let mut values: Vec<Bytes> = vec![Bytes::new(); count];
        if let (RangeRead::CacheFirst, Some(cache)) = (how, &self.cache) {
            found.retain(|(at, place)| match cache.get(place) {
                Some(value) => {
                    values[*at] = value;
                    false
                }
                None => true,
            });
        }
        found.sort_unstable_by_key(|(_, place)| *place);
        if how != RangeRead::InPlaceOrder && is_dense(&found) {
            self.read_span(&found, &mut values)?;
        } else {
            for (at, place) in &found {
                self.read(*place, |value| values[*at] = Bytes::copy_from_slice(value))?;
            }
        }
        for (value, key) in values.iter().zip(keys.chunks_exact(KEY_BYTES)) {
            reply.extend_from_slice(key);
            reply.extend_from_slice(value);
        }
        Ok(count)
    }

    fn read_span(&self, found: &[(usize, Place)], values: &mut [Bytes]) -> Outcome {
        let (Some((_, low)), Some((_, high))) = (found.first(), found.last()) else {
            return Ok(());
        };
        let mut wanted = found.iter().peekable();
        for guard in self.log.range(low.encode()..=high.encode()) {
            let (place, record) = guard.into_inner()?;
            let place = Place::decode(&place).ok_or("a place has 12 bytes")?;
            if let Some((at, _)) = wanted.next_if(|(_, next)| *next == place) {
                let value = Bytes::copy_from_slice(split_record(&record)?.1);
                if let Some(cache) = &self.cache {
                    cache.insert(place, value.clone());
                }
                values[*at] = value;
            }
        }
        Ok(())
    }
}

/// An iterator costs about a tenth of a point read for each record it passes.
fn is_dense(sorted: &[(usize, Place)]) -> bool {
    let (Some((_, low)), Some((_, high))) = (sorted.first(), sorted.last()) else { return false };
    high.revision - low.revision < 4 * sorted.len() as u64
}

fn bounds<'a>(start: &'a Key, end: &'a Key) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice()))
}

/// fjall forgets old versions of all trees, with their files, only when it rotates a memtable
/// that is not empty, and only those before the newest that is older than the last write but one.
pub(crate) fn forget_old_versions(heads: &Keyspace) -> Outcome {
    for mark in [0, 1] {
        heads.insert(*b"mark", [mark])?;
    }
    heads.rotate_memtable_and_wait()?;
    Ok(())
}

/// What happens to the record that a put replaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remove {
    Nothing,
    Tombstone,
    WeakTombstone,
    /// In order of place, long after the put, as a compaction of the history would.
    Deferred,
}

/// How fast deferred removals run: just above the rate at which they arise.
const REMOVALS_PER_PUT: usize = 2;

fn record(key: &Key, value: &[u8; VALUE_BYTES]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + KEY_BYTES + VALUE_BYTES);
    record.extend_from_slice(&[0; HEADER_BYTES]);
    record.extend_from_slice(key);
    record.extend_from_slice(value);
    record
}

pub(crate) fn split_record(record: &[u8]) -> Outcome<(&[u8], &[u8])> {
    let body = record.get(HEADER_BYTES..).ok_or("a record has a header")?;
    Ok(body.split_at_checked(KEY_BYTES).ok_or("a record has a key")?)
}

/// Newest first, so that the first hit of a prefix is the current version.
fn versioned(key: &Key, revision: u64) -> Vec<u8> {
    let mut versioned = Vec::with_capacity(KEY_BYTES + 8);
    versioned.extend_from_slice(key);
    versioned.extend_from_slice(&(!revision).to_be_bytes());
    versioned
}

/// Drops, in any compaction, the records that the index no longer points to.
struct DropDead(Arc<RwLock<Index>>);

impl CompactionFilter for DropDead {
    fn filter_item(
        &mut self,
        item: ItemAccessor<'_>,
        _: &Context,
    ) -> fjall::compaction::filter::CompactionFilterResult {
        let record = item.value()?;
        let (Some(place), Ok((key, _))) = (Place::decode(item.key()), split_record(&record)) else {
            return Ok(Verdict::Keep);
        };
        let dead = self.0.read().get(key).is_some_and(|latest| *latest > place);
        Ok(if dead { Verdict::Destroy } else { Verdict::Keep })
    }
}

/// The factory must be free of interior mutability as far as unwinding goes, hence the wrapper.
struct DropDeadFactory(std::panic::AssertUnwindSafe<Arc<RwLock<Index>>>);

impl Factory for DropDeadFactory {
    fn name(&self) -> &str {
        "drop dead records"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(DropDead(self.0.0.clone()))
    }
}

fn open_database(
    directory: &Path,
    options: &Options,
    index: &Arc<RwLock<Index>>,
) -> Outcome<Database> {
    let mut builder = Database::builder(directory)
        .cache_size(options.bytes_of_mib("block_cache", 16))
        .worker_threads(options.number("workers", 2) as usize)
        .max_journaling_size(options.bytes_of_mib("journals", 64))
        .manual_journal_persist(true);
    if options.flag("filter", false) {
        let index = index.clone();
        builder = builder.with_compaction_filter_factories(Arc::new(move |keyspace| {
            let factory = DropDeadFactory(std::panic::AssertUnwindSafe(index.clone()));
            (keyspace == "log").then(|| Arc::new(factory) as Arc<dyn Factory>)
        }));
    }
    Ok(builder.open()?)
}

fn keyspace_options(options: &Options) -> KeyspaceCreateOptions {
    let compression = match options.text("compression", "lz4") {
        "none" => CompressionPolicy::disabled(),
        "fjall" => CompressionPolicy::new([
            CompressionType::None,
            CompressionType::None,
            CompressionType::Lz4,
        ]),
        _ => CompressionPolicy::all(CompressionType::Lz4),
    };
    let bloom = match options.text("bloom", "none") {
        "fjall" => FilterPolicy::new([
            FilterPolicyEntry::Bloom(BloomConstructionPolicy::FalsePositiveRate(0.0001)),
            FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0)),
        ]),
        _ => FilterPolicy::disabled(),
    };
    let pinned = match options.flag("pin", true) {
        true => PinningPolicy::all(true),
        false => PinningPolicy::new([true, true, false]),
    };
    KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        .max_memtable_size(options.bytes_of_mib("memtable", 16))
        .data_block_size_policy(BlockSizePolicy::all(options.number("block", 4096) as u32))
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(
            options.number("restart", 10) as u8,
        ))
        .data_block_hash_ratio_policy(HashRatioPolicy::all(
            options.number("hash_percent", 0) as f32 / 100.0,
        ))
        .data_block_compression_policy(compression)
        .index_block_pinning_policy(pinned)
        .filter_policy(bloom)
        .expect_point_read_hits(options.flag("hits", true))
}
