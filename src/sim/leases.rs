//! Stories of leases: keys go when nobody keeps their lease alive any more, on all members, and not before.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::world::now_at;
use crate::engine::command::{Command, Put};
use crate::engine::lease::KeepAlive;
use crate::types::{LeaseId, MemberId};

const MILLI: u64 = 1000;
const LEASE: LeaseId = LeaseId(7);
const KEY: &str = "leased";
const TTL_SECONDS: u64 = 6;
const TTL: u64 = TTL_SECONDS * SECOND;
/// After the end of a lease, or of its owner, somebody has to notice.
const NOTICE: u64 = 12 * SECOND;
const STEP: u64 = 100 * MILLI;
const NEVER_MILLIS: u64 = 3_600_000;
/// A message gets through now and then.
/// With much more, keep-alives do not come through in time either.
const HEAVY_LOSS_PPM: u64 = 400_000;

impl Cluster {
    fn number_of(&self, member: MemberId) -> Option<usize> {
        self.up().into_iter().find(|number| self.world.actors[*number].member() == member)
    }

    fn grant(&mut self, number: usize, id: LeaseId, ttl_seconds: u64) {
        let command = Command::LeaseGrant { id, ttl_seconds: ttl_seconds.cast_signed() };
        self.tell(format!("n{number} grants {id}"));
        self.world.with(number, |full, micros| full.execute(micros, command));
    }

    fn revoke(&mut self, number: usize, id: LeaseId) {
        self.tell(format!("n{number} revokes {id}"));
        let command = Command::LeaseRevoke { id };
        let reply = self.world.with(number, |full, micros| full.execute(micros, command));
        assert!(matches!(reply, Some(Ok(_))), "{reply:?}");
    }

    fn put_leased(&mut self, number: usize, key: &str, id: LeaseId) {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from_static(b"v"));
        let put = Put { key, value, lease: id, ..Put::default() };
        let reply = self.world.with(number, |full, micros| full.execute(micros, Command::Put(put)));
        assert!(matches!(reply, Some(Ok(_))), "{reply:?}");
    }

    /// A client keeps a lease alive by way of some member. Answers whether that was heard.
    fn keep_alive(&mut self, number: usize, id: LeaseId) -> bool {
        let asked = self.world.with(number, |full, micros| full.keep_alive(micros, id));
        let owner = match asked {
            Some(KeepAlive::Renewed(_)) => return true,
            Some(KeepAlive::Elsewhere(owner)) => owner,
            _ => return false,
        };
        let Some(owner) = self.number_of(owner) else { return false };
        if !self.is_reachable(number, owner) {
            return false;
        }
        let asked = self.world.with(owner, |full, micros| full.keep_alive(micros, id));
        matches!(asked, Some(KeepAlive::Renewed(_)))
    }

    /// Who keeps the deadline, as a member knows it.
    fn owner(&self, number: usize) -> Option<MemberId> {
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        replica.writer().lessor().owner(LEASE)
    }

    /// Whether a member has heard of another that it is fenced.
    fn member_is_fenced(&self, number: usize, other: MemberId) -> bool {
        let now = now_at(self.world.micros());
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        replica.is_peer_fenced(other, now)
    }

    fn has(&self, number: usize, key: &str) -> bool {
        self.state(number).contains_key(key.as_bytes())
    }

    /// Lets time pass, in which the key lives on some members.
    fn run_alive(&mut self, micros: u64, members: &[usize]) {
        let end = self.world.micros() + micros;
        while self.world.micros() < end {
            self.run(STEP.min(end - self.world.micros()));
            for number in members {
                if !self.has(*number, KEY) {
                    self.fail(&format!("the key is gone from n{number}"));
                }
            }
        }
    }

    /// Lets time pass until the key has gone from some members. Answers how long that took.
    fn run_until_gone(&mut self, within: u64, members: &[usize]) -> u64 {
        let begin = self.world.micros();
        while members.iter().any(|number| self.has(*number, KEY)) {
            if self.world.micros() > begin + within {
                self.fail("the key is still there");
            }
            self.run(STEP);
        }
        self.world.micros() - begin
    }

    /// Keeps a lease alive once a second by way of some member, and sees that the key lives on some members.
    fn keep_for(&mut self, seconds: u64, by: usize, members: &[usize]) {
        for _ in 0..seconds {
            self.keep_alive(by, LEASE);
            self.run_alive(SECOND, members);
        }
    }
}

