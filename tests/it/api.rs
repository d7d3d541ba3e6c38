//! The wiring from the client port to the member and back.

use starling::http::{Listener, ServerOptions};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::v3lockpb::LockRequest;
use starling_proto::v3lockpb::lock_client::LockClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::member::{CLUSTER, MEMBER, Member, eventually, in_time};

pub(crate) fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// Sends one HTTP/1.1 request and reads the whole answer.
async fn http(member: &Member, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(member.address).await.expect("the member listens");
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    in_time(path, stream.read_to_string(&mut answer)).await.expect("the answer is text");
    answer
}

fn has(answer: &str, parts: &[&str]) {
    for part in parts {
        assert!(answer.contains(part), "no {part:?} in\n{answer}");
    }
}

#[tokio::test]
async fn grpc_and_plain_http_share_a_port() {
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    let reply = kv.put(put("a", "1")).await.expect("a put").into_inner();
    let header = reply.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.revision), (CLUSTER, MEMBER, 2));
    assert!(header.raft_term >= 1);
    let reply = kv.range(get("a")).await.expect("a get").into_inner();
    assert_eq!((reply.count, reply.kvs[0].value.as_ref()), (1, &b"1"[..]));

    has(
        &http(&member, "GET", "/health").await,
        &["200 OK", "{\"health\":\"true\",\"reason\":\"\"}"],
    );
    let version = "{\"etcdserver\":\"3.7.3\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}";
    has(&http(&member, "GET", "/version").await, &["200 OK", "application/json", version]);
    has(&http(&member, "GET", "/livez").await, &["200 OK", "\r\n\r\nok\n"]);
    let verbose = http(&member, "GET", "/readyz?verbose").await;
    has(&verbose, &["[+]data_corruption ok\n", "[+]linearizable_read ok\n", "ok\n"]);
    has(&http(&member, "POST", "/health").await, &["405 Method Not Allowed", "allow: GET"]);
    has(&http(&member, "DELETE", "/readyz/non_learner").await, &["405 Method Not Allowed"]);
    has(&http(&member, "GET", "/nothing").await, &["404 Not Found", "404 page not found\n"]);
    has(&http(&member, "POST", "/etcdserverpb.KV/Put").await, &["404 Not Found"]);
}

#[tokio::test]
async fn calls_are_counted() {
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    kv.put(put("a", "1")).await.expect("a put");
    kv.put(put("", "1")).await.expect_err("an empty key");
    let mut unheard = WatchClient::new(member.channel().await);
    let (requests, receiver) = mpsc::channel(1);
    let replies = unheard.watch(ReceiverStream::new(receiver)).await.expect("a stream");
    let metrics = http(&member, "GET", "/metrics").await;
    let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    has(
        &metrics,
        &[
            "text/plain; version=0.0.4",
            &format!("grpc_server_started_total{{{labels}}} 2\n"),
            &format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1\n"),
            &format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{labels}}} 1\n"),
            "etcd_mvcc_put_total 1\n",
            "etcd_debugging_mvcc_current_revision 2\n",
            "etcd_debugging_mvcc_watch_stream_total 1\n",
        ],
    );
    drop((requests, replies));
    eventually("the stream to end", || member.handle().status().watch_streams == 0).await;
    let labels =
        "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
    let metrics = http(&member, "GET", "/metrics").await;
    has(&metrics, &[&format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1\n")]);
}

#[tokio::test]
async fn a_unix_socket_serves_and_goes_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("client.sock");
    let listener = Listener::unix(&path).expect("it listens");
    drop(listener);
    let again = Listener::unix(&path).expect("what was left there is no obstacle");
    let options = ServerOptions { worker_threads: 1, ..ServerOptions::default() };
    let mut member = Member::start_with(&options, vec![again]);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display()));
    let channel = endpoint.expect("a valid address").connect().await.expect("it serves");
    KvClient::new(channel).put(put("a", "1")).await.expect("a put");
    member.stop_server().await;
    assert!(!path.exists());
}

/// A watch stream and the way to send requests on it.
pub(crate) struct Watching {
    pub(crate) requests: mpsc::Sender<pb::WatchRequest>,
    pub(crate) replies: Streaming<pb::WatchResponse>,
}

