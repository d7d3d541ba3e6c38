//! What it costs to come back: to a cluster that goes on meanwhile, with many keys and few changes.
//!
//! `SIM_KEYS=1000000 cargo test --lib sim::catching_up -- --nocapture` prints it for so many keys.

use std::ops::Bound;

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use crate::engine::Writer;
use crate::engine::command::{Command, Put, Txn, TxnOp};
use crate::storage::Space;
use crate::storage::schema::{Op, Place, Row};

const MILLI: u64 = 1000;
/// One way.
const LATENCY_MICROS: u64 = 10 * MILLI;
const VALUE_BYTES: usize = 256;
/// Writes that are missed.
const MISSED: usize = 100;
/// What a put takes besides its key and its value, at most: numbers, names of fields, lengths.
const PUT_BYTES: u64 = 40;
/// Puts of one transaction.
const PUTS_AT_ONCE: usize = 128;
/// So soon everybody knows that everybody has everything, and it is old enough to be forgotten.
const SETTLING_MICROS: u64 = 20 * SECOND;

fn keys() -> usize {
    std::env::var("SIM_KEYS").ok().and_then(|keys| keys.parse().ok()).unwrap_or(10_000)
}

fn put(number: usize, version: u8) -> Put {
    let (key, value) = (Bytes::from(format!("key/{number:08}")), vec![version; VALUE_BYTES]);
    Put { key, value: value.into(), ..Put::default() }
}

/// Lets clients of a member write, many keys at a time.
fn write(cluster: &mut Cluster, at: usize, puts: impl Iterator<Item = Put>) {
    let ops: Vec<_> = puts.map(TxnOp::Put).collect();
    for chunk in ops.chunks(PUTS_AT_ONCE) {
        let txn = Txn { success: chunk.to_vec(), ..Txn::default() };
        cluster.world.with(at, |full, micros| full.execute(micros, Command::Txn(txn)));
        wait(cluster, MILLI);
    }
}

/// Time passes, without the oracle, whose memory is too good for so many keys.
fn wait(cluster: &mut Cluster, micros: u64) {
    let end = cluster.world.micros() + micros;
    while cluster.world.micros() < end {
        cluster.introduce();
        let next = (cluster.world.micros() + SECOND / 10).min(end);
        cluster.world.run_until(next);
    }
}

/// Three members with many keys, which all hold.
fn filled(seed: u64) -> Cluster {
    let mut cluster = Cluster::found(3, seed);
    wait(&mut cluster, 3 * SECOND);
    write(&mut cluster, 0, (0..keys()).map(|number| put(number, 1)));
    wait(&mut cluster, 10 * SECOND);
    cluster.world.network.options.latency_micros = LATENCY_MICROS;
    cluster.world.network.options.jitter_micros = 0;
    wait(&mut cluster, 10 * SECOND);
    cluster
}

fn bytes(cluster: &Cluster) -> u64 {
    cluster.world.traffic.iter().map(|traffic| traffic.bytes).sum()
}

fn writer(cluster: &Cluster, of: usize) -> &Writer {
    cluster.world.actors[of].replica.as_ref().expect("it is up").writer()
}

/// Deletes in the log of a member.
fn tombstones(writer: &Writer) -> usize {
    let rows = writer.mvcc().store().rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
    let is_delete = |(place, row): &(Bytes, Bytes)| {
        let place = Place::decode(place, 0).expect("the log is sound");
        matches!(Row::decode(place, row.clone()).expect("the log is sound").op, Op::Delete { .. })
    };
    rows.map(|row| row.expect("no fault")).filter(is_delete).count()
}

/// A member forgets what it may.
fn compact_and_sweep(cluster: &mut Cluster, number: usize) {
    cluster.world.with(number, |full, micros| {
        let replica = full.replica.as_ref().expect("it is up");
        let revision = replica.writer().mvcc().revision().0.cast_signed();
        full.execute(micros, Command::Compact { revision });
    });
    wait(cluster, 5 * MILLI);
    cluster.sweep_at(number);
    wait(cluster, 5 * MILLI);
}

