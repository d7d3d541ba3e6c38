use pb::range_request as rr;
use pb::request_op::Request;

use super::*;
use crate::types::RangeEnd;

fn range_request(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), ..pb::RangeRequest::default() }
}

fn put_request(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), ..pb::PutRequest::default() }
}

#[test]
fn a_range_is_checked_for_its_key_first() {
    let broken_sort = pb::RangeRequest { sort_order: 9, ..range_request("") };
    assert_eq!(range(broken_sort), Err(Invalid::EmptyKey));
    let broken_order = pb::RangeRequest { sort_order: 3, ..range_request("a") };
    assert_eq!(range(broken_order), Err(Invalid::SortOption));
    let broken_target = pb::RangeRequest { sort_target: -1, ..range_request("a") };
    assert_eq!(range(broken_target), Err(Invalid::SortOption));
}

#[test]
fn only_positive_limits_are_limits() {
    for (asked, expected) in [(0, None), (-5, None), (i64::MIN, None), (7, Some(7))] {
        let request = pb::RangeRequest { limit: asked, ..range_request("a") };
        assert_eq!(range(request).map(|range| range.limit), Ok(expected), "limit {asked}");
    }
}

#[test]
fn key_order_is_no_order() {
    let sorted = |order: rr::SortOrder, target: rr::SortTarget| {
        let request = pb::RangeRequest {
            sort_order: order.into(),
            sort_target: target.into(),
            ..range_request("a")
        };
        range(request).expect("a valid request").sort
    };
    assert_eq!(sorted(rr::SortOrder::None, rr::SortTarget::Key), None);
    assert_eq!(sorted(rr::SortOrder::Ascend, rr::SortTarget::Key), None);
    let descending = Sort { target: SortTarget::Key, order: Some(SortOrder::Descending) };
    assert_eq!(sorted(rr::SortOrder::Descend, rr::SortTarget::Key), Some(descending));
    let unordered = Sort { target: SortTarget::ModRevision, order: None };
    assert_eq!(sorted(rr::SortOrder::None, rr::SortTarget::Mod), Some(unordered));
}

#[test]
fn range_ends_are_read_as_etcd_means_them() {
    let end = |end: &'static [u8]| {
        let request = pb::RangeRequest { range_end: Bytes::from_static(end), ..range_request("a") };
        range(request).expect("a valid request").range.end
    };
    assert_eq!(end(b""), RangeEnd::Single);
    assert_eq!(end(b"\0"), RangeEnd::Unbounded);
    assert_eq!(end(b"b"), RangeEnd::Before("b".into()));
}

#[test]
fn a_put_is_checked_in_order() {
    let all_wrong = pb::PutRequest {
        value: "v".into(),
        ignore_value: true,
        lease: 1,
        ignore_lease: true,
        ..put_request("")
    };
    assert_eq!(put(all_wrong.clone()), Err(Invalid::EmptyKey));
    let with_key = pb::PutRequest { key: "k".into(), ..all_wrong };
    assert_eq!(put(with_key.clone()), Err(Invalid::ValueProvided));
    let without_value = pb::PutRequest { value: Bytes::new(), ..with_key };
    assert_eq!(put(without_value.clone()), Err(Invalid::LeaseProvided));
    let good = put(pb::PutRequest { lease: 0, ..without_value }).expect("a valid request");
    assert!(good.ignore_value && good.ignore_lease && good.lease == LeaseId::NONE);
}

#[test]
fn a_delete_needs_a_key() {
    assert_eq!(delete_range(pb::DeleteRangeRequest::default()), Err(Invalid::EmptyKey));
}

fn op(request: Option<Request>) -> pb::RequestOp {
    pb::RequestOp { request }
}

