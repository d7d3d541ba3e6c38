//! A full store: what is refused, what still works, and how it gets room again.

use starling_proto::etcdserverpb as pb;

use super::case::{self, Case, FROM_KEY, get, in_time, kv, maintenance, put};
use super::cases;
use crate::differences::{QUOTA, VALUE, incompressible};

/// Fewer than fit under the quota, however often etcd moves them: a page that gets another value is written anew, and what it took
/// before is free only later. Were one of these refused, what is smaller would still fit into etcd's file.
const PUTS: u64 = 3;
/// etcd's file grows by pages. With less than one at a time it is full to the last of them when a put is refused, so
/// that none fits any more, however small.
const SMALL_VALUE: usize = 3000;
const SMALL_PUTS_MAX: u64 = 2000;

#[test]
fn a_full_store_refuses_as_etcd_does() {
    super::compare_with(&[QUOTA], cases![refuses_what_needs_room_and_recovers]);
}

async fn refuses_what_needs_room_and_recovers(case: &mut Case) {
    case.grant("grant while there is room", 8101, 600).await;
    case.set("small", "1").await;
    fill(case).await;
    case.put("a small put is refused", put("other", "1")).await;
    case.grant("so is a grant", 8102, 600).await;
    let txn = |request| pb::TxnRequest {
        success: vec![pb::RequestOp { request: Some(request) }],
        ..Default::default()
    };
    case.txn("and a txn with a put", txn(pb::request_op::Request::RequestPut(put("other", "1"))))
        .await;
    refusals_in_order(case).await;
    transactions_that_may_put(case).await;
    status(case, "the status names it").await;
    let unchanged = pb::request_op::Request::RequestRange(get("small"));
    let read = in_time(kv(&case.channel).txn(txn(unchanged))).await;
    case.note("a txn without one works", outcome(&read));
    let read = in_time(kv(&case.channel).range(get("small"))).await;
    case.note("a read works", outcome(&read));
    alarms(case, "the alarm is raised").await;
    let delete = in_time(kv(&case.channel).delete_range(case::delete("big", "bigger"))).await;
    case.note("a delete works", outcome(&delete));
    let revoke =
        in_time(case::lease(&case.channel).lease_revoke(pb::LeaseRevokeRequest { id: 8101 })).await;
    case.note("so does a revoke", outcome(&revoke));
    make_room(case).await;
    alarms(case, "the alarm is gone").await;
    status(case, "and so is its name").await;
    let put = in_time(kv(&case.channel).put(put("after", "1"))).await;
    case.note("there is room again", outcome(&put));
}

/// The lack of room comes before most of what else is wrong with a request.
async fn refusals_in_order(case: &mut Case) {
    for (label, request) in [
        ("no key", put("", "1")),
        ("unknown lease", pb::PutRequest { lease: 99, ..put("a", "1") }),
        ("value provided", pb::PutRequest { ignore_value: true, ..put("a", "1") }),
        ("lease provided", pb::PutRequest { ignore_lease: true, lease: 8101, ..put("a", "1") }),
        ("value of a missing key", pb::PutRequest { ignore_value: true, ..put("none", "") }),
        ("nothing but a revision", pb::PutRequest { ignore_value: true, ..put("small", "") }),
    ] {
        case.put(label, request).await;
    }
    case.grant("too long", 8103, i64::MAX).await;
    case.grant("an id that exists", 8101, 600).await;
    let twice = || pb::request_op::Request::RequestPut(put("a", "1"));
    let ops = |requests: Vec<pb::request_op::Request>| {
        requests.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect()
    };
    case.txn(
        "two puts of a key",
        pb::TxnRequest { success: ops(vec![twice(), twice()]), ..Default::default() },
    )
    .await;
    case.txn(
        "a put without a key",
        pb::TxnRequest {
            success: ops(vec![pb::request_op::Request::RequestPut(put("", "1"))]),
            ..Default::default()
        },
    )
    .await;
}

