//! Limits that flags set: sizes, operations, times to live, the quota, how long history is kept.

use std::time::Duration;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::request_op::Request;

use super::case::{self, Case, FROM_KEY, all, get, in_time, kv, maintenance, put, watch};
use super::cases;

/// What `--max-request-bytes` is here, and what etcd's transport accepts above it.
const MAX_REQUEST_BYTES: usize = 1000;
const TRANSPORT_OVERHEAD: usize = 512 * 1024;
/// Larger than what gRPC libraries take by default.
const BIG_ANSWER_KEYS: usize = 8;
const BIG_VALUE: usize = 1_000_000;

const POLL: Duration = Duration::from_millis(20);
const POLLS: usize = 500;

#[test]
fn the_size_of_requests_is_limited_as_in_etcd() {
    super::compare_with(&["--max-request-bytes=1000"], cases![sizes sizes_of_other_requests]);
}

#[test]
fn the_number_of_operations_is_limited_as_in_etcd() {
    super::compare_with(&["--max-txn-ops=3"], cases![operations]);
}

#[test]
fn the_least_time_to_live_is_that_of_etcd() {
    super::compare_with(
        &["--heartbeat-interval=100", "--election-timeout=3300"],
        cases![least_time_to_live],
    );
    super::compare_with(
        &["--heartbeat-interval=10", "--election-timeout=100"],
        cases![least_time_to_live],
    );
}

#[test]
fn the_quota_is_shown_as_in_etcd() {
    for flag in [
        "--quota-backend-bytes=0",
        "--quota-backend-bytes=-1",
        "--quota-backend-bytes=5000000",
        "--quota-backend-bytes=9000000000",
    ] {
        super::compare_with(&[flag], cases![quota]);
    }
}

#[test]
fn history_is_kept_as_long_as_in_etcd() {
    super::compare_with(&["--auto-compaction-retention=1s"], cases![auto_compaction]);
    super::compare_with(&["--auto-compaction-retention=0"], cases![no_auto_compaction]);
    super::compare_with(
        &["--auto-compaction-mode=revision", "--auto-compaction-retention=1"],
        cases![no_auto_compaction],
    );
}

#[test]
fn answers_are_as_large_as_those_of_etcd() {
    super::compare(cases![big_answers]);
}

async fn sizes(case: &mut Case) {
    // A request has the key, the value and a few bytes of framing in it, and etcd counts its own around it.
    for length in [100, 900, 980, 990, 1000, 1100, 100_000, TRANSPORT_OVERHEAD] {
        case.put(&format!("a value of {length} bytes"), put("a", vec![b'x'; length])).await;
    }
    let over = MAX_REQUEST_BYTES + TRANSPORT_OVERHEAD;
    case.put("over the transport's limit", put("a", vec![b'x'; over])).await;
    case.range("what is stored", get("a")).await;
}

async fn sizes_of_other_requests(case: &mut Case) {
    let long = vec![b'k'; MAX_REQUEST_BYTES];
    case.range("a read", get(&long)).await;
    case.delete("a delete", case::delete(&long, "")).await;
    case.txn("a txn of puts", txn(vec![put_op("a", &long)])).await;
    let half = vec![b'v'; MAX_REQUEST_BYTES / 2];
    case.txn("a txn of two halves", txn(vec![put_op("a", &half), put_op("b", &half)])).await;
    let read = pb::RequestOp { request: Some(Request::RequestRange(get(&long))) };
    case.txn("a txn that only reads", txn(vec![read])).await;
    let mut stream = case.watch();
    stream.create(watch(&long, "")).await;
    case.items("a watch", &mut stream, 1).await;
    case.all("nothing happened").await;
}

fn txn(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

fn put_op(key: &str, value: &[u8]) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestPut(put(key, value))) }
}

async fn operations(case: &mut Case) {
    let puts = |count: usize| {
        (0..count).map(|number| put_op(&format!("k{number}"), b"1")).collect::<Vec<_>>()
    };
    for count in [3, 4] {
        case.txn(&format!("{count} operations"), txn(puts(count))).await;
        let failure = pb::TxnRequest { failure: puts(count), ..Default::default() };
        case.txn(&format!("{count} in the branch not taken"), failure).await;
    }
    for inner in [1, 2, 3] {
        let inner_txn = pb::RequestOp { request: Some(Request::RequestTxn(txn(puts(inner)))) };
        case.txn(&format!("{inner} in an inner txn"), txn(vec![inner_txn])).await;
    }
}

async fn least_time_to_live(case: &mut Case) {
    for (ttl, id) in [0, 1, 2, 3, 4, 5, 6].into_iter().zip(9001..) {
        case.grant(&format!("ttl {ttl}"), id, ttl).await;
        case.revoke("revoke", id).await;
    }
}

async fn quota(case: &mut Case) {
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    case.keep("quota", answer, |_, answer| answer.db_size_quota.to_string());
    case.set("a", "1").await;
    case.grant("grant", 9101, 600).await;
}

/// What was current a second ago is compacted, what is current is not.
async fn auto_compaction(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    let first = pb::RangeRequest { revision: case.revision(1), ..get("a") };
    let mut answer = String::from("still there");
    for _ in 0..POLLS {
        if let Err(status) = in_time(kv(&case.channel).range(first.clone())).await {
            answer = format!("{:?}: {}", status.code(), status.message());
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    case.note("the first value", answer);
    case.range("now", pb::RangeRequest { revision: case.revision(2), ..get("a") }).await;
    case.all("now").await;
}

/// Nothing is compacted before its time.
async fn no_auto_compaction(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.range("the past", pb::RangeRequest { revision: case.revision(1), ..get("a") }).await;
    case.compact("by hand", case.revision(1), false).await;
    case.range("the past", pb::RangeRequest { revision: case.revision(0), ..get("a") }).await;
}

async fn big_answers(case: &mut Case) {
    for number in 0..BIG_ANSWER_KEYS {
        case.put("a big value", put(format!("k{number}"), vec![b'x'; BIG_VALUE])).await;
    }
    case.range("all of them", all()).await;
    let read = || pb::RequestOp { request: Some(Request::RequestRange(all())) };
    case.txn("twice in a txn", txn(vec![read(), read()])).await;
    let delete = pb::DeleteRangeRequest { prev_kv: true, ..case::delete(FROM_KEY, FROM_KEY) };
    case.delete("all of them, deleted", delete).await;
}
