//! `v3electionpb.Election`: elections for clients that do not follow the recipe themselves.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use starling_proto::v3electionpb as pb;
use starling_proto::v3electionpb::election_server::Election;
use tonic::{Request, Response, Status};

use super::elsewhere::{PROCLAIM, RESIGN, leader};
use super::ownership::{
    Claim, Refusal, Wish, acquire, changes, give_up, keys_of, lease_or_new, may, may_change,
    may_claim, owner, replace, unknown, watch,
};
use super::{Context, convert, header, status};
use crate::engine::command::Reply;
use crate::engine::watch::{EventKind, WatchReply};
use crate::error::Result;
use crate::node::WatchStream;
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const NO_LEADER_FIELD: &str = "\"leader\" field must be provided";

pub(crate) struct ElectionService {
    context: Context,
}

impl ElectionService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = BoxStream<'static, Result<pb::LeaderResponse, Status>>;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        may_claim(&self.context, &request, (&request.get_ref().name, request.get_ref().lease))?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let wish = Wish { name: name.clone(), lease, value: Some(value) };
        let owned = acquire(&self.context, wish).await.map_err(refusal)?;
        let Claim { key, lease, created } = owned.claim;
        let leader = pb::LeaderKey { name, key, rev: created, lease: lease.0 };
        Ok(Response::new(pb::CampaignResponse {
            header: Some(header::at(&self.context.node, owned.entered)),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let node = &self.context.node;
        let mut claim = claim(request.get_ref().leader.clone())?;
        may_change(&self.context, &request, &claim.key)?;
        let request = request.into_inner();
        if let Some(answer) = leader(node, PROCLAIM, request.clone(), claim.created).await? {
            return Ok(Response::new(answer));
        }
        let value = request.value;
        claim.lease = lease_or_new(node, claim.lease.0).await.map_err(unknown)?;
        let revision = replace(node, &claim, value).await.map_err(refusal)?;
        Ok(Response::new(pb::ProclaimResponse { header: Some(header::at(node, revision)) }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let keys = keys_of(&request.get_ref().name);
        may(&self.context, &request, |access| access.read(&keys))?;
        let reply = owner(&self.context.node, &request.into_inner().name).await.map_err(unknown)?;
        let kv = reply.body.ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(response(&self.context, reply.revision, kv)))
    }

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let keys = keys_of(&request.get_ref().name);
        may(&self.context, &request, |access| access.read(&keys))?;
        let observer = Observer::new(self.context.clone(), request.into_inner().name);
        let proclamations = stream::try_unfold(observer, |mut observer| async move {
            let (revision, kv) = observer.next().await.map_err(unknown)?;
            Ok(Some((response(&observer.context, revision, kv), observer)))
        });
        Ok(Response::new(Box::pin(proclamations)))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let claim = claim(request.get_ref().leader.clone())?;
        may_change(&self.context, &request, &claim.key)?;
        let node = &self.context.node;
        if let Some(answer) = leader(node, RESIGN, request.into_inner(), claim.created).await? {
            return Ok(Response::new(answer));
        }
        let revision = give_up(&self.context.node, &claim).await.map_err(unknown)?;
        let header = Some(header::at(&self.context.node, revision));
        Ok(Response::new(pb::ResignResponse { header }))
    }
}

fn claim(leader: Option<pb::LeaderKey>) -> Result<Claim, Status> {
    let leader = leader.ok_or_else(|| Status::unknown(NO_LEADER_FIELD))?;
    Ok(Claim { key: leader.key, lease: LeaseId(leader.lease), created: leader.rev })
}

fn response(context: &Context, revision: Revision, kv: KeyValue) -> pb::LeaderResponse {
    let header = Some(header::at(&context.node, revision));
    pb::LeaderResponse { header, kv: Some(convert::key_value(kv)) }
}

fn refusal(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Failed(error) => unknown(error),
        Refusal::NotLeader => Status::unknown(NOT_LEADER),
        Refusal::Closing => status::stopped(),
    }
}

/// Sees what leaders of an election proclaim, one after the other. What a leader said before it was seen is not told.
struct Observer {
    context: Context,
    name: Bytes,
    /// The changes of the current leader's key; `None` while there is no leader.
    changes: Option<WatchStream>,
    /// Proclamations that were seen and are not told yet.
    seen: VecDeque<(Revision, KeyValue)>,
}

impl Observer {
    fn new(context: Context, name: Bytes) -> Self {
        Self { context, name, changes: None, seen: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<(Revision, KeyValue)> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Ok(seen);
            }
            match &mut self.changes {
                None => self.find_leader().await?,
                Some(changes) => {
                    let reply = changes.next().await?;
                    self.hear(reply);
                }
            }
        }
    }

    /// Waits for a leader, and follows it from then on.
    async fn find_leader(&mut self) -> Result<()> {
        let node = &self.context.node;
        let Reply { revision, body: found } = owner(node, &self.name).await?;
        let leader = match found {
            Some(kv) => Some((revision, kv)),
            None => {
                let candidates = watch(node, changes(keys_of(&self.name), revision));
                first_put(candidates).await?.map(|kv| (kv.mod_revision, kv))
            }
        };
        if let Some((revision, kv)) = leader {
            let leader = KeyRange::single(kv.key.clone());
            self.changes = Some(watch(node, changes(leader, revision.next())));
            self.seen.push_back((revision, kv));
        }
        Ok(())
    }

    /// A leader whose key is deleted is none any more.
    fn hear(&mut self, reply: WatchReply) {
        match reply {
            WatchReply::Created { .. } | WatchReply::Progress { .. } => {}
            WatchReply::Events { revision, events, .. } => {
                for event in events {
                    match event.kind {
                        EventKind::Put => self.seen.push_back((revision, (&event.pair).into())),
                        EventKind::Delete => return self.changes = None,
                    }
                }
            }
            // What was missed cannot be told: the present state can.
            _ => self.changes = None,
        }
    }
}

/// The first pair that is put; `None` if it cannot be told any more.
async fn first_put(mut changes: WatchStream) -> Result<Option<KeyValue>> {
    loop {
        match changes.next().await? {
            WatchReply::Created { .. } | WatchReply::Progress { .. } => {}
            WatchReply::Events { events, .. } => {
                let mut puts = events.into_iter().filter(|event| event.kind == EventKind::Put);
                if let Some(put) = puts.next() {
                    return Ok(Some((&put.pair).into()));
                }
            }
            _ => return Ok(None),
        }
    }
}
