//! A whole member as a state machine: the engine, and the gossip that feeds it and is fed by it.
//!
//! ```text
//!   commands ──▶ Writer ──▶ commit ──▶ replies, events
//!                  ▲           │
//!                apply     committed
//!                  │           ▼
//!   messages ──▶ Gossip ──▶ effects: messages to peers, reads of the log
//! ```
//!
//! A remote entry goes through the same writer, and into the same batches, as the command of a client. The node drives
//! it with threads, sockets and clocks; the simulator with virtual ones.
//!
//! A store that never had a peer has no gossip, and pays nothing for it.

mod clock;
mod dead;
mod doubt;
mod removed;
mod strays;
mod tags;
mod take_over;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::command::{Command, CommandReply, Reply};
use super::conflicts::Conflicts;
use super::directory::Directory;
use super::former::LostWrite;
use super::lease_owner::Duty;
use super::{Conflict, Failure, Options, Outcome, RecordChange, RecordWrite, Writer};
use crate::error::StoreError;
use crate::replication::entry::Segment;
use crate::replication::gossip::{self, Input, Output};
use crate::replication::heads::mix;
use crate::replication::liveness::{self, Liveness, State};
use crate::replication::message::{CatchUp, Compare, Head, Message, Span, TracedEntry};
use crate::replication::settled::Frontier;
use crate::replication::{Dice, Gossip};
use crate::storage::Store;
use crate::storage::schema::member::{self, MemberRecord};
use crate::storage::schema::{Identity, Table};
use crate::time::{Now, Timestamp};
use crate::types::{ClusterId, LeaseExpiry, MemberId, Origin, TraceContext};
use clock::ClockWatch;
pub use clock::{ClockFacts, ClockNews, ClockOptions};
use dead::Dead;
use doubt::Doubt;
use removed::Removal;
use take_over::{End, TakeOver};

/// Peers that are kept in touch with before their records have come.
const ACQUAINTANCES_MAX: usize = 1024;

/// What the owner of a replica has to do.
#[derive(Debug)]
pub enum Effect {
    /// Send a message. It may get lost.
    Send(MemberId, Message),
    /// Read these entries from the log, on another thread, and send them; then call [`Replica::loaded`].
    Load {
        /// To whom.
        to: MemberId,
        /// Behind which heads.
        wants: Vec<Head>,
        /// How much, in bytes, give or take an entry.
        bytes_max: u64,
    },
    /// Read a part of the data, likewise.
    LoadCatchUp(MemberId, CatchUp),
    /// Read our puts in these ranges, on another thread; then call [`Replica::asking`] with what is to be asked of the peer.
    LoadCompare {
        /// To whom.
        to: MemberId,
        /// Which ranges.
        spans: Vec<Span>,
        /// Puts up to when.
        upto: Timestamp,
        /// The number of the question.
        number: u64,
    },
    /// Answer such a question, as [`Self::Load`].
    AnswerCompare(MemberId, Compare),
    /// A peer holds our entries up to this seq, durably.
    Acknowledged(MemberId, u64),
    /// A read that waited for a majority may go on.
    Passed(u64),
    /// Who the members are, or where they are, has changed.
    Members,
    /// Who seems alive has changed.
    Live,
    /// A scrub has found that a peer lacks these keys; they are written anew.
    Differ(MemberId, Vec<Bytes>),
    /// A peer has answered a comparison with what it was not asked about, or sent data that cannot be.
    Misanswered(MemberId),
    /// The data has come: clients may be served.
    Ready,
    /// Something has become of the clock.
    Clock(ClockNews),
    /// A member was dead for too long, and is removed.
    RemovedDead(MemberId),
    /// These writes of who owned the store before are lost. To be kept before the next commit.
    Lost(Vec<LostWrite>),
    /// This member was removed, which is on disk: it has to end. Whoever opens the store next is somebody else.
    Removed {
        /// Whether it was in touch with the others then. If not, it may have been taken for dead.
        was_live: bool,
    },
}

/// How a member takes part in a cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Who it is, for the others.
    pub record: MemberRecord,
    /// The settings of the gossip.
    pub gossip: gossip::Options,
    /// The settings of the failure detector.
    pub liveness: liveness::Options,
    /// The settings of the clock.
    pub clock: ClockOptions,
    /// After how long a dead member is removed, if ever.
    pub remove_dead_after_millis: Option<u64>,
    /// Peer addresses of those who start the cluster together with it, its own left out; one list per member.
    pub initial: Vec<Vec<String>>,
    /// Whether it is to join a cluster: until it is admitted, it takes no requests.
    pub joins: bool,
    /// Whether it was told so while it ran. Where a store has left a cluster only that counts, and not its settings.
    pub is_called: bool,
    /// Whether it removes all others when it is opened, and goes on alone.
    pub forgets_others: bool,
    /// Whom it asks before it ends a lease.
    pub lease_expiry: LeaseExpiry,
    /// Everything that is left to chance follows from it.
    pub seed: u64,
}