/// Waits until a member holds all that another one has written; answers how long that took from the moment at which they
/// knew of each other, in round trips, rounded up, and the bytes on the network.
fn measure(
    cluster: &mut Cluster,
    back: usize,
    writer: usize,
    is_equal: impl Fn(&Cluster) -> bool,
) -> (u64, u64) {
    let before = bytes(cluster);
    let member = cluster.world.actors[writer].member();
    let mut met = None;
    for _ in 0..60_000 {
        wait(cluster, MILLI);
        let replica = cluster.world.actors[back].replica.as_ref().expect("it is up");
        if met.is_none() && replica.live().contains(&member) {
            met = Some(cluster.world.micros());
        }
        if is_equal(cluster) {
            let took = cluster.world.micros() - met.expect("it must have met somebody");
            return (took.div_ceil(2 * LATENCY_MICROS), bytes(cluster) - before);
        }
    }
    panic!("it does not catch up");
}

#[test]
fn a_few_missed_writes_cost_little() {
    let mut cluster = filled(1);
    cluster.world.with(2, |full, _| full.crash());
    wait(&mut cluster, 10 * SECOND);
    write(&mut cluster, 0, (0..MISSED).map(|number| put(number * keys() / MISSED, 2)));
    wait(&mut cluster, SECOND);
    cluster.world.with(2, |full, micros| full.start(micros));
    let written = (0..MISSED).map(|n| put(n, 2)).map(|p| (p.key.len() + p.value.len()) as u64);
    let written: u64 = written.sum();
    let (round_trips, bytes) =
        measure(&mut cluster, 2, 0, |cluster| cluster.held(2, 0) == cluster.held(0, 0));
    println!(
        "{} keys, {MISSED} missed writes of {written} bytes: {round_trips} round trips, {bytes} bytes",
        keys()
    );
    assert!(round_trips <= 2, "{round_trips} round trips");
    assert!(bytes <= 2 * written, "{bytes} bytes for {written}");
}

#[test]
fn an_old_disk_costs_what_has_changed() {
    let mut cluster = filled(2);
    let copy = cluster.world.actors[2].copy_of_disk();
    let doomed = |number: usize| put(number * keys() / MISSED, 1).key;
    for number in 0..MISSED {
        cluster.delete(0, &doomed(number));
        wait(&mut cluster, MILLI);
    }
    let deleted = writer(&cluster, 0).time();
    write(&mut cluster, 0, (0..MISSED).map(|number| put(number * keys() / MISSED + 1, 2)));
    wait(&mut cluster, SETTLING_MICROS);
    // The second one may take the tombstones of what the first one has.
    for number in [0, 1, 0, 1] {
        compact_and_sweep(&mut cluster, number);
    }
    for number in [0, 1] {
        let writer = writer(&cluster, number);
        assert!(writer.collected() >= deleted, "n{number}: nobody has to merge");
        assert_eq!(tombstones(writer), 0, "n{number} has forgotten nothing");
    }
    let merges = cluster.merges();
    cluster.world.with(2, |full, micros| {
        full.crash();
        full.disk = copy;
        full.start(micros);
    });
    let origin = writer(&cluster, 0).origin();
    let hash = |cluster: &Cluster, number: usize| {
        writer(cluster, number).mvcc().reader().hash(0).expect("no fault").hash
    };
    let (_, bytes) = measure(&mut cluster, 2, 0, |cluster| {
        let head = |n: usize| writer(cluster, n).head(origin);
        cluster.merges() > merges && head(0) == head(2) && hash(cluster, 0) == hash(cluster, 2)
    });
    let entries = MISSED as u64 * (VALUE_BYTES as u64 + 12 + PUT_BYTES);
    println!(
        "{} keys, an old disk, {MISSED} deletes and as many puts missed: {bytes} bytes, of which the puts {entries}",
        keys()
    );
    assert!(bytes <= entries + 150_000, "{bytes} bytes besides {entries}");
}
