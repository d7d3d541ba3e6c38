//! The engine without network and disk: what its data structures cost.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use starling::engine::command::{
    Command, Compare, CompareResult, CompareTarget, Put, Range, Txn, TxnOp,
};
use starling::engine::{Options, Writer};
use starling::storage::schema::Identity;
use starling::storage::{Memory, Store};
use starling::time::Now;
use starling::types::{ClusterId, KeyRange, MemberId};
use starling_bench::data::{self, Random};

const KEYS: [u64; 2] = [10_000, 100_000];
const BATCHES: [u64; 3] = [1, 64, 1024];
const NOW: Now = Now { wall_millis: 1_700_000_000_000, monotonic_millis: 0 };

/// A writer with some keys, and the numbers of more.
struct Engine {
    writer: Writer,
    random: Random,
    keys: u64,
}

impl Engine {
    fn new(keys: u64) -> Self {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(1) };
        let options = Options { quota_bytes: None, ..Options::new(identity) };
        let store = Store::Memory(Memory::volatile());
        let writer = Writer::open(store, &options, NOW).expect("memory opens");
        let mut engine = Self { writer, random: Random::new(keys), keys };
        for first in (0..keys).step_by(1000) {
            (first..first + 1000).for_each(|number| engine.put(number));
            engine.commit();
        }
        engine
    }

    fn number(&mut self) -> u64 {
        self.random.below(self.keys)
    }

    fn request(&mut self, number: u64) -> Put {
        let (key, value) = (data::key(number), data::value(&mut self.random));
        Put { key, value, ..Put::default() }
    }

    fn put(&mut self, number: u64) {
        let put = self.request(number);
        self.execute(Command::Put(put));
    }

    fn execute(&mut self, command: Command) {
        black_box(self.writer.execute(command, NOW).expect("a command is taken"));
    }

    fn commit(&mut self) {
        self.writer.commit().expect("memory commits");
    }

    fn range(&self, range: &Range) -> u64 {
        let reply = self.writer.mvcc().reader().range(range).expect("a range is read");
        black_box(reply).count
    }
}

fn prefix((start, end): (Bytes, Bytes)) -> Range {
    Range::new(KeyRange::from_request(start, end))
}

fn reads(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    for keys in KEYS {
        let mut engine = Engine::new(keys);
        group.bench_function(BenchmarkId::new("get", keys), |b| {
            b.iter(|| {
                let key = data::key(engine.number());
                engine.range(&Range::new(KeyRange::single(key)))
            });
        });
        group.bench_function(BenchmarkId::new("range of 100", keys), |b| {
            b.iter(|| {
                let group = data::group(engine.number());
                engine.range(&prefix(group))
            });
        });
        group.bench_function(BenchmarkId::new("count", keys), |b| {
            let count = Range { count_only: true, ..prefix(data::everything()) };
            b.iter(|| engine.range(&count));
        });
        group.bench_function(BenchmarkId::new("first 10 of all", keys), |b| {
            let page = Range { limit: Some(10), ..prefix(data::everything()) };
            b.iter(|| engine.range(&page));
        });
    }
    group.finish();
}

fn puts(c: &mut Criterion) {
    let mut group = c.benchmark_group("put and commit");
    for batch in BATCHES {
        let mut engine = Engine::new(KEYS[1]);
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    let number = engine.number();
                    engine.put(number);
                }
                engine.commit();
            });
        });
    }
    group.finish();
}

fn txns(c: &mut Criterion) {
    let mut engine = Engine::new(KEYS[1]);
    c.bench_function("compare and swap", |b| {
        b.iter(|| {
            let number = engine.number();
            let put = engine.request(number);
            let compare = Compare {
                range: KeyRange::single(put.key.clone()),
                result: CompareResult::Greater,
                target: CompareTarget::Version(0),
            };
            let txn = Txn {
                compares: vec![compare],
                success: vec![TxnOp::Put(put)],
                failure: Vec::new(),
            };
            engine.execute(Command::Txn(txn));
            engine.commit();
        });
    });
}

criterion_group!(benches, reads, puts, txns);
criterion_main!(benches);