/// Three members, of which the first has granted a lease, and the second has put a key.
fn leased(seed: u64) -> Cluster {
    let mut cluster = Cluster::found(3, seed);
    cluster.run(3 * SECOND);
    cluster.grant(0, LEASE, TTL_SECONDS);
    cluster.run(SECOND);
    cluster.put_leased(1, KEY, LEASE);
    cluster.run(SECOND);
    cluster
}

/// An owner comes back with a clock that is off: it can end nothing, so another one takes its leases over; they live as long
/// as they are kept alive, and end when they are not.
#[test]
fn leases_of_an_owner_that_is_fenced_are_taken_over() {
    for off_millis in [NEVER_MILLIS.cast_signed(), -NEVER_MILLIS.cast_signed()] {
        let mut cluster = leased(9);
        let owner = cluster.owner(1).expect("it was granted");
        cluster.crash(0);
        cluster.set_clock(0, off_millis);
        cluster.start(0);
        // It is back before anybody takes it for dead.
        for _ in 0..16 {
            cluster.keep_alive(1, LEASE);
            cluster.run_alive(SECOND, &[1, 2]);
        }
        let replica = cluster.world.actors[0].replica.as_ref().expect("it is up");
        assert!(replica.is_fenced());
        let heir = cluster.owner(1).expect("the lease lives");
        assert_ne!(heir, owner, "{off_millis}");
        assert_eq!([0, 2].map(|number| cluster.owner(number)), [Some(heir); 2], "{off_millis}");
        // Whoever is asked knows whom to ask, the former owner, too.
        for by in [1, 2, 0] {
            assert!(cluster.keep_alive(by, LEASE), "by n{by}");
        }
        let took = cluster.run_until_gone(TTL + NOTICE, &[0, 1, 2]);
        assert!(took >= TTL - SECOND, "after {took} us");
        // With its clock it gets its duties back: what falls to it then is its own again.
        cluster.set_clock(0, 0);
        cluster.run(10 * SECOND);
        assert!(!cluster.world.actors[0].replica.as_ref().expect("it is up").is_fenced());
        let fenced = cluster.member_is_fenced(1, owner);
        assert!(!fenced, "the others know that it is over");
    }
}

/// The same, but they take anyone for alive that they have ever met.
fn blind(seed: u64) -> Cluster {
    let mut cluster = leased(seed);
    for number in 0..3 {
        cluster.crash(number);
        cluster.world.actors[number].setup.cluster.liveness.probe_millis = NEVER_MILLIS;
        cluster.start(number);
    }
    cluster.run(3 * SECOND);
    cluster
}

fn all_leases(cluster: &Cluster) -> usize {
    let leases = cluster.up().into_iter().map(|number| {
        let replica = cluster.world.actors[number].replica.as_ref().expect("it is up");
        replica.writer().lessor().ids().len() + replica.writer().lessor().orphans().len()
    });
    leases.sum()
}

#[test]
fn a_lease_is_kept_alive_by_way_of_any_member() {
    for seed in 1..=3 {
        let mut cluster = leased(seed);
        cluster.keep_for(20, 2, &[0, 1, 2]);
        cluster.run_alive(TTL - SECOND - STEP, &[0, 1, 2]);
        cluster.run_until_gone(2 * SECOND, &[0, 1, 2]);
        cluster.run(SECOND);
        assert_eq!(all_leases(&cluster), 0);
        cluster.check_converged();
    }
}

#[test]
fn leases_of_an_owner_that_crashes_end_later_but_they_end() {
    for seed in 1..=5 {
        let mut cluster = leased(seed);
        assert!(cluster.keep_alive(2, LEASE), "it is forwarded");
        cluster.crash(0);
        cluster.run_alive(TTL, &[1, 2]);
        cluster.run_until_gone(NOTICE, &[1, 2]);
        cluster.start(0);
        cluster.run(5 * SECOND);
        assert!(!cluster.has(0, KEY));
        assert_eq!(all_leases(&cluster), 0);
        cluster.check_converged();
    }
}

