//! An etcd that is obviously right: the oracle of the tests.
//!
//! It keeps every change ever made as plain data and answers each question by a walk over all of it. It shares
//! nothing with the engine but the words of commands and replies. It knows no disk, no batch, no thread and no
//! quota.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Pair;
use super::command::{
    Command, CommandReply, Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply,
    LeaseGrantReply, Put, PutReply, Range, RangeReply, Reply, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpReply, TxnReply,
};
use super::watch::{Event, EventKind, WatchCreate};
use crate::error::{Error, Invalid};
use crate::types::{KeyRange, KeyValue, LeaseId, RangeEnd, Revision};

const LEASE_TTL_SECONDS_MIN: i64 = 2;
const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// A visible change; of a delete only key and mod revision mean anything.
#[derive(Clone, Debug)]
struct Change {
    kind: EventKind,
    kv: KeyValue,
}

/// The live pairs at one revision.
pub(super) type State = BTreeMap<Bytes, KeyValue>;

/// Everything there is to know.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Every change ever, in order.
    history: Vec<Change>,
    pub(super) revision: Revision,
    /// The last compaction, if there was one.
    pub(super) compacted: Option<Revision>,
    /// Times to live, in seconds.
    pub(super) leases: BTreeMap<LeaseId, i64>,
}

