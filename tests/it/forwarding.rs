//! Requests that name revisions of another member than the one that is asked.

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::request_op::Request;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::mvccpb::Event;
use starling_proto::v3electionpb as election;
use starling_proto::v3electionpb::election_client::ElectionClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::api::put;
use crate::gateway;
use crate::member::{Member, eventually, in_time};

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// As a range end: every key from the first on.
const ALL: &[u8] = b"\0";

/// Three members that have met, with tags by which all know them.
async fn cluster() -> Vec<Member> {
    let members = Member::found(3);
    for member in &members {
        eventually("all are members, and alive", || {
            let (known, live) = (member.handle().members(), member.handle().live_members());
            live.len() == 3 && known.len() == 3 && known.values().all(|record| record.tag != 0)
        })
        .await;
    }
    members
}

async fn kv(member: &Member) -> KvClient<Channel> {
    KvClient::new(member.channel().await)
}

fn id(member: &Member) -> u64 {
    member.handle().member().id.0
}

fn revision(member: &Member) -> i64 {
    member.handle().revision().shown()
}

/// Puts a pair, which is there afterwards on all members.
async fn put_everywhere(members: &[Member], by: usize, key: &str, value: &str) -> i64 {
    let reply = kv(&members[by]).await.put(put(key, value)).await.expect("a put").into_inner();
    for member in members {
        let mut kv = kv(member).await;
        in_time("the pair comes", async {
            while value_of(&mut kv, key).await != Some(value.to_owned().into()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    reply.header.expect("a header").revision
}

async fn value_of(kv: &mut KvClient<Channel>, key: &str) -> Option<Bytes> {
    let reply = kv.range(get(key)).await.expect("a read").into_inner();
    reply.kvs.into_iter().next().map(|kv| kv.value)
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn all_at(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { range_end: ALL.into(), revision, ..get("\0") }
}

fn keys(reply: &pb::RangeResponse) -> Vec<&[u8]> {
    reply.kvs.iter().map(|kv| &*kv.key).collect()
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    pb::RequestOp { request: Some(Request::RequestPut(put(key, value))) }
}

/// Puts "new" if the key was changed last at a revision, and "else" if not.
fn swap(key: &str, revision: i64) -> pb::TxnRequest {
    let compare = pb::Compare {
        key: key.to_owned().into(),
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![put_op(key, "new")],
        failure: vec![put_op(key, "else")],
    }
}

#[tokio::test]
async fn the_member_that_a_revision_names_answers() {
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    put_everywhere(&members, 0, "b", "1").await;
    let mut other = kv(&members[1]).await;

    let at_first = other.range(all_at(first)).await.expect("it is forwarded").into_inner();
    assert_eq!(keys(&at_first), [b"a"]);
    assert_eq!(at_first.kvs[0].mod_revision, first);
    let header = at_first.header.expect("a header");
    assert_eq!((header.member_id, header.revision), (id(&members[0]), revision(&members[0])));
    let since = pb::RangeRequest { min_create_revision: first + 1, ..all_at(0) };
    assert_eq!(keys(other.range(since).await.expect("it is forwarded").get_ref()), [b"b"]);
    let ahead = other.range(all_at(first + 100)).await.expect_err("there is no such revision");
    assert_eq!(ahead.message(), COMPACTED);
    let nonsense = pb::RangeRequest { key: Bytes::new(), ..all_at(first) };
    other.range(nonsense).await.expect_err("checked before it is sent on");

    // A compaction is the other member's alone.
    let last = revision(&members[0]);
    let request = pb::CompactionRequest { revision: last, physical: true };
    let compacted = other.compact(request).await.expect("it is forwarded").into_inner();
    assert_eq!(compacted.header.expect("a header").member_id, id(&members[0]));
    let gone = other.range(all_at(first)).await.expect_err("it is compacted there");
    assert_eq!(gone.message(), COMPACTED);
    assert!(members[0].handle().status().compacted.shown() == last);
    assert!(members[1].handle().status().compacted < members[1].handle().revision());
}

#[tokio::test]
async fn a_transaction_is_done_where_its_compares_mean_something() {
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let here = put_everywhere(&members, 1, "b", "1").await;
    let mut other = kv(&members[1]).await;

    let mut both = swap("a", first);
    both.compare.extend(swap("b", here).compare);
    let reply = other.txn(both).await.expect("it is done here").into_inner();
    assert!(!reply.succeeded, "nobody can judge revisions of two members");
    assert_eq!(reply.header.expect("a header").member_id, id(&members[1]));

    let first = put_everywhere(&members, 0, "a", "2").await;
    let reply = other.txn(swap("a", first)).await.expect("it is forwarded").into_inner();
    assert!(reply.succeeded);
    let header = reply.header.expect("a header");
    assert_eq!(header.member_id, id(&members[0]));
    assert_eq!(value_of(&mut kv(&members[0]).await, "a").await, Some("new".into()));
    let reply = other.txn(swap("a", first)).await.expect("it is forwarded").into_inner();
    assert!(!reply.succeeded, "it has changed since");
    assert_eq!(value_of(&mut kv(&members[0]).await, "a").await, Some("else".into()));
}

#[tokio::test]
async fn a_lease_follows_a_transaction_that_is_forwarded() {
    let members = cluster().await;
    for id in 1..=20 {
        let first = put_everywhere(&members, 0, "a", &id.to_string()).await;
        let mut leases = starling_proto::etcdserverpb::lease_client::LeaseClient::new(
            members[1].channel().await,
        );
        leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id }).await.expect("a grant");
        let mut txn = swap("a", first);
        let leased = pb::PutRequest { lease: id, ..put("leased", "v") };
        txn.success = vec![pb::RequestOp { request: Some(Request::RequestPut(leased)) }];
        let reply = kv(&members[1]).await.txn(txn.clone()).await.expect("it is forwarded");
        assert!(reply.get_ref().succeeded);
    }
}

#[tokio::test]
async fn a_revision_of_a_lost_member_is_compacted() {
    let mut members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let lost = members.remove(0);
    let mut other = kv(&members[0]).await;
    // At once, whether the others have noticed or not.
    drop(lost);
    let refused = other.range(all_at(first)).await.expect_err("it cannot be asked");
    assert_eq!(refused.message(), COMPACTED);
    let request = pb::CompactionRequest { revision: first, physical: false };
    assert_eq!(other.compact(request).await.expect_err("neither").message(), COMPACTED);
    let reply = other.txn(swap("a", first)).await.expect("it is done here").into_inner();
    assert!(!reply.succeeded);
    assert_eq!(value_of(&mut other, "a").await, Some("else".into()));
    let mut watch = Watch::on(&members[0]).await;
    watch.create(pb::WatchCreateRequest { start_revision: first, ..watch_all() }).await;
    assert!(watch.next().await.created);
    let end = watch.next().await;
    assert!(end.canceled);
    assert_eq!(end.compact_revision, revision(&members[0]));
}

/// A leader whose clients spread their calls goes on leading; when the member that has told it of its key is gone, nobody knows
/// that key by its revision any more.
#[tokio::test]
async fn a_leader_may_speak_by_way_of_any_member() {
    let mut members = cluster().await;
    let mut here = ElectionClient::new(members[0].channel().await);
    let campaign =
        election::CampaignRequest { name: "office".into(), lease: 0, value: "first".into() };
    let won = here.campaign(campaign).await.expect("nobody else wants it").into_inner();
    let leader = won.leader.expect("a leader");
    let key = String::from_utf8(leader.key.to_vec()).expect("an ASCII name");
    let mut elsewhere = ElectionClient::new(members[1].channel().await);
    let proclaim = |value: &'static str| election::ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    };
    let reply = elsewhere.proclaim(proclaim("second")).await.expect("it is forwarded").into_inner();
    assert_eq!(reply.header.expect("a header").member_id, id(&members[0]));
    assert_eq!(value_of(&mut kv(&members[0]).await, &key).await, Some("second".into()));

    // Another one who claims to be it is not.
    let revision = leader.rev - 1;
    let other = election::LeaderKey { rev: revision, ..leader.clone() };
    let request = election::ProclaimRequest { leader: Some(other.clone()), value: "x".into() };
    let refused = elsewhere.proclaim(request).await.expect_err("it was created later");
    assert_eq!(refused.message(), "election: not leader");
    elsewhere.resign(election::ResignRequest { leader: Some(other) }).await.expect("as etcd");
    assert_eq!(value_of(&mut kv(&members[0]).await, &key).await, Some("second".into()));

    in_time("the pair comes", async {
        while value_of(&mut kv(&members[1]).await, &key).await != Some("second".into()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(members.remove(0));
    let gone = eventually_refused(&mut elsewhere, proclaim("third")).await;
    assert_eq!(gone.message(), "election: not leader");
}

/// Until the member that it is for seems dead, nobody knows what has become of it.
async fn eventually_refused(
    client: &mut ElectionClient<Channel>,
    request: election::ProclaimRequest,
) -> tonic::Status {
    in_time("the member seems dead", async {
        loop {
            let status = client.proclaim(request.clone()).await.expect_err("nobody can tell");
            if status.message() != "etcdserver: request timed out" {
                return status;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_leader_resigns_by_way_of_any_member() {
    let members = cluster().await;
    let mut here = ElectionClient::new(members[0].channel().await);
    let campaign = election::CampaignRequest { name: "office".into(), ..Default::default() };
    let won = here.campaign(campaign).await.expect("nobody else wants it").into_inner();
    let leader = won.leader.expect("a leader");
    let key = String::from_utf8(leader.key.to_vec()).expect("an ASCII name");
    let mut elsewhere = ElectionClient::new(members[1].channel().await);
    let request = election::ResignRequest { leader: Some(leader) };
    let reply = elsewhere.resign(request).await.expect("it is forwarded").into_inner();
    assert_eq!(reply.header.expect("a header").member_id, id(&members[0]));
    assert_eq!(value_of(&mut kv(&members[0]).await, &key).await, None);
}

#[tokio::test]
async fn the_gateway_forwards_too() {
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let body = format!(r#"{{"key":"YQ==","revision":"{first}"}}"#);
    let found = format!(r#""mod_revision":"{first}""#);
    gateway::call(&members[1], "/v3/kv/range", "Connection: close\r\n", &body, &found).await;
}

/// A client's watch stream.
struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    replies: Streaming<pb::WatchResponse>,
}

impl Watch {
    async fn on(member: &Member) -> Self {
        let (requests, waiting) = mpsc::channel(16);
        let mut client = WatchClient::new(member.channel().await);
        let call = client.watch(ReceiverStream::new(waiting));
        Self { requests, replies: call.await.expect("a stream").into_inner() }
    }

    async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn create(&self, create: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    async fn request_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    }

    async fn cancel(&self, watch_id: i64) {
        self.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let reply = in_time("a reply", self.replies.message()).await;
        reply.expect("a stream").expect("the stream goes on")
    }

    /// The next reply, which has to be of a watcher and to have events.
    async fn events(&mut self, id: i64) -> Vec<Event> {
        let reply = self.next().await;
        assert!(reply.watch_id == id && !reply.events.is_empty(), "{reply:?}");
        reply.events
    }
}

fn watch_all() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: ALL.into(), range_end: ALL.into(), ..Default::default() }
}

fn told(events: &[Event]) -> Vec<(Bytes, i64)> {
    let pairs = events.iter().map(|event| event.kv.clone().expect("a pair"));
    pairs.map(|kv| (kv.key, kv.mod_revision)).collect()
}

#[tokio::test]
async fn watchers_of_two_members_share_a_stream() {
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    put_everywhere(&members, 0, "a", "2").await;
    let mut watch = Watch::on(&members[1]).await;
    // All at once: they are confirmed in this order.
    watch.create(watch_all()).await;
    let create = pb::WatchCreateRequest { start_revision: first, prev_kv: true, ..watch_all() };
    watch.create(create.clone()).await;
    watch.create(pb::WatchCreateRequest { watch_id: 7, key: "b".into(), ..create }).await;
    watch.create(pb::WatchCreateRequest { watch_id: 7, ..watch_all() }).await;
    watch.create(watch_all()).await;
    let mut created = Vec::new();
    let mut history = Vec::new();
    while created.len() < 5 {
        let reply = watch.next().await;
        if reply.created {
            created.push((reply.watch_id, reply.header.expect("a header").member_id));
        } else {
            assert_eq!(reply.watch_id, 1);
            history.extend(reply.events);
        }
    }
    let [there, here] = [&members[0], &members[1]].map(id);
    assert_eq!(created, [(0, here), (1, there), (7, there), (-1, here), (2, here)]);
    while history.len() < 2 {
        history.extend(watch.events(1).await);
    }
    assert_eq!(told(&history), [("a".into(), first), ("a".into(), first + 1)]);
    assert_eq!(history[1].prev_kv.as_ref().expect("as asked for").value, "1");

    let there = put_everywhere(&members, 0, "b", "1").await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let reply = watch.next().await;
        let (key, revision) = told(&reply.events).remove(0);
        assert_eq!(key, "b");
        seen.push((reply.watch_id, revision));
    }
    seen.sort_unstable();
    let here = revision(&members[1]);
    assert_eq!(seen, [(0, here), (1, there), (2, here), (7, there)]);

    watch.request_progress().await;
    let mut progress = Vec::new();
    while progress.len() < 4 {
        let reply = watch.next().await;
        assert!(reply.events.is_empty() && !reply.canceled);
        progress.push((reply.watch_id, reply.header.expect("a header").revision));
    }
    progress.sort_unstable();
    assert_eq!(progress, seen, "to each watcher what its member says");

    for id in [0, 7, 2] {
        watch.cancel(id).await;
        let end = watch.next().await;
        assert!(end.canceled && end.watch_id == id, "{end:?}");
    }
    watch.request_progress().await;
    let all = watch.next().await;
    assert_eq!((all.watch_id, all.header.expect("a header").revision), (-1, there));
    let watchers = |member: &Member| member.handle().status().watchers;
    assert_eq!((watchers(&members[0]), watchers(&members[1])), (1, 0));
    watch.cancel(1).await;
    assert!(watch.next().await.canceled);
    eventually("the call to the other member ends", || {
        members[0].handle().status().watch_streams == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_on_other_members() {
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let watch = Watch::on(&members[1]).await;
    watch.create(pb::WatchCreateRequest { start_revision: first, ..watch_all() }).await;
    let streams = || [0, 1].map(|at: usize| members[at].handle().status().watch_streams);
    eventually("it is watched on both", || streams() == [1, 1]).await;
    drop(watch);
    eventually("both have forgotten it", || streams() == [0, 0]).await;
}

#[tokio::test]
async fn a_watch_on_a_member_that_is_lost_ends_as_compacted() {
    let mut members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let mut watch = Watch::on(&members[1]).await;
    watch.create(watch_all()).await;
    watch.create(pb::WatchCreateRequest { start_revision: first, ..watch_all() }).await;
    assert!(watch.next().await.created);
    assert!(watch.next().await.created);
    assert_eq!(told(&watch.events(1).await), [("a".into(), first)]);
    drop(members.remove(0));
    let end = watch.next().await;
    assert_eq!((end.watch_id, end.canceled), (1, true));
    assert_eq!(end.compact_revision, revision(&members[0]));
    // The other watcher goes on, and alone again.
    let last = put_everywhere(&members, 0, "b", "1").await;
    assert_eq!(told(&watch.events(0).await), [("b".into(), last)]);
    watch.request_progress().await;
    assert_eq!(watch.next().await.watch_id, -1);
}

/// The revisions that a watcher is told of, from the first on.
async fn revisions(watch: &mut Watch, count: usize) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        let events = watch.events(0).await;
        revisions.extend(told(&events).into_iter().map(|(_, revision)| revision));
    }
    revisions
}

#[tokio::test]
async fn clients_that_do_not_read_lose_nothing_and_hold_up_nobody() {
    const PUTS: usize = 100;
    const IDLE: usize = 8;
    let members = cluster().await;
    let first = put_everywhere(&members, 0, "a", "1").await;
    let start = async |fragment| {
        let start_revision = first + 1;
        let mut watch = Watch::on(&members[1]).await;
        watch.create(pb::WatchCreateRequest { start_revision, fragment, ..watch_all() }).await;
        assert!(watch.next().await.created);
        watch
    };
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(start(true).await);
    }
    let value = "x".repeat(100_000);
    let mut kv = kv(&members[0]).await;
    for _ in 0..PUTS {
        kv.put(put("large", &value)).await.expect("a put");
    }
    let expected: Vec<_> = (first + 1..).take(PUTS).collect();
    // By the same connection between the members.
    assert_eq!(revisions(&mut start(false).await, PUTS).await, expected);
    assert_eq!(revisions(&mut idle[0], PUTS).await, expected);
}