#[test]
fn a_lease_that_was_taken_over_is_kept_alive() {
    for seed in 1..=5 {
        let mut cluster = leased(seed);
        cluster.crash(0);
        cluster.keep_for(20, 1, &[1, 2]);
        cluster.start(0);
        cluster.keep_for(10, 0, &[1, 2]);
        cluster.run_until_gone(TTL + NOTICE, &[0, 1, 2]);
        cluster.run(SECOND);
        cluster.check_converged();
    }
}

#[test]
fn an_owner_that_starts_anew_goes_on() {
    for seed in 1..=5 {
        let mut cluster = leased(seed);
        let owner = cluster.world.actors[0].member();
        for _ in 0..5 {
            cluster.crash(0);
            cluster.run_alive(2 * SECOND, &[1, 2]);
            cluster.start(0);
            cluster.run_alive(3 * SECOND, &[1, 2]);
        }
        assert_eq!(cluster.owner(1), Some(owner));
        cluster.run_until_gone(TTL + NOTICE, &[0, 1, 2]);
    }
}

/// `knows`: whether the members notice that they are cut off.
fn cut_off(seed: u64, knows: bool) {
    let mut cluster = if knows { leased(seed) } else { blind(seed) };
    cluster.world.network.part(&[0], &[1, 2]);
    cluster.tell("a cut".to_owned());
    cluster.run_alive(5 * TTL, &[0]);
    assert!(cluster.keep_alive(0, LEASE), "it stands still");
    if knows {
        assert!(!cluster.has(1, KEY), "the others have taken it over");
    } else {
        assert!(cluster.has(1, KEY), "it is not theirs");
    }
    cluster.calm();
    cluster.run_until_gone(TTL + 2 * NOTICE, &[0, 1, 2]);
    cluster.run(5 * SECOND);
    assert_eq!(all_leases(&cluster), 0);
    cluster.check_converged();
}

#[test]
fn an_owner_without_a_majority_ends_nothing() {
    (1..=5).for_each(|seed| cut_off(seed, true));
}

#[test]
fn an_owner_that_hears_nobody_ends_nothing() {
    (1..=5).for_each(|seed| cut_off(seed, false));
}

/// Nobody could keep it alive in the meantime.
#[test]
fn after_a_time_without_any_majority_leases_have_all_their_time() {
    for knows in [true, false] {
        let mut cluster = if knows { leased(1) } else { blind(1) };
        cluster.world.network.part(&[0], &[1, 2]);
        cluster.world.network.part(&[1], &[2]);
        cluster.run_alive(3 * TTL, &[0, 1, 2]);
        cluster.calm();
        cluster.run_alive(TTL, &[0, 1, 2]);
        cluster.run_until_gone(NOTICE, &[0, 1, 2]);
    }
}

#[test]
fn what_is_kept_alive_on_the_larger_side_outlives_the_cut() {
    for seed in 1..=5 {
        let mut cluster = leased(seed);
        cluster.world.network.part(&[0], &[1, 2]);
        cluster.keep_for(30, 2, &[0, 1, 2]);
        cluster.calm();
        cluster.keep_for(20, 2, &[0, 1, 2]);
        cluster.run_until_gone(TTL + NOTICE, &[0, 1, 2]);
    }
}

/// It may hear the others before it hears what they have written.
#[test]
fn an_owner_that_comes_back_hears_all_that_it_missed_before_it_ends_anything() {
    for seed in 1..=20 {
        let mut cluster = leased(seed);
        cluster.world.network.part(&[0], &[1, 2]);
        cluster.keep_for(20, 2, &[0, 1, 2]);
        assert_ne!(cluster.owner(1), cluster.owner(0), "it was taken over");
        cluster.calm();
        cluster.world.network.options.loss_ppm = HEAVY_LOSS_PPM;
        cluster.keep_for(60, 2, &[1, 2]);
        cluster.calm();
        cluster.keep_for(10, 2, &[0, 1, 2]);
        cluster.check_converged();
    }
}

