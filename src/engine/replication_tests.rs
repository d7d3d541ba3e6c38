//! Several members that give each other their entries, in any order, with crashes, compactions and sweeps in between:
//! they come to the same, and to what the rules say.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::command::{Command, DeleteRange, Put, Range, Txn, TxnOp};
use super::mvcc::{Claims, Onward, StateHash};
use super::staged::GroupApplied;
use super::{Applied, Options, Outcome, Writer};
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::{CatchUp, Head};
use crate::storage::schema::auth::{AuthKey, AuthValue};
use crate::storage::schema::{Identity, Table};
use crate::storage::{Memory, Space, Store};
use crate::time::{Now, Stamp, Timestamp};
use crate::types::{
    Alarm, AlarmKind, ClusterId, KeyRange, KeyValue, LeaseId, MediaType, MemberId, Origin, Revision,
};

const MEMBERS: usize = 3;
const KEYS: u64 = 6;
const STEPS: u64 = 120;
const SEEDS: u64 = 8;
/// Many more than it takes to give a member everything.
const STEPS_MAX: u64 = 5000;

/// A small deterministic source of choices.
pub(super) struct Choices(pub(super) u64);

impl Choices {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    fn key(&mut self) -> Bytes {
        format!("key{}", self.below(KEYS)).into()
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId(1 + self.below(3).cast_signed())
    }

    fn put(&mut self, step: u64) -> Put {
        let lease = if self.below(4) == 0 { self.lease() } else { LeaseId::NONE };
        let value = format!("value of step {step}").into();
        Put { key: self.key(), value, lease, ..Put::default() }
    }

    fn delete(&mut self) -> DeleteRange {
        let (start, end) = (self.key(), self.key());
        let range = if self.below(2) == 0 {
            KeyRange::single(start)
        } else {
            KeyRange::from_request(start, end)
        };
        DeleteRange { range, prev_kv: false }
    }

    fn command(&mut self, step: u64) -> Command {
        match self.below(20) {
            0..=8 => Command::Put(self.put(step)),
            9..=12 => Command::DeleteRange(self.delete()),
            13..=14 => {
                // Of different keys: no client may touch a key twice.
                let put =
                    |key: &str| TxnOp::Put(Put { key: key.to_owned().into(), ..Put::default() });
                let delete = TxnOp::DeleteRange(DeleteRange {
                    range: KeyRange::single("key2".into()),
                    prev_kv: false,
                });
                Command::Txn(Txn {
                    success: vec![put("key0"), delete, put("key1")],
                    ..Txn::default()
                })
            }
            15..=16 => {
                Command::LeaseGrant { id: self.lease(), ttl_seconds: 100 + step.cast_signed() }
            }
            17 => Command::LeaseRevoke { id: self.lease() },
            _ => {
                let alarm = Alarm { kind: AlarmKind::NoSpace, member: MemberId(9) };
                Command::Alarm { alarm, on: self.below(5) == 0 }
            }
        }
    }
}

pub(super) fn at(millis: u64) -> Now {
    Now { wall_millis: millis, monotonic_millis: millis }
}

/// What all members must have in common.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Common {
    pairs: Vec<(Bytes, Bytes, LeaseId)>,
    hash: u32,
    leases: Vec<(LeaseId, u64, Vec<Bytes>)>,
    orphans: Vec<(LeaseId, Vec<Bytes>)>,
    alarms: Vec<Alarm>,
    members: Vec<(Bytes, Bytes)>,
}

pub(super) struct Member {
    pub(super) number: u64,
    pub(super) store: Memory,
    pub(super) writer: Writer,
}

impl Member {
    pub(super) fn new(number: u64) -> Self {
        Self::open(number, Memory::new())
    }

    pub(super) fn open(number: u64, store: Memory) -> Self {
        let identity = Identity { member: MemberId(number), cluster: ClusterId(1) };
        let options = Options {
            value_cache_bytes: 1,
            gc_age_millis: 0,
            quota_bytes: None,
            ..Options::new(identity)
        };
        let store_of = Store::Memory(store.clone());
        let mut writer = Writer::open(store_of, &options, at(0)).expect("the store is sound");
        writer.set_replicating(true);
        Self { number, store, writer }
    }

    /// Loses what was not committed, and its memory.
    pub(super) fn crash(&mut self) {
        *self = Self::open(self.number, self.store.crash());
    }

    pub(super) fn apply(&mut self, segment: &Segment) -> Applied {
        self.writer.apply(segment, at(0)).expect("memory takes it")
    }

    pub(super) fn commit(&mut self) {
        self.writer.commit().expect("memory takes it");
    }

    pub(super) fn hash(&self) -> StateHash {
        let mvcc = self.writer.mvcc();
        let Ok(hash) = mvcc.reader().hash(0) else { panic!("the current revision can be hashed") };
        hash
    }

    pub(super) fn pairs(&self) -> Vec<KeyValue> {
        let mvcc = self.writer.mvcc();
        let Ok(reply) = mvcc.reader().range(&Range::new(KeyRange::all())) else { panic!("now") };
        reply.kvs.iter().map(KeyValue::from).collect()
    }

    pub(super) fn common(&self) -> Common {
        let lessor = self.writer.lessor();
        let lease = |id| {
            let status = lessor.status(id, true, at(0)).expect("it is listed");
            (id, status.granted_seconds.cast_unsigned(), status.keys)
        };
        Common {
            pairs: self.pairs().into_iter().map(|kv| (kv.key, kv.value, kv.lease)).collect(),
            hash: self.hash().hash,
            leases: lessor.ids().into_iter().map(lease).collect(),
            orphans: lessor.orphans(),
            alarms: self.writer.alarms().list(),
            members: self.writer.records(Table::Auth),
        }
    }

