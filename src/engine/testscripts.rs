//! Golden scripts: commands and what comes of them, in `testscripts/`.
//!
//! `UPDATE_GOLDENFILES=1 cargo test` writes the answers anew, for review. Each command that changes something is a
//! commit of its own, except between `batch` and `commit`.
//!
//! ```text
//! put KEY [VALUE] [lease=ID] [prev_kv] [ignore_value] [ignore_lease]
//! get RANGE [rev=N] [limit=N] [sort=TARGET] [order=asc|desc] [min_mod=N] .. [keys_only] [count_only]
//! del RANGE [prev_kv]
//! txn [if="FIELD RANGE OP VALUE"].. [then="COMMAND"].. [else="COMMAND"]..      a command may be a txn in ()
//! alarm nospace|corrupt MEMBER on|off
//! grant ID [ttl=N]    revoke ID    alive ID    ttl ID    leases    tick SECONDS
//! compact N    reclaim    sweep    batch    commit    restart    status    log
//! restart tag=N [entropy=N]    retag N    names COMMAND..
//! watch STREAM RANGE [rev=N] [id=N] [prev_kv] [no_put] [no_delete] [notify]
//! poll STREAM    cancel STREAM ID    progress STREAM    notify STREAM SECONDS
//! pull MEMBER [of=N]    catchup MEMBER    heads    same MEMBER    peered    settled SECONDS    graves    orphans
//! ```
//!
//! `b: put KEY` is done by member `b`; without a name it is member `a`, who is number 1. A member that pulls takes what it
//! lacks from the other one's log, a member that catches up from the other one's state. Everything up to some time can be
//! declared settled.
//!
//! A range is `a` (one key), `a..c`, `a..` (no end), `a*` (a prefix) or `all`. A revision with a tag is `tag.counter`.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use goldenscript::Argument;

use super::command::{
    Command, CommandReply, Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply,
    Filter, Put, PutReply, Range, RangeReply, Sort, SortOrder, SortTarget, Txn, TxnOp, TxnOpReply,
    TxnReply,
};
use super::lease::KeepAlive;
use super::watch::{Event, EventKind, Stream, WatchCreate, WatchReply};
use super::{Conflict, Failure, Options, Writer, txn};
use crate::replication::entry::Segment;
use crate::replication::message::Head;
use crate::storage::schema::{Identity, Op, Place, Row};
use crate::storage::{Memory, Space, Store};
use crate::time::{Now, Timestamp};
use crate::types::{Alarm, AlarmKind, ClusterId, KeyRange, KeyValue, LeaseId, MemberId, Revision};

/// `--max-txn-ops`, small enough to be reached in a script.
const TXN_OPS_MAX: usize = 4;
const EXPIRED_MAX: usize = 100;
const MILLIS_PER_SECOND: u64 = 1000;

type Result<T, E = Box<dyn StdError>> = std::result::Result<T, E>;

/// A member, and the clients that watch it.
struct Runner {
    name: String,
    /// The other members.
    others: BTreeMap<String, Parked>,
    memory: Memory,
    writer: Writer,
    streams: BTreeMap<String, Stream>,
    seconds: u64,
    batching: bool,
}

/// A member whose turn it is not.
struct Parked {
    memory: Memory,
    writer: Writer,
    streams: BTreeMap<String, Stream>,
}

/// The words of a command, and its `key=value` pairs.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    pairs: Vec<(String, String)>,
}

impl Words {
    fn of(arguments: &[Argument]) -> Result<Self> {
        let mut all = Self::default();
        for argument in arguments {
            match argument {
                Argument::Positional(word) => all.words.push(word.clone()),
                Argument::KeyValue(key, value) => all.pairs.push((key.clone(), value.clone())),
                other => return Err(format!("unexpected argument {other}").into()),
            }
        }
        Ok(all)
    }

