//! The writer's thread: drains the queue, evaluates, commits once, answers.
//!
//! A batch arises by itself: while one commit waits for the disk, the next commands queue up. Between two batches
//! the thread does a slice of the background work, so that nothing else ever writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::acks::{Acks, Period, Voters};
use super::clock::SystemClock;
use super::compactor::Compactor;
use super::handle::{Removed, Shared};
use super::home::{Answer, Answers, Home, Outcome};
use super::lost_and_found::LostAndFound;
use super::peers::Peers;
use super::status::Observer;
use super::write_traces::{Queued, WriteTraces};
use crate::engine::Failure;
use crate::engine::command::{Command, CommandReply};
use crate::engine::conflicts::{Conflicts, Noted};
use crate::engine::former::LostWrite;
use crate::engine::lease_owner::LeaseLook;
use crate::engine::mvcc::{Claims, Mvcc, Onward, Sweep};
use crate::engine::replica::{Admission, ClockNews, Effect, Refusal, Replica};
use crate::error::{Error, Result, StoreError};
use crate::metrics::ApplyMetrics;
use crate::replication::Gossip;
use crate::replication::message::{CatchUp, Compare, Head, Message, Segments};
use crate::storage::schema::member::MemberRecord;
use crate::time::Now;
use crate::transport::Refused;
use crate::types::{ClusterId, MemberId, Origin, Revision, WriteAck};

/// Commands that wait at most; further ones are refused (etcd: 5000 entries not applied yet).
pub(super) const QUEUE_MAX: usize = 8192;
/// Commands that one commit takes at most.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes that one commit takes, give or take one command.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// How often the thread looks at leases, the disk and compaction when nothing else wakes it.
const TICK: Duration = Duration::from_millis(100);
/// How often leases are looked at (etcd: 500 ms).
const EXPIRY_INTERVAL_MILLIS: u64 = 500;
/// How often the free space is looked at.
const DISK_INTERVAL_MILLIS: u64 = 1000;
/// From when on a commit is in the log (etcd: a second).
const SLOW_SYNC: Duration = Duration::from_secs(1);
/// The priority of a sweep: the least there is.
const SWEEP_NICE: i32 = 19;
/// How long a sweep that failed is not tried again.
const SWEEP_RETRY_MILLIS: u64 = 60_000;

/// Between two parts of a catch-up that is served while clients write, there is a pause of so many times what a part takes ...
const PAUSE_FACTOR: f64 = 1.5;
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What was read for a peer at length waits so long for it if it is not reached: it may have come a moment ago ...
const REACH_PATIENCE: Duration = Duration::from_millis(500);
/// ... and looks so often whether it is.
const REACH_PAUSE: Duration = Duration::from_millis(20);

/// What became of somebody's wish to join.
type Admitted = Result<Admission, Refusal>;

/// What the thread is asked to do.
pub(super) enum Task {
    /// Evaluate a command.
    Command {
        /// Which.
        command: Command,
        /// Who waits for the outcome.
        reply: oneshot::Sender<Outcome>,
        /// Where that is.
        home: Home,
        /// Who has it on disk before it is answered.
        ack: WriteAck,
        /// If it is traced.
        queued: Option<Box<Queued>>,
    },
    /// Hear what a peer says; tell when that has been dealt with.
    Peer(Origin, Box<Message>, oneshot::Sender<()>),
    /// A peer has connected.
    Contact(MemberId),
    /// A peer says that this member was removed.
    Removed(MemberId),
    /// Its connection has broken.
    Lost(MemberId),
    /// A peer has been sent what was read from the log for it.
    Loaded(MemberId),
    /// What a peer is to be asked has been read.
    Asking(MemberId, Compare),
    /// Take somebody into the cluster.
    Admit {
        /// Whom.
        member: MemberId,
        /// What it says of itself.
        record: Box<MemberRecord>,
        /// Who waits for the answer.
        reply: oneshot::Sender<Admitted>,
    },
    /// This member has been taken into a cluster.
    Adopt {
        /// On what terms.
        admission: Box<Admission>,
        /// By whom.
        contact: MemberId,
        /// Tells when it is done.
        done: oneshot::Sender<()>,
    },
    /// Found a cluster together with others that do the same.
    Found {
        /// Which.
        cluster: ClusterId,
        /// Who this member is in it.
        record: Box<MemberRecord>,
        /// Where the others are expected.
        others: Vec<Vec<String>>,
        /// Tells when it is on disk.
        done: oneshot::Sender<()>,
    },
    /// Tell of so many conflicts, the newest first, and how many there were.
    Conflicts(usize, oneshot::Sender<(Vec<Noted>, u64)>),
    /// Tell when everything is here that a majority of the members holds now.
    Read(oneshot::Sender<()>),
    /// Change the records of members; `None` removes one.
    Members(Vec<(MemberId, Option<MemberRecord>)>, oneshot::Sender<()>),
    /// There is nobody to join: this member begins a cluster.
    StandAlone,
    /// This member leaves; tell when another one knows, or, of one that is alone, when that is on record.
    Leave {
        /// Whether there are no others.
        is_alone: bool,
        /// Tells when it is done.
        done: oneshot::Sender<()>,
    },
    /// Say when the space of a compaction has been given up.
    AwaitReclaim(Revision, oneshot::Sender<Result<()>>),
    /// Take note of a sweep, which has ended so.
    Swept(Sweep, Result<(), StoreError>),
    /// Answer everything that waits, and end.
    Stop,
}

