//! `Maintenance.Snapshot`: everything that a member holds, as the database file of an etcd.
//!
//! The file is written first, under no name, and then sent as fast as the client reads: whoever is slow holds that file,
//! and nothing else. As in etcd the messages have no header, and behind the file comes one with its SHA-256.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/maintenance.go`.

use std::fs::File;
use std::io::{self, Read};

use futures_util::stream::{self, BoxStream};
use ring::digest::{Context as Digest, SHA256};
use starling_proto::etcdserverpb as pb;
use tonic::Status;

use super::CLUSTER_VERSION;
use crate::node::{Handle, SnapshotError};

/// The bytes of a message (etcd's `snapshotSendBufferSize`).
const BLOB_BYTES: u64 = 32 << 10;

/// What is sent.
pub(super) type Messages = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

struct Sending {
    file: File,
    left: u64,
    digest: Digest,
}

/// Writes the file, and answers with its messages.
pub(super) async fn answer(node: &Handle) -> Result<Messages, Status> {
    let (file, left) = node.snapshot(CLUSTER_VERSION).await.map_err(refused)?;
    let sending = Sending { file, left, digest: Digest::new(&SHA256) };
    Ok(Box::pin(stream::try_unfold(Some(sending), |sending| async {
        let Some(sending) = sending else { return Ok(None) };
        if sending.left == 0 {
            let sum = sending.digest.finish().as_ref().to_vec();
            return Ok(Some((message(0, sum), None)));
        }
        // The disk may be slow.
        let read = tokio::task::spawn_blocking(move || sending.next()).await;
        let read = read.map_err(|_| Status::internal("cannot read the snapshot"))?;
        let (message, sending) = read.map_err(|error| unreadable(&error))?;
        Ok::<_, Status>(Some((message, Some(sending))))
    })))
}

impl Sending {
    fn next(mut self) -> io::Result<(pb::SnapshotResponse, Self)> {
        let bytes = usize::try_from(self.left.min(BLOB_BYTES)).unwrap_or(usize::MAX);
        let mut blob = vec![0; bytes];
        self.file.read_exact(&mut blob)?;
        self.digest.update(&blob);
        self.left -= bytes as u64;
        Ok((message(self.left, blob), self))
    }
}

fn message(remaining_bytes: u64, blob: Vec<u8>) -> pb::SnapshotResponse {
    let version = CLUSTER_VERSION.to_owned();
    pb::SnapshotResponse { header: None, remaining_bytes, blob: blob.into(), version }
}

fn unreadable(error: &io::Error) -> Status {
    Status::internal(format!("cannot read the snapshot: {error}"))
}

fn refused(error: SnapshotError) -> Status {
    match error {
        SnapshotError::Refused(error) => error.into(),
        SnapshotError::File(error) => {
            Status::internal(format!("cannot write the snapshot: {error}"))
        }
    }
}
