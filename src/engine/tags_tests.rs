use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;

use super::*;
use crate::engine::command::{CompareResult, DeleteRange, Put};
use crate::engine::mvcc::Mvcc;
use crate::engine::{Failure, Options, Writer};
use crate::error::Error;
use crate::replication::entry::EntryOp;
use crate::replication::message::Head;
use crate::storage::schema::Identity;
use crate::storage::{Memory, Store};
use crate::time::Now;
use crate::types::{ClusterId, KeyRange, MemberId, Origin};

const NOW: Now = Now { wall_millis: 1_000, monotonic_millis: 0 };
const KEYS: usize = 1500;
const OVERWRITTEN: &str = "overwritten";

fn at(tag: u16, counter: u64) -> i64 {
    Revision(counter).with_tag(tag).shown()
}

fn open(memory: &Memory, tag: Option<u16>, revision_entropy: u64) -> Writer {
    let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
    let options =
        Options { tag, revision_entropy, value_cache_bytes: 10_000, ..Options::new(identity) };
    Writer::open(Store::Memory(memory.clone()), &options, NOW).unwrap()
}

fn put(writer: &mut Writer, key: impl Into<Bytes>) {
    let put = Put { key: key.into(), value: "value".into(), ..Put::default() };
    writer.execute(Command::Put(put), NOW).unwrap();
    writer.commit().unwrap();
}

/// Leaves a row behind that a sweep is worth.
fn overwrite(writer: &mut Writer) {
    let put = Put { key: OVERWRITTEN.into(), value: vec![b'v'; 4096].into(), ..Put::default() };
    writer.execute(Command::Put(put), NOW).unwrap();
    writer.commit().unwrap();
}

fn everything() -> Range {
    Range::new(KeyRange::all())
}

#[test]
fn tags_are_above_counters_and_below_what_a_double_holds() {
    assert_eq!(at(TAG_MAX, Revision::COUNTER_END - 1), (1 << 53) - 1);
    assert_eq!(NUMBERS_END, 1 << 53);
    for (number, tag) in [
        (0, 0),
        (-1, 0),
        (i64::MIN, 0),
        (7, 0),
        ((1 << 41) - 1, 0),
        (1 << 41, 1),
        (at(5, 3), 5),
        ((1 << 53) - 1, TAG_MAX),
        (1 << 53, TAG_MAX + 1),
        (i64::MAX, u16::MAX),
    ] {
        assert_eq!(tag_of(number), tag, "{number}");
    }
}

#[test]
fn what_nobody_can_have_from_here_is_unknown() {
    let current = Revision(10).with_tag(5);
    for known in [0, -1, i64::MIN, at(5, 0), at(5, 1), at(5, 10), at(5, 11)] {
        assert!(!is_unknown(known, current), "{known}");
    }
    for unknown in [1, 10, at(4, 10), at(5, 12), at(6, 0), 1 << 53, i64::MAX] {
        assert!(is_unknown(unknown, current), "{unknown}");
        assert!(!is_unknown(unknown, Revision(10)), "a member without a tag does as etcd does");
    }
}

#[test]
fn a_free_tag_is_found_if_there_is_one() {
    for entropy in [0, 1, u64::from(TAG_MAX) - 1, u64::from(TAG_MAX), u64::MAX] {
        let tag = free_tag(entropy, |_| false).unwrap();
        assert!((1..=TAG_MAX).contains(&tag));
        assert_ne!(free_tag(entropy, |taken| taken == tag), Some(tag));
        assert_eq!(free_tag(entropy, |taken| taken != 9), Some(9));
    }
    assert_eq!(free_tag(3, |_| true), None);
}

fn compare(number: i64) -> Compare {
    let target = CompareTarget::ModRevision(number);
    Compare { range: KeyRange::single("k".into()), result: CompareResult::Equal, target }
}