impl Model {
    /// A fresh one at a revision; with a tag that is all that there is.
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            history: Vec::new(),
            revision,
            compacted: (revision.tag() > 0).then_some(revision),
            leases: BTreeMap::new(),
        }
    }

    /// Shows everything under another tag, and forgets the past.
    pub(super) fn retag(&mut self, tag: u16) {
        let move_to = |revision: &mut Revision| *revision = revision.with_tag(tag);
        for Change { kind, kv } in &mut self.history {
            move_to(&mut kv.mod_revision);
            if *kind == EventKind::Put {
                move_to(&mut kv.create_revision);
            }
        }
        move_to(&mut self.revision);
        self.compacted = Some(self.revision);
    }

    /// Whether a number is one that no client can have from here.
    pub(super) fn is_unknown(&self, number: i64) -> bool {
        let first = Revision(0).with_tag(self.revision.tag()).shown();
        first > 0 && number > 0 && !(first..=self.revision.shown() + 1).contains(&number)
    }

    fn gone(&self) -> Error {
        Error::Compacted { compacted: self.revision }
    }

    /// Whether a transaction has numbers of several members.
    fn is_divided(&self, txn: &Txn) -> bool {
        let mut numbers = Vec::new();
        collect_numbers(txn, &mut numbers);
        numbers.retain(|number| *number > 0);
        let tags: BTreeSet<i64> = numbers.iter().map(|number| number >> 41).collect();
        self.revision.tag() > 0 && tags.len() > 1
    }

    /// The last compaction as errors show it.
    pub(super) fn floor(&self) -> Revision {
        self.compacted.unwrap_or_default()
    }

    /// What lived after everything up to `revision`.
    pub(super) fn state_at(&self, revision: Revision) -> State {
        let mut state = State::new();
        for Change { kind, kv } in &self.history {
            if kv.mod_revision > revision {
                continue;
            }
            match kind {
                EventKind::Put => drop(state.insert(kv.key.clone(), kv.clone())),
                EventKind::Delete => drop(state.remove(&kv.key)),
            }
        }
        state
    }

    /// What lives, changes of a transaction under way included.
    fn state(&self) -> State {
        self.state_at(Revision(u64::MAX))
    }

    /// The keys that a lease holds.
    pub(super) fn keys_of(&self, id: LeaseId) -> Vec<Bytes> {
        self.state().into_values().filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }

    /// The revision that shows in headers now: one more as soon as a transaction has changed something.
    fn shown(&self) -> Revision {
        self.history.last().map_or(self.revision, |last| last.kv.mod_revision.max(self.revision))
    }

    /// Does a command, or refuses it and changes nothing.
    pub(super) fn execute(&mut self, command: &Command) -> Result<Reply<CommandReply>, Error> {
        let before = self.clone();
        match self.apply(command, &before) {
            Ok(body) => {
                self.revision = self.shown();
                Ok(Reply { revision: self.revision, body })
            }
            Err(error) => {
                *self = before;
                Err(error)
            }
        }
    }

    fn apply(&mut self, command: &Command, before: &Self) -> Result<CommandReply, Error> {
        match command {
            Command::Put(put) => self.put(put, before).map(CommandReply::Put),
            Command::DeleteRange(delete) => Ok(CommandReply::DeleteRange(self.delete(delete))),
            Command::Txn(txn) => {
                check_txn(txn)?;
                self.txn(txn, before.is_divided(txn), before).map(CommandReply::Txn)
            }
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_seconds } => self.grant(*id, *ttl_seconds),
            // Neither alarms nor users change anything that the model has.
            Command::Auth(_) => Ok(CommandReply::Auth),
            Command::SetLeader(_) | Command::Downgrade(_) => Ok(CommandReply::Setting),
            Command::Alarm { .. } => Ok(CommandReply::Alarm { was_on: false }),
            Command::LeaseRevoke { id } => {
                self.leases.remove(id).ok_or(Error::LeaseNotFound)?;
                for key in self.keys_of(*id) {
                    self.remove(key);
                }
                Ok(CommandReply::LeaseRevoke)
            }
        }
    }

    fn put(&mut self, put: &Put, before: &Self) -> Result<PutReply, Error> {
        if put.lease != LeaseId(0) && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && !before.state().contains_key(&put.key) {
            return Err(Invalid::KeyNotFound.into());
        }
        let former = self.state().remove(&put.key);
        let next = self.revision.next();
        let mut kv = KeyValue {
            key: put.key.clone(),
            create_revision: former.as_ref().map_or(next, |kv| kv.create_revision),
            mod_revision: next,
            version: former.as_ref().map_or(0, |kv| kv.version) + 1,
            value: put.value.clone(),
            lease: put.lease,
            media_type: put.media_type.clone(),
        };
        if put.ignore_value {
            kv.value = former.as_ref().map(|kv| kv.value.clone()).unwrap_or_default();
        }
        if put.ignore_lease {
            kv.lease = former.as_ref().map(|kv| kv.lease).unwrap_or_default();
        }
        self.history.push(Change { kind: EventKind::Put, kv });
        let former = former.as_ref().filter(|_| put.prev_kv);
        Ok(PutReply { prev_kv: former.map(Pair::from) })
    }

    fn remove(&mut self, key: Bytes) {
        let kv = KeyValue { key, mod_revision: self.revision.next(), ..KeyValue::default() };
        self.history.push(Change { kind: EventKind::Delete, kv });
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeReply {
        let doomed = self.state().into_values().filter(|kv| holds(&delete.range, &kv.key));
        let doomed: Vec<KeyValue> = doomed.collect();
        for kv in &doomed {
            self.remove(kv.key.clone());
        }
        let prev_kvs = doomed.iter().filter(|_| delete.prev_kv).map(Pair::from).collect();
        DeleteRangeReply { deleted: doomed.len() as u64, prev_kvs }
    }

    /// Compares look at the state before the whole transaction; operations see those before them.
    fn txn(&mut self, txn: &Txn, is_divided: bool, before: &Self) -> Result<TxnReply, Error> {
        let state = before.state();
        let is_false = |compare: &Compare| match compare.target {
            CompareTarget::CreateRevision(number) | CompareTarget::ModRevision(number) => {
                is_divided || before.is_unknown(number)
            }
            _ => is_divided,
        };
        let holds = |compare| !is_false(compare) && compare_holds(compare, &state);
        let succeeded = txn.compares.iter().all(holds);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::new();
        for op in ops {
            responses.push(self.txn_op(op, is_divided, before)?);
        }
        Ok(TxnReply { succeeded, responses })
    }

    fn txn_op(&mut self, op: &TxnOp, is_divided: bool, before: &Self) -> Result<TxnOpReply, Error> {
        Ok(match op {
            TxnOp::Put(put) => {
                let body = self.put(put, before)?;
                TxnOpReply::Put(Reply { revision: self.shown(), body })
            }
            TxnOp::DeleteRange(delete) => {
                let body = self.delete(delete);
                TxnOpReply::DeleteRange(Reply { revision: self.shown(), body })
            }
            TxnOp::Range(range) if range.revision < 0 => {
                return Err(Error::Compacted { compacted: self.floor() });
            }
            TxnOp::Range(range) => {
                before.range(range)?;
                let body = self.range_of(range);
                TxnOpReply::Range(Reply { revision: self.shown(), body })
            }
            TxnOp::Txn(txn) => {
                let body = self.txn(txn, is_divided, before)?;
                TxnOpReply::Txn(Reply { revision: Revision(0), body })
            }
        })
    }

    fn compact(&mut self, revision: i64) -> Result<CommandReply, Error> {
        if self.is_unknown(revision) {
            return Err(self.gone());
        }
        if revision <= self.compacted.map_or(-1, Revision::shown) {
            return Err(Error::Compacted { compacted: self.floor() });
        }
        if revision > self.revision.shown() {
            return Err(Error::FutureRevision);
        }
        self.compacted = Some(Revision(u64::try_from(revision).unwrap()));
        Ok(CommandReply::Compact)
    }

    fn grant(&mut self, id: LeaseId, ttl_seconds: i64) -> Result<CommandReply, Error> {
        if ttl_seconds > LEASE_TTL_SECONDS_MAX {
            return Err(Invalid::LeaseTtlTooLarge.into());
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl_seconds = ttl_seconds.max(LEASE_TTL_SECONDS_MIN);
        self.leases.insert(id, ttl_seconds);
        Ok(CommandReply::LeaseGrant(LeaseGrantReply { id, ttl_seconds }))
    }

    /// Answers a range, or says why it cannot.
    pub(super) fn range(&self, range: &Range) -> Result<RangeReply, Error> {
        if numbers_of(range).any(|number| self.is_unknown(number)) {
            return Err(self.gone());
        }
        if range.revision > self.revision.shown() {
            return Err(Error::FutureRevision);
        }
        if range.revision > 0 && range.revision < self.floor().shown() {
            return Err(Error::Compacted { compacted: self.floor() });
        }
        Ok(self.range_of(range))
    }

    fn range_of(&self, range: &Range) -> RangeReply {
        let state = match u64::try_from(range.revision) {
            Ok(revision) if revision > 0 => self.state_at(Revision(revision)),
            _ => self.state(),
        };
        let all = state.into_values().filter(|kv| holds(&range.range, &kv.key));
        let mut kvs: Vec<KeyValue> = all.collect();
        let count = kvs.len() as u64;
        if range.count_only {
            return RangeReply { kvs: Vec::new(), more: false, count };
        }
        let filter = range.filter;
        let within = |min: i64, is: Revision, max: i64| {
            (min == 0 || is.shown() >= min) && (max == 0 || is.shown() <= max)
        };
        kvs.retain(|kv| {
            within(filter.min_mod_revision, kv.mod_revision, filter.max_mod_revision)
                && within(
                    filter.min_create_revision,
                    kv.create_revision,
                    filter.max_create_revision,
                )
        });
        let limit = range.limit.unwrap_or(usize::MAX);
        if let Some(sort) = range.sort {
            let is_filtered = filter != super::command::Filter::default();
            if sort.order.is_none() && !is_filtered {
                kvs.truncate(limit.saturating_add(1));
            }
            let down = sort.order == Some(SortOrder::Descending);
            // Where the field is equal, etcd's order is any; ours is that of the keys.
            kvs.sort_by(|a, b| {
                let order = by(sort.target, a, b);
                (if down { order.reverse() } else { order }).then_with(|| a.key.cmp(&b.key))
            });
        }
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| {
                (kv.value, kv.lease) = (Bytes::new(), LeaseId::NONE);
            });
        }
        RangeReply { kvs: kvs.iter().map(Pair::from).collect(), more, count }
    }

    /// What a watcher is to be told of the revisions from `from` on, as far as they have happened.
    pub(super) fn events(&self, create: &WatchCreate, from: Revision) -> Vec<Event> {
        let mut events = Vec::new();
        for Change { kind, kv } in &self.history {
            let filtered = match kind {
                EventKind::Put => create.no_put,
                EventKind::Delete => create.no_delete,
            };
            if filtered || kv.mod_revision < from || !holds(&create.range, &kv.key) {
                continue;
            }
            let before = kv.mod_revision.prev();
            let prev = if create.prev_kv && before >= self.floor() {
                self.state_at(before).get(&kv.key).map(Pair::from)
            } else {
                None
            };
            events.push(Event { kind: *kind, pair: kv.into(), prev });
        }
        events
    }
}

