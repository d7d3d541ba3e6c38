//! What every kind of store must do, over all kinds.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use bytes::Bytes;

use super::schema::{Op, OriginIndex, Place, Row, RowStamp};
use super::*;
use crate::time::Timestamp;
use crate::types::{KeyValue, LeaseId, MediaType, Revision};

/// A kind of store, with a way to open it again as it is after the process was killed.
struct Bench {
    store: Option<Store>,
    directory: Option<tempfile::TempDir>,
}

impl Bench {
    fn disk() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut bench = Self { store: None, directory: Some(directory) };
        bench.reopen();
        bench
    }

    fn memory() -> Self {
        Self { store: Some(Store::Memory(Memory::new())), directory: None }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("is open")
    }

    fn reopen(&mut self) {
        let store = self.store.take();
        self.store = Some(match (&self.directory, store) {
            (Some(directory), store) => {
                drop(store);
                Store::Disk(Disk::open(&DiskOptions::new(directory.path())).expect("opens again"))
            }
            (None, Some(Store::Memory(memory))) => {
                Store::Memory(memory.crash_keeping(memory.unsynced()))
            }
            (None, _) => unreachable!("a store without a directory is one in memory"),
        });
    }
}

fn on_both(test: impl Fn(Bench)) {
    test(Bench::memory());
    test(Bench::disk());
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn batch(changes: &[(Space, &str, Option<&str>)]) -> Batch {
    let mut batch = Batch::default();
    for (space, key, value) in changes {
        match value {
            Some(value) => batch.put(*space, bytes(key), bytes(value)),
            None => batch.delete(*space, bytes(key)),
        }
    }
    batch
}

fn commit(store: &Store, changes: &[(Space, &str, Option<&str>)]) {
    store.commit(batch(changes), Durability::Fsync).expect("commits");
}

fn row(store: &Store, space: Space, key: &str) -> Option<String> {
    let row = store.row(space, key.as_bytes()).expect("reads");
    row.map(|row| String::from_utf8(row.to_vec()).expect("is text"))
}

fn rows(store: &Store, space: Space, from: Bound<&str>, to: Bound<&str>) -> String {
    let rows = store.rows(space, from.map(str::as_bytes), to.map(str::as_bytes));
    let rows = rows.map(|row| row.expect("reads")).map(|(key, value)| {
        format!("{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value))
    });
    rows.collect::<Vec<_>>().join(" ")
}

use Space::{Log, Meta};

#[test]
fn a_batch_spans_both_spaces_and_survives() {
    on_both(|mut bench| {
        commit(
            bench.store(),
            &[(Log, "a", Some("1")), (Meta, "a", Some("2")), (Log, "b", Some("3"))],
        );
        bench.reopen();
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "a=1 b=3");
        assert_eq!(rows(bench.store(), Meta, Unbounded, Unbounded), "a=2");
        assert_eq!(row(bench.store(), Log, "b").as_deref(), Some("3"));
        assert_eq!(row(bench.store(), Meta, "b"), None);
    });
}

#[test]
fn the_last_change_of_a_row_wins() {
    on_both(|mut bench| {
        commit(
            bench.store(),
            &[
                (Meta, "put", Some("1")),
                (Meta, "put", Some("2")),
                (Meta, "gone", Some("1")),
                (Meta, "gone", None),
                (Meta, "back", None),
                (Meta, "back", Some("1")),
            ],
        );
        for _ in 0..2 {
            assert_eq!(rows(bench.store(), Meta, Unbounded, Unbounded), "back=1 put=2");
            assert_eq!(row(bench.store(), Meta, "gone"), None);
            bench.reopen();
        }
    });
}

#[test]
fn deletes_survive_and_may_miss() {
    on_both(|mut bench| {
        commit(bench.store(), &[(Log, "a", Some("1")), (Log, "b", Some("2"))]);
        commit(bench.store(), &[(Log, "a", None), (Log, "never", None)]);
        bench.reopen();
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "b=2");
    });
}

