//! Stories of data that comes together.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};

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
