//! Every flag of etcd's, and a few of our own: what it takes, its default, and what becomes of it here.

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Nothing, or `=true` or `=false`.
    Bool,
    /// A whole number.
    Int,
    /// A whole number from zero on.
    Uint,
    /// Such as `5s` or `1m30s`; in a configuration file, nanoseconds.
    Duration,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what it does in etcd.
    Honoured,
    /// It is taken, and has no effect: what it tunes does not exist here. Says why.
    Ignored(&'static str),
    /// It is refused, since going on without it would not be what was asked for. Says why.
    Refused(&'static str),
}

/// A flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// As on the command line, without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// As it would be written.
    pub default: &'static str,
    /// What becomes of it.
    pub effect: Effect,
    /// What it is for, in one line.
    pub help: &'static str,
}

/// Flags that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// A heading.
    pub title: &'static str,
    /// The flags.
    pub flags: &'static [Flag],
}

use Effect::{Honoured, Ignored, Refused};
use Kind::{Bool, Duration, Int, Text, Uint};

const NO_RAFT: Effect = Ignored("there is no raft");
const NO_BBOLT: Effect = Ignored("the store is not bbolt");
const NO_QUORUM: Effect = Ignored("there is no quorum to lose");
const LATER: Effect = Ignored("not supported yet");
const NO_V2: Effect = Refused("etcd has removed v2 discovery, too");
const REMOVED: Effect = Ignored("etcd has removed it, too");

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    effect: Effect,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, effect, help }
}

