//! What a member counts, under the names that etcd's dashboards and alerts know.

mod cluster;

pub use cluster::{ClusterState, PeerState};

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// gRPC's codes as grpc-go spells them, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Ticks per second in `/proc/self/stat`: 100 on every Linux, whatever its kernel counts in.
const USER_HZ: f64 = 100.0;

/// The first bucket of commit times, and how many there are, each twice the one before: etcd's.
const COMMIT_SECONDS_FIRST: f64 = 0.001;
const COMMIT_BUCKETS: u16 = 14;

/// The same for replication, up to two minutes. Entries are stamped in milliseconds.
const REPLICATION_SECONDS_FIRST: f64 = 0.001;
const REPLICATION_BUCKETS: u16 = 18;

/// Whether an RPC has streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "gRPC's names say it")]
pub enum RpcKind {
    Unary,
    ServerStream,
    BidiStream,
}

impl RpcKind {
    fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// A label and its value.
type Label = (&'static str, &'static str);

/// The counters of a member. What it already knows elsewhere comes in as [`State`] when they are read.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Ranges that were read, those within transactions included; the same for the next two.
    pub ranges: Counter,
    /// Puts.
    pub puts: Counter,
    /// Deletes of ranges.
    pub deletes: Counter,
    /// Transactions of more than one step.
    pub txns: Counter,
    /// Leases granted.
    pub leases_granted: Counter,
    /// Leases revoked, by a client or because they ran out.
    pub leases_revoked: Counter,
    /// Writes that nobody has any more but the file of lost ones.
    pub lost_writes: Counter,
    /// How long each commit took, its fsync included, in seconds.
    pub commit_seconds: Histogram,
    /// How long entries of other members took until they were durable here, in seconds.
    pub replication_seconds: Histogram,
    /// Bytes that clients sent.
    pub received_bytes: Counter,
    /// Bytes that were sent to clients.
    pub sent_bytes: Counter,
    face_requests: Family<[Label; 2], Counter>,
    rpc_started: Family<[Label; 3], Counter>,
    rpc_handled: Family<[Label; 4], Counter>,
    started_seconds: f64,
}

/// What a member knows about itself, at the time of reading.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the metrics' names say it")]
pub struct State {
    pub member_id: String,
    pub server_version: &'static str,
    pub cluster_version: &'static str,
    pub revision: i64,
    pub compact_revision: i64,
    pub keys: u64,
    pub disk_bytes: u64,
    pub live_bytes: u64,
    pub quota_bytes: u64,
    pub watch_streams: u64,
    pub watchers: u64,
    pub entries: u64,
    /// For a member that has or had peers.
    pub cluster: Option<ClusterState>,
}

/// The counters of one RPC, looked up once.
#[derive(Clone, Debug)]
pub struct RpcMetrics {
    started: Counter,
    handled: [Counter; CODES.len()],
}

impl RpcMetrics {
    /// A call came in.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A call ended with this gRPC code.
    pub fn handled(&self, code: usize) {
        if let Some(counter) = self.handled.get(code) {
            counter.inc();
        }
    }
}