/// A promise on its way to the disk.
#[derive(Clone, Copy, Debug)]
enum Pledge {
    None,
    /// It is to be made with the next batch.
    Wanted {
        complete: Timestamp,
    },
    /// It is in the open batch.
    Open {
        time: Timestamp,
        seq: u64,
    },
}

/// What a member learns when it is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The cluster that it belongs to from now on.
    pub cluster: ClusterId,
    /// Everything that it writes has to come after this.
    pub time: Timestamp,
    /// The members, itself included.
    pub members: Vec<(MemberId, MemberRecord)>,
}

/// Who was admitted takes so long at most to be heard of. Until then it is not dead.
const NEWCOMER_MILLIS: u64 = 5000;

/// The place that was reserved for a member at these addresses, before it was started.
pub fn reserved<'a>(
    members: &'a BTreeMap<MemberId, MemberRecord>,
    peer_urls: &[String],
) -> Option<(MemberId, &'a MemberRecord)> {
    let mut places = members.iter().filter(|(_, it)| !it.is_started() && !it.initial);
    places.find(|(_, it)| shares(&it.peer_urls, peer_urls)).map(|(id, record)| (*id, record))
}

/// Why a member is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was removed: it has to come back as somebody else.
    Removed,
    /// A living member has its name or its address.
    Taken,
}

/// What there is only in a cluster.
struct Cluster {
    gossip: Gossip,
    directory: Directory,
    liveness: Liveness,
    /// Peers met, or named by the contact, whose records have not come yet.
    acquaintances: BTreeSet<MemberId>,
    /// Who seems alive, in order; those too that are not members yet.
    live: Vec<MemberId>,
    clock: ClockWatch,
    doubt: Doubt,
    dead: Dead,
    removal: Removal,
    pledge: Pledge,
    /// Where the segments in the open batch end.
    applied: Vec<Head>,
    /// The data of a peer on its way into the store.
    take_over: TakeOver,
    /// The end of a catch-up is in the open batch: up to when this member is complete then.
    finishing: Option<Timestamp>,
    /// Whether the data that was there when this member joined has come.
    caught_up: bool,
    /// Whether the others know of this run: it promises nothing before.
    announced: bool,
    /// Whether this turns out to be an old copy of the member's disk: it needs another tag.
    is_old_copy: bool,
    collected: Timestamp,
    conflicts: Conflicts,
    /// When the entries of others in the last commit had been accepted.
    arrived: Vec<Timestamp>,
    /// The last own entry that peers may have got.
    offered: u64,
}

/// A member.
pub struct Replica {
    writer: Writer,
    options: ClusterOptions,
    dice: Dice,
    cluster: Option<Box<Cluster>>,
    effects: Vec<Effect>,
    /// What it remembers of leases from look to look.
    pub(super) duty: Duty,
}

impl Replica {
    /// Opens a store, and takes up its place in the cluster if it has one, or if it founds one together with others.
    pub fn open(
        store: Store,
        writer: &Options,
        mut options: ClusterOptions,
        now: Now,
    ) -> Result<Self, StoreError> {
        if options.is_called {
            (options.initial, options.joins) = (Vec::new(), true);
        }
        let mut dice = tags::dice(writer, &options);
        let writer = Writer::open(store, &tags::with_tag(writer, &options, &mut dice), now)?;
        if writer.has_parted() && !options.is_called {
            (options.initial, options.joins) = (Vec::new(), false);
        }
        let duty = Duty::new(options.lease_expiry);
        let (cluster, effects) = (None, Vec::new());
        let mut replica = Self { writer, options, dice, cluster, effects, duty };
        replica.start_clock(now);
        if replica.writer.is_peered() {
            // Of those that are to be removed none is waited for.
            let forgets_others = replica.options.forgets_others;
            replica.enter(Timestamp::default(), !forgets_others, now)?;
            if forgets_others {
                replica.forget_others(now)?;
            }
        } else if !replica.options.initial.is_empty() {
            replica.found(now)?;
        }
        Ok(replica)
    }

    /// Founds a cluster together with others who do the same.
    fn found(&mut self, now: Now) -> Result<(), StoreError> {
        self.writer.set_replicating(true);
        self.writer.set_peered();
        let Identity { member, cluster } = self.writer.identity();
        let joined = self.writer.time();
        let tag = self.writer.tag();
        let own = MemberRecord { initial: true, joined, tag, ..self.options.record.clone() };
        let mut writes = self.announcement();
        writes.push(put(Table::Member, MemberRecord::key(member), own.value()));
        for peer_urls in &self.options.initial {
            let peer_urls = peer_urls.clone();
            let id = reserved_id(cluster, &peer_urls);
            let record = MemberRecord { initial: true, peer_urls, ..MemberRecord::default() };
            writes.push(put(Table::Member, MemberRecord::key(id), record.value()));
        }
        self.write(writes, now)?;
        self.enter(Timestamp::default(), false, now)
    }

