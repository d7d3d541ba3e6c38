//! Stories of members that are away for long, while the others go on.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};
use crate::engine::Writer;
use crate::engine::command::{Command, Put};

/// What may wait for a member that is away.
const LOG_BYTES_MAX: u64 = 20_000;
const KEYS: usize = 20;
const VALUE_BYTES: usize = 200;

fn writer(cluster: &Cluster, of: usize) -> &Writer {
    cluster.world.actors[of].replica.as_ref().expect("it is up").writer()
}

/// Two members write all keys anew.
fn overwrite(cluster: &mut Cluster, version: u8) {
    for number in 0..KEYS {
        let key = Bytes::from(format!("key{number}"));
        let value = vec![version; VALUE_BYTES].into();
        let put = Command::Put(Put { key, value, ..Put::default() });
        cluster.world.with(number % 2, |full, micros| full.execute(micros, put));
    }
}

/// The log does not grow for ever, though a member is away: what was replaced goes, what was deleted stays known, and
/// nobody but the one who was away has to take over a state.
#[test]
fn a_log_is_bounded_while_a_member_is_away() {
    for (seed, log_bytes_max) in
        seeds(2).into_iter().flat_map(|seed| [(seed, Some(LOG_BYTES_MAX)), (seed, None)])
    {
        let mut cluster = Cluster::found_with_logs(3, log_bytes_max, seed);
        let doomed: Vec<_> = (0..20).map(|i| Bytes::from(format!("doomed{i}"))).collect();
        doomed.iter().for_each(|key| cluster.put(0, key));
        cluster.run(5 * SECOND);
        cluster.crash(2);
        doomed.iter().for_each(|key| cluster.delete(1, key));
        cluster.run(5 * SECOND);
        let mut most = 0;
        for round in 0..100 {
            if round % 20 == 19 {
                // This is no long time: it does not count as away.
                let until = cluster.world.micros() + 3 * SECOND / 2;
                cluster.world.actors[1].paused_until = until;
            }
            overwrite(&mut cluster, round);
            cluster.run(SECOND / 5);
            cluster.compact_and_sweep_at(0);
            cluster.compact_and_sweep_at(1);
            let bytes = writer(&cluster, 0).mvcc().disk_bytes();
            most = most.max(usize::try_from(bytes).unwrap());
        }
        let written = 100 * KEYS * VALUE_BYTES;
        if log_bytes_max.is_none() {
            assert!(most > written * 3 / 4, "seed {seed}: {most} bytes");
        } else {
            // The limit, what lives, the tombstones and what has come since the last promise, or while n1 stood still.
            assert!(most < written / 4, "seed {seed}: {most} bytes");
        }
        assert_eq!(cluster.merges(), 0, "seed {seed}: nobody was away that is up");
        cluster.start(2);
        // A part of the state that another one overtakes is asked for again after ten seconds.
        cluster.run(20 * SECOND);
        cluster.check_converged();
        assert_eq!(cluster.merges() > 0, log_bytes_max.is_some(), "seed {seed}");
        assert!(doomed.iter().all(|key| !cluster.state(2).contains_key(key)), "seed {seed}");
        overwrite(&mut cluster, 200);
        cluster.run(5 * SECOND);
        for number in 0..3 {
            cluster.compact_and_sweep_at(number);
            let floors = writer(&cluster, number).mvcc().origin_floors();
            assert_eq!(floors, [], "seed {seed}: n{number} needs them no more");
        }
        cluster.run(5 * SECOND);
        cluster.check_converged();
    }
}

/// Whoever was away, on whichever side of a cut, and whatever has become of the disks: all come to hold the same.
#[test]
fn what_was_given_up_for_space_is_not_missed() {
    for seed in seeds(2) {
        let mut cluster = Cluster::found_with_logs(4, Some(0), seed);
        busy(&mut cluster, 3 * SECOND);
        let copy = cluster.world.actors[3].copy_of_disk();
        for round in 0..3 {
            cluster.crash(3);
            busy(&mut cluster, 4 * SECOND);
            let joined = cluster.join_new();
            busy(&mut cluster, 2 * SECOND);
            cluster.world.network.part(&[0, joined], &[1, 2]);
            busy(&mut cluster, 5 * SECOND);
            if round == 1 {
                cluster.roll_back(3, copy.clone());
            } else {
                cluster.start(3);
            }
            busy(&mut cluster, SECOND);
            cluster.crash(1);
            cluster.world.network.heal();
            busy(&mut cluster, 3 * SECOND);
            cluster.start(1);
            busy(&mut cluster, SECOND);
        }
        cluster.calm();
        cluster.run(20 * SECOND);
        cluster.check_converged();
    }
}
