//! Lease: ids, times to live, keep-alive streams, expiry.

use starling_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::case::{Answers, Case, FROM_KEY, all, in_time, lease, put, watch};
use super::cases;

/// The longest time to live that etcd grants, in seconds.
const TTL_MAX: i64 = 9_000_000_000;

#[test]
fn lease_answers_are_those_of_etcd() {
    super::compare(cases![
        chosen_ids
        ids_of_the_server
        times_to_live
        revoke
        revoke_deletes_in_one_revision
        revoke_in_key_order
        unknown
        keys_of_a_lease
        list
        keep_alive
        keep_alive_ends_with_its_client
        expiry
        keep_alive_of_an_expired_lease
        grants_change_no_revision
    ]);
}

async fn chosen_ids(case: &mut Case) {
    for id in [1, i64::MAX, -1, i64::MIN] {
        case.grant(&format!("grant {id}"), id, 600).await;
        case.grant(&format!("grant {id} again"), id, 600).await;
        case.time_to_live(&format!("time to live of {id}"), id, false).await;
        case.revoke(&format!("revoke {id}"), id).await;
        case.grant(&format!("grant {id} after the revoke"), id, 600).await;
        case.revoke(&format!("revoke {id} again"), id).await;
    }
}

async fn ids_of_the_server(case: &mut Case) {
    case.grant("one", 0, 600).await;
    case.grant("another", 0, 600).await;
}

async fn times_to_live(case: &mut Case) {
    for (ttl, id) in [i64::MIN, -1, 0, 1, 2, 3, 60, TTL_MAX].into_iter().zip(7501..) {
        case.grant(&format!("ttl {ttl}"), id, ttl).await;
    }
    case.grant("the longest and one second", 7599, TTL_MAX + 1).await;
    case.grant("the longest number", 7599, i64::MAX).await;
    case.grant("too long under an id that exists", 7507, TTL_MAX + 1).await;
    case.time_to_live("of the longest", 7508, false).await;
    case.time_to_live("of one minute", 7507, false).await;
    for id in 7506..=7508 {
        case.revoke("revoke", id).await;
    }
}

async fn revoke(case: &mut Case) {
    case.grant("grant", 7601, 600).await;
    case.revoke("without keys", 7601).await;
    case.revoke("twice", 7601).await;
    case.revoke("id 0", 0).await;
    case.time_to_live("after", 7601, true).await;
}

async fn revoke_deletes_in_one_revision(case: &mut Case) {
    case.grant("grant", 7602, 600).await;
    for key in ["c", "a", "b"] {
        case.put(key, pb::PutRequest { lease: 7602, ..put(key, "1") }).await;
    }
    case.set("d", "stays").await;
    case.revoke("revoke", 7602).await;
    case.all("what is left").await;
}

async fn revoke_in_key_order(case: &mut Case) {
    case.grant("grant", 7603, 600).await;
    for key in ["k2", "k9", "k1"] {
        case.put(key, pb::PutRequest { lease: 7603, ..put(key, "1") }).await;
    }
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..watch("k", "l") }).await;
    case.items("created", &mut stream, 1).await;
    case.revoke("revoke", 7603).await;
    case.items("the deletes", &mut stream, 3).await;
}

async fn unknown(case: &mut Case) {
    case.revoke("revoke", 4242).await;
    case.time_to_live("time to live", 4242, false).await;
    case.time_to_live("time to live with keys", 4242, true).await;
    case.time_to_live("time to live of 0", 0, true).await;
    case.put("put", pb::PutRequest { lease: 4242, ..put("a", "1") }).await;
}

async fn keys_of_a_lease(case: &mut Case) {
    case.grant("grant", 7604, 600).await;
    case.time_to_live("no keys", 7604, true).await;
    case.put("put", pb::PutRequest { lease: 7604, ..put("a", "1") }).await;
    case.put("put", pb::PutRequest { lease: 7604, ..put(b"\xff\0", "1") }).await;
    case.time_to_live("two keys", 7604, true).await;
    case.time_to_live("not asked for", 7604, false).await;
    case.delete("one key", super::case::delete("a", "")).await;
    case.time_to_live("one key left", 7604, true).await;
    case.revoke("revoke", 7604).await;
}

