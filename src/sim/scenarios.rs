//! Stories of clusters that go wrong, and come right again.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::network::NetworkOptions;

const MILLI: u64 = 1000;

/// The seeds that are run each time; `SIM_SEEDS` asks for more, `SIM_SEED` for a single one.
pub(super) fn seeds(usual: u64) -> Vec<u64> {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match (variable("SIM_SEED"), variable("SIM_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(usual)).collect(),
    }
}

pub(super) fn busy(cluster: &mut Cluster, micros: u64) {
    let steps = micros / (20 * MILLI);
    for _ in 0..steps {
        cluster.client();
        if cluster.dice.below(20) == 0 {
            cluster.sweep();
        }
        cluster.run(20 * MILLI);
    }
}

#[test]
fn founders_come_to_hold_the_same() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(5 * SECOND);
        cluster.check_converged();
    }
}

#[test]
fn members_join_one_that_was_alone() {
    for seed in seeds(3) {
        let mut cluster = Cluster::alone(seed);
        busy(&mut cluster, 2 * SECOND);
        assert_eq!(cluster.tags(), [0], "it never had a peer");
        for _ in 0..3 {
            cluster.join_new();
            busy(&mut cluster, 2 * SECOND);
        }
        cluster.run(10 * SECOND);
        cluster.check_converged();
        let retags: Vec<_> = (0..4).map(|number| cluster.retags(number)).collect();
        assert_eq!(retags, [1, 0, 0, 0], "seed {seed}");
    }
}

#[test]
fn a_cut_heals() {
    for seed in seeds(5) {
        let mut cluster = Cluster::found(5, seed);
        busy(&mut cluster, 2 * SECOND);
        cluster.world.network.part(&[0, 1], &[2, 3, 4]);
        cluster.tell("a cut".to_owned());
        busy(&mut cluster, 5 * SECOND);
        cluster.calm();
        busy(&mut cluster, SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
    }
}

#[test]
fn members_lose_power_and_messages() {
    for seed in seeds(5) {
        let mut cluster = Cluster::found(3, seed);
        cluster.world.network.options = NetworkOptions {
            loss_ppm: 100_000,
            duplicate_ppm: 50_000,
            jitter_micros: 5000,
            ..NetworkOptions::lan()
        };
        busy(&mut cluster, SECOND);
        let tags = cluster.tags();
        for _ in 0..10 {
            busy(&mut cluster, SECOND);
            let number = usize::try_from(cluster.dice.below(3)).unwrap_or(0);
            cluster.crash(number);
            busy(&mut cluster, SECOND / 2);
            cluster.start(number);
        }
        cluster.calm();
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert_eq!(cluster.tags(), tags, "seed {seed}: what was durable is there");
    }
}

#[test]
fn a_lost_disk_comes_back_as_somebody_else() {
    for seed in seeds(5) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        for number in 0..3 {
            cluster.wipe(number);
            busy(&mut cluster, 2 * SECOND);
            cluster.start(number);
            busy(&mut cluster, 2 * SECOND);
            cluster.run(5 * SECOND);
            cluster.check_converged();
        }
    }
}

/// Deletes that everybody has forgotten are learnt anew by the one who never heard of them.
#[test]
fn an_old_copy_of_a_disk_brings_nothing_back() {
    for seed in seeds(5) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 3 * SECOND);
        let doomed: Vec<_> = (0..50).map(|i| Bytes::from(format!("doomed{i}"))).collect();
        for key in &doomed {
            cluster.put(0, key);
        }
        cluster.run(SECOND);
        let copy = cluster.world.actors[1].copy_of_disk();
        for key in &doomed {
            cluster.delete(2, key);
        }
        busy(&mut cluster, 5 * SECOND);
        // Long enough for what is deleted to be forgotten.
        for _ in 0..20 {
            cluster.compact_and_sweep();
            busy(&mut cluster, SECOND / 5);
        }
        cluster.roll_back(1, copy);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        // Once, or again with somebody who has forgotten more.
        assert!((1..=4).contains(&cluster.merges()), "seed {seed}: {}", cluster.merges());
    }
}

/// Members that happen to have one tag both take others. So does whoever comes back with a tag that was given up so.
#[test]
fn a_tag_that_two_have_is_given_up_by_both() {
    for seed in seeds(5) {
        let mut cluster = Cluster::found_with_tags(&[77, 77, 78], seed);
        let copy = cluster.world.actors[1].copy_of_disk();
        busy(&mut cluster, 5 * SECOND);
        cluster.run(5 * SECOND);
        cluster.check_converged();
        let tags = cluster.tags();
        assert!(!tags.contains(&77) && tags[2] == 78, "seed {seed}: {tags:?}");
        let retags: Vec<_> = (0..3).map(|number| cluster.retags(number)).collect();
        assert_eq!(retags, [1, 1, 0], "seed {seed}");
        cluster.roll_back(1, copy);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert!(![77, tags[1]].contains(&cluster.tags()[1]), "seed {seed}");
    }
}

/// Both give it up, even if one of them hears of the other only when that has taken another tag already.
#[test]
fn a_tag_that_was_taken_twice_is_given_up_by_who_was_down() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found_with_tags(&[77, 77, 78], seed);
        cluster.world.network.part(&[1], &[0, 2]);
        busy(&mut cluster, 3 * SECOND);
        assert_eq!(cluster.tags(), [77, 77, 78]);
        cluster.crash(0);
        cluster.world.network.heal();
        busy(&mut cluster, 3 * SECOND);
        assert!(!cluster.tags().contains(&77), "seed {seed}: n2 has told n1 of n0");
        cluster.start(0);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(5 * SECOND);
        cluster.check_converged();
        assert!(!cluster.tags().contains(&77), "seed {seed}");
    }
}

