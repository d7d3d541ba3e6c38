//! `etcdserverpb.Maintenance`: the state of a member.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::alarm_request::AlarmAction;
use starling_proto::etcdserverpb::maintenance_server::Maintenance;
use tonic::{Request, Response, Status};

use super::{CLUSTER_VERSION, Context, ETCD_VERSION, convert, header};
use crate::error::Error;

/// What etcd shows as the quota where there is none.
const NO_QUOTA: i64 = -1;

pub(crate) struct MaintenanceService {
    context: Context,
}

impl MaintenanceService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    /// The alarms of this kind (or of all) that are on.
    fn alarms(&self, kind: pb::AlarmType) -> Vec<pb::AlarmMember> {
        let wanted = matches!(kind, pb::AlarmType::None | pb::AlarmType::Nospace);
        if !wanted || !self.context.node.status().no_space {
            return Vec::new();
        }
        let member_id = self.context.node.member().id.0;
        vec![pb::AlarmMember { member_id, alarm: pb::AlarmType::Nospace.into() }]
    }
}

fn unimplemented<T>(what: &'static str) -> Result<Response<T>, Status> {
    Err(Error::Unimplemented(what).into())
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = tokio_stream::Empty<Result<pb::SnapshotResponse, Status>>;

    /// Alarms go by themselves when there is space again, so there is nothing to disarm.
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = request.into_inner();
        let alarms = match (request.action(), request.alarm()) {
            (AlarmAction::Get, kind) => self.alarms(kind),
            (AlarmAction::Activate, pb::AlarmType::None) | (AlarmAction::Deactivate, _) => {
                Vec::new()
            }
            (AlarmAction::Activate, _) => return unimplemented("Maintenance.Alarm with ACTIVATE"),
        };
        let header = Some(header::current(&self.context.node));
        Ok(Response::new(pb::AlarmResponse { header, alarms }))
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let node = &self.context.node;
        let (status, member) = (node.status(), node.member().id.0);
        let errors = if status.no_space { vec![no_space_error(member)] } else { Vec::new() };
        // Clients take a zero in most of these for a broken member.
        let index = status.entries.max(1);
        Ok(Response::new(pb::StatusResponse {
            header: Some(header::at(node, status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: convert::shown(status.disk_bytes.max(1)),
            leader: member,
            raft_index: index,
            raft_term: status.term,
            raft_applied_index: index,
            errors,
            db_size_in_use: convert::shown(status.live_bytes.max(1)),
            is_learner: false,
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: status.quota_bytes.map_or(NO_QUOTA, convert::shown),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// The store compacts itself, so there is nothing to wait for. As in etcd, the answer has no header.
    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        _: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        let hash = self.context.node.hash().await?;
        let header = Some(header::current(&self.context.node));
        Ok(Response::new(pb::HashResponse { header, hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let reply = self.context.node.hash_kv(request.into_inner().revision).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(header::current(&self.context.node)),
            hash: reply.hash,
            compact_revision: convert::compact_revision(reply.compacted),
            hash_revision: reply.revision.shown(),
        }))
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Error::Unimplemented("Maintenance.Snapshot").into())
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        unimplemented("Maintenance.MoveLeader")
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        unimplemented("Maintenance.Downgrade")
    }
}

/// An alarm as etcd prints it, with the space at its end.
fn no_space_error(member: u64) -> String {
    format!("memberID:{member} alarm:NOSPACE ")
}
