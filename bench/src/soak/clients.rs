//! The clients of a soak. What they send and hear goes through the checker.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::request_op::Request;
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::checker::{Call, Checker, Filter, count_of};
use super::leases;
use super::model::{Op, Reply};
use super::watches;
use crate::Outcome;
use crate::client::Connection;
use crate::data::Random;

/// Clients that read and write whatever comes.
const MIXERS: u64 = 16;
const KEYS_EACH: u64 = 100;
const SHARED_KEYS: u64 = 20;
const COUNTERS: u64 = 4;
const INCREMENTERS: u64 = 4;
const LEASERS: u64 = 8;
/// Between two operations of a client that does not follow the rate.
const PAUSE: Duration = Duration::from_millis(50);
const SURVEY_PAUSE: Duration = Duration::from_secs(10);
/// Of 16 values one is large.
const LARGE_AMONG: u64 = 16;
const SMALL_BYTES_MAX: u64 = 400;
const LARGE_BYTES_MAX: u64 = 32 * 1024;
/// History that compactions leave, at most.
const HISTORY_MAX: u64 = 3000;
/// A longer time without an answer is a violation.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may be away before its clients complain.
const RESTART_PATIENCE: Duration = Duration::from_secs(90);
/// How long what is under way at the end may take to become quiet.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What the clients are told.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// A process serves on this port, from this revision on.
    Serve {
        /// How many there were before it.
        generation: u64,
        /// Where.
        port: u16,
        /// The revision of its first answer.
        revision: i64,
    },
    /// Enough.
    Stop,
}

/// What can be seen from outside while the clients work.
#[derive(Debug, Default)]
pub struct Tally {
    /// Calls answered.
    pub operations: AtomicU64,
    /// Of the calls since somebody took them.
    pub latencies: Mutex<Vec<u32>>,
    /// The newest revision that was replayed.
    pub revision: AtomicI64,
    /// Found so far.
    pub violations: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Situation {
    generation: u64,
    port: u16,
}

/// What all clients share.
pub(super) struct Context {
    pub(super) checker: RefCell<Checker>,
    situation: watch::Receiver<Situation>,
    begin: Instant,
    stopping: Cell<bool>,
    tally: Arc<Tally>,
    pace: Duration,
    numbers: Cell<u64>,
}

impl Context {
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Another number every time.
    pub(super) fn number(&self) -> u64 {
        self.numbers.replace(self.numbers.get() + 1)
    }

    pub(super) fn violation(&self, what: String) {
        self.checker.borrow_mut().violation(what);
    }

    fn tell(&self) {
        let checker = self.checker.borrow();
        self.tally.revision.store(checker.applied(), Ordering::Relaxed);
        self.tally.violations.store(checker.violations().len(), Ordering::Relaxed);
    }
}

/// Runs clients until they are told to stop, and answers what they found.
pub fn run(
    mut orders: mpsc::Receiver<Order>,
    tally: Arc<Tally>,
    rate: u64,
    seed: u64,
) -> Outcome<Checker> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let Some(Order::Serve { generation, port, revision }) = orders.recv().await else {
            return Err("nothing to do".into());
        };
        let (told, situation) = watch::channel(Situation { generation, port });
        let context = Rc::new(Context {
            checker: RefCell::new(Checker::new(revision)),
            situation,
            begin: Instant::now(),
            stopping: Cell::new(false),
            tally,
            pace: Duration::from_secs_f64(MIXERS as f64 / rate.max(1) as f64),
            numbers: Cell::new(1),
        });
        let writers = start(&context, seed);
        while let Some(Order::Serve { generation, port, revision }) = orders.recv().await {
            let now = context.now();
            context.checker.borrow_mut().restarted(generation - 1, revision, now);
            let _ = told.send(Situation { generation, port });
        }
        context.stopping.set(true);
        for writer in writers {
            writer.await?;
        }
        settle(&context, seed).await;
        context.tell();
        Ok(std::mem::take(&mut *context.checker.borrow_mut()))
    })
}