/// The dearer branch counts, whichever is taken.
async fn transactions_that_may_put(case: &mut Case) {
    use pb::request_op::Request;
    let op = |request| pb::RequestOp { request: Some(request) };
    let put_op = || op(Request::RequestPut(put("other", "1")));
    let inner = pb::TxnRequest { failure: vec![put_op()], ..Default::default() };
    for (label, request) in [
        (
            "in the branch not taken",
            pb::TxnRequest { failure: vec![put_op()], ..Default::default() },
        ),
        (
            "in an inner txn, not taken",
            pb::TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() },
        ),
        ("nothing at all", pb::TxnRequest::default()),
        (
            "a delete of nothing",
            pb::TxnRequest {
                success: vec![op(Request::RequestDeleteRange(case::delete("none", "")))],
                ..Default::default()
            },
        ),
    ] {
        let answer = in_time(kv(&case.channel).txn(request)).await;
        case.note(label, outcome(&answer));
    }
}

/// The space between the words is for etcd's library to choose.
async fn status(case: &mut Case, label: &str) {
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    let errors = answer.map(|answer| {
        let answer = answer.into_inner();
        let id = answer.header.unwrap_or_default().member_id.to_string();
        let errors = answer.errors.join(",").replace(&id, "MEMBER");
        errors.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    case.note(label, format!("{:?}", errors.map_err(|status| status.code())));
}

fn outcome<T>(answer: &Result<tonic::Response<T>, tonic::Status>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// How many puts fit is the server's own; the error of the first that does not is etcd's.
///
/// etcd knows of its size only after it has committed, so a full store shows with a delay.
async fn fill(case: &mut Case) {
    for number in 0..PUTS {
        let _ = in_time(kv(&case.channel).put(put(format!("big{number}"), incompressible(number))))
            .await;
    }
    let mut last = String::from("ok");
    for number in 0..SMALL_PUTS_MAX {
        let value = incompressible(number).split_off(VALUE - SMALL_VALUE);
        let answer = in_time(kv(&case.channel).put(put(format!("big-{number}"), value))).await;
        last = outcome(&answer);
        if answer.is_err() {
            break;
        }
    }
    case.note("the put that does not fit", last);
}

async fn alarms(case: &mut Case, label: &str) {
    let answer = in_time(maintenance(&case.channel).alarm(pb::AlarmRequest::default())).await;
    let alarms = answer.map(|answer| {
        let answer = answer.into_inner();
        let id = answer.header.unwrap_or_default().member_id;
        let alarms = answer.alarms.iter().map(|alarm| (alarm.member_id == id, alarm.alarm));
        alarms.collect::<Vec<_>>()
    });
    case.note(label, format!("{:?}", alarms.map_err(|status| status.code())));
}

/// What etcd's operators do: delete, compact, defragment, disarm.
async fn make_room(case: &mut Case) {
    let all = pb::DeleteRangeRequest {
        key: case::bytes(FROM_KEY),
        range_end: case::bytes(FROM_KEY),
        prev_kv: false,
    };
    let mut client = kv(&case.channel);
    let revision = match client.delete_range(all).await {
        Ok(answer) => answer.into_inner().header.map_or(0, |header| header.revision),
        Err(_) => 0,
    };
    let compact = in_time(client.compact(pb::CompactionRequest { revision, physical: true })).await;
    case.note("compact", outcome(&compact));
    let defragment = in_time(maintenance(&case.channel).defragment(pb::DefragmentRequest {})).await;
    case.note("defragment", outcome(&defragment));
    disarm(case).await;
}

/// Disarms what is armed; a server that has done so itself has nothing to.
async fn disarm(case: &mut Case) {
    let mut client = maintenance(&case.channel);
    let armed = in_time(client.alarm(pb::AlarmRequest::default())).await;
    for alarm in armed.map(|answer| answer.into_inner().alarms).unwrap_or_default() {
        let action = pb::alarm_request::AlarmAction::Deactivate.into();
        let request = pb::AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm };
        let answer = in_time(client.alarm(request)).await;
        assert!(answer.is_ok(), "an alarm cannot be disarmed: {}", outcome(&answer));
    }
}
