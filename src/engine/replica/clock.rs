//! The clock of a member with peers: what it follows, whether it may write, and what comes too early.
//!
//! * After a start the clock goes on shortly after where it had stopped, until peers confirm what the wall clock shows: an
//!   entry of a time that is far ahead could not be taken back. Who hears of nobody believes its wall clock after a while.
//! * Until then, or until it has heard what time it is for somebody else, a member that was started again writes nothing: it may
//!   have been given an old copy of its disk. Then what it knows as the last time is long ago, and the others may have settled,
//!   and forgotten, what came after that. Nobody can take in an entry of that time any more. (`doubt.rs`)
//! * From then on it goes on by monotonic time, and the wall clock only counts as long as others confirm it.
//! * Who sees its own wall clock jump forgets what it has heard of the others', and asks again at once: all may have jumped
//!   together. Until enough of them have answered nothing changes.
//! * If it is off the median of the live members all the same, or has given out times that are, the member *fences* itself:
//!   it takes no writes of clients, until that is over.
//! * Who is fenced says so to all others, every few seconds: they take over its leases.
//! * Entries and promises of times that are further ahead than clocks may be apart are not taken before they are due. So
//!   one clock that is ahead does not push the others.

use std::collections::BTreeMap;

use super::{Effect, Replica};
use crate::engine::command::Command;
use crate::error::Error;
use crate::replication::clocks::apart;
use crate::replication::entry::Segment;
use crate::replication::message::{ClockReading, Message, Promises};
use crate::replication::{Clocks, Dice};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

/// How far clocks may be apart, unless somebody says otherwise.
const SKEW_MILLIS_MAX: u64 = 500;
/// How often a peer is asked what its clocks show.
const ASK_MILLIS: u64 = 2000;
/// New peers that are asked at once.
const ASK_AT_ONCE_MAX: usize = 3;
/// After its wall clock has jumped a member asks as many, so many times: those of the others may jump a little later.
const JUMP_ROUNDS: u32 = 4;
/// How long it waits between two of those, however often its wall clock jumps.
const JUMP_ASK_MILLIS: u64 = 500;
/// Who has heard of nobody for so long after its start, or after its wall clock has jumped, believes its wall clock.
const ALONE_MILLIS: u64 = 5000;
/// A wall clock that jumps all the time, or peers that do not answer, keep a member from writing for so long after its start.
const DOUBT_MILLIS_MAX: u64 = 20_000;
/// A restarted member goes on so far behind the last time that is known, since entries may have left that were never durable.
const RESTART_MILLIS: u64 = 1000;
/// Who is fenced says so to everybody so often ...
const FENCE_MILLIS: u64 = 3000;
/// ... and is taken for fenced for so long.
const FENCE_AGE_MAX_MILLIS: u64 = 10_000;

/// Settings of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOptions {
    /// How far the clocks of members may be apart.
    pub skew_millis_max: u64,
}

impl Default for ClockOptions {
    fn default() -> Self {
        Self { skew_millis_max: SKEW_MILLIS_MAX }
    }
}

/// What has become of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockNews {
    /// It is so many milliseconds ahead of the others': no writes are taken until that is over.
    Fenced(i64),
    /// It is not off any more.
    Unfenced,
    /// The wall clock has jumped by so many milliseconds, and nobody has confirmed that: it does not count.
    Jumped(i64),
    /// What the wall clock shows counts again.
    Confirmed,
}

/// What the clock of a member shows compared to those of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockFacts {
    /// How far the clock that entries follow is ahead of the median of the live members'. `None` while too few have answered.
    pub skew_millis: Option<i64>,
    /// The same of the wall clock.
    pub wall_skew_millis: Option<i64>,
    /// Whether the wall clock was confirmed in this run.
    pub is_confirmed: bool,
    /// Whether no writes are taken because of it.
    pub is_fenced: bool,
}