/// Whether clients go first.
#[derive(Clone, Copy)]
enum Urgency {
    Soon,
    Background,
}

/// Sends a message to a peer. Answers whether it was taken.
type SendTo<'a> = &'a dyn Fn(MemberId, Message) -> bool;

/// The sending end of the queue.
pub(super) type Queue = SyncSender<Task>;

/// The state of the thread.
pub(super) struct Driver {
    replica: Replica,
    /// The way to the peers, if there can be any.
    peers: Option<Peers>,
    /// Writes that wait for peers.
    acks: Acks,
    /// Questions about members whose answers are durable with the next commit.
    admissions: Vec<(oneshot::Sender<Admitted>, Admitted)>,
    membership_changes: Vec<oneshot::Sender<()>>,
    /// Others have to know of the entry with this seq, by which this member has left.
    leaving: Option<(u64, oneshot::Sender<()>)>,
    /// Reads that wait for a majority, by their numbers.
    reads: BTreeMap<u64, oneshot::Sender<()>>,
    next_read: u64,
    tasks: Receiver<Task>,
    shared: Arc<Shared>,
    clock: SystemClock,
    compactor: Compactor,
    /// Answers that leave with the commit.
    answers: Answers,
    /// Answers that have waited for peers.
    released: Answers,
    awaiting_reclaim: Vec<(Revision, oneshot::Sender<Result<()>>)>,
    observer: Observer,
    lost_and_found: LostAndFound,
    /// `None` if nobody wants any.
    traces: Option<WriteTraces>,
    /// For sweeps to report back.
    queue: Queue,
    sweeper: Option<JoinHandle<()>>,
    next_tick_millis: u64,
    next_expiry_millis: u64,
    next_disk_millis: u64,
    /// No sweep starts before this, after one has failed.
    next_sweep_millis: u64,
    stopping: bool,
    applied: Applied,
}

/// How long the evaluation of commands takes.
struct Applied {
    /// By kind, see [`kind_of`].
    kinds: [ApplyMetrics; KINDS.len()],
    /// When the former command was done with. In a batch that is when the next one begins: the clock is read once for each.
    since: Instant,
}

