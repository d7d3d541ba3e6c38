//! Watch: ids, ranges, starts, events, filters, cancels.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_create_request::FilterType;

use super::case::{self, Case, FROM_KEY, put, watch};
use super::cases;

#[test]
fn watch_answers_are_those_of_etcd() {
    super::compare(cases![
        live_events
        ids_are_allocated
        ids_of_the_client
        duplicate_ids
        ids_after_a_cancel
        cancel
        ranges
        empty_key
        empty_ranges
        history
        history_then_live
        start_at_the_current_revision
        start_in_the_future
        negative_start
        refusals_in_order
        previous_pairs
        events_of_a_txn
        events_of_a_lease
        filters
        filtered_history
        two_watches_of_a_key
        compacted_start
        compacted_start_goes_on
    ]);
}

async fn live_events(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("created", &mut stream, 1).await;
    case.set("a", "1").await;
    case.set("b", "1").await;
    case.set("a", "2").await;
    case.delete("delete", case::delete("a", "")).await;
    case.delete("delete nothing", case::delete("a", "")).await;
    case.set("a", "3").await;
    case.items("events", &mut stream, 4).await;
}

async fn ids_are_allocated(case: &mut Case) {
    let mut stream = case.watch();
    for number in 0..3 {
        stream.create(watch(format!("k{number}"), "")).await;
    }
    case.items("ids", &mut stream, 3).await;
    case.set("k2", "1").await;
    case.set("k0", "1").await;
    case.items("events name the watch", &mut stream, 2).await;
    let mut other = case.watch();
    other.create(watch("a", "")).await;
    case.items("another stream begins anew", &mut other, 1).await;
}

async fn ids_of_the_client(case: &mut Case) {
    let mut stream = case.watch();
    for watch_id in [7, 1, -5, i64::MAX, i64::MIN] {
        stream.create(pb::WatchCreateRequest { watch_id, ..watch("a", "") }).await;
        case.items(&format!("id {watch_id}"), &mut stream, 1).await;
    }
    for _ in 0..3 {
        stream.create(watch("a", "")).await;
    }
    case.items("the server's ids leave out those", &mut stream, 3).await;
}

async fn duplicate_ids(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { watch_id: 3, ..watch("a", "") }).await;
    stream.create(pb::WatchCreateRequest { watch_id: 3, ..watch("b", "") }).await;
    stream.create(watch("c", "")).await;
    stream.create(pb::WatchCreateRequest { watch_id: -1, ..watch("d", "") }).await;
    stream.create(pb::WatchCreateRequest { watch_id: -1, ..watch("d", "") }).await;
    case.items("replies", &mut stream, 5).await;
    case.set("a", "1").await;
    case.set("b", "1").await;
    case.set("c", "1").await;
    case.set("d", "1").await;
    case.items("events", &mut stream, 3).await;
}

async fn ids_after_a_cancel(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    stream.create(watch("a", "")).await;
    case.items("two", &mut stream, 2).await;
    stream.cancel(0).await;
    case.items("canceled", &mut stream, 1).await;
    stream.create(watch("a", "")).await;
    case.items("the next id", &mut stream, 1).await;
    stream.create(pb::WatchCreateRequest { watch_id: 1, ..watch("a", "") }).await;
    case.items("a taken id", &mut stream, 1).await;
}

async fn cancel(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    stream.create(watch("a", "")).await;
    case.items("created", &mut stream, 2).await;
    case.set("a", "1").await;
    case.items_sorted("both", &mut stream, 2).await;
    stream.cancel(0).await;
    case.items("canceled", &mut stream, 1).await;
    case.set("a", "2").await;
    case.items("one", &mut stream, 1).await;
    stream.cancel(0).await;
    stream.cancel(42).await;
    stream.cancel(-1).await;
    stream.cancel(1).await;
    case.items("of those four only the last is known", &mut stream, 1).await;
    stream.create(watch("a", "")).await;
    case.items("the stream goes on", &mut stream, 1).await;
}

async fn ranges(case: &mut Case) {
    for (label, key, end) in [
        ("half open", &b"b"[..], &b"d"[..]),
        ("from a key on", b"c", FROM_KEY),
        ("all", FROM_KEY, FROM_KEY),
    ] {
        let mut stream = case.watch();
        stream.create(watch(key, end)).await;
        case.items(label, &mut stream, 1).await;
        for key in ["a", "b", "c", "c\0", "d", "e"] {
            case.set(key, "1").await;
        }
        case.set("c", "last").await;
        let events = match label {
            "half open" => 4,
            "from a key on" => 5,
            _ => 7,
        };
        case.items(&format!("events {label}"), &mut stream, events).await;
    }
}

