//! `etcdserverpb.Cluster`: who the members are.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::{Context, header};
use crate::error::Error;

pub(crate) struct ClusterService {
    context: Context,
}

impl ClusterService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }
}

fn unimplemented<T>(what: &'static str) -> Result<Response<T>, Status> {
    Err(Error::Unimplemented(what).into())
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        unimplemented("Cluster.MemberAdd")
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        unimplemented("Cluster.MemberRemove")
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        unimplemented("Cluster.MemberUpdate")
    }

    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = self.context.node.member();
        let member = pb::Member {
            id: member.id.0,
            name: member.name.clone(),
            peer_ur_ls: member.peer_urls.clone(),
            client_ur_ls: member.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(pb::MemberListResponse {
            header: Some(header::without_revision(&self.context.node)),
            members: vec![member],
        }))
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        unimplemented("Cluster.MemberPromote")
    }
}
