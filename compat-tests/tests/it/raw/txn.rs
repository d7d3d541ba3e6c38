//! Txn: compares, branches, what is refused before anything happens, and what the answer looks like.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::request_op::Request;

use super::case::{self, Case, FROM_KEY, all, bytes, get, put};
use super::cases;

/// etcd's default `--max-txn-ops`.
const MAX_OPS: usize = 128;

#[test]
fn txn_answers_are_those_of_etcd() {
    super::compare(cases![
        nothing_at_all
        compare_results
        compare_missing_key
        compare_deleted_key
        compare_without_value
        compare_other_union
        compare_unknown
        compare_ranges
        compare_lease
        compare_empty_key
        several_compares
        branches
        reads_see_writes
        previous_pairs
        read_only
        revisions_of_changes
        empty_ops
        keys_not_provided
        refused_puts
        leases_in_txn
        duplicate_puts
        put_and_delete
        duplicates_across_branches
        duplicates_in_nested
        refusals_in_order
        refusals_of_inner_txns
        too_many
        nested_budget
        nested
        nested_compare_sees_writes
        nested_headers
        ranges_of_the_past
        ranges_with_options
        failure_changes_nothing
        both_branches_are_checked
        delete_all_and_put
    ]);
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(put(key, value)))
}

fn get_op(key: &str) -> pb::RequestOp {
    range_op(get(key))
}

fn range_op(request: pb::RangeRequest) -> pb::RequestOp {
    op(Request::RequestRange(request))
}

fn delete_op(key: &str, end: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(case::delete(key, end)))
}

fn txn_op(request: pb::TxnRequest) -> pb::RequestOp {
    op(Request::RequestTxn(request))
}

fn compare(
    key: &str,
    result: CompareResult,
    target: CompareTarget,
    value: Option<TargetUnion>,
) -> pb::Compare {
    pb::Compare {
        key: bytes(key),
        result: result.into(),
        target: target.into(),
        target_union: value,
        ..Default::default()
    }
}

fn version(key: &str, result: CompareResult, version: i64) -> pb::Compare {
    compare(key, result, CompareTarget::Version, Some(TargetUnion::Version(version)))
}

fn value(key: &str, result: CompareResult, value: &str) -> pb::Compare {
    compare(key, result, CompareTarget::Value, Some(TargetUnion::Value(bytes(value))))
}

fn when(compare: Vec<pb::Compare>) -> pb::TxnRequest {
    pb::TxnRequest { compare, ..Default::default() }
}