#[test]
fn a_transaction_is_checked_from_compares_to_failure() {
    let compare = |key: &'static str| pb::Compare { key: key.into(), ..pb::Compare::default() };
    let empty_op = || vec![op(None)];
    let empty_put = || vec![op(Some(Request::RequestPut(put_request(""))))];
    let check =
        |compare, success, failure| txn(pb::TxnRequest { compare, success, failure }, 4).err();
    assert_eq!(check(vec![], vec![], vec![]), None);
    assert_eq!(check(vec![compare("")], empty_op(), vec![]), Some(Invalid::EmptyKey));
    assert_eq!(check(vec![compare("a")], empty_op(), empty_put()), Some(Invalid::KeyNotFound));
    assert_eq!(check(vec![], empty_put(), empty_op()), Some(Invalid::EmptyKey));
    assert_eq!(check(vec![], vec![], empty_op()), Some(Invalid::KeyNotFound));
    assert_eq!(check(vec![compare(""); 5], empty_op(), vec![]), Some(Invalid::TooManyOps));
    let nested = pb::TxnRequest { failure: empty_op(), ..pb::TxnRequest::default() };
    assert_eq!(
        check(vec![], vec![op(Some(Request::RequestTxn(nested)))], vec![]),
        Some(Invalid::KeyNotFound)
    );
}

fn compared(
    target: i32,
    result: i32,
    union: Option<pb::compare::TargetUnion>,
) -> (CompareResult, CompareTarget) {
    let request = pb::Compare {
        key: "k".into(),
        target,
        result,
        target_union: union,
        ..pb::Compare::default()
    };
    let parsed = compare(request).expect("a valid compare");
    (parsed.result, parsed.target)
}

#[test]
fn a_union_of_another_kind_is_the_zero_value() {
    use pb::compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let equal = R::Equal as i32;
    let value = || Some(U::Value("v".into()));
    assert_eq!(compared(T::Value as i32, equal, value()).1, CompareTarget::Value("v".into()));
    assert_eq!(
        compared(T::Value as i32, equal, Some(U::Version(3))).1,
        CompareTarget::Value(Bytes::new())
    );
    assert_eq!(compared(T::Version as i32, equal, value()).1, CompareTarget::Version(0));
    assert_eq!(compared(T::Create as i32, equal, None).1, CompareTarget::CreateRevision(0));
    assert_eq!(
        compared(T::Mod as i32, equal, Some(U::ModRevision(8))).1,
        CompareTarget::ModRevision(8)
    );
    assert_eq!(compared(T::Lease as i32, equal, Some(U::Lease(-2))).1, CompareTarget::Lease(-2));
}

#[test]
fn unknown_compares_hold_when_they_do_in_etcd() {
    use pb::compare::{CompareResult as R, CompareTarget as T};
    const UNKNOWN: i32 = 99;
    assert_eq!(compared(T::Mod as i32, UNKNOWN, None), ALWAYS);
    assert_eq!(compared(UNKNOWN, UNKNOWN, None), ALWAYS);
    assert_eq!(compared(UNKNOWN, R::Equal as i32, None), ALWAYS);
    for other in [R::NotEqual, R::Greater, R::Less] {
        assert_eq!(compared(UNKNOWN, other as i32, None), NEVER);
    }
    let exists = (CompareResult::Greater, CompareTarget::Version(0));
    assert_eq!(compared(T::Value as i32, UNKNOWN, None), exists);
}

#[test]
fn a_watch_without_a_key_starts_at_the_smallest() {
    let from_all =
        pb::WatchCreateRequest { range_end: Bytes::from_static(b"\0"), ..Default::default() };
    let create = watch_create(&from_all);
    assert_eq!(
        create.range,
        KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded }
    );
}

#[test]
fn unknown_watch_filters_are_ignored() {
    let filtered = |filters: Vec<i32>| {
        let create = watch_create(&pb::WatchCreateRequest { filters, ..Default::default() });
        (create.no_put, create.no_delete)
    };
    assert_eq!(filtered(vec![]), (false, false));
    assert_eq!(filtered(vec![0, 7]), (true, false));
    assert_eq!(filtered(vec![1, 1]), (false, true));
}

#[test]
fn steps_have_headers_of_nothing_but_their_revision() {
    let step = TxnOpReply::Put(crate::engine::command::Reply {
        revision: Revision(7),
        body: PutReply::default(),
    });
    let response = txn_op_response(step).response;
    let Some(pb::response_op::Response::ResponsePut(put)) = response else {
        panic!("{response:?}")
    };
    assert_eq!(put.header, Some(pb::ResponseHeader { revision: 7, ..Default::default() }));
}
