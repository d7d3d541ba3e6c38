//! SIGKILL under load, over and over on one data directory: nothing that was answered is lost, nothing is half-done.
//!
//! `STARLING_CRASH_ROUNDS` sets how often (50 by default, 500 and more by hand).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use starling_proto::etcdserverpb::request_op::Request;
use starling_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::{Code, Status};

use crate::process::Process;

/// Clients that write at once, each to keys of its own.
const WRITERS: usize = 8;
/// Keys of each.
const KEYS: u64 = 7;
/// A put larger than a page, so that a torn write has something to tear.
const VALUE_BYTES: usize = 3000;
/// A round lasts up to this long before the kill.
const ROUND_MILLIS_MAX: u64 = 120;
const ROUNDS: u64 = 50;
/// History that the compactor leaves.
const REVISIONS_KEPT: i64 = 20;

/// What a writer knows of one key: the number that it holds for sure, and those it may hold since.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Zero for "no such key".
    answered: u64,
    /// Sent later, and never answered.
    open: Vec<u64>,
    /// The greatest revision of an answer.
    revision: i64,
}

type Book = Arc<Mutex<BTreeMap<String, Known>>>;

#[test]
fn nothing_answered_is_lost_and_nothing_is_half_done() {
    let rounds = std::env::var("STARLING_CRASH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS);
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let book = Book::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut number = 0;
    for round in 0..rounds {
        let member = Process::start(&data_dir, &["--quota-backend-bytes", "-1"]);
        number = runtime.block_on(async {
            check(&member, &book, round).await;
            load(member, &book, number, round).await
        });
    }
    let member = Process::start(&data_dir, &[]);
    runtime.block_on(check(&member, &book, rounds));
    let answered = book.lock().unwrap().values().filter(|known| known.answered > 0).count();
    assert!(answered > 0, "no write was ever answered: nothing was tested");
}

/// Writes until the member is killed; answers the next unused number.
async fn load(member: Process, book: &Book, first: u64, round: u64) -> u64 {
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (kv, book) = (member.kv().await, Arc::clone(book));
        let first = first + writer as u64 * 1_000_000;
        writers.push(tokio::spawn(write(kv, book, writer, first)));
    }
    writers.push(tokio::spawn(compact(member.kv().await)));
    // A different instant each round, the same ones in each run, as far as the machine lets it.
    let millis = 1 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % ROUND_MILLIS_MAX;
    tokio::time::sleep(Duration::from_millis(millis)).await;
    tokio::task::spawn_blocking(move || member.kill()).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    first + WRITERS as u64 * 1_000_000
}

type Kv = starling_proto::etcdserverpb::kv_client::KvClient<tonic::transport::Channel>;

/// One writer: puts, pairs in one transaction, and deletes, one after the other.
async fn write(mut kv: Kv, book: Book, writer: usize, first: u64) {
    for number in first + 1.. {
        let slot = number % KEYS;
        let keys: Vec<String> = match slot {
            0 => vec![format!("{writer}/pair/a"), format!("{writer}/pair/b")],
            slot => vec![format!("{writer}/{slot}")],
        };
        let delete = slot == 1 && number % 2 == 0;
        let stored = if delete { 0 } else { number };
        for key in &keys {
            book.lock().unwrap().entry(key.clone()).or_default().open.push(stored);
        }
        let Ok(revision) = send(&mut kv, &keys, number, delete).await else { return };
        for key in &keys {
            let mut book = book.lock().unwrap();
            let known = book.entry(key.clone()).or_default();
            *known = Known { answered: stored, open: Vec::new(), revision };
        }
    }
}

/// Gives up history all the time, so that crashes meet compaction and the sweeps of the log, too.
async fn compact(mut kv: Kv) {
    loop {
        let Ok(reply) = kv.range(RangeRequest { key: "x".into(), ..Default::default() }).await
        else {
            return;
        };
        let revision = reply.into_inner().header.unwrap().revision - REVISIONS_KEPT;
        let request = CompactionRequest { revision, physical: true };
        match kv.compact(request).await {
            Err(status) if status.code() != Code::OutOfRange => return,
            // Done, or nothing new to give up.
            _ => tokio::task::yield_now().await,
        }
    }
}

async fn send(kv: &mut Kv, keys: &[String], number: u64, delete: bool) -> Result<i64, Status> {
    let put = |key: &String| PutRequest {
        key: key.clone().into(),
        value: value(number).into(),
        ..Default::default()
    };
    let header = match keys {
        [key] if delete => {
            let request = DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
            kv.delete_range(request).await?.into_inner().header
        }
        [key] => kv.put(put(key)).await?.into_inner().header,
        keys => {
            let success =
                keys.iter().map(|key| RequestOp { request: Some(Request::RequestPut(put(key))) });
            let request = TxnRequest { success: success.collect(), ..Default::default() };
            kv.txn(request).await?.into_inner().header
        }
    };
    Ok(header.expect("every reply has a header").revision)
}

/// A value that tells its number, and whether all of it is there.
fn value(number: u64) -> Vec<u8> {
    let mut value = number.to_be_bytes().to_vec();
    value.resize(VALUE_BYTES, number.to_le_bytes()[0]);
    value
}

async fn check(member: &Process, book: &Book, round: u64) {
    let mut kv = member.kv().await;
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let reply = kv.range(all).await.unwrap().into_inner();
    let revision = reply.header.unwrap().revision;
    let stored: BTreeMap<String, u64> = reply
        .kvs
        .iter()
        .map(|kv| {
            let number = u64::from_be_bytes(kv.value[..8].try_into().unwrap());
            assert_eq!(kv.value, value(number), "round {round}: a damaged value");
            (String::from_utf8(kv.key.to_vec()).unwrap(), number)
        })
        .collect();
    let mut book = book.lock().unwrap();
    for (key, known) in book.iter_mut() {
        let number = stored.get(key).copied().unwrap_or(0);
        let possible = number == known.answered || known.open.contains(&number);
        assert!(possible, "round {round}: {key} is {number}, but {known:?}");
        assert!(
            revision >= known.revision,
            "round {round}: revision went back to {revision}, but {known:?}"
        );
        // What was found is what it is now: later rounds may not go back behind it.
        *known = Known { answered: number, open: Vec::new(), revision };
    }
    for writer in 0..WRITERS {
        let [a, b] = ["a", "b"].map(|half| stored.get(&format!("{writer}/pair/{half}")));
        assert_eq!(a, b, "round {round}: half a transaction of writer {writer}");
    }
    for key in stored.keys() {
        assert!(book.contains_key(key), "round {round}: nobody wrote {key}");
    }
}