    /// Does the same later: for a member that was opened to join, and finds nobody to join, but others that are as new.
    pub fn found_as(
        &mut self,
        cluster: ClusterId,
        record: MemberRecord,
        others: Vec<Vec<String>>,
        now: Now,
    ) -> Result<(), StoreError> {
        // Somebody may have let it in meanwhile.
        if self.cluster.is_some() {
            return Ok(());
        }
        self.writer.set_cluster(cluster);
        (self.options.record, self.options.initial) = (record, others);
        self.options.joins = false;
        self.found(now)
    }

    /// Writes internal records, as an entry.
    pub(super) fn write(&mut self, writes: Vec<RecordWrite>, now: Now) -> Result<(), StoreError> {
        match self.writer.write_records(writes, now) {
            Ok(_) => Ok(()),
            Err(Failure::Broken(error)) => Err(error),
            Err(Failure::Refused(error)) => unreachable!("records are not refused: {error}"),
        }
    }

    /// What the others have to know of a new run, before anything else that it says.
    fn announcement(&self) -> Vec<RecordWrite> {
        let origin = self.writer.origin();
        let Origin { member, run } = origin;
        let mut writes =
            vec![put(Table::Run, MemberRecord::key(member), member::number_value(run))];
        let former = self.writer.heads().into_iter();
        for head in former.filter(|head| head.origin.member == member && head.origin != origin) {
            let key = member::seal_key(head.origin, member);
            writes.push(put(Table::Seal, key, member::number_value(head.seq)));
        }
        writes
    }

    /// Takes part in the gossip from now on, or again.
    fn enter(&mut self, complete: Timestamp, goes_on: bool, now: Now) -> Result<(), StoreError> {
        self.writer.set_replicating(true);
        let me = self.writer.origin();
        let complete = complete.max(self.writer.complete());
        let frontier = Frontier::new(me.member, complete, self.writer.settled());
        let heads = self.writer.heads();
        let options = self.options.gossip.clone();
        let seed = self.options.seed;
        let mut gossip = Gossip::new(me, options, seed, &heads, frontier, now);
        if self.writer.has_parted() && self.writer.has_strays() {
            gossip.note_shared_data();
        }
        self.cluster = Some(Box::new(Cluster {
            gossip,
            directory: Directory::default(),
            liveness: Liveness::new(me, self.options.liveness.clone(), mix(seed), now),
            acquaintances: BTreeSet::new(),
            live: Vec::new(),
            clock: ClockWatch::new(self.options.clock, goes_on, now),
            doubt: Doubt::default(),
            dead: Dead::default(),
            removal: Removal::default(),
            pledge: Pledge::None,
            applied: Vec::new(),
            take_over: TakeOver::None,
            finishing: None,
            caught_up: false,
            announced: false,
            is_old_copy: false,
            collected: Timestamp::default(),
            conflicts: Conflicts::new(me.member),
            arrived: Vec::new(),
            offered: 0,
        }));
        let collected = self.writer.collected();
        self.show_revision();
        self.step(Input::Collected(collected), now)?;
        self.read_directory(now)?;
        self.check_tag(now)
    }

    /// Reads anew who the members are.
    fn read_directory(&mut self, now: Now) -> Result<(), StoreError> {
        let tables = [Table::Member, Table::Run, Table::Seal];
        let standings = tables.into_iter().flat_map(|table| self.writer.standings(table));
        let directory = Directory::read(standings)?;
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let me = self.writer.identity().member;
        let is_member = directory.members.contains_key(&me);
        cluster.conflicts.keep_members(|peer| directory.members.contains_key(&peer));
        cluster.directory = directory;
        if cluster.directory.membership.removed.contains_key(&me) {
            self.note_removal(now);
        }
        self.end_doubt_alone();
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let membership = Arc::clone(&cluster.directory.membership);
        let is_sure = !cluster.clock.is_unsure();
        let announces = is_member && is_sure && !std::mem::replace(&mut cluster.announced, true);
        let is_known =
            membership.runs.get(&me).is_some_and(|(run, _)| *run == self.writer.origin().run);
        if announces && !is_known {
            let announcement = self.announcement();
            self.write(announcement, now)?;
        }
        self.resolve_awaited(now)?;
        self.effects.push(Effect::Members);
        self.step(Input::Membership(membership), now)?;
        self.watch_over_members(now)
    }