/// What there is to know about the clock in a cluster.
pub(super) struct ClockWatch {
    clocks: Clocks,
    /// Whether the wall clock was confirmed in this run, or is believed for want of anybody to ask.
    is_confirmed: bool,
    /// Whether this member does not know yet what the others may have settled, or hold of its own: it writes nothing.
    is_unsure: bool,
    /// Whether a peer has said what time it is there.
    is_told: bool,
    /// Whether it has jumped since.
    has_jumped: bool,
    is_fenced: bool,
    /// The median of the live members' clocks when it was found last, and when that was.
    median: Option<(u64, Now)>,
    /// How far the clock here was ahead then, and the wall clock.
    skews: Option<(i64, i64)>,
    /// When others are told next that this member is fenced.
    next_fence: u64,
    /// Others that have said that they are, and until when that counts.
    fenced_peers: BTreeMap<MemberId, u64>,
    started_millis: u64,
    /// Since when it waits for answers: since its start, or since its wall clock has jumped.
    waits_since: u64,
    /// Whether the wall clock has jumped, and too few have answered since.
    has_forgotten: bool,
    next_ask: u64,
    /// How many rounds of questions a jump has left to be asked, and when the next one may be.
    jump_rounds: u32,
    next_jump_round: u64,
}

impl ClockWatch {
    /// `is_unsure` of one that goes on with a store that had peers.
    pub(super) fn new(options: ClockOptions, is_unsure: bool, now: Now) -> Self {
        Self {
            clocks: Clocks::new(options.skew_millis_max),
            is_confirmed: false,
            is_unsure,
            is_told: false,
            has_jumped: false,
            is_fenced: false,
            median: None,
            skews: None,
            next_fence: 0,
            fenced_peers: BTreeMap::new(),
            started_millis: now.monotonic_millis,
            waits_since: now.monotonic_millis,
            has_forgotten: false,
            next_ask: now.monotonic_millis,
            jump_rounds: 0,
            next_jump_round: 0,
        }
    }

    pub(super) fn wake_at(&self) -> u64 {
        let fence = if self.is_fenced { self.next_fence } else { u64::MAX };
        self.next_ask.min(fence)
    }

    pub(super) fn is_unsure(&self) -> bool {
        self.is_unsure
    }

    /// There is no doubt any more.
    pub(super) fn be_sure(&mut self) {
        self.is_unsure = false;
    }

    /// Whether it is known what time it is for others.
    pub(super) fn knows_the_time(&self) -> bool {
        self.is_told || self.is_confirmed
    }

    /// Whether no peer has said what time it is there, for so long that nobody is waited for any more.
    pub(super) fn has_been_alone(&self, now: Now) -> bool {
        !self.is_told && now.monotonic_millis >= self.alone_millis()
    }

    /// Whether this member has doubted for as long as it may.
    pub(super) fn has_doubted(&self, now: Now) -> bool {
        now.monotonic_millis >= self.started_millis + DOUBT_MILLIS_MAX
    }

    /// When it has been alone for long enough, if it has heard of nobody until then.
    pub(super) fn alone_millis(&self) -> u64 {
        let alone = self.waits_since + ALONE_MILLIS;
        let doubt = self.started_millis + DOUBT_MILLIS_MAX;
        if self.is_unsure { alone.min(doubt) } else { alone }
    }

    /// Sees whether the wall clock has jumped. Then the others are asked again.
    fn look(&mut self, now: Now) {
        if !self.clocks.look(now) {
            return;
        }
        self.skews = None;
        self.has_forgotten = true;
        self.waits_since = now.monotonic_millis;
        self.jump_rounds = JUMP_ROUNDS;
        self.next_ask = self.next_ask.min(self.next_jump_round.max(now.monotonic_millis));
    }

