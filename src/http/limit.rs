//! The bounds on messages from clients: how large one may be, with etcd's answer where it is larger, and how long it may take
//! to come.

use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Code, Status};

/// A flag and a length go before each gRPC message.
const PREFIX_BYTES: usize = 5;

/// What a message may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_bytes: usize,
    /// From its first byte to its last. What is kept of it until then is kept for so long at most.
    pub(crate) max_time: Duration,
}

/// When a message that has begun must be there. Costs nothing while messages come in one piece.
pub(crate) struct Begun {
    max_time: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl Begun {
    pub(crate) fn new(max_time: Duration) -> Self {
        Self { max_time, until: None }
    }

    /// Another message is the next to come.
    pub(crate) fn reset(&mut self) {
        self.until = None;
    }

    /// Called when nothing more has come; `is_within` says whether part of a message has.
    pub(crate) fn wait<T>(
        &mut self,
        is_within: bool,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<T, Status>>> {
        if !is_within {
            self.until = None;
            return Poll::Pending;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.max_time)));
        until.as_mut().poll(cx).map(|()| Some(Err(too_slow())))
    }
}

pub(crate) fn too_slow() -> Status {
    Status::deadline_exceeded("the request took too long to come")
}

/// A request body in which no message may be larger, or slower, than its limits. Notices before the message is read.
pub(crate) struct MessageLimit<B> {
    inner: B,
    prefixes: Prefixes,
    begun: Begun,
}

impl<B> MessageLimit<B> {
    pub(crate) fn new(inner: B, limits: Limits) -> Self {
        let prefixes = Prefixes { max_bytes: limits.max_bytes, ..Prefixes::default() };
        Self { inner, prefixes, begun: Begun::new(limits.max_time) }
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
        let this = &mut *self;
        let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Pending => return this.begun.wait(this.prefixes.is_within(), cx),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame.map_err(|error| Status::from_error(error.into()))?,
        };
        if let Some(data) = frame.data_ref()
            && this.prefixes.read(data)?
        {
            this.begun.reset();
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
    /// Whether part of a message has come, and more is to.
    fn is_within(&self) -> bool {
        self.prefix_bytes > 0 || self.message_bytes > 0
    }

    /// Answers whether the end of a message was in it.
    fn read(&mut self, mut data: &[u8]) -> Result<bool, Status> {
        let mut has_end = false;
        while !data.is_empty() {
            let skipped = self.message_bytes.min(data.len());
            self.message_bytes -= skipped;
            has_end |= skipped > 0 && self.message_bytes == 0;
            data = &data[skipped..];
            data = self.read_prefix(data)?;
            has_end |= !self.is_within();
        }
        Ok(has_end)
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
    use futures_util::{FutureExt, StreamExt};
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    const MAX: usize = 10;

    fn message(length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, length];
        bytes.resize(PREFIX_BYTES + usize::from(length), b'x');
        bytes
    }

    fn read(pieces: &[&[u8]]) -> Result<(), Status> {
        let mut prefixes = Prefixes { max_bytes: MAX, ..Prefixes::default() };
        pieces.iter().try_for_each(|piece| prefixes.read(piece).map(drop))
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

    /// A body that sends pieces, and then no more.
    fn stalled(pieces: &[&[u8]]) -> impl Body<Data = Bytes, Error = Status> + Unpin {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let pieces = futures_util::stream::iter(pieces);
        StreamBody::new(pieces.chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let limits = Limits { max_bytes: MAX, max_time: Duration::from_millis(1) };
        let whole = message(3);
        let [head, tail] = [&whole[..6], &whole[6..]];
        for pieces in [vec![&whole[..2]], vec![head], vec![head, tail, head]] {
            let mut body = MessageLimit::new(stalled(&pieces), limits);
            for _ in &pieces {
                body.frame().await.expect("a piece").expect("no error");
            }
            let error = body.frame().await.expect("an error").expect_err("it never comes");
            assert_eq!(error.code(), Code::DeadlineExceeded);
        }
    }

    #[tokio::test]
    async fn silence_between_messages_is_no_matter() {
        let limits = Limits { max_bytes: MAX, max_time: Duration::from_secs(60) };
        let whole = message(3);
        for pieces in [vec![], vec![&whole[..]], vec![&whole[..7], &whole[7..]]] {
            let mut body = MessageLimit::new(stalled(&pieces), limits);
            for _ in &pieces {
                body.frame().await.expect("a piece").expect("no error");
            }
            assert!(body.frame().now_or_never().is_none());
            assert!(body.begun.until.is_none(), "{pieces:?}");
        }
    }
}