    /// Gives up all history.
    pub(super) fn compact(&mut self) {
        let revision = self.writer.mvcc().revision().shown();
        let _ = self.writer.execute(Command::Compact { revision }, at(0));
        self.commit();
        while self.writer.reclaim() {}
    }

    pub(super) fn sweep(&mut self) {
        if let Some(sweep) = self.writer.begin_sweep(true).expect("memory takes it") {
            sweep.run(self.writer.mvcc()).expect("memory takes it");
            self.writer.end_sweep(&sweep);
            self.commit();
        }
    }
}

pub(super) fn segment(origin: Origin, after: u64, entries: &[Arc<Entry>]) -> Segment {
    let entries: Vec<_> = entries.iter().filter(|entry| entry.seq > after).cloned().collect();
    let through = entries.last().map_or(after, |entry| entry.seq);
    Segment { origin, after, through, entries }
}

/// A record like any other: that of a user.
fn user(name: &str, hash: Option<String>) -> super::RecordWrite {
    let value = hash.map(|hash| AuthValue::User(Some(hash.into())).encode());
    super::RecordWrite { table: Table::Auth, key: AuthKey::User(name.to_owned()).encode(), value }
}

/// All entries of a story, by origin.
pub(super) type Log = BTreeMap<Origin, Vec<Arc<Entry>>>;

fn keep(log: &mut Log, member: &mut Member) {
    let own = member.writer.origin();
    for (origin, entry) in member.writer.take_committed() {
        if origin == own {
            log.entry(origin).or_default().push(entry);
        }
    }
}

/// Gives a member some more of an origin, from where it is.
fn give(log: &Log, member: &mut Member, origin: Origin, entries_max: usize) {
    let known = member.writer.head(origin);
    let all = &log[&origin];
    let first = usize::try_from(known).unwrap();
    let some = &all[first..all.len().min(first.saturating_add(entries_max))];
    if let Some(last) = some.last() {
        let segment = Segment { origin, after: known, through: last.seq, entries: some.to_vec() };
        assert_eq!(member.apply(&segment).outcome, Outcome::Taken);
        member.commit();
    }
}

/// Members that write, and hear of each other now and then.
pub(super) fn story(seed: u64) -> (Vec<Member>, Log) {
    let mut choices = Choices(seed);
    let mut members: Vec<_> = (1..=MEMBERS as u64).map(Member::new).collect();
    for member in &mut members {
        // As if by the first contact.
        member.writer.set_peered();
        member.commit();
    }
    let mut log = Log::new();
    for step in 1..=STEPS {
        let i = choices.index(MEMBERS);
        for _ in 0..=choices.below(2) {
            let command = choices.command(step);
            let _ = members[i].writer.execute(command, at(step * 10 + choices.below(30)));
        }
        if choices.below(10) == 0 {
            let name = String::from_utf8_lossy(&choices.key()).into_owned();
            let value = (choices.below(3) > 0).then(|| format!("{step}"));
            let write = user(&name, value);
            let Ok(_) = members[i].writer.write_records(vec![write], at(step * 10)) else {
                panic!()
            };
        }
        members[i].commit();
        keep(&mut log, &mut members[i]);
        if choices.below(20) == 0 {
            members[i].crash();
        }
        let to = choices.index(MEMBERS);
        let origins: Vec<_> = log.keys().copied().collect();
        if let Some(origin) = origins.get(choices.index(origins.len().max(1)))
            && origin.member != MemberId(members[to].number)
        {
            give(&log, &mut members[to], *origin, choices.index(4));
            keep(&mut log, &mut members[to]);
        }
    }
    (members, log)
}

/// What the rules say, straight from all ops.
fn expected(log: &Log) -> Vec<(Bytes, Bytes, LeaseId)> {
    let mut puts: BTreeMap<Bytes, (Stamp, Bytes, LeaseId)> = BTreeMap::new();
    let mut deletes: BTreeMap<Bytes, Stamp> = BTreeMap::new();
    for (origin, entries) in log {
        for entry in entries {
            let stamp = Stamp { time: entry.time, origin: *origin };
            for op in &entry.ops {
                match op {
                    EntryOp::Put { key, value, lease, .. } => {
                        let new = (stamp, value.clone(), *lease);
                        let put = puts.entry(key.clone()).or_insert_with(|| new.clone());
                        if put.0 < stamp {
                            *put = new;
                        }
                    }
                    EntryOp::Delete { key, seen } => {
                        let delete = deletes.entry(key.clone()).or_insert(*seen);
                        *delete = (*delete).max(*seen);
                    }
                    _ => {}
                }
            }
        }
    }
    puts.retain(|key, (stamp, ..)| deletes.get(key).is_none_or(|seen| seen < stamp));
    puts.into_iter().map(|(key, (_, value, lease))| (key, value, lease)).collect()
}

pub(super) fn give_all(log: &Log, member: &mut Member) {
    for origin in log.keys() {
        if origin.member != MemberId(member.number) {
            give(log, member, *origin, usize::MAX);
        }
    }
}

/// What every origin has written, as heads.
pub(super) fn heads_of(log: &Log) -> Vec<Head> {
    let heads =
        log.iter().map(|(origin, entries)| Head { origin: *origin, seq: entries.len() as u64 });
    heads.collect()
}

