//! How long it takes from the answer to a put until all other members show it, and what a cut costs. Printed, not judged:
//! `--nocapture`.
//!
//! `target/release/starling` is measured if it was built, since the time of a debug build says little.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use starling_compat_tests::tools;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::load::{number, put};
use super::member::{ALL_KEYS, Cluster, Member, Place};

/// Puts that are measured, and those before, which warm the connections.
const PUTS: u64 = 600;
const WARM_UP: u64 = 50;
const PACE: Duration = Duration::from_millis(5);
const EVENT_DEADLINE: Duration = Duration::from_secs(10);
/// Events that wait to be counted.
const EVENTS_MAX: usize = 1024;

/// How long puts are counted, before a cut and from its first moment on.
const CUT_WINDOW: Duration = Duration::from_secs(12);
/// Clients of each member, and the keys of each.
const CUT_CLIENTS: u64 = 4;
const CUT_KEYS: u64 = 100;

/// A put as a watcher saw it, and when.
type Seen = (u64, Instant);

#[test]
fn from_answer_to_everywhere() {
    super::run(async {
        let release = tools::target_dir().join("release/starling");
        let (program, build) = if release.exists() {
            (release, "release")
        } else {
            (tools::starling().to_owned(), "whatever build the tests run")
        };
        for (members, level) in [(3, "local"), (3, "one"), (5, "one"), (16, "one")] {
            measure(&program, build, members, level).await;
        }
    });
}

/// Puts a second on both sides of a cut, to those before.
#[test]
fn both_sides_of_a_cut() {
    super::run(async {
        let cluster = Cluster::start_linked(3, &[]).await;
        let links = cluster.links.as_ref().expect("it was started with links");
        let counts: Vec<_> =
            (0..cluster.members.len()).map(|_| Rc::new(Cell::new(0_u64))).collect();
        for (member, count) in cluster.members.iter().zip(&counts) {
            for client in 0..CUT_CLIENTS {
                let (mut kv, count) = (member.kv(), Rc::clone(count));
                tokio::task::spawn_local(async move {
                    for value in 0.. {
                        let key = format!("{client}/{}", value % CUT_KEYS);
                        if kv.put(put(&key, value)).await.is_ok() {
                            count.set(count.get() + 1);
                        }
                    }
                });
            }
        }
        let answered = || counts.iter().map(|count| count.get()).collect::<Vec<_>>();
        sleep(CUT_WINDOW / 4).await;
        let start = answered();
        sleep(CUT_WINDOW).await;
        let before = answered();
        links.cut(&[0], &[1, 2]);
        sleep(CUT_WINDOW).await;
        let during = answered();
        links.heal();
        for (number, count) in during.iter().enumerate() {
            let (with, without) = (before[number] - start[number], count - before[number]);
            println!(
                "m{number}: {with} puts in {CUT_WINDOW:?}, {without} in as long behind a cut: {} %",
                without * 100 / with.max(1)
            );
            assert!(without > 0, "m{number} stood still");
        }
    });
}

#[expect(clippy::print_stdout, reason = "the numbers are for whoever runs the test")]
async fn measure(program: &Path, build: &str, members: usize, level: &str) {
    let places = (0..members).map(|_| Place::on_loopback()).collect();
    let cluster = Cluster::start_at(program, places, &["--write-ack", level]).await;
    let (sender, mut seen) = mpsc::channel(EVENTS_MAX);
    for member in &cluster.members[1..] {
        watch(member, sender.clone()).await;
    }
    let mut kv = cluster.members[0].kv();
    let mut answers = BTreeMap::new();
    let mut asked = Vec::new();
    let mut everywhere: BTreeMap<u64, (usize, Instant)> = BTreeMap::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for value in 0..WARM_UP + PUTS {
        pace.tick().await;
        let start = Instant::now();
        kv.put(put("latency", value)).await.expect("the member serves");
        answers.insert(value, Instant::now());
        asked.push(start.elapsed());
        while let Ok(event) = seen.try_recv() {
            note(&mut everywhere, event);
        }
    }
    let is_seen = |everywhere: &BTreeMap<_, (usize, Instant)>| {
        everywhere.get(&(WARM_UP + PUTS - 1)).is_some_and(|(count, _)| *count == members - 1)
    };
    while !is_seen(&everywhere) {
        let event = timeout(EVENT_DEADLINE, seen.recv()).await.expect("all members show the last");
        note(&mut everywhere, event.expect("the watchers run"));
    }
    let measured = answers.iter().skip_while(|(value, _)| **value < WARM_UP);
    let mut delays: Vec<_> = measured
        .map(|(value, answered)| everywhere[value].1.saturating_duration_since(*answered))
        .collect();
    let mut asked = asked.split_off(usize::try_from(WARM_UP).expect("a small number"));
    let ([p50, p99], [put50, put99]) = (percentiles(&mut delays), percentiles(&mut asked));
    println!(
        "{members} members, --write-ack {level}, {build}: visible everywhere p50 {p50:.2?}, p99 {p99:.2?} \
         after the answer; the put itself p50 {put50:.2?}, p99 {put99:.2?}"
    );
}

fn note(everywhere: &mut BTreeMap<u64, (usize, Instant)>, (value, at): Seen) {
    let (count, last) = everywhere.entry(value).or_insert((0, at));
    *count += 1;
    *last = at.max(*last);
}

fn percentiles(times: &mut [Duration]) -> [Duration; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| times[(times.len() - 1) * percent / 100])
}

/// Reports all puts that a member shows, from now on.
async fn watch(member: &Member, seen: mpsc::Sender<Seen>) {
    let create =
        pb::WatchCreateRequest { key: ALL_KEYS, range_end: ALL_KEYS, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (requests, stream) = mpsc::channel(1);
    requests.send(create).await.expect("the stream takes one request");
    let mut client = WatchClient::new(member.channel.clone());
    let answers = client.watch(ReceiverStream::new(stream)).await;
    let mut answers = answers.expect("the member serves").into_inner();
    answers.message().await.expect("the watch is created");
    tokio::task::spawn_local(async move {
        // The stream of requests has to stay open.
        let _requests = requests;
        while let Ok(Some(answer)) = answers.message().await {
            let at = Instant::now();
            for kv in answer.events.into_iter().filter_map(|event| event.kv) {
                if let Some(value) = number(&kv.value)
                    && seen.send((value, at)).await.is_err()
                {
                    return;
                }
            }
        }
    });
}
