//! etcd's gRPC services, and one of our own for operators.
//!
//! A request is parsed into the types of [`crate::engine::command`] ([`convert`]), handed to the member
//! ([`crate::node::Handle`]), and its answer dressed as etcd's. Errors get etcd's code and exact text in one
//! table ([`status`]), since clients compare the text. What etcd decides about keys, revisions and leases is
//! not decided here.
//!
//! | file | has |
//! |---|---|
//! | [`router`] | which service and method a path names, and what unknown ones answer |
//! | `kv`, `watch`, `lease`, `cluster`, `maintenance`, `auth`, `health` | a service of etcd each |
//! | `admin` | what a member tells its operators, which etcd has not |
//! | `lock`, `election` | the same, after one recipe: `ownership` |
//! | `access` | who asks, and what they may do |
//! | [`convert`] | etcd's messages to commands, and replies back |
//! | `unary`, `events`, `wire` | messages in and answers out where that is hot: calls of KV, replies of watches, framing |
//! | `range_stream` | a Range in pieces |
//! | `elsewhere`, `relay` | calls of KV and watchers that another member has to answer |
//! | [`header`] | the header of every answer |
//! | `slow` | what the log says of requests that took long |
//! | [`status`] | errors as gRPC statuses |

mod access;
mod admin;
mod auth;
mod cluster;
pub(crate) mod convert;
mod election;
mod elsewhere;
mod events;
pub(crate) mod header;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod ownership;
mod range_stream;
mod relay;
pub(crate) mod router;
mod slow;
mod snapshot;
pub(crate) mod status;
mod txn_size;
pub(crate) mod unary;
mod watch;
mod wire;

use std::sync::Arc;

use tokio::sync::watch as tokio_watch;
use tonic::{Request, Status};

pub(crate) use access::CertificateUser;
pub use slow::SlowLimits;

use access::Access;

use crate::metrics::Metrics;
use crate::node::Handle;

/// The etcd release whose API this is. Clients parse it as plain `X.Y.Z`, and expect `RangeStream` from 3.7 on.
pub const ETCD_VERSION: &str = "3.7.3";

/// What etcd calls the version of the cluster and of its storage.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// What a message may be larger than the largest request that it carries.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

/// What every service has: the member, the limits, and the signal to end its streams.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Handle,
    pub(crate) metrics: Arc<Metrics>,
    /// The largest request that may change something.
    pub(crate) max_request_bytes: usize,
    /// Whether it has been checked already who asks.
    pub(crate) is_trusted: bool,
    /// From when on requests are in the log.
    pub(crate) slow: SlowLimits,
    /// Turns true when streams are to end.
    pub(crate) closing: tokio_watch::Receiver<bool>,
}

impl Context {
    /// Who asks. A token that is not good is an error, whatever is asked.
    pub(crate) fn access<T>(&self, request: &Request<T>) -> Result<Access, Status> {
        Ok(Access::of(self, request.metadata(), request.extensions().get())?)
    }

    /// The largest message that is read from a client, and the size from which a watch reply is split.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_request_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES)
    }

    /// Resolves when streams are to end: the server closes, or the member stops.
    pub(crate) async fn closed(&self) {
        let mut closing = self.closing.clone();
        // An error means that the server is gone altogether.
        let server = async { drop(closing.wait_for(|closing| *closing).await) };
        tokio::select! {
            () = server => {}
            () = self.node.stopping() => {}
        }
    }
}