    /// The record under which a founder was awaited goes when it has come: it would show again, and hold everything back,
    /// when that founder is removed. It does that itself, after its own record, so that nobody sees it gone and not come.
    fn resolve_awaited(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let Directory { members, arrived, .. } = &cluster.directory;
        let Some(own) = members.get(&self.writer.identity().member) else { return Ok(()) };
        let is_mine = |record: &MemberRecord| shares(&record.peer_urls, &own.peer_urls);
        if cluster.clock.is_unsure() {
            return Ok(());
        }
        let mine = arrived.iter().filter(|(_, record)| is_mine(record));
        let writes: Vec<_> =
            mine.map(|(id, _)| removal(Table::Member, MemberRecord::key(*id))).collect();
        if writes.is_empty() { Ok(()) } else { self.write(writes, now) }
    }

    /// Tells the failure detector whom to watch.
    fn watch_over_members(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let Directory { members, membership, .. } = &cluster.directory;
        cluster
            .acquaintances
            .retain(|peer| !members.contains_key(peer) && !membership.removed.contains_key(peer));
        let started = members.iter().filter(|(_, record)| record.is_started());
        let watched =
            started.map(|(member, _)| *member).chain(cluster.acquaintances.iter().copied());
        let watched: Vec<_> = watched.collect();
        let outputs = cluster.liveness.set_members(&watched, now);
        self.follow_liveness(outputs, now)
    }

    /// A peer has shown up that belongs to this cluster: its record may come later.
    pub fn meet(&mut self, peer: MemberId, now: Now) -> Result<(), StoreError> {
        let me = self.writer.identity().member;
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let Directory { members, membership, .. } = &cluster.directory;
        let is_known = members.get(&peer).is_some_and(MemberRecord::is_started)
            || membership.removed.contains_key(&peer)
            || peer == me;
        let is_full = cluster.acquaintances.len() >= ACQUAINTANCES_MAX;
        if is_known || is_full || !cluster.acquaintances.insert(peer) {
            return Ok(());
        }
        self.watch_over_members(now)?;
        self.hear(peer, now)
    }

    /// Whatever comes from a peer is a sign of life.
    fn hear(&mut self, from: MemberId, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        cluster.removal.heard(now);
        let outputs = cluster.liveness.heard_from(from, now);
        self.follow_liveness(outputs, now)
    }

    fn follow_liveness(
        &mut self,
        outputs: Vec<liveness::Output>,
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let mut has_changed = false;
        for output in outputs {
            match output {
                liveness::Output::Send(to, bytes) => {
                    self.effects.push(Effect::Send(to, Message::Swim(bytes)));
                }
                liveness::Output::Alive(_) => has_changed = true,
                liveness::Output::Dead(peer) => {
                    has_changed = true;
                    cluster.acquaintances.remove(&peer);
                }
            }
        }
        if !has_changed {
            return Ok(());
        }
        let live = cluster.liveness.live();
        cluster.live.clone_from(&live);
        self.effects.push(Effect::Live);
        self.hurry_clock(now);
        self.step(Input::Live(live), now)
    }

    /// Which peers seem alive, in order; those too whose records have not come yet.
    pub fn live(&self) -> &[MemberId] {
        self.cluster.as_ref().map_or(&[], |cluster| &cluster.live)
    }

    /// What is known of the health of a member.
    pub fn state(&self, member: MemberId) -> State {
        let cluster = self.cluster.as_ref();
        cluster.map_or(State::Alive, |cluster| cluster.liveness.state(member))
    }

    /// The engine.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// The engine, for what has nothing to do with the cluster.
    pub fn writer_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Who the members are; `None` for a member that never had a peer.
    pub fn directory(&self) -> Option<&Directory> {
        self.cluster.as_ref().map(|cluster| &cluster.directory)
    }

    /// The gossip, if this member has or had peers.
    pub fn gossip(&self) -> Option<&Gossip> {
        self.cluster.as_ref().map(|cluster| &cluster.gossip)
    }

    /// Writes that were lost to others in this run; `None` for a member that never had a peer.
    pub fn conflicts(&self) -> Option<&Conflicts> {
        self.cluster.as_ref().map(|cluster| &cluster.conflicts)
    }

    /// Who seems alive, if this member has or had peers.
    pub fn liveness(&self) -> Option<&Liveness> {
        self.cluster.as_ref().map(|cluster| &cluster.liveness)
    }

    /// When the entries of others that the last commit made durable had been accepted.
    pub fn arrived(&self) -> &[Timestamp] {
        self.cluster.as_ref().map_or(&[], |cluster| &cluster.arrived)
    }

    /// Whether clients may be served: a member that has just joined has to get the data first.
    pub fn is_ready(&self) -> bool {
        self.has_caught_up() && !self.writer.has_strays()
    }

    /// Whether the data has come that was there when this member joined.
    fn has_caught_up(&self) -> bool {
        let Some(cluster) = &self.cluster else { return !self.options.joins };
        let Some(own) = cluster.directory.members.get(&self.writer.identity().member) else {
            return false;
        };
        cluster.caught_up || own.initial || cluster.gossip.frontier().complete() >= own.joined
    }

