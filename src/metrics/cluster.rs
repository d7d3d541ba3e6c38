//! What a member of a cluster shows, beside what etcd's dashboards know: who is there, what is on its way, and who keeps
//! old data from being forgotten. `docs/operations.md` says what to make of each.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use super::{Seconds, gauge, shown};

const MILLIS_PER_SECOND: f64 = 1000.0;

/// A label and its value.
type Label = (&'static str, String);

/// What a member knows about its cluster, at the time of reading.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the metrics' names and help texts say it")]
pub struct ClusterState {
    pub members: u64,
    pub unstarted: u64,
    pub majority: u64,
    pub voters_alive: u64,
    /// Peers that are alive, suspect, dead.
    pub peers: [u64; 3],
    pub is_ready: bool,
    /// How much of a catch-up is there, in thousandths.
    pub catch_up: Option<u16>,
    pub complete_age_millis: Option<u64>,
    pub settled_age_millis: Option<u64>,
    /// The name of who holds settled back, and why.
    pub held_back: Option<(String, &'static str)>,
    /// In the log, for members that are away; and how many may.
    pub waiting_bytes: u64,
    pub waiting_bytes_max: Option<u64>,
    pub rounds: u64,
    pub exchanges: u64,
    pub mismatches: u64,
    pub pulls: u64,
    pub pull_timeouts: u64,
    pub entries_taken: u64,
    pub entries_twice: u64,
    pub entries_missing: u64,
    pub catch_ups: u64,
    pub merges: u64,
    pub scrubs: u64,
    pub differences: u64,
    pub misanswers: u64,
    pub conflicts: u64,
    pub clock_skew_millis: Option<i64>,
    pub wall_clock_skew_millis: Option<i64>,
    pub is_clock_confirmed: bool,
    pub is_fenced: bool,
    /// Writes that wait for one other member, for a majority, for all.
    pub acks_waiting: [u64; 3],
    /// One for each peer, unless there are too many for series of their own.
    pub per_peer: Vec<PeerState>,
}

/// What a member knows about a peer.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the metrics' names and help texts say it")]
pub struct PeerState {
    /// Its name, which no other peer has.
    pub name: String,
    pub id: String,
    pub is_alive: bool,
    pub heard_age_millis: Option<u64>,
    pub missing_here: u64,
    pub missing_there: u64,
    pub sent_messages: u64,
    pub sent_bytes: u64,
    pub received_messages: u64,
    pub received_bytes: u64,
    pub dropped_messages: u64,
    pub failures: u64,
    pub conflicts: u64,
    pub round_trips: Option<Seconds>,
}

pub(super) fn register(
    now: &mut Registry,
    state: &ClusterState,
    member_id: &str,
    delays: &Histogram,
) {
    register_members(now, state);
    register_progress(now, state);
    register_clock(now, state);
    register_gossip(now, state);
    register_peers(now, &state.per_peer);
    register_network(now, member_id, &state.per_peer);
    now.register(
        "starling_replication_delay_seconds",
        "From the acceptance of an entry by another member to its being durable here. It compares two clocks: what they \
         differ by is in it, and less than nothing counts as nothing",
        delays.clone(),
    );
}

fn register_members(now: &mut Registry, state: &ClusterState) {
    let members = shown(state.members);
    gauge(now, "starling_members", "The members, those never started included", members);
    let unstarted = shown(state.unstarted);
    gauge(now, "starling_members_unstarted", "Members that were never started", unstarted);
    gauge(now, "starling_majority", "How many members a majority has", shown(state.majority));
    let help = "How many of those who count for a majority are alive, this member included";
    gauge(now, "starling_voters_alive", help, shown(state.voters_alive));
    let states = ["alive", "suspect", "dead"].into_iter().zip(state.peers);
    let peers = gauges("state", states.map(|(name, count)| (name.to_owned(), shown(count))));
    now.register("starling_peers", "The other members, by whether they seem alive", peers);
    let is_ready = i64::from(state.is_ready);
    gauge(now, "starling_ready", "Whether clients are served: one that joins is not", is_ready);
    if let Some(thousandths) = state.catch_up {
        let ratio = ConstGauge::new(f64::from(thousandths) / 1000.0);
        let help = "How much of another member's log this one has taken over. Only there meanwhile";
        now.register("starling_catch_up_progress_ratio", help, ratio);
    }
}

fn register_progress(now: &mut Registry, state: &ClusterState) {
    let ages = [
        (
            "starling_complete_age_seconds",
            "How long ago it is up to which this member holds everything that anyone wrote",
            state.complete_age_millis,
        ),
        (
            "starling_settled_age_seconds",
            "How long ago it is up to which all members hold everything: nothing younger is forgotten",
            state.settled_age_millis,
        ),
    ];
    for (name, help, age) in ages {
        if let Some(age) = age {
            now.register(name, help, ConstGauge::new(seconds(age)));
        }
    }
    let held = Family::<[Label; 2], Gauge>::default();
    if let Some((name, reason)) = &state.held_back {
        held.get_or_create(&[("peer", name.clone()), ("reason", (*reason).to_owned())]).set(1);
    }
    let help = "1 for the member that keeps settled from following. Nothing while it follows";
    now.register("starling_settled_held_back", help, held);
    let help = "Bytes of the log that nobody can read here, kept for members that may want them";
    gauge(now, "starling_log_waiting_bytes", help, shown(state.waiting_bytes));
    if let Some(max) = state.waiting_bytes_max {
        let help = "How many of them may be before replaced writes go";
        gauge(now, "starling_log_waiting_bytes_max", help, shown(max));
    }
    let levels = ["one", "majority", "all"].into_iter().zip(state.acks_waiting);
    let waiting = gauges("level", levels.map(|(name, count)| (name.to_owned(), shown(count))));
    now.register("starling_acks_waiting", "Durable writes that wait for other members", waiting);
    let missing = shown(state.entries_missing);
    gauge(now, "starling_entries_missing", "Entries known to be missing here", missing);
}

fn register_clock(now: &mut Registry, state: &ClusterState) {
    let skews = [
        (
            "starling_clock_skew_seconds",
            "How far the clock that entries follow is ahead of the median of the live members'",
            state.clock_skew_millis,
        ),
        (
            "starling_wall_clock_skew_seconds",
            "How far the wall clock is ahead of the median of the live members'",
            state.wall_clock_skew_millis,
        ),
    ];
    for (name, help, skew) in skews {
        if let Some(skew) = skew {
            let ahead = seconds(skew.unsigned_abs());
            let signed = if skew < 0 { -ahead } else { ahead };
            now.register(name, help, ConstGauge::new(signed));
        }
    }
    let help = "Whether the others have confirmed the wall clock since the start";
    gauge(now, "starling_clock_confirmed", help, i64::from(state.is_clock_confirmed));
    let help = "Whether no writes are taken since the clock is off";
    gauge(now, "starling_clock_fenced", help, i64::from(state.is_fenced));
}

fn register_gossip(now: &mut Registry, state: &ClusterState) {
    for (name, help, count) in [
        (
            "starling_gossip_rounds",
            "Comparisons with a random member that were begun",
            state.rounds,
        ),
        ("starling_gossip_exchanges", "Digests of others that were compared", state.exchanges),
        ("starling_gossip_mismatches", "Digests that named other heads", state.mismatches),
        ("starling_gossip_pulls", "Requests for entries", state.pulls),
        ("starling_gossip_pull_timeouts", "Requests not answered in time", state.pull_timeouts),
        ("starling_entries_taken", "Entries of others that were taken", state.entries_taken),
        ("starling_entries_twice", "Entries of others that were here already", state.entries_twice),
        ("starling_catch_ups", "Catch-ups from others that have ended", state.catch_ups),
        ("starling_state_merges", "State merges that have ended", state.merges),
        ("starling_scrubs", "Scrubs of this member's own that have ended", state.scrubs),
        ("starling_scrub_differences", "Puts that others had lost", state.differences),
        (
            "starling_comparisons_misanswered",
            "Comparisons and catch-ups given up since a peer answered what it was not asked, or what cannot be",
            state.misanswers,
        ),
        (
            "starling_conflicts",
            "Writes lost to others that had probably not seen them",
            state.conflicts,
        ),
    ] {
        now.register(name, help, ConstCounter::new(count));
    }
}

/// A counter of a peer: its name, its help text, and where it is.
type PeerCounter = (&'static str, &'static str, fn(&PeerState) -> u64);

const PEER_COUNTERS: &[PeerCounter] = &[
    ("starling_peer_sent_messages", "Messages sent to a peer", |it| it.sent_messages),
    ("starling_peer_sent_bytes", "Bytes sent to a peer", |it| it.sent_bytes),
    ("starling_peer_received_messages", "Messages that came from a peer", |it| {
        it.received_messages
    }),
    ("starling_peer_received_bytes", "Bytes that came from a peer", |it| it.received_bytes),
    ("starling_peer_dropped_messages", "Messages for a peer that were dropped", |it| {
        it.dropped_messages
    }),
    ("starling_peer_failures", "How often a peer was not reached, or broke off", |it| it.failures),
    ("starling_peer_conflicts", "Writes lost in conflicts with a peer", |it| it.conflicts),
];

fn register_peers(now: &mut Registry, peers: &[PeerState]) {
    let per_peer = |value: fn(&PeerState) -> i64| {
        gauges("peer", peers.iter().map(move |peer| (peer.name.clone(), value(peer))))
    };
    let alive = per_peer(|peer| i64::from(peer.is_alive));
    now.register("starling_peer_alive", "Whether a peer seems alive", alive);
    let missing = per_peer(|peer| shown(peer.missing_here));
    let help = "Entries of a peer that are known to be missing here";
    now.register("starling_peer_missing_here_entries", help, missing);
    let missing = per_peer(|peer| shown(peer.missing_there));
    let help = "Entries of this member that a peer is not known to hold";
    now.register("starling_peer_missing_there_entries", help, missing);
    let heard = Family::<[Label; 1], Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for peer in peers {
        if let Some(age) = peer.heard_age_millis {
            heard.get_or_create(&[("peer", peer.name.clone())]).set(seconds(age));
        }
    }
    now.register("starling_peer_heard_age_seconds", "How long a peer has been silent", heard);
    for (name, help, value) in PEER_COUNTERS {
        let family = Family::<[Label; 1], Counter>::default();
        for peer in peers {
            family.get_or_create(&[("peer", peer.name.clone())]).inc_by(value(peer));
        }
        now.register(*name, *help, family);
    }
}

/// What etcd's dashboards know of peers: by their ids.
fn register_network(now: &mut Registry, member_id: &str, peers: &[PeerState]) {
    for (name, help, label, value) in NETWORK_COUNTERS {
        let family = Family::<[Label; 1], Counter>::default();
        for peer in peers {
            family.get_or_create(&[(label, peer.id.clone())]).inc_by(value(peer));
        }
        now.register(*name, *help, family);
    }
    let measured = |peer: &PeerState| Some((peer.id.clone(), peer.round_trips.clone()?));
    let round_trips = RoundTrips(peers.iter().filter_map(measured).collect());
    let help = "How long a question to a peer and its answer take";
    now.register("etcd_network_peer_round_trip_time_seconds", help, round_trips);
    let active = Family::<[Label; 2], Gauge>::default();
    let disconnected = Family::<[Label; 2], Counter>::default();
    for peer in peers {
        let labels = [("Local", member_id.to_owned()), ("Remote", peer.id.clone())];
        active.get_or_create(&labels).set(i64::from(peer.is_alive));
        disconnected.get_or_create(&labels).inc_by(peer.failures);
    }
    now.register("etcd_network_active_peers", "Whether a peer seems alive", active);
    let help = "How often a peer was not reached, or broke off";
    now.register("etcd_network_disconnected_peers", help, disconnected);
}

/// A histogram that is kept elsewhere for each peer, under its id.
#[derive(Debug)]
struct RoundTrips(Vec<(String, Seconds)>);

impl EncodeMetric for RoundTrips {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (id, seconds) in &self.0 {
            seconds.encode(encoder.encode_family(&[("To", id.as_str())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Seconds::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A counter of a peer, by etcd's name, and the label that has the peer's id.
type NetworkCounter = (&'static str, &'static str, &'static str, fn(&PeerState) -> u64);

const NETWORK_COUNTERS: &[NetworkCounter] = &[
    ("etcd_network_peer_sent_bytes", "Bytes sent to a peer", "To", |it| it.sent_bytes),
    ("etcd_network_peer_received_bytes", "Bytes that came from a peer", "From", |it| {
        it.received_bytes
    }),
    ("etcd_network_peer_sent_failures", "Messages for a peer that were dropped", "To", |it| {
        it.dropped_messages
    }),
];

/// A gauge for each value of a label.
fn gauges(
    label: &'static str,
    values: impl Iterator<Item = (String, i64)>,
) -> Family<[Label; 1], Gauge> {
    let family = Family::<[Label; 1], Gauge>::default();
    for (name, value) in values {
        family.get_or_create(&[(label, name)]).set(value);
    }
    family
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of centuries fit")]
fn seconds(millis: u64) -> f64 {
    millis as f64 / MILLIS_PER_SECOND
}
