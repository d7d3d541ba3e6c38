use std::ops::Bound;

use super::*;
use crate::engine::command::{Compare, CompareResult, CompareTarget, Range};
use crate::engine::watch::{Stream, WatchCreate, WatchReply};
use crate::error::Invalid;
use crate::storage::{Fault, Memory};
use crate::types::{ClusterId, KeyRange, MemberId};

/// A member on a store in memory, its clock at zero.
struct Member {
    memory: Memory,
    options: Options,
    writer: Writer,
}

fn now() -> Now {
    Now { wall_millis: 0, monotonic_millis: 0 }
}

fn put(key: &str, value: &str) -> Command {
    Command::Put(Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Put::default()
    })
}

fn put_on(key: &str, lease: i64) -> Command {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Command::Put(Put { key, lease: LeaseId(lease), ..Put::default() })
}

fn delete(key: &str) -> Command {
    let range = KeyRange::single(Bytes::copy_from_slice(key.as_bytes()));
    Command::DeleteRange(DeleteRange { range, prev_kv: false })
}

fn grant(id: i64) -> Command {
    Command::LeaseGrant { id: LeaseId(id), ttl_seconds: 60 }
}

fn revoke(id: i64) -> Command {
    Command::LeaseRevoke { id: LeaseId(id) }
}

fn open(memory: &Memory, options: &Options) -> Writer {
    Writer::open(Store::Memory(memory.clone()), options, now()).unwrap()
}

impl Member {
    fn new() -> Self {
        Self::on(&Memory::new(), None)
    }

    fn on(memory: &Memory, quota_bytes: Option<u64>) -> Self {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        let options = Options { quota_bytes, ..Options::new(identity) };
        let writer = open(memory, &options);
        Self { memory: memory.clone(), options, writer }
    }

    fn stream(&self) -> Stream {
        let (hub, mvcc) = (Arc::clone(self.writer.hub()), Arc::clone(self.writer.mvcc()));
        Stream::new(hub, mvcc, Box::new(|| ()))
    }

    /// Executes without a commit.
    fn execute(&mut self, command: Command) -> Result<Revision, Error> {
        match self.writer.execute(command, now()) {
            Ok(reply) => Ok(reply.revision),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => panic!("{error}"),
        }
    }

