//! Messages as they are sent: `proto/starling/peer.proto` in Rust, both ways.
//!
//! Every [`Message`] can be encoded, and comes back as it was, but for the times in [`Promises`], which are rounded down.
//! Whatever bytes come in, they become a message that keeps its own rules, or [`Malformed`]. Keys and values that come out
//! share the memory of the frame that they came in.
//!
//! Pure: no socket, task or clock.

mod compare;
mod entries;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message as _;
use starling_proto::starling::peer::v1 as pb;

use crate::replication::message::{
    CatchUp, CatchUpPart, ClockReading, Cursor, Digest, Head, Message, OriginFloor, Promise,
    Promises,
};
use crate::time::Timestamp;
use crate::types::{MemberId, Origin, Revision};

/// The version of what members say to each other. Members of different versions do not exchange anything.
pub const PROTOCOL: u32 = 1;

/// The largest frame.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The largest message, in pieces: a delete of several million keys is one entry, and cannot be cut.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The largest answer to a member that joins: a table of ten thousand members is a few megabytes.
pub(super) const JOIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a piece carries, so that the frame around it is not too large.
const PIECE_BYTES: usize = FRAME_BYTES_MAX - PIECE_OVERHEAD_BYTES;
/// The tags, lengths and numbers of a piece, at most.
const PIECE_OVERHEAD_BYTES: usize = 32;

/// The most heads in a list, and origins of entries. Twenty runs of ten thousand members.
const HEADS_MAX: usize = 1 << 18;
/// The most buckets of heads: a mask of 64 bits names them.
const BUCKETS_MAX: usize = 64;
/// The most members that a table of promises can have.
const PROMISES_MAX: usize = 1 << 16;
/// The most entries in a message.
const ENTRIES_MAX: usize = 1 << 20;
/// The most ops in a message.
const OPS_MAX: usize = 1 << 22;

/// Ages of promises are in units of this many bits of a timestamp: 128 milliseconds.
const AGE_SHIFT: u32 = 23;
/// The age of zero when it is as late as can be.
const AGE_MAX: u64 = (u64::MAX >> AGE_SHIFT) + 1;

/// What a message without lists takes, roughly.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// The same of a row of a list.
const ROW_BYTES: usize = 24;
/// The same of an entry that is traced.
const TRACE_BYTES: usize = 40;

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A message that no receiver takes: it has more of something than messages may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message is too large")
    }
}

impl std::error::Error for TooLarge {}

/// How many bytes a message takes when it is sent, without what HTTP/2 puts around it.
pub fn frame_bytes(message: &Message) -> usize {
    let bytes = encode(message).encoded_len();
    let pieces = if bytes > FRAME_BYTES_MAX { bytes.div_ceil(PIECE_BYTES) } else { 0 };
    bytes + pieces * PIECE_OVERHEAD_BYTES
}

/// How many bytes a message takes in memory and when it is sent, roughly, but at little cost.
pub fn weight(message: &Message) -> usize {
    let rows = |count: usize| count * ROW_BYTES;
    let lists = match message {
        Message::Digest(digest) => rows(digest.moved.len()),
        Message::Buckets(sums) => rows(sums.len()),
        Message::Vector { heads, .. } | Message::Announce(heads) => rows(heads.len()),
        Message::Pull { wants, .. } => rows(wants.len()),
        Message::Segments(segments) => {
            let bytes = segments.segments.iter().map(|segment| segment.bytes() + ROW_BYTES);
            bytes.sum::<usize>() + segments.traces.len() * TRACE_BYTES
        }
        Message::Busy { .. } => 0,
        Message::Promises(promises) => rows(promises.rows.len()),
        Message::CatchUp(catch_up) => rows(catch_up.heads.len()),
        Message::CatchUpPart(part) => {
            part.entries.bytes() + rows(part.heads.len() + part.floors.len())
        }
        Message::Compare(compare) => {
            let spans = compare.sums.iter().map(|sum| sum.span.from.len());
            let dots = compare.dots.iter().map(|dot| dot.key.len());
            rows(compare.sums.len() + 2 * compare.dots.len()) + spans.chain(dots).sum::<usize>()
        }
        Message::Compared(compared) => {
            let spans = compared.differing.iter().map(|span| span.from.len());
            let dots = compared.gone.iter().map(|dot| dot.key.len());
            let count = compared.differing.len() + 2 * compared.gone.len();
            rows(count) + spans.chain(dots).sum::<usize>()
        }
        Message::Ask(_) => 0,
        Message::Answer(_, digest) => rows(digest.moved.len()),
        Message::Swim(bytes) => bytes.len(),
        Message::AskClock(_) | Message::TellClock(..) | Message::Fence(_) => 0,
    };
    lists + MESSAGE_OVERHEAD_BYTES
}