#[test]
fn bounds_are_kept_in_key_order() {
    on_both(|bench| {
        commit(
            bench.store(),
            &[
                (Log, "c", Some("3")),
                (Log, "a", Some("1")),
                (Log, "b", Some("2")),
                (Log, "bb", Some("")),
            ],
        );
        let rows = |from, to| rows(bench.store(), Log, from, to);
        assert_eq!(rows(Unbounded, Unbounded), "a=1 b=2 bb= c=3");
        assert_eq!(rows(Included("b"), Unbounded), "b=2 bb= c=3");
        assert_eq!(rows(Excluded("b"), Unbounded), "bb= c=3");
        assert_eq!(rows(Unbounded, Included("b")), "a=1 b=2");
        assert_eq!(rows(Unbounded, Excluded("b")), "a=1");
        assert_eq!(rows(Included("b"), Included("b")), "b=2");
        assert_eq!(rows(Included("b"), Excluded("b")), "");
        assert_eq!(rows(Excluded("b"), Excluded("b")), "");
        assert_eq!(rows(Excluded("b"), Included("b")), "");
        assert_eq!(rows(Included("c"), Included("a")), "");
        assert_eq!(rows(Included("d"), Unbounded), "");
    });
}

#[test]
fn an_iterator_sees_no_later_commit() {
    on_both(|bench| {
        let key = |i: usize| format!("{i:04}");
        let mut first = Batch::default();
        for i in 0..300 {
            first.put(Log, bytes(&key(i)), bytes("old"));
        }
        bench.store().commit(first, Durability::Fsync).expect("commits");
        let mut seen = bench.store().rows(Log, Unbounded, Unbounded);
        assert_eq!(seen.next().expect("a row").expect("reads").0, key(0));
        for i in (0..400).step_by(7) {
            let change = if i % 2 == 0 { None } else { Some("new") };
            commit(
                bench.store(),
                &[(Log, &key(i), change), (Log, &format!("{}x", key(i)), Some("new"))],
            );
        }
        commit(bench.store(), &[(Log, &key(7), None), (Log, &key(14), Some("again"))]);
        let seen: Vec<_> = seen.map(|row| row.expect("reads")).collect();
        let expected: Vec<_> = (1..300).map(|i| (bytes(&key(i)), bytes("old"))).collect();
        assert_eq!(seen, expected);
        assert_eq!(row(bench.store(), Log, &key(21)).as_deref(), Some("new"));
    });
}

#[test]
fn buffered_commits_survive_the_end_of_the_process() {
    on_both(|mut bench| {
        bench
            .store()
            .commit(batch(&[(Log, "a", Some("1"))]), Durability::Buffered)
            .expect("commits");
        assert_eq!(row(bench.store(), Log, "a").as_deref(), Some("1"));
        bench.reopen();
        assert_eq!(row(bench.store(), Log, "a").as_deref(), Some("1"));
    });
}

#[test]
fn an_empty_batch_changes_nothing() {
    on_both(|bench| {
        bench.store().commit(Batch::default(), Durability::Fsync).expect("commits");
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "");
        assert_eq!(bench.store().failed(), None);
    });
}

fn remove_odd() -> IsDead {
    Arc::new(|key, _| Ok(key.last().is_some_and(|digit| digit % 2 == 1)))
}

#[test]
fn a_sweep_removes_what_is_dead_and_no_more() {
    on_both(|mut bench| {
        bench.store().sweep(remove_odd()).expect("an empty log is swept");
        commit(
            bench.store(),
            &[(Log, "1", Some("a")), (Log, "2", Some("b")), (Meta, "3", Some("c"))],
        );
        bench.store().sweep(remove_odd()).expect("sweeps");
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "2=b");
        commit(
            bench.store(),
            &[(Log, "3", Some("d")), (Log, "4", Some("e")), (Log, "5", Some("f"))],
        );
        bench.store().sweep(remove_odd()).expect("sweeps tables of two levels");
        for _ in 0..2 {
            assert_eq!(
                rows(bench.store(), Log, Unbounded, Unbounded),
                "2=b 4=e 5=f",
                "the last row stays"
            );
            assert_eq!(row(bench.store(), Log, "3"), None);
            assert_eq!(rows(bench.store(), Meta, Unbounded, Unbounded), "3=c");
            bench.reopen();
        }
    });
}

#[test]
fn an_iterator_is_not_swept_away() {
    on_both(|bench| {
        commit(
            bench.store(),
            &[(Log, "1", Some("a")), (Log, "2", Some("b")), (Log, "3", Some("c"))],
        );
        let mut seen = bench.store().rows(Log, Unbounded, Unbounded);
        bench.store().sweep(remove_odd()).expect("sweeps");
        assert_eq!(seen.next().expect("a row").expect("reads").0, "1");
        assert_eq!(seen.count(), 2);
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "2=b 3=c");
    });
}

