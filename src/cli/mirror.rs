//! `starling mirror`: keeps a range of keys of this cluster as it is in another one, an etcd or a Starling.
//!
//! ```text
//!  source                        mirror                             destination
//!    Range, pinned, in pages ──▶ compare with what is there ──▶ Txn  what differs, and what is too much
//!    Watch from there on     ──▶ whole revisions, as they come ──▶ Txn  with the place: "done up to ..."
//! ```
//!
//! The mirror keeps nothing itself. How far it is stands in the destination, in a key that is written in the same transaction
//! as the changes and compared by each, so it is neither ahead of the data nor behind it, and two mirrors of one range
//! notice each other. A mirror that is stopped at any moment goes on from its place; if the source has forgotten
//! what came after that, it compares everything again, which writes only what differs.
//!
//! Memory is bounded: pages, messages and what waits to be written each are.

mod copy;
mod follow;
mod place;
mod side;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::request_op::Request as StepRequest;
use starling_proto::etcdserverpb::response_op::Response as StepResponse;
use tokio::signal::unix::{SignalKind, signal};

use super::flags::{self, Flag, Values, flag, switch};
use super::member::TlsFiles;
use super::{Output, ToolError, figures};
use place::{Keeper, Place};
use side::Side;

/// Keys of the mirrors themselves, which are not mirrored.
const RESERVED: &[u8] = b"starling/mirror/";
/// Bytes of a transaction, a bit below what a server takes if it was told nothing else (1.5 MiB).
const TXN_BYTES_MAX: usize = 1536 * 1024 - 4096;
/// What a step costs in a transaction beside its key and value.
const STEP_OVERHEAD_BYTES: usize = 32;
/// Steps that a transaction may have if the destination was told nothing else.
const TXN_OPS_DEFAULT: &str = "128";
const TXN_OPS_RANGE: (u64, u64) = (2, 1 << 20);
/// How often progress is said where it cannot be shown in place, and where it can.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL_IN_PLACE: Duration = Duration::from_millis(200);

const FLAGS: &[Flag] = &[
    flag(
        "from",
        "",
        "endpoints of the source, one cluster's: host:port or URLs, separated by commas",
    ),
    flag("to", "127.0.0.1:2379", "endpoints of the destination"),
    flag("prefix", "", "mirror the keys that begin so; all without it"),
    switch("once", "end when everything is as it was in the source"),
    switch(
        "overwrite",
        "begin even if the destination has keys there already: those that the source has not are deleted",
    ),
    flag("state-file", "", "keep the place in this file instead of the destination"),
    flag("max-txn-ops", TXN_OPS_DEFAULT, "steps that the destination takes in a transaction"),
    flag("user", "", "name:password at the source"),
    flag(
        "cacert",
        "",
        "who has signed the source's certificate, for https://; the system's trust without it",
    ),
    flag("cert", "", "certificate to show to the source"),
    flag("key", "", "its key"),
    flag("to-user", "", "name:password at the destination"),
    flag("to-cacert", "", "who has signed the destination's certificate"),
    flag("to-cert", "", "certificate to show to the destination"),
    flag("to-key", "", "its key"),
];

fn help() -> String {
    format!(
        "\
Copies the keys of a running etcd, or Starling, and follows its changes. All changes of a revision of the source are made in
one transaction, unless it is larger than the destination takes. The place is kept in the destination, below starling/mirror/,
so the same command goes on where an earlier one has ended. Leases are not carried: keys come without, and go when they
go in the source.

Usage:
  starling mirror --from <endpoints> [flags]

{}",
        flags::list(FLAGS)
    )
}

/// Runs `starling mirror`.
pub(super) fn run(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    let Some(values) = flags::parse(FLAGS, args)? else {
        return super::show(output.to, &help());
    };
    let mut mirror = Mirror::new(&values)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ToolError::Failed(format!("cannot start: {error}")))?;
    let is_once = values.is_set("once");
    runtime.block_on(async {
        // What is cut off is no worse than a lost connection: the place says what was done.
        let outcome = tokio::select! {
            outcome = mirror.work(is_once) => outcome,
            stopped = stopped() => stopped,
        };
        let kept = mirror.keeper.flush();
        outcome.and(kept)
    })?;
    mirror.progress.end();
    super::show(output.to, &mirror.summary())
}