async fn empty_key(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("", "")).await;
    stream.create(watch("", FROM_KEY)).await;
    stream.create(watch("", "b")).await;
    case.items("replies", &mut stream, 3).await;
    case.set("a", "1").await;
    case.put("the key of one zero byte", put(b"\0", "1")).await;
    case.set("c", "1").await;
    case.items_sorted("what they are of", &mut stream, 6).await;
}

async fn empty_ranges(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("b", "b")).await;
    stream.create(watch("b", "a")).await;
    stream.create(pb::WatchCreateRequest { watch_id: 9, ..watch("b", "a") }).await;
    stream.create(pb::WatchCreateRequest { start_revision: 1, ..watch("b", "a") }).await;
    stream.create(watch("b", "")).await;
    case.items("replies", &mut stream, 5).await;
}

async fn history(case: &mut Case) {
    for (key, value) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")] {
        case.set(key, value).await;
    }
    case.delete("delete", case::delete("a", "c")).await;
    case.set("a", "3").await;
    for relative in [1, 3, 5, 6] {
        let mut stream = case.watch();
        let events =
            [0, 7, 0, 5, 0, 3, 1].get(usize::try_from(relative).unwrap_or(0)).copied().unwrap_or(0);
        stream
            .create(pb::WatchCreateRequest {
                start_revision: case.revision(relative),
                ..watch(FROM_KEY, FROM_KEY)
            })
            .await;
        case.items(&format!("from r{relative:+}"), &mut stream, 1 + events).await;
    }
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("a", "") })
        .await;
    case.items("of one key", &mut stream, 5).await;
}

async fn history_then_live(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(2), ..watch("a", "") })
        .await;
    case.items("created", &mut stream, 1).await;
    case.set("a", "3").await;
    case.items("no gap, nothing twice", &mut stream, 2).await;
    case.set("a", "4").await;
    case.items("live", &mut stream, 1).await;
}

async fn start_at_the_current_revision(case: &mut Case) {
    case.set("a", "1").await;
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("a", "") })
        .await;
    case.items("the current one", &mut stream, 2).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(2), ..watch("a", "") })
        .await;
    case.items("the next one", &mut stream, 1).await;
    case.set("a", "2").await;
    case.items_sorted("both", &mut stream, 2).await;
}

async fn start_in_the_future(case: &mut Case) {
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(3), ..watch("a", "") })
        .await;
    stream.create(pb::WatchCreateRequest { start_revision: i64::MAX, ..watch("a", "") }).await;
    case.items("created", &mut stream, 2).await;
    for value in ["1", "2", "3", "4"] {
        case.set("a", value).await;
    }
    case.items("nothing below the start", &mut stream, 2).await;
}

async fn negative_start(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { start_revision: -1, ..watch("a", "") }).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: i64::MIN, watch_id: 5, ..watch("a", "") })
        .await;
    stream.create(watch("a", "")).await;
    case.items("replies", &mut stream, 3).await;
}

/// Which refusal comes first, when several hold.
async fn refusals_in_order(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.compact("compact", case.revision(2), true).await;
    let mut stream = case.watch();
    let id_5 = || pb::WatchCreateRequest { watch_id: 5, ..watch("a", "") };
    let empty = || pb::WatchCreateRequest { watch_id: 5, ..watch("b", "a") };
    stream.create(id_5()).await;
    case.items("created", &mut stream, 1).await;
    for (label, request, items) in [
        ("taken id, empty range", empty(), 1),
        ("taken id, negative start", pb::WatchCreateRequest { start_revision: -1, ..id_5() }, 1),
        (
            "empty range, negative start",
            pb::WatchCreateRequest { start_revision: -1, ..empty() },
            1,
        ),
        (
            "taken id, compacted start",
            pb::WatchCreateRequest { start_revision: case.revision(1), ..id_5() },
            1,
        ),
        (
            "another id, compacted start",
            pb::WatchCreateRequest { start_revision: case.revision(1), watch_id: 6, ..id_5() },
            2,
        ),
        ("the id of the one that ended", pb::WatchCreateRequest { watch_id: 6, ..id_5() }, 1),
    ] {
        stream.create(request).await;
        case.items(label, &mut stream, items).await;
    }
}

