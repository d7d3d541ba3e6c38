//! `Maintenance.Snapshot`: everything that a member holds, as the database file of an etcd.
//!
//! The file is written first, under no name, and then sent as fast as the client reads: whoever is slow holds that file, and
//! one of the few places for such files; who does not read at all loses it. As in etcd the messages have no header, and behind the file comes one with its SHA-256.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/maintenance.go`.

use std::io::{self, Read};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use ring::digest::{Context as Digest, SHA256};
use starling_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tonic::Status;

use super::CLUSTER_VERSION;
use crate::node::{Handle, SnapshotError};

/// The bytes of a message (etcd's `snapshotSendBufferSize`).
const BLOB_BYTES: u64 = 32 << 10;

/// Messages that are read ahead of the client.
const AHEAD_MAX: usize = 4;

/// A client that takes no message for so long does not get the rest.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What is sent.
pub(super) type Messages = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

struct Sending<R> {
    file: R,
    left: u64,
    digest: Digest,
}

/// Writes the file, and answers with its messages.
pub(super) async fn answer(node: &Handle) -> Result<Messages, Status> {
    let file = node.snapshot(CLUSTER_VERSION).await.map_err(refused)?;
    Ok(messages(Sending::new(file.length(), file), STALL_MAX))
}

fn messages<R: Read + Send + 'static>(sending: Sending<R>, stall_max: Duration) -> Messages {
    let (to, messages) = mpsc::channel(AHEAD_MAX);
    // In a task of its own, since it has to notice that nobody asks for the next message.
    let sent = tokio::spawn(send(sending, to, stall_max));
    Box::pin(stream::unfold(Some((messages, sent)), |state| async {
        let (mut messages, sent) = state?;
        if let Some(message) = messages.recv().await {
            return Some((Ok(message), Some((messages, sent))));
        }
        let sent = sent.await.unwrap_or_else(|_| Err(Status::internal("cannot read the snapshot")));
        sent.err().map(|status| (Err(status), None))
    }))
}

async fn send<R: Read + Send + 'static>(
    mut sending: Sending<R>,
    to: mpsc::Sender<pb::SnapshotResponse>,
    stall_max: Duration,
) -> Result<(), Status> {
    let give = async |message| match tokio::time::timeout(stall_max, to.send(message)).await {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => Err(Status::aborted("the snapshot was not read")),
    };
    while sending.left > 0 {
        // The disk may be slow.
        let read = tokio::task::spawn_blocking(move || sending.next()).await;
        let read = read.map_err(|_| Status::internal("cannot read the snapshot"))?;
        let (message, rest) = read.map_err(|error| unreadable(&error))?;
        sending = rest;
        if !give(message).await? {
            return Ok(());
        }
    }
    let sum = sending.digest.finish().as_ref().to_vec();
    give(message(0, sum)).await.map(drop)
}

impl<R: Read> Sending<R> {
    fn new(left: u64, file: R) -> Self {
        Self { file, left, digest: Digest::new(&SHA256) }
    }

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;
    use tonic::Code;

    use super::*;

    /// Zeros, and a way to see whether somebody still has them.
    struct Zeros {
        _held: Arc<()>,
    }

    impl Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0);
            Ok(buffer.len())
        }
    }

    #[tokio::test]
    async fn the_file_comes_in_pieces_and_then_its_sum() {
        let file = Sending::new(BLOB_BYTES + 1, io::repeat(7));
        let got: Vec<_> = messages(file, Duration::from_secs(60)).collect().await;
        let got: Vec<_> = got.into_iter().map(|message| message.expect("no error")).collect();
        let sizes: Vec<_> = got.iter().map(|it| (it.remaining_bytes, it.blob.len())).collect();
        assert_eq!(sizes, [(1, 32 << 10), (0, 1), (0, 32)]);
        let sum = ring::digest::digest(&SHA256, &vec![7; (32 << 10) + 1]);
        assert_eq!(got[2].blob, sum.as_ref());
    }

    #[tokio::test]
    async fn who_does_not_read_does_not_keep_the_file() {
        let held = Arc::new(());
        let file = Sending::new(100 * BLOB_BYTES, Zeros { _held: Arc::clone(&held) });
        let mut messages = messages(file, Duration::from_millis(1));
        messages.next().await.expect("a message").expect("no error");
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
        let rest: Vec<_> = messages.collect().await;
        assert!(rest.len() <= AHEAD_MAX + 2, "{} messages", rest.len());
        let last = rest.last().expect("an error").as_ref().expect_err("it was not read");
        assert_eq!(last.code(), Code::Aborted);
    }
}