/// A message as frames, one after the other.
pub fn frames(message: &Message) -> Result<Vec<pb::Frame>, TooLarge> {
    let frame = encode(message);
    if !is_within_limits(&frame) || !fits(message) {
        return Err(TooLarge);
    }
    let bytes = frame.encoded_len();
    if bytes <= FRAME_BYTES_MAX {
        return Ok(vec![frame]);
    }
    if bytes > MESSAGE_BYTES_MAX {
        return Err(TooLarge);
    }
    Ok(pieces(frame.encode_to_vec().into()))
}

fn pieces(mut frame: Bytes) -> Vec<pb::Frame> {
    let total_bytes = frame.len() as u64;
    let mut pieces = Vec::with_capacity(frame.len().div_ceil(PIECE_BYTES));
    while !frame.is_empty() {
        let data = frame.split_to(PIECE_BYTES.min(frame.len()));
        let piece = pb::Piece { data, last: frame.is_empty(), total_bytes };
        pieces.push(pb::Frame { body: Some(pb::frame::Body::Piece(piece)) });
    }
    pieces
}

/// Whether a receiver takes what does not show in the frame.
fn fits(message: &Message) -> bool {
    let Message::CatchUpPart(part) = message else { return true };
    part.entries.len() <= ENTRIES_MAX && part.entries.ops() <= OPS_MAX
}

fn is_within_limits(frame: &pb::Frame) -> bool {
    use pb::frame::Body;
    let rows = |heads: &Option<pb::Heads>| heads.as_ref().map_or(0, |heads| heads.members.len());
    match &frame.body {
        Some(Body::Digest(digest)) => rows(&digest.moved) <= HEADS_MAX,
        Some(Body::Buckets(buckets)) => buckets.sums.len() <= BUCKETS_MAX,
        Some(Body::Vector(vector)) => rows(&vector.heads) <= HEADS_MAX,
        Some(Body::Announce(heads)) => heads.members.len() <= HEADS_MAX,
        Some(Body::Pull(pull)) => rows(&pull.wants) <= HEADS_MAX,
        Some(Body::Segments(segments)) => entries::fit(segments.entries.as_ref()),
        Some(Body::Promises(promises)) => promises.seqs.len() <= PROMISES_MAX,
        Some(Body::CatchUp(catch_up)) => rows(&catch_up.heads) <= HEADS_MAX,
        Some(Body::CatchUpPart(part)) => {
            rows(&part.heads) <= HEADS_MAX
                && rows(&part.floors) <= HEADS_MAX
                && part.entries.as_ref().is_none_or(|it| it.origin_members.len() <= HEADS_MAX)
        }
        Some(Body::Compare(compare)) => {
            compare::fit(compare.bounds.as_ref(), compare.dots.as_ref())
        }
        Some(Body::Compared(compared)) => {
            compare::fit(compared.bounds.as_ref(), compared.gone.as_ref())
        }
        Some(Body::Answer(answer)) => {
            answer.digest.as_ref().is_none_or(|digest| rows(&digest.moved) <= HEADS_MAX)
        }
        Some(Body::Ask(_) | Body::AskClock(_) | Body::TellClock(_) | Body::Fence(_)) => true,
        Some(Body::Greeting(_) | Body::Busy(_) | Body::Swim(_) | Body::Piece(_)) | None => true,
    }
}

