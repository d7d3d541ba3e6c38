//! Clusters of real processes, under load and under everything that happens to machines.
//!
//! Each scenario starts members, lets clients write and read on all of them ([`load`]), watches every member ([`watcher`]), does
//! something to the members, and asks in the end whether everything is as it must be ([`checker`]): nothing acknowledged is lost,
//! nothing deleted is back, all members hold the same, and each of them was an etcd to its clients all the time.
//!
//! Pauses are how long something is out of order; everything else waits for a condition.

mod changing;
mod checker;
mod clocks;
mod discovery;
mod faces;
mod latency;
mod links;
mod load;
mod member;
mod namespaces;
mod watcher;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use starling_proto::etcdserverpb as pb;
use tokio::time::{Instant, sleep, sleep_until};

use checker::Report;
use load::Load;
use member::Cluster;
use watcher::Watcher;

/// No scenario takes half of it.
const DEADLINE: Duration = Duration::from_secs(170);
/// How long a member stands still.
const FREEZE: Duration = Duration::from_secs(10);
/// How long a link is cut.
const CUT: Duration = Duration::from_secs(4);
/// Whoever has not been heard of for so long is away.
const AWAY: Duration = Duration::from_secs(6);
/// Clients of each member.
const CLIENTS: usize = 2;
/// Answers that show that a member goes on.
const SOME: u64 = 50;
/// Keys that are there from the start.
const SEEDED: u64 = 300;

/// Runs one scenario on this thread.
fn run(scenario: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a thread can wait");
    let tasks = tokio::task::LocalSet::new();
    let ended = tasks.block_on(&runtime, async { tokio::time::timeout(DEADLINE, scenario).await });
    assert!(ended.is_ok(), "the scenario does not end");
}

async fn watch_all(cluster: &Cluster) -> Vec<Watcher> {
    let mut watchers = Vec::new();
    for member in cluster.running() {
        watchers.push(Watcher::on(member).await);
    }
    watchers
}

/// Ends the load, and checks everything.
async fn finish(mut report: Report, mut cluster: Cluster, mut load: Load, watchers: Vec<Watcher>) {
    load.stop().await;
    let book = load.book.take();
    report.check_all(&mut cluster, &book, watchers).await;
    report.settle(&cluster);
}

/// Clients see their own writes, always, on a member that keeps its disk.
fn check_own_reads(report: &mut Report, load: &Load) {
    for stale in &load.book.borrow().stale {
        report.note(format!("stale: {stale}"));
    }
}

/// Who serves has the data, from the first answer on.
async fn check_seeded(report: &mut Report, cluster: &Cluster, member: usize) {
    let state = cluster.members[member].state().await.expect("it is ready");
    let found = state.kvs.iter().filter(|kv| kv.key.starts_with(b"seed/")).count();
    report.check(found as u64 == SEEDED, || {
        format!("empty: m{member} serves with {found} of {SEEDED} keys")
    });
}

fn check_no_resyncs(report: &mut Report, watchers: &[Watcher]) {
    for watcher in watchers {
        let resyncs = watcher.resyncs();
        report.check(resyncs == 0, || {
            format!("a watch on {} lost its place {resyncs} times", watcher.name())
        });
    }
}

