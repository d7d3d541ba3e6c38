//! `etcdserverpb.KV`: reads, writes, transactions and compaction.

use bytes::BytesMut;
use prost::Message;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_server::Kv;
use tonic::{Request, Response, Status};

use super::wire::{self, Answer};
use super::{Context, convert, elsewhere, header, range_stream, txn_size};
use crate::engine::Pair;
use crate::engine::command::{Range, RangeReply, TxnOpReply, TxnReply};
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

    pub(crate) fn context(&self) -> &Context {
        &self.context
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

    /// In a full store, what would add to it is refused for that, whatever else is wrong with it.
    fn refusal(&self, invalid: Invalid, adds: bool) -> Status {
        if adds && self.context.node.is_out_of_space() {
            return Error::NoSpace.into();
        }
        invalid.into()
    }
}

/// Whether some branch puts something.
fn may_put(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(pb::request_op::Request::RequestPut(_)) => true,
        Some(pb::request_op::Request::RequestTxn(txn)) => may_put(txn),
        _ => false,
    })
}

/// A Range that was checked.
enum Begun {
    /// To be read here.
    Own(Range),
    /// Answered by another member.
    Forwarded(pb::RangeResponse),
}

/// An answer to a Range.
pub(crate) enum RangeAnswer {
    Own(OwnAnswer),
    /// Another member's.
    Forwarded(pb::RangeResponse),
}

impl Answer for RangeAnswer {
    fn len(&self) -> usize {
        match self {
            Self::Own(answer) => answer.len(),
            Self::Forwarded(answer) => answer.encoded_len(),
        }
    }

    fn encode_to(&self, buffer: &mut BytesMut) {
        match self {
            Self::Own(answer) => answer.encode_to(buffer),
            Self::Forwarded(answer) => answer.encode_raw(buffer),
        }
    }

    fn pairs(&self) -> Option<usize> {
        Some(match self {
            Self::Own(answer) => answer.pairs.len(),
            Self::Forwarded(answer) => answer.kvs.len(),
        })
    }

    fn counted(&self) -> i64 {
        match self {
            Self::Own(answer) => answer.counted(),
            Self::Forwarded(answer) => answer.count,
        }
    }
}

/// An answer whose pairs are encoded already.
pub(crate) struct OwnAnswer {
    /// Everything but the pairs.
    frame: pb::RangeResponse,
    pairs: Vec<Pair>,
}

/// `RangeResponse.kvs`.
const KVS_TAG: u32 = 2;

impl OwnAnswer {
    fn pair_len(pair: &Pair) -> usize {
        wire::nested_len(KVS_TAG, pair.wire().len())
    }
}

impl Answer for OwnAnswer {
    fn len(&self) -> usize {
        self.frame.encoded_len() + self.pairs.iter().map(Self::pair_len).sum::<usize>()
    }

    /// Fields may come in any order, but this is prost's, and Go's.
    fn encode_to(&self, buffer: &mut BytesMut) {
        let header = pb::RangeResponse { header: self.frame.header, ..Default::default() };
        header.encode_raw(buffer);
        for pair in &self.pairs {
            wire::put_nested(KVS_TAG, pair.wire().len(), buffer);
            buffer.extend_from_slice(pair.wire());
        }
        let rest = pb::RangeResponse {
            more: self.frame.more,
            count: self.frame.count,
            ..Default::default()
        };
        rest.encode_raw(buffer);
    }

    fn counted(&self) -> i64 {
        self.frame.count
    }
}

impl KvService {
    /// Refuses a transaction of so many parts that it should not even be decoded.
    pub(crate) fn check_parts(&self, message: &[u8]) -> Result<(), Status> {
        // Either list of each level may be full, and a level may hold a transaction in every place.
        let parts_max = self.context.node.txn_ops_max().saturating_mul(4).max(txn_size::PARTS_MAX);
        if txn_size::has_more_parts_than(parts_max, message) {
            return Err(Invalid::TooManyOps.into());
        }
        Ok(())
    }

    /// Checks a Range and who asks for it. One that another member has to answer is answered by that; another one may be read
    /// from now on.
    async fn begin_range(&self, request: Request<pb::RangeRequest>) -> Result<Begun, Status> {
        let access = self.context.access(&request);
        let request = request.into_inner();
        let is_linearizable = !request.serializable;
        if is_linearizable && !self.context.is_trusted && self.context.node.is_learner() {
            return Err(Error::Learner.into());
        }
        let kept = elsewhere::kept(&self.context.node, &request);
        let range = convert::range(request)?;
        access?.range(&range)?;
        let forwarded = elsewhere::range(&self.context.node, kept, |tag| range.names(tag)).await?;
        if let Some(answer) = forwarded {
            return Ok(Begun::Forwarded(answer));
        }
        if is_linearizable {
            self.context.node.begin_read().await?;
        }
        Ok(Begun::Own(range))
    }