fn always(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

fn holds() -> pb::Compare {
    version("no such key", CompareResult::Equal, 0)
}

fn fails() -> pb::Compare {
    version("no such key", CompareResult::Equal, 1)
}

const RESULTS: [CompareResult; 4] =
    [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];

async fn nothing_at_all(case: &mut Case) {
    case.txn("empty", pb::TxnRequest::default()).await;
    case.set("a", "1").await;
    case.txn("empty", pb::TxnRequest::default()).await;
    case.txn("empty branches, compare holds", when(vec![holds()])).await;
    case.txn("empty branches, compare fails", when(vec![fails()])).await;
}

async fn compare_results(case: &mut Case) {
    case.set("a", "b").await;
    case.set("a", "b").await;
    for result in RESULTS {
        for offset in [-1, 0, 1] {
            let request = when(vec![version("a", result, 2 + offset)]);
            case.txn(&format!("version {result:?} {offset:+}"), request).await;
            let revision = case.revision(1 + offset);
            let create = Some(TargetUnion::CreateRevision(revision));
            let request = when(vec![compare("a", result, CompareTarget::Create, create)]);
            case.txn(&format!("create {result:?} {offset:+}"), request).await;
            let modified = Some(TargetUnion::ModRevision(revision + 1));
            let request = when(vec![compare("a", result, CompareTarget::Mod, modified)]);
            case.txn(&format!("mod {result:?} {offset:+}"), request).await;
        }
        for text in ["", "a", "b", "ba", "c", "B"] {
            case.txn(&format!("value {result:?} {text:?}"), when(vec![value("a", result, text)]))
                .await;
        }
    }
}

async fn compare_missing_key(case: &mut Case) {
    missing_key(case, "x").await;
}

async fn compare_deleted_key(case: &mut Case) {
    case.set("x", "1").await;
    case.delete("delete", case::delete("x", "")).await;
    missing_key(case, "x").await;
}

async fn missing_key(case: &mut Case, key: &str) {
    for result in RESULTS {
        for number in [-1, 0, 1] {
            let targets = [
                (CompareTarget::Version, TargetUnion::Version(number)),
                (CompareTarget::Create, TargetUnion::CreateRevision(number)),
                (CompareTarget::Mod, TargetUnion::ModRevision(number)),
                (CompareTarget::Lease, TargetUnion::Lease(number)),
            ];
            for (target, union) in targets {
                let request = when(vec![compare(key, result, target, Some(union))]);
                case.txn(&format!("{target:?} {result:?} {number}"), request).await;
            }
        }
        for text in ["", "x"] {
            case.txn(&format!("value {result:?} {text:?}"), when(vec![value(key, result, text)]))
                .await;
        }
    }
}

/// No value to compare with counts as zero, or as empty.
async fn compare_without_value(case: &mut Case) {
    case.set("a", "").await;
    for key in ["a", "x"] {
        for target in TARGETS {
            let request = when(vec![compare(key, CompareResult::Equal, target, None)]);
            case.txn(&format!("{key} {target:?} equal to nothing"), request).await;
            let request = when(vec![compare(key, CompareResult::Greater, target, None)]);
            case.txn(&format!("{key} {target:?} greater than nothing"), request).await;
        }
    }
}

const TARGETS: [CompareTarget; 5] = [
    CompareTarget::Version,
    CompareTarget::Create,
    CompareTarget::Mod,
    CompareTarget::Value,
    CompareTarget::Lease,
];

/// A value of another target than the one asked for counts as none.
async fn compare_other_union(case: &mut Case) {
    case.set("a", "1").await;
    for target in TARGETS {
        let value = Some(TargetUnion::Value(bytes("1")));
        let request = when(vec![compare("a", CompareResult::Equal, target, value)]);
        case.txn(&format!("{target:?} with a value"), request).await;
        let version = Some(TargetUnion::Version(1));
        let request = when(vec![compare("a", CompareResult::Equal, target, version)]);
        case.txn(&format!("{target:?} with a version"), request).await;
    }
}

async fn compare_unknown(case: &mut Case) {
    case.set("a", "1").await;
    let known = version("a", CompareResult::Equal, 1);
    for result in [4, -1, 100] {
        case.txn(&format!("result {result}"), when(vec![pb::Compare { result, ..known.clone() }]))
            .await;
    }
    for target in [5, -1, 100] {
        case.txn(&format!("target {target}"), when(vec![pb::Compare { target, ..known.clone() }]))
            .await;
        let other = pb::Compare { target, result: CompareResult::NotEqual.into(), ..known.clone() };
        case.txn(&format!("target {target}, not equal"), when(vec![other])).await;
    }
}

async fn compare_ranges(case: &mut Case) {
    for (key, value) in [("a1", "x"), ("a2", "x"), ("a3", "y")] {
        case.set(key, value).await;
    }
    let over = |compare: pb::Compare, end: &[u8]| {
        when(vec![pb::Compare { range_end: bytes(end), ..compare }])
    };
    for result in RESULTS {
        case.txn(&format!("a1..a3 value {result:?}"), over(value("a1", result, "x"), b"a3")).await;
        case.txn(&format!("a.. value {result:?}"), over(value("a", result, "x"), b"b")).await;
        case.txn(&format!("from a on version {result:?}"), over(version("a", result, 1), FROM_KEY))
            .await;
        case.txn(&format!("no keys, version {result:?}"), over(version("x", result, 0), b"z"))
            .await;
        case.txn(&format!("no keys, value {result:?}"), over(value("x", result, ""), b"z")).await;
        case.txn(&format!("end below key {result:?}"), over(version("b", result, 0), b"a")).await;
    }
}

async fn compare_lease(case: &mut Case) {
    case.grant("grant", 7301, 600).await;
    case.put("leased", pb::PutRequest { lease: 7301, ..put("a", "1") }).await;
    case.set("b", "1").await;
    for key in ["a", "b"] {
        for (result, lease) in [
            (CompareResult::Equal, 7301),
            (CompareResult::Equal, 0),
            (CompareResult::NotEqual, 0),
            (CompareResult::Greater, 7300),
        ] {
            let request = when(vec![compare(
                key,
                result,
                CompareTarget::Lease,
                Some(TargetUnion::Lease(lease)),
            )]);
            case.txn(&format!("{key} {result:?} {lease}"), request).await;
        }
    }
    case.revoke("revoke", 7301).await;
}

async fn compare_empty_key(case: &mut Case) {
    case.txn("no key", when(vec![version("", CompareResult::Equal, 0)])).await;
    let range = pb::Compare { range_end: bytes("z"), ..version("", CompareResult::Equal, 0) };
    case.txn("no key but an end", when(vec![range])).await;
}

async fn several_compares(case: &mut Case) {
    for (label, compares) in [
        ("both hold", vec![holds(), holds()]),
        ("the first fails", vec![fails(), holds()]),
        ("the last fails", vec![holds(), fails()]),
        ("both fail", vec![fails(), fails()]),
    ] {
        let request = pb::TxnRequest {
            compare: compares,
            success: vec![put_op("a", label)],
            failure: vec![put_op("b", label)],
        };
        case.txn(label, request).await;
    }
    case.all("after").await;
}

async fn branches(case: &mut Case) {
    let both = |compare| pb::TxnRequest {
        compare: vec![compare],
        success: vec![put_op("yes", "1"), get_op("yes")],
        failure: vec![get_op("no"), put_op("no", "1"), delete_op("yes", "")],
    };
    case.txn("success", both(holds())).await;
    case.txn("failure", both(fails())).await;
    let no_success = pb::TxnRequest { success: Vec::new(), ..both(holds()) };
    case.txn("an empty branch is taken", no_success).await;
    case.all("after").await;
}

async fn reads_see_writes(case: &mut Case) {
    case.set("a", "old").await;
    let ops = vec![
        get_op("a"),
        put_op("a", "new"),
        get_op("a"),
        put_op("b", "1"),
        range_op(all()),
        range_op(pb::RangeRequest { count_only: true, ..all() }),
        delete_op("c", "z"),
        put_op("c", "1"),
        range_op(all()),
    ];
    case.txn("reads between writes", always(ops)).await;
    case.all("after").await;
}

async fn previous_pairs(case: &mut Case) {
    case.set("a", "1").await;
    case.set("b", "1").await;
    let put_prev = pb::PutRequest { prev_kv: true, ..put("a", "2") };
    let delete_prev = pb::DeleteRangeRequest { prev_kv: true, ..case::delete("a1", "z") };
    let ops = vec![
        op(Request::RequestPut(put_prev)),
        op(Request::RequestDeleteRange(delete_prev)),
        op(Request::RequestPut(pb::PutRequest { prev_kv: true, ..put("new", "1") })),
    ];
    case.txn("previous pairs", always(ops)).await;
}

async fn read_only(case: &mut Case) {
    case.set("a", "1").await;
    let request = pb::TxnRequest {
        compare: vec![holds()],
        success: vec![get_op("a"), range_op(all())],
        failure: vec![get_op("b")],
    };
    case.txn("only reads", request.clone()).await;
    case.txn("again, no revision passed", request).await;
    let serializable = pb::RangeRequest { serializable: true, ..get("a") };
    case.txn("serializable", always(vec![range_op(serializable)])).await;
}

async fn revisions_of_changes(case: &mut Case) {
    case.txn(
        "three puts are one revision",
        always(vec![put_op("a", "1"), put_op("b", "1"), put_op("c", "1")]),
    )
    .await;
    case.txn("a delete of nothing is none", always(vec![delete_op("x", ""), get_op("a")])).await;
    case.txn("a delete of nothing and a put", always(vec![delete_op("x", ""), put_op("d", "1")]))
        .await;
    let writes_elsewhere = pb::TxnRequest {
        compare: vec![fails()],
        success: vec![put_op("a", "2")],
        failure: vec![get_op("a")],
    };
    case.txn("the branch with the put is not taken", writes_elsewhere).await;
    case.all("after").await;
    case.txn("a get after a put has the revision of", always(vec![put_op("a", "3"), get_op("b")]))
        .await;
}

async fn empty_ops(case: &mut Case) {
    let nothing = pb::RequestOp { request: None };
    case.txn("an op without a request", always(vec![nothing.clone()])).await;
    let request = pb::TxnRequest {
        compare: vec![holds()],
        failure: vec![nothing.clone()],
        ..Default::default()
    };
    case.txn("in the branch not taken", request).await;
    case.txn("after a put", always(vec![put_op("a", "1"), nothing])).await;
    case.all("nothing happened").await;
}

async fn keys_not_provided(case: &mut Case) {
    for (label, op) in [
        ("get", get_op("")),
        ("put", put_op("", "1")),
        ("delete", delete_op("", "")),
        ("delete with an end", delete_op("", "z")),
    ] {
        case.txn(label, always(vec![put_op("a", "1"), op.clone()])).await;
        let request =
            pb::TxnRequest { compare: vec![holds()], failure: vec![op], ..Default::default() };
        case.txn(&format!("{label} in the branch not taken"), request).await;
    }
    case.all("nothing happened").await;
}

async fn refused_puts(case: &mut Case) {
    case.set("a", "1").await;
    for (label, request) in [
        ("value provided", pb::PutRequest { ignore_value: true, ..put("a", "1") }),
        ("lease provided", pb::PutRequest { ignore_lease: true, lease: 5, ..put("a", "1") }),
        ("value of a missing key", pb::PutRequest { ignore_value: true, ..put("x", "") }),
        ("lease of a missing key", pb::PutRequest { ignore_lease: true, ..put("x", "1") }),
        ("unknown lease", pb::PutRequest { lease: 99, ..put("x", "1") }),
    ] {
        let refused = op(Request::RequestPut(request));
        case.txn(label, always(vec![put_op("b", "1"), refused.clone()])).await;
        let elsewhere = pb::TxnRequest {
            compare: vec![holds()],
            success: vec![get_op("a")],
            failure: vec![refused],
        };
        case.txn(&format!("{label}, branch not taken"), elsewhere).await;
    }
    let kept = op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("new", "") }));
    case.txn(
        "keeps the value of a key that an earlier op puts",
        always(vec![put_op("new0", "1"), kept]),
    )
    .await;
    case.all("after").await;
}