    /// Words of a command within a command.
    fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for word in split(text, ' ') {
            match word.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    all.pairs.push((key.to_owned(), strip(value).to_owned()));
                }
                _ => all.words.push(word.to_owned()),
            }
        }
        all
    }

    /// The next word.
    fn next(&mut self) -> Result<String> {
        if self.words.is_empty() {
            return Err("a word is missing".into());
        }
        Ok(self.words.remove(0))
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| word != name);
        self.words.len() < before
    }

    fn number(&mut self, name: &str, default: i64) -> Result<i64> {
        self.take(name).map_or(Ok(default), |value| parse_number(&value))
    }

    /// A pair, the first of that name.
    fn take(&mut self, name: &str) -> Option<String> {
        let i = self.pairs.iter().position(|(key, _)| key == name)?;
        Some(self.pairs.remove(i).1)
    }

    fn end(self) -> Result<()> {
        match (self.words.as_slice(), self.pairs.as_slice()) {
            ([], []) => Ok(()),
            (words, pairs) => Err(format!("left over: {words:?} {pairs:?}").into()),
        }
    }
}

/// Splits at a character, but not within parentheses.
fn split(text: &str, at: char) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == at && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

fn strip(text: &str) -> &str {
    text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(text)
}

fn key_range(text: &str) -> KeyRange {
    let request = |start: &str, end: Vec<u8>| {
        KeyRange::from_request(Bytes::copy_from_slice(start.as_bytes()), end.into())
    };
    if text == "all" {
        KeyRange::all()
    } else if let Some(prefix) = text.strip_suffix('*') {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        request(prefix, end)
    } else {
        match text.split_once("..") {
            Some((start, "")) => request(start, vec![0]),
            Some((start, end)) => request(start, end.into()),
            None => request(text, vec![]),
        }
    }
}

fn parse_put(mut words: Words) -> Result<Put> {
    let put = Put {
        prev_kv: words.flag("prev_kv"),
        ignore_value: words.flag("ignore_value"),
        ignore_lease: words.flag("ignore_lease"),
        lease: LeaseId(words.number("lease", 0)?),
        key: words.next()?.into(),
        value: words.next().unwrap_or_default().into(),
    };
    words.end()?;
    Ok(put)
}

fn parse_delete(mut words: Words) -> Result<DeleteRange> {
    let prev_kv = words.flag("prev_kv");
    let delete = DeleteRange { range: key_range(&words.next()?), prev_kv };
    words.end()?;
    Ok(delete)
}

fn parse_sort(words: &mut Words) -> Result<Option<Sort>> {
    let order = match words.take("order").as_deref() {
        None => None,
        Some("asc") => Some(SortOrder::Ascending),
        Some("desc") => Some(SortOrder::Descending),
        Some(other) => return Err(format!("no such order: {other}").into()),
    };
    let target = match words.take("sort").as_deref() {
        None if order.is_none() => return Ok(None),
        None | Some("key") => SortTarget::Key,
        Some("version") => SortTarget::Version,
        Some("create") => SortTarget::CreateRevision,
        Some("mod") => SortTarget::ModRevision,
        Some("value") => SortTarget::Value,
        Some(other) => return Err(format!("no such target: {other}").into()),
    };
    Ok(Some(Sort { target, order }))
}

fn parse_range(mut words: Words) -> Result<Range> {
    let range = Range {
        sort: parse_sort(&mut words)?,
        keys_only: words.flag("keys_only"),
        count_only: words.flag("count_only"),
        limit: words.take("limit").map(|limit| limit.parse()).transpose()?,
        revision: words.number("rev", 0)?,
        filter: Filter {
            min_mod_revision: words.number("min_mod", 0)?,
            max_mod_revision: words.number("max_mod", 0)?,
            min_create_revision: words.number("min_create", 0)?,
            max_create_revision: words.number("max_create", 0)?,
        },
        range: key_range(&words.next()?),
    };
    words.end()?;
    Ok(range)
}