/// Puts the pieces of frames together.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What there is of the current frame, and how long it will be.
    open: Option<(BytesMut, usize)>,
}

impl Assembler {
    /// The message that a frame completes, if it does.
    pub fn take(&mut self, frame: pb::Frame) -> Result<Option<Message>, Malformed> {
        match frame.body {
            Some(pb::frame::Body::Piece(piece)) => self.take_piece(&piece),
            _ if self.open.is_some() => Err(Malformed("a frame between pieces")),
            _ => decode(frame).map(Some),
        }
    }

    /// Memory grows as pieces arrive, not by what they promise.
    fn take_piece(&mut self, piece: &pb::Piece) -> Result<Option<Message>, Malformed> {
        let total = usize::try_from(piece.total_bytes).unwrap_or(usize::MAX);
        if total > MESSAGE_BYTES_MAX {
            return Err(Malformed("pieces of too large a frame"));
        }
        let (data, expected) = self.open.get_or_insert_with(|| (BytesMut::new(), total));
        if piece.data.is_empty() || *expected != total || piece.data.len() > total - data.len() {
            return Err(Malformed("a piece that does not fit the others"));
        }
        data.extend_from_slice(&piece.data);
        if piece.last != (data.len() == total) {
            return Err(Malformed("a last piece too early or too late"));
        }
        if !piece.last {
            return Ok(None);
        }
        let data = self.open.take().map(|(data, _)| data.freeze()).unwrap_or_default();
        decode_bytes(data).map(Some)
    }
}

/// Reads an encoded frame that holds a message.
pub fn decode_bytes(frame: impl Buf) -> Result<Message, Malformed> {
    decode(pb::Frame::decode(frame).map_err(|_| Malformed("not a frame"))?)
}

/// A message as a frame, however large.
pub fn encode(message: &Message) -> pb::Frame {
    use pb::frame::Body;
    let body = match message {
        Message::Digest(digest) => Body::Digest(encode_digest(digest)),
        Message::Buckets(sums) => Body::Buckets(pb::Buckets { sums: sums.clone() }),
        Message::Vector { epoch, arrivals, buckets, heads, left_out, reply } => {
            let (heads, buckets) = (encode_heads(heads), *buckets);
            let (epoch, arrivals, left_out) = (*epoch, *arrivals, left_out.0);
            Body::Vector(pb::Vector { buckets, heads, reply: *reply, epoch, arrivals, left_out })
        }
        Message::Announce(heads) => Body::Announce(encode_heads(heads).unwrap_or_default()),
        Message::Pull { wants, bytes_max } => {
            Body::Pull(pb::Pull { wants: encode_heads(wants), bytes_max: *bytes_max })
        }
        Message::Segments(segments) => Body::Segments(entries::encode_segments(segments)),
        Message::Busy { retry_millis } => Body::Busy(pb::Busy { retry_millis: *retry_millis }),
        Message::Promises(promises) => Body::Promises(encode_promises(promises)),
        Message::CatchUp(catch_up) => Body::CatchUp(pb::CatchUp {
            heads: encode_heads(&catch_up.heads),
            cursor: catch_up.cursor.map(encode_cursor),
            bytes_max: catch_up.bytes_max,
            end: catch_up.end.map(encode_cursor),
        }),
        Message::CatchUpPart(part) => Body::CatchUpPart(encode_part(part)),
        Message::Compare(compare) => Body::Compare(compare::encode_compare(compare)),
        Message::Compared(compared) => Body::Compared(compare::encode_compared(compared)),
        Message::Ask(id) => Body::Ask(pb::Ask { id: *id }),
        Message::Answer(id, digest) => {
            Body::Answer(pb::Answer { id: *id, digest: Some(encode_digest(digest)) })
        }
        Message::Swim(bytes) => Body::Swim(bytes.clone()),
        Message::AskClock(asked_millis) => {
            Body::AskClock(pb::AskClock { asked_millis: *asked_millis })
        }
        Message::Fence(fenced) => Body::Fence(pb::Fence { fenced: *fenced }),
        Message::TellClock(asked_millis, reading) => Body::TellClock(pb::TellClock {
            asked_millis: *asked_millis,
            wall_millis: reading.wall_millis,
            ahead_millis: reading.clock_millis.wrapping_sub(reading.wall_millis).cast_signed(),
            time_ahead_millis: reading.time_millis.wrapping_sub(reading.wall_millis).cast_signed(),
        }),
    };
    pb::Frame { body: Some(body) }
}

