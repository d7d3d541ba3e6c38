//! What a member counts, under the names that etcd's dashboards and alerts know.

mod cluster;
mod process;
mod seconds;

pub use cluster::{ClusterState, PeerState};
pub use seconds::Seconds;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use seconds::{Durations, Lazy};

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

/// Counters that etcd names without the suffix that all others have.
const WITHOUT_SUFFIX: [&str; 2] = ["etcd_server_health_success", "etcd_server_health_failures"];

/// What etcd calls the requests that its log is made of, and Range, where that is not the method's name; and those it does not
/// measure.
const REQUEST_TYPES: [(&str, &str); 5] = [
    ("Compact", "Compaction"),
    ("LeaseTimeToLive", ""),
    ("LeaseLeases", ""),
    ("Authenticate", "Authenticate"),
    ("AuthStatus", "AuthStatus"),
];

/// grpc-go's buckets for calls, if they are wanted.
const HANDLING_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// etcd's first bucket for what is quick, and how many there are.
const APPLY_SECONDS_FIRST: f64 = 0.0001;
const APPLY_BUCKETS: u16 = 20;
/// The same for what takes longer: hashes of everything, snapshots.
const HASH_SECONDS_FIRST: f64 = 0.01;
const HASH_BUCKETS: u16 = 15;
const SNAPSHOT_BUCKETS: u16 = 17;
/// The same for the lives of leases.
const TTL_BUCKETS: u16 = 24;

