use bytes::Bytes;

use super::super::hub::MAILBOX_CHANGES_MAX;
use super::*;
use crate::engine::command::{Command, Put};
use crate::engine::{Options, Writer};
use crate::storage::schema::Identity;
use crate::storage::{Memory, Store};
use crate::time::Now;
use crate::types::{ClusterId, KeyRange, MemberId};

/// A writer, and one client's stream.
struct Scene {
    writer: Writer,
    stream: Stream,
}

const NOW: Now = Now { wall_millis: 0, monotonic_millis: 0 };

fn all(start_revision: i64) -> WatchCreate {
    WatchCreate {
        range: KeyRange::all(),
        start_revision,
        id: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        progress_notify: false,
        fragment: false,
    }
}

fn single(key: &'static str, start_revision: i64) -> WatchCreate {
    WatchCreate { range: KeyRange::single(key.into()), ..all(start_revision) }
}

fn created(id: i64, revision: u64) -> WatchReply {
    WatchReply::Created { id, revision: Revision(revision) }
}

fn refused(reason: WatchRefusal) -> WatchReply {
    WatchReply::Refused { reason, revision: Revision(1) }
}

fn progress(id: Option<i64>, revision: u64) -> WatchReply {
    WatchReply::Progress { id, revision: Revision(revision) }
}

impl Scene {
    fn new() -> Self {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        let store = Store::Memory(Memory::new());
        let writer = Writer::open(store, &Options::new(identity), NOW).unwrap();
        let stream = Self::stream(&writer);
        Self { writer, stream }
    }

    fn stream(writer: &Writer) -> Stream {
        Stream::new(Arc::clone(writer.hub()), Arc::clone(writer.mvcc()), Box::new(|| ()))
    }

    fn put(&mut self, key: &'static str) {
        self.puts(key, 1);
    }

    /// So many puts in one commit.
    fn puts(&mut self, key: &'static str, count: usize) {
        for _ in 0..count {
            let put = Put { key: key.into(), ..Put::default() };
            self.writer.execute(Command::Put(put), NOW).unwrap();
        }
        self.writer.commit().unwrap();
    }

    fn compact(&mut self, revision: i64) {
        self.writer.execute(Command::Compact { revision }, NOW).unwrap();
        self.writer.commit().unwrap();
        while self.writer.reclaim() {}
    }

    /// All replies there are.
    fn replies(&mut self) -> Vec<WatchReply> {
        std::iter::from_fn(|| self.stream.poll().unwrap()).collect()
    }

    /// All replies, of events only the watcher and the revisions.
    fn told(&mut self) -> (Vec<WatchReply>, Vec<(i64, u64)>) {
        let (mut others, mut told) = (Vec::new(), Vec::new());
        for reply in self.replies() {
            match reply {
                WatchReply::Events { id, events, .. } => {
                    told.extend(
                        events.iter().map(|event| (id, event.pair.fields().mod_revision.0)),
                    );
                }
                other => others.push(other),
            }
        }
        (others, told)
    }
}

#[test]
fn ids_count_from_zero_and_skip_those_in_use() {
    let mut scene = Scene::new();
    for id in [0, 2, 0, -7, 0] {
        scene.stream.create(WatchCreate { id, ..all(0) });
    }
    let ids = [0, 2, 1, -7, 3].map(|id| created(id, 1));
    assert_eq!(scene.replies(), ids);
    scene.stream.cancel(1);
    scene.stream.create(all(0));
    scene.stream.create(WatchCreate { id: 1, ..all(0) });
    let canceled = WatchReply::Canceled { id: 1, revision: Revision(1) };
    assert_eq!(scene.replies(), [canceled, created(4, 1), created(1, 1)]);
}