/// The counters of an HTTP interface of an earlier system.
#[derive(Clone, Debug)]
pub struct FaceMetrics {
    /// Requests that got what they wanted.
    pub good: Counter,
    /// Requests that did not.
    pub bad: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            ranges: Counter::default(),
            puts: Counter::default(),
            deletes: Counter::default(),
            txns: Counter::default(),
            leases_granted: Counter::default(),
            leases_revoked: Counter::default(),
            lost_writes: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(
                COMMIT_SECONDS_FIRST,
                2.0,
                COMMIT_BUCKETS,
            )),
            replication_seconds: Histogram::new(exponential_buckets(
                REPLICATION_SECONDS_FIRST,
                2.0,
                REPLICATION_BUCKETS,
            )),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            face_requests: Family::default(),
            rpc_started: Family::default(),
            rpc_handled: Family::default(),
            started_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        };
        // The registry appends `_total` to counters itself.
        let registry = &mut metrics.registry;
        registry.register("etcd_mvcc_range", "Ranges seen by this member", metrics.ranges.clone());
        registry.register("etcd_mvcc_put", "Puts seen by this member", metrics.puts.clone());
        registry.register(
            "etcd_mvcc_delete",
            "Deletes seen by this member",
            metrics.deletes.clone(),
        );
        registry.register(
            "etcd_mvcc_txn",
            "Transactions seen by this member",
            metrics.txns.clone(),
        );
        for (name, help, counter) in [
            ("etcd_debugging_lease_granted", "Leases granted", &metrics.leases_granted),
            ("etcd_debugging_lease_revoked", "Leases revoked", &metrics.leases_revoked),
            (
                "etcd_network_client_grpc_received_bytes",
                "Bytes received from clients",
                &metrics.received_bytes,
            ),
            ("etcd_network_client_grpc_sent_bytes", "Bytes sent to clients", &metrics.sent_bytes),
        ] {
            registry.register(name, help, counter.clone());
        }
        // One commit here is both to etcd: the sync of its log and the commit of its backend.
        for name in
            ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"]
        {
            registry.register(name, "How long commits take", metrics.commit_seconds.clone());
        }
        registry.register(
            "starling_face_requests",
            "Requests by the HTTP interfaces of earlier systems, by whether they got what they wanted",
            metrics.face_requests.clone(),
        );
        registry.register("grpc_server_started", "RPCs started", metrics.rpc_started.clone());
        registry.register("grpc_server_handled", "RPCs completed", metrics.rpc_handled.clone());
        metrics
    }

    /// The counters of a face, which show from now on.
    pub fn face(&self, face: &'static str) -> FaceMetrics {
        let counter = |outcome| {
            self.face_requests.get_or_create_owned(&[("face", face), ("outcome", outcome)])
        };
        FaceMetrics { good: counter("good"), bad: counter("bad") }
    }

    /// When this member began to count, in seconds since 1970.
    pub fn started_seconds(&self) -> f64 {
        self.started_seconds
    }

    /// The counters of an RPC, all of which show from now on.
    pub fn rpc(&self, service: &'static str, method: &'static str, kind: RpcKind) -> RpcMetrics {
        let (method, service) = (("grpc_method", method), ("grpc_service", service));
        let kind = ("grpc_type", kind.label());
        let handled = |code| {
            self.rpc_handled.get_or_create_owned(&[("grpc_code", code), method, service, kind])
        };
        RpcMetrics {
            started: self.rpc_started.get_or_create_owned(&[method, service, kind]),
            handled: CODES.map(handled),
        }
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self, state: &State) -> String {
        let mut now = Registry::default();
        register_state(&mut now, state);
        if let Some(cluster) = &state.cluster {
            cluster::register(&mut now, cluster, &self.replication_seconds);
            now.register(
                "starling_lost_writes",
                "Writes that only lost-and-found has, since this member was removed before others had them",
                self.lost_writes.clone(),
            );
        }
        self.register_process(&mut now);
        let mut text = String::new();
        for registry in [&self.registry, &now] {
            text::encode_registry(&mut text, registry).expect("writing to a string does not fail");
        }
        text_format(&text)
    }

    fn register_process(&self, now: &mut Registry) {
        let started = ConstGauge::new(self.started_seconds);
        now.register("process_start_time_seconds", "When the process started", started);
        let Some(process) = Process::read() else { return };
        now.register(
            "process_cpu_seconds",
            "CPU time used",
            ConstCounter::new(process.cpu_seconds),
        );
        gauge(now, "process_resident_memory_bytes", "Memory in use", process.resident_bytes);
        gauge(now, "process_virtual_memory_bytes", "Address space in use", process.virtual_bytes);
        gauge(now, "process_open_fds", "Open file descriptors", process.open_fds);
        gauge(now, "os_fd_used", "Open file descriptors", process.open_fds);
        if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge(now, "process_max_fds", "Most file descriptors that may be open", shown(limit));
            gauge(now, "os_fd_limit", "Most file descriptors that may be open", shown(limit));
        }
    }
}

fn register_state(now: &mut Registry, state: &State) {
    // Without a leader, every member leads for its clients.
    gauge(now, "etcd_server_has_leader", "Whether there is a leader", 1);
    gauge(now, "etcd_server_is_leader", "Whether this member is the leader", 1);
    let leader_changes = ConstCounter::new(0_u64);
    now.register("etcd_server_leader_changes_seen", "Changes of the leader", leader_changes);
    for (name, help) in [
        ("etcd_server_proposals_committed", "Entries that are durable"),
        ("etcd_server_proposals_applied", "Entries that can be read"),
    ] {
        // Gauges in etcd, too: they start where the log ends.
        gauge(now, &format!("{name}_total"), help, shown(state.entries));
    }
    gauge(now, "etcd_server_proposals_pending", "Entries on their way", 0);
    let failed = ConstCounter::new(0_u64);
    now.register("etcd_server_proposals_failed", "Entries that were given up", failed);
    labelled(now, "etcd_server_id", "Which member this is", ("server_id", state.member_id.clone()));
    let version = ("server_version", state.server_version.to_owned());
    labelled(now, "etcd_server_version", "Which version is running", version);
    let version = ("cluster_version", state.cluster_version.to_owned());
    labelled(now, "etcd_cluster_version", "Which version the cluster has", version);
    gauge(now, "etcd_server_quota_backend_bytes", "The storage quota", shown(state.quota_bytes));
    gauge(now, "etcd_mvcc_db_total_size_in_bytes", "The bytes on disk", shown(state.disk_bytes));
    gauge(
        now,
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "The bytes that can be read",
        shown(state.live_bytes),
    );
    gauge(now, "etcd_debugging_mvcc_keys_total", "The keys that live", shown(state.keys));
    let (streams, watchers) = (shown(state.watch_streams), shown(state.watchers));
    gauge(now, "etcd_debugging_mvcc_watch_stream_total", "Open watch streams", streams);
    gauge(now, "etcd_debugging_mvcc_watcher_total", "Watchers", watchers);
    let (current, compacted) = (state.revision, state.compact_revision);
    gauge(now, "etcd_debugging_mvcc_current_revision", "The current revision", current);
    gauge(now, "etcd_debugging_mvcc_compact_revision", "The last compaction", compacted);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    registry.register(name, help, ConstGauge::new(value));
}

