//! The store on disk: one fjall database in a directory of ours.
//!
//! ```text
//! <directory>/        0700
//!   LOCK              locked by the process that has the store open
//!   FORMAT            "starling storage format 2"
//!   db/               the database: *.jnl (journals), keyspaces/ (tables)
//!   db.creating/      a database that was not finished when the process ended: made anew
//! ```
//!
//! What fjall does with a failed write: it marks the database as poisoned, in the background too (a flush or
//! a compaction that cannot write ends its thread), and from then on refuses every write until it is opened
//! again. A commit that waits for a flush at that moment waits for ever. So the owner has to ask
//! [`Disk::failed`] from time to time, on a thread that does not commit, and to end the process.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fjall::compaction::filter::Factory;
use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, LsmError, OwnedWriteBatch,
};
use fjall::{PersistMode, Readable};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::schema::FORMAT_VERSION;
use super::sweep::{self, FilterFactory, Slot};
use super::{
    Batch, Change, DiskSpace, Durability, Ingest, IsDead, Result, Rows, Space, is_empty_range,
    journal,
};
use crate::error::StoreError;

/// fjall's block cache. Small: a block holds mostly rows that nobody asked for, so memory is better spent on
/// the values themselves, by the engine.
const CACHE_BYTES_DEFAULT: u64 = 16 << 20;

/// The log's memtable, which is also about how much of the journal is replayed at a start.
const LOG_MEMTABLE_BYTES: u64 = 16 << 20;
/// The memtable of the rows about the store, of which there are few.
const META_MEMTABLE_BYTES: u64 = 1 << 20;
/// The size of a data block before compression.
const BLOCK_BYTES: u32 = 4 << 10;
/// When sealed journals take this much, fjall flushes whatever still needs the oldest of them. A journal is
/// sealed at this size too, so one sealed journal never waits for a keyspace that is hardly written.
const JOURNALS_BYTES_MAX: u64 = 64 << 20;
/// One thread flushes only, the other one compacts as well: with a single one flushes wait for compactions.
const WORKER_THREADS: usize = 2;

/// The names of the keyspaces.
const LOG: &str = "log";
const META: &str = "meta";
/// A row among those about the store that is ours alone, to keep fjall going: see [`Inner`]. No reader meets it.
const OWN_ROW: &[u8] = &[0];
/// How often it is written: at least once per journal.
const OWN_ROW_INTERVAL_BYTES: u64 = 32 << 20;

const LOCK_FILE: &str = "LOCK";
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_FILE_NEW: &str = "FORMAT.new";
const FORMAT_PREFIX: &str = "starling storage format ";
const DATABASE: &str = "db";
const DATABASE_NEW: &str = "db.creating";
/// What a file system puts into its root directory, which may be ours.
const LOST_AND_FOUND: &str = "lost+found";
/// Certificates that a member has made for itself before it opens the store.
const FIXTURES: &str = "fixtures";
/// The sub-directory by which etcd's data directories are known.
const ETCD_MEMBER: &str = "member";

const DIRECTORY_MODE: u32 = 0o700;
/// `st_blocks` counts in these, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

/// How scratch files are called where they need a name.
const SCRATCH: &str = "scratch-";

/// How to open a store on disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The data directory. It is created, with its parents, if it is missing.
    pub path: PathBuf,
    /// Memory for blocks that were read.
    pub cache_bytes: u64,
}

impl DiskOptions {
    /// The defaults, in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), cache_bytes: CACHE_BYTES_DEFAULT }
    }
}

/// A store on disk. All clones are the same store; the last one to go closes it.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

/// The order of the fields is the order of closing: the directory is unlocked last.
struct Inner {
    log: Keyspace,
    meta: Keyspace,
    database: Database,
    path: PathBuf,
    /// What the log's compactions remove.
    slot: Arc<Slot>,
    sweeping: Mutex<()>,
    /// Held during a commit.
    tail: Mutex<Tail>,
    failure: OnceLock<String>,
    /// How many scratch files have had a name for a moment.
    scratches: AtomicU64,
    _lock: File,
}

/// What we know about the end of the journal.
struct Tail {
    /// Whether all of it is on the disk itself.
    is_synced: bool,
    /// How much was written since our own row was.
    unmarked_bytes: u64,
}

