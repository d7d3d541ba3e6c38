//! That the checker finds what it is for: each test has a run that is right, and then one thing wrong in it.

use starling_proto::etcdserverpb as pb;
use starling_proto::mvccpb::KeyValue;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put(pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() })
}

fn put_reply() -> Reply {
    Reply::Put(pb::PutResponse::default())
}

fn pair(key: &'static str, value: &'static str, revision: i64) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    }
}

fn created(key: &'static str, value: &'static str, revision: i64) -> Event {
    let kind = EventType::Put.into();
    Event { r#type: kind, kv: Some(pair(key, value, revision)), prev_kv: None }
}

fn deleted(before: KeyValue, revision: i64) -> Event {
    let kv = KeyValue { key: before.key.clone(), mod_revision: revision, ..Default::default() };
    Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: Some(before) }
}

fn checker() -> Checker {
    Checker::new(1)
}

fn answer(checker: &mut Checker, op: Op, revision: i64, reply: Reply) {
    let call = checker.begin();
    checker.answered(&call, op, revision, reply);
}

fn get(checker: &mut Checker, key: &'static str, revision: i64, pairs: Vec<KeyValue>) {
    let request = pb::RangeRequest { key: key.into(), ..Default::default() };
    let count = i64::try_from(pairs.len()).unwrap();
    let reply = pb::RangeResponse { kvs: pairs, count, ..Default::default() };
    answer(checker, Op::Range(request), revision, Reply::Range(reply));
}

/// The end of a run, and that it says this and nothing else.
fn finds(mut checker: Checker, what: &str) {
    checker.finish();
    let found = checker.violations();
    assert!(found.first().is_some_and(|first| first.contains(what)), "{what}: {found:#?}");
}

fn finds_nothing(mut checker: Checker) {
    checker.finish();
    assert_eq!(checker.violations(), &[] as &[String]);
}

#[test]
fn a_run_that_is_right_passes() {
    let mut checker = checker();
    answer(&mut checker, put("a", "1"), 2, put_reply());
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    get(&mut checker, "a", 2, vec![pair("a", "1", 2)]);
    get(&mut checker, "b", 2, vec![]);
    let delete = pb::DeleteRangeRequest { key: "a".into(), ..Default::default() };
    let reply = pb::DeleteRangeResponse { deleted: 1, ..Default::default() };
    // The event may come before the answer.
    let call = checker.begin();
    checker.log_heard(vec![deleted(pair("a", "1", 2), 3)], SECOND);
    assert_eq!(checker.applied(), 2);
    checker.answered(&call, Op::Delete(delete), 3, Reply::Delete(reply));
    assert_eq!(checker.applied(), 3);
    finds_nothing(checker);
}

#[test]
fn an_acknowledged_write_that_is_lost_is_found() {
    let mut lost = checker();
    answer(&mut lost, put("a", "1"), 2, put_reply());
    finds(lost, "1 answers at revisions that the log never came to");

    // Somebody else's write stands in its place.
    let mut replaced = checker();
    answer(&mut replaced, put("a", "1"), 2, put_reply());
    let other = replaced.begin();
    replaced.lost(&other, put("b", "2"), 1);
    replaced.log_heard(vec![created("b", "2", 2)], SECOND);
    finds(replaced, "at 2, Put");
}

#[test]
fn a_server_that_forgets_is_found_at_its_restart() {
    let mut checker = checker();
    answer(&mut checker, put("a", "1"), 2, put_reply());
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    checker.restarted(1, 1, SECOND);
    finds(checker, "back at revision 1 when 2 had been seen");
}

#[test]
fn a_stale_answer_is_found() {
    let mut checker = checker();
    answer(&mut checker, put("a", "1"), 2, put_reply());
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    get(&mut checker, "a", 1, vec![]);
    finds(checker, "answered at revision 1 when 2 had been seen");
}

#[test]
fn a_wrong_read_is_found() {
    let mut checker = checker();
    answer(&mut checker, put("a", "1"), 2, put_reply());
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    get(&mut checker, "a", 2, vec![pair("a", "2", 2)]);
    finds(checker, "should have been answered");
}

#[test]
fn a_write_without_an_answer_happens_once_at_most() {
    let mut once = checker();
    let call = once.begin();
    once.lost(&call, put("a", "1"), 1);
    once.log_heard(vec![created("a", "1", 2)], SECOND);
    assert_eq!(once.counts().found, 1);
    let mut again = created("a", "1", 3);
    let kv = again.kv.as_mut().unwrap();
    (kv.create_revision, kv.version) = (2, 2);
    again.prev_kv = Some(pair("a", "1", 2));
    once.log_heard(vec![again], SECOND);
    finds(once, "nobody wrote 3");

    let mut never = checker();
    let call = never.begin();
    never.lost(&call, put("a", "1"), 1);
    finds_nothing(never);
}

#[test]
fn a_write_does_not_outlive_its_process() {
    let mut checker = checker();
    let call = checker.begin();
    checker.lost(&call, put("a", "1"), 1);
    checker.restarted(1, 1, SECOND);
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    finds(checker, "nobody wrote 2");
}

#[test]
fn a_torn_transaction_is_found() {
    let mut checker = checker();
    let put = |key: &'static str| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
            key: key.into(),
            ..Default::default()
        })),
    };
    let txn = pb::TxnRequest { success: vec![put("a"), put("b")], ..Default::default() };
    let call = checker.begin();
    checker.lost(&call, Op::Txn(txn), 1);
    checker.log_heard(vec![created("a", "", 2)], SECOND);
    finds(checker, "nobody wrote 2");
}