/// `FIELD RANGE OP VALUE`, such as `version a = 0`.
fn parse_compare(text: &str) -> Result<Compare> {
    let words = split(text, ' ');
    let (field, range, result, value) = match words.as_slice() {
        [field, range, result] => (*field, *range, *result, ""),
        [field, range, result, value] => (*field, *range, *result, *value),
        _ => return Err(format!("not a compare: {text}").into()),
    };
    Ok(Compare {
        range: key_range(range),
        result: match result {
            "=" => CompareResult::Equal,
            "!=" => CompareResult::NotEqual,
            ">" => CompareResult::Greater,
            "<" => CompareResult::Less,
            other => return Err(format!("no such comparison: {other}").into()),
        },
        target: match field {
            "version" => CompareTarget::Version(value.parse()?),
            "create" => CompareTarget::CreateRevision(parse_number(value)?),
            "mod" => CompareTarget::ModRevision(parse_number(value)?),
            "lease" => CompareTarget::Lease(value.parse()?),
            "value" => CompareTarget::Value(Bytes::copy_from_slice(value.as_bytes())),
            other => return Err(format!("no such field: {other}").into()),
        },
    })
}

fn parse_txn(mut words: Words) -> Result<Txn> {
    let mut txn = Txn::default();
    for (key, value) in std::mem::take(&mut words.pairs) {
        match key.as_str() {
            "if" => txn.compares.push(parse_compare(&value)?),
            "then" => txn.success.push(parse_op(&value)?),
            "else" => txn.failure.push(parse_op(&value)?),
            _ => words.pairs.push((key, value)),
        }
    }
    words.end()?;
    Ok(txn)
}

fn parse_op(text: &str) -> Result<TxnOp> {
    let mut words = Words::parse(strip(text));
    Ok(match words.next()?.as_str() {
        "put" => TxnOp::Put(parse_put(words)?),
        "get" => TxnOp::Range(parse_range(words)?),
        "del" => TxnOp::DeleteRange(parse_delete(words)?),
        "txn" => TxnOp::Txn(parse_txn(words)?),
        other => return Err(format!("no such operation: {other}").into()),
    })
}

fn parse_watch(words: &mut Words) -> Result<WatchCreate> {
    Ok(WatchCreate {
        prev_kv: words.flag("prev_kv"),
        no_put: words.flag("no_put"),
        no_delete: words.flag("no_delete"),
        progress_notify: words.flag("notify"),
        fragment: false,
        start_revision: words.number("rev", 0)?,
        id: words.number("id", 0)?,
        range: key_range(&words.next()?),
    })
}

/// A number, or a counter with its tag.
fn parse_number(text: &str) -> Result<i64> {
    let Some((tag, counter)) = text.split_once('.') else { return Ok(text.parse()?) };
    Ok(Revision(counter.parse()?).with_tag(tag.parse()?).shown())
}

/// Shows revisions with tags as such. Nothing else in these scripts is as large.
fn show_tags(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        match digits.parse().map(Revision) {
            Ok(revision) if revision.tag() > 0 => {
                write!(out, "{}.{}", revision.tag(), revision.counter()).unwrap();
                out.push_str(&part[digits.len()..]);
            }
            _ => out.push_str(part),
        }
    }
    out
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn show_kv(kv: &KeyValue) -> String {
    let KeyValue { create_revision, mod_revision, version, lease, .. } = kv;
    let (key, value) = (text(&kv.key), text(&kv.value));
    let lease = if lease.is_some() { format!(" lease={}", lease.0) } else { String::new() };
    format!("{key}={value} create={create_revision} mod={mod_revision} version={version}{lease}")
}

fn show_put(reply: &PutReply) -> String {
    reply
        .prev_kv
        .as_ref()
        .map_or_else(|| "put".to_owned(), |pair| format!("put, was {}", show_kv(&pair.into())))
}

fn show_delete(reply: &DeleteRangeReply) -> String {
    let was = reply.prev_kvs.iter().map(|pair| format!("\n  was {}", show_kv(&pair.into())));
    format!("deleted {}{}", reply.deleted, was.collect::<String>())
}

