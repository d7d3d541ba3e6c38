//! What a user of the etcd-client crate does: keys, transactions, watches, leases, locks of the client's own.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, WatchOptions,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let endpoint = std::env::var("COMPAT_ENDPOINT")?;
    let client = Client::connect([endpoint], None).await?;
    tokio::time::timeout(DEADLINE, async {
        keys(client.clone()).await?;
        orders(client.clone()).await?;
        transactions(client.clone()).await?;
        watches(client.clone()).await?;
        leases(client.clone()).await?;
        compaction(client.clone()).await?;
        maintenance(client).await
    })
    .await?
}

async fn keys(mut client: Client) -> Outcome {
    let first = client.put("k/a", "1", None).await?;
    let start = first.header().ok_or("no header")?.revision();
    assert!(first.prev_key().is_none());
    let second = client.put("k/a", "2", Some(PutOptions::new().with_prev_key())).await?;
    assert_eq!(second.prev_key().map(|kv| kv.value().to_vec()), Some(b"1".to_vec()));
    client.put("k/b", "3", None).await?;

    let found = client.get("k/a", None).await?;
    let kv = found.kvs().first().ok_or("k/a is gone")?;
    assert_eq!(
        (kv.value(), kv.version(), kv.create_revision(), kv.mod_revision()),
        (&b"2"[..], 2, start, start + 1)
    );
    let past = client.get("k/a", Some(GetOptions::new().with_revision(start))).await?;
    assert_eq!(past.kvs().first().map(|kv| kv.value().to_vec()), Some(b"1".to_vec()));
    let limited = client.get("k/", Some(GetOptions::new().with_prefix().with_limit(1))).await?;
    assert_eq!((limited.kvs().len(), limited.count(), limited.more()), (1, 2, true));
    let count = client.get("k/", Some(GetOptions::new().with_prefix().with_count_only())).await?;
    assert_eq!((count.kvs().len(), count.count()), (0, 2));

    let deleted =
        client.delete("k/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (2, 2));
    assert_eq!(client.get("k/", Some(GetOptions::new().with_prefix())).await?.count(), 0);
    let refused = client.put("", "x", None).await;
    assert_status(refused.err(), "etcdserver: key is not provided");
    let refused = client.get("k/a", Some(GetOptions::new().with_revision(i64::MAX))).await;
    assert_status(refused.err(), "etcdserver: mvcc: required revision is a future revision");
    Ok(())
}

fn assert_status(error: Option<Error>, message: &str) {
    match error {
        Some(Error::GRpcStatus(status)) => assert_eq!(status.message(), message),
        other => panic!("not a status with {message:?}: {other:?}"),
    }
}

async fn orders(mut client: Client) -> Outcome {
    for (key, value) in [("o/b", "1"), ("o/c", "3"), ("o/a", "2")] {
        client.put(key, value, None).await?;
    }
    for (target, order, expected) in [
        (SortTarget::Key, SortOrder::Descend, ["o/c", "o/b", "o/a"]),
        (SortTarget::Create, SortOrder::Ascend, ["o/b", "o/c", "o/a"]),
        (SortTarget::Value, SortOrder::Descend, ["o/c", "o/a", "o/b"]),
    ] {
        let options = GetOptions::new().with_prefix().with_sort(target, order);
        let found = client.get("o/", Some(options)).await?;
        let keys: Vec<_> = found.kvs().iter().filter_map(|kv| kv.key_str().ok()).collect();
        assert_eq!(keys, expected, "{target:?} {order:?}");
    }
    Ok(())
}

async fn transactions(mut client: Client) -> Outcome {
    let create = |value: &str| {
        Txn::new()
            .when([Compare::version("t/a", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("t/a", value, None), TxnOp::get("t/a", None)])
            .or_else([TxnOp::get("t/a", None), TxnOp::delete("t/a", None)])
    };
    let first = client.txn(create("1")).await?;
    assert!(first.succeeded());
    assert!(matches!(
        first.op_responses().as_slice(),
        [TxnOpResponse::Put(_), TxnOpResponse::Get(_)]
    ));
    let second = client.txn(create("2")).await?;
    assert!(!second.succeeded());
    match second.op_responses().as_slice() {
        [TxnOpResponse::Get(got), TxnOpResponse::Delete(deleted)] => {
            assert_eq!(got.kvs().first().map(|kv| kv.value().to_vec()), Some(b"1".to_vec()));
            assert_eq!(deleted.deleted(), 1);
        }
        other => panic!("{other:?}"),
    }
    let nested = Txn::new().and_then([TxnOp::txn(create("3"))]);
    assert!(client.txn(nested).await?.succeeded());
    let twice = Txn::new().and_then([TxnOp::put("t/b", "1", None), TxnOp::put("t/b", "2", None)]);
    assert_status(client.txn(twice).await.err(), "etcdserver: duplicate key given in txn request");
    Ok(())
}

async fn watches(mut client: Client) -> Outcome {
    let first = client.put("w/a", "1", None).await?;
    let start = first.header().ok_or("no header")?.revision();
    let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(start);
    let mut stream = client.watch("w/", Some(options)).await?;
    client.put("w/a", "2", None).await?;
    client.delete("w/a", None).await?;
    let (mut seen, mut id) = (Vec::new(), 0);
    while seen.len() < 3 {
        let answer = stream.message().await?.ok_or("the watch has ended")?;
        id = answer.watch_id();
        for event in answer.events() {
            let kv = event.kv().ok_or("an event without a key")?;
            let prev = event.prev_kv().map(|kv| kv.value().to_vec()).unwrap_or_default();
            seen.push((event.event_type(), kv.value().to_vec(), prev, kv.mod_revision() - start));
        }
    }
    assert_eq!(
        seen,
        [
            (EventType::Put, b"1".to_vec(), Vec::new(), 0),
            (EventType::Put, b"2".to_vec(), b"1".to_vec(), 1),
            (EventType::Delete, Vec::new(), b"2".to_vec(), 2),
        ]
    );
    stream.request_progress().await?;
    let progress = stream.message().await?.ok_or("the watch has ended")?;
    assert!(progress.events().is_empty());
    assert_eq!(progress.header().map(|header| header.revision()), Some(start + 2));
    stream.cancel(id).await?;
    let canceled = stream.message().await?.ok_or("the stream has ended")?;
    assert!(canceled.canceled());
    Ok(())
}

async fn leases(mut client: Client) -> Outcome {
    let lease = client.lease_grant(600, None).await?;
    assert_eq!(lease.ttl(), 600);
    let options = PutOptions::new().with_lease(lease.id());
    client.put("l/a", "1", Some(options)).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await?;
    keeper.keep_alive().await?;
    let answer = answers.message().await?.ok_or("the keep-alive has ended")?;
    assert_eq!((answer.id(), answer.ttl()), (lease.id(), 600));
    assert!(client.leases().await?.leases().iter().any(|known| known.id() == lease.id()));
    client.lease_revoke(lease.id()).await?;
    assert_eq!(client.get("l/a", None).await?.count(), 0);
    let gone = client.lease_time_to_live(lease.id(), None).await?;
    assert_eq!((gone.ttl(), gone.granted_ttl()), (-1, 0));
    assert_status(
        client.lease_revoke(lease.id()).await.err(),
        "etcdserver: requested lease not found",
    );
    Ok(())
}

async fn compaction(mut client: Client) -> Outcome {
    let first = client.put("c/a", "1", None).await?;
    let start = first.header().ok_or("no header")?.revision();
    client.put("c/a", "2", None).await?;
    client.compact(start + 1, None).await?;
    let past = client.get("c/a", Some(GetOptions::new().with_revision(start))).await;
    assert_status(past.err(), "etcdserver: mvcc: required revision has been compacted");
    let mut stream =
        client.watch("c/a", Some(WatchOptions::new().with_start_revision(start))).await?;
    let mut answer = stream.message().await?.ok_or("the stream has ended")?;
    if answer.created() {
        answer = stream.message().await?.ok_or("the stream has ended")?;
    }
    assert!(answer.canceled());
    assert_eq!(answer.compact_revision(), start + 1);
    Ok(())
}

async fn maintenance(mut client: Client) -> Outcome {
    let status = client.status().await?;
    assert!(status.version().starts_with("3."), "{}", status.version());
    assert!(
        client
            .alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::None, None)
            .await?
            .alarms()
            .is_empty()
    );
    assert_eq!(client.member_list().await?.members().len(), 1);
    client.defragment().await?;
    Ok(())
}