#[test]
fn a_gap_in_the_log_is_found() {
    let mut checker = checker();
    answer(&mut checker, put("a", "1"), 3, put_reply());
    checker.log_heard(vec![created("a", "1", 3)], SECOND);
    finds(checker, "the log goes from 1 to 3");
}

fn watching() -> (Checker, usize) {
    let mut checker = checker();
    let filter =
        Filter { key: "a".into(), range_end: Bytes::new(), no_put: false, no_delete: false };
    let watcher = checker.watcher(filter);
    answer(&mut checker, put("a", "1"), 2, put_reply());
    checker.log_heard(vec![created("a", "1", 2)], SECOND);
    answer(&mut checker, put("b", "1"), 3, put_reply());
    checker.log_heard(vec![created("b", "1", 3)], SECOND);
    (checker, watcher)
}

#[test]
fn watchers_hear_everything_once() {
    let (mut right, watcher) = watching();
    right.watch_heard(watcher, vec![created("a", "1", 2)], 0);
    right.watch_heard(watcher, vec![], 3);
    assert_eq!(right.watch_next(watcher), 4);
    finds_nothing(right);

    let (missing, _) = watching();
    finds(missing, "1 events that a watcher never heard");

    let (mut skipped, watcher) = watching();
    skipped.watch_heard(watcher, vec![], 2);
    finds(skipped, "watcher 0 is at 3 without");

    let (mut twice, watcher) = watching();
    twice.watch_heard(watcher, vec![created("a", "1", 2)], 0);
    twice.watch_heard(watcher, vec![created("a", "1", 2)], 0);
    finds(twice, "watcher 0 at 3 hears of 2 again");

    let (mut wrong, watcher) = watching();
    wrong.watch_heard(watcher, vec![created("a", "2", 2)], 0);
    finds(wrong, "instead of");

    let (mut invented, watcher) = watching();
    invented.watch_heard(watcher, vec![created("a", "1", 2), created("a", "2", 3)], 0);
    finds(invented, "1 events of a watcher that never happened");
}

#[test]
fn a_watcher_that_came_too_late_goes_on_behind_its_read() {
    let (mut checker, watcher) = watching();
    checker.compacting(3);
    checker.compacted(2, 3);
    checker.watch_reset(watcher, 3);
    finds_nothing(checker);

    let (mut for_nothing, _) = watching();
    for_nothing.compacting(2);
    for_nothing.compacted(2, 2);
    finds(for_nothing, "2 is compacted at 2");
}

/// A lease of 2 s, granted at 1 s, with one key.
fn leased() -> Checker {
    let mut checker = checker();
    checker.kept(7, 2 * SECOND, SECOND, SECOND);
    let op = Op::Put(pb::PutRequest { key: "a".into(), lease: 7, ..Default::default() });
    answer(&mut checker, op, 2, put_reply());
    let mut event = created("a", "", 2);
    event.kv.as_mut().unwrap().lease = 7;
    checker.log_heard(vec![event], SECOND);
    checker
}

fn end_of_lease(revision: i64) -> Vec<Event> {
    vec![deleted(KeyValue { lease: 7, ..pair("a", "", 2) }, revision)]
}

#[test]
fn leases_end_when_they_are_due() {
    let mut right = leased();
    right.log_heard(end_of_lease(3), 3 * SECOND);
    assert_eq!(right.counts().expired, 1);
    finds_nothing(right);

    let mut early = leased();
    early.log_heard(end_of_lease(3), 2 * SECOND);
    finds(early, "lease 7 ended at 3, 1s early");

    let mut late = leased();
    late.log_heard(end_of_lease(3), 4 * SECOND + LATE_MAX);
    finds(late, "lease 7 ended at 3, 0ns early, 11s late");

    let mut kept = leased();
    kept.kept(7, 2 * SECOND, 2 * SECOND, 2 * SECOND);
    kept.log_heard(end_of_lease(3), 3 * SECOND);
    finds(kept, "lease 7 ended at 3, 1s early");

    finds(leased(), "1 keys of leases that did not end");

    let mut gone = leased();
    gone.lease_gone(7, 2 * SECOND);
    gone.log_heard(end_of_lease(3), 3 * SECOND);
    finds(gone, "lease 7 is gone 1s early");

    let mut undead = leased();
    undead.log_heard(end_of_lease(3), 3 * SECOND);
    undead.kept(7, 2 * SECOND, 3 * SECOND, 3 * SECOND);
    finds(undead, "lease 7 was kept alive after its end");
}

#[test]
fn counters_are_what_was_answered_and_perhaps_more() {
    let count = |value: &'static str| {
        let mut checker = checker();
        answer(&mut checker, put("c", value), 2, put_reply());
        checker.log_heard(vec![created("c", value, 2)], SECOND);
        for answered in [true, true, false] {
            checker.incremented(&"c".into(), answered);
        }
        checker
    };
    finds_nothing(count("2 x"));
    finds_nothing(count("3 y"));
    finds(count("1 x"), "is 1 after 2 increments and perhaps 1 more");
    finds(count("4 x"), "is 4 after 2 increments and perhaps 1 more");
}
