//! Power cuts: at every commit of a long random run the store is opened as it would be after a loss of power. What is
//! there is exactly what was committed: nothing answered is missing, nothing half-done shows, nothing deleted returns.

use std::sync::Arc;

use bytes::Bytes;

use super::command::{Command, DeleteRange, Put, Range, Txn, TxnOp};
use super::mvcc::Sweep;
use super::{Options, Writer};
use crate::error::StoreError;
use crate::storage::schema::Identity;
use crate::storage::{Fault, Memory, Store};
use crate::time::Now;
use crate::types::{ClusterId, KeyRange, KeyValue, LeaseId, MemberId, Revision};

const STEPS: u64 = 400;
const KEYS: u64 = 12;

/// What a client can find out about a store.
#[derive(Clone, Debug, PartialEq)]
struct State {
    revision: Revision,
    compacted: Revision,
    /// The live pairs at every revision that can be read.
    history: Vec<Vec<KeyValue>>,
    leases: Vec<(LeaseId, Vec<Bytes>)>,
    live_bytes: u64,
}

struct Member {
    store: Memory,
    writer: Writer,
}

fn now(step: u64) -> Now {
    Now { wall_millis: step, monotonic_millis: step }
}

impl Member {
    fn open(store: Memory, tag: Option<u16>) -> Self {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        // A tiny cache, so that values are read from the store.
        // Whoever opens a store for the first time gives it its tag, and a store that has one keeps it.
        let options = Options { value_cache_bytes: 1, tag, ..Options::new(identity) };
        let writer = Writer::open(Store::Memory(store.clone()), &options, now(0))
            .expect("the store is sound");
        Self { store, writer }
    }

    /// What clients see now, once all that compaction gave up is freed.
    fn state(&mut self) -> State {
        while self.writer.reclaim() {}
        let mvcc = Arc::clone(self.writer.mvcc());
        let reader = mvcc.reader();
        let (compacted, revision) = (reader.compacted(), reader.revision());
        let pairs_at = |revision| {
            let all = Range { revision: Revision(revision).shown(), ..Range::new(KeyRange::all()) };
            let reply = reader.range(&all).expect("it can be read");
            reply.kvs.iter().map(KeyValue::from).collect()
        };
        let lessor = self.writer.lessor();
        State {
            revision,
            compacted,
            history: (compacted.0.max(1)..=revision.0).map(pairs_at).collect(),
            leases: lessor.ids().into_iter().map(|id| (id, lessor.keys(id).unwrap())).collect(),
            live_bytes: mvcc.live_bytes(),
        }
    }

    /// A sweep that a crash has ended: some rows are gone, in no particular order.
    fn sweep_in_part(&self, sweep: &Sweep, step: u64) {
        let (sweep, mvcc) = (sweep.clone(), Arc::clone(self.writer.mvcc()));
        let store = Store::Memory(self.store.clone());
        let goes =
            move |key: &[u8]| (u64::from(key[7]) + u64::from(key[11]) + step).is_multiple_of(2);
        let is_dead =
            move |key: &[u8], value: &[u8]| Ok(sweep.is_dead(&mvcc, key, value)? && goes(key));
        store.sweep(Arc::new(is_dead)).unwrap();
    }

    fn execute(&mut self, command: Command, step: u64) {
        // Refusals are as good as answers here.
        let _ = self.writer.execute(command, now(step));
    }
}

/// A small deterministic source of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn key(&mut self) -> Bytes {
        format!("key{}", self.below(KEYS)).into()
    }

    fn put(&mut self, step: u64) -> Put {
        let lease = if self.below(4) == 0 {
            LeaseId(1 + self.below(3).cast_signed())
        } else {
            LeaseId::NONE
        };
        Put {
            key: self.key(),
            value: format!("value of step {step}").into(),
            lease,
            ..Put::default()
        }
    }

    fn delete(&mut self) -> DeleteRange {
        let (start, end) = (self.key(), self.key());
        let range = if self.below(2) == 0 {
            KeyRange::single(start)
        } else {
            KeyRange::from_request(start, end)
        };
        DeleteRange { range, prev_kv: false }
    }

    fn command(&mut self, step: u64, revision: Revision) -> Command {
        match self.below(20) {
            0..=8 => Command::Put(self.put(step)),
            9..=12 => Command::DeleteRange(self.delete()),
            13..=15 => {
                let success = vec![TxnOp::DeleteRange(self.delete()), TxnOp::Put(self.put(step))];
                Command::Txn(Txn { success, ..Txn::default() })
            }
            16 => {
                let ttl_seconds = 100;
                Command::LeaseGrant { id: LeaseId(1 + self.below(3).cast_signed()), ttl_seconds }
            }
            17 => Command::LeaseRevoke { id: LeaseId(1 + self.below(3).cast_signed()) },
            _ => Command::Compact { revision: revision.shown() - self.below(6).cast_signed() },
        }
    }
}

