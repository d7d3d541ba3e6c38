//! The gossip of one member: what it says to whom, and what it asks for.
//!
//! ```text
//!   clients ──▶ engine ──Committed──▶ Gossip ──Send──▶ peers
//!                 ▲                     │  ▲
//!                 └──────── Apply ──────┘  └── Receive ── peers
//! ```
//!
//! Up to [`Options::direct_max`] members, the origin of an entry sends it straight to all others: one hop, one copy. In larger
//! clusters members only announce which heads have moved, to a few random peers and their two neighbours in a ring, and
//! whoever lacks the entries pulls them from the first who announced them: each entry still travels to each member about
//! once. In either case every member compares digests with a random one from time to time, which repairs
//! whatever was lost.
//!
//! Invariants
//! * Only what is durable is advertised: a head is its acknowledgement.
//! * Every queue in here is a set of origins or members, or has a named bound.

mod barrier;
mod catch_up;
#[cfg(test)]
mod catch_up_tests;
mod compare;
#[cfg(test)]
mod compare_tests;
mod exchange;
mod merge;
#[cfg(test)]
mod offer_tests;
mod peer;
mod promise;
mod revisions;
mod scrub;
mod spread;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::dice::Dice;
use super::entry::{Entry, Segment};
use super::heads::Heads;
use super::message::{
    CatchUp, Compare, Dot, Head, Message, OriginFloor, Segments, Span, TracedEntry,
};
use super::packed::PackedEntries;
use super::pulls::Pulls;
use super::recent::Recent;
use super::settled::{Frontier, Membership};
use super::traced::Traced;
use crate::time::{Now, Timestamp};
use crate::types::{MemberId, Origin, Revision};
use barrier::Barrier;
use catch_up::CatchingUp;
use merge::Merging;
use peer::Peer;
use scrub::Scrub;

/// Heads in one message.
const HEADS_MAX: usize = 4096;
/// Up to so many heads a digest for a new peer has them all.
const INTRODUCTION_HEADS_MAX: usize = 64;
/// Bytes of entries in one message, give or take an entry.
const SEGMENTS_BYTES_MAX: usize = 1 << 20;
/// What a peer may ask for at once.
const PULL_BYTES_MAX: u64 = 4 << 20;
/// Up to so many members promises are renewed as often as the settings say.
const PROMISED_MEMBERS: u64 = 4096;
/// How often what is settled is compared: each time costs a walk over all keys, on both sides.
const SCRUB_MILLIS: u64 = 3_600_000;
/// Peers that are served from the disk at the same time.
const LOADS_MAX: usize = 3;
/// When others may ask again.
const BUSY_MILLIS: u64 = 200;
/// When entries that could not be taken are asked for again.
const NOT_TAKEN_MILLIS: u64 = 1000;
/// What a peer gets at once of our data at most, in bytes.
const CATCH_UP_BYTES_MAX: u64 = 8 << 20;
/// A peer that stays silent so long while it catches up from us, or we from it, is given up.
const CATCH_UP_PATIENCE_MILLIS: u64 = 10_000;
/// While roots match, the time to the next exchange grows by a half.
const BACK_OFF: (u64, u64) = (3, 2);
/// The longest time between two announcements.
const ANNOUNCE_WINDOW_MAX_MILLIS: u64 = 250;
/// What an announced head takes, roughly, in bytes.
const ANNOUNCED_HEAD_BYTES: u64 = 20;
/// Own entries of so few bytes travel with the news of them: who hears it first needs not ask.
const INLINE_BYTES_MAX: usize = 4 << 10;
/// Entries that follow each other sooner than that are announced only: who hears of the second one would lack the first.
const INLINE_PAUSE_MILLIS: u64 = 50;
/// What announcements may take, in bytes per second: with more to say, members say it less often.
const ANNOUNCE_BYTES_PER_SECOND: u64 = 256 << 10;
/// One exchange out of so many goes to a peer that seems dead: that is how the two sides of a cut find each other.
const DEAD_PEER_EXCHANGES: u64 = 4;
/// Exchanges without any move, and yet with different roots, before the reason is looked for.
const MISMATCHES_MAX: u32 = 2;
/// How long a peer has to seem dead before it counts as away.
const AWAY_MILLIS: u64 = 60_000;
/// Promises are made in steps of so many bits of a millisecond, so that they take few bytes.
const PROMISE_STEP_BITS: u32 = 7 + 16;

