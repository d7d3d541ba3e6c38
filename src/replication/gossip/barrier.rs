//! Reads that see what a majority holds: they wait until everything has come that any of its members held when asked.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gossip, Output};
use crate::replication::heads::Heads;
use crate::replication::message::{Digest, Message};
use crate::time::Now;
use crate::types::{MemberId, Origin};

/// A read that waits.
#[derive(Clone, Debug)]
pub(super) struct Barrier {
    /// Whose answers count.
    voters: Vec<MemberId>,
    /// How many of them it takes.
    needed: usize,
    answered: BTreeSet<MemberId>,
    /// What has to be here.
    targets: BTreeMap<Origin, u64>,
    /// Nobody waits any more after this.
    deadline_millis: u64,
}

impl Barrier {
    fn is_passed(&self, heads: &Heads) -> bool {
        let is_here = |(origin, seq): (&Origin, &u64)| heads.seq(*origin) >= *seq;
        self.answered.len() >= self.needed && self.targets.iter().all(is_here)
    }
}

impl Gossip {
    /// Asks all voters where they are.
    pub(super) fn begin_barrier(
        &mut self,
        id: u64,
        voters: Vec<MemberId>,
        needed: usize,
        deadline_millis: u64,
    ) {
        for peer in &voters {
            self.send(*peer, Message::Ask(id));
        }
        let (answered, targets) = Default::default();
        self.barriers.insert(id, Barrier { voters, needed, answered, targets, deadline_millis });
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
            self.send(from, Message::Ask(id));
            return;
        }
        let targets = self.pulls.targets();
        if let Some(barrier) = self.barriers.get_mut(&id)
            && barrier.voters.contains(&from)
        {
            barrier.answered.insert(from);
            for (origin, seq) in targets {
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
    }
}