/// The store as it is found after a loss of power now.
fn after_power_cut(store: &Memory) -> State {
    Member::open(store.crash(), None).state()
}

fn run(seed: u64) {
    let mut choices = Choices(seed);
    let tag = (seed % 2 == 1).then_some(7);
    let mut member = Member::open(Memory::new(), tag);
    let mut committed = member.state();
    let mut sweep: Option<Sweep> = None;
    for step in 1..=STEPS {
        for _ in 0..=choices.below(3) {
            let revision = member.writer.mvcc().revision();
            let command = choices.command(step, revision);
            member.execute(command, step);
        }
        assert_eq!(
            after_power_cut(&member.store),
            committed,
            "seed {seed}, before the commit of step {step}"
        );
        member.writer.commit().unwrap();
        committed = member.state();
        assert_eq!(
            after_power_cut(&member.store),
            committed,
            "seed {seed}, after the commit of step {step}"
        );
        match choices.below(8) {
            0 => {
                sweep = member.writer.begin_sweep(true).unwrap();
                if let Some(sweep) = &sweep {
                    member.sweep_in_part(sweep, step);
                    assert_eq!(
                        after_power_cut(&member.store),
                        committed,
                        "seed {seed}, half swept in step {step}"
                    );
                    sweep.run(member.writer.mvcc()).unwrap();
                    assert_eq!(
                        after_power_cut(&member.store),
                        committed,
                        "seed {seed}, swept in step {step}"
                    );
                }
            }
            1 => {
                if let Some(sweep) = sweep.take() {
                    member.writer.end_sweep(&sweep);
                }
            }
            2 => {
                member = Member::open(member.store.crash(), None);
                sweep = None;
                assert_eq!(member.state(), committed, "seed {seed}, restarted in step {step}");
            }
            _ => {}
        }
    }
    assert!(committed.revision.counter() > 100, "nothing much happened: {committed:?}");
}

#[test]
fn what_was_committed_is_there_and_nothing_else() {
    for seed in 0..12 {
        run(seed);
    }
}

/// A change of the tag is there as a whole or not at all, and nothing but the numbers changes with it.
#[test]
fn a_failed_retag_is_all_or_nothing() {
    for (fault, tag) in [(Fault::FailBefore(0), 0), (Fault::FailAfter(0), 9)] {
        let mut member = Member::open(Memory::new(), None);
        for step in 1..9 {
            let put = Put { key: format!("key{}", step % 3).into(), ..Put::default() };
            member.execute(Command::Put(put), step);
        }
        member.writer.commit().unwrap();
        let before = member.state();
        member.store.inject(fault);
        let error = member.writer.retag(9).unwrap_err();
        assert!(matches!(error, StoreError::Io(_)), "{error:?}");
        assert_eq!(member.writer.mvcc().revision(), before.revision, "nothing has moved");
        let kept = member.store.unsynced();
        let survived = Member::open(member.store.crash_keeping(kept), Some(tag + 1)).state();
        let tag = if tag == 0 { 1 } else { tag };
        assert_eq!(survived.revision, before.revision.with_tag(tag));
        assert_eq!(survived.compacted, survived.revision);
        let values = |state: &State| state.history.last().unwrap().len();
        assert_eq!((values(&survived), survived.leases), (values(&before), before.leases));
    }
}

/// A commit that fails stops the writer, and leaves all of the batch or nothing of it.
#[test]
fn a_failed_commit_is_all_or_nothing() {
    for (fault, whole) in [(Fault::FailBefore(0), false), (Fault::FailAfter(0), true)] {
        let mut member = Member::open(Memory::new(), None);
        let put = |key: &'static str| Put { key: key.into(), value: "v".into(), ..Put::default() };
        member.execute(Command::Put(put("a")), 1);
        member.writer.commit().unwrap();
        let before = member.state();
        let success = vec![TxnOp::Put(put("b")), TxnOp::Put(put("c"))];
        member.execute(Command::Txn(Txn { success, ..Txn::default() }), 2);
        member.execute(Command::Put(put("d")), 2);
        member.store.inject(fault);
        let error = member.writer.commit().unwrap_err();
        assert!(matches!(error, StoreError::Io(_)), "{error:?}");
        assert_eq!(
            member.writer.mvcc().revision(),
            before.revision,
            "nothing shows that may be lost"
        );
        let kept = member.store.unsynced();
        assert_eq!(kept, usize::from(whole));
        assert_eq!(Member::open(member.store.crash_keeping(0), None).state(), before);
        let survived = Member::open(member.store.crash_keeping(kept), None).state();
        let revisions = if whole { 2 } else { 0 };
        assert_eq!(survived.revision, Revision(before.revision.0 + revisions));
    }
}