#[test]
fn a_member_that_wakes_up_ends_nothing_at_once() {
    for (seed, pause) in [(1, 4), (2, 4), (3, 30), (4, 30)] {
        let mut cluster = leased(seed);
        cluster.keep_for(4, 2, &[0, 1, 2]);
        cluster.run_alive(3 * SECOND, &[0, 1, 2]);
        for number in 0..3 {
            cluster.world.actors[number].paused_until = cluster.world.micros() + pause * SECOND;
        }
        cluster.run_alive(pause * SECOND + TTL, &[0, 1, 2]);
        cluster.run_until_gone(TTL + 2 * NOTICE, &[0, 1, 2]);
    }
}

/// A put on one side of a cut, and a revocation on the other, in either order.
#[test]
fn a_put_that_did_not_know_of_the_end_of_its_lease_goes_too() {
    for is_later in [false, true] {
        for (left, right) in [(0, 1), (1, 0), (2, 1)] {
            let mut cluster = leased(1);
            let others: Vec<_> = (0..3).filter(|number| *number != left).collect();
            cluster.world.network.part(&[left], &others);
            if is_later {
                cluster.revoke(right, LEASE);
                cluster.run(SECOND);
            }
            cluster.put_leased(left, "late", LEASE);
            cluster.run(SECOND);
            if !is_later {
                cluster.revoke(right, LEASE);
                cluster.run(SECOND);
            }
            assert!(cluster.has(left, "late") && !cluster.has(right, KEY));
            cluster.calm();
            cluster.run(10 * SECOND);
            for number in 0..3 {
                assert!(cluster.state(number).is_empty(), "n{number}: {:?}", cluster.state(number));
            }
            assert_eq!(all_leases(&cluster), 0);
            cluster.check_converged();
        }
    }
}

/// A dead member may know of a new lease of that id, so the living are patient.
#[test]
fn a_put_that_did_not_know_of_the_end_of_its_lease_goes_although_a_member_is_dead() {
    let mut cluster = leased(1);
    cluster.world.network.part(&[0], &[1, 2]);
    cluster.run(SECOND);
    cluster.crash(2);
    cluster.revoke(1, LEASE);
    cluster.run(SECOND);
    cluster.put_leased(0, "late", LEASE);
    cluster.run(SECOND);
    cluster.world.network.heal();
    cluster.run(10 * SECOND);
    assert!(cluster.has(0, "late") && cluster.has(1, "late"), "it may be too early");
    cluster.run(80 * SECOND);
    assert!(cluster.state(0).is_empty() && cluster.state(1).is_empty());
    cluster.calm();
    cluster.run(10 * SECOND);
    cluster.check_converged();
}

#[test]
fn nothing_is_left_of_leases_when_members_fail() {
    for seed in 1..=10 {
        let mut cluster = Cluster::found(3, seed);
        cluster.run(3 * SECOND);
        for round in 0..20 {
            let id = LeaseId(1 + round % 5);
            for _ in 0..4 {
                let up = cluster.up();
                let Some(number) = cluster.dice.pick(&up).copied() else { break };
                let key = format!("l{}", cluster.dice.below(6));
                let command = match cluster.dice.below(4) {
                    0 => Command::LeaseGrant { id, ttl_seconds: 2 },
                    1 => Command::LeaseRevoke { id },
                    _ => Command::Put(Put { key: key.into(), lease: id, ..Put::default() }),
                };
                cluster.world.with(number, |full, micros| full.execute(micros, command));
                let pause = cluster.dice.below(300) * MILLI;
                cluster.run(pause);
            }
            let number = usize::try_from(cluster.dice.below(3)).unwrap_or(0);
            match cluster.dice.below(4) {
                0 => cluster.crash(number),
                1 => cluster.world.network.part(&[number], &[(number + 1) % 3, (number + 2) % 3]),
                _ => {
                    cluster.world.network.heal();
                    (0..3).for_each(|number| cluster.start(number));
                }
            }
            cluster.run(SECOND);
        }
        cluster.calm();
        cluster.run(90 * SECOND);
        cluster.check_converged();
        for number in 0..3 {
            let state = cluster.state(number);
            assert!(state.is_empty(), "seed {seed}: n{number} still has {state:?}");
        }
        assert_eq!(all_leases(&cluster), 0, "seed {seed}");
    }
}
