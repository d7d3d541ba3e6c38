//! Alarms that a client raises: which there are, what they stop, and what they do not.

use std::time::Duration;

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::alarm_request::AlarmAction;
use starling_proto::v3lockpb::LockRequest;
use starling_proto::v3lockpb::lock_client::LockClient;

use super::case::{Case, FROM_KEY, all, delete, get, in_time, lease, maintenance, put, watch};
use super::cases;

#[test]
fn alarms_of_clients_do_what_they_do_in_etcd() {
    super::compare(cases![
        raised_and_taken_back
        of_several_members
        that_are_none
        of_the_member_itself
        without_space
        corrupt
        both
        leases_do_not_run_out_while_data_is_corrupt
    ]);
}

const POLL: Duration = Duration::from_millis(50);

const NONE: pb::AlarmType = pb::AlarmType::None;
const NOSPACE: pb::AlarmType = pb::AlarmType::Nospace;
const CORRUPT: pb::AlarmType = pb::AlarmType::Corrupt;
const UNKNOWN: i32 = 7;

async fn alarm(case: &mut Case, action: AlarmAction, member_id: u64, kind: i32) {
    let request = pb::AlarmRequest { action: action.into(), member_id, alarm: kind };
    let answer = in_time(maintenance(&case.channel).alarm(request)).await;
    case.keep(&format!("{action:?} {kind} of {member_id}"), answer, |show, answer| {
        let mut alarms: Vec<_> =
            answer.alarms.iter().map(|alarm| (alarm.alarm, alarm.member_id)).collect();
        alarms.sort_unstable();
        format!("{} {alarms:?}", show.header(answer.header.as_ref()))
    });
}

async fn raise(case: &mut Case, member: u64, kind: pb::AlarmType) {
    alarm(case, AlarmAction::Activate, member, kind.into()).await;
}

async fn end(case: &mut Case, member: u64, kind: pb::AlarmType) {
    alarm(case, AlarmAction::Deactivate, member, kind.into()).await;
}

async fn list(case: &mut Case) {
    for kind in [NONE, NOSPACE, CORRUPT] {
        alarm(case, AlarmAction::Get, 0, kind.into()).await;
    }
}

