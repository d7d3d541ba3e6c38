//! Digests: two members find out whether either lacks anything.

use super::{
    BACK_OFF, DEAD_PEER_EXCHANGES, Gossip, HEADS_MAX, INTRODUCTION_HEADS_MAX, MISMATCHES_MAX,
};
use crate::replication::message::{Digest, Head, Message};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

impl Gossip {
    /// Compares with a random member, as happens every now and then.
    pub(super) fn begin_exchange(&mut self, now: Now) {
        self.next_exchange = now.monotonic_millis + self.dice.jitter(self.exchange_interval);
        let (by, of) = BACK_OFF;
        self.exchange_interval =
            (self.exchange_interval * by / of).min(self.options.exchange_max_millis);
        let dead_too = self.live.is_empty() || self.dice.below(DEAD_PEER_EXCHANGES) == 0;
        let peer = if dead_too { self.anybody() } else { self.somebody() };
        if let Some(peer) = peer {
            self.counts.rounds += 1;
            self.send_digest(peer, true);
        }
    }

    /// A random member, whether or not it seems alive.
    fn anybody(&mut self) -> Option<MemberId> {
        let members = self.membership.numbers();
        let me = members.binary_search(&self.me.member);
        let others = members.len() - usize::from(me.is_ok());
        if others == 0 {
            return None;
        }
        let at = usize::try_from(self.dice.below(others as u64)).ok()?;
        let skips_me = me.is_ok_and(|me| at >= me);
        members.get(at + usize::from(skips_me)).copied()
    }

    /// Something differs, or may: look again soon.
    pub(super) fn hurry(&mut self, now: Now) {
        self.exchange_interval = self.options.exchange_millis;
        let soon = now.monotonic_millis + self.dice.below(self.exchange_interval).max(1);
        self.next_exchange = self.next_exchange.min(soon);
    }

    pub(super) fn send_digest(&mut self, to: MemberId, reply: bool) {
        let digest = self.digest_for(to, reply);
        self.send(to, Message::Digest(digest));
    }

    pub(super) fn digest_for(&mut self, to: MemberId, reply: bool) -> Digest {
        let peer = self.peers.entry(to).or_default();
        let arrivals = self.heads.arrivals();
        // To a stranger with many heads only the root is of use: it may be the same.
        let after = match peer.heard {
            Some(heard) => heard,
            None if self.heads.len() <= INTRODUCTION_HEADS_MAX => 0,
            None => arrivals,
        };
        let (moved, until) = self.heads.moved_since(after, HEADS_MAX);
        let told = peer.told;
        let leaves_out = self.heads.leaves_out_since(after);
        let left_out = if leaves_out { self.left_out } else { Timestamp::default() };
        let (revision, former) = Self::revisions_for(peer, self.revision);
        let root = self.heads.root();
        let epoch = self.epoch;
        Digest {
            epoch,
            arrivals,
            root,
            told,
            after,
            until,
            moved,
            left_out,
            reply,
            revision,
            former,
        }
    }

    /// Whether runs are left out of what a peer tells that this member may lack, since it is not complete up to their end: an
    /// old copy of a disk, as a rule. Then it needs the state.
    pub(super) fn lacks_left_out(&mut self, from: MemberId, left_out: Timestamp, now: Now) -> bool {
        let is_lacking = left_out > self.frontier.complete();
        if is_lacking {
            self.begin_catch_up(from, now);
        }
        is_lacking
    }

