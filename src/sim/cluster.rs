//! A cluster of whole members under faults, and what must hold for it at all times.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::full::{Full, Setup};
use super::network::{Network, NetworkOptions};
use super::spread::member_id;
use super::witness::Witness;
use super::world::{World, now_at};
use crate::engine::command::{Command, DeleteRange, Put, Range, Txn, TxnOp};
use crate::engine::replica::{Admission, ClusterOptions};
use crate::engine::{Failure, Options};
use crate::error::Error;
use crate::replication::entry::{Entry, EntryOp};
use crate::replication::message::Head;
use crate::replication::{Dice, gossip};
use crate::storage::schema::member::MemberRecord;
use crate::storage::schema::{Identity, Op, Place, Row};
use crate::storage::{Batch, Durability, Space, Store};
use crate::time::{Stamp, Timestamp};
use crate::types::{ClusterId, KeyRange, LeaseId, MediaType, MemberId, Origin, Revision};

pub(super) const SECOND: u64 = 1_000_000;
const MILLI: u64 = 1000;
/// Memory for the newest entries where logs are what it is about.
const RECENT_BYTES: usize = 2000;
/// How often members try to reach each other.
const CONTACT_MICROS: u64 = 500 * MILLI;
/// How often everything is checked.
const CHECK_MICROS: u64 = 50 * MILLI;

/// What one member has shown so far in this run: none of it may go back.
#[derive(Clone, Debug, Default)]
struct Shown {
    revision: Revision,
    heads: BTreeMap<Origin, u64>,
    complete: Timestamp,
    settled: Timestamp,
    /// Whether it has ever had the data of the others.
    arrived: bool,
    /// Its disk was replaced by an old copy when this time was settled: it does not hold all that until it is complete again.
    rolled_back: Timestamp,
}

/// Members, their network, and an oracle that knows everything that was ever durable.
pub(super) struct Cluster {
    pub(super) world: World<Full>,
    pub(super) dice: Dice,
    /// Every entry that was ever durable at its origin.
    truth: BTreeMap<Origin, BTreeMap<u64, Arc<Entry>>>,
    shown: Vec<Shown>,
    /// A client of each member that is up.
    witnesses: BTreeMap<usize, Witness>,
    /// Who has been admitted, by whom, and when the admission is durable.
    admitted: Vec<(usize, usize, Admission, u64)>,
    /// Entries that were acknowledged by another member.
    safe: BTreeSet<(Origin, u64)>,
    next_contact: u64,
    next_check: u64,
    next_id: usize,
    /// What happened, to be shown when something is wrong.
    pub(super) story: Vec<String>,
}

fn url(number: usize) -> String {
    format!("http://10.0.0.{number}:2380")
}

fn setup(number: usize, founders: usize, seed: u64) -> Setup {
    let identity = Identity { member: member_id(number), cluster: ClusterId(7) };
    let others = (0..founders).filter(|other| *other != number).map(|other| vec![url(other)]);
    let initial = if number < founders { others.collect() } else { Vec::new() };
    let record = MemberRecord {
        name: format!("n{number}"),
        peer_urls: vec![url(number)],
        ..MemberRecord::default()
    };
    let options = gossip::Options {
        promise_millis: 400,
        away_millis: 2000,
        scrub_millis: Some(5000),
        // A few entries at a time, several of them on their way.
        catch_up_bytes: 4096,
        ..gossip::Options::default()
    };
    Setup {
        writer: Options {
            gc_age_millis: 1000,
            // Half of all clusters keep nothing for members that are away but what they must.
            log_bytes_max: seed.is_multiple_of(2).then_some(0),
            ..Options::new(identity)
        },
        cluster: ClusterOptions {
            record,
            gossip: options,
            initial,
            seed,
            ..ClusterOptions::default()
        },
        commit_micros: 500,
        skew_millis: 0,
        is_awaited: None,
    }
}

impl Cluster {
    /// Members that found a cluster together.
    pub(super) fn found(members: usize, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let network = Network::new(NetworkOptions::lan(), Dice::new(dice.roll()));
        let mut cluster = Self {
            world: World::new(network),
            dice,
            truth: BTreeMap::new(),
            shown: Vec::new(),
            witnesses: BTreeMap::new(),
            admitted: Vec::new(),
            safe: BTreeSet::new(),
            next_contact: 0,
            next_check: 0,
            next_id: members,
            story: Vec::new(),
        };
        for number in 0..members {
            cluster.add(setup(number, members, cluster.dice.clone().roll()));
        }
        cluster
    }