/// The message in a frame.
pub fn decode(frame: pb::Frame) -> Result<Message, Malformed> {
    use pb::frame::Body;
    Ok(match frame.body.ok_or(Malformed("an unknown kind of frame"))? {
        Body::Greeting(_) => return Err(Malformed("a greeting that is not the first frame")),
        Body::Piece(_) => return Err(Malformed("a piece where a message has to be")),
        Body::Digest(digest) => Message::Digest(decode_digest(digest)?),
        Body::Buckets(buckets) => {
            check_count(buckets.sums.len(), BUCKETS_MAX)?;
            Message::Buckets(buckets.sums)
        }
        Body::Vector(pb::Vector { buckets, heads, reply, epoch, arrivals, left_out }) => {
            let (heads, left_out) = (decode_heads(heads)?, Timestamp(left_out));
            Message::Vector { epoch, arrivals, buckets, heads, left_out, reply }
        }
        Body::Announce(heads) => Message::Announce(decode_heads(Some(heads))?),
        Body::Pull(pb::Pull { wants, bytes_max }) => {
            Message::Pull { wants: decode_heads(wants)?, bytes_max }
        }
        Body::Segments(segments) => Message::Segments(entries::decode_segments(segments)?),
        Body::Busy(pb::Busy { retry_millis }) => Message::Busy { retry_millis },
        Body::Promises(promises) => Message::Promises(decode_promises(&promises)?),
        Body::CatchUp(catch_up) => Message::CatchUp(CatchUp {
            heads: decode_heads(catch_up.heads)?,
            cursor: catch_up.cursor.map(decode_cursor),
            bytes_max: catch_up.bytes_max,
            end: catch_up.end.map(decode_cursor),
        }),
        Body::CatchUpPart(part) => Message::CatchUpPart(Box::new(decode_part(part)?)),
        Body::Compare(compare) => Message::Compare(compare::decode_compare(compare)?),
        Body::Compared(compared) => Message::Compared(compare::decode_compared(compared)?),
        Body::Ask(pb::Ask { id }) => Message::Ask(id),
        Body::Answer(pb::Answer { id, digest }) => {
            Message::Answer(id, decode_digest(digest.ok_or(Malformed("an answer without one"))?)?)
        }
        Body::Swim(bytes) => Message::Swim(bytes),
        Body::AskClock(pb::AskClock { asked_millis }) => Message::AskClock(asked_millis),
        Body::Fence(pb::Fence { fenced }) => Message::Fence(fenced),
        Body::TellClock(told) => {
            let wall_millis = told.wall_millis;
            let clock_millis = wall_millis.wrapping_add_signed(told.ahead_millis);
            let time_millis = wall_millis.wrapping_add_signed(told.time_ahead_millis);
            for millis in [wall_millis, clock_millis, time_millis] {
                heard(Timestamp::from_millis(millis))?;
            }
            let reading = ClockReading { wall_millis, clock_millis, time_millis };
            Message::TellClock(told.asked_millis, reading)
        }
    })
}

fn check_count(count: usize, max: usize) -> Result<(), Malformed> {
    if count <= max { Ok(()) } else { Err(Malformed("too long a list")) }
}

/// Checks that all columns have as many rows as the first.
fn check_columns(rows: usize, columns: &[usize]) -> Result<(), Malformed> {
    let equal = columns.iter().all(|column| *column == rows);
    if equal { Ok(()) } else { Err(Malformed("columns of different lengths")) }
}

fn encode_heads(heads: &[Head]) -> Option<pb::Heads> {
    (!heads.is_empty()).then(|| pb::Heads {
        members: heads.iter().map(|head| head.origin.member.0).collect(),
        runs: heads.iter().map(|head| head.origin.run).collect(),
        seqs: heads.iter().map(|head| head.seq).collect(),
    })
}