/// Starts everything; what writes is waited for at the end.
fn start(context: &Rc<Context>, seed: u64) -> Vec<tokio::task::JoinHandle<()>> {
    let client = |n: u64| Client::new(Rc::clone(context), seed.wrapping_mul(1000) + n);
    watches::start(context, client);
    let mut writers = Vec::new();
    for n in 0..MIXERS {
        writers.push(spawn_local(Mixer::new(client(n), n).run()));
    }
    for n in 0..INCREMENTERS {
        writers.push(spawn_local(increment(client(100 + n))));
    }
    for n in 0..LEASERS {
        writers.push(spawn_local(leases::run(client(200 + n), n)));
    }
    writers.push(spawn_local(compact(client(300))));
    writers.push(spawn_local(survey(client(301))));
    writers
}

/// Waits until leases have ended and everything has been heard, and reads everything once more.
async fn settle(context: &Rc<Context>, seed: u64) {
    let deadline = Instant::now() + SETTLE_PATIENCE;
    while Instant::now() < deadline && !context.checker.borrow().is_settled() {
        sleep(POLL).await;
    }
    let mut client = Client::new(Rc::clone(context), seed);
    if client.call(everything()).await.is_none() {
        context.violation("the last read was not answered".to_owned());
    }
    while Instant::now() < deadline && !context.checker.borrow().is_settled() {
        sleep(POLL).await;
    }
    context.checker.borrow_mut().finish();
}

fn everything() -> Op {
    let from = Bytes::from_static(b"\0");
    Op::Range(pb::RangeRequest { key: from.clone(), range_end: from, ..Default::default() })
}

/// A client with a connection of its own, which it opens anew after every restart.
pub(super) struct Client {
    pub(super) context: Rc<Context>,
    pub(super) random: Random,
    generation: u64,
    connection: Option<Connection>,
}

impl Client {
    fn new(context: Rc<Context>, seed: u64) -> Self {
        Self { context, random: Random::new(seed), generation: 0, connection: None }
    }

    /// The connection, once there is a server to connect to.
    pub(super) async fn connection(&mut self) -> Connection {
        loop {
            if let Some(connection) = &self.connection {
                return connection.clone();
            }
            let Situation { generation, port } = *self.context.situation.borrow();
            if generation > self.generation {
                self.generation = generation;
                self.connection = Connection::open(port).await.ok();
            } else {
                self.next_server().await;
            }
        }
    }

    /// The connection failed: there must be a reason.
    pub(super) async fn failed(&mut self, why: &Status) {
        self.connection = None;
        let mut situation = self.context.situation.clone();
        let generation = self.generation;
        let next = situation.wait_for(|situation| situation.generation > generation);
        if timeout(RESTART_PATIENCE, next).await.is_err() {
            self.context.violation(format!("failed, but no restart: {why:?}"));
            self.generation -= 1;
        }
    }

    async fn next_server(&mut self) {
        self.failed(&Status::unavailable("no connection")).await;
    }

    pub(super) fn begin(&self) -> Call {
        self.context.checker.borrow_mut().begin()
    }

