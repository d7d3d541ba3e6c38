//! Transactions: what is refused before anything is done, and which branch is taken.
//!
//! Sources: etcd `server/etcdserver/api/v3rpc/key.go` (checks of the request), `server/etcdserver/txn/txn.go`
//! (compares, checks of the chosen branch).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::Failure;
use super::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Put, Range, RangeReply, Reply, Txn, TxnOp,
    TxnOpReply, TxnReply,
};
use super::lease::Lessor;
use super::mvcc::Reader;
use super::pair::Fields;
use super::tags;
use crate::error::{Error, Invalid};
use crate::types::{KeyRange, RangeEnd};

/// The keys that a list of operations writes, for the check that none is written twice.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Txn {
    /// Checks what can be checked without the store: the number of operations, and that no key is written twice.
    /// Both branches are checked, whichever will be done.
    pub fn check(&self, ops_max: usize) -> Result<(), Invalid> {
        self.check_ops(ops_max)?;
        self.check_writes().map(|_| ())
    }

    /// A nested transaction gets what its parent leaves of the budget.
    fn check_ops(&self, ops_max: usize) -> Result<(), Invalid> {
        let used = self.compares.len().max(self.success.len()).max(self.failure.len());
        let left = ops_max.checked_sub(used).ok_or(Invalid::TooManyOps)?;
        let nested = self.success.iter().chain(&self.failure);
        nested
            .filter_map(|op| if let TxnOp::Txn(txn) = op { Some(txn) } else { None })
            .try_for_each(|txn| txn.check_ops(left))
    }

    /// What both branches may write. They exclude each other, so both may write the same key.
    fn check_writes(&self) -> Result<Writes, Invalid> {
        let mut writes = writes_of(&self.success)?;
        let failure = writes_of(&self.failure)?;
        writes.puts.extend(failure.puts);
        writes.deletes.extend(failure.deletes);
        Ok(writes)
    }
}

/// What a list of operations writes. Puts must be of different keys, and of none that is deleted here or in an
/// earlier nested transaction; deletes may overlap. As in etcd, a nested delete may remove what an earlier nested
/// transaction has put.
fn writes_of(ops: &[TxnOp]) -> Result<Writes, Invalid> {
    let mut all = Writes::default();
    for op in ops {
        if let TxnOp::DeleteRange(delete) = op {
            all.deletes.push(delete.range.clone());
        }
    }
    for op in ops {
        let TxnOp::Txn(txn) = op else { continue };
        let nested = txn.check_writes()?;
        if nested.puts.iter().any(|key| all.puts.contains(key) || deletes(&all.deletes, key)) {
            return Err(Invalid::DuplicateKey);
        }
        all.puts.extend(nested.puts);
        all.deletes.extend(nested.deletes);
    }
    for op in ops {
        let TxnOp::Put(put) = op else { continue };
        if deletes(&all.deletes, &put.key) || !all.puts.insert(put.key.clone()) {
            return Err(Invalid::DuplicateKey);
        }
    }
    Ok(all)
}

/// As in etcd, a delete without an end is not looked at.
fn deletes(ranges: &[KeyRange], key: &[u8]) -> bool {
    ranges.iter().any(|range| range.end != RangeEnd::Unbounded && range.contains(key))
}

/// The branches that a transaction takes, nested ones included, decided before anything is done.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) succeeded: bool,
    /// One per nested transaction of the chosen branch, in order.
    pub(super) nested: Vec<Self>,
}

/// Decides every compare, on the state before the transaction.
pub(super) fn choose(txn: &Txn, reader: &Reader<'_>) -> Result<Path, Failure> {
    let is_divided = txn.names(reader.revision().tag()).is_divided();
    choose_branch(txn, is_divided, reader)
}

/// No compare of a divided transaction holds.
fn choose_branch(txn: &Txn, is_divided: bool, reader: &Reader<'_>) -> Result<Path, Failure> {
    let mut succeeded = !is_divided || txn.compares.is_empty();
    for compare in &txn.compares {
        if !succeeded || !holds(compare, reader)? {
            succeeded = false;
            break;
        }
    }
    let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
        TxnOp::Txn(txn) => Some(choose_branch(txn, is_divided, reader)),
        _ => None,
    });
    Ok(Path { succeeded, nested: nested.collect::<Result<_, _>>()? })
}

