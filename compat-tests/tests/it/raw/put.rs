//! Put and DeleteRange: flags, refusals, limits of size.

use starling_proto::etcdserverpb as pb;

use super::case::{Case, FROM_KEY, delete, get, put};
use super::cases;

/// etcd's default `--max-request-bytes`.
const MAX_REQUEST_BYTES: usize = 1_572_864;
/// What etcd's transport accepts above it, so that the refusal can be its own.
const TRANSPORT_OVERHEAD: usize = 512 * 1024;

#[test]
fn put_and_delete_answers_are_those_of_etcd() {
    super::compare(cases![
        put_again_and_again
        previous_pair
        ignore_value
        ignore_lease
        refusals_in_order
        leases
        sizes
        delete_ranges
        delete_nothing
        delete_previous_pairs
        delete_without_key
    ]);
}

async fn put_again_and_again(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "1").await;
    case.set("a", "").await;
    case.range("after three puts", get("a")).await;
    case.put("no key", put("", "1")).await;
    case.put("nothing at all", put("", "")).await;
    case.range("no change", get("a")).await;
}

async fn previous_pair(case: &mut Case) {
    case.put("of a new key", pb::PutRequest { prev_kv: true, ..put("a", "1") }).await;
    case.put("of an old key", pb::PutRequest { prev_kv: true, ..put("a", "2") }).await;
    case.delete("delete", delete("a", "")).await;
    case.put("of a deleted key", pb::PutRequest { prev_kv: true, ..put("a", "3") }).await;
}

async fn ignore_value(case: &mut Case) {
    let keep = |value: &str| pb::PutRequest { ignore_value: true, ..put("a", value) };
    case.put("of a missing key", keep("")).await;
    case.set("a", "1").await;
    case.put("keeps the value", keep("")).await;
    case.put("with a value", keep("2")).await;
    case.put("and the previous pair", pb::PutRequest { prev_kv: true, ..keep("") }).await;
    case.range("after", get("a")).await;
    case.delete("delete", delete("a", "")).await;
    case.put("of a deleted key", keep("")).await;
}

async fn ignore_lease(case: &mut Case) {
    let keep = pb::PutRequest { ignore_lease: true, ..put("a", "1") };
    case.put("of a missing key", keep.clone()).await;
    case.grant("grant", 7101, 600).await;
    case.put("with a lease", pb::PutRequest { lease: 7101, ..put("a", "1") }).await;
    case.put("keeps the lease", keep.clone()).await;
    case.range("still leased", get("a")).await;
    case.put("with another lease", pb::PutRequest { lease: 7102, ..keep.clone() }).await;
    case.put("keeps both", pb::PutRequest { ignore_value: true, ..keep }.without_value()).await;
    case.range("still", get("a")).await;
    case.put("lease 0 detaches", put("a", "2")).await;
    case.time_to_live("detached", 7101, true).await;
    case.revoke("revoke", 7101).await;
    case.range("survives", get("a")).await;
}

trait WithoutValue {
    fn without_value(self) -> Self;
}

impl WithoutValue for pb::PutRequest {
    fn without_value(mut self) -> Self {
        self.value.clear();
        self
    }
}

/// Which refusal comes first, when several hold.
async fn refusals_in_order(case: &mut Case) {
    let both = pb::PutRequest { ignore_value: true, ignore_lease: true, lease: 1, ..put("a", "1") };
    case.put("value and lease provided", both.clone()).await;
    case.put("and no key", pb::PutRequest { key: Default::default(), ..both }).await;
    case.put(
        "lease unknown and key missing",
        pb::PutRequest { ignore_value: true, lease: 1, ..put("a", "") },
    )
    .await;
    case.set("a", "1").await;
    case.put(
        "lease unknown and key there",
        pb::PutRequest { ignore_value: true, lease: 1, ..put("a", "") },
    )
    .await;
    case.range("no change", get("a")).await;
}

