//! The paths that probes, scrapers and people with curl ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;

use super::{Answer, AnswerBody, Serves};
use crate::api::{CLUSTER_VERSION, Context, ETCD_VERSION, convert};
use crate::engine::command::Range;
use crate::error::Error;
use crate::metrics;
use crate::node::{ClusterStatus, Handle, State};
use crate::types::{AlarmKind, KeyRange, MemberId};

const VERSION: &str = "/version";
const DEBUG_VARS: &str = "/debug/vars";

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const NO_SNIFF: (HeaderName, HeaderValue) =
    (http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// How long a health check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(7);

/// What health checks read; it need not be there.
const CHECK_KEY: &[u8] = b"health";

/// A check that `/livez` and `/readyz` are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Reads on this member. Since a member leads for its clients, they are what etcd calls linearizable, too.
    Read,
    /// No alarm says that members hold different data.
    NotCorrupt,
    /// It serves clients.
    NotLearner,
}

const LIVEZ: &[(&str, Check)] = &[("serializable_read", Check::Read)];
const READYZ: &[(&str, Check)] = &[
    ("data_corruption", Check::NotCorrupt),
    ("linearizable_read", Check::Read),
    ("non_learner", Check::NotLearner),
    ("serializable_read", Check::Read),
];

/// Answers plain HTTP.
pub(super) struct Paths {
    context: Context,
    serves: Serves,
}

impl Paths {
    pub(super) fn new(context: Context, serves: Serves) -> Self {
        Self { context, serves }
    }

    /// Whether it matters who asks.
    pub(super) fn knows_users(&self) -> bool {
        self.context.node.auth().is_enabled()
    }

    /// `None` for a path that is not there.
    pub(super) fn find(&self, head: &Parts) -> Option<Answer> {
        let context = self.context.clone();
        let query = Query::new(head.uri.query().unwrap_or_default());
        let answer: Answer = match head.uri.path() {
            VERSION | DEBUG_VARS if self.serves == Serves::Monitoring => return None,
            "/metrics" => Answer::Ready(Some(metrics(&context))),
            _ if head.method != Method::GET => {
                return find_check(head.uri.path()).map(|_| not_allowed());
            }
            VERSION => Answer::Ready(Some(version())),
            DEBUG_VARS => Answer::Ready(Some(debug_vars(&context))),
            "/health" => Answer::Path(Box::pin(async move {
                let answer = health(&context, &query).await;
                let metrics = &context.metrics;
                let is_good = answer.status() == StatusCode::OK;
                let counter =
                    if is_good { &metrics.health_success } else { &metrics.health_failures };
                counter.inc();
                answer
            })),
            path => {
                let checks = find_check(path)?;
                let root = if path.starts_with("/livez") { "livez" } else { "readyz" };
                Answer::Path(Box::pin(
                    async move { run_checks(&context, (root, checks), &query).await },
                ))
            }
        };
        Some(answer)
    }
}

/// What is read of a URL, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn look(url: &http::Uri) {
    let query = Query::new(url.query().unwrap_or_default());
    let checks = find_check(url.path()).unwrap_or_default();
    assert!(checks.len() <= READYZ.len() && !query.exclude.contains(&"&".to_owned()));
}

fn not_allowed() -> Answer {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    Answer::Ready(Some(response))
}

/// The checks of a path that answers `GET` only. That of a single check has just this one.
fn find_check(path: &str) -> Option<Vec<(&'static str, Check)>> {
    if matches!(path, "/health" | VERSION | DEBUG_VARS) {
        return Some(Vec::new());
    }
    let (root, name) = match path.strip_prefix('/')?.split_once('/') {
        Some((root, name)) => (root, Some(name)),
        None => (path.strip_prefix('/')?, None),
    };
    let all = match root {
        "livez" => LIVEZ,
        "readyz" => READYZ,
        _ => return None,
    };
    let Some(name) = name else { return Some(all.to_vec()) };
    all.iter().find(|(known, _)| *known == name).map(|check| vec![*check])
}

/// The parameters that health checks take.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    exclude: Vec<String>,
    verbose: bool,
}

impl Query {
    /// Names of checks and alarms have no characters that are escaped.
    fn new(query: &str) -> Self {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("exclude", name) => parsed.exclude.push(name.to_owned()),
                ("verbose", _) => parsed.verbose = true,
                _ => {}
            }
        }
        parsed
    }

    fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == name)
    }
}

async fn health(context: &Context, query: &Query) -> Response<AnswerBody> {
    for name in context.node.alarms().into_iter().map(|alarm| convert::alarm_name(alarm.kind)) {
        if !query.excludes(name) {
            return unhealthy(&format!("ALARM {name}"));
        }
    }
    match read(context).await {
        Ok(()) => answer("{\"health\":\"true\",\"reason\":\"\"}", PLAIN_TEXT),
        Err(error) => unhealthy(&format!("RANGE ERROR:{error}")),
    }
}