impl Watching {
    pub(crate) async fn start(channel: Channel) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let replies = WatchClient::new(channel).watch(ReceiverStream::new(receiver)).await;
        Self { requests, replies: replies.expect("a stream").into_inner() }
    }

    pub(crate) async fn send(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub(crate) async fn create(&self, create: pb::WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    pub(crate) async fn next(&mut self) -> pb::WatchResponse {
        let reply = in_time("a reply", self.replies.message()).await;
        reply.expect("no error").expect("the stream goes on")
    }
}

fn watch_all(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: "a".into(),
        range_end: "z".into(),
        start_revision,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_watch_tells_what_happens() {
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    let mut watching = Watching::start(member.channel().await).await;
    watching.create(watch_all(0)).await;
    let created = watching.next().await;
    assert!(created.created && !created.canceled && created.watch_id == 0, "{created:?}");
    kv.put(put("k", "1")).await.expect("a put");
    let reply = watching.next().await;
    let kv_pair = reply.events[0].kv.as_ref().expect("a pair");
    assert_eq!((kv_pair.key.as_ref(), kv_pair.mod_revision), (&b"k"[..], 2));
    assert_eq!(reply.header.expect("a header").revision, 2);

    watching.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, progress.events.len()), (-1, 0));
    assert_eq!(progress.header.expect("a header").revision, 2);

    watching.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    let canceled = watching.next().await;
    assert!(canceled.canceled && canceled.watch_id == 0 && canceled.compact_revision == 0);
}

#[tokio::test]
async fn a_watch_that_cannot_be_says_why() {
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    for value in ["1", "2", "3"] {
        kv.put(put("k", value)).await.expect("a put");
    }
    kv.compact(pb::CompactionRequest { revision: 3, physical: false }).await.expect("a compaction");
    let mut watching = Watching::start(member.channel().await).await;

    watching.create(watch_all(-1)).await;
    let refused = watching.next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1);
    assert_eq!(refused.cancel_reason, "etcdserver: mvcc: required revision has been compacted");

    let reversed =
        pb::WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..Default::default() };
    watching.create(reversed).await;
    assert_eq!(watching.next().await.cancel_reason, "mvcc: watcher range is empty");

    watching.create(watch_all(2)).await;
    let created = watching.next().await;
    assert!(created.created && !created.canceled);
    let ended = watching.next().await;
    assert!(ended.canceled && ended.cancel_reason.is_empty());
    assert_eq!((ended.watch_id, ended.compact_revision), (created.watch_id, 3));

    watching.create(watch_all(3)).await;
    let created = watching.next().await;
    let events: usize = watching.next().await.events.len();
    assert!(created.created && events >= 1, "the compacted revision itself can be watched");
}

#[tokio::test]
async fn a_watch_goes_on_after_the_last_request() {
    let member = Member::start();
    let Watching { requests, replies } = Watching::start(member.channel().await).await;
    let request = RequestUnion::CreateRequest(watch_all(0));
    let request = pb::WatchRequest { request_union: Some(request) };
    requests.send(request).await.expect("the stream is open");
    let (unused, _) = mpsc::channel(1);
    // Ends the stream of requests, and with it the client's half of the connection's stream.
    drop(requests);
    let mut watching = Watching { requests: unused, replies };
    assert!(watching.next().await.created);
    KvClient::new(member.channel().await).put(put("k", "1")).await.expect("a put");
    assert_eq!(watching.next().await.events.len(), 1);
}

#[tokio::test]
async fn large_events_are_split_for_clients_that_ask() {
    const VALUE_BYTES: usize = 1000 * 1000;
    let member = Member::start();
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let value = "v".repeat(VALUE_BYTES);
    for key in ["a", "b", "c"] {
        kv.put(put(key, &value)).await.expect("a put");
    }
    let mut watching = Watching::start(channel).await;
    watching.create(pb::WatchCreateRequest { fragment: true, ..watch_all(2) }).await;
    assert!(watching.next().await.created);
    let mut keys = Vec::new();
    let mut parts = 0;
    while keys.len() < 3 {
        let part = watching.next().await;
        assert!(part.events.len() <= 2, "{} events in one message", part.events.len());
        keys.extend(part.events.into_iter().filter_map(|event| event.kv).map(|kv| kv.key));
        parts += 1;
    }
    assert_eq!(keys, ["a", "b", "c"]);
    assert!(parts >= 2);
}

#[tokio::test]
async fn leases_live_and_end() {
    let member = Member::start();
    let channel = member.channel().await;
    let mut lease = LeaseClient::new(channel.clone());
    let granted =
        lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await.expect("a grant");
    assert_eq!((granted.get_ref().id, granted.get_ref().ttl), (7, 60));
    let again =
        lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await.expect_err("taken");
    assert_eq!(
        (again.code(), again.message()),
        (Code::FailedPrecondition, "etcdserver: lease already exists")
    );
    let attached = pb::PutRequest { lease: 7, ..put("k", "v") };
    KvClient::new(channel).put(attached).await.expect("a put");

    let (requests, receiver) = mpsc::channel(4);
    for id in [7, 8] {
        requests.send(pb::LeaseKeepAliveRequest { id }).await.expect("there is room");
    }
    let replies = lease.lease_keep_alive(ReceiverStream::new(receiver)).await;
    let mut replies = replies.expect("a stream").into_inner();
    let mut next = async || {
        let reply = in_time("a keep-alive", replies.message()).await.expect("no error");
        reply.map(|reply| (reply.id, reply.ttl))
    };
    assert_eq!((next().await, next().await), (Some((7, 60)), Some((8, 0))));
    drop(requests);
    assert_eq!(next().await, None, "the end of requests ends the stream");

    let time = |id| pb::LeaseTimeToLiveRequest { id, keys: true };
    let known = lease.lease_time_to_live(time(7)).await.expect("a status").into_inner();
    assert_eq!((known.granted_ttl, known.keys), (60, vec!["k".into()]));
    let unknown = lease.lease_time_to_live(time(8)).await.expect("a status").into_inner();
    assert_eq!((unknown.ttl, unknown.granted_ttl), (-1, 0));
    let revoke = |id| pb::LeaseRevokeRequest { id };
    let revoked = lease.lease_revoke(revoke(7)).await.expect("a revocation").into_inner();
    assert_eq!(revoked.header.expect("a header").revision, 3);
    let gone = lease.lease_revoke(revoke(7)).await.expect_err("it is gone");
    assert_eq!(
        (gone.code(), gone.message()),
        (Code::NotFound, "etcdserver: requested lease not found")
    );
}

