//! Whole members: the engine on a store in memory that can lose power, and its gossip.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Actor, now_at};
use crate::engine::command::{Command, CommandReply, Reply};
use crate::engine::former::LostWrite;
use crate::engine::lease::KeepAlive;
use crate::engine::mvcc::{Claims, Onward};
use crate::engine::replica::{Admission, ClockNews, ClusterOptions, Effect, Refusal, Replica};
use crate::engine::{Failure, Options};
use crate::replication::message::{Message, Segments};
use crate::storage::schema::Identity;
use crate::storage::schema::member::MemberRecord;
use crate::storage::{Memory, Store};
use crate::time::Now;
use crate::types::{ClusterId, LeaseId, MemberId};

/// How often a member looks at its leases.
const LEASES_MICROS: u64 = 500_000;

/// How a member is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Settings of the engine.
    pub(crate) writer: Options,
    /// Its place in the cluster.
    pub(crate) cluster: ClusterOptions,
    /// How long a commit takes, in microseconds.
    pub(crate) commit_micros: u64,
    /// Its wall clock is so much ahead.
    pub(crate) skew_millis: i64,
    /// Whether its clients wait for other members; `None` at every other member.
    pub(crate) is_awaited: Option<bool>,
}

/// A running member.
pub(crate) struct Full {
    pub(crate) setup: Setup,
    /// What it keeps while it is down.
    pub(crate) disk: Memory,
    /// `None` while it is down.
    pub(crate) replica: Option<Replica>,
    /// It stands still until then: nothing comes in, nothing goes out.
    pub(crate) paused_until: u64,
    /// When the commit under way is done.
    commit_at: Option<u64>,
    sent: Vec<(MemberId, Message)>,
    /// How far each peer holds our entries of this run, as it has said.
    pub(crate) acknowledged: BTreeMap<MemberId, u64>,
    /// Reads that need not wait any more.
    pub(crate) passed: BTreeSet<u64>,
    /// When it looks at its leases next.
    next_leases: u64,
    /// What has become of its clock in this run.
    pub(crate) clock_news: Vec<ClockNews>,
    /// What came while it stood still.
    waiting: Vec<(MemberId, Message)>,
    /// What it was told that its former self has lost.
    pub(super) lost: Vec<LostWrite>,
    /// Whether it was told that it was removed, and whether it was live then.
    pub(super) removed: Option<bool>,
}

impl Full {
    pub(crate) fn new(setup: Setup, micros: u64) -> Self {
        let mut full = Self {
            setup,
            disk: Memory::new(),
            replica: None,
            paused_until: 0,
            commit_at: None,
            sent: Vec::new(),
            acknowledged: BTreeMap::new(),
            passed: BTreeSet::new(),
            next_leases: 0,
            clock_news: Vec::new(),
            waiting: Vec::new(),
            lost: Vec::new(),
            removed: None,
        };
        full.start(micros);
        full
    }

    /// Who it is.
    pub(crate) fn member(&self) -> MemberId {
        self.setup.writer.identity.member
    }

    fn now(&self, micros: u64) -> Now {
        let now = now_at(micros);
        Now { wall_millis: now.wall_millis.saturating_add_signed(self.setup.skew_millis), ..now }
    }

    /// Starts it on what is on its disk.
    pub(crate) fn start(&mut self, micros: u64) {
        self.setup.cluster.seed = self.setup.cluster.seed.wrapping_add(1);
        self.setup.writer.run_entropy = self.setup.cluster.seed;
        let store = Store::Memory(self.disk.clone());
        let (writer, cluster) = (&self.setup.writer, self.setup.cluster.clone());
        let replica = Replica::open(store, writer, cluster, self.now(micros));
        let replica = replica.expect("a store in memory does not fail by itself");
        self.replica = Some(replica);
        self.acknowledged.clear();
        self.next_leases = micros + LEASES_MICROS;
        self.clock_news.clear();
        self.after(micros);
    }