/// Commands that are measured, by etcd's names.
const KINDS: [&str; 8] =
    ["Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "Alarm", "Auth"];

/// The place of a command in [`KINDS`].
fn kind_of(command: &Command) -> Option<usize> {
    Some(match command {
        Command::Put(_) => 0,
        Command::DeleteRange(_) => 1,
        Command::Txn(_) => 2,
        Command::Compact { .. } => 3,
        Command::LeaseGrant { .. } => 4,
        Command::LeaseRevoke { .. } => 5,
        Command::Alarm { .. } => 6,
        Command::Auth(_) => 7,
        Command::SetLeader(_) | Command::Downgrade(_) => return None,
    })
}

impl Driver {
    pub(super) fn new(
        replica: Replica,
        peers: Option<Peers>,
        (queue, tasks): (Queue, Receiver<Task>),
        lost_and_found: LostAndFound,
        shared: Arc<Shared>,
        clock: SystemClock,
        compactor: Compactor,
    ) -> Self {
        let now_millis = clock.now().monotonic_millis;
        let me = replica.writer().origin();
        let traces = shared.traces.clone().map(|traces| WriteTraces::new(traces, me));
        let kinds = KINDS.map(|kind| shared.metrics.apply(kind));
        Self {
            replica,
            peers,
            acks: Acks::default(),
            admissions: Vec::new(),
            membership_changes: Vec::new(),
            leaving: None,
            reads: BTreeMap::new(),
            next_read: 0,
            tasks,
            shared,
            clock,
            compactor,
            answers: Answers::default(),
            released: Answers::default(),
            awaiting_reclaim: Vec::new(),
            observer: Observer::default(),
            lost_and_found,
            traces,
            queue,
            sweeper: None,
            next_tick_millis: now_millis,
            next_expiry_millis: now_millis + EXPIRY_INTERVAL_MILLIS,
            next_disk_millis: now_millis,
            next_sweep_millis: 0,
            stopping: false,
            applied: Applied { kinds, since: Instant::now() },
        }
    }

    /// Runs until told to stop, or until the store fails.
    pub(super) fn run(mut self) {
        self.shared.observe_cluster(&self.replica);
        while !self.stopping {
            if let Err(error) = self.round() {
                self.shared.fail(error);
                return;
            }
        }
        // The store closes when nobody uses it any more. A sweep that wants to report finds the queue gone.
        let Self { tasks, sweeper, peers, .. } = self;
        drop(tasks);
        if let Some(peers) = peers {
            peers.stop();
        }
        if let Some(sweeper) = sweeper {
            let _ = sweeper.join();
        }
    }

    /// One batch.
    fn round(&mut self) -> Result<(), StoreError> {
        self.gather()?;
        let now = self.clock.now();
        if now.monotonic_millis >= self.next_tick_millis {
            self.tick(now)?;
        }
        if self.peers.is_some() && self.replica.wake_at() <= now.monotonic_millis {
            self.replica.tick(now)?;
        }
        self.replica.writer_mut().reclaim();
        // Who stops gathers nothing any more.
        self.replica.set_awaited(self.stopping || !self.acks.is_idle());
        self.replica.offer(now)?;
        // What peers wait for, and who waits for peers, need not wait for this commit.
        self.carry_out();
        self.commit(now)?;
        if self.stopping {
            self.replica.tick(now)?;
        }
        self.answer();
        self.carry_out();
        if self.sweeper.is_none() && now.monotonic_millis >= self.next_sweep_millis {
            self.sweep()?;
        }
        Ok(())
    }

    fn commit(&mut self, now: Now) -> Result<(), StoreError> {
        if !self.replica.has_open_batch() {
            return Ok(());
        }
        let start = Instant::now();
        self.shared.metrics.log_bytes.inc_by(self.replica.writer_mut().open_bytes());
        let traced = self.traces.as_ref().and_then(WriteTraces::begin_commit);
        let before = self.replica.writer().tag();
        self.replica.commit(now)?;
        if let (Some(begun), Some(traces)) = (traced, &mut self.traces) {
            let writer = self.replica.writer();
            traces.committed(begun, |origin| writer.head(origin));
        }
        let tag = self.replica.writer().tag();
        if tag != before {
            tracing::info!(tag, before, "revisions have another tag: watchers start anew");
        }
        let took = start.elapsed();
        self.shared.metrics.commit_seconds.observe(took.as_secs_f64());
        if took > SLOW_SYNC {
            tracing::warn!(?took, "expected-duration" = ?SLOW_SYNC, "slow fdatasync");
        }
        let arrived = self.replica.arrived();
        if !arrived.is_empty() {
            let wall_millis = self.clock.now().wall_millis;
            for time in arrived {
                let delay = Duration::from_millis(wall_millis.saturating_sub(time.millis()));
                self.shared.metrics.replication_seconds.observe(delay.as_secs_f64());
            }
        }
        Ok(())
    }

    /// Starts a sweep of the log on a thread of its own, if there is enough to give back or somebody waits for it.
    fn sweep(&mut self) -> Result<(), StoreError> {
        let Some(sweep) = self.due_sweep()? else {
            self.answer_reclaimed();
            return Ok(());
        };
        let (mvcc, queue) = (Arc::clone(&self.shared.mvcc), self.queue.clone());
        let run = move || {
            step_back(SWEEP_NICE);
            let result = sweep.run(&mvcc);
            drop(mvcc);
            // A driver that is gone needs no report.
            let _ = queue.send(Task::Swept(sweep, result));
        };
        self.sweeper = Some(std::thread::Builder::new().name("sweep".to_owned()).spawn(run)?);
        Ok(())
    }

    fn due_sweep(&mut self) -> Result<Option<Sweep>, StoreError> {
        // A rewrite that runs out of disk would end the member: what is dead stays until there is room.
        if !self.replica.writer_mut().has_room_to_sweep() {
            return Ok(None);
        }
        self.replica.writer_mut().begin_sweep(!self.awaiting_reclaim.is_empty())
    }

    /// Tells those who wait for the space of a compaction that it has been given up.
    fn answer_reclaimed(&mut self) {
        let writer = self.replica.writer();
        for (_, reply) in
            self.awaiting_reclaim.extract_if(.., |(revision, _)| writer.is_reclaimed(*revision))
        {
            let _ = reply.send(Ok(()));
        }
    }

    /// Takes what waits in the queue, or waits for the first command until the next tick.
    fn gather(&mut self) -> Result<(), StoreError> {
        let has_work = self.replica.writer().can_reclaim() || self.replica.has_open_batch();
        let first = if has_work {
            self.tasks.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        } else {
            self.tasks.recv_timeout(self.patience())
        };
        let mut task = match first {
            Ok(task) => Some(task),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Task::Stop),
        };
        let now = self.clock.now();
        self.applied.since = Instant::now();
        while let Some(next) = task {
            self.take(next, now)?;
            if self.answers.len() >= BATCH_COMMANDS_MAX
                || self.replica.writer_mut().open_bytes() >= BATCH_BYTES_MAX
            {
                break;
            }
            task = self.tasks.try_recv().ok();
        }
        Ok(())
    }

    fn take(&mut self, task: Task, now: Now) -> Result<(), StoreError> {
        match task {
            Task::Command { command, reply, home, ack, queued } => {
                let before = self.replica.writer().seq();
                let outcome = self.execute(command, now)?;
                let answer = Answer { waiting: reply, outcome };
                let seq = self.replica.writer().seq();
                if let Some(queued) = queued {
                    self.trace(&queued, (seq != before).then_some(seq));
                }
                if seq == before || self.replica.directory().is_none() || ack == WriteAck::Local {
                    self.answers.push(&home, answer);
                } else {
                    let timeout = self.shared.options.timeout.as_millis();
                    let since_millis = now.monotonic_millis;
                    let deadline_millis = since_millis + u64::try_from(timeout).unwrap_or(u64::MAX);
                    self.acks.push(
                        ack,
                        seq,
                        Period { since_millis, deadline_millis },
                        home,
                        answer,
                    );
                }
            }
            Task::Peer(from, message, done) => {
                self.acks.heard(from.member, now.monotonic_millis);
                if let (Some(traces), Message::Segments(it)) = (&mut self.traces, &*message) {
                    let writer = self.replica.writer();
                    traces.heard(&it.traces, |origin| writer.head(origin));
                }
                self.replica.receive(from.member, *message, now)?;
                // Whoever asked may have gone away.
                let _ = done.send(());
            }
            Task::Contact(peer) => {
                self.acks.heard(peer, now.monotonic_millis);
                self.replica.meet(peer, now)?;
            }
            Task::Lost(peer) => self.acks.lost(peer),
            Task::Removed(by) => {
                tracing::warn!(%by, "a peer says that this member was removed");
                self.replica.note_removal(now);
                self.tell_left(u64::MAX);
            }
            Task::Loaded(peer) => self.replica.loaded(peer, now)?,
            Task::Asking(peer, compare) => self.replica.asking(peer, compare, now)?,
            Task::Admit { member, record, reply } => {
                let admission = self.replica.admit(member, &record, now)?;
                self.admissions.push((reply, admission));
            }
            Task::Adopt { admission, contact, done } => {
                self.replica.adopt(&admission, contact, now)?;
                let _ = done.send(());
            }
            Task::Found { cluster, record, others, done } => {
                self.replica.found_as(cluster, *record, others, now)?;
                self.membership_changes.push(done);
            }
            Task::Conflicts(max, reply) => {
                let conflicts = self.replica.conflicts();
                let newest = conflicts.into_iter().flat_map(|conflicts| conflicts.newest());
                let total = conflicts.map_or(0, Conflicts::total);
                let _ = reply.send((newest.take(max).cloned().collect(), total));
            }
            Task::Read(reader) => {
                // Readers that have gone away are forgotten.
                self.reads.retain(|_, reader| !reader.is_closed());
                self.next_read += 1;
                let timeout = u64::try_from(self.shared.options.timeout.as_millis());
                let deadline = now.monotonic_millis + timeout.unwrap_or(u64::MAX);
                self.reads.insert(self.next_read, reader);
                if !self.replica.begin_read(self.next_read, deadline, now)?
                    && let Some(reader) = self.reads.remove(&self.next_read)
                {
                    let _ = reader.send(());
                }
            }
            Task::Members(changes, done) => {
                self.replica.change_members(changes, now)?;
                self.membership_changes.push(done);
            }
            Task::StandAlone => self.replica.stand_alone(),
            Task::Leave { is_alone, done } => match self.replica.leave(now)? {
                Some(seq) if !is_alone => self.leaving = Some((seq, done)),
                _ => self.membership_changes.push(done),
            },
            Task::AwaitReclaim(revision, reply) => self.awaiting_reclaim.push((revision, reply)),
            Task::Swept(sweep, result) => {
                self.sweeper = None;
                match result {
                    Ok(()) => self.replica.writer_mut().end_sweep(&sweep),
                    // The store is as it was: what is dead stays for a while.
                    Err(StoreError::Io(error)) => {
                        tracing::warn!(%error, "the log could not be swept");
                        self.next_sweep_millis = now.monotonic_millis + SWEEP_RETRY_MILLIS;
                    }
                    Err(error) => return Err(error),
                }
            }
            Task::Stop => self.stopping = true,
        }
        Ok(())
    }

    /// A traced command has been evaluated, and has become this entry, if any.
    fn trace(&mut self, queued: &Queued, wrote: Option<u64>) {
        let Some(traces) = &mut self.traces else { return };
        // Where members gossip, nobody acknowledges single writes.
        let is_direct = self.replica.gossip().is_some_and(Gossip::is_direct);
        let awaited = if is_direct { self.replica.live() } else { &[] };
        traces.took(queued, wrote, awaited);
        if let Some(seq) = wrote {
            self.replica.trace(seq, queued.context());
        }
    }

    fn execute(&mut self, command: Command, now: Now) -> Result<Outcome, StoreError> {
        let kind = kind_of(&command);
        let outcome = self.replica.execute(command, now);
        let until = Instant::now();
        let since = std::mem::replace(&mut self.applied.since, until);
        if let Some(kind) = kind {
            self.applied.kinds[kind].observe(outcome.is_ok(), until - since);
        }
        match outcome {
            Ok(reply) => {
                match &reply.body {
                    CommandReply::LeaseGrant(lease) => {
                        self.shared.metrics.leases_granted.inc();
                        #[expect(clippy::cast_precision_loss, reason = "no lease lives for ages")]
                        self.shared.metrics.lease_ttls.observe(lease.ttl_seconds as f64);
                    }
                    CommandReply::Compact => self.shared.metrics.compacted(),
                    CommandReply::LeaseRevoke => _ = self.shared.metrics.leases_revoked.inc(),
                    _ => {}
                }
                Ok(Ok(reply))
            }
            Err(Failure::Refused(error)) => Ok(Err(error)),
            Err(Failure::Broken(error)) => Err(error),
        }
    }

    /// How long there is nothing to do unless somebody asks.
    fn patience(&self) -> Duration {
        let now = self.clock.now().monotonic_millis;
        TICK.min(Duration::from_millis(self.replica.wake_at().saturating_sub(now)))
    }

    fn observe_live(&mut self) {
        let (before, live) = (self.shared.live(), self.replica.live());
        let is_new = |peer: &&MemberId| before.binary_search(peer).is_err();
        let is_gone = |peer: &&MemberId| live.binary_search(peer).is_err();
        for member in live.iter().filter(is_new) {
            tracing::info!(%member, "peer is alive");
        }
        for member in before.iter().filter(is_gone) {
            tracing::warn!(%member, "peer does not answer");
        }
        self.shared.set_live(live);
        self.count_voters();
    }

    /// Keeps writes elsewhere that the store lets go of with the next commit.
    fn keep_lost(&self, lost: &[LostWrite]) {
        self.shared.metrics.lost_writes.inc_by(lost.len() as u64);
        match self.lost_and_found.keep(lost) {
            Ok(Some(path)) => tracing::warn!(
                writes = lost.len(),
                path = %path.display(),
                "nobody else has these writes, and nobody takes them: they are kept in a file"
            ),
            Ok(None) => {}
            // They are still in the store.
            Err(error) => self.shared.fail(error.into()),
        }
    }

    fn observe_clock(&self, news: ClockNews) {
        self.shared.fence(self.replica.is_fenced());
        match news {
            ClockNews::Fenced(ahead_millis) => tracing::error!(
                ahead_millis,
                "CLOCK SKEW: the clock of this member is off those of the others: it takes no writes until that is mended"
            ),
            ClockNews::Unfenced => {
                tracing::info!("the clock of this member is right again: it takes writes");
            }
            ClockNews::Jumped(ahead_millis) => tracing::warn!(
                ahead_millis,
                "the wall clock has jumped, and the other members' have not: it does not count"
            ),
            ClockNews::Confirmed => tracing::info!("the wall clock counts again"),
        }
    }

    /// Who counts for acknowledgements.
    fn count_voters(&mut self) {
        let Some(directory) = self.replica.directory() else { return };
        let (me, live) = (self.shared.member.id, self.replica.live());
        let peers: Vec<_> = directory.voters().filter(|member| *member != me).collect();
        let counts_itself = directory.voters().any(|member| member == me);
        let is_live = |peer: &MemberId| *peer != me && live.binary_search(peer).is_ok();
        let serves = directory.members.iter().filter(|(_, it)| it.is_started() && !it.learner);
        let everybody = serves.map(|(member, _)| *member).filter(is_live).collect();
        let live = peers.iter().copied().filter(is_live).collect();
        self.acks.set_voters(Voters { peers, live, everybody, counts_itself });
    }

    /// Does what the replica wants done outside.
    fn carry_out(&mut self) {
        for effect in self.replica.take_effects() {
            match effect {
                Effect::Send(to, message) => {
                    if let Some(peers) = &self.peers
                        && !self.shared.blocks(to)
                    {
                        // What does not get through is asked for again.
                        let _ = peers.transport.send(to, message);
                    }
                }
                Effect::Load { to, wants, bytes_max } => self.load(to, wants, bytes_max),
                Effect::LoadCatchUp(to, request) => self.load_catch_up(to, request),
                Effect::LoadCompare { to, spans, upto, number } => {
                    self.read_question(to, move |mvcc| mvcc.compare(&spans, upto, number));
                }
                Effect::AnswerCompare(to, compare) => {
                    let heads = self.replica.writer().heads();
                    self.read_for_peer(
                        move |mvcc, send| {
                            let answer = mvcc.answer_compare(&compare, &heads)?;
                            send(to, Message::Compared(answer));
                            Ok(())
                        },
                        Some(to),
                        Urgency::Background,
                    );
                }
                Effect::Acknowledged(peer, seq) => {
                    self.acks.acknowledged(peer, seq);
                    self.tell_left(seq);
                    if let Some(traces) = &mut self.traces {
                        traces.acknowledged(peer, seq);
                    }
                }
                Effect::Passed(id) => {
                    if let Some(reader) = self.reads.remove(&id) {
                        let _ = reader.send(());
                    }
                }
                Effect::Members => {
                    self.shared.observe_cluster(&self.replica);
                    self.count_voters();
                    if let (Some(peers), Some(directory)) = (&self.peers, self.replica.directory())
                    {
                        peers.set_members(&directory.members, self.shared.member.id);
                    }
                }
                Effect::Differ(peer, keys) => tracing::error!(
                    %peer,
                    keys = keys.len(),
                    first = %keys.first().map(|key| key.escape_ascii().to_string()).unwrap_or_default(),
                    "a peer has lost what it once had, or this member has: it is written anew"
                ),
                Effect::Misanswered(peer) => tracing::error!(
                    %peer,
                    "the peer has answered a comparison or a catch-up with what cannot be: it is broken, or means harm"
                ),
                Effect::Live => self.observe_live(),
                Effect::Ready => self.shared.observe_cluster(&self.replica),
                Effect::Clock(news) => self.observe_clock(news),
                Effect::Lost(lost) => self.keep_lost(&lost),
                Effect::Removed { was_live } => {
                    self.shared.set_removed(if was_live { Removed::Live } else { Removed::Away });
                }
                Effect::RemovedDead(member) => {
                    tracing::warn!(%member, "the member is dead for too long: it is removed");
                }
            }
        }
        if self.acks.is_idle() {
            return;
        }
        let now_millis = self.clock.now().monotonic_millis;
        let durable = self.replica.writer().head(self.replica.writer().origin());
        let released = if self.replica.is_removed() {
            self.acks.give_up()
        } else {
            self.acks.release(durable, now_millis)
        };
        for (home, answer) in released {
            self.released.push(&home, answer);
        }
        self.released.send();
    }

    /// Another member holds the entries of this one up to here.
    fn tell_left(&mut self, held: u64) {
        if let Some((_, done)) = self.leaving.take_if(|(seq, _)| *seq <= held) {
            // Whoever wanted to know may have gone away.
            let _ = done.send(());
        }
    }

    /// Reads entries for a peer.
    fn load(&self, to: MemberId, wants: Vec<Head>, bytes_max: u64) {
        let writer = self.replica.writer();
        let (heads, collected) = (writer.heads(), writer.collected());
        let read = move |mvcc: &Mvcc, send: SendTo<'_>| {
            let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
            let segments = mvcc.segments(&wants, &heads, bytes_max)?;
            // Not before they were read: a sweep may have begun meanwhile.
            let (has_holes, traces) = (mvcc.has_holes_behind(&wants), Vec::new());
            let (answers, patient) = (true, false);
            let message = Segments { segments, collected, answers, has_holes, traces, patient };
            send(to, Message::Segments(message));
            Ok(())
        };
        self.read_for_peer(read, Some(to), Urgency::Soon);
    }

    /// Reads some of the data for a peer.
    fn load_catch_up(&self, to: MemberId, request: CatchUp) {
        let Some(gossip) = self.replica.gossip() else { return };
        let (heads, complete) = (self.replica.writer().heads(), gossip.frontier().complete());
        let collected = self.replica.writer().collected();
        let claims = Claims { heads, complete, collected };
        let shared = Arc::clone(&self.shared);
        let read = move |mvcc: &Mvcc, send: SendTo<'_>| {
            let mut pace = Pace::new(&shared);
            mvcc.serve_catch_up(&request, &claims, |part| {
                if !send(to, Message::CatchUpPart(Box::new(part))) {
                    return Onward::Stop;
                }
                if pace.keep() { Onward::Small } else { Onward::Large }
            })
        };
        self.read_for_peer(read, Some(to), Urgency::Background);
    }

    /// Reads on another thread what a peer is to be asked.
    fn read_question(
        &self,
        to: MemberId,
        read: impl FnOnce(&Mvcc) -> Result<Compare, StoreError> + Send + 'static,
    ) {
        let Some(peers) = &self.peers else { return };
        let (mvcc, queue) = (Arc::clone(&self.shared.mvcc), self.queue.clone());
        let shared = Arc::clone(&self.shared);
        peers.spawn_background(move || match read(&mvcc) {
            Ok(compare) => _ = queue.send(Task::Asking(to, compare)),
            Err(error) => shared.fail(error),
        });
    }

    /// Reads on another thread what a message to a peer needs, and sends it. `serves` is the peer whose turn it was.
    fn read_for_peer(
        &self,
        read: impl FnOnce(&Mvcc, SendTo<'_>) -> Result<(), StoreError> + Send + 'static,
        serves: Option<MemberId>,
        urgency: Urgency,
    ) {
        let Some(peers) = &self.peers else { return };
        let (mvcc, queue) = (Arc::clone(&self.shared.mvcc), self.queue.clone());
        let (transport, shared) = (peers.transport.clone(), Arc::clone(&self.shared));
        let work = move || {
            let patience = match urgency {
                Urgency::Soon => Duration::ZERO,
                Urgency::Background => REACH_PATIENCE,
            };
            // What gets lost is asked for again.
            let send = |to, message: Message| {
                !shared.blocks(to) && reach(|| transport.send(to, message.clone()), patience)
            };
            if let Err(error) = read(&mvcc, &send) {
                shared.fail(error);
            }
            if let Some(peer) = serves {
                let _ = queue.send(Task::Loaded(peer));
            }
        };
        match urgency {
            Urgency::Soon => peers.spawn_blocking(work),
            Urgency::Background => peers.spawn_background(work),
        }
    }

    /// After the commit: everybody gets an answer, and what readers see of the writer is renewed.
    fn answer(&mut self) {
        self.shared.observe(self.replica.writer());
        self.answers.send();
        // Whoever asked for a change sees it, from the answer on. And a member that was restarted while it caught up may be ready by
        // what it hears, without a word of the replica's.
        let is_late = self.replica.is_ready() && !self.shared.has_data();
        if is_late || !self.admissions.is_empty() || !self.membership_changes.is_empty() {
            self.shared.observe_cluster(&self.replica);
        }
        for (reply, admission) in self.admissions.drain(..) {
            let _ = reply.send(admission);
        }
        for done in self.membership_changes.drain(..) {
            let _ = done.send(());
        }
        let writer = self.replica.writer();
        for (_, reply) in
            self.awaiting_reclaim.extract_if(.., |(revision, _)| writer.is_reclaimed(*revision))
        {
            let _ = reply.send(Ok(()));
        }
    }

    fn tick(&mut self, now: Now) -> Result<(), StoreError> {
        let millis = now.monotonic_millis;
        self.next_tick_millis = millis + u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX);
        if millis >= self.next_expiry_millis {
            self.next_expiry_millis = millis + EXPIRY_INTERVAL_MILLIS;
            self.look_at_leases(now)?;
        }
        if millis >= self.next_disk_millis {
            self.next_disk_millis = millis + DISK_INTERVAL_MILLIS;
            self.check_disk()?;
        }
        let transport = self.peers.as_ref().map(|peers| &peers.transport);
        if let Some(facts) = self.observer.tick(&self.replica, &self.acks, transport, now) {
            self.shared.set_facts(facts);
        }
        self.auto_compact(now)
    }

    fn look_at_leases(&mut self, now: Now) -> Result<(), StoreError> {
        let look = self.replica.look_at_leases(now)?;
        self.shared.metrics.leases_revoked.inc_by(look.ended as u64);
        self.shared.metrics.leases_expired.inc_by(look.ended as u64);
        let LeaseLook { ended, taken_over, orphans, extended } = look;
        if extended > 0 {
            tracing::warn!(
                leases = extended,
                "this member stood still or was cut off: its leases start anew"
            );
        }
        if taken_over > 0 {
            tracing::info!(leases = taken_over, "took over the leases of a member that is gone");
        }
        if ended + orphans > 0 {
            tracing::debug!(ended, orphans, "leases have ended");
        }
        Ok(())
    }

    fn check_disk(&mut self) -> Result<(), StoreError> {
        let was_out = self.replica.writer_mut().is_out_of_space();
        self.replica.writer_mut().check_space()?;
        match (was_out, self.replica.writer_mut().is_out_of_space()) {
            (false, true) => tracing::warn!("alarm raised: NOSPACE"),
            (true, false) => tracing::info!("alarm cleared: NOSPACE"),
            _ => {}
        }
        Ok(())
    }

    fn auto_compact(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(revision) = self.compactor.tick(now.monotonic_millis, self.shared.mvcc.revision())
        else {
            return Ok(());
        };
        match self.execute(Command::Compact { revision: revision.shown() }, now)? {
            Ok(_) => tracing::info!(revision = revision.0, "auto-compaction"),
            // A client was faster.
            Err(Error::Compacted { .. }) => {}
            Err(error) => tracing::warn!(revision = revision.0, %error, "auto-compaction failed"),
        }
        Ok(())
    }
}