    /// Sends a request and has the answer checked: its revision and the answer, if one came.
    pub(super) async fn call(&mut self, op: Op) -> Option<(i64, Reply)> {
        let connection = self.connection().await;
        let (call, start) = (self.begin(), Instant::now());
        let sent = timeout(ANSWER_PATIENCE, send(&connection, &op)).await;
        let context = Rc::clone(&self.context);
        match sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok((revision, reply)) => {
                self.count(start);
                context.checker.borrow_mut().answered(&call, op, revision, reply.clone());
                context.tell();
                Some((revision, reply))
            }
            Err(status) if status.code() == Code::NotFound => {
                let mut checker = context.checker.borrow_mut();
                checker.lease_not_found(&call, lease_of(&op), context.now());
                None
            }
            Err(status) => {
                if status.code() == Code::DeadlineExceeded {
                    context.violation(format!("no answer to {op:?}"));
                }
                context.checker.borrow_mut().lost(&call, op, self.generation);
                self.failed(&status).await;
                None
            }
        }
    }

    pub(super) fn count(&self, start: Instant) {
        let tally = &self.context.tally;
        tally.operations.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut latencies) = tally.latencies.lock() {
            latencies.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }

    /// A value that nobody else writes.
    pub(super) fn value(&mut self) -> Bytes {
        let large = self.random.below(LARGE_AMONG) == 0;
        let length = self.random.below(if large { LARGE_BYTES_MAX } else { SMALL_BYTES_MAX });
        let mut value = BytesMut::from(format!("{} ", self.context.number()).as_bytes());
        for _ in 0..length / 8 {
            value.put_u64(self.random.next());
        }
        value.freeze()
    }

    /// Between half the time and one and a half.
    pub(super) async fn pause(&mut self, time: Duration) {
        let share = self.random.below(1000) as f64 / 1000.0 + 0.5;
        sleep(time.mul_f64(share)).await;
    }

    pub(super) async fn put(&mut self, key: Bytes, lease: i64) -> Option<(i64, Reply)> {
        let value = self.value();
        self.call(Op::Put(pb::PutRequest { key, value, lease, ..Default::default() })).await
    }
}

fn lease_of(op: &Op) -> i64 {
    match op {
        Op::Put(request) => request.lease,
        Op::Revoke(lease) => *lease,
        Op::Range(_) | Op::Delete(_) | Op::Txn(_) => 0,
    }
}

async fn send(connection: &Connection, op: &Op) -> Result<(i64, Reply), Status> {
    let (header, reply) = match op.clone() {
        Op::Range(request) => {
            let reply = connection.kv().range(request).await?.into_inner();
            (reply.header, Reply::Range(reply))
        }
        Op::Put(request) => {
            let reply = connection.kv().put(request).await?.into_inner();
            (reply.header, Reply::Put(reply))
        }
        Op::Delete(request) => {
            let reply = connection.kv().delete_range(request).await?.into_inner();
            (reply.header, Reply::Delete(reply))
        }
        Op::Txn(request) => {
            let reply = connection.kv().txn(request).await?.into_inner();
            (reply.header, Reply::Txn(reply))
        }
        Op::Revoke(id) => {
            let request = pb::LeaseRevokeRequest { id };
            let reply = connection.lease().lease_revoke(request).await?.into_inner();
            (reply.header, Reply::Revoke)
        }
    };
    Ok((header.map_or(0, |header| header.revision), reply))
}

/// Reads and writes of all kinds.
struct Mixer {
    client: Client,
    number: u64,
    /// An answer, and the revision at which it was given.
    remembered: Option<(i64, pb::RangeRequest, pb::RangeResponse)>,
}

impl Mixer {
    fn new(client: Client, number: u64) -> Self {
        Self { client, number, remembered: None }
    }

    async fn run(mut self) {
        while !self.client.context.is_stopping() {
            if self.remembered.is_some() && self.client.random.below(100) == 0 {
                self.read_again().await;
            } else {
                self.operate().await;
            }
            let pace = self.client.context.pace;
            self.client.pause(pace).await;
        }
    }

    async fn operate(&mut self) {
        let op = self.operation();
        let Some((revision, Reply::Range(reply))) = self.client.call(op.clone()).await else {
            return;
        };
        if let Op::Range(request) = op
            && self.remembered.is_none()
        {
            self.remembered = Some((revision, request, reply));
        }
    }

    fn key(&mut self) -> Bytes {
        if self.client.random.below(8) == 0 {
            return format!("/s/{:02}", self.client.random.below(SHARED_KEYS)).into();
        }
        self.any_of(KEYS_EACH)
    }

