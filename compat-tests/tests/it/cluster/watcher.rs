//! Watches everything on one member, and holds it against etcd's rules: what a client that replays the events knows
//! is what the member has, at each revision.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::mvccpb::event::EventType;
use starling_proto::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::load::number;
use super::member::{ALL_KEYS, Member};

/// How long to wait before a member is tried again that does not answer.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked whether the events have all come.
const POLL: Duration = Duration::from_millis(10);
/// Broken rules that are remembered of one member.
const BROKEN_MAX: usize = 20;

/// What the events say.
#[derive(Debug, Default)]
struct Replay {
    revision: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    /// The last number put to each key that one client owns.
    greatest: BTreeMap<Bytes, u64>,
    broken: Vec<String>,
    events: usize,
    /// How often history was gone, so that the whole state had to be read.
    resyncs: usize,
}

/// A client that watches all keys of one member.
pub(super) struct Watcher {
    name: String,
    replay: Rc<RefCell<Replay>>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Starts with the state of a member that serves.
    pub(super) async fn on(member: &Member) -> Self {
        let replay = Rc::new(RefCell::new(Replay::default()));
        let state = member.state().await.expect("the member serves");
        replay.borrow_mut().start_from(state);
        let task = tokio::task::spawn_local(run(member.channel.clone(), Rc::clone(&replay)));
        Self { name: member.name.clone(), replay, task }
    }

    /// Waits until the events up to the member's state of now have come, and compares.
    pub(super) async fn finish(self, member: &Member, deadline: Duration) -> Vec<String> {
        let started = Instant::now();
        let state = member.state().await.expect("the member serves");
        let revision = state.header.as_ref().map_or(0, |header| header.revision);
        while self.replay.borrow().revision < revision && started.elapsed() < deadline {
            sleep(POLL).await;
        }
        let mut replay = self.replay.borrow_mut();
        replay.compare(state);
        std::mem::take(&mut replay.broken)
            .into_iter()
            .map(|broken| format!("watch on {}: {broken}", self.name))
            .collect()
    }

    /// The name of the member.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn resyncs(&self) -> usize {
        self.replay.borrow().resyncs
    }

    pub(super) fn events(&self) -> usize {
        self.replay.borrow().events
    }
}

async fn run(channel: Channel, replay: Rc<RefCell<Replay>>) {
    loop {
        // It may be down for a while, and comes back.
        let _ = follow(&channel, &replay).await;
        sleep(PAUSE).await;
    }
}

