use super::*;

fn put(key: &'static str) -> TxnOp {
    TxnOp::Put(Put { key: key.into(), ..Put::default() })
}

fn delete(key: &'static str, end: &'static str) -> TxnOp {
    TxnOp::DeleteRange(DeleteRange {
        range: KeyRange::from_request(key.into(), end.into()),
        prev_kv: false,
    })
}

fn txn(success: Vec<TxnOp>, failure: Vec<TxnOp>) -> Txn {
    Txn { compares: Vec::new(), success, failure }
}

fn nested(success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnOp {
    TxnOp::Txn(txn(success, failure))
}

#[test]
fn no_key_is_written_twice() {
    let fine = [
        txn(vec![put("a"), put("b")], vec![put("a")]),
        txn(vec![delete("a", "c"), delete("b", "d")], vec![]),
        txn(vec![delete("a", "c"), put("c")], vec![]),
        txn(vec![nested(vec![put("a")], vec![put("a")])], vec![]),
        txn(vec![nested(vec![put("a")], vec![delete("a", "")])], vec![]),
        txn(
            vec![nested(vec![delete("a", "")], vec![]), nested(vec![delete("a", "")], vec![])],
            vec![],
        ),
        txn(vec![nested(vec![put("a")], vec![]), nested(vec![delete("a", "b")], vec![])], vec![]),
        txn(vec![delete("a", "\0"), put("b")], vec![]),
    ];
    for txn in fine {
        assert_eq!(txn.check(128), Ok(()), "{txn:?}");
    }
    let refused = [
        txn(vec![put("a"), put("a")], vec![]),
        txn(vec![], vec![put("a"), put("a")]),
        txn(vec![put("b"), delete("a", "c")], vec![]),
        txn(vec![delete("a", "c"), put("b")], vec![]),
        txn(vec![put("a"), nested(vec![put("a")], vec![])], vec![]),
        txn(vec![put("a"), nested(vec![], vec![delete("a", "")])], vec![]),
        txn(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])], vec![]),
        txn(vec![nested(vec![delete("a", "b")], vec![]), nested(vec![put("a")], vec![])], vec![]),
        txn(vec![delete("a", "b"), nested(vec![put("a")], vec![])], vec![]),
        txn(vec![nested(vec![nested(vec![put("a"), put("a")], vec![])], vec![])], vec![]),
    ];
    for txn in refused {
        assert_eq!(txn.check(128), Err(Invalid::DuplicateKey), "{txn:?}");
    }
}

#[test]
fn nested_transactions_share_the_budget() {
    let inner = |n: usize| nested((0..n).map(|_| delete("a", "")).collect(), vec![]);
    assert_eq!(txn(vec![inner(2), inner(2)], vec![]).check(4), Ok(()));
    assert_eq!(txn(vec![inner(2), inner(3)], vec![]).check(4), Err(Invalid::TooManyOps));
    assert_eq!(txn(vec![nested(vec![inner(1)], vec![])], vec![]).check(3), Ok(()));
    assert_eq!(
        txn(vec![nested(vec![inner(2)], vec![])], vec![]).check(3),
        Err(Invalid::TooManyOps)
    );
}
