use super::*;
use crate::engine::command::{Compare, CompareResult, CompareTarget, Range};
use crate::engine::watch::{Stream, WatchCreate, WatchReply};
use crate::error::Invalid;
use crate::storage::Memory;
use crate::types::{ClusterId, KeyRange};

/// A member on a store in memory, its clock at zero.
struct Member {
    store: Store,
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

impl Member {
    fn new() -> Self {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        Self::with(Options::new(identity))
    }

    fn with(options: Options) -> Self {
        let store = Store::Memory(Memory::new());
        let writer = Writer::open(store.clone(), &options, now()).unwrap();
        Self { store, options, writer }
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

    /// Starts again on what was committed.
    fn restart(&mut self) {
        self.writer = Writer::open(self.store.clone(), &self.options, now()).unwrap();
    }

    fn range(&self, range: &Range) -> Result<Vec<KeyValue>, Error> {
        match self.writer.mvcc().reader().range(range) {
            Ok(reply) => Ok(reply.kvs),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => panic!("{error}"),
        }
    }

    fn rows(&self) -> Vec<(Place, Row)> {
        let rows = self.store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        let rows = rows.map(|row| {
            let (key, value) = row.unwrap();
            let place = Place::decode(&key).unwrap();
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
        assert_eq!(reply.kvs[0].value, value, "at {revision}");
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
