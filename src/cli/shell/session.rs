//! A member that a shell talks to: one connection, opened anew when it is lost, and a token for it where one is needed.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use starling_proto::etcdserverpb::cluster_client::ClusterClient as EtcdClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cli::member::Member;

/// Pages of keys and values, the largest ones, and the table of all members fit.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// How long a request may take: longer than members wait for each other.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a member is asked how it is while something is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What a user who pressed Ctrl-C is told.
pub(super) const INTERRUPTED: &str = "interrupted";

/// A connection.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

impl Connection {
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    pub(super) fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    pub(super) fn etcd_cluster(&self) -> EtcdClusterClient<Channel> {
        EtcdClusterClient::new(self.channel.clone())
    }

    pub(super) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    /// A message as a request of the user.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// The member, and the way to it.
pub(super) struct Session {
    member: Member,
    connection: RefCell<Option<Connection>>,
}

impl Session {
    pub(super) fn new(member: Member) -> Self {
        let member = member.with_timeout(REQUEST_TIMEOUT);
        Self { member, connection: RefCell::new(None) }
    }

    /// Does something by a connection, until it is done or the user gives up.
    pub(super) fn run<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<T, Status>,
    ) -> Result<T, String> {
        let is_known = self.connection.borrow().is_some();
        match self.try_run(&call) {
            // A token ends after a while, and so may the connection.
            Err(status) if status.code() == Code::Unauthenticated && is_known => {
                self.connection.take();
                self.try_run(&call).map_err(|status| text(&status))
            }
            outcome => outcome.map_err(|status| text(&status)),
        }
    }

    fn try_run<T>(
        &self,
        call: &impl AsyncFn(Connection) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let known = self.connection.borrow().clone();
        let work = async {
            let connection = match known {
                Some(connection) => connection,
                None => {
                    let (channel, token) = self.member.connect().await?;
                    let connection = Connection { channel, token };
                    self.connection.replace(Some(connection.clone()));
                    connection
                }
            };
            call(connection).await
        };
        let outcome = self.member.block_on(async {
            tokio::select! {
                outcome = work => outcome,
                _ = tokio::signal::ctrl_c() => Err(Status::cancelled(INTERRUPTED)),
            }
        });
        if outcome.as_ref().is_err_and(|status| status.code() == Code::Unavailable) {
            self.connection.take();
        }
        outcome
    }

    /// How the cluster is, as the member sees it.
    pub(super) fn status(&self) -> Result<pb::StatusReply, String> {
        self.run(async |connection| {
            let request = connection.request(pb::StatusRequest { members_max: 0 });
            connection.cluster().status(request).await.map(tonic::Response::into_inner)
        })
    }

    /// Waits until the cluster is so; the last that was seen if that takes too long.
    pub(super) fn until(
        &self,
        patience: Duration,
        holds: impl Fn(&pb::StatusReply, Duration) -> bool,
    ) -> Result<(bool, pb::StatusReply), String> {
        let start = Instant::now();
        loop {
            let status = self.status();
            let elapsed = start.elapsed();
            match status {
                Ok(status) if holds(&status, elapsed) => return Ok((true, status)),
                Ok(status) if elapsed >= patience => return Ok((false, status)),
                Err(why) if elapsed >= patience || why == INTERRUPTED => return Err(why),
                // It may be starting anew.
                _ => {}
            }
            self.run(async |_| {
                tokio::time::sleep(LOOK_INTERVAL).await;
                Ok(())
            })
            .or_else(|why| if why == INTERRUPTED { Err(why) } else { Ok(()) })?;
        }
    }
}

/// What to tell of a failure: etcd's texts as they are.
fn text(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        text => text.to_owned(),
    }
}
