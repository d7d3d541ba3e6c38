//! Requests that took long, in the log: etcd's two lines, with etcd's texts and fields, so that whoever looks for them there finds
//! them here.
//!
//! `apply request took too long` comes after `--warning-apply-duration` (100 ms), `request stats` after
//! `--warning-unary-request-duration` (300 ms), or at level debug for each request of KV. Both are about the whole of
//! a request, from its head to its durable answer; etcd's first one leaves out the consensus. Keys are in them, up to a bound;
//! values are not, and of other services there is the name of the method only.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use prost::Message;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget};
use starling_proto::etcdserverpb::request_op::Request as Step;
use tonic::Status;
use tracing::Level;

use super::wire::Answer;
use crate::metrics::Metrics;

/// What is said of one request: more is cut off.
const CONTENT_BYTES_MAX: usize = 1024;
/// Stands for what was cut off.
const CUT: &str = "...";
/// etcd says so of requests that it knows nothing of.
const UNKNOWN: i64 = -1;
const NO_REMOTE: &str = "No remote client info.";

/// From when on requests are slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowLimits {
    /// For the line with etcd's statistics of a call (`--warning-unary-request-duration`).
    pub unary: Duration,
    /// For the line about what the store has done (`--warning-apply-duration`).
    pub apply: Duration,
}

impl Default for SlowLimits {
    fn default() -> Self {
        Self { unary: Duration::from_millis(300), apply: Duration::from_millis(100) }
    }
}

impl SlowLimits {
    /// None is.
    pub(crate) const NEVER: Self = Self { unary: Duration::MAX, apply: Duration::MAX };
}

/// A unary call that is being answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    /// Service and method.
    pub(crate) names: (&'static str, &'static str),
    pub(crate) begun: Instant,
    /// Who asks, if by TCP.
    pub(crate) remote: Option<SocketAddr>,
}

impl Timed {
    /// A call has ended of which nothing more is known.
    pub(crate) fn note_unknown(&self, limits: SlowLimits) {
        let spent = self.begun.elapsed();
        if spent > limits.unary {
            let unknown = Stats {
                content: String::new(),
                request: (UNKNOWN, UNKNOWN),
                response: (UNKNOWN, UNKNOWN),
            };
            self.warn(spent, &unknown);
        }
    }

    /// A call of KV has ended so, of which this was the message.
    pub(super) fn note<R: Content, A: Answer>(
        &self,
        limits: SlowLimits,
        metrics: &Metrics,
        message: &Bytes,
        outcome: &Result<tonic::Response<A>, Status>,
    ) {
        let spent = self.begun.elapsed();
        let is_slow = spent > limits.unary;
        let is_long = spent > limits.apply;
        let is_told = !is_slow && tracing::enabled!(Level::DEBUG);
        if !(is_slow || is_long || is_told) {
            return;
        }
        // It was decoded before.
        let Ok(request) = R::decode(message.clone()) else { return };
        let mut content = Text::default();
        request.write(&mut content);
        let content = content.0.trim_end().to_owned();
        let answer = outcome.as_ref().ok().map(|response| response.get_ref());
        let size = answer.map(|answer| shown(answer.len()));
        if is_long {
            metrics.slow_requests.inc();
            let error = outcome.as_ref().err().map(Status::message);
            let mut response = String::new();
            if let (Some(answer), Some(size)) = (answer, size) {
                if let Some(pairs) = answer.pairs() {
                    let _ = write!(response, "range_response_count:{pairs} ");
                }
                let _ = write!(response, "size:{size}");
            }
            tracing::warn!(
                took = ?spent,
                "expected-duration" = ?limits.apply,
                prefix = request.prefix(),
                request = content,
                response,
                error,
                "apply request took too long"
            );
        }
        let counts = (request.parts(), answer.map_or(0, Answer::counted));
        let stats = Stats {
            content,
            request: (counts.0, shown(message.len())),
            response: (counts.1, size.unwrap_or(0)),
        };
        if is_slow {
            self.warn(spent, &stats);
        } else if is_told {
            let (method, remote) = (self.method(), self.remote());
            tracing::debug!(
                "time spent" = ?spent,
                remote,
                "response type" = method,
                "request count" = stats.request.0,
                "request size" = stats.request.1,
                "response count" = stats.response.0,
                "response size" = stats.response.1,
                "request content" = stats.content,
                "request stats"
            );
        }
    }