async fn leases(case: &mut Case) {
    case.put("unknown lease", pb::PutRequest { lease: 99, ..put("a", "1") }).await;
    case.put("unknown negative lease", pb::PutRequest { lease: -99, ..put("a", "1") }).await;
    case.grant("grant", 7201, 600).await;
    case.grant("grant another", 7202, 600).await;
    case.put("leased", pb::PutRequest { lease: 7201, ..put("a", "1") }).await;
    case.put("leased again", pb::PutRequest { lease: 7201, ..put("a", "2") }).await;
    case.time_to_live("attached once", 7201, true).await;
    case.put("moved", pb::PutRequest { lease: 7202, ..put("a", "3") }).await;
    case.time_to_live("the old one", 7201, true).await;
    case.time_to_live("the new one", 7202, true).await;
    case.revoke("revoke the old one", 7201).await;
    case.range("is still there", get("a")).await;
    case.revoke("revoke the new one", 7202).await;
    case.range("is gone", get("a")).await;
}

async fn sizes(case: &mut Case) {
    // The request has the key, the value and a few bytes of framing in it.
    for length in [
        MAX_REQUEST_BYTES / 2,
        MAX_REQUEST_BYTES - 64,
        MAX_REQUEST_BYTES,
        MAX_REQUEST_BYTES + TRANSPORT_OVERHEAD - 64,
    ] {
        case.put(&format!("a value of {length} bytes"), put("big", vec![b'x'; length])).await;
        case.range("what is stored", get("big")).await;
    }
    let over = MAX_REQUEST_BYTES + TRANSPORT_OVERHEAD;
    case.put("a value over the transport's limit", put("big", vec![b'x'; over])).await;
    case.put("a long key", put(vec![b'k'; 100_000], "1")).await;
    case.range("the long key", get(vec![b'k'; 100_000])).await;
    case.put("a key over the limit", put(vec![b'k'; MAX_REQUEST_BYTES], "1")).await;
    case.range("a read over the limit", get(vec![b'k'; MAX_REQUEST_BYTES])).await;
    case.range("a read over the transport's limit", get(vec![b'k'; over])).await;
    case.delete("a delete over the limit", delete(vec![b'k'; MAX_REQUEST_BYTES], "")).await;
    case.set("after", "all that").await;
}

async fn four_keys(case: &mut Case) {
    for key in ["a1", "a2", "b1", "b2"] {
        case.set(key, key).await;
    }
}

async fn delete_ranges(case: &mut Case) {
    four_keys(case).await;
    case.delete("one", delete("a1", "")).await;
    case.delete("half open", delete("a1", "b1")).await;
    case.all("the rest").await;
    four_keys(case).await;
    case.delete("from a key on", delete("a2", FROM_KEY)).await;
    case.all("the rest").await;
    four_keys(case).await;
    case.delete("all", delete(FROM_KEY, FROM_KEY)).await;
    case.all("none").await;
    case.delete("all of none", delete(FROM_KEY, FROM_KEY)).await;
}

async fn delete_nothing(case: &mut Case) {
    case.delete("of an empty store", delete("a", "")).await;
    case.set("b", "1").await;
    case.delete("an absent key", delete("a", "")).await;
    case.delete("an empty range", delete("c", "d")).await;
    case.delete("end equals key", delete("b", "b")).await;
    case.delete("end below key", delete("b", "a")).await;
    case.delete("once", delete("b", "")).await;
    case.delete("twice", delete("b", "")).await;
    case.delete(
        "nothing, with previous pairs",
        pb::DeleteRangeRequest { prev_kv: true, ..delete("b", "") },
    )
    .await;
}

async fn delete_previous_pairs(case: &mut Case) {
    four_keys(case).await;
    case.set("a1", "new").await;
    case.delete(
        "with previous pairs",
        pb::DeleteRangeRequest { prev_kv: true, ..delete("a", "b2") },
    )
    .await;
    case.all("the rest").await;
}

async fn delete_without_key(case: &mut Case) {
    case.set("a", "1").await;
    case.delete("no key", delete("", "")).await;
    case.delete("no key but an end", delete("", "z")).await;
    case.delete("no key, end zero", delete("", FROM_KEY)).await;
    case.all("all there").await;
}
