//! The way in: listens for members, greets them, and hands on what they say, as fast as it is taken.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use prost::Message as _;
use starling_proto::starling::peer::v1 as pb;
use starling_proto::starling::peer::v1::peer_server::{Peer as PeerService, PeerServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::socket::Socket;
use super::wire::{self, Assembler};
use super::{Identity, Shared};
use crate::types::{ClusterId, MemberId};

/// What a member may send on a stream, and on all of them, before it is read.
pub(super) const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The largest frame of HTTP/2 that members take. A message is up to a thousand times as long as the usual 16 KiB, each of
/// which would be looked at alone.
const HTTP_FRAME_BYTES: u32 = 256 * 1024;

/// Connections at the same time. A member needs three, for messages, forwarded calls, and forwarded watches.
const CONNECTIONS_MAX: usize = 4096;
/// Calls at the same time on one connection: each client whose watches are forwarded takes one.
pub(super) const STREAMS_MAX: u32 = 16 * 1024;
/// The headers of a call.
const HEADER_BYTES: u32 = 64 * 1024;

/// For TLS, and again for the first words after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the first frame of a stream.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls to end when the member stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// After a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The paths of [`PeerService`].
const PEER_PATHS: &str = "/starling.peer.v1.Peer/{*method}";

/// A socket that listens for members.
#[derive(Debug)]
pub struct PeerListener {
    /// The socket.
    pub socket: net::TcpListener,
    /// Whether it speaks TLS, for which the transport needs certificates then.
    pub tls: bool,
}

/// The Peer service at its paths. Everything else is free for whoever adds it.
pub(super) fn router(shared: &Arc<Shared>) -> axum::Router {
    let service = PeerServer::new(Service(Arc::clone(shared)));
    let service = service.max_decoding_message_size(wire::FRAME_BYTES_MAX);
    axum::Router::new().route_service(PEER_PATHS, service)
}

/// Begins to listen. Must be called within the runtime.
pub(super) fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<PeerListener>,
    router: &axum::Router,
    running: &mpsc::Sender<Infallible>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for PeerListener { socket, tls } in listeners {
        if tls && shared.dialer.tls.is_none() {
            return Err(io::Error::other("no certificate to listen with tls"));
        }
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        let port = Port {
            shared: Arc::clone(shared),
            router: router.clone(),
            room: Arc::clone(&room),
            _running: running.clone(),
            tls,
        };
        tokio::spawn(port.accept_all(listener));
    }
    Ok(())
}

/// What serves the connections of one listener.
#[derive(Clone)]
struct Port {
    shared: Arc<Shared>,
    router: axum::Router,
    room: Arc<Semaphore>,
    _running: mpsc::Sender<Infallible>,
    tls: bool,
}

impl Port {
    async fn accept_all(self, listener: TcpListener) {
        let mut closing = self.shared.closing.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = closed(&mut closing) => return,
            };
            match accepted {
                Ok((stream, _)) => self.begin(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections of members");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn begin(&self, stream: TcpStream) {
        if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
            tokio::spawn(self.clone().serve(stream, permit));
        } else {
            tracing::warn!(max = CONNECTIONS_MAX, "too many connections of members");
        }
    }

    async fn serve(self, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        let served = async {
            let socket = self.greet(stream).await?.with_first_words(HANDSHAKE_TIMEOUT);
            self.serve_http(socket).await
        };
        // Members go in many ways, none of which is worth more than this.
        if let Err(error) = served.await {
            tracing::debug!(error, "a connection of a member ended");
        }
    }

    async fn greet(&self, stream: TcpStream) -> io::Result<Socket> {
        super::set_up(&stream)?;
        match &self.shared.dialer.tls {
            Some(tls) if self.tls => {
                let accepted = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
                accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(Socket::new)
            }
            _ => Ok(Socket::new(stream)),
        }
    }

    async fn serve_http(
        &self,
        socket: Socket,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut closing = self.shared.closing.clone();
        let builder = self.builder();
        let service = TowerToHyperService::new(self.router.clone());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = closed(&mut closing) => connection.as_mut().graceful_shutdown(),
        }
        timeout(STOP_GRACE, connection).await.unwrap_or(Ok(()))
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let timing = &self.shared.dialer.timing;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(HTTP_FRAME_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(timing.keepalive_interval)
            .keep_alive_timeout(timing.keepalive_timeout);
        builder
    }
}

/// Returns when the transport stops. An error means that it is gone.
pub(super) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _gone = closing.wait_for(|closing| *closing).await.is_err();
}

/// The members whose streams are read, at most one stream of each.
#[derive(Default)]
pub(super) struct Guests {
    guests: Mutex<BTreeMap<MemberId, Guest>>,
    visits: AtomicU64,
}

struct Guest {
    visit: u64,
    /// Dropped when a newer stream takes over.
    _displaced: oneshot::Sender<Infallible>,
}

/// A stream that is read.
struct Visit<'a> {
    shared: &'a Shared,
    number: u64,
    from: MemberId,
    run: u64,
    displaced: oneshot::Receiver<Infallible>,
}