async fn leases_in_txn(case: &mut Case) {
    case.grant("grant", 7401, 600).await;
    let leased = |key| op(Request::RequestPut(pb::PutRequest { lease: 7401, ..put(key, "1") }));
    case.txn("two leased puts", always(vec![leased("a"), leased("b")])).await;
    case.time_to_live("attached", 7401, true).await;
    case.txn("one is deleted, one put without", always(vec![delete_op("a", ""), put_op("b", "2")]))
        .await;
    case.time_to_live("detached", 7401, true).await;
    case.txn("again", always(vec![leased("a"), leased("b")])).await;
    case.revoke("revoke", 7401).await;
    case.all("gone in one revision").await;
}

async fn duplicate_puts(case: &mut Case) {
    case.txn("two puts of a key", always(vec![put_op("a", "1"), put_op("a", "2")])).await;
    case.txn(
        "with another between",
        always(vec![put_op("a", "1"), put_op("b", "1"), put_op("a", "1")]),
    )
    .await;
    case.txn("a put and a get", always(vec![put_op("a", "1"), get_op("a")])).await;
    case.txn("two gets", always(vec![get_op("a"), get_op("a")])).await;
    case.txn("two deletes", always(vec![delete_op("a", ""), delete_op("a", "")])).await;
    case.txn("overlapping deletes", always(vec![delete_op("a", "c"), delete_op("b", "d")])).await;
    case.all("after").await;
}