    /// Admits a member, in the open batch; the answer may leave after the commit. Asked again, it answers the same.
    pub fn admit(
        &mut self,
        member: MemberId,
        record: &MemberRecord,
        now: Now,
    ) -> Result<Result<Admission, Refusal>, StoreError> {
        if self.cluster.is_none() {
            self.become_first(now)?;
        }
        let cluster = self.cluster.as_ref().expect("it was just entered");
        let Directory { members, membership, .. } = &cluster.directory;
        if membership.removed.contains_key(&member) {
            return Ok(Err(Refusal::Removed));
        }
        // Who was admitted a moment ago has not been heard of yet, or by another member.
        let clock_millis = self.writer.clock_millis(now);
        let is_new =
            |it: &MemberRecord| clock_millis.abs_diff(it.joined.millis()) < NEWCOMER_MILLIS;
        let is_there = |id: &MemberId, other: &MemberRecord| {
            cluster.live.binary_search(id).is_ok() || is_new(other)
        };
        // Two processes may come as one member, if two others have told them the id of the place that was reserved for it.
        let is_another = |known: &&MemberRecord| {
            known.is_started()
                && is_there(&member, known)
                && (&known.name, &known.client_urls) != (&record.name, &record.client_urls)
        };
        if members.get(&member).filter(is_another).is_some() {
            return Ok(Err(Refusal::Taken));
        }
        let mut writes = Vec::new();
        let mut record = MemberRecord { initial: false, ..record.clone() };
        if !members.get(&member).is_some_and(MemberRecord::is_started) {
            let is_rival = |other: &MemberRecord| {
                other.is_started()
                    && (other.name == record.name || shares(&other.peer_urls, &record.peer_urls))
            };
            // Who was added as a learner comes as one, whatever it thinks.
            record.learner |=
                reserved(members, &record.peer_urls).is_some_and(|(_, it)| it.learner);
            for (rival, other) in members.iter().filter(|(id, _)| **id != member) {
                if !other.is_started() && shares(&other.peer_urls, &record.peer_urls) {
                    writes.push(removal(Table::Member, MemberRecord::key(*rival)));
                } else if is_rival(other) {
                    let seems_dead = !is_there(rival, other);
                    let has_majority = cluster.live.len() + 1 >= cluster.directory.majority();
                    if !(seems_dead && has_majority) || *rival == self.writer.identity().member {
                        return Ok(Err(Refusal::Taken));
                    }
                    writes.extend(self.removal_of(*rival));
                }
            }
            record.joined = self.writer.time();
            writes.push(put(Table::Member, MemberRecord::key(member), record.value()));
            self.write(writes, now)?;
        }
        let known = self.directory().map(|directory| directory.members.clone());
        let mut members = known.unwrap_or_default();
        members.insert(member, record);
        Ok(Ok(Admission {
            cluster: self.writer.identity().cluster,
            time: self.writer.time(),
            members: members.into_iter().collect(),
        }))
    }

    /// This member was to join others, and there are none: it is the first, unless it was admitted meanwhile.
    pub fn stand_alone(&mut self) {
        if self.cluster.is_none() {
            self.options.joins = false;
            self.effects.push(Effect::Ready);
        }
    }

    /// A store alone gets its first peer.
    fn become_first(&mut self, now: Now) -> Result<(), StoreError> {
        // Alone it holds all that there is.
        let complete = self.writer.time();
        self.writer.set_replicating(true);
        self.writer.set_peered();
        let me = self.writer.identity().member;
        let own = MemberRecord { tag: self.writer.tag(), ..self.options.record.clone() };
        let mut writes = self.announcement();
        writes.push(put(Table::Member, MemberRecord::key(me), own.value()));
        self.write(writes, now)?;
        self.enter(complete, false, now)
    }

    /// The records that remove a member, and say how far its runs are held here.
    fn removal_of(&self, member: MemberId) -> Vec<RecordWrite> {
        let me = self.writer.identity().member;
        let mut writes = vec![removal(Table::Member, MemberRecord::key(member))];
        for head in self.writer.heads().into_iter().filter(|head| head.origin.member == member) {
            let key = member::seal_key(head.origin, me);
            writes.push(put(Table::Seal, key, member::number_value(head.seq)));
        }
        writes
    }

    /// Takes note of having been admitted by `contact`, and asks it for the data.
    pub fn adopt(
        &mut self,
        admission: &Admission,
        contact: MemberId,
        now: Now,
    ) -> Result<(), StoreError> {
        self.writer.set_cluster(admission.cluster);
        self.writer.set_aside();
        self.writer.set_peered();
        self.writer.observe(admission.time);
        self.avoid_tags(&admission.members)?;
        if self.cluster.is_none() {
            self.enter(Timestamp::default(), false, now)?;
        }
        let known = admission.members.iter().map(|(member, _)| *member);
        for peer in known.chain([contact]) {
            self.meet(peer, now)?;
        }
        self.step(Input::CatchUpFrom(contact), now)
    }