    /// A Range whose answer is not taken apart again.
    pub(crate) async fn answer_range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<RangeAnswer>, Status> {
        let range = match self.begin_range(request).await? {
            Begun::Own(range) => range,
            Begun::Forwarded(answer) => return Ok(Response::new(RangeAnswer::Forwarded(answer))),
        };
        let reply = self.context.node.range(range).await?;
        self.context.metrics.ranges.inc();
        let RangeReply { kvs: pairs, more, count } = reply.body;
        let header = Some(header::at(&self.context.node, reply.revision));
        let count = convert::shown(count);
        let frame = pb::RangeResponse { header, kvs: Vec::new(), more, count };
        Ok(Response::new(RangeAnswer::Own(OwnAnswer { frame, pairs })))
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = range_stream::Pieces;

    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let range = match self.begin_range(request).await? {
            Begun::Own(range) => range,
            Begun::Forwarded(answer) => return Ok(Response::new(answer)),
        };
        let reply = self.context.node.range(range).await?;
        self.context.metrics.ranges.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::range_response(reply.body, header)))
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let range = match self.begin_range(request).await? {
            Begun::Own(range) => range,
            Begun::Forwarded(answer) => return Ok(Response::new(range_stream::whole(answer))),
        };
        let pieces = range_stream::answer(self.context.clone(), range).await?;
        self.context.metrics.ranges.inc();
        Ok(Response::new(pieces))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let access = self.context.access(&request);
        let request = request.into_inner();
        let large = self.check_size(&request);
        let put = convert::put(request).and_then(|put| large.map(|()| put));
        let put = put.map_err(|invalid| self.refusal(invalid, true))?;
        access?.put(&self.context, &put)?;
        let reply = self.context.node.put(put).await?;
        self.context.metrics.puts.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::put_response(reply.body, header)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let access = self.context.access(&request);
        let request = request.into_inner();
        let large = self.check_size(&request);
        let delete = convert::delete_range(request)?;
        large?;
        access?.delete(&delete)?;
        let reply = self.context.node.delete_range(delete).await?;
        self.context.metrics.deletes.inc();
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::delete_range_response(reply.body, header)))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let access = self.context.access(&request);
        let request = request.into_inner();
        let large = self.check_size(&request);
        let adds = self.context.node.is_out_of_space() && may_put(&request);
        let kept = elsewhere::kept(&self.context.node, &request);
        let txn = convert::txn(request, self.context.node.txn_ops_max());
        let txn =
            txn.and_then(|txn| if txn.is_read_only() { Ok(txn) } else { large.map(|()| txn) });
        let txn = txn.map_err(|invalid| self.refusal(invalid, adds))?;
        access?.txn(&self.context, &txn)?;
        if let Some(answer) = elsewhere::txn(&self.context.node, kept, &txn).await? {
            return Ok(Response::new(answer));
        }
        if txn.is_read_only() {
            self.context.node.begin_read().await?;
        }
        let reply = self.context.node.txn(txn).await.map_err(|error| match error {
            Error::Invalid(invalid) => self.refusal(invalid, adds),
            error => error.into(),
        })?;
        count_txn(&self.context.metrics, &reply.body);
        let header = header::at(&self.context.node, reply.revision);
        Ok(Response::new(convert::txn_response(reply.body, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let request = request.into_inner();
        if let Some(answer) = elsewhere::compact(&self.context.node, request).await? {
            return Ok(Response::new(answer));
        }
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

#[cfg(test)]
mod tests {
    use starling_proto::mvccpb;

    use super::*;
    use crate::types::{KeyValue, LeaseId, Revision};

    #[test]
    fn pairs_are_encoded_in_their_answer_as_prost_does_it() {
        let kv = |value: &[u8]| KeyValue {
            key: "key".into(),
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version: 3,
            value: value.to_vec().into(),
            lease: LeaseId(-1),
            ..KeyValue::default()
        };
        let kvs = [kv(&[7; 300]), kv(b""), KeyValue::default()];
        let header = pb::ResponseHeader { revision: 300, member_id: 1, ..Default::default() };
        for (more, count) in [(false, 0), (true, 1 << 40)] {
            let frame = pb::RangeResponse { header: Some(header), kvs: Vec::new(), more, count };
            let messages: Vec<mvccpb::KeyValue> =
                kvs.iter().cloned().map(convert::key_value).collect();
            let expected = pb::RangeResponse { kvs: messages, ..frame.clone() };
            let answer = OwnAnswer { frame, pairs: kvs.iter().map(Pair::from).collect() };
            let mut buffer = BytesMut::new();
            answer.encode_to(&mut buffer);
            assert_eq!(buffer, expected.encode_to_vec());
            assert_eq!(answer.len(), buffer.len());
        }
    }
}
