//! The tag of a member with peers: when it takes one, and when it needs another.
//!
//! A store that founds a cluster or is about to join one takes a tag when it is opened; one that stood alone, when its first
//! peer is there. From then on it has one for good, but not always the same. It takes another one
//! * when somebody else has it, or has just given it up for the same reason: so both take new ones;
//! * when it finds itself on an old copy of its disk, whose numbers it has given away before: a peer has heard of later
//!   revisions, or holds entries that this member wrote and does not know.
//!
//! The record of a member has its tag, and those that it gave up, which nobody takes again as long as that is known.

use super::Replica;
use crate::engine::replica::{ClusterOptions, put};
use crate::engine::tags::free_tag;
use crate::engine::{Options, Writer};
use crate::error::StoreError;
use crate::replication::Dice;
use crate::replication::heads::mix;
use crate::replication::message::Head;
use crate::storage::schema::Table;
use crate::storage::schema::member::{FORMER_TAGS_MAX, MemberRecord};
use crate::time::Now;
use crate::types::MemberId;

/// Chance, other than that of members with the same seed.
pub(super) fn dice(writer: &Options, cluster: &ClusterOptions) -> Dice {
    Dice::new(mix(cluster.seed ^ mix(writer.identity.member.0)))
}

/// The settings of the writer, with a tag for a store that is about to have peers.
pub(super) fn with_tag(writer: &Options, cluster: &ClusterOptions, dice: &mut Dice) -> Options {
    if writer.tag.is_some() || !cluster.joins && cluster.initial.is_empty() {
        return writer.clone();
    }
    let tag = free_tag(dice.roll(), |_| false);
    Options { tag, revision_entropy: dice.roll(), ..writer.clone() }
}

/// Whether a peer holds entries of this member that it does not know itself.
pub(super) fn is_old_copy(writer: &Writer, heads: &[Head]) -> bool {
    let me = writer.origin();
    let is_own = |head: &&Head| head.origin.member == me.member && head.origin != me;
    heads.iter().filter(is_own).any(|head| head.seq > writer.head(head.origin))
}

impl Replica {
    /// Takes a tag, or another one, if the members make that necessary; and lets them know.
    pub(super) fn check_tag(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        if cluster.clock.is_unsure() {
            // It says so, and may not write yet.
            return Ok(());
        }
        let is_old_copy = std::mem::take(&mut cluster.is_old_copy);
        let (me, tag) = (self.writer.identity().member, self.writer.tag());
        let own = cluster.directory.members.get(&me).cloned();
        let others: Vec<_> = cluster.directory.members.iter().collect();
        let others = others.into_iter().filter(|(id, record)| **id != me && record.is_started());
        let others: Vec<MemberRecord> = others.map(|(_, record)| record.clone()).collect();
        let is_mine_no_more = own.as_ref().is_some_and(|own| own.former_tags.contains(&tag));
        let is_doubtful = is_old_copy || is_mine_no_more || others.iter().any(|it| it.names(tag));
        if if tag == 0 { !others.is_empty() } else { is_doubtful } {
            self.take_new_tag(|tag| others.iter().chain(&own).any(|record| record.names(tag)))?;
        }
        match own {
            Some(own) if own.tag != self.writer.tag() => self.tell_tag(own, tag, now),
            _ => Ok(()),
        }
    }

    /// Whoever joins serves nobody yet, so it avoids the tags of the members.
    pub(super) fn avoid_tags(
        &mut self,
        members: &[(MemberId, MemberRecord)],
    ) -> Result<(), StoreError> {
        let me = self.writer.identity().member;
        let others = members.iter().filter(|(id, _)| *id != me);
        let is_taken = |tag| others.clone().any(|(_, record)| record.names(tag));
        if self.writer.tag() == 0 || is_taken(self.writer.tag()) {
            self.take_new_tag(is_taken)?;
        }
        Ok(())
    }

    fn take_new_tag(&mut self, is_taken: impl Fn(u16) -> bool) -> Result<(), StoreError> {
        let (before, entropy) = (self.writer.tag(), self.dice.roll());
        let free = free_tag(entropy, |tag| tag == before || is_taken(tag));
        // With so many members that all are taken, any is as good as any other.
        let Some(tag) = free.or_else(|| free_tag(entropy, |tag| tag == before)) else {
            return Ok(());
        };
        self.writer.retag(tag)?;
        self.show_revision();
        Ok(())
    }

    /// Writes the tag into the own record, after it was another one.
    fn tell_tag(&mut self, own: MemberRecord, before: u16, now: Now) -> Result<(), StoreError> {
        let tag = self.writer.tag();
        let mut former_tags = own.former_tags.clone();
        for given_up in [own.tag, before] {
            if given_up != 0 && given_up != tag && !former_tags.contains(&given_up) {
                former_tags.push(given_up);
            }
        }
        let oldest = former_tags.len().saturating_sub(FORMER_TAGS_MAX);
        former_tags.drain(..oldest);
        let record = MemberRecord { tag, former_tags, ..own };
        let me = self.writer.identity().member;
        self.write(vec![put(Table::Member, MemberRecord::key(me), record.value())], now)
    }

    /// Lets the gossip know what clients see.
    pub(super) fn show_revision(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.gossip.set_revision(self.writer.mvcc().revision());
        }
    }
}
