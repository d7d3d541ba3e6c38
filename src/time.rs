//! Hybrid logical time: a clock that follows the wall clock and never goes back.
//!
//! Each entry carries one [`Timestamp`]. It is greater than everything its origin had seen, so
//! "happened before" implies "smaller"; among concurrent entries it follows wall clocks as well as
//! those agree. See Kulkarni et al., "Logical Physical Clocks" (2014).

use std::fmt;

use crate::types::Origin;

/// Bits of a packed timestamp that count within one millisecond.
const COUNTER_BITS: u32 = 16;

/// Milliseconds since 1970 and a counter within the millisecond, packed so that integer order is
/// time order. 48 bits of milliseconds last until the year 10889.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Nobody's word is taken for a later time, two thousand years from now: clocks go on from what they hear, and have to
    /// stay below what can be stored.
    pub const HEARD_MAX: Self = Self(1 << 62);

    /// The first timestamp of a millisecond.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// What counts within the millisecond.
    pub fn counter(self) -> u32 {
        u32::try_from(self.0 & ((1 << COUNTER_BITS) - 1)).expect("it has few bits")
    }

    /// The wall-clock part, in milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

/// What orders all entries of all members: by time, then by origin. An origin never gives two entries the same time, so a
/// stamp names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// When the entry was accepted.
    pub time: Timestamp,
    /// By whom.
    pub origin: Origin,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.time, self.origin)
    }
}

/// What the shell tells the core about time: it never asks for it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970 by the wall clock, for timestamps.
    pub wall_millis: u64,
    /// Milliseconds since some fixed point by a clock that never jumps, for deadlines.
    pub monotonic_millis: u64,
}

/// The hybrid clock of one member.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: Timestamp,
    /// What the wall clock showed when it was trusted last, and the monotonic clock then.
    trusted: Option<Now>,
}

impl HybridClock {
    /// A clock that is already past `last`. It follows the wall clock until it is told what to trust.
    pub fn after(last: Timestamp) -> Self {
        Self { last, trusted: None }
    }

    /// It is `wall_millis` now, whatever the wall clock shows from now on: time goes on with the monotonic clock.
    pub fn trust(&mut self, wall_millis: u64, now: Now) {
        self.trusted = Some(Now { wall_millis, ..now });
    }

    /// What the clock shows that this one follows, in milliseconds since 1970.
    pub fn millis(&self, now: Now) -> u64 {
        self.trusted.map_or(now.wall_millis, |then| {
            then.wall_millis + now.monotonic_millis.saturating_sub(then.monotonic_millis)
        })
    }

    /// The time of a new entry: past everything seen, and not behind the clock that it follows.
    pub fn tick(&mut self, now: Now) -> Timestamp {
        let next = Timestamp(self.last.0 + 1).max(Timestamp::from_millis(self.millis(now)));
        assert!(next > self.last, "hybrid time went from {} to {next}", self.last);
        self.last = next;
        next
    }

    /// Takes note of a time that someone else used.
    pub fn observe(&mut self, seen: Timestamp) {
        self.last = self.last.max(seen);
    }

    /// The greatest time given out or seen.
    pub fn last(&self) -> Timestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_millis: u64) -> Now {
        Now { wall_millis, monotonic_millis: 0 }
    }

    #[test]
    fn never_repeats_or_goes_back() {
        let mut clock = HybridClock::default();
        let times = [5, 5, 3, 9, 1].map(|wall| clock.tick(at(wall)));
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(times.map(Timestamp::millis), [5, 5, 5, 9, 9]);
        clock.observe(Timestamp::from_millis(50));
        assert!(clock.tick(at(10)) > Timestamp::from_millis(50));
    }

    #[test]
    fn a_jump_of_the_wall_clock_does_not_move_it() {
        let mut clock = HybridClock::default();
        clock.trust(1000, Now { wall_millis: 1000, monotonic_millis: 50 });
        let later = |wall_millis| Now { wall_millis, monotonic_millis: 60 };
        assert_eq!(clock.tick(later(1010)), Timestamp::from_millis(1010));
        assert_eq!(clock.tick(later(99_000)), Timestamp(Timestamp::from_millis(1010).0 + 1));
        clock.trust(98_000, later(99_000));
        assert_eq!(clock.tick(later(3)), Timestamp::from_millis(98_000));
    }
}
