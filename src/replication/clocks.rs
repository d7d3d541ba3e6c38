//! What the clocks of the live members show, and what follows for the own one.
//!
//! A member asks one peer after the other, and times the answers: the peer's clock showed what it says at some moment
//! between question and answer. Answers that took longer than the skew that is allowed say nothing.
//!
//! Two clocks matter of each member. The *wall clock* may jump at any time. The clock that entries *follow* goes on with
//! the monotonic clock from when the wall clock was confirmed last: when more than half of the live members' wall clocks
//! agreed with it. A member whose followed clock is off the median of all is the one to stop writing; of an even number
//! the lower of the two in the middle counts, so of two members it is the one ahead.
//!
//! All wall clocks may jump together: whoever sees its own one jump forgets what it has heard of the others. What they showed
//! before theirs did would make the own one look off, or one that was set back look right.
//!
//! Pure: all times are arguments.

use std::collections::{BTreeMap, VecDeque};

use super::message::ClockReading;
use crate::time::Now;
use crate::types::MemberId;

/// Peers whose clocks are remembered.
const PEERS_MAX: usize = 64;
/// Answers that are remembered of each.
const ANSWERS_MAX: usize = 4;
/// Older answers say nothing.
const ANSWER_AGE_MAX_MILLIS: u64 = 60_000;
/// So many peers are enough to judge by, or all live ones if those are fewer.
const PEERS_ENOUGH: usize = 3;
/// A wall clock has jumped if it is so much further from the monotonic one than it was, or nearer. Between looking at one and at the
/// other some ten milliseconds may pass where many threads wait for a processor. To take more than that for a jump by mistake costs a few questions.
const JUMP_MILLIS: u64 = 250;
/// More than any clock shows: the year 6429.
const MILLIS_MAX: u64 = 1 << 47;
/// As good as any skew at all: 34 years.
const SKEW_MILLIS_ANY: u64 = 1 << 40;

/// An answer of a peer: what its clocks show when the own monotonic clock shows zero.
#[derive(Clone, Copy, Debug)]
struct Answer {
    wall: i64,
    clock: i64,
    /// What its next entry comes after, if that is later than its clock shows.
    latest: i64,
    /// How long it took.
    took_millis: u64,
    at_millis: u64,
}

/// What follows from the clocks of all live members that have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The median of what their next entries come after, the own ones included.
    pub median_millis: u64,
    /// How far the own clock is ahead, if that is too far.
    pub off_millis: Option<i64>,
    /// How far the own clock is ahead of the median of those of all.
    pub skew_millis: i64,
    /// The same of what the wall clock shows.
    pub wall_skew_millis: i64,
    /// Whether more than half of the wall clocks, the own one included, agree with the own one.
    pub confirms: bool,
    /// Whether enough of them have answered to find that one is off.
    pub is_firm: bool,
}

/// The clocks of peers.
#[derive(Clone, Debug)]
pub struct Clocks {
    skew_millis_max: u64,
    answers: BTreeMap<MemberId, VecDeque<Answer>>,
    /// What the own wall clock shows when the own monotonic clock shows zero, once somebody has looked.
    own_wall: Option<i64>,
    /// Questions from before, by the own monotonic clock, were asked before the own wall clock jumped.
    since_millis: u64,
}

impl Clocks {
    /// Nothing is known yet. Zero allows any skew.
    pub fn new(skew_millis_max: u64) -> Self {
        let skew_millis_max = if skew_millis_max == 0 { SKEW_MILLIS_ANY } else { skew_millis_max };
        Self {
            skew_millis_max: skew_millis_max.min(SKEW_MILLIS_ANY),
            answers: BTreeMap::new(),
            own_wall: None,
            since_millis: 0,
        }
    }

    /// How far clocks may be apart.
    pub fn skew_millis_max(&self) -> u64 {
        self.skew_millis_max
    }

    /// Looks at the own clocks: answers whether the wall clock has jumped. Then all that was heard is forgotten, and answers to
    /// what was asked before say nothing. Many small steps count as the jump that they make together.
    pub fn look(&mut self, now: Now) -> bool {
        let wall = signed(now.wall_millis) - signed(now.monotonic_millis);
        let has_jumped = self.own_wall.is_some_and(|then| then.abs_diff(wall) > JUMP_MILLIS);
        if has_jumped {
            self.answers.clear();
            self.since_millis = now.monotonic_millis;
        }
        if has_jumped || self.own_wall.is_none() {
            self.own_wall = Some(wall);
        }
        has_jumped
    }

