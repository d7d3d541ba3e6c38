//! A cluster that nobody has founded yet, and whose members know no more of each other than a domain: its SRV records say who
//! they are to be, as with etcd's `--discovery-srv`.
//!
//! Whoever has no data, and finds its own address in the records, looks at all others that are named there.
//! * One that serves has a cluster: it is joined, unless it was founded by the same records, and this member is awaited there.
//! * A majority of those named that have no data either, and go by the same records, found the cluster together. The others
//!   are awaited, as those of `--initial-cluster` are.
//!
//! The majority matters: records change, and a member that cannot see the cluster that it is to join must not found one of
//! its own. Who goes by the same records is known by the id of the cluster that follows from them.
//!
//! DNS is asked for nothing else: it takes nobody in, and removes nobody.

use starling_proto::starling::peer::v1::HelloReply;

use crate::engine::replica::founding_cluster;
use crate::transport::resolve::{Candidate, PeerUrl};
use crate::types::ClusterId;

/// Where SRV records name members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The domain.
    pub domain: String,
    /// What stands behind `etcd-server-` in their names.
    pub service: String,
    /// Tells clusters of the same members apart. `None` for a member that only joins what is there.
    pub token: Option<String>,
}

/// The cluster that follows from the records, with a place in it for this member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) cluster: ClusterId,
    /// This member, as it is named there.
    pub(super) own: Vec<PeerUrl>,
    pub(super) others: Vec<PeerUrl>,
}

/// What there is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Found,
    /// Ask one of these to be let in.
    Join(Vec<Candidate>),
}

impl Plan {
    /// `None` if the records do not name this member.
    pub(super) fn new(
        token: &str,
        named: &[PeerUrl],
        is_own: impl Fn(&PeerUrl) -> bool,
    ) -> Option<Self> {
        let mut named = named.to_vec();
        named.sort();
        named.dedup();
        let urls: Vec<_> = named.iter().map(PeerUrl::to_string).collect();
        let cluster = founding_cluster(token, &urls);
        let (own, others): (Vec<_>, Vec<_>) = named.into_iter().partition(is_own);
        (!own.is_empty()).then_some(Self { cluster, own, others })
    }

    /// The founders, this one included.
    fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// Judges by who was seen: the answers from each of the others.
    pub(super) fn step(&self, seen: &[Vec<(Candidate, HelloReply)>]) -> Step {
        let is_ours = |reply: &HelloReply| reply.cluster_id == self.cluster.0;
        let served = seen.iter().flatten().filter(|(_, reply)| reply.in_cluster);
        if served.clone().any(|(_, reply)| is_ours(reply) && reply.admits_caller) {
            return Step::Found;
        }
        let contacts: Vec<_> = served.map(|(candidate, _)| candidate.clone()).collect();
        if !contacts.is_empty() {
            return Step::Join(contacts);
        }
        let agrees = |replies: &&Vec<(Candidate, HelloReply)>| {
            replies.iter().any(|(_, reply)| is_ours(reply))
        };
        let agree = seen.iter().filter(agrees).count() + 1;
        if agree > self.count() / 2 { Step::Found } else { Step::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(number: u16) -> PeerUrl {
        PeerUrl { tls: false, host: format!("m{number}.test"), port: 2380 }
    }

    fn plan(own: u16, named: &[u16]) -> Option<Plan> {
        let named: Vec<_> = named.iter().copied().map(url).collect();
        Plan::new("token", &named, |it| *it == url(own))
    }

    fn answer(number: u16, reply: HelloReply) -> Vec<(Candidate, HelloReply)> {
        let address = ([127, 0, 0, 1], 2380).into();
        vec![(Candidate { url: url(number), address }, reply)]
    }

    /// It has no data, and goes by the records of `plan`.
    fn fresh(number: u16, plan: &Plan) -> Vec<(Candidate, HelloReply)> {
        let cluster_id = plan.cluster.0;
        answer(number, HelloReply { cluster_id, admits_caller: true, ..HelloReply::default() })
    }

    fn serving(number: u16, cluster_id: u64, awaits: bool) -> Vec<(Candidate, HelloReply)> {
        let reply = HelloReply { cluster_id, in_cluster: true, ..HelloReply::default() };
        answer(number, HelloReply { admits_caller: awaits, ..reply })
    }

    #[test]
    fn the_same_records_make_the_same_cluster_whatever_their_order() {
        let first = plan(1, &[1, 2, 3]).expect("it is named");
        let second = plan(2, &[3, 2, 1, 2]).expect("it is named");
        assert_eq!(first.cluster, second.cluster);
        assert_eq!((first.own, first.others), (vec![url(1)], vec![url(2), url(3)]));
        assert_ne!(first.cluster, plan(1, &[1, 2]).expect("it is named").cluster);
        assert_eq!(plan(4, &[1, 2, 3]), None);
    }

    #[test]
    fn a_majority_without_data_founds() {
        let plan = plan(1, &[1, 2, 3]).expect("it is named");
        let nobody = [Vec::new(), Vec::new()];
        assert_eq!(plan.step(&nobody), Step::Wait);
        assert_eq!(plan.step(&[fresh(2, &plan), Vec::new()]), Step::Found);
    }

    #[test]
    fn half_is_no_majority() {
        let plan = plan(1, &[1, 2, 3, 4]).expect("it is named");
        let half = [fresh(2, &plan), Vec::new(), Vec::new()];
        assert_eq!(plan.step(&half), Step::Wait);
        let more = [fresh(2, &plan), fresh(3, &plan), Vec::new()];
        assert_eq!(plan.step(&more), Step::Found);
    }

    #[test]
    fn one_that_is_named_alone_founds_alone() {
        let plan = plan(1, &[1]).expect("it is named");
        assert_eq!(plan.step(&[]), Step::Found);
    }

    #[test]
    fn who_goes_by_other_records_does_not_count() {
        let mine = plan(1, &[1, 2, 3]).expect("it is named");
        let theirs = plan(2, &[2, 3]).expect("it is named");
        assert_eq!(mine.step(&[fresh(2, &theirs), fresh(3, &theirs)]), Step::Wait);
    }

    #[test]
    fn a_cluster_that_is_there_is_joined() {
        let plan = plan(1, &[1, 2, 3]).expect("it is named");
        let contact = || vec![serving(2, 7, true).remove(0).0];
        assert_eq!(plan.step(&[serving(2, 7, true), fresh(3, &plan)]), Step::Join(contact()));
        // It was founded by the same records, but this member has come before: it has lost its disk.
        let complete = serving(2, plan.cluster.0, false);
        assert_eq!(plan.step(&[complete, Vec::new()]), Step::Join(contact()));
    }

    #[test]
    fn a_founder_that_comes_later_is_awaited() {
        let plan = plan(1, &[1, 2, 3]).expect("it is named");
        assert_eq!(plan.step(&[serving(2, plan.cluster.0, true), Vec::new()]), Step::Found);
    }
}