/// The operations of the chosen branch.
pub(super) fn branch(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Whether a compare holds for every key of its range; for a key that does not exist if there is none.
fn holds(compare: &Compare, reader: &Reader<'_>) -> Result<bool, Failure> {
    let revision = reader.revision();
    if compare.named().is_some_and(|number| tags::is_unknown(number, revision)) {
        return Ok(false);
    }
    let is_value = matches!(compare.target, CompareTarget::Value(_));
    let (mut any, mut all) = (false, true);
    reader.for_each(&compare.range, revision, !is_value, |pair| {
        any = true;
        all = matches(compare, &pair);
        if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if any {
        return Ok(all);
    }
    // A key that does not exist has no value, so that no compare of one can hold; all else is zero.
    Ok(!is_value && matches(compare, &Fields::default()))
}

fn matches(compare: &Compare, pair: &Fields<'_>) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => {
            i64::try_from(pair.version).unwrap_or(i64::MAX).cmp(version)
        }
        CompareTarget::CreateRevision(revision) => pair.create_revision.shown().cmp(revision),
        CompareTarget::ModRevision(revision) => pair.mod_revision.shown().cmp(revision),
        CompareTarget::Value(value) => pair.value.cmp(value.as_ref()),
        CompareTarget::Lease(lease) => pair.lease.0.cmp(lease),
    };
    match compare.result {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}

/// Checks the operations that will be done, so that none can fail once the first is.
pub(super) fn check_branch(
    txn: &Txn,
    path: &Path,
    reader: &Reader<'_>,
    lessor: &Lessor,
) -> Result<(), Failure> {
    let mut nested = path.nested.iter();
    for op in branch(txn, path.succeeded) {
        match op {
            TxnOp::Range(range) => check_range(range, reader)?,
            TxnOp::Put(put) => check_put(put, reader, lessor)?,
            TxnOp::DeleteRange(DeleteRange { .. }) => {}
            TxnOp::Txn(txn) => {
                let path = nested.next().expect("one path per nested transaction");
                check_branch(txn, path, reader, lessor)?;
            }
        }
    }
    Ok(())
}

/// Checks what a put refers to: its lease, and the key whose value or lease it keeps.
pub(super) fn check_put(put: &Put, reader: &Reader<'_>, lessor: &Lessor) -> Result<(), Failure> {
    if put.lease.is_some() && !lessor.exists(put.lease) {
        return Err(Error::LeaseNotFound.into());
    }
    if (put.ignore_value || put.ignore_lease) && !reader.exists(&put.key)? {
        return Err(Invalid::KeyNotFound.into());
    }
    Ok(())
}

/// Within a transaction a negative revision is a compacted one.
fn check_range(range: &Range, reader: &Reader<'_>) -> Result<(), Failure> {
    if range.revision < 0 {
        return Err(Error::Compacted { compacted: reader.compacted() }.into());
    }
    reader.check(range)?;
    Ok(())
}

/// Does a transaction that only reads, at the revision of the reader.
pub fn read_only(txn: &Txn, reader: &Reader<'_>) -> Result<Reply<TxnReply>, Failure> {
    assert!(txn.is_read_only(), "{txn:?}");
    let path = choose(txn, reader)?;
    let ranges = branch(txn, path.succeeded).iter().filter_map(|op| match op {
        TxnOp::Range(range) => Some(range),
        _ => None,
    });
    ranges.clone().try_for_each(|range| check_range(range, reader))?;
    let revision = reader.revision();
    let responses = ranges.map(|range| {
        let body: RangeReply = reader.range(range)?;
        Ok(TxnOpReply::Range(Reply { revision, body }))
    });
    let responses = responses.collect::<Result<_, Failure>>()?;
    Ok(Reply { revision, body: TxnReply { succeeded: path.succeeded, responses } })
}

#[cfg(test)]
#[path = "txn_tests.rs"]
mod tests;