async fn stopped() -> Result<(), ToolError> {
    let cannot = |error| ToolError::Failed(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A change to make in the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

impl Change {
    fn key(&self) -> &Bytes {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    fn bytes(&self) -> usize {
        STEP_OVERHEAD_BYTES
            + match self {
                Self::Put(key, value) => key.len() + value.len(),
                Self::Delete(key) => key.len(),
            }
    }

    fn step(&self) -> pb::RequestOp {
        let request = match self {
            Self::Put(key, value) => StepRequest::RequestPut(put(key, value)),
            Self::Delete(key) => StepRequest::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.clone(),
                ..Default::default()
            }),
        };
        pb::RequestOp { request: Some(request) }
    }
}

fn put(key: &Bytes, value: &Bytes) -> pb::PutRequest {
    pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() }
}

/// Whether a key is one of the mirrors' own.
fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED)
}

/// The range of all keys that begin so, as requests name it.
fn range_of(prefix: &[u8]) -> (Bytes, Bytes) {
    let all = Bytes::from_static(b"\0");
    if prefix.is_empty() {
        return (all.clone(), all);
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bytes::copy_from_slice(prefix), end.into());
        }
    }
    (Bytes::copy_from_slice(prefix), all)
}

struct Mirror {
    source: Side,
    destination: Side,
    prefix: Bytes,
    keeper: Keeper,
    overwrites: bool,
    ops_max: usize,
    progress: Progress,
    puts: u64,
    deletes: u64,
    place: Option<Place>,
}

impl Mirror {
    fn new(values: &Values) -> Result<Self, ToolError> {
        if values.text("from").is_empty() {
            return Err(ToolError::Usage("--from is needed".to_owned()));
        }
        let files = |prefix: &str| TlsFiles {
            ca: values.path(&format!("{prefix}cacert")),
            cert: values.path(&format!("{prefix}cert")),
            key: values.path(&format!("{prefix}key")),
        };
        let source = Side::new("source", values.text("from"), &files(""), values.text("user"))?;
        let to_user = values.text("to-user");
        let destination = Side::new("destination", values.text("to"), &files("to-"), to_user)?;
        let prefix = Bytes::copy_from_slice(values.text("prefix").as_bytes());
        if is_reserved(&prefix) {
            let reserved = String::from_utf8_lossy(RESERVED);
            return Err(ToolError::Usage(format!(
                "--prefix: keys below {reserved} are not mirrored"
            )));
        }
        let ops_max = values.whole("max-txn-ops", TXN_OPS_RANGE)?;
        Ok(Self {
            source,
            destination,
            keeper: Keeper::new(values.path("state-file"), &prefix),
            prefix,
            overwrites: values.is_set("overwrite"),
            ops_max: usize::try_from(ops_max).unwrap_or(usize::MAX),
            progress: Progress::new(),
            puts: 0,
            deletes: 0,
            place: None,
        })
    }

    /// Copies, and follows, for ever.
    async fn work(&mut self, is_once: bool) -> Result<(), ToolError> {
        let cluster = self.greet().await?;
        let mut place = self.begin(cluster).await?;
        if is_once || place.is_copying() {
            place = self.copy(cluster).await?;
        } else {
            self.progress
                .line(&format!("going on after revision {} of the source", place.revision));
        }
        if is_once {
            return Ok(());
        }
        loop {
            let why = self.follow(place).await?;
            self.progress.line(&format!("{why}: comparing everything"));
            place = self.copy(cluster).await?;
        }
    }

    /// Reaches both sides, and answers the source's cluster.
    async fn greet(&mut self) -> Result<u64, ToolError> {
        let source = self.source.header(&mut self.progress).await?.cluster_id;
        if self.destination.header(&mut self.progress).await?.cluster_id == source {
            let text = "source and destination are the same cluster";
            return Err(ToolError::Failed(text.to_owned()));
        }
        Ok(source)
    }

    /// The place of an earlier run, or that of the first, which is noted before anything is written.
    async fn begin(&mut self, cluster: u64) -> Result<Place, ToolError> {
        let known = self.keeper.load(&mut self.destination, &mut self.progress).await?;
        match known {
            Some(place) if place.cluster == cluster => {
                self.place = Some(place);
                return Ok(place);
            }
            Some(place) if !self.overwrites => {
                return Err(ToolError::Failed(format!(
                    "{} was mirrored from cluster {:x}, and the source is cluster {cluster:x}: --overwrite begins anew",
                    self.keeper.shown(),
                    place.cluster,
                )));
            }
            None if !self.overwrites => self.refuse_full().await?,
            _ => {}
        }
        let place = Place::copying(cluster);
        self.write(&[], Some(place)).await?;
        Ok(place)
    }

