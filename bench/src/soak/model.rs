//! What etcd does with one request, on a map: the oracle of the soak.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, TargetUnion};
use starling_proto::etcdserverpb::request_op::Request;
use starling_proto::etcdserverpb::response_op::Response;
use starling_proto::mvccpb::event::EventType;
use starling_proto::mvccpb::{Event, KeyValue};

/// All living keys.
pub type State = BTreeMap<Bytes, KeyValue>;

/// A request that reads or changes keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Of the current revision, in key order, without filters.
    Range(pb::RangeRequest),
    /// With a lease or without.
    Put(pb::PutRequest),
    /// Of one key or many.
    Delete(pb::DeleteRangeRequest),
    /// Compares of single keys; no transactions within.
    Txn(pb::TxnRequest),
    /// The end of a lease, with all its keys.
    Revoke(i64),
}

/// An answer without its headers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To [`Op::Range`].
    Range(pb::RangeResponse),
    /// To [`Op::Put`].
    Put(pb::PutResponse),
    /// To [`Op::Delete`].
    Delete(pb::DeleteRangeResponse),
    /// To [`Op::Txn`].
    Txn(pb::TxnResponse),
    /// To [`Op::Revoke`].
    Revoke,
}

impl Op {
    /// Whether it can change anything at all.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Range(_))
    }
}

impl Reply {
    /// Headers carry what only the server knows.
    #[must_use]
    pub fn without_headers(mut self) -> Self {
        match &mut self {
            Self::Range(reply) => reply.header = None,
            Self::Put(reply) => reply.header = None,
            Self::Delete(reply) => reply.header = None,
            Self::Txn(reply) => {
                reply.header = None;
                reply.responses.iter_mut().for_each(without_header);
            }
            Self::Revoke => {}
        }
        self
    }
}

fn without_header(response: &mut pb::ResponseOp) {
    match &mut response.response {
        Some(Response::ResponseRange(reply)) => reply.header = None,
        Some(Response::ResponsePut(reply)) => reply.header = None,
        Some(Response::ResponseDeleteRange(reply)) => reply.header = None,
        Some(Response::ResponseTxn(_)) | None => {}
    }
}

/// Executes a request whose changes, if there are any, take place at `revision`. Every event has the pair before it.
pub fn execute(state: &mut State, op: &Op, revision: i64) -> (Reply, Vec<Event>) {
    let mut events = Vec::new();
    let reply = match op {
        Op::Range(request) => Reply::Range(range(state, request)),
        Op::Put(request) => Reply::Put(put(state, request, revision, &mut events)),
        Op::Delete(request) => Reply::Delete(delete(state, request, revision, &mut events)),
        Op::Txn(request) => Reply::Txn(txn(state, request, revision, &mut events)),
        Op::Revoke(lease) => {
            let attached = state.values().filter(|pair| pair.lease == *lease);
            let keys: Vec<Bytes> = attached.map(|pair| pair.key.clone()).collect();
            events.extend(keys.iter().filter_map(|key| remove(state, key, revision)));
            Reply::Revoke
        }
    };
    (reply, events)
}

/// Takes changes back.
pub fn undo(state: &mut State, events: &[Event]) {
    for event in events.iter().rev() {
        let Some(pair) = &event.kv else { continue };
        match &event.prev_kv {
            Some(before) => state.insert(pair.key.clone(), before.clone()),
            None => state.remove(&pair.key),
        };
    }
}

/// Makes changes without asking where they come from.
pub fn force(state: &mut State, events: &[Event]) {
    for event in events {
        let Some(pair) = &event.kv else { continue };
        if event.r#type() == EventType::Delete {
            state.remove(&pair.key);
        } else {
            state.insert(pair.key.clone(), pair.clone());
        }
    }
}

/// Whether a key lies in a range as requests name it.
pub fn selects(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
    match range_end {
        [] => candidate == key,
        [0] => candidate >= key,
        end => candidate >= key && candidate < end,
    }
}