    /// As [`Self::found`], but so much may wait in the logs for members that are away, and next to nothing is in memory.
    pub(super) fn found_with_logs(members: usize, log_bytes_max: Option<u64>, seed: u64) -> Self {
        let mut cluster = Self::found(0, seed);
        cluster.next_id = members;
        for number in 0..members {
            let mut setup = setup(number, members, cluster.dice.roll());
            setup.writer.log_bytes_max = log_bytes_max;
            setup.cluster.gossip.recent_bytes = RECENT_BYTES;
            cluster.add(setup);
        }
        cluster
    }

    /// As [`Self::found`], but some of the members happen to take the same tag.
    pub(super) fn found_with_tags(tags: &[u16], seed: u64) -> Self {
        let mut cluster = Self::found(0, seed);
        cluster.next_id = tags.len();
        for (number, tag) in tags.iter().enumerate() {
            let mut setup = setup(number, tags.len(), cluster.dice.roll());
            setup.writer.tag = Some(*tag);
            cluster.add(setup);
        }
        cluster
    }

    /// As [`Self::found`], but the wall clocks are so far ahead.
    pub(super) fn found_with_clocks(skew_millis: &[i64], seed: u64) -> Self {
        let mut cluster = Self::found(0, seed);
        cluster.next_id = skew_millis.len();
        for (number, skew_millis) in skew_millis.iter().enumerate() {
            let setup = setup(number, cluster.next_id, cluster.dice.roll());
            cluster.add(Setup { skew_millis: *skew_millis, ..setup });
        }
        cluster
    }

    /// From their next start on, members remove who is dead for so long.
    pub(super) fn remove_dead_after(&mut self, millis: u64) {
        for number in self.up() {
            let cluster = &mut self.world.actors[number].setup.cluster;
            cluster.remove_dead_after_millis = Some(millis);
            self.crash(number);
            self.start(number);
        }
    }

    /// From now on the wall clock of a member is so far ahead.
    pub(super) fn set_clock(&mut self, number: usize, skew_millis: i64) {
        self.tell(format!("the clock of n{number} is {skew_millis} ms ahead"));
        self.world.actors[number].setup.skew_millis = skew_millis;
    }

    /// The greatest time that a member has given out or heard of, ahead of the right one, in milliseconds.
    pub(super) fn ahead(&self, number: usize) -> i64 {
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        let right = now_at(self.world.micros()).wall_millis.cast_signed();
        replica.writer().time().millis().cast_signed() - right
    }

    /// One member alone, which others may join.
    pub(super) fn alone(seed: u64) -> Self {
        let mut cluster = Self::found(0, seed);
        cluster.join_new();
        cluster
    }

    fn add(&mut self, setup: Setup) -> usize {
        let full = Full::new(setup, self.world.micros());
        self.shown.push(Shown::default());
        let number = self.world.add(full.member(), full);
        self.watch(number);
        number
    }

    /// A client begins to watch a member.
    fn watch(&mut self, number: usize) {
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        self.witnesses.insert(number, Witness::new(replica));
    }

    /// What clients are told is what an etcd would tell them.
    fn check_witnesses(&mut self) {
        let checked = self.witnesses.iter_mut().map(|(number, witness)| (number, witness.check()));
        let wrong: Vec<_> = checked.filter_map(|(number, it)| Some((*number, it.err()?))).collect();
        if let Some((number, why)) = wrong.first() {
            self.fail(&format!("the client of n{number}: {why}"));
        }
    }

    /// How often the watchers of a member have ended since it was started last, because it had taken another tag.
    pub(super) fn retags(&mut self, number: usize) -> u64 {
        self.check_witnesses();
        self.witnesses[&number].retags()
    }

    /// The tags of the members that are up.
    pub(super) fn tags(&self) -> Vec<u16> {
        let replicas = self.world.actors.iter().filter_map(|full| full.replica.as_ref());
        replicas.map(|replica| replica.writer().tag()).collect()
    }

    /// Each member has a tag of its own, and all know which.
    fn check_tags(&self) {
        let tags = self.tags();
        let distinct: BTreeSet<_> = tags.iter().filter(|tag| **tag > 0).collect();
        if distinct.len() != tags.len() {
            self.fail(&format!("the tags are {tags:?}"));
        }
        for number in self.up() {
            let replica = self.world.actors[number].replica.as_ref().expect("it is up");
            let Some(directory) = replica.directory() else { continue };
            for other in self.up() {
                let other = &self.world.actors[other];
                let tag = other.replica.as_ref().map(|replica| replica.writer().tag());
                let known = directory.members.get(&other.member()).map(|record| record.tag);
                if known != tag {
                    self.fail(&format!(
                        "n{number} takes {known:?} for {}: {tag:?}",
                        other.member()
                    ));
                }
            }
        }
    }

