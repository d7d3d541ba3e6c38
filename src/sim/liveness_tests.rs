use bytes::Bytes;

use super::network::{Network, NetworkOptions};
use super::spread::member_id;
use super::world::{Actor, World, now_at};
use crate::replication::Dice;
use crate::replication::liveness::{Liveness, Options, Output};
use crate::replication::message::Message;
use crate::types::{MemberId, Origin};

const SECOND: u64 = 1_000_000;

/// A member that does nothing but watch the others.
struct Watcher {
    liveness: Liveness,
    sent: Vec<(MemberId, Message)>,
    /// When whom was found alive or dead.
    changes: Vec<(u64, MemberId, bool)>,
    up: bool,
    /// What has come while it does not run.
    paused: Option<Vec<(MemberId, Bytes)>>,
}

impl Watcher {
    fn new(number: usize, run: u64, seed: u64, micros: u64) -> Self {
        let me = Origin { member: member_id(number), run };
        let liveness = Liveness::new(me, Options::default(), seed, now_at(micros));
        Self { liveness, sent: Vec::new(), changes: Vec::new(), up: true, paused: None }
    }

    fn carry_out(&mut self, micros: u64, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(to, bytes) => self.sent.push((to, Message::Swim(bytes))),
                Output::Alive(member) => self.changes.push((micros, member, true)),
                Output::Dead(member) => self.changes.push((micros, member, false)),
            }
        }
    }

    fn set_members(&mut self, micros: u64, members: &[MemberId]) {
        let outputs = self.liveness.set_members(members, now_at(micros));
        self.carry_out(micros, outputs);
    }

    fn resume(&mut self, micros: u64) {
        for (from, bytes) in self.paused.take().unwrap_or_default() {
            self.receive(micros, from, Message::Swim(bytes));
        }
    }

    /// When it first found a member to be so, from some time on.
    fn found(&self, member: MemberId, alive: bool, since: u64) -> Option<u64> {
        let found = self.changes.iter().find(|c| c.0 >= since && (c.1, c.2) == (member, alive));
        found.map(|(at, ..)| *at)
    }

    fn deaths(&self, since: u64) -> usize {
        self.changes.iter().filter(|(at, _, alive)| *at >= since && !alive).count()
    }
}

impl Actor for Watcher {
    fn receive(&mut self, micros: u64, from: MemberId, message: Message) {
        let Message::Swim(bytes) = message else { unreachable!("watchers say nothing else") };
        if let Some(paused) = &mut self.paused {
            paused.push((from, bytes));
            return;
        }
        let outputs = self.liveness.receive(&bytes, from, now_at(micros));
        self.carry_out(micros, outputs);
    }

    fn wake(&mut self, micros: u64) {
        if self.up && self.paused.is_none() {
            let outputs = self.liveness.tick(now_at(micros));
            self.carry_out(micros, outputs);
        }
    }

    fn wake_at(&self) -> u64 {
        let is_awake = self.up && self.paused.is_none();
        if is_awake { self.liveness.wake_at().saturating_mul(1000) } else { u64::MAX }
    }

    fn take_sent(&mut self) -> Vec<(MemberId, Message)> {
        std::mem::take(&mut self.sent)
    }

    fn is_up(&self) -> bool {
        self.up
    }
}

/// A cluster whose members have all just started.
struct Cluster {
    world: World<Watcher>,
    members: Vec<MemberId>,
}

impl Cluster {
    fn new(members: usize, loss_ppm: u64, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let options = NetworkOptions { loss_ppm, ..NetworkOptions::lan() };
        let mut world = World::new(Network::new(options, Dice::new(dice.roll())));
        let ids: Vec<_> = (0..members).map(member_id).collect();
        for (number, id) in ids.iter().enumerate() {
            world.add(*id, Watcher::new(number, 1, dice.roll(), 0));
        }
        let mut cluster = Self { world, members: ids.clone() };
        for number in 0..members {
            // Nobody starts at the same moment.
            cluster.world.run_until(SECOND * number as u64 / members as u64);
            cluster.world.with(number, |watcher, micros| watcher.set_members(micros, &ids));
        }
        cluster
    }

    fn run(&mut self, seconds: u64) {
        let until = self.world.micros() + seconds * SECOND;
        self.world.run_until(until);
    }

