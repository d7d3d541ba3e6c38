//! Whom to talk to, if it does not matter: most of the time somebody of the own zone, where talk is cheap.
//!
//! It is a hint and no more. One choice in [`FAR_CHOICES`] is among all live members, wherever they are, and the ring of all members,
//! by which news gets to everybody, knows nothing of zones. So zones that are small, or wrong, cost time but lose nothing.

use super::Gossip;
use crate::types::MemberId;

/// One choice in so many is among all.
const FAR_CHOICES: u64 = 4;

impl Gossip {
    /// Somebody who seems alive.
    pub(super) fn somebody(&mut self) -> Option<MemberId> {
        let among = if self.near.is_empty() || self.dice.below(FAR_CHOICES) == 0 {
            &self.live
        } else {
            &self.near
        };
        self.dice.pick(among).copied()
    }

    /// Takes note of who is in the own zone, after a change of members or of who lives. A member that does not say where it
    /// is has none.
    pub(super) fn find_neighbours(&mut self) {
        let zones = &self.membership.zones;
        let own = zones.get(&self.me.member);
        let is_near = |peer: &&MemberId| own.is_some() && zones.get(*peer) == own;
        self.near = self.live.iter().filter(is_near).copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::{Input, Options};
    use super::*;
    use crate::replication::settled::{Frontier, Membership};
    use crate::time::{Now, Timestamp};
    use crate::types::Origin;

    const CHOICES: usize = 1000;

    /// How many of many choices are members up to `near`, who are in the zone of the one that chooses.
    fn choices(near: u64, zone: &str) -> usize {
        let now = Now { wall_millis: 0, monotonic_millis: 0 };
        let me = Origin { member: MemberId(1), run: 1 };
        let frontier = Frontier::new(me.member, Timestamp::default(), Timestamp::default());
        let mut gossip = Gossip::new(me, Options::default(), 1, &[], frontier, now);
        let ids = || (1..=40).map(MemberId);
        let members = ids().map(|member| (member, Timestamp::default())).collect();
        let mut membership = Membership::new(members, BTreeMap::new());
        let zones = ids().map(|id| (id, if id.0 <= near { zone } else { "there" }.to_owned()));
        membership.zones = zones.filter(|(_, zone)| !zone.is_empty()).collect();
        gossip.step(now, Input::Live(ids().collect()));
        gossip.step(now, Input::Membership(Arc::new(membership)));
        (0..CHOICES).filter_map(|_| gossip.somebody()).filter(|peer| peer.0 <= near).count()
    }

    #[test]
    fn most_choices_are_near_and_some_are_not() {
        assert!((700..850).contains(&choices(5, "here")), "{}", choices(5, "here"));
        // Nobody else is here.
        assert_eq!(choices(1, "here"), 0);
        assert!((50..150).contains(&choices(5, "")), "{}", choices(5, ""));
    }
}
