//! Writes that are durable here and wait until others have them, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::home::{Answer, Home};
use crate::error::Error;
use crate::types::{MemberId, WriteAck};

/// A peer that says nothing for so long while a write waits is not waited for until it is heard again. The failure
/// detector takes longer, to be right more often; clients would stand still meanwhile.
const SILENCE_MILLIS: u64 = 1000;

/// Who counts for what.
#[derive(Clone, Debug, Default)]
pub(super) struct Voters {
    /// The other members that count.
    pub(super) peers: Vec<MemberId>,
    /// Those of them that seem alive.
    pub(super) live: Vec<MemberId>,
    /// All other members that seem alive, those too that do not count because they keep nothing on disk.
    pub(super) everybody: Vec<MemberId>,
    /// Whether this member counts itself.
    pub(super) counts_itself: bool,
}

/// An answer that waits.
struct Waiting {
    seq: u64,
    since_millis: u64,
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
    everybody: VecDeque<Waiting>,
    /// How far the peers have our entries.
    heads: BTreeMap<MemberId, u64>,
    /// When each peer was last heard.
    heard: BTreeMap<MemberId, u64>,
    /// Those who say nothing though there is something to say.
    silent: BTreeSet<MemberId>,
    voters: Voters,
}

/// How many writes wait for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcksWaiting {
    /// For one other member.
    pub one: u64,
    /// For a majority.
    pub majority: u64,
    /// For all that are alive.
    pub all: u64,
}

/// When a write came, and when nobody waits for it any more, in monotonic milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Period {
    pub(super) since_millis: u64,
    pub(super) deadline_millis: u64,
}

impl Acks {
    /// A peer has our entries up to `seq`.
    pub(super) fn acknowledged(&mut self, peer: MemberId, seq: u64) {
        let head = self.heads.entry(peer).or_default();
        *head = seq.max(*head);
    }

    /// Something has come from a peer.
    pub(super) fn heard(&mut self, peer: MemberId, now_millis: u64) {
        self.heard.insert(peer, now_millis);
        self.silent.remove(&peer);
    }

    /// The connection to a peer has broken.
    pub(super) fn lost(&mut self, peer: MemberId) {
        self.silent.insert(peer);
    }

    /// Who counts has changed.
    pub(super) fn set_voters(&mut self, voters: Voters) {
        let counts =
            |peer: &MemberId| voters.peers.contains(peer) || voters.everybody.contains(peer);
        self.heads.retain(|peer, _| counts(peer));
        self.heard.retain(|peer, _| counts(peer));
        self.silent.retain(counts);
        self.voters = voters;
    }

    /// Lets an answer wait that depends on our entry `seq`. Answers for smaller seqs have come before.
    pub(super) fn push(
        &mut self,
        level: WriteAck,
        seq: u64,
        period: Period,
        home: Home,
        answer: Answer,
    ) {
        let queue = match level {
            WriteAck::Local | WriteAck::One => &mut self.one,
            WriteAck::Majority => &mut self.majority,
            WriteAck::All => &mut self.all,
            WriteAck::Everybody => &mut self.everybody,
        };
        let Period { since_millis, deadline_millis } = period;
        queue.push_back(Waiting { seq, since_millis, deadline_millis, home, answer });
    }

    /// Notes who has kept silent since the oldest write that waits.
    fn look_for_silence(&mut self, now_millis: u64) {
        let oldest =
            [&self.one, &self.all, &self.everybody].into_iter().filter_map(|queue| queue.front());
        let Some(since) = oldest.map(|waiting| waiting.since_millis).min() else { return };
        let from = since.max(now_millis.saturating_sub(SILENCE_MILLIS));
        if now_millis - since < SILENCE_MILLIS {
            return;
        }
        let is_silent = |peer: &&MemberId| self.heard.get(peer).is_none_or(|heard| *heard < from);
        let waited_for = self.voters.live.iter().chain(&self.voters.everybody);
        self.silent.extend(waited_for.filter(is_silent));
    }

