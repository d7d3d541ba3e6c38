use super::*;

fn put(memory: &Memory, key: &'static str, durability: Durability) -> Result<()> {
    let mut batch = Batch::default();
    batch.put(Space::Log, Bytes::from_static(key.as_bytes()), Bytes::from_static(b"value"));
    memory.commit(batch, durability)
}

fn keys(memory: &Memory) -> String {
    let rows = memory.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
    rows.map(|row| String::from_utf8_lossy(&row.expect("reads").0).into_owned()).collect()
}

use Durability::{Buffered, Fsync};

#[test]
fn power_takes_what_was_not_synced_from_the_end() {
    let memory = Memory::new();
    put(&memory, "a", Buffered).expect("commits");
    put(&memory, "b", Fsync).expect("commits");
    put(&memory, "c", Buffered).expect("commits");
    let mut batch = Batch::default();
    batch.put(Space::Log, Bytes::from_static(b"d"), Bytes::new());
    batch.delete(Space::Log, Bytes::from_static(b"a"));
    memory.commit(batch, Buffered).expect("commits");
    assert_eq!(memory.unsynced(), 2);
    let after: Vec<_> = (0..=2).map(|kept| keys(&memory.crash_keeping(kept))).collect();
    assert_eq!(after, ["ab", "abc", "bcd"]);
    assert_eq!(keys(&memory.crash()), "ab");
    assert_eq!(memory.crash().commits(), 2);
    assert_eq!(memory.crash().disk_bytes(), 12);
    assert_eq!(memory.crash().unsynced(), 0);
    assert_eq!(keys(&memory), "bcd", "a crash leaves the store to the test");
}

#[test]
fn a_commit_fails_before_it_has_done_anything() {
    let memory = Memory::new();
    memory.inject(Fault::FailBefore(1));
    put(&memory, "a", Fsync).expect("the one before the fault");
    put(&memory, "b", Fsync).expect_err("the fault");
    assert!(memory.failed().is_some());
    put(&memory, "c", Fsync).expect_err("unusable");
    memory.row(Space::Log, b"a").expect_err("unusable");
    assert_eq!(memory.rows(Space::Log, Bound::Unbounded, Bound::Unbounded).count(), 1, "an error");
    assert_eq!(keys(&memory.crash_keeping(memory.unsynced())), "a");
    assert_eq!(memory.crash().failed(), None);
}

/// A failed sync says nothing about what reached the disk.
#[test]
fn a_commit_fails_though_it_may_be_there() {
    let memory = Memory::new();
    put(&memory, "a", Fsync).expect("commits");
    memory.inject(Fault::FailAfter(0));
    put(&memory, "b", Fsync).expect_err("the fault");
    assert_eq!(memory.unsynced(), 1);
    assert_eq!(keys(&memory.crash_keeping(0)), "a");
    assert_eq!(keys(&memory.crash_keeping(1)), "ab");
}

#[test]
fn free_space_is_what_the_test_says() {
    let memory = Memory::new();
    assert_eq!(memory.space(), None);
    memory.inject(Fault::FreeBytes(3));
    assert_eq!(memory.space().map(|space| space.free), Some(3));
}

/// The undo list must not grow with the life of the process.
#[test]
fn nothing_is_remembered_without_need() {
    let (memory, volatile) = (Memory::new(), Memory::volatile());
    for _ in 0..10 {
        put(&memory, "a", Fsync).expect("commits");
        put(&volatile, "a", Buffered).expect("commits");
    }
    for store in [&memory, &volatile] {
        assert!(store.state.read().undo.is_empty());
        let rows = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        put(store, "b", Fsync).expect("commits");
        put(store, "c", Fsync).expect("commits");
        assert_eq!(store.state.read().undo.len(), 2);
        assert_eq!(rows.count(), 1);
        assert!(store.state.read().undo.is_empty(), "the reader is done");
    }
}
