//! What members say to each other.
//!
//! Messages may get lost, come twice or in another order: each one makes sense alone. `proto/peer.proto` has them as
//! they are sent.

use bytes::Bytes;

use super::entry::Segment;
use super::packed::PackedEntries;
use crate::time::{Stamp, Timestamp};
use crate::types::{MemberId, Origin, Revision, TraceContext};

/// How far someone holds an origin's entries: every one up to `seq`, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// Whose entries.
    pub origin: Origin,
    /// The last of them; zero for none.
    pub seq: u64,
}

/// One message from one member to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Where the sender is.
    Digest(Digest),
    /// The roots of two members differ, and neither knows why: sums over parts of the sender's heads.
    Buckets(Vec<u64>),
    /// The sender's heads in some buckets, all of them.
    Vector {
        /// As in [`Digest`].
        epoch: u32,
        /// As in [`Digest`].
        arrivals: u64,
        /// Which buckets, one bit each, lowest first.
        buckets: u64,
        /// The heads.
        heads: Vec<Head>,
        /// As in [`Digest`].
        left_out: Timestamp,
        /// Whether the sender wants the receiver's in turn.
        reply: bool,
    },
    /// Heads of the sender that have moved, for whom it may concern.
    Announce(Vec<Head>),
    /// Asks for entries behind these heads.
    Pull {
        /// What the sender holds of each origin that it wants.
        wants: Vec<Head>,
        /// About how many bytes it takes at once, in one part or several.
        bytes_max: u64,
    },
    /// Entries: an answer to a pull, or what the sender itself has just written.
    Segments(Segments),
    /// No pull or catch-up is served now.
    Busy {
        /// When to ask again, in milliseconds.
        retry_millis: u64,
    },
    /// How far members have promised, and how far they are complete.
    Promises(Promises),
    /// Asks for the data itself, by someone whom the log does not reach back to.
    CatchUp(CatchUp),
    /// A part of the data.
    CatchUpPart(Box<CatchUpPart>),
    /// Asks in which ranges the receiver holds other puts than the sender.
    Compare(Compare),
    /// Answers that.
    Compared(Compared),
    /// Asks where the receiver is, for a read with this number.
    Ask(u64),
    /// Answers that.
    Answer(u64, Digest),
    /// A message of the failure detector.
    Swim(Bytes),
    /// Asks what the receiver's clocks show. The sender's monotonic clock, for the answer.
    AskClock(u64),
    /// Answers that.
    TellClock(u64, ClockReading),
    /// Whether the sender takes no writes because of its clock. Said now and then while it does not, and once when it does
    /// again.
    Fence(bool),
}

/// What the clocks of a member show, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The wall clock.
    pub wall_millis: u64,
    /// The clock that entries follow.
    pub clock_millis: u64,
    /// The greatest time that it has given out or heard of.
    pub time_millis: u64,
}

/// Where a member is: what its peer needs to see whether it lacks anything.
///
/// A member numbers the moves of its heads by arrival. The peer remembers up to which number it has been told, and says so
/// in its own digests; so only what has moved since travels.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Digest {
    /// Names the count of arrivals, which starts anew with the process.
    pub epoch: u32,
    /// Arrivals so far.
    pub arrivals: u64,
    /// A hash of all heads.
    pub root: u64,
    /// The receiver's epoch and arrivals, as far as the sender was told of them.
    pub told: Option<(u32, u64)>,
    /// `moved` begins behind this number of arrivals ...
    pub after: u64,
    /// ... and ends with this one: `arrivals`, unless that were too many heads for one message.
    pub until: u64,
    /// The sender's heads that have moved between the two.
    pub moved: Vec<Head>,
    /// Runs that ended up to then are left out of those, since everybody is thought to hold them; zero if none is.
    pub left_out: Timestamp,
    /// Whether the sender wants a digest in turn.
    pub reply: bool,
    /// The sender's revision; zero if it is no news, or has no tag.
    pub revision: Revision,
    /// The greatest revision that the receiver told the sender of before its present process; zero if that was said already,
    /// or if there is none.
    pub former: Revision,
}

/// Entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// At most one per origin.
    pub segments: Vec<Segment>,
    /// The sender has collected up to here: who is not complete up to there cannot go on by segments.
    pub collected: Timestamp,
    /// This answers a pull: the request is done, whether or not everything came.
    pub answers: bool,
    /// Some of what was asked for cannot be had so, since there are holes in it: the receiver needs the state.
    pub has_holes: bool,
    /// Which of the entries are traced; at most [`TRACES_MAX`]. Nothing depends on it.
    pub traces: Vec<TracedEntry>,
    /// Nobody waits for an acknowledgement: it may come a little later, together with others.
    pub patient: bool,
}