#[test]
fn all_members_come_to_the_same() {
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        for member in &mut members {
            give_all(&log, member);
        }
        let first = members[0].common();
        assert_eq!(first.pairs, expected(&log), "seed {seed}");
        for member in &mut members {
            assert_eq!(member.common(), first, "seed {seed}, member {}", member.number);
            let heads: Vec<_> = heads_of(&log);
            assert_eq!(member.writer.heads(), heads, "seed {seed}");
            member.crash();
            assert_eq!(member.common(), first, "seed {seed}, member {} again", member.number);
            assert_eq!(member.writer.heads(), heads, "seed {seed}");
        }
    }
}

/// The same entries in any order, each origin in its own, by new members that crash, compact, sweep and hear things
/// twice.
#[test]
fn the_order_of_origins_does_not_matter() {
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        give_all(&log, &mut members[0]);
        let common = members[0].common();
        let mut choices = Choices(seed ^ 0x5eed);
        for number in 0..3 {
            let mut member = Member::new(100 + number);
            let heads = heads_of(&log);
            let mut step = 0;
            while heads.iter().any(|head| member.writer.head(head.origin) < head.seq) {
                step += 1;
                assert!(step < STEPS_MAX, "seed {seed}: this does not end");
                let Head { origin, .. } = heads[choices.index(heads.len())];
                give(&log, &mut member, origin, choices.index(5));
                match choices.below(12) {
                    0 => member.crash(),
                    1 => member.compact(),
                    2 => member.sweep(),
                    3 if member.writer.head(origin) > 0 => {
                        let before = (member.common(), member.writer.mvcc().revision());
                        let again = segment(origin, 0, &log[&origin][..1]);
                        assert_eq!(member.apply(&again).outcome, Outcome::Taken);
                        member.commit();
                        assert_eq!((member.common(), member.writer.mvcc().revision()), before);
                    }
                    _ => {}
                }
            }
            assert_eq!(member.common(), common, "seed {seed}, number {number}");
            member.crash();
            assert_eq!(member.common(), common, "seed {seed}, number {number}");
        }
    }
}

/// Power may fail before and after each commit: a segment is there as a whole, with its head, or not at all.
#[test]
fn a_power_cut_leaves_whole_segments() {
    for seed in 0..SEEDS / 2 {
        let (_, log) = story(seed);
        let mut choices = Choices(seed ^ 0xdead);
        let mut member = Member::new(7);
        let heads = heads_of(&log);
        let mut revision = member.writer.mvcc().revision();
        let mut step = 0;
        while heads.iter().any(|head| member.writer.head(head.origin) < head.seq) {
            step += 1;
            assert!(step < STEPS_MAX, "seed {seed}: this does not end");
            let Head { origin, .. } = heads[choices.index(heads.len())];
            let (common, known) = (member.common(), member.writer.heads());
            let after = member.writer.head(origin);
            let last = usize::try_from(after).unwrap() + choices.index(6);
            let all = &log[&origin];
            member.apply(&segment(origin, after, &all[..last.min(all.len())]));
            let own = Put { key: "key3".into(), value: "own".into(), ..Put::default() };
            if choices.below(4) == 0 {
                let _ = member.writer.execute(Command::Put(own), at(0));
            }
            let cut = Member::open(7, member.store.crash());
            assert_eq!((cut.common(), cut.writer.heads()), (common, known), "seed {seed}");
            member.commit();
            let cut = Member::open(7, member.store.crash());
            assert_eq!(cut.common(), member.common(), "seed {seed}");
            assert_eq!(cut.writer.heads(), member.writer.heads(), "seed {seed}");
            assert_eq!(cut.writer.mvcc().revision(), member.writer.mvcc().revision());
            assert!(member.writer.mvcc().revision() >= revision);
            revision = member.writer.mvcc().revision();
        }
    }
}

/// Asks a member for what another lacks, a little at a time, until there is nothing more.
pub(super) fn pull_all(from: &Member, to: &mut Member, choices: &mut Choices) {
    let heads = from.writer.heads();
    for pulls in 0.. {
        assert!(pulls < STEPS_MAX, "this does not end");
        let origins = heads.iter().map(|head| head.origin);
        let wants = origins.filter(|origin| *origin != to.writer.origin());
        let wants = wants.map(|origin| Head { origin, seq: to.writer.head(origin) });
        let wants: Vec<_> = wants.filter(|_| choices.below(4) > 0).collect();
        let bytes_max = choices.index(2000);
        let segments = from.writer.mvcc().segments(&wants, &heads, bytes_max).unwrap();
        let lacks = |want: &Head| {
            heads.iter().any(|head| head.origin == want.origin && head.seq > want.seq)
        };
        assert_eq!(segments.is_empty(), !wants.iter().any(lacks), "there is progress");
        for segment in segments {
            assert!(segment.is_sound(), "{segment:?}");
            assert_eq!(to.apply(&segment).outcome, Outcome::Taken, "{segment:?}");
        }
        to.commit();
        let lacks = |head: &Head| {
            head.origin != to.writer.origin() && to.writer.head(head.origin) < head.seq
        };
        if !heads.iter().any(lacks) {
            return;
        }
    }
}

