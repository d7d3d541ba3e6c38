//! Clients that write and read all the time, each on one member, and write down what they asked and what was answered.
//!
//! | keys | written by | what must be there in the end |
//! |---|---|---|
//! | `own/CLIENT/SLOT.GENERATION` | one client, alone | what it was told last, or what it has tried since |
//! | `pair/CLIENT/GENERATION/a` and `b` | one client, both by one transaction | the same, and the same number in both |
//! | `seed/NUMBER` | nobody, after the start | what there was |
//! | `shared/SLOT` | everybody | a put that no later one has replaced |
//!
//! Where an answer is missing nobody knows what became of the request, or when: a request may wait in a process that stands still. So that
//! key is left alone from then on, and the client goes on with the next generation of it.
//!
//! A value is a number, greater than all that the client wrote before.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::request_op::Request;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use super::member::Cluster;

/// A client waits no longer for an answer; members that stand still do so for longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The time between two requests of a client, if the answers come in time.
const PACE: Duration = Duration::from_millis(15);
/// How long a client waits after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Keys of its own that a client writes to, at any time.
const OWN_KEYS: u64 = 12;
/// Keys that everybody writes to.
const SHARED_KEYS: u64 = 6;
/// Bits of a value that count the writes of a client; those above name the client.
const COUNT_BITS: u32 = 32;

/// What a key was set to: `None` if it was deleted.
type Value = Option<u64>;

/// A key of one client.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The last answer.
    pub(super) answered: Value,
    /// What was asked since, and not answered.
    pub(super) open: Vec<Value>,
}

/// One write to a key of everybody.
#[derive(Clone, Debug)]
pub(super) struct SharedWrite {
    pub(super) key: String,
    pub(super) value: Value,
    pub(super) asked: Instant,
    pub(super) answered: Option<Instant>,
}

/// All that the clients of a test have written down.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) own: BTreeMap<String, Known>,
    pub(super) shared: Vec<SharedWrite>,
    /// By member: requests that were answered, and that were not.
    pub(super) answered: BTreeMap<usize, u64>,
    pub(super) errors: BTreeMap<usize, BTreeMap<String, u64>>,
    /// Reads by the client that wrote, on the same member, that did not see it.
    pub(super) stale: Vec<String>,
}

pub(super) type SharedBook = Rc<RefCell<Book>>;

/// Random numbers, the same ones in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The clients of a test, which run until they are stopped.
pub(super) struct Load {
    pub(super) book: SharedBook,
    clients: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    started: u64,
    seed: u64,
}

impl Load {
    pub(super) fn new(seed: u64) -> Self {
        let (stop, _) = watch::channel(false);
        Self { book: SharedBook::default(), clients: Vec::new(), stop, started: 0, seed }
    }

    /// Writes keys that nobody changes later, to the first member.
    pub(super) async fn seed(&mut self, cluster: &Cluster, keys: u64) {
        let mut kv = cluster.members[0].kv();
        for value in 0..keys {
            let key = format!("seed/{value}");
            in_time(kv.put(put(&key, value))).await.expect("the member serves");
            let known = Known { answered: Some(value), open: Vec::new() };
            self.book.borrow_mut().own.insert(key, known);
        }
    }

    /// Writes a key that nobody changes later.
    pub(super) async fn mark(&mut self, cluster: &Cluster, member: usize, key: &str) {
        let mut kv = cluster.members[member].kv();
        in_time(kv.put(put(key, 1))).await.expect("the member serves");
        let known = Known { answered: Some(1), open: Vec::new() };
        self.book.borrow_mut().own.insert(key.to_owned(), known);
    }

    /// Writes such a key, if the member takes it.
    pub(super) async fn try_mark(
        &self,
        cluster: &Cluster,
        member: usize,
        key: &str,
    ) -> Result<(), Status> {
        let mut kv = cluster.members[member].kv();
        let answer = in_time(kv.put(put(key, 1))).await.map(drop);
        let known = match &answer {
            Ok(()) => Known { answered: Some(1), open: Vec::new() },
            Err(_) => Known { answered: None, open: vec![Some(1)] },
        };
        self.book.borrow_mut().own.insert(key.to_owned(), known);
        answer
    }

