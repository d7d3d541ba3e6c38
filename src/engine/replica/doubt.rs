//! The doubt of a member that was started again: until it is over it writes nothing, since its disk may be an old copy.
//!
//! It ends when a peer has told what time it is there (see `clock.rs`), and everything is here that its peers hold of this
//! member's own former runs. A client that goes on where its member does finds what it was told was written; a delete of
//! its key would otherwise name the older put of the copy, and leave the newer one alive.
//!
//! * All others are asked, or as many as one asks at once. Who has not answered soon may be dead, though nobody here knows
//!   that yet: then one answer is enough. What anybody has said before that this member lacks is waited for all the same.
//! * A disk that is no old copy has all of it, so that takes as long as the slowest answer.
//! * Who takes over the data of a peer waits until it is here. Otherwise the doubt has an end, come what may.

use super::take_over::TakeOver;
use super::{Cluster, Effect, Replica};
use crate::engine::lease_owner::QUESTIONS;
use crate::error::StoreError;
use crate::replication::Dice;
use crate::replication::gossip::Input;
use crate::time::Now;
use crate::types::MemberId;

/// Peers that are asked at once.
const ASKED_MAX: usize = 16;
/// Who has not answered after so long is not waited for. All are asked again then, and then after twice as long ...
const ROUND_MILLIS: u64 = 1000;
/// ... so many times: peers may be far away.
const DOUBLINGS_MAX: u64 = 3;
/// What the questions are numbered from: those of clients' reads, and of lease owners, are below.
const NUMBERS: u64 = QUESTIONS + (1 << 62);

/// What was asked about this member's own former runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// Questions so far.
    rounds: u64,
    /// When nobody waits any more for the answers to the last one.
    until_millis: u64,
    is_answered: bool,
}

impl Doubt {
    fn ask(&mut self, now: Now) -> u64 {
        self.until_millis = now.monotonic_millis + (ROUND_MILLIS << self.rounds.min(DOUBLINGS_MAX));
        self.rounds += 1;
        NUMBERS + self.rounds
    }

    /// What peers held when they were asked is here now. Answers whether that was a question of this module.
    pub(super) fn answer(&mut self, number: u64) -> bool {
        self.is_answered |= number == NUMBERS + self.rounds;
        number >= NUMBERS
    }
}

fn some_of(mut peers: Vec<MemberId>, dice: &mut Dice) -> Vec<MemberId> {
    while peers.len() > ASKED_MAX {
        let leaves = usize::try_from(dice.below(peers.len() as u64)).unwrap_or(0);
        peers.swap_remove(leaves);
    }
    peers
}

impl Cluster {
    /// Whether there is anybody to ask, and the clock is no reason to wait any more.
    fn asks_for_own_runs(&self) -> bool {
        self.clock.knows_the_time() && !self.live.is_empty()
    }
}

impl Replica {
    /// Whether this member writes nothing yet, since its disk may be an old copy.
    pub fn is_unsure(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.clock.is_unsure())
    }

    /// When the doubt has to be looked at again, in monotonic milliseconds.
    pub(super) fn doubt_wake_at(&self) -> u64 {
        match &self.cluster {
            Some(cluster) if !cluster.clock.is_unsure() => u64::MAX,
            Some(cluster) if cluster.asks_for_own_runs() => cluster.doubt.until_millis,
            Some(cluster) => cluster.clock.alone_millis(),
            None => u64::MAX,
        }
    }

    /// Begins to write, when it is known what time it is for the others, and what they hold of the own former runs is here; or
    /// when this member has been alone for so long that its disk and its wall clock have to do.
    pub(super) fn end_doubt(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let clock = &cluster.clock;
        if !clock.is_unsure() {
            return Ok(());
        }
        // Who is alone believes its wall clock from then on: that is nobody's word, and nobody answers what it asks.
        if clock.has_been_alone(now) {
            return self.end_doubt_now(now);
        }
        if !cluster.asks_for_own_runs() {
            let is_late = now.monotonic_millis >= clock.alone_millis();
            return if is_late { self.end_doubt_now(now) } else { Ok(()) };
        }
        let takes_over =
            cluster.gossip.catching_up().is_some() || !matches!(cluster.take_over, TakeOver::None);
        let is_late = clock.has_doubted(now) && !takes_over;
        if is_late || cluster.doubt.is_answered {
            return self.end_doubt_now(now);
        }
        let is_asking = now.monotonic_millis < cluster.doubt.until_millis;
        if is_asking { Ok(()) } else { self.ask_for_own_runs(now) }
    }

    /// Asks what others hold of this member's former runs.
    fn ask_for_own_runs(&mut self, now: Now) -> Result<(), StoreError> {
        let me = self.writer.identity().member;
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let is_first = cluster.doubt.rounds == 0;
        let started = cluster.directory.members.iter().filter(|(_, record)| record.is_started());
        let others = started.map(|(id, _)| *id).filter(|id| *id != me).collect();
        let voters = some_of(others, &mut self.dice);
        let needed = if is_first { voters.len() } else { 1 };
        let id = cluster.doubt.ask(now);
        let deadline_millis = cluster.doubt.until_millis;
        self.step(Input::Barrier { id, voters, needed, of: Some(me), deadline_millis }, now)
    }

    /// Begins to write, whatever others may know.
    pub(super) fn end_doubt_now(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = self.cluster.as_mut().filter(|it| it.clock.is_unsure()) else {
            return Ok(());
        };
        if now.monotonic_millis >= cluster.clock.alone_millis() {
            self.judge_clock(now);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.clock.be_sure();
        }
        self.effects.push(Effect::Ready);
        // What was to be written at the start is written now.
        self.read_directory(now)?;
        self.check_tag(now)
    }

    /// There is nobody who could know better.
    pub(super) fn end_doubt_alone(&mut self) {
        let me = self.writer.identity().member;
        let Some(cluster) = &mut self.cluster else { return };
        let members = &cluster.directory.members;
        let has_peers = members.iter().any(|(id, record)| *id != me && record.is_started());
        if !has_peers && members.contains_key(&me) {
            cluster.clock.be_sure();
        }
    }
}
