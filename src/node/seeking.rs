//! A member that serves alone until it reaches others, and then is one of them.
//!
//! `--join` is for members that have nothing to say before they have the others' data. Where all are started at once, and none of
//! them is there for long, that would be all of them. So who seeks begins alone, looks for others at the addresses that it was
//! given, which may be one name that stands for all, and for as long as it is alone. Whom it then joins is settled so that two
//! never go to each other:
//!
//! * a cluster, if there is one;
//! * or else the member with the least id of all that are there. If that is this one, the others come to it, and are told to.
//!
//! What each side has written until then is merged, as in any join.

use futures_util::future::join_all;
use starling_proto::starling::peer::v1 as pb;

use super::peers::Search;
use crate::transport::resolve::Candidate;

/// What is known of somebody who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contact {
    member: u64,
    cluster: u64,
    is_alone: bool,
}

/// What to do about those who are there, each by its number in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// There is nobody.
    Stay,
    /// Join this one.
    Go(usize),
    /// Have this one join.
    Call(usize),
}

fn choose(me: u64, contacts: &[Contact]) -> Way {
    let numbered = || contacts.iter().enumerate();
    let settled = numbered().filter(|(_, contact)| !contact.is_alone);
    if let Some((at, _)) = settled.min_by_key(|(_, contact)| (contact.cluster, contact.member)) {
        return Way::Go(at);
    }
    match numbered().min_by_key(|(_, contact)| contact.member) {
        None => Way::Stay,
        Some((at, least)) if least.member < me => Way::Go(at),
        Some((at, _)) => Way::Call(at),
    }
}

impl Search {
    /// Looks once whether there is anybody, and does what is to be done about it. Whatever fails is tried again with the next look.
    pub(super) async fn seek(&self) {
        let found = join_all(self.seek.iter().map(|url| self.who_is_at(url))).await;
        let is_met = |reply: &pb::HelloReply| {
            reply.in_cluster && !self.shared.blocked.has(|| Some(&reply.name))
        };
        let found: Vec<_> =
            found.into_iter().flatten().filter(|(_, reply)| is_met(reply)).collect();
        let contact = |(_, reply): &(Candidate, pb::HelloReply)| Contact {
            member: reply.member_id,
            cluster: reply.cluster_id,
            is_alone: reply.alone,
        };
        let contacts: Vec<_> = found.iter().map(contact).collect();
        let outcome = match choose(self.shared.member.id.0, &contacts) {
            Way::Stay => return,
            Way::Go(at) => self.go_to_if_admitted(&found[at].0).await,
            Way::Call(at) => self.have_join(&found[at].0).await,
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "nobody is joined yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(member: u64) -> Contact {
        Contact { member, cluster: member, is_alone: true }
    }

    #[test]
    fn of_two_one_goes_to_the_other() {
        assert_eq!(choose(1, &[]), Way::Stay);
        assert_eq!(choose(1, &[alone(2)]), Way::Call(0));
        assert_eq!(choose(2, &[alone(1)]), Way::Go(0));
    }

    #[test]
    fn all_go_to_one() {
        let all: Vec<_> = (1..=5).map(alone).collect();
        for me in &all {
            let others: Vec<_> = all.iter().filter(|other| *other != me).copied().collect();
            let way = choose(me.member, &others);
            let expected = if me.member == 1 { Way::Call(0) } else { Way::Go(0) };
            assert_eq!(way, expected, "{me:?}");
        }
    }

    #[test]
    fn a_cluster_is_joined_before_anybody_alone() {
        let settled = Contact { member: 9, cluster: 7, is_alone: false };
        let other = Contact { member: 8, cluster: 6, is_alone: false };
        assert_eq!(choose(1, &[alone(2), settled]), Way::Go(1));
        assert_eq!(choose(10, &[settled, alone(1), other]), Way::Go(2));
    }
}
