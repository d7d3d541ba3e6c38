//! Compact: what is refused, and what can be read and watched afterwards.

use starling_proto::etcdserverpb as pb;

use super::case::{Case, FROM_KEY, all, delete, get, watch};
use super::cases;

#[test]
fn compaction_answers_are_those_of_etcd() {
    super::compare(cases![
        of_a_fresh_store
        bounds
        reads_afterwards
        physical
        newest_versions_survive
        tombstone_at_the_compaction
        watch_afterwards
    ]);
}

/// The first case: nothing has been written yet.
async fn of_a_fresh_store(case: &mut Case) {
    case.compact("a revision ahead", case.revision(1), false).await;
    case.compact("revision 0", 0, false).await;
    case.compact("revision 0 again", 0, false).await;
    case.compact("negative", -1, false).await;
    case.compact("revision 1", case.revision(0), false).await;
    case.compact("revision 1 again", case.revision(0), false).await;
    case.all("all").await;
}

async fn bounds(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.set("a", "3").await;
    case.compact("ahead", case.revision(4), false).await;
    case.compact("far ahead", i64::MAX, false).await;
    case.compact("in the middle", case.revision(2), false).await;
    case.compact("the same", case.revision(2), false).await;
    case.compact("below", case.revision(1), false).await;
    case.compact("zero", 0, false).await;
    case.compact("negative", -1, false).await;
    case.compact("the current one", case.revision(3), false).await;
    case.compact("the current one again", case.revision(3), true).await;
    case.range("still there", get("a")).await;
}

async fn reads_afterwards(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.set("a", "3").await;
    case.compact("compact", case.revision(2), false).await;
    for relative in 0..=3 {
        let revision = case.revision(relative);
        case.range(&format!("at r{relative:+}"), pb::RangeRequest { revision, ..get("a") }).await;
        let count = pb::RangeRequest { revision, count_only: true, ..all() };
        case.range(&format!("count at r{relative:+}"), count).await;
    }
}

async fn physical(case: &mut Case) {
    for number in 0..20 {
        case.set("a", &number.to_string()).await;
    }
    case.compact("physically", case.revision(15), true).await;
    case.range("at it", pb::RangeRequest { revision: case.revision(15), ..get("a") }).await;
    case.range("below it", pb::RangeRequest { revision: case.revision(14), ..get("a") }).await;
    case.range("now", get("a")).await;
}

async fn newest_versions_survive(case: &mut Case) {
    case.set("old", "1").await;
    case.set("gone", "1").await;
    case.set("twice", "1").await;
    case.delete("delete", delete("gone", "")).await;
    case.set("twice", "2").await;
    case.set("new", "1").await;
    case.compact("compact", case.revision(5), true).await;
    case.all("now").await;
    case.range("at it", pb::RangeRequest { revision: case.revision(5), ..all() }).await;
    case.set("gone", "2").await;
    case.set("old", "2").await;
    case.all("versions go on, or start again").await;
}

async fn tombstone_at_the_compaction(case: &mut Case) {
    case.set("a", "1").await;
    case.delete("delete", delete("a", "")).await;
    case.set("b", "1").await;
    case.compact("at the delete", case.revision(2), true).await;
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest {
            start_revision: case.revision(2),
            ..watch(FROM_KEY, FROM_KEY)
        })
        .await;
    case.items("from the delete on", &mut stream, 3).await;
    case.range("at the delete", pb::RangeRequest { revision: case.revision(2), ..all() }).await;
}

async fn watch_afterwards(case: &mut Case) {
    for number in 0..5 {
        case.set("a", &number.to_string()).await;
    }
    case.compact("compact", case.revision(3), true).await;
    let mut stream = case.watch();
    for relative in [1, 2] {
        stream
            .create(pb::WatchCreateRequest {
                start_revision: case.revision(relative),
                ..watch("a", "")
            })
            .await;
        case.items("below it: created, then canceled", &mut stream, 2).await;
    }
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(3), ..watch("a", "") })
        .await;
    case.items("at it", &mut stream, 4).await;
    let prev = pb::WatchCreateRequest {
        start_revision: case.revision(3),
        prev_kv: true,
        ..watch("a", "")
    };
    stream.create(prev).await;
    case.items("at it, with previous pairs", &mut stream, 4).await;
}
