//! etcd's messages to commands, and replies back to messages.
//!
//! A request is checked here for its form, once, in etcd's order of checks: what comes out needs no second
//! look. What depends on the state of the member (does the lease exist, is the revision there) and the
//! rules of a transaction as a whole (operation count, duplicate keys) are the engine's.

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::mvccpb;

use super::header;
use crate::engine::Pair;
use crate::engine::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Filter, Put, PutReply,
    Range, RangeReply, Sort, SortOrder, SortTarget, Txn, TxnOp, TxnOpReply, TxnReply,
};
use crate::engine::watch::WatchCreate;
use crate::error::Invalid;
use crate::types::{Alarm, AlarmKind, KeyRange, KeyValue, LeaseId, MediaType, MemberId, Revision};

type Parsed<T> = Result<T, Invalid>;

pub(crate) fn range(request: pb::RangeRequest) -> Parsed<Range> {
    let range = key_range(request.key, request.range_end)?;
    let sort = sort(request.sort_order, request.sort_target)?;
    Ok(Range {
        range,
        limit: limit(request.limit),
        revision: request.revision,
        sort,
        keys_only: request.keys_only,
        count_only: request.count_only,
        filter: Filter {
            min_mod_revision: request.min_mod_revision,
            max_mod_revision: request.max_mod_revision,
            min_create_revision: request.min_create_revision,
            max_create_revision: request.max_create_revision,
        },
    })
}

fn key_range(key: Bytes, range_end: Bytes) -> Parsed<KeyRange> {
    if key.is_empty() {
        return Err(Invalid::EmptyKey);
    }
    Ok(KeyRange::from_request(key, range_end))
}

/// Zero and less is no limit.
fn limit(limit: i64) -> Option<usize> {
    usize::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// The order of keys is the one that pairs are in anyway, so asking for it asks for nothing.
fn sort(order: i32, target: i32) -> Parsed<Option<Sort>> {
    use pb::range_request as rr;
    let order = match rr::SortOrder::try_from(order).map_err(|_| Invalid::SortOption)? {
        rr::SortOrder::None => None,
        rr::SortOrder::Ascend => Some(SortOrder::Ascending),
        rr::SortOrder::Descend => Some(SortOrder::Descending),
    };
    let target = match rr::SortTarget::try_from(target).map_err(|_| Invalid::SortOption)? {
        rr::SortTarget::Key => SortTarget::Key,
        rr::SortTarget::Version => SortTarget::Version,
        rr::SortTarget::Create => SortTarget::CreateRevision,
        rr::SortTarget::Mod => SortTarget::ModRevision,
        rr::SortTarget::Value => SortTarget::Value,
    };
    let natural = target == SortTarget::Key && order != Some(SortOrder::Descending);
    Ok((!natural).then_some(Sort { target, order }))
}

pub(crate) fn put(request: pb::PutRequest) -> Parsed<Put> {
    if request.key.is_empty() {
        return Err(Invalid::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Invalid::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Invalid::LeaseProvided);
    }
    Ok(Put {
        key: request.key,
        value: request.value,
        lease: LeaseId(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
        media_type: MediaType::NONE,
    })
}

pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> Parsed<DeleteRange> {
    Ok(DeleteRange { range: key_range(request.key, request.range_end)?, prev_kv: request.prev_kv })
}

/// Recurses for nested transactions, which prost has bounded: it refuses messages more than 100 levels deep.
pub(crate) fn txn(request: pb::TxnRequest, ops_max: usize) -> Parsed<Txn> {
    // As in etcd, the number of operations is looked at before any of them.
    let pb::TxnRequest { compare: compares, success, failure } = request;
    let used = compares.len().max(success.len()).max(failure.len());
    let left = ops_max.checked_sub(used).ok_or(Invalid::TooManyOps)?;
    let ops = |ops: Vec<pb::RequestOp>| -> Parsed<Vec<TxnOp>> {
        ops.into_iter().map(|op| txn_op(op, left)).collect()
    };
    Ok(Txn {
        compares: compares.into_iter().map(compare).collect::<Parsed<_>>()?,
        success: ops(success)?,
        failure: ops(failure)?,
    })
}

fn txn_op(op: pb::RequestOp, ops_max: usize) -> Parsed<TxnOp> {
    use pb::request_op::Request;
    match op.request {
        Some(Request::RequestRange(request)) => range(request).map(TxnOp::Range),
        Some(Request::RequestPut(request)) => put(request).map(TxnOp::Put),
        Some(Request::RequestDeleteRange(request)) => delete_range(request).map(TxnOp::DeleteRange),
        Some(Request::RequestTxn(request)) => txn(request, ops_max).map(TxnOp::Txn),
        None => Err(Invalid::KeyNotFound),
    }
}

fn compare(request: pb::Compare) -> Parsed<Compare> {
    let range = key_range(request.key, request.range_end)?;
    let result = compare_result(request.result);
    let target = compare_target(request.target, request.target_union);
    let (result, target) = match (result, target) {
        (Some(result), Some(target)) => (result, target),
        // etcd lets a result that it does not know always hold, but for a value that is not there.
        (None, Some(CompareTarget::Value(_))) => {
            (CompareResult::Greater, CompareTarget::Version(0))
        }
        (None, _) => ALWAYS,
        // A target that it does not know is taken as equal.
        (Some(CompareResult::Equal), None) => ALWAYS,
        (Some(_), None) => NEVER,
    };
    Ok(Compare { range, result, target })
}

/// No version is below zero.
const ALWAYS: (CompareResult, CompareTarget) = (CompareResult::Greater, CompareTarget::Version(-1));
const NEVER: (CompareResult, CompareTarget) = (CompareResult::Less, CompareTarget::Version(-1));

fn compare_result(result: i32) -> Option<CompareResult> {
    use pb::compare::CompareResult as Wire;
    Some(match Wire::try_from(result).ok()? {
        Wire::Equal => CompareResult::Equal,
        Wire::Greater => CompareResult::Greater,
        Wire::Less => CompareResult::Less,
        Wire::NotEqual => CompareResult::NotEqual,
    })
}

/// A union of another kind than the target counts as its zero value.
fn compare_target(target: i32, union: Option<pb::compare::TargetUnion>) -> Option<CompareTarget> {
    use pb::compare::{CompareTarget as Wire, TargetUnion as Union};
    Some(match (Wire::try_from(target).ok()?, union) {
        (Wire::Version, Some(Union::Version(version))) => CompareTarget::Version(version),
        (Wire::Version, _) => CompareTarget::Version(0),
        (Wire::Create, Some(Union::CreateRevision(revision))) => {
            CompareTarget::CreateRevision(revision)
        }
        (Wire::Create, _) => CompareTarget::CreateRevision(0),
        (Wire::Mod, Some(Union::ModRevision(revision))) => CompareTarget::ModRevision(revision),
        (Wire::Mod, _) => CompareTarget::ModRevision(0),
        (Wire::Value, Some(Union::Value(value))) => CompareTarget::Value(value),
        (Wire::Value, _) => CompareTarget::Value(Bytes::new()),
        (Wire::Lease, Some(Union::Lease(lease))) => CompareTarget::Lease(lease),
        (Wire::Lease, _) => CompareTarget::Lease(0),
    })
}

/// The smallest key there is: a watch without a key starts from it.
const SMALLEST_KEY: &[u8] = &[0];

pub(crate) fn watch_create(request: &pb::WatchCreateRequest) -> WatchCreate {
    use pb::watch_create_request::FilterType;
    let key = if request.key.is_empty() { SMALLEST_KEY } else { &request.key };
    WatchCreate {
        // A watcher lives long: it gets bytes of its own, and not a piece of the buffer they were read into.
        range: KeyRange::from_request(
            Bytes::copy_from_slice(key),
            Bytes::copy_from_slice(&request.range_end),
        ),
        start_revision: request.start_revision,
        id: request.watch_id,
        prev_kv: request.prev_kv,
        no_put: request.filters.contains(&(FilterType::Noput as i32)),
        no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
        progress_notify: request.progress_notify,
        fragment: request.fragment,
    }
}

/// A count as clients see it.
pub(crate) fn shown(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The last compaction as etcd shows it: before the first one it is -1.
pub(crate) fn compact_revision(compacted: Revision) -> i64 {
    if compacted == Revision::default() { -1 } else { compacted.shown() }
}

/// An alarm; `None` for no kind, and for one that is not known.
pub(crate) fn alarm(kind: pb::AlarmType, member: u64) -> Option<Alarm> {
    let kind = match kind {
        pb::AlarmType::None => return None,
        pb::AlarmType::Nospace => AlarmKind::NoSpace,
        pb::AlarmType::Corrupt => AlarmKind::Corrupt,
    };
    Some(Alarm { kind, member: MemberId(member) })
}

pub(crate) fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: alarm.member.0, alarm: alarm_type(alarm.kind).into() }
}

fn alarm_type(kind: AlarmKind) -> pb::AlarmType {
    match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    }
}