async fn list(case: &mut Case) {
    for id in [7701, 7702, -7703] {
        case.grant("grant", id, 600).await;
    }
    list_ours(case, "three").await;
    case.revoke("revoke", 7702).await;
    list_ours(case, "two").await;
    case.revoke("revoke", 7701).await;
    case.revoke("revoke", -7703).await;
    list_ours(case, "none").await;
}

/// Lists the leases of the case; others may still be there, under ids of the server.
async fn list_ours(case: &mut Case, label: &str) {
    let answer = in_time(lease(&case.channel).lease_leases(pb::LeaseLeasesRequest {})).await;
    case.keep(label, answer, |show, answer| {
        let mut ids: Vec<i64> = answer.leases.iter().map(|lease| lease.id).collect();
        ids.retain(|id| (7700..7800).contains(&id.unsigned_abs()));
        ids.sort_unstable();
        format!("{} {ids:?}", show.header(answer.header.as_ref()))
    });
}

async fn keep_alive(case: &mut Case) {
    case.grant("grant", 7801, 600).await;
    case.grant("grant", 7802, 300).await;
    keep_alives(case, "known and unknown", &[7801, 7802, 4242, 7801, 0, -1]).await;
    case.set("a", "1").await;
    keep_alives(case, "the revision is the current one", &[7801]).await;
    case.revoke("revoke", 7801).await;
    keep_alives(case, "after the revoke", &[7801, 7802]).await;
    case.revoke("revoke", 7802).await;
}

/// One stream; each request has one answer.
async fn keep_alives(case: &mut Case, label: &str, ids: &[i64]) {
    let (requests, queue) = mpsc::channel(ids.len());
    let mut client = lease(&case.channel);
    let mut answers =
        Answers::of(async move { client.lease_keep_alive(ReceiverStream::new(queue)).await });
    for &id in ids {
        let _ = requests.send(pb::LeaseKeepAliveRequest { id }).await;
        let answer = answers.next().await;
        case.keep(&format!("{label}: {id}"), answer, |show, answer| match answer {
            Some(answer) => format!(
                "{} id {} ttl {}",
                show.header(answer.header.as_ref()),
                answer.id,
                answer.ttl
            ),
            None => "end of stream".into(),
        });
    }
}

async fn keep_alive_ends_with_its_client(case: &mut Case) {
    let (requests, queue) = mpsc::channel::<pb::LeaseKeepAliveRequest>(1);
    drop(requests);
    let mut client = lease(&case.channel);
    let mut answers =
        Answers::of(async move { client.lease_keep_alive(ReceiverStream::new(queue)).await });
    let answer = answers.next().await;
    case.keep("closed by the client", answer, |_, answer| format!("{answer:?}"));
}

async fn expiry(case: &mut Case) {
    case.grant("grant", 7901, 2).await;
    case.put("put", pb::PutRequest { lease: 7901, ..put("a", "1") }).await;
    case.put("put", pb::PutRequest { lease: 7901, ..put("b", "1") }).await;
    case.set("c", "stays").await;
    let mut stream = case.watch();
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..watch(FROM_KEY, FROM_KEY) }).await;
    case.items("created, then deleted", &mut stream, 3).await;
    case.range("what is left", all()).await;
    case.time_to_live("of the expired lease", 7901, true).await;
    case.revoke("of the expired lease", 7901).await;
    case.grant("the same id again", 7901, 600).await;
    case.revoke("revoke", 7901).await;
}

async fn keep_alive_of_an_expired_lease(case: &mut Case) {
    case.grant("grant", 7902, 2).await;
    case.put("put", pb::PutRequest { lease: 7902, ..put("a", "1") }).await;
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("created, then deleted", &mut stream, 2).await;
    keep_alives(case, "too late", &[7902]).await;
}

async fn grants_change_no_revision(case: &mut Case) {
    case.grant("grant", 7903, 600).await;
    case.set("a", "1").await;
    case.grant("grant", 7904, 600).await;
    case.revoke("revoke", 7903).await;
    case.revoke("revoke", 7904).await;
    case.set("a", "2").await;
}
