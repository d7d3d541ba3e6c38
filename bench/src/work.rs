//! What a client asks, over and over, and the closed loop that does it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::Outcome;
use crate::client::Connection;
use crate::data::{self, Random};
use crate::measure::{Window, own_cpu};
use crate::server::Server;

/// Of ten mixed operations so many are gets.
const MIXED_GETS_OF_TEN: u64 = 8;
/// Pairs of a page.
const PAGE_PAIRS: i64 = 500;
/// Long enough that no lease ends within a run.
const LEASE_SECONDS: i64 = 600;
/// Of the clients of reads beside writes every ninth reads.
const READER_AMONG: usize = 9;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// All keys in order, once.
    Fill,
    /// A put of a key at random.
    Put,
    /// A get of a key at random.
    Get,
    /// The 100 keys of a prefix.
    Range,
    /// How many keys a prefix of 10 000 has.
    Count,
    /// How many keys there are.
    CountAll,
    /// Compare-and-swap of a key of the client's own.
    Txn,
    /// Four gets for each put.
    Mixed,
    /// Gets, while eight times as many clients put. Only the gets count.
    ReadsUnderPuts,
    /// Starts the time of a lease anew.
    KeepAlive,
    /// The first keys of all.
    PageOfAll,
    /// The first keys of 10 000.
    PageOfRegion,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fill => "fill",
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::Count => "count",
            Self::CountAll => "count-all",
            Self::Txn => "txn",
            Self::Mixed => "mixed",
            Self::ReadsUnderPuts => "reads-under-puts",
            Self::KeepAlive => "keep-alive",
            Self::PageOfAll => "page-of-all",
            Self::PageOfRegion => "page-of-10k",
        })
    }
}

/// A load: what, by how many, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The operation.
    pub work: Work,
    /// Clients, each with one operation at a time.
    pub clients: usize,
    /// Connections that they share.
    pub connections: usize,
    /// Threads that the connections share.
    pub threads: usize,
    /// The keys that there are.
    pub keys: u64,
    /// Not counted, at the beginning.
    pub warm_up: Duration,
    /// What is counted.
    pub window: Duration,
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What all clients of a load share.
struct Shared {
    load: Load,
    port: u16,
    phase: AtomicU8,
    next: AtomicU64,
    filled: AtomicBool,
    ready: Barrier,
}

/// Runs a load and answers what was measured.
pub fn run(server: &Server, load: &Load) -> Outcome<Window> {
    run_until(server, load, || thread::sleep(load.window))
}

/// The same; the window is as long as `body` takes.
pub fn run_until(server: &Server, load: &Load, body: impl FnOnce()) -> Outcome<Window> {
    let threads = load.threads.min(load.connections).max(1);
    let shared = Shared {
        load: *load,
        port: server.port(),
        phase: AtomicU8::new(WARMING_UP),
        next: AtomicU64::new(0),
        filled: AtomicBool::new(false),
        ready: Barrier::new(threads + 1),
    };
    let shared = Arc::new(shared);
    let start = |i| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || run_thread(&shared, i, threads))
    };
    let threads: Vec<_> = (0..threads).map(start).collect();
    shared.ready.wait();
    thread::sleep(load.warm_up);
    let mut window = Window::default();
    let (start, server_cpu, client_cpu) = (Instant::now(), server.cpu(), own_cpu());
    shared.phase.store(MEASURING, Ordering::Relaxed);
    body();
    shared.phase.store(OVER, Ordering::Relaxed);
    window.length = start.elapsed();
    window.server_cpu = server.cpu() - server_cpu;
    window.client_cpu = own_cpu().saturating_sub(client_cpu);
    for thread in threads {
        let (operations, latencies) = thread.join().map_err(|_| "a client panicked")??;
        window.operations += operations;
        window.latencies.extend(latencies);
    }
    Ok(window)
}