    /// One of its first keys.
    fn any_of(&mut self, keys: u64) -> Bytes {
        let key = self.client.random.below(keys);
        self.own(key)
    }

    fn own(&self, key: u64) -> Bytes {
        format!("/w/{:02}/{key:02}", self.number).into()
    }

    fn operation(&mut self) -> Op {
        let key = self.key();
        let prev_kv = self.client.random.below(2) == 0;
        match self.client.random.below(100) {
            0..40 => {
                let value = self.client.value();
                Op::Put(pb::PutRequest { key, value, prev_kv, ..Default::default() })
            }
            40..60 => Op::Range(pb::RangeRequest { key, ..Default::default() }),
            60..70 => self.range(),
            70..75 => {
                let (key, range_end) = (Bytes::from_static(b"/"), Bytes::from_static(b"0"));
                let count_only = true;
                Op::Range(pb::RangeRequest { key, range_end, count_only, ..Default::default() })
            }
            75..82 => Op::Delete(pb::DeleteRangeRequest { key, prev_kv, ..Default::default() }),
            82..84 => Op::Delete(self.delete_few(prev_kv)),
            _ => Op::Txn(self.transaction()),
        }
    }

    fn range(&mut self) -> Op {
        let (key, range_end) = (self.any_of(KEYS_EACH), self.own(KEYS_EACH - 1));
        let limit = i64::try_from(self.client.random.below(20)).unwrap_or(0);
        let serializable = self.client.random.below(2) == 0;
        let keys_only = self.client.random.below(8) == 0;
        let request =
            pb::RangeRequest { key, range_end, limit, serializable, ..Default::default() };
        Op::Range(pb::RangeRequest { keys_only, ..request })
    }

    /// Up to ten keys of the upper half.
    fn delete_few(&mut self, prev_kv: bool) -> pb::DeleteRangeRequest {
        let from = KEYS_EACH / 2 + self.client.random.below(40);
        let to = from + self.client.random.below(10);
        let (key, range_end) = (self.own(from), self.own(to));
        pb::DeleteRangeRequest { key, range_end, prev_kv }
    }

    /// Puts into the lower half, deletes from the upper.
    fn transaction(&mut self) -> pb::TxnRequest {
        let key = self.any_of(10);
        let revision = self.client.context.checker.borrow().applied();
        let newer = revision - i64::try_from(self.client.random.below(1000)).unwrap_or(0);
        let compare = match self.client.random.below(3) {
            0 => compare(&key, CompareResult::NotEqual, TargetUnion::Version(0)),
            1 => compare(&key, CompareResult::Less, TargetUnion::ModRevision(newer)),
            _ => compare(&key, CompareResult::Greater, TargetUnion::CreateRevision(newer)),
        };
        let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let mut put = |key: Bytes| {
            let value = self.client.value();
            Request::RequestPut(pb::PutRequest { key, value, prev_kv: true, ..Default::default() })
        };
        let success = vec![put(key.clone()), Request::RequestRange(range.clone())];
        let failure = vec![put(Bytes::from_static(b"/s/new")), Request::RequestRange(range)];
        let mut success = operations(success);
        for _ in 0..self.client.random.below(4) {
            let key = self.own(10 + success.len() as u64);
            let value = self.client.value();
            let put = pb::PutRequest { key, value, ..Default::default() };
            success.extend(operations(vec![Request::RequestPut(put)]));
        }
        let delete = Request::RequestDeleteRange(self.delete_few(true));
        success.extend(operations(vec![delete]));
        pb::TxnRequest { compare: vec![compare], success, failure: operations(failure) }
    }