impl Disk {
    /// Opens the store in a directory, or creates it in a missing or empty one.
    pub fn open(options: &DiskOptions) -> Result<Self> {
        let path = std::path::absolute(&options.path)?;
        let database = path.join(DATABASE);
        refuse_foreign(&path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&path)
            .map_err(|e| at(&path, e))?;
        let lock = lock(&path)?;
        if !read_format(&path)? {
            create(&path)?;
        }
        finish_creation(&path)?;
        journal::check(&database)?;
        let slot = Arc::<Slot>::default();
        let (database, log, meta) = open_database(&database, options.cache_bytes, &slot)?;
        let inner = Inner {
            log,
            meta,
            database,
            path,
            slot,
            sweeping: Mutex::default(),
            tail: Mutex::new(Tail { is_synced: true, unmarked_bytes: 0 }),
            failure: OnceLock::new(),
            scratches: AtomicU64::new(0),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Why the store cannot be used any more, if so: a commit failed, or fjall could not write in the
    /// background. Never waits for a commit that is stuck, so that another thread can find out.
    pub fn failed(&self) -> Option<String> {
        if self.inner.failure.get().is_none()
            && let Err(error) = self.inner.database.persist(PersistMode::Buffer)
        {
            self.inner.fail(&describe(&error));
        }
        self.inner.failure.get().cloned()
    }

    pub(super) fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.inner.usable()?;
        let bytes = batch.bytes() as u64;
        let mut writes = OwnedWriteBatch::with_capacity(self.inner.database.clone(), batch.len());
        for change in batch.into_changes() {
            match change {
                Change::Put(space, key, value) => {
                    writes.insert(self.inner.keyspace(space), key, value);
                }
                Change::Delete(space, key) => writes.remove(self.inner.keyspace(space), key),
            }
        }
        self.inner.write(writes, bytes, durability)
    }

    pub(super) fn ingest(&self) -> Result<Ingest> {
        self.inner.usable()?;
        Ingest::into_disk(self, self.inner.log.clone())
    }

    /// What came of a write in the background. If it has failed the store is unusable.
    pub(super) fn check(&self, result: Result<(), fjall::Error>) -> Result<()> {
        result.map_err(|error| {
            self.inner.fail(&describe(&error));
            store_error(error)
        })
    }

    pub(super) fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.usable()?;
        let row = self.inner.keyspace(space).get(key).map_err(store_error)?;
        Ok(row.map(|row| Bytes::copy_from_slice(&row)))
    }

