//! Giving up history: the mark is moved at once, the space comes back in slices.
//!
//! A compaction at revision F only forbids reads below F. What it frees is found by a walk over the index, which
//! visits only keys that have anything to free; each slice is one small batch of the writer's, between two
//! commits, so that nobody waits for it. After a crash the walk starts again from the mark on disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Era, Mvcc};
use crate::error::Error;
use crate::storage::{Batch, Space};
use crate::types::Revision;

/// Stale keys that one slice looks at: about 50 microseconds under the lock.
const SLICE_KEYS: usize = 256;

/// The walk that frees what a compaction gave up.
pub(in crate::engine) struct Reclaim {
    floor: Revision,
    /// The eras that have ended: while someone else holds one, nothing is freed.
    former: Vec<Arc<Era>>,
    from: Option<Box<[u8]>>,
    done: bool,
}

impl Reclaim {
    /// Everything below `floor` is to be freed, once the readers of former eras are done. Takes the place of a walk
    /// that is under way.
    pub(in crate::engine) fn begin(mvcc: &Mvcc, floor: Revision, under_way: Option<Self>) -> Self {
        let mut former = under_way.map_or_else(Vec::new, |reclaim| reclaim.former);
        former.push(std::mem::take(&mut mvcc.guarded.write().era));
        Self { floor, former, from: None, done: false }
    }

    /// The compaction that it works for.
    pub(in crate::engine) fn floor(&self) -> Revision {
        self.floor
    }

    /// Whether everything is freed.
    pub(in crate::engine) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether readers that started before the compaction still hold it up.
    pub(in crate::engine) fn is_waiting(&self) -> bool {
        self.former.iter().any(|era| Arc::strong_count(era) > 1)
    }

    /// Frees a slice: takes versions out of the index and adds the removal of their rows to the batch.
    pub(in crate::engine) fn step(&mut self, mvcc: &Mvcc, batch: &mut Batch) {
        if self.done || self.is_waiting() {
            return;
        }
        self.former.clear();
        let mut freed = Vec::new();
        {
            let mut guarded = mvcc.guarded.write();
            self.from = guarded.index.prune(self.floor, self.from.take(), SLICE_KEYS, &mut freed);
            let bytes: u64 = freed.iter().map(|version| u64::from(version.size())).sum();
            guarded.live_bytes -= bytes;
        }
        self.done = self.from.is_none();
        for version in freed {
            mvcc.cache.remove(&version.place());
            batch.delete(Space::Log, version.place().encode());
        }
    }
}

impl Mvcc {
    /// Checks that a client may compact at `revision`.
    pub(in crate::engine) fn check_compaction(
        &self,
        revision: i64,
        current: Revision,
    ) -> Result<Revision, Error> {
        let mark = self.compacted_mark.load(Ordering::Acquire);
        match u64::try_from(revision) {
            Ok(revision) if revision >= mark && revision > current.0 => Err(Error::FutureRevision),
            Ok(revision) if revision >= mark => Ok(Revision(revision)),
            _ => Err(Error::Compacted { compacted: self.compacted() }),
        }
    }

    /// Forbids reads below `revision`, which is durable as the mark now.
    pub(in crate::engine) fn set_compacted(&self, revision: Revision) {
        let before = self.compacted_mark.swap(revision.0 + 1, Ordering::AcqRel);
        assert!(before <= revision.0, "compaction went from {before} to {revision}");
    }
}