/// Each of three members is killed and comes back; then one of them stands still.
#[test]
fn kill_and_freeze() {
    run(async {
        let mut report = Report::new("kill_and_freeze");
        let mut cluster = Cluster::start(3, &["--write-ack", "majority"]).await;
        let mut load = Load::new(1);
        load.on_all(&cluster, CLIENTS);
        let watchers = watch_all(&cluster).await;
        for victim in 0..3 {
            load.answered(victim, SOME).await;
            cluster.members[victim].kill();
            load.answered((victim + 1) % 3, SOME).await;
            cluster.start_member(victim);
            cluster.members[victim].ready().await;
            load.answered(victim, SOME).await;
        }
        cluster.members[1].freeze();
        let thaw = Instant::now() + FREEZE;
        // Two of three are a majority.
        load.answered(0, SOME).await;
        load.answered(2, SOME).await;
        sleep_until(thaw).await;
        cluster.members[1].thaw();
        load.answered(1, SOME).await;
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// Five members: one is cut off, then two from three, then one direction of one link does not work.
#[test]
fn cut_and_heal() {
    run(async {
        let mut report = Report::new("cut_and_heal");
        let cluster = Cluster::start_linked(5, &[]).await;
        let links = cluster.links.as_ref().expect("it was started with links");
        links.set_delay(Duration::from_millis(2));
        let mut load = Load::new(2);
        load.on_all(&cluster, CLIENTS);
        let watchers = watch_all(&cluster).await;
        for (group, others) in [(vec![0], vec![1, 2, 3, 4]), (vec![1, 3], vec![0, 2, 4])] {
            links.cut(&group, &others);
            let heal = Instant::now() + CUT;
            let mark = format!("mark/{}", group.len());
            load.mark(&cluster, group[0], &mark).await;
            // Each side goes on.
            load.answered(group[0], SOME).await;
            load.answered(others[0], SOME).await;
            sleep_until(heal).await;
            report.check(!cluster.members[others[0]].has(&mark).await, || {
                format!("the cut around {group:?} lets something through")
            });
            links.heal();
            load.answered(group[0], SOME).await;
        }
        links.cut_one_way(2, 4);
        sleep(CUT).await;
        links.heal();
        load.answered(4, SOME).await;
        links.set_delay(Duration::ZERO);
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// Sixteen members, as many as stream straight to each other. One is killed, one stands still, and both come back.
#[test]
fn sixteen() {
    run(async {
        let mut report = Report::new("sixteen");
        let mut cluster = Cluster::start(16, &[]).await;
        let mut load = Load::new(3);
        for member in [0, 3, 7, 11, 15] {
            load.on(&cluster, member, 1);
        }
        let watchers = watch_all(&cluster).await;
        load.answered(0, SOME).await;
        cluster.members[7].kill();
        cluster.members[11].freeze();
        load.answered(15, SOME).await;
        cluster.start_member(7);
        cluster.members[11].thaw();
        cluster.members[7].ready().await;
        for member in [0, 7, 11, 15] {
            load.answered(member, SOME).await;
        }
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// One after the other is stopped as an operator does, and started again.
#[test]
fn rolling_restart() {
    run(async {
        let mut report = Report::new("rolling_restart");
        let mut cluster = Cluster::start(3, &[]).await;
        let mut load = Load::new(4);
        load.on_all(&cluster, CLIENTS);
        let watchers = watch_all(&cluster).await;
        for _ in 0..2 {
            for number in 0..3 {
                load.answered(number, SOME).await;
                cluster.members[number].terminate().await;
                cluster.start_member(number);
                cluster.members[number].ready().await;
            }
        }
        load.answered(2, SOME).await;
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// A founder loses its disk, and is started again by the same command.
#[test]
fn wiped_directory() {
    run(async {
        let mut report = Report::new("wiped_directory");
        let mut cluster = Cluster::start(3, &[]).await;
        let mut load = Load::new(5);
        load.seed(&cluster, SEEDED).await;
        load.on_all(&cluster, CLIENTS);
        let mut watchers = watch_all(&cluster).await;
        for member in 0..3 {
            load.answered(member, 4 * SOME).await;
        }
        let former = cluster.members[1].id().await;
        // What only this member had acknowledged to itself is allowed to go with its disk, but it had others all the time.
        cluster.members[1].kill();
        watchers.remove(1);
        cluster.members[1].wipe();
        cluster.start_member(1);
        cluster.members[1].ready().await;
        check_seeded(&mut report, &cluster, 1).await;
        let id = cluster.members[1].id().await;
        report.check(id != former, || format!("the wiped member is {id:x} again"));
        load.answered(1, SOME).await;
        watchers.push(Watcher::on(&cluster.members[1]).await);
        load.answered(1, SOME).await;
        let formed = cluster.formed(3).await;
        report.check(formed.is_ok(), || formed.unwrap_err());
        finish(report, cluster, load, watchers).await;
    });
}

/// Of three members two are lost. The last one goes on without them and with all data; what comes back later is new.
#[test]
fn forced_to_be_new() {
    run(async {
        let mut report = Report::new("forced_to_be_new");
        let mut cluster = Cluster::start(3, &["--write-ack", "majority"]).await;
        let mut load = Load::new(33);
        load.seed(&cluster, SEEDED).await;
        let before = cluster.members[0].state().await.expect("it serves");
        let former = cluster.members[1].id().await;
        (0..3).for_each(|number| cluster.members[number].kill());

        let force = "--force-new-cluster";
        cluster.members[0].add_argument(force);
        cluster.start_member(0);
        cluster.members[0].ready().await;
        let formed = cluster.formed(1).await;
        report.check(formed.is_ok(), || formed.err().unwrap_or_default());
        check_seeded(&mut report, &cluster, 0).await;
        let ids = |state: &pb::RangeResponse| {
            let header = state.header.unwrap_or_default();
            (header.cluster_id, header.member_id)
        };
        let after = cluster.members[0].state().await.expect("it serves");
        report.check(ids(&before) == ids(&after), || "it is somebody else".to_owned());
        // It is a majority by itself.
        load.mark(&cluster, 0, "mark").await;
        cluster.members[0].terminate().await;
        cluster.members[0].drop_argument(force);
        cluster.start_member(0);
        cluster.members[0].ready().await;
        let formed = cluster.formed(1).await;
        report.check(formed.is_ok(), || formed.err().unwrap_or_default());
        report.say("it goes on alone");

        // Another one comes back with its disk: it was removed, and joins as somebody else.
        cluster.start_member(1);
        cluster.members[1].ready().await;
        let formed = cluster.formed(2).await;
        report.check(formed.is_ok(), || formed.err().unwrap_or_default());
        // It may have been ready as what it was, before it heard.
        cluster.members[1].comes_back_as_another(former).await;
        let watchers = watch_all(&cluster).await;
        load.on(&cluster, 0, CLIENTS);
        load.on(&cluster, 1, CLIENTS);
        load.answered(0, SOME).await;
        load.answered(1, SOME).await;
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// A member is removed while a cut keeps it from hearing of it: it comes back as another one. What it had accepted alone has no
/// effect any more, and is kept in a file.
#[test]
fn removed_while_away() {
    run(async {
        let mut report = Report::new("removed_while_away");
        let mut cluster = Cluster::start_linked(3, &[]).await;
        let mut load = Load::new(8);
        load.seed(&cluster, SEEDED).await;
        load.on(&cluster, 0, CLIENTS);
        load.on(&cluster, 1, CLIENTS);
        let mut watchers = watch_all(&cluster).await;
        load.answered(0, SOME).await;
        let former = cluster.members[2].id().await;
        let links = cluster.links.as_ref().expect("it was started with links");
        links.cut(&[2], &[0, 1]);
        sleep(AWAY).await;
        let alone = format!("alone/{former:x}");
        let put =
            pb::PutRequest { key: alone.clone().into(), value: "it".into(), ..Default::default() };
        cluster.members[2].kv().put(put).await.expect("it serves alone");
        cluster.remove(2, 0).await;
        load.answered(1, SOME).await;
        links.heal();
        let formed = cluster.formed(3).await;
        report.check(formed.is_ok(), || formed.unwrap_err());
        cluster.members[2].ready().await;
        watchers.remove(2);
        check_seeded(&mut report, &cluster, 2).await;
        let id = cluster.members[2].id().await;
        report.check(id != former, || format!("the removed member is {id:x} again"));
        for member in &cluster.members {
            report.check(!member.has(&alone).await, || format!("{} has {alone}", member.name));
        }
        let lost = cluster.members[2].lost_and_found();
        let is_there = lost.iter().any(|line| {
            line["key"] == BASE64.encode(&alone)
                && line["value"] == BASE64.encode("it")
                && line["member"] == format!("{former:x}")
        });
        report.check(is_there, || format!("{alone} is not among {lost:?}"));
        watchers.push(Watcher::on(&cluster.members[2]).await);
        load.on(&cluster, 2, CLIENTS);
        load.answered(2, SOME).await;
        finish(report, cluster, load, watchers).await;
    });
}

/// A member that is removed while it is there ends by itself, as etcd does. Started again, it joins as another one.
#[test]
fn removed_while_there() {
    run(async {
        let mut report = Report::new("removed_while_there");
        let mut cluster = Cluster::start(3, &[]).await;
        let mut load = Load::new(9);
        load.seed(&cluster, SEEDED).await;
        load.on(&cluster, 0, CLIENTS);
        load.on(&cluster, 1, CLIENTS);
        let mut watchers = watch_all(&cluster).await;
        load.answered(0, SOME).await;
        watchers.remove(2);
        let former = cluster.members[2].id().await;
        cluster.remove(2, 0).await;
        let code = cluster.members[2].ended();
        report.check(code == Some(0), || format!("the removed member has ended with {code:?}"));
        load.answered(0, SOME).await;
        cluster.start_member(2);
        cluster.members[2].ready().await;
        check_seeded(&mut report, &cluster, 2).await;
        let id = cluster.members[2].id().await;
        report.check(id != former, || format!("the removed member is {id:x} again"));
        let lost = cluster.members[2].lost_and_found();
        report.check(lost.is_empty(), || format!("the others had {lost:?}"));
        watchers.push(Watcher::on(&cluster.members[2]).await);
        load.on(&cluster, 2, CLIENTS);
        load.answered(2, SOME).await;
        finish(report, cluster, load, watchers).await;
    });
}

/// A member comes back with its directory as it was a while ago.
#[test]
fn old_copy() {
    run(async {
        let report = Report::new("old_copy");
        let mut cluster = Cluster::start(3, &[]).await;
        let mut load = Load::new(6);
        load.on_all(&cluster, CLIENTS);
        let mut watchers = watch_all(&cluster).await;
        load.answered(2, 2 * SOME).await;
        cluster.members[2].kill();
        cluster.members[2].copy_data();
        cluster.start_member(2);
        cluster.members[2].ready().await;
        load.answered(2, 4 * SOME).await;
        cluster.members[2].kill();
        watchers.remove(2);
        cluster.members[2].restore_copy();
        cluster.start_member(2);
        cluster.members[2].ready().await;
        load.answered(2, SOME).await;
        watchers.push(Watcher::on(&cluster.members[2]).await);
        load.answered(2, SOME).await;
        finish(report, cluster, load, watchers).await;
    });
}

/// Three members become seven, and then three others than before.
#[test]
fn three_seven_three() {
    run(async {
        let mut report = Report::new("three_seven_three");
        let mut cluster = Cluster::start(3, &[]).await;
        let mut load = Load::new(7);
        load.seed(&cluster, SEEDED).await;
        load.on_all(&cluster, 1);
        let mut watchers = watch_all(&cluster).await;
        load.answered(0, 2 * SOME).await;
        for contact in [0, 1, 2, 0] {
            let number = cluster.join(contact);
            cluster.members[number].ready().await;
            check_seeded(&mut report, &cluster, number).await;
            watchers.push(Watcher::on(&cluster.members[number]).await);
            load.on(&cluster, number, 1);
        }
        let formed = cluster.formed(7).await;
        report.check(formed.is_ok(), || formed.unwrap_err());
        load.answered(6, SOME).await;
        check_own_reads(&mut report, &load);
        // Clients of members that go have to go first.
        load.stop().await;
        let mut members: Vec<usize> = (0..7).collect();
        for goes in [0, 3, 1, 5] {
            members.retain(|member| *member != goes);
            load.on(&cluster, members[0], 1);
            cluster.remove(goes, members[1]).await;
            cluster.members[goes].terminate().await;
            watchers.retain(|watcher| watcher.name() != format!("m{goes}"));
            load.answered(members[0], SOME).await;
        }
        let formed = cluster.formed(3).await;
        report.check(formed.is_ok(), || formed.unwrap_err());
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}