fn show_range(reply: &RangeReply) -> String {
    let more = if reply.more { ", and more" } else { "" };
    let kvs = reply.kvs.iter().map(|pair| format!("\n  {}", show_kv(&pair.into())));
    format!("count {}{more}{}", reply.count, kvs.collect::<String>())
}

fn show_txn(reply: &TxnReply) -> String {
    let mut out = if reply.succeeded { "succeeded" } else { "failed" }.to_owned();
    for response in &reply.responses {
        let (revision, shown) = match response {
            TxnOpReply::Put(reply) => (reply.revision, show_put(&reply.body)),
            TxnOpReply::Range(reply) => (reply.revision, show_range(&reply.body)),
            TxnOpReply::DeleteRange(reply) => (reply.revision, show_delete(&reply.body)),
            TxnOpReply::Txn(reply) => (reply.revision, show_txn(&reply.body)),
        };
        let shown = shown.replace('\n', "\n  ");
        write!(out, "\n  @{revision} {shown}").unwrap();
    }
    out
}

fn show_event(event: &Event) -> String {
    let was = event.prev.as_ref().map(|pair| format!(", was {}", show_kv(&pair.into())));
    let pair = KeyValue::from(&event.pair);
    let kv = match event.kind {
        EventKind::Put => format!("put {}", show_kv(&pair)),
        EventKind::Delete => {
            let only = KeyValue {
                key: pair.key.clone(),
                mod_revision: pair.mod_revision,
                ..KeyValue::default()
            };
            assert_eq!(pair, only, "the event of a delete has its key and revision only");
            format!("delete {} mod={}", text(&pair.key), pair.mod_revision)
        }
    };
    format!("{kv}{}", was.unwrap_or_default())
}

fn show_watch(reply: &WatchReply) -> String {
    match reply {
        WatchReply::Created { id, revision } => format!("@{revision} watcher {id} created"),
        WatchReply::Refused { reason, revision } => format!("@{revision} refused: {reason:?}"),
        WatchReply::Events { id, revision, events, .. } => {
            let events = events.iter().map(|event| format!("\n  {}", show_event(event)));
            format!("@{revision} watcher {id}{}", events.collect::<String>())
        }
        WatchReply::Denied { id, reason, revision } => {
            format!("@{revision} watcher {id} denied: {reason:?}")
        }
        WatchReply::Canceled { id, revision } => format!("@{revision} watcher {id} canceled"),
        WatchReply::Compacted { id, compacted } => {
            format!("watcher {id} ended: compacted at {compacted}")
        }
        WatchReply::Progress { id: None, revision } => format!("@{revision} progress of all"),
        WatchReply::Progress { id: Some(id), revision } => {
            format!("@{revision} progress of watcher {id}")
        }
    }
}

fn show_row(place: Place, row: &Row) -> String {
    let what = match &row.op {
        Op::Put(kv) => format!("put {}", show_kv(kv)),
        Op::Delete { key, .. } => format!("delete {}", text(key)),
        Op::InternalPut { table, .. } => format!("internal put, {table:?}"),
        Op::InternalDelete { table, .. } => format!("internal delete, {table:?}"),
    };
    let last = if row.last { ", last" } else { "" };
    let hidden = if row.hidden { ", hidden" } else { "" };
    format!(
        "{}.{} seq={} op={}{last}{hidden}: {what}",
        place.revision, place.n, row.seq, row.op_number
    )
}

fn answer<T>(result: Result<T, Failure>) -> Result<T> {
    result.map_err(|failure| match failure {
        Failure::Refused(error) => error.into(),
        Failure::Broken(error) => panic!("the store is broken: {error}"),
    })
}

impl Runner {
    fn new() -> Self {
        let memory = Memory::new();
        let name = "a".to_owned();
        let writer = Self::open(&name, &memory, 0, (None, 0));
        let (others, streams) = (BTreeMap::new(), BTreeMap::new());
        Self { name, others, memory, writer, streams, seconds: 0, batching: false }
    }

