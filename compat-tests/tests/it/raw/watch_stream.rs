//! The watch stream as a whole: progress, fragments, half-close, many watches.

use std::fmt::Write as _;

use starling_proto::etcdserverpb as pb;

use super::case::{self, Case, FROM_KEY, put, watch};
use super::cases;

#[test]
fn watch_streams_are_those_of_etcd() {
    super::compare(cases![
        progress_on_request
        progress_after_events
        progress_without_watches
        progress_with_a_future_start
        nothing_requested
        half_close
        half_close_without_watches
        many_watches
        many_events
        fragments
        no_fragments_unless_asked
        one_event_is_no_fragment
    ]);
}

#[test]
fn progress_notifications_are_those_of_etcd() {
    super::compare_with(
        &["--watch-progress-notify-interval=300ms"],
        cases![idle_watches_are_notified],
    );
}

async fn progress_on_request(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("created", &mut stream, 1).await;
    stream.progress().await;
    case.items("progress", &mut stream, 1).await;
    case.set("b", "1").await;
    case.set("b", "2").await;
    stream.progress().await;
    case.items("progress with the current revision", &mut stream, 1).await;
    stream.create(pb::WatchCreateRequest { watch_id: 3, ..watch("c", "") }).await;
    case.items("created", &mut stream, 1).await;
    stream.progress().await;
    case.items("one answer for all watches", &mut stream, 1).await;
    case.set("c", "1").await;
    case.items("and events after it", &mut stream, 1).await;
}

async fn progress_after_events(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("created", &mut stream, 1).await;
    for value in ["1", "2", "3"] {
        case.set("a", value).await;
    }
    stream.progress().await;
    case.items("all events up to its revision come first", &mut stream, 4).await;
}

async fn progress_without_watches(case: &mut Case) {
    let mut stream = case.watch();
    stream.progress().await;
    stream.create(watch("a", "")).await;
    case.items("no answer before a watch is there", &mut stream, 1).await;
    stream.cancel(0).await;
    case.items("canceled", &mut stream, 1).await;
    stream.progress().await;
    stream.create(watch("b", "")).await;
    case.items("no answer after the last is gone", &mut stream, 1).await;
}

async fn progress_with_a_future_start(case: &mut Case) {
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(3), ..watch("a", "") })
        .await;
    case.items("created", &mut stream, 1).await;
    stream.progress().await;
    stream.create(watch("fence", "")).await;
    case.items("no progress below the start", &mut stream, 1).await;
    for value in ["1", "2", "3"] {
        case.set("a", value).await;
    }
    case.items("the first event", &mut stream, 1).await;
    stream.progress().await;
    case.items("progress", &mut stream, 1).await;
}

/// A request without any union member.
async fn nothing_requested(case: &mut Case) {
    let mut stream = case.watch();
    stream.send_raw(pb::WatchRequest { request_union: None }).await;
    stream.create(watch("a", "")).await;
    case.items("the stream goes on", &mut stream, 1).await;
}

async fn half_close(case: &mut Case) {
    let mut stream = case.watch();
    stream.create(watch("a", "")).await;
    case.items("created", &mut stream, 1).await;
    stream.half_close();
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.items("events go on", &mut stream, 2).await;
}

async fn half_close_without_watches(case: &mut Case) {
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(2), ..watch("a", "") })
        .await;
    stream.half_close();
    case.items("created", &mut stream, 1).await;
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.items("events go on", &mut stream, 1).await;
}

async fn many_watches(case: &mut Case) {
    const WATCHES: usize = 200;
    let mut stream = case.watch();
    for number in 0..WATCHES {
        stream.create(watch(format!("k{number}"), "")).await;
        case.items("created", &mut stream, 1).await;
    }
    stream.create(watch("k", "l")).await;
    case.items("created", &mut stream, 1).await;
    for number in [0, 7, 199] {
        case.set(&format!("k{number}"), "1").await;
        case.items_sorted("its own watch and that of the prefix", &mut stream, 2).await;
    }
}

