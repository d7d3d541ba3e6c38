//! Answers as text that two servers must agree on: every field, ids checked and then left out.

use regex::{Captures, Regex};
use starling_proto::etcdserverpb as pb;
use starling_proto::mvccpb;
use tonic::Status;

/// Values longer than this show as their length.
const LONG: usize = 40;

/// Knows what a case measures by: the server's ids, and the revision at which the case began.
pub(super) struct Show {
    ids: (u64, u64),
    pub(super) base: i64,
}

impl Show {
    pub(super) fn new(header: pb::ResponseHeader) -> Self {
        Self { ids: (header.cluster_id, header.member_id), base: header.revision }
    }

    pub(super) fn error(status: &Status) -> String {
        format!("{:?}: {}", status.code(), status.message())
    }

    /// `r+2`, counted from the start of the case; 0 and less are words of the protocol.
    pub(super) fn revision(&self, revision: i64) -> String {
        if revision <= 0 { revision.to_string() } else { format!("r{:+}", revision - self.base) }
    }

    /// Any answer as it is printed for programmers, without what differs between two servers: ids, tokens, what is left of a
    /// lease.
    pub(super) fn debug(&self, answer: &str) -> String {
        let header = Regex::new(
            r"ResponseHeader \{ cluster_id: (\d+), member_id: (\d+), revision: (\d+), raft_term: (\d+) \}",
        );
        let header = header.expect("a regular expression");
        let answer = header.replace_all(answer, |parts: &Captures<'_>| {
            let number = |at: usize| parts[at].parse::<u64>().expect("digits");
            self.header(Some(&pb::ResponseHeader {
                cluster_id: number(1),
                member_id: number(2),
                revision: parts[3].parse().expect("digits"),
                raft_term: number(4),
            }))
        });
        let revisions = Regex::new(r"(create_revision|mod_revision|rev): (\d+)");
        let answer = revisions.expect("a regular expression").replace_all(
            &answer,
            |parts: &Captures<'_>| {
                format!("{}: {}", &parts[1], self.revision(parts[2].parse().expect("digits")))
            },
        );
        let tokens = Regex::new("token: \"[^\"]+\"").expect("a regular expression");
        let answer = tokens.replace_all(&answer, "token: some");
        let left = Regex::new(r"ttl: 59\d").expect("a regular expression");
        left.replace_all(&answer, "ttl: 59_").into_owned()
    }

    /// `@r+2`; a header without ids, as in a nested answer, is `bare`.
    pub(super) fn header(&self, header: Option<&pb::ResponseHeader>) -> String {
        let Some(header) = header else { return "@none".into() };
        let ids = (header.cluster_id, header.member_id);
        let filled = match (ids, header.raft_term) {
            ((0, 0), 0) => " bare",
            (ids, 1..) if ids == self.ids && ids.0 != 0 && ids.1 != 0 => "",
            _ => " WRONG IDS",
        };
        format!("@{}{filled}", self.revision(header.revision))
    }

    pub(super) fn kv(&self, kv: &mvccpb::KeyValue) -> String {
        let (create, modified) =
            (self.revision(kv.create_revision), self.revision(kv.mod_revision));
        let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
        format!(
            "[{}={} {create} {modified} v{}{lease}]",
            text(&kv.key),
            text(&kv.value),
            kv.version
        )
    }

    pub(super) fn kvs(&self, kvs: &[mvccpb::KeyValue]) -> String {
        match kvs.len() {
            0 => "no keys".into(),
            1..LONG => kvs.iter().map(|kv| self.kv(kv)).collect::<Vec<_>>().join(" "),
            many => format!("{many} keys"),
        }
    }

    pub(super) fn range(&self, answer: &pb::RangeResponse) -> String {
        let (header, kvs) = (self.header(answer.header.as_ref()), self.kvs(&answer.kvs));
        format!("{header} {kvs} more {} count {}", answer.more, answer.count)
    }

    pub(super) fn put(&self, answer: &pb::PutResponse) -> String {
        let prev = answer.prev_kv.as_ref().map(|kv| format!(" prev {}", self.kv(kv)));
        format!("{} put{}", self.header(answer.header.as_ref()), prev.unwrap_or_default())
    }

    pub(super) fn delete(&self, answer: &pb::DeleteRangeResponse) -> String {
        let (header, prev) = (self.header(answer.header.as_ref()), self.kvs(&answer.prev_kvs));
        format!("{header} deleted {} prev {prev}", answer.deleted)
    }

    pub(super) fn txn(&self, answer: &pb::TxnResponse) -> String {
        let responses: Vec<_> = answer.responses.iter().map(|response| self.op(response)).collect();
        let header = self.header(answer.header.as_ref());
        format!("{header} succeeded {} ({})", answer.succeeded, responses.join("; "))
    }

    fn op(&self, response: &pb::ResponseOp) -> String {
        use pb::response_op::Response;
        match &response.response {
            None => "nothing".into(),
            Some(Response::ResponseRange(answer)) => self.range(answer),
            Some(Response::ResponsePut(answer)) => self.put(answer),
            Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
            Some(Response::ResponseTxn(answer)) => self.txn(answer),
        }
    }

    /// A lease that the server named shows as positive or not.
    pub(super) fn grant(&self, answer: &pb::LeaseGrantResponse, asked: i64) -> String {
        let id = match (asked, answer.id) {
            (0, 1..) => "positive".into(),
            (_, id) => id.to_string(),
        };
        format!(
            "{} id {id} ttl {} error {:?}",
            self.header(answer.header.as_ref()),
            answer.ttl,
            answer.error
        )
    }

    /// The remaining time shows as within the granted one or not.
    pub(super) fn time_to_live(&self, answer: &pb::LeaseTimeToLiveResponse) -> String {
        let remaining = match answer.ttl {
            0.. if answer.ttl <= answer.granted_ttl => "within".into(),
            other => other.to_string(),
        };
        let mut keys: Vec<String> = answer.keys.iter().map(|key| text(key)).collect();
        keys.sort_unstable();
        let header = self.header(answer.header.as_ref());
        format!(
            "{header} id {} ttl {remaining} granted {} keys {keys:?}",
            answer.id, answer.granted_ttl
        )
    }

    /// One item for each event, or one for an answer without.
    pub(super) fn watch(&self, answer: &pb::WatchResponse) -> Vec<String> {
        let id = answer.watch_id;
        let header = answer.header.unwrap_or_default();
        if answer.events.is_empty() {
            return vec![self.watch_reply(answer)];
        }
        let behind = answer
            .events
            .iter()
            .filter_map(|event| event.kv.as_ref())
            .any(|kv| kv.mod_revision > header.revision);
        let note = if behind { " HEADER BEHIND EVENT" } else { "" };
        answer.events.iter().map(|event| format!("#{id} {}{note}", self.event(event))).collect()
    }

    fn watch_reply(&self, answer: &pb::WatchResponse) -> String {
        let mut words =
            vec![format!("#{} {}", answer.watch_id, self.header(answer.header.as_ref()))];
        for (set, word) in [
            (answer.created, "created"),
            (answer.canceled, "canceled"),
            (answer.fragment, "fragment"),
        ] {
            words.extend(set.then(|| word.to_owned()));
        }
        if answer.compact_revision != 0 {
            words.push(format!("compacted {}", self.revision(answer.compact_revision)));
        }
        if !answer.cancel_reason.is_empty() {
            words.push(format!("{:?}", answer.cancel_reason));
        }
        words.join(" ")
    }

    fn event(&self, event: &mvccpb::Event) -> String {
        let kv = event.kv.as_ref().map_or_else(|| "no kv".into(), |kv| self.kv(kv));
        let prev = event.prev_kv.as_ref().map(|kv| format!(" prev {}", self.kv(kv)));
        format!("{:?} {kv}{}", event.r#type(), prev.unwrap_or_default())
    }
}

fn text(bytes: &[u8]) -> String {
    match bytes.len() {
        0..LONG => bytes.escape_ascii().to_string(),
        long => format!("({long} bytes)"),
    }
}
