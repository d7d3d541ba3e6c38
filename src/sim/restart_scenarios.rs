//! Stories of members that start again and again: each start is an origin of its own.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::seeds;

const RESTARTS: usize = 50;
const STEP_MICROS: u64 = SECOND / 50;
/// Runs that a member tells of: the current ones, and those that have just ended.
const TOLD_MAX: usize = 8;

/// Clients write, and nothing is forgotten: so nobody needs a state for that reason.
fn write(cluster: &mut Cluster, micros: u64) {
    for _ in 0..micros / STEP_MICROS {
        cluster.client();
        cluster.run(STEP_MICROS);
    }
}

/// How many origins a member knows, and how many of them it would tell a stranger of.
fn origins(cluster: &Cluster, of: usize) -> (usize, usize) {
    let replica = cluster.world.actors[of].replica.as_ref().expect("it is up");
    let heads = replica.gossip().expect("it has peers").heads();
    (heads.all().len(), heads.in_buckets(u64::MAX).len())
}

/// What members tell each other does not grow with every start, and yet an old copy of a disk gets all that it lacks.
#[test]
fn runs_that_have_ended_are_not_told_of_for_ever() {
    for seed in seeds(1) {
        let mut cluster = Cluster::found(3, seed);
        write(&mut cluster, 2 * SECOND);
        cluster.run(2 * SECOND);
        let copy = cluster.world.actors[1].copy_of_disk();
        for restart in 0..RESTARTS {
            cluster.put(2, &Bytes::from(format!("run{restart}")));
            write(&mut cluster, SECOND / 5);
            cluster.crash(2);
            write(&mut cluster, SECOND / 5);
            cluster.start(2);
            cluster.run(3 * SECOND / 2);
        }
        cluster.run(5 * SECOND);
        cluster.check_converged();
        for number in 0..3 {
            let (all, told) = origins(&cluster, number);
            assert!(all > RESTARTS && told <= TOLD_MAX, "seed {seed}, n{number}: {told} of {all}");
        }
        assert_eq!(cluster.merges(), 0, "seed {seed}: nobody has lost anything");
        let joined = cluster.join_new();
        write(&mut cluster, 5 * SECOND);
        let (all, _) = origins(&cluster, joined);
        assert!(all > RESTARTS, "seed {seed}: it has them with the state");
        cluster.roll_back(1, copy);
        write(&mut cluster, 5 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        for number in [0, 1, 2, joined] {
            let (all, told) = origins(&cluster, number);
            assert!(all > RESTARTS && told <= TOLD_MAX, "seed {seed}, n{number}: {told} of {all}");
        }
    }
}