fn unhealthy(reason: &str) -> Response<AnswerBody> {
    let body = serde_json::json!({ "health": "false", "reason": reason });
    error(StatusCode::SERVICE_UNAVAILABLE, &format!("{body}\n"))
}

async fn run_checks(
    context: &Context,
    (root, checks): (&'static str, Vec<(&'static str, Check)>),
    query: &Query,
) -> Response<AnswerBody> {
    let (mut report, mut failed) = (String::new(), false);
    for (name, check) in checks {
        if query.excludes(name) {
            continue;
        }
        let checked = run_check(context, check).await;
        context.metrics.health_check(root, name, checked.is_ok());
        match checked {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(error) => {
                failed = true;
                report.push_str(&format!("[-]{name} failed: {error}\n"));
            }
        }
    }
    if failed {
        return error(StatusCode::SERVICE_UNAVAILABLE, &format!("{report}\n"));
    }
    let report = if query.verbose { report } else { String::new() };
    with_no_sniff(answer(report + "ok\n", PLAIN_TEXT))
}

async fn run_check(context: &Context, check: Check) -> Result<(), String> {
    match check {
        Check::Read => read(context).await.map_err(|error| error.to_string()),
        Check::NotCorrupt => {
            let mut alarms = context.node.alarms().into_iter();
            if alarms.any(|alarm| alarm.kind == AlarmKind::Corrupt) {
                return Err("alarm activated: CORRUPT".to_owned());
            }
            Ok(())
        }
        Check::NotLearner => {
            if context.node.is_learner() {
                return Err("not supported for learner".to_owned());
            }
            Ok(())
        }
    }
}

async fn read(context: &Context) -> Result<(), Error> {
    let range = Range::new(KeyRange::single(Bytes::from_static(CHECK_KEY)));
    let range = Range { keys_only: true, ..range };
    match tokio::time::timeout(CHECK_TIMEOUT, context.node.range(range)).await {
        Ok(reply) => reply.map(|_| ()),
        Err(_) => Err(Error::Timeout),
    }
}

fn version() -> Response<AnswerBody> {
    let body = format!(
        "{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\",\"storage\":\"{CLUSTER_VERSION}\"}}"
    );
    answer(body, "application/json")
}

/// What etcd publishes by Go's `expvar`, as far as it is not about Go: how it was started, its limits, and where it stands, in
/// the words of raft. A password on the command line is nobody's business.
fn debug_vars(context: &Context) -> Response<AnswerBody> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let status = context.node.status();
    let id = context.node.member().id.to_string();
    let vars = serde_json::json!({
        "cmdline": shown_arguments(std::env::args()),
        "file_descriptor_limit": limit,
        "raft.status": {
            "id": id,
            "term": status.term,
            "vote": id,
            "commit": status.entries,
            "lead": id,
            "raftState": "StateLeader",
            "applied": status.entries,
        },
    });
    answer(format!("{vars:#}\n"), "application/json; charset=utf-8")
}

fn shown_arguments(arguments: impl Iterator<Item = String>) -> Vec<String> {
    const SECRET: &str = "password";
    let mut is_secret = false;
    let show = move |argument: String| {
        let was_secret = std::mem::replace(&mut is_secret, false);
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument.as_str(), None),
        };
        if was_secret {
            return "***".to_owned();
        }
        if !name.starts_with('-') || !name.contains(SECRET) {
            return argument;
        }
        is_secret = value.is_none();
        value.map_or_else(|| name.to_owned(), |_| format!("{name}=***"))
    };
    arguments.map(show).collect()
}

/// What etcd calls the version of its cluster here has no patch level.
const CLUSTER_MINOR: &str = match CLUSTER_VERSION.split_at_checked(3) {
    Some((minor, _)) => minor,
    None => CLUSTER_VERSION,
};

fn metrics(context: &Context) -> Response<AnswerBody> {
    let status = context.node.status();
    let state = metrics::State {
        member_id: context.node.member().id.to_string(),
        server_version: ETCD_VERSION,
        cluster_version: CLUSTER_MINOR,
        revision: status.revision.shown(),
        compact_revision: convert::compact_revision(status.compacted),
        keys: status.keys,
        disk_bytes: status.disk_bytes,
        live_bytes: status.live_bytes,
        quota_bytes: status.quota_bytes.unwrap_or(0),
        watch_streams: status.watch_streams,
        watchers: status.watchers,
        entries: status.entries,
        auth_revision: context.node.auth().state().revision(),
        leader_id: context.node.leader().to_string(),
        alarms: status
            .alarms
            .iter()
            .map(|alarm| (alarm.member.to_string(), convert::alarm_name(alarm.kind)))
            .collect(),
        ..about_members(&context.node)
    };
    answer(context.metrics.encode(&state), metrics::CONTENT_TYPE)
}

/// What is shown of the members.
fn about_members(node: &Handle) -> metrics::State {
    let status = node.cluster_status();
    let own = status.members.get(&node.member().id);
    metrics::State {
        has_majority: !status.has_peers || status.facts.voters_alive >= status.facts.majority,
        is_learner: own.is_some_and(|own| own.learner),
        is_catching_up: status.facts.catch_up.is_some(),
        member_ids: status.members.keys().map(ToString::to_string).collect(),
        cluster: cluster(node),
        ..metrics::State::default()
    }
}