async fn put_and_delete(case: &mut Case) {
    for (label, key, end) in [
        ("the same key", "b", ""),
        ("a range with the key", "a", "c"),
        ("a range that begins with the key", "b", "c"),
        ("a range that ends before the key", "a", "b"),
        ("from a key on", "a", "\0"),
        ("from a later key on", "c", "\0"),
        ("an empty range", "c", "a"),
        ("a range behind the key", "b\0", "c"),
    ] {
        case.txn(
            &format!("{label}: put, delete"),
            always(vec![put_op("b", "1"), delete_op(key, end)]),
        )
        .await;
        case.txn(
            &format!("{label}: delete, put"),
            always(vec![delete_op(key, end), put_op("b", "1")]),
        )
        .await;
    }
    case.all("after").await;
}

async fn duplicates_across_branches(case: &mut Case) {
    let request = pb::TxnRequest {
        compare: vec![holds()],
        success: vec![put_op("a", "1")],
        failure: vec![put_op("a", "2")],
    };
    case.txn("one put in each branch", request).await;
    let request = pb::TxnRequest {
        compare: vec![holds()],
        success: vec![put_op("a", "1")],
        failure: vec![delete_op("a", "")],
    };
    case.txn("a put and a delete", request).await;
    let twice = vec![put_op("a", "1"), put_op("a", "2")];
    let request =
        pb::TxnRequest { compare: vec![holds()], success: vec![get_op("a")], failure: twice };
    case.txn("twice in the branch not taken", request).await;
}