/// A gauge that is 1 and says something in its label.
fn labelled(registry: &mut Registry, name: &str, help: &str, label: (&'static str, String)) {
    let family = Family::<[(&'static str, String); 1], Gauge>::default();
    family.get_or_create(&[label]).set(1);
    registry.register(name, help, family);
}

fn shown(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Turns OpenMetrics into the older text format, which every scraper reads: there, the name of a counter has its
/// `_total` in the comments, too.
fn text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let comment = lines.peek().copied().filter(|_| line.starts_with("# HELP ")).unwrap_or(line);
        let counter =
            comment.strip_prefix("# TYPE ").and_then(|typed| typed.strip_suffix(" counter"));
        match counter {
            Some(name) => text.push_str(&line.replacen(name, &format!("{name}_total"), 1)),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// What Linux knows about this process.
struct Process {
    cpu_seconds: f64,
    resident_bytes: i64,
    virtual_bytes: i64,
    open_fds: i64,
}

impl Process {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Some(Self {
            cpu_seconds: cpu_ticks(&stat)? / USER_HZ,
            resident_bytes: status_bytes(&status, "VmRSS:")?,
            virtual_bytes: status_bytes(&status, "VmSize:")?,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count().try_into().ok()?,
        })
    }
}

/// User and system time: the 14th and 15th field, of which the second may have spaces but is in brackets.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
    Some(fields.next()?? + fields.next()??)
}

/// A line of `/proc/self/status` that has kilobytes.
fn status_bytes(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape() -> String {
        let metrics = Metrics::new();
        metrics.puts.inc_by(3);
        let put = metrics.rpc("etcdserverpb.KV", "Put", RpcKind::Unary);
        put.started();
        put.handled(3);
        put.handled(99);
        metrics.encode(&State { keys: 7, server_version: "3.7.3", ..State::default() })
    }

    fn has_line(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }

    #[test]
    fn names_are_etcds() {
        let text = scrape();
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        has_line(&text, "etcd_mvcc_put_total 3");
        has_line(&text, "etcd_server_leader_changes_seen_total 0");
        has_line(&text, "etcd_debugging_mvcc_keys_total 7");
        has_line(&text, "etcd_server_version{server_version=\"3.7.3\"} 1");
        has_line(&text, &format!("grpc_server_started_total{{{labels}}} 1"));
        has_line(
            &text,
            &format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{labels}}} 1"),
        );
        has_line(&text, &format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 0"));
    }

    #[test]
    fn a_cluster_shows_its_peers() {
        let peer = |name: &str| PeerState {
            name: name.to_owned(),
            missing_there: 7,
            sent_bytes: 1234,
            heard_age_millis: Some(1500),
            ..PeerState::default()
        };
        let cluster = ClusterState {
            peers: [1, 0, 1],
            acks_waiting: [0, 5, 0],
            settled_age_millis: Some(90_000),
            held_back: Some(("c".to_owned(), "dead")),
            conflicts: 3,
            per_peer: vec![peer("b"), peer("c")],
            ..ClusterState::default()
        };
        let metrics = Metrics::new();
        metrics.replication_seconds.observe(0.003);
        let text = metrics.encode(&State { cluster: Some(cluster), ..State::default() });
        for line in [
            "starling_peers{state=\"dead\"} 1",
            "starling_acks_waiting{level=\"majority\"} 5",
            "starling_settled_age_seconds 90.0",
            "starling_settled_held_back{peer=\"c\",reason=\"dead\"} 1",
            "# TYPE starling_conflicts_total counter",
            "starling_conflicts_total 3",
            "starling_peer_missing_there_entries{peer=\"b\"} 7",
            "starling_peer_sent_bytes_total{peer=\"c\"} 1234",
            "starling_peer_heard_age_seconds{peer=\"c\"} 1.5",
            "starling_replication_delay_seconds_bucket{le=\"0.002\"} 0",
            "starling_replication_delay_seconds_bucket{le=\"0.004\"} 1",
        ] {
            has_line(&text, line);
        }
        assert!(!text.contains("starling_complete_age") && !scrape().contains("starling_"));
    }

    #[test]
    fn the_types_are_those_of_the_older_text_format() {
        let text = scrape();
        has_line(&text, "# TYPE etcd_mvcc_put_total counter");
        has_line(&text, "# HELP etcd_mvcc_put_total Puts seen by this member.");
        has_line(&text, "# TYPE etcd_debugging_mvcc_keys_total gauge");
        has_line(&text, "# TYPE process_cpu_seconds_total counter");
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn the_process_is_measured() {
        let process = Process::read().expect("Linux has /proc");
        assert!(process.resident_bytes > 0 && process.virtual_bytes >= process.resident_bytes);
        assert!(process.open_fds >= 3 && process.cpu_seconds >= 0.0);
        let stat = "1 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 250 50 0 0";
        assert_eq!(cpu_ticks(stat), Some(300.0));
    }
}
