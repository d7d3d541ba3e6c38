//! What the failure detector wants to be reminded of, in order.
//!
//! Invariant: there is one timer for each purpose, so there are never more than members and two.

use std::collections::{BTreeMap, BTreeSet};

use foca::Timer;

use super::identity::Identity;
use crate::types::MemberId;

/// What a timer is for, in the order in which those that are due together are to go off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// Ask others to probe, too.
    Indirect,
    /// The probe has failed, unless it was answered; begin the next one.
    Probe,
    /// A suspect has had its time.
    Down(MemberId),
}

#[derive(Debug)]
struct Slot {
    set_at: u64,
    due_at: u64,
    timer: Timer<Identity>,
}

/// The timers of one member, in monotonic milliseconds.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(u64, Purpose)>,
    slots: BTreeMap<Purpose, Slot>,
}

impl Timers {
    /// Adds a timer. One that is for the same is replaced, but nobody gets more time by being suspected again.
    pub(super) fn put(&mut self, set_at: u64, due_at: u64, timer: Timer<Identity>) {
        let purpose = match &timer {
            Timer::SendIndirectProbe { .. } => Purpose::Indirect,
            Timer::ProbeRandomMember(_) => Purpose::Probe,
            Timer::ChangeSuspectToDown { member_id, .. } => Purpose::Down(member_id.member()),
            Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
            | Timer::RemoveDown(_) => unreachable!("our settings leave {timer:?} out"),
        };
        if let Some(before) = self.slots.get(&purpose) {
            if matches!(purpose, Purpose::Down(_)) && before.timer == timer {
                return;
            }
            self.order.remove(&(before.due_at, purpose));
        }
        self.order.insert((due_at, purpose));
        self.slots.insert(purpose, Slot { set_at, due_at, timer });
    }

    /// Takes the first timer that is due, and when it was set.
    pub(super) fn take_due(&mut self, now: u64) -> Option<(u64, Timer<Identity>)> {
        self.next().filter(|at| *at <= now)?;
        let (_, purpose) = self.order.pop_first()?;
        self.slots.remove(&purpose).map(|slot| (slot.set_at, slot.timer))
    }

    /// When the first one goes off.
    pub(super) fn next(&self) -> Option<u64> {
        self.order.first().map(|(at, _)| *at)
    }

    /// A member is nobody's business any more.
    pub(super) fn forget(&mut self, member: MemberId) {
        let purpose = Purpose::Down(member);
        if let Some(slot) = self.slots.remove(&purpose) {
            self.order.remove(&(slot.due_at, purpose));
        }
    }

    /// Makes all of them go off later.
    pub(super) fn postpone(&mut self, by: u64) {
        for slot in self.slots.values_mut() {
            slot.due_at += by;
        }
        self.order = self.slots.iter().map(|(purpose, slot)| (slot.due_at, *purpose)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Origin;

    fn down(member: u64, incarnation: u16) -> Timer<Identity> {
        let member_id = Identity::new(Origin { member: MemberId(member), run: 1 });
        Timer::ChangeSuspectToDown { member_id, incarnation, token: 0 }
    }

    #[test]
    fn timers_go_off_in_order() {
        let probed_id = Identity::any_run(MemberId(1));
        let mut timers = Timers::default();
        timers.put(0, 7, down(1, 0));
        timers.put(0, 7, Timer::ProbeRandomMember(0));
        timers.put(0, 7, Timer::SendIndirectProbe { probed_id, token: 0 });
        timers.put(0, 5, down(2, 0));
        assert_eq!(timers.take_due(4), None);
        timers.postpone(10);
        assert_eq!(timers.take_due(14), None);
        assert_eq!(timers.take_due(15), Some((0, down(2, 0))));
        let rest: Vec<_> =
            std::iter::from_fn(|| timers.take_due(17)).map(|(_, timer)| timer).collect();
        let expected = [
            Timer::SendIndirectProbe { probed_id, token: 0 },
            Timer::ProbeRandomMember(0),
            down(1, 0),
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_suspect_gets_more_time_only_for_a_new_suspicion() {
        let mut timers = Timers::default();
        timers.put(0, 5, down(1, 0));
        timers.put(3, 9, down(1, 0));
        assert_eq!(timers.next(), Some(5));
        timers.put(3, 9, down(1, 1));
        assert_eq!(timers.next(), Some(9));
        timers.forget(MemberId(1));
        assert_eq!((timers.next(), timers.take_due(9)), (None, None));
    }
}
