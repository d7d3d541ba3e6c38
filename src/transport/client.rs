//! The way out: one task for each member that sends what waits for it, over a connection that is there while it is needed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use starling_proto::starling::peer::v1 as pb;
use starling_proto::starling::peer::v1::peer_client::PeerClient;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use super::queue::{Queue, Refused};
use super::resolve::{Candidate, PeerUrl, Resolver};
use super::server::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX};
use super::socket::Socket;

use super::{Identity, PeerStats, Shared, Timing, wire};
use crate::metrics::Seconds;
use crate::tls::Tls;
use crate::types::MemberId;

/// What the other side may send of one watch that is forwarded before it is read. Clients that do not read their watches must
/// not hold up those of others, so the connection has a window for as many as there can be.
const WATCH_WINDOW_BYTES: u32 = 64 * 1024;
const WATCHES_WINDOW_BYTES: u32 = WATCH_WINDOW_BYTES * STREAMS_MAX;

/// The most addresses of one member that one attempt tries. The next attempt goes on behind them.
const ATTEMPTS_MAX: usize = 8;

/// Opens connections.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) resolver: Resolver,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) timing: Timing,
}

impl Dialer {
    /// Connects to one address, within the time for it.
    pub(super) async fn dial(&self, candidate: &Candidate) -> io::Result<Socket> {
        let Candidate { url, address } = candidate;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            super::set_up(&stream)?;
            match (&self.tls, url.tls) {
                (_, false) => Ok(Socket::new(stream)),
                (Some(tls), true) => tls.connect(&url.host, stream).await.map(Socket::new),
                (None, true) => Err(io::Error::other("this member has no certificate for tls")),
            }
        };
        let connected = timeout(self.timing.connect_timeout, connect).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| io::Error::new(error.kind(), format!("{candidate}: {error}")))
    }

    /// Connects to the first of the addresses that answers, in turn: after each attempt another one is the first, since a
    /// name may stand for several members.
    async fn dial_any(&self, urls: &[PeerUrl], turn: &AtomicUsize) -> io::Result<Socket> {
        let candidates = self.resolver.candidates(urls).await?;
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..candidates.len().min(ATTEMPTS_MAX) {
            let at = turn.fetch_add(1, Ordering::Relaxed) % candidates.len();
            match self.dial(&candidates[at]).await {
                Ok(socket) => return Ok(socket),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The address in it means nothing: where to connect to is the connector's business.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::from_static("http://peer")
            .http2_keep_alive_interval(self.timing.keepalive_interval)
            .keep_alive_timeout(self.timing.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
    }

    /// A connection to one address, for a question or two.
    pub(super) async fn client(&self, candidate: Candidate) -> Result<PeerClient<Channel>, Status> {
        let dialer = self.clone();
        let connector = service_fn(move |_: Uri| {
            let (dialer, candidate) = (dialer.clone(), candidate.clone());
            async move { dialer.dial(&candidate).await.map(TokioIo::new) }
        });
        let channel = self.endpoint().connect_with_connector(connector).await;
        Ok(PeerClient::new(channel.map_err(|error| unreachable(&error))?))
    }
}

/// With all causes: the first one alone says nothing.
fn unreachable(error: &dyn Error) -> Status {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Status::unavailable(text)
}

/// A member, and what is for it.
pub(super) struct Peer {
    member: MemberId,
    place: Arc<Place>,
    pub(super) queue: Queue,
    /// Something says that it can be reached again.
    hint: Notify,
    calls: Lane,
    watches: Lane,
    pub(super) counters: Counters,
    /// How long a question and its answer take.
    pub(super) round_trips: Seconds,
}

/// Where a member is.
struct Place {
    urls: RwLock<Vec<PeerUrl>>,
    /// Which of its addresses is the next to be tried.
    turn: AtomicUsize,
}

/// A connection for calls of clients, which are not to wait behind messages. Connects when it is used, and again whenever
/// that is needed.
#[derive(Default)]
struct Lane(Mutex<Option<Forwarding>>);

impl Lane {
    fn channel(&self, connect: impl FnOnce() -> Channel) -> Channel {
        let mut lane = self.0.lock();
        let forwarding = lane
            .get_or_insert_with(|| Forwarding { channel: connect(), asked_for: Instant::now() });
        forwarding.asked_for = Instant::now();
        forwarding.channel.clone()
    }

    fn tidy(&self, idle: Duration) {
        self.0.lock().take_if(|forwarding| forwarding.asked_for.elapsed() >= idle);
    }
}

struct Forwarding {
    channel: Channel,
    asked_for: Instant,
}

#[derive(Default)]
pub(super) struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    lost: AtomicU64,
    pub(super) refused: AtomicU64,
    failures: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

/// How often it is measured how long a question and its answer take, while there is a stream.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
/// How soon for the first time.
const MEASURE_FIRST: Duration = Duration::from_secs(1);
/// etcd's buckets for that: the first one, and how many, each twice the one before.
const ROUND_TRIP_SECONDS_FIRST: f64 = 0.0001;
const ROUND_TRIP_BUCKETS: i32 = 16;

fn round_trips() -> Seconds {
    Seconds::new((0..ROUND_TRIP_BUCKETS).map(|power| ROUND_TRIP_SECONDS_FIRST * 2_f64.powi(power)))
}

impl Peer {
    pub(super) fn new(member: MemberId, urls: Vec<PeerUrl>) -> Self {
        Self {
            member,
            place: Arc::new(Place { urls: RwLock::new(urls), turn: AtomicUsize::new(0) }),
            queue: Queue::new(),
            hint: Notify::new(),
            calls: Lane::default(),
            watches: Lane::default(),
            counters: Counters::default(),
            round_trips: round_trips(),
        }
    }

    /// Connections that are open stay so.
    pub(super) fn set_urls(&self, urls: Vec<PeerUrl>) {
        let mut known = self.place.urls.write();
        if *known != urls {
            *known = urls;
            self.hint.notify_one();
        }
    }

    /// Ends a pause after a failure.
    pub(super) fn try_again(&self) {
        self.hint.notify_one();
    }

    pub(super) fn stats(&self) -> PeerStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { sent, sent_bytes, lost, refused, failures, received, received_bytes } =
            &self.counters;
        PeerStats {
            sent: count(sent),
            sent_bytes: count(sent_bytes),
            lost: count(lost),
            refused: count(refused),
            failures: count(failures),
            received: count(received),
            received_bytes: count(received_bytes),
        }
    }

    /// For calls with one answer.
    pub(super) fn channel(&self, dialer: &Dialer) -> Channel {
        let connect = || dialer.endpoint().connect_with_connector_lazy(self.connector(dialer));
        self.calls.channel(connect)
    }

    /// For watches, whose answers wait for clients to read them.
    pub(super) fn watch_channel(&self, dialer: &Dialer) -> Channel {
        self.watches.channel(|| {
            let endpoint = dialer.endpoint().initial_stream_window_size(WATCH_WINDOW_BYTES);
            let endpoint = endpoint.initial_connection_window_size(WATCHES_WINDOW_BYTES);
            endpoint.connect_with_connector_lazy(self.connector(dialer))
        })
    }

    /// Lets go of connections for calls that nobody has asked for lately. Who uses one keeps it.
    pub(super) fn tidy(&self, idle: Duration) {
        self.calls.tidy(idle);
        self.watches.tidy(idle);
    }

    fn connector(&self, dialer: &Dialer) -> impl Connector {
        let (place, dialer) = (Arc::clone(&self.place), dialer.clone());
        service_fn(move |_: Uri| {
            let (place, dialer) = (Arc::clone(&place), dialer.clone());
            async move {
                let urls = place.urls.read().clone();
                dialer.dial_any(&urls, &place.turn).await.map(TokioIo::new)
            }
        })
    }

    /// Sends what there is to send, for ever.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let timing = shared.dialer.timing;
        let mut failures = 0;
        loop {
            self.queue.wait().await;
            let begun = Instant::now();
            let Err(status) = self.exchange(&shared).await else {
                failures = 0;
                continue;
            };
            // What is left waiting would be old news by the time that it arrives.
            let lost = self.queue.close(Refused::Unreachable);
            self.counters.lost.fetch_add(lost, Ordering::Relaxed);
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(member = %self.member, %status, lost, "a member is not reached");
            shared.handler.on_unreachable(self.member, &status);
            failures = if begun.elapsed() > timing.backoff_max { 0 } else { failures };
            self.pause(&timing, failures).await;
            failures = failures.saturating_add(1);
            self.queue.reopen();
        }
    }

    /// Pauses after a failure; so many came right before it. After the first one a hint ends it at once: a newcomer is
    /// called when it is admitted, does not know of that yet, and calls back a moment later.
    async fn pause(&self, timing: &Timing, failures: u32) {
        let longest = timing.backoff_min.saturating_mul(2_u32.saturating_pow(failures));
        let longest = longest.min(timing.backoff_max);
        let pause = longest.mul_f64(rand::random_range(0.5..=1.0));
        let least = if failures == 0 { Duration::ZERO } else { pause.min(timing.backoff_min) };
        sleep(least).await;
        tokio::select! {
            () = sleep(pause - least) => {}
            () = self.hint.notified() => {}
        }
    }

    /// One stream, from its greeting to its end.
    async fn exchange(self: &Arc<Self>, shared: &Shared) -> Result<(), Status> {
        let mut identity = shared.identity.subscribe();
        let greeting = self.greeting(*identity.borrow_and_update())?;
        let connector = self.connector(&shared.dialer);
        let channel = shared.dialer.endpoint().connect_with_connector(connector).await;
        let mut client = PeerClient::new(channel.map_err(|error| unreachable(&error))?);
        let measured = client.clone();
        let (_open, leaving) = watch::channel(());
        let outgoing = Outgoing {
            peer: Arc::clone(self),
            ready: VecDeque::from([greeting]),
            leaving,
            idle_timeout: shared.dialer.timing.idle_timeout,
        };
        tokio::select! {
            end = client.exchange(stream::unfold(outgoing, Outgoing::next)) => end.map(drop),
            () = self.stalled(shared.dialer.timing.stall_timeout) => {
                Err(Status::deadline_exceeded("the member reads nothing"))
            }
            _ = identity.changed() => Ok(()),
            never = self.measure(measured) => match never {},
        }
    }

    /// Measures on the way that messages go, so what is before them there counts. A question that fails says nothing.
    async fn measure(&self, mut client: PeerClient<Channel>) -> Infallible {
        sleep(MEASURE_FIRST).await;
        loop {
            let begun = Instant::now();
            if client.hello(pb::HelloRequest::default()).await.is_ok() {
                self.round_trips.observe(begun.elapsed());
            }
            sleep(MEASURE_INTERVAL).await;
        }
    }

    fn greeting(&self, sender: Identity) -> Result<pb::Frame, Status> {
        let Some(cluster) = sender.cluster else {
            return Err(Status::failed_precondition("not in a cluster yet"));
        };
        let greeting = pb::Greeting {
            protocol: wire::PROTOCOL,
            cluster_id: cluster.0,
            member_id: sender.member.0,
            run: sender.run,
            receiver_id: self.member.0,
        };
        Ok(pb::Frame { body: Some(pb::frame::Body::Greeting(greeting)) })
    }

    /// Returns when something has waited for too long.
    async fn stalled(&self, patience: Duration) {
        loop {
            let at = self.queue.stalled_at(patience);
            if at <= Instant::now() {
                return;
            }
            sleep_until(at).await;
        }
    }
}