async fn duplicates_in_nested(case: &mut Case) {
    let inner =
        |success, failure| txn_op(pb::TxnRequest { compare: vec![holds()], success, failure });
    for (label, ops) in [
        ("outer put and inner put", vec![put_op("a", "1"), inner(vec![put_op("a", "2")], vec![])]),
        (
            "outer put and inner put not taken",
            vec![put_op("a", "1"), inner(vec![], vec![put_op("a", "2")])],
        ),
        (
            "inner puts in both branches",
            vec![inner(vec![put_op("a", "1")], vec![put_op("a", "2")])],
        ),
        (
            "puts in two inner txns",
            vec![inner(vec![put_op("a", "1")], vec![]), inner(vec![put_op("a", "2")], vec![])],
        ),
        (
            "inner put, then outer delete",
            vec![inner(vec![put_op("a", "1")], vec![]), delete_op("a", "")],
        ),
        (
            "outer delete, then inner put",
            vec![delete_op("a", "b"), inner(vec![put_op("a", "1")], vec![])],
        ),
        (
            "inner delete and outer put",
            vec![inner(vec![delete_op("a", "z")], vec![]), put_op("b", "1")],
        ),
        (
            "inner delete and another's put",
            vec![inner(vec![delete_op("a", "z")], vec![]), inner(vec![], vec![put_op("b", "1")])],
        ),
        (
            "inner delete in one branch, put in the other",
            vec![inner(vec![delete_op("a", "z")], vec![put_op("b", "1")])],
        ),
        (
            "two levels down",
            vec![put_op("a", "1"), inner(vec![inner(vec![], vec![put_op("a", "2")])], vec![])],
        ),
        (
            "different keys",
            vec![put_op("a", "1"), inner(vec![put_op("b", "2")], vec![put_op("c", "2")])],
        ),
    ] {
        case.txn(label, always(ops)).await;
    }
    case.all("after").await;
}