/// Reads the whole state of a member, in small parts, with something else done between two of them. Half of the time they are
/// set aside until all of them are there.
fn catch_up(
    from: &mut Member,
    to: &mut Member,
    choices: &mut Choices,
    mut between: impl FnMut(&mut Member, &mut Member, &mut Choices),
) {
    let mut heads = None;
    let mut cursor = None;
    let mut progress = 0;
    let wants = to.writer.heads();
    let mut staged = (choices.below(2) == 0).then(|| to.writer.begin_staging());
    loop {
        heads.get_or_insert_with(|| from.writer.heads());
        let bytes_max = choices.index(1500);
        let part = from.writer.mvcc().catch_up(&wants, (cursor, None), bytes_max).unwrap();
        assert!(part.progress >= progress, "{} then {}", progress, part.progress);
        progress = part.progress;
        let outcome = match &mut staged {
            Some(staged) => to.writer.stage(staged, &part.entries).unwrap(),
            None => to.writer.apply_catch_up(&part.entries, at(0)).unwrap().outcome,
        };
        assert_eq!(outcome, Outcome::Taken);
        to.commit();
        if staged.is_none() && choices.below(3) == 0 {
            // Idempotent, down to the rows.
            let revision = to.writer.mvcc().revision();
            to.writer.apply_catch_up(&part.entries, at(0)).unwrap();
            to.commit();
            assert_eq!(to.writer.mvcc().revision(), revision);
        }
        between(from, to, choices);
        cursor = part.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(progress, 1000);
    if let Some(staged) = staged {
        let mut staged = staged.in_order().unwrap();
        while to.writer.apply_staged(&mut staged, at(0)).unwrap() != GroupApplied::None {
            to.commit();
        }
    }
    to.writer.finish_catch_up(&heads.unwrap());
    to.commit();
}

/// While its clients are busy a member gives its data away by parts for which they do not wait long. No part is so small that it
/// seems an excuse: whoever asks counts half of a small one for each.
#[test]
fn parts_of_a_catch_up_are_small_while_others_use_the_link() {
    const VALUE: usize = 1000;
    let mut from = Member::new(1);
    from.writer.become_peered(Timestamp(1));
    for i in 0..4000 {
        let (key, value) = (format!("key{i}").into(), vec![b'x'; VALUE].into());
        from.writer.execute(Command::Put(Put { key, value, ..Put::default() }), at(0)).unwrap();
    }
    from.commit();
    let (complete, collected) = (Timestamp::default(), Timestamp::default());
    let claims = Claims { heads: from.writer.heads(), complete, collected };
    let request = CatchUp { heads: Vec::new(), cursor: None, end: None, bytes_max: 8 << 20 };
    let serve = |onward: &[Onward]| {
        let mut parts = Vec::new();
        let mut onward = onward.iter().copied();
        let served = from.writer.mvcc().serve_catch_up(&request, &claims, |part| {
            parts.push(part.entries.bytes());
            onward.next().unwrap_or(Onward::Stop)
        });
        served.unwrap();
        parts
    };
    let (small, large) = (256 << 10, 1 << 20);
    let is = |bytes: usize, part: usize| (part..part + 2 * VALUE).contains(&bytes);
    let parts = serve(&[Onward::Small, Onward::Large, Onward::Small, Onward::Stop]);
    let [first, second, third, fourth] = parts[..] else { panic!("{parts:?}") };
    assert!(is(first, small) && is(second, small), "{parts:?}");
    assert!(is(third, large) && is(fourth, small), "{parts:?}");
    let parts = serve(&[Onward::Small; 100]);
    assert!((16..=20).contains(&parts.len()), "all of it: {parts:?}");
}

/// Every pair that readers get to see can be read.
fn check_readable(member: &Member) {
    let reader = member.writer.mvcc().reader();
    let reply = reader.range(&Range::new(KeyRange::all())).expect("what is shown is there");
    assert_eq!(reply.kvs.len() as u64, reply.count);
}

/// What is applied at leisure is on its way into the store for long, while other things are written and read.
#[test]
fn a_catch_up_at_leisure_begins_anew_after_a_crash() {
    let mut crashes = 0;
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        let mut choices = Choices(seed ^ 0x1e15);
        let mut from = members.remove(0);
        give_all(&log, &mut from);
        let common = from.common();
        for mut to in [Member::new(7), members.pop().unwrap()] {
            let (mut cursor, wants) = (None, to.writer.heads());
            loop {
                let bytes_max = choices.index(100);
                let part = from.writer.mvcc().catch_up(&wants, (cursor, None), bytes_max).unwrap();
                to.writer.apply_catch_up_at_leisure(&part.entries, at(0)).unwrap();
                if choices.below(4) > 0 {
                    to.commit();
                }
                check_readable(&to);
                cursor = part.next;
                match choices.below(16) {
                    0 | 1 => {
                        let shown = to.writer.mvcc().revision();
                        to.crash();
                        assert!(to.writer.mvcc().revision() >= shown, "seed {seed}");
                        check_readable(&to);
                        crashes += 1;
                        cursor = None;
                        continue;
                    }
                    2 => to.compact(),
                    3 => {
                        let origins: Vec<_> = log.keys().copied().collect();
                        let origin = origins[choices.index(origins.len())];
                        if origin.member != MemberId(to.number) {
                            give(&log, &mut to, origin, choices.index(6));
                        }
                    }
                    4 => {
                        // Of everything, what is on its way included.
                        let all = TxnOp::Range(Range::new(KeyRange::all()));
                        let look = Txn { success: vec![all], ..Txn::default() };
                        assert!(to.writer.execute(Command::Txn(look), at(100)).is_ok());
                        // Of a key of its own, which the oracle does not know, and without a trace.
                        let (key, now) = (Bytes::from("zz"), at(100));
                        let put = Put { key: key.clone(), ..Put::default() };
                        // An alarm may be on.
                        let _ = to.writer.execute(Command::Put(put), now);
                        let delete = DeleteRange { range: KeyRange::single(key), prev_kv: true };
                        assert!(to.writer.execute(Command::DeleteRange(delete), now).is_ok());
                        to.commit();
                    }
                    _ => {}
                }
                if cursor.is_none() {
                    break;
                }
            }
            to.writer.finish_catch_up(&from.writer.heads());
            to.commit();
            for _ in 0..2 {
                assert_eq!(to.common().pairs, common.pairs, "seed {seed}, member {}", to.number);
                for head in from.writer.heads() {
                    let is_own = head.origin.member == MemberId(to.number);
                    assert!(is_own || to.writer.head(head.origin) >= head.seq, "{head:?}");
                }
                to.crash();
            }
        }
    }
    assert!(crashes > 0, "the crashes are what it is about");
}

