//! Reads that see what a majority holds: they wait until everything has come that any of its members held when asked. A member
//! that was started again waits in the same way for what it wrote itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gossip, Output};
use crate::replication::heads::Heads;
use crate::replication::message::{Digest, Message};
use crate::time::Now;
use crate::types::{MemberId, Origin};

/// Who has not answered after so long is asked again: a question, or its answer, may have been lost.
const ASK_AGAIN_MILLIS: u64 = 100;

/// A read that waits.
#[derive(Clone, Debug)]
pub(super) struct Barrier {
    /// Whose answers count.
    voters: Vec<MemberId>,
    /// How many of them it takes.
    needed: usize,
    /// Whose entries it is about; `None` for everybody's.
    of: Option<MemberId>,
    answered: BTreeSet<MemberId>,
    /// What has to be here.
    targets: BTreeMap<Origin, u64>,
    /// When those are asked again who have not answered.
    ask_again_millis: u64,
    /// Nobody waits any more after this.
    deadline_millis: u64,
}

impl Barrier {
    pub(super) fn new(
        voters: Vec<MemberId>,
        needed: usize,
        of: Option<MemberId>,
        deadline_millis: u64,
        now: Now,
    ) -> Self {
        let (answered, targets) = Default::default();
        let ask_again_millis = now.monotonic_millis + ASK_AGAIN_MILLIS;
        Self { voters, needed, of, answered, targets, ask_again_millis, deadline_millis }
    }

    fn waits_for(&self, peer: MemberId) -> bool {
        self.answered.len() < self.needed
            && self.voters.contains(&peer)
            && !self.answered.contains(&peer)
    }

    fn is_passed(&self, heads: &Heads) -> bool {
        let is_here = |(origin, seq): (&Origin, &u64)| heads.seq(*origin) >= *seq;
        self.answered.len() >= self.needed && self.targets.iter().all(is_here)
    }
}

impl Gossip {
    /// Asks all voters where they are.
    pub(super) fn begin_barrier(&mut self, id: u64, barrier: Barrier) {
        for peer in &barrier.voters {
            self.send(*peer, Message::Ask(id));
        }
        self.barriers.insert(id, barrier);
    }

    /// Peers have just come, whom no question can have reached before.
    pub(super) fn ask_arrived(&mut self, peers: &[MemberId]) {
        let mut asks = Vec::new();
        for (id, barrier) in &self.barriers {
            let silent = peers.iter().filter(|peer| barrier.waits_for(**peer));
            asks.extend(silent.map(|peer| (*peer, *id)));
        }
        for (peer, id) in asks {
            self.send(peer, Message::Ask(id));
        }
    }

    /// When somebody is to be asked again.
    pub(super) fn next_ask(&self) -> Option<u64> {
        self.barriers.values().map(|barrier| barrier.ask_again_millis).min()
    }

    fn ask_again(&mut self, now: Now) {
        let now_millis = now.monotonic_millis;
        let mut asks = Vec::new();
        for (id, barrier) in &mut self.barriers {
            if barrier.ask_again_millis > now_millis {
                continue;
            }
            barrier.ask_again_millis = now_millis + ASK_AGAIN_MILLIS;
            let silent = barrier.voters.iter().filter(|peer| barrier.waits_for(**peer));
            asks.extend(silent.map(|peer| (*peer, *id)));
        }
        for (peer, id) in asks {
            self.send(peer, Message::Ask(id));
        }
    }

    pub(super) fn answer_ask(&mut self, to: MemberId, id: u64) {
        let digest = self.digest_for(to, false);
        self.send(to, Message::Answer(id, digest));
    }

    pub(super) fn take_answer(&mut self, from: MemberId, id: u64, digest: Digest, now: Now) {
        let said = (digest.epoch, digest.arrivals);
        self.compare(from, digest, now);
        // Only who has told everything counts; who has not is about to, and is asked again.
        let is_whole = self.peers.get(&from).is_some_and(|peer| peer.told >= Some(said));
        if !is_whole {
            if self.catching_up.is_none() {
                self.send(from, Message::Ask(id));
            }
            return;
        }
        // What is on its way to the disk is missed by nobody, but cannot be read yet.
        let targets = self.pulls.targets().chain(self.heads.on_their_way());
        if let Some(barrier) = self.barriers.get_mut(&id)
            && barrier.voters.contains(&from)
        {
            barrier.answered.insert(from);
            let of = barrier.of;
            for (origin, seq) in
                targets.filter(|(origin, _)| of.is_none_or(|of| of == origin.member))
            {
                let target = barrier.targets.entry(origin).or_default();
                *target = seq.max(*target);
            }
        }
    }