#[test]
fn a_failed_sweep_removes_nothing_more() {
    on_both(|mut bench| {
        commit(
            bench.store(),
            &[(Log, "1", Some("a")), (Log, "2", Some("b")), (Log, "3", Some("c"))],
        );
        let refuse = |_: &[u8], _: &[u8]| Err(StoreError::Corrupt("no row".to_owned()));
        let error = bench.store().sweep(Arc::new(refuse)).expect_err("the error comes out");
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        assert_eq!(bench.store().failed(), None);
        bench.reopen();
        assert_eq!(rows(bench.store(), Log, Unbounded, Unbounded), "1=a 2=b 3=c");
    });
}

/// A row of an entry, such as a member writes by the million when it takes over the data of another one.
fn entry_row(revision: u64) -> (Place, Row) {
    let place = Place::first_of(Revision(revision));
    let kv = KeyValue {
        key: bytes(&format!("key {revision}")),
        create_revision: place.revision,
        mod_revision: place.revision,
        version: 1,
        value: bytes(&"value ".repeat(50)),
        lease: LeaseId::NONE,
        media_type: MediaType::NONE,
    };
    let stamp = RowStamp { time: Timestamp(revision), origin: OriginIndex(1) };
    let op = Op::Put(kv);
    (place, Row { stamp, seq: revision, op_number: 0, last: true, hidden: false, op })
}

fn entry_rows(revisions: std::ops::Range<u64>) -> Vec<(Place, Row)> {
    revisions.map(entry_row).collect()
}

fn encoded_rows(revisions: std::ops::Range<u64>) -> EncodedRows {
    let mut rows = EncodedRows::default();
    entry_rows(revisions).iter().for_each(|(place, row)| rows.push(*place, row));
    rows
}

/// The revisions of the rows of the log, all of which are what was written.
fn revisions(store: &Store) -> Vec<u64> {
    let rows = store.rows(Log, Unbounded, Unbounded).map(|row| {
        let (key, value) = row.expect("reads");
        let place = Place::decode(&key, 0).expect("a place");
        assert_eq!(Row::decode(place, value).expect("a row"), entry_row(place.revision.0).1);
        place.revision.0
    });
    rows.collect()
}

#[test]
fn rows_past_the_journal_are_all_there_or_none() {
    on_both(|mut bench| {
        let put = |store: &Store, revisions: std::ops::Range<u64>| {
            let mut batch = batch(&[(Meta, "a", Some("1"))]);
            for (place, row) in entry_rows(revisions) {
                batch.put(Log, place.encode(), row.encode(place));
            }
            store.commit(batch, Durability::Fsync).expect("commits");
        };
        put(bench.store(), 1..4);
        let mut ingest = bench.store().ingest().expect("begins");
        ingest.add(encoded_rows(4..3000)).expect("takes them");
        assert_eq!(revisions(bench.store()), (1..4).collect::<Vec<_>>(), "nobody sees them yet");
        drop(ingest);
        bench.reopen();
        assert_eq!(revisions(bench.store()), (1..4).collect::<Vec<_>>(), "abandoned");
        put(bench.store(), 4..6);
        for round in 0..3 {
            let first = 6 + 2010 * round;
            let mut ingest = bench.store().ingest().expect("begins");
            ingest.add(encoded_rows(first..first + 1000)).expect("takes them");
            commit(bench.store(), &[(Meta, "b", Some("2"))]);
            ingest.add(encoded_rows(first + 1000..first + 2000)).expect("takes them");
            let seen = bench.store().rows(Log, Unbounded, Unbounded);
            ingest.finish().expect("writes them");
            assert_eq!(seen.count() as u64, first - 1, "a reader from before");
            assert_eq!(revisions(bench.store()), (1..first + 2000).collect::<Vec<_>>());
            if round > 0 {
                bench.reopen();
            }
            put(bench.store(), first + 2000..first + 2010);
            assert_eq!(revisions(bench.store()), (1..first + 2010).collect::<Vec<_>>());
            if round != 1 {
                bench.reopen();
            }
            assert_eq!(revisions(bench.store()), (1..first + 2010).collect::<Vec<_>>());
            assert_eq!(row(bench.store(), Meta, "b").as_deref(), Some("2"));
        }
    });
}

#[test]
fn no_rows_past_the_journal_are_no_change() {
    on_both(|mut bench| {
        bench.store().ingest().expect("begins").finish().expect("ends");
        bench.reopen();
        assert!(revisions(bench.store()).is_empty());
    });
}