    /// A peer has answered a question that was asked when the own monotonic clock showed `asked_millis`.
    pub fn hear(&mut self, peer: MemberId, asked_millis: u64, reading: ClockReading, now: Now) {
        let at_millis = now.monotonic_millis;
        let Some(took_millis) = at_millis.checked_sub(asked_millis) else { return };
        if took_millis > self.skew_millis_max || asked_millis < self.since_millis {
            return;
        }
        let between = signed(asked_millis + took_millis / 2);
        let answer = Answer {
            wall: signed(reading.wall_millis) - between,
            clock: signed(reading.clock_millis) - between,
            latest: signed(reading.clock_millis.max(reading.time_millis)) - between,
            took_millis,
            at_millis,
        };
        if !self.answers.contains_key(&peer) && self.answers.len() == PEERS_MAX {
            let last = |answers: &VecDeque<Answer>| answers.back().map(|answer| answer.at_millis);
            let oldest = self.answers.iter().min_by_key(|(_, answers)| last(answers));
            let oldest = oldest.map(|(peer, _)| *peer);
            oldest.and_then(|oldest| self.answers.remove(&oldest));
        }
        let answers = self.answers.entry(peer).or_default();
        if answers.len() == ANSWERS_MAX {
            answers.pop_front();
        }
        answers.push_back(answer);
    }

    /// Whether nobody has been asked yet, or too few.
    pub fn wants_more(&self, live: &[MemberId], now: Now) -> bool {
        self.heard(live, now).count() < live.len().min(PEERS_ENOUGH)
    }

    /// What is known of each live peer that has answered lately. The newest answer counts, unless it took long and
    /// agrees with one that did not.
    fn heard<'a>(&'a self, live: &'a [MemberId], now: Now) -> impl Iterator<Item = Answer> + 'a {
        let since = now.monotonic_millis.saturating_sub(ANSWER_AGE_MAX_MILLIS);
        self.answers.iter().filter(|(peer, _)| live.binary_search(peer).is_ok()).filter_map(
            move |(_, answers)| {
                let newest = answers.back().filter(|answer| answer.at_millis >= since)?;
                let may_be_newest = |answer: &&Answer| {
                    let apart = answer.clock.abs_diff(newest.clock);
                    apart.max(answer.wall.abs_diff(newest.wall)) <= newest.took_millis
                };
                let same = answers.iter().filter(|answer| answer.at_millis >= since);
                same.filter(may_be_newest).min_by_key(|answer| answer.took_millis).copied()
            },
        )
    }

    /// What the clocks of live peers say about the own ones; `None` if none of those has answered. `live` is in order. Not more
    /// than `limit_millis` is too far.
    pub fn judge(
        &self,
        own: ClockReading,
        live: &[MemberId],
        limit_millis: u64,
        now: Now,
    ) -> Option<Verdict> {
        let heard: Vec<_> = self.heard(live, now).collect();
        if heard.is_empty() {
            return None;
        }
        let all = |own: u64, of: fn(&Answer) -> i64| {
            let mut all: Vec<_> = heard.iter().map(|answer| millis(of(answer), now)).collect();
            all.push(own);
            all.sort_unstable();
            all
        };
        let latest = own.clock_millis.max(own.time_millis);
        let walls = all(own.wall_millis, |answer| answer.wall);
        let median_millis = lower_median(&all(latest, |answer| answer.latest));
        let agrees = |wall: &&u64| wall.abs_diff(own.wall_millis) <= self.skew_millis_max;
        let confirms = 2 * walls.iter().filter(agrees).count() > walls.len();
        // A wall clock that is confirmed is right, and what it shows is what all will follow in a moment.
        let right = if confirms { lower_median(&walls) } else { 0 };
        let ahead = apart(latest, median_millis.max(right));
        let behind = apart(own.clock_millis, lower_median(&all(own.clock_millis, |it| it.clock)));
        let limit = i64::try_from(limit_millis).unwrap_or(i64::MAX);
        let off_millis = if ahead > limit {
            Some(ahead)
        } else {
            Some(behind).filter(|behind| *behind < -limit && !confirms)
        };
        let skew_millis = off_millis.unwrap_or(behind);
        let wall_skew_millis = apart(own.wall_millis, lower_median(&walls));
        let is_firm = heard.len() >= live.len().min(PEERS_ENOUGH);
        Some(Verdict {
            median_millis,
            off_millis,
            skew_millis,
            wall_skew_millis,
            confirms,
            is_firm,
        })
    }
}

