//! Where clients come in: TCP or a Unix socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use std::{fs, net};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::metrics::Metrics;

/// Connections that wait to be accepted; the system may allow less. Bursts of reconnecting clients overrun the
/// 128 of the standard library, and the kernel then lets them wait for a second.
const BACKLOG: i32 = 4096;

/// After so many bytes a client has said whether it speaks HTTP/1 or HTTP/2: the shortest possible request line.
const FIRST_WORDS_BYTES: usize = 16;

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(net::TcpListener),
    /// On a path, which is removed when the server stops.
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Listener {
    /// Listens on a host and port; port 0 takes a free one.
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = net::TcpListener::bind(address)?;
        listen(&listener)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    /// Listens on a path. What a former server left there is removed.
    pub fn unix(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listen(&listener)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Where it listens, if on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Must be called within a runtime.
    pub(super) fn into_async(self) -> io::Result<AsyncListener> {
        Ok(match self {
            Self::Tcp(listener) => AsyncListener::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Self::Unix(listener, path) => AsyncListener::Unix {
                listener: tokio::net::UnixListener::from_std(listener)?,
                _file: SocketFile(path),
            },
        })
    }
}

/// Listening a second time changes the backlog.
fn listen(listener: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(listener, BACKLOG)?)
}

/// Removes the file of a Unix socket in the end.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "could not remove the socket");
        }
    }
}

pub(super) enum AsyncListener {
    Tcp(tokio::net::TcpListener),
    Unix { listener: tokio::net::UnixListener, _file: SocketFile },
}

impl AsyncListener {
    /// The next connection, free to be moved to another thread's runtime.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Otherwise small answers wait for the acknowledgment of those before.
                stream.set_nodelay(true)?;
                stream.into_std().map(Accepted::Tcp)
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                stream.into_std().map(Accepted::Unix)
            }
        }
    }
}

/// A connection that no thread serves yet.
pub(super) enum Accepted {
    Tcp(net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A connection, which fails when its client takes too long for its first words.
pub(super) struct Socket {
    stream: Stream,
    first_words: Option<FirstWords>,
    metrics: Arc<Metrics>,
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

struct FirstWords {
    deadline: Pin<Box<Sleep>>,
    missing_bytes: usize,
}

impl Socket {
    /// Must be called within the runtime that is to serve it.
    pub(super) fn new(
        accepted: Accepted,
        first_words: Duration,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Self> {
        let stream = match accepted {
            Accepted::Tcp(stream) => Stream::Tcp(tokio::net::TcpStream::from_std(stream)?),
            Accepted::Unix(stream) => Stream::Unix(tokio::net::UnixStream::from_std(stream)?),
        };
        let deadline = Box::pin(tokio::time::sleep(first_words));
        let first_words = Some(FirstWords { deadline, missing_bytes: FIRST_WORDS_BYTES });
        Ok(Self { stream, first_words, metrics: Arc::clone(metrics) })
    }

    fn count_sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.metrics.sent_bytes.inc_by(*bytes as u64);
        }
    }

    fn stream(&mut self) -> Pin<&mut (dyn ReadWrite + Send)> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream),
            Stream::Unix(stream) => Pin::new(stream),
        }
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.stream().poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        self.metrics.received_bytes.inc_by(bytes as u64);
        let Some(first_words) = &mut self.first_words else { return read };
        if read.is_pending() {
            return first_words
                .deadline
                .as_mut()
                .poll(cx)
                .map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        first_words.missing_bytes = first_words.missing_bytes.saturating_sub(bytes);
        if first_words.missing_bytes == 0 {
            self.first_words = None;
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write(cx, buf);
        self.count_sent(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write_vectored(cx, bufs);
        self.count_sent(&written);
        written
    }

    /// Both kinds of sockets can.
    fn is_write_vectored(&self) -> bool {
        true
    }
}