/// What is shown of the cluster, if there is or was one.
fn cluster(node: &Handle) -> Option<metrics::ClusterState> {
    let status = node.cluster_status();
    if !status.has_peers {
        return None;
    }
    let facts = &status.facts;
    let peers = |state| facts.peers.values().filter(|peer| peer.state == state).count() as u64;
    let (counts, acks) = (facts.counts, facts.acks);
    let held_back = facts.held_back.map(|held| (status.label(held.member), held.reason.label()));
    Some(metrics::ClusterState {
        members: status.members.len() as u64,
        unstarted: peers(None),
        majority: facts.majority as u64,
        voters_alive: facts.voters_alive as u64,
        peers: [State::Alive, State::Suspect, State::Dead].map(|state| peers(Some(state))),
        is_ready: node.is_ready(),
        catch_up: facts.catch_up.map(|catch_up| catch_up.thousandths),
        complete_age_millis: status.age(facts.complete),
        settled_age_millis: status.age(facts.settled),
        held_back,
        waiting_bytes: facts.waiting_bytes,
        waiting_bytes_max: facts.waiting_bytes_max,
        rounds: counts.rounds,
        exchanges: counts.exchanges,
        mismatches: counts.mismatches,
        pulls: counts.pulls,
        pull_timeouts: counts.timeouts,
        entries_taken: counts.taken,
        entries_twice: counts.duplicates,
        entries_missing: facts.missing,
        catch_ups: counts.catch_ups,
        merges: counts.merges,
        scrubs: counts.scrubs,
        differences: counts.differences,
        misanswers: counts.misanswers,
        conflicts: facts.conflicts,
        clock_skew_millis: facts.clock.skew_millis,
        wall_clock_skew_millis: facts.clock.wall_skew_millis,
        is_clock_confirmed: facts.clock.is_confirmed,
        is_fenced: facts.clock.is_fenced,
        acks_waiting: [acks.one, acks.majority, acks.all],
        per_peer: if facts.is_direct { per_peer(&status, &node.round_trips()) } else { Vec::new() },
    })
}

/// The peers that were ever started. Those without series of their own are too many for a dashboard, too.
fn per_peer(
    status: &ClusterStatus,
    round_trips: &BTreeMap<MemberId, metrics::Seconds>,
) -> Vec<metrics::PeerState> {
    let started = status.facts.peers.iter().filter(|(_, peer)| peer.state.is_some());
    let shown = started.map(|(member, peer)| metrics::PeerState {
        name: status.label(*member),
        id: member.to_string(),
        is_alive: peer.state != Some(State::Dead),
        heard_age_millis: peer.heard_millis.map(|millis| status.since(millis)),
        missing_here: peer.missing_here,
        missing_there: peer.missing_there,
        sent_messages: peer.traffic.sent,
        sent_bytes: peer.traffic.sent_bytes,
        received_messages: peer.traffic.received,
        received_bytes: peer.traffic.received_bytes,
        dropped_messages: peer.traffic.lost + peer.traffic.refused,
        failures: peer.traffic.failures,
        conflicts: peer.conflicts,
        round_trips: round_trips.get(member).cloned(),
    });
    shown.collect()
}

pub(super) fn not_found() -> Response<AnswerBody> {
    error(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn answer(body: impl Into<Bytes>, content_type: &'static str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::new(Full::new(body.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn error(code: StatusCode, text: &str) -> Response<AnswerBody> {
    let mut response = with_no_sniff(answer(text.to_owned(), PLAIN_TEXT));
    *response.status_mut() = code;
    response
}

fn with_no_sniff(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    let (name, value) = NO_SNIFF;
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_path() {
        assert_eq!(find_check("/livez").map(|checks| checks.len()), Some(1));
        assert_eq!(find_check("/readyz").map(|checks| checks.len()), Some(4));
        assert_eq!(
            find_check("/readyz/non_learner"),
            Some(vec![("non_learner", Check::NotLearner)])
        );
        for unknown in
            ["/readyz/", "/readyz/foo", "/livez/non_learner", "/", "", "/foo", "/v3/kv/range"]
        {
            assert_eq!(find_check(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn parameters_are_read() {
        let query = Query::new("exclude=NOSPACE&verbose&exclude=x&serializable=true");
        assert!(query.verbose && query.excludes("NOSPACE") && query.excludes("x"));
        assert!(!query.excludes("CORRUPT"));
        assert_eq!(Query::new(""), Query::default());
    }

    #[test]
    fn passwords_are_not_shown() {
        let arguments = "starling --name a --discovery-password secret --x=password -password=b c";
        let shown = shown_arguments(arguments.split(' ').map(str::to_owned)).join(" ");
        let expected = "starling --name a --discovery-password *** --x=password -password=*** c";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_minor_version_is_two_numbers() {
        assert_eq!(CLUSTER_MINOR, "3.7");
    }
}
