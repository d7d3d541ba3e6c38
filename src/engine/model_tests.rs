//! Random stories on the engine and on the model, which must tell the same.
//!
//! `PROPTEST_CASES` asks for more than the usual 64.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;

use super::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Filter, Put, Range, Sort,
    SortOrder, SortTarget, Txn, TxnOp,
};
use super::model::{Model, TXN_OPS_MAX};
use super::watch::{Event, Stream, WatchCreate, WatchRefusal, WatchReply};
use super::{Failure, Options, Writer, txn};
use crate::error::Error;
use crate::storage::schema::Identity;
use crate::storage::{Memory, Store};
use crate::time::Now;
use crate::types::{ClusterId, KeyRange, KeyValue, LeaseId, MediaType, MemberId, Revision};

/// Few cases by default: this runs with every build.
const CASES: u32 = 64;
const STREAMS: usize = 2;
const NOW: Now = Now { wall_millis: 1_000, monotonic_millis: 0 };

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Execute(Command),
    Commit,
    /// Gives up a slice of space.
    Reclaim,
    /// Rewrites the log without what has been given up.
    Sweep,
    Restart,
    Read(Range),
    ReadTxn(Txn),
    /// A reader is held over some steps, and must not notice them.
    Hold(Vec<Self>),
    Watch(usize, WatchCreate),
    Cancel(usize, i64),
    Poll(usize),
    Progress(usize),
    /// The store takes another tag, maybe in the middle of a sweep.
    Retag(u16, bool),
}

fn key() -> impl Strategy<Value = Bytes> {
    select(vec!["a", "ab", "b", "c", "c\0"]).prop_map(Bytes::from)
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    let end = select(vec!["", "\0", "a", "b", "c", "d"]).prop_map(Bytes::from);
    prop_oneof![
        2 => key().prop_map(KeyRange::single),
        2 => (key(), end).prop_map(|(start, end)| KeyRange::from_request(start, end)),
        1 => Just(KeyRange::all()),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    select(vec!["", "x", "y", "zz"]).prop_map(Bytes::from)
}

/// A lease or none.
fn lease() -> impl Strategy<Value = LeaseId> {
    select(vec![0, 0, 1, 2, -3]).prop_map(LeaseId)
}

/// A revision that may be anything: kept, compacted, future or nonsense.
fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0..30_i64, 1 => Just(-1), 2 => Just(0), 1 => Just(i64::MAX)]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

fn put() -> impl Strategy<Value = Put> {
    (key(), value(), lease(), any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| Put {
            key,
            value: if ignore_value { Bytes::new() } else { value },
            lease: if ignore_lease { LeaseId::NONE } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
            media_type: MediaType::NONE,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (key_range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRange { range, prev_kv })
}

fn sort() -> impl Strategy<Value = Sort> {
    let targets = vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::CreateRevision,
        SortTarget::ModRevision,
        SortTarget::Value,
    ];
    let orders = vec![None, Some(SortOrder::Ascending), Some(SortOrder::Descending)];
    (select(targets), select(orders)).prop_map(|(target, order)| Sort { target, order })
}

fn filter() -> impl Strategy<Value = Filter> {
    let bound = || prop_oneof![6 => Just(0_i64), 3 => 1..20_i64, 1 => Just(-1)];
    (bound(), bound(), bound(), bound()).prop_map(|(a, b, c, d)| Filter {
        min_mod_revision: a,
        max_mod_revision: b,
        min_create_revision: c,
        max_create_revision: d,
    })
}

fn range() -> impl Strategy<Value = Range> {
    let limit = prop::option::of(1..4_usize);
    let sort = prop::option::of(sort());
    let filter = prop_oneof![Just(Filter::default()), filter()];
    (key_range(), limit, revision(), sort, rarely(), rarely(), filter).prop_map(
        |(range, limit, revision, sort, keys_only, count_only, filter)| Range {
            range,
            limit,
            revision,
            sort,
            keys_only,
            count_only,
            filter,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = select(vec![
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ]);
    let target = prop_oneof![
        (0..3_i64).prop_map(CompareTarget::Version),
        revision().prop_map(CompareTarget::CreateRevision),
        revision().prop_map(CompareTarget::ModRevision),
        value().prop_map(CompareTarget::Value),
        lease().prop_map(|lease| CompareTarget::Lease(lease.0)),
    ];
    (key_range(), result, target).prop_map(|(range, result, target)| Compare {
        range,
        result,
        target,
    })
}

fn any_txn(op: impl Strategy<Value = TxnOp> + Clone) -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..2), ops(), ops())
        .prop_map(|(compares, success, failure)| Txn { compares, success, failure })
}

fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => put().prop_map(TxnOp::Put),
        2 => delete().prop_map(TxnOp::DeleteRange),
        2 => (range(), any::<bool>()).prop_map(|(range, now)| {
            TxnOp::Range(if now { Range { revision: 0, ..range } } else { range })
        }),
    ];
    let op = leaf.prop_recursive(2, 8, 3, |inner| any_txn(inner).prop_map(TxnOp::Txn));
    any_txn(op.boxed())
}

fn read_txn() -> impl Strategy<Value = Txn> {
    any_txn(range().prop_map(TxnOp::Range).boxed())
}

fn command() -> impl Strategy<Value = Command> {
    let id = || select(vec![1, 2, -3]).prop_map(LeaseId);
    let ttl = select(vec![-1, 1, 60, 9_000_000_001_i64]);
    prop_oneof![
        6 => put().prop_map(Command::Put),
        3 => delete().prop_map(Command::DeleteRange),
        4 => txn().prop_map(Command::Txn),
        1 => revision().prop_map(|revision| Command::Compact { revision }),
        2 => (id(), ttl).prop_map(|(id, ttl_seconds)| Command::LeaseGrant { id, ttl_seconds }),
        1 => id().prop_map(|id| Command::LeaseRevoke { id }),
    ]
}

fn watch_create() -> impl Strategy<Value = WatchCreate> {
    let id = prop_oneof![3 => Just(0), 1 => select(vec![1, 7, -2_i64])];
    (key_range(), revision(), id, any::<bool>(), rarely(), rarely()).prop_map(
        |(range, start_revision, id, prev_kv, no_put, no_delete)| WatchCreate {
            range,
            start_revision,
            id,
            prev_kv,
            no_put,
            no_delete,
            progress_notify: false,
            fragment: false,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || 0..STREAMS;
    let id = select(vec![0, 1, 2, 7, -2_i64]);
    let step = prop_oneof![
        20 => command().prop_map(Step::Execute),
        8 => Just(Step::Commit),
        3 => Just(Step::Reclaim),
        2 => Just(Step::Sweep),
        6 => range().prop_map(Step::Read),
        2 => read_txn().prop_map(Step::ReadTxn),
        4 => (stream(), watch_create()).prop_map(|(stream, create)| Step::Watch(stream, create)),
        1 => (stream(), id).prop_map(|(stream, id)| Step::Cancel(stream, id)),
        4 => stream().prop_map(Step::Poll),
        2 => stream().prop_map(Step::Progress),
    ];
    let inner = prop::collection::vec(step.clone(), 1..12);
    prop_oneof![30 => step, 1 => Just(Step::Restart), 2 => inner.prop_map(Step::Hold)]
}

/// As [`step`], with changes of the tag.
fn step_of_a_peer() -> impl Strategy<Value = Step> {
    let retag = (select(vec![1, 2, 9, 4095_u16]), any::<bool>());
    prop_oneof![20 => step(), 1 => retag.prop_map(|(tag, sweeps)| Step::Retag(tag, sweeps))]
}

/// The number that a story means by a small one, where revisions have tags: mostly one of this member, sometimes of
/// another or of nobody.
#[derive(Clone, Copy)]
struct Numbers {
    /// What the story calls zero.
    zero: Revision,
}

impl Numbers {
    fn of(self, number: i64) -> i64 {
        let own = |number: i64| self.zero.shown() + number;
        match number {
            _ if self.zero.tag() == 0 => number,
            i64::MIN..=0 | i64::MAX => number,
            20 => Revision(own(20).cast_unsigned()).with_tag(77).shown(),
            21 => 3,
            22 => own(1000),
            number => own(number),
        }
    }

    fn range(self, range: &Range) -> Range {
        let Filter { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision } =
            range.filter;
        let filter = Filter {
            min_mod_revision: self.of(min_mod_revision),
            max_mod_revision: self.of(max_mod_revision),
            min_create_revision: self.of(min_create_revision),
            max_create_revision: self.of(max_create_revision),
        };
        Range { revision: self.of(range.revision), filter, ..range.clone() }
    }

    fn compare(self, compare: &Compare) -> Compare {
        let target = match &compare.target {
            CompareTarget::CreateRevision(number) => {
                CompareTarget::CreateRevision(self.of(*number))
            }
            CompareTarget::ModRevision(number) => CompareTarget::ModRevision(self.of(*number)),
            other => other.clone(),
        };
        Compare { target, ..compare.clone() }
    }

    fn txn(self, txn: &Txn) -> Txn {
        let op = |op: &TxnOp| match op {
            TxnOp::Range(range) => TxnOp::Range(self.range(range)),
            TxnOp::Txn(txn) => TxnOp::Txn(self.txn(txn)),
            other => other.clone(),
        };
        Txn {
            compares: txn.compares.iter().map(|compare| self.compare(compare)).collect(),
            success: txn.success.iter().map(op).collect(),
            failure: txn.failure.iter().map(op).collect(),
        }
    }

    fn command(self, command: &Command) -> Command {
        match command {
            Command::Txn(txn) => Command::Txn(self.txn(txn)),
            Command::Compact { revision } => Command::Compact { revision: self.of(*revision) },
            other => other.clone(),
        }
    }

    fn watch(self, create: &WatchCreate) -> WatchCreate {
        WatchCreate { start_revision: self.of(create.start_revision), ..create.clone() }
    }
}

/// What the model says of a watcher.
struct Watching {
    create: WatchCreate,
    /// The first revision that it has not been told.
    next: Revision,
    /// Whether it has to read the log, so that a compaction may end it.
    behind: bool,
}

/// A watch stream and what its client must have been told.
struct Client {
    stream: Stream,
    watchers: BTreeMap<i64, Watching>,
    /// Ids of watchers that compaction has ended, which stay taken until they are cancelled.
    ended: BTreeSet<i64>,
    next_id: i64,
    /// Replies that do not come from changes, in order.
    expected: Vec<WatchReply>,
    /// Watchers that a change of the tag has ended, which are to be told so, and at which revision.
    retagged: (Vec<i64>, Revision),
    progress_asked: bool,
}

impl Client {
    fn new(writer: &Writer) -> Self {
        let (hub, mvcc) = (Arc::clone(writer.hub()), Arc::clone(writer.mvcc()));
        Self {
            stream: Stream::new(hub, mvcc, Box::new(|| ())),
            watchers: BTreeMap::new(),
            ended: BTreeSet::new(),
            next_id: 0,
            expected: Vec::new(),
            retagged: (Vec::new(), Revision(0)),
            progress_asked: false,
        }
    }

    fn watch(&mut self, create: &WatchCreate, shown: &Model) {
        self.expect_retagged();
        self.stream.create(create.clone());
        let now = shown.revision;
        let reply = match self.id_for(create) {
            Ok(id) if shown.is_unknown(create.start_revision) => {
                self.ended.insert(id);
                self.expected.push(WatchReply::Created { id, revision: now });
                WatchReply::Compacted { id, compacted: now }
            }
            Ok(id) => {
                let next = match u64::try_from(create.start_revision) {
                    Ok(start) if start > 0 => Revision(start),
                    _ => now.next(),
                };
                let behind = next <= now;
                self.watchers.insert(id, Watching { create: create.clone(), next, behind });
                WatchReply::Created { id, revision: now }
            }
            Err(reason) => WatchReply::Refused { reason, revision: now },
        };
        self.expected.push(reply);
    }

    /// The member has taken another tag: all watchers end, whatever they are owed.
    fn retag(&mut self, now: Revision) {
        for (id, _) in std::mem::take(&mut self.watchers) {
            self.ended.insert(id);
            self.retagged.0.push(id);
        }
        // After several changes at once the last one counts.
        self.retagged.1 = now;
        self.progress_asked = false;
    }

    fn expect_retagged(&mut self) {
        let compacted = self.retagged.1;
        let ids = self.retagged.0.drain(..);
        self.expected.extend(ids.map(|id| WatchReply::Compacted { id, compacted }));
    }

    fn id_for(&mut self, create: &WatchCreate) -> Result<i64, WatchRefusal> {
        if create.start_revision < 0 {
            return Err(WatchRefusal::NegativeStart);
        }
        if create.range.is_empty() {
            return Err(WatchRefusal::EmptyRange);
        }
        let is_taken = |id: &i64| self.watchers.contains_key(id) || self.ended.contains(id);
        if create.id != 0 && is_taken(&create.id) {
            return Err(WatchRefusal::DuplicateId);
        }
        if create.id != 0 {
            return Ok(create.id);
        }
        let free = (self.next_id..).find(|id| !is_taken(id)).unwrap();
        self.next_id = free + 1;
        Ok(free)
    }

    fn cancel(&mut self, id: i64, now: Revision) {
        self.stream.cancel(id);
        if self.watchers.remove(&id).is_some() || self.ended.remove(&id) {
            self.expected.push(WatchReply::Canceled { id, revision: now });
        }
    }

    /// Takes all replies there are, and checks them against the model as it is shown to readers.
    fn poll(&mut self, shown: &Model) {
        let mut events: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        let mut others = Vec::new();
        while let Some(reply) = self.stream.poll().unwrap() {
            match reply {
                WatchReply::Events { id, revision, events: new, .. } => {
                    let all = events.entry(id).or_default();
                    assert_whole(all, &new, revision);
                    all.extend(new);
                }
                other => others.push(other),
            }
        }
        self.expect_retagged();
        self.expect_compacted(shown.floor());
        self.expect_progress(shown.revision);
        assert_eq!(others, std::mem::take(&mut self.expected));
        for (id, watching) in &mut self.watchers {
            let told = events.remove(id).unwrap_or_default();
            let expected = shown.events(&watching.create, watching.next);
            let floor = shown.floor();
            assert_eq!(
                without_passing(told, floor),
                without_passing(expected, floor),
                "watcher {id} of {:?} from {}",
                watching.create,
                watching.next
            );
            watching.next = watching.next.max(shown.revision.next());
            watching.behind = false;
        }
        assert!(events.is_empty(), "events for watchers that have ended: {events:?}");
    }

    fn expect_compacted(&mut self, floor: Revision) {
        let lost = |watching: &Watching| watching.behind && watching.next < floor;
        let lost: Vec<i64> = self
            .watchers
            .iter()
            .filter(|(_, watching)| lost(watching))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.watchers.remove(&id);
            self.ended.insert(id);
            self.expected.push(WatchReply::Compacted { id, compacted: floor });
        }
    }

    fn expect_progress(&mut self, now: Revision) {
        let started = |watching: &Watching| watching.create.start_revision <= now.shown();
        if std::mem::take(&mut self.progress_asked)
            && !self.watchers.is_empty()
            && self.watchers.values().all(started)
        {
            self.expected.push(WatchReply::Progress { id: None, revision: now });
        }
    }
}

/// Checks that a reply goes on where those before it ended, and that no revision is cut in two.
fn assert_whole(told: &[Event], new: &[Event], revision: Revision) {
    let at = |event: &Event| event.pair.fields().mod_revision;
    let (first, last) = (at(new.first().unwrap()), at(new.last().unwrap()));
    assert!(new.is_sorted_by_key(at), "{new:?}");
    assert!(last <= revision, "{new:?} at {revision}");
    if let Some(before) = told.last() {
        assert!(at(before) < first, "{before:?} then {new:?}");
    }
}

/// At the compacted revision itself only what it left of each key is kept for watchers; as in etcd, a put that the same
/// transaction deleted again may be gone.
fn without_passing(events: Vec<Event>, floor: Revision) -> Vec<Event> {
    let passes = |i: usize| {
        let of = |event: &Event| (event.pair.fields().mod_revision, event.pair.key().to_vec());
        let this = of(&events[i]);
        this.0 == floor && events[i + 1..].iter().any(|later| of(later) == this)
    };
    (0..events.len()).filter(|i| !passes(*i)).map(|i| events[i].clone()).collect()
}

/// The engine and the model side by side.
struct Pair {
    memory: Memory,
    writer: Writer,
    /// After everything executed.
    model: Model,
    /// After everything committed.
    shown: Model,
    clients: Vec<Client>,
    entries: u64,
    numbers: Numbers,
    /// The tag that the store takes at its next start, if it has none.
    tag: Option<u16>,
}

const ENTROPY: u64 = 5;

fn open(memory: &Memory, tag: Option<u16>) -> Writer {
    let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
    // A cache that holds next to nothing, so that rows are read from the store.
    let options = Options { value_cache_bytes: 1000, tag, ..Options::new(identity) };
    let options = Options { revision_entropy: ENTROPY, ..options };
    Writer::open(Store::Memory(memory.clone()), &options, NOW).unwrap()
}

fn answer<T>(result: Result<T, Failure>) -> Result<T, Error> {
    match result {
        Ok(reply) => Ok(reply),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Broken(error)) => panic!("the store is broken: {error}"),
    }
}

