//! Range: bounds, limits, orders, filters, the past, and their quirks.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::case::{Case, FROM_KEY, all, get, put, range};
use super::cases;

#[test]
fn range_answers_are_those_of_etcd() {
    super::compare(cases![
        bounds
        limits
        what_is_returned
        orders
        order_by_version
        order_with_limit
        unknown_order
        filters
        filters_with_limit_and_count
        past_and_future
        deleted_and_again
        empty_key
        serializable
        lease_is_shown
        keys_of_any_bytes
    ]);
}

/// a1 a2 a3 b1 c with different creation, modification, version and value orders.
async fn five_keys(case: &mut Case) {
    for (key, value) in [
        ("c", "5"),
        ("a2", "9"),
        ("a1", "7"),
        ("b1", "1"),
        ("a3", "3"),
        ("a2", "2"),
        ("c", "6"),
        ("c", "4"),
    ] {
        case.set(key, value).await;
    }
}

async fn bounds(case: &mut Case) {
    case.all("of an empty store").await;
    case.range("one key of an empty store", get("a")).await;
    five_keys(case).await;
    case.range("one key", get("a1")).await;
    case.range("one absent key", get("a")).await;
    case.range("half open", range("a1", "a3")).await;
    case.range("prefix", range("a", "b")).await;
    case.range("end equals key", range("a1", "a1")).await;
    case.range("end below key", range("b", "a")).await;
    case.range("from a key on", range("a3", FROM_KEY)).await;
    case.range("from after the last key on", range("d", FROM_KEY)).await;
    case.range("everything", all()).await;
    case.range("end with a zero byte", range("a1", "a1\0")).await;
    case.range("key zero, other end", range("\0", "b")).await;
    case.range("end of two zero bytes", range("a", "\0\0")).await;
}

async fn limits(case: &mut Case) {
    five_keys(case).await;
    for limit in [0, 1, 2, 3, 4, 5, 6, 100, -1, i64::MAX, i64::MIN] {
        case.range(&format!("limit {limit}"), pb::RangeRequest { limit, ..all() }).await;
    }
    case.range("limit on one key", pb::RangeRequest { limit: 1, ..get("a1") }).await;
    case.range("limit on no key", pb::RangeRequest { limit: 1, ..get("x") }).await;
}

async fn what_is_returned(case: &mut Case) {
    five_keys(case).await;
    case.range("keys only", pb::RangeRequest { keys_only: true, ..all() }).await;
    case.range("keys only of one", pb::RangeRequest { keys_only: true, ..get("c") }).await;
    case.range("count only", pb::RangeRequest { count_only: true, ..all() }).await;
    case.range("count only of none", pb::RangeRequest { count_only: true, ..range("x", "z") })
        .await;
    case.range("count only of one", pb::RangeRequest { count_only: true, ..get("c") }).await;
    case.range(
        "count and keys only",
        pb::RangeRequest { count_only: true, keys_only: true, ..all() },
    )
    .await;
    case.range("count only with a limit", pb::RangeRequest { count_only: true, limit: 2, ..all() })
        .await;
    let revision = case.revision(3);
    case.range("count only in the past", pb::RangeRequest { count_only: true, revision, ..all() })
        .await;
    let request = pb::RangeRequest { count_only: true, min_mod_revision: revision, ..all() };
    case.range("count only with a filter", request).await;
}

async fn orders(case: &mut Case) {
    five_keys(case).await;
    for target in [
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ] {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            // Versions tie, and etcd's sort is not stable; one key of each version is enough.
            let request = if target == SortTarget::Version { range("a2", "a3") } else { all() };
            case.range(&format!("{target:?} {order:?}"), sorted(request, target, order)).await;
        }
    }
}

/// Each key has a version of its own, so that there is one order.
async fn order_by_version(case: &mut Case) {
    for (key, puts) in [("a", 3), ("b", 1), ("c", 5), ("d", 2), ("e", 4)] {
        for number in 0..puts {
            case.set(key, &number.to_string()).await;
        }
    }
    for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
        for limit in [0, 2] {
            let request = pb::RangeRequest { limit, ..sorted(all(), SortTarget::Version, order) };
            case.range(&format!("{order:?} limit {limit}"), request).await;
        }
    }
}

async fn order_with_limit(case: &mut Case) {
    five_keys(case).await;
    for target in [SortTarget::Key, SortTarget::Create, SortTarget::Mod, SortTarget::Value] {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            let request = pb::RangeRequest { limit: 2, ..sorted(all(), target, order) };
            case.range(&format!("{target:?} {order:?} limit 2"), request).await;
        }
    }
    let request = pb::RangeRequest {
        keys_only: true,
        ..sorted(all(), SortTarget::Value, SortOrder::Descend)
    };
    case.range("by value, keys only", request).await;
}

async fn unknown_order(case: &mut Case) {
    case.set("a", "1").await;
    case.range("order 3", pb::RangeRequest { sort_order: 3, ..all() }).await;
    case.range("order -1", pb::RangeRequest { sort_order: -1, ..all() }).await;
    case.range("target 5", pb::RangeRequest { sort_target: 5, ..all() }).await;
    case.range("target 5 on one key", pb::RangeRequest { sort_target: 5, ..get("a") }).await;
    case.range("order 3 and no key", pb::RangeRequest { sort_order: 3, ..get("") }).await;
}