/// Which refusal comes first, when several hold.
async fn refusals_in_order(case: &mut Case) {
    let many_compares = vec![holds(); MAX_OPS + 1];
    let no_compare_key = version("", CompareResult::Equal, 0);
    let twice = vec![put_op("a", "1"), put_op("a", "2")];
    let unknown_lease = || op(Request::RequestPut(pb::PutRequest { lease: 99, ..put("a", "1") }));
    let ahead = || range_op(pb::RangeRequest { revision: i64::MAX, ..get("a") });
    let keep_missing =
        || op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("x", "") }));
    let value_provided =
        || op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("x", "1") }));
    let unknown_order = || range_op(pb::RangeRequest { sort_order: 9, ..get("a") });
    for (label, request) in [
        (
            "too many compares, one without a key",
            when([many_compares.clone(), vec![no_compare_key.clone()]].concat()),
        ),
        (
            "too many compares, a put without a key",
            pb::TxnRequest { success: vec![put_op("", "1")], ..when(many_compares) },
        ),
        (
            "a compare without a key, two puts of one",
            pb::TxnRequest { success: twice.clone(), ..when(vec![no_compare_key]) },
        ),
        ("two puts of one key, then one without a key", {
            always([twice.clone(), vec![put_op("", "1")]].concat())
        }),
        (
            "two puts of one key, in the other branch no key",
            pb::TxnRequest { failure: vec![put_op("", "1")], ..always(twice.clone()) },
        ),
        (
            "two puts of one key with an unknown lease",
            always(vec![unknown_lease(), put_op("a", "1")]),
        ),
        ("an unknown lease, then a read ahead", always(vec![unknown_lease(), ahead()])),
        ("a read ahead, then an unknown lease", always(vec![ahead(), unknown_lease()])),
        ("a missing key, then an unknown lease", always(vec![keep_missing(), unknown_lease()])),
        ("an unknown lease, then a missing key", always(vec![unknown_lease(), keep_missing()])),
        ("an unknown lease, then a value", always(vec![unknown_lease(), value_provided()])),
        ("a read ahead, then an unknown order", always(vec![ahead(), unknown_order()])),
        ("nothing, then no key", always(vec![pb::RequestOp { request: None }, put_op("", "1")])),
        ("no key, then nothing", always(vec![put_op("", "1"), pb::RequestOp { request: None }])),
    ] {
        case.txn(label, request).await;
    }
    case.all("nothing happened").await;
}

async fn refusals_of_inner_txns(case: &mut Case) {
    case.set("a", "1").await;
    for (label, refused) in [
        ("no key", put_op("", "1")),
        ("nothing", pb::RequestOp { request: None }),
        ("unknown lease", op(Request::RequestPut(pb::PutRequest { lease: 99, ..put("b", "1") }))),
        ("ahead", range_op(pb::RangeRequest { revision: i64::MAX, ..get("a") })),
        ("unknown order", range_op(pb::RangeRequest { sort_order: 9, ..get("a") })),
        (
            "value provided",
            op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("a", "1") })),
        ),
        (
            "value of a missing key",
            op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("x", "") })),
        ),
    ] {
        let inner = |compare| {
            txn_op(pb::TxnRequest {
                compare: vec![compare],
                success: vec![refused.clone()],
                failure: vec![get_op("a")],
            })
        };
        case.txn(label, always(vec![put_op("c", "1"), inner(holds())])).await;
        case.txn(&format!("{label}, not taken"), always(vec![put_op("c", "1"), inner(fails())]))
            .await;
    }
    case.all("after").await;
}