/// As etcd writes it.
pub(crate) fn alarm_name(kind: AlarmKind) -> &'static str {
    alarm_type(kind).as_str_name()
}

pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.shown(),
        mod_revision: kv.mod_revision.shown(),
        version: shown(kv.version),
        value: kv.value,
        lease: kv.lease.0,
    }
}

fn pair(pair: &Pair) -> mvccpb::KeyValue {
    key_value(pair.into())
}

pub(crate) fn range_response(reply: RangeReply, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: reply.kvs.iter().map(pair).collect(),
        more: reply.more,
        count: shown(reply.count),
    }
}

pub(crate) fn put_response(reply: PutReply, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: reply.prev_kv.as_ref().map(pair) }
}

pub(crate) fn delete_range_response(
    reply: DeleteRangeReply,
    header: pb::ResponseHeader,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: shown(reply.deleted),
        prev_kvs: reply.prev_kvs.iter().map(pair).collect(),
    }
}

pub(crate) fn txn_response(reply: TxnReply, header: pb::ResponseHeader) -> pb::TxnResponse {
    pb::TxnResponse {
        header: Some(header),
        succeeded: reply.succeeded,
        responses: reply.responses.into_iter().map(txn_op_response).collect(),
    }
}

fn txn_op_response(reply: TxnOpReply) -> pb::ResponseOp {
    use pb::response_op::Response;
    let response = match reply {
        TxnOpReply::Range(reply) => {
            Response::ResponseRange(range_response(reply.body, header::nested(reply.revision)))
        }
        TxnOpReply::Put(reply) => {
            Response::ResponsePut(put_response(reply.body, header::nested(reply.revision)))
        }
        TxnOpReply::DeleteRange(reply) => Response::ResponseDeleteRange(delete_range_response(
            reply.body,
            header::nested(reply.revision),
        )),
        TxnOpReply::Txn(reply) => {
            Response::ResponseTxn(txn_response(reply.body, header::nested(reply.revision)))
        }
    };
    pb::ResponseOp { response: Some(response) }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