    /// Removes all other members, those too that never came: what they have not sent so far does not count any more.
    fn forget_others(&mut self, now: Now) -> Result<(), StoreError> {
        let me = self.writer.identity().member;
        let Some(directory) = self.directory() else { return Ok(()) };
        let Directory { members, arrived, .. } = directory;
        let others: Vec<_> = members.keys().chain(arrived.keys()).copied().collect();
        // Nobody is left who could promote it.
        let learner = members.get(&me).filter(|own| own.learner).cloned();
        let others = others.into_iter().filter(|id| *id != me);
        let mut writes: Vec<_> = others.flat_map(|id| self.removal_of(id)).collect();
        if let Some(own) = learner {
            let own = MemberRecord { learner: false, ..own };
            writes.push(put(Table::Member, MemberRecord::key(me), own.value()));
        }
        if writes.is_empty() { Ok(()) } else { self.write(writes, now) }
    }

    /// Changes the records of members, by one entry in the open batch; `None` removes a member.
    pub fn change_members(
        &mut self,
        changes: Vec<(MemberId, Option<MemberRecord>)>,
        now: Now,
    ) -> Result<(), StoreError> {
        if self.cluster.is_none() {
            self.become_first(now)?;
        }
        let mut writes = Vec::new();
        for (member, record) in changes {
            match record {
                Some(record) => {
                    writes.push(put(Table::Member, MemberRecord::key(member), record.value()));
                }
                None => writes.extend(self.removal_of(member)),
            }
        }
        self.write(writes, now)
    }

    /// Takes a message of a peer.
    pub fn receive(
        &mut self,
        from: MemberId,
        message: Message,
        now: Now,
    ) -> Result<(), StoreError> {
        self.meet(from, now)?;
        if !matches!(message, Message::Swim(_)) {
            self.hear(from, now)?;
        }
        let message = self.receive_clock(from, message, now);
        self.end_doubt(now)?;
        match message.and_then(|message| self.withhold_strays(from, message)) {
            Some(message) => self.step(Input::Receive(from, message), now),
            None => Ok(()),
        }
    }

