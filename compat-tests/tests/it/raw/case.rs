//! One case on one server: sends requests and keeps a transcript of the answers.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use starling_compat_tests::Server;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::show::Show;

pub(super) type CaseFn = for<'a> fn(&'a mut Case) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// No answer takes this long; etcd gives up a request after seven seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The error at the deadline, which no server gives.
const LATE: &str = "no answer in time";
/// Requests of one stream that the test may be ahead of the server.
const STREAM_QUEUE: usize = 64;

/// The watch that progress of a whole stream is of.
const PROGRESS: i64 = -1;
/// How long to wait before a stream is asked for progress, and how often to ask.
const PROGRESS_WAIT: Duration = Duration::from_millis(20);
const PROGRESS_REQUESTS: usize = 500;

/// `\0` as a range end: every key from the first one on.
pub(super) const FROM_KEY: &[u8] = b"\0";

pub(super) struct Case {
    pub(super) channel: Channel,
    show: Show,
    /// What was asked, and what the server answered.
    transcript: Vec<(String, String)>,
}

impl Case {
    /// Connects, and deletes all keys: each case starts with none, at a revision it calls 0.
    pub(super) async fn new(server: &Server) -> Self {
        let endpoint = Endpoint::from_shared(server.url()).expect("a server has a valid address");
        let channel = endpoint.connect_lazy();
        let all = pb::DeleteRangeRequest {
            key: bytes(FROM_KEY),
            range_end: bytes(FROM_KEY),
            prev_kv: false,
        };
        let header = match in_time(kv(&channel).delete_range(all)).await {
            Ok(answer) => answer.into_inner().header.unwrap_or_default(),
            Err(status) => panic!("cannot delete all keys: {status}\n{}", server.log()),
        };
        Self { channel, show: Show::new(header), transcript: Vec::new() }
    }

    /// The absolute revision of one that counts from the start of the case.
    pub(super) fn revision(&self, relative: i64) -> i64 {
        self.show.base + relative
    }

    /// Adds a line to the transcript.
    pub(super) fn note(&mut self, label: impl Into<String>, answer: impl Into<String>) {
        self.transcript.push((label.into(), answer.into()));
    }