impl Pair {
    fn new(tag: Option<u16>) -> Self {
        let memory = Memory::new();
        let writer = open(&memory, tag);
        let first = match tag {
            None => Revision(1),
            Some(tag) => Revision((1 + ENTROPY) << 26).with_tag(tag),
        };
        let clients = (0..STREAMS).map(|_| Client::new(&writer)).collect();
        let model = Model::new(first);
        let numbers = Numbers { zero: first.prev() };
        Self { memory, writer, shown: model.clone(), model, clients, entries: 0, numbers, tag }
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            assert!(self.writer.entries() >= self.entries, "entries went back");
            self.entries = self.writer.entries();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Execute(command) => self.execute(&self.numbers.command(command)),
            Step::Commit => self.commit(),
            Step::Reclaim => {
                self.writer.reclaim();
                self.commit();
            }
            Step::Sweep => self.sweep(),
            Step::Restart => self.restart(),
            Step::Read(range) => {
                let range = &self.numbers.range(range);
                let reader = self.writer.mvcc().reader();
                assert_eq!(reader.revision(), self.shown.revision);
                assert_eq!(answer(reader.range(range)), self.shown.range(range), "{range:?}");
            }
            Step::ReadTxn(txn) => {
                let txn = &self.numbers.txn(txn);
                let reply = txn::read_only(txn, &self.writer.mvcc().reader());
                let reply = answer(reply).map(|reply| (reply.revision, reply.body));
                let expected = self.shown.clone().execute(&Command::Txn(txn.clone()));
                let expected = expected.map(|reply| match reply.body {
                    super::command::CommandReply::Txn(body) => (reply.revision, body),
                    other => panic!("{other:?}"),
                });
                assert_eq!(reply, expected, "{txn:?}");
            }
            Step::Hold(steps) => self.hold(steps),
            Step::Watch(stream, create) => {
                self.clients[*stream].watch(&self.numbers.watch(create), &self.shown);
            }
            Step::Cancel(stream, id) => {
                // What has happened so far is told before, whether or not it was asked for.
                self.clients[*stream].poll(&self.shown);
                self.clients[*stream].cancel(*id, self.shown.revision);
            }
            Step::Poll(stream) => self.clients[*stream].poll(&self.shown),
            Step::Progress(stream) => {
                self.clients[*stream].stream.request_progress();
                // A request that finds no watcher is forgotten.
                let client = &mut self.clients[*stream];
                client.progress_asked |= !client.watchers.is_empty();
            }
            Step::Retag(tag, sweeps) => self.retag(*tag, *sweeps),
        }
    }

    fn execute(&mut self, command: &Command) {
        let expected = self.model.execute(command);
        let checked = match command {
            Command::Txn(txn) => txn.check(TXN_OPS_MAX).map_err(Failure::from),
            _ => Ok(()),
        };
        let reply = checked.and_then(|()| self.writer.execute(command.clone(), NOW));
        assert_eq!(answer(reply), expected, "{command:?}");
    }

    fn commit(&mut self) {
        self.writer.commit().unwrap();
        self.shown = self.model.clone();
    }

    fn sweep(&mut self) {
        if let Some(sweep) = self.writer.begin_sweep(true).unwrap() {
            sweep.run(self.writer.mvcc()).unwrap();
            self.writer.end_sweep(&sweep);
            self.commit();
        }
    }

    fn retag(&mut self, tag: u16, sweeps: bool) {
        if self.writer.tag() == tag {
            return;
        }
        let sweep = if sweeps { self.writer.begin_sweep(true).unwrap() } else { None };
        self.writer.retag(tag).unwrap();
        self.shown_under(tag);
        self.clients.iter_mut().for_each(|client| client.retag(self.shown.revision));
        if let Some(sweep) = sweep {
            sweep.run(self.writer.mvcc()).unwrap();
            self.writer.end_sweep(&sweep);
            self.commit();
        }
    }

    fn shown_under(&mut self, tag: u16) {
        self.model.retag(tag);
        self.shown = self.model.clone();
        self.numbers.zero = self.numbers.zero.with_tag(tag);
    }

    /// A store that has no tag takes one as it starts.
    fn take_tag(&mut self) {
        let Some(tag) = self.tag.filter(|_| self.model.revision.tag() == 0) else { return };
        let revision = self.writer.mvcc().revision();
        if revision.counter() < 1 << 26 {
            return self.shown_under(tag);
        }
        // Nothing was ever written.
        self.model = Model::new(revision);
        self.shown = self.model.clone();
        self.numbers = Numbers { zero: revision.prev() };
    }

    /// Power is lost: what is not committed is gone, and what is committed is not.
    fn restart(&mut self) {
        self.clients.clear();
        self.entries = 0;
        self.memory = self.memory.crash();
        self.writer = open(&self.memory, self.tag);
        self.model = self.shown.clone();
        self.take_tag();
        self.clients = (0..STREAMS).map(|_| Client::new(&self.writer)).collect();
        self.check();
    }

    fn hold(&mut self, steps: &[Step]) {
        let mvcc = Arc::clone(self.writer.mvcc());
        let reader = mvcc.reader();
        let shown = self.shown.clone();
        let tag = self.writer.tag();
        self.run(steps);
        assert_eq!(reader.revision(), shown.revision);
        if self.writer.tag() != tag {
            let gone = matches!(answer(reader.range(&everything())), Err(Error::Compacted { .. }));
            assert!(gone, "held over a change of the tag");
            return;
        }
        for revision in shown.floor().0.max(1)..=shown.revision.0 {
            let range = Range { revision: Revision(revision).shown(), ..everything() };
            assert_eq!(answer(reader.range(&range)), shown.range(&range), "held at {revision}");
        }
        assert_eq!(answer(reader.range(&everything())), shown.range(&everything()), "held");
    }

    /// Compares everything that can be asked for.
    fn check(&self) {
        let reader = self.writer.mvcc().reader();
        assert_eq!(reader.revision(), self.shown.revision);
        assert_eq!(reader.compacted(), self.shown.floor());
        for revision in self.shown.floor().0.max(1)..=self.shown.revision.0 {
            let at = |range| Range { revision: Revision(revision).shown(), ..Range::new(range) };
            let all = answer(reader.range(&at(KeyRange::all()))).unwrap();
            let state = self.shown.state_at(Revision(revision));
            let state: Vec<KeyValue> = state.into_values().collect();
            let kvs: Vec<KeyValue> = all.kvs.iter().map(KeyValue::from).collect();
            assert_eq!(kvs, state, "at {revision}");
            for (start, end) in [("a", "b"), ("ab", "c"), ("b", "\0"), ("c", ""), ("c", "a")] {
                let range = KeyRange::from_request(start.into(), end.into());
                let count = Range { count_only: true, ..at(range) };
                assert_eq!(answer(reader.range(&count)), self.shown.range(&count), "{count:?}");
            }
        }
        assert_eq!(
            self.writer.mvcc().keys(),
            self.shown.state_at(self.shown.revision).len() as u64
        );
        let lessor = self.writer.lessor();
        assert_eq!(lessor.ids(), self.shown.leases.keys().copied().collect::<Vec<_>>());
        for (id, ttl) in &self.shown.leases {
            let status = lessor.status(*id, true, NOW).unwrap();
            assert_eq!(status.granted_seconds, *ttl);
            assert_eq!(status.keys, self.shown.keys_of(*id), "lease {id}");
        }
    }

    /// After the end of the story, too, nothing may be lost.
    fn finish(&mut self) {
        self.commit();
        self.clients.iter_mut().for_each(|client| client.poll(&self.shown));
        self.check();
        while self.writer.reclaim() {
            self.commit();
        }
        self.sweep();
        self.check();
        self.restart();
        let replay = WatchCreate {
            range: KeyRange::all(),
            start_revision: self.shown.floor().shown().max(1),
            id: 0,
            prev_kv: true,
            no_put: false,
            no_delete: false,
            progress_notify: false,
            fragment: false,
        };
        self.clients[0].watch(&replay, &self.shown);
        self.clients[0].poll(&self.shown);
    }
}

fn everything() -> Range {
    Range::new(KeyRange::all())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn tells_the_same_as_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new(None);
        pair.run(&steps);
        pair.finish();
    }

    #[test]
    fn tells_the_same_as_the_model_under_a_tag(steps in prop::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new(Some(4000));
        pair.run(&steps);
        pair.finish();
    }

    #[test]
    fn tells_the_same_as_the_model_when_tags_change(
        steps in prop::collection::vec(step_of_a_peer(), 1..120), tag in select(vec![None, Some(3)])
    ) {
        let mut pair = Pair::new(tag);
        pair.tag = Some(3);
        pair.run(&steps);
        pair.finish();
    }

    #[test]
    fn refuses_the_same_transactions_as_the_model(txn in txn()) {
        prop_assert_eq!(txn.check(TXN_OPS_MAX), super::model::check_txn(&txn));
    }
}