async fn previous_pairs(case: &mut Case) {
    case.set("a", "1").await;
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..watch(FROM_KEY, FROM_KEY) }).await;
    case.items("created", &mut stream, 1).await;
    case.set("a", "2").await;
    case.set("b", "1").await;
    case.delete("delete", case::delete("a", "z")).await;
    case.set("a", "3").await;
    case.items("live", &mut stream, 5).await;
    let mut stream = case.watch();
    let from_the_start =
        pb::WatchCreateRequest { start_revision: case.revision(1), ..watch(FROM_KEY, FROM_KEY) };
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..from_the_start }).await;
    case.items("history", &mut stream, 7).await;
}

async fn events_of_a_txn(case: &mut Case) {
    use pb::request_op::Request;
    case.set("d1", "1").await;
    case.set("d2", "1").await;
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..watch(FROM_KEY, FROM_KEY) }).await;
    case.items("created", &mut stream, 1).await;
    let op = |request| pb::RequestOp { request: Some(request) };
    let success = vec![
        op(Request::RequestPut(put("z", "1"))),
        op(Request::RequestDeleteRange(case::delete("d", "e"))),
        op(Request::RequestPut(put("a", "1"))),
        op(Request::RequestDeleteRange(case::delete("none", ""))),
    ];
    case.txn("txn", pb::TxnRequest { success, ..Default::default() }).await;
    case.items("in the order of the operations", &mut stream, 4).await;
}

async fn events_of_a_lease(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "b")).await;
    case.items("created", &mut stream, 1).await;
    case.grant("grant", 8001, 600).await;
    case.put("put", pb::PutRequest { lease: 8001, ..put("a", "1") }).await;
    case.put("detach", put("a", "1")).await;
    case.put("attach", pb::PutRequest { lease: 8001, ..put("a", "1") }).await;
    case.revoke("revoke", 8001).await;
    case.items("events", &mut stream, 4).await;
}

async fn filters(case: &mut Case) {
    let (no_put, no_delete) = (i32::from(FilterType::Noput), i32::from(FilterType::Nodelete));
    let mut stream = case.watch();
    for filters in
        [vec![no_put], vec![no_delete], vec![no_put, no_delete], vec![no_put, no_put], vec![17]]
    {
        stream.create(pb::WatchCreateRequest { filters, ..watch("a", "") }).await;
    }
    case.items("created", &mut stream, 5).await;
    case.set("a", "1").await;
    case.items_sorted("the put, for those that want it", &mut stream, 2).await;
    case.delete("delete", case::delete("a", "")).await;
    case.items_sorted("the delete, for those that want it", &mut stream, 3).await;
}

async fn filtered_history(case: &mut Case) {
    case.set("a", "1").await;
    case.delete("delete", case::delete("a", "")).await;
    case.set("a", "2").await;
    let filters = vec![i32::from(FilterType::Noput)];
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest {
            filters,
            start_revision: case.revision(1),
            ..watch("a", "")
        })
        .await;
    case.items("only the delete", &mut stream, 2).await;
}

async fn two_watches_of_a_key(case: &mut Case) {
    case.set("a", "1").await;
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..watch("a", "") }).await;
    case.items("created", &mut stream, 1).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("a", "") })
        .await;
    case.items("created, with history", &mut stream, 2).await;
    case.set("a", "2").await;
    let label = "both see it, one with the previous pair";
    case.items_sorted(label, &mut stream, 2).await;
}

async fn compacted_start(case: &mut Case) {
    for number in 0..5 {
        case.set("a", &number.to_string()).await;
    }
    case.compact("compact", case.revision(4), true).await;
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest {
            start_revision: case.revision(3),
            watch_id: 12,
            ..watch("a", "")
        })
        .await;
    case.items("created, then canceled", &mut stream, 2).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(4), ..watch("a", "") })
        .await;
    case.items("at the compaction", &mut stream, 3).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("none", "") })
        .await;
    case.items("of a key that never was", &mut stream, 2).await;
}

async fn compacted_start_goes_on(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.compact("compact", case.revision(2), true).await;
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("a", "") })
        .await;
    case.items("one stands, one is canceled", &mut stream, 3).await;
    case.set("a", "3").await;
    case.items("the other goes on", &mut stream, 1).await;
    stream.cancel(1).await;
    stream.cancel(0).await;
    case.items("only one is left to cancel", &mut stream, 1).await;
}
