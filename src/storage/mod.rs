//! Bytes on disk: an ordered, atomic, durable map, and the records that are kept in it.
//!
//! ```text
//! engine ──▶ Store ──▶ Disk (fjall: journal, memtable, tables)
//!               └────▶ Memory (the simulator, `--volatile`, and the double that loses power)
//! ```
//!
//! There are two spaces: the [`Space::Log`], where every entry lives under its revision and which *is* the
//! data, and [`Space::Meta`], a few rows about the store itself. [`schema`] has every record,
//! `docs/storage-format.md` describes them byte by byte.
//!
//! Contract, the same for every kind of store:
//! * A [`Batch`] is atomic over both spaces: after a crash either all of it is there or nothing.
//! * [`Store::commit`] with [`Durability::Fsync`] returns after the batch, and every batch before it, would
//!   survive a loss of power. [`Durability::Buffered`] survives a crash of the process only.
//! * Many rows can be written past the journal, all or none of them: see [`Ingest`].
//! * A batch becomes visible to readers as a whole, no later than `commit` returns.
//! * Rows of the log are written once and never changed; they may be deleted.
//! * After an error of `commit` the store is unusable: what it holds is unknown until it is opened again.
//!
//! Nothing here knows etcd or a clock. Threads end with the call that begins them, or with the [`Ingest`] (fjall has some of its own).

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod ahead;
pub(crate) mod codec;
mod disk;
mod ingest;
mod journal;
mod memory;
pub mod schema;
mod sorter;
mod sweep;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::MemfdFlags;

pub use disk::{Disk, DiskOptions};
pub use ingest::{EncodedRows, Ingest};
pub use memory::{Fault, Memory};
pub use sorter::{Sorted, Sorter};

use crate::error::StoreError;

/// A look at the journals of a database alone, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_journals(database: &std::path::Path) -> Result<()> {
    journal::check(database)
}

/// The result of an access to the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A part of the store with keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Entries by revision: append-only, so that the tables on disk never overlap.
    Log,
    /// Rows about the store: format, identity, compaction.
    Meta,
}

/// What a commit outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The loss of power.
    Fsync,
    /// The end of the process, for work that is done again if it gets lost.
    Buffered,
}

/// One change of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a row.
    Put(Space, Bytes, Bytes),
    /// Removes a row, present or not.
    Delete(Space, Bytes),
}

/// Changes that become durable and visible together. A later change of a row wins over an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch {
    /// Adds a row.
    pub fn put(&mut self, space: Space, key: Bytes, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.changes.push(Change::Put(space, key, value));
    }

    /// Adds the removal of a row.
    pub fn delete(&mut self, space: Space, key: Bytes) {
        self.bytes += key.len();
        self.changes.push(Change::Delete(space, key));
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes it has.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Keys and values together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The changes, in order.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// Whether no key can lie between two bounds: they are the wrong way round, or the same key without itself.
fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
    }
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What it still has for us.
    pub free: u64,
    /// What it has altogether.
    pub total: u64,
}

/// Rows in key order.
pub type Rows = Box<dyn Iterator<Item = Result<(Bytes, Bytes)>> + Send>;

/// Says whether a row of the log, given its key and value, can go. Called from the store's own threads.
pub type IsDead = Arc<dyn Fn(&[u8], &[u8]) -> Result<bool> + Send + Sync>;

/// An open store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub enum Store {
    /// On disk, by fjall.
    Disk(Disk),
    /// In memory.
    Memory(Memory),
}

impl Store {
    /// Makes a batch durable and visible. Blocks for as long as the disk takes.
    pub fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.commit(batch, durability),
            Self::Memory(memory) => memory.commit(batch, durability),
        }
    }

    /// Begins to write many rows to the end of the log, past the journal: see [`Ingest`].
    pub fn ingest(&self) -> Result<Ingest> {
        match self {
            Self::Disk(disk) => disk.ingest(),
            Self::Memory(memory) => Ok(Ingest::into_memory(memory)),
        }
    }

    /// One row, as of now. The bytes share no memory with larger blocks.
    pub fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        match self {
            Self::Disk(disk) => disk.row(space, key),
            Self::Memory(memory) => memory.row(space, key),
        }
    }

    /// The rows between two keys, as of now, in key order; later commits do not show up in it.
    pub fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        match self {
            Self::Disk(disk) => disk.rows(space, from, to),
            Self::Memory(memory) => memory.rows(space, from, to),
        }
    }

    /// The same for who lets go of most rows soon: they may share the memory of the blocks that they were read from.
    pub fn passing_rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        match self {
            Self::Disk(disk) => disk.passing_rows(space, from, to),
            Self::Memory(memory) => memory.rows(space, from, to),
        }
    }

    /// Hands all rows of a space on, in key order, as of now; they may share memory as [`Self::passing_rows`] do. Ends with the first
    /// error, also of `take`. Those of a disk are read by another thread meanwhile.
    pub fn for_each_row(
        &self,
        space: Space,
        mut take: impl FnMut(Bytes, Bytes) -> Result<()>,
    ) -> Result<()> {
        let mut rows = self.passing_rows(space, Bound::Unbounded, Bound::Unbounded);
        match self {
            Self::Disk(_) => ahead::read_ahead(rows, take),
            Self::Memory(_) => {
                rows.try_for_each(|row| row.and_then(|(key, value)| take(key, value)))
            }
        }
    }

    /// Why the store cannot be used any more, if so. The owner asks from time to time, not on the thread that
    /// commits, and ends the process: a write in the background can fail without a commit to answer for it.
    pub fn failed(&self) -> Option<String> {
        match self {
            Self::Disk(disk) => disk.failed(),
            Self::Memory(memory) => memory.failed(),
        }
    }

    /// Removes the rows of the log that `is_dead` picks, and gives their space back. Blocks until that is
    /// done and durable; commits and reads go on meanwhile. After a crash in the middle any of those rows may
    /// still be there. The last row of the log stays in any case. One sweep runs at a time. After an error the
    /// store goes on, unless [`Self::failed`] says otherwise.
    pub fn sweep(&self, is_dead: IsDead) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.sweep(is_dead),
            Self::Memory(memory) => memory.sweep(&is_dead),
        }
    }

    /// The bytes that the store takes on disk now (in memory: of its rows).
    pub fn disk_bytes(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.disk_bytes(),
            Self::Memory(memory) => memory.disk_bytes(),
        }
    }

    /// A file for something that is soon gone again, where the store is.
    pub fn scratch(&self) -> Result<File> {
        match self {
            Self::Disk(disk) => disk.scratch(),
            Self::Memory(_) => {
                let file = rustix::fs::memfd_create("scratch", MemfdFlags::CLOEXEC);
                Ok(file.map_err(std::io::Error::from)?.into())
            }
        }
    }

    /// The file system below, where there is one.
    pub fn disk_space(&self) -> Result<Option<DiskSpace>> {
        match self {
            Self::Disk(disk) => disk.space().map(Some),
            Self::Memory(memory) => Ok(memory.space()),
        }
    }
}