/// Versions of the API that clients are counted by; of more, the rest is unknown. They are what clients say.
const CLIENT_VERSIONS_MAX: usize = 16;
const UNKNOWN_VERSION: &str = "unknown";

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
    /// Writes that wait for their answers.
    pub writes_pending: Gauge,
    /// Writes that were given up: whether they were done is not known.
    pub writes_failed: Counter,
    /// Requests that took longer than `--warning-apply-duration`.
    pub slow_requests: Counter,
    /// Reads of a majority that took long, ...
    pub slow_reads: Counter,
    /// ... or were given up.
    pub failed_reads: Counter,
    /// Leases kept alive.
    pub leases_renewed: Counter,
    /// Leases that ran out.
    pub leases_expired: Counter,
    /// What leases were granted for, in seconds.
    pub lease_ttls: Histogram,
    /// Events sent to watchers.
    pub events: Counter,
    /// What commits have written, in bytes. A gauge in etcd.
    pub log_bytes: Counter,
    /// How long hashes over everything took, ...
    pub hash_seconds: Seconds,
    /// ... and those over what lives at a revision.
    pub hash_revision_seconds: Seconds,
    /// How long snapshots took to be written.
    pub snapshot_seconds: Seconds,
    /// Answers of `/health`, good ones ...
    pub health_success: Counter,
    /// ... and bad ones.
    pub health_failures: Counter,
    health_checks: Family<[Label; 2], Gauge>,
    health_checks_total: Family<[Label; 3], Counter>,
    compacted_at: AtomicI64,
    leader: Leader,
    rpc_started: Family<[Label; 3], Counter>,
    rpc_handled: Family<[Label; 4], Counter>,
    /// If every call is to be timed.
    rpc_seconds: Option<Durations<[Label; 3]>>,
    request_seconds: Durations<[Label; 2]>,
    apply_seconds: Durations<[Label; 3]>,
    client_requests: Family<[(&'static str, String); 2], Counter>,
    started_seconds: f64,
}

/// Who is shown as the leader, as far as scrapes have seen.
#[derive(Debug, Default)]
struct Leader {
    shown: Mutex<String>,
    changes: Counter,
}

/// What a kind of command costs, looked up once.
#[derive(Debug)]
pub struct ApplyMetrics([Lazy<[Label; 3]>; 2]);

impl ApplyMetrics {
    /// It was done, or refused, in this time.
    pub fn observe(&self, is_done: bool, time: Duration) {
        let [refused, done] = &self.0;
        (if is_done { done } else { refused }).observe(time);
    }
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
    pub auth_revision: u64,
    /// Whether a majority of the members is alive.
    pub has_majority: bool,
    /// The id of who is shown as the leader.
    pub leader_id: String,
    pub is_learner: bool,
    /// Whether data of another member is being taken over.
    pub is_catching_up: bool,
    /// The ids of all members, this one included.
    pub member_ids: Vec<String>,
    /// The alarms: whose, and which.
    pub alarms: Vec<(String, &'static str)>,
    /// For a member that has or had peers.
    pub cluster: Option<ClusterState>,
}

/// The counters of one RPC, looked up once.
#[derive(Debug)]
pub struct RpcMetrics {
    started: Counter,
    handled: [Counter; CODES.len()],
    seconds: Option<Lazy<[Label; 3]>>,
    /// What failed, and what did not, of what etcd measures.
    requests: Option<[Lazy<[Label; 2]>; 2]>,
}

impl RpcMetrics {
    /// A call came in.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A call ended with this gRPC code, after so long.
    pub fn handled(&self, code: usize, time: Duration) {
        if let Some(counter) = self.handled.get(code) {
            counter.inc();
        }
        if let Some(seconds) = &self.seconds {
            seconds.observe(time);
        }
        if let Some([failed, done]) = &self.requests {
            (if code == 0 { done } else { failed }).observe(time);
        }
    }
}

/// What etcd calls a request, if it measures it.
fn request_type(service: &str, method: &'static str) -> Option<&'static str> {
    if let Some((_, name)) = REQUEST_TYPES.iter().find(|(known, _)| *known == method) {
        return Some(*name).filter(|name| !name.is_empty());
    }
    match service {
        "etcdserverpb.KV" if method != "RangeStream" => Some(method),
        "etcdserverpb.Lease" if method != "LeaseKeepAlive" => Some(method),
        "etcdserverpb.Maintenance" if method == "Alarm" => Some(method),
        "etcdserverpb.Auth" => AUTH_TYPES.iter().copied().find(|it| it.ends_with(method)),
        _ => None,
    }
}

const AUTH_TYPES: [&str; 15] = [
    "AuthEnable",
    "AuthDisable",
    "AuthUserAdd",
    "AuthUserGet",
    "AuthUserList",
    "AuthUserDelete",
    "AuthUserChangePassword",
    "AuthUserGrantRole",
    "AuthUserRevokeRole",
    "AuthRoleAdd",
    "AuthRoleGet",
    "AuthRoleList",
    "AuthRoleDelete",
    "AuthRoleGrantPermission",
    "AuthRoleRevokePermission",
];

/// How many requests clients of one version of the API have made.
#[derive(Clone, Debug)]
pub struct ClientMetrics {
    /// Calls with one answer.
    pub unary: Counter,
    /// Calls with streams.
    pub streams: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        Self::start(false)
    }

    /// The same, with the time that each call takes (`--metrics=extensive`).
    pub fn extensive() -> Self {
        Self::start(true)
    }

    fn start(is_extensive: bool) -> Self {
        let rpc_seconds: Durations<[Label; 3]> =
            Family::new_with_constructor(|| Seconds::new(HANDLING_SECONDS));
        let long = |first, count| Seconds::new(exponential_buckets(first, 2.0, count));
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
            writes_pending: Gauge::default(),
            writes_failed: Counter::default(),
            slow_requests: Counter::default(),
            slow_reads: Counter::default(),
            failed_reads: Counter::default(),
            leases_renewed: Counter::default(),
            leases_expired: Counter::default(),
            lease_ttls: Histogram::new(exponential_buckets(1.0, 2.0, TTL_BUCKETS)),
            events: Counter::default(),
            log_bytes: Counter::default(),
            hash_seconds: long(HASH_SECONDS_FIRST, HASH_BUCKETS),
            hash_revision_seconds: long(HASH_SECONDS_FIRST, HASH_BUCKETS),
            snapshot_seconds: long(HASH_SECONDS_FIRST, SNAPSHOT_BUCKETS),
            health_success: Counter::default(),
            health_failures: Counter::default(),
            health_checks: Family::default(),
            health_checks_total: Family::default(),
            compacted_at: AtomicI64::new(0),
            leader: Leader::default(),
            rpc_started: Family::default(),
            rpc_handled: Family::default(),
            rpc_seconds: is_extensive.then_some(rpc_seconds),
            request_seconds: Family::new_with_constructor(|| {
                Seconds::new(exponential_buckets(COMMIT_SECONDS_FIRST, 2.0, COMMIT_BUCKETS))
            }),
            apply_seconds: Family::new_with_constructor(|| {
                Seconds::new(exponential_buckets(APPLY_SECONDS_FIRST, 2.0, APPLY_BUCKETS))
            }),
            client_requests: Family::default(),
            started_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        // The registry appends `_total` to counters itself.
        for (name, help, counter) in [
            ("etcd_mvcc_range", "Ranges seen by this member", &self.ranges),
            ("etcd_mvcc_put", "Puts seen by this member", &self.puts),
            ("etcd_mvcc_delete", "Deletes seen by this member", &self.deletes),
            ("etcd_mvcc_txn", "Transactions seen by this member", &self.txns),
            ("etcd_debugging_lease_granted", "Leases granted", &self.leases_granted),
            ("etcd_debugging_lease_revoked", "Leases revoked", &self.leases_revoked),
            ("etcd_debugging_lease_renewed", "Leases kept alive", &self.leases_renewed),
            ("etcd_debugging_server_lease_expired", "Leases that ran out", &self.leases_expired),
            ("etcd_debugging_mvcc_events", "Events sent to watchers", &self.events),
            (
                "etcd_network_client_grpc_received_bytes",
                "Bytes received from clients",
                &self.received_bytes,
            ),
            ("etcd_network_client_grpc_sent_bytes", "Bytes sent to clients", &self.sent_bytes),
            (
                "etcd_server_proposals_failed",
                "Writes that were given up: whether they were done is not known",
                &self.writes_failed,
            ),
            (
                "etcd_server_slow_apply",
                "Requests that took longer than --warning-apply-duration",
                &self.slow_requests,
            ),
            ("etcd_server_slow_read_indexes", "Majority reads that took long", &self.slow_reads),
            (
                "etcd_server_read_indexes_failed",
                "Majority reads that were given up",
                &self.failed_reads,
            ),
            ("etcd_server_health_success", "Good answers of /health", &self.health_success),
            ("etcd_server_health_failures", "Bad answers of /health", &self.health_failures),
            (
                "etcd_server_leader_changes_seen",
                "How often a scrape saw another leader than the one before",
                &self.leader.changes,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "etcd_server_proposals_pending",
            "Writes that wait for their answers",
            self.writes_pending.clone(),
        );
        // One commit here is both to etcd: the sync of its log and the commit of its backend.
        for name in
            ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"]
        {
            registry.register(name, "How long commits take", self.commit_seconds.clone());
        }
        let help = "What leases were granted for, in seconds";
        registry.register("etcd_debugging_lease_ttl_total", help, self.lease_ttls.clone());
        for (name, help, seconds) in [
            (
                "etcd_mvcc_hash_duration_seconds",
                "How long hashes of everything took",
                &self.hash_seconds,
            ),
            (
                "etcd_mvcc_hash_rev_duration_seconds",
                "How long hashes of what lives at a revision took",
                &self.hash_revision_seconds,
            ),
            (
                "etcd_disk_backend_snapshot_duration_seconds",
                "How long snapshots took to be written",
                &self.snapshot_seconds,
            ),
        ] {
            registry.register(name, help, seconds.clone());
        }
        let help = "How long requests took, their commit included";
        registry.register(
            "etcd_server_request_duration_seconds",
            help,
            self.request_seconds.clone(),
        );
        let help = "How long the evaluation of commands took";
        registry.register("etcd_server_apply_duration_seconds", help, self.apply_seconds.clone());
        let help = "Requests by the version that clients name";
        registry.register("etcd_server_client_requests", help, self.client_requests.clone());
        let help = "The last result of each check";
        registry.register("etcd_server_healthcheck", help, self.health_checks.clone());
        let help = "Checks of health, by their results";
        registry.register("etcd_server_healthchecks", help, self.health_checks_total.clone());
        registry.register("grpc_server_started", "RPCs started", self.rpc_started.clone());
        registry.register("grpc_server_handled", "RPCs completed", self.rpc_handled.clone());
        if let Some(seconds) = &self.rpc_seconds {
            let help = "How long RPCs took";
            registry.register("grpc_server_handling_seconds", help, seconds.clone());
        }
    }

    /// What a kind of command costs, by etcd's name for it.
    pub fn apply(&self, name: &'static str) -> ApplyMetrics {
        let labels = |success| [("version", "v3"), ("op", name), ("success", success)];
        ApplyMetrics(["false", "true"].map(|it| Lazy::new(&self.apply_seconds, labels(it))))
    }

    /// The counters for clients that name a version of the API. They may name anything, so only so many are told apart.
    pub fn client(&self, version: &str, known: usize) -> ClientMetrics {
        let is_version = |it: &u8| it.is_ascii_digit() || *it == b'.';
        let is_plain = version.len() <= 8 && version.as_bytes().iter().all(is_version);
        let is_shown = is_plain && !version.is_empty() && known < CLIENT_VERSIONS_MAX;
        let version = if is_shown { version } else { UNKNOWN_VERSION };
        let counter = |kind: &str| {
            let labels = [("type", kind.to_owned()), ("client_api_version", version.to_owned())];
            self.client_requests.get_or_create_owned(&labels)
        };
        ClientMetrics { unary: counter("unary"), streams: counter("stream") }
    }

    /// A check of `/livez` or `/readyz` has ended so.
    pub fn health_check(&self, path: &'static str, name: &'static str, is_good: bool) {
        let (path, name) = (("type", path), ("name", name));
        self.health_checks.get_or_create_owned(&[path, name]).set(i64::from(is_good));
        let status = ("status", if is_good { "success" } else { "error" });
        self.health_checks_total.get_or_create_owned(&[path, name, status]).inc();
    }

    /// History was given up now.
    pub fn compacted(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.compacted_at.store(shown(now), Ordering::Relaxed);
    }

    /// The counters of an RPC, all of which show from now on.
    pub fn rpc(&self, service: &'static str, method: &'static str, kind: RpcKind) -> RpcMetrics {
        let (method, service) = (("grpc_method", method), ("grpc_service", service));
        let kind = ("grpc_type", kind.label());
        let handled = |code| {
            self.rpc_handled.get_or_create_owned(&[("grpc_code", code), method, service, kind])
        };
        let lazy = |family| Lazy::new(family, [method, service, kind]);
        let requests = |name| {
            ["false", "true"].map(|success| {
                Lazy::new(&self.request_seconds, [("type", name), ("success", success)])
            })
        };
        RpcMetrics {
            started: self.rpc_started.get_or_create_owned(&[method, service, kind]),
            handled: CODES.map(handled),
            seconds: self.rpc_seconds.as_ref().map(lazy),
            requests: request_type(service.1, method.1).map(requests),
        }
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self, state: &State) -> String {
        let mut now = Registry::default();
        {
            let mut shown = self.leader.shown.lock();
            if *shown != state.leader_id {
                shown.clone_from(&state.leader_id);
                self.leader.changes.inc();
            }
        }
        register_state(&mut now, state);
        let help = "What commits have written";
        gauge(&mut now, "etcd_disk_wal_write_bytes_total", help, shown(self.log_bytes.get()));
        let help = "When history was last given up; 0 for never since the start";
        let compacted_at = self.compacted_at.load(Ordering::Relaxed);
        gauge(&mut now, "etcd_debugging_mvcc_db_compaction_last", help, compacted_at);
        if let Some(cluster) = &state.cluster {
            cluster::register(&mut now, cluster, &state.member_id, &self.replication_seconds);
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
        process::register(now);
    }
}

fn register_state(now: &mut Registry, state: &State) {
    // Whoever reaches a majority can do whatever one with a leader can.
    let has_leader = i64::from(state.has_majority);
    gauge(now, "etcd_server_has_leader", "Whether a majority of the members is alive", has_leader);
    let is_leader = i64::from(state.leader_id == state.member_id);
    gauge(now, "etcd_server_is_leader", "Whether this member is shown as the leader", is_leader);
    let is_learner = i64::from(state.is_learner);
    gauge(now, "etcd_server_is_learner", "Whether this member counts for no majority", is_learner);
    let catching_up = i64::from(state.is_catching_up);
    let help = "Whether the data of another member is being taken over";
    gauge(now, "etcd_server_snapshot_apply_in_progress_total", help, catching_up);
    gauge(
        now,
        "etcd_debugging_auth_revision",
        "The revision of users and roles",
        shown(state.auth_revision),
    );
    let alarms = Family::<[(&'static str, String); 2], Gauge>::default();
    for (member, kind) in &state.alarms {
        let labels = [("server_id", member.clone()), ("alarm_type", (*kind).to_owned())];
        alarms.get_or_create(&labels).set(1);
    }
    now.register("etcd_debugging_server_alarms", "Alarms that are on", alarms);
    let known = Family::<[(&'static str, String); 2], Gauge>::default();
    for member in &state.member_ids {
        let labels = [("Local", state.member_id.clone()), ("Remote", member.clone())];
        known.get_or_create(&labels).set(1);
    }
    now.register("etcd_network_known_peers", "The members, this one included", known);
    for (name, help) in [
        ("etcd_server_proposals_committed", "Entries that are durable"),
        ("etcd_server_proposals_applied", "Entries that can be read"),
    ] {
        // Gauges in etcd, too: they start where the log ends.
        gauge(now, &format!("{name}_total"), help, shown(state.entries));
    }
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
/// `_total` in the comments, too. But for those counters that etcd names otherwise.
fn text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let comment = lines.peek().copied().filter(|_| line.starts_with("# HELP ")).unwrap_or(line);
        let counter =
            comment.strip_prefix("# TYPE ").and_then(|typed| typed.strip_suffix(" counter"));
        let short = WITHOUT_SUFFIX.iter().find(|name| line.starts_with(**name));
        match (counter, short) {
            (Some(name), _) if !WITHOUT_SUFFIX.contains(&name) => {
                text.push_str(&line.replacen(name, &format!("{name}_total"), 1));
            }
            (_, Some(name)) => text.push_str(&line.replacen(&format!("{name}_total"), name, 1)),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scrape() -> String {
        let metrics = Metrics::new();
        metrics.puts.inc_by(3);
        let put = metrics.rpc("etcdserverpb.KV", "Put", RpcKind::Unary);
        put.started();
        put.handled(3, Duration::from_millis(3));
        put.handled(99, Duration::ZERO);
        metrics.health_success.inc();
        let leader_id = "7".to_owned();
        metrics.encode(&State { keys: 7, server_version: "3.7.3", leader_id, ..State::default() })
    }

    fn has_line(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }

    #[test]
    fn names_are_etcds() {
        let text = scrape();
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        has_line(&text, "etcd_mvcc_put_total 3");
        has_line(&text, "etcd_server_leader_changes_seen_total 1");
        has_line(
            &text,
            "etcd_server_request_duration_seconds_count{type=\"Put\",success=\"false\"} 2",
        );
        has_line(&text, "etcd_server_health_success 1");
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
        has_line(&text, "# TYPE etcd_server_health_success counter");
        has_line(&text, "# HELP etcd_server_health_success Good answers of /health.");
        assert!(!text.contains("# EOF"));
    }

    /// Everything that can show.
    fn everything() -> String {
        let round_trips = Some(Seconds::new([0.001]));
        let peer = PeerState { heard_age_millis: Some(1), round_trips, ..PeerState::default() };
        let cluster = ClusterState {
            catch_up: Some(1),
            complete_age_millis: Some(1),
            settled_age_millis: Some(1),
            held_back: Some(("c".to_owned(), "dead")),
            waiting_bytes_max: Some(1),
            clock_skew_millis: Some(1),
            wall_clock_skew_millis: Some(1),
            per_peer: vec![peer],
            ..ClusterState::default()
        };
        let metrics = Metrics::extensive();
        metrics.rpc("etcdserverpb.KV", "Put", RpcKind::Unary).handled(0, Duration::ZERO);
        let alarms = vec![("7".to_owned(), "NOSPACE")];
        metrics.encode(&State { cluster: Some(cluster), alarms, ..State::default() })
    }

    /// The words of a text that can only be names of metrics.
    fn named(text: &str) -> BTreeSet<&str> {
        const PREFIXES: [&str; 4] = ["etcd_", "starling_", "process_", "grpc_server_"];
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_word(c));
        words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).collect()
    }

    /// Expressions of Prometheus, wherever they are in a document.
    fn expressions<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(serde_json::Value::as_str));
                fields.values().for_each(|value| expressions(value, found));
            }
            serde_json::Value::Array(values) => {
                values.iter().for_each(|value| expressions(value, found));
            }
            _ => {}
        }
    }

    #[test]
    fn dashboards_and_alerts_ask_for_what_there_is() {
        let text = everything();
        let there: BTreeSet<_> =
            text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let dashboard = include_str!("../deploy/grafana/starling.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
        let alerts = include_str!("../deploy/prometheus/alerts.yaml");
        let alerts: serde_json::Value = serde_norway::from_str(alerts).expect("YAML");
        for (document, least) in [(&dashboard, 40), (&alerts, 20)] {
            let mut found = Vec::new();
            expressions(document, &mut found);
            assert!(found.len() >= least, "{found:?}");
            for expression in found {
                let names = named(expression);
                // Prometheus itself knows who is up.
                assert!(!names.is_empty() || expression.contains("up{"), "{expression}");
                let missing: Vec<_> = names.difference(&there).collect();
                assert!(missing.is_empty(), "{missing:?} of {expression}");
            }
        }
    }

    #[test]
    fn calls_are_timed_if_that_is_wanted() {
        let line = "grpc_server_handling_seconds_bucket{le=\"0.01\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1";
        assert!(!scrape().contains("handling_seconds"));
        let metrics = Metrics::extensive();
        let put = metrics.rpc("etcdserverpb.KV", "Put", RpcKind::Unary);
        put.handled(0, Duration::from_millis(7));
        has_line(&metrics.encode(&State::default()), line);
    }

    #[test]
    fn clients_cannot_make_series_without_end() {
        let metrics = Metrics::new();
        for version in ["3.7", "3.7", "", "x\ny", "1234567890"] {
            metrics.client(version, 0).unary.inc();
        }
        metrics.client("3.6", CLIENT_VERSIONS_MAX).unary.inc();
        let text = metrics.encode(&State::default());
        has_line(
            &text,
            "etcd_server_client_requests_total{type=\"unary\",client_api_version=\"3.7\"} 2",
        );
        has_line(
            &text,
            "etcd_server_client_requests_total{type=\"unary\",client_api_version=\"unknown\"} 4",
        );
    }

    #[test]
    fn requests_have_etcds_names() {
        let cases = [
            ("etcdserverpb.KV", "Range", Some("Range")),
            ("etcdserverpb.KV", "Compact", Some("Compaction")),
            ("etcdserverpb.Lease", "LeaseGrant", Some("LeaseGrant")),
            ("etcdserverpb.Lease", "LeaseLeases", None),
            ("etcdserverpb.Lease", "LeaseKeepAlive", None),
            ("etcdserverpb.Auth", "UserAdd", Some("AuthUserAdd")),
            ("etcdserverpb.Auth", "Authenticate", Some("Authenticate")),
            ("etcdserverpb.Maintenance", "Status", None),
            ("v3lockpb.Lock", "Lock", None),
        ];
        for (service, method, name) in cases {
            assert_eq!(request_type(service, method), name, "{service}/{method}");
        }
    }
}