/// What tonic connects by.
trait Connector:
    Service<Uri, Response = TokioIo<Socket>, Error = io::Error, Future: Send> + Send + 'static
{
}
impl<T> Connector for T where
    T: Service<Uri, Response = TokioIo<Socket>, Error = io::Error, Future: Send> + Send + 'static
{
}

/// The frames of a stream. They are taken from the queue when there is room for them on the way, not before.
struct Outgoing {
    peer: Arc<Peer>,
    /// The greeting at first, and pieces of a message later.
    ready: VecDeque<pb::Frame>,
    /// Ends with the call. HTTP/2 may ask for more even then, and must not get what is for the next one.
    leaving: watch::Receiver<()>,
    idle_timeout: Duration,
}

impl Outgoing {
    async fn next(mut self) -> Option<(pb::Frame, Self)> {
        while self.ready.is_empty() {
            let message = tokio::select! {
                biased;
                _ = self.leaving.changed() => return None,
                message = timeout(self.idle_timeout, self.peer.queue.pop()) => message.ok()?,
            };
            match wire::frames(&message) {
                Ok(frames) => self.ready.extend(frames),
                Err(error) => {
                    tracing::error!(member = %self.peer.member, %error, "a message cannot be sent");
                    self.peer.counters.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let frame = self.ready.pop_front()?;
        self.note(&frame);
        Some((frame, self))
    }

    fn note(&self, frame: &pb::Frame) {
        let counters = &self.peer.counters;
        let bytes = frame.encoded_len() as u64;
        counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.ready.is_empty() && !matches!(frame.body, Some(pb::frame::Body::Greeting(_))) {
            counters.sent.fetch_add(1, Ordering::Relaxed);
        }
        self.peer.queue.note_moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hint_ends_a_long_pause() {
        let peer = Peer::new(MemberId(1), Vec::new());
        let (backoff_min, backoff_max) = (Duration::from_millis(1), Duration::from_secs(3600));
        let timing = Timing { backoff_min, backoff_max, ..Timing::default() };
        peer.try_again();
        let paused = timeout(Duration::from_secs(20), peer.pause(&timing, u32::MAX)).await;
        paused.expect("it does not wait for an hour");
    }

    #[tokio::test]
    async fn a_hint_ends_the_first_pause_at_once() {
        let peer = Peer::new(MemberId(1), Vec::new());
        let backoff = Duration::from_secs(3600);
        let timing = Timing { backoff_min: backoff, backoff_max: backoff, ..Timing::default() };
        peer.try_again();
        let paused = timeout(Duration::from_secs(20), peer.pause(&timing, 0)).await;
        paused.expect("it does not wait for an hour");
    }
}
