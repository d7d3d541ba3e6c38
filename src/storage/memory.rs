//! The store in memory: for `--volatile`, for the simulator, and as the double that loses power in tests.
//!
//! Rows are in one ordered map per space. Next to them stands the undo list: for each commit, what its rows
//! held before. It answers two questions:
//! * What did a reader see who began earlier? An iterator takes rows in chunks from the live map, and puts
//!   back what was changed since it began. So nobody copies the map, and no reader stops a commit.
//! * What is left after a loss of power? Everything up to the last commit with `Durability::Fsync`, and of
//!   the buffered ones behind it the first few, as many as the test says: see [`Memory::crash_keeping`].
//!
//! An entry of the list goes when neither question needs it any more.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Batch, Change, DiskSpace, Durability, IsDead, Result, Rows, Space, is_empty_range};

/// How many rows an iterator takes at a time.
const CHUNK_ROWS: usize = 64;

/// A store in memory. All clones are the same store.
#[derive(Clone)]
pub struct Memory {
    state: Arc<RwLock<State>>,
}

/// What shall go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The commit after this many more fails before it has done anything.
    FailBefore(u64),
    /// The commit after this many more fails after it was written, but not for sure to the disk: after a
    /// crash it counts as one of the buffered ones.
    FailAfter(u64),
    /// The file system has this much left.
    FreeBytes(u64),
}

#[derive(Clone, Default)]
struct State {
    log: BTreeMap<Bytes, Bytes>,
    meta: BTreeMap<Bytes, Bytes>,
    /// Keys and values in both maps.
    bytes: u64,
    /// How many commits there were, which is also the number of the last.
    commits: u64,
    /// The last commit that a loss of power leaves alone.
    synced: u64,
    /// Whether power is never lost in a way that anyone could see.
    volatile: bool,
    /// By commit, oldest first.
    undo: VecDeque<Undo>,
    /// The last commit that open iterators see, and how many of them.
    readers: BTreeMap<u64, usize>,
    /// Armed: the number of the commit that fails, and whether it takes effect.
    fault: Option<(u64, bool)>,
    free_bytes: Option<u64>,
    failure: Option<String>,
}

/// What a commit has replaced, in the order of its changes.
#[derive(Clone)]
struct Undo {
    commit: u64,
    before: Vec<(Space, Bytes, Option<Bytes>)>,
}

impl Memory {
    /// An empty store that can lose power.
    #[expect(
        clippy::new_without_default,
        reason = "which kind of store it is should be read at the call"
    )]
    pub fn new() -> Self {
        Self::with(State::default())
    }

    /// An empty store that ends with the process, for which all commits are the same.
    pub fn volatile() -> Self {
        Self::with(State { volatile: true, ..State::default() })
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(RwLock::new(state)) }
    }

    /// How many commits took effect.
    pub fn commits(&self) -> u64 {
        self.state.read().commits
    }

    /// How many commits at the end a loss of power could take.
    pub fn unsynced(&self) -> usize {
        self.state.read().unsynced().count()
    }

    /// The store as it is opened again after a loss of power now, in the worst case: everything behind the
    /// last `Fsync` commit is lost. This store stays as it is, so that a test can go on with it.
    pub fn crash(&self) -> Self {
        self.crash_keeping(0)
    }

    /// Like [`crash`](Self::crash), but the first `kept` of the [`unsynced`](Self::unsynced) commits had
    /// reached the disk. With all of them it is a crash of the process alone.
    pub fn crash_keeping(&self, kept: usize) -> Self {
        let mut state = self.state.read().clone();
        let lost: Vec<_> = state.unsynced().skip(kept).cloned().collect();
        for undo in lost.into_iter().rev() {
            for (space, key, before) in undo.before.into_iter().rev() {
                state.set(space, key, before);
            }
            state.commits -= 1;
        }
        Self::with(State {
            log: state.log,
            meta: state.meta,
            bytes: state.bytes,
            commits: state.commits,
            synced: state.commits,
            volatile: state.volatile,
            ..State::default()
        })
    }

    /// Lets something go wrong from now on. A new fault of a commit replaces the one before.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state.write();
        let next = state.commits + 1;
        match fault {
            Fault::FailBefore(after) => state.fault = Some((next + after, false)),
            Fault::FailAfter(after) => state.fault = Some((next + after, true)),
            Fault::FreeBytes(bytes) => state.free_bytes = Some(bytes),
        }
    }

    /// Why the store cannot be used any more, if so.
    pub fn failed(&self) -> Option<String> {
        self.state.read().failure.clone()
    }

    pub(super) fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        let mut state = self.state.write();
        state.usable()?;
        if batch.is_empty() {
            return Ok(());
        }
        let takes_effect = match state.fault {
            Some((commit, takes_effect)) if commit == state.commits + 1 => Some(takes_effect),
            _ => None,
        };
        if takes_effect != Some(false) {
            state.apply(batch);
        }
        if takes_effect.is_some() {
            state.failure = Some("injected failure of a commit".to_owned());
            return state.usable();
        }
        if durability == Durability::Fsync || state.volatile {
            state.synced = state.commits;
        }
        state.prune();
        Ok(())
    }

    pub(super) fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let state = self.state.read();
        state.usable()?;
        Ok(state.rows(space).get(key).cloned())
    }

    pub(super) fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        if is_empty_range(from, to) {
            return Box::new(std::iter::empty());
        }
        let mut state = self.state.write();
        let sees = state.commits;
        *state.readers.entry(sees).or_default() += 1;
        let (from, to) = (from.map(Bytes::copy_from_slice), to.map(Bytes::copy_from_slice));
        let state = Arc::clone(&self.state);
        Box::new(Chunks { state, space, sees, next: Some(from), to, chunk: BTreeMap::new() })
    }

    pub(super) fn sweep(&self, is_dead: &IsDead) -> Result<()> {
        let last = self.state.read().log.last_key_value().map(|(key, _)| key.clone());
        let mut batch = Batch::default();
        for row in self.rows(Space::Log, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = row?;
            if Some(&key) != last.as_ref() && is_dead(&key, &value)? {
                batch.delete(Space::Log, key);
            }
        }
        self.commit(batch, Durability::Fsync)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.state.read().bytes
    }

    pub(super) fn space(&self) -> Option<DiskSpace> {
        self.state.read().free_bytes.map(|free| DiskSpace { free, total: u64::MAX })
    }
}

