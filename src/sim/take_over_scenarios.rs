//! Stories of members with data that take over the data of another, and what their clients see of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::seeds;
use crate::engine::command::{Command, DeleteRange, Put, Txn, TxnOp};
use crate::types::KeyRange;

const MILLI: u64 = 1000;
/// Pairs of keys, and a third one for each, that is written with the second of the pair later.
const PAIRS: usize = 30;
/// Larger than a part is in these stories, so that each key comes in a part of its own.
const FILLER_BYTES: usize = 3000;

fn key(kind: &str, number: usize) -> Bytes {
    Bytes::from(format!("{kind}{number}"))
}

fn put(kind: &str, number: usize, value: &'static [u8]) -> TxnOp {
    let (key, value) = (key(kind, number), Bytes::from_static(value));
    TxnOp::Put(Put { key, value, ..Put::default() })
}

fn txn(cluster: &mut Cluster, at: usize, success: Vec<TxnOp>) {
    let txn = Txn { success, ..Txn::default() };
    cluster.world.with(at, |full, micros| full.execute(micros, Command::Txn(txn)));
    cluster.run(5 * MILLI);
}

fn filler(cluster: &mut Cluster, at: usize, number: usize) {
    let (key, value) = (key("filler", number), vec![7; FILLER_BYTES].into());
    let put = Command::Put(Put { key, value, ..Put::default() });
    cluster.world.with(at, |full, micros| full.execute(micros, put));
    cluster.run(5 * MILLI);
}

/// Whether somebody sees the first half of what was written at once, and the second half of neither that nor what came later.
fn torn(state: &BTreeMap<Bytes, Bytes>) -> Option<usize> {
    (0..PAIRS).find(|number| {
        let of = |kind| state.get(&key(kind, *number)).map(Bytes::as_ref);
        let (first, second) = (of("first"), of("second"));
        first == Some(b"1") && second == Some(b"0") || of("third").is_some() && first == Some(b"0")
    })
}

/// A member that comes back with data and needs the state has it all at once for its clients. At every moment they see what
/// somebody could have seen elsewhere.
#[test]
fn clients_never_see_half_of_what_comes() {
    let mut caught_up = 0;
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        cluster.run(3 * SECOND);
        for number in 0..PAIRS {
            txn(&mut cluster, 0, vec![put("first", number, b"0"), put("second", number, b"0")]);
        }
        txn(&mut cluster, 0, vec![put("doomed", 0, b"0")]);
        cluster.run(3 * SECOND);
        let copy = cluster.world.actors[1].copy_of_disk();
        for number in 0..PAIRS {
            txn(&mut cluster, 0, vec![put("first", number, b"1"), put("second", number, b"1")]);
            filler(&mut cluster, 2, number);
        }
        for number in 0..PAIRS {
            txn(&mut cluster, 2, vec![put("second", number, b"2"), put("third", number, b"2")]);
            filler(&mut cluster, 0, PAIRS + number);
        }
        let range = KeyRange::single(key("doomed", 0));
        let delete = Command::DeleteRange(DeleteRange { range, prev_kv: false });
        cluster.world.with(0, |full, micros| full.execute(micros, delete));
        cluster.run(5 * SECOND);
        // Twice, since tombstones go one sweep later than what they hide.
        for _ in 0..10 {
            cluster.compact_and_sweep_at(0);
            cluster.compact_and_sweep_at(2);
            cluster.run(SECOND / 2);
        }
        cluster.roll_back(1, copy);
        let before = cluster.retags(1);
        let mut seen = 0;
        for _ in 0..4000 {
            cluster.run(MILLI);
            let state = cluster.state(1);
            seen += usize::from(state.contains_key(&key("third", 0)));
            if let Some(number) = torn(&state) {
                panic!("seed {seed}: the pair {number} is torn in {state:?}");
            }
        }
        assert!(seen > 0, "seed {seed}: it has not come");
        cluster.run(10 * SECOND);
        cluster.check_converged();
        assert!(cluster.retags(1) >= before);
        caught_up += cluster.merges();
    }
    assert!(caught_up > 0, "nobody had to take over a state");
}