    /// A new member with an empty disk, that wants to join.
    pub(super) fn join_new(&mut self) -> usize {
        let number = self.next_id;
        self.next_id += 1;
        self.tell(format!("n{number} is new"));
        let seed = self.dice.roll();
        let mut setup = setup(number, 0, seed);
        setup.cluster.joins = !self.world.actors.is_empty();
        self.add(setup)
    }

    /// Somebody else, alone, whom nobody reaches.
    pub(super) fn add_alone(&mut self) -> usize {
        let number = self.next_id;
        self.next_id += 1;
        self.tell(format!("n{number} is alone"));
        let mut setup = setup(number, 0, self.dice.roll());
        setup.writer.identity.cluster = ClusterId(1000 + number as u64);
        let others: Vec<_> = (0..self.world.actors.len()).collect();
        self.world.network.part(&[number], &others);
        self.add(setup)
    }

    /// One that was alone is started anew, to join the others.
    pub(super) fn start_to_join(&mut self, number: usize) {
        self.crash(number);
        self.world.network.heal();
        self.world.actors[number].setup.cluster.is_called = true;
        self.start(number);
    }

    /// Lets time pass until somebody hears that it is admitted.
    pub(super) fn run_until_admitted(&mut self, number: usize) {
        let is_outside = |cluster: &Self| {
            let replica = cluster.world.actors[number].replica.as_ref();
            replica.is_some_and(|replica| replica.directory().is_none())
        };
        while is_outside(self) {
            self.run(MILLI);
        }
    }