/// All flags, in the order of the help text.
#[rustfmt::skip]
pub const GROUPS: &[Group] = &[
    Group { title: "Member", flags: &[
        flag("name", Text, "default", Honoured, "name of this member, for people"),
        flag("data-dir", Text, "${name}.starling", Honoured, "directory of the data (${name}.etcd if the program is called etcd)"),
        flag("listen-client-urls", Text, "http://localhost:2379", Honoured, "where to listen for clients, separated by commas; http://, https://, unix:// or unixs://"),
        flag("listen-client-http-urls", Text, "", Honoured, "where to listen for plain HTTP only, besides"),
        flag("listen-peer-urls", Text, "http://localhost:2380", Honoured, "where to listen for peers; nowhere, unless any flag about peers is given"),
        flag("quota-backend-bytes", Int, "0", Honoured, "bytes that the data may take; 0 is 2 GiB, less is no limit"),
        flag("max-txn-ops", Uint, "128", Honoured, "operations that a transaction may have"),
        flag("max-request-bytes", Uint, "1572864", Honoured, "bytes that a request may have"),
        flag("max-concurrent-streams", Uint, "4294967295", Honoured, "calls at the same time on one connection"),
        flag("heartbeat-interval", Uint, "100", NO_RAFT, "milliseconds between heartbeats; checked against the election timeout"),
        flag("election-timeout", Uint, "1000", Honoured, "milliseconds; leases live at least 1.5 times as long"),
        flag("grpc-keepalive-min-time", Duration, "5s", Ignored("frequent pings do no harm"), "how often a client may ping"),
        flag("grpc-keepalive-interval", Duration, "2h", Honoured, "after how long in silence a client is pinged; 0 for never"),
        flag("grpc-keepalive-timeout", Duration, "20s", Honoured, "how long the client has to answer"),
        flag("value-cache-bytes", Uint, "67108864", Honoured, "(starling) memory for values that were read or written lately"),
        flag("block-cache-bytes", Uint, "16777216", Honoured, "(starling) memory for blocks of the store"),
        flag("http-faces", Text, "", Honoured, "(starling) HTTP interfaces of earlier systems to serve: gossipcar, mehdb, chain, yzma or all; see docs/faces.md"),
        flag("listen-http-urls", Text, "", Honoured, "(starling) where to serve those, in place of the ports for clients"),
        flag("enable-grpc-gateway", Bool, "true", Honoured, "serve the JSON gateway"),
        flag("feature-gates", Text, "", Ignored("what these features change does not exist here"), "switches of etcd's experimental features"),
        flag("wal-dir", Text, "", Ignored("there is no separate log"), "directory of etcd's log"),
        flag("snapshot-count", Uint, "10000", NO_RAFT, "transactions between snapshots"),
        flag("snapshot-catchup-entries", Uint, "5000", NO_RAFT, "entries kept for slow followers"),
        flag("initial-election-tick-advance", Bool, "true", NO_RAFT, "hurry the first election"),
        flag("pre-vote", Bool, "true", NO_RAFT, "ask before an election"),
        flag("max-snapshots", Uint, "5", NO_RAFT, "snapshot files to keep"),
        flag("max-wals", Uint, "5", NO_RAFT, "log files to keep"),
        flag("memory-mlock", Bool, "false", NO_BBOLT, "keep pages in memory"),
        flag("backend-bbolt-freelist-type", Text, "map", NO_BBOLT, "bbolt's free list"),
        flag("backend-batch-interval", Duration, "0s", NO_BBOLT, "time between bbolt's commits"),
        flag("backend-batch-limit", Int, "0", NO_BBOLT, "operations between bbolt's commits"),
        flag("socket-reuse-port", Bool, "false", Honoured, "share ports with other processes"),
        flag("socket-reuse-address", Bool, "false", Honoured, "bind an address that lingers, as is always done here"),
        flag("raft-read-timeout", Duration, "5s", NO_RAFT, "timeout of peer connections"),
        flag("raft-write-timeout", Duration, "5s", NO_RAFT, "timeout of peer connections"),
    ] },
    Group { title: "Clustering", flags: &[
        flag("initial-advertise-peer-urls", Text, "http://localhost:2380", Honoured, "where peers reach this member"),
        flag("initial-cluster", Text, "", Honoured, "the members that found the cluster together: name=URL, separated by commas"),
        flag("initial-cluster-state", Text, "new", Honoured, "new, or existing to join the others of initial-cluster"),
        flag("initial-cluster-token", Text, "etcd-cluster", Honoured, "tells clusters of the same members apart"),
        flag("advertise-client-urls", Text, "http://localhost:2379", Honoured, "where clients reach this member; must be given if listen-client-urls is"),
        flag("auto-compaction-mode", Text, "periodic", Honoured, "periodic or revision"),
        flag("auto-compaction-retention", Text, "24h", Honoured, "history to keep: a time (a bare number is hours) or a number of revisions; 0 for all of it"),
        flag("join", Text, "", Honoured, "(starling) members of a cluster to join: host:port or URLs of peers, separated by commas"),
        flag("seek", Text, "", Honoured, "(starling) members to join when they are reached, likewise; a name may stand for all, and until then this member serves alone"),
        flag("write-ack", Text, "one", Honoured, "(starling) who has a write on disk before it is answered: local, one, majority or all"),
        flag("linearizable-reads", Text, "local", Honoured, "(starling) whom such a read asks: local or majority"),
        flag("lease-expiry", Text, "majority", Honoured, "(starling) whom a member asks before it ends a lease: majority or local"),
        flag("volatile", Bool, "false", Honoured, "(starling) keep nothing on disk; the peers have it"),
        flag("peer-block", Text, "", Honoured, "(starling) names of members not to talk to, separated by commas"),
        flag("zone", Text, "", Honoured, "(starling) where this member stands: it talks to others there first"),
        flag("direct-max", Uint, "16", Honoured, "(starling) up to so many members, writes go straight to all"),
        flag("gc-age", Duration, "10m", Honoured, "(starling) how long it is remembered at least that a key was deleted"),
        flag("log-bytes-max", Int, "0", Honoured, "(starling) bytes of replaced writes that are kept for members that are away; 0 is as much as the quota, less is no limit"),
        flag("max-clock-skew", Duration, "500ms", Honoured, "(starling) a member whose clock is off by more takes no writes; 0 for any"),
        flag("remove-dead-after", Duration, "0s", Honoured, "(starling) remove members that have been dead for so long; 0 for never"),
        flag("strict-reconfig-check", Bool, "true", NO_QUORUM, "refuse changes that would cost the quorum"),
        flag("max-learners", Int, "1", NO_QUORUM, "learners at once"),
        flag("discovery", Text, "", NO_V2, "discovery by etcd v2"),
        flag("discovery-proxy", Text, "", NO_V2, "discovery by etcd v2"),
        flag("discovery-fallback", Text, "exit", REMOVED, "what to do without discovery"),
        flag("discovery-token", Text, "", Honoured, "what the members of a new cluster have in common in the registry"),
        flag("discovery-endpoints", Text, "", Honoured, "an etcd, or Starling, that has the registry of etcd's v3 discovery"),
        flag("discovery-dial-timeout", Duration, "2s", Honoured, "how long a connection to it may take"),
        flag("discovery-request-timeout", Duration, "5s", Honoured, "how long it has for an answer"),
        flag("discovery-keepalive-time", Duration, "2s", Honoured, "how often it is pinged"),
        flag("discovery-keepalive-timeout", Duration, "6s", Honoured, "how long it has to answer a ping"),
        flag("discovery-insecure-transport", Bool, "true", Honoured, "whether to do without TLS; https:// always has it"),
        flag("discovery-insecure-skip-tls-verify", Bool, "false", Refused("certificates are always verified"), "whether to trust anybody"),
        flag("discovery-cert", Text, "", Honoured, "certificate to show to it"),
        flag("discovery-key", Text, "", Honoured, "its key"),
        flag("discovery-cacert", Text, "", Honoured, "who has signed its certificate"),
        flag("discovery-user", Text, "", Honoured, "name, or name:password"),
        flag("discovery-password", Text, "", Honoured, "password of that user"),
        flag("discovery-srv", Text, "", Honoured, "domain whose SRV records name the members"),
        flag("discovery-srv-name", Text, "", Honoured, "what to append to the service name of those records"),
        flag("v2-deprecation", Text, "write-only", REMOVED, "etcd's v2 store"),
        flag("enable-v2", Bool, "false", REMOVED, "etcd's v2 API"),
    ] },
    Group { title: "Security", flags: &[
        flag("cert-file", Text, "", Honoured, "certificate of the client port"),
        flag("key-file", Text, "", Honoured, "its key"),
        flag("client-cert-auth", Bool, "false", Honoured, "demand certificates of clients, whose common name is a user"),
        flag("client-cert-file", Text, "", Honoured, "certificate to use as a client; checked, and never used: the gateway needs no connection"),
        flag("client-key-file", Text, "", Honoured, "its key"),
        flag("client-crl-file", Text, "", Honoured, "revoked certificates of clients"),
        flag("client-cert-allowed-hostname", Text, "", Honoured, "host names of which certificates of clients must have one"),
        flag("trusted-ca-file", Text, "", Honoured, "who may sign certificates of clients"),
        flag("auto-tls", Bool, "false", Honoured, "make a certificate, in fixtures/client of the data directory"),
        flag("peer-cert-file", Text, "", Honoured, "certificate of the peer port"),
        flag("peer-key-file", Text, "", Honoured, "its key"),
        flag("peer-client-cert-auth", Bool, "false", Honoured, "demand certificates of peers"),
        flag("peer-client-cert-file", Text, "", Honoured, "certificate to use as a peer's client"),
        flag("peer-client-key-file", Text, "", Honoured, "its key"),
        flag("peer-trusted-ca-file", Text, "", Honoured, "who may sign certificates of peers"),
        flag("peer-cert-allowed-cn", Text, "", Honoured, "common names of which certificates of peers must have one"),
        flag("peer-cert-allowed-hostname", Text, "", Honoured, "host names of which certificates of peers must have one"),
        flag("peer-auto-tls", Bool, "false", Honoured, "make a certificate, in fixtures/peer; nobody's is checked then"),
        flag("peer-crl-file", Text, "", Honoured, "revoked certificates of peers"),
        flag("peer-skip-client-san-verification", Bool, "false", Honoured, "do not check that peers come from where their certificates say"),
        flag("self-signed-cert-validity", Uint, "1", Honoured, "years that made certificates are valid"),
        flag("cipher-suites", Text, "", Honoured, "cipher suites of TLS 1.2, by Go's names, separated by commas"),
        flag("tls-min-version", Text, "TLS1.2", Honoured, "oldest version of TLS"),
        flag("tls-max-version", Text, "", Honoured, "newest version of TLS"),
        flag("cors", Text, "*", Honoured, "origins of pages that may read answers, separated by commas; * for all"),
        flag("host-whitelist", Text, "*", Honoured, "host names that plain HTTP without TLS may name, separated by commas; * for all"),
    ] },
    Group { title: "Auth", flags: &[
        flag("auth-token", Text, "simple", Honoured, "kind of tokens: simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=10m"),
        flag("auth-token-ttl", Uint, "300", Honoured, "seconds that a simple token lives after its last use"),
        flag("bcrypt-cost", Uint, "10", Honoured, "cost of hashing a password, 4 to 31"),
    ] },
    Group { title: "Monitoring and logging", flags: &[
        flag("listen-metrics-urls", Text, "", Honoured, "where to serve /metrics and health checks, besides"),
        flag("metrics", Text, "basic", Honoured, "basic, or extensive: with the time that each call takes"),
        flag("enable-pprof", Bool, "false", Ignored("there is no Go runtime to profile"), "serve Go's profiles"),
        flag("log-level", Text, "info", Honoured, "debug, info, warn, error, panic or fatal"),
        flag("log-format", Text, "json", Honoured, "json or console"),
        flag("log-outputs", Text, "default", Honoured, "default or stderr, stdout, or a file"),
        flag("logger", Text, "zap", Ignored("there is one logger"), "the logger"),
        flag("enable-log-rotation", Bool, "false", Ignored("leave that to the service manager"), "rotate the log file"),
        flag("log-rotation-config-json", Text, "", Ignored("leave that to the service manager"), "how to rotate it"),
        flag("warning-unary-request-duration", Duration, "300ms", Honoured, "log calls that take longer, and what they asked for"),
        flag("enable-distributed-tracing", Bool, "false", Honoured, "send traces"),
        flag("distributed-tracing-address", Text, "localhost:4317", Honoured, "where to"),
        flag("distributed-tracing-service-name", Text, "etcd", Honoured, "under which name"),
        flag("distributed-tracing-instance-id", Text, "", Honoured, "under which id"),
        flag("distributed-tracing-sampling-rate", Int, "0", Honoured, "of requests that say nothing themselves, how many in a million"),
    ] },
    Group { title: "Features", flags: &[
        flag("watch-progress-notify-interval", Duration, "10m", Honoured, "how often idle watchers that ask for it are told the revision"),
        flag("corrupt-check-time", Duration, "0s", LATER, "time between checks for corruption"),
        flag("compact-hash-check-time", Duration, "1m", LATER, "time between checks of hashes"),
        flag("compaction-batch-limit", Int, "1000", Ignored("compaction paces itself"), "revisions that a compaction removes at once"),
        flag("compaction-sleep-interval", Duration, "10ms", Ignored("compaction paces itself"), "pause between those"),
        flag("warning-apply-duration", Duration, "100ms", Honoured, "log reads and writes that take longer; 0 for all"),
        flag("bootstrap-defrag-threshold-megabytes", Uint, "0", Ignored("nothing needs defragmentation"), "defragment at start"),
        flag("downgrade-check-time", Duration, "5s", LATER, "time between checks of a downgrade"),
    ] },
    Group { title: "Unsafe", flags: &[
        flag("force-new-cluster", Bool, "false", Honoured, "remove all other members, and go on alone with the data"),
        flag("unsafe-no-fsync", Bool, "false", Ignored("every write is synced"), "lose writes when the power fails"),
    ] },
    Group { title: "Of older releases", flags: &[
        flag("experimental-bootstrap-defrag-threshold-megabytes", Uint, "0", REMOVED, ""),
        flag("experimental-compact-hash-check-enabled", Bool, "false", REMOVED, ""),
        flag("experimental-compact-hash-check-time", Duration, "1m", REMOVED, ""),
        flag("experimental-compaction-batch-limit", Int, "1000", REMOVED, ""),
        flag("experimental-compaction-sleep-interval", Duration, "10ms", REMOVED, ""),
        flag("experimental-corrupt-check-time", Duration, "0s", REMOVED, ""),
        flag("experimental-distributed-tracing-address", Text, "localhost:4317", REMOVED, ""),
        flag("experimental-distributed-tracing-instance-id", Text, "", REMOVED, ""),
        flag("experimental-distributed-tracing-sampling-rate", Int, "0", REMOVED, ""),
        flag("experimental-distributed-tracing-service-name", Text, "etcd", REMOVED, ""),
        flag("experimental-downgrade-check-time", Duration, "5s", REMOVED, ""),
        flag("experimental-enable-distributed-tracing", Bool, "false", REMOVED, ""),
        flag("experimental-enable-lease-checkpoint", Bool, "false", REMOVED, ""),
        flag("experimental-enable-lease-checkpoint-persist", Bool, "false", REMOVED, ""),
        flag("experimental-enable-v2v3", Text, "", REMOVED, ""),
        flag("experimental-initial-corrupt-check", Bool, "false", REMOVED, ""),
        flag("experimental-max-learners", Int, "1", REMOVED, ""),
        flag("experimental-memory-mlock", Bool, "false", REMOVED, ""),
        flag("experimental-peer-skip-client-san-verification", Bool, "false", Honoured, "the name of peer-skip-client-san-verification up to 3.5"),
        flag("experimental-set-member-localaddr", Bool, "false", REMOVED, ""),
        flag("experimental-snapshot-catchup-entries", Uint, "5000", REMOVED, ""),
        flag("experimental-stop-grpc-service-on-defrag", Bool, "false", REMOVED, ""),
        flag("experimental-txn-mode-write-with-shared-buffer", Bool, "true", REMOVED, ""),
        flag("experimental-warning-apply-duration", Duration, "100ms", REMOVED, ""),
        flag("experimental-warning-unary-request-duration", Duration, "300ms", REMOVED, ""),
        flag("experimental-watch-progress-notify-interval", Duration, "10m", Honoured, "the name of watch-progress-notify-interval up to 3.6"),
    ] },
];

/// etcd's experimental features. None is to be had here, but a misspelt one is not passed over.
pub const FEATURE_GATES: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "CompactHashCheck",
    "FastLeaseKeepAlive",
    "InitialCorruptCheck",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];

/// The flag of a name.
pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// All flags.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}
