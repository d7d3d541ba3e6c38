//! What peers say, as input for the fuzzer: of each kind of message one.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::{
    CatchUp, CatchUpPart, ClockReading, Compare, Compared, Cursor, Digest, Dot, Head, Message,
    OriginFloor, Promise, Promises, RangeSum, Segments, Span,
};
use crate::storage::schema::member::{self, MemberRecord};
use crate::storage::schema::{LeaseRecord, Table};
use crate::time::{Stamp, Timestamp};
use crate::transport::wire;
use crate::types::{LeaseId, MediaType, MemberId, Origin};

/// Each kind of message twice, from both peers with some time between, and all of them one after the other.
pub(in crate::fuzzing) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut everything = Vec::new();
    for (name, message) in messages() {
        seeds.push((name, [framed(0, &message), framed(13, &message)].concat()));
        everything.extend_from_slice(&framed(6, &message));
    }
    seeds.push(("everything", everything));
    seeds
}

/// A frame of a peer: whose and when in a byte, how long, the bytes.
fn framed(head: u8, message: &Message) -> Vec<u8> {
    let frame = wire::encode(message).encode_to_vec();
    let length = u16::try_from(frame.len()).unwrap().to_le_bytes();
    [&[head][..], &length, &frame].concat()
}

/// What a peer may say: those that make sense, and those that do not to this member.
fn messages() -> Vec<(&'static str, Message)> {
    let time = |ahead: u64| Timestamp::from_millis(1_704_067_200_000 + ahead);
    let origin = |member| Origin { member: MemberId(member), run: 1 };
    let head = |member, seq| Head { origin: origin(member), seq };
    let put = |key: &'static str| EntryOp::Put {
        key: key.into(),
        value: "value".into(),
        lease: LeaseId(7),
        media_type: MediaType::NONE,
    };
    let typed = EntryOp::Put {
        key: "c".into(),
        value: "value".into(),
        lease: LeaseId::NONE,
        media_type: MediaType::parse(b"text/css").unwrap_or_default(),
    };
    let record = |table, key, value| EntryOp::InternalPut { table, key, value, seen: None };
    let number = member::number_value;
    let run = record(Table::Run, MemberRecord::key(MemberId(2)), number(1));
    let member = MemberRecord { name: "m4".into(), ..MemberRecord::default() }.value();
    let ops = vec![
        put("a"),
        typed,
        EntryOp::Delete { key: "b".into(), seen: Stamp { time: time(1), origin: origin(1) } },
        record(Table::Member, MemberRecord::key(MemberId(4)), member),
        record(Table::Seal, member::seal_key(origin(1), MemberId(2)), number(9)),
        record(
            Table::Lease,
            LeaseRecord::key(LeaseId(8)),
            LeaseRecord { id: LeaseId(8), ttl_seconds: 60, owner: MemberId(2) }.value(),
        ),
        EntryOp::InternalDelete { table: Table::Member, key: MemberRecord::key(MemberId(3)) },
    ];
    let entries = |ops: Vec<EntryOp>| {
        let first = Entry { seq: 1, time: time(2), ops: vec![run.clone()] };
        vec![Arc::new(first), Arc::new(Entry { seq: 2, time: time(3), ops })]
    };
    let segments = |ops, collected| {
        let segment = Segment { origin: origin(2), after: 0, through: 2, entries: entries(ops) };
        let segments = vec![segment];
        Message::Segments(Segments {
            segments,
            collected,
            answers: true,
            traces: Vec::new(),
            has_holes: false,
            patient: true,
        })
    };
    let damaged =
        vec![record(Table::Member, MemberRecord::key(MemberId(4)), Bytes::from_static(b"none"))];
    let part = CatchUpPart {
        heads: vec![head(2, 2)],
        complete: time(4),
        collected: time(3),
        entries: entries(ops.clone()).into_iter().map(|entry| (origin(2), entry)).collect(),
        after: None,
        next: None,
        end: Cursor { revision: 9, n: 0 },
        log_bytes: 1000,
        more: false,
        progress: 1000,
        floors: vec![OriginFloor { head: head(2, 1), time: time(2) }],
    };
    let span = Span { from: Bytes::new(), to: None };
    let dot = Dot { key: "a".into(), time: time(1), head: head(1, 3) };
    let digest = Digest {
        epoch: 1,
        arrivals: 2,
        root: 3,
        until: 2,
        moved: vec![head(2, 2)],
        reply: true,
        ..Digest::default()
    };
    let promise = |member| Promise {
        member: MemberId(member),
        run: 1,
        time: time(5),
        seq: 2,
        complete: time(4),
        current: time(4),
        held: 1,
    };
    let promises = Promises {
        table: 0,
        now: time(6),
        wall_millis: time(6).millis(),
        rows: vec![promise(1), promise(2), promise(3)],
        named: true,
        reply: true,
    };
    let sum = RangeSum { span: span.clone(), keys: 3, hash: 1 };
    let compare = Compare { sums: vec![sum], dots: vec![dot.clone()], upto: time(9), number: 1 };
    let compared = Compared { number: 0, differing: vec![span], gone: vec![dot] };
    let vector = Message::Vector {
        epoch: 1,
        arrivals: 2,
        buckets: u64::MAX,
        heads: vec![head(2, 2), head(9, u64::MAX)],
        reply: true,
        left_out: Timestamp::default(),
    };
    let reading =
        ClockReading { wall_millis: 0, clock_millis: u64::MAX, time_millis: time(7).millis() };
    vec![
        ("segments", segments(ops, Timestamp::default())),
        // A record of a member, whose value is none.
        ("damaged-record", segments(damaged, Timestamp::default())),
        ("digest", Message::Digest(digest.clone())),
        ("buckets", Message::Buckets(vec![7; 64])),
        ("vector", vector),
        ("announce", Message::Announce(vec![head(2, 9), head(1, 99)])),
        ("pull", Message::Pull { wants: vec![head(1, 0), head(9, 9)], bytes_max: u64::MAX }),
        ("busy", Message::Busy { retry_millis: u64::MAX }),
        ("promises", Message::Promises(promises)),
        (
            "catch-up",
            Message::CatchUp(CatchUp {
                heads: vec![head(2, 2)],
                cursor: Some(Cursor { revision: 2, n: 0 }),
                end: None,
                bytes_max: u64::MAX,
            }),
        ),
        ("behind", segments(Vec::new(), Timestamp(u64::MAX))),
        // Of times that no store takes.
        (
            "future-part",
            Message::CatchUpPart(Box::new(CatchUpPart {
                collected: Timestamp(1 << 63),
                ..part.clone()
            })),
        ),
        // Of a log that is larger than any.
        (
            "endless-part",
            Message::CatchUpPart(Box::new(CatchUpPart {
                next: Some(Cursor { revision: 3, n: 0 }),
                log_bytes: u64::MAX,
                ..part.clone()
            })),
        ),
        ("part", Message::CatchUpPart(Box::new(part))),
        ("compare", Message::Compare(compare)),
        ("compared", Message::Compared(compared)),
        ("ask", Message::Ask(7)),
        ("answer", Message::Answer(7, digest)),
        ("swim", Message::Swim(vec![1; 40].into())),
        ("ask-clock", Message::AskClock(7)),
        ("fence", Message::Fence(true)),
        ("tell-clock", Message::TellClock(7, reading)),
    ]
}
