//! Leases as clients see them, whichever member they ask: what the owner of a lease has to answer is forwarded to it.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Status;

use super::handle::{Handle, draw_lease_id};
use crate::engine::command::{Command, CommandReply, LeaseGrantReply, LeaseStatus, Reply, Txn};
use crate::engine::lease::KeepAlive;
use crate::error::{Error, Result};
use crate::types::{LeaseId, MemberId, Revision};

/// How long a keep-alive waits for the revocation of a lease that has run out, before it looks again.
const REVOCATION_POLL: Duration = Duration::from_millis(20);
/// How long the owner of a lease has to answer before it is looked whether it still is the owner.
const OWNER_PATIENCE: Duration = Duration::from_secs(2);
/// After an owner could not be asked.
const OWNER_PAUSE: Duration = Duration::from_millis(100);
/// How long peers have to say whether they know a lease, and its record to come.
const SEARCH_TIME: Duration = Duration::from_secs(1);
/// Peers that are asked for a lease at the same time.
const ASKED_AT_ONCE_MAX: usize = 32;
/// How often it is looked whether the record has come.
const SEARCH_POLL: Duration = Duration::from_millis(5);

/// What there is to ask of the owner of a lease.
#[derive(Clone, Copy)]
enum Question {
    KeepAlive,
    TimeToLive,
}

/// What a member says of a lease.
#[derive(Clone, Copy)]
struct Answer {
    /// Whether there is such a lease.
    is_known: bool,
    /// What is left of its time, in seconds.
    seconds: i64,
}

impl Handle {
    /// Grants a lease; id zero draws one. An id that the client has chosen may have been granted elsewhere: as far as peers
    /// that seem alive answer in time, it is refused then. Of two grants at the same moment both may succeed, as one lease.
    pub async fn lease_grant(
        &self,
        id: LeaseId,
        ttl_seconds: i64,
    ) -> Result<Reply<LeaseGrantReply>> {
        if self.is_taken_elsewhere(id).await {
            return Err(Error::LeaseExists);
        }
        let id = if id.is_some() { id } else { draw_lease_id() };
        match self.execute(Command::LeaseGrant { id, ttl_seconds }).await? {
            Reply { revision, body: CommandReply::LeaseGrant(body) } => {
                Ok(Reply { revision, body })
            }
            other => unreachable!("a grant got {other:?}"),
        }
    }