    pub(super) fn compare(&mut self, from: MemberId, digest: Digest, now: Now) {
        self.counts.exchanges += 1;
        for head in &digest.moved {
            self.learn(from, *head);
        }
        let is_owed = self.hear_revisions(from, &digest);
        let is_equal = digest.root == self.heads.root();
        let is_lacking = !is_equal && self.lacks_left_out(from, digest.left_out, now);
        let (epoch, arrivals) = (self.epoch, self.heads.arrivals());
        let peer = self.peers.entry(from).or_default();
        peer.heard = digest.told.filter(|(of, _)| *of == epoch).map(|(_, heard)| heard);
        let known = peer.told.filter(|(of, _)| *of == digest.epoch).map_or(0, |(_, known)| known);
        if is_equal {
            peer.told = Some((digest.epoch, digest.arrivals));
        } else if is_lacking {
            peer.told = None;
        } else if digest.after <= known {
            peer.told = Some((digest.epoch, digest.until.max(known)));
        } else if digest.after == 0 || known == 0 {
            // Heads have moved that we were never told of.
            peer.told = None;
        }
        if is_equal {
            peer.mismatch = None;
            // It will not name our head any more, and its acknowledgement may have been lost.
            self.acknowledged_by(from, self.heads.seq(self.me));
        } else {
            self.counts.mismatches += 1;
            let both = (arrivals, digest.arrivals);
            let peer = self.peers.entry(from).or_default();
            let count = match peer.mismatch {
                Some((before, count)) if before == both => count + 1,
                _ => 1,
            };
            peer.mismatch = Some((both, count));
            let is_lost = peer.told.is_none() || count > MISMATCHES_MAX;
            if is_lost && !self.pulls.is_behind() {
                peer.mismatch = None;
                self.send(from, Message::Buckets(self.heads.buckets().to_vec()));
            }
            self.hurry(now);
        }
        if is_owed || digest.reply && !(is_equal && digest.told == Some((epoch, arrivals))) {
            self.send_digest(from, false);
        }
    }

    /// Sends what a peer may not know of, now that it has told its sums.
    pub(super) fn answer_buckets(&mut self, from: MemberId, sums: &[u64]) {
        let differing = self.heads.differing(sums);
        if differing != 0 {
            self.send_vector(from, differing, true);
        }
    }

    pub(super) fn send_vector(&mut self, to: MemberId, buckets: u64, reply: bool) {
        let mut heads = self.heads.in_buckets(buckets);
        // More than fit are told next time: those that have moved last matter most, but any will do.
        heads.truncate(HEADS_MAX);
        let (epoch, arrivals) = (self.epoch, self.heads.arrivals());
        let left_out = self.left_out;
        self.send(to, Message::Vector { epoch, arrivals, buckets, heads, left_out, reply });
    }

    pub(super) fn take_vector(&mut self, from: MemberId, told: (u32, u64), heads: &[Head]) {
        for head in heads {
            self.learn(from, *head);
        }
        if heads.len() < HEADS_MAX {
            self.peers.entry(from).or_default().told = Some(told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::{Input, Options, Output};
    use super::*;
    use crate::replication::heads::Heads;
    use crate::replication::message::Head;
    use crate::replication::settled::{Frontier, Membership};
    use crate::types::{Origin, Revision};

    const ME: Origin = Origin { member: MemberId(1), run: 1 };
    const PEER: MemberId = MemberId(2);

    #[test]
    fn who_holds_the_same_has_acknowledged_all_of_it() {
        let now = Now { wall_millis: 0, monotonic_millis: 0 };
        let frontier = Frontier::new(ME.member, Timestamp::default(), Timestamp::default());
        let head = Head { origin: ME, seq: 5 };
        let mut gossip = Gossip::new(ME, Options::default(), 1, &[head], frontier, now);
        let members = [ME.member, PEER].map(|member| (member, Timestamp::default()));
        let membership = Membership::new(members.into(), BTreeMap::new());
        gossip.step(now, Input::Membership(Arc::new(membership)));
        let mut hear = |root| {
            let digest = Digest {
                epoch: 7,
                arrivals: 3,
                root,
                told: None,
                after: 3,
                until: 3,
                moved: Vec::new(),
                left_out: Timestamp::default(),
                reply: false,
                revision: Revision::default(),
                former: Revision::default(),
            };
            gossip.step(now, Input::Receive(PEER, Message::Digest(digest)))
        };
        let acknowledged = Output::Acknowledged(PEER, 5);
        assert!(!hear(1).contains(&acknowledged), "it holds something else");
        let mut same = Heads::new();
        same.advance(head);
        assert!(hear(same.root()).contains(&acknowledged));
        assert!(!hear(same.root()).contains(&acknowledged), "that is no news");
    }
}