fn decode_heads(heads: Option<pb::Heads>) -> Result<Vec<Head>, Malformed> {
    let Some(heads) = heads else { return Ok(Vec::new()) };
    check_count(heads.members.len(), HEADS_MAX)?;
    check_columns(heads.members.len(), &[heads.runs.len(), heads.seqs.len()])?;
    let origins = heads.members.into_iter().zip(heads.runs);
    let rows = origins.zip(heads.seqs).map(|((member, run), seq)| {
        let origin = Origin { member: MemberId(member), run };
        Head { origin, seq }
    });
    Ok(rows.collect())
}

fn encode_digest(digest: &Digest) -> pb::Digest {
    let Digest { epoch, arrivals, root, told, after, until, moved, left_out, .. } = digest;
    let Digest { reply, revision, former, .. } = digest;
    pb::Digest {
        epoch: *epoch,
        arrivals: *arrivals,
        root: *root,
        told_epoch: told.map(|(epoch, _)| epoch),
        told_arrivals: told.map(|(_, arrivals)| arrivals),
        moved: encode_heads(moved),
        moved_after: arrivals.wrapping_sub(*after),
        moved_until: arrivals.wrapping_sub(*until),
        left_out: left_out.0,
        reply: *reply,
        revision: revision.0,
        former: former.0,
    }
}

fn decode_digest(digest: pb::Digest) -> Result<Digest, Malformed> {
    let after = digest.arrivals.wrapping_sub(digest.moved_after);
    let until = digest.arrivals.wrapping_sub(digest.moved_until);
    let (revision, former) = (Revision(digest.revision), Revision(digest.former));
    let pb::Digest { epoch, arrivals, root, told_epoch, told_arrivals, moved, .. } = digest;
    let pb::Digest { left_out, reply, .. } = digest;
    if told_epoch.is_some() != told_arrivals.is_some() {
        return Err(Malformed("a half of what the sender was told"));
    }
    let (told, moved) = (told_epoch.zip(told_arrivals), decode_heads(moved)?);
    let left_out = Timestamp(left_out);
    Ok(Digest {
        epoch,
        arrivals,
        root,
        told,
        after,
        until,
        moved,
        left_out,
        reply,
        revision,
        former,
    })
}

fn encode_promises(promises: &Promises) -> pb::Promises {
    let Promises { table, now, wall_millis, rows, named, reply } = promises;
    let named_rows = if *named { rows.as_slice() } else { &[] };
    let ages = |time: fn(&Promise) -> Timestamp| {
        rows.iter().map(|row| age_of(time(row), *now)).collect::<Vec<_>>()
    };
    pb::Promises {
        table: *table,
        now: now.0,
        wall_millis: *wall_millis,
        named: *named,
        members: named_rows.iter().map(|row| row.member.0).collect(),
        runs: named_rows.iter().map(|row| row.run).collect(),
        time_ages: ages(|row| row.time),
        seqs: rows.iter().map(|row| row.seq).collect(),
        complete_ages: ages(|row| row.complete),
        current_later: rows.iter().map(|row| later(row, *now)).collect(),
        held_rows: (0..).zip(rows).filter(|(_, row)| row.held > 0).map(|(at, _)| at).collect(),
        held: rows.iter().map(|row| row.held).filter(|held| *held > 0).collect(),
        reply: *reply,
    }
}