    /// Starts clients of a member.
    pub(super) fn on(&mut self, cluster: &Cluster, member: usize, clients: usize) {
        for _ in 0..clients {
            self.started += 1;
            let number = self.started;
            let client = Client {
                number,
                member,
                kv: cluster.members[member].kv(),
                book: Rc::clone(&self.book),
                dice: Dice(self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ number),
                writes: 0,
                generations: BTreeMap::new(),
            };
            self.clients.push(tokio::task::spawn_local(client.run(self.stop.subscribe())));
        }
    }

    /// Starts clients of all members that run.
    pub(super) fn on_all(&mut self, cluster: &Cluster, clients: usize) {
        for member in 0..cluster.members.len() {
            self.on(cluster, member, clients);
        }
    }

    /// Lets the load go on until so many more requests were answered by a member.
    pub(super) async fn answered(&self, member: usize, more: u64) {
        const DEADLINE: Duration = Duration::from_secs(60);
        let count = || self.book.borrow().answered.get(&member).copied().unwrap_or(0);
        let (before, started) = (count(), Instant::now());
        while count() < before + more {
            let errors = self.book.borrow().errors.get(&member).cloned();
            assert!(started.elapsed() < DEADLINE, "m{member} answers too little, but {errors:?}");
            sleep(PACE).await;
        }
    }

    /// Ends all clients; those that wait for an answer get it, or not.
    pub(super) async fn stop(&mut self) {
        self.stop.send_replace(true);
        for client in self.clients.drain(..) {
            client.await.expect("a client does not panic");
        }
        self.stop.send_replace(false);
    }
}

struct Client {
    number: u64,
    member: usize,
    kv: KvClient<Channel>,
    book: SharedBook,
    dice: Dice,
    writes: u64,
    /// Of keys that had to be left alone, how many there were before.
    generations: BTreeMap<String, u64>,
}