#[test]
fn a_request_goes_to_the_one_member_that_it_names() {
    let nested = |numbers: &[i64]| {
        let compares = numbers.iter().map(|number| compare(*number)).collect();
        TxnOp::Txn(Txn { compares, ..Txn::default() })
    };
    let range = |revision| TxnOp::Range(Range { revision, ..everything() });
    let txn = |compares: &[i64], success: Vec<TxnOp>| Txn {
        compares: compares.iter().map(|number| compare(*number)).collect(),
        success,
        failure: Vec::new(),
    };
    for (txn, elsewhere, is_divided) in [
        (txn(&[], vec![]), None, false),
        (txn(&[0, -1], vec![]), None, false),
        (txn(&[at(5, 3)], vec![range(at(5, 2))]), None, false),
        (txn(&[at(6, 3)], vec![]), Some(6), false),
        (txn(&[at(6, 3), at(6, 9)], vec![range(at(6, 1)), nested(&[at(6, 2)])]), Some(6), false),
        (txn(&[], vec![nested(&[at(6, 2)])]), Some(6), false),
        (txn(&[], vec![range(at(6, 2))]), Some(6), false),
        (txn(&[at(6, 3), at(5, 3)], vec![]), None, true),
        (txn(&[at(6, 3)], vec![nested(&[at(5, 2)])]), None, true),
        (txn(&[at(6, 3), at(7, 3)], vec![]), None, true),
        (txn(&[at(6, 3)], vec![range(at(7, 3))]), None, true),
    ] {
        let names = Command::Txn(txn.clone()).names(5);
        assert_eq!((names.elsewhere(), names.is_divided()), (elsewhere, is_divided), "{txn:?}");
        assert_eq!(txn.names(0), Names::default(), "a member without a tag knows no others");
    }
    let filter = Filter { max_create_revision: at(6, 1), ..Filter::default() };
    assert_eq!(Range { filter, ..everything() }.names(5).elsewhere(), Some(6));
    let filter = Filter { max_mod_revision: i64::MAX, ..Filter::default() };
    assert_eq!(Range { filter, ..everything() }.names(5), Names::default());
    assert_eq!(Command::Compact { revision: at(6, 1) }.names(5).elsewhere(), Some(6));
    assert_eq!(Command::Compact { revision: 7 }.names(5).foreign().len(), 1);
}

#[test]
fn new_stores_start_at_a_multiple_of_a_power_of_two() {
    let starts = (1_u64 << 14) - 1;
    for (entropy, start) in [(0, 1), (2, 3), (starts - 1, starts), (starts, 1), (u64::MAX, 256)] {
        let start = start << 26;
        let memory = Memory::new();
        let mut writer = open(&memory, Some(7), entropy);
        assert_eq!((writer.tag(), writer.counter()), (7, start));
        assert!(start < 1 << 40 && start % (1 << 26) == 0);
        assert_eq!(writer.mvcc().compacted(), writer.mvcc().revision());
        drop(writer);
        // Neither another wish nor another draw changes what is on record.
        writer = open(&memory, Some(8), !entropy);
        assert_eq!((writer.tag(), writer.counter()), (7, start));
        put(&mut writer, "a");
        writer = open(&memory.crash(), None, 0);
        assert_eq!((writer.tag(), writer.counter()), (7, start + 1));
        assert_eq!(writer.mvcc().compacted().counter(), start);
    }
}

/// What readers on other threads see while the tag changes again and again: all of it under one tag, or that it is gone.
fn read_all(mvcc: &Arc<Mvcc>, is_done: &AtomicBool) -> (u64, u64) {
    let (mut whole, mut gone) = (0, 0);
    while !is_done.load(Ordering::Relaxed) {
        let reader = mvcc.reader();
        let revision = reader.revision();
        match reader.range(&everything()) {
            Ok(reply) => {
                assert_eq!((reply.kvs.len(), reply.count), (KEYS + 1, KEYS as u64 + 1));
                for pair in &reply.kvs {
                    let fields = pair.fields();
                    assert_eq!(fields.mod_revision.tag(), revision.tag());
                    assert_eq!(fields.create_revision.tag(), revision.tag());
                }
                whole += 1;
            }
            Err(Failure::Refused(Error::Compacted { .. })) => gone += 1,
            Err(other) => panic!("{other:?}"),
        }
        let key = Range::new(KeyRange::single("key7".into()));
        if let Some(reply) = mvcc.get_now(&key).unwrap() {
            let [pair] = reply.body.kvs.as_slice() else { panic!("{reply:?}") };
            assert_eq!(pair.fields().mod_revision.tag(), reply.revision.tag());
        }
    }
    (whole, gone)
}

