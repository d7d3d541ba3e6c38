//! `etcdserverpb.Lease`: keys that go away unless somebody keeps them.

use futures_util::stream::{self, BoxStream};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::lease_server::Lease;
use tonic::{Request, Response, Status, Streaming};

use super::{Context, header, status};
use crate::types::LeaseId;

/// What etcd says is left of a lease that does not exist.
const NO_LEASE_TTL: i64 = -1;

pub(crate) struct LeaseService {
    context: Context,
}

impl LeaseService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.context.access(&request)?.known()?;
        let request = request.into_inner();
        let reply = self.context.node.lease_grant(LeaseId(request.id), request.ttl).await?;
        Ok(Response::new(pb::LeaseGrantResponse {
            header: Some(header::at(&self.context.node, reply.revision)),
            id: reply.body.id.0,
            ttl: reply.body.ttl_seconds,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let access = self.context.access(&request)?;
        let id = LeaseId(request.into_inner().id);
        access.lease(&self.context, id)?;
        let revision = self.context.node.lease_revoke(id).await?;
        let header = Some(header::at(&self.context.node, revision));
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let access = self.context.access(&request)?;
        let start = (self.context.clone(), access, request.into_inner());
        let replies = stream::try_unfold(start, |(context, access, mut requests)| async move {
            // It goes on for long: what somebody may do, may have changed.
            let request = tokio::select! {
                request = requests.message() => request?,
                () = context.closed() => return Err(status::stopped()),
            };
            let Some(request) = request else { return Ok(None) };
            let access = access.renewed(&context);
            access.known()?;
            access.lease(&context, LeaseId(request.id))?;
            let reply = keep_alive(&context, request.id).await?;
            Ok(Some((reply, (context, access, requests))))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let access = self.context.access(&request)?;
        let request = request.into_inner();
        access.known()?;
        if request.keys {
            access.read_lease(&self.context, LeaseId(request.id))?;
        }
        let lease = self.context.node.lease_status(LeaseId(request.id), request.keys).await?;
        let (ttl, granted_ttl, keys) = match lease {
            Some(lease) => (lease.remaining_seconds, lease.granted_seconds, lease.keys),
            None => (NO_LEASE_TTL, 0, Vec::new()),
        };
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header: Some(header::current(&self.context.node)),
            id: request.id,
            ttl,
            granted_ttl,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let access = self.context.access(&request)?;
        access.known()?;
        // Whoever sees the leases could keep them alive: so they have to be allowed to see what is on them.
        let ids = self.context.node.leases();
        ids.iter().try_for_each(|id| access.read_lease(&self.context, *id))?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id: id.0 }).collect();
        let header = Some(header::current(&self.context.node));
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}

/// The header is from before: what it shows happened no later than the lease was kept.
async fn keep_alive(context: &Context, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let header = header::current(&context.node);
    // A lease that is not there is no error, so that one stream can serve many leases.
    let ttl = context.node.lease_keep_alive(LeaseId(id)).await?;
    if ttl.is_some() {
        context.metrics.leases_renewed.inc();
    }
    let ttl = ttl.unwrap_or(0);
    Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
}