/// What goes straight into the store is what would have come by way of the open batch: the same rows at the same places, and
/// the same in memory.
#[test]
fn a_catch_up_at_leisure_does_what_one_in_a_hurry_does() {
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        let mut from = members.remove(0);
        give_all(&log, &mut from);
        for first in [false, true] {
            let ways = [false, true].map(|at_leisure| {
                let mut to = Member::new(7);
                to.writer.set_peered();
                if first {
                    // Some is known, and some is newer here.
                    let origins: Vec<_> = log.keys().copied().collect();
                    give(&log, &mut to, origins[0], 6);
                    let put = Put { key: "key1".into(), ..Put::default() };
                    // An alarm may be on.
                    let _ = to.writer.execute(Command::Put(put), at(1_000_000));
                }
                to.commit();
                let (mut cursor, mut entries, mut conflicts) = (None, 0, Vec::new());
                loop {
                    let wants = to.writer.heads();
                    let part = from.writer.mvcc().catch_up(&wants, (cursor, None), 200).unwrap();
                    let applied = if at_leisure {
                        to.writer.apply_catch_up_at_leisure(&part.entries, at(0)).unwrap()
                    } else {
                        to.writer.apply_catch_up(&part.entries, at(0)).unwrap()
                    };
                    to.commit();
                    entries += applied.entries;
                    conflicts.extend(applied.conflicts);
                    cursor = part.next;
                    if cursor.is_none() {
                        break;
                    }
                }
                to.writer.finish_catch_up(&from.writer.heads());
                to.commit();
                let found = |to: &Member| {
                    let store = Store::Memory(to.store.clone());
                    let rows = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
                    let rows: Vec<_> = rows.map(Result::unwrap).collect();
                    let mvcc = to.writer.mvcc();
                    (rows, to.common(), to.pairs(), mvcc.live_bytes(), mvcc.keys())
                };
                let before = found(&to);
                // By the marks of where the entries of each origin are.
                let (mut third, mut choices) = (Member::new(8), Choices(seed));
                pull_all(&to, &mut third, &mut choices);
                to.crash();
                assert_eq!(found(&to).1, before.1, "seed {seed}");
                (before, entries, conflicts, third.common())
            });
            let [in_a_hurry, at_leisure] = ways;
            assert_eq!(in_a_hurry, at_leisure, "seed {seed}, {first}");
        }
    }
}

/// Also where nothing else is to be committed with it.
#[test]
fn the_end_of_a_catch_up_shows_what_was_on_its_way() {
    let mut member = Member::new(1);
    let origin = stamp(0, 2).origin;
    member.writer.set_peered();
    member.commit();
    let before = member.writer.mvcc().revision();
    for seq in 1..4 {
        let op = put_op(if seq == 2 { "b" } else { "a" }, "some value");
        let state = [(origin, entry(seq, seq * 10, vec![op]))].into_iter().collect();
        member.writer.apply_catch_up_at_leisure(&state, at(0)).unwrap();
        member.commit();
    }
    assert_eq!(member.writer.mvcc().revision(), before);
    member.writer.finish_catch_up(&[]);
    assert!(member.writer.has_open_batch());
    member.commit();
    for _ in 0..2 {
        assert_eq!(member.writer.mvcc().keys(), 2);
        check_readable(&member);
        member.crash();
    }
}

#[test]
fn the_log_of_a_member_is_enough_for_others() {
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        let mut choices = Choices(seed ^ 0x106);
        give_all(&log, &mut members[0]);
        let common = members[0].common();
        let mut second = Member::new(7);
        pull_all(&members[0], &mut second, &mut choices);
        assert_eq!(second.common(), common, "seed {seed}");
        assert_eq!(second.writer.heads(), members[0].writer.heads());
        second.crash();
        let mut third = Member::new(8);
        pull_all(&second, &mut third, &mut choices);
        assert_eq!(third.common(), common, "seed {seed}");
    }
}

#[test]
fn whoever_catches_up_has_everything() {
    for seed in 0..SEEDS {
        let (mut members, log) = story(seed);
        let mut choices = Choices(seed ^ 0xca7c);
        let mut from = members.remove(0);
        give_all(&log, &mut from);
        let common = from.common();
        if choices.below(2) == 0 {
            from.compact();
        }
        // One that knows nothing, and one that knows something else.
        for mut to in [Member::new(7), members.pop().unwrap()] {
            catch_up(&mut from, &mut to, &mut choices, |_, to, choices| match choices.below(8) {
                0 => to.crash(),
                1 => to.compact(),
                2 | 3 => {
                    let origins: Vec<_> = log.keys().copied().collect();
                    let origin = origins[choices.index(origins.len())];
                    if origin.member != MemberId(to.number) {
                        give(&log, to, origin, choices.index(6));
                    }
                }
                _ => {}
            });
            assert_eq!(to.common(), common, "seed {seed}, member {}", to.number);
            assert_eq!(to.writer.heads(), from.writer.heads());
            to.crash();
            assert_eq!(to.common(), common, "seed {seed}, member {} again", to.number);
            // What was not told is not missed.
            let mut third = Member::new(8);
            pull_all(&to, &mut third, &mut choices);
            assert_eq!(third.common(), common, "seed {seed}, after member {}", to.number);
        }
    }
}

