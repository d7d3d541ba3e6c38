//! The writer's thread: drains the queue, evaluates, commits once, answers.
//!
//! A batch arises by itself: while one commit waits for the disk, the next commands queue up. Between two batches
//! the thread does a slice of the background work, so that nothing else ever writes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::clock::SystemClock;
use super::compactor::Compactor;
use super::handle::Shared;
use super::home::{Answer, Answers, Home, Outcome};
use crate::engine::command::{Command, CommandReply};
use crate::engine::mvcc::Sweep;
use crate::engine::{Failure, Writer};
use crate::error::{Error, Result, StoreError};
use crate::time::Now;
use crate::types::{AlarmKind, Revision};

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
/// Leases that are revoked at one look (etcd: 1000 a second).
const EXPIRY_MAX: usize = 500;
/// How often the free space is looked at.
const DISK_INTERVAL_MILLIS: u64 = 1000;
/// The priority of a sweep: the least there is.
const SWEEP_NICE: i32 = 19;
/// How long a sweep that failed is not tried again.
const SWEEP_RETRY_MILLIS: u64 = 60_000;
/// A tick this late means that the whole process stood still: leases start anew instead of expiring.
const LATE_MILLIS: u64 = 5000;

/// What the thread is asked to do.
pub(super) enum Task {
    /// Evaluate a command.
    Command(Command, oneshot::Sender<Outcome>, Home),
    /// Say when the space of a compaction has been given up.
    AwaitReclaim(Revision, oneshot::Sender<Result<()>>),
    /// Take note of a sweep, which has ended so.
    Swept(Sweep, Result<(), StoreError>),
    /// Answer everything that waits, and end.
    Stop,
}

/// The sending end of the queue.
pub(super) type Queue = SyncSender<Task>;

/// The state of the thread.
pub(super) struct Driver {
    writer: Writer,
    tasks: Receiver<Task>,
    shared: Arc<Shared>,
    clock: SystemClock,
    compactor: Compactor,
    answers: Answers,
    awaiting_reclaim: Vec<(Revision, oneshot::Sender<Result<()>>)>,
    /// For sweeps to report back.
    queue: Queue,
    sweeper: Option<JoinHandle<()>>,
    next_tick_millis: u64,
    next_expiry_millis: u64,
    next_disk_millis: u64,
    /// No sweep starts before this, after one has failed.
    next_sweep_millis: u64,
    stopping: bool,
}

impl Driver {
    pub(super) fn new(
        writer: Writer,
        (queue, tasks): (Queue, Receiver<Task>),
        shared: Arc<Shared>,
        clock: SystemClock,
        compactor: Compactor,
    ) -> Self {
        let now_millis = clock.now().monotonic_millis;
        Self {
            writer,
            tasks,
            shared,
            clock,
            compactor,
            answers: Answers::default(),
            awaiting_reclaim: Vec::new(),
            queue,
            sweeper: None,
            next_tick_millis: now_millis,
            next_expiry_millis: now_millis + EXPIRY_INTERVAL_MILLIS,
            next_disk_millis: now_millis,
            next_sweep_millis: 0,
            stopping: false,
        }
    }

    /// Runs until told to stop, or until the store fails.
    pub(super) fn run(mut self) {
        while !self.stopping {
            if let Err(error) = self.round() {
                self.shared.fail(error);
                return;
            }
        }
        // The store closes when nobody uses it any more. A sweep that wants to report finds the queue gone.
        let Self { tasks, sweeper, .. } = self;
        drop(tasks);
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
        self.writer.reclaim();
        self.commit()?;
        self.answer();
        if self.sweeper.is_none() && now.monotonic_millis >= self.next_sweep_millis {
            self.sweep()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        if !self.writer.has_open_batch() {
            return Ok(());
        }
        let start = Instant::now();
        self.writer.commit()?;
        self.shared.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
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
            step_back();
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
        if !self.writer.has_room_to_sweep() {
            return Ok(None);
        }
        self.writer.begin_sweep(!self.awaiting_reclaim.is_empty())
    }

    /// Tells those who wait for the space of a compaction that it has been given up.
    fn answer_reclaimed(&mut self) {
        let writer = &self.writer;
        for (_, reply) in
            self.awaiting_reclaim.extract_if(.., |(revision, _)| writer.is_reclaimed(*revision))
        {
            let _ = reply.send(Ok(()));
        }
    }

    /// Takes what waits in the queue, or waits for the first command until the next tick.
    fn gather(&mut self) -> Result<(), StoreError> {
        let first = if self.writer.can_reclaim() {
            self.tasks.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        } else {
            self.tasks.recv_timeout(TICK)
        };
        let mut task = match first {
            Ok(task) => Some(task),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Task::Stop),
        };
        let now = self.clock.now();
        while let Some(next) = task {
            self.take(next, now)?;
            if self.answers.len() >= BATCH_COMMANDS_MAX
                || self.writer.open_bytes() >= BATCH_BYTES_MAX
            {
                break;
            }
            task = self.tasks.try_recv().ok();
        }
        Ok(())
    }

