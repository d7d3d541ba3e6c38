//! Watchers: the log of all keys, and others of parts, which go away and come back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_create_request::FilterType;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::checker::Filter;
use super::clients::{Client, Context, prefix};
use super::model::Op;

/// How long a stream lives before its client leaves and comes back.
const LIFE_SECONDS: u64 = 40;
/// How long the client that leaves for longer is away.
const AWAY_SECONDS: u64 = 60;
const PROGRESS_PAUSE: Duration = Duration::from_secs(2);
const REQUESTS_MAX: usize = 64;

/// Starts the log and the other watchers, which run to the end.
pub(super) fn start(context: &Rc<Context>, client: impl Fn(u64) -> Client) {
    spawn_local(log(client(400)));
    let one = Filter { range_end: Bytes::new(), ..prefix("/c/0") };
    let no_delete = Filter { no_delete: true, ..prefix("/w/") };
    let no_put = Filter { no_put: true, ..prefix("/l/") };
    // Several on one stream, one alone, and one that is away for long.
    let streams = [
        (vec![prefix("/w/0"), no_delete, no_put, one], 0),
        (vec![prefix("/s/")], 0),
        (vec![prefix("/w/1"), prefix("/l/")], AWAY_SECONDS),
    ];
    for (n, (filters, away)) in (401..).zip(streams) {
        let mut checker = context.checker.borrow_mut();
        let watchers = filters.into_iter().map(|filter| (checker.watcher(filter.clone()), filter));
        let watchers = watchers.collect();
        spawn_local(Watching { client: client(n), watchers, away }.run());
    }
}

struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    /// Events of a revision that is not whole yet.
    partial: BTreeMap<i64, Vec<Event>>,
}

impl Stream {
    async fn open(
        client: &mut Client,
        creates: Vec<pb::WatchCreateRequest>,
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        for create in creates {
            let request_union = Some(RequestUnion::CreateRequest(create));
            let _ = requests.send(pb::WatchRequest { request_union }).await;
        }
        let mut watch = client.connection().await.watch();
        let answers = watch.watch(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, answers, partial: BTreeMap::new() })
    }

    /// The next answer with whole revisions, if one comes in time.
    async fn next(&mut self, patience: Duration) -> Result<Option<pb::WatchResponse>, Status> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(answer) = timeout(left, self.answers.message()).await else { return Ok(None) };
            let answer = answer?.ok_or_else(|| Status::unavailable("the stream ended"))?;
            let partial = self.partial.entry(answer.watch_id).or_default();
            partial.extend(answer.events.iter().cloned());
            if !answer.fragment {
                let events = std::mem::take(partial);
                return Ok(Some(pb::WatchResponse { events, ..answer }));
            }
        }
    }

    fn ask_for_progress(&self) {
        let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        // If the server does not read them now, there will be another.
        let _ = self.requests.try_send(pb::WatchRequest { request_union: Some(request) });
    }
}

async fn log(mut client: Client) {
    loop {
        let Err(status) = follow_log(&mut client).await;
        client.failed(&status).await;
    }
}

async fn follow_log(client: &mut Client) -> Result<std::convert::Infallible, Status> {
    client.connection().await;
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: client.context.checker.borrow().log_next(),
        prev_kv: true,
        fragment: true,
        ..Default::default()
    };
    let mut stream = Stream::open(client, vec![create]).await?;
    loop {
        let Some(answer) = stream.next(Duration::from_secs(60)).await? else { continue };
        if answer.canceled {
            client.context.violation(format!("the log was canceled: {answer:?}"));
        }
        let now = client.context.now();
        client.context.checker.borrow_mut().log_heard(answer.events, now);
    }
}

struct Watching {
    client: Client,
    watchers: Vec<(usize, Filter)>,
    /// How many seconds it stays away, at most.
    away: u64,
}

impl Watching {
    async fn run(mut self) {
        loop {
            let life = Duration::from_secs(self.client.random.below(LIFE_SECONDS) + 1);
            if let Err(status) = self.follow(life).await {
                self.client.failed(&status).await;
            }
            if !self.client.context.is_stopping() {
                sleep(Duration::from_secs(self.client.random.below(self.away + 1))).await;
            }
        }
    }

    fn create(&self, number: usize, filter: &Filter) -> pb::WatchCreateRequest {
        let mut filters = Vec::new();
        if filter.no_put {
            filters.push(FilterType::Noput.into());
        }
        if filter.no_delete {
            filters.push(FilterType::Nodelete.into());
        }
        pb::WatchCreateRequest {
            key: filter.key.clone(),
            range_end: filter.range_end.clone(),
            start_revision: self.client.context.checker.borrow().watch_next(number),
            progress_notify: true,
            fragment: true,
            filters,
            watch_id: watch_id(number),
            ..Default::default()
        }
    }

    async fn follow(&mut self, life: Duration) -> Result<(), Status> {
        let end = Instant::now() + life;
        // What is asked for depends on what was heard: no waiting between the two.
        self.client.connection().await;
        let creates = self.watchers.iter().map(|(number, filter)| self.create(*number, filter));
        let creates = creates.collect();
        let mut stream = Stream::open(&mut self.client, creates).await?;
        while Instant::now() < end || self.client.context.is_stopping() {
            let answer = stream.next(PROGRESS_PAUSE).await?;
            let Some(answer) = answer else {
                stream.ask_for_progress();
                continue;
            };
            if !self.take(answer).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the stream can go on.
    async fn take(&mut self, answer: pb::WatchResponse) -> bool {
        let context = Rc::clone(&self.client.context);
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let of = self.watchers.iter().find(|(number, _)| watch_id(*number) == answer.watch_id);
        if answer.canceled {
            let Some((number, filter)) = of.cloned().filter(|_| answer.compact_revision > 0) else {
                context.violation(format!("canceled without a reason: {answer:?}"));
                return false;
            };
            let next = context.checker.borrow().watch_next(number);
            context.checker.borrow_mut().compacted(next, answer.compact_revision);
            self.read_instead(number, filter).await;
            return false;
        }
        if answer.created {
            return true;
        }
        let mut checker = context.checker.borrow_mut();
        let (own, progress) = (of.map(|(number, _)| *number), answer.events.is_empty());
        match own {
            Some(number) => checker.watch_heard(number, answer.events, revision),
            None if answer.watch_id == -1 && progress => {
                for (number, _) in &self.watchers {
                    checker.watch_heard(*number, Vec::new(), revision);
                }
            }
            None => checker.violation(format!("nobody's watch: {answer:?}")),
        }
        true
    }

    async fn read_instead(&mut self, number: usize, filter: Filter) {
        let Filter { key, range_end, .. } = filter;
        let read = Op::Range(pb::RangeRequest { key, range_end, ..Default::default() });
        if let Some((revision, _)) = self.client.call(read).await {
            self.client.context.checker.borrow_mut().watch_reset(number, revision);
        }
    }
}

fn watch_id(number: usize) -> i64 {
    i64::try_from(number).map_or(-1, |number| number + 1)
}