    /// A read wants to see all that a majority of the members holds now: [`Effect::Passed`] says when it does. Answers
    /// whether it has to wait at all.
    pub fn begin_read(
        &mut self,
        id: u64,
        deadline_millis: u64,
        now: Now,
    ) -> Result<bool, StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(false) };
        let me = self.writer.identity().member;
        let voters: Vec<_> = cluster.directory.voters().filter(|member| *member != me).collect();
        let counts_itself = cluster.directory.voters().any(|member| member == me);
        let needed = cluster.directory.majority() - usize::from(counts_itself);
        if needed == 0 {
            return Ok(false);
        }
        self.step(Input::Barrier { id, voters, needed, of: None, deadline_millis }, now)?;
        Ok(true)
    }

    /// Entries that were asked for by [`Effect::Load`] or [`Effect::LoadCatchUp`] have been sent.
    pub fn loaded(&mut self, to: MemberId, now: Now) -> Result<(), StoreError> {
        self.step(Input::Loaded(to), now)
    }

    /// What [`Effect::LoadCompare`] is about has been read.
    pub fn asking(&mut self, to: MemberId, compare: Compare, now: Now) -> Result<(), StoreError> {
        self.step(Input::Asking(to, compare), now)
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Now) -> Result<(), StoreError> {
        let collected = self.writer.collected();
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        if collected > cluster.collected {
            cluster.collected = collected;
            self.step(Input::Collected(collected), now)?;
        }
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        if cluster.liveness.wake_at() <= now.monotonic_millis {
            let outputs = cluster.liveness.tick(now);
            self.follow_liveness(outputs, now)?;
        }
        self.tick_clock(now);
        self.end_doubt(now)?;
        self.write_taken_over(now)?;
        self.write_strays(now)?;
        self.remove_dead(now)?;
        self.step(Input::Tick, now)
    }

    /// When [`Self::tick`] is due, in monotonic milliseconds.
    pub fn wake_at(&self) -> u64 {
        let cluster = self.cluster.as_ref();
        cluster.map_or(u64::MAX, |cluster| {
            let dead = cluster.dead.wake_at(self.options.remove_dead_after_millis.is_some());
            let doubt = self.doubt_wake_at();
            let timers = [cluster.liveness.wake_at(), cluster.clock.wake_at(), doubt, dead];
            timers.into_iter().fold(cluster.gossip.wake_at(), u64::min)
        })
    }

    /// Evaluates a command of a client.
    pub fn execute(&mut self, command: Command, now: Now) -> Result<Reply<CommandReply>, Failure> {
        self.check_fence(&command)?;
        self.writer.execute(command, now)
    }

    /// What is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether a commit would do anything.
    pub fn has_open_batch(&self) -> bool {
        let is_waiting = |cluster: &Cluster| {
            cluster.is_old_copy && !cluster.clock.is_unsure()
                || matches!(cluster.pledge, Pledge::Wanted { .. })
        };
        self.writer.has_open_batch() || self.cluster.as_deref().is_some_and(is_waiting)
    }

    /// Lets peers have the own entries of the open batch, so that they make them durable while this member does.
    pub fn offer(&mut self, now: Now) -> Result<(), StoreError> {
        let cluster = self.cluster.as_mut().filter(|cluster| cluster.gossip.takes_offers());
        let Some(cluster) = cluster else { return Ok(()) };
        let (me, offered) = (self.writer.origin(), cluster.offered);
        let open = self.writer.open_entries().iter();
        let own = open.filter(|(origin, entry)| *origin == me && entry.seq > offered);
        let own: Vec<_> = own.map(|(_, entry)| Arc::clone(entry)).collect();
        let Some(last) = own.last() else { return Ok(()) };
        cluster.offered = last.seq;
        self.step(Input::Offered(own), now)
    }

    /// An entry of this run is traced: whoever gets it soon is told.
    pub fn trace(&mut self, seq: u64, context: TraceContext) {
        let origin = self.writer.origin();
        if let Some(cluster) = &mut self.cluster {
            cluster.gossip.trace(TracedEntry { origin, seq, context });
        }
    }

    /// Whether anybody waits for own entries to be acknowledged by others.
    pub fn set_awaited(&mut self, on: bool) {
        if let Some(cluster) = &mut self.cluster {
            cluster.gossip.set_awaited(on);
        }
    }

    /// Makes everything so far durable and visible, and tells the peers. After an error the member must stop.
    pub fn commit(&mut self, now: Now) -> Result<(), StoreError> {
        if let Some(cluster) = &mut self.cluster
            && let Pledge::Wanted { complete } = cluster.pledge
        {
            // Everything accepted so far becomes durable with it, so nothing is in between.
            let (time, seq) = self.writer.pledge(complete, now);
            cluster.pledge = Pledge::Open { time, seq };
        }
        self.writer.commit()?;
        self.tell_removal();
        self.show_revision();
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let entries = self.writer.take_committed();
        let me = self.writer.identity().member;
        let others = entries.iter().filter(|(origin, _)| origin.member != me);
        cluster.arrived.clear();
        cluster.arrived.extend(others.map(|(_, entry)| entry.time));
        let records = self.writer.take_changed_records();
        let pledge = match cluster.pledge {
            Pledge::Open { time, seq } => {
                cluster.pledge = Pledge::None;
                Some((time, seq))
            }
            _ => None,
        };
        let finished = cluster.finishing.take();
        let heads = std::mem::take(&mut cluster.applied);
        if !entries.is_empty() || !heads.is_empty() {
            self.step(Input::Committed { entries, heads }, now)?;
        }
        let is_about_members = |change: &RecordChange| {
            matches!(change.table, Table::Member | Table::Run | Table::Seal)
        };
        let has_news = records.iter().any(is_about_members);
        if has_news {
            self.read_directory(now)?;
        }
        if let Some(complete) = finished {
            if let Some(cluster) = &mut self.cluster {
                cluster.caught_up = true;
            }
            self.effects.push(Effect::Ready);
            self.step(Input::CaughtUp(complete), now)?;
        }
        if let Some((time, seq)) = pledge {
            let is_log_long = self.writer.is_log_long();
            self.step(Input::Promised { time, seq, is_log_long }, now)?;
            if is_log_long && let Some(cluster) = &self.cluster {
                self.writer.set_held(cluster.gossip.frontier().held().collect());
            }
        }
        if has_news || self.cluster.as_ref().is_some_and(|cluster| cluster.is_old_copy) {
            self.check_tag(now)?;
        }
        self.write_taken_over(now)?;
        self.write_strays(now)
    }

    /// Lets the gossip take one input, and does what it wants done to the data.
    fn step(&mut self, input: Input, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        for output in cluster.gossip.step(now, input) {
            self.carry_out(output, now)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output, now: Now) -> Result<(), StoreError> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        match output {
            Output::Send(to, message) => self.effects.push(Effect::Send(to, message)),
            Output::Load { to, wants, bytes_max } => {
                self.effects.push(Effect::Load { to, wants, bytes_max });
            }
            Output::LoadCatchUp(to, request) => {
                self.effects.push(Effect::LoadCatchUp(to, request));
            }
            Output::Acknowledged(peer, seq) => {
                self.effects.push(Effect::Acknowledged(peer, seq));
            }
            Output::Apply(from, segment) => {
                self.apply(from, segment, now)?;
            }
            Output::ApplyCatchUp(entries) => self.take_part(&entries, now)?,
            Output::AbandonCatchUp => self.abandon_take_over(),
            Output::Observe(time) => self.writer.observe(time),
            Output::FinishCatchUp { heads, collected, floors } => {
                cluster.is_old_copy |= tags::is_old_copy(&self.writer, &heads);
                self.finish_take_over(End { heads, collected, floors }, now)?;
            }
            Output::Complete(complete) => {
                self.writer.set_complete(complete);
                cluster.finishing = Some(complete);
            }
            Output::Compare { to, spans, upto, number } => {
                self.effects.push(Effect::LoadCompare { to, spans, upto, number });
            }
            Output::AnswerCompare(to, compare) => {
                self.effects.push(Effect::AnswerCompare(to, compare));
            }
            // What comes this late is not to be held up by a clock that nobody asks for.
            Output::Drop(dots) => {
                self.end_doubt_now(now)?;
                self.writer.drop_puts(&dots, now)?;
            }
            Output::Differ(peer, dots) => {
                self.end_doubt_now(now)?;
                self.writer.rewrite_puts(&dots, now)?;
                let keys = dots.into_iter().map(|dot| dot.key).collect();
                self.effects.push(Effect::Differ(peer, keys));
            }
            Output::Misanswered(peer) => self.effects.push(Effect::Misanswered(peer)),
            // The others have to know of this run before it promises anything: they would take it for the former one's word.
            Output::Promise { .. } if !cluster.announced => {}
            Output::Promise { complete } => cluster.pledge = Pledge::Wanted { complete },
            // It is found again when the doubt ends.
            Output::Seal(_) if cluster.clock.is_unsure() => {}
            // One that is removed itself reports nothing any more. It would never end: each report is an entry of its own.
            Output::Seal(_) if cluster.removal.is_over() => {}
            Output::Seal(heads) => {
                let me = self.writer.identity().member;
                let writes = heads.into_iter().map(|head| {
                    let key = member::seal_key(head.origin, me);
                    put(Table::Seal, key, member::number_value(head.seq))
                });
                self.write(writes.collect(), now)?;
            }
            Output::Settled(settled) => self.writer.set_settled(settled),
            Output::Passed(id) => {
                if cluster.doubt.answer(id) {
                    self.end_doubt(now)?;
                } else if !self.duty.answer(id) {
                    self.effects.push(Effect::Passed(id));
                }
            }
            Output::OldCopy => cluster.is_old_copy = true,
            Output::Swim(from, bytes) => {
                let outputs = cluster.liveness.receive(&bytes, from, now);
                self.follow_liveness(outputs, now)?;
            }
        }
        Ok(())
    }

    /// Applies what is due of a segment. What is not, or finds no room, has to come again.
    fn apply(&mut self, from: MemberId, segment: Segment, now: Now) -> Result<(), StoreError> {
        let origin = segment.origin;
        let news = Head { origin, seq: segment.through };
        let (due, is_early) = self.due_part(segment, now);
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        cluster.is_old_copy |= tags::is_old_copy(&self.writer, &[news]);
        let mut is_taken = !is_early;
        if let Some(segment) = due {
            let applied = self.writer.apply(&segment, now)?;
            if applied.outcome == Outcome::Taken {
                cluster.applied.push(Head { origin, seq: applied.head });
            } else {
                is_taken = false;
            }
            self.note_conflicts(applied.conflicts, now);
        }
        if is_taken { Ok(()) } else { self.step(Input::NotTaken(from, origin), now) }
    }

    fn note_conflicts(&mut self, conflicts: Vec<Conflict>, now: Now) {
        let Some(cluster) = &mut self.cluster else { return };
        for conflict in &conflicts {
            cluster.conflicts.note(conflict, now.wall_millis);
        }
    }
}

fn put(table: Table, key: Bytes, value: Bytes) -> RecordWrite {
    RecordWrite { table, key, value: Some(value) }
}

fn removal(table: Table, key: Bytes) -> RecordWrite {
    RecordWrite { table, key, value: None }
}

fn shares(ours: &[String], theirs: &[String]) -> bool {
    ours.iter().any(|url| theirs.contains(url))
}

/// The cluster that members found together: the same for all who are given the same token and the same addresses.
pub fn founding_cluster<'a>(
    token: &str,
    peer_urls: impl IntoIterator<Item = &'a String>,
) -> ClusterId {
    let mut urls: Vec<_> = peer_urls.into_iter().map(String::as_str).collect();
    urls.sort_unstable();
    let text = format!("{token} {}", urls.join(","));
    ClusterId(text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte))))
}

/// The id under which a founder is expected that nobody has met yet: the same for all who expect it.
fn reserved_id(cluster: ClusterId, peer_urls: &[String]) -> MemberId {
    let mut urls: Vec<_> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let bytes = urls.join(",");
    let hash = bytes.bytes().fold(cluster.0, |hash, byte| mix(hash ^ u64::from(byte)));
    MemberId(hash)
}
