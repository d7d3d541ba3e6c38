//! `etcdserverpb.KV`: reads, writes, transactions and compaction.

use prost::Message;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_server::Kv;
use tonic::{Request, Response, Status};

use super::{Context, convert, header};
use crate::engine::command::{TxnOpReply, TxnReply};
use crate::error::{Error, Invalid};
use crate::metrics::Metrics;

/// What etcd's log entry adds to a request before it compares the sum with the limit: a request id in a header
/// of its own, and the tag and length of the request.
const ENTRY_OVERHEAD_BYTES: usize = 18;

pub(crate) struct KvService {
    context: Context,
}

impl KvService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    /// Only requests that change something are bounded more tightly than messages are.
    fn check_size(&self, request: &impl Message) -> Result<(), Invalid> {
        if request.encoded_len().saturating_add(ENTRY_OVERHEAD_BYTES)
            > self.context.max_request_bytes
        {
            return Err(Invalid::TooLarge);
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = tokio_stream::Empty<Result<pb::RangeStreamResponse, Status>>;

    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let range = convert::range(request.into_inner())?;
        let reply = self.context.node.range(range).await?;
        self.context.metrics.ranges.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::range_response(reply.body, header)))
    }

    /// New in etcd 3.7. Clients of it fall back to `Range` where it is not implemented.
    async fn range_stream(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Error::Unimplemented("KV.RangeStream").into())
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        let large = self.check_size(&request);
        let put = convert::put(request)?;
        large?;
        let reply = self.context.node.put(put).await?;
        self.context.metrics.puts.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::put_response(reply.body, header)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        let large = self.check_size(&request);
        let delete = convert::delete_range(request)?;
        large?;
        let reply = self.context.node.delete_range(delete).await?;
        self.context.metrics.deletes.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::delete_range_response(reply.body, header)))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        let large = self.check_size(&request);
        let txn = convert::txn(request, self.context.node.txn_ops_max())?;
        if !txn.is_read_only() {
            large?;
        }
        let reply = self.context.node.txn(txn).await?;
        count_txn(&self.context.metrics, &reply.body);
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::txn_response(reply.body, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        let revision = self.context.node.compact(request.revision, request.physical).await?;
        let header = Some(header::at(&self.context.node, revision));
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}

/// etcd counts the steps that were done, and a transaction as one only if it had more than one.
fn count_txn(metrics: &Metrics, reply: &TxnReply) {
    if count_steps(metrics, reply) > 1 {
        metrics.txns.inc();
    }
}

fn count_steps(metrics: &Metrics, reply: &TxnReply) -> usize {
    let count_step = |step: &TxnOpReply| {
        let counter = match step {
            TxnOpReply::Range(_) => &metrics.ranges,
            TxnOpReply::Put(_) => &metrics.puts,
            TxnOpReply::DeleteRange(_) => &metrics.deletes,
            TxnOpReply::Txn(nested) => return count_steps(metrics, &nested.body),
        };
        counter.inc();
        1
    };
    reply.responses.iter().map(count_step).sum()
}