    /// Keys of somebody else's would be lost.
    async fn refuse_full(&mut self) -> Result<(), ToolError> {
        let mut count = async |prefix: &[u8]| {
            let (key, range_end) = range_of(prefix);
            let request =
                pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
            let reply = self.destination.range(&request, &mut self.progress).await?;
            Ok::<_, ToolError>(reply.count)
        };
        let mut keys = count(&self.prefix).await?;
        if RESERVED.starts_with(&self.prefix) {
            keys -= count(RESERVED).await?;
        }
        if keys > 0 {
            return Err(ToolError::Failed(format!(
                "the destination has keys there already ({keys}), and no mirror has written them: with --overwrite those that the source has not are deleted"
            )));
        }
        Ok(())
    }

    /// Makes changes in the order given, which do not name a key twice, and moves the place with the last of them.
    async fn write(&mut self, changes: &[Change], place: Option<Place>) -> Result<(), ToolError> {
        if changes.is_empty() && place.is_none() {
            return Ok(());
        }
        let mut rest = changes;
        loop {
            let (now, later) = rest.split_at(self.fitting(rest));
            let place = place.filter(|_| later.is_empty());
            match now {
                // Too large to share a transaction with anything.
                [Change::Put(key, value)] if now[0].bytes() > TXN_BYTES_MAX => {
                    self.put_alone(&put(key, value)).await?;
                    self.txn(&[], place).await?;
                }
                _ => self.txn(now, place).await?,
            }
            for change in now {
                match change {
                    Change::Put(..) => self.puts += 1,
                    Change::Delete(_) => self.deletes += 1,
                }
            }
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
        }
    }

    /// How many of some changes one transaction takes, with the place.
    fn fitting(&self, changes: &[Change]) -> usize {
        let mut bytes = 0;
        let fits = |change: &&Change| {
            bytes += change.bytes();
            bytes <= TXN_BYTES_MAX
        };
        let count = changes.iter().take(self.ops_max - 1).take_while(fits).count();
        // One that is too large for any has to go alone.
        count.max(1).min(changes.len())
    }

    async fn put_alone(&mut self, request: &pb::PutRequest) -> Result<(), ToolError> {
        let put = async |channel, request| KvClient::new(channel).put(request).await;
        self.destination.call(request, put, &mut self.progress).await?;
        Ok(())
    }

    async fn txn(&mut self, changes: &[Change], place: Option<Place>) -> Result<(), ToolError> {
        if let (Keeper::File(_), []) = (&self.keeper, changes) {
            return self.keep(place);
        }
        let mut request = pb::TxnRequest {
            success: changes.iter().map(Change::step).collect(),
            ..Default::default()
        };
        let key = self.keeper.key();
        if let Some(key) = &key {
            request.compare.push(expects(key, self.keeper.known()));
            if let Some(place) = place {
                request.success.push(Change::Put(key.clone(), place.text()).step());
            }
            request.failure.push(read(key));
        }
        debug_assert!(request.encoded_len() < TXN_BYTES_MAX + 4096 || changes.len() == 1);
        let txn = async |channel, request| KvClient::new(channel).txn(request).await;
        let reply = self.destination.call(&request, txn, &mut self.progress).await?;
        let was_written = || place.is_some_and(|place| found(&reply) == Some(place.text()));
        if key.is_some() && !reply.succeeded && !was_written() {
            return Err(ToolError::Failed(format!(
                "{} has changed: another mirror writes there, or the destination was asked through another member",
                self.keeper.shown()
            )));
        }
        self.keep(place)
    }