    pub(super) fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        let rows = self.passing_rows(space, from, to);
        Box::new(rows.map(|row| {
            let (key, value) = row?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        }))
    }

    pub(super) fn passing_rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        if let Err(error) = self.inner.usable() {
            return Box::new(std::iter::once(Err(error)));
        }
        let from = match (space, from) {
            (Space::Meta, Bound::Unbounded) => Bound::Excluded(OWN_ROW),
            (Space::Meta, Bound::Included(key) | Bound::Excluded(key)) if key <= OWN_ROW => {
                Bound::Excluded(OWN_ROW)
            }
            _ => from,
        };
        if is_empty_range(from, to) {
            return Box::new(std::iter::empty());
        }
        let keyspace = self.inner.keyspace(space);
        let rows = self.inner.database.snapshot().range::<&[u8], _>(keyspace, (from, to));
        Box::new(rows.map(|row| {
            let (key, value) = row.into_inner().map_err(store_error)?;
            Ok((key.into(), value.into()))
        }))
    }

    pub(super) fn sweep(&self, is_dead: IsDead) -> Result<()> {
        let Inner { database, log, slot, .. } = &*self.inner;
        let _one_at_a_time = self.inner.sweeping.lock();
        let usable = || {
            self.failed();
            self.inner.usable()
        };
        sweep::run(database, log, slot, is_dead, usable)?;
        self.inner.release_versions()
    }

    /// The blocks of the journals, which are sparse files, and the lengths of the tables, which fjall knows
    /// without a look at the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        let journals = journal_bytes(&self.inner.path.join(DATABASE)).unwrap_or(0);
        journals + self.inner.log.disk_space() + self.inner.meta.disk_space()
    }

    /// A file of no name, which is gone when it is closed.
    pub(super) fn scratch(&self) -> Result<File> {
        let path = &self.inner.path;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(file.into()),
            // Not every file system has such files.
            Err(_) => {
                let number = self.inner.scratches.fetch_add(1, Ordering::Relaxed);
                let path = path.join(format!("{SCRATCH}{number}"));
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)
                    .map_err(|e| at(&path, e))?;
                fs::remove_file(&path).map_err(|e| at(&path, e))?;
                Ok(file)
            }
        }
    }

    pub(super) fn space(&self) -> Result<DiskSpace> {
        let stat =
            rustix::fs::statvfs(&self.inner.path).map_err(|e| at(&self.inner.path, e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(DiskSpace { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }
}

impl Inner {
    fn keyspace(&self, space: Space) -> &Keyspace {
        match space {
            Space::Log => &self.log,
            Space::Meta => &self.meta,
        }
    }

    /// Never writes behind a batch that is not synced, whatever its durability: if power is lost, pages have
    /// reached the disk in any order, and a valid batch behind a torn one could not be told from damage.
    ///
    /// Puts our own row into a batch now and then. When the newest row of a keyspace is a tombstone, its compaction
    /// takes with it what tells fjall that the keyspace has been flushed; a journal would stay until the next write
    /// there, and all journals behind it.
    fn write(&self, mut writes: OwnedWriteBatch, bytes: u64, durability: Durability) -> Result<()> {
        let mut tail = self.tail.lock();
        let result = (|| {
            if !tail.is_synced {
                self.database.persist(PersistMode::SyncData)?;
                tail.is_synced = true;
            }
            if writes.is_empty() {
                return Ok(());
            }
            tail.unmarked_bytes += bytes;
            if tail.unmarked_bytes >= OWN_ROW_INTERVAL_BYTES {
                writes.insert(&self.meta, OWN_ROW, []);
                tail.unmarked_bytes = 0;
            }
            let mode = match durability {
                Durability::Fsync => PersistMode::SyncData,
                Durability::Buffered => PersistMode::Buffer,
            };
            tail.is_synced = durability == Durability::Fsync;
            writes.durability(Some(mode)).commit()
        })();
        result.map_err(|error| {
            self.fail(&describe(&error));
            store_error(error)
        })
    }

    /// Lets fjall let go of the tables that a sweep has replaced. It looks for readers of former versions only when
    /// it seals a memtable that holds something, so it gets one; otherwise a quiet store would keep both copies.
    fn release_versions(&self) -> Result<()> {
        let mut writes = OwnedWriteBatch::with_capacity(self.database.clone(), 1);
        writes.insert(&self.meta, OWN_ROW, []);
        self.write(writes, 0, Durability::Fsync)?;
        self.meta.rotate_memtable().map_err(store_error)?;
        Ok(())
    }

    /// Remembers the first failure, which is the one that explains the others.
    fn fail(&self, why: &str) {
        let _ = self.failure.set(why.to_owned());
    }

    /// A store that lost a write must not be read either: what it says may never have been true.
    fn usable(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why.clone()).into()),
        }
    }
}

/// Refuses a directory that holds something but no store of ours, before anything is written into it.
fn refuse_foreign(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StoreError::Refused(format!("{} is not a directory", path.display())));
        }
        Err(error) => return Err(at(path, error)),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry.map_err(|e| at(path, e))?.file_name();
        match name.to_str() {
            Some(FORMAT_FILE) => return Ok(()),
            Some(LOCK_FILE | FORMAT_FILE_NEW | DATABASE_NEW | LOST_AND_FOUND | FIXTURES) => {}
            Some(ETCD_MEMBER) => {
                return Err(StoreError::Refused(format!(
                    "{} looks like a data directory of etcd, which cannot be opened: give an empty directory",
                    path.display()
                )));
            }
            _ => foreign = Some(name),
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => Err(StoreError::Refused(format!(
            "{} is not a data directory of starling, and not empty either: it holds {}",
            path.display(),
            name.display()
        ))),
    }
}

fn lock(path: &Path) -> Result<File> {
    let name = path.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| at(&name, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Refused(format!(
            "data directory {} is in use by another process",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(at(&name, error)),
    }
}

/// Whether the directory has a store. Refuses one that this version cannot read.
fn read_format(path: &Path) -> Result<bool> {
    let name = path.join(FORMAT_FILE);
    let text = match fs::read(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at(&name, error)),
    };
    let version = std::str::from_utf8(&text).ok().and_then(parse_format);
    match version {
        Some(FORMAT_VERSION) => Ok(true),
        Some(version) if version > FORMAT_VERSION => Err(StoreError::Refused(format!(
            "data directory {} has storage format {version}, this version reads format {FORMAT_VERSION} and \
             older: use a newer version",
            path.display()
        ))),
        Some(version) => Err(StoreError::Refused(format!(
            "data directory {} has storage format {version}, which no release has written and this version \
             does not read (it reads format {FORMAT_VERSION}): give an empty directory",
            path.display()
        ))),
        _ => Err(StoreError::Corrupt(format!("{} does not name a storage format", name.display()))),
    }
}

fn parse_format(text: &str) -> Option<u32> {
    let version = text.strip_prefix(FORMAT_PREFIX)?.strip_suffix('\n')?;
    version.parse().ok().filter(|version| *version > 0)
}

/// Creates a store in a directory that has none. The database is made under another name, since one that
/// fjall did not finish cannot be opened; the format goes ahead of it into place.
fn create(path: &Path) -> Result<()> {
    let database = path.join(DATABASE_NEW);
    match fs::remove_dir_all(&database) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&database, error)),
        _ => {}
    }
    drop(open_database(&database, CACHE_BYTES_DEFAULT, &Arc::default())?);
    write_format(path).map_err(|e| at(path, e))
}

fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join(FORMAT_FILE_NEW);
    let mut file = File::create(&new)?;
    file.write_all(format!("{FORMAT_PREFIX}{FORMAT_VERSION}\n").as_bytes())?;
    file.sync_all()?;
    sync_directory(path)?;
    fs::rename(new, path.join(FORMAT_FILE))?;
    sync_directory(path)?;
    // The directory may be new itself.
    path.parent().map_or(Ok(()), sync_directory)
}

/// Brings a finished database to its place.
fn finish_creation(path: &Path) -> Result<()> {
    let (new, database) = (path.join(DATABASE_NEW), path.join(DATABASE));
    if database.try_exists()? {
        return Ok(());
    }
    match fs::rename(&new, &database) {
        Ok(()) => sync_directory(path).map_err(|e| at(path, e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::Corrupt(format!("{} is missing", database.display())))
        }
        Err(error) => Err(at(&new, error)),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn open_database(
    path: &Path,
    cache_bytes: u64,
    slot: &Arc<Slot>,
) -> Result<(Database, Keyspace, Keyspace)> {
    let slot = Arc::clone(slot);
    let filter = move || -> Arc<dyn Factory> { Arc::new(FilterFactory(Arc::clone(&slot))) };
    // The journal stays uncompressed: fjall checks a compressed value by compressing it again, so that
    // another version of the compressor could not open it; and a value would be compressed twice.
    let database = Database::builder(path)
        .cache_size(cache_bytes)
        .worker_threads(WORKER_THREADS)
        .max_journaling_size(JOURNALS_BYTES_MAX)
        .journal_compression(CompressionType::None)
        .with_compaction_filter_factories(Arc::new(move |name| (name == LOG).then(&filter)))
        .open()
        .map_err(store_error)?;
    let log =
        database.keyspace(LOG, || keyspace_options(LOG_MEMTABLE_BYTES)).map_err(store_error)?;
    let meta =
        database.keyspace(META, || keyspace_options(META_MEMTABLE_BYTES)).map_err(store_error)?;
    Ok((database, log, meta))
}

/// The options of a new keyspace. fjall stores them: a change has no effect on stores that exist.
///
/// All levels are compressed, since the log's tables move down without being rewritten. No filters: rows
/// that are asked for exist.
fn keyspace_options(memtable_bytes: u64) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable_bytes)
        .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        .filter_policy(FilterPolicy::disabled())
}

/// What the journals take on disk. One of them may go while we look.
fn journal_bytes(database: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(database)? {
        let entry = entry?;
        if journal::is_journal(&entry.file_name())
            && let Ok(metadata) = entry.metadata()
        {
            bytes += metadata.blocks() * STAT_BLOCK_BYTES;
        }
    }
    Ok(bytes)
}

/// An I/O error that says where.
fn at(path: &Path, error: io::Error) -> StoreError {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

/// What went wrong, in words of ours: fjall prints its errors as Rust values.
fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Poisoned => "the database could not be written in the background".to_owned(),
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => error.to_string(),
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => {
            "a checksum does not match".to_owned()
        }
        fjall::Error::Storage(error) => format!("{error:?}"),
        error => format!("{error:?}"),
    }
}

/// Sorts fjall's errors into ours. What is neither an I/O error nor about locking says that bytes are not
/// what was written.
pub(super) fn store_error(error: fjall::Error) -> StoreError {
    let what = describe(&error);
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => {
            match error.kind() {
                // A file is missing, or it is shorter than what points into it.
                io::ErrorKind::NotFound
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput => StoreError::Corrupt(what),
                _ => StoreError::Io(error),
            }
        }
        fjall::Error::Poisoned => io::Error::other(what).into(),
        fjall::Error::Locked => {
            StoreError::Refused("the database is in use by another process".to_owned())
        }
        _ => StoreError::Corrupt(what),
    }
}

#[cfg(test)]
mod tests;