/// The revisions that a range names. Bounds above all that can be revisions are none.
fn numbers_of(range: &Range) -> impl Iterator<Item = i64> {
    let filter = range.filter;
    let mod_bounds = [filter.min_mod_revision, filter.max_mod_revision];
    let bounds =
        mod_bounds.into_iter().chain([filter.min_create_revision, filter.max_create_revision]);
    bounds.filter(|bound| *bound < 1 << 53).chain([range.revision])
}

/// The revisions that a transaction names.
fn collect_numbers(txn: &Txn, numbers: &mut Vec<i64>) {
    for compare in &txn.compares {
        if let CompareTarget::CreateRevision(number) | CompareTarget::ModRevision(number) =
            compare.target
        {
            numbers.push(number);
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(range) => numbers.extend(numbers_of(range)),
            TxnOp::Txn(txn) => collect_numbers(txn, numbers),
            _ => {}
        }
    }
}

fn by(target: SortTarget, a: &KeyValue, b: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::CreateRevision => a.create_revision.cmp(&b.create_revision),
        SortTarget::ModRevision => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

/// Whether a key is in a range. `KeyRange::contains` is part of what is tested.
fn holds(range: &KeyRange, key: &Bytes) -> bool {
    match &range.end {
        RangeEnd::Single => *key == range.start,
        RangeEnd::Before(end) => *key >= range.start && *key < *end,
        RangeEnd::Unbounded => *key >= range.start,
    }
}

fn compare_holds(compare: &Compare, state: &State) -> bool {
    let kvs: Vec<&KeyValue> = state.values().filter(|kv| holds(&compare.range, &kv.key)).collect();
    let missing = KeyValue::default();
    match (&compare.target, kvs.as_slice()) {
        (CompareTarget::Value(_), []) => false,
        (_, []) => compare_one(compare, &missing),
        (_, kvs) => kvs.iter().all(|kv| compare_one(compare, kv)),
    }
}

fn compare_one(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => i64::try_from(kv.version).unwrap().cmp(version),
        CompareTarget::CreateRevision(revision) => kv.create_revision.shown().cmp(revision),
        CompareTarget::ModRevision(revision) => kv.mod_revision.shown().cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.0.cmp(lease),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}

/// The most operations of a transaction (etcd's default of `--max-txn-ops`).
pub(super) const TXN_OPS_MAX: usize = 128;

/// Checks the form of a transaction.
pub(super) fn check_txn(txn: &Txn) -> Result<(), Invalid> {
    if width(txn) > TXN_OPS_MAX {
        return Err(Invalid::TooManyOps);
    }
    let mut writes = Vec::new();
    collect_writes(txn, &Vec::new(), &mut writes);
    let clash = |(i, a): (usize, &Write)| writes[..i].iter().any(|b| clashes(b, a));
    if writes.iter().enumerate().any(clash) { Err(Invalid::DuplicateKey) } else { Ok(()) }
}

/// Its longest list and that of the widest transaction in it, and so on.
fn width(txn: &Txn) -> usize {
    let own = txn.compares.len().max(txn.success.len()).max(txn.failure.len());
    let nested = txn.success.iter().chain(&txn.failure).map(|op| match op {
        TxnOp::Txn(txn) => width(txn),
        _ => 0,
    });
    own + nested.max().unwrap_or(0)
}

/// A write somewhere in a transaction.
struct Write {
    /// Down to it from the outermost transaction: which branch, and which operation there.
    path: Vec<(bool, usize)>,
    /// What it puts, or else deletes.
    put: Option<Bytes>,
    delete: Option<KeyRange>,
}

fn collect_writes(txn: &Txn, path: &[(bool, usize)], writes: &mut Vec<Write>) {
    for (branch, ops) in [(true, &txn.success), (false, &txn.failure)] {
        for (i, op) in ops.iter().enumerate() {
            let path = [path, &[(branch, i)]].concat();
            match op {
                TxnOp::Range(_) => {}
                TxnOp::Put(put) => {
                    writes.push(Write { path, put: Some(put.key.clone()), delete: None });
                }
                TxnOp::DeleteRange(delete) => {
                    writes.push(Write { path, put: None, delete: Some(delete.range.clone()) });
                }
                TxnOp::Txn(txn) => collect_writes(txn, &path, writes),
            }
        }
    }
}

/// Whether two writes, `a` standing before `b`, may not both be there.
fn clashes(a: &Write, b: &Write) -> bool {
    let common = a.path.iter().zip(&b.path).take_while(|(a, b)| a == b).count();
    if a.path[common].0 != b.path[common].0 {
        return false; // Only one of them is ever done.
    }
    match (&a.put, &a.delete, &b.put, &b.delete) {
        (Some(a), _, Some(b), _) => a == b,
        // etcd does not look at deletes without an end.
        (_, Some(KeyRange { end: RangeEnd::Unbounded, .. }), _, _)
        | (_, _, _, Some(KeyRange { end: RangeEnd::Unbounded, .. })) => false,
        (_, Some(range), Some(key), _) => holds(range, key),
        // A later delete is let through if both are nested more deeply than the list that they share.
        (Some(key), _, _, Some(range)) => {
            let both_nested = a.path.len() > common + 1 && b.path.len() > common + 1;
            holds(range, key) && !both_nested
        }
        _ => false,
    }
}
