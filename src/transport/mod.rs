//! Moves messages between members, and decides nothing.
//!
//! ```text
//!   send() -> queue -> task per peer ==== Exchange, a stream each way ====> server -> PeerHandler::deliver()
//!                         |  connects on demand, pauses after failures        |  greets, one message at a time
//!                      resolve, tls                                          tls
//! ```
//!
//! Between two members that talk there is one stream of frames in each direction, opened by the one that sends. Messages may
//! get lost: when the queue is full, when a peer cannot be reached, when a stream breaks. What arrives of one stream arrives in
//! order. The receiver reads a frame only after it is done with the one before, so it sets the pace, and what it does not read
//! waits in the sender's queue, which is bounded.
//!
//! Invariants
//! * Nothing of a stream is handed on before its greeting has been checked: protocol version, cluster, and receiver.
//! * Of each member at most one stream is read at a time, the newest.
//! * A message that is handed on keeps its own rules (see [`wire`]).

mod client;
mod queue;
pub mod resolve;
mod server;
mod socket;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use starling_proto::starling::peer::v1 as pb;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{interval, timeout};
use tonic::Status;
use tonic::transport::Channel;

pub use crate::tls::{TlsError, TlsFiles};
pub use queue::{QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, Refused};
pub use server::PeerListener;

use crate::metrics::Seconds;
use crate::replication::message::Message;
use crate::tls::{Purpose, Tls};
use crate::types::{ClusterId, MemberId};
use client::{Dialer, Peer};
use resolve::{Candidate, PeerUrl, Resolver};
use server::Guests;

/// How long a question to a member may take, its connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Who this member is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster, once it is in one. Before that nothing is exchanged.
    pub cluster: Option<ClusterId>,
    /// Its id.
    pub member: MemberId,
    /// Its run.
    pub run: u64,
}

/// A member, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The member.
    pub member: MemberId,
    /// All of its URLs.
    pub urls: Vec<PeerUrl>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For one address: the connection and its TLS.
    pub connect_timeout: Duration,
    /// The first pause after a failure. Each further one is twice as long ...
    pub backoff_min: Duration,
    /// ... up to this one. All are cut by up to a half, at random.
    pub backoff_max: Duration,
    /// After which a connection is closed by which nothing is sent.
    pub idle_timeout: Duration,
    /// After which a peer counts as unreachable that reads nothing although something waits for it.
    pub stall_timeout: Duration,
    /// How often it is looked whether the other side is still there ...
    pub keepalive_interval: Duration,
    /// ... and how long it may take to say so.
    pub keepalive_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(1500),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// A connection on which nothing sent arrives for so long is given up. A new one works as soon as the network does; the old
/// one would try again after pauses that grow as long as the network was away (RFC 6298, 5.5).
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(2);

/// Sets a connection between members up for short messages, and for networks that break.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let millis = u32::try_from(UNACKNOWLEDGED_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    }
    Ok(())
}

/// How to move messages.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// Who this member is at first.
    pub identity: Identity,
    /// For URLs with https, and for listeners that speak TLS.
    pub tls: Option<TlsFiles>,
    /// How long things may take.
    pub timing: Timing,
}

/// What is done with what members say. Called from many tasks at once.
#[tonic::async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Takes a message. The next one of this stream is read when this returns; it is dropped when the stream ends early.
    async fn deliver(&self, from: MemberId, run: u64, message: Message);

    /// Says who this member is.
    async fn hello(&self, request: pb::HelloRequest) -> Result<pb::HelloReply, Status>;

    /// Takes someone into the cluster, or says why not.
    async fn join(&self, request: pb::JoinRequest) -> Result<pb::JoinReply, Status>;

    /// Joins somebody else, or says why not.
    async fn call(&self, request: pb::CallRequest) -> Result<pb::CallReply, Status> {
        let _ = request;
        Err(Status::unimplemented("this member joins nobody"))
    }

    /// Whether messages of a member are taken; if not, why. It is told. Asked when it is greeted, and for each message.
    fn admit(&self, from: MemberId, run: u64) -> Result<(), String> {
        let _ = (from, run);
        Ok(())
    }

    /// A stream of a member begins. There may have been another one, which this one takes over from.
    fn on_connected(&self, from: MemberId, run: u64) {
        let _ = (from, run);
    }

    /// The last stream of a member has ended, for whatever reason.
    fn on_disconnected(&self, from: MemberId, run: u64) {
        let _ = (from, run);
    }

    /// A member was not reached, does not want to talk, or has broken off. It is tried again after a pause, when there is
    /// something to send.
    fn on_unreachable(&self, to: MemberId, status: &Status) {
        let _ = (to, status);
    }
}