/// Puts all keys, in order.
pub fn fill(server: &Server, load: &Load) -> Outcome<Duration> {
    let start = Instant::now();
    let load = Load { work: Work::Fill, warm_up: Duration::ZERO, ..*load };
    let shared = Shared {
        load,
        port: server.port(),
        phase: AtomicU8::new(MEASURING),
        next: AtomicU64::new(0),
        filled: AtomicBool::new(false),
        ready: Barrier::new(1),
    };
    run_thread(&Arc::new(shared), 0, 1)?;
    Ok(start.elapsed())
}

type Done = (u64, Vec<u32>);

fn run_thread(shared: &Arc<Shared>, thread: usize, threads: usize) -> Outcome<Done> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let clients = start_clients(shared, thread, threads).await;
        // Also if that failed: the others wait.
        shared.ready.wait();
        let mut done = (0, Vec::new());
        for client in clients? {
            let (operations, latencies) = client.await??;
            done.0 += operations;
            done.1.extend(latencies);
        }
        Ok(done)
    })
}

async fn start_clients(
    shared: &Arc<Shared>,
    thread: usize,
    threads: usize,
) -> Outcome<Vec<JoinHandle<Outcome<Done>>>> {
    let Load { connections, clients, .. } = shared.load;
    let mut open = Vec::new();
    for _ in (thread..connections).step_by(threads) {
        open.push(Connection::open(shared.port).await?);
    }
    let mut started = Vec::new();
    for number in (0..clients).filter(|number| number % connections % threads == thread) {
        let connection = &open[number % connections / threads];
        let client = Client::new(Arc::clone(shared), connection, number).await?;
        started.push(tokio::spawn(client.run()));
    }
    Ok(started)
}

struct Client {
    shared: Arc<Shared>,
    kv: KvClient<Connection>,
    random: Random,
    number: usize,
    /// Of a client that compares and swaps: what its key was written at.
    written: i64,
    lease: Option<Lease>,
}