fn decode_promises(promises: &pb::Promises) -> Result<Promises, Malformed> {
    let count = promises.seqs.len();
    check_count(count, PROMISES_MAX)?;
    let (times, completes) = (&promises.time_ages, &promises.complete_ages);
    let currents = &promises.current_later;
    check_columns(count, &[times.len(), completes.len(), currents.len()])?;
    let names = if promises.named { count } else { 0 };
    check_columns(names, &[promises.members.len(), promises.runs.len()])?;

    let now = Timestamp(promises.now);
    let name = |column: &[u64], i: usize| column.get(i).copied().unwrap_or_default();
    let row = |i: usize| {
        Ok(Promise {
            member: MemberId(name(&promises.members, i)),
            run: name(&promises.runs, i),
            time: time_of(times[i], now)?,
            seq: promises.seqs[i],
            complete: time_of(completes[i], now)?,
            current: time_of(completes[i].wrapping_add_signed(currents[i].wrapping_neg()), now)?,
            held: 0,
        })
    };
    let mut rows = (0..count).map(row).collect::<Result<Vec<_>, Malformed>>()?;
    check_columns(promises.held_rows.len(), &[promises.held.len()])?;
    for (at, held) in promises.held_rows.iter().zip(&promises.held) {
        let row = usize::try_from(*at).ok().and_then(|at| rows.get_mut(at));
        row.ok_or(Malformed("a row that is not there"))?.held = *held;
    }
    Ok(Promises {
        table: promises.table,
        now,
        wall_millis: promises.wall_millis,
        rows,
        named: promises.named,
        reply: promises.reply,
    })
}

/// How much less the age of what is current is than that of what is complete.
fn later(row: &Promise, now: Timestamp) -> i64 {
    age_of(row.complete, now).wrapping_sub(age_of(row.current, now)).cast_signed()
}

/// How far a time is back, rounded up: a claim may shrink on the way, never grow.
fn age_of(time: Timestamp, now: Timestamp) -> u64 {
    now.0.saturating_sub(time.0).div_ceil(1 << AGE_SHIFT)
}

fn time_of(age: u64, now: Timestamp) -> Result<Timestamp, Malformed> {
    if age > AGE_MAX {
        return Err(Malformed("an age from before all time"));
    }
    Ok(Timestamp(now.0.saturating_sub(age.saturating_mul(1 << AGE_SHIFT))))
}

fn encode_cursor(cursor: Cursor) -> pb::Cursor {
    pb::Cursor { revision: cursor.revision, n: cursor.n }
}

fn decode_cursor(cursor: pb::Cursor) -> Cursor {
    Cursor { revision: cursor.revision, n: cursor.n }
}

fn encode_part(part: &CatchUpPart) -> pb::CatchUpPart {
    pb::CatchUpPart {
        heads: encode_heads(&part.heads),
        complete: part.complete.0,
        entries: entries::encode_packed(&part.entries),
        after: part.after.map(encode_cursor),
        next: part.next.map(encode_cursor),
        end: Some(encode_cursor(part.end)),
        log_bytes: part.log_bytes,
        more: part.more,
        progress: u32::from(part.progress),
        collected: part.collected.0,
        floors: encode_heads(&part.floors.iter().map(|floor| floor.head).collect::<Vec<_>>()),
        floor_times: part.floors.iter().map(|floor| floor.time.0).collect(),
    }
}

/// A time that clocks may go on from.
fn heard(time: Timestamp) -> Result<Timestamp, Malformed> {
    if time <= Timestamp::HEARD_MAX { Ok(time) } else { Err(Malformed("a time too far from now")) }
}

fn decode_part(part: pb::CatchUpPart) -> Result<CatchUpPart, Malformed> {
    let progress = u16::try_from(part.progress).map_err(|_| Malformed("progress out of range"))?;
    let floors = decode_heads(part.floors)?;
    check_columns(floors.len(), &[part.floor_times.len()])?;
    let times = part.floor_times.into_iter().map(Timestamp);
    let floors = floors.into_iter().zip(times).map(|(head, time)| OriginFloor { head, time });
    Ok(CatchUpPart {
        floors: floors.collect(),
        heads: decode_heads(part.heads)?,
        complete: heard(Timestamp(part.complete))?,
        collected: heard(Timestamp(part.collected))?,
        entries: entries::decode_packed(part.entries)?,
        after: part.after.map(decode_cursor),
        next: part.next.map(decode_cursor),
        end: part.end.map(decode_cursor).ok_or(Malformed("a part of a log without an end"))?,
        log_bytes: part.log_bytes,
        more: part.more,
        progress,
    })
}
