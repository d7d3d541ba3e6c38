//! `etcdserverpb.Cluster`: who the members are.

use std::collections::BTreeMap;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::{Context, header};
use crate::error::Error;
use crate::node::{MemberRecord, State};
use crate::types::MemberId;

pub(crate) struct ClusterService {
    context: Context,
}

impl ClusterService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    fn members(&self) -> BTreeMap<MemberId, MemberRecord> {
        self.context.node.members()
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(header::without_revision(&self.context.node))
    }

    fn list(&self) -> Vec<pb::Member> {
        self.members().into_iter().map(|(id, record)| shown(id, record)).collect()
    }

    fn find(&self, id: u64) -> Result<MemberRecord, Error> {
        self.members().remove(&MemberId(id)).ok_or(Error::MemberNotFound)
    }

    /// Addresses that a member may get: none that another one has.
    fn check_urls(&self, urls: &[String], of: Option<u64>) -> Result<(), Error> {
        check_form(urls)?;
        let others = self.members();
        let mut others = others.iter().filter(|(id, _)| Some(id.0) != of);
        if others.any(|(_, other)| other.peer_urls.iter().any(|url| urls.contains(url))) {
            return Err(Error::PeerUrlExists);
        }
        Ok(())
    }

    /// Whether a learner is there and has what there was when it joined.
    fn is_in_sync(&self, id: MemberId, record: &MemberRecord) -> bool {
        let status = self.context.node.cluster_status();
        let facts = status.facts.peers.get(&id);
        facts.is_some_and(|facts| {
            facts.state == Some(State::Alive) && facts.complete >= record.joined
        })
    }

    async fn change(&self, id: u64, record: Option<MemberRecord>) -> Result<(), Error> {
        self.context.node.change_members(vec![(MemberId(id), record)]).await
    }
}

/// As etcd shows a member.
fn shown(id: MemberId, record: MemberRecord) -> pb::Member {
    pb::Member {
        id: id.0,
        name: record.name,
        peer_ur_ls: record.peer_urls,
        client_ur_ls: record.client_urls,
        is_learner: record.learner,
    }
}

fn check_form(urls: &[String]) -> Result<(), Error> {
    let is_sound = !urls.is_empty() && urls.iter().all(|url| is_peer_url(url));
    if is_sound { Ok(()) } else { Err(Error::BadMemberUrls) }
}

/// `http://host:port`, without a path.
fn is_peer_url(url: &str) -> bool {
    let Some(("http" | "https", authority)) = url.split_once("://") else { return false };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    !host.is_empty() && port.parse::<u16>().is_ok()
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    /// Reserves a place: the member has its data when it has started and joined. It holds nothing back until then.
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let access = self.context.access(&request);
        let pb::MemberAddRequest { peer_ur_ls: peer_urls, is_learner: learner } =
            request.into_inner();
        check_form(&peer_urls)?;
        access?.admin()?;
        self.check_urls(&peer_urls, None)?;
        let id = rand::random_range(1..=u64::MAX);
        let record = MemberRecord { peer_urls, learner, ..MemberRecord::default() };
        self.change(id, Some(record.clone())).await?;
        Ok(Response::new(pb::MemberAddResponse {
            header: self.header(),
            member: Some(shown(MemberId(id), record)),
            members: self.list(),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let id = request.into_inner().id;
        let record = self.find(id)?;
        let started = self.members().values().filter(|record| record.is_started()).count();
        if record.is_started() && started == 1 {
            return Err(Error::NotEnoughMembers.into());
        }
        self.change(id, None).await?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members: self.list() }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let pb::MemberUpdateRequest { id, peer_ur_ls: peer_urls } = request.into_inner();
        let record = self.find(id)?;
        self.check_urls(&peer_urls, Some(id))?;
        self.change(id, Some(MemberRecord { peer_urls, ..record })).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members: self.list() }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.context.access(&request)?.known()?;
        if request.get_ref().linearizable {
            self.context.node.await_founders().await;
        }
        Ok(Response::new(pb::MemberListResponse { header: self.header(), members: self.list() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let id = request.into_inner().id;
        let record = self.find(id)?;
        if !record.learner {
            return Err(Error::NotLearner.into());
        }
        if !self.is_in_sync(MemberId(id), &record) {
            return Err(Error::LearnerNotReady.into());
        }
        self.change(id, Some(MemberRecord { learner: false, ..record })).await?;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members: self.list() }))
    }
}