    fn open(
        name: &str,
        memory: &Memory,
        seconds: u64,
        (tag, entropy): (Option<u16>, u64),
    ) -> Writer {
        let number = name.bytes().fold(0, |number, byte| number * 26 + u64::from(byte - b'a') + 1);
        let identity = Identity { member: MemberId(number), cluster: ClusterId(2) };
        let store = Store::Memory(memory.clone());
        let options = Options { tag, revision_entropy: entropy, ..Options::new(identity) };
        let options = Options { gc_age_millis: 0, ..options };
        Writer::open(store, &options, now(seconds)).unwrap()
    }

    /// Lets another member do what comes next.
    fn turn_to(&mut self, name: &str) {
        if name == self.name {
            return;
        }
        let next = self.others.remove(name).unwrap_or_else(|| {
            let memory = Memory::new();
            let writer = Self::open(name, &memory, self.seconds, (None, 0));
            Parked { memory, writer, streams: BTreeMap::new() }
        });
        let former = Parked {
            memory: std::mem::replace(&mut self.memory, next.memory),
            writer: std::mem::replace(&mut self.writer, next.writer),
            streams: std::mem::replace(&mut self.streams, next.streams),
        };
        self.others.insert(std::mem::replace(&mut self.name, name.to_owned()), former);
    }

    /// Another member, which knows that it has peers before it gives anything away.
    fn peer(&mut self, name: &str) -> Result<()> {
        let peer = &mut self.others.get_mut(name).ok_or("no such member")?.writer;
        peer.set_peered();
        Ok(peer.commit()?)
    }

    /// Takes what is missing from the log of another member, or only what some member has written.
    fn pull(&mut self, from: &str, of: i64) -> Result<String> {
        self.peer(from)?;
        let from = &self.others[from].writer;
        let heads = from.heads();
        let known = |head: &Head| Head { seq: self.writer.head(head.origin), ..*head };
        let is_of = |head: &&Head| of == 0 || head.origin.member.0 == of.cast_unsigned();
        let wants: Vec<Head> = heads.iter().filter(is_of).map(known).collect();
        let mut out = Vec::new();
        for segment in from.mvcc().segments(&wants, &heads, usize::MAX)? {
            let applied = self.writer.apply(&segment, now(self.seconds))?;
            let Segment { origin, after, through, .. } = segment;
            let (outcome, entries) = (applied.outcome, applied.entries);
            out.push(format!("{outcome:?} {origin} ({after}, {through}]: {entries} entries"));
            for Conflict { key, kept, lost } in applied.conflicts {
                out.push(format!("conflict about {}: {kept}, not {lost}", text(&key)));
            }
        }
        self.writer.commit()?;
        Ok(out.join("\n"))
    }

    /// Takes the state of another member.
    fn catch_up(&mut self, from: &str) -> Result<String> {
        self.peer(from)?;
        let from = &self.others[from].writer;
        let part = from.mvcc().catch_up(&self.writer.heads(), (None, None), usize::MAX)?;
        let applied = self.writer.apply_catch_up(&part.entries, now(self.seconds))?;
        self.writer.finish_catch_up(&from.heads());
        self.writer.commit()?;
        Ok(format!("{:?}: {} entries", applied.outcome, applied.entries))
    }

    fn heads(&self) -> String {
        let heads = self.writer.heads();
        let heads = heads.iter().map(|Head { origin, seq }| format!("{origin} {seq}"));
        heads.collect::<Vec<_>>().join("\n")
    }

    /// Whether another member has the same live state.
    fn same(&self, as_whom: &str) -> Result<String> {
        let other = &self.others.get(as_whom).ok_or("no such member")?.writer;
        let hashes = [&self.writer, other].map(|writer| writer.mvcc().reader().hash(0));
        let [own, other] = hashes.map(|hash| answer(hash).map(|hash| hash.hash));
        Ok(if own? == other? { "the same" } else { "different" }.to_owned())
    }

