//! Every message comes back, and nothing else gets through.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::{
    ClockReading, Compare, Compared, Dot, OriginFloor, RangeSum, Segments, Span, TRACES_MAX,
    TracedEntry,
};
use crate::storage::schema::Table;
use crate::time::Stamp;
use crate::types::{LeaseId, MediaType, Revision, TraceContext};

fn bytes(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), len).prop_map(Bytes::from)
}

/// Mostly small, as numbers are, and sometimes any.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..300_u64, 1 => any::<u64>()]
}

fn origin() -> impl Strategy<Value = Origin> {
    let member = prop_oneof![4 => 1..5_u64, 1 => any::<u64>()].prop_map(MemberId);
    (member, 0..3_u64).prop_map(|(member, run)| Origin { member, run })
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (count(), origin()).prop_map(|(time, origin)| Stamp { time: Timestamp(time), origin })
}

fn heads() -> impl Strategy<Value = Vec<Head>> {
    vec((origin(), count()).prop_map(|(origin, seq)| Head { origin, seq }), 0..4)
}

fn op() -> impl Strategy<Value = EntryOp> {
    let lease = prop_oneof![Just(0), any::<i64>()];
    let media_type = prop_oneof![3 => Just(String::new()), 1 => "[ -~]{1,3}"];
    let table = || select(vec![Table::Lease, Table::Alarm, Table::Member, Table::Seal]);
    prop_oneof![
        (bytes(1..4), bytes(0..4), lease, media_type).prop_map(
            |(key, value, lease, media_type)| EntryOp::Put {
                key,
                value,
                lease: LeaseId(lease),
                media_type: MediaType::parse(media_type.as_bytes()).expect("it is printable"),
            }
        ),
        (bytes(1..4), stamp()).prop_map(|(key, seen)| EntryOp::Delete { key, seen }),
        (table(), bytes(1..4), bytes(0..4), option::of(stamp()))
            .prop_map(|(table, key, value, seen)| EntryOp::InternalPut { table, key, value, seen }),
        (table(), bytes(1..4)).prop_map(|(table, key)| EntryOp::InternalDelete { table, key }),
    ]
}

fn entry() -> impl Strategy<Value = Arc<Entry>> {
    let parts = (count(), count(), vec(op(), 0..4));
    parts.prop_map(|(seq, time, ops)| Arc::new(Entry { seq, time: Timestamp(time), ops }))
}

/// Steps from the first entry to the next, and so on, so that seqs and times grow.
fn segment(origin: Origin) -> impl Strategy<Value = Segment> {
    let entry = (1..4_u64, 1..1_000_000_u64, vec(op(), 0..4));
    (0..u64::MAX / 2, 0..u64::MAX / 2, vec(entry, 0..4), 1..9_u64).prop_map(
        move |(after, time, steps, rest)| {
            let (mut seq, mut time) = (after, time);
            let entries = steps.into_iter().map(|(step, later, ops)| {
                (seq, time) = (seq + step, time + later);
                Arc::new(Entry { seq, time: Timestamp(time), ops })
            });
            let entries: Vec<_> = entries.collect();
            Segment { origin, after, through: seq + rest, entries }
        },
    )
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let origins = proptest::collection::btree_set(origin(), 0..4);
    origins.prop_flat_map(|origins| origins.into_iter().map(segment).collect::<Vec<_>>())
}

fn promises() -> impl Strategy<Value = Promises> {
    let time = || any::<u64>().prop_map(Timestamp);
    let row = (1..9_u64, count(), time(), (count(), count()), time(), time()).prop_map(
        |(member, run, time, (seq, held), complete, current)| Promise {
            member: MemberId(member),
            run,
            time,
            seq,
            complete,
            current,
            held,
        },
    );
    (any::<u64>(), time(), count(), vec(row, 0..4), any::<bool>(), any::<bool>()).prop_map(
        |(table, now, wall_millis, mut rows, named, reply)| {
            for row in rows.iter_mut().filter(|_| !named) {
                (row.member, row.run) = (MemberId(0), 0);
            }
            Promises { table, now, wall_millis, rows, named, reply }
        },
    )
}