/// The source goes on writing, and others read what it has written since.
#[test]
fn the_source_of_a_state_need_not_stand_still() {
    for seed in 0..SEEDS {
        let mut choices = Choices(seed ^ 0x11fe);
        let (mut members, log) = story(seed);
        let mut from = members.remove(0);
        give_all(&log, &mut from);
        let mut to = Member::new(7);
        catch_up(&mut from, &mut to, &mut choices, |from, _, choices| {
            for _ in 0..choices.below(3) {
                let command = choices.command(1);
                let _ = from.writer.execute(command, at(50_000));
                match choices.below(4) {
                    // What is open is lost with a crash, and what it had overwritten is back.
                    0 => from.crash(),
                    1 => {}
                    _ => from.commit(),
                }
            }
            if choices.below(6) == 0 {
                from.compact();
            }
        });
        from.commit();
        pull_all(&from, &mut to, &mut choices);
        assert_eq!(to.common(), from.common(), "seed {seed}");
    }
}

fn stamp(time: u64, member: u64) -> Stamp {
    Stamp { time: Timestamp(time), origin: Origin { member: MemberId(member), run: 1 } }
}

fn entry(seq: u64, time: u64, ops: Vec<EntryOp>) -> Arc<Entry> {
    Arc::new(Entry { seq, time: Timestamp(time), ops })
}

fn put_op(key: &'static str, value: &'static str) -> EntryOp {
    let (lease, media_type) = (LeaseId::NONE, MediaType::NONE);
    EntryOp::Put { key: key.into(), value: value.into(), lease, media_type }
}

fn delete_op(key: &'static str, seen: Stamp) -> EntryOp {
    EntryOp::Delete { key: key.into(), seen }
}

/// Up to where everybody has everything, straight from who has what.
fn settled(members: &[Member], log: &Log) -> Timestamp {
    let mut settled = Timestamp(u64::MAX);
    for member in members {
        for (origin, entries) in log {
            let head = usize::try_from(member.writer.head(*origin)).unwrap();
            let author = members.iter().find(|author| author.writer.origin() == *origin);
            // All that an author will still write is later than its clock; a run that has ended writes nothing.
            let promise = author.map_or(Timestamp(u64::MAX), |author| author.writer.time());
            let complete = entries.get(head).map_or(promise, |next| Timestamp(next.time.0 - 1));
            settled = settled.min(complete);
        }
        settled = settled.min(member.writer.time());
    }
    settled
}

/// Tells a member how far everybody is. It has heard of their clocks by then.
fn settle(members: &mut [Member], i: usize, settled: Timestamp) {
    let clock = members.iter().map(|member| member.writer.time()).max().unwrap();
    members[i].writer.observe(clock);
    members[i].writer.set_settled(settled);
}

/// A sweep that a crash ends: some rows are gone, in no particular order.
fn sweep_in_part(member: &mut Member, salt: u64) {
    let Some(sweep) = member.writer.begin_sweep(true).unwrap() else { return };
    let mvcc = Arc::clone(member.writer.mvcc());
    let goes = move |key: &[u8]| (u64::from(key[7]) + u64::from(key[11]) + salt).is_multiple_of(2);
    let is_dead =
        move |key: &[u8], value: &[u8]| Ok(sweep.is_dead(&mvcc, key, value)? && goes(key));
    Store::Memory(member.store.clone()).sweep(Arc::new(is_dead)).unwrap();
    let before = member.common();
    member.crash();
    assert_eq!(member.common(), before);
}

fn rows(member: &Member) -> usize {
    use crate::storage::Space;
    use std::ops::Bound;
    let store = Store::Memory(member.store.clone());
    store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded).count()
}

/// Members forget what everybody has, each in its own time, and nothing that was deleted returns.
#[test]
fn what_is_settled_is_forgotten_without_a_trace() {
    for seed in 0..SEEDS {
        let mut choices = Choices(seed ^ 0x9c);
        let (mut members, mut log) = story(seed);
        for step in 1..=2 * STEPS {
            let i = choices.index(MEMBERS);
            for _ in 0..choices.below(3) {
                let command = choices.command(step);
                let now = at((STEPS + step) * 10 + choices.below(30));
                let _ = members[i].writer.execute(command, now);
            }
            members[i].commit();
            keep(&mut log, &mut members[i]);
            let origins: Vec<_> = log.keys().copied().collect();
            for _ in 0..4 {
                let (to, origin) = (choices.index(MEMBERS), origins[choices.index(origins.len())]);
                if origin != members[to].writer.origin() {
                    give(&log, &mut members[to], origin, choices.index(8));
                    keep(&mut log, &mut members[to]);
                }
            }
            let settled = settled(&members, &log);
            match choices.below(12) {
                0..4 => settle(&mut members, i, settled),
                4 | 5 => members[i].compact(),
                6 | 7 => members[i].sweep(),
                8 => sweep_in_part(&mut members[i], step),
                9 => {
                    let before = members[i].common();
                    members[i].crash();
                    assert_eq!(members[i].common(), before, "seed {seed}, step {step}");
                }
                _ => {}
            }
        }
        for member in &mut members {
            give_all(&log, member);
        }
        let common = members[0].common();
        assert_eq!(common.pairs, expected(&log), "seed {seed}");
        for member in &mut members {
            assert_eq!(member.common(), common, "seed {seed}, member {}", member.number);
            let mut to = Member::new(7);
            catch_up(member, &mut to, &mut choices, |_, _, _| ());
            assert_eq!(to.common(), common, "seed {seed}, after {}", member.number);
        }
        // Once everything is settled, nothing is left but what lives.
        for round in 0..4 {
            for member in &mut members {
                let now = at(100_000 + round);
                let alarm = Alarm { kind: AlarmKind::NoSpace, member: MemberId(9) };
                let _ = member.writer.execute(Command::Alarm { alarm, on: false }, now);
                let put = Put { key: "key0".into(), ..Put::default() };
                assert!(member.writer.execute(Command::Put(put), now).is_ok());
                member.commit();
                keep(&mut log, member);
            }
            for member in &mut members {
                give_all(&log, member);
            }
            for i in 0..MEMBERS {
                let settled = settled(&members, &log);
                settle(&mut members, i, settled);
                members[i].compact();
                members[i].sweep();
            }
        }
        for member in &members {
            let common = member.common();
            let lives = common.pairs.len() + common.leases.len() + common.alarms.len();
            let lives = lives + common.members.len();
            let left = rows(member);
            // The last rows of all are there to mark the end.
            assert!(left <= lives + 3, "seed {seed}: {left} rows, {lives} live");
            assert_eq!(member.writer.mvcc().graves(), 0, "seed {seed}");
            assert_eq!(member.writer.mvcc().records().read().len(), lives - common.pairs.len());
        }
    }
}