/// Settings of the gossip.
#[derive(Clone, Debug)]
pub struct Options {
    /// Up to how many members entries go straight from their origin to all.
    pub direct_max: usize,
    /// How often digests are compared, in milliseconds.
    pub exchange_millis: u64,
    /// The longest time between two such comparisons.
    pub exchange_max_millis: u64,
    /// How long moved heads are gathered before they are announced.
    pub announce_millis: u64,
    /// Up to how many bytes own entries travel with the news of them, where that is announced; zero for never.
    pub inline_bytes: usize,
    /// How often promises are made and passed on.
    pub promise_millis: u64,
    /// Memory for the newest entries, in bytes.
    pub recent_bytes: usize,
    /// How often this member compares what is settled with some other; `None` for never.
    pub scrub_millis: Option<u64>,
    /// What one peer is sent without an acknowledgement, in bytes.
    pub push_window_bytes: usize,
    /// A peer that seems dead for so long is away: what was replaced meanwhile is not kept for it at any cost.
    pub away_millis: u64,
    /// What is asked for at once of the data of a peer, in bytes: enough that the next parts are read and sent while one is
    /// applied.
    pub catch_up_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            direct_max: 16,
            exchange_millis: 1000,
            exchange_max_millis: 10_000,
            announce_millis: 5,
            inline_bytes: INLINE_BYTES_MAX,
            promise_millis: 5000,
            scrub_millis: Some(SCRUB_MILLIS),
            recent_bytes: 16 << 20,
            push_window_bytes: 8 << 20,
            away_millis: AWAY_MILLIS,
            catch_up_bytes: CATCH_UP_BYTES_MAX,
        }
    }
}

/// What a member hears, from peers and from its own engine.
#[derive(Debug)]
pub enum Input {
    /// A peer has said something.
    Receive(MemberId, Message),
    /// Own entries that are about to become durable, in order. They may be sent already: should they be lost here, the next
    /// run finds them with those who have them, as the end of this one.
    Offered(Vec<Arc<Entry>>),
    /// Entries have become durable, its own and those of others, in the order of the log.
    Committed {
        /// The entries.
        entries: Vec<(Origin, Arc<Entry>)>,
        /// All heads that have moved: they may be further than the entries where some have nothing left in them.
        heads: Vec<Head>,
    },
    /// Who belongs to the cluster has changed.
    Membership(Arc<Membership>),
    /// Which members seem alive, this one left out.
    Live(Vec<MemberId>),
    /// A promise is durable: all own entries up to this time are those up to this seq.
    Promised {
        /// Up to when.
        time: Timestamp,
        /// Up to which.
        seq: u64,
        /// Whether to say how far those entries are held, since there is too much that members that are away may want.
        is_log_long: bool,
    },
    /// The engine has sent what was asked of it by [`Output::Load`] or [`Output::LoadCatchUp`].
    Loaded(MemberId),
    /// The engine has read what the question of [`Output::Compare`] is about.
    Asking(MemberId, Compare),
    /// A read wants to see what these hold, so many of them at least.
    Barrier {
        /// Its number.
        id: u64,
        /// Members whose answers count.
        voters: Vec<MemberId>,
        /// How many of them it takes.
        needed: usize,
        /// Only what this member wrote has to be here.
        of: Option<MemberId>,
        /// When nobody waits any more, in monotonic milliseconds.
        deadline_millis: u64,
    },
    /// Entries of this peer, of this origin, could not be taken now.
    NotTaken(MemberId, Origin),
    /// What [`Output::FinishCatchUp`] has asked for is in the open batch, or durable.
    TakenOver,
    /// A part of a peer's data could not be taken.
    NotTakenOver {
        /// Since nobody can have written that; otherwise for want of room.
        is_unsound: bool,
    },
    /// All the data of a peer has been taken over, up to here.
    CaughtUp(Timestamp),
    /// This member has just joined: it needs the data.
    CatchUpFrom(MemberId),
    /// This member has collected entries up to here.
    Collected(Timestamp),
    /// Time has passed.
    Tick,
}

