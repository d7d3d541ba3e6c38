//! Lock: who holds a name, who waits for it, and what is left when they go.

use std::time::Duration;

use starling_proto::etcdserverpb as pb;
use starling_proto::v3lockpb::lock_client::LockClient;
use starling_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use tokio::task::JoinHandle;
use tonic::{Response, Status};

use super::case::{Case, bytes, delete, in_time, kv, lease, put, range};
use super::cases;

/// How often the number of those who wait is looked at.
const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 1000;

#[test]
fn lock_answers_are_those_of_etcd() {
    super::compare(cases![
        take_and_give_back
        the_same_lease_again
        one_after_the_other
        lease_of_the_server
        refused
        strange_names
        a_holder_that_runs_out
        a_waiter_that_loses_its_lease
        a_waiter_that_goes
        keys_that_are_no_locks
    ]);
}

type Answer = Result<Response<LockResponse>, Status>;

fn lock(case: &Case, name: impl AsRef<[u8]>, lease: i64) -> JoinHandle<Answer> {
    let mut client = LockClient::new(case.channel.clone());
    let request = LockRequest { name: bytes(name), lease };
    tokio::spawn(async move { in_time(client.lock(request)).await })
}

async fn locked(case: &mut Case, label: &str, call: JoinHandle<Answer>) {
    let answer = call.await.expect("the call does not panic");
    case.keep(label, answer, |show, answer| {
        format!("{} {}", show.header(answer.header.as_ref()), answer.key.escape_ascii())
    });
}

async fn take(case: &mut Case, name: &str, lease: i64) {
    let call = lock(case, name, lease);
    locked(case, &format!("lock {name} by {lease}"), call).await;
}

async fn give(case: &mut Case, key: &str) {
    let mut client = LockClient::new(case.channel.clone());
    let answer = in_time(client.unlock(UnlockRequest { key: bytes(key) })).await;
    case.keep(&format!("unlock {key}"), answer, |show, answer| show.header(answer.header.as_ref()));
}

async fn grants(case: &mut Case, leases: &[i64]) {
    for lease in leases {
        case.grant("grant", *lease, 600).await;
    }
}

async fn revokes(case: &mut Case, leases: &[i64]) {
    for lease in leases {
        case.revoke("revoke", *lease).await;
    }
}