/// Entries come in any order, and show in that of their stamps: together, but for what one of them has written anew.
#[test]
fn what_was_set_aside_shows_in_order() {
    let mut member = Member::new(1);
    let [x, y] = [2, 3].map(|member| stamp(0, member).origin);
    let puts = |keys: &[&'static str]| keys.iter().map(|key| put_op(key, "value")).collect();
    let entries = [
        (x, entry(2, 20, puts(&["a", "b"]))),
        (x, entry(3, 30, puts(&["a", "e"]))),
        (y, entry(1, 10, puts(&["c"]))),
        (x, entry(1, 5, puts(&["d"]))),
        (x, entry(2, 20, puts(&["a", "b"]))),
    ];
    let mut staged = member.writer.begin_staging();
    for part in entries.chunks(2) {
        let part = part.iter().cloned().collect();
        assert_eq!(member.writer.stage(&mut staged, &part).unwrap(), Outcome::Taken);
    }
    let before = member.writer.mvcc().revision();
    let mut staged = staged.in_order().unwrap();
    while member.writer.apply_staged(&mut staged, at(0)).unwrap() != GroupApplied::None {
        member.commit();
    }
    for _ in 0..2 {
        let reader = member.writer.mvcc().reader();
        let reply = reader.range(&Range::new(KeyRange::all())).unwrap();
        let shown = reply.kvs.iter().map(KeyValue::from).map(|kv| {
            let after = kv.mod_revision.0 - before.0;
            (kv.key, after, kv.version)
        });
        let shown: Vec<_> = shown.collect();
        let expected = [("a", 2, 2), ("b", 1, 1), ("c", 1, 1), ("d", 1, 1), ("e", 2, 1)];
        assert_eq!(shown, expected.map(|(key, after, version)| (Bytes::from(key), after, version)));
        member.crash();
    }
    let none = [(x, entry(0, 5, puts(&["d"])))].into_iter().collect();
    let mut staged = member.writer.begin_staging();
    assert_eq!(member.writer.stage(&mut staged, &none).unwrap(), Outcome::Unsound);
}

/// What a put says of its value travels with it, to who takes a state at once and to who sets it aside first.
#[test]
fn a_state_has_its_media_types() {
    let media_type = MediaType::parse(b"text/css").unwrap();
    let typed = |key: &'static str, lease| {
        let (key, value, media_type) = (key.into(), "value".into(), media_type.clone());
        EntryOp::Put { key, value, lease, media_type }
    };
    let lease = LeaseId(7);
    let entries = [
        entry(1, 10, vec![typed("a", LeaseId::NONE)]),
        entry(2, 20, vec![typed("b", lease)]),
        entry(3, 30, vec![put_op("c", "value"), typed("d", lease)]),
    ];
    let origin = stamp(0, 2).origin;
    let told = entries.map(|entry| (origin, entry));
    let whole =
        |member: &Member| member.writer.mvcc().catch_up(&[], (None, None), usize::MAX).unwrap();
    let mut at_once = Member::new(1);
    let state = told.iter().cloned().collect();
    assert_eq!(at_once.writer.apply_catch_up(&state, at(0)).unwrap().outcome, Outcome::Taken);
    at_once.commit();
    let state = whole(&at_once).entries;
    assert_eq!(state.unpack(), told);
    let mut aside = Member::new(3);
    let mut staged = aside.writer.begin_staging();
    assert_eq!(aside.writer.stage(&mut staged, &state).unwrap(), Outcome::Taken);
    let mut staged = staged.in_order().unwrap();
    while aside.writer.apply_staged(&mut staged, at(0)).unwrap() != GroupApplied::None {
        aside.commit();
    }
    for member in [&mut at_once, &mut aside] {
        member.crash();
        assert_eq!(whole(member).entries.unpack(), told);
    }
}