    /// Executes and commits each of some commands, none of which may be refused.
    fn all<const N: usize>(&mut self, commands: [Command; N]) {
        for command in commands {
            self.execute(command.clone()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
            self.writer.commit().unwrap();
        }
    }

    fn compact(&mut self, revision: i64) {
        self.all([Command::Compact { revision }]);
    }

    fn reclaim(&mut self) {
        while self.writer.can_reclaim() {
            self.writer.reclaim();
            self.writer.commit().unwrap();
        }
        self.writer.commit().unwrap();
    }

    /// Frees what compaction gave up, and rewrites the log.
    fn sweep(&mut self) {
        self.reclaim();
        if let Some(sweep) = self.writer.begin_sweep(true).unwrap() {
            sweep.run(self.writer.mvcc()).unwrap();
            self.writer.end_sweep(&sweep);
            self.writer.commit().unwrap();
        }
    }

    /// Starts again on what was committed.
    fn restart(&mut self) {
        self.writer = open(&self.memory, &self.options);
    }

    /// Loses power, and starts again.
    fn crash(&mut self) {
        self.memory = self.memory.crash();
        self.restart();
    }

    fn range(&self, range: &Range) -> Result<Vec<KeyValue>, Error> {
        match self.writer.mvcc().reader().range(range) {
            Ok(reply) => Ok(reply.kvs.iter().map(KeyValue::from).collect()),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => panic!("{error}"),
        }
    }

    fn rows(&self) -> Vec<(Place, Row)> {
        let store = Store::Memory(self.memory.clone());
        let rows = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        let rows = rows.map(|row| {
            let (key, value) = row.unwrap();
            let place = Place::decode(&key, 0).unwrap();
            (place, Row::decode(place, value).unwrap())
        });
        rows.collect()
    }
}

fn all_at(revision: i64) -> Range {
    Range { revision, ..Range::new(KeyRange::all()) }
}

/// The number of keys at an old revision is found by undoing births and deaths; keys that came and went since must not
/// make the sum negative on the way.
#[test]
fn keys_that_came_and_went_do_not_spoil_a_count() {
    let mut member = Member::new();
    member.all([put("a", ""), delete("a"), put("b", ""), delete("b")]);
    let counts = (1..=5).map(|revision| {
        let range = Range { count_only: true, ..all_at(revision) };
        let Ok(reply) = member.writer.mvcc().reader().range(&range) else { panic!("{revision}") };
        reply.count
    });
    assert_eq!(counts.collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
}

/// A request for "now" can never be too old, however long its reader is held.
#[test]
fn a_reader_does_not_notice_compactions() {
    let mut member = Member::new();
    member.all([put("a", "1"), put("a", "2")]);
    let mvcc = Arc::clone(member.writer.mvcc());
    let reader = mvcc.reader();
    member.all([put("a", "3"), delete("a"), put("b", "")]);
    member.compact(6);
    member.reclaim();
    assert!(!member.writer.is_reclaimed(Revision(6)));
    for (revision, value) in [(0, "2"), (2, "1"), (3, "2")] {
        let Ok(reply) = reader.range(&all_at(revision)) else { panic!("at {revision}") };
        assert_eq!(reply.kvs[0].fields().value, value.as_bytes(), "at {revision}");
    }
    drop(reader);
    member.reclaim();
    assert!(member.writer.is_reclaimed(Revision(6)));
    assert_eq!(member.range(&all_at(5)), Err(Error::Compacted { compacted: Revision(6) }));
}

/// Commands of one batch see those before them, whether or not they are durable yet.
#[test]
fn a_compaction_counts_within_its_batch() {
    let mut member = Member::new();
    member.all([put("a", "1"), put("a", "2"), put("a", "3")]);
    let read = |revision| {
        let txn = Txn { success: vec![TxnOp::Range(all_at(revision))], ..Txn::default() };
        Command::Txn(txn)
    };
    let compacted = |revision| Error::Compacted { compacted: Revision(revision) };
    assert_eq!(member.execute(Command::Compact { revision: 3 }), Ok(Revision(4)));
    assert_eq!(member.execute(read(2)), Err(compacted(3)));
    assert_eq!(member.execute(read(3)), Ok(Revision(4)));
    assert_eq!(member.execute(Command::Compact { revision: 3 }), Err(compacted(3)));
    assert_eq!(member.execute(Command::Compact { revision: 5 }), Err(Error::FutureRevision));
    assert_eq!(member.execute(Command::Compact { revision: 4 }), Ok(Revision(4)));
    // Readers see it only with the commit.
    assert!(member.range(&all_at(2)).is_ok());
    member.writer.commit().unwrap();
    assert_eq!(member.range(&all_at(3)), Err(compacted(4)));
}

#[test]
fn entries_never_go_back() {
    let mut member = Member::new();
    let mut before = 0;
    let commands = [
        grant(1),
        revoke(1),
        put("a", ""),
        grant(1),
        put_on("b", 1),
        delete("none"),
        revoke(1),
        grant(2),
        revoke(2),
    ];
    for command in commands {
        member.all([command.clone()]);
        let (entries, run) = (member.writer.entries(), member.writer.starts());
        assert!(entries >= before, "{before} entries, then {entries} after {command:?}");
        // What a restart reads off the log is the same, with a sweep between or without.
        member.restart();
        assert_eq!(member.writer.entries(), entries, "after {command:?} and a restart");
        member.sweep();
        member.restart();
        assert_eq!(member.writer.entries(), entries, "after {command:?} and a sweep");
        assert_eq!(member.writer.starts(), run + 2);
        before = entries;
    }
    assert_eq!(before, 8, "one for each command that did something");
}

#[test]
fn a_revoked_lease_stays_revoked() {
    let mut member = Member::new();
    member.all([grant(1), grant(2), put_on("a", 1), put_on("b", 1), put_on("c", 2)]);
    member.all([revoke(1)]);
    assert_eq!(member.writer.mvcc().revision(), Revision(5), "all keys of it in one revision");
    member.crash();
    assert_eq!(member.writer.lessor().ids(), [LeaseId(2)]);
    assert_eq!(member.writer.mvcc().keys(), 1);
    // The id can be had again, and has nothing to do with its former keys.
    member.all([grant(1)]);
    member.crash();
    assert_eq!(member.writer.lessor().status(LeaseId(1), true, now()).unwrap().keys, [""; 0]);
    member.all([revoke(2)]);
    assert_eq!(member.writer.mvcc().revision(), Revision(6));
    member.all([revoke(1)]);
    assert_eq!(member.writer.mvcc().revision(), Revision(6), "it has no keys");
    member.crash();
    assert_eq!(member.writer.lessor().ids(), []);
}

#[test]
fn what_is_not_committed_is_lost_and_never_seen() {
    let mut member = Member::new();
    member.all([put("a", "1")]);
    assert_eq!(member.execute(put("a", "2")), Ok(Revision(3)));
    assert_eq!(member.execute(grant(7)), Ok(Revision(3)));
    assert_eq!(member.range(&all_at(0)).unwrap()[0].value, "1");
    assert_eq!(member.range(&all_at(3)), Err(Error::FutureRevision));
    member.crash();
    assert_eq!(member.writer.mvcc().revision(), Revision(2));
    assert_eq!(member.range(&all_at(0)).unwrap()[0].value, "1");
    assert_eq!(member.writer.lessor().ids(), []);
}

#[test]
fn a_failed_commit_shows_nothing() {
    let memory = Memory::new();
    let mut member = Member::on(&memory, None);
    member.all([put("a", "1")]);
    let mut stream = member.stream();
    stream.create(watch_all(1));
    while stream.poll().unwrap().is_some() {}
    memory.inject(Fault::FailBefore(0));
    assert_eq!(member.execute(put("a", "2")), Ok(Revision(3)));
    assert!(member.writer.commit().is_err());
    assert_eq!(member.writer.mvcc().revision(), Revision(2));
    assert_eq!(stream.poll().unwrap(), None);
}

/// As etcd's alarm, but it ends by itself.
#[test]
fn nothing_more_is_taken_over_quota_until_there_is_room_again() {
    let mut member = Member::on(&Memory::new(), Some(1_000_000));
    let large = "x".repeat(8_000);
    while member.execute(put("a", &large)).is_ok() {}
    member.writer.commit().unwrap();
    assert!(member.writer.is_out_of_space());
    // As in etcd what is small does not fit either now; what only takes away does.
    assert_eq!(member.execute(put("b", "")), Err(Error::NoSpace));
    assert_eq!(member.execute(grant(1)), Err(Error::NoSpace));
    let txn = |op| Command::Txn(Txn { failure: vec![op], ..Txn::default() });
    let Command::Put(small) = put("b", "") else { unreachable!() };
    assert_eq!(member.execute(txn(TxnOp::Put(small))), Err(Error::NoSpace));
    assert!(member.execute(txn(TxnOp::Range(all_at(0)))).is_ok());
    member.all([delete("a")]);
    assert_eq!(member.execute(put("b", "")), Err(Error::NoSpace), "history still takes the space");
    let revision = member.writer.mvcc().revision().shown();
    member.compact(revision);
    member.reclaim();
    assert!(!member.writer.is_out_of_space());
    member.all([put("b", ""), grant(1)]);
}

#[test]
fn a_full_disk_is_seen_and_forgotten() {
    let memory = Memory::new();
    let mut member = Member::on(&memory, None);
    memory.inject(Fault::FreeBytes(1));
    member.writer.check_space().unwrap();
    assert!(member.writer.is_out_of_space());
    assert_eq!(member.execute(put("a", "")), Err(Error::NoSpace));
    member.all([delete("a")]);
    memory.inject(Fault::FreeBytes(1 << 40));
    member.writer.check_space().unwrap();
    member.all([put("a", "")]);
}

/// Seen as an alarm that was gone before anybody could list it: a flushed log had made room for a moment.
#[test]
fn a_full_disk_is_not_forgotten_for_a_little_room() {
    const RESERVE: u64 = 64 << 20;
    let memory = Memory::new();
    let mut member = Member::on(&memory, None);
    let mut is_full_with = |room: u64| {
        memory.inject(Fault::FreeBytes(RESERVE + room));
        member.writer.check_space().unwrap();
        member.writer.is_out_of_space()
    };
    assert!(!is_full_with(1), "a little is enough as long as it lasts");
    assert!(is_full_with(0));
    assert!(is_full_with((8 << 20) - 1));
    assert!(!is_full_with(8 << 20));
    // What did not fit has to.
    assert!(!is_full_with(9 << 20));
    let large = "x".repeat(9 << 20);
    assert_eq!(member.execute(put("a", &large)), Err(Error::NoSpace));
    memory.inject(Fault::FreeBytes(RESERVE + (9 << 20)));
    member.writer.check_space().unwrap();
    assert!(member.writer.is_out_of_space());
    memory.inject(Fault::FreeBytes(RESERVE + (10 << 20)));
    member.writer.check_space().unwrap();
    member.all([put("a", &large)]);
}

/// An old version must not come back to life, whichever rows are gone: see the module `compact`.
#[test]
fn swept_rows_do_not_resurrect_what_was_deleted() {
    let mut member = Member::new();
    member.all([put("a", "1"), put("b", "1"), delete("a"), put("b", "2"), put("c", "")]);
    member.compact(6);
    member.sweep();
    let kinds = |member: &Member| {
        let rows = member.rows().into_iter();
        rows.map(|(place, row)| (place.revision.0, matches!(row.op, Op::Put(_))))
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&member), [(4, false), (5, true), (6, true)], "the tombstone stays");
    member.crash();
    assert_eq!(member.writer.mvcc().keys(), 2);
    member.all([put("c", "2")]);
    member.compact(7);
    member.sweep();
    assert_eq!(kinds(&member), [(5, true), (7, true)], "it hides nothing any more");
    member.crash();
    assert_eq!(member.writer.mvcc().keys(), 2);
    assert_eq!(member.range(&all_at(6)), Err(Error::Compacted { compacted: Revision(7) }));
}

#[test]
fn a_refused_transaction_has_changed_nothing() {
    let mut member = Member::new();
    member.all([grant(1), put_on("a", 1)]);
    let Command::Put(fine) = put("b", "") else { unreachable!() };
    let refused = [
        (TxnOp::Put(Put { lease: LeaseId(9), ..fine.clone() }), Error::LeaseNotFound),
        (TxnOp::Put(Put { ignore_value: true, ..fine.clone() }), Invalid::KeyNotFound.into()),
        (TxnOp::Range(all_at(9)), Error::FutureRevision),
        (TxnOp::Range(all_at(-1)), Error::Compacted { compacted: Revision(0) }),
    ];
    for (op, error) in refused {
        let nested = Txn { failure: vec![op], compares: vec![never()], ..Txn::default() };
        let delete = DeleteRange { range: KeyRange::single("a".into()), prev_kv: false };
        let success =
            vec![TxnOp::DeleteRange(delete), TxnOp::Put(fine.clone()), TxnOp::Txn(nested)];
        let txn = Txn { success, ..Txn::default() };
        assert_eq!(member.execute(Command::Txn(txn)), Err(error));
        assert!(!member.writer.has_open_batch());
        assert_eq!(member.writer.lessor().status(LeaseId(1), true, now()).unwrap().keys, ["a"]);
    }
    assert_eq!(member.writer.mvcc().revision(), Revision(2));
}

/// A compare that holds for no key.
fn never() -> Compare {
    Compare {
        range: KeyRange::single("none".into()),
        result: CompareResult::NotEqual,
        target: CompareTarget::Value("".into()),
    }
}

/// Changes of one batch are told together, and only after it is durable.
#[test]
fn watchers_hear_of_a_batch_after_its_commit() {
    let mut member = Member::new();
    let mut stream = member.stream();
    stream.create(watch_all(0));
    assert!(matches!(stream.poll(), Ok(Some(WatchReply::Created { .. }))));
    member.execute(put("a", "")).unwrap();
    member.execute(put("b", "")).unwrap();
    assert_eq!(stream.poll().unwrap(), None);
    member.writer.commit().unwrap();
    let Ok(Some(WatchReply::Events { events, revision, .. })) = stream.poll() else { panic!() };
    assert_eq!((events.len(), revision), (2, Revision(3)));
}

fn watch_all(start_revision: i64) -> WatchCreate {
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

/// A place was reserved for somebody: a store that has nothing is that member's, any other stays whose it is.
#[test]
fn only_a_blank_store_becomes_another_members() {
    let mut member = Member::new();
    assert!(member.writer.is_blank());
    member.options.reserved = Some(MemberId(7));
    member.restart();
    assert_eq!(member.writer.identity().member, MemberId(7));
    assert_eq!(member.writer.origin().member, MemberId(7));
    member.options.reserved = None;
    member.restart();
    assert_eq!(member.writer.identity().member, MemberId(7), "it is on disk");
    member.all([put("a", "1")]);
    member.options.reserved = Some(MemberId(8));
    member.restart();
    assert!(!member.writer.is_blank());
    assert_eq!(member.writer.identity().member, MemberId(7));
}