/// What another member gets of the state is all of it, whatever the tag is in the meantime.
fn catch_up_all(mvcc: &Mvcc, origin: Origin, is_done: &AtomicBool) {
    while !is_done.load(Ordering::Relaxed) {
        let (mut keys, mut cursor) = (0, None);
        loop {
            let part = mvcc.catch_up(&[], (cursor, None), 10_000).unwrap();
            let entries = part.entries.unpack();
            let ops = entries.iter().flat_map(|(_, entry)| &entry.ops);
            let is_kept =
                |op: &EntryOp| matches!(op, EntryOp::Put { key, .. } if *key != OVERWRITTEN);
            keys += ops.filter(|op| is_kept(op)).count();
            cursor = part.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys, KEYS);
        let after = |seq| [Head { origin, seq }];
        let segments = mvcc.segments(&after(0), &after(KEYS as u64), usize::MAX).unwrap();
        assert_eq!(segments[0].through, KEYS as u64);
    }
}

#[test]
fn readers_sweeps_and_peers_stand_a_change_of_the_tag() {
    let mut writer = open(&Memory::new(), None, 0);
    writer.set_peered();
    for key in 0..KEYS {
        let put = Put { key: format!("key{key}").into(), ..Put::default() };
        writer.execute(Command::Put(put), NOW).unwrap();
    }
    writer.commit().unwrap();
    overwrite(&mut writer);
    let (mvcc, origin) = (Arc::clone(writer.mvcc()), writer.origin());
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_all(&mvcc, &is_done))).collect();
        scope.spawn(|| catch_up_all(&mvcc, origin, &is_done));
        let mut sweeps = 0;
        for round in 0..30_u16 {
            overwrite(&mut writer);
            let time = writer.time();
            writer.set_settled(time);
            // Readers from before are soon done.
            while writer.can_reclaim() || writer.reclaim_is_waiting() {
                writer.reclaim();
                thread::yield_now();
            }
            let sweep = writer.begin_sweep(true).unwrap();
            let run = sweep.clone().map(|sweep| {
                let mvcc = Arc::clone(&mvcc);
                scope.spawn(move || sweep.run(&mvcc))
            });
            writer.retag(1 + round % 5).unwrap();
            if let (Some(sweep), Some(run)) = (sweep, run) {
                run.join().unwrap().unwrap();
                writer.end_sweep(&sweep);
                writer.commit().unwrap();
                sweeps += 1;
            }
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(sweeps > 0, "nothing was swept");
        let read = readers.into_iter().map(|reader| reader.join().unwrap());
        let whole: u64 = read.map(|(whole, _)| whole).sum();
        assert!(whole > 0, "nobody could read");
    });
}

/// A reader from before is refused, at whatever it looks.
#[test]
fn a_reader_from_before_finds_nothing_by_wrong_numbers() {
    for (before, after) in [(9, 3), (3, 9)] {
        let mut writer = open(&Memory::new(), Some(before), 0);
        for key in ["a", "b", "c"] {
            put(&mut writer, key);
        }
        let mvcc = Arc::clone(writer.mvcc());
        let reader = mvcc.reader();
        writer.retag(after).unwrap();
        let now = mvcc.revision();
        assert_eq!((now.tag(), mvcc.compacted()), (after, now));
        let single = Range::new(KeyRange::single("a".into()));
        let counted = Range { count_only: true, ..everything() };
        for range in [&everything(), &single, &counted] {
            let refused = Error::Compacted { compacted: now };
            match reader.range(range) {
                Err(Failure::Refused(error)) => assert_eq!(error, refused),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(reader.hash(0), Err(Failure::Refused(Error::Compacted { .. }))));
        assert_eq!(mvcc.reader().range(&everything()).unwrap().count, 3);
    }
}

/// The state that members compare has no revisions, so it is the same under every tag.
#[test]
fn the_hash_does_not_know_the_tag() {
    let mut writer = open(&Memory::new(), None, 0);
    put(&mut writer, "a");
    put(&mut writer, "b");
    let before = writer.mvcc().reader().hash(0).unwrap();
    writer.retag(12).unwrap();
    let after = writer.mvcc().reader().hash(0).unwrap();
    assert_eq!((before.hash, after.revision.tag()), (after.hash, 12));
    let all = DeleteRange { range: KeyRange::all(), prev_kv: true };
    writer.execute(Command::DeleteRange(all), NOW).unwrap();
    writer.commit().unwrap();
    assert_eq!(writer.mvcc().keys(), 0);
}