/// What came by catching up stands before entries of lower seqs. Those must not be passed over.
#[test]
fn entries_out_of_order_are_waited_for() {
    let mut member = Member::new(1);
    let origin = stamp(0, 2).origin;
    let of = |seq, key| entry(seq, seq * 10, vec![put_op(key, "some value")]);
    let entries = [of(1, "a"), of(2, "b"), of(3, "c"), of(4, "d"), of(5, "e"), of(6, "f")];
    let state = [4, 1].map(|i: usize| (origin, Arc::clone(&entries[i]))).into_iter().collect();
    member.writer.apply_catch_up(&state, at(0)).unwrap();
    member.commit();
    assert!(member.writer.heads().is_empty());
    assert_eq!(member.apply(&segment(origin, 0, &entries[..2])).outcome, Outcome::Taken);
    assert_eq!(member.apply(&segment(origin, 2, &entries[..4])).outcome, Outcome::Taken);
    member.commit();
    member.writer.finish_catch_up(&[Head { origin, seq: 5 }]);
    member.apply(&segment(origin, 5, &entries));
    member.commit();
    for _ in 0..2 {
        let heads = member.writer.heads();
        assert_eq!(heads, [Head { origin, seq: 6 }]);
        for after in 0..6 {
            let wants = [Head { origin, seq: after }];
            for entries_max in 1..4 {
                let bytes_max = entries_max * entries[0].bytes();
                let found = member.writer.mvcc().segments(&wants, &heads, bytes_max).unwrap();
                let through = 6.min(after + entries_max as u64);
                let through_index = usize::try_from(through).unwrap();
                assert_eq!(found, [segment(origin, after, &entries[..through_index])]);
            }
        }
        member.crash();
    }
}

/// What is overwritten by a batch that may get lost is told all the same.
#[test]
fn a_state_is_as_on_disk() {
    let mut member = Member::new(1);
    let put = |key: &str, value: &'static str| {
        let key = Bytes::copy_from_slice(key.as_bytes());
        Command::Put(Put { key, value: value.into(), ..Put::default() })
    };
    let delete = |key: &'static str| {
        Command::DeleteRange(DeleteRange { range: KeyRange::single(key.into()), prev_kv: false })
    };
    let record = |value: Option<&'static str>| user("m", value.map(str::to_owned));
    member.writer.set_peered();
    let first =
        [put("a", "1"), put("b", "1"), put("c", "1"), delete("b"), delete("c"), put("d", "")];
    for command in first {
        assert!(member.writer.execute(command, at(0)).is_ok());
    }
    assert!(member.writer.write_records(vec![record(Some("1"))], at(0)).is_ok());
    member.commit();
    member.compact();
    assert_eq!(member.writer.mvcc().graves(), 2);
    let whole =
        |member: &Member| member.writer.mvcc().catch_up(&[], (None, None), usize::MAX).unwrap();
    let before = whole(&member);
    let entries = before.entries.unpack();
    let ops: Vec<usize> = entries.iter().map(|(_, entry)| entry.ops.len()).collect();
    assert_eq!(ops, [1; 5], "two puts, two deletes, a record: {before:?}");
    // In a batch that is open.
    for command in [put("a", "2"), put("b", "2"), delete("d")] {
        assert!(member.writer.execute(command, at(0)).is_ok());
    }
    assert!(member.writer.write_records(vec![record(None)], at(0)).is_ok());
    assert_eq!(whole(&member), before);
    member.commit();
    let entries = whole(&member).entries.unpack();
    let after: Vec<_> = entries.iter().map(|(_, entry)| entry.ops[0].clone()).collect();
    assert!(matches!(&after[0], EntryOp::Delete { key, .. } if key == "c"), "{after:?}");
    assert!(matches!(&after[4], EntryOp::InternalDelete { .. }), "{after:?}");
    assert_eq!(after.len(), 5, "{after:?}");
}

#[test]
fn what_nobody_can_have_written_is_not_taken() {
    let mut member = Member::new(1);
    let origin = stamp(0, 2).origin;
    let lease =
        |key: &'static [u8]| EntryOp::InternalDelete { table: Table::Lease, key: key.into() };
    let whole = |entries: Vec<Arc<Entry>>| Segment { origin, after: 0, through: 1, entries };
    let bad = [
        whole(vec![entry(1, u64::MAX, vec![])]),
        whole(vec![entry(1, 5, vec![put_op("", "")])]),
        whole(vec![entry(1, 5, vec![delete_op("a", stamp(6, 2))])]),
        whole(vec![entry(1, 5, vec![lease(b"short")])]),
        whole(vec![entry(2, 5, vec![])]),
        Segment { through: u64::MAX, ..whole(vec![]) },
        Segment { origin: member.writer.origin(), ..whole(vec![]) },
    ];
    for segment in bad {
        let applied = member.apply(&segment);
        assert_eq!((applied.outcome, applied.head), (Outcome::Unsound, 0), "{segment:?}");
        assert!(member.writer.heads().is_empty());
    }
    let gap = Segment { after: 3, through: 4, ..whole(vec![]) };
    assert_eq!(member.apply(&gap).outcome, Outcome::Gap);
    member.commit();
    assert_eq!(member.writer.mvcc().revision(), Revision::FIRST);
}

/// Both the put that comes too late and the one that overwrites another, if they are close together.
#[test]
fn conflicts_are_told() {
    let mut member = Member::new(1);
    let of = |number, time, value| {
        let origin = stamp(0, number).origin;
        segment(origin, 0, &[entry(1, time, vec![put_op("a", value)])])
    };
    let second = 1 << 16;
    assert_eq!(member.apply(&of(2, 5_000 * second, "2")).conflicts, []);
    let applied = member.apply(&of(3, 4_000 * second, "3"));
    let conflict = |kept, lost| super::Conflict { key: "a".into(), kept, lost };
    let (two, three) = (stamp(5_000 * second, 2), stamp(4_000 * second, 3));
    assert_eq!(applied.conflicts, [conflict(two, three)]);
    let four = stamp(5_900 * second, 4);
    assert_eq!(member.apply(&of(4, 5_900 * second, "4")).conflicts, [conflict(four, two)]);
    assert_eq!(member.apply(&of(5, 9_000 * second, "5")).conflicts, []);
    member.commit();
    assert_eq!(member.pairs()[0].version, 3, "a loser is no version");
}
