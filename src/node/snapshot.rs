//! What a member holds, as a file of etcd's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::Handle;
use super::handle::Shared;
use crate::bolt::BoltError;
use crate::engine::mvcc::Reader;
use crate::error::{Error, StoreError};
use crate::etcd_db::Lease;
use crate::etcd_db::export::{self, ExportError, State};
use crate::storage::schema::member::MemberRecord;
use crate::types::{Alarm, MemberId};

/// What a snapshot leaves free on the disk, beyond its own size.
const ROOM_BYTES: u64 = 64 << 20;

/// Snapshots that there are at once, being made or being sent. Each takes a walk over the log, and a file as large as what is
/// stored; further ones wait, as long as a request may.
pub(super) const SNAPSHOTS_MAX: usize = 3;

/// A file without a name, to be read from its beginning. It is gone when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    length: u64,
    _place: OwnedSemaphorePermit,
}

impl Snapshot {
    /// Its length.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Read for Snapshot {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// Why there is no snapshot.
#[derive(Debug)]
pub enum SnapshotError {
    /// The member cannot answer.
    Refused(Error),
    /// The file cannot be written. The store is as it was.
    File(BoltError),
}

impl From<StoreError> for SnapshotError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io(error) => Self::File(error.into()),
            other => Self::File(BoltError::Corrupt(other.to_string())),
        }
    }
}

/// What goes along with the keys.
struct Around {
    alarms: Vec<Alarm>,
    members: BTreeMap<MemberId, MemberRecord>,
    removed: Vec<MemberId>,
    version: &'static str,
}

impl Handle {
    /// Writes everything that is here now, at one revision, to a file without a name, to be read by etcd of that version.
    /// Takes as long as a walk over the log; nobody waits for that but those who want one, too, when there are many.
    pub async fn snapshot(&self, version: &'static str) -> Result<Snapshot, SnapshotError> {
        if !self.is_ready() {
            return Err(SnapshotError::Refused(Error::NotReady));
        }
        let place = Arc::clone(&self.shared.snapshots).acquire_owned();
        let place = tokio::time::timeout(self.shared.options.timeout, place).await;
        let place = place.map_err(|_| SnapshotError::Refused(Error::TooManyRequests))?;
        let place = place.map_err(|_| SnapshotError::Refused(Error::Stopped))?;
        let removed = self.shared.directory().map(|directory| {
            let removed = directory.membership.removed.keys();
            removed.copied().collect()
        });
        let around = Around {
            alarms: self.alarms(),
            members: self.members(),
            removed: removed.unwrap_or_default(),
            version,
        };
        let shared = Arc::clone(&self.shared);
        let begun = Instant::now();
        let written = tokio::task::spawn_blocking(move || shared.write_snapshot(around));
        let (file, length) =
            written.await.map_err(|_| SnapshotError::Refused(Error::Stopped))??;
        self.shared.metrics.snapshot_seconds.observe(begun.elapsed());
        Ok(Snapshot { file, length, _place: place })
    }
}

impl Shared {
    fn write_snapshot(&self, around: Around) -> Result<(File, u64), SnapshotError> {
        let store = self.mvcc.store();
        let wanted = self.mvcc.live_bytes() + ROOM_BYTES;
        if store.disk_space()?.is_some_and(|space| space.free < wanted) {
            return Err(SnapshotError::Refused(Error::NoSpace));
        }
        let scratch = store.scratch()?;
        // Those from before as well as those from after: no key that is in it has a lease that is not.
        let mut leases = self.lease_rows();
        let reader: Reader<'_> = self.mvcc.reader();
        leases.extend(self.lease_rows());
        let auth = self.auth.state();
        let Around { alarms, members, removed, version } = around;
        let index = self.entries.load(Ordering::Relaxed);
        let term = self.term;
        let state = State { auth: &auth, leases, alarms, members, removed, index, term, version };
        let file = BufWriter::new(scratch);
        let (file, bytes) = match export::write(file, &reader, &state) {
            Ok(written) => written,
            Err(ExportError::File(error)) => return Err(SnapshotError::File(error)),
            Err(ExportError::Store(failure)) => {
                return Err(SnapshotError::Refused(self.refuse(failure)));
            }
        };
        let mut file = file.into_inner().map_err(|error| BoltError::from(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(BoltError::from)?;
        Ok((file, bytes))
    }

    fn lease_rows(&self) -> BTreeMap<i64, Lease> {
        let now = self.clock.now();
        let status = |id| self.lessor.status(id, false, now);
        let rows = self.lessor.ids().into_iter().filter_map(|id| Some((id.0, status(id)?)));
        rows.map(|(id, status)| (id, Lease { id, ttl: status.granted_seconds, remaining_ttl: 0 }))
            .collect()
    }
}

impl From<BoltError> for SnapshotError {
    fn from(error: BoltError) -> Self {
        Self::File(error)
    }
}