/// Of an even number, the lower of the two in the middle.
fn lower_median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// How far one time is ahead of another.
pub fn apart(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(i64::MAX)
}

fn signed(millis: u64) -> i64 {
    millis.min(MILLIS_MAX).cast_signed()
}

/// What a clock shows now.
fn millis(offset: i64, now: Now) -> u64 {
    u64::try_from(offset + signed(now.monotonic_millis)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_000_000;

    fn at(monotonic_millis: u64) -> Now {
        Now { wall_millis: WALL + monotonic_millis, monotonic_millis }
    }

    fn reading(wall_millis: u64, clock_millis: u64) -> ClockReading {
        ClockReading { wall_millis, clock_millis, time_millis: 0 }
    }

    /// A member whose own clocks are right hears of others at 100 that are so far off.
    fn judge(offsets: &[(i64, i64)], own: (i64, i64), live: u64) -> Option<Verdict> {
        let mut clocks = Clocks::new(500);
        for (peer, (wall, clock)) in (1..).zip(offsets) {
            let (wall, clock) = (offset(*wall) + 90, offset(*clock) + 90);
            clocks.hear(MemberId(peer), 80, reading(wall, clock), at(100));
        }
        let live: Vec<_> = (1..=live).map(MemberId).collect();
        clocks.judge(reading(offset(own.0) + 200, offset(own.1) + 200), &live, 500, at(200))
    }

    fn offset(millis: i64) -> u64 {
        WALL.saturating_add_signed(millis)
    }

    #[test]
    fn the_median_of_the_live_members_is_right() {
        let both = |millis| (millis, millis);
        // Own clocks, those of others, the median, whether it confirms the own wall clock.
        let table: &[(i64, &[i64], i64, bool)] = &[
            (0, &[10], 0, true),
            (0, &[-10], -10, true),
            (0, &[-5000], -5000, false),
            (0, &[5000], 0, false),
            (5000, &[0, 10], 10, false),
            (0, &[5000, 10], 10, true),
            (0, &[5000, 5010], 5000, false),
            (0, &[1, 5000, 5001], 1, false),
        ];
        for (own, others, median, confirms) in table {
            let others: Vec<_> = others.iter().map(|other| both(*other)).collect();
            let live = others.len() as u64;
            let verdict = judge(&others, both(*own), live).expect("somebody has answered");
            let median_millis = offset(*median) + 200;
            let found = (verdict.median_millis, verdict.confirms, verdict.is_firm);
            assert_eq!(found, (median_millis, *confirms, true), "{own} among {others:?}");
            let off_millis = Some(own - median).filter(|off| off.abs() > 500);
            assert_eq!(verdict.off_millis, off_millis, "{own} among {others:?}");
        }
        // The wall clock of a peer has jumped, but not what it follows.
        let verdict = judge(&[(5000, 1)], (0, 0), 1).expect("it has answered");
        assert_eq!((verdict.median_millis, verdict.confirms), (offset(200), false));
        assert_eq!(judge(&[(0, 0)], (0, 0), 0), None, "it is dead");
        // All wall clocks have jumped, and this member has found out first.
        let verdict = judge(&[(5000, 0), (5000, 0)], (5000, 5000), 2).expect("they have answered");
        assert!(verdict.confirms && verdict.off_millis.is_none(), "{verdict:?}");
        let verdict = judge(&[(0, 0), (0, 0)], (0, 0), 9).expect("they have answered");
        assert!(!verdict.is_firm, "two of nine are too few");
    }

    #[test]
    fn slow_and_old_answers_say_nothing() {
        let (peer, own) = (MemberId(1), reading(WALL, WALL));
        let mut clocks = Clocks::new(500);
        clocks.hear(peer, 0, reading(0, 0), at(501));
        clocks.hear(peer, 900, reading(0, 0), at(800));
        assert_eq!(clocks.judge(own, &[peer], 500, at(900)), None);
        // The moment is not known better than by 400 ms, but an answer from before was better.
        clocks.hear(peer, 1000, reading(WALL + 1000, WALL + 1000), at(1001));
        clocks.hear(peer, 1100, reading(WALL + 1480, WALL + 1480), at(1500));
        let verdict = clocks.judge(own, &[peer], 500, at(1500)).expect("it has answered");
        assert_eq!(verdict.median_millis, WALL.min(WALL + 1500));
        assert!(clocks.judge(reading(u64::MAX, u64::MAX), &[peer], 500, at(1500)).is_some());
        let median = clocks.judge(reading(u64::MAX, u64::MAX), &[peer], 500, at(1500));
        assert_eq!(median.expect("it has answered").median_millis, WALL + 1500);
        assert_eq!(clocks.judge(own, &[peer], 500, at(70_000)), None);
        clocks.hear(peer, 70_000, reading(u64::MAX, 0), at(70_000));
        assert!(clocks.judge(own, &[peer], 500, at(70_000)).is_some());
    }

    #[test]
    fn what_was_heard_before_the_own_wall_clock_jumped_says_nothing() {
        let live: Vec<_> = (1..=2).map(MemberId).collect();
        for jump in [600_000, -600_000, 251, -251] {
            let jumped = |monotonic_millis| {
                let now = at(monotonic_millis);
                Now { wall_millis: now.wall_millis.saturating_add_signed(jump), ..now }
            };
            let mut clocks = Clocks::new(500);
            assert!(!clocks.look(at(50)), "there was nothing before");
            clocks.hear(MemberId(1), 80, reading(WALL + 90, WALL + 90), at(100));
            clocks.hear(MemberId(2), 80, reading(WALL + 90, WALL + 90), at(100));
            assert!(!clocks.look(at(100)));
            let own = |now: Now| reading(now.wall_millis, now.wall_millis);
            assert!(clocks.judge(own(at(100)), &live, 500, at(100)).is_some());

            assert!(clocks.look(jumped(200)), "{jump}");
            assert!(!clocks.look(jumped(201)), "{jump}: it has jumped once");
            assert_eq!(clocks.judge(own(jumped(201)), &live, 500, jumped(201)), None);
            assert!(clocks.wants_more(&live, jumped(201)));
            // Asked before, answered since.
            clocks.hear(MemberId(1), 199, reading(WALL, WALL), jumped(210));
            assert_eq!(clocks.judge(own(jumped(210)), &live, 500, jumped(210)), None);
            // It has jumped, too.
            clocks.hear(MemberId(1), 200, own(jumped(205)), jumped(210));
            let verdict = clocks.judge(own(jumped(210)), &live, 500, jumped(210));
            let verdict = verdict.expect("it has answered");
            assert!(verdict.confirms && !verdict.is_firm && verdict.off_millis.is_none());
            // It jumps back.
            assert!(clocks.look(at(300)));
            assert_eq!(clocks.judge(own(at(300)), &live, 500, at(300)), None);
        }
    }

    #[test]
    fn small_steps_are_no_jump_until_they_add_up_to_one() {
        let by = |monotonic_millis, step| {
            let now = at(monotonic_millis);
            Now { wall_millis: now.wall_millis + step, ..now }
        };
        let mut clocks = Clocks::new(500);
        let looks = [(1, 0), (2, 200), (3, 0), (4, 100), (5, 200), (6, 251), (7, 100), (8, 0)];
        let jumps = looks.map(|(millis, step)| clocks.look(by(millis, step)));
        assert_eq!(jumps, [false, false, false, false, false, true, false, true]);
        // As far as a clock can be off.
        assert!(clocks.look(Now { wall_millis: u64::MAX, monotonic_millis: 9 }));
        assert!(clocks.look(Now { wall_millis: 0, monotonic_millis: u64::MAX }));
    }

    #[test]
    fn few_peers_are_remembered() {
        let mut clocks = Clocks::new(500);
        for i in 0..PEERS_MAX as u64 + 10 {
            clocks.hear(MemberId(i), i, reading(WALL, WALL), at(i));
        }
        assert_eq!(clocks.answers.len(), PEERS_MAX);
        assert!(clocks.answers.contains_key(&MemberId(PEERS_MAX as u64 + 9)));
        assert!(!clocks.answers.contains_key(&MemberId(9)));
    }
}