    /// Lets time pass until something is so. Answers how long that took, in microseconds.
    fn run_until(&mut self, seconds: u64, is_so: impl Fn(&Self) -> bool) -> Option<u64> {
        let start = self.world.micros();
        while self.world.micros() < start + seconds * SECOND {
            if is_so(self) {
                return Some(self.world.micros() - start);
            }
            let next = self.world.micros() + SECOND / 10;
            self.world.run_until(next);
        }
        None
    }

    fn watchers(&self) -> &[Watcher] {
        &self.world.actors
    }

    /// Whether all members in a group take all of that group, and nobody else, for live.
    fn agree(&self, group: &[usize]) -> bool {
        group.iter().all(|number| {
            let mut expected: Vec<_> =
                group.iter().filter(|n| *n != number).map(|n| self.members[*n]).collect();
            expected.sort_unstable();
            self.watchers()[*number].liveness.live() == expected
        })
    }

    fn everybody(&self) -> Vec<usize> {
        (0..self.members.len()).collect()
    }

    fn meet(&mut self, seconds: u64) -> u64 {
        let all = self.everybody();
        let took = self.run_until(seconds, |cluster| cluster.agree(&all));
        took.expect("all have found each other")
    }

    fn bytes(&self) -> u64 {
        self.world.traffic.iter().map(|traffic| traffic.bytes).sum()
    }

    /// Ends a member. Answers when the others found out, in order, in microseconds.
    fn crash(&mut self, number: usize, seconds: u64) -> Vec<u64> {
        let start = self.world.micros();
        self.world.with(number, |watcher, _| watcher.up = false);
        let member = self.members[number];
        self.run_until(seconds, |cluster| {
            cluster.watchers().iter().all(|w| !w.up || !w.liveness.live().contains(&member))
        });
        let others = self.watchers().iter().filter(|watcher| watcher.up);
        let mut found: Vec<_> = others
            .map(|w| w.found(member, false, start).expect("the crash is noticed") - start)
            .collect();
        found.sort_unstable();
        found
    }

    fn deaths(&self, since: u64) -> usize {
        self.watchers().iter().map(|watcher| watcher.deaths(since)).sum()
    }

    fn failed_probes(&self) -> u64 {
        self.watchers().iter().map(|watcher| watcher.liveness.counts().failed_probes).sum()
    }
}

/// What idle members cost each other, and what they get wrong, in so many seconds.
fn idle(members: usize, seconds: u64, loss_ppm: u64) -> (f64, usize) {
    let mut cluster = Cluster::new(members, loss_ppm, 1);
    let met = cluster.meet(60);
    // The news of the start is passed on for a while.
    cluster.run(20);
    let (start, before) = (cluster.world.micros(), cluster.bytes());
    cluster.run(seconds);
    let bytes = (cluster.bytes() - before) as f64 / members as f64 / seconds as f64;
    let deaths = cluster.deaths(start);
    eprintln!(
        "{members} members: met in {} ms, {bytes:.0} bytes/s, {deaths} false deaths, {} failed probes",
        met / 1000,
        cluster.failed_probes()
    );
    (bytes, deaths)
}

#[test]
fn three_members_are_never_wrong() {
    let (bytes, deaths) = idle(3, 600, 10_000);
    assert!(bytes < 300.0 && deaths == 0);
}

#[test]
fn a_hundred_members_are_never_wrong() {
    let (bytes, deaths) = idle(100, 600, 10_000);
    assert!(bytes < 300.0 && deaths == 0);
}

fn crash(members: usize) -> (u64, u64) {
    let mut cluster = Cluster::new(members, 10_000, 2);
    cluster.meet(60);
    let found = cluster.crash(members / 2, 60);
    let (median, worst) = (found[found.len() / 2] / 1000, found[found.len() - 1] / 1000);
    eprintln!("{members} members: a crash is found in {median} ms, by the last one in {worst} ms");
    (median, worst)
}

#[test]
fn crashes_are_found() {
    assert!(crash(3) < (8_000, 10_000));
    assert!(crash(100) < (12_000, 15_000));
}