/// Waits until so many keys are there: those who wait have one, too.
pub(super) async fn keys_are(case: &Case, prefix: &str, end: &str, count: i64) {
    for _ in 0..POLLS {
        let answer = in_time(kv(&case.channel).range(range(prefix, end))).await;
        if answer.is_ok_and(|answer| answer.get_ref().count == count) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("there are not {count} keys under {prefix}\n{}", case.text());
}

async fn take_and_give_back(case: &mut Case) {
    grants(case, &[7001]).await;
    take(case, "l", 7001).await;
    case.all("its key").await;
    give(case, "l/1b59").await;
    give(case, "l/1b59").await;
    give(case, "nothing").await;
    give(case, "").await;
    take(case, "l", 7001).await;
    revokes(case, &[7001]).await;
    case.all("after the revoke").await;
}

async fn the_same_lease_again(case: &mut Case) {
    grants(case, &[7001]).await;
    take(case, "l", 7001).await;
    take(case, "l", 7001).await;
    case.set("x", "1").await;
    take(case, "l", 7001).await;
    case.all("one key").await;
    revokes(case, &[7001]).await;
}

async fn one_after_the_other(case: &mut Case) {
    grants(case, &[7001, 7002, 7003]).await;
    take(case, "l", 7001).await;
    let second = lock(case, "l", 7002);
    keys_are(case, "l/", "l0", 2).await;
    let third = lock(case, "l", 7003);
    keys_are(case, "l/", "l0", 3).await;
    take(case, "other", 7002).await;
    case.all("a holder and two who wait").await;
    give(case, "l/1b59").await;
    locked(case, "the second", second).await;
    give(case, "l/1b5a").await;
    locked(case, "the third", third).await;
    case.all("the third holds it").await;
    revokes(case, &[7001, 7002, 7003]).await;
}

/// Under an id of the server's own, which lives for a minute.
async fn lease_of_the_server(case: &mut Case) {
    let answer = lock(case, "l", 0).await.expect("the call does not panic");
    let key = answer.map(|answer| answer.into_inner().key).unwrap_or_default();
    let text = String::from_utf8_lossy(&key).into_owned();
    let id = text.strip_prefix("l/").and_then(|id| i64::from_str_radix(id, 16).ok());
    case.note("the key names a lease", format!("{}", id.is_some_and(|id| id > 0)));
    let request = pb::LeaseTimeToLiveRequest { id: id.unwrap_or_default(), keys: true };
    let answer = in_time(lease(&case.channel).lease_time_to_live(request)).await;
    case.keep("the lease", answer, |_, answer| {
        format!("granted {} keys {}", answer.granted_ttl, answer.keys == [key])
    });
    let mut client = LockClient::new(case.channel.clone());
    let answer = in_time(client.unlock(UnlockRequest { key: bytes(&text) })).await;
    case.note("given back", format!("{}", answer.is_ok()));
    case.all("no key is left").await;
}

async fn refused(case: &mut Case) {
    take(case, "l", 4242).await;
    take(case, "l", -1).await;
    take(case, "", 4242).await;
    case.set("l/1092", "a key in the way").await;
    take(case, "l", 4242).await;
    case.all("nothing has changed").await;
}

async fn strange_names(case: &mut Case) {
    grants(case, &[7001, -7002]).await;
    take(case, "", 7001).await;
    take(case, "a/b", 7001).await;
    take(case, "minus", -7002).await;
    let call = lock(case, b"\xff\0", 7001);
    locked(case, "bytes", call).await;
    case.all("their keys").await;
    revokes(case, &[7001, -7002]).await;
}

async fn a_holder_that_runs_out(case: &mut Case) {
    grants(case, &[7001, 7002]).await;
    take(case, "l", 7001).await;
    let second = lock(case, "l", 7002);
    keys_are(case, "l/", "l0", 2).await;
    revokes(case, &[7001]).await;
    locked(case, "the second", second).await;
    revokes(case, &[7002]).await;
}

/// It is noticed when the turn would be its.
async fn a_waiter_that_loses_its_lease(case: &mut Case) {
    grants(case, &[7001, 7002]).await;
    take(case, "l", 7001).await;
    let second = lock(case, "l", 7002);
    keys_are(case, "l/", "l0", 2).await;
    revokes(case, &[7002]).await;
    give(case, "l/1b59").await;
    locked(case, "the second", second).await;
    revokes(case, &[7001]).await;
}

async fn a_waiter_that_goes(case: &mut Case) {
    grants(case, &[7001, 7002, 7003]).await;
    take(case, "l", 7001).await;
    let second = lock(case, "l", 7002);
    keys_are(case, "l/", "l0", 2).await;
    let third = lock(case, "l", 7003);
    keys_are(case, "l/", "l0", 3).await;
    second.abort();
    keys_are(case, "l/", "l0", 2).await;
    case.all("its key is gone").await;
    give(case, "l/1b59").await;
    locked(case, "the third", third).await;
    revokes(case, &[7001, 7002, 7003]).await;
}

/// Whatever is under the name counts, if it was there before.
async fn keys_that_are_no_locks(case: &mut Case) {
    grants(case, &[7001]).await;
    case.set("l/x", "1").await;
    let call = lock(case, "l", 7001);
    keys_are(case, "l/", "l0", 2).await;
    case.put("once more", put("l/x", "2")).await;
    case.put("a later one", put("l/y", "2")).await;
    case.delete("gone", delete("l/x", "")).await;
    locked(case, "the lock", call).await;
    revokes(case, &[7001]).await;
}