/// Sends something; waits a while for a peer that is not reached. Answers whether it is on its way.
fn reach(send: impl Fn() -> Result<(), Refused>, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        match send() {
            Err(Refused::Unreachable) if begun.elapsed() < patience => {
                std::thread::sleep(REACH_PAUSE);
            }
            sent => return sent.is_ok(),
        }
    }
}

/// Leaves processor, disk and network to the clients of this member while they write, most of the time.
struct Pace<'a> {
    shared: &'a Shared,
    /// What this member had accepted by then.
    entries: u64,
    since: Instant,
}

impl<'a> Pace<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, entries: shared.entries(), since: Instant::now() }
    }

    /// Pauses if anybody has written anything since the last time, for a multiple of the time that has gone by. Answers
    /// whether it did.
    fn keep(&mut self) -> bool {
        let entries = self.shared.entries();
        let is_busy = entries != self.entries;
        if is_busy {
            std::thread::sleep(self.since.elapsed().mul_f64(PAUSE_FACTOR).min(PAUSE_MAX));
        }
        (self.entries, self.since) = (entries, Instant::now());
        is_busy
    }
}

/// Lets other threads of the system go before this one.
pub(super) fn step_back(nice: i32) {
    let this = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(this), nice) {
        tracing::debug!(%error, "a background thread runs at full priority");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What comes of a message to a peer that answers so, one time after the other, and then always as the last time; and how often it was sent.
    fn reached(answers: &[Result<(), Refused>], patience: Duration) -> (bool, usize) {
        let tries = Cell::new(0);
        let send = || {
            let answer = answers[tries.get().min(answers.len() - 1)];
            tries.set(tries.get() + 1);
            answer
        };
        (reach(send, patience), tries.get())
    }

    #[test]
    fn a_peer_that_is_not_reached_yet_is_waited_for() {
        let away = Err(Refused::Unreachable);
        let long = Duration::from_secs(600);
        assert_eq!(reached(&[Ok(())], long), (true, 1));
        assert_eq!(reached(&[away, away, Ok(())], long), (true, 3), "its connection is made");
        for refused in [Refused::Unknown, Refused::Full, Refused::Stopped] {
            assert_eq!(reached(&[Err(refused)], long), (false, 1), "that will not be over soon");
            assert_eq!(reached(&[away, Err(refused)], long), (false, 2), "it has ended meanwhile");
        }
    }

    #[test]
    fn a_peer_that_does_not_come_is_not_waited_for_for_ever() {
        let away = [Err(Refused::Unreachable)];
        assert_eq!(reached(&away, Duration::ZERO), (false, 1), "others wait for this thread");
        let begun = Instant::now();
        let (is_sent, tries) = reached(&away, 3 * REACH_PAUSE);
        assert!(!is_sent && (2..=4).contains(&tries), "{tries} tries");
        assert!(begun.elapsed() >= 3 * REACH_PAUSE, "not all at once");
    }
}