    fn warn(&self, spent: Duration, stats: &Stats) {
        let begun = SystemTime::now().checked_sub(spent).unwrap_or(SystemTime::UNIX_EPOCH);
        let (method, remote) = (self.method(), self.remote());
        tracing::warn!(
            "start time" = moment(begun),
            "time spent" = ?spent,
            remote,
            "response type" = method,
            "request count" = stats.request.0,
            "request size" = stats.request.1,
            "response count" = stats.response.0,
            "response size" = stats.response.1,
            "request content" = stats.content,
            "request stats"
        );
    }

    fn method(&self) -> String {
        format!("/{}/{}", self.names.0, self.names.1)
    }

    fn remote(&self) -> String {
        self.remote.map_or_else(|| NO_REMOTE.to_owned(), |remote| remote.to_string())
    }
}

/// What is said of a call: its content; and of request and answer how many, and how large.
struct Stats {
    content: String,
    request: (i64, i64),
    response: (i64, i64),
}

fn shown(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// In RFC 3339, to the millisecond, in UTC.
fn moment(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01, in years that begin in March: the leap day is the last one of a year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Text of a bounded length.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    fn is_full(&self) -> bool {
        self.0.ends_with(CUT)
    }

    fn push(&mut self, text: &str) {
        if self.is_full() {
            return;
        }
        if self.0.len() + text.len() <= CONTENT_BYTES_MAX {
            self.0.push_str(text);
        } else {
            self.0.push_str(CUT);
        }
    }

    fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        self.push(&format!("{name}:{value} "));
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            let cut = &bytes[..bytes.len().min(CONTENT_BYTES_MAX / 4)];
            let mark = if cut.len() < bytes.len() { CUT } else { "" };
            self.push(&format!("{name}:\"{}{mark}\" ", cut.escape_ascii()));
        }
    }

    fn number(&mut self, name: &str, number: i64) {
        if number != 0 {
            self.field(name, number);
        }
    }

    fn switch(&mut self, name: &str, is_on: bool) {
        if is_on {
            self.field(name, true);
        }
    }
}

/// A request of which the log says what it asks for.
pub(crate) trait Content: Message + Default {
    /// Writes it as etcd does: the fields that are set, and lengths in the place of values.
    fn write(&self, text: &mut Text);

    /// What etcd puts before requests that read only.
    fn prefix(&self) -> &'static str {
        ""
    }

    /// How many things are asked for, as etcd counts.
    fn parts(&self) -> i64 {
        0
    }
}

impl Content for pb::RangeRequest {
    fn write(&self, text: &mut Text) {
        text.bytes("key", &self.key);
        text.bytes("range_end", &self.range_end);
        text.number("limit", self.limit);
        text.number("revision", self.revision);
        if self.sort_order != 0 || self.sort_target != 0 {
            text.field("sort_order", self.sort_order().as_str_name());
            text.field("sort_target", self.sort_target().as_str_name());
        }
        text.switch("serializable", self.serializable);
        text.switch("keys_only", self.keys_only);
        text.switch("count_only", self.count_only);
        text.number("min_mod_revision", self.min_mod_revision);
        text.number("max_mod_revision", self.max_mod_revision);
        text.number("min_create_revision", self.min_create_revision);
        text.number("max_create_revision", self.max_create_revision);
    }

    fn prefix(&self) -> &'static str {
        "read-only range "
    }
}

impl Content for pb::PutRequest {
    fn write(&self, text: &mut Text) {
        text.bytes("key", &self.key);
        text.field("value_size", self.value.len());
        text.number("lease", self.lease);
        text.switch("prev_kv", self.prev_kv);
        text.switch("ignore_value", self.ignore_value);
        text.switch("ignore_lease", self.ignore_lease);
    }

    fn parts(&self) -> i64 {
        1
    }
}

impl Content for pb::DeleteRangeRequest {
    fn write(&self, text: &mut Text) {
        text.bytes("key", &self.key);
        text.bytes("range_end", &self.range_end);
        text.switch("prev_kv", self.prev_kv);
    }
}

