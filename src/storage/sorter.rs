//! Rows that come in any order, and are wanted in the order of their keys when all of them are there.
//!
//! What does not fit into memory is written in *runs*, each of them in order, to a file without a name. In the end the runs are
//! merged. Nothing of it outlives the process.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use super::{Result, Store};
use crate::error::StoreError;

/// What is held in memory before it is written: a run.
const RUN_BYTES: usize = 16 << 20;
/// What is read of a run at once.
const CHUNK_BYTES: usize = 16 << 10;
/// What a row takes in memory besides its key and value.
const ROW_BYTES: usize = 64;
/// The length of a length.
const LENGTH_BYTES: usize = 4;

/// A key and a value.
type SortedRow = (Bytes, Bytes);

/// Rows on their way.
pub struct Sorter {
    store: Store,
    /// Where the runs are, once there are any.
    file: Option<File>,
    runs: Vec<Run>,
    run_bytes: usize,
    /// The next run, in any order.
    rows: Vec<SortedRow>,
    bytes: usize,
}

impl Sorter {
    /// None yet. Files are where the store is.
    pub fn new(store: Store) -> Self {
        Self::with_runs_of(store, RUN_BYTES)
    }

    fn with_runs_of(store: Store, run_bytes: usize) -> Self {
        Self { store, file: None, runs: Vec::new(), run_bytes, rows: Vec::new(), bytes: 0 }
    }

    /// Adds a row.
    pub fn add(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        self.bytes += key.len() + value.len() + ROW_BYTES;
        self.rows.push((key, value));
        if self.bytes >= self.run_bytes { self.write_run() } else { Ok(()) }
    }

    fn write_run(&mut self) -> Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(self.store.scratch()?),
        };
        self.rows.sort_by(|a, b| a.0.cmp(&b.0));
        let start = self.runs.last().map_or(0, |run| run.end);
        let mut end = start;
        let mut out = BytesMut::with_capacity(CHUNK_BYTES);
        for (key, value) in self.rows.drain(..) {
            for part in [&key, &value] {
                let length = u32::try_from(part.len());
                let length = length.map_err(|_| io_error("a row is too long"))?;
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(part);
            }
            if out.len() >= CHUNK_BYTES {
                file.write_all_at(&out, end)?;
                end += out.len() as u64;
                out.clear();
            }
        }
        file.write_all_at(&out, end)?;
        end += out.len() as u64;
        self.runs.push(Run { next: start, end, chunk: Bytes::new() });
        self.bytes = 0;
        Ok(())
    }

    /// All of them are there: from now on they can be taken, in order. Of those with the same key the first one comes first.
    pub fn finish(mut self) -> Result<Sorted> {
        self.rows.sort_by(|a, b| a.0.cmp(&b.0));
        let (file, runs, rest) = (self.file, self.runs, self.rows.into());
        let mut sorted = Sorted { file, runs, rest, first: BinaryHeap::new() };
        for source in 0..=sorted.runs.len() {
            sorted.advance(source)?;
        }
        Ok(sorted)
    }
}

/// Some rows of the file, in order.
struct Run {
    /// Where to read on.
    next: u64,
    end: u64,
    /// What was read.
    chunk: Bytes,
}

impl Run {
    fn take(&mut self, file: &File) -> Result<Option<SortedRow>> {
        if self.chunk.is_empty() && self.next == self.end {
            return Ok(None);
        }
        let (key, value) = (self.field(file)?, self.field(file)?);
        Ok(Some((key, value)))
    }

    fn field(&mut self, file: &File) -> Result<Bytes> {
        self.fill(file, LENGTH_BYTES)?;
        let mut length = [0; LENGTH_BYTES];
        length.copy_from_slice(&self.chunk.split_to(LENGTH_BYTES));
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        self.fill(file, length)?;
        // It may stay for longer than the rest of the chunk.
        Ok(Bytes::copy_from_slice(&self.chunk.split_to(length)))
    }

    /// Reads until so many bytes are there.
    fn fill(&mut self, file: &File, bytes: usize) -> Result<()> {
        if self.chunk.len() >= bytes {
            return Ok(());
        }
        let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
        let more = (bytes - self.chunk.len()).max(CHUNK_BYTES).min(left);
        let before = self.chunk.len();
        if before + more < bytes {
            return Err(io_error("a run ends within a row"));
        }
        let mut chunk = BytesMut::zeroed(before + more);
        chunk[..before].copy_from_slice(&self.chunk);
        file.read_exact_at(&mut chunk[before..], self.next)?;
        self.next += more as u64;
        self.chunk = chunk.freeze();
        Ok(())
    }
}

/// Rows in the order of their keys.
pub struct Sorted {
    file: Option<File>,
    runs: Vec<Run>,
    /// What was not written.
    rest: VecDeque<SortedRow>,
    /// The next row of each source, its number, and its value. The last number is that of the rest.
    first: BinaryHeap<Reverse<(Bytes, usize, Bytes)>>,
}

impl Sorted {
    /// The next row.
    pub fn take(&mut self) -> Result<Option<SortedRow>> {
        let Some(Reverse((key, source, value))) = self.first.pop() else { return Ok(None) };
        self.advance(source)?;
        Ok(Some((key, value)))
    }

    fn advance(&mut self, source: usize) -> Result<()> {
        let row = match (self.runs.get_mut(source), &self.file) {
            (Some(run), Some(file)) => run.take(file)?,
            _ => self.rest.pop_front(),
        };
        self.first.extend(row.map(|(key, value)| Reverse((key, source, value))));
        Ok(())
    }
}

fn io_error(what: &'static str) -> StoreError {
    StoreError::Io(std::io::Error::other(what))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::storage::Memory;

    fn value(length: std::ops::Range<usize>) -> impl Strategy<Value = Bytes> {
        (any::<u8>(), length).prop_map(|(byte, length)| vec![byte; length].into())
    }

    proptest! {
        /// However little fits into memory, and however long rows are.
        #[test]
        fn rows_come_in_order(
            rows in vec((any::<[u8; 2]>(), value(0..3000)), 0..100),
            long in value(CHUNK_BYTES..3 * CHUNK_BYTES),
            run_bytes in 1_usize..100_000,
        ) {
            let key = |key: [u8; 2]| Bytes::copy_from_slice(&key);
            let mut rows: Vec<_> = rows.into_iter().map(|(k, value)| (key(k), value)).collect();
            rows.insert(rows.len() / 2, (Bytes::from_static(b"m"), long));
            let mut sorter = Sorter::with_runs_of(Store::Memory(Memory::new()), run_bytes);
            for (key, value) in rows.clone() {
                sorter.add(key, value).unwrap();
            }
            let mut sorted = sorter.finish().unwrap();
            let mut taken = Vec::new();
            while let Some(row) = sorted.take().unwrap() {
                taken.push(row);
            }
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(taken, rows);
        }
    }
}