/// Cuts a cluster in two, then mends it after so many seconds. Answers how long it took to notice either, in milliseconds.
fn part_and_heal(members: usize, seconds: u64) -> (Option<u64>, u64) {
    let mut cluster = Cluster::new(members, 10_000, 3);
    cluster.meet(60);
    let all = cluster.everybody();
    let (left, right) = all.split_at(members / 3);
    cluster.world.network.part(left, right);
    let parted = cluster.run_until(seconds, |c| c.agree(left) && c.agree(right));
    let parted = parted.map(|micros| micros / 1000);
    cluster.run(seconds - parted.map_or(seconds, |millis| millis / 1000));
    cluster.world.network.heal();
    let healed = cluster.meet(120) / 1000;
    cluster.run(20);
    assert!(cluster.agree(&all), "and that stays so");
    eprintln!(
        "{members} members: a cut of {seconds} s is noticed in {parted:?} ms, its end in {healed} ms"
    );
    (parted, healed)
}

#[test]
fn both_sides_of_a_cut_find_each_other_again() {
    for (members, seconds) in [(3, 60), (3, 6), (100, 60), (100, 10)] {
        let (parted, healed) = part_and_heal(members, seconds);
        assert_eq!(parted.is_some(), seconds == 60);
        assert!(healed < 30_000);
    }
}

/// Pauses a member for ten seconds. Answers how long it took all to be back, in milliseconds.
fn pause(members: usize) -> u64 {
    let mut cluster = Cluster::new(members, 10_000, 4);
    cluster.meet(60);
    cluster.run(20);
    let start = cluster.world.micros();
    cluster.world.with(0, |watcher, _| watcher.paused = Some(Vec::new()));
    cluster.run(10);
    let noticed = cluster.deaths(start);
    cluster.world.with(0, |watcher, micros| watcher.resume(micros));
    let back = cluster.meet(30) / 1000;
    cluster.run(10);
    let watchers = cluster.watchers();
    eprintln!(
        "{members} members: {noticed} of them missed a member that paused, back in {back} ms"
    );
    assert_eq!(watchers[0].deaths(start), 0, "nobody was dead but for the pause");
    assert_eq!(watchers[0].liveness.counts().pauses, 1);
    let changes = watchers.iter().flat_map(|watcher| &watcher.changes);
    let mut others = changes.filter(|c| c.0 >= start && c.1 != cluster.members[0]);
    assert_eq!(others.next(), None, "nobody else was taken for dead");
    back
}

#[test]
fn a_member_that_paused_comes_back() {
    assert!(pause(3) < 5000);
    assert!(pause(100) < 5000);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimization")]
fn a_thousand_members_are_never_wrong() {
    let (bytes, deaths) = idle(1000, 600, 10_000);
    assert!(bytes < 300.0 && deaths == 0);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimization")]
fn a_thousand_members_find_what_happens() {
    assert!(crash(1000) < (20_000, 25_000));
    assert!(pause(1000) < 5000);
    let (parted, healed) = part_and_heal(1000, 90);
    assert!(parted.is_some() && healed < 60_000);
}

#[test]
fn a_member_that_starts_anew_is_the_same_member() {
    let mut cluster = Cluster::new(5, 0, 5);
    cluster.meet(60);
    let start = cluster.world.micros();
    let ids = cluster.members.clone();
    cluster.world.with(4, |watcher, micros| {
        *watcher = Watcher::new(4, 2, 7, micros);
        watcher.set_members(micros, &ids);
    });
    let back = cluster.meet(10);
    cluster.run(30);
    assert!(back < SECOND, "{back}");
    assert_eq!(cluster.deaths(start), 0, "a restart is faster than a suspicion");
}

#[test]
fn a_member_that_left_is_forgotten() {
    let mut cluster = Cluster::new(5, 0, 6);
    cluster.meet(60);
    let rest: Vec<_> = cluster.members[..4].to_vec();
    for number in 0..4 {
        cluster.world.with(number, |watcher, micros| watcher.set_members(micros, &rest));
    }
    assert!(cluster.agree(&[0, 1, 2, 3]));
    let start = cluster.world.micros();
    cluster.run(60);
    assert!(cluster.agree(&[0, 1, 2, 3]));
    assert_eq!(cluster.watchers()[0].changes.iter().filter(|c| c.0 > start).count(), 0);
    assert!(cluster.agree(&[4]), "it hears of nobody any more");
}

#[test]
fn a_seed_is_a_story() {
    let story = || {
        let mut cluster = Cluster::new(20, 50_000, 7);
        cluster.meet(60);
        cluster.crash(3, 60);
        let changes: Vec<_> = cluster.watchers().iter().map(|w| w.changes.clone()).collect();
        (changes, cluster.world.traffic)
    };
    assert_eq!(story(), story());
}