#[test]
fn a_taken_id_is_refused_and_its_watcher_goes_on() {
    let mut scene = Scene::new();
    scene.stream.create(WatchCreate { id: 5, ..single("a", 0) });
    scene.stream.create(WatchCreate { id: 5, ..single("b", 0) });
    assert_eq!(scene.replies(), [created(5, 1), refused(WatchRefusal::DuplicateId)]);
    scene.put("b");
    scene.put("a");
    assert_eq!(scene.told(), (vec![], vec![(5, 3)]));
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let mut scene = Scene::new();
    scene.stream.create(all(-1));
    let empty = KeyRange::from_request("b".into(), "a".into());
    scene.stream.create(WatchCreate { range: empty, ..all(0) });
    let refused = [refused(WatchRefusal::NegativeStart), refused(WatchRefusal::EmptyRange)];
    assert_eq!(scene.replies(), refused);
    // No id was spent on them.
    scene.stream.create(all(0));
    assert_eq!(scene.replies(), [created(0, 1)]);
}

#[test]
fn a_start_in_the_future_is_waited_for() {
    let mut scene = Scene::new();
    scene.stream.create(WatchCreate { progress_notify: true, ..all(4) });
    assert_eq!(scene.replies(), [created(0, 1)]);
    for revision in 2..=5 {
        scene.put("a");
        scene.stream.request_progress();
        scene.stream.tick(revision * 1000, 100);
        let (others, told) = scene.told();
        if revision < 4 {
            assert_eq!((others, told), (vec![], vec![]), "at {revision}");
        } else {
            assert_eq!(told, [(0, revision)]);
            assert_eq!(others, [progress(None, revision)]);
        }
    }
}

#[test]
fn progress_is_told_when_everything_before_it_was() {
    let mut scene = Scene::new();
    scene.stream.request_progress();
    assert_eq!(scene.replies(), [], "there is no watcher");
    scene.puts("a", 2000);
    scene.stream.create(single("a", 1));
    scene.stream.create(single("none", 0));
    scene.put("a");
    scene.stream.request_progress();
    let mut replies = scene.replies();
    assert_eq!(replies.pop(), Some(progress(None, 2002)));
    let events = replies.iter().filter(|reply| matches!(reply, WatchReply::Events { .. }));
    assert_eq!(events.count(), 3, "a thousand revisions at a time: {}", replies.len());
    // Asked once, told once.
    assert_eq!(scene.replies(), []);
}

#[test]
fn silent_watchers_that_want_it_are_told_the_revision() {
    let mut scene = Scene::new();
    scene.stream.create(WatchCreate { progress_notify: true, ..single("a", 0) });
    scene.stream.create(WatchCreate { progress_notify: true, ..single("b", 0) });
    scene.stream.create(single("b", 0));
    scene.replies();
    scene.stream.tick(50, 100);
    scene.put("a");
    scene.told();
    scene.stream.tick(100, 100);
    assert_eq!(scene.replies(), [progress(Some(1), 2)], "the other one heard something at 50");
    scene.stream.tick(149, 100);
    assert_eq!(scene.replies(), []);
    scene.put("none");
    scene.stream.tick(150, 100);
    assert_eq!(scene.replies(), [progress(Some(0), 3)]);
    // As long as there is mail to take, the revision would be told too early.
    scene.put("a");
    scene.stream.tick(900, 100);
    assert_eq!(scene.told(), (vec![], vec![(0, 4)]));
}

#[test]
fn compaction_ends_watchers_that_are_behind_it() {
    let mut scene = Scene::new();
    scene.puts("a", 4);
    scene.stream.create(all(2));
    scene.stream.create(all(4));
    scene.stream.create(all(0));
    scene.compact(4);
    let (others, told) = scene.told();
    let compacted = WatchReply::Compacted { id: 0, compacted: Revision(4) };
    assert_eq!(others, [created(0, 5), created(1, 5), created(2, 5), compacted]);
    assert_eq!(told, [(1, 4), (1, 5)]);
    // A watcher that is not behind does not mind, mail or not.
    scene.put("a");
    scene.put("a");
    scene.compact(7);
    assert_eq!(scene.told(), (vec![], vec![(1, 6), (2, 6), (1, 7), (2, 7)]));
}

#[test]
fn the_pair_before_is_told_as_long_as_it_is_kept() {
    let mut scene = Scene::new();
    scene.stream.create(WatchCreate { prev_kv: true, ..all(0) });
    let before = |scene: &mut Scene| {
        let replies = scene.replies().into_iter();
        let events = replies.flat_map(|reply| match reply {
            WatchReply::Events { events, .. } => events,
            _ => Vec::new(),
        });
        let before = |event: Event| event.prev.map(|pair| pair.fields().mod_revision.0);
        events.map(before).collect::<Vec<_>>()
    };
    scene.puts("a", 3);
    assert_eq!(before(&mut scene), [None, Some(2), Some(3)]);
    scene.puts("a", 3);
    scene.compact(6);
    assert_eq!(before(&mut scene), [None, None, Some(6)]);
}