    /// The whole transcript.
    pub(super) fn text(&self) -> String {
        let lines = self.transcript.iter().map(|(label, answer)| format!("  {label}: {answer}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A case that waits for what etcd does not send is a mistake in the case.
    pub(super) fn assert_answered(&self, case: &str) {
        let late = self.transcript.iter().any(|(_, answer)| answer.contains(LATE));
        assert!(!late, "{case}: etcd did not answer\n{}", self.text());
    }

    /// What this server answered otherwise than `other`, for a reader.
    pub(super) fn difference(&self, other: &Self, case: &str) -> String {
        let mut report = String::new();
        let lines = self.transcript.len().max(other.transcript.len());
        for line in 0..lines {
            let absent = (String::from("(end)"), String::from("(end)"));
            let (label, etcd) = self.transcript.get(line).unwrap_or(&absent);
            let (_, starling) = other.transcript.get(line).unwrap_or(&absent);
            if etcd != starling {
                report.push_str(&format!(
                    "\n{case} / {label}\n  etcd:     {etcd}\n  starling: {starling}\n"
                ));
            }
        }
        report
    }

    pub(super) async fn range(&mut self, label: &str, request: pb::RangeRequest) {
        let answer = in_time(kv(&self.channel).range(request)).await;
        self.keep(label, answer, Show::range);
    }

    pub(super) async fn put(&mut self, label: &str, request: pb::PutRequest) {
        let answer = in_time(kv(&self.channel).put(request)).await;
        self.keep(label, answer, Show::put);
    }

    pub(super) async fn delete(&mut self, label: &str, request: pb::DeleteRangeRequest) {
        let answer = in_time(kv(&self.channel).delete_range(request)).await;
        self.keep(label, answer, Show::delete);
    }

    pub(super) async fn txn(&mut self, label: &str, request: pb::TxnRequest) {
        let answer = in_time(kv(&self.channel).txn(request)).await;
        self.keep(label, answer, Show::txn);
    }

    pub(super) async fn compact(&mut self, label: &str, revision: i64, physical: bool) {
        let request = pb::CompactionRequest { revision, physical };
        let answer = in_time(kv(&self.channel).compact(request)).await;
        self.keep(label, answer, |show, answer| show.header(answer.header.as_ref()));
    }

    pub(super) async fn grant(&mut self, label: &str, id: i64, ttl: i64) {
        let request = pb::LeaseGrantRequest { id, ttl };
        let answer = in_time(lease(&self.channel).lease_grant(request)).await;
        self.keep(label, answer, move |show, answer| show.grant(answer, id));
    }

    pub(super) async fn revoke(&mut self, label: &str, id: i64) {
        let answer =
            in_time(lease(&self.channel).lease_revoke(pb::LeaseRevokeRequest { id })).await;
        self.keep(label, answer, |show, answer| show.header(answer.header.as_ref()));
    }

    pub(super) async fn time_to_live(&mut self, label: &str, id: i64, keys: bool) {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        let answer = in_time(lease(&self.channel).lease_time_to_live(request)).await;
        self.keep(label, answer, Show::time_to_live);
    }

    /// Puts a key where only the header matters.
    pub(super) async fn set(&mut self, key: &str, value: &str) {
        self.put(&format!("put {key}={value}"), put(key, value)).await;
    }

    /// All keys, values and revisions.
    pub(super) async fn all(&mut self, label: &str) {
        self.range(label, all()).await;
    }

    pub(super) fn keep<T>(
        &mut self,
        label: &str,
        answer: Result<Response<T>, Status>,
        show: impl FnOnce(&Show, &T) -> String,
    ) {
        let line = match answer {
            Ok(answer) => show(&self.show, answer.get_ref()),
            Err(status) => Show::error(&status),
        };
        self.note(label, line);
    }

    /// Opens a stream of watches.
    pub(super) fn watch(&mut self) -> WatchStream {
        self.watch_as("")
    }

    /// The same with a token.
    pub(super) fn watch_as(&mut self, token: &str) -> WatchStream {
        let (requests, queue) = mpsc::channel(STREAM_QUEUE);
        let mut client = watches(&self.channel);
        let mut request = Request::new(ReceiverStream::new(queue));
        if !token.is_empty() {
            request.metadata_mut().insert("token", token.parse().expect("a token is text"));
        }
        let answers = Answers::of(async move { client.watch(request).await });
        WatchStream { requests: Some(requests), answers, items: Vec::new(), ended: false }
    }

    /// Waits for the next `count` items of a stream: replies, events, notifications.
    pub(super) async fn items(&mut self, label: &str, stream: &mut WatchStream, count: usize) {
        let items = self.next_items(stream, count).await;
        self.note(label, items.join("\n            "));
    }

    /// The same where the order between watches is the server's choice.
    pub(super) async fn items_sorted(
        &mut self,
        label: &str,
        stream: &mut WatchStream,
        count: usize,
    ) {
        let mut items = self.next_items(stream, count).await;
        items.sort_unstable();
        self.note(label, items.join("\n            "));
    }

    /// Reads a stream of one watch until it has caught up, or is canceled.
    ///
    /// A server that has events to send does not answer to a request for progress, so it is asked again.
    pub(super) async fn history(&mut self, label: &str, stream: &mut WatchStream) {
        let mut items: Vec<String> = Vec::new();
        for _ in 0..PROGRESS_REQUESTS {
            match tokio::time::timeout(PROGRESS_WAIT, stream.answers.next()).await {
                Err(_) => stream.progress().await,
                Ok(Ok(answer)) => match answer.into_inner() {
                    Some(answer) if answer.watch_id == PROGRESS && !answer.created => break,
                    Some(answer) => items.extend(self.show.watch(&answer)),
                    None => items.push("end of stream".into()),
                },
                Ok(Err(status)) => items.push(Show::error(&status)),
            }
            if items.last().is_some_and(|item| item.contains(" canceled")) {
                break;
            }
        }
        self.note(label, items.join("\n            "));
    }

    async fn next_items(&self, stream: &mut WatchStream, count: usize) -> Vec<String> {
        while stream.items.len() < count && !stream.ended {
            match stream.answers.next().await.map(Response::into_inner) {
                Ok(Some(answer)) => stream.items.extend(self.show.watch(&answer)),
                Ok(None) => stream.end("end of stream".into()),
                Err(status) => stream.end(Show::error(&status)),
            }
        }
        let rest = stream.items.split_off(count.min(stream.items.len()));
        std::mem::replace(&mut stream.items, rest)
    }
}

/// A stream of watches, whose answers are read item by item: an answer with two events has two.
pub(super) struct WatchStream {
    requests: Option<mpsc::Sender<pb::WatchRequest>>,
    pub(super) answers: Answers<pb::WatchResponse>,
    items: Vec<String>,
    /// Nothing more is waited for.
    ended: bool,
}

impl WatchStream {
    fn end(&mut self, item: String) {
        self.items.push(item);
        self.ended = true;
    }

    pub(super) async fn create(&self, request: pb::WatchCreateRequest) {
        self.send(pb::watch_request::RequestUnion::CreateRequest(request)).await;
    }

    pub(super) async fn cancel(&self, watch_id: i64) {
        self.send(pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id,
        }))
        .await;
    }

    pub(super) async fn progress(&self) {
        self.send(pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
            .await;
    }

    pub(super) async fn send(&self, request: pb::watch_request::RequestUnion) {
        self.send_raw(pb::WatchRequest { request_union: Some(request) }).await;
    }

    pub(super) async fn send_raw(&self, request: pb::WatchRequest) {
        let requests = self.requests.as_ref().expect("the test has not closed its side yet");
        // A server that has ended the stream shows in the answers.
        let _ = requests.send(request).await;
    }

    /// Closes the client's side of the stream.
    pub(super) fn half_close(&mut self) {
        self.requests = None;
    }
}

/// The answers of a stream.
///
/// etcd sends the headers of a stream with its first answer, so one must not wait for them before the
/// first request is sent: the call is made in a task of its own.
pub(super) enum Answers<T> {
    Opening(JoinHandle<Result<Response<Streaming<T>>, Status>>),
    Open(Box<Streaming<T>>),
}

impl<T: Send + 'static> Answers<T> {
    pub(super) fn of(
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
    ) -> Self {
        Self::Opening(tokio::spawn(call))
    }

    /// The next answer, or `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Response<Option<T>>, Status> {
        in_time(self.receive()).await
    }

