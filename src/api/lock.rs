//! `v3lockpb.Lock`: locks for clients that do not follow the recipe themselves.

use starling_proto::v3lockpb as pb;
use starling_proto::v3lockpb::lock_server::Lock;
use tonic::{Request, Response, Status};

use super::ownership::{Owned, Refusal, Wish, acquire, is_held, may, may_claim, unknown};
use super::{Context, header, status};
use crate::engine::command::DeleteRange;
use crate::error::{Error, Invalid};
use crate::types::{KeyRange, Revision};

const SESSION_EXPIRED: &str = "mutex: session is expired";

pub(crate) struct LockService {
    context: Context,
}

impl LockService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        may_claim(&self.context, &request, (&request.get_ref().name, request.get_ref().lease))?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let owned = acquire(&self.context, Wish { name, lease, value: None }).await;
        let owned = owned.map_err(refusal)?;
        let revision = revision_of_holding(&self.context, &owned).await?;
        let header = Some(header::at(&self.context.node, revision));
        Ok(Response::new(pb::LockResponse { header, key: owned.claim.key }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let key = request.get_ref().key.clone();
        if key.is_empty() {
            return Err(unknown(Invalid::EmptyKey.into()));
        }
        let range = KeyRange::single(key.clone());
        may(&self.context, &request, |access| access.write(&range))?;
        let delete = DeleteRange { range: KeyRange::single(key), prev_kv: false };
        let reply = self.context.node.delete_range(delete).await.map_err(unknown)?;
        let header = Some(header::at(&self.context.node, reply.revision));
        Ok(Response::new(pb::UnlockResponse { header }))
    }
}

/// A revision at which the lock was held. Whoever has waited may have lost their lease meanwhile.
async fn revision_of_holding(context: &Context, owned: &Owned) -> Result<Revision, Status> {
    if !owned.waited {
        return Ok(owned.entered);
    }
    let held = is_held(&context.node, &owned.claim).await.map_err(unknown)?;
    if held.body { Ok(held.revision) } else { Err(Status::unknown(SESSION_EXPIRED)) }
}

fn refusal(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Failed(error) => unknown(error),
        // Locks have no values that could be replaced.
        Refusal::NotLeader => unknown(Error::Invalid(Invalid::KeyNotFound)),
        Refusal::Closing => status::stopped(),
    }
}