    /// Lets the reads go on that have waited long enough.
    pub(super) fn pass_barriers(&mut self, now: Now) {
        if self.barriers.is_empty() {
            return;
        }
        let heads = &self.heads;
        let passed = self.barriers.extract_if(.., |_, barrier| barrier.is_passed(heads));
        self.outputs.extend(passed.map(|(id, _)| Output::Passed(id)));
        self.barriers.retain(|_, barrier| barrier.deadline_millis > now.monotonic_millis);
        self.ask_again(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::gossip::{Input, Options};
    use crate::replication::message::Head;
    use crate::replication::settled::Frontier;
    use crate::time::Timestamp;

    const NOW: Now = Now { monotonic_millis: 1, wall_millis: 1 };
    const READ: u64 = 7;

    fn origin(member: u64) -> Origin {
        Origin { member: MemberId(member), run: 1 }
    }

    fn passes(gossip: &mut Gossip, input: Input) -> bool {
        gossip.step(NOW, input).iter().any(|output| matches!(output, Output::Passed(READ)))
    }

    #[test]
    fn who_comes_alive_is_asked_at_once() {
        let none = Timestamp::default();
        let frontier = Frontier::new(MemberId(1), none, none);
        let mut gossip = Gossip::new(origin(1), Options::default(), 1, &[], frontier, NOW);
        let voters = vec![MemberId(2), MemberId(3)];
        let of = Some(MemberId(1));
        gossip.step(NOW, Input::Barrier { id: READ, voters, needed: 2, of, deadline_millis: 1000 });
        let asked = |outputs: Vec<Output>| {
            let asks = outputs.into_iter().filter_map(|output| match output {
                Output::Send(peer, Message::Ask(READ)) => Some(peer.0),
                _ => None,
            });
            asks.collect::<Vec<_>>()
        };
        let mut lives = |live: &[u64]| {
            asked(gossip.step(NOW, Input::Live(live.iter().copied().map(MemberId).collect())))
        };
        assert_eq!(lives(&[2, 4]), [2], "the other one's answer does not count");
        assert_eq!(lives(&[2, 3, 4]), [3]);
        assert_eq!(lives(&[2, 3]), [0; 0], "they have been asked");
    }

    /// A member waits for what it wrote itself, and not for what others did.
    #[test]
    fn only_entries_that_are_asked_about_are_waited_for() {
        for (of, is_passed) in
            [(None, false), (Some(MemberId(1)), true), (Some(MemberId(2)), false)]
        {
            let none = Timestamp::default();
            let frontier = Frontier::new(MemberId(1), none, none);
            let mut gossip = Gossip::new(origin(1), Options::default(), 1, &[], frontier, NOW);
            let voters = vec![MemberId(2)];
            let barrier = Input::Barrier { id: READ, voters, needed: 1, of, deadline_millis: 1000 };
            assert!(!passes(&mut gossip, barrier));
            let moved = vec![Head { origin: origin(2), seq: 1 }];
            let digest = Digest { arrivals: 1, until: 1, moved, ..Digest::default() };
            let answer = Input::Receive(MemberId(2), Message::Answer(READ, digest));
            assert_eq!(passes(&mut gossip, answer), is_passed, "{of:?}");
        }
    }

    #[test]
    fn what_is_on_its_way_to_the_disk_is_waited_for() {
        let options = Options::default();
        let none = Timestamp::default();
        let frontier = Frontier::new(MemberId(1), none, none);
        let mut gossip = Gossip::new(origin(1), options, 1, &[], frontier, NOW);
        let voters = vec![MemberId(2)];
        let barrier =
            Input::Barrier { id: READ, voters, needed: 1, of: None, deadline_millis: 1000 };
        assert!(!passes(&mut gossip, barrier));
        let head = Head { origin: origin(2), seq: 1 };
        gossip.heads.note_applied(head.origin, head.seq);
        let digest = Digest { arrivals: 1, until: 1, moved: vec![head], ..Digest::default() };
        let answer = Input::Receive(MemberId(2), Message::Answer(READ, digest));
        assert!(!passes(&mut gossip, answer), "it cannot be read yet");
        let committed = Input::Committed { entries: Vec::new(), heads: vec![head] };
        assert!(passes(&mut gossip, committed));
    }
}