    /// Whom to ask now.
    fn whom_to_ask(&mut self, live: &[MemberId], dice: &mut Dice, now: Now) -> Vec<MemberId> {
        if now.monotonic_millis < self.next_ask {
            return Vec::new();
        }
        let is_jump_round = self.jump_rounds > 0;
        if is_jump_round {
            self.next_jump_round = now.monotonic_millis + JUMP_ASK_MILLIS;
            self.jump_rounds -= 1;
        }
        self.next_ask = if self.jump_rounds > 0 {
            self.next_jump_round
        } else {
            now.monotonic_millis + dice.jitter(ASK_MILLIS)
        };
        let asks_many = is_jump_round || self.clocks.wants_more(live, now);
        let count = if asks_many { ASK_AT_ONCE_MAX } else { 1 };
        let first = usize::try_from(dice.below(live.len().max(1) as u64)).unwrap_or(0);
        live.iter().cycle().skip(first).take(count.min(live.len())).copied().collect()
    }
}

impl Replica {
    /// At start: where the clock goes on from.
    pub(super) fn start_clock(&mut self, now: Now) {
        let last = self.writer.time().millis();
        let wall_millis = if self.writer.is_peered() {
            now.wall_millis.min(last + RESTART_MILLIS).max(last)
        } else {
            now.wall_millis
        };
        self.writer.trust_clock(wall_millis, now);
    }

