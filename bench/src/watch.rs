//! Fan-out: one key is written in a closed loop, and many watchers hear of it.
//!
//! CPU per event is net of the puts: what a put costs without watchers is measured in the same round. The load ends
//! when every watcher has heard of every put, so that what a server puts off counts as well.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::Outcome;
use crate::client::Connection;
use crate::data::Random;
use crate::server::Server;
use crate::work::put_request;

/// Puts in flight.
const PUTTERS: usize = 16;
const PUT_CONNECTIONS: usize = 2;
/// Connections that the streams share.
const WATCH_CONNECTIONS_MAX: usize = 10;
const KEY: &[u8] = b"/watched";
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

/// A fan-out: how many streams of how many watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanOut {
    /// Watch calls.
    pub streams: usize,
    /// Watchers on each of them.
    pub watchers: usize,
}

/// What a load has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Puts that were answered.
    pub puts: u64,
    /// Events that were heard.
    pub events: u64,
    /// CPU time of the server.
    pub cpu: Duration,
    /// From the first put to the last event.
    pub length: Duration,
}

impl Cost {
    /// CPU time per event, in microseconds, less what the puts cost in `plain`.
    pub fn net_us_per_event(&self, plain: &Self) -> f64 {
        let put = plain.cpu.as_secs_f64() / plain.puts.max(1) as f64;
        (self.cpu.as_secs_f64() - put * self.puts as f64) * 1e6 / self.events.max(1) as f64
    }
}

/// Runs a load; without streams, the puts alone.
pub fn run(server: &Server, fan_out: FanOut, length: Duration) -> Outcome<Cost> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, drive(server, fan_out, length))
}

async fn drive(server: &Server, fan_out: FanOut, length: Duration) -> Outcome<Cost> {
    let heard = Rc::new(Cell::new(0));
    let watchers = watch_all(server, fan_out, &heard).await?;
    let (start, cpu) = (Instant::now(), server.cpu());
    let puts = put_until(server, start + length).await?;
    let expected = puts * (fan_out.streams * fan_out.watchers) as u64;
    while heard.get() < expected {
        if start.elapsed() > length + PATIENCE {
            return Err(format!("{} of {expected} events came", heard.get()).into());
        }
        tokio::time::sleep(POLL).await;
    }
    let cost = Cost { puts, events: heard.get(), cpu: server.cpu() - cpu, length: start.elapsed() };
    drop(watchers);
    Ok(cost)
}

/// Dropping it ends the watches.
type Requests = mpsc::Sender<pb::WatchRequest>;

async fn watch_all(
    server: &Server,
    fan_out: FanOut,
    heard: &Rc<Cell<u64>>,
) -> Outcome<Vec<Requests>> {
    let mut connections = Vec::new();
    for _ in 0..fan_out.streams.min(WATCH_CONNECTIONS_MAX) {
        connections.push(Connection::open(server.port()).await?);
    }
    let mut streams = Vec::new();
    for i in 0..fan_out.streams {
        let connection = &connections[i % connections.len()];
        let (requests, events) = watch(connection, fan_out.watchers).await?;
        tokio::task::spawn_local(hear(events, Rc::clone(heard)));
        streams.push(requests);
    }
    Ok(streams)
}

async fn watch(
    connection: &Connection,
    watchers: usize,
) -> Outcome<(Requests, Streaming<pb::WatchResponse>)> {
    let (requests, receiver) = mpsc::channel(watchers);
    for _ in 0..watchers {
        let create = pb::WatchCreateRequest { key: Bytes::from_static(KEY), ..Default::default() };
        let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        requests.send(pb::WatchRequest { request_union }).await?;
    }
    let mut events = connection.watch().watch(ReceiverStream::new(receiver)).await?.into_inner();
    for _ in 0..watchers {
        let created = events.message().await?.is_some_and(|reply| reply.created);
        if !created {
            return Err("a watcher was not created".into());
        }
    }
    Ok((requests, events))
}

async fn hear(mut events: Streaming<pb::WatchResponse>, heard: Rc<Cell<u64>>) {
    // It ends with the load; events that are missing show there.
    while let Ok(Some(reply)) = events.message().await {
        heard.set(heard.get() + reply.events.len() as u64);
    }
}

async fn put_until(server: &Server, end: Instant) -> Outcome<u64> {
    let mut connections = Vec::new();
    for _ in 0..PUT_CONNECTIONS {
        connections.push(Connection::open(server.port()).await?);
    }
    let mut putters = Vec::new();
    for i in 0..PUTTERS {
        let mut kv = connections[i % PUT_CONNECTIONS].kv();
        let putter = async move {
            let (mut random, mut puts) = (Random::new(i as u64), 0);
            while Instant::now() < end {
                kv.put(put_request(Bytes::from_static(KEY), &mut random)).await?;
                puts += 1;
            }
            Outcome::Ok(puts)
        };
        putters.push(tokio::task::spawn_local(putter));
    }
    let mut puts = 0;
    for putter in putters {
        puts += putter.await??;
    }
    Ok(puts)
}