/// What the gossip wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message; it may get lost.
    Send(MemberId, Message),
    /// Write entries to the log. They follow those before.
    Apply(MemberId, Segment),
    /// Read entries from the log, send them to a peer as the answer to its pull, then say [`Input::Loaded`].
    Load {
        /// For whom.
        to: MemberId,
        /// Behind which heads.
        wants: Vec<Head>,
        /// How much at most, give or take an entry.
        bytes_max: u64,
    },
    /// Read a part of the data, send it, then say [`Input::Loaded`].
    LoadCatchUp(MemberId, CatchUp),
    /// Write a part of another member's data, or keep it until all of it is there. No heads move. If it cannot be taken, say
    /// [`Input::NotTakenOver`].
    ApplyCatchUp(PackedEntries),
    /// What was kept of another member's data is of no use: the rest of it does not come.
    AbandonCatchUp,
    /// All parts are there: when their contents are written, move the heads there, unless they are further, and say
    /// [`Input::TakenOver`].
    FinishCatchUp {
        /// Where the heads go.
        heads: Vec<Head>,
        /// What the peer has forgotten, this member does not know either.
        collected: Timestamp,
        /// What the peer has given up for space.
        floors: Vec<OriginFloor>,
    },
    /// A peer's clock shows this: everything that is written here from now on comes later.
    Observe(Timestamp),
    /// Ask a peer where it holds other puts than we in these ranges: read our own ones, then say [`Input::Asking`].
    Compare {
        /// Whom.
        to: MemberId,
        /// Where.
        spans: Vec<Span>,
        /// Only puts up to this time count.
        upto: Timestamp,
        /// The number of the question.
        number: u64,
    },
    /// Answer such a question of a peer, then say [`Input::Loaded`].
    AnswerCompare(MemberId, Compare),
    /// Delete these puts, where they still stand: they were deleted long ago.
    Drop(Vec<Dot>),
    /// A peer lacks these puts, which everybody should have: write them anew, and say so.
    Differ(MemberId, Vec<Dot>),
    /// A peer has answered a comparison with what it was not asked about, or its data has no end: say so. Somebody else is
    /// tried.
    Misanswered(MemberId),
    /// Nothing is here any more that others have forgotten: remember that this member is complete up to here, then say
    /// [`Input::CaughtUp`].
    Complete(Timestamp),
    /// Make a promise, after everything accepted so far is durable. Record it, and how far this member is complete, before
    /// [`Input::Promised`].
    Promise {
        /// Up to when this member holds everything.
        complete: Timestamp,
    },
    /// Say in an entry that this member holds runs that have ended so far.
    Seal(Vec<Head>),
    /// Everybody holds everything up to here.
    Settled(Timestamp),
    /// A peer holds our entries up to this one.
    Acknowledged(MemberId, u64),
    /// A read may go on.
    Passed(u64),
    /// A peer has heard of later revisions of this member than its disk had: that is an old copy.
    OldCopy,
    /// The failure detector has something to hear.
    Swim(MemberId, bytes::Bytes),
}

