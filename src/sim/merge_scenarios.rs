//! Stories of data that comes together.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};
use crate::types::MediaType;

fn value(cluster: &Cluster, number: usize, key: &str) -> Option<Bytes> {
    cluster.state(number).get(key.as_bytes()).cloned()
}

/// Wherever power is lost on the way, nothing is.
#[test]
fn a_store_that_joins_may_lose_power_at_any_moment() {
    let moments = [0, 1, 2, 3, 20];
    for (seed, moment) in seeds(1).into_iter().flat_map(|seed| moments.map(|at| (seed, at))) {
        let mut cluster = Cluster::alone(seed);
        cluster.join_new();
        cluster.run(5 * SECOND);
        let other = cluster.add_alone();
        busy(&mut cluster, 2 * SECOND);
        let keys: Vec<_> = (0..30).map(|i| Bytes::from(format!("own{i}"))).collect();
        keys.iter().for_each(|key| cluster.put(other, key));
        cluster.run(SECOND);
        let before = cluster.state(other).len();
        cluster.start_to_join(other);
        // It asks twice a second, and is admitted some milliseconds later.
        cluster.run_until_admitted(other);
        cluster.run(moment * SECOND / 1000);
        cluster.crash(other);
        busy(&mut cluster, SECOND);
        cluster.start(other);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        assert!(before >= keys.len());
        for number in cluster.up() {
            let state = cluster.state(number);
            assert!(keys.iter().all(|key| state.contains_key(key)), "seed {seed} at {moment}");
        }
        assert!(cluster.world.actors[other].replica.as_ref().is_some_and(|it| it.is_ready()));
    }
}

/// A member of a cluster with data, and one alone with other data that joins: of each key the later value counts.
#[test]
fn a_store_with_data_joins_another() {
    for (seed, others) in seeds(2).into_iter().flat_map(|seed| [(seed, 0), (seed, 2)]) {
        let mut cluster = Cluster::alone(seed);
        for _ in 0..others {
            cluster.join_new();
        }
        cluster.run(5 * SECOND);
        let other = cluster.add_alone();
        cluster.set(0, "first here", "here");
        cluster.set(other, "both", "there");
        cluster.set(other, "deleted", "there");
        cluster.set(other, "deleted there", "there");
        cluster.run(SECOND);
        cluster.set(0, "both", "here");
        cluster.set(0, "first here", "here");
        cluster.set(0, "deleted", "here");
        cluster.set(0, "only here", "here");
        cluster.run(SECOND);
        cluster.set(other, "first here", "there");
        cluster.set(other, "only there", "there");
        cluster.delete(other, &Bytes::from_static(b"deleted there"));
        cluster.delete(0, &Bytes::from_static(b"deleted"));
        cluster.run(5 * SECOND);
        for _ in 0..20 {
            // What is deleted is forgotten by some.
            cluster.compact_and_sweep_at(0);
            busy(&mut cluster, SECOND / 5);
        }
        cluster.start_to_join(other);
        cluster.run(5 * SECOND);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        for number in cluster.up() {
            let of = |key| value(&cluster, number, key);
            let text = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
            assert_eq!(of("only here"), text("here"), "seed {seed}");
            assert_eq!(of("only there"), text("there"), "seed {seed}");
            assert_eq!(of("both"), text("here"), "seed {seed}");
            assert_eq!(of("first here"), text("there"), "seed {seed}");
            assert_eq!(of("deleted there"), None, "seed {seed}");
        }
    }
}

/// What a put says of its value is there wherever the put is: with a newcomer, with a store that joins and those that it joins,
/// and with a member that had lost it, which only a merge gives back.
#[test]
fn media_types_come_with_every_state() {
    for seed in seeds(2) {
        let mut cluster = Cluster::alone(seed);
        cluster.set_typed(0, "first", "text/css");
        busy(&mut cluster, SECOND);
        cluster.join_new();
        cluster.run(5 * SECOND);
        let other = cluster.add_alone();
        cluster.set_typed(other, "other", "image/png");
        cluster.run(SECOND);
        cluster.start_to_join(other);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(10 * SECOND);
        let check = |cluster: &Cluster| {
            for number in cluster.up() {
                for (key, expected) in [("first", "text/css"), ("other", "image/png")] {
                    let found = cluster.media_type(number, key);
                    let found = found.as_ref().map(MediaType::as_str);
                    assert_eq!(found, Some(expected), "seed {seed}: {key} at {number}");
                }
            }
        };
        check(&cluster);
        assert!(cluster.lose_row(1, b"first"), "seed {seed}");
        cluster.run(SECOND);
        assert_eq!(cluster.media_type(1, "first"), None, "seed {seed}: it was not lost");
        let mut rounds = 0;
        while cluster.media_type(1, "first").is_none() {
            rounds += 1;
            assert!(rounds < 60, "seed {seed}: nobody has noticed");
            busy(&mut cluster, SECOND);
        }
        cluster.run(15 * SECOND);
        check(&cluster);
        cluster.check_converged();
    }
}

