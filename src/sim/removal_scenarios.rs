//! Stories of members that are removed while they are away, and come back.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};

fn key(name: &str, i: usize) -> Bytes {
    Bytes::from(format!("{name}{i}"))
}

fn is_ready(cluster: &Cluster, number: usize) -> bool {
    cluster.world.actors[number].replica.as_ref().is_some_and(|replica| replica.is_ready())
}

/// What nobody else had is not there any more, but told; what the others have deleted and forgotten stays so.
#[test]
fn a_member_that_was_cut_off_comes_back_as_somebody_else() {
    for seed in seeds(5) {
        // With a bounded log the first of two writes of one key may be given up.
        let mut cluster = Cluster::found_with_logs(4, None, seed);
        busy(&mut cluster, 3 * SECOND);
        (0..20).for_each(|i| cluster.put(0, &key("doomed", i)));
        (0..20).for_each(|i| cluster.put(0, &key("kept", i)));
        cluster.run(2 * SECOND);
        let before = cluster.state(2);
        cluster.world.network.part(&[2], &[0, 1, 3]);
        cluster.run(SECOND);
        (0..10).for_each(|i| cluster.put(2, &key("alone", i)));
        cluster.delete(2, &key("alone", 3));
        (0..5).for_each(|i| cluster.delete(2, &key("kept", i)));
        (5..8).for_each(|i| cluster.put(2, &key("kept", i)));
        (0..20).for_each(|i| cluster.delete(0, &key("doomed", i)));
        let member = cluster.world.actors[2].member();
        cluster.remove(0, 2);
        busy(&mut cluster, 5 * SECOND);
        for _ in 0..20 {
            // What is deleted is forgotten.
            [0, 1, 3].into_iter().for_each(|number| cluster.compact_and_sweep_at(number));
            cluster.run(SECOND / 5);
        }
        assert!(before.contains_key(&key("doomed", 0)), "seed {seed}");
        cluster.world.network.heal();
        busy(&mut cluster, 3 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert!(is_ready(&cluster, 2), "seed {seed}");
        let full = &cluster.world.actors[2];
        assert_ne!(full.member(), member, "seed {seed}");
        let state = cluster.state(2);
        let kept = |i: &usize| state.contains_key(&key("kept", *i));
        assert!((0..20).all(|i| kept(&i)) && !state.contains_key(&key("alone", 0)));
        let lost: BTreeSet<_> =
            full.lost.iter().map(|it| (it.key.clone(), it.value.is_some())).collect();
        let told = |name, i, is_put| lost.contains(&(key(name, i), is_put));
        assert!((0..10).all(|i| told("alone", i, true)) && told("alone", 3, false), "seed {seed}");
        assert!((0..5).all(|i| told("kept", i, false)), "seed {seed}");
        assert!((5..8).all(|i| told("kept", i, true)), "seed {seed}");
        assert!(full.lost.iter().all(|lost| lost.stamp.origin.member == member), "seed {seed}");
        // In the order in which it was accepted.
        assert!(full.lost.is_sorted_by_key(|lost| lost.seq), "seed {seed}");
        // It is a member like any other now, with nothing left of before.
        cluster.compact_and_sweep();
        cluster.crash(2);
        busy(&mut cluster, 2 * SECOND);
        cluster.start(2);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
    }
}

/// Wherever power is lost on the way back, nothing is.
#[test]
fn a_removed_member_may_lose_power_on_its_way_back() {
    let moments = [0, 1, 2, 3, 5, 20, 100];
    for (seed, moment) in seeds(1).into_iter().flat_map(|seed| moments.map(|at| (seed, at))) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(SECOND);
        cluster.world.network.part(&[2], &[0, 1]);
        cluster.run(SECOND);
        (0..10).for_each(|i| cluster.put(2, &key("alone", i)));
        cluster.run(SECOND);
        cluster.crash(2);
        cluster.remove(0, 2);
        busy(&mut cluster, 3 * SECOND);
        cluster.world.network.heal();
        cluster.start(2);
        let member = cluster.world.actors[2].member();
        while cluster.world.actors[2].member() == member {
            cluster.run(SECOND / 1000);
        }
        cluster.run(moment * SECOND / 1000);
        cluster.crash(2);
        busy(&mut cluster, SECOND);
        cluster.start(2);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert!(is_ready(&cluster, 2), "seed {seed} at {moment}");
        let lost: BTreeSet<_> =
            cluster.world.actors[2].lost.iter().map(|lost| lost.key.clone()).collect();
        assert!((0..10).all(|i| lost.contains(&key("alone", i))), "seed {seed} at {moment}");
    }
}

/// Both sides of a cut remove somebody of the other one: both come back.
#[test]
fn both_sides_of_a_cut_remove_somebody() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(5, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.world.network.part(&[0, 1, 2], &[3, 4]);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(6 * SECOND);
        cluster.remove(1, 3);
        cluster.remove(4, 0);
        busy(&mut cluster, 3 * SECOND);
        cluster.world.network.heal();
        busy(&mut cluster, 5 * SECOND);
        for number in [0, 3] {
            // Both were in touch with somebody, so they have ended.
            assert_eq!(cluster.world.actors[number].removed, Some(true), "seed {seed}");
            cluster.succeed(number);
            cluster.start(number);
        }
        busy(&mut cluster, 5 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        assert!((0..5).all(|number| is_ready(&cluster, number)), "seed {seed}");
        assert_eq!(cluster.members(0).len(), 5, "seed {seed}");
    }
}

/// Who is removed while it is there ends, and stays away until it is started again.
#[test]
fn a_live_member_that_is_removed_ends() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.remove(0, 2);
        cluster.run(3 * SECOND);
        assert_eq!(cluster.world.actors[2].removed, Some(true), "seed {seed}");
        assert!(!cluster.up().contains(&2), "seed {seed}");
        cluster.succeed(2);
        busy(&mut cluster, 3 * SECOND);
        cluster.start(2);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert!(cluster.world.actors[2].lost.is_empty(), "seed {seed}: the others had all of it");
    }
}