/// More revisions than etcd puts into one answer.
async fn many_events(case: &mut Case) {
    const EVENTS: usize = 2500;
    let mut client = case::kv(&case.channel);
    for number in 0..EVENTS {
        let answer = client.put(put("a", number.to_string())).await;
        answer.expect("a put succeeds");
    }
    let mut stream = case.watch();
    stream
        .create(pb::WatchCreateRequest { start_revision: case.revision(1), ..watch("a", "") })
        .await;
    case.items("every event once, in order", &mut stream, 1 + EVENTS).await;
}

const BIG: usize = 1_000_000;

/// Puts keys that together are more than one fragment, and deletes them in one revision.
async fn one_big_revision(case: &mut Case) {
    for number in 0..4 {
        case.put("a big value", put(format!("k{number}"), vec![b'x'; BIG])).await;
    }
    case.delete("all at once", case::delete("k", "l")).await;
}

async fn fragments(case: &mut Case) {
    one_big_revision(case).await;
    let request = pb::WatchCreateRequest {
        fragment: true,
        prev_kv: true,
        start_revision: case.revision(5),
        ..watch(FROM_KEY, FROM_KEY)
    };
    shapes(case, "in fragments", request).await;
}

async fn no_fragments_unless_asked(case: &mut Case) {
    one_big_revision(case).await;
    let request = pb::WatchCreateRequest {
        prev_kv: true,
        start_revision: case.revision(5),
        ..watch(FROM_KEY, FROM_KEY)
    };
    shapes(case, "in one answer", request).await;
}

/// What is too large for one answer and cannot be divided.
async fn one_event_is_no_fragment(case: &mut Case) {
    const LENGTH: usize = 1_500_000;
    for value in [b'x', b'y'] {
        case.put("a big value", put("k", vec![value; LENGTH])).await;
    }
    let request = pb::WatchCreateRequest {
        fragment: true,
        prev_kv: true,
        start_revision: case.revision(2),
        ..watch("k", "")
    };
    let mut stream = case.watch();
    stream.create(request).await;
    case.items("created", &mut stream, 1).await;
    let answer = stream.answers.next().await;
    case.keep("one event", answer, |_, answer| {
        let answer = answer.as_ref();
        format!("{:?}", answer.map(|answer| (answer.events.len(), answer.fragment)))
    });
}

/// Notes how many events came in each answer until four did.
async fn shapes(case: &mut Case, label: &str, request: pb::WatchCreateRequest) {
    let mut stream = case.watch();
    stream.create(request).await;
    let (mut events, mut shape) = (0, String::new());
    while events < 4 {
        let answer = stream.answers.next().await;
        match answer.map(tonic::Response::into_inner) {
            Ok(Some(answer)) => {
                events += answer.events.len();
                let _ = write!(
                    shape,
                    "[{} events, fragment {}] ",
                    answer.events.len(),
                    answer.fragment
                );
            }
            other => {
                let _ = write!(shape, "{other:?}");
                break;
            }
        }
    }
    case.note(label, shape);
}

async fn idle_watches_are_notified(case: &mut Case) {
    case.set("b", "1").await;
    let mut stream = case.watch();
    stream.create(watch("silent", "")).await;
    stream
        .create(pb::WatchCreateRequest { progress_notify: true, watch_id: 4, ..watch("a", "") })
        .await;
    case.items("created, then notified", &mut stream, 3).await;
    case.set("b", "2").await;
    let again = if notified(case, &mut stream).await { "notified" } else { "silent" };
    case.note("and again", again);
}

/// Whether a notification of the current revision comes; one of the one before may come first.
async fn notified(case: &mut Case, stream: &mut case::WatchStream) -> bool {
    let current = case.revision(2);
    for _ in 0..3 {
        let answer = stream.answers.next().await;
        match answer.map(tonic::Response::into_inner) {
            Ok(Some(answer)) if answer.header.is_some_and(|header| header.revision == current) => {
                return answer.watch_id == 4 && answer.events.is_empty();
            }
            Ok(Some(_)) => {}
            _ => return false,
        }
    }
    false
}
