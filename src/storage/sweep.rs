//! How rows leave the log on disk: all tables are rewritten without them.
//!
//! Removing rows one by one would write a tombstone for each, which breaks the order in which the log's tables
//! are laid down, and with it their cheapness. A compaction filter drops rows for nothing; but fjall never
//! rewrites the log's tables by itself, it only moves them from level to level, so we ask it to.
//!
//! A filter belongs to a keyspace from the time it is opened on, and fjall calls it from its own threads, for
//! compactions of its own choice. So it looks at a [`Slot`], which is empty except during a sweep.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};
use fjall::{AbstractTree, Database, Keyspace};
use lsm_tree::compaction::PullDown;

use super::IsDead;
use crate::error::StoreError;

/// How often we look whether fjall's threads are done, which have no way to tell us.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// A sweep pauses after so many rows, so that puts meanwhile find the disk and the processor free most of the time
/// (etcd: `--compaction-batch-limit`, `--compaction-sleep-interval`).
const ROWS_BETWEEN_PAUSES: u64 = 1000;
const PAUSE: Duration = Duration::from_millis(10);
/// The level of tables that were just flushed.
const FIRST_LEVEL: u8 = 0;
/// The level that fjall moves them to, since those of a log never overlap.
const LAST_LEVEL: u8 = 6;

/// What is to be removed at the moment.
#[derive(Default)]
pub(super) struct Slot {
    pass: RwLock<Option<Arc<Pass>>>,
}

/// One sweep.
struct Pass {
    is_dead: IsDead,
    /// This row and those behind it stay. fjall takes the newest entry in the tables for the end of what it
    /// must not replay from the journal: without the last row, rows of this sweep would come back.
    last: Bytes,
    /// Whose pace it is: fjall's own threads must not be held up.
    thread: ThreadId,
    rows: AtomicU64,
    /// The first error of `is_dead`, after which nothing more is removed.
    error: Mutex<Option<StoreError>>,
}

impl Slot {
    fn set(&self, pass: Option<Arc<Pass>>) {
        *self.pass.write().unwrap_or_else(PoisonError::into_inner) = pass;
    }

    fn pass(&self) -> Option<Arc<Pass>> {
        self.pass.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Pass {
    /// Called for each row.
    fn pace(&self) {
        let rows = self.rows.fetch_add(1, Ordering::Relaxed) + 1;
        if rows.is_multiple_of(ROWS_BETWEEN_PAUSES) && thread::current().id() == self.thread {
            #[expect(clippy::disallowed_methods, reason = "a thread that has to be slow")]
            thread::sleep(PAUSE);
        }
    }

    fn removes(&self, key: &[u8], value: &[u8]) -> bool {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if key >= &*self.last || error.is_some() {
            return false;
        }
        (self.is_dead)(key, value).unwrap_or_else(|e| {
            *error = Some(e);
            false
        })
    }
}

/// Gives every compaction of the log its filter.
pub(super) struct FilterFactory(pub(super) Arc<Slot>);

impl Factory for FilterFactory {
    fn name(&self) -> &'static str {
        "sweep"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Filter(self.0.pass()))
    }
}

struct Filter(Option<Arc<Pass>>);

impl CompactionFilter for Filter {
    /// Never an error: in one of fjall's own threads it would end the store.
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let Some(pass) = &self.0 else { return Ok(Verdict::Keep) };
        pass.pace();
        let value = item.value()?;
        Ok(if pass.removes(item.key(), &value) { Verdict::Destroy } else { Verdict::Keep })
    }
}

/// Rewrites the log without the rows that are dead. `usable` says when to give up waiting for fjall's threads.
pub(super) fn run(
    database: &Database,
    log: &Keyspace,
    slot: &Slot,
    is_dead: IsDead,
    usable: impl Fn() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some(last) = log.last_key_value() else { return Ok(()) };
    let last = last.key().map_err(super::disk::store_error)?;
    let last = Bytes::copy_from_slice(&last);
    let pass = Arc::new(Pass {
        is_dead,
        last,
        thread: thread::current().id(),
        rows: AtomicU64::new(0),
        error: Mutex::default(),
    });
    slot.set(Some(Arc::clone(&pass)));
    let result = rewrite(database, log, usable);
    slot.set(None);
    result?;
    let error = pass.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    error.map_or(Ok(()), Err)
}

fn rewrite(
    database: &Database,
    log: &Keyspace,
    usable: impl Fn() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let wait_until = |is_done: &dyn Fn() -> bool| {
        while !is_done() {
            usable()?;
            #[expect(clippy::disallowed_methods, reason = "fjall tells nobody when it is done")]
            thread::sleep(POLL_INTERVAL);
        }
        Ok::<_, StoreError>(())
    };
    // Compactions that began without us would bring rows past the filter.
    wait_until(&|| database.active_compactions() == 0)?;
    let written = log.tree.get_highest_memtable_seqno();
    log.rotate_memtable().map_err(super::disk::store_error)?;
    wait_until(&|| log.tree.get_highest_persisted_seqno() >= written)?;

    let tables =
        || -> BTreeSet<_> { log.tree.current_version().iter_tables().map(|t| t.id()).collect() };
    let before = tables();
    if before.is_empty() {
        return Ok(());
    }
    // As a rule all tables are on these two levels, and this stops nobody else. It does nothing if fjall
    // happens to rewrite one of them itself.
    let watermark = database.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
    let strategy = Arc::new(PullDown(FIRST_LEVEL, LAST_LEVEL));
    log.tree.compact(strategy, watermark).map_err(|e| super::disk::store_error(e.into()))?;
    if before.is_disjoint(&tables()) {
        return Ok(());
    }
    // This waits for all other compactions and keeps them out; fjall's threads spin meanwhile.
    log.major_compact().map_err(super::disk::store_error)?;
    if before.is_disjoint(&tables()) {
        return Ok(());
    }
    Err(std::io::Error::other("the log could not be rewritten").into())
}
