//! A member that is added, started as a learner, promoted and removed, always by the id that `MemberAdd` has answered: the same on
//! both servers.

use std::time::{Duration, Instant};

use starling_compat_tests::server::{Kind, free_ports};
use starling_compat_tests::{Server, tools};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::http::ask;

const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const NAME: &str = "second";

#[test]
fn a_learner_is_that_of_etcd() {
    if tools::etcd().is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let [there, here] =
        [Kind::Etcd, Kind::Starling].map(|kind| runtime.block_on(story(kind)).join("\n"));
    assert_eq!(there, here);
}

fn connect(server: &Server) -> Channel {
    Endpoint::from_shared(server.url()).expect("a URL of our own").connect_lazy()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(POLL).await;
    }
}

/// What clients are told on both servers.
async fn story(kind: Kind) -> Vec<String> {
    let mut told = Vec::new();
    let first = Server::start(kind, &[]);
    let mut cluster = ClusterClient::new(connect(&first));
    let _ = KvClient::new(connect(&first)).put(put()).await.expect("the first member serves");

    let ports = free_ports();
    let url = format!("http://127.0.0.1:{}", ports.1);
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
    // A member that has just begun may not take another one yet.
    let added =
        until("a learner is added", async || cluster.member_add(request.clone()).await.ok());
    let id = added.await.into_inner().member.expect("it is answered").id;
    told.push(format!("added: {}", list(&mut cluster, id).await));
    told.push(format!("too early: {}", outcome(promote(&mut cluster, id).await)));

    let second = first.join(NAME, ports);
    let channel = connect(&second);
    let has_data = until("the learner has the data", async || {
        let range = pb::RangeRequest { serializable: true, ..range() };
        let answer = KvClient::new(channel.clone()).range(range).await.ok()?.into_inner();
        (answer.count == 1).then_some(())
    });
    has_data.await;
    told.extend(what_it_answers(&second).await);
    told.push(format!("started: {}", list(&mut cluster, id).await));

    told.push(format!("promoted: {}", promote_in_time(&mut cluster, id).await));
    told.push(format!("once more: {}", promote_in_time(&mut cluster, id).await));
    told.push(format!("member: {}", list(&mut cluster, id).await));
    let serves = until("the member knows that it is promoted", async || {
        KvClient::new(channel.clone()).put(put()).await.ok()
    });
    let _ = serves.await;
    told.extend(what_it_answers(&second).await);

    let request = pb::MemberRemoveRequest { id };
    let removed =
        until("the member is removed", async || cluster.member_remove(request).await.ok());
    told.push(format!("left: {}", removed.await.into_inner().members.len()));
    told
}

fn put() -> pb::PutRequest {
    pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }
}

fn range() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), ..Default::default() }
}

async fn promote(
    cluster: &mut ClusterClient<Channel>,
    id: u64,
) -> Result<pb::MemberPromoteResponse, Status> {
    Ok(cluster.member_promote(pb::MemberPromoteRequest { id }).await?.into_inner())
}

/// Once it is known how far the member is.
async fn promote_in_time(cluster: &mut ClusterClient<Channel>, id: u64) -> String {
    let answered = until("it is known how far the member is", async || {
        let answer = promote(cluster, id).await;
        let is_early = answer.as_ref().is_err_and(|status| {
            status.code() == Code::Unavailable || status.message().ends_with("in sync with leader")
        });
        (!is_early).then_some(answer)
    });
    outcome(answered.await)
}

fn outcome<T>(answer: Result<T, Status>) -> String {
    answer
        .map_or_else(|status| format!("{:?} {}", status.code(), status.message()), |_| "ok".into())
}

/// The members as the first one shows them: whether each is the one that was added, its name, how many addresses it has.
async fn list(cluster: &mut ClusterClient<Channel>, id: u64) -> String {
    let answer = cluster.member_list(pb::MemberListRequest { linearizable: true }).await;
    let members = answer.expect("the first member serves").into_inner().members;
    let shown = members.iter().map(|it| {
        let urls = (it.peer_ur_ls.len(), it.client_ur_ls.len());
        (it.id == id, it.name.clone(), urls, it.is_learner)
    });
    let mut shown: Vec<_> = shown.collect();
    shown.sort();
    format!("{shown:?}")
}

async fn what_it_answers(server: &Server) -> Vec<String> {
    let channel = connect(server);
    let mut kv = KvClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance.status(pb::StatusRequest {}).await;
    let is_learner = status.as_ref().map(|status| status.get_ref().is_learner).ok();
    let snapshot = maintenance.snapshot(pb::SnapshotRequest {}).await;
    let mut lines = vec![
        format!("status: {} {is_learner:?}", outcome(status)),
        format!("range: {}", outcome(kv.range(range()).await)),
        format!(
            "serializable: {}",
            outcome(kv.range(pb::RangeRequest { serializable: true, ..range() }).await)
        ),
        format!("put: {}", outcome(kv.put(put()).await)),
        format!("txn: {}", outcome(kv.txn(pb::TxnRequest::default()).await)),
        format!("hash: {}", outcome(maintenance.hash_kv(pb::HashKvRequest::default()).await)),
        format!("snapshot: {}", outcome(snapshot)),
    ];
    let grant = pb::LeaseGrantRequest { ttl: 100, ..Default::default() };
    lines.push(format!(
        "lease: {}",
        outcome(LeaseClient::new(channel.clone()).lease_grant(grant).await)
    ));
    let list = pb::MemberListRequest { linearizable: true };
    let listed = ClusterClient::new(channel.clone()).member_list(list).await;
    lines.push(format!("members: {}", outcome(listed)));
    let watch = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest { key: "k".into(), ..Default::default() },
        )),
    };
    let watched = async {
        let requests = tokio_stream::StreamExt::chain(
            tokio_stream::once(watch),
            tokio_stream::pending::<pb::WatchRequest>(),
        );
        WatchClient::new(channel).watch(requests).await?.into_inner().message().await
    };
    lines.push(format!("watch: {}", outcome(watched.await)));
    for request in ["GET /readyz/non_learner", "GET /readyz", "GET /health?serializable=true"] {
        lines.push(format!("{request}: {}", ask(server, request).text()));
    }
    lines
}