#[tokio::test]
async fn the_other_services_answer() {
    let member = Member::start();
    let channel = member.channel().await;
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance.status(pb::StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.3", "3.7.0"));
    assert!(status.leader == MEMBER && status.raft_term >= 1 && status.errors.is_empty());
    assert!(status.db_size > 0 && status.db_size_in_use > 0 && status.raft_index > 0);
    let alarms =
        maintenance.alarm(pb::AlarmRequest::default()).await.expect("an answer").into_inner();
    assert!(alarms.alarms.is_empty());
    let defragmented = maintenance.defragment(pb::DefragmentRequest {}).await.expect("an answer");
    assert_eq!(defragmented.into_inner().header, None);
    let hash = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("a hash");
    assert_eq!(hash.into_inner().hash_revision, 1);

    let members =
        ClusterClient::new(channel.clone()).member_list(pb::MemberListRequest::default()).await;
    let members = members.expect("a list").into_inner();
    assert_eq!(members.header.expect("a header").revision, 0);
    assert_eq!((members.members[0].id, members.members[0].name.as_str()), (MEMBER, "default"));

    let mut auth = AuthClient::new(channel.clone());
    let authenticated =
        auth.authenticate(pb::AuthenticateRequest::default()).await.expect_err("no users");
    assert_eq!(authenticated.code(), Code::FailedPrecondition);
    assert_eq!(authenticated.message(), "etcdserver: authentication is not enabled");
    let status = auth.auth_status(pb::AuthStatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.enabled, status.auth_revision), (false, 1));

    let check = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    assert_eq!(check.expect("an answer").into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn a_stop_ends_streams_so_that_clients_go_elsewhere() {
    let mut member = Member::start();
    let channel = member.channel().await;
    let mut watching = Watching::start(channel.clone()).await;
    watching.create(watch_all(0)).await;
    assert!(watching.next().await.created);
    let (requests, receiver) = mpsc::channel::<pb::LeaseKeepAliveRequest>(1);
    let keep_alive =
        LeaseClient::new(channel.clone()).lease_keep_alive(ReceiverStream::new(receiver)).await;
    let mut keep_alive = keep_alive.expect("a stream").into_inner();
    let health = HealthClient::new(channel).watch(HealthCheckRequest::default()).await;
    let mut health = health.expect("a stream").into_inner();
    assert!(health.message().await.expect("no error").is_some());

    let streams = async {
        let ends = [
            watching.replies.message().await.expect_err("the watch ends"),
            keep_alive.message().await.expect_err("the keep-alive ends"),
            health.message().await.expect_err("the health watch ends"),
        ];
        for end in ends {
            assert_eq!(
                (end.code(), end.message()),
                (Code::Unavailable, "etcdserver: server stopped")
            );
        }
    };
    tokio::join!(in_time("the stop", member.stop_server()), in_time("the streams", streams));
    drop(requests);
    TcpStream::connect(member.address).await.expect_err("nobody listens");
}

/// The client may come back with the same lease, and has not lost its place.
#[tokio::test]
async fn who_waits_for_a_lock_keeps_its_key_when_the_server_stops() {
    let mut member = Member::start();
    let mut leases = LeaseClient::new(member.channel().await);
    let mut locks = LockClient::new(member.channel().await);
    for id in [1, 2] {
        leases.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 }).await.expect("a grant");
    }
    let lock = |lease| LockRequest { name: "l".into(), lease };
    locks.lock(lock(1)).await.expect("a lock that nobody has");
    let waiting = tokio::spawn(async move { locks.lock(lock(2)).await });
    let node = member.handle();
    eventually("the key of the second", || node.status().keys == 2).await;
    in_time("the stop", member.stop_server()).await;
    let refused = waiting.await.expect("no panic").expect_err("the first one holds the lock");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    assert_eq!(node.status().keys, 2);
}