/// Its numbers were given away for something else before, by itself or for what others wrote.
#[test]
fn an_old_copy_of_a_disk_takes_another_tag() {
    for (seed, writer) in seeds(5).into_iter().flat_map(|seed| [(seed, 1), (seed, 2)]) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        cluster.run(5 * SECOND);
        let copy = cluster.world.actors[1].copy_of_disk();
        for i in 0..10 {
            cluster.put(writer, &Bytes::from(format!("later{i}")));
            cluster.run(SECOND / 2);
        }
        let before = cluster.tags();
        cluster.roll_back(1, copy);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        let after = cluster.tags();
        assert_ne!(after[1], before[1], "seed {seed}, written by n{writer}");
        assert_eq!((after[0], after[2]), (before[0], before[2]), "seed {seed}");
        // What it is now is no old copy.
        cluster.crash(1);
        busy(&mut cluster, 2 * SECOND);
        cluster.start(1);
        busy(&mut cluster, 2 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert_eq!(cluster.tags(), after, "seed {seed}");
    }
}

#[test]
fn a_majority_read_sees_what_a_majority_has_acknowledged() {
    let (mut late, seeds) = (0, seeds(3));
    let is_single = seeds.len() == 1;
    for seed in seeds {
        let mut cluster = Cluster::found(5, seed);
        cluster.world.network.options.jitter_micros = 20_000;
        cluster.world.network.options.loss_ppm = 50_000;
        cluster.run(3 * SECOND);
        for round in 0..20 {
            cluster.put(0, &Bytes::from_static(b"key"));
            let mut seq = 0;
            while {
                cluster.run(MILLI);
                seq = cluster.held(0, 0).max(seq);
                let acks = &cluster.world.actors[0].acknowledged;
                acks.values().filter(|acked| **acked >= seq).count() < 2
            } {}
            let reader = 1 + usize::try_from(cluster.dice.below(4)).unwrap_or(0);
            late += u64::from(cluster.held(reader, 0) < seq);
            assert!(cluster.begin_read(reader, round), "four others have to be asked");
            while !cluster.world.actors[reader].passed.contains(&round) {
                cluster.run(MILLI);
            }
            assert!(cluster.held(reader, 0) >= seq, "seed {seed}, round {round}");
        }
    }
    assert!(late > 0 || is_single, "nobody was ever behind");
}

/// What is sent before it is durable, and then lost, belongs to its run all the same: its origin learns it from the others.
#[test]
fn what_only_others_have_is_not_lost() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(SECOND);
        cluster.world.actors[0].setup.commit_micros = 50 * MILLI;
        cluster.world.actors[0].setup.is_awaited = Some(true);
        let before = cluster.held(1, 0);
        for i in 0..5 {
            cluster.put(0, &Bytes::from(format!("late{i}")));
        }
        cluster.run(10 * MILLI);
        assert_eq!(cluster.held(0, 0), before, "seed {seed}: it is not durable there yet");
        // What has overtaken something may have been refused.
        let saved = cluster.held(1, 0) - before;
        assert!(saved > 0, "seed {seed}");
        cluster.crash(0);
        busy(&mut cluster, SECOND);
        cluster.start(0);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(10 * SECOND);
        cluster.check_converged();
        let state = cluster.state(0);
        let lives = |i: &u64| state.contains_key(format!("late{i}").as_bytes());
        assert!((0..saved).all(|i| lives(&i)), "seed {seed}: {saved} of five were sent");
    }
}

/// A row that a disk has lost comes back, since others still have it.
#[test]
fn a_scrub_finds_what_a_disk_has_lost() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        let key = Bytes::from_static(b"precious");
        cluster.put(0, &key);
        busy(&mut cluster, 3 * SECOND);
        cluster.run(3 * SECOND);
        assert!(cluster.lose_row(1, &key), "seed {seed}");
        cluster.run(SECOND);
        assert!(!cluster.state(1).contains_key(&key), "seed {seed}: it was not lost");
        let mut rounds = 0;
        while !cluster.state(1).contains_key(&key) {
            rounds += 1;
            assert!(rounds < 60, "seed {seed}: nobody has noticed");
            busy(&mut cluster, SECOND);
        }
        cluster.run(15 * SECOND);
        assert!((1..=2).contains(&cluster.differences()), "seed {seed}");
        cluster.check_converged();
    }
}

/// Who is dead for too long is removed, but by nobody who does not hear of a majority.
#[test]
fn the_dead_are_removed_by_a_majority() {
    for seed in seeds(2) {
        let mut cluster = Cluster::found(5, seed);
        busy(&mut cluster, 3 * SECOND);
        cluster.remove_dead_after(10_000);
        busy(&mut cluster, 5 * SECOND);
        cluster.crash(4);
        cluster.world.network.part(&[0, 1], &[2, 3]);
        busy(&mut cluster, 40 * SECOND);
        let counts =
            |cluster: &Cluster| (0..4).map(|n| cluster.members(n).len()).collect::<Vec<_>>();
        assert_eq!(counts(&cluster), [5; 4], "seed {seed}: nobody has a majority");
        cluster.world.network.heal();
        busy(&mut cluster, 9 * SECOND);
        assert_eq!(counts(&cluster), [5; 4], "seed {seed}: it is not dead for so long");
        busy(&mut cluster, 20 * SECOND);
        assert_eq!(counts(&cluster), [4; 4], "seed {seed}");
        let settled = |cluster: &Cluster| {
            cluster.world.actors[0].replica.as_ref().map(|replica| replica.writer().settled())
        };
        let before = settled(&cluster);
        cluster.run(5 * SECOND);
        assert!(settled(&cluster) > before, "seed {seed}: it holds nothing back any more");
    }
}