/// Two stores had the same key; one of them deleted its own, which was later than the other's.
#[test]
fn what_a_store_had_deleted_hides_what_is_older() {
    for seed in seeds(2) {
        let mut cluster = Cluster::alone(seed);
        cluster.join_new();
        cluster.run(5 * SECOND);
        let other = cluster.add_alone();
        cluster.set(0, "older", "here");
        cluster.set(other, "newer here", "there");
        cluster.run(SECOND);
        cluster.set(other, "older", "there");
        cluster.set(0, "newer here", "here");
        cluster.run(SECOND);
        cluster.delete(other, &Bytes::from_static(b"older"));
        cluster.delete(other, &Bytes::from_static(b"newer here"));
        cluster.run(SECOND);
        cluster.start_to_join(other);
        // A store that is alone forgets what it has deleted when it is compacted.
        cluster.run_until_admitted(other);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        for number in cluster.up() {
            if let Some(value) = value(&cluster, number, "older") {
                cluster.fail(&format!("seed {seed}: n{number} has {value:?}"));
            }
            let newer = value(&cluster, number, "newer here");
            assert_eq!(newer, Some(Bytes::from_static(b"here")), "seed {seed}");
        }
    }
}

/// A member leaves with all data, goes on alone, and comes back: that is as a cut that heals.
#[test]
fn a_member_leaves_and_comes_back() {
    for (seed, members) in seeds(2).into_iter().flat_map(|seed| [(seed, 2), (seed, 3)]) {
        let mut cluster = Cluster::found(members, seed);
        busy(&mut cluster, 3 * SECOND);
        let leaver = members - 1;
        for key in ["untouched", "changed here", "changed there", "deleted here", "deleted there"] {
            cluster.set(0, key, "before");
        }
        cluster.run(2 * SECOND);
        let (before, tag) = (cluster.state(leaver), cluster.tags()[leaver]);
        let member = cluster.world.actors[leaver].member();
        cluster.leave(leaver);
        assert_eq!(cluster.state(leaver), before, "seed {seed}: it keeps its data");
        assert_eq!(cluster.tags()[leaver], tag, "seed {seed}: its clients see no change");
        assert!(!cluster.members(0).contains(&member), "seed {seed}: the others know");
        cluster.set(0, "changed here", "after");
        cluster.set(leaver, "changed there", "after");
        cluster.set(leaver, "only there", "after");
        cluster.delete(0, &Bytes::from_static(b"deleted here"));
        busy(&mut cluster, 3 * SECOND);
        for _ in 0..20 {
            // What is deleted is forgotten.
            (0..leaver).for_each(|number| cluster.compact_and_sweep_at(number));
            busy(&mut cluster, SECOND / 5);
        }
        // Not before: clients compact, and what a member has deleted alone and compacted comes back.
        cluster.delete(leaver, &Bytes::from_static(b"deleted there"));
        cluster.run(SECOND);
        cluster.crash(leaver);
        cluster.start(leaver);
        assert!(value(&cluster, leaver, "only there").is_some(), "seed {seed}: it is still alone");
        assert!(cluster.members(leaver).is_empty(), "seed {seed}");
        cluster.start_to_join(leaver);
        cluster.run_until_admitted(leaver);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        for number in cluster.up() {
            let of = |key| value(&cluster, number, key);
            let text = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
            assert_eq!(of("untouched"), text("before"), "seed {seed}");
            assert_eq!(of("changed here"), text("after"), "seed {seed}");
            assert_eq!(of("changed there"), text("after"), "seed {seed}");
            assert_eq!(of("only there"), text("after"), "seed {seed}");
            assert_eq!(of("deleted here"), None, "seed {seed}");
            assert_eq!(of("deleted there"), None, "seed {seed}");
        }
        assert_eq!(cluster.members(0).len(), members, "seed {seed}");
    }
}

/// A member that has left is the first of another cluster.
#[test]
fn a_member_that_has_left_takes_others_in() {
    for seed in seeds(2) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.set(0, "before", "left");
        cluster.run(2 * SECOND);
        cluster.leave(2);
        cluster.set(2, "alone", "there");
        cluster.crash(0);
        cluster.crash(1);
        cluster.world.network.heal();
        let joiner = cluster.join_new();
        cluster.run(10 * SECOND);
        cluster.set(joiner, "joined", "there");
        cluster.delete(joiner, &Bytes::from_static(b"before"));
        busy(&mut cluster, 5 * SECOND);
        cluster.run(10 * SECOND);
        let of = |number, key| value(&cluster, number, key);
        for number in [2, joiner] {
            assert!(of(number, "alone").is_some() && of(number, "joined").is_some(), "seed {seed}");
            assert_eq!(of(number, "before"), None, "seed {seed}");
        }
        assert_eq!(cluster.state(2), cluster.state(joiner), "seed {seed}");
        assert_eq!(cluster.members(2).len(), 2, "seed {seed}");
    }
}