impl<'a> Visit<'a> {
    fn begin(shared: &'a Shared, from: MemberId, run: u64) -> Self {
        let number = shared.guests.visits.fetch_add(1, Ordering::Relaxed);
        let (_displaced, displaced) = oneshot::channel();
        shared.guests.guests.lock().insert(from, Guest { visit: number, _displaced });
        shared.handler.on_connected(from, run);
        // It is there, so it may well listen, too.
        if let Some(peer) = shared.peers.read().get(&from) {
            peer.peer.try_again();
        }
        Self { shared, number, from, run, displaced }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut guests = self.shared.guests.guests.lock();
        if guests.get(&self.from).is_some_and(|guest| guest.visit == self.number) {
            guests.remove(&self.from);
            drop(guests);
            self.shared.handler.on_disconnected(self.from, self.run);
        }
    }
}

/// Answers members.
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl PeerService for Service {
    async fn exchange(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<pb::ExchangeEnd>, Status> {
        let shared = &self.0;
        let mut frames = request.into_inner();
        let mut identity = shared.identity.subscribe();
        let receiver = *identity.borrow_and_update();
        let greeting = timeout(GREETING_TIMEOUT, greeting(&mut frames)).await;
        let greeting =
            greeting.unwrap_or_else(|_| Err(Status::deadline_exceeded("no greeting in time")))?;
        let (from, run) = check(&greeting, receiver)?;
        shared.handler.admit(from, run).map_err(Status::failed_precondition)?;

        let mut visit = Visit::begin(shared, from, run);
        let mut closing = shared.closing.clone();
        tokio::select! {
            biased;
            () = closed(&mut closing) => Err(Status::unavailable("the member stops")),
            _ = &mut visit.displaced => {
                Err(Status::aborted("the same member has opened another stream"))
            }
            _ = identity.changed() => {
                Err(Status::failed_precondition("the member has got another identity"))
            }
            end = take_all(&mut frames, from, run, shared) => end.map(Response::new),
        }
    }

    async fn hello(
        &self,
        request: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloReply>, Status> {
        self.0.handler.hello(request.into_inner()).await.map(Response::new)
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinReply>, Status> {
        self.0.handler.join(request.into_inner()).await.map(Response::new)
    }

    async fn call(
        &self,
        request: Request<pb::CallRequest>,
    ) -> Result<Response<pb::CallReply>, Status> {
        self.0.handler.call(request.into_inner()).await.map(Response::new)
    }
}

async fn greeting(frames: &mut Streaming<pb::Frame>) -> Result<pb::Greeting, Status> {
    match frames.message().await?.and_then(|frame| frame.body) {
        Some(pb::frame::Body::Greeting(greeting)) => Ok(greeting),
        _ => Err(Status::invalid_argument("the first frame is no greeting")),
    }
}

/// Checks everything by which two members that should not talk can be told.
fn check(greeting: &pb::Greeting, receiver: Identity) -> Result<(MemberId, u64), Status> {
    let mismatch = |what: &str, theirs: String, ours: String| {
        Err(Status::failed_precondition(format!("{what} mismatch: {theirs}, not {ours}")))
    };
    let pb::Greeting { protocol, cluster_id, member_id, run, receiver_id } = *greeting;
    if protocol != wire::PROTOCOL {
        return mismatch("protocol version", protocol.to_string(), wire::PROTOCOL.to_string());
    }
    let Some(cluster) = receiver.cluster else {
        return Err(Status::failed_precondition("not in a cluster yet"));
    };
    if cluster_id != cluster.0 {
        return mismatch("cluster id", ClusterId(cluster_id).to_string(), cluster.to_string());
    }
    if receiver_id != 0 && receiver_id != receiver.member.0 {
        let theirs = MemberId(receiver_id).to_string();
        return mismatch("member id", theirs, receiver.member.to_string());
    }
    if member_id == 0 || member_id == receiver.member.0 {
        return Err(Status::invalid_argument("the sender has no id of its own"));
    }
    Ok((MemberId(member_id), run))
}

/// Counts what has come from a member, if it is known where that is.
fn count_received(shared: &Shared, from: MemberId, messages: u64, bytes: u64) {
    if let Some(task) = shared.peers.read().get(&from) {
        let counters = &task.peer.counters;
        counters.received.fetch_add(messages, Ordering::Relaxed);
        counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Hands on messages until the stream ends.
async fn take_all(
    frames: &mut Streaming<pb::Frame>,
    from: MemberId,
    run: u64,
    shared: &Shared,
) -> Result<pb::ExchangeEnd, Status> {
    let mut assembler = Assembler::default();
    let mut messages = 0;
    while let Some(frame) = frames.message().await? {
        let bytes = frame.encoded_len() as u64;
        let taken = assembler.take(frame).inspect_err(|error| {
            tracing::warn!(member = %from, %error, "a member sends what it must not");
        });
        let message = taken.map_err(|error| Status::invalid_argument(error.to_string()))?;
        count_received(shared, from, u64::from(message.is_some()), bytes);
        if let Some(message) = message {
            // It may have been removed since it was greeted.
            shared.handler.admit(from, run).map_err(Status::failed_precondition)?;
            shared.handler.deliver(from, run, message).await;
            messages += 1;
        }
    }
    Ok(pb::ExchangeEnd { messages })
}