async fn follow(channel: &Channel, replay: &RefCell<Replay>) -> Result<(), Status> {
    let start_revision = replay.borrow().revision + 1;
    let create = pb::WatchCreateRequest {
        key: ALL_KEYS,
        range_end: ALL_KEYS,
        start_revision,
        prev_kv: true,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (requests, stream) = mpsc::channel(1);
    requests.send(create).await.map_err(|_| Status::cancelled("nobody asks"))?;
    let mut client = WatchClient::new(channel.clone());
    let mut answers = client.watch(ReceiverStream::new(stream)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if answer.canceled && answer.compact_revision > 0 {
            let range =
                pb::RangeRequest { key: ALL_KEYS, range_end: ALL_KEYS, ..Default::default() };
            let mut kv = pb::kv_client::KvClient::new(channel.clone());
            let state = kv.range(range).await?.into_inner();
            replay.borrow_mut().resync(state);
            return Ok(());
        }
        if answer.canceled {
            return Err(Status::cancelled(answer.cancel_reason));
        }
        replay.borrow_mut().take(answer);
    }
    Ok(())
}

impl Replay {
    fn start_from(&mut self, state: pb::RangeResponse) {
        self.revision = state.header.unwrap_or_default().revision;
        self.keys = state.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for (key, kv) in &self.keys {
            if let (true, Some(number)) = (is_owned(key), number(&kv.value)) {
                let greatest = self.greatest.entry(key.clone()).or_default();
                *greatest = number.max(*greatest);
            }
        }
    }

    fn resync(&mut self, state: pb::RangeResponse) {
        self.resyncs += 1;
        self.start_from(state);
    }

    fn note(&mut self, what: String) {
        if self.broken.len() < BROKEN_MAX {
            self.broken.push(what);
        }
    }

    fn take(&mut self, answer: pb::WatchResponse) {
        let mut seen = BTreeSet::new();
        let header = answer.header.unwrap_or_default().revision;
        for event in answer.events {
            let Some(kv) = event.kv.clone() else {
                self.note("an event without a key".to_owned());
                continue;
            };
            if kv.mod_revision > self.revision {
                self.leave_revision(&seen);
                seen.clear();
                if kv.mod_revision != self.revision + 1 {
                    // All keys are watched, and each revision has changed one.
                    self.note(format!("{} follows {}", kv.mod_revision, self.revision));
                }
                self.revision = kv.mod_revision;
            } else if kv.mod_revision < self.revision || seen.is_empty() {
                self.note(format!("{} comes after {}", kv.mod_revision, self.revision));
            }
            if header < kv.mod_revision {
                self.note(format!("{} is later than the header's {header}", kv.mod_revision));
            }
            if !seen.insert(kv.key.clone()) {
                self.note(format!("{:?} twice at {}", kv.key, kv.mod_revision));
            }
            self.apply(&event, kv);
        }
        self.leave_revision(&seen);
    }

    /// Both keys of a pair change at once, or none.
    fn leave_revision(&mut self, seen: &BTreeSet<Bytes>) {
        for key in seen.iter().filter(|key| key.starts_with(b"pair/")) {
            let mut other = key.to_vec();
            if let Some(half) = other.last_mut() {
                *half = if *half == b'a' { b'b' } else { b'a' };
            }
            let value = |key: &[u8]| self.keys.get(key).map(|kv| kv.value.clone());
            if !seen.contains(other.as_slice()) || value(key) != value(&other) {
                self.note(format!("half a pair at {}: {key:?}", self.revision));
            }
        }
    }

    fn apply(&mut self, event: &Event, kv: KeyValue) {
        self.events += 1;
        let former = self.keys.get(&kv.key).cloned();
        if event.prev_kv != former {
            let told = &event.prev_kv;
            self.note(format!("at {} prev_kv is {told:?}, not {former:?}", kv.mod_revision));
        }
        match (event.r#type(), former) {
            (EventType::Put, former) => {
                let (create, version) = match &former {
                    Some(former) => (former.create_revision, former.version + 1),
                    None => (kv.mod_revision, 1),
                };
                if (kv.create_revision, kv.version) != (create, version) {
                    self.note(format!("{kv:?} comes after {former:?}"));
                }
                self.check_order(&kv);
                self.keys.insert(kv.key.clone(), kv);
            }
            (EventType::Delete, None) => {
                self.note(format!("a delete at {} of no key: {:?}", kv.mod_revision, kv.key));
            }
            (EventType::Delete, Some(_)) => {
                if kv.create_revision != 0 || kv.version != 0 || !kv.value.is_empty() {
                    self.note(format!("a delete with more than a key: {kv:?}"));
                }
                self.keys.remove(&kv.key);
            }
        }
    }

    /// One client wrote them one after the other: an older one must not be seen again, deleted or not.
    fn check_order(&mut self, kv: &KeyValue) {
        let (true, Some(number)) = (is_owned(&kv.key), number(&kv.value)) else { return };
        let greatest = self.greatest.entry(kv.key.clone()).or_default();
        if number <= *greatest {
            let greatest = *greatest;
            self.note(format!("{:?} is {number} again, after {greatest}", kv.key));
            return;
        }
        *greatest = number;
    }

    fn compare(&mut self, state: pb::RangeResponse) {
        let revision = state.header.unwrap_or_default().revision;
        if self.revision != revision {
            self.note(format!("events end at {}, the state is of {revision}", self.revision));
        }
        let state: BTreeMap<_, _> = state.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let keys: BTreeSet<_> = state.keys().chain(self.keys.keys()).cloned().collect();
        for key in keys {
            let (replayed, stored) = (self.keys.get(&key), state.get(&key));
            if replayed != stored {
                let what = format!("replayed {replayed:?}, stored {stored:?}");
                self.note(what);
            }
        }
    }
}

fn is_owned(key: &[u8]) -> bool {
    key.starts_with(b"own/") || key.starts_with(b"pair/")
}