fn digest() -> impl Strategy<Value = Digest> {
    let told = option::of((any::<u32>(), count()));
    let revisions = any::<(u64, u64)>();
    (
        any::<u32>(),
        (count(), count(), count()),
        any::<(u64, u64)>(),
        told,
        heads(),
        any::<bool>(),
        revisions,
    )
        .prop_map(|(epoch, (arrivals, after, until), sums, told, moved, reply, revisions)| {
            let (root, left_out) = (sums.0, Timestamp(sums.1));
            Digest {
                epoch,
                arrivals,
                root,
                told,
                after,
                until,
                moved,
                left_out,
                reply,
                revision: Revision(revisions.0),
                former: Revision(revisions.1),
            }
        })
}

fn cursor() -> impl Strategy<Value = Option<Cursor>> {
    option::of((count(), any::<u32>()).prop_map(|(revision, n)| Cursor { revision, n }))
}

/// Often with the same beginning, as keys have.
fn similar(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Bytes> {
    vec(0..2_u8, len).prop_map(Bytes::from)
}

fn span() -> impl Strategy<Value = Span> {
    (similar(0..9), option::of(similar(1..9))).prop_map(|(from, to)| match to {
        Some(to) if to <= from => Span { from, to: None },
        to => Span { from, to },
    })
}

fn dot() -> impl Strategy<Value = Dot> {
    (similar(1..9), count(), origin(), count()).prop_map(|(key, time, origin, seq)| Dot {
        key,
        time: Timestamp(time),
        head: Head { origin, seq },
    })
}

fn dots() -> impl Strategy<Value = Vec<Dot>> {
    vec(dot(), 0..4).prop_map(|mut dots| {
        dots.sort_by(|a, b| a.key.cmp(&b.key));
        dots.dedup_by(|a, b| a.key == b.key);
        dots
    })
}

/// Those of some ranges that do not overlap with one before, in order.
fn apart(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by(|a, b| a.from.cmp(&b.from));
    let mut apart: Vec<Span> = Vec::new();
    for span in spans {
        let last = apart.last().map(|last| last.to.as_ref());
        if last.is_none_or(|to| to.is_some_and(|to| *to <= span.from)) {
            apart.push(span);
        }
    }
    apart
}

fn compare() -> impl Strategy<Value = Compare> {
    let sum = (span(), count(), any::<u64>()).prop_map(|(span, keys, hash)| RangeSum {
        span,
        keys,
        hash,
    });
    (vec(sum, 0..4), dots(), count(), any::<u64>()).prop_map(|(mut sums, dots, upto, number)| {
        let spans = apart(sums.iter().map(|sum| sum.span.clone()).collect());
        sums.retain(|sum| spans.contains(&sum.span));
        sums.sort_by(|a, b| a.span.from.cmp(&b.span.from));
        sums.dedup_by(|a, b| a.span == b.span);
        Compare { sums, dots, upto: Timestamp(upto), number }
    })
}

/// The latest that a clock can show.
const MILLIS_MAX: u64 = Timestamp::HEARD_MAX.0 >> 16;

fn trace_context() -> impl Strategy<Value = TraceContext> {
    (1..=u128::MAX, 1..=u64::MAX, any::<u8>()).prop_map(|(trace, span, flags)| TraceContext {
        trace: trace.to_be_bytes(),
        span: span.to_be_bytes(),
        flags,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let part =
        ((heads(), heads()), count(), vec((origin(), entry()), 0..4), cursor(), any::<u16>());
    prop_oneof![
        digest().prop_map(Message::Digest),
        vec(any::<u64>(), 0..64).prop_map(Message::Buckets),
        ((any::<u32>(), count()), any::<(u64, u64)>(), heads(), any::<bool>()).prop_map(
            |((epoch, arrivals), (buckets, left_out), heads, reply)| {
                let left_out = Timestamp(left_out);
                Message::Vector { epoch, arrivals, buckets, heads, left_out, reply }
            }
        ),
        heads().prop_map(Message::Announce),
        (heads(), count()).prop_map(|(wants, bytes_max)| Message::Pull { wants, bytes_max }),
        (segments(), count(), any::<(bool, bool)>(), vec(trace_context(), 0..4)).prop_map(
            |(segments, collected, (answers, has_holes), contexts)| {
                let collected = Timestamp(collected);
                let traces = segments.iter().rev().zip(contexts).map(|(segment, context)| {
                    TracedEntry { origin: segment.origin, seq: segment.through, context }
                });
                let traces = traces.collect();
                let patient = !answers;
                Message::Segments(Segments {
                    segments,
                    collected,
                    answers,
                    has_holes,
                    traces,
                    patient,
                })
            }
        ),
        count().prop_map(|retry_millis| Message::Busy { retry_millis }),
        promises().prop_map(Message::Promises),
        (heads(), cursor(), cursor(), count()).prop_map(|(heads, cursor, end, bytes_max)| {
            Message::CatchUp(CatchUp { heads, cursor, end, bytes_max })
        }),
        (part, cursor(), any::<bool>(), (any::<u64>(), any::<u32>(), any::<u64>())).prop_map(
            |(
                ((heads, floors), complete, entries, next, progress),
                after,
                more,
                (revision, n, log_bytes),
            )| {
                let floors =
                    floors.into_iter().map(|head| OriginFloor { head, time: Timestamp(head.seq) });
                let complete = Timestamp(complete).min(Timestamp::HEARD_MAX);
                let collected = complete;
                Message::CatchUpPart(Box::new(CatchUpPart {
                    heads,
                    complete,
                    collected,
                    entries: entries.into_iter().collect(),
                    after,
                    next,
                    end: Cursor { revision, n },
                    log_bytes,
                    more,
                    progress,
                    floors: floors.collect(),
                }))
            }
        ),
        count().prop_map(Message::Ask),
        (count(), digest()).prop_map(|(id, digest)| Message::Answer(id, digest)),
        count().prop_map(Message::AskClock),
        any::<bool>().prop_map(Message::Fence),
        (any::<u64>(), [0..=MILLIS_MAX, 0..=MILLIS_MAX, 0..=MILLIS_MAX]).prop_map(
            |(asked, [wall_millis, clock_millis, time_millis])| {
                Message::TellClock(asked, ClockReading { wall_millis, clock_millis, time_millis })
            }
        ),
        compare().prop_map(Message::Compare),
        (any::<u64>(), vec(span(), 0..3), dots()).prop_map(|(number, differing, gone)| {
            Message::Compared(Compared { number, differing: apart(differing), gone })
        }),
        bytes(0..9).prop_map(Message::Swim),
    ]
}

/// What strings have in common is bounded, on both sides: a small frame must not become much of memory.
#[test]
fn long_strings_that_begin_alike_are_said_in_full() {
    let dot = |number: u32| {
        let key = [&[7; 1 << 20][..], &number.to_be_bytes()].concat().into();
        let origin = Origin { member: MemberId(1), run: 2 };
        Dot { key, time: Timestamp(3), head: Head { origin, seq: 4 } }
    };
    let gone = |count| {
        let gone = (0..count).map(dot).collect();
        Message::Compared(Compared { number: 0, differing: vec![], gone })
    };
    let bytes = |message: &Message| encode(message).encoded_len();
    assert!(bytes(&gone(16)) < 2 << 20, "once and no more");
    assert!(bytes(&gone(20)) > 4 << 20);
    assert_eq!(sent(&gone(20)), Ok(gone(20)));
    let strings = |shared: u32, lengths: Vec<u32>, rest: usize| {
        let shared = vec![0, shared];
        let bounds = Some(pb::Strings { shared, lengths, rest: vec![1; rest].into() });
        decode(pb::Frame {
            body: Some(pb::frame::Body::Compared(pb::Compared { bounds, gone: None, number: 0 })),
        })
    };
    assert!(strings(2, vec![2, 1], 3).is_ok());
    for (shared, lengths, rest) in
        [(3, vec![2, 1], 3), (2, vec![2, 2], 3), (2, vec![2, 1], 4), (2, vec![2], 2)]
    {
        assert!(strings(shared, lengths.clone(), rest).is_err(), "{shared} {lengths:?} {rest}");
    }
    let rows = 1 << 5;
    let shared = [vec![0], vec![1 << 20; rows - 1]].concat();
    let lengths = [vec![1 << 20], vec![1; rows - 1]].concat();
    let rest = vec![1; (1 << 20) + rows - 1].into();
    let bounds = Some(pb::Strings { shared, lengths, rest });
    let body = pb::frame::Body::Compared(pb::Compared { bounds, gone: None, number: 0 });
    assert!(decode(pb::Frame { body: Some(body) }).is_err(), "too much of too little");
}

/// What a receiver makes of a message, by way of bytes.
fn sent(message: &Message) -> Result<Message, Malformed> {
    decode_bytes(Bytes::from(encode(message).encode_to_vec()))
}

fn is_no_claim(sent: Timestamp, received: Timestamp, now: Timestamp) -> bool {
    let lost = sent.0.min(now.0) - received.0.min(now.0);
    received <= sent && received <= now && lost < 1 << AGE_SHIFT
}

proptest! {
    #[test]
    fn messages_come_back(message in message()) {
        let received = sent(&message).expect("it was a message");
        if let (Message::Promises(sent), Message::Promises(received)) = (&message, &received) {
            prop_assert_eq!(sent.rows.len(), received.rows.len());
            for (sent, received) in sent.rows.iter().zip(&received.rows) {
                prop_assert_eq!((sent.member, sent.run, sent.seq), (received.member, received.run, received.seq));
            }
            prop_assert_eq!(&Promises { rows: Vec::new(), ..sent.clone() }, &Promises { rows: Vec::new(), ..received.clone() });
        } else {
            prop_assert_eq!(&received, &message);
        }
        prop_assert_eq!(sent(&received), Ok(received.clone()), "what was rounded is rounded");
        prop_assert_eq!(frame_bytes(&message), encode(&message).encoded_len());
    }

    #[test]
    fn promises_never_grow_on_the_way(promises in promises()) {
        let Ok(Message::Promises(received)) = sent(&Message::Promises(promises.clone())) else {
            return Err(TestCaseError::fail("no promises"));
        };
        for (row, received) in promises.rows.iter().zip(received.rows) {
            let times = [(row.time, received.time), (row.complete, received.complete), (row.current, received.current)];
            for (sent, received) in times {
                prop_assert!(is_no_claim(sent, received, promises.now), "{sent} became {received}");
            }
        }
    }

    /// Whatever comes in, and however little is wrong with it.
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = decode_bytes(bytes.as_slice());
    }

    #[test]
    fn damaged_messages_are_read_or_refused(message in message(), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut bytes = encode(&message).encode_to_vec();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        if let Ok(received) = decode_bytes(bytes.as_slice()) {
            prop_assert_eq!(sent(&received), Ok(received));
        }
    }

    #[test]
    fn pieces_make_the_message(message in message(), size in 1..9_usize) {
        let encoded = Bytes::from(encode(&message).encode_to_vec());
        let (total_bytes, chunks) = (encoded.len() as u64, encoded.chunks(size));
        let last = chunks.len();
        let mut assembler = Assembler::default();
        for (i, chunk) in (1..).zip(chunks) {
            let data = Bytes::copy_from_slice(chunk);
            let taken = assembler.take(piece(data, i == last, total_bytes));
            let expected = if i == last { sent(&message).map(Some) } else { Ok(None) };
            prop_assert_eq!(taken, expected);
        }
    }
}

fn piece(data: Bytes, last: bool, total_bytes: u64) -> pb::Frame {
    pb::Frame { body: Some(pb::frame::Body::Piece(pb::Piece { data, last, total_bytes })) }
}

fn swim(len: usize) -> Message {
    Message::Swim(Bytes::from(vec![7; len]))
}

#[test]
fn large_messages_travel_in_pieces() {
    let message = swim(2 * FRAME_BYTES_MAX + 5);
    let frames = frames(&message).expect("not too large");
    assert_eq!(frames.len(), 3);
    assert!(frames.iter().all(|frame| frame.encoded_len() <= FRAME_BYTES_MAX));
    let sum: usize = frames.iter().map(prost::Message::encoded_len).sum();
    assert!(sum <= frame_bytes(&message) && frame_bytes(&message) < sum + 100);
    let mut assembler = Assembler::default();
    let mut taken = Vec::new();
    for frame in frames {
        taken.extend(assembler.take(frame).expect("as it was sent"));
    }
    assert_eq!(taken, [message]);
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let max = MESSAGE_BYTES_MAX as u64;
    let data = Bytes::from_static(b"abc");
    let cases: &[&[pb::Frame]] = &[
        &[piece(data.clone(), false, max + 1)],
        &[piece(data.clone(), false, 2)],
        &[piece(data.clone(), false, 3)],
        &[piece(data.clone(), true, 4)],
        &[piece(Bytes::new(), false, 4)],
        &[piece(data.clone(), false, 6), piece(data.clone(), true, 7)],
        &[piece(data.clone(), false, 6), encode(&swim(1))],
        &[piece(data.clone(), true, 3)],
    ];
    for case in cases {
        let mut assembler = Assembler::default();
        let taken: Result<Vec<_>, _> = case.iter().map(|f| assembler.take(f.clone())).collect();
        assert!(taken.is_err(), "{case:?}");
    }
}

#[test]
fn an_idle_digest_is_small() {
    let arrivals = (1 << 42) - 1;
    let digest = Digest {
        epoch: u32::MAX,
        arrivals,
        after: arrivals,
        until: arrivals,
        root: u64::MAX,
        told: Some((u32::MAX, (1 << 42) - 1)),
        reply: true,
        ..Digest::default()
    };
    let bytes = frame_bytes(&Message::Digest(digest));
    assert!(bytes <= 40, "{bytes}");
}

#[test]
fn an_idle_row_of_promises_is_small() {
    let now = Timestamp::from_millis(1_795_000_000_000);
    let ago = |millis: u64| Timestamp::from_millis(now.millis() - millis);
    // Promises are renewed every five seconds; half an hour of silence is a lot.
    let row = Promise {
        member: MemberId(0),
        run: 0,
        time: ago(30 * 60 * 1000),
        seq: 2_000_000,
        complete: ago(30 * 60 * 1000),
        current: ago(30 * 60 * 1000),
        held: 0,
    };
    let (table, wall_millis) = (u64::MAX, now.millis());
    let rows = vec![row; 1000];
    let promises = Promises { table, now, wall_millis, rows, named: false, reply: true };
    let bytes = frame_bytes(&Message::Promises(promises));
    assert!(bytes <= 9 * 1000 + 64, "{bytes}");
}

#[test]
fn an_entry_costs_little_more_than_its_key_and_value() {
    let op = EntryOp::Put {
        key: Bytes::from(vec![1; 20]),
        value: Bytes::from(vec![2; 100]),
        lease: LeaseId::NONE,
        media_type: MediaType::NONE,
    };
    let time = Timestamp::from_millis(1_795_000_000_000);
    let entry = |i| Arc::new(Entry { seq: i, time: Timestamp(time.0 + i), ops: vec![op.clone()] });
    let origin = Origin { member: MemberId(u64::MAX), run: 3 };
    let (after, through) = (1_000_000, 1_001_000);
    let entries = (after + 1..=through).map(entry).collect();
    let segments = vec![Segment { origin, after, through, entries }];
    let traces = Vec::new();
    let message = Message::Segments(Segments {
        segments,
        collected: time,
        answers: false,
        has_holes: false,
        traces,
        patient: true,
    });
    let bytes = frame_bytes(&message);
    assert!(bytes <= 1000 * (120 + 8) + 80, "{bytes}");
}

#[test]
fn what_breaks_its_own_rules_is_refused() {
    let origin = Origin { member: MemberId(1), run: 1 };
    let put = |key: &'static str| EntryOp::Put {
        key: key.into(),
        value: Bytes::new(),
        lease: LeaseId::NONE,
        media_type: MediaType::NONE,
    };
    let entry =
        |seq, time, key| Arc::new(Entry { seq, time: Timestamp(time), ops: vec![put(key)] });
    let segments = |after, through, entries: &[Arc<Entry>]| {
        let segment = Segment { origin, after, through, entries: entries.to_vec() };
        Message::Segments(Segments {
            segments: vec![segment],
            collected: Timestamp(0),
            answers: false,
            has_holes: false,
            traces: Vec::new(),
            patient: false,
        })
    };
    assert!(sent(&segments(0, 2, &[entry(1, 1, "a"), entry(2, 2, "b")])).is_ok());
    let wrong = [
        segments(0, 0, &[]),
        segments(2, 1, &[]),
        segments(0, 1, &[entry(1, 1, "a"), entry(2, 2, "b")]),
        segments(1, 2, &[entry(1, 1, "a")]),
        segments(0, 2, &[entry(1, 2, "a"), entry(2, 1, "b")]),
        segments(0, 2, &[entry(2, 1, "a"), entry(1, 2, "b")]),
        segments(0, 1, &[entry(1, 1, "")]),
        Message::Buckets(vec![0; BUCKETS_MAX + 1]),
        compared(&[("a", Some("c")), ("b", Some("d"))], &[]),
        compared(&[("c", None), ("d", Some("e"))], &[]),
        compared(&[("c", Some("d")), ("a", Some("b"))], &[]),
        compared(&[("b", Some("a"))], &[]),
        compared(&[], &["b", "a"]),
        compared(&[], &["a", "a"]),
    ];
    assert!(sent(&compared(&[("a", Some("b")), ("b", None)], &["a", "b"])).is_ok());
    for message in wrong {
        assert!(sent(&message).is_err(), "{message:?}");
    }
}

fn compared(spans: &[(&'static str, Option<&'static str>)], keys: &[&'static str]) -> Message {
    let span = |(from, to): &(&'static str, Option<&'static str>)| Span {
        from: (*from).into(),
        to: to.map(Bytes::from),
    };
    let dot = |key: &&'static str| Dot {
        key: (*key).into(),
        time: Timestamp(1),
        head: Head { origin: Origin { member: MemberId(1), run: 1 }, seq: 1 },
    };
    let (differing, gone) = (spans.iter().map(span).collect(), keys.iter().map(dot).collect());
    Message::Compared(Compared { number: 1, differing, gone })
}

/// Changes what is sent of two puts of two origins, and expects a refusal.
fn refuse(what: &str, change: impl FnOnce(&mut pb::Segments, &mut pb::Entries)) {
    let segment = |member| {
        let (lease, media_type) = (LeaseId::NONE, MediaType::NONE);
        let op = EntryOp::Put { key: "k".into(), value: "v".into(), lease, media_type };
        let entry = Entry { seq: 1, time: Timestamp(5), ops: vec![op] };
        let origin = Origin { member: MemberId(member), run: 1 };
        Segment { origin, after: 0, through: 1, entries: vec![Arc::new(entry)] }
    };
    let segments = vec![segment(1), segment(2)];
    let context = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
    let traces = segments.iter().map(|it| TracedEntry { origin: it.origin, seq: 1, context });
    let traces = traces.collect();
    let (collected, has_holes, answers) = (Timestamp(0), false, true);
    let message = Segments { segments, collected, answers, has_holes, traces, patient: false };
    let mut columns = entries::encode_segments(&message);
    assert_eq!(entries::decode_segments(columns.clone()), Ok(message));
    let mut rows = columns.entries.take().expect("there are entries");
    change(&mut columns, &mut rows);
    columns.entries = Some(rows);
    let answer = entries::decode_segments(columns);
    assert!(answer.is_err(), "{what}: {answer:?}");
}

#[test]
fn columns_that_do_not_fit_are_refused() {
    refuse("one run too few", |_, rows| rows.origin_runs.truncate(1));
    refuse("one key too few", |_, rows| rows.keys.truncate(1));
    refuse("one key too many", |_, rows| rows.keys.push("k".into()));
    refuse("one value too few", |_, rows| rows.values.truncate(1));
    refuse("one value too many", |_, rows| rows.values.push("v".into()));
    refuse("a lease of nobody", |_, rows| rows.leases.push(1));
    refuse("a lease that is missing", |_, rows| rows.kinds[0] = pb::OpKind::PutLeased.into());
    refuse("a media type of nobody", |_, rows| rows.media_types.push("a/b".into()));
    refuse("a media type that is none", |_, rows| {
        rows.kinds[0] = pb::OpKind::PutTyped.into();
        (rows.leases, rows.media_types) = (vec![0], vec!["a\nb".into()]);
    });
    refuse("a lease that is none", |_, rows| {
        rows.kinds[0] = pb::OpKind::PutLeased.into();
        rows.leases.push(0);
    });
    let refuse_typed = |what: &str, media_types: &[String]| {
        refuse(what, |_, rows| {
            rows.kinds[0] = pb::OpKind::PutTyped.into();
            (rows.leases, rows.media_types) = (vec![0], media_types.to_vec());
        });
    };
    refuse_typed("a media type that is missing", &[]);
    refuse_typed("a media type that is empty", &[String::new()]);
    refuse_typed("a media type that is too long", &["a".repeat(MediaType::BYTES_MAX + 1)]);
    refuse_typed("a media type too many", &["a/b".to_owned(), "a/b".to_owned()]);
    refuse("an unknown kind of record", |_, rows| {
        (rows.kinds[0], rows.tables) = (pb::OpKind::InternalPut.into(), vec![99]);
    });
    refuse("a kind of record of nobody", |_, rows| rows.tables.push(1));
    refuse("a stamp of an origin without a name", |_, rows| {
        (rows.kinds[0], rows.seen_origins, rows.seen_ages) =
            (pb::OpKind::Delete.into(), vec![2], vec![0]);
        rows.values.truncate(1);
    });
    refuse("an age of nobody", |_, rows| rows.seen_ages.push(1));
    refuse("an origin of no stamp", |_, rows| rows.seen_origins.push(1));
    refuse("an op too many", |_, rows| rows.kinds.push(pb::OpKind::Put.into()));
    refuse("an entry too many", |_, rows| {
        (rows.seqs, rows.times, rows.op_counts) = (vec![1; 3], vec![5; 3], vec![1, 1, 0]);
    });
    refuse("an unknown op", |_, rows| rows.kinds[0] = 99);
    refuse("an op that is none", |_, rows| rows.kinds[0] = 0);
    refuse("ops that are missing", |_, rows| rows.op_counts[1] = u32::MAX);
    refuse("ops of nobody", |_, rows| rows.op_counts[1] = 0);
    refuse("entries that are missing", |columns, _| columns.counts[1] = u32::MAX);
    refuse("entries of nobody", |columns, _| columns.counts[1] = 0);
    refuse("an origin without a name", |columns, _| columns.origins[1] = 2);
    refuse("an origin twice", |columns, _| columns.origins[1] = 0);
    refuse("a segment beyond all numbers", |columns, _| {
        (columns.afters[0], columns.lengths[0]) = (1, u64::MAX);
    });
    refuse("a segment without a length", |columns, _| columns.lengths.truncate(1));
    let refuse_traces = |what: &str, change: fn(&mut pb::Traces)| {
        refuse(what, |columns, _| change(columns.traces.as_mut().expect("there are two")));
    };
    refuse_traces("a trace without an entry", |traces| traces.seqs.truncate(1));
    refuse_traces("a trace of an entry outside", |traces| traces.seqs[1] = 2);
    refuse_traces("a trace of no segment", |traces| traces.segments[1] = 2);
    refuse_traces("a trace that is too short", |traces| traces.contexts[1].truncate(24));
    refuse_traces("a trace without an id", |traces| traces.contexts[1] = vec![0; 25].into());
    refuse_traces("too many traces", |traces| {
        let context = traces.contexts[0].clone();
        (traces.segments, traces.seqs) = (vec![0; TRACES_MAX + 1], vec![1; TRACES_MAX + 1]);
        traces.contexts = vec![context; TRACES_MAX + 1];
    });
}

/// Changes what is sent of a part of a state, of one put of one origin, and expects a refusal.
fn refuse_part(what: &str, change: impl FnOnce(&mut pb::CatchUpPart, &mut pb::PackedEntries)) {
    let origin = Origin { member: MemberId(1), run: 1 };
    let (lease, media_type) = (LeaseId::NONE, MediaType::NONE);
    let op = EntryOp::Put { key: "k".into(), value: "v".into(), lease, media_type };
    let entry = Arc::new(Entry { seq: 1, time: Timestamp(5), ops: vec![op] });
    let head = Head { origin, seq: 1 };
    let part = CatchUpPart {
        heads: vec![head],
        complete: Timestamp::HEARD_MAX,
        collected: Timestamp::HEARD_MAX,
        entries: [(origin, entry)].into_iter().collect(),
        after: None,
        next: None,
        end: Cursor { revision: 1, n: 0 },
        log_bytes: 1,
        more: false,
        progress: u16::MAX,
        floors: vec![OriginFloor { head, time: Timestamp(3) }],
    };
    let mut changed = encode_part(&part);
    assert_eq!(decode_part(changed.clone()), Ok(part));
    let mut entries = changed.entries.take().expect("there is one");
    change(&mut changed, &mut entries);
    changed.entries = Some(entries);
    assert!(decode_part(changed).is_err(), "{what}");
}

#[test]
fn a_part_of_a_state_that_is_none_is_refused() {
    refuse_part("one run too few", |_, packed| packed.origin_runs.clear());
    refuse_part("one run too many", |_, packed| packed.origin_runs.push(2));
    refuse_part("an origin without a name", |_, packed| {
        packed.origin_members.clear();
        packed.origin_runs.clear();
    });
    refuse_part("too many origins", |_, packed| {
        packed.origin_members.resize(HEADS_MAX + 1, 1);
        packed.origin_runs.resize(HEADS_MAX + 1, 1);
    });
    refuse_part("an entry that goes on", |_, packed| {
        packed.entries = [&packed.entries[..], &[0]].concat().into();
    });
    refuse_part("too many entries", |_, packed| {
        packed.entries = packed.entries.repeat(ENTRIES_MAX + 1).into();
    });
    refuse_part("too many ops", |_, packed| {
        // An entry without its only op, and many ops behind each of which there is another.
        let (entry, op) = packed.entries.split_at(packed.entries.len() - 5);
        let more = [&[op[0] | 0x80], &op[1..]].concat();
        packed.entries = [entry, &more.repeat(OPS_MAX), op].concat().into();
    });
    refuse_part("no end", |part, _| part.end = None);
    refuse_part("more than all of it", |part, _| part.progress += 1);
    refuse_part("complete in a time too far", |part, _| part.complete += 1);
    refuse_part("collected in a time too far", |part, _| part.collected += 1);
    refuse_part("a floor without a time", |part, _| part.floor_times.clear());
    refuse_part("a time of no floor", |part, _| part.floor_times.push(1));
}