/// A client that does not read costs a bounded mailbox; when it reads again it gets the rest from the log.
#[test]
fn nothing_is_lost_or_told_twice_when_a_mailbox_overflows() {
    let mut scene = Scene::new();
    scene.stream.create(all(0));
    scene.stream.create(single("a", 0));
    scene.stream.create(single("b", 0));
    scene.stream.create(all(20_000));
    scene.replies();
    const BATCH: usize = 7;
    let mut last = 1;
    while last < 3 * MAILBOX_CHANGES_MAX as u64 {
        scene.puts("a", BATCH);
        last += BATCH as u64;
    }
    // The client comes back for some of it, and things happen before it takes the rest.
    let mut told = Vec::new();
    for _ in 0..10 {
        told.extend(scene.stream.poll().unwrap());
    }
    scene.put("b");
    scene.stream.create(WatchCreate { id: 9, ..single("a", 0) });
    scene.stream.request_progress();
    scene.puts("a", BATCH);
    told.extend(scene.replies());
    scene.put("a");
    told.extend(scene.replies());
    let last = last + 2 + BATCH as u64;
    let revisions = |of: i64| {
        let mut revisions = Vec::new();
        for reply in &told {
            if let WatchReply::Events { id, events, revision, .. } = reply
                && *id == of
            {
                revisions.extend(events.iter().map(|event| event.pair.fields().mod_revision.0));
                assert!(revisions.last() <= Some(&revision.0));
            }
        }
        revisions
    };
    let b_at = last - 1 - BATCH as u64;
    assert_eq!(revisions(0), (2..=last).collect::<Vec<_>>());
    assert_eq!(revisions(1), (2..=last).filter(|r| *r != b_at).collect::<Vec<_>>());
    assert_eq!(revisions(2), [b_at]);
    assert_eq!(revisions(3), [0; 0]);
    assert_eq!(revisions(9), (b_at + 1..=last).collect::<Vec<_>>());
    let others = told.iter().filter(|reply| !matches!(reply, WatchReply::Events { .. }));
    assert_eq!(
        others.collect::<Vec<_>>(),
        [&created(9, b_at)],
        "no progress before the start of 3"
    );
}

#[test]
fn a_mailbox_that_overflowed_over_a_compaction_ends_its_watchers() {
    let mut scene = Scene::new();
    scene.stream.create(all(0));
    for _ in 0..MAILBOX_CHANGES_MAX + 10 {
        scene.put("a");
    }
    let compacted = Revision(MAILBOX_CHANGES_MAX as u64 + 5);
    scene.compact(compacted.shown());
    let (others, told) = scene.told();
    assert_eq!(others, [created(0, 1), WatchReply::Compacted { id: 0, compacted }]);
    assert_eq!(told.len(), MAILBOX_CHANGES_MAX);
}

#[test]
fn large_values_overflow_a_mailbox_too() {
    let mut scene = Scene::new();
    scene.stream.create(all(0));
    scene.replies();
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..9 {
        let put = Put { key: "a".into(), value: value.clone(), ..Put::default() };
        scene.writer.execute(Command::Put(put), NOW).unwrap();
        scene.writer.commit().unwrap();
    }
    assert_eq!(scene.told().1, (2..=10).map(|revision| (0, revision)).collect::<Vec<_>>());
}

#[test]
fn a_dropped_stream_leaves_nothing_behind() {
    let mut scene = Scene::new();
    scene.puts("a", 3);
    scene.stream.create(all(0));
    scene.stream.create(single("a", 1));
    scene.replies();
    assert_eq!(scene.writer.hub().counts(), (1, 2));
    let other = Scene::stream(&scene.writer);
    drop(std::mem::replace(&mut scene.stream, other));
    assert_eq!(scene.writer.hub().counts(), (1, 0));
    scene.put("a");
    assert_eq!(scene.replies(), []);
}