impl Client {
    async fn run(mut self, stop: watch::Receiver<bool>) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            pace.tick().await;
            let result = match self.dice.below(100) {
                0..40 => self.put_own().await,
                40..50 => self.delete_own().await,
                50..60 => self.compare_and_put().await,
                60..70 => self.put_pair().await,
                70..80 => self.write_shared(true).await,
                80..85 => self.write_shared(false).await,
                _ => self.get_own().await,
            };
            if !self.note(result) {
                sleep(ERROR_PAUSE).await;
            }
        }
    }

    /// Answers whether it was an answer.
    fn note<T>(&self, result: Result<T, Status>) -> bool {
        let mut book = self.book.borrow_mut();
        let Err(status) = result else {
            *book.answered.entry(self.member).or_default() += 1;
            return true;
        };
        let errors = book.errors.entry(self.member).or_default();
        *errors.entry(status.message().to_owned()).or_default() += 1;
        false
    }

    fn next_value(&mut self) -> u64 {
        self.writes += 1;
        (self.number << COUNT_BITS) | self.writes
    }

    fn own_key(&mut self) -> String {
        let slot = format!("own/{}/{}", self.number, self.dice.below(OWN_KEYS));
        let generation = self.generations.get(&slot).copied().unwrap_or(0);
        format!("{slot}.{generation}")
    }

    fn leave_alone(&mut self, key: &str) {
        let slot = key.rsplit_once('.').map_or(key, |(slot, _)| slot);
        *self.generations.entry(slot.to_owned()).or_default() += 1;
    }

    fn ask(&self, keys: &[&str], value: Value) {
        let mut book = self.book.borrow_mut();
        for key in keys {
            book.own.entry((*key).to_owned()).or_default().open.push(value);
        }
    }

    fn take_answer(&self, keys: &[&str], value: Value) {
        let mut book = self.book.borrow_mut();
        for key in keys {
            let known = Known { answered: value, open: Vec::new() };
            book.own.insert((*key).to_owned(), known);
        }
    }

    fn known(&self, key: &str) -> Value {
        self.book.borrow().own.get(key).and_then(|known| known.answered)
    }

    /// Writes to keys of its own.
    async fn write(
        &mut self,
        keys: &[&str],
        value: Value,
        request: pb::TxnRequest,
    ) -> Result<(), Status> {
        self.ask(keys, value);
        match in_time(self.kv.txn(request)).await {
            Ok(_) => {
                self.take_answer(keys, value);
                Ok(())
            }
            Err(status) => {
                self.leave_alone(keys[0]);
                Err(status)
            }
        }
    }

    async fn put_own(&mut self) -> Result<(), Status> {
        let (key, value) = (self.own_key(), self.next_value());
        self.ask(&[&key], Some(value));
        if let Err(status) = in_time(self.kv.put(put(&key, value))).await {
            self.leave_alone(&key);
            return Err(status);
        }
        self.take_answer(&[&key], Some(value));
        Ok(())
    }

    async fn delete_own(&mut self) -> Result<(), Status> {
        let key = self.own_key();
        self.ask(&[&key], None);
        if let Err(status) = in_time(self.kv.delete_range(delete(&key))).await {
            self.leave_alone(&key);
            return Err(status);
        }
        self.take_answer(&[&key], None);
        Ok(())
    }

    async fn put_pair(&mut self) -> Result<(), Status> {
        let slot = format!("pair/{}", self.number);
        let generation = self.generations.get(&slot).copied().unwrap_or(0);
        let value = self.next_value();
        let [a, b] = ["a", "b"].map(|half| format!("{slot}/{generation}/{half}"));
        let success = vec![op(put(&a, value)), op(put(&b, value))];
        let request = pb::TxnRequest { success, ..Default::default() };
        let written = self.write(&[&a, &b], Some(value), request).await;
        if written.is_err() {
            *self.generations.entry(slot).or_default() += 1;
        }
        written
    }

    /// Replaces a value that nobody else can have changed.
    async fn compare_and_put(&mut self) -> Result<(), Status> {
        let (key, value) = (self.own_key(), self.next_value());
        let Some(known) = self.known(&key) else { return Ok(()) };
        let compare = pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Value.into(),
            key: Bytes::from(key.clone()),
            target_union: Some(TargetUnion::Value(text(known))),
            ..Default::default()
        };
        let success = vec![op(put(&key, value))];
        let request = pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        self.ask(&[&key], Some(value));
        match in_time(self.kv.txn(request)).await {
            Ok(answer) if answer.succeeded => self.take_answer(&[&key], Some(value)),
            Ok(_) => {
                self.take_answer(&[&key], Some(known));
                self.note_stale(&format!("a compare of {key} with {known} failed"));
            }
            Err(status) => {
                self.leave_alone(&key);
                return Err(status);
            }
        }
        Ok(())
    }

    async fn get_own(&mut self) -> Result<(), Status> {
        let key = self.own_key();
        let request = pb::RangeRequest { key: Bytes::from(key.clone()), ..Default::default() };
        let answer = in_time(self.kv.range(request)).await?;
        let found = answer.kvs.first().and_then(|kv| number(&kv.value));
        let known = self.known(&key);
        if found != known {
            self.note_stale(&format!("{key} was {found:?} instead of {known:?}"));
        }
        Ok(())
    }

    fn note_stale(&self, what: &str) {
        self.book.borrow_mut().stale.push(format!("on m{}: {what}", self.member));
    }

    async fn write_shared(&mut self, is_put: bool) -> Result<(), Status> {
        let key = format!("shared/{}", self.dice.below(SHARED_KEYS));
        let value = is_put.then(|| self.next_value());
        let asked = Instant::now();
        let result = match value {
            Some(value) => in_time(self.kv.put(put(&key, value))).await.map(drop),
            None => in_time(self.kv.delete_range(delete(&key))).await.map(drop),
        };
        let answered = result.is_ok().then(Instant::now);
        self.book.borrow_mut().shared.push(SharedWrite { key, value, asked, answered });
        result
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
    timeout(ANSWER_TIMEOUT, call).await.unwrap_or_else(late).map(tonic::Response::into_inner)
}

fn text(value: u64) -> Bytes {
    Bytes::from(value.to_string())
}

/// The number that a value stands for.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

pub(super) fn put(key: &str, value: u64) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::from(key.to_owned()), value: text(value), ..Default::default() }
}

pub(super) fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: Bytes::from(key.to_owned()), ..Default::default() }
}

fn op(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}
