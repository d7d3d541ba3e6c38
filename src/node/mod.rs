//! The runtime of a member: threads, queues and clocks. No rules of etcd's are decided here.
//!
//! ```text
//!   Handle (many, async) ──bounded queue──▶ driver thread: Writer, one batch and one fsync at a time
//!         └── reads ──▶ Mvcc, on the caller's thread
//! ```
//!
//! Shutdown: [`Node::stop`] tells streams to end, lets the driver answer everything that is queued, and returns when the
//! store is closed. If the store fails, [`Node::failed`] resolves, and the process must end: nothing is answered
//! from a store that may have lost a write.

mod acks;
mod auth;
mod blocked;
mod clock;
mod compactor;
mod contacts;
mod discovery;
mod driver;
mod forward;
mod handle;
mod home;
mod joining;
mod leases;
mod lost_and_found;
mod passwords;
mod peers;
mod places;
mod searches;
mod seeking;
mod snapshot;
mod status;
mod tags;
mod tokens;
mod write_traces;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

pub use crate::engine::replica::{ClockFacts, ClockOptions, ClusterOptions, founding_cluster};
pub use crate::replication::liveness::State;
pub use crate::storage::schema::member::MemberRecord;
pub use acks::AcksWaiting;
pub use auth::AuthOptions;
pub use blocked::{BLOCKED_MAX, BlockChange, BlockRefused};
pub use clock::SystemClock;
pub use compactor::Retention;
pub use discovery::Discovery;
pub use forward::{
    FORWARDED, FORWARDED_ANSWERED, FORWARDED_BY, FORWARDED_REFUSED, FORWARDED_TO, Forward, READ,
    Services, WRITE_ACK,
};
pub use handle::{Handle, Member, Removed, RequestOptions, Status, WatchStream};
pub use joining::{Anew, JoinError, Joined, Joining, Leaving};
pub use passwords::{COST_DEFAULT, COSTS};
pub use peers::PeerOptions;
pub use snapshot::{Snapshot, SnapshotError};
pub use status::{CatchUp, ClusterStatus, Facts, HeldBack, PeerFacts, Reason};

pub use tokens::{JwtOptions, TokenOptions};

pub use crate::engine::mvcc::StateHash as HashKv;

use crate::engine::Options as WriterOptions;
use crate::engine::replica::Replica;
use crate::error::StoreError;
use crate::metrics::Metrics;
use crate::storage::Store;
use crate::traces::Traces;
use crate::types::{ReadLevel, WriteAck};
use compactor::Compactor;
use contacts::Contacts;
use driver::{Driver, QUEUE_MAX, Task};
use handle::Shared;
use home::Home;
use lost_and_found::LostAndFound;
use peers::Peers;

/// Settings of a member.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where its clients reach it.
    pub client_urls: Vec<String>,
    /// The engine's settings.
    pub writer: WriterOptions,
    /// What requests need to know.
    pub request: RequestOptions,
    /// How clients say who they are.
    pub auth: AuthOptions,
    /// How much history is kept by auto-compaction.
    pub retention: Retention,
    /// Who has a write before it is answered, unless it says otherwise.
    pub ack: WriteAck,
    /// Whom linearizable reads ask, unless they say otherwise.
    pub reads: ReadLevel,
    /// Where writes are kept that nobody else has any more; `None` for nowhere.
    pub lost_and_found: Option<PathBuf>,
    /// Where it is kept whom the member was told to join while it ran; `None` for nowhere.
    pub contacts: Option<PathBuf>,
    /// The same of a former start on this store, if that was just now.
    pub called: Vec<String>,
    /// What makes spans of requests and writes; `None` if nobody wants any.
    pub traces: Option<Arc<Traces>>,
}

/// A running member.
pub struct Node {
    handle: Handle,
    driver: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts a member on a store: reads the log back into memory, then takes requests.
    pub fn start(
        store: Store,
        options: NodeOptions,
        mut peers: Option<PeerOptions>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let contacts = Contacts::at(options.contacts);
        let kept = contacts.read()?;
        let called = if kept.is_empty() { options.called } else { kept };
        if let Some(peers) = &mut peers {
            peers.cluster.is_called = !called.is_empty();
        }
        let clock = SystemClock::new();
        let now = clock.now();
        let cluster = peers.as_ref().map(|peers| peers.cluster.clone()).unwrap_or_default();
        let replica = Replica::open(store, &options.writer, cluster, now)?;
        let identity = replica.writer().identity();
        let member = Member {
            id: identity.member,
            name: options.name,
            peer_urls: options.peer_urls,
            client_urls: options.client_urls,
        };
        let quota_bytes = options.writer.quota_bytes;
        let seen = (metrics, options.traces, options.auth);
        let called_to = (contacts, !called.is_empty());
        let shared = Shared::new(
            replica.writer(),
            member,
            options.request,
            quota_bytes,
            clock,
            seen,
            called_to,
        );
        let shared = Arc::new(shared);
        if let Some(peers) = &mut peers {
            peers.go_by(&replica, &called);
        }
        let (queue, tasks) = mpsc::sync_channel(QUEUE_MAX);
        let compactor = Compactor::new(options.retention, now.monotonic_millis);
        shared.observe_cluster(&replica);
        let (home, ack) = (Home::nowhere(), options.ack);
        let mut handle = Handle {
            shared: Arc::clone(&shared),
            queue: queue.clone(),
            home,
            ack,
            reads: options.reads,
            transport: None,
            span: None,
        };
        let peers = match peers {
            Some(peers) => Some(
                Peers::start(peers, &handle, replica.writer().former_peers())
                    .map_err(io::Error::other)?,
            ),
            None => None,
        };
        if let Some(peers) = &peers {
            handle = handle.with_transport(peers.transport.clone());
        }
        let tasks = (queue, tasks);
        let lost_and_found = LostAndFound::new(options.lost_and_found);
        let driver = Driver::new(replica, peers, tasks, lost_and_found, shared, clock, compactor);
        let driver =
            std::thread::Builder::new().name("writer".to_owned()).spawn(move || driver.run())?;
        Ok(Self { handle, driver: Some(driver) })
    }

    /// A way in.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when the store has failed, with the reason. The process must end then.
    pub async fn failed(&self) -> StoreError {
        self.handle.shared.failed().await
    }

    /// Resolves when this member was removed from its cluster, which is on disk: the process must end, or start the member
    /// anew.
    pub async fn removed(&self) -> Removed {
        self.handle.shared.removed().await
    }

    /// Resolves when this member is to start anew on the same store: to join others, or since it has left some.
    pub async fn anew(&self) -> Anew {
        self.handle.shared.anew().await
    }

    /// Tells streams that the member stops. Requests are still answered.
    pub fn begin_stop(&self) {
        self.handle.shared.stop();
    }

    /// Answers what is queued, makes it durable and ends the writer. Blocks until that is done.
    pub fn stop(mut self) {
        self.begin_stop();
        // If the queue is full or gone, the writer is on its way out by itself or will see the hang-up.
        let _ = self.handle.queue.send(Task::Stop);
        if let Some(driver) = self.driver.take() {
            let _ = driver.join();
        }
    }
}
