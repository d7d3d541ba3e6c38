//! Leases in a cluster, asked for at other members than the one that owns them.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use tokio::time::{Duration, sleep};

use crate::api::put;
use crate::member::{Member, eventually, in_time};

const TTL: i64 = 60;
/// How often a state is asked for that takes a while to come.
const POLL: Duration = Duration::from_millis(20);

async fn grant(member: &Member, id: i64) {
    let mut leases = LeaseClient::new(member.channel().await);
    leases.lease_grant(pb::LeaseGrantRequest { ttl: TTL, id }).await.expect("a grant");
}

/// The time that a keep-alive answers with: none for no such lease.
async fn keep_alive(member: &Member, id: i64) -> Result<i64, tonic::Status> {
    let mut leases = LeaseClient::new(member.channel().await);
    let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
    let mut replies = leases.lease_keep_alive(requests).await?.into_inner();
    Ok(replies.message().await?.expect("an answer").ttl)
}

async fn time_to_live(member: &Member, id: i64) -> pb::LeaseTimeToLiveResponse {
    let mut leases = LeaseClient::new(member.channel().await);
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    leases.lease_time_to_live(request).await.expect("what is left").into_inner()
}

/// A cluster whose members have met.
async fn cluster() -> Vec<Member> {
    let members = Member::found(3);
    for member in &members {
        eventually("all are members", || {
            let known = member.handle().members();
            known.len() == 3 && known.values().all(|record| !record.name.is_empty())
        })
        .await;
    }
    members
}

#[tokio::test]
async fn a_lease_works_at_once_on_all_members() {
    let members = cluster().await;
    for id in 1..=10 {
        grant(&members[0], id).await;
        assert_eq!(keep_alive(&members[1], id).await.expect("it is forwarded"), TTL);
        let leased = pb::PutRequest { lease: id, ..put(&format!("k{id}"), "v") };
        let mut kv = KvClient::new(members[2].channel().await);
        kv.put(leased).await.expect("the lease is asked for elsewhere");
        let status = time_to_live(&members[2], id).await;
        assert_eq!((status.granted_ttl, status.keys.len()), (TTL, 1));
    }
    assert_eq!(keep_alive(&members[1], 99).await.expect("no error"), 0);
    assert_eq!(time_to_live(&members[1], 99).await.ttl, -1);
    let mut kv = KvClient::new(members[1].channel().await);
    let leased = pb::PutRequest { lease: 99, ..put("k", "v") };
    let refused = kv.put(leased).await.expect_err("nobody knows it");
    assert_eq!(refused.message(), "etcdserver: requested lease not found");
}

/// An id that was granted on another member is refused, before its record has come and after.
#[tokio::test]
async fn an_id_is_granted_once() {
    let members = cluster().await;
    for id in 1..=10 {
        grant(&members[0], id).await;
        let mut leases = LeaseClient::new(members[1].channel().await);
        let again = pb::LeaseGrantRequest { ttl: TTL, id };
        let refused = leases.lease_grant(again).await.expect_err("it is there");
        assert_eq!(refused.message(), "etcdserver: lease already exists");
    }
}

#[tokio::test]
async fn only_the_owner_knows_what_is_left_and_others_ask_it() {
    let members = cluster().await;
    grant(&members[0], 7).await;
    let wait = async {
        while time_to_live(&members[2], 7).await.ttl >= TTL - 1 {
            sleep(POLL).await;
        }
    };
    in_time("time passes as seen by another member", wait).await;
    assert_eq!(keep_alive(&members[1], 7).await.expect("it is forwarded"), TTL);
    // What is left is rounded down.
    assert!(time_to_live(&members[2], 7).await.ttl >= TTL - 1);
    assert!(time_to_live(&members[0], 7).await.ttl >= TTL - 1);
}

#[tokio::test]
async fn a_lease_outlives_its_owner() {
    let mut members = cluster().await;
    grant(&members[0], 7).await;
    assert_eq!(keep_alive(&members[1], 7).await.expect("it is forwarded"), TTL);
    drop(members.remove(0));
    for member in &members {
        let wait = async {
            while keep_alive(member, 7).await.is_err() {
                sleep(POLL).await;
            }
        };
        in_time("another member takes it over", wait).await;
        assert_eq!(keep_alive(member, 7).await.expect("it has an owner again"), TTL);
    }
}