async fn errors(case: &mut Case) {
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    case.keep("errors in the status", answer, |_, answer| {
        // etcd's order is any, and so is the number of its spaces.
        let mut errors: Vec<_> = answer
            .errors
            .iter()
            .map(|error| error.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        errors.sort_unstable();
        format!("{errors:?}")
    });
}

async fn raised_and_taken_back(case: &mut Case) {
    for kind in [NOSPACE, CORRUPT] {
        raise(case, 7, kind).await;
        raise(case, 7, kind).await;
        list(case).await;
        errors(case).await;
        end(case, 8, kind).await;
        end(case, 7, kind).await;
        end(case, 7, kind).await;
        list(case).await;
    }
    case.set("a", "1").await;
    errors(case).await;
}

async fn of_several_members(case: &mut Case) {
    for member in [1, 0, u64::MAX] {
        raise(case, member, NOSPACE).await;
    }
    alarm(case, AlarmAction::Get, 1, NOSPACE.into()).await;
    list(case).await;
    errors(case).await;
    end(case, 0, NOSPACE).await;
    case.put("one is enough", put("a", "1")).await;
    end(case, 1, NOSPACE).await;
    end(case, u64::MAX, NOSPACE).await;
    case.put("none is left", put("a", "1")).await;
}

async fn that_are_none(case: &mut Case) {
    raise(case, 7, NONE).await;
    end(case, 7, NONE).await;
    list(case).await;
}

/// The id is each server's own, so only what happens is compared.
async fn of_the_member_itself(case: &mut Case) {
    let header = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    let member = header.ok().and_then(|status| status.into_inner().header);
    let member_id = member.unwrap_or_default().member_id;
    for action in [AlarmAction::Activate, AlarmAction::Get, AlarmAction::Deactivate] {
        let request = pb::AlarmRequest { action: action.into(), member_id, alarm: NOSPACE.into() };
        let answer = in_time(maintenance(&case.channel).alarm(request)).await;
        case.keep(&format!("{action:?}"), answer, |show, answer| {
            let ours =
                answer.alarms.iter().map(|alarm| (alarm.alarm, alarm.member_id == member_id));
            format!("{} {:?}", show.header(answer.header.as_ref()), ours.collect::<Vec<_>>())
        });
        case.put("a put", put("a", "1")).await;
    }
}

fn txn(op: Option<pb::request_op::Request>) -> pb::TxnRequest {
    let success = op.map(|op| vec![pb::RequestOp { request: Some(op) }]).unwrap_or_default();
    pb::TxnRequest { success, ..Default::default() }
}

/// Everything that an alarm may stop.
async fn try_all(case: &mut Case) {
    use pb::request_op::Request;
    case.put("put", put("a", "2")).await;
    case.put("put without a key", put("", "2")).await;
    case.put("put on no lease", pb::PutRequest { lease: 4242, ..put("a", "2") }).await;
    case.range("range", get("a")).await;
    case.range("serializable range", pb::RangeRequest { serializable: true, ..get("a") }).await;
    case.txn("txn of nothing", txn(None)).await;
    case.txn("txn of a range", txn(Some(Request::RequestRange(get("a"))))).await;
    case.txn("txn of a put", txn(Some(Request::RequestPut(put("b", "1"))))).await;
    case.txn("txn of a delete", txn(Some(Request::RequestDeleteRange(delete("b", ""))))).await;
    case.txn("txn of a txn", txn(Some(Request::RequestTxn(txn(None))))).await;
    let failure = pb::TxnRequest {
        failure: txn(Some(Request::RequestPut(put("b", "1")))).success,
        ..Default::default()
    };
    case.txn("txn of a put that is not done", failure).await;
    case.grant("grant", 7002, 600).await;
    case.grant("grant of what exists", 7001, 600).await;
    case.time_to_live("time to live", 7001, true).await;
    let request = pb::LeaseKeepAliveRequest { id: 7001 };
    let alive = lease(&case.channel).lease_keep_alive(tokio_stream::once(request)).await;
    let kept = match alive {
        Ok(answers) => in_time(async {
            let mut answers = answers.into_inner();
            answers.message().await.map(tonic::Response::new)
        })
        .await
        .map(|answer| answer.into_inner().map(|answer| answer.ttl)),
        Err(status) => Err(status),
    };
    case.note("keep alive", format!("{:?}", kept.map_err(|status| status.message().to_owned())));
    let mut locks = LockClient::new(case.channel.clone());
    let lock = LockRequest { name: "l".into(), lease: 7001 };
    let lock = in_time(locks.lock(lock)).await;
    case.keep("lock", lock, |show, answer| show.header(answer.header.as_ref()));
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("watch", &mut stream, 1).await;
    case.delete("delete", delete("a", "")).await;
    case.revoke("revoke of nothing", 4242).await;
    case.revoke("revoke", 7001).await;
    case.compact("compact", case.revision(1), false).await;
    let hash = in_time(maintenance(&case.channel).hash_kv(pb::HashKvRequest { revision: 0 })).await;
    case.keep("hash", hash, |show, answer| show.header(answer.header.as_ref()));
    let defragment = in_time(maintenance(&case.channel).defragment(pb::DefragmentRequest {})).await;
    case.keep("defragment", defragment, |show, answer| show.header(answer.header.as_ref()));
    case.range("what is left", all()).await;
}

async fn under(case: &mut Case, kinds: &[pb::AlarmType]) {
    case.grant("grant", 7001, 600).await;
    case.set("a", "1").await;
    case.set("leased", "1").await;
    for kind in kinds {
        raise(case, 7, *kind).await;
    }
    try_all(case).await;
    for kind in kinds {
        end(case, 7, *kind).await;
    }
    for id in [7001, 7002] {
        case.revoke("revoke after it", id).await;
    }
    case.delete("delete after it", delete(FROM_KEY, FROM_KEY)).await;
}

async fn without_space(case: &mut Case) {
    under(case, &[NOSPACE]).await;
}

async fn corrupt(case: &mut Case) {
    under(case, &[CORRUPT]).await;
}

async fn both(case: &mut Case) {
    under(case, &[NOSPACE, CORRUPT]).await;
    alarm(case, AlarmAction::Get, 0, UNKNOWN).await;
}

/// What has run out meanwhile goes as soon as the alarm does.
async fn leases_do_not_run_out_while_data_is_corrupt(case: &mut Case) {
    case.grant("grant", 7001, 2).await;
    case.put("put", pb::PutRequest { lease: 7001, ..put("a", "1") }).await;
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("watch", &mut stream, 1).await;
    raise(case, 7, CORRUPT).await;
    let overdue = in_time(async {
        loop {
            let request = pb::LeaseTimeToLiveRequest { id: 7001, keys: false };
            let left = lease(&case.channel).lease_time_to_live(request).await?;
            // Zero may still be less than a second.
            if left.get_ref().ttl < 0 {
                return Ok(left);
            }
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
    case.keep("overdue", overdue, |_, left| format!("granted {}", left.granted_ttl));
    case.range("and still there", get("a")).await;
    end(case, 7, CORRUPT).await;
    case.items("the delete", &mut stream, 1).await;
}