impl State {
    fn usable(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why.clone()).into()),
        }
    }

    fn rows(&self, space: Space) -> &BTreeMap<Bytes, Bytes> {
        match space {
            Space::Log => &self.log,
            Space::Meta => &self.meta,
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.commits += 1;
        let mut before = Vec::with_capacity(batch.len());
        for change in batch.into_changes() {
            let (space, key, value) = match change {
                Change::Put(space, key, value) => (space, key, Some(value)),
                Change::Delete(space, key) => (space, key, None),
            };
            let old = self.set(space, key.clone(), value);
            before.push((space, key, old));
        }
        self.undo.push_back(Undo { commit: self.commits, before });
    }

    /// Writes or removes a row; returns what it held.
    fn set(&mut self, space: Space, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        let rows = match space {
            Space::Log => &mut self.log,
            Space::Meta => &mut self.meta,
        };
        let (key_bytes, value_bytes) = (key.len(), value.as_ref().map(Bytes::len));
        let old = match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
        let row_bytes = |value: Option<usize>| value.map_or(0, |value| (key_bytes + value) as u64);
        self.bytes += row_bytes(value_bytes);
        self.bytes -= row_bytes(old.as_ref().map(Bytes::len));
        old
    }

    fn unsynced(&self) -> impl Iterator<Item = &Undo> {
        self.undo.iter().filter(|undo| undo.commit > self.synced)
    }

    /// Forgets what neither a crash nor a reader can ask for.
    fn prune(&mut self) {
        let needed =
            self.readers.first_key_value().map_or(self.synced, |(sees, _)| self.synced.min(*sees));
        while self.undo.front().is_some_and(|undo| undo.commit <= needed) {
            self.undo.pop_front();
        }
    }

    /// The first rows of a range as they were at commit `sees`, and where the rest begins.
    fn chunk(
        &self,
        space: Space,
        from: Bound<&Bytes>,
        to: Bound<&Bytes>,
        sees: u64,
    ) -> (BTreeMap<Bytes, Bytes>, Option<Bound<Bytes>>) {
        let live = self.rows(space).range::<Bytes, _>((from, to));
        let mut chunk: BTreeMap<_, _> =
            live.take(CHUNK_ROWS).map(|(key, value)| (key.clone(), value.clone())).collect();
        let last = if chunk.len() == CHUNK_ROWS { chunk.last_key_value() } else { None };
        let last = last.map(|(key, _)| key.clone());
        let until = last.as_ref().map_or(to, Bound::Included);
        let covered = |key: &Bytes| std::ops::RangeBounds::<Bytes>::contains(&(from, until), key);
        for undo in self.undo.iter().rev().take_while(|undo| undo.commit > sees) {
            for (_, key, before) in
                undo.before.iter().rev().filter(|row| row.0 == space && covered(&row.1))
            {
                match before {
                    Some(value) => chunk.insert(key.clone(), value.clone()),
                    None => chunk.remove(key),
                };
            }
        }
        (chunk, last.map(Bound::Excluded))
    }
}

/// The rows of a range, chunk by chunk.
struct Chunks {
    state: Arc<RwLock<State>>,
    space: Space,
    /// The last commit that shows up.
    sees: u64,
    /// Where the next chunk begins; none behind the last one.
    next: Option<Bound<Bytes>>,
    to: Bound<Bytes>,
    chunk: BTreeMap<Bytes, Bytes>,
}

impl Iterator for Chunks {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.chunk.pop_first() {
                return Some(Ok(row));
            }
            let from = self.next.take()?;
            let state = self.state.read();
            if let Err(error) = state.usable() {
                return Some(Err(error));
            }
            (self.chunk, self.next) =
                state.chunk(self.space, from.as_ref(), self.to.as_ref(), self.sees);
        }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        let mut state = self.state.write();
        if let Some(count) = state.readers.get_mut(&self.sees) {
            *count -= 1;
            if *count == 0 {
                state.readers.remove(&self.sees);
            }
        }
        state.prune();
    }
}

#[cfg(test)]
mod tests;