/// What became of the messages to one peer, and what came from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Messages that were sent. Some may not have arrived.
    pub sent: u64,
    /// What they took, as [`wire::frame_bytes`] counts.
    pub sent_bytes: u64,
    /// Messages that were taken, but dropped since the peer could not be reached.
    pub lost: u64,
    /// Messages that were not taken.
    pub refused: u64,
    /// How often it was not reached, or the stream was broken off.
    pub failures: u64,
    /// Messages that came from it.
    pub received: u64,
    /// What they took.
    pub received_bytes: u64,
}

/// Moves messages. Copies are handles of the same; with the last one it stops.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    running: Arc<Running>,
}

/// What all tasks share.
struct Shared {
    handler: Arc<dyn PeerHandler>,
    identity: watch::Sender<Identity>,
    dialer: Dialer,
    peers: RwLock<BTreeMap<MemberId, PeerTask>>,
    guests: Guests,
    closing: watch::Receiver<bool>,
}

/// A peer and the task that sends to it.
struct PeerTask {
    peer: Arc<Peer>,
    task: AbortHandle,
}

struct Running {
    runtime: runtime::Handle,
    closing: watch::Sender<bool>,
    /// Held by each task that listens.
    token: Mutex<Option<mpsc::Sender<Infallible>>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<Infallible>>,
    shared: std::sync::Weak<Shared>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl Drop for PeerTask {
    fn drop(&mut self) {
        self.task.abort();
        self.peer.queue.close(Refused::Stopped);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
    }
}

impl Running {
    fn close(&self) {
        self.closing.send_replace(true);
        self.token.lock().take();
        if let Some(shared) = self.shared.upgrade() {
            shared.peers.write().clear();
        }
    }
}

impl Transport {
    /// Begins, with nobody to talk to yet. Fails when the files for TLS are of no use.
    pub fn start(
        options: TransportOptions,
        handler: Arc<dyn PeerHandler>,
        runtime: &runtime::Handle,
    ) -> Result<Self, TlsError> {
        let tls = options.tls.map(|files| Tls::load(files, Purpose::Members));
        let tls = tls.transpose()?.map(Arc::new);
        let (closing, closing_receiver) = watch::channel(false);
        let (token, ended) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            handler,
            identity: watch::Sender::new(options.identity),
            dialer: Dialer { resolver: Resolver::default(), tls, timing: options.timing },
            peers: RwLock::default(),
            guests: Guests::default(),
            closing: closing_receiver,
        });
        runtime.spawn(tidy(Arc::clone(&shared)));
        let running = Running {
            runtime: runtime.clone(),
            closing,
            token: Mutex::new(Some(token)),
            ended: tokio::sync::Mutex::new(ended),
            shared: Arc::downgrade(&shared),
        };
        Ok(Self { shared, running: Arc::new(running) })
    }

    /// The Peer service, for [`Transport::serve`]. Everything but its own paths is free for other services.
    pub fn router(&self) -> axum::Router {
        server::router(&self.shared)
    }

    /// Listens, until the transport stops.
    pub fn serve(&self, listeners: Vec<PeerListener>, router: &axum::Router) -> io::Result<()> {
        let _runtime = self.running.runtime.enter();
        let token = self.running.token.lock().clone();
        let token = token.ok_or_else(|| io::Error::other("stopped"))?;
        server::serve(&self.shared, listeners, router, &token)
    }

    /// Stops: ends all streams, and waits until nobody is listening any more.
    pub async fn stop(&self) {
        self.running.close();
        // Nothing is ever sent, so this waits for the last sender to go.
        let _: Option<Infallible> = self.running.ended.lock().await.recv().await;
    }

    /// Who this member is.
    pub fn identity(&self) -> Identity {
        *self.shared.identity.borrow()
    }

    /// Makes this member another one, or part of a cluster. All streams are ended; those to others begin anew.
    pub fn set_identity(&self, identity: Identity) {
        self.shared.identity.send_if_modified(|known| {
            let is_new = *known != identity;
            *known = identity;
            is_new
        });
    }

    /// Says whom there is to talk to, and where. What waits for others is dropped.
    pub fn set_peers(&self, addresses: Vec<PeerAddress>) {
        let mut peers = self.shared.peers.write();
        if *self.shared.closing.borrow() {
            return;
        }
        let mut former = std::mem::take(&mut *peers);
        for PeerAddress { member, urls } in addresses {
            let task = former.remove(&member).unwrap_or_else(|| {
                let peer = Arc::new(Peer::new(member, urls.clone()));
                let run = Arc::clone(&peer).run(Arc::clone(&self.shared));
                PeerTask { peer, task: self.running.runtime.spawn(run).abort_handle() }
            });
            task.peer.set_urls(urls);
            peers.insert(member, task);
        }
    }

    /// Puts a message into the queue of a peer. Never waits.
    pub fn send(&self, to: MemberId, message: Message) -> Result<(), Refused> {
        let peers = self.shared.peers.read();
        let Some(PeerTask { peer, .. }) = peers.get(&to) else {
            let stopped = *self.shared.closing.borrow();
            return Err(if stopped { Refused::Stopped } else { Refused::Unknown });
        };
        peer.queue.push(message).inspect_err(|_| {
            peer.counters.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// For calls to a peer that are not messages. Connects when it is used; ask for it each time, since what nobody has asked
    /// for is closed after a while.
    pub fn channel(&self, to: MemberId) -> Option<Channel> {
        let _runtime = self.running.runtime.enter();
        let peers = self.shared.peers.read();
        peers.get(&to).map(|task| task.peer.channel(&self.shared.dialer))
    }

    /// The same for watches that are forwarded.
    pub fn watch_channel(&self, to: MemberId) -> Option<Channel> {
        let _runtime = self.running.runtime.enter();
        let peers = self.shared.peers.read();
        peers.get(&to).map(|task| task.peer.watch_channel(&self.shared.dialer))
    }

    /// How long questions to each peer and their answers take.
    pub fn round_trips(&self) -> BTreeMap<MemberId, Seconds> {
        let peers = self.shared.peers.read();
        peers.iter().map(|(member, task)| (*member, task.peer.round_trips.clone())).collect()
    }

    /// What became of the messages to each peer, and what came from it, since it is known where it is.
    pub fn stats(&self) -> BTreeMap<MemberId, PeerStats> {
        let peers = self.shared.peers.read();
        peers.iter().map(|(member, task)| (*member, task.peer.stats())).collect()
    }

    /// Asks names.
    pub fn resolver(&self) -> &Resolver {
        &self.shared.dialer.resolver
    }

    /// Asks who is at an address.
    pub async fn hello(
        &self,
        candidate: Candidate,
        request: pb::HelloRequest,
    ) -> Result<pb::HelloReply, Status> {
        let call = async {
            let mut client = self.shared.dialer.client(candidate).await?;
            client.hello(request).await
        };
        timed(call).await
    }

    /// Asks the member at an address to let this one join its cluster.
    pub async fn join(
        &self,
        candidate: Candidate,
        request: pb::JoinRequest,
    ) -> Result<pb::JoinReply, Status> {
        let call = async {
            let client = self.shared.dialer.client(candidate).await?;
            // The table of members can be long.
            client.max_decoding_message_size(wire::JOIN_BYTES_MAX).join(request).await
        };
        timed(call).await
    }

    /// Asks the member at an address to join this one.
    pub async fn call(
        &self,
        candidate: Candidate,
        request: pb::CallRequest,
    ) -> Result<pb::CallReply, Status> {
        let call = async {
            let mut client = self.shared.dialer.client(candidate).await?;
            client.call(request).await
        };
        timed(call).await
    }
}

async fn timed<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("the member does not answer"));
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(late).map(tonic::Response::into_inner)
}

/// Closes what nobody has asked for lately.
async fn tidy(shared: Arc<Shared>) {
    let idle = shared.dialer.timing.idle_timeout;
    let mut closing = shared.closing.clone();
    let mut ticks = interval(idle / 2);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = server::closed(&mut closing) => return,
        }
        for task in shared.peers.read().values() {
            task.peer.tidy(idle);
        }
    }
}