    fn replicating(&mut self, name: &str, mut words: Words) -> Result<String> {
        let word = words.next()?;
        let of = words.number("of", 0)?;
        words.end()?;
        match name {
            "pull" => self.pull(&word, of),
            "catchup" => self.catch_up(&word),
            "settled" => {
                self.writer.set_settled(Timestamp::from_millis(word.parse::<u64>()? * 1000));
                self.writer.commit()?;
                Ok(String::new())
            }
            _ => self.same(&word),
        }
    }

    fn now(&self) -> Now {
        now(self.seconds)
    }

    fn execute(&mut self, command: Command) -> Result<String> {
        let now = self.now();
        let reply = answer(self.writer.execute(command, now))?;
        if !self.batching {
            self.writer.commit()?;
        }
        let shown = match &reply.body {
            CommandReply::Put(reply) => show_put(reply),
            CommandReply::DeleteRange(reply) => show_delete(reply),
            CommandReply::Txn(reply) => show_txn(reply),
            CommandReply::Compact => "compacted".to_owned(),
            CommandReply::LeaseGrant(reply) => {
                format!("granted {} for {} s", reply.id.0, reply.ttl_seconds)
            }
            CommandReply::LeaseRevoke => "revoked".to_owned(),
            CommandReply::Auth | CommandReply::Setting => "done".to_owned(),
            CommandReply::Alarm { was_on } => {
                format!("alarm was {}", if *was_on { "on" } else { "off" })
            }
        };
        Ok(format!("@{} {shown}", reply.revision))
    }

    fn get(&self, range: &Range) -> Result<String> {
        let reader = self.writer.mvcc().reader();
        let reply = answer(reader.range(range))?;
        Ok(format!("@{} {}", reader.revision(), show_range(&reply)))
    }

    /// As the node does: what only reads goes past the writer.
    fn txn(&mut self, txn: Txn) -> Result<String> {
        answer(txn.check(TXN_OPS_MAX).map_err(Failure::from))?;
        if !txn.is_read_only() {
            return self.execute(Command::Txn(txn));
        }
        let reply = answer(txn::read_only(&txn, &self.writer.mvcc().reader()))?;
        Ok(format!("@{} {}", reply.revision, show_txn(&reply.body)))
    }

    fn stream(&mut self, name: String) -> &mut Stream {
        let (hub, mvcc) = (self.writer.hub(), self.writer.mvcc());
        let new = || Stream::new(Arc::clone(hub), Arc::clone(mvcc), Box::new(|| ()));
        self.streams.entry(name).or_insert_with(new)
    }

    fn poll(&mut self, name: String) -> Result<String> {
        let stream = self.stream(name);
        let mut replies = Vec::new();
        while let Some(reply) = stream.poll()? {
            replies.push(show_watch(&reply));
        }
        Ok(if replies.is_empty() { "nothing".to_owned() } else { replies.join("\n") })
    }

    fn tick(&mut self, seconds: u64) -> Result<String> {
        self.seconds += seconds;
        let mut out = Vec::new();
        for id in self.writer.lessor().take_expired(self.now(), EXPIRED_MAX) {
            out.push(format!("{} has run out: {}", id.0, {
                self.execute(Command::LeaseRevoke { id })?
            }));
        }
        Ok(out.join("\n"))
    }

    fn keep_alive(&self, id: LeaseId) -> String {
        match self.writer.lessor().keep_alive(id, self.now()) {
            KeepAlive::Renewed(seconds) => format!("{} s more", seconds),
            KeepAlive::Expiring => "expiring".to_owned(),
            KeepAlive::Elsewhere(owner) => format!("of member {owner}"),
            KeepAlive::Unknown => "unknown".to_owned(),
        }
    }

    fn ttl(&self, id: LeaseId) -> String {
        let Some(status) = self.writer.lessor().status(id, true, self.now()) else {
            return "unknown".to_owned();
        };
        let keys: Vec<String> = status.keys.iter().map(|key| text(key)).collect();
        let (left, granted) = (status.remaining_seconds, status.granted_seconds);
        format!("{left} s of {granted} s, keys: {}", keys.join(" "))
    }

