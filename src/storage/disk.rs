//! The store on disk, by fjall.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::{Batch, Change, Durability, Result, Rows, Space};
use crate::error::StoreError;

/// Settings of a store on disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The data directory.
    pub path: PathBuf,
    /// fjall's block cache, in bytes.
    pub cache_bytes: u64,
}

/// The store on disk.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    log: Keyspace,
    meta: Keyspace,
    path: PathBuf,
}

fn broken(error: fjall::Error) -> StoreError {
    StoreError::Io(std::io::Error::other(error))
}

impl Disk {
    /// Opens or creates a store.
    pub fn open(options: DiskOptions) -> Result<Self> {
        std::fs::create_dir_all(&options.path)?;
        let database = Database::builder(options.path.join("db"))
            .cache_size(options.cache_bytes)
            .worker_threads(2)
            .open()
            .map_err(broken)?;
        let log = database.keyspace("log", KeyspaceCreateOptions::default).map_err(broken)?;
        let meta = database.keyspace("meta", KeyspaceCreateOptions::default).map_err(broken)?;
        Ok(Self { inner: Arc::new(Inner { database, log, meta, path: options.path }) })
    }

    fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Log => &self.inner.log,
            Space::Meta => &self.inner.meta,
        }
    }

    pub(super) fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        let mode = match durability {
            Durability::Fsync => PersistMode::SyncData,
            Durability::Buffered => PersistMode::Buffer,
        };
        let mut write = self.inner.database.batch().durability(Some(mode));
        for change in batch.into_changes() {
            match change {
                Change::Put(space, key, value) => write.insert(self.space(space), key, value),
                Change::Delete(space, key) => write.remove(self.space(space), key),
            }
        }
        write.commit().map_err(broken)
    }

    pub(super) fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let row = self.space(space).get(key).map_err(broken)?;
        Ok(row.map(|row| Bytes::copy_from_slice(&row)))
    }

    pub(super) fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        let range = (from.map(<[u8]>::to_vec), to.map(<[u8]>::to_vec));
        let rows = self.inner.database.snapshot().range::<Vec<u8>, _>(self.space(space), range);
        Box::new(rows.map(|guard| {
            let (key, value) = guard.into_inner().map_err(broken)?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        }))
    }

    pub(super) fn sweep(&self, _is_dead: super::IsDead) -> Result<()> {
        Ok(())
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.inner.database.disk_space().unwrap_or(0)
    }

    pub(super) fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.inner.path).map_err(std::io::Error::from)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}
