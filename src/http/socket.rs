//! Where clients come in: TCP or a Unix socket, with TLS or without.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;
use std::{fs, net};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use crate::metrics::Metrics;
use crate::tls::Tls;

/// Connections that wait to be accepted; the system may allow less. Bursts of reconnecting clients overrun the
/// 128 of the standard library, and the kernel then lets them wait for a second.
const BACKLOG: i32 = 4096;

/// What is held back of small writes.
const HELD_BYTES_MAX: usize = 4096;

/// After so many bytes a client has said whether it speaks HTTP/1 or HTTP/2: the shortest possible request line.
const FIRST_WORDS_BYTES: usize = 16;

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(net::TcpListener),
    /// On a path, which is removed when the server stops.
    Unix(std::os::unix::net::UnixListener, PathBuf),
    /// By TLS on one of those.
    Tls(Box<Self>, Arc<Tls>),
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

    /// The same once more, for a server that follows another one. On TCP nobody who connects in between is turned away.
    pub fn again(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(_, path) => Self::unix(path),
            Self::Tls(listener, tls) => Ok(Self::Tls(Box::new(listener.again()?), Arc::clone(tls))),
        }
    }

    /// Where it listens, if on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
            Self::Tls(listener, _) => listener.address(),
        }
    }

    /// What it takes to greet clients.
    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Self::Tcp(_) | Self::Unix(..) => None,
            Self::Tls(_, tls) => Some(Arc::clone(tls)),
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
            Self::Tls(listener, _) => return listener.into_async(),
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
    /// What was written but not sent.
    held: BytesMut,
    metrics: Arc<Metrics>,
}

pub(super) enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
    Tls(Box<TlsStream<Self>>),
}

struct FirstWords {
    deadline: Pin<Box<Sleep>>,
    missing_bytes: usize,
}

impl Socket {
    /// Must be called within the runtime that is to serve it.
    pub(super) fn new(stream: Stream, first_words: Duration, metrics: &Arc<Metrics>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(first_words));
        let first_words = Some(FirstWords { deadline, missing_bytes: FIRST_WORDS_BYTES });
        Self { stream, first_words, held: BytesMut::new(), metrics: Arc::clone(metrics) }
    }
}

impl Stream {
    /// Must be called within the runtime that is to serve it.
    pub(super) fn new(accepted: Accepted) -> io::Result<Self> {
        Ok(match accepted {
            Accepted::Tcp(stream) => Self::Tcp(tokio::net::TcpStream::from_std(stream)?),
            Accepted::Unix(stream) => Self::Unix(tokio::net::UnixStream::from_std(stream)?),
        })
    }

    /// Where the client is, if it came by TCP.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(stream) => stream.get_ref().0.remote(),
        }
    }

    fn pin(&mut self) -> Pin<&mut (dyn ReadWrite + Send)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream),
        }
    }
}

/// TLS asks one read or write at a time of what is below it.
impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pin().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pin().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pin().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.pin().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.pin().poll_shutdown(cx)
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
        let read = self.stream.pin().poll_read(cx, buf);
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

/// HTTP/2 is written in two steps where an answer is large, the frame's head and what is in it. A socket that says
/// that it writes vectors gets both at once, but also every answer above 256 bytes by itself. This one says that it
/// does not, so that small answers come together, up to 16 KiB of them; and it holds what is small back until
/// the flush or the next write, so that a large one still takes one system call.
impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.held.len() + buf.len() <= HELD_BYTES_MAX {
            this.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        loop {
            let slices = [io::IoSlice::new(&this.held), io::IoSlice::new(buf)];
            let written = ready!(this.stream.pin().poll_write_vectored(cx, &slices))?;
            this.metrics.sent_bytes.inc_by(written as u64);
            let of_held = written.min(this.held.len());
            this.held.advance(of_held);
            if written == 0 || written > of_held {
                this.held = BytesMut::new();
                return Poll::Ready(Ok(written - of_held));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.held.is_empty() {
            let written = ready!(this.stream.pin().poll_write(cx, &this.held))?;
            this.metrics.sent_bytes.inc_by(written as u64);
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.held.advance(written);
        }
        // An idle connection needs no buffer.
        this.held = BytesMut::new();
        this.stream.pin().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.stream.pin().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Socket, tokio::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket can be");
        theirs.set_nonblocking(true).expect("a socket can be");
        let metrics = Arc::new(Metrics::new());
        let ours = Stream::new(Accepted::Unix(ours)).expect("within a runtime");
        let theirs = tokio::net::UnixStream::from_std(theirs).expect("within a runtime");
        (Socket::new(ours, Duration::from_secs(60), &metrics), theirs)
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order_whatever_its_sizes() {
        let (mut socket, mut client) = pair();
        let sizes = [1, 100, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 1 << 20, 7, 3000, 3000, 3000, 0];
        let pieces: Vec<Vec<u8>> = (0_u8..).zip(sizes).map(|(i, size)| vec![i; size]).collect();
        let expected = pieces.concat();
        let reader = tokio::spawn(async move {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.map(|_| read)
        });
        for piece in &pieces {
            socket.write_all(piece).await.expect("it is read");
        }
        socket.shutdown().await.expect("it is read");
        let read = reader.await.expect("no panic").expect("it was written");
        assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
    }

    #[tokio::test]
    async fn a_flush_leaves_nothing_behind() {
        let (mut socket, mut client) = pair();
        socket.write_all(b"hello").await.expect("it is held");
        assert_eq!(
            client.try_read(&mut [0; 9]).map_err(|error| error.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
        socket.flush().await.expect("there is room");
        let mut read = [0; 5];
        client.read_exact(&mut read).await.expect("it was flushed");
        assert_eq!(&read, b"hello");
        drop(client);
        socket.write_all(&[0; 10 * HELD_BYTES_MAX]).await.expect_err("nobody is there");
    }
}
