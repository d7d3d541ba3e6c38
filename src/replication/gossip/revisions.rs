//! Revisions on their way around, so that a member on an old copy of its disk finds out.
//!
//! Such a member would give numbers to its clients that it gave before, for something else. It cannot know; but those whom it
//! told of its revision before can. So digests have the sender's revision while it is news, and after a peer has started
//! anew, what it had told before.

use super::{Gossip, Output, Peer};
use crate::replication::message::Digest;
use crate::types::{MemberId, Revision};

/// In how many digests something is said, since they may get lost.
const TIMES: u8 = 3;

/// What one peer and this member know of each other's revisions.
#[derive(Clone, Debug, Default)]
pub(super) struct Revisions {
    /// The process of the peer that told us last.
    epoch: Option<u32>,
    /// The greatest that it told.
    told: Revision,
    /// The greatest that the processes before it told.
    former: Revision,
    /// In how many digests that is still to be said.
    former_due: u8,
    /// What we told the peer.
    said: Revision,
    /// In how many digests that is still to be said.
    said_due: u8,
}

impl Revisions {
    /// Takes note of what the peer says. Answers whether it has started anew, and should hear of it.
    fn hear(&mut self, epoch: u32, revision: Revision) -> bool {
        let is_new = self.epoch.replace(epoch) != Some(epoch);
        if is_new {
            let told = std::mem::take(&mut self.told);
            self.former = greatest(self.former, told);
            (self.former_due, self.said_due) = (TIMES, TIMES);
        }
        self.told = greatest(self.told, revision);
        is_new && self.former != Revision(0)
    }

    fn say(&mut self, shown: Revision) -> Revision {
        if shown != self.said {
            (self.said, self.said_due) = (shown, TIMES);
        }
        count_down(&mut self.said_due, shown)
    }

    fn say_former(&mut self) -> Revision {
        count_down(&mut self.former_due, self.former)
    }
}

/// Under a new tag counting starts anew.
fn greatest(before: Revision, now: Revision) -> Revision {
    match now.tag() {
        0 => before,
        tag if tag == before.tag() => before.max(now),
        _ => now,
    }
}

fn count_down(due: &mut u8, revision: Revision) -> Revision {
    if *due == 0 || revision.tag() == 0 {
        return Revision(0);
    }
    *due -= 1;
    revision
}

impl Gossip {
    /// This member's current revision, which is durable. What it shows first under a tag is what its disk had.
    pub fn set_revision(&mut self, revision: Revision) {
        if revision.tag() != self.revision.tag() {
            self.first_revision = revision;
        }
        self.revision = revision;
    }

    /// What a digest for a peer has of its revisions and ours: `revision` and `former` there.
    pub(super) fn revisions_for(peer: &mut Peer, revision: Revision) -> (Revision, Revision) {
        (peer.revisions.say(revision), peer.revisions.say_former())
    }

    /// Takes note of what a digest says about revisions. Answers whether the peer should get one in turn.
    pub(super) fn hear_revisions(&mut self, from: MemberId, digest: &Digest) -> bool {
        let first = self.first_revision;
        if first.tag() != 0 && digest.former.tag() == first.tag() && digest.former > first {
            self.outputs.push(Output::OldCopy);
        }
        let peer = self.peers.entry(from).or_default();
        peer.revisions.hear(digest.epoch, digest.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tag: u16, counter: u64) -> Revision {
        Revision(counter).with_tag(tag)
    }

    #[test]
    fn what_was_told_before_a_start_is_said_after_it() {
        let mut revisions = Revisions::default();
        assert!(!revisions.hear(1, at(5, 10)));
        assert!(!revisions.hear(1, at(5, 30)));
        // Messages come in any order, and most say nothing of revisions.
        assert!(!revisions.hear(1, at(5, 20)));
        assert!(!revisions.hear(1, Revision(0)));
        assert_eq!(revisions.say_former(), Revision(0));
        assert!(revisions.hear(2, at(5, 12)));
        for _ in 0..TIMES {
            assert_eq!(revisions.say_former(), at(5, 30));
        }
        assert_eq!(revisions.say_former(), Revision(0));
        // The process before may not have heard of it.
        assert!(revisions.hear(3, at(5, 13)));
        assert_eq!(revisions.say_former(), at(5, 30));
        assert!(!revisions.hear(3, at(6, 14)));
        assert!(revisions.hear(4, at(6, 14)));
        assert_eq!(revisions.say_former(), at(6, 14));
    }

    #[test]
    fn what_is_no_news_is_not_said() {
        let mut revisions = Revisions::default();
        assert_eq!(revisions.say(Revision(7)), Revision(0), "it has no tag");
        for revision in [at(5, 7), at(5, 8), at(6, 8)] {
            for _ in 0..TIMES {
                assert_eq!(revisions.say(revision), revision);
            }
            assert_eq!(revisions.say(revision), Revision(0));
        }
        revisions.hear(1, Revision(0));
        assert_eq!(revisions.say(at(6, 8)), at(6, 8), "the peer has forgotten it");
    }
}