    fn take(&mut self, task: Task, now: Now) -> Result<(), StoreError> {
        match task {
            Task::Command(command, waiting, home) => {
                let outcome = self.execute(command, now)?;
                self.answers.push(&home, Answer { waiting, outcome });
            }
            Task::AwaitReclaim(revision, reply) => self.awaiting_reclaim.push((revision, reply)),
            Task::Swept(sweep, result) => {
                self.sweeper = None;
                match result {
                    Ok(()) => self.writer.end_sweep(&sweep),
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

    fn execute(&mut self, command: Command, now: Now) -> Result<Outcome, StoreError> {
        match self.writer.execute(command, now) {
            Ok(reply) => {
                match reply.body {
                    CommandReply::LeaseGrant(_) => _ = self.shared.metrics.leases_granted.inc(),
                    CommandReply::LeaseRevoke => _ = self.shared.metrics.leases_revoked.inc(),
                    _ => {}
                }
                Ok(Ok(reply))
            }
            Err(Failure::Refused(error)) => Ok(Err(error)),
            Err(Failure::Broken(error)) => Err(error),
        }
    }

    /// After the commit: everybody gets an answer, and what readers see of the writer is renewed.
    fn answer(&mut self) {
        self.shared.observe(&self.writer);
        self.answers.send();
        let writer = &self.writer;
        for (_, reply) in
            self.awaiting_reclaim.extract_if(.., |(revision, _)| writer.is_reclaimed(*revision))
        {
            let _ = reply.send(Ok(()));
        }
    }

    fn tick(&mut self, now: Now) -> Result<(), StoreError> {
        let millis = now.monotonic_millis;
        if millis > self.next_tick_millis + LATE_MILLIS {
            tracing::warn!(
                late_millis = millis - self.next_tick_millis,
                "the process stood still: leases start anew"
            );
            self.writer.lessor().extend_all(now);
        }
        self.next_tick_millis = millis + u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX);
        if millis >= self.next_expiry_millis {
            self.next_expiry_millis = millis + EXPIRY_INTERVAL_MILLIS;
            self.expire_leases(now)?;
        }
        if millis >= self.next_disk_millis {
            self.next_disk_millis = millis + DISK_INTERVAL_MILLIS;
            self.check_disk()?;
        }
        self.auto_compact(now)
    }

    fn expire_leases(&mut self, now: Now) -> Result<(), StoreError> {
        if self.writer.alarms().is_raised(AlarmKind::Corrupt) {
            // No revocation would be done, and what has run out is to be found again.
            return Ok(());
        }
        for id in self.writer.lessor().take_expired(now, EXPIRY_MAX) {
            tracing::debug!(lease = %id, "lease expired");
            // It may have been revoked in this very batch.
            let _ = self.execute(Command::LeaseRevoke { id }, now)?;
        }
        Ok(())
    }

    fn check_disk(&mut self) -> Result<(), StoreError> {
        let was_out = self.writer.is_out_of_space();
        self.writer.check_space()?;
        match (was_out, self.writer.is_out_of_space()) {
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

/// Lets all other threads of the system go first: nobody waits for this one.
fn step_back() {
    let this = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(this), SWEEP_NICE) {
        tracing::debug!(%error, "the sweep runs at full priority");
    }
}