/// The most entries of one message that are traced.
pub const TRACES_MAX: usize = 1024;

/// An entry that somebody wants to see on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedEntry {
    /// Whose entry.
    pub origin: Origin,
    /// Which.
    pub seq: u64,
    /// Where its spans belong.
    pub context: TraceContext,
}

/// Up to where a member may lack writes that were replaced, which it has given up for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginFloor {
    /// Up to this entry of that origin.
    pub head: Head,
    /// None of those is later than this.
    pub time: Timestamp,
}

/// What a member has promised, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Who.
    pub member: MemberId,
    /// Its current run.
    pub run: u64,
    /// All entries of this run up to this time ...
    pub time: Timestamp,
    /// ... are those up to this seq.
    pub seq: u64,
    /// It holds everything that any member wrote up to this time.
    pub complete: Timestamp,
    /// The same, but for runs that have ended.
    pub current: Timestamp,
    /// All members that are not away hold the entries of this run up to this seq; zero if it does not say.
    pub held: u64,
}

/// Promises of all members, as far as the sender knows, and its clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promises {
    /// A hash of the members and runs, in order.
    pub table: u64,
    /// The sender's hybrid time.
    pub now: Timestamp,
    /// The sender's wall clock, in milliseconds since 1970.
    pub wall_millis: u64,
    /// In the order of the members. Without their names, if the receiver is known to have the same table.
    pub rows: Vec<Promise>,
    /// Whether `member` and `run` of the rows mean anything.
    pub named: bool,
    /// Whether the sender wants the same in turn.
    pub reply: bool,
}

/// Asks for the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// All heads of the sender.
    pub heads: Vec<Head>,
    /// Behind what it has got already, as the receiver named it; `None` from the start.
    pub cursor: Option<Cursor>,
    /// Where that ends, as the receiver named it with the first part; `None` before.
    pub end: Option<Cursor>,
    /// About how many bytes it takes at once.
    pub bytes_max: u64,
}

/// A place in the sender's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The revision there, which means nothing to anyone else.
    pub revision: u64,
    /// The number of the row.
    pub n: u32,
}

/// Keys from one on, up to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: Bytes,
    /// The first that is not in it; `None` for no end.
    pub to: Option<Bytes>,
}

/// What the sender holds in a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSum {
    /// Which.
    pub span: Span,
    /// How many keys live in it.
    pub keys: u64,
    /// The sum of the hashes of their puts.
    pub hash: u64,
}

/// A put by which a key lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dot {
    /// The key.
    pub key: Bytes,
    /// When it was put.
    pub time: Timestamp,
    /// By which entry.
    pub head: Head,
}

impl Dot {
    /// What orders it among all puts.
    pub fn stamp(&self) -> Stamp {
        Stamp { time: self.time, origin: self.head.origin }
    }
}

/// A question of a state merge: what is held where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Ranges of many keys, in order, no two of which overlap. An answer takes no more than a walk over all keys.
    pub sums: Vec<RangeSum>,
    /// All puts of ranges of few, in the order of their keys.
    pub dots: Vec<Dot>,
    /// Only puts up to this time count.
    pub upto: Timestamp,
    /// Names the question, for the answer.
    pub number: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Of the question.
    pub number: u64,
    /// Of the ranges in question, in their order, those that are not the same here.
    pub differing: Vec<Span>,
    /// Of the puts in question, in their order, those that are known here, and deleted.
    pub gone: Vec<Dot>,
}

/// A part of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUpPart {
    /// The heads of the sender when it sent it. Those of the first part hold when the last part is there.
    pub heads: Vec<Head>,
    /// How far the sender is complete, likewise.
    pub complete: Timestamp,
    /// Up to when the sender has forgotten what was deleted.
    pub collected: Timestamp,
    /// What lives, and the tombstones, in an order in which the sender might have received it. Ops that mean nothing any
    /// more are left out.
    pub entries: PackedEntries,
    /// Behind which place it begins: where the part before said to go on.
    pub after: Option<Cursor>,
    /// Where to go on; `None` for the last part.
    pub next: Option<Cursor>,
    /// Where the sender's log ended when the first part was asked for: what stands later is not part of this.
    pub end: Cursor,
    /// What the sender's log takes, in bytes, roughly.
    pub log_bytes: u64,
    /// Whether another part follows that need not be asked for.
    pub more: bool,
    /// How much of the log is done, in thousandths.
    pub progress: u16,
    /// With the last part: what the sender has given up for space.
    pub floors: Vec<OriginFloor>,
}