async fn filters(case: &mut Case) {
    five_keys(case).await;
    for relative in [1, 3, 5, 6, 8, 9] {
        let revision = case.revision(relative);
        let requests = [
            ("min mod", pb::RangeRequest { min_mod_revision: revision, ..all() }),
            ("max mod", pb::RangeRequest { max_mod_revision: revision, ..all() }),
            ("min create", pb::RangeRequest { min_create_revision: revision, ..all() }),
            ("max create", pb::RangeRequest { max_create_revision: revision, ..all() }),
        ];
        for (name, request) in requests {
            case.range(&format!("{name} r{relative:+}"), request).await;
        }
    }
    let (low, high) = (case.revision(4), case.revision(6));
    let both = pb::RangeRequest { min_mod_revision: low, max_mod_revision: high, ..all() };
    case.range("min and max mod", both).await;
    let crossed = pb::RangeRequest { min_mod_revision: high, max_mod_revision: low, ..all() };
    case.range("min above max", crossed).await;
    case.range("negative min", pb::RangeRequest { min_mod_revision: -5, ..all() }).await;
    case.range("negative max", pb::RangeRequest { max_mod_revision: -5, ..all() }).await;
    case.range("negative max create", pb::RangeRequest { max_create_revision: -5, ..all() }).await;
}

async fn filters_with_limit_and_count(case: &mut Case) {
    five_keys(case).await;
    let min_mod_revision = case.revision(4);
    for limit in [1, 2, 3, 4, 5] {
        let request = pb::RangeRequest { limit, min_mod_revision, ..all() };
        case.range(&format!("filter and limit {limit}"), request).await;
    }
    let newest = pb::RangeRequest {
        limit: 1,
        max_mod_revision: case.revision(7),
        ..sorted(all(), SortTarget::Mod, SortOrder::Descend)
    };
    case.range("the newest up to a revision", newest).await;
    let oldest = pb::RangeRequest {
        limit: 1,
        ..sorted(range("a", "b"), SortTarget::Create, SortOrder::Ascend)
    };
    case.range("the first created of a prefix", oldest).await;
    let unfiltered = pb::RangeRequest { limit: 2, min_mod_revision: case.revision(1), ..all() };
    case.range("a filter that holds for all, with a limit", unfiltered).await;
}

async fn past_and_future(case: &mut Case) {
    five_keys(case).await;
    for relative in 0..=8 {
        let revision = case.revision(relative);
        case.range(&format!("at r{relative:+}"), pb::RangeRequest { revision, ..all() }).await;
    }
    let past = pb::RangeRequest { revision: case.revision(2), limit: 1, ..range("a", FROM_KEY) };
    case.range("in the past with a limit", past).await;
    let revision = case.revision(9);
    case.range("one revision ahead", pb::RangeRequest { revision, ..get("a1") }).await;
    case.range("far ahead", pb::RangeRequest { revision: i64::MAX, ..get("a1") }).await;
    case.range("ahead, count only", pb::RangeRequest { revision, count_only: true, ..get("a1") })
        .await;
    case.range("negative", pb::RangeRequest { revision: -1, ..get("a1") }).await;
    case.range("least", pb::RangeRequest { revision: i64::MIN, ..get("a1") }).await;
}

async fn deleted_and_again(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.delete("delete", super::case::delete("a", "")).await;
    case.range("after the delete", get("a")).await;
    case.set("a", "3").await;
    case.range("again", get("a")).await;
    for relative in 0..=4 {
        let revision = case.revision(relative);
        case.range(&format!("at r{relative:+}"), pb::RangeRequest { revision, ..get("a") }).await;
    }
}

async fn empty_key(case: &mut Case) {
    case.range("no key", get("")).await;
    case.range("no key but an end", range("", "z")).await;
    case.range("no key, end zero", range("", FROM_KEY)).await;
    case.range("no key, count only", pb::RangeRequest { count_only: true, ..get("") }).await;
    case.range("no key, future", pb::RangeRequest { revision: i64::MAX, ..get("") }).await;
}

async fn serializable(case: &mut Case) {
    five_keys(case).await;
    case.range("all", pb::RangeRequest { serializable: true, ..all() }).await;
    case.range("ahead", pb::RangeRequest { serializable: true, revision: i64::MAX, ..all() }).await;
}

async fn lease_is_shown(case: &mut Case) {
    case.grant("grant", 7001, 600).await;
    case.put("put with the lease", pb::PutRequest { lease: 7001, ..put("a", "1") }).await;
    case.range("with the lease", get("a")).await;
    case.range("sorted", sorted(all(), SortTarget::Mod, SortOrder::Ascend)).await;
    case.revoke("revoke", 7001).await;
}

async fn keys_of_any_bytes(case: &mut Case) {
    for key in [&b"\xff"[..], b"\xff\xff", b"\0", b"\0\0", b"\x01", b"a\0b", b"\xfe\xff", b"\x80"] {
        case.put(&format!("put {}", key.escape_ascii()), put(key, key)).await;
    }
    case.all("all, in order").await;
    case.range("from ff on", range(b"\xff", FROM_KEY)).await;
    case.range("prefix fe", range(b"\xfe", b"\xff")).await;
    case.range("prefix 00", range(b"\0", b"\x01")).await;
    case.range("key and end are one zero byte", range(FROM_KEY, FROM_KEY)).await;
    case.range("one key of one zero byte", get(b"\0")).await;
    case.range("descending", sorted(all(), SortTarget::Key, SortOrder::Descend)).await;
}

fn sorted(request: pb::RangeRequest, target: SortTarget, order: SortOrder) -> pb::RangeRequest {
    pb::RangeRequest { sort_target: target.into(), sort_order: order.into(), ..request }
}
