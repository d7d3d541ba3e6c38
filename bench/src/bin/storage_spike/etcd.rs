//! The same questions to a real etcd: it runs as a child, the load comes over gRPC.
//!
//! CPU per operation is the server's, so it holds gRPC, Raft and bbolt together; memory, disk and
//! start-up compare directly with the candidates.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::{Channel, Endpoint};

use crate::Outcome;
use crate::load::{KEYS_PER_GROUP, Random, group, key, value};
use crate::measure::{disk_mib, figure, rss_mib, written_mib};
use crate::options::Options;

const CONNECTIONS: usize = 8;
const REQUESTS_PER_CONNECTION: u64 = 16;
const START_PATIENCE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(3);
const TICKS_PER_SECOND: f64 = 100.0;
const CLIENT_PORT: u64 = 23_790;

struct Server {
    child: Child,
    pid: String,
    endpoint: Endpoint,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is fine as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(options: &Options, directory: &Path) -> Outcome<Self> {
        let port = options.number("port", CLIENT_PORT);
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", port + 1);
        let child = Command::new(options.text("etcd", "etcd"))
            .arg("--data-dir")
            .arg(directory)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--quota-backend-bytes", "8589934592", "--log-level", "error"])
            .stdout(Stdio::null())
            .spawn()?;
        let pid = child.id().to_string();
        Ok(Self { child, pid, endpoint: Endpoint::from_shared(client)? })
    }

    fn cpu_us(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // User and system time are the 14th and 15th field, the 12th and 13th behind the name.
        let fields =
            text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
        ticks / TICKS_PER_SECOND * 1e6
    }

    /// Connects once a first read is answered.
    async fn connect(&self) -> Outcome<Channel> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Ok(channel) = self.endpoint.connect().await {
                let request = RangeRequest { key: Bytes::from_static(b"/"), ..Default::default() };
                if KvClient::new(channel.clone()).range(request).await.is_ok() {
                    return Ok(channel);
                }
            }
            if Instant::now() > deadline {
                return Err("etcd did not come up".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn memory_and_disk(&self, phase: &str, directory: &Path) {
        figure(phase, "rss_mib", rss_mib(&self.pid));
        figure(phase, "disk_mib", disk_mib(directory));
        figure(phase, "written_mib", written_mib(&self.pid));
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Fill,
    Put,
    Get,
    Range,
}

pub(crate) fn etcd(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(drive(options))
}

async fn drive(options: &Options) -> Outcome {
    let directory = options.directory()?;
    let server = Server::start(options, &directory)?;
    drop(server.connect().await?);
    tokio::time::sleep(SETTLE).await;
    server.memory_and_disk("empty", &directory);
    load(&server, options, "fill", Operation::Fill, REQUESTS_PER_CONNECTION).await?;
    tokio::time::sleep(SETTLE).await;
    server.memory_and_disk("fill", &directory);
    drop(server);

    let start = Instant::now();
    let server = Server::start(options, &directory)?;
    drop(server.connect().await?);
    figure("open", "total_ms", start.elapsed().as_secs_f64() * 1e3);
    figure("open", "rss_mib", rss_mib(&server.pid));
    tokio::time::sleep(SETTLE).await;
    server.memory_and_disk("opened", &directory);
    load(&server, options, "fresh.get_uniform", Operation::Get, REQUESTS_PER_CONNECTION).await?;
    load(&server, options, "fresh.range", Operation::Range, 4).await?;
    load(&server, options, "put", Operation::Put, REQUESTS_PER_CONNECTION).await?;
    load(&server, options, "put_one_at_a_time", Operation::Put, 0).await?;
    load(&server, options, "scattered.get_uniform", Operation::Get, REQUESTS_PER_CONNECTION)
        .await?;
    load(&server, options, "scattered.range", Operation::Range, 4).await?;
    server.memory_and_disk("end", &directory);
    Ok(())
}

/// Closed loop: `per_connection` requests in flight on each connection; zero means one in all.
async fn load(
    server: &Server,
    options: &Options,
    name: &str,
    what: Operation,
    per_connection: u64,
) -> Outcome {
    let keys = options.number("keys", 100_000);
    let length = Duration::from_millis(options.number("millis", 3000));
    let next = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let (start, cpu) = (Instant::now(), server.cpu_us());
    let mut workers = Vec::new();
    for connection in 0..if per_connection == 0 { 1 } else { CONNECTIONS } {
        let channel = server.connect().await?;
        for slot in 0..per_connection.max(1) {
            let worker = Worker {
                client: KvClient::new(channel.clone()),
                random: Random::new(connection as u64 * 1000 + slot + 1),
                keys,
                next: next.clone(),
                done: done.clone(),
            };
            workers.push(tokio::spawn(worker.work(what, start + length)));
        }
    }
    for worker in workers {
        worker.await??;
    }
    let operations = done.load(Ordering::Relaxed).max(1) as f64;
    figure(name, "wall_us", start.elapsed().as_secs_f64() * 1e6 / operations);
    figure(name, "cpu_us", (server.cpu_us() - cpu) / operations);
    Ok(())
}

struct Worker {
    client: KvClient<Channel>,
    random: Random,
    keys: u64,
    next: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

impl Worker {
    async fn work(mut self, what: Operation, end: Instant) -> Outcome {
        loop {
            let number = match what {
                Operation::Fill => self.next.fetch_add(1, Ordering::Relaxed),
                _ => self.random.below(self.keys),
            };
            let over = match what {
                Operation::Fill => number >= self.keys,
                _ => Instant::now() > end,
            };
            if over {
                return Ok(());
            }
            self.call(what, number).await?;
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn call(&mut self, what: Operation, number: u64) -> Outcome {
        let one = Bytes::copy_from_slice(&key(number));
        match what {
            Operation::Fill | Operation::Put => {
                let value = Bytes::copy_from_slice(&value(&mut self.random));
                self.client.put(PutRequest { key: one, value, ..Default::default() }).await?;
            }
            Operation::Get => {
                let reply =
                    self.client.range(RangeRequest { key: one, ..Default::default() }).await?;
                check(reply.into_inner().kvs.len(), 1)?;
            }
            Operation::Range => {
                let (start, end) = group(number / KEYS_PER_GROUP);
                let request = RangeRequest {
                    key: Bytes::copy_from_slice(&start),
                    range_end: Bytes::copy_from_slice(&end),
                    ..Default::default()
                };
                let reply = self.client.range(request).await?;
                check(reply.into_inner().kvs.len() as u64, KEYS_PER_GROUP)?;
            }
        }
        Ok(())
    }
}

fn check<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Outcome {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("found {found:?} keys, wanted {wanted:?}").into())
    }
}
