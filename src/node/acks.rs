//! Writes that are durable here and wait until others have them, too.

use std::collections::{BTreeMap, VecDeque};

use super::home::{Answer, Home};
use crate::types::{MemberId, WriteAck};

/// Who counts for what.
#[derive(Clone, Debug, Default)]
pub(super) struct Voters {
    /// The other members that count.
    pub(super) peers: Vec<MemberId>,
    /// Those of them that seem alive.
    pub(super) live: Vec<MemberId>,
    /// Whether this member counts itself.
    pub(super) counts_itself: bool,
}

/// An answer that waits.
struct Waiting {
    seq: u64,
    deadline_millis: u64,
    home: Home,
    answer: Answer,
}

/// Answers that wait, by what they wait for. Who asked gives up after the time of a request, and so does this: there are
/// never more than requests under way.
#[derive(Default)]
pub(super) struct Acks {
    one: VecDeque<Waiting>,
    majority: VecDeque<Waiting>,
    all: VecDeque<Waiting>,
    /// How far the peers have our entries.
    heads: BTreeMap<MemberId, u64>,
    voters: Voters,
}

impl Acks {
    /// A peer has our entries up to `seq`.
    pub(super) fn acknowledged(&mut self, peer: MemberId, seq: u64) {
        let head = self.heads.entry(peer).or_default();
        *head = seq.max(*head);
    }

    /// Who counts has changed.
    pub(super) fn set_voters(&mut self, voters: Voters) {
        self.heads.retain(|peer, _| voters.peers.contains(peer));
        self.voters = voters;
    }

    /// Lets an answer wait that depends on our entry `seq`. Answers for smaller seqs have come before.
    pub(super) fn push(
        &mut self,
        level: WriteAck,
        (seq, deadline_millis): (u64, u64),
        home: Home,
        answer: Answer,
    ) {
        let queue = match level {
            WriteAck::Local | WriteAck::One => &mut self.one,
            WriteAck::Majority => &mut self.majority,
            WriteAck::All => &mut self.all,
        };
        queue.push_back(Waiting { seq, deadline_millis, home, answer });
    }

    /// Up to which of our entries a level is reached.
    fn reached(&self, level: WriteAck) -> u64 {
        let head = |peer: &MemberId| self.heads.get(peer).copied().unwrap_or(0);
        let Voters { peers, live, counts_itself } = &self.voters;
        match level {
            WriteAck::Local => u64::MAX,
            WriteAck::One if live.is_empty() => u64::MAX,
            WriteAck::One => peers.iter().map(head).max().unwrap_or(u64::MAX),
            WriteAck::All => live.iter().map(head).min().unwrap_or(u64::MAX),
            WriteAck::Majority => {
                let others = (peers.len() + usize::from(*counts_itself)) / 2 + 1;
                let Some(rank) = (others - usize::from(*counts_itself)).checked_sub(1) else {
                    return u64::MAX;
                };
                let mut heads: Vec<_> = peers.iter().map(head).collect();
                heads.sort_unstable_by(|a, b| b.cmp(a));
                heads.get(rank).copied().unwrap_or(0)
            }
        }
    }

    /// The answers that need not wait any more; those that have waited too long are dropped.
    pub(super) fn release(&mut self, now_millis: u64) -> Vec<(Home, Answer)> {
        let reached = [WriteAck::One, WriteAck::Majority, WriteAck::All]
            .map(|level| if self.is_idle() { 0 } else { self.reached(level) });
        let mut released = Vec::new();
        let queues = [&mut self.one, &mut self.majority, &mut self.all];
        for (queue, reached) in queues.into_iter().zip(reached) {
            while let Some(Waiting { home, answer, .. }) = queue.pop_front_if(|w| w.seq <= reached)
            {
                released.push((home, answer));
            }
            while queue.pop_front_if(|waiting| waiting.deadline_millis <= now_millis).is_some() {}
        }
        released
    }

    /// Whether nobody waits.
    fn is_idle(&self) -> bool {
        self.one.is_empty() && self.majority.is_empty() && self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(peers: usize, live: usize, counts_itself: bool) -> Acks {
        let peers: Vec<_> = (1..=peers as u64).map(MemberId).collect();
        let live = peers[..live].to_vec();
        Acks { voters: Voters { peers, live, counts_itself }, ..Acks::default() }
    }

    fn reached(acks: &Acks) -> [u64; 3] {
        [WriteAck::One, WriteAck::Majority, WriteAck::All].map(|level| acks.reached(level))
    }

    #[test]
    fn levels_are_reached_by_those_who_count() {
        let mut five = acks(4, 3, true);
        assert_eq!(reached(&five), [0, 0, 0]);
        for (peer, seq) in [(1, 9), (2, 7), (3, 5)] {
            five.acknowledged(MemberId(peer), seq);
        }
        assert_eq!(reached(&five), [9, 7, 5], "the fourth is dead, and two others are a majority");
        five.acknowledged(MemberId(2), 1);
        assert_eq!(reached(&five), [9, 7, 5], "nothing goes back");
    }

    #[test]
    fn one_is_local_where_nobody_else_lives_but_a_majority_is_not() {
        assert_eq!(reached(&acks(2, 0, true)), [u64::MAX, 0, u64::MAX]);
        assert_eq!(reached(&acks(0, 0, true)), [u64::MAX; 3], "alone");
    }

    #[test]
    fn who_does_not_count_needs_others() {
        let mut volatile = acks(2, 2, false);
        volatile.acknowledged(MemberId(1), 5);
        assert_eq!(reached(&volatile), [5, 0, 0], "two of two");
        volatile.acknowledged(MemberId(2), 4);
        assert_eq!(reached(&volatile), [5, 4, 4]);
    }
}