async fn too_many(case: &mut Case) {
    let gets = |count: usize| vec![get_op("a"); count];
    for count in [MAX_OPS, MAX_OPS + 1] {
        case.txn(&format!("{count} ops"), always(gets(count))).await;
        case.txn(&format!("{count} compares"), when(vec![holds(); count])).await;
        let elsewhere = pb::TxnRequest { failure: gets(count), ..Default::default() };
        case.txn(&format!("{count} in the branch not taken"), elsewhere).await;
    }
    let split = pb::TxnRequest {
        compare: vec![holds(); MAX_OPS],
        success: gets(MAX_OPS),
        failure: gets(MAX_OPS),
    };
    case.txn("the most of everything", split).await;
    let puts: Vec<_> = (0..MAX_OPS).map(|number| put_op(&format!("k{number:03}"), "1")).collect();
    case.txn("puts", always(puts)).await;
    case.range("all of them", pb::RangeRequest { count_only: true, ..all() }).await;
}

/// An inner txn may have what the outer one leaves.
async fn nested_budget(case: &mut Case) {
    let gets = |count: usize| vec![get_op("a"); count];
    for (outer, inner) in [
        (1, MAX_OPS - 1),
        (1, MAX_OPS),
        (MAX_OPS / 2, MAX_OPS / 2),
        (MAX_OPS / 2, MAX_OPS / 2 + 1),
        (MAX_OPS, 0),
        (MAX_OPS, 1),
    ] {
        let mut ops = gets(outer - 1);
        ops.push(txn_op(always(gets(inner))));
        case.txn(&format!("{outer} outer ops, {inner} inner"), always(ops)).await;
    }
    let twice = vec![txn_op(always(gets(MAX_OPS - 2))), txn_op(always(gets(MAX_OPS - 2)))];
    case.txn("two inner txns do not share", always(twice)).await;
    let compares = pb::TxnRequest {
        compare: vec![holds(); MAX_OPS],
        success: vec![txn_op(always(gets(1)))],
        failure: vec![],
    };
    case.txn("compares of the outer one count", compares).await;
    let deep = always(vec![txn_op(always(vec![txn_op(always(gets(MAX_OPS - 2)))]))]);
    case.txn("two levels", deep).await;
    let deep = always(vec![txn_op(always(vec![txn_op(always(gets(MAX_OPS - 1)))]))]);
    case.txn("two levels, one too many", deep).await;
}

async fn nested(case: &mut Case) {
    case.set("a", "1").await;
    let inner = |compare| {
        txn_op(pb::TxnRequest {
            compare: vec![compare],
            success: vec![get_op("a"), put_op("yes", "1")],
            failure: vec![put_op("no", "1"), delete_op("a", "")],
        })
    };
    case.txn("inner success", always(vec![inner(holds())])).await;
    case.txn("inner failure", always(vec![inner(fails()), get_op("a")])).await;
    case.txn("an empty inner txn", always(vec![txn_op(pb::TxnRequest::default())])).await;
    case.txn("an inner txn of reads only", always(vec![txn_op(always(vec![get_op("a")]))])).await;
    let elsewhere = pb::TxnRequest {
        compare: vec![fails()],
        success: vec![inner(holds())],
        failure: vec![txn_op(pb::TxnRequest::default())],
    };
    case.txn("in the branch taken, empty", elsewhere).await;
    case.all("after").await;
}

/// All compares are evaluated before any operation.
async fn nested_compare_sees_writes(case: &mut Case) {
    case.set("a", "1").await;
    let inner = pb::TxnRequest {
        compare: vec![value("a", CompareResult::Equal, "2")],
        success: vec![put_op("seen", "new")],
        failure: vec![put_op("seen", "old")],
    };
    case.txn(
        "compare of a key that an earlier op puts",
        always(vec![put_op("a", "2"), txn_op(inner)]),
    )
    .await;
    case.range("which branch", get("seen")).await;
}