    /// A client writes a key somewhere, with a value.
    pub(super) fn set(&mut self, number: usize, key: &'static str, value: &'static str) {
        let (key, value) =
            (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        let put = Put { key, value, ..Put::default() };
        self.world.with(number, |full, micros| full.execute(micros, Command::Put(put)));
    }

    /// A client writes a key somewhere, and says what its value is.
    pub(super) fn set_typed(&mut self, number: usize, key: &'static str, media_type: &str) {
        let media_type = MediaType::parse(media_type.as_bytes()).expect("it is printable");
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"));
        let put = Put { key, value, media_type, ..Put::default() };
        self.world.with(number, |full, micros| full.execute(micros, Command::Put(put)));
    }

    /// What the value of a key is somewhere, as far as that was said; `None` if there is no such key.
    pub(super) fn media_type(&self, number: usize, key: &str) -> Option<MediaType> {
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        let reader = replica.writer().mvcc().reader();
        let found = reader.versions(key.as_bytes(), reader.revision(), 1, usize::MAX);
        found.expect("no fault").pop().map(|version| version.kv.media_type)
    }

    pub(super) fn tell(&mut self, what: String) {
        let millis = self.world.micros() / MILLI;
        self.story.push(format!("{millis} ms: {what}"));
    }

    pub(super) fn up(&self) -> Vec<usize> {
        let actors = self.world.actors.iter().enumerate();
        actors.filter(|(_, full)| full.replica.is_some()).map(|(number, _)| number).collect()
    }

    /// Members that take part in the cluster, as one of them sees it.
    pub(super) fn members(&self, of: usize) -> BTreeSet<MemberId> {
        let directory = self.world.actors[of].replica.as_ref().and_then(|it| it.directory());
        directory.map_or_else(BTreeSet::new, |it| it.membership.members.keys().copied().collect())
    }

    /// Lets time pass, checking all the while.
    pub(super) fn run(&mut self, micros: u64) {
        let end = self.world.micros() + micros;
        while self.world.micros() < end {
            let next = self.world.next_event().unwrap_or(end).min(end);
            let chores = self.next_contact.min(self.next_check);
            if chores <= next {
                self.world.run_until(chores);
                self.chores();
            } else if next < end || self.world.next_event() == Some(end) {
                if let Some(number) = self.world.step() {
                    self.observe(number);
                }
            } else {
                self.world.run_until(end);
            }
        }
    }

    fn chores(&mut self) {
        let now = self.world.micros();
        if now >= self.next_contact {
            self.next_contact = now + CONTACT_MICROS;
            self.introduce();
            self.refuse_removed();
            self.restart_removed();
            self.admit_joiners();
        }
        if now >= self.next_check {
            self.next_check = now + CHECK_MICROS;
            self.check_settled();
            self.check_witnesses();
        }
        let due: Vec<_> = self.admitted.extract_if(.., |(_, _, _, at)| *at <= now).collect();
        for (joiner, contact, admission, _) in due {
            let contact = self.world.actors[contact].member();
            self.world.with(joiner, |full, micros| {
                full.with(micros, |replica, now| {
                    replica.adopt(&admission, contact, now).expect("no fault");
                })
            });
        }
    }

    pub(super) fn is_reachable(&self, from: usize, to: usize) -> bool {
        let network = &self.world.network;
        network.connects(from, to) && network.connects(to, from)
    }

    /// Members connect to those whose addresses they know: here, to all that they reach.
    pub(super) fn introduce(&mut self) {
        let now = self.world.micros();
        for number in self.up() {
            let others = self.up().into_iter().filter(|other| {
                *other != number
                    && self.is_reachable(number, *other)
                    && self.world.actors[*other].paused_until <= now
            });
            let others: Vec<_> = others.map(|other| self.world.actors[other].member()).collect();
            self.world.with(number, |full, micros| {
                full.with(micros, |replica, now| {
                    others.iter().for_each(|peer| replica.meet(*peer, now).expect("no fault"));
                })
            });
        }
    }

    /// Members are told by others, whom they take for members, that they were removed.
    fn refuse_removed(&mut self) {
        for number in self.up() {
            let me = self.world.actors[number].member();
            let takes_for_member = self.members(number);
            let refuses = |other: &usize| {
                let peer = &self.world.actors[*other];
                self.is_reachable(number, *other)
                    && peer.has_removed(me)
                    && takes_for_member.contains(&peer.member())
            };
            if self.up().iter().any(refuses) {
                self.world.with(number, |full, micros| {
                    full.with(micros, |replica, now| replica.note_removal(now))
                });
            }
        }
    }

    /// Members that know that they were removed end. Those that were not in touch then come back as somebody else.
    fn restart_removed(&mut self) {
        for number in self.up() {
            match self.world.actors[number].removed {
                Some(true) => self.crash(number),
                Some(false) => {
                    self.succeed(number);
                    self.start(number);
                }
                None => {}
            }
        }
    }

    /// The process of a member ends; the next one is somebody else, if this one knew that it was removed.
    pub(super) fn succeed(&mut self, number: usize) {
        self.tell(format!("n{number} is to come back as somebody else"));
        self.rename(number, Full::succeed);
    }

    /// Whoever starts there next is somebody new.
    fn rename(&mut self, number: usize, become_member: fn(&mut Full, MemberId)) {
        let member = member_id(self.next_id);
        self.next_id += 1;
        self.world.with(number, |full, _| become_member(full, member));
        self.world.rename(number, member);
        self.witnesses.remove(&number);
        self.shown[number] = Shown::default();
    }

    /// A member removes another.
    pub(super) fn remove(&mut self, by: usize, whom: usize) {
        self.tell(format!("n{by} removes n{whom}"));
        let member = self.world.actors[whom].member();
        self.world.with(by, |full, micros| {
            full.with(micros, |replica, now| {
                replica.change_members(vec![(member, None)], now).expect("no fault");
            })
        });
    }

    /// A member leaves the cluster. When it comes back it is somebody else, alone, whom nobody reaches.
    pub(super) fn leave(&mut self, number: usize) {
        self.tell(format!("n{number} leaves"));
        let left = self.world.with(number, |full, micros| {
            full.with(micros, |replica, now| replica.leave(now).expect("no fault"))
        });
        assert!(left.flatten().is_some(), "it is a member");
        // The others have to hear of it.
        self.run(SECOND);
        self.succeed(number);
        let others: Vec<_> =
            (0..self.world.actors.len()).filter(|other| *other != number).collect();
        self.world.network.part(&[number], &others);
        self.start(number);
    }

    /// Those who belong to no cluster ask somebody.
    fn admit_joiners(&mut self) {
        for number in self.up() {
            let full = &self.world.actors[number];
            let is_outside = full.replica.as_ref().is_some_and(|replica| {
                replica.directory().is_none_or(|directory| {
                    !directory.members.contains_key(&full.member())
                        && replica.gossip().is_none_or(|gossip| gossip.catching_up().is_none())
                })
            });
            if !is_outside || self.admitted.iter().any(|(joiner, ..)| *joiner == number) {
                continue;
            }
            let (member, record) = (full.member(), full.setup.cluster.record.clone());
            let contacts: Vec<_> = self
                .up()
                .into_iter()
                .filter(|other| *other != number && self.is_reachable(number, *other))
                .filter(|other| {
                    let contact = self.world.actors[*other].replica.as_ref();
                    contact.is_some_and(|it| it.is_ready() && !it.is_unsure())
                })
                .collect();
            // The first of all has nobody to join.
            let Some(contact) = self.dice.pick(&contacts).copied() else { continue };
            let is_first = self.world.actors[contact]
                .replica
                .as_ref()
                .is_some_and(|replica| replica.directory().is_none());
            if is_first && contact > number {
                continue;
            }
            let admission =
                self.world.with(contact, |full, micros| full.admit(micros, member, &record));
            if let Some(Ok(admission)) = admission {
                self.tell(format!("n{number} is admitted by n{contact}"));
                let durable = self.world.micros() + 10 * MILLI;
                self.admitted.push((number, contact, admission, durable));
            }
        }
    }

    /// Notes what has become durable, and checks that nothing has gone back.
    fn observe(&mut self, number: usize) {
        let full = &self.world.actors[number];
        let Some(replica) = &full.replica else { return };
        let writer = replica.writer();
        let heads = writer.heads();
        let known = |origin: &Origin| {
            let last = self.truth.get(origin).and_then(|entries| entries.last_key_value());
            last.map_or(0, |(seq, _)| *seq)
        };
        if replica.directory().is_none() {
            // What is written where nobody else is concerns nobody yet.
            self.shown[number].revision = writer.mvcc().revision();
            return;
        }
        // The last entries of a run that has lost power may be with others only.
        let wants: Vec<_> = heads
            .iter()
            .map(|head| Head { origin: head.origin, seq: known(&head.origin) })
            .zip(&heads)
            .filter_map(|(want, head)| (head.seq > want.seq).then_some(want))
            .collect();
        if !wants.is_empty() {
            let segments = writer.mvcc().segments(&wants, &heads, usize::MAX).expect("no fault");
            for segment in segments {
                let entries = self.truth.entry(segment.origin).or_default();
                entries.extend(segment.entries.into_iter().map(|entry| (entry.seq, entry)));
            }
        }
        let origin = writer.origin();
        for (peer, seq) in &full.acknowledged {
            let _ = peer;
            self.safe.insert((origin, *seq));
        }
        let shown = &mut self.shown[number];
        shown.arrived |= replica.is_ready();
        let revision = writer.mvcc().revision();
        let is_retagged = revision.tag() != shown.revision.tag();
        assert!(
            revision >= shown.revision || is_retagged,
            "n{number} went from {} to {revision}",
            shown.revision
        );
        shown.revision = revision;
        for Head { origin, seq } in heads {
            let before = shown.heads.insert(origin, seq).unwrap_or(0);
            assert!(seq >= before, "n{number}: head of {origin} went from {before} to {seq}");
        }
        if let Some(gossip) = replica.gossip() {
            let frontier = gossip.frontier();
            assert!(frontier.complete() >= shown.complete, "n{number}: complete went back");
            assert!(frontier.settled() >= shown.settled, "n{number}: settled went back");
            (shown.complete, shown.settled) = (frontier.complete(), frontier.settled());
        }
    }

    /// What a member holds on its disk, up or down.
    fn heads_of(&self, number: usize) -> BTreeMap<Origin, u64> {
        let full = &self.world.actors[number];
        match &full.replica {
            Some(replica) => {
                replica.writer().heads().into_iter().map(|head| (head.origin, head.seq)).collect()
            }
            None => self.shown[number].heads.clone(),
        }
    }

    /// What somebody takes for settled is held by all members, dead or alive, that it knows.
    fn check_settled(&mut self) {
        let by_member: BTreeMap<_, _> =
            (0..self.world.actors.len()).map(|n| (self.world.actors[n].member(), n)).collect();
        for number in self.up() {
            let settled = self.shown[number].settled;
            let members = self.members(number);
            for member in &members {
                let Some(holder) = by_member.get(member) else { continue };
                // One that is on its way in holds nothing that anyone counts on.
                let replica = &self.world.actors[*holder].replica;
                let is_here = replica.as_ref().is_none_or(|replica| replica.is_ready());
                if !is_here || !self.shown[*holder].arrived {
                    continue;
                }
                if self.shown[*holder].complete < self.shown[*holder].rolled_back {
                    continue;
                }
                let heads = self.heads_of(*holder);
                for (origin, entries) in &self.truth {
                    let head = heads.get(origin).copied().unwrap_or(0);
                    let missing = entries.range(head + 1..).find(|(_, e)| e.time <= settled);
                    let survives = |seq: &u64| self.survives(*origin, *seq, &members);
                    if let Some((seq, entry)) = missing.filter(|(seq, _)| survives(seq)) {
                        self.fail(&format!(
                            "n{number} takes {settled} for settled, but n{holder} lacks {origin} {seq} of {}",
                            entry.time
                        ));
                    }
                }
            }
        }
    }

    /// Whether any of these members has an entry at all: the only disk that had it may have been replaced, or its owner
    /// removed.
    fn survives(&self, origin: Origin, seq: u64, members: &BTreeSet<MemberId>) -> bool {
        (0..self.world.actors.len())
            .filter(|number| members.contains(&self.world.actors[*number].member()))
            .any(|number| self.heads_of(number).get(&origin).is_some_and(|head| *head >= seq))
    }

    pub(super) fn fail(&self, what: &str) -> ! {
        let story = self.story.join("\n");
        panic!("{what}\nat {} ms, after:\n{story}", self.world.micros() / MILLI);
    }

    /// Everything that is wrong is mended, and everybody runs.
    pub(super) fn calm(&mut self) {
        self.world.network.heal();
        self.world.network.options = NetworkOptions::lan();
        for number in 0..self.world.actors.len() {
            self.world.actors[number].paused_until = 0;
            self.start(number);
        }
        self.tell("calm".to_owned());
    }

    pub(super) fn start(&mut self, number: usize) {
        if self.world.actors[number].replica.is_none() {
            self.tell(format!("n{number} starts"));
            self.world.with(number, |full, micros| full.start(micros));
            // A run that begins after a crash may know less of what the others promised.
            self.shown[number].complete = Timestamp::default();
            self.shown[number].settled = Timestamp::default();
            self.shown[number].revision = Revision(0);
            self.watch(number);
        }
    }

    pub(super) fn crash(&mut self, number: usize) {
        if self.world.actors[number].replica.is_some() {
            self.tell(format!("n{number} loses power"));
            self.world.with(number, |full, _| full.crash());
            self.witnesses.remove(&number);
        }
    }

    /// The disk of a member is lost; it comes back empty, as somebody else.
    pub(super) fn wipe(&mut self, number: usize) {
        self.tell(format!("n{number} loses its disk"));
        self.rename(number, Full::wipe);
    }

    /// A member comes back with an old copy of its disk.
    pub(super) fn roll_back(&mut self, number: usize, disk: crate::storage::Memory) {
        self.tell(format!("n{number} gets an old copy of its disk"));
        self.world.with(number, |full, _| {
            full.crash();
            full.disk = disk;
        });
        self.witnesses.remove(&number);
        let rolled_back = self.shown.iter().map(|shown| shown.settled).max().unwrap_or_default();
        self.shown[number] = Shown { rolled_back, ..Shown::default() };
        self.start(number);
    }

    /// What lives at a member, with the stamps that count.
    pub(super) fn state(&self, number: usize) -> BTreeMap<Bytes, Bytes> {
        let replica = self.world.actors[number].replica.as_ref().expect("it is up");
        let reader = replica.writer().mvcc().reader();
        let range = reader.range(&Range::new(KeyRange::all())).expect("no fault");
        let pairs = range.kvs.iter().map(|pair| {
            let kv = crate::types::KeyValue::from(pair);
            (kv.key, kv.value)
        });
        pairs.collect()
    }

    /// What lives after all entries up to some heads, by the rule: the greatest put, unless a delete has seen it.
    fn expected(&self, heads: &BTreeMap<Origin, u64>) -> BTreeMap<Bytes, Bytes> {
        let mut puts: BTreeMap<&Bytes, (Stamp, &Bytes)> = BTreeMap::new();
        let mut deletes: BTreeMap<&Bytes, Stamp> = BTreeMap::new();
        for (origin, entries) in &self.truth {
            let head = heads.get(origin).copied().unwrap_or(0);
            for entry in entries.range(..=head).map(|(_, entry)| entry) {
                let stamp = Stamp { time: entry.time, origin: *origin };
                for op in &entry.ops {
                    match op {
                        EntryOp::Put { key, value, .. } => {
                            let put = puts.entry(key).or_insert((stamp, value));
                            // Of two puts in one entry the later one counts.
                            if stamp >= put.0 {
                                *put = (stamp, value);
                            }
                        }
                        EntryOp::Delete { key, seen } => {
                            let known = deletes.entry(key).or_insert(*seen);
                            *known = (*known).max(*seen);
                        }
                        _ => {}
                    }
                }
            }
        }
        let lives = |(key, (stamp, _)): &(&Bytes, (Stamp, &Bytes))| {
            deletes.get(*key).is_none_or(|seen| stamp > seen)
        };
        let living = puts.into_iter().filter(lives);
        living.map(|(key, (_, value))| (key.clone(), value.clone())).collect()
    }

    /// After some calm all members hold the same, and exactly what they should.
    pub(super) fn check_converged(&mut self) {
        self.check_tags();
        self.check_witnesses();
        let up = self.up();
        let first = up[0];
        let heads = self.heads_of(first);
        let expected = self.expected(&heads);
        let mut hashes = BTreeSet::new();
        for number in &up {
            if self.heads_of(*number) != heads {
                self.fail(&format!(
                    "n{first} holds {heads:?}, n{number} {:?}",
                    self.heads_of(*number)
                ));
            }
            let state = self.state(*number);
            if state != expected {
                self.fail(&format!("n{number} has {state:?}\nand not {expected:?}"));
            }
            let replica = self.world.actors[*number].replica.as_ref().expect("it is up");
            hashes.insert(replica.writer().mvcc().reader().hash(0).expect("no fault").hash);
        }
        if hashes.len() != 1 {
            self.fail(&format!("hashes differ: {hashes:?}"));
        }
        for (origin, seq) in &self.safe {
            if heads.get(origin).is_none_or(|head| head < seq) {
                self.fail(&format!(
                    "{origin} {seq} was acknowledged by another member, and is lost"
                ));
            }
        }
    }

    /// A client does something somewhere.
    pub(super) fn client(&mut self) {
        let up = self.up();
        let Some(number) = self.dice.pick(&up).copied() else { return };
        let command = self.command(number);
        let micros = self.world.micros();
        let value = Bytes::from(format!("{micros}"));
        if let Command::Compact { revision } = &command {
            // Who watches and is behind would be told so.
            self.check_witnesses();
            self.tell(format!("a client compacts n{number} at {revision}"));
        }
        let command = match command {
            Command::Put(put) => Command::Put(Put { value, ..put }),
            command => command,
        };
        self.world.with(number, |full, micros| full.execute(micros, command));
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(format!("k{}", self.dice.below(12)))
    }

    fn command(&mut self, number: usize) -> Command {
        let put = |key| Put { key, ..Put::default() };
        match self.dice.below(10) {
            0..=4 => Command::Put(put(self.key())),
            5 | 6 => {
                let range = KeyRange::single(self.key());
                Command::DeleteRange(DeleteRange { range, prev_kv: false })
            }
            7 => {
                let value = Bytes::from(format!("t{}", self.world.micros()));
                let (a, b) = (self.key(), self.key());
                let mut success = vec![TxnOp::Put(Put { value: value.clone(), ..put(a.clone()) })];
                if a != b {
                    success.push(TxnOp::Put(Put { value, ..put(b) }));
                }
                Command::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() })
            }
            8 => {
                let id = LeaseId(1 + self.dice.below(4).cast_signed());
                if self.dice.below(2) == 0 {
                    Command::LeaseGrant { id, ttl_seconds: 1_000_000 }
                } else {
                    Command::LeaseRevoke { id }
                }
            }
            _ => {
                let replica = self.world.actors[number].replica.as_ref();
                let revision = replica.map_or(1, |it| it.writer().mvcc().revision().0);
                let back = self.dice.below(5);
                Command::Compact { revision: revision.saturating_sub(back).cast_signed() }
            }
        }
    }

    /// A client writes a key somewhere.
    pub(super) fn put(&mut self, number: usize, key: &Bytes) {
        _ = self.try_put(number, key);
    }

    /// A client writes a key somewhere. Answers whether it was taken.
    pub(super) fn try_put(&mut self, number: usize, key: &Bytes) -> Result<(), Error> {
        let put = Put { key: key.clone(), value: Bytes::from_static(b"v"), ..Put::default() };
        self.try_command(number, Command::Put(put))
    }

    fn try_command(&mut self, number: usize, command: Command) -> Result<(), Error> {
        match self.world.with(number, |full, micros| full.execute(micros, command)) {
            Some(Ok(_)) => Ok(()),
            Some(Err(Failure::Refused(error))) => Err(error),
            Some(Err(Failure::Broken(error))) => panic!("no fault, and yet {error}"),
            None => Err(Error::NotReady),
        }
    }

    /// How far a member's own entries are here.
    pub(super) fn held(&self, at: usize, of: usize) -> u64 {
        let origin = self.world.actors[of].replica.as_ref().map(|it| it.writer().origin());
        let holder = self.world.actors[at].replica.as_ref();
        origin.zip(holder).map_or(0, |(origin, holder)| holder.writer().head(origin))
    }

    /// A client wants to read somewhere what a majority holds. Answers whether it has to wait.
    pub(super) fn begin_read(&mut self, number: usize, id: u64) -> bool {
        let waits = self.world.with(number, |full, micros| {
            full.with(micros, |replica, now| {
                replica.begin_read(id, now.monotonic_millis + 5000, now).expect("no fault")
            })
        });
        waits.unwrap_or(false)
    }

    /// A client deletes a key somewhere.
    pub(super) fn delete(&mut self, number: usize, key: &Bytes) {
        _ = self.try_delete(number, key);
    }

    /// A client deletes a key somewhere. Answers whether that was taken.
    pub(super) fn try_delete(&mut self, number: usize, key: &Bytes) -> Result<(), Error> {
        let range = KeyRange::single(key.clone());
        self.try_command(number, Command::DeleteRange(DeleteRange { range, prev_kv: false }))
    }

    /// All members forget what they may.
    pub(super) fn compact_and_sweep(&mut self) {
        self.up().into_iter().for_each(|number| self.compact_and_sweep_at(number));
    }

    /// A member forgets what it may.
    pub(super) fn compact_and_sweep_at(&mut self, number: usize) {
        self.world.with(number, |full, micros| {
            let revision = full.replica.as_ref().map(|it| it.writer().mvcc().revision());
            let revision = revision.map_or(0, |revision| revision.0.cast_signed());
            full.execute(micros, Command::Compact { revision });
        });
        self.run(5 * MILLI);
        self.sweep_at(number);
    }

    /// A disk loses the newest version of a key, without a word. Answers whether it was there.
    pub(super) fn lose_row(&mut self, number: usize, key: &[u8]) -> bool {
        self.crash(number);
        let full = &self.world.actors[number];
        let store = Store::Memory(full.disk.clone());
        let rows = store.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        let rows: Vec<_> = rows.map(|row| row.expect("no fault")).collect();
        let is_put = |place: &Bytes, value: &Bytes| {
            let place = Place::decode(place, 0).expect("the log is sound");
            let row = Row::decode(place, value.clone()).expect("the log is sound");
            matches!(row.op, Op::Put(kv) if kv.key == key)
        };
        let newest = rows.into_iter().rev().find(|(place, value)| is_put(place, value));
        let was_there = newest.is_some();
        if let Some((place, _)) = newest {
            let mut batch = Batch::default();
            batch.delete(Space::Log, place);
            store.commit(batch, Durability::Fsync).expect("no fault");
        }
        self.witnesses.remove(&number);
        self.start(number);
        was_there
    }

    /// Puts that scrubs have found missing elsewhere.
    pub(super) fn differences(&self) -> u64 {
        let gossips = self.world.actors.iter().filter_map(|full| full.replica.as_ref()?.gossip());
        gossips.map(|gossip| gossip.counts().differences).sum()
    }

    /// State merges that have ended.
    pub(super) fn merges(&self) -> u64 {
        let gossips = self.world.actors.iter().filter_map(|full| full.replica.as_ref()?.gossip());
        gossips.map(|gossip| gossip.counts().merges).sum()
    }

    /// A member removes from its log what it may.
    pub(super) fn sweep(&mut self) {
        let up = self.up();
        let Some(number) = self.dice.pick(&up).copied() else { return };
        self.sweep_at(number);
    }

    /// A member removes from its log what it may, even if it is hardly worth it: little of many keys, say.
    pub(super) fn sweep_at(&mut self, number: usize) {
        self.world.with(number, |full, micros| {
            full.with(micros, |replica, _| {
                while replica.writer().can_reclaim() {
                    replica.writer_mut().reclaim();
                }
                let sweep = replica.writer_mut().begin_sweep_anyhow().expect("no fault");
                if let Some(sweep) = sweep {
                    let mvcc = Arc::clone(replica.writer().mvcc());
                    sweep.run(&mvcc).expect("no fault");
                    replica.writer_mut().end_sweep(&sweep);
                }
            })
        });
    }
}