    /// What was read before must be there still, at its revision, unless that was compacted.
    async fn read_again(&mut self) {
        let Some((revision, request, before)) = self.remembered.take() else { return };
        let mut connection = self.client.connection().await.kv();
        let call = self.client.begin();
        let context = Rc::clone(&self.client.context);
        match connection.range(pb::RangeRequest { revision, ..request }).await {
            Ok(reply) => {
                let mut reply = reply.into_inner();
                let now = reply.header.take().map_or(0, |header| header.revision);
                context.checker.borrow_mut().ended(&call, now);
                let before = pb::RangeResponse { header: None, ..before };
                if reply != before {
                    context.violation(format!("at {revision}: {reply:?} was {before:?}"));
                }
            }
            Err(status) if status.code() == Code::OutOfRange => {
                let mut checker = context.checker.borrow_mut();
                checker.given_up(&call);
                let asked = checker.compaction_asked();
                checker.compacted(revision, asked);
            }
            Err(status) => {
                context.checker.borrow_mut().given_up(&call);
                self.client.failed(&status).await;
            }
        }
    }
}

fn compare(key: &Bytes, result: CompareResult, with: TargetUnion) -> pb::Compare {
    let target = match with {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(with),
        ..Default::default()
    }
}

fn operations(requests: Vec<Request>) -> Vec<pb::RequestOp> {
    requests.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect()
}

/// Reads a counter and writes it one greater if nobody else did meanwhile.
async fn increment(mut client: Client) {
    while !client.context.is_stopping() {
        let key: Bytes = format!("/c/{}", client.random.below(COUNTERS)).into();
        let get = Op::Range(pb::RangeRequest { key: key.clone(), ..Default::default() });
        if let Some((_, Reply::Range(reply))) = client.call(get).await {
            let pair = reply.kvs.into_iter().next().unwrap_or_default();
            let value = format!("{} {}", count_of(&pair.value) + 1, client.context.number());
            let unchanged = TargetUnion::ModRevision(pair.mod_revision);
            let put =
                pb::PutRequest { key: key.clone(), value: value.into(), ..Default::default() };
            let txn = pb::TxnRequest {
                compare: vec![compare(&key, CompareResult::Equal, unchanged)],
                success: operations(vec![Request::RequestPut(put)]),
                failure: Vec::new(),
            };
            let answer = client.call(Op::Txn(txn)).await;
            let mut checker = client.context.checker.borrow_mut();
            match answer {
                Some((_, Reply::Txn(reply))) if !reply.succeeded => {}
                answer => checker.incremented(&key, answer.is_some()),
            }
        }
        client.pause(PAUSE * 2).await;
    }
}

/// Gives up history, sometimes nearly all of it.
async fn compact(mut client: Client) {
    while !client.context.is_stopping() {
        let history = i64::try_from(client.random.below(HISTORY_MAX)).unwrap_or(0);
        let physical = client.random.below(2) == 0;
        let mut kv = client.connection().await.kv();
        let revision = client.context.checker.borrow().log_next() - 1 - history;
        if revision > client.context.checker.borrow().compaction_asked() {
            client.context.checker.borrow_mut().compacting(revision);
            let call = client.begin();
            let answer = kv.compact(pb::CompactionRequest { revision, physical }).await;
            let context = Rc::clone(&client.context);
            match answer {
                Ok(reply) => {
                    let header = reply.into_inner().header;
                    let now = header.map_or(0, |header| header.revision);
                    context.checker.borrow_mut().ended(&call, now);
                }
                Err(status) => {
                    context.checker.borrow_mut().given_up(&call);
                    client.failed(&status).await;
                }
            }
        }
        client.pause(SURVEY_PAUSE).await;
    }
}

/// Reads everything now and then.
async fn survey(mut client: Client) {
    while !client.context.is_stopping() {
        client.call(everything()).await;
        for _ in 0..10 {
            if !client.context.is_stopping() {
                client.pause(SURVEY_PAUSE / 10).await;
            }
        }
    }
}

/// The filter of a prefix.
pub(super) fn prefix(prefix: &'static str) -> Filter {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let (key, range_end) = (Bytes::from_static(prefix.as_bytes()), end.into());
    Filter { key, range_end, no_put: false, no_delete: false }
}