    /// Up to which of our entries a level is reached.
    fn reached(&self, level: WriteAck) -> u64 {
        let head = |peer: &MemberId| self.heads.get(peer).copied().unwrap_or(0);
        let Voters { peers, live, everybody, counts_itself } = &self.voters;
        let speaks = |peer: &&MemberId| !self.silent.contains(peer);
        let mut live = live.iter().filter(speaks).peekable();
        match level {
            WriteAck::Local => u64::MAX,
            WriteAck::One if live.peek().is_none() => u64::MAX,
            WriteAck::One => peers.iter().map(head).max().unwrap_or(u64::MAX),
            WriteAck::All => live.map(head).min().unwrap_or(u64::MAX),
            WriteAck::Everybody => {
                everybody.iter().filter(speaks).map(head).min().unwrap_or(u64::MAX)
            }
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

    /// The answers that need not wait any more, of our entries up to `durable`; those that have waited too long are dropped.
    pub(super) fn release(&mut self, durable: u64, now_millis: u64) -> Vec<(Home, Answer)> {
        self.look_for_silence(now_millis);
        let queues = [&self.one, &self.majority, &self.all, &self.everybody];
        let levels = [WriteAck::One, WriteAck::Majority, WriteAck::All, WriteAck::Everybody];
        let mut reached = [0; 4];
        for ((reached, level), queue) in reached.iter_mut().zip(levels).zip(queues) {
            if !queue.is_empty() {
                *reached = self.reached(level).min(durable);
            }
        }
        let mut released = Vec::new();
        let queues = [&mut self.one, &mut self.majority, &mut self.all, &mut self.everybody];
        for (queue, reached) in queues.into_iter().zip(reached) {
            while let Some(Waiting { home, answer, .. }) = queue.pop_front_if(|w| w.seq <= reached)
            {
                released.push((home, answer));
            }
            while queue.pop_front_if(|waiting| waiting.deadline_millis <= now_millis).is_some() {}
        }
        released
    }

    /// The answers that wait, as refusals: this member was removed, and nobody takes from it what only it has. By and by all the
    /// others would fall silent, and it would count as alone.
    pub(super) fn give_up(&mut self) -> Vec<(Home, Answer)> {
        let queues = [&mut self.one, &mut self.majority, &mut self.all, &mut self.everybody];
        let refused = |Waiting { home, answer: Answer { waiting, .. }, .. }| {
            (home, Answer { waiting, outcome: Err(Error::Stopped) })
        };
        queues.into_iter().flat_map(|queue| queue.drain(..)).map(refused).collect()
    }

    /// How many wait for one other member, for a majority, and for all.
    pub(super) fn waiting(&self) -> AcksWaiting {
        let [one, majority, all, everybody] =
            [&self.one, &self.majority, &self.all, &self.everybody].map(|queue| queue.len() as u64);
        AcksWaiting { one, majority, all: all + everybody }
    }

    /// Whether nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        let queues = [&self.one, &self.majority, &self.all, &self.everybody];
        queues.into_iter().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::command::{CommandReply, Reply};
    use crate::types::Revision;

    fn acks(peers: usize, live: usize, counts_itself: bool) -> Acks {
        let peers: Vec<_> = (1..=peers as u64).map(MemberId).collect();
        let live = peers[..live].to_vec();
        let everybody = live.clone();
        Acks { voters: Voters { peers, live, everybody, counts_itself }, ..Acks::default() }
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
    fn who_keeps_silent_is_not_waited_for() {
        let mut three = acks(2, 2, true);
        let period = Period { since_millis: 5000, deadline_millis: 12_000 };
        let (waiting, _client) = tokio::sync::oneshot::channel();
        let answer = Answer { waiting, outcome: Err(Error::Stopped) };
        three.push(WriteAck::All, 7, period, Home::nowhere(), answer);
        three.acknowledged(MemberId(1), 7);
        three.heard(MemberId(1), 5001);
        three.heard(MemberId(2), 4999);
        assert_eq!(three.release(7, 5999).len(), 0);
        assert_eq!(three.waiting(), AcksWaiting { all: 1, ..AcksWaiting::default() });
        assert_eq!(three.release(6, 6000).len(), 0, "not durable here");
        assert_eq!(three.release(7, 6000).len(), 1, "the second has had its second");
        assert_eq!(reached(&three), [7, 7, 7]);
        three.heard(MemberId(2), 6001);
        assert_eq!(reached(&three), [7, 7, 0], "it is back");
        three.lost(MemberId(1));
        three.lost(MemberId(2));
        assert_eq!(reached(&three), [u64::MAX, 7, u64::MAX]);
    }

    /// Whoever is removed is left by all others, which is no reason to take what it has for enough.
    #[test]
    fn who_is_removed_gives_up_what_waits() {
        let mut three = acks(2, 2, true);
        let period = Period { since_millis: 5000, deadline_millis: 12_000 };
        let levels = [WriteAck::One, WriteAck::Majority, WriteAck::All, WriteAck::Everybody];
        for (seq, level) in (1..).zip(levels) {
            let (waiting, _client) = tokio::sync::oneshot::channel();
            let outcome = Ok(Reply { revision: Revision(7), body: CommandReply::Compact });
            three.push(level, seq, period, Home::nowhere(), Answer { waiting, outcome });
        }
        let refused = three.give_up();
        assert_eq!(refused.len(), levels.len());
        let is_refusal = |(_, answer): &(Home, Answer)| answer.outcome == Err(Error::Stopped);
        assert!(refused.iter().all(is_refusal));
        assert!(three.is_idle());
        assert_eq!(three.release(9, 11_000).len(), 0);
    }

    #[test]
    fn everybody_is_more_than_those_who_count() {
        let (voter, volatile) = (MemberId(1), MemberId(2));
        let voters = |everybody: &[MemberId]| Voters {
            peers: vec![voter],
            live: vec![voter],
            everybody: everybody.to_vec(),
            counts_itself: true,
        };
        let mut two = Acks { voters: voters(&[voter, volatile]), ..Acks::default() };
        two.acknowledged(voter, 7);
        let reached = |acks: &Acks| [WriteAck::All, WriteAck::Everybody].map(|it| acks.reached(it));
        assert_eq!(reached(&two), [7, 0]);
        two.acknowledged(volatile, 6);
        two.set_voters(voters(&[voter, volatile]));
        assert_eq!(reached(&two), [7, 6], "what it holds is not forgotten");
        two.lost(volatile);
        assert_eq!(reached(&two), [7, 7]);
        two.set_voters(voters(&[]));
        assert_eq!(reached(&two), [7, u64::MAX]);
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