impl Content for pb::TxnRequest {
    fn write(&self, text: &mut Text) {
        for compare in &self.compare {
            if text.is_full() {
                return;
            }
            text.push("compare:<");
            write_compare(compare, text);
            text.push("> ");
        }
        for (name, steps) in [("success", &self.success), ("failure", &self.failure)] {
            for step in steps {
                if text.is_full() {
                    return;
                }
                text.push(&format!("{name}:<"));
                match &step.request {
                    Some(Step::RequestRange(it)) => nest("request_range", it, text),
                    Some(Step::RequestPut(it)) => nest("request_put", it, text),
                    Some(Step::RequestDeleteRange(it)) => nest("request_delete_range", it, text),
                    Some(Step::RequestTxn(it)) => nest("request_txn", it, text),
                    None => {}
                }
                text.push("> ");
            }
        }
    }

    fn prefix(&self) -> &'static str {
        let mut steps = self.success.iter().chain(&self.failure);
        let only_reads = steps.all(|step| matches!(step.request, Some(Step::RequestRange(_))));
        if only_reads { "read-only txn " } else { "" }
    }

    fn parts(&self) -> i64 {
        shown(self.success.len().max(self.failure.len()))
    }
}

fn nest(name: &str, request: &impl Content, text: &mut Text) {
    text.push(&format!("{name}:<"));
    request.write(text);
    text.push("> ");
}

fn write_compare(compare: &pb::Compare, text: &mut Text) {
    use pb::compare::TargetUnion;
    if compare.result != 0 {
        let result = CompareResult::try_from(compare.result).unwrap_or_default();
        text.field("result", result.as_str_name());
    }
    if compare.target != 0 {
        let target = CompareTarget::try_from(compare.target).unwrap_or_default();
        text.field("target", target.as_str_name());
    }
    text.bytes("key", &compare.key);
    text.bytes("range_end", &compare.range_end);
    match &compare.target_union {
        Some(TargetUnion::Value(value)) => text.field("value_size", value.len()),
        Some(TargetUnion::Version(number)) => text.field("version", number),
        Some(TargetUnion::CreateRevision(number)) => text.field("create_revision", number),
        Some(TargetUnion::ModRevision(number)) => text.field("mod_revision", number),
        Some(TargetUnion::Lease(number)) => text.field("lease", number),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(request: &impl Content) -> String {
        let mut text = Text::default();
        request.write(&mut text);
        text.0
    }

    fn put(key: &str, value: &str) -> pb::PutRequest {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        pb::PutRequest { key, value, lease: 7, ..Default::default() }
    }

    #[test]
    fn values_are_not_in_it() {
        assert_eq!(content(&put("a\n", "secret")), "key:\"a\\n\" value_size:6 lease:7 ");
        let compare = pb::Compare {
            target: CompareTarget::Value.into(),
            key: "a".into(),
            target_union: Some(pb::compare::TargetUnion::Value("secret".into())),
            ..Default::default()
        };
        let range = pb::RangeRequest { key: "b".into(), limit: 3, ..Default::default() };
        let step = |request| pb::RequestOp { request: Some(request) };
        let txn = pb::TxnRequest {
            compare: vec![compare],
            success: vec![step(Step::RequestPut(put("a", "secret")))],
            failure: vec![step(Step::RequestRange(range))],
        };
        let expected = "compare:<target:VALUE key:\"a\" value_size:6 > success:<request_put:<key:\"a\" value_size:6 lease:7 > > failure:<request_range:<key:\"b\" limit:3 > > ";
        assert_eq!(content(&txn), expected);
        assert_eq!((txn.prefix(), txn.parts()), ("", 1));
    }

    #[test]
    fn it_is_bounded() {
        let long = put(&"k".repeat(100_000), "");
        assert!(content(&long).len() < CONTENT_BYTES_MAX && content(&long).contains("kkk...\""));
        let step = pb::RequestOp { request: Some(Step::RequestPut(long)) };
        let txn = pb::TxnRequest { success: vec![step; 128], ..Default::default() };
        let text = content(&txn);
        assert!(text.ends_with(CUT) && text.len() <= CONTENT_BYTES_MAX + CUT.len(), "{text}");
    }

    #[test]
    fn moments_are_dates() {
        let at = |seconds, millis| {
            moment(
                SystemTime::UNIX_EPOCH
                    + Duration::from_secs(seconds)
                    + Duration::from_millis(millis),
            )
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_827_696, 789), "2000-02-29T12:34:56.789Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }
}
