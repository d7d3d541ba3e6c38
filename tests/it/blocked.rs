//! Members that do not talk to each other, since one was told so.

use starling::node::{BlockChange, Handle};
use starling_proto::etcdserverpb as etcd;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use tonic::Code;

use crate::api::put;
use crate::member::{Member, eventually, in_time};

async fn cluster() -> Vec<Member> {
    let members = Member::found(2);
    for member in &members {
        eventually("both are alive", || member.handle().live_members().len() == 2).await;
    }
    members
}

fn name(handle: &Handle) -> String {
    handle.member().name.clone()
}

/// Puts a pair on a member, which nobody else needs to have.
async fn put_here(member: &Member, key: &str, value: &str) {
    let mut request = tonic::Request::new(put(key, value));
    request.metadata_mut().insert("starling-write-ack", "local".parse().expect("text"));
    KvClient::new(member.channel().await).put(request).await.expect("a put");
}

async fn has(member: &Member, key: &str) -> bool {
    let get = etcd::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let reply = KvClient::new(member.channel().await).range(get).await.expect("a read");
    reply.get_ref().count == 1
}

async fn block(member: &Member, request: pb::BlockRequest) -> Result<Vec<String>, tonic::Status> {
    let reply = ClusterClient::new(member.channel().await).block(request).await?;
    Ok(reply.into_inner().names)
}

#[tokio::test]
async fn a_blocked_link_is_cut_both_ways_until_it_is_not() {
    let members = cluster().await;
    let (a, b) = (members[0].handle(), members[1].handle());
    let add = pb::BlockRequest { add: vec![name(&b)], ..pb::BlockRequest::default() };
    assert_eq!(block(&members[0], add).await.expect("it is told"), [name(&b)]);
    eventually("they lose each other", || {
        a.live_members().len() == 1 && b.live_members().len() == 1
    })
    .await;
    put_here(&members[0], "of a", "1").await;
    put_here(&members[1], "of b", "1").await;
    assert!(!has(&members[1], "of a").await && !has(&members[0], "of b").await);

    let mut admin = ClusterClient::new(members[0].channel().await);
    let status = admin.status(pb::StatusRequest::default()).await.expect("it answers").into_inner();
    let blocked: Vec<_> = status.members.iter().filter(|it| it.blocked).map(|it| it.id).collect();
    assert_eq!(blocked, [b.member().id.0]);

    let all = pb::BlockRequest { clear: true, ..pb::BlockRequest::default() };
    assert!(block(&members[0], all).await.expect("it is told").is_empty());
    for (member, key) in [(&members[1], "of a"), (&members[0], "of b")] {
        in_time("what was written meanwhile comes", async {
            while !has(member, key).await {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_member_does_not_block_itself() {
    let member = Member::start();
    let own = name(&member.handle());
    let add = pb::BlockRequest { add: vec![own], ..pb::BlockRequest::default() };
    let refused = block(&member, add).await.expect_err("it is refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "a member cannot block itself")
    );
    assert_eq!(member.handle().block(BlockChange::default()), Ok([].into()));
}