async fn nested_headers(case: &mut Case) {
    case.set("a", "1").await;
    let deep = always(vec![
        get_op("a"),
        put_op("b", "1"),
        get_op("b"),
        txn_op(always(vec![delete_op("a", ""), get_op("a")])),
    ]);
    case.txn("every header", always(vec![get_op("a"), txn_op(deep), get_op("a")])).await;
}

async fn ranges_of_the_past(case: &mut Case) {
    for number in 1..=4 {
        case.set("a", &number.to_string()).await;
    }
    case.compact("compact", case.revision(2), false).await;
    let at = |revision| range_op(pb::RangeRequest { revision, ..get("a") });
    for relative in [0, 1, 2, 3, 4, 5] {
        let revision = case.revision(relative);
        case.txn(&format!("read at r{relative:+}"), always(vec![at(revision)])).await;
        case.txn(
            &format!("put and read at r{relative:+}"),
            always(vec![put_op("b", "1"), at(revision)]),
        )
        .await;
        case.all("which put happened").await;
    }
    case.txn("negative", always(vec![at(-1)])).await;
    case.txn("negative after a put", always(vec![put_op("b", "1"), at(-1)])).await;
    let elsewhere = pb::TxnRequest {
        compare: vec![holds()],
        success: vec![get_op("a")],
        failure: vec![at(i64::MAX)],
    };
    case.txn("ahead, in the branch not taken", elsewhere).await;
    case.all("after").await;
}

async fn ranges_with_options(case: &mut Case) {
    for key in ["a", "b", "c"] {
        case.set(key, key).await;
    }
    let ops = vec![
        range_op(pb::RangeRequest { limit: 2, ..all() }),
        range_op(pb::RangeRequest { keys_only: true, ..all() }),
        range_op(pb::RangeRequest { sort_order: 2, limit: 1, ..all() }),
        range_op(pb::RangeRequest { min_mod_revision: case.revision(2), ..all() }),
    ];
    case.txn("options", always(ops)).await;
    case.txn("unknown order", always(vec![range_op(pb::RangeRequest { sort_order: 7, ..all() })]))
        .await;
    case.txn(
        "unknown target",
        always(vec![range_op(pb::RangeRequest { sort_target: 7, ..all() })]),
    )
    .await;
}

async fn failure_changes_nothing(case: &mut Case) {
    case.set("a", "1").await;
    let ops = vec![
        put_op("a", "2"),
        delete_op("a1", "z"),
        put_op("b", "1"),
        range_op(pb::RangeRequest { revision: i64::MAX, ..get("a") }),
    ];
    let overlap =
        vec![put_op("a", "2"), range_op(pb::RangeRequest { revision: i64::MAX, ..get("a") })];
    case.txn("overlapping and ahead", always(ops)).await;
    case.txn("ahead", always(overlap)).await;
    case.all("as before").await;
}

async fn both_branches_are_checked(case: &mut Case) {
    let request = pb::TxnRequest {
        compare: vec![fails()],
        success: vec![put_op("", "1")],
        failure: vec![get_op("a")],
    };
    case.txn("no key", request).await;
    let request = pb::TxnRequest {
        compare: vec![version("", CompareResult::Equal, 0)],
        success: vec![put_op("", "1")],
        failure: vec![],
    };
    case.txn("no key in compare and branch", request).await;
    let inner = txn_op(pb::TxnRequest { failure: vec![put_op("", "1")], ..Default::default() });
    case.txn("no key in a nested branch not taken", always(vec![inner])).await;
    let inner = txn_op(pb::TxnRequest {
        compare: vec![version("", CompareResult::Equal, 0)],
        ..Default::default()
    });
    case.txn("no key in a nested compare", always(vec![inner])).await;
}

async fn delete_all_and_put(case: &mut Case) {
    for key in ["a", "b", "c"] {
        case.set(key, key).await;
    }
    case.txn(
        "delete a range, put beside it",
        always(vec![delete_op("a", "c"), put_op("c", "new"), put_op("d", "1")]),
    )
    .await;
    case.all("after").await;
}
