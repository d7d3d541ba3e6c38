//! Connections, with TLS or without.

use std::io;
use std::pin::Pin;
use std::task::{self, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What each connection begins with: the preface of HTTP/2.
const FIRST_WORDS_BYTES: usize = 24;

pub(super) trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

/// A connection. As one that was accepted, it fails when the other side takes too long for its first words: only after
/// them HTTP/2 looks whether anybody is there.
pub(super) struct Socket {
    stream: Box<dyn ReadWrite>,
    first_words: Option<FirstWords>,
}

struct FirstWords {
    deadline: Pin<Box<Sleep>>,
    missing_bytes: usize,
}

impl Socket {
    pub(super) fn new(stream: impl ReadWrite + 'static) -> Self {
        Self { stream: Box::new(stream), first_words: None }
    }

    /// Must be called within the runtime that is to serve it.
    #[must_use]
    pub(super) fn with_first_words(self, within: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(within));
        Self {
            first_words: Some(FirstWords { deadline, missing_bytes: FIRST_WORDS_BYTES }),
            ..self
        }
    }

    /// Notes what was read, or that nothing was.
    fn note(&mut self, read: Option<usize>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let Some(first_words) = &mut self.first_words else {
            return if read.is_some() { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let Some(bytes) = read else {
            ready!(first_words.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        first_words.missing_bytes = first_words.missing_bytes.saturating_sub(bytes);
        if first_words.missing_bytes == 0 {
            self.first_words = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => self.note(Some(buf.filled().len() - before), cx),
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => self.note(None, cx),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