    /// Power is lost: what was not synced is gone.
    pub(crate) fn crash(&mut self) {
        self.disk = self.disk.crash();
        self.replica = None;
        self.commit_at = None;
        self.sent.clear();
        self.waiting.clear();
    }

    /// Its disk is replaced by an empty one: it is somebody else from now on.
    pub(crate) fn wipe(&mut self, member: MemberId) {
        self.crash();
        self.disk = Memory::new();
        let cluster = ClusterId(0);
        self.setup.writer.identity = Identity { member, cluster };
        self.setup.cluster.initial.clear();
        self.setup.cluster.joins = true;
    }

    /// Whoever starts it next on what is on its disk is somebody else, if this one knows that it was removed.
    pub(super) fn succeed(&mut self, member: MemberId) {
        self.crash();
        self.setup.writer.identity.member = member;
        self.removed = None;
    }

    /// Whether it knows that a member was removed: then it does not listen to it.
    pub(super) fn has_removed(&self, member: MemberId) -> bool {
        let directory = self.replica.as_ref().and_then(Replica::directory);
        directory.is_some_and(|directory| directory.membership.removed.contains_key(&member))
    }

    /// A copy of what would be left on its disk.
    pub(crate) fn copy_of_disk(&self) -> Memory {
        self.disk.crash()
    }

    /// A client wants something.
    pub(crate) fn execute(
        &mut self,
        micros: u64,
        command: Command,
    ) -> Option<Result<Reply<CommandReply>, Failure>> {
        let now = self.now(micros);
        if self.paused_until > micros {
            return None;
        }
        let replica = self.replica.as_mut().filter(|replica| replica.is_ready())?;
        let reply = replica.execute(command, now);
        self.after(micros);
        Some(reply)
    }

    /// A client, or a member that it has asked, keeps a lease alive.
    pub(crate) fn keep_alive(&mut self, micros: u64, id: LeaseId) -> Option<KeepAlive> {
        let now = self.now(micros);
        let replica = self.replica.as_ref().filter(|replica| replica.is_ready())?;
        (self.paused_until <= micros).then(|| replica.writer().lessor().keep_alive(id, now))
    }

    /// Admits someone.
    pub(crate) fn admit(
        &mut self,
        micros: u64,
        member: MemberId,
        record: &MemberRecord,
    ) -> Option<Result<Admission, Refusal>> {
        let now = self.now(micros);
        let admission = self.replica.as_mut()?.admit(member, record, now).expect("no fault");
        self.after(micros);
        Some(admission)
    }

    /// Does something with the replica, if it is up.
    pub(crate) fn with<T>(
        &mut self,
        micros: u64,
        act: impl FnOnce(&mut Replica, Now) -> T,
    ) -> Option<T> {
        let now = self.now(micros);
        let result = act(self.replica.as_mut()?, now);
        self.after(micros);
        Some(result)
    }

