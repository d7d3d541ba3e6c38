//! Clients that change member with every call. What they learnt from one member names that member, so others send it on.

use std::process::{Command, Stdio};

use bytes::Bytes;
use starling_compat_tests::tools;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use starling_proto::etcdserverpb::request_op::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::load::put;
use super::member::{Cluster, Member};

/// etcd's Go client with all members as its endpoints: compare-and-swap, lists in pages and watches, first with all members there, then with one
/// that is killed in the middle. The program is `go/cluster_test.go`.
#[test]
fn go_client_with_all_endpoints() {
    if tools::etcd().is_none() {
        return;
    }
    super::run(async {
        let levels = ["--write-ack", "majority", "--linearizable-reads", "majority"];
        let mut cluster = Cluster::start(3, &levels).await;
        let control = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = control.local_addr().expect("a bound socket has an address");
        let mut go = Command::new("go");
        go.args(["test", "-v", "-count=1", "-timeout=150s", "-run=TestClientThatChangesMembers"]);
        go.current_dir(tools::package_dir().join("go")).stdin(Stdio::null());
        go.env("COMPAT_CLUSTER", cluster.endpoints()).env("COMPAT_CONTROL", address.to_string());
        let mut test = tokio::task::spawn_blocking(move || go.output());
        let output = loop {
            tokio::select! {
                output = &mut test => break output.expect("no panic").expect("go can be started"),
                caller = control.accept() => {
                    let (mut caller, _) = caller.expect("a connection");
                    cluster.members[0].kill();
                    caller.write_all(b"\n").await.expect("the test waits for it");
                }
            }
        };
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}\n{errors}\n{}", cluster.logs());
        assert!(text.contains("--- PASS"), "it was run:\n{text}");
    });
}

/// A transaction for a member at a revision of its own. Where it is done, it puts "there"; whoever judges it for that member puts "here".
fn txn(key: &str, revision: i64) -> pb::TxnRequest {
    let compare = pb::Compare {
        key: Bytes::from_static(b"mark"),
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let op = |value: &str| {
        let put = pb::PutRequest {
            key: Bytes::from(key.to_owned()),
            value: Bytes::from(value.to_owned()),
            ..Default::default()
        };
        pb::RequestOp { request: Some(Request::RequestPut(put)) }
    };
    pb::TxnRequest { compare: vec![compare], success: vec![op("there")], failure: vec![op("here")] }
}

async fn value(member: &Member, key: &str) -> Option<Bytes> {
    let state = member.state().await.expect("the member serves");
    state.kvs.into_iter().find(|kv| kv.key == key.as_bytes()).map(|kv| kv.value)
}

/// A member stands still with a transaction that another one has sent on: nobody else does it in its place.
#[test]
fn what_was_sent_to_a_member_that_stands_still() {
    super::run(async {
        let mut cluster = Cluster::start(3, &["--write-ack", "all"]).await;
        let marked = cluster.members[0].kv().put(put("mark", 1)).await.expect("a put");
        let revision = marked.into_inner().header.expect("a header").revision;
        let mut other = cluster.members[1].kv();
        let there = other.txn(txn("before", revision)).await.expect("it is sent on").into_inner();
        assert!(there.succeeded);

        cluster.members[0].freeze();
        let lost = other.txn(txn("sent", revision)).await.expect_err("nobody answers");
        assert_eq!(lost.message(), "etcdserver: request timed out");
        assert_eq!(value(&cluster.members[1], "sent").await, None);
        // The member seems dead by now.
        let here = other.txn(txn("after", revision)).await.expect("it is done here").into_inner();
        assert!(!here.succeeded);
        assert_eq!(value(&cluster.members[1], "after").await, Some("here".into()));
        let range = pb::RangeRequest { key: "mark".into(), revision, ..Default::default() };
        let gone = other.range(range.clone()).await.expect_err("it cannot be asked");
        assert_eq!(gone.message(), "etcdserver: mvcc: required revision has been compacted");

        cluster.members[0].thaw();
        cluster.members[0].ready().await;
        assert_ne!(value(&cluster.members[0], "sent").await, Some("here".into()));
        // Once it seems alive, it answers for itself again.
        while other.range(range.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}
