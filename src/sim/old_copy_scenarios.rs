//! Stories of members that start on an old copy of their disk, and write before they have heard of anybody.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};
use crate::error::Error;

const KEYS: usize = 20;
/// Nobody has to wait for longer than that before a member alone takes writes again.
const WAIT_MICROS: u64 = 6 * SECOND;

fn keys() -> impl Iterator<Item = Bytes> {
    (0..KEYS).map(|number| Bytes::from(format!("key{number}")))
}

/// A copy of a disk from long ago, before keys were written that others have deleted and forgotten since: some of them, the
/// others know it still.
fn with_old_copy(seed: u64) -> (Cluster, crate::storage::Memory) {
    let mut cluster = Cluster::found(3, seed);
    busy(&mut cluster, 3 * SECOND);
    cluster.run(SECOND);
    let copy = cluster.world.actors[1].copy_of_disk();
    keys().for_each(|key| cluster.put(0, &key));
    cluster.run(SECOND);
    keys().for_each(|key| cluster.delete(2, &key));
    busy(&mut cluster, 5 * SECOND);
    for _ in 0..20 {
        cluster.compact_and_sweep_at(0);
        busy(&mut cluster, SECOND / 5);
    }
    (cluster, copy)
}

/// What is written alone is as late as it is: nothing that the others have settled is behind it, and it counts everywhere.
#[test]
fn who_is_alone_with_an_old_copy_writes_nothing_old() {
    for seed in seeds(3) {
        let (mut cluster, copy) = with_old_copy(seed);
        cluster.world.network.part(&[1], &[0, 2]);
        cluster.roll_back(1, copy);
        assert_eq!(cluster.try_put(1, &Bytes::from_static(b"key0")), Err(Error::NotReady));
        let began = cluster.world.micros();
        while cluster.try_put(1, &Bytes::from_static(b"alone")).is_err() {
            cluster.run(SECOND / 10);
            assert!(cluster.world.micros() < began + WAIT_MICROS, "seed {seed}: it takes none");
        }
        keys().for_each(|key| cluster.put(1, &key));
        busy(&mut cluster, 3 * SECOND);
        cluster.world.network.heal();
        busy(&mut cluster, 2 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        let state = cluster.state(0);
        assert!(keys().all(|key| state.contains_key(&key)), "seed {seed}: they are the latest");
    }
}

/// Clients write all the time, from the start on, and a newcomer takes over the data of whoever it meets.
#[test]
fn who_is_back_with_an_old_copy_writes_nothing_old() {
    for seed in seeds(3) {
        let (mut cluster, copy) = with_old_copy(seed);
        cluster.join_new();
        cluster.world.network.options.latency_micros = SECOND / 10;
        cluster.roll_back(1, copy);
        for _ in 0..50 {
            keys().for_each(|key| cluster.put(1, &key));
            cluster.run(SECOND / 50);
        }
        cluster.calm();
        busy(&mut cluster, 2 * SECOND);
        cluster.run(15 * SECOND);
        cluster.check_converged();
        let state = cluster.state(0);
        assert!(keys().all(|key| state.contains_key(&key)), "seed {seed}: they are the latest");
    }
}

/// A client goes on where its member does, and deletes at once what it had put last: by then that is there again. Otherwise
/// the delete would only name the older puts of the copy.
fn delete_what_was_put_before(seed: u64, latency_micros: u64, before_return: fn(&mut Cluster)) {
    let mut cluster = Cluster::found(3, seed);
    keys().for_each(|key| cluster.put(1, &key));
    busy(&mut cluster, 2 * SECOND);
    let copy = cluster.world.actors[1].copy_of_disk();
    keys().for_each(|key| cluster.put(1, &key));
    busy(&mut cluster, SECOND);
    cluster.crash(1);
    before_return(&mut cluster);
    cluster.world.network.options.latency_micros = latency_micros;
    cluster.roll_back(1, copy);
    let began = cluster.world.micros();
    while keys().any(|key| cluster.try_delete(1, &key).is_err()) {
        cluster.run(SECOND / 1000);
        assert!(cluster.world.micros() < began + WAIT_MICROS, "seed {seed}: it takes none");
    }
    cluster.calm();
    cluster.run(15 * SECOND);
    cluster.check_converged();
    let state = cluster.state(0);
    let revived: Vec<_> = keys().filter(|key| state.contains_key(key)).collect();
    assert!(revived.is_empty(), "seed {seed}, {latency_micros} us: {revived:?}");
}

#[test]
fn who_is_back_with_an_old_copy_deletes_what_its_client_has_put() {
    for seed in seeds(3) {
        for latency_micros in [SECOND / 2000, SECOND / 20, SECOND / 4] {
            delete_what_was_put_before(seed, latency_micros, |_| ());
        }
    }
}

/// The others have forgotten entries that it lacks: it takes over the data of one of them.
#[test]
fn who_is_back_with_a_very_old_copy_deletes_what_its_client_has_put() {
    for seed in seeds(3) {
        delete_what_was_put_before(seed, SECOND / 20, |cluster| {
            cluster.start(1);
            for _ in 0..40 {
                busy(cluster, SECOND / 2);
                cluster.compact_and_sweep_at(0);
                cluster.compact_and_sweep_at(2);
            }
        });
    }
}

/// Nobody waits for a member that is not there.
#[test]
fn one_other_member_is_enough_for_who_is_back_with_an_old_copy() {
    for seed in seeds(3) {
        for latency_micros in [SECOND / 2000, SECOND / 4] {
            delete_what_was_put_before(seed, latency_micros, |cluster| cluster.crash(2));
        }
    }
}

/// Who is the only one left goes on at once: there is nobody who could know better.
#[test]
fn who_has_no_peers_any_more_does_not_wait() {
    for seed in seeds(1) {
        let mut cluster = Cluster::found(2, seed);
        busy(&mut cluster, 2 * SECOND);
        cluster.crash(1);
        cluster.remove(0, 1);
        cluster.run(SECOND);
        cluster.crash(0);
        cluster.start(0);
        assert_eq!(cluster.try_put(0, &Bytes::from_static(b"alone")), Ok(()), "seed {seed}");
    }
}