fn selected(state: &State, key: &Bytes, range_end: &Bytes) -> Vec<KeyValue> {
    let pairs = state.range(key.clone()..).map(|(_, pair)| pair);
    pairs.take_while(|pair| selects(key, range_end, &pair.key)).cloned().collect()
}

fn range(state: &State, request: &pb::RangeRequest) -> pb::RangeResponse {
    let mut kvs = selected(state, &request.key, &request.range_end);
    let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
    if request.count_only {
        return pb::RangeResponse { count, ..Default::default() };
    }
    let more = request.limit > 0 && count > request.limit;
    if more {
        kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|pair| pair.value.clear());
    }
    pb::RangeResponse { header: None, kvs, more, count }
}

fn put(
    state: &mut State,
    request: &pb::PutRequest,
    revision: i64,
    events: &mut Vec<Event>,
) -> pb::PutResponse {
    let before = state.get(&request.key).cloned();
    let pair = KeyValue {
        key: request.key.clone(),
        create_revision: before.as_ref().map_or(revision, |pair| pair.create_revision),
        mod_revision: revision,
        version: before.as_ref().map_or(0, |pair| pair.version) + 1,
        value: request.value.clone(),
        lease: request.lease,
    };
    state.insert(pair.key.clone(), pair.clone());
    let kind = EventType::Put.into();
    events.push(Event { r#type: kind, kv: Some(pair), prev_kv: before.clone() });
    pb::PutResponse { header: None, prev_kv: before.filter(|_| request.prev_kv) }
}

fn delete(
    state: &mut State,
    request: &pb::DeleteRangeRequest,
    revision: i64,
    events: &mut Vec<Event>,
) -> pb::DeleteRangeResponse {
    let prev_kvs = selected(state, &request.key, &request.range_end);
    let deleted = i64::try_from(prev_kvs.len()).unwrap_or(i64::MAX);
    events.extend(prev_kvs.iter().filter_map(|pair| remove(state, &pair.key, revision)));
    let prev_kvs = if request.prev_kv { prev_kvs } else { Vec::new() };
    pb::DeleteRangeResponse { header: None, deleted, prev_kvs }
}

fn remove(state: &mut State, key: &Bytes, revision: i64) -> Option<Event> {
    let before = state.remove(key)?;
    let pair = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
    Some(Event { r#type: EventType::Delete.into(), kv: Some(pair), prev_kv: Some(before) })
}

fn txn(
    state: &mut State,
    request: &pb::TxnRequest,
    revision: i64,
    events: &mut Vec<Event>,
) -> pb::TxnResponse {
    let succeeded = request.compare.iter().all(|compare| holds(state, compare));
    let branch = if succeeded { &request.success } else { &request.failure };
    let responses = branch.iter().map(|op| {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => {
                Some(Response::ResponseRange(range(state, request)))
            }
            Some(Request::RequestPut(request)) => {
                Some(Response::ResponsePut(put(state, request, revision, events)))
            }
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(delete(state, request, revision, events)))
            }
            Some(Request::RequestTxn(_)) | None => None,
        };
        pb::ResponseOp { response }
    });
    pb::TxnResponse { header: None, succeeded, responses: responses.collect() }
}

fn holds(state: &State, compare: &pb::Compare) -> bool {
    let nothing = KeyValue::default();
    let found = state.get(&compare.key);
    let pair = found.unwrap_or(&nothing);
    let order = match &compare.target_union {
        Some(TargetUnion::Version(version)) => pair.version.cmp(version),
        Some(TargetUnion::CreateRevision(revision)) => pair.create_revision.cmp(revision),
        Some(TargetUnion::ModRevision(revision)) => pair.mod_revision.cmp(revision),
        Some(TargetUnion::Lease(lease)) => pair.lease.cmp(lease),
        Some(TargetUnion::Value(_)) if found.is_none() => return false,
        Some(TargetUnion::Value(value)) => pair.value.cmp(value),
        None => return false,
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}