    async fn receive(&mut self) -> Result<Response<Option<T>>, Status> {
        if let Self::Opening(call) = self {
            let opened = call.await.map_err(|error| Status::unknown(error.to_string()))?;
            *self = Self::Open(Box::new(opened?.into_inner()));
        }
        match self {
            Self::Open(answers) => answers.message().await.map(Response::new),
            Self::Opening(_) => Err(Status::unknown("the stream did not open")),
        }
    }
}

pub(super) fn kv(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

pub(super) fn watches(channel: &Channel) -> WatchClient<Channel> {
    WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

pub(super) fn lease(channel: &Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel.clone())
}

pub(super) fn maintenance(channel: &Channel) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(channel.clone())
}

/// The answer, or an error that no server gives, at the deadline.
pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let late = || Err(Status::deadline_exceeded(LATE));
    tokio::time::timeout(ANSWER_DEADLINE, answer).await.unwrap_or_else(|_| late())
}

pub(super) fn bytes(key: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(key.as_ref())
}

pub(super) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub(super) fn get(key: impl AsRef<[u8]>) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

pub(super) fn range(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

pub(super) fn all() -> pb::RangeRequest {
    range(FROM_KEY, FROM_KEY)
}

pub(super) fn delete(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

pub(super) fn watch(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}