/// Counters of the gossip, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Comparisons with a random peer that were begun.
    pub rounds: u64,
    /// Digests compared with a peer.
    pub exchanges: u64,
    /// Of those, with different roots.
    pub mismatches: u64,
    /// Entries that came more than once.
    pub duplicates: u64,
    /// Entries taken.
    pub taken: u64,
    /// Requests for entries.
    pub pulls: u64,
    /// Of those, not answered in time.
    pub timeouts: u64,
    /// Catch-ups from others that have come to an end.
    pub catch_ups: u64,
    /// State merges that have come to an end.
    pub merges: u64,
    /// Scrubs that have come to an end.
    pub scrubs: u64,
    /// Puts that others lack though everybody should have them.
    pub differences: u64,
    /// Comparisons and catch-ups given up since the peer said what it cannot mean.
    pub misanswers: u64,
}

/// The gossip of one member.
#[derive(Clone, Debug)]
pub struct Gossip {
    me: Origin,
    /// What this member shows its clients.
    revision: Revision,
    /// What it showed first under its present tag.
    first_revision: Revision,
    /// Names the count of arrivals of this process.
    epoch: u32,
    options: Options,
    dice: Dice,
    heads: Heads,
    recent: Recent,
    traced: Traced,
    pulls: Pulls,
    membership: Arc<Membership>,
    frontier: Frontier,
    /// A hash of the members and their runs.
    table: u64,
    /// Those we have had to do with. In large clusters that is a few of them.
    peers: BTreeMap<MemberId, Peer>,
    /// Who seems alive, in order.
    live: Vec<MemberId>,
    /// Those of them who are in the own zone.
    near: Vec<MemberId>,
    /// Since when the other members seem dead, as was seen when we promised.
    dead_since: BTreeMap<MemberId, u64>,
    /// Whether anybody waits for own entries to be acknowledged.
    is_awaited: bool,
    /// Origins whose moves are to be acknowledged, in their own time.
    unacknowledged: BTreeSet<Origin>,
    next_acknowledge: Option<u64>,
    /// When own entries are sent that are gathered, and when some were sent last.
    next_push: Option<u64>,
    pushed_millis: u64,
    /// Origins whose moves are to be announced.
    dirty: BTreeSet<Origin>,
    collected: Timestamp,
    /// When the last of the runs ended that are left out of what is told.
    left_out: Timestamp,
    loads: usize,
    catching_up: Option<CatchingUp>,
    merging: Option<Merging>,
    scrub: Scrub,
    /// Reads that wait.
    barriers: BTreeMap<u64, Barrier>,
    /// The last own entry that may have been sent before it is durable.
    offered: u64,
    /// Up to which own entry others were told, where that is announced, and when.
    told_own: (u64, u64),
    /// Whether this member held anything when it began to catch up.
    had_data: bool,
    exchange_interval: u64,
    next_exchange: u64,
    next_promise: u64,
    /// What the promise that is to be made may say: see [`Self::promised`].
    current_when_pledged: Timestamp,
    next_announce: Option<u64>,
    counts: Counts,
    outputs: Vec<Output>,
}

impl Gossip {
    /// A member that holds `heads`, and whatever `complete` and `settled` say, from its last run.
    pub fn new(
        me: Origin,
        options: Options,
        seed: u64,
        heads: &[Head],
        frontier: Frontier,
        now: Now,
    ) -> Self {
        let mut dice = Dice::new(seed);
        let epoch = u32::try_from(dice.roll() >> 32).expect("the upper half");
        let mut own = Heads::new();
        for head in heads {
            own.advance(*head);
        }
        let (told_own, millis) = ((own.seq(me), 0), now.monotonic_millis);
        Self {
            me,
            revision: Revision(0),
            first_revision: Revision(0),
            epoch,
            heads: own,
            recent: Recent::new(options.recent_bytes),
            traced: Traced::default(),
            pulls: Pulls::new(),
            membership: Arc::default(),
            frontier,
            table: 0,
            peers: BTreeMap::new(),
            live: Vec::new(),
            near: Vec::new(),
            dead_since: BTreeMap::new(),
            is_awaited: true,
            unacknowledged: BTreeSet::new(),
            next_acknowledge: None,
            next_push: None,
            pushed_millis: 0,
            dirty: BTreeSet::new(),
            collected: Timestamp::default(),
            left_out: Timestamp::default(),
            loads: 0,
            catching_up: None,
            merging: None,
            had_data: false,
            scrub: Scrub::new(options.scrub_millis.map(|after| millis + dice.below(after.max(1)))),
            barriers: BTreeMap::new(),
            offered: 0,
            told_own,
            exchange_interval: options.exchange_millis,
            next_exchange: millis + dice.below(options.exchange_millis),
            current_when_pledged: Timestamp::default(),
            next_promise: millis + dice.below(options.promise_millis),
            next_announce: None,
            counts: Counts::default(),
            outputs: Vec::new(),
            dice,
            options,
        }
    }

