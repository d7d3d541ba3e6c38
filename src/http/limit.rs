//! The bound on messages from clients, with etcd's answer where it is exceeded.

use std::pin::Pin;
use std::task::{self, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

/// A flag and a length go before each gRPC message.
const PREFIX_BYTES: usize = 5;

/// A request body in which no message may be larger than a limit. Notices before the message is read.
pub(crate) struct MessageLimit<B> {
    inner: B,
    prefixes: Prefixes,
}

impl<B> MessageLimit<B> {
    pub(crate) fn new(inner: B, max_bytes: usize) -> Self {
        Self { inner, prefixes: Prefixes { max_bytes, ..Prefixes::default() } }
    }
}

impl<B> Body for MessageLimit<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        if let Some(data) = frame.data_ref() {
            self.prefixes.read(data)?;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Finds the lengths of messages in the pieces of a body.
#[derive(Default)]
struct Prefixes {
    max_bytes: usize,
    /// What there is of the current prefix.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// What is still to come of the current message.
    message_bytes: usize,
}

impl Prefixes {
    fn read(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let skipped = self.message_bytes.min(data.len());
            self.message_bytes -= skipped;
            data = &data[skipped..];
            data = self.read_prefix(data)?;
        }
        Ok(())
    }

    fn read_prefix<'a>(&mut self, data: &'a [u8]) -> Result<&'a [u8], Status> {
        let taken = (PREFIX_BYTES - self.prefix_bytes).min(data.len());
        let (head, rest) = data.split_at(taken);
        self.prefix[self.prefix_bytes..][..taken].copy_from_slice(head);
        self.prefix_bytes += taken;
        if self.prefix_bytes == PREFIX_BYTES {
            self.prefix_bytes = 0;
            let [_flag, length @ ..] = self.prefix;
            self.message_bytes = self.check(u32::from_be_bytes(length))?;
        }
        Ok(rest)
    }

    /// In grpc-go's words.
    fn check(&self, length: u32) -> Result<usize, Status> {
        let max = self.max_bytes;
        let too_large = || format!("grpc: received message larger than max ({length} vs. {max})");
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= max)
            .ok_or_else(|| Status::new(Code::ResourceExhausted, too_large()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 10;

    fn message(length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, length];
        bytes.resize(PREFIX_BYTES + usize::from(length), b'x');
        bytes
    }

    fn read(pieces: &[&[u8]]) -> Result<(), Status> {
        let mut prefixes = Prefixes { max_bytes: MAX, ..Prefixes::default() };
        pieces.iter().try_for_each(|piece| prefixes.read(piece))
    }

    #[test]
    fn messages_up_to_the_limit_pass_however_they_are_cut() {
        let body = [message(3), message(0), message(10), message(1)].concat();
        read(&[&body]).expect("in one piece");
        for size in 1..body.len() {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            read(&pieces).unwrap_or_else(|error| panic!("in pieces of {size}: {error}"));
        }
    }

    #[test]
    fn a_larger_message_is_refused_at_its_prefix() {
        let body = [message(3), message(11)].concat();
        for size in 1..=body.len() {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            let error = read(&pieces).expect_err("too large");
            assert_eq!(error.code(), Code::ResourceExhausted);
            assert_eq!(error.message(), "grpc: received message larger than max (11 vs. 10)");
        }
        let prefix_only = [0, 0xff, 0xff, 0xff, 0xff];
        assert!(read(&[&prefix_only]).is_err());
    }
}