struct Lease {
    id: i64,
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Client {
    async fn new(shared: Arc<Shared>, connection: &Connection, number: usize) -> Outcome<Self> {
        let kv = connection.kv();
        let random = Random::new(seed() + number as u64);
        let mut client = Self { shared, kv, random, number, written: 0, lease: None };
        match client.shared.load.work {
            Work::Txn => client.written = client.first_revision().await?,
            Work::KeepAlive => client.lease = Some(Lease::grant(connection).await?),
            _ => {}
        }
        Ok(client)
    }

    /// Repeats the operation until time is up.
    async fn run(mut self) -> Outcome<Done> {
        let (mut operations, mut latencies) = (0, Vec::new());
        let counts = self.counts();
        while !self.is_over() {
            let (start, counted) = (Instant::now(), self.is_measuring());
            self.operate().await?;
            let ended_in_time = self.is_measuring();
            operations += u64::from(ended_in_time && counts);
            if counted && ended_in_time && counts {
                latencies.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
        Ok((operations, latencies))
    }

    fn is_over(&self) -> bool {
        self.shared.phase.load(Ordering::Relaxed) == OVER
            || self.shared.filled.load(Ordering::Relaxed)
    }

    fn is_measuring(&self) -> bool {
        self.shared.phase.load(Ordering::Relaxed) == MEASURING
    }

    fn counts(&self) -> bool {
        self.shared.load.work != Work::ReadsUnderPuts || self.reads()
    }

    fn reads(&self) -> bool {
        self.number.is_multiple_of(READER_AMONG)
    }

    async fn operate(&mut self) -> Outcome {
        let number = self.random.below(self.shared.load.keys);
        match self.shared.load.work {
            Work::Fill => self.fill().await,
            Work::Put => self.put(number).await,
            Work::Get => self.get(number).await,
            Work::Range => self.range(data::group(number), 0).await,
            Work::Count => self.count(data::region(number)).await,
            Work::CountAll => self.count(data::everything()).await,
            Work::Txn => self.swap().await,
            Work::Mixed if self.random.below(10) < MIXED_GETS_OF_TEN => self.get(number).await,
            Work::ReadsUnderPuts if self.reads() => self.get(number).await,
            Work::Mixed | Work::ReadsUnderPuts => self.put(number).await,
            Work::KeepAlive => self.lease.as_mut().ok_or("no lease")?.keep_alive().await,
            Work::PageOfAll => self.page(data::everything().1).await,
            Work::PageOfRegion => self.page(data::region(0).1).await,
        }
    }

    async fn fill(&mut self) -> Outcome {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.shared.load.keys {
            self.shared.filled.store(true, Ordering::Relaxed);
            return Ok(());
        }
        self.put(number).await
    }

    async fn put(&mut self, number: u64) -> Outcome {
        let request = put_request(data::key(number), &mut self.random);
        self.kv.put(request).await?;
        Ok(())
    }

    async fn get(&mut self, number: u64) -> Outcome {
        let reply = self.kv.range(get_request(number)).await?.into_inner();
        if reply.kvs.len() == 1 { Ok(()) } else { Err("a key is missing".into()) }
    }

    async fn range(&mut self, (key, range_end): (Bytes, Bytes), limit: i64) -> Outcome {
        let request = pb::RangeRequest { key, range_end, limit, ..Default::default() };
        let reply = self.kv.range(request).await?.into_inner();
        let whole = reply.kvs.len() as u64 == data::KEYS_PER_GROUP
            || i64::try_from(reply.kvs.len()) == Ok(limit);
        if whole { Ok(()) } else { Err("a range has lost keys".into()) }
    }

    /// From a key of the first half of the first 10 000, so that both pages are full.
    async fn page(&mut self, range_end: Bytes) -> Outcome {
        let (key, _) = data::group(self.random.below(data::KEYS_PER_REGION / 2));
        self.range((key, range_end), PAGE_PAIRS).await
    }

    async fn count(&mut self, (key, range_end): (Bytes, Bytes)) -> Outcome {
        let request = pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
        let reply = self.kv.range(request).await?.into_inner();
        if reply.count > 0 { Ok(()) } else { Err("nothing was counted".into()) }
    }

    fn own_key(&self) -> Bytes {
        data::key(self.number as u64 * self.shared.load.keys / self.shared.load.clients as u64)
    }

    async fn first_revision(&mut self) -> Outcome<i64> {
        let request = pb::RangeRequest { key: self.own_key(), ..Default::default() };
        let reply = self.kv.range(request).await?.into_inner();
        Ok(reply.kvs.first().map_or(0, |pair| pair.mod_revision))
    }

    async fn swap(&mut self) -> Outcome {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        let key = self.own_key();
        let compare = pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(self.written)),
            ..Default::default()
        };
        let put = pb::request_op::Request::RequestPut(put_request(key, &mut self.random));
        let success = vec![pb::RequestOp { request: Some(put) }];
        let request = pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let reply = self.kv.txn(request).await?.into_inner();
        self.written = reply.header.map_or(0, |header| header.revision);
        if reply.succeeded { Ok(()) } else { Err("somebody else wrote a client's key".into()) }
    }
}

impl Lease {
    async fn grant(connection: &Connection) -> Outcome<Self> {
        let mut client = connection.lease();
        let request = pb::LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
        let id = client.lease_grant(request).await?.into_inner().id;
        let (requests, receiver) = mpsc::channel(1);
        // The answer may begin only with the first request.
        requests.send(pb::LeaseKeepAliveRequest { id }).await?;
        let mut answers =
            client.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
        answers.message().await?;
        Ok(Self { id, requests, answers })
    }

    async fn keep_alive(&mut self) -> Outcome {
        self.requests.send(pb::LeaseKeepAliveRequest { id: self.id }).await?;
        let answer = self.answers.message().await?.ok_or("the keep-alive ended")?;
        if answer.ttl > 0 { Ok(()) } else { Err("a lease has ended".into()) }
    }
}

/// Other keys every time.
fn seed() -> u64 {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    RUNS.fetch_add(7919, Ordering::Relaxed)
}

/// A get of one key.
pub fn get_request(number: u64) -> pb::RangeRequest {
    pb::RangeRequest { key: data::key(number), ..Default::default() }
}

/// A put of some value.
pub fn put_request(key: Bytes, random: &mut Random) -> pb::PutRequest {
    pb::PutRequest { key, value: data::value(random), ..Default::default() }
}
