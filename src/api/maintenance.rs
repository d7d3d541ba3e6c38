//! `etcdserverpb.Maintenance`: the state of a member.

use std::time::Instant;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::alarm_request::AlarmAction;
use starling_proto::etcdserverpb::downgrade_request::DowngradeAction;
use starling_proto::etcdserverpb::maintenance_server::Maintenance;
use tonic::{Request, Response, Status};

use super::{CLUSTER_VERSION, Context, ETCD_VERSION, convert, header};
use crate::error::{Error, Invalid};
use crate::node::MemberRecord;
use crate::types::{Alarm, MemberId, Revision};

/// What etcd shows as the quota where there is none.
const NO_QUOTA: i64 = -1;

/// etcd's text for an action that is none.
const UNKNOWN_METHOD: &str = "etcdserver: unknown method";

/// What etcd says of a store that was never compacted.
const NEVER_COMPACTED: i64 = -1;

pub(crate) struct MaintenanceService {
    context: Context,
}

impl MaintenanceService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    /// The alarms of this kind (or of all) that are on. Whose they are does not matter.
    fn alarms(&self, kind: pb::AlarmType) -> Vec<Alarm> {
        let wanted = convert::alarm(kind, 0).map(|alarm| alarm.kind);
        let mut alarms = self.context.node.alarms();
        alarms.retain(|alarm| wanted.is_none_or(|kind| kind == alarm.kind));
        alarms
    }

    /// Raises the alarm or ends it; answers with it, if there was anything to end.
    async fn set_alarm(&self, alarm: Option<Alarm>, on: bool) -> Result<Vec<Alarm>, Status> {
        let Some(alarm) = alarm else { return Ok(Vec::new()) };
        let was_on = self.context.node.set_alarm(alarm, on).await?;
        Ok(if on || was_on { vec![alarm] } else { Vec::new() })
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = super::snapshot::Messages;

    /// The alarm of a store without room goes by itself, and is not ended here.
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        let access = self.context.access(&request)?;
        let request = request.into_inner();
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) => access.admin()?,
            Ok(AlarmAction::Get) | Err(_) => access.known()?,
        }
        let alarm = convert::alarm(request.alarm(), request.member_id);
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.alarms(request.alarm()),
            Ok(AlarmAction::Activate) => self.set_alarm(alarm, true).await?,
            Ok(AlarmAction::Deactivate) => self.set_alarm(alarm, false).await?,
            Err(_) => Vec::new(),
        };
        let header = Some(header::current(&self.context.node));
        let alarms = alarms.into_iter().map(convert::alarm_member).collect();
        Ok(Response::new(pb::AlarmResponse { header, alarms }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.context.access(&request)?.known()?;
        let node = &self.context.node;
        let status = node.status();
        let errors = status.alarms.into_iter().map(alarm_error).collect();
        // Clients take a zero in most of these for a broken member.
        let index = status.entries.max(1);
        Ok(Response::new(pb::StatusResponse {
            header: Some(header::at(node, status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: convert::shown(status.disk_bytes.max(1)),
            leader: node.leader().0,
            raft_index: index,
            raft_term: status.term,
            raft_applied_index: index,
            errors,
            db_size_in_use: convert::shown(status.live_bytes.max(1)),
            is_learner: node.is_learner(),
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: status.quota_bytes.map_or(NO_QUOTA, convert::shown),
            downgrade_info: Some(node.downgrade().map_or_else(Default::default, |version| {
                pb::DowngradeInfo { enabled: true, target_version: version }
            })),
        }))
    }

    /// The store compacts itself, so there is nothing to wait for. As in etcd, the answer has no header.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.context.access(&request)?.admin()?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        request: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let begun = Instant::now();
        let hash = self.context.node.hash().await?;
        self.context.metrics.hash_seconds.observe(begun.elapsed());
        let header = Some(header::current(&self.context.node));
        Ok(Response::new(pb::HashResponse { header, hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let wanted = request.into_inner().revision;
        let begun = Instant::now();
        let reply = self.context.node.hash_kv(wanted).await?;
        self.context.metrics.hash_revision_seconds.observe(begun.elapsed());
        Ok(Response::new(pb::HashKvResponse {
            header: Some(header::current(&self.context.node)),
            hash: reply.hash,
            compact_revision: reply.compacted.map_or(NEVER_COMPACTED, Revision::shown),
            // etcd takes a negative revision for the current one, and still names it.
            hash_revision: if wanted < 0 { wanted } else { reply.revision.shown() },
        }))
    }

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.context.access(&request)?.admin()?;
        Ok(Response::new(super::snapshot::answer(&self.context.node).await?))
    }

    /// As in etcd, the answer has no header.
    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let node = &self.context.node;
        if node.leader() != node.member().id {
            return Err(Error::NotLeader.into());
        }
        let target = MemberId(request.into_inner().target_id);
        let is_fit = |record: &MemberRecord| !record.learner && !record.name.is_empty();
        let is_live = node.live_members().contains(&target);
        if !is_live || !node.members().get(&target).is_some_and(is_fit) {
            return Err(Error::BadLeaderTransferee.into());
        }
        node.set_leader(target).await?;
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    /// There is nothing that would have to change before another version takes over: only what is wanted is noted.
    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let request = request.into_inner();
        let node = &self.context.node;
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => {
                target_version(&request.version)?;
                if node.downgrade().is_some() {
                    return Err(Error::DowngradeInProcess.into());
                }
            }
            Ok(DowngradeAction::Enable) => {
                node.set_downgrade(Some(target_version(&request.version)?)).await?;
            }
            Ok(DowngradeAction::Cancel) => node.set_downgrade(None).await?,
            Err(_) => return Err(Status::unknown(UNKNOWN_METHOD)),
        }
        Ok(Response::new(pb::DowngradeResponse {
            header: Some(header::current(node)),
            version: CLUSTER_VERSION.trim_end_matches(".0").to_owned(),
        }))
    }
}

/// A version that etcd would let one go back to, with all its numbers: the one before this one.
fn target_version(text: &str) -> Result<String, Invalid> {
    let numbers: Option<Vec<u32>> = text.split('.').map(|number| number.parse().ok()).collect();
    let (major, minor) = match numbers.as_deref() {
        Some([major, minor] | [major, minor, _]) => (*major, *minor),
        _ => return Err(Invalid::VersionFormat),
    };
    let target = format!("{major}.{}.0", minor + 1);
    if target == CLUSTER_VERSION {
        Ok(format!("{major}.{minor}.0"))
    } else {
        Err(Invalid::VersionTarget)
    }
}

/// An alarm as etcd prints it, with the space at its end. It leaves out what is zero.
fn alarm_error(alarm: Alarm) -> String {
    let name = convert::alarm_name(alarm.kind);
    match alarm.member.0 {
        0 => format!("alarm:{name} "),
        member => format!("memberID:{member} alarm:{name} "),
    }
}
