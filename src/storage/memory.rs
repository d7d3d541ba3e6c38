//! The store in memory.
use super::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
type Map = BTreeMap<(Space, Bytes), Bytes>;
#[derive(Clone, Default)]
pub struct Memory {
    rows: Arc<Mutex<Map>>,
}
pub enum Fault {}
impl Memory {
    pub fn new() -> Self {
        Self::default()
    }
    pub(super) fn commit(&self, batch: Batch, _durability: Durability) -> Result<()> {
        let mut rows = self.rows.lock();
        for change in batch.into_changes() {
            match change {
                Change::Put(space, key, value) => drop(rows.insert((space, key), value)),
                Change::Delete(space, key) => drop(rows.remove(&(space, key))),
            }
        }
        Ok(())
    }
    pub(super) fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.rows.lock().get(&(space, Bytes::copy_from_slice(key))).cloned())
    }
    pub(super) fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        let rows = self.rows.lock();
        let all: Vec<_> = rows
            .iter()
            .filter(|((s, key), _)| {
                *s == space
                    && match from {
                        Bound::Included(from) => key.as_ref() >= from,
                        Bound::Excluded(from) => key.as_ref() > from,
                        Bound::Unbounded => true,
                    }
                    && match to {
                        Bound::Included(to) => key.as_ref() <= to,
                        Bound::Excluded(to) => key.as_ref() < to,
                        Bound::Unbounded => true,
                    }
            })
            .map(|((_, key), value)| Ok((key.clone(), value.clone())))
            .collect();
        Box::new(all.into_iter())
    }
    pub(super) fn sweep(&self, is_dead: &IsDead) -> Result<()> {
        let mut rows = self.rows.lock();
        let dead: Vec<_> = rows
            .iter()
            .filter(|((space, _), _)| *space == Space::Log)
            .map(|(key, value)| (key.clone(), is_dead(&key.1, value)))
            .collect();
        for (key, dead) in dead {
            if dead? {
                rows.remove(&key);
            }
        }
        Ok(())
    }
    pub(super) fn disk_bytes(&self) -> u64 {
        0
    }
    pub(super) fn free_bytes(&self) -> Option<u64> {
        None
    }
}