    /// Whether this member takes no writes because of its clock.
    pub fn is_fenced(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.clock.is_fenced)
    }

    /// Whether the clock is right enough to write.
    pub(in crate::engine) fn may_write(&self) -> bool {
        !self.is_unsure() && !self.is_fenced()
    }

    /// Whether a peer has said of itself that it takes no writes because of its clock.
    pub fn is_peer_fenced(&self, peer: MemberId, now: Now) -> bool {
        let until = self.cluster.as_ref().and_then(|it| it.clock.fenced_peers.get(&peer));
        until.is_some_and(|until| *until > now.monotonic_millis)
    }

    /// What the clock shows compared to those of the others.
    pub fn clock_facts(&self) -> ClockFacts {
        let Some(ClockWatch { skews, is_confirmed, is_fenced, .. }) =
            self.cluster.as_ref().map(|cluster| &cluster.clock)
        else {
            return ClockFacts::default();
        };
        ClockFacts {
            skew_millis: skews.map(|(skew, _)| skew),
            wall_skew_millis: skews.map(|(_, wall_skew)| wall_skew),
            is_confirmed: *is_confirmed,
            is_fenced: *is_fenced,
        }
    }

    /// Tells all others whether this member is fenced.
    fn tell_fence(&mut self, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.clock.next_fence = now.monotonic_millis + self.dice.jitter(FENCE_MILLIS);
        let message = Message::Fence(cluster.clock.is_fenced);
        let told = cluster.live.iter().map(|peer| Effect::Send(*peer, message.clone()));
        self.effects.extend(told);
    }

    fn hear_fence(&mut self, from: MemberId, is_fenced: bool, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        let fenced = &mut cluster.clock.fenced_peers;
        fenced.retain(|_, until| *until > now.monotonic_millis);
        fenced.remove(&from);
        if is_fenced && cluster.directory.members.contains_key(&from) {
            fenced.insert(from, now.monotonic_millis + FENCE_AGE_MAX_MILLIS);
        }
    }

    /// Whether a command may be executed now, as far as the clock is concerned.
    pub(super) fn check_fence(&self, command: &Command) -> Result<(), Error> {
        // A compaction is a member's own, and leaves no entry.
        let is_local = matches!(command, Command::Compact { .. });
        if is_local || self.may_write() {
            return Ok(());
        }
        Err(if self.is_unsure() { Error::NotReady } else { Error::ClockSkew })
    }

    /// What others are told of the clocks here. Until the wall clock is confirmed, it is what counts: they have to find out.
    fn clock_reading(&self, now: Now) -> ClockReading {
        let is_confirmed = self.cluster.as_ref().is_some_and(|it| it.clock.is_confirmed);
        let wall_millis = now.wall_millis;
        let clock_millis = if is_confirmed { self.writer.clock_millis(now) } else { wall_millis };
        ClockReading { wall_millis, clock_millis, time_millis: self.writer.time().millis() }
    }

    /// Asks somebody what time it is, when that is due.
    pub(super) fn tick_clock(&mut self, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.clock.look(now);
        if cluster.clock.is_fenced && now.monotonic_millis >= cluster.clock.next_fence {
            self.tell_fence(now);
        }
        let Some(cluster) = &mut self.cluster else { return };
        if now.monotonic_millis < cluster.clock.next_ask {
            return;
        }
        for peer in cluster.clock.whom_to_ask(&cluster.live, &mut self.dice, now) {
            self.effects.push(Effect::Send(peer, Message::AskClock(now.monotonic_millis)));
        }
        self.judge_clock(now);
    }

    /// Somebody new is alive: if too little is known, asks at once.
    pub(super) fn hurry_clock(&mut self, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.clock.clocks.wants_more(&cluster.live, now) {
            cluster.clock.next_ask = now.monotonic_millis;
            self.tick_clock(now);
        }
    }

    /// Takes what a peer says about clocks. Answers what is left for the gossip: nothing, if it comes too early.
    pub(super) fn receive_clock(
        &mut self,
        from: MemberId,
        message: Message,
        now: Now,
    ) -> Option<Message> {
        if let Some(cluster) = &mut self.cluster {
            cluster.clock.look(now);
        }
        match message {
            Message::AskClock(asked) => {
                let answer = Message::TellClock(asked, self.clock_reading(now));
                self.effects.push(Effect::Send(from, answer));
                None
            }
            Message::TellClock(asked, reading) => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.clock.clocks.hear(from, asked, reading, now);
                }
                self.judge_clock(now);
                self.hear_time(reading, now);
                None
            }
            Message::Fence(is_fenced) => {
                self.hear_fence(from, is_fenced, now);
                None
            }
            // All rows of it are older than its own time. To take none of them is as if it had been lost.
            Message::Promises(Promises { now: time, .. }) if time > self.due_time(now) => None,
            message => Some(message),
        }
    }

    /// What is written from now on is later than what a peer has written or heard of. Not if that is further ahead than clocks
    /// may be apart.
    fn hear_time(&mut self, reading: ClockReading, now: Now) {
        let time = Timestamp::from_millis(reading.time_millis.saturating_add(1));
        if !self.is_unsure() || time > self.due_time(now) {
            return;
        }
        self.writer.observe(time);
        if let Some(cluster) = &mut self.cluster {
            cluster.clock.is_told = true;
        }
    }

    /// Up to when entries are taken now.
    fn due_time(&self, now: Now) -> Timestamp {
        let Some(cluster) = &self.cluster else { return Timestamp(u64::MAX) };
        let reading = self.clock_reading(now);
        let median = cluster.clock.median.map_or(0, |(median, then)| {
            median + now.monotonic_millis.saturating_sub(then.monotonic_millis)
        });
        let millis = reading.clock_millis.max(median);
        let skew = cluster.clock.clocks.skew_millis_max();
        // All of the last millisecond.
        Timestamp(Timestamp::from_millis(millis.saturating_add(skew).saturating_add(1)).0 - 1)
    }

    /// The part of a segment that may be applied now, and whether something else is left.
    pub(super) fn due_part(&self, mut segment: Segment, now: Now) -> (Option<Segment>, bool) {
        let due = self.due_time(now);
        let Some(early) = segment.entries.iter().position(|entry| entry.time > due) else {
            return (Some(segment), false);
        };
        let Some(last) = early.checked_sub(1).and_then(|last| segment.entries.get(last)) else {
            return (None, true);
        };
        segment.through = last.seq;
        segment.entries.truncate(early);
        (Some(segment), true)
    }

    /// Draws the conclusions of what the clocks of the live members show.
    pub(super) fn judge_clock(&mut self, now: Now) {
        let own = self.clock_reading(now);
        let Some(cluster) = &mut self.cluster else { return };
        let clock = &mut cluster.clock;
        clock.look(now);
        let skew = clock.clocks.skew_millis_max();
        // Not in and out all the time at the very limit.
        let limit = if clock.is_fenced { skew - skew / 4 } else { skew };
        let Some(verdict) = clock.clocks.judge(own, &cluster.live, limit, now) else {
            let is_alone = now.monotonic_millis >= clock.alone_millis();
            if is_alone && !clock.is_confirmed && !clock.is_fenced {
                clock.is_confirmed = true;
                self.writer.trust_clock(now.wall_millis, now);
            }
            return;
        };
        clock.median = Some((verdict.median_millis, now));
        clock.skews = Some((verdict.skew_millis, verdict.wall_skew_millis));
        // Of many members a few may have jumped together, and answer first.
        clock.has_forgotten &= !verdict.is_firm && now.monotonic_millis < clock.alone_millis();
        if verdict.confirms && !clock.has_forgotten {
            clock.is_confirmed = true;
            self.writer.trust_clock(now.wall_millis, now);
        }
        if !verdict.is_firm {
            return;
        }
        let jump = apart(own.wall_millis, own.clock_millis);
        let has_jumped = clock.is_confirmed && !verdict.confirms && jump.unsigned_abs() > skew;
        if std::mem::replace(&mut clock.has_jumped, has_jumped) != has_jumped {
            let news = if has_jumped { ClockNews::Jumped(jump) } else { ClockNews::Confirmed };
            self.effects.push(Effect::Clock(news));
        }
        let is_off = verdict.off_millis.is_some();
        if std::mem::replace(&mut clock.is_fenced, is_off) != is_off {
            let news = verdict.off_millis.map_or(ClockNews::Unfenced, ClockNews::Fenced);
            self.effects.push(Effect::Clock(news));
            self.tell_fence(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic_millis: u64, jump: u64) -> Now {
        Now { wall_millis: 1_000_000 + monotonic_millis + jump, monotonic_millis }
    }

    /// When a member asks, and how many, while its wall clock is a minute ahead at some times.
    fn asks(live: &[MemberId], is_ahead: impl Fn(u64) -> bool, millis: u64) -> Vec<(u64, usize)> {
        let mut clock = ClockWatch::new(ClockOptions::default(), false, at(0, 0));
        let mut dice = Dice::new(7);
        let mut asks = Vec::new();
        for millis in 0..millis {
            let now = at(millis, if is_ahead(millis) { 60_000 } else { 0 });
            clock.look(now);
            let mut asked = clock.whom_to_ask(live, &mut dice, now);
            for peer in &asked {
                let (wall_millis, clock_millis) = (now.wall_millis, now.wall_millis);
                let reading = ClockReading { wall_millis, clock_millis, time_millis: 0 };
                clock.clocks.hear(*peer, millis, reading, now);
            }
            let count = asked.len();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), count, "nobody is asked twice at once");
            asks.extend(Some((millis, count)).filter(|_| count > 0));
        }
        asks
    }

    #[test]
    fn after_a_jump_all_are_asked_at_once_and_a_few_times_more() {
        for (peers, count) in [(1, 1), (2, 2), (3, 3), (8, 3)] {
            let live: Vec<_> = (1..=peers).map(MemberId).collect();
            let asks = asks(&live, |millis| millis >= 500, 12_000);
            let many: Vec<_> = asks.iter().copied().filter(|(at, _)| *at < 2001).collect();
            assert_eq!(many, [0, 500, 1000, 1500, 2000].map(|at| (at, count)), "{peers} peers");
            let rest = &asks[5..];
            assert!(rest.iter().all(|(at, count)| *at >= 3500 && *count == 1), "{rest:?}");
            assert!((4..=7).contains(&rest.len()), "{rest:?}");
        }
    }

    #[test]
    fn a_clock_that_flutters_causes_no_flood_of_questions() {
        let live: Vec<_> = (1..=8).map(MemberId).collect();
        for pause in [1, 7, 300, 1000] {
            let asks = asks(&live, |millis| millis % (2 * pause) >= pause, 20_000);
            // The first is the one of the start.
            let gaps = asks[1..].windows(2).map(|pair| pair[1].0 - pair[0].0);
            assert!(gaps.min().is_some_and(|gap| gap >= JUMP_ASK_MILLIS), "every {pause} ms");
            assert!(asks.iter().all(|(_, count)| *count <= ASK_AT_ONCE_MAX));
        }
    }
}