    /// Sees to what the last step has left to do.
    fn after(&mut self, micros: u64) {
        loop {
            let now = self.now(micros);
            let Some(replica) = &mut self.replica else { return };
            let is_even = self.setup.writer.identity.member.0.is_multiple_of(2);
            replica.set_awaited(self.setup.is_awaited.unwrap_or(is_even));
            replica.offer(now).expect("no fault");
            let effects = replica.take_effects();
            if self.commit_at.is_none() && replica.has_open_batch() {
                self.commit_at = Some(micros + self.setup.commit_micros);
            }
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(micros, effect);
            }
        }
    }

    fn carry_out(&mut self, micros: u64, effect: Effect) {
        let now = self.now(micros);
        let Some(replica) = &mut self.replica else { return };
        match effect {
            Effect::Send(to, message) => self.sent.push((to, message)),
            Effect::Load { to, wants, bytes_max } => {
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                let heads = replica.writer().heads();
                let segments = replica.writer().mvcc().segments(&wants, &heads, bytes_max);
                let segments = segments.expect("no fault");
                let has_holes = replica.writer().mvcc().has_holes_behind(&wants);
                let (collected, traces) = (replica.writer().collected(), Vec::new());
                let (answers, patient) = (true, false);
                let segments =
                    Segments { segments, collected, answers, has_holes, traces, patient };
                self.sent.push((to, Message::Segments(segments)));
                replica.loaded(to, now).expect("no fault");
            }
            Effect::LoadCatchUp(to, request) => {
                let heads = replica.writer().heads();
                let complete = replica.gossip().expect("it has peers").frontier().complete();
                let collected = replica.writer().collected();
                let claims = Claims { heads, complete, collected };
                let served = replica.writer().mvcc().serve_catch_up(&request, &claims, |part| {
                    self.sent.push((to, Message::CatchUpPart(Box::new(part))));
                    Onward::Large
                });
                served.expect("no fault");
                replica.loaded(to, now).expect("no fault");
            }
            Effect::LoadCompare { to, spans, upto, number } => {
                let compare = replica.writer().mvcc().compare(&spans, upto, number);
                replica.asking(to, compare.expect("no fault"), now).expect("no fault");
            }
            Effect::AnswerCompare(to, compare) => {
                let heads = replica.writer().heads();
                let answer = replica.writer().mvcc().answer_compare(&compare, &heads);
                self.sent.push((to, Message::Compared(answer.expect("no fault"))));
                replica.loaded(to, now).expect("no fault");
            }
            Effect::Acknowledged(peer, seq) => {
                self.acknowledged.insert(peer, seq);
            }
            Effect::Passed(id) => {
                self.passed.insert(id);
            }
            Effect::Clock(news) => self.clock_news.push(news),
            Effect::Lost(lost) => self.lost.extend(lost),
            Effect::Removed { was_live } => self.removed = Some(was_live),
            Effect::RemovedDead(_)
            | Effect::Members
            | Effect::Live
            | Effect::Differ(..)
            | Effect::Misanswered(_)
            | Effect::Ready => {}
        }
    }

    fn commit(&mut self, micros: u64) {
        if self.commit_at.is_none_or(|at| at > micros) {
            return;
        }
        self.commit_at = None;
        let now = self.now(micros);
        if let Some(replica) = &mut self.replica {
            replica.commit(now).expect("no fault");
        }
        self.after(micros);
    }

    fn deliver(&mut self, micros: u64, from: MemberId, message: Message) {
        let now = self.now(micros);
        if self.has_removed(from) {
            return;
        }
        if let Some(replica) = &mut self.replica {
            replica.receive(from, message, now).expect("no fault");
            self.after(micros);
        }
    }
}

impl Actor for Full {
    fn receive(&mut self, micros: u64, from: MemberId, message: Message) {
        if self.paused_until > micros {
            self.waiting.push((from, message));
            return;
        }
        self.commit(micros);
        self.deliver(micros, from, message);
    }

    fn wake(&mut self, micros: u64) {
        if self.paused_until > micros {
            return;
        }
        for (from, message) in std::mem::take(&mut self.waiting) {
            self.deliver(micros, from, message);
        }
        self.commit(micros);
        let now = self.now(micros);
        if let Some(replica) = &mut self.replica
            && replica.wake_at() <= now.monotonic_millis
        {
            replica.tick(now).expect("no fault");
            self.after(micros);
        }
        if self.next_leases <= micros {
            self.next_leases = micros + LEASES_MICROS;
            self.with(micros, |replica, now| replica.look_at_leases(now).expect("no fault"));
        }
    }

    fn wake_at(&self) -> u64 {
        let Some(replica) = &self.replica else { return u64::MAX };
        let wake = replica.wake_at().saturating_mul(1000);
        let wake = wake.min(self.next_leases);
        self.commit_at.unwrap_or(u64::MAX).min(wake).max(self.paused_until)
    }

    fn take_sent(&mut self) -> Vec<(MemberId, Message)> {
        std::mem::take(&mut self.sent)
    }

    fn is_up(&self) -> bool {
        self.replica.is_some()
    }
}