    /// Revokes a lease and deletes its keys; answers the revision of that.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<Revision> {
        self.await_lease(id).await;
        Ok(self.execute(Command::LeaseRevoke { id }).await?.revision)
    }

    /// Starts a lease's time anew; answers how many seconds that is, `None` for no such lease. For a lease that has just
    /// run out it waits until that is settled.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<i64>> {
        if !self.is_ready() {
            return Err(Error::NotReady);
        }
        let deadline = Instant::now() + self.shared.options.timeout;
        let mut is_searched = false;
        loop {
            match self.shared.lessor.keep_alive(id, self.shared.clock.now()) {
                KeepAlive::Renewed(seconds) => return Ok(Some(seconds)),
                KeepAlive::Unknown if is_searched => return Ok(None),
                KeepAlive::Unknown => {
                    is_searched = true;
                    self.await_lease(id).await;
                }
                KeepAlive::Expiring if self.shared.is_stopping() => return Err(Error::Stopped),
                KeepAlive::Expiring => sleep(REVOCATION_POLL).await,
                KeepAlive::Elsewhere(owner) => {
                    let asked = self.ask_owner(owner, id, Question::KeepAlive, deadline).await?;
                    if let Some(Answer { is_known, seconds }) = asked {
                        return Ok(is_known.then_some(seconds));
                    }
                }
            }
        }
    }

    /// What is known of a lease; its keys only if asked for. `None` for no such lease.
    pub async fn lease_status(&self, id: LeaseId, keys: bool) -> Result<Option<LeaseStatus>> {
        self.await_lease(id).await;
        let deadline = Instant::now() + self.shared.options.timeout;
        loop {
            let status = self.shared.lessor.status(id, keys, self.shared.clock.now());
            let Some(status) = status else { return Ok(None) };
            // Who forwards this only wants to know whether there is such a lease, unless the owner has just changed.
            if status.owner == self.shared.member.id || !self.can_forward() {
                return Ok(Some(status));
            }
            let asked = self.ask_owner(status.owner, id, Question::TimeToLive, deadline).await?;
            if let Some(Answer { is_known, seconds: remaining_seconds }) = asked {
                return Ok(is_known.then_some(LeaseStatus { remaining_seconds, ..status }));
            }
        }
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.shared.lessor.ids()
    }

    /// Asks the owner of a lease. `None` if it did not answer; there may be another one by now. An error when that has gone on
    /// for too long.
    async fn ask_owner(
        &self,
        owner: MemberId,
        id: LeaseId,
        question: Question,
        deadline: Instant,
    ) -> Result<Option<Answer>> {
        if !self.can_forward() {
            return Err(Error::OwnerChanged);
        }
        if self.shared.is_stopping() {
            return Err(Error::Stopped);
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout);
        }
        if self.shared.live().contains(&owner) {
            let patience = deadline.min(Instant::now() + OWNER_PATIENCE);
            let asked = tokio::select! {
                asked = self.ask(owner, id, question) => asked,
                () = sleep_until(patience) => return Ok(None),
            };
            match asked {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => {
                    tracing::debug!(lease = %id, %owner, %error, "the owner of a lease was not asked");
                }
            }
        }
        sleep_until(deadline.min(Instant::now() + OWNER_PAUSE)).await;
        Ok(None)
    }

    async fn ask(
        &self,
        member: MemberId,
        id: LeaseId,
        question: Question,
    ) -> Result<Answer, Status> {
        let forward =
            self.forward(member).map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = LeaseClient::new(forward.channel());
        match question {
            Question::KeepAlive => {
                let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id: id.0 });
                let call = async {
                    let replies = client.lease_keep_alive(forward.request(requests)).await?;
                    replies.into_inner().message().await
                };
                let reply = forward.answer(call).await?;
                let reply = reply.ok_or_else(|| Status::unavailable("no answer"))?;
                Ok(Answer { is_known: reply.ttl > 0, seconds: reply.ttl })
            }
            Question::TimeToLive => {
                let request = pb::LeaseTimeToLiveRequest { id: id.0, keys: false };
                let call = client.lease_time_to_live(forward.request(request));
                let reply = forward.answer(call).await?.into_inner();
                Ok(Answer { is_known: reply.granted_ttl > 0, seconds: reply.ttl })
            }
        }
    }

    /// A lease that is not known here may have been granted elsewhere just now: then its record is waited for, not for long.
    pub(super) async fn await_lease(&self, id: LeaseId) {
        let lessor = &self.shared.lessor;
        if !id.is_some()
            || !self.can_forward()
            || lessor.exists(id)
            || !self.is_known_elsewhere(id).await
        {
            return;
        }
        let arrival = async {
            while !lessor.exists(id) {
                sleep(SEARCH_POLL).await;
            }
        };
        if timeout(SEARCH_TIME, arrival).await.is_err() {
            tracing::debug!(lease = %id, "a lease that is known elsewhere has not come");
        }
    }

    /// Whether a lease that is not known here was granted elsewhere.
    async fn is_taken_elsewhere(&self, id: LeaseId) -> bool {
        id.is_some()
            && self.can_forward()
            && self.is_ready()
            && !self.shared.lessor.exists(id)
            && self.is_known_elsewhere(id).await
    }

    /// Whether there are all leases that a transaction names, as far as this member can know.
    pub async fn has_leases(&self, txn: &Txn) -> bool {
        for lease in txn.leases() {
            self.await_lease(lease).await;
        }
        txn.leases().into_iter().all(|lease| self.shared.lessor.exists(lease))
    }

    /// Whether a peer that seems alive knows a lease.
    async fn is_known_elsewhere(&self, id: LeaseId) -> bool {
        let node = self.clone();
        let search = || async move {
            timeout(SEARCH_TIME, node.search_elsewhere(id)).await.unwrap_or(false)
        };
        timeout(SEARCH_TIME, self.shared.searches.find(id, search)).await.unwrap_or(false)
    }

    async fn search_elsewhere(&self, id: LeaseId) -> bool {
        let peers = self.shared.live().to_vec();
        let ask = |peer: MemberId| self.ask(peer, id, Question::TimeToLive);
        let mut answers = stream::iter(peers).map(ask).buffer_unordered(ASKED_AT_ONCE_MAX);
        while let Some(answer) = answers.next().await {
            if answer.is_ok_and(|answer| answer.is_known) {
                return true;
            }
        }
        false
    }
}