    fn sweep(&mut self) -> Result<String> {
        let Some(sweep) = self.writer.begin_sweep(true).unwrap() else {
            return Ok("nothing".to_owned());
        };
        sweep.run(self.writer.mvcc())?;
        self.writer.end_sweep(&sweep);
        self.writer.commit()?;
        Ok("swept".to_owned())
    }

    fn status(&self) -> String {
        let (mvcc, lessor) = (self.writer.mvcc(), self.writer.lessor());
        let compacted =
            if mvcc.was_compacted() { mvcc.compacted().to_string() } else { "never".into() };
        format!(
            "revision {}, compacted {compacted}, keys {}, leases {}, entries {}, run {}",
            mvcc.revision(),
            mvcc.keys(),
            lessor.len(),
            self.writer.entries(),
            self.writer.starts()
        )
    }

    fn log(&self) -> Result<String> {
        let store = Store::Memory(self.memory.clone());
        let rows = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded).map(|row| {
            let (key, value) = row?;
            let place = Place::decode(&key, self.writer.tag())?;
            Ok(show_row(place, &Row::decode(place, value)?))
        });
        Ok(rows.collect::<Result<Vec<_>>>()?.join("\n"))
    }

    fn restart(&mut self, mut words: Words) -> Result<String> {
        let tag = words.take("tag").map(|tag| tag.parse()).transpose()?;
        let entropy = u64::try_from(words.number("entropy", 0)?)?;
        words.end()?;
        self.streams.clear();
        self.batching = false;
        self.memory = self.memory.crash();
        self.writer = Self::open(&self.name, &self.memory, self.seconds, (tag, entropy));
        Ok(self.status())
    }

    /// Which tags a request names, and who alone could answer it.
    fn names(&self, mut words: Words) -> Result<String> {
        let tag = self.writer.tag();
        let names = match words.next()?.as_str() {
            "get" => parse_range(words)?.names(tag),
            "txn" => Command::Txn(parse_txn(words)?).names(tag),
            "compact" => Command::Compact { revision: number(&mut words)? }.names(tag),
            "watch" => parse_watch(&mut words)?.names(tag),
            other => return Err(format!("no such request: {other}").into()),
        };
        Ok(format!("foreign {:?}, elsewhere {:?}", names.foreign(), names.elsewhere()))
    }

    fn watching(&mut self, name: &str, mut words: Words) -> Result<String> {
        let stream = words.next()?;
        match name {
            "watch" => {
                let create = parse_watch(&mut words)?;
                self.stream(stream).create(create);
            }
            "poll" => return self.poll(stream),
            "cancel" => {
                let id = number(&mut words)?;
                self.stream(stream).cancel(id);
            }
            "progress" => self.stream(stream).request_progress(),
            "notify" => {
                let (seconds, interval) = (self.seconds, u64::try_from(number(&mut words)?)?);
                let millis = MILLIS_PER_SECOND;
                self.stream(stream).tick(seconds * millis, interval * millis);
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        words.end()?;
        Ok(String::new())
    }

    fn leasing(&mut self, name: &str, mut words: Words) -> Result<String> {
        let id = LeaseId(number(&mut words)?);
        let ttl_seconds = words.number("ttl", 10)?;
        words.end()?;
        match name {
            "grant" => self.execute(Command::LeaseGrant { id, ttl_seconds }),
            "revoke" => self.execute(Command::LeaseRevoke { id }),
            "alive" => Ok(self.keep_alive(id)),
            _ => Ok(self.ttl(id)),
        }
    }

    fn storing(&mut self, name: &str, mut words: Words) -> Result<String> {
        match name {
            "retag" => {
                self.writer.retag(words.next()?.parse()?)?;
                return Ok(self.status());
            }
            "batch" => self.batching = true,
            "commit" => {
                self.batching = false;
                self.writer.commit()?;
            }
            "reclaim" => while self.writer.reclaim() {},
            "sweep" => return self.sweep(),
            "restart" => return self.restart(words),
            "status" => return Ok(self.status()),
            "log" => return self.log(),
            "heads" => return Ok(self.heads()),
            "graves" => return Ok(self.writer.mvcc().graves().to_string()),
            "orphans" => return Ok(format!("{:?}", self.writer.lessor().orphans())),
            "peered" => {
                self.writer.set_peered();
                self.writer.commit()?;
            }
            "leases" => {
                let ids = self.writer.lessor().ids().into_iter();
                return Ok(ids.map(|id| id.0.to_string()).collect::<Vec<_>>().join(" "));
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(String::new())
    }
}

fn now(seconds: u64) -> Now {
    let millis = seconds * MILLIS_PER_SECOND;
    Now { wall_millis: millis, monotonic_millis: millis }
}

fn number(words: &mut Words) -> Result<i64> {
    parse_number(&words.next()?)
}

fn parse_alarm(mut words: Words) -> Result<Command> {
    let kind = match words.next()?.as_str() {
        "nospace" => AlarmKind::NoSpace,
        "corrupt" => AlarmKind::Corrupt,
        kind => return Err(format!("no kind of alarm: {kind}").into()),
    };
    let member = MemberId(words.next()?.parse()?);
    let on = words.next()? == "on";
    words.end()?;
    Ok(Command::Alarm { alarm: Alarm { kind, member }, on })
}

/// An answer that a client gets is output, whatever it is; only a script that makes no sense fails.
fn or_error(result: Result<String>) -> Result<String> {
    result.or_else(|error| {
        let refused = error.downcast::<crate::error::Error>()?;
        Ok(format!("refused: {refused}"))
    })
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &Self::Command, context: &goldenscript::Context) -> Result<String> {
        let mut words = Words::of(&command.args)?;
        self.turn_to(context.prefix.as_deref().unwrap_or("a"));
        let output = match command.name.as_str() {
            "put" => parse_put(words).and_then(|put| self.execute(Command::Put(put))),
            "get" => parse_range(words).and_then(|range| self.get(&range)),
            "del" => parse_delete(words).and_then(|del| self.execute(Command::DeleteRange(del))),
            "txn" => parse_txn(words).and_then(|txn| self.txn(txn)),
            "compact" => {
                let revision = number(&mut words)?;
                self.execute(Command::Compact { revision })
            }
            "alarm" => parse_alarm(words).and_then(|command| self.execute(command)),
            "tick" => self.tick(u64::try_from(number(&mut words)?)?),
            name @ ("grant" | "revoke" | "alive" | "ttl") => self.leasing(name, words),
            name @ ("watch" | "poll" | "cancel" | "progress" | "notify") => {
                self.watching(name, words)
            }
            name @ ("pull" | "catchup" | "settled" | "same") => self.replicating(name, words),
            "names" => self.names(words),
            name => self.storing(name, words),
        };
        let output = or_error(output)?;
        Ok(if self.writer.tag() > 0 { show_tags(&output) } else { output })
    }
}

/// The scripts below a directory.
fn scripts(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(scripts(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn run(room: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/testscripts").join(room);
    let scripts = scripts(&directory);
    assert!(!scripts.is_empty(), "no scripts in {room}");
    for script in scripts {
        let text = std::fs::read_to_string(&script).unwrap();
        assert!(text.starts_with("# "), "{} has no header", script.display());
        goldenscript::run(&mut Runner::new(), &script)
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}

#[test]
fn mvcc() {
    run("mvcc");
}

#[test]
fn txns() {
    run("txn");
}

#[test]
fn leases() {
    run("lease");
}

#[test]
fn alarms() {
    run("alarm");
}

#[test]
fn watches() {
    run("watch");
}

#[test]
fn replication() {
    run("replication");
}

#[test]
fn compactions() {
    run("compact");
}

#[test]
fn tags() {
    run("tags");
}