    /// Takes one input; answers what is to be done about it.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Receive(from, message) => self.receive(from, message, now),
            Input::Offered(entries) => self.offer(entries),
            Input::Committed { entries, heads } => self.committed(entries, &heads, now),
            Input::Membership(membership) => self.membership_changed(membership, now),
            Input::Live(live) => self.live_changed(live, now),
            Input::Promised { time, seq, is_log_long } => {
                self.promised(time, seq, is_log_long, now);
            }
            Input::Loaded(_) => self.loads = self.loads.saturating_sub(1),
            Input::Asking(to, compare) => self.send_compare(to, compare),
            Input::Barrier { id, voters, needed, of, deadline_millis } => {
                self.begin_barrier(id, Barrier::new(voters, needed, of, deadline_millis, now));
            }
            Input::NotTaken(from, origin) => self.not_taken(from, origin, now),
            Input::CaughtUp(complete) => {
                self.frontier.raise_complete(complete);
                self.hurry(now);
            }
            Input::TakenOver => self.taken_over(now),
            Input::NotTakenOver { is_unsound } => self.not_taken_over(is_unsound, now),
            Input::CatchUpFrom(peer) => self.begin_catch_up(peer, now),
            Input::Collected(time) => self.collected = self.collected.max(time),
            Input::Tick => {}
        }
        self.run_timers(now);
        self.send_pulls(now);
        self.announce_when_due(now);
        self.acknowledge_when_due(now);
        self.push_when_due(now);
        self.pass_barriers(now);
        std::mem::take(&mut self.outputs)
    }

    /// When to call [`Self::step`] again at the latest, in monotonic milliseconds.
    pub fn wake_at(&self) -> u64 {
        let catch_up = self.catching_up.as_ref().map(|catching_up| catching_up.deadline_millis);
        let merge = self.merging.as_ref().map(|merging| merging.comparison.deadline_millis);
        let ask = self.next_ask();
        let scrub = self.scrub.wake_at();
        let (announce, acknowledge) = (self.next_announce, self.next_acknowledge);
        let pull = self.pulls.next_deadline();
        let timers = [announce, acknowledge, self.next_push, pull, catch_up, merge, ask, scrub];
        let next = self.next_exchange.min(self.next_promise);
        timers.into_iter().flatten().fold(next, u64::min)
    }

    /// Whether anybody waits for own entries to be acknowledged by others. Somebody may, until this is told.
    pub fn set_awaited(&mut self, on: bool) {
        self.is_awaited = on;
    }

    /// How far this member holds the entries of each origin.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Up to when this member, and everybody, holds everything.
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Who belongs to the cluster.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// When the last scrub ended, in monotonic milliseconds.
    pub fn last_scrub_millis(&self) -> Option<u64> {
        self.scrub.last_millis()
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How far a peer is known to hold this member's entries.
    pub fn acknowledged(&self, peer: MemberId) -> u64 {
        self.peers.get(&peer).map_or(0, |peer| peer.acknowledged)
    }

    /// An own entry is traced: whoever gets it from memory is told.
    pub fn trace(&mut self, entry: TracedEntry) {
        self.traced.note(entry);
    }

    /// How many entries are known to be missing here.
    pub fn lag(&self) -> u64 {
        self.pulls.lag(&self.heads)
    }

    /// The same by the members that wrote them; those of whom nothing is missing are left out.
    pub fn lags(&self) -> BTreeMap<MemberId, u64> {
        self.pulls.lags(&self.heads)
    }

    /// Whether it is being looked for what is here too much.
    pub fn is_merging(&self) -> bool {
        self.merging.is_some()
    }

    /// Whether entries go straight to everybody.
    pub fn is_direct(&self) -> bool {
        self.membership.members.len() <= self.options.direct_max
    }

    /// From whom the data as a whole is being taken over, and how much of it is there, in thousandths.
    pub fn catching_up(&self) -> Option<(MemberId, u16)> {
        self.catching_up.as_ref().map(|catching_up| (catching_up.from, catching_up.progress))
    }

    fn receive(&mut self, from: MemberId, message: Message, now: Now) {
        match message {
            Message::Digest(digest) => self.compare(from, digest, now),
            Message::Buckets(sums) => self.answer_buckets(from, &sums),
            Message::Vector { epoch, arrivals, buckets, heads, left_out, reply } => {
                if !self.lacks_left_out(from, left_out, now) {
                    self.take_vector(from, (epoch, arrivals), &heads);
                }
                if reply {
                    self.send_vector(from, buckets, false);
                }
            }
            Message::Announce(heads) => heads.iter().for_each(|head| self.learn(from, *head)),
            Message::Pull { wants, bytes_max } => self.serve(from, wants, bytes_max),
            Message::Segments(segments) => self.take_segments(from, segments, now),
            Message::Busy { retry_millis } => self.refused(from, retry_millis, now),
            Message::Promises(promises) => self.take_promises(from, promises, now),
            Message::CatchUp(request) => self.serve_catch_up(from, request),
            Message::CatchUpPart(part) => self.take_part(from, *part, now),
            Message::Compare(compare) => self.serve_compare(from, compare),
            Message::Compared(compared) => self.take_compared(from, compared, now),
            Message::Ask(id) => self.answer_ask(from, id),
            Message::Answer(id, digest) => self.take_answer(from, id, digest, now),
            Message::Swim(bytes) => self.outputs.push(Output::Swim(from, bytes)),
            // Those are for whoever looks after the clock.
            Message::AskClock(_) | Message::TellClock(..) | Message::Fence(_) => {}
        }
    }

    fn send(&mut self, to: MemberId, message: Message) {
        self.outputs.push(Output::Send(to, message));
    }

    /// A peer holds an origin's entries up to some seq.
    fn learn(&mut self, from: MemberId, head: Head) {
        if head.origin == self.me {
            self.acknowledged_by(from, head.seq);
        }
        if head.seq <= self.heads.applied(head.origin) {
            return;
        }
        let seq = head.seq.min(self.membership.limit(head.origin));
        self.pulls.learn(from, Head { seq, ..head }, &self.heads);
    }

    fn send_pulls(&mut self, now: Now) {
        // A member that takes over all the data would ask for what is on its way anyhow.
        if self.catching_up.is_some() {
            return;
        }
        for (peer, wants) in self.pulls.due(now.monotonic_millis, &self.heads) {
            self.counts.pulls += 1;
            self.send(peer, Message::Pull { wants, bytes_max: PULL_BYTES_MAX });
        }
    }

    /// Answers a pull: from memory if all of it is there.
    fn serve(&mut self, to: MemberId, wants: Vec<Head>, bytes_max: u64) {
        let budget = usize::try_from(bytes_max.min(PULL_BYTES_MAX)).unwrap_or(usize::MAX);
        let budget = budget.min(SEGMENTS_BYTES_MAX);
        let (mut segments, mut on_disk, mut bytes) = (Vec::new(), Vec::new(), 0);
        for want in wants {
            if want.seq >= self.heads.seq(want.origin) {
                continue;
            }
            match self.recent.behind(want, budget.saturating_sub(bytes)) {
                Some(segment) => {
                    bytes += segment.bytes();
                    segments.push(segment);
                }
                None => on_disk.push(want),
            }
            if bytes >= budget {
                break;
            }
        }
        let is_all = on_disk.is_empty() || bytes >= budget;
        if is_all || !segments.is_empty() {
            let collected = self.collected;
            let traces = self.traced.within(&segments);
            let (answers, has_holes, patient) = (is_all, false, false);
            let segments = Segments { segments, collected, answers, has_holes, traces, patient };
            self.send(to, Message::Segments(segments));
        }
        if is_all {
            return;
        }
        if self.may_load(to) {
            let bytes_max = bytes_max.min(PULL_BYTES_MAX);
            self.outputs.push(Output::Load { to, wants: on_disk, bytes_max });
        }
    }

    /// Whether a peer may be served from the disk now. If not, it is told.
    fn may_load(&mut self, to: MemberId) -> bool {
        if self.loads == LOADS_MAX {
            self.send(to, Message::Busy { retry_millis: BUSY_MILLIS });
            return false;
        }
        self.loads += 1;
        true
    }

    fn take_segments(&mut self, from: MemberId, message: Segments, now: Now) {
        let Segments { segments, collected, answers, has_holes, traces, patient } = message;
        self.peers.entry(from).or_default().is_patient = patient;
        if has_holes || collected > self.frontier.complete() {
            // Tombstones may be gone there that this member has never seen, or writes that were replaced by what it has not seen.
            self.pulls.answered(from, now.monotonic_millis);
            self.begin_catch_up(from, now);
            return;
        }
        for trace in traces {
            self.traced.note(trace);
        }
        let mut is_news = false;
        for segment in segments {
            is_news |= self.take_segment(from, segment);
        }
        if answers {
            self.pulls.answered(from, now.monotonic_millis);
        } else if is_news {
            self.pulls.progress(from, now.monotonic_millis);
        }
    }

    fn take_segment(&mut self, from: MemberId, mut segment: Segment) -> bool {
        let origin = segment.origin;
        let limit = self.membership.limit(origin);
        if segment.through > limit {
            segment.entries.retain(|entry| entry.seq <= limit);
            segment.through = limit;
        }
        let applied = self.heads.applied(origin);
        let entries = segment.entries.len();
        let (after, through) = (segment.after, segment.through);
        if after > applied {
            // It follows something that has not come.
            self.learn(from, Head { origin, seq: through });
            return false;
        }
        let news = segment.behind(applied);
        let taken = news.as_ref().map_or(0, |news| news.entries.len());
        self.counts.duplicates += (entries - taken) as u64;
        self.counts.taken += taken as u64;
        let Some(news) = news else {
            // The acknowledgement may have been lost.
            if through <= self.heads.seq(origin) && origin.member == from {
                self.acknowledge(origin);
            }
            self.pulls.demote(from, origin);
            return false;
        };
        self.heads.note_applied(origin, news.through);
        self.outputs.push(Output::Apply(from, news));
        self.pulls.satisfy(origin, &self.heads);
        true
    }

    /// The engine had no room, or no use, for some entries: they have to come again, but not at once.
    fn not_taken(&mut self, from: MemberId, origin: Origin, now: Now) {
        let wanted = self.heads.applied(origin);
        self.heads.forget_applied(origin);
        self.learn(from, Head { origin, seq: wanted });
        let until = now.monotonic_millis + NOT_TAKEN_MILLIS;
        self.pulls.refused(from, until, now.monotonic_millis);
    }

    fn refused(&mut self, from: MemberId, retry_millis: u64, now: Now) {
        let until = now.monotonic_millis + retry_millis.min(CATCH_UP_PATIENCE_MILLIS);
        self.pulls.refused(from, until, now.monotonic_millis);
        if let Some(catching_up) = &mut self.catching_up
            && catching_up.from == from
        {
            catching_up.postpone(until);
        }
        if let Some(merging) = &mut self.merging
            && merging.comparison.with == from
        {
            merging.comparison.deadline_millis = until;
        }
    }

    fn committed(&mut self, entries: Vec<(Origin, Arc<Entry>)>, heads: &[Head], now: Now) {
        let mut moved = BTreeSet::new();
        for (origin, entry) in entries {
            let seq = entry.seq;
            if origin != self.me || seq > self.offered {
                self.recent.push(origin, self.heads.seq(origin), entry);
            }
            self.heads.advance(Head { origin, seq });
            moved.insert(origin);
        }
        for head in heads {
            self.heads.advance(*head);
            moved.insert(head.origin);
        }
        for origin in &moved {
            self.pulls.satisfy(*origin, &self.heads);
        }
        self.spread(&moved, now);
    }

    /// Whether peers are to have own entries before they are durable here: somebody waits, and they are not merely announced.
    pub fn takes_offers(&self) -> bool {
        self.is_awaited && self.is_direct()
    }

    fn offer(&mut self, entries: Vec<Arc<Entry>>) {
        if !self.takes_offers() {
            return;
        }
        for entry in entries {
            let after = self.offered.max(self.heads.seq(self.me));
            // What lies between may be on its way to the disk without ever having been offered: then this one waits for it, and for
            // its own commit. Peers take a stretch for all that is there.
            if entry.seq == after + 1 {
                self.offered = entry.seq;
                self.recent.push(self.me, after, entry);
            }
        }
        for peer in self.live.clone() {
            self.push_to(peer);
        }
    }

    /// In very large clusters promises become rarer, so that what a member spends on them does not grow with the cluster.
    fn promise_interval(&self) -> u64 {
        let members = self.membership.members.len() as u64;
        self.options.promise_millis * members.max(PROMISED_MEMBERS) / PROMISED_MEMBERS
    }

    fn live_changed(&mut self, mut live: Vec<MemberId>, now: Now) {
        live.retain(|peer| *peer != self.me.member);
        live.sort_unstable();
        let before = std::mem::replace(&mut self.live, live);
        self.find_neighbours();
        for peer in before.iter().filter(|peer| self.live.binary_search(peer).is_err()) {
            self.pulls.forget(*peer);
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.told = None;
                peer.forget_pushes();
            }
        }
        let new = self.live.iter().filter(|peer| before.binary_search(peer).is_err());
        let new: Vec<_> = new.copied().collect();
        self.ask_arrived(&new);
        if self.is_direct() {
            for peer in new {
                self.send_digest(peer, true);
                // What is there now is in the digest: it asks for that itself.
                let head = self.heads.seq(self.me);
                self.peers.entry(peer).or_default().pushed = Some(head);
            }
        }
        self.hurry(now);
    }

    fn membership_changed(&mut self, membership: Arc<Membership>, now: Now) {
        let before = std::mem::replace(&mut self.membership, membership);
        self.find_neighbours();
        self.table = self.hash_of_members();
        let unsaid = self.frontier.membership_changed(&before, &self.membership, &self.heads);
        if !unsaid.is_empty() {
            self.outputs.push(Output::Seal(unsaid));
        }
        self.peers.retain(|peer, _| self.membership.members.contains_key(peer));
        // Whoever holds more of a run that has ended says so, and until then nobody takes it.
        self.pulls.limit(|origin| self.membership.limit(origin), &self.heads);
        self.hurry(now);
    }

    fn run_timers(&mut self, now: Now) {
        let millis = now.monotonic_millis;
        self.counts.timeouts += self.pulls.expire(millis).len() as u64;
        self.catch_up_timeout(now);
        self.merge_timeout(now);
        self.scrub_when_due(now);
        if millis >= self.next_exchange {
            self.begin_exchange(now);
        }
        if millis >= self.next_promise {
            self.next_promise = millis + self.dice.jitter(self.promise_interval());
            self.conclude();
            if !self.membership.members.is_empty() {
                let complete = self.frontier.complete();
                self.current_when_pledged = self.frontier.current();
                self.outputs.push(Output::Promise { complete });
            }
        }
    }
}