    fn keep(&mut self, place: Option<Place>) -> Result<(), ToolError> {
        if let Some(place) = place {
            self.place = Some(place);
            self.keeper.note(place)?;
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let (puts, deletes) =
            (figures::counted(self.puts, "key", "keys"), figures::count(self.deletes));
        let place = match self.place {
            Some(place) if !place.is_copying() => {
                format!("as in the source at its revision {}", place.revision)
            }
            _ => "the copy is not complete".to_owned(),
        };
        format!("{place}; {puts} written, {deletes} deleted\n")
    }
}

/// That a key has a value, or is not there.
fn expects(key: &Bytes, value: Option<Bytes>) -> pb::Compare {
    let (target, union) = match value {
        Some(value) => (CompareTarget::Value, TargetUnion::Value(value)),
        None => (CompareTarget::Version, TargetUnion::Version(0)),
    };
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(union),
        ..Default::default()
    }
}

fn read(key: &Bytes) -> pb::RequestOp {
    let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
    pb::RequestOp { request: Some(StepRequest::RequestRange(range)) }
}

/// What [`read`] has found in a transaction whose compare has failed: after a lost answer that may be what was to be written.
fn found(reply: &pb::TxnResponse) -> Option<Bytes> {
    match reply.responses.first()?.response.as_ref()? {
        StepResponse::ResponseRange(range) => range.kvs.first().map(|kv| kv.value.clone()),
        _ => None,
    }
}

/// What is said while it works, on the standard error.
struct Progress {
    to: io::Stderr,
    is_in_place: bool,
    next: Instant,
    /// Whether the last line may be written over.
    is_open: bool,
}

impl Progress {
    fn new() -> Self {
        let to = io::stderr();
        Self { is_in_place: to.is_terminal(), to, next: Instant::now(), is_open: false }.waiting()
    }

    /// What is soon done needs no words but its last.
    fn waiting(mut self) -> Self {
        if !self.is_in_place {
            self.next += PROGRESS_INTERVAL;
        }
        self
    }

    /// A line that stays. What cannot be said is not worth an end.
    fn line(&mut self, text: &str) {
        self.end();
        let _ = writeln!(self.to, "{text}");
    }

    /// A line that the next one takes the place of, now and then.
    fn tick(&mut self, text: impl FnOnce() -> String) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        if self.is_in_place {
            self.next = now + PROGRESS_INTERVAL_IN_PLACE;
            let _ = write!(self.to, "\r{}{}", text(), super::CLEAR_LINE);
            let _ = self.to.flush();
            self.is_open = true;
        } else {
            self.next = now + PROGRESS_INTERVAL;
            let _ = writeln!(self.to, "{}", text());
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = writeln!(self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_ranges() {
        let range = |prefix: &'static [u8]| range_of(prefix);
        assert_eq!(range(b""), ("\0".into(), "\0".into()));
        assert_eq!(range(b"a/"), ("a/".into(), "a0".into()));
        assert_eq!(range(b"a\xff"), (Bytes::from_static(b"a\xff"), "b".into()));
        assert_eq!(range(b"\xff"), (Bytes::from_static(b"\xff"), "\0".into()));
    }

    fn mirror(args: &[&str]) -> Result<Mirror, ToolError> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Mirror::new(&flags::parse(FLAGS, &args)?.expect("no help is asked for"))
    }

    #[test]
    fn transactions_are_as_large_as_they_may_be() {
        let mirror = mirror(&["--from=127.0.0.1:1", "--max-txn-ops=4"]).unwrap();
        let put = |bytes: usize| Change::Put("k".into(), vec![0; bytes].into());
        let half = TXN_BYTES_MAX / 2;
        assert_eq!(mirror.fitting(&[]), 0);
        assert_eq!(mirror.fitting(&vec![put(1); 9]), 3, "one step is for the place");
        assert_eq!(mirror.fitting(&[put(half), put(half), put(1)]), 1);
        assert_eq!(mirror.fitting(&[put(half), put(1), put(half)]), 2);
        assert_eq!(mirror.fitting(&[put(TXN_BYTES_MAX), put(1)]), 1);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |args: &[&str]| match mirror(args) {
            Err(ToolError::Usage(text)) => text,
            _ => panic!("{args:?} is taken"),
        };
        assert_eq!(refused(&[]), "--from is needed");
        assert!(refused(&["--from=a:1,b"]).contains("expected host:port"));
        assert!(refused(&["--from=a:1", "--prefix=starling/mirror/x"]).contains("not mirrored"));
        assert!(refused(&["--from=a:1", "--user=me"]).contains("expected name:password"));
        assert!(refused(&["--from=a:1", "--max-txn-ops=1"]).contains("from 2 to"));
    }
}
