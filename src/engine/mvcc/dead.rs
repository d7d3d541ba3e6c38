//! How much of the log nobody here can read, and since when that may leave the disk.

use std::collections::VecDeque;

use crate::time::Timestamp;

/// So many amounts are told apart by the times that they wait for.
const AMOUNTS_MAX: usize = 4096;

/// The bytes of rows that have left the index but not the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadBytes {
    /// May leave it.
    ready: u64,
    /// May leave it when some time is settled. In the order of the times.
    waiting: VecDeque<(Timestamp, u64)>,
    /// The sum of those.
    waiting_bytes: u64,
    /// What the last sweep for space has left of them.
    left_bytes: u64,
}

impl DeadBytes {
    pub(super) fn ready(&self) -> u64 {
        self.ready
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting_bytes
    }

    /// What has come to wait since the last sweep for space.
    pub(super) fn waiting_anew(&self) -> u64 {
        self.waiting_bytes.saturating_sub(self.left_bytes)
    }

    /// With a clock they wait until that is settled.
    pub(super) fn add(&mut self, bytes: u64, clock: Option<Timestamp>) {
        let Some(clock) = clock.filter(|_| bytes > 0) else {
            self.ready += bytes;
            return;
        };
        self.waiting_bytes += bytes;
        match self.waiting.back_mut() {
            Some((time, waiting)) if *time >= clock => *waiting += bytes,
            _ => self.waiting.push_back((clock, bytes)),
        }
        if self.waiting.len() > AMOUNTS_MAX {
            self.merge();
        }
    }

    /// Of each two amounts, the earlier one waits as long as the later one.
    fn merge(&mut self) {
        let pairs = self.waiting.make_contiguous().chunks(2);
        let last = |pair: &[(Timestamp, u64)]| {
            pair.iter()
                .fold((Timestamp::default(), 0), |(_, sum), (time, bytes)| (*time, sum + bytes))
        };
        self.waiting = pairs.map(last).collect();
    }

    /// What waited for this time is ready.
    pub(super) fn settle(&mut self, settled: Timestamp) {
        while let Some((_, bytes)) = self.waiting.pop_front_if(|(time, _)| *time <= settled) {
            self.waiting_bytes -= bytes;
            self.ready += bytes;
        }
        self.left_bytes = self.left_bytes.min(self.waiting_bytes);
    }

    /// A sweep has removed so much of what was ready, and of what was waiting; `None` if it left that alone.
    pub(super) fn remove(&mut self, ready: u64, waiting: Option<u64>) {
        self.ready -= ready;
        let Some(mut bytes) = waiting else { return };
        while let Some((_, amount)) = self.waiting.front_mut() {
            let part = bytes.min(*amount);
            (*amount, bytes) = (*amount - part, bytes - part);
            self.waiting_bytes -= part;
            if *amount > 0 {
                break;
            }
            self.waiting.pop_front();
        }
        self.left_bytes = self.waiting_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u64) -> Option<Timestamp> {
        Some(Timestamp(time))
    }

    #[test]
    fn what_waits_is_ready_when_its_time_has_come() {
        let mut dead = DeadBytes::default();
        dead.add(1, None);
        for (bytes, time) in [(10, 5), (20, 5), (40, 7), (80, 6)] {
            dead.add(bytes, at(time));
        }
        assert_eq!((dead.ready(), dead.waiting()), (1, 150));
        dead.settle(Timestamp(6));
        assert_eq!((dead.ready(), dead.waiting()), (31, 120));
        dead.remove(31, Some(100));
        assert_eq!((dead.ready(), dead.waiting(), dead.waiting_anew()), (0, 20, 0));
        dead.add(3, at(8));
        assert_eq!(dead.waiting_anew(), 3);
        dead.settle(Timestamp(8));
        assert_eq!((dead.ready(), dead.waiting(), dead.waiting_anew()), (23, 0, 0));
        dead.remove(23, Some(9));
        assert_eq!((dead.ready(), dead.waiting()), (0, 0), "more than was known of");
    }

    #[test]
    fn many_amounts_become_fewer() {
        let mut dead = DeadBytes::default();
        let count = 3 * AMOUNTS_MAX as u64;
        (1..=count).for_each(|time| dead.add(1, at(time)));
        assert!(dead.waiting.len() <= AMOUNTS_MAX);
        for time in [1, count / 2, count] {
            dead.settle(Timestamp(time));
            assert!(dead.ready() <= time, "{time}: not too soon");
        }
        assert_eq!((dead.ready(), dead.waiting()), (count, 0));
    }
}
