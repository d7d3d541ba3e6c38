//! The one way into a running member, for the `api` layer: cheap to clone, safe to use from any thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::auth::AuthOptions;
use super::blocked::{BlockChange, BlockRefused, Blocked};
use super::clock::SystemClock;
use super::contacts::Contacts;
use super::driver::{Queue, Task};
use super::home::Home;
use super::joining::{Anew, Call};
use super::places::Places;
use super::searches::Searches;
use super::snapshot::SNAPSHOTS_MAX;
use super::status::{ClusterStatus, Facts};
use super::tokens::Tokens;
use super::write_traces::Queued;
use crate::engine::alarm::Alarms;
use crate::engine::auth::Auth;
use crate::engine::command::{
    Command, CommandReply, DeleteRange, DeleteRangeReply, Put, PutReply, Range, RangeReply, Reply,
    Txn, TxnOp, TxnReply,
};
use crate::engine::conflicts::Noted;
use crate::engine::directory::Directory;
use crate::engine::lease::Lessor;
use crate::engine::mvcc::{Mvcc, Reader, StateHash};
use crate::engine::replica::{Refusal, Replica, reserved};
use crate::engine::settings::Settings;
use crate::engine::watch::{Hub, Stream, WatchCreate, WatchReply};
use crate::engine::{Failure, KeyVersion, Writer, txn};
use crate::error::{AuthError, Error, Result, StoreError};
use crate::metrics::{Metrics, Seconds};
use crate::storage::schema::member::MemberRecord;
use crate::traces::{RequestSpan, Traces};
use crate::transport::Transport;
use crate::transport::resolve::PeerUrl;
use crate::types::{
    Alarm, AlarmKind, ClusterId, KeyRange, LeaseId, MemberId, ReadLevel, Revision, WriteAck,
};

/// A range that looks at more keys than this is read on a thread of its own, so that it holds up no one else.
const INLINE_KEYS_MAX: u64 = 512;
/// From when on a read of a majority counts as slow (etcd: 500 ms).
const SLOW_READ: Duration = Duration::from_millis(500);
/// How often a watch stream looks whether a progress notification is due, as a part of the interval.
const PROGRESS_LOOKS: u32 = 10;
const PROGRESS_LOOK_MIN: Duration = Duration::from_millis(10);
/// How long after its start a member waits for other founders before it says who the members are ...
const FOUNDERS_MILLIS: u64 = 3000;
/// ... and how often it looks for them.
const FOUNDERS_POLL: Duration = Duration::from_millis(20);

/// Who this member is, for headers and member lists.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where its clients reach it.
    pub client_urls: Vec<String>,
}

/// The state of a member, for Maintenance.Status, metrics and health.
#[derive(Clone, Debug)]
pub struct Status {
    /// The current revision.
    pub revision: Revision,
    /// The last compaction; zero if there was none.
    pub compacted: Revision,
    /// The bytes on disk.
    pub disk_bytes: u64,
    /// The bytes of what can still be read.
    pub live_bytes: u64,
    /// What `live_bytes` may grow to; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// The alarms that are on: those of clients, and that of a store without room.
    pub alarms: Vec<Alarm>,
    /// Entries accepted so far; never goes back (etcd's raft index).
    pub entries: u64,
    /// Starts of this member, plus one; never goes back (etcd's raft term).
    pub term: u64,
    /// The keys that live now.
    pub keys: u64,
    /// Open watch streams.
    pub watch_streams: u64,
    /// Watchers that have been told everything.
    pub watchers: u64,
    /// Leases.
    pub leases: u64,
}

/// What requests need to know.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// Operations that one transaction may have.
    pub txn_ops_max: usize,
    /// How long a request may take.
    pub timeout: Duration,
    /// After how long without events a watcher that wants it is told the revision.
    pub progress_interval: Duration,
}

/// That a member was removed from its cluster. Whoever opens its store next is somebody else, who may join again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It was in touch with the others then, so somebody wanted it to go.
    Live,
    /// It was away, and may have been taken for dead.
    Away,
}

/// What all handles of a member share with its writer.
pub(super) struct Shared {
    pub(super) mvcc: Arc<Mvcc>,
    pub(super) lessor: Arc<Lessor>,
    pub(super) hub: Arc<Hub>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) auth: Arc<Auth>,
    pub(super) settings: Arc<Settings>,
    /// How often users or roles have changed.
    pub(super) auth_changes: watch::Sender<u64>,
    pub(super) tokens: Tokens,
    pub(super) bcrypt_cost: u32,
    pub(super) clock: SystemClock,
    /// Leases that peers are asked for.
    pub(super) searches: Searches,
    /// Places that were offered to somebody.
    pub(super) places: Places,
    /// Places for snapshots.
    pub(super) snapshots: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
    /// `None` if nobody wants any.
    pub(super) traces: Option<Arc<Traces>>,
    pub(super) member: Member,
    pub(super) options: RequestOptions,
    pub(super) quota_bytes: Option<u64>,
    pub(super) term: u64,
    pub(super) run: u64,
    /// Changes when this member joins another cluster.
    cluster: AtomicU64,
    /// The members, if there are or were others.
    directory: RwLock<Option<Arc<Directory>>>,
    /// Whom this member does not talk to.
    pub(super) blocked: Blocked,
    /// Who of them seems alive.
    live: watch::Sender<Arc<[MemberId]>>,
    /// What the driver has found out about the cluster.
    facts: RwLock<Arc<Facts>>,
    /// Whether clients may be served.
    ready: AtomicBool,
    /// Whether this member has no data, and does not know yet whether the other founders have.
    looks_around: AtomicBool,
    pub(super) entries: AtomicU64,
    no_space: AtomicBool,
    /// Whether the clock of this member is too far off for it to write.
    fenced: AtomicBool,
    /// Whether this member does not serve clients yet.
    learner: AtomicBool,
    /// Whether this member has just started, and does not know yet what time it is for the others.
    unsure: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
    failure: Mutex<Option<StoreError>>,
    failed: Notify,
    /// Whether this process has been admitted by somebody.
    adopted: AtomicBool,
    /// Held while this process asks somebody to be admitted, until it is on record here what came of it.
    asks: tokio::sync::Mutex<()>,
    /// Shared by those that this member admits or adds, until they are on record here. Held alone while this member goes to others, or
    /// leaves some: nobody is admitted by one that is about to go.
    door: tokio::sync::RwLock<()>,
    removed: watch::Sender<Option<Removed>>,
    /// Where wishes to join go, if there can be peers.
    pub(super) calls: OnceLock<mpsc::Sender<Call>>,
    /// Whom this member was told to join.
    pub(super) contacts: Contacts,
    /// Whether it was told so.
    is_called: bool,
    /// Whether nothing had ever been written to the store when this process opened it.
    is_blank: bool,
    anew: watch::Sender<Option<Anew>>,
}

impl Shared {
    pub(super) fn new(
        writer: &Writer,
        member: Member,
        options: RequestOptions,
        quota_bytes: Option<u64>,
        clock: SystemClock,
        (metrics, traces, auth): (Arc<Metrics>, Option<Arc<Traces>>, AuthOptions),
        (contacts, is_called): (Contacts, bool),
    ) -> Self {
        Self {
            mvcc: Arc::clone(writer.mvcc()),
            lessor: Arc::clone(writer.lessor()),
            hub: Arc::clone(writer.hub()),
            alarms: Arc::clone(writer.alarms()),
            auth: Arc::clone(writer.auth()),
            settings: Arc::clone(writer.settings()),
            auth_changes: watch::Sender::new(writer.auth().changes()),
            tokens: Tokens::new(auth.tokens),
            bcrypt_cost: auth.bcrypt_cost,
            clock,
            searches: Searches::default(),
            places: Places::default(),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            metrics,
            traces,
            member,
            options,
            quota_bytes,
            term: writer.starts() + 1,
            run: writer.origin().run,
            cluster: AtomicU64::new(writer.identity().cluster.0),
            directory: RwLock::new(None),
            blocked: Blocked::default(),
            live: watch::Sender::new(Arc::new([])),
            facts: RwLock::default(),
            ready: AtomicBool::new(true),
            looks_around: AtomicBool::new(false),
            entries: AtomicU64::new(writer.entries()),
            no_space: AtomicBool::new(writer.is_out_of_space()),
            fenced: AtomicBool::new(false),
            learner: AtomicBool::new(false),
            unsure: watch::Sender::new(false),
            stopping: watch::Sender::new(false),
            failure: Mutex::new(None),
            failed: Notify::new(),
            adopted: AtomicBool::new(false),
            asks: tokio::sync::Mutex::new(()),
            door: tokio::sync::RwLock::new(()),
            removed: watch::Sender::new(None),
            calls: OnceLock::new(),
            contacts,
            is_called,
            is_blank: writer.is_blank(),
            anew: watch::Sender::new(None),
        }
    }

    /// Takes over what the writer knows after a commit.
    pub(super) fn observe(&self, writer: &Writer) {
        self.entries.store(writer.entries(), Ordering::Relaxed);
        let changes = self.auth.changes();
        self.auth_changes.send_if_modified(|known| std::mem::replace(known, changes) != changes);
        self.no_space.store(writer.is_out_of_space(), Ordering::Relaxed);
    }

    /// Entries that this member has accepted.
    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The cluster that this member belongs to.
    pub(super) fn cluster(&self) -> ClusterId {
        ClusterId(self.cluster.load(Ordering::Relaxed))
    }

    pub(super) fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.store(cluster.0, Ordering::Relaxed);
    }

    /// Whether clients may be served: a member that joins has to get the data first.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.looks_around()
    }

    /// Whether the data is known to be here that a member that joins has to get first.
    pub(super) fn has_data(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether it has still to be found out if the cluster has been there for long.
    pub(super) fn looks_around(&self) -> bool {
        self.looks_around.load(Ordering::Acquire)
    }

    pub(super) fn look_around(&self, looks_around: bool) {
        self.looks_around.store(looks_around, Ordering::Release);
    }

    /// Takes over where the member stands in its cluster.
    pub(super) fn observe_cluster(&self, replica: &Replica) {
        self.ready.store(replica.is_ready(), Ordering::Release);
        let is_unsure = replica.is_unsure();
        self.unsure.send_if_modified(|was| std::mem::replace(was, is_unsure) != is_unsure);
        if let Some(directory) = replica.directory() {
            let own = directory.members.get(&self.member.id);
            let is_admitted = own.is_some_and(|own| !own.initial);
            self.learner.store(own.is_some_and(|own| own.learner), Ordering::Relaxed);
            *self.directory.write() = Some(Arc::new(directory.clone()));
            // Whoever was admitted by others is ready when it has their data.
            if is_admitted {
                self.look_around(false);
            }
        }
    }

    pub(super) fn set_facts(&self, facts: Facts) {
        *self.facts.write() = Arc::new(facts);
    }

    /// Whether the clock of this member is too far off for it to write.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    /// Whether this member writes nothing yet.
    pub(super) fn is_unsure(&self) -> bool {
        *self.unsure.borrow()
    }

    /// Waits until this member may write after its start, which is soon.
    async fn until_sure(&self) -> Result<()> {
        if !self.is_unsure() {
            return Ok(());
        }
        let mut unsure = self.unsure.subscribe();
        let sure = unsure.wait_for(|is_unsure| !is_unsure);
        match tokio::time::timeout(self.options.timeout, sure).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::NotReady),
        }
    }

    pub(super) fn fence(&self, is_fenced: bool) {
        self.fenced.store(is_fenced, Ordering::Relaxed);
    }

    pub(super) fn set_live(&self, live: &[MemberId]) {
        self.live.send_replace(live.into());
    }

    /// Who seems alive, this member left out.
    pub(super) fn live(&self) -> Arc<[MemberId]> {
        Arc::clone(&self.live.borrow())
    }

    /// The same, as it changes.
    pub(super) fn follow_live(&self) -> watch::Receiver<Arc<[MemberId]>> {
        self.live.subscribe()
    }

    /// The members, if there are or were others.
    pub(super) fn directory(&self) -> Option<Arc<Directory>> {
        self.directory.read().clone()
    }

    /// Whether messages of a member are taken.
    pub(super) fn admits(&self, member: MemberId) -> bool {
        let directory = self.directory.read();
        let Some(directory) = directory.as_ref() else { return !self.is_ready() };
        directory.members.contains_key(&member)
            || directory.membership.awaits
            || !directory.members.contains_key(&self.member.id)
    }

    /// Whether nothing is said to a member, and nothing heard from it.
    pub(super) fn blocks(&self, member: MemberId) -> bool {
        let directory = self.directory.read();
        let members = directory.as_ref().map(|directory| &directory.members);
        self.blocked.has(|| Some(members?.get(&member)?.name.as_str()))
    }

    /// Whether there are founders that nobody has met.
    pub(super) fn awaits(&self) -> bool {
        self.directory.read().as_ref().is_some_and(|directory| directory.membership.awaits)
    }

    /// Where they are awaited.
    pub(super) fn awaited(&self) -> Vec<PeerUrl> {
        let directory = self.directory.read();
        let records = directory.iter().flat_map(|directory| directory.members.values());
        let awaited = records.filter(|record| record.initial && !record.is_started());
        awaited.flat_map(|record| &record.peer_urls).filter_map(|url| url.parse().ok()).collect()
    }

    /// Whether this member has been admitted, but has not got the data yet.
    pub(super) fn is_joining(&self) -> bool {
        let is_admitted =
            || self.adopted.load(Ordering::Acquire) || self.has_member(self.member.id);
        !self.is_ready() && is_admitted()
    }

    /// Whether this member is as good as any other: it was not admitted yet, and has nothing.
    pub(super) fn may_become_another(&self) -> bool {
        self.is_blank && !self.is_ready() && !self.is_joining()
    }

    /// The member for which a place is reserved at these addresses.
    pub(super) fn reserved(&self, peer_urls: &[String]) -> Option<MemberId> {
        let directory = self.directory()?;
        reserved(&directory.members, peer_urls).map(|(member, _)| member)
    }

    /// Whether a member takes part already, as another run than this.
    pub(super) fn has_other_run(&self, member: MemberId, run: u64) -> bool {
        let directory = self.directory();
        let known = directory.as_ref().and_then(|it| it.membership.runs.get(&member));
        known.is_some_and(|(known, _)| *known != run) && self.live().binary_search(&member).is_ok()
    }

    /// This member has been admitted.
    pub(super) fn set_adopted(&self) {
        self.adopted.store(true, Ordering::Release);
    }

    /// Waits until nobody is being asked to admit this member; nobody is until the guard is dropped.
    pub(super) async fn asks(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.asks.lock().await
    }

    /// Lets somebody in: until the guard is dropped this member stays where it is. `None` if it is about to go.
    pub(super) fn opens_door(&self) -> Option<tokio::sync::RwLockReadGuard<'_, ()>> {
        let open = self.door.try_read().ok()?;
        (!self.starts_anew()).then_some(open)
    }

    /// Waits until all are in whom this member has let in; nobody else is until the guard is dropped.
    pub(super) async fn shuts_door(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.door.write().await
    }

    /// Whether somebody is a member, as far as this one knows.
    pub(super) fn has_member(&self, member: MemberId) -> bool {
        self.directory.read().as_ref().is_some_and(|it| it.members.contains_key(&member))
    }

    /// Whether somebody was removed.
    pub(super) fn has_removed(&self, member: MemberId) -> bool {
        let directory = self.directory.read();
        directory.as_ref().is_some_and(|it| it.membership.removed.contains_key(&member))
    }

    /// This member was removed.
    pub(super) fn set_removed(&self, removed: Removed) {
        self.removed.send_replace(Some(removed));
    }

    pub(super) async fn removed(&self) -> Removed {
        let mut removals = self.removed.subscribe();
        // The sender is as alive as this is.
        match removals.wait_for(Option::is_some).await.map(|removed| *removed) {
            Ok(Some(removed)) => removed,
            _ => std::future::pending().await,
        }
    }

    /// Whether this member was told to join others while it ran.
    pub(super) fn is_called(&self) -> bool {
        self.is_called
    }

    /// This member is to start anew on its store.
    pub(super) fn start_anew(&self, anew: Anew) {
        self.anew.send_replace(Some(anew));
    }

    /// Whether that has been decided.
    pub(super) fn starts_anew(&self) -> bool {
        self.anew.borrow().is_some()
    }

    pub(super) async fn anew(&self) -> Anew {
        let mut wishes = self.anew.subscribe();
        // The sender is as alive as this is.
        match wishes.wait_for(Option::is_some).await.map(|anew| anew.clone()) {
            Ok(Some(anew)) => anew,
            _ => std::future::pending().await,
        }
    }

    /// Whether somebody would be admitted, as far as is known now. Whoever admits looks again.
    pub(super) fn judge(&self, member: MemberId, record: &MemberRecord) -> Result<(), Refusal> {
        if self.has_removed(member) {
            return Err(Refusal::Removed);
        }
        let me = self.member.id;
        let shares = |urls: &[String]| urls.iter().any(|url| record.peer_urls.contains(url));
        let is_rival = |name: &str, urls: &[String]| name == record.name || shares(urls);
        let directory = self.directory();
        let live = self.live();
        let is_there = |id: MemberId| id == me || live.binary_search(&id).is_ok();
        let others = directory.iter().flat_map(|it| it.members.iter());
        let has_rival = others
            .filter(|(id, other)| **id != member && other.is_started() && is_there(**id))
            .any(|(_, other)| is_rival(&other.name, &other.peer_urls));
        if has_rival || is_rival(&self.member.name, &self.member.peer_urls) {
            return Err(Refusal::Taken);
        }
        Ok(())
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// The store is broken: whoever owns the member must stop the process.
    pub(super) fn fail(&self, error: StoreError) {
        let mut failure = self.failure.lock();
        failure.get_or_insert(error);
        self.stopping.send_replace(true);
        self.failed.notify_waiters();
        self.failed.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(super) async fn failed(&self) -> StoreError {
        loop {
            if let Some(error) = self.failure.lock().take() {
                return error;
            }
            self.failed.notified().await;
        }
    }

    pub(super) fn refuse(&self, failure: Failure) -> Error {
        match failure {
            Failure::Refused(error) => error,
            Failure::Broken(error) => {
                self.fail(error);
                Error::Stopped
            }
        }
    }
}

/// A running member.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Queue,
    /// Where its answers go.
    pub(super) home: Home,
    /// Who has a write before it is answered.
    pub(super) ack: WriteAck,
    /// Whom linearizable reads ask.
    pub(super) reads: ReadLevel,
    /// The way to other members; `None` if there is none, and for what one of them has sent on.
    pub(super) transport: Option<Transport>,
    /// The span of the request that this is for, if that is traced.
    pub(super) span: Option<Arc<RequestSpan>>,
}

impl Handle {
    /// The same, but linearizable reads ask others.
    #[must_use]
    pub fn with_reads(&self, reads: ReadLevel) -> Self {
        Self { reads, ..self.clone() }
    }

    /// Before a linearizable read: returns when this member holds what it has to show. At once, unless a majority is to
    /// be asked.
    pub async fn begin_read(&self) -> Result<()> {
        if self.reads == ReadLevel::Local || self.shared.directory.read().is_none() {
            return Ok(());
        }
        let (reader, wait) = oneshot::channel();
        let begun = Instant::now();
        self.send(Task::Read(reader))?;
        let metrics = &self.shared.metrics;
        let read = tokio::time::timeout(self.shared.options.timeout, wait).await;
        if begun.elapsed() > SLOW_READ {
            metrics.slow_reads.inc();
        }
        match read {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => {
                metrics.failed_reads.inc();
                Err(Error::Timeout)
            }
        }
    }

    /// The same, but writes wait for others.
    #[must_use]
    pub fn with_ack(&self, ack: WriteAck) -> Self {
        Self { ack, ..self.clone() }
    }

    /// What makes spans of requests, if that is wanted.
    pub fn traces(&self) -> Option<&Traces> {
        self.shared.traces.as_deref()
    }

    /// The same, for a request that is traced.
    #[must_use]
    pub fn with_span(&self, span: Arc<RequestSpan>) -> Self {
        Self { span: Some(span), ..self.clone() }
    }

    /// A handle for requests of the current runtime, whose answers arrive there in batches. Its clones are the same.
    #[must_use]
    pub fn at_home(&self) -> Self {
        Self { home: Home::here(), ..self.clone() }
    }

    /// Who this is.
    pub fn member(&self) -> &Member {
        &self.shared.member
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster()
    }

    /// Whether clients may be served: a member that joins has to get the data first.
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// Waits until the founders of a cluster that has just been started know each other: until then each is somebody else. Not for
    /// long, since one of them may never come.
    pub async fn await_founders(&self) {
        let is_young = || self.shared.clock.now().monotonic_millis < FOUNDERS_MILLIS;
        while self.shared.awaits() && is_young() {
            tokio::time::sleep(FOUNDERS_POLL).await;
        }
    }

    /// Whether this member was added as one that only follows, and has not been promoted.
    pub fn is_learner(&self) -> bool {
        self.shared.learner.load(Ordering::Relaxed)
    }

    /// The members, this one included.
    pub fn members(&self) -> BTreeMap<MemberId, MemberRecord> {
        if let Some(directory) = self.shared.directory() {
            return directory.members.clone();
        }
        let own = &self.shared.member;
        let record = MemberRecord {
            name: own.name.clone(),
            peer_urls: own.peer_urls.clone(),
            client_urls: own.client_urls.clone(),
            ..MemberRecord::default()
        };
        BTreeMap::from([(own.id, record)])
    }

    /// What is known of the cluster, as of a moment ago.
    pub fn cluster_status(&self) -> ClusterStatus {
        ClusterStatus {
            facts: Arc::clone(&self.shared.facts.read()),
            members: self.members(),
            has_peers: self.shared.directory.read().is_some(),
            now: self.shared.clock.now(),
        }
    }

    /// How long questions to each peer and their answers take.
    pub fn round_trips(&self) -> BTreeMap<MemberId, Seconds> {
        self.transport.as_ref().map(Transport::round_trips).unwrap_or_default()
    }

    /// Writes that were lost to others that had not seen them: the newest first, and how many there were.
    pub async fn conflicts(&self, max: usize) -> Result<(Vec<Noted>, u64)> {
        let (reply, wait) = oneshot::channel();
        self.send(Task::Conflicts(max, reply))?;
        match tokio::time::timeout(self.shared.options.timeout, wait).await {
            Ok(Ok(conflicts)) => Ok(conflicts),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Changes whom this member does not talk to, by name, until it stops. Returns the list.
    pub fn block(
        &self,
        change: BlockChange,
    ) -> std::result::Result<BTreeSet<String>, BlockRefused> {
        let changes = change != BlockChange::default();
        let names = self.shared.blocked.change(&self.shared.member.name, change)?;
        if changes {
            tracing::warn!(?names, "the members that this one does not talk to");
        }
        Ok(names)
    }

    /// Whether this member does not talk to another one.
    pub fn blocks(&self, member: MemberId) -> bool {
        self.shared.blocks(member)
    }

    /// This start of the member, as others name it.
    pub fn run(&self) -> u64 {
        self.shared.run
    }

    /// Changes the records of members; `None` removes one. Returns after its fsync.
    pub async fn change_members(
        &self,
        changes: Vec<(MemberId, Option<MemberRecord>)>,
    ) -> Result<()> {
        if !self.shared.is_ready() {
            return Err(Error::NotReady);
        }
        self.shared.until_sure().await?;
        if self.shared.is_fenced() {
            return Err(Error::ClockSkew);
        }
        // Who goes to others, or leaves some, leaves the records of its members behind.
        let _open = self.shared.opens_door().ok_or(Error::NotReady)?;
        let (done, wait) = oneshot::channel();
        self.send(Task::Members(changes, done))?;
        match tokio::time::timeout(self.shared.options.timeout, wait).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// What clients are told is the leader: the member that somebody has named, if it seems alive, or else the first by
    /// name that does. It leads nothing.
    pub fn leader(&self) -> MemberId {
        let live = self.live_members();
        let members = self.members();
        let named = self.shared.settings.leader().filter(|id| {
            live.binary_search(id).is_ok() && members.get(id).is_some_and(|record| !record.learner)
        });
        if let Some(named) = named {
            return named;
        }
        let named = members.iter().filter(|(id, record)| {
            live.binary_search(id).is_ok() && record.is_started() && !record.learner
        });
        let first = named.min_by(|(a, x), (b, y)| x.name.cmp(&y.name).then(a.cmp(b)));
        first.map_or(self.shared.member.id, |(id, _)| *id)
    }

    /// Has a member taken for the leader, while it seems alive. Returns after its fsync.
    pub async fn set_leader(&self, member: MemberId) -> Result<()> {
        self.set(Command::SetLeader(member)).await
    }

    /// The version that somebody wants to go back to.
    pub fn downgrade(&self) -> Option<String> {
        self.shared.settings.downgrade()
    }

    /// Says that somebody wants to go back to a version; `None` if not any more. Returns after its fsync.
    pub async fn set_downgrade(&self, version: Option<String>) -> Result<()> {
        self.set(Command::Downgrade(version)).await
    }

    async fn set(&self, command: Command) -> Result<()> {
        match self.execute(command).await? {
            Reply { body: CommandReply::Setting, .. } => Ok(()),
            other => unreachable!("a setting got {other:?}"),
        }
    }

    /// Which members seem alive, this one included, in order.
    pub fn live_members(&self) -> Vec<MemberId> {
        let mut live = self.shared.live().to_vec();
        live.push(self.shared.member.id);
        live.sort_unstable();
        live
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.shared.mvcc.revision()
    }

    /// etcd's raft term, for headers.
    pub fn term(&self) -> u64 {
        self.shared.term
    }

    /// Operations that a transaction may have.
    pub fn txn_ops_max(&self) -> usize {
        self.shared.options.txn_ops_max
    }

    /// How the member is. Asks the file system for sizes.
    pub fn status(&self) -> Status {
        let Shared { mvcc, hub, lessor, .. } = &*self.shared;
        let (watch_streams, watchers) = hub.counts();
        Status {
            revision: mvcc.revision(),
            compacted: mvcc.compacted(),
            disk_bytes: mvcc.disk_bytes(),
            live_bytes: mvcc.live_bytes(),
            quota_bytes: self.shared.quota_bytes,
            alarms: self.alarms(),
            entries: self.shared.entries.load(Ordering::Relaxed),
            term: self.shared.term,
            keys: mvcc.keys(),
            watch_streams,
            watchers,
            leases: lessor.len(),
        }
    }

    /// Whether there is no room for what adds data. That is the member's own state; alarms of clients are others.
    pub fn is_out_of_space(&self) -> bool {
        self.shared.no_space.load(Ordering::Relaxed)
    }

    /// Writes a key. Returns after its fsync.
    pub async fn put(&self, put: Put) -> Result<Reply<PutReply>> {
        self.await_lease(put.lease).await;
        match self.execute(Command::Put(put)).await? {
            Reply { revision, body: CommandReply::Put(body) } => Ok(Reply { revision, body }),
            other => unreachable!("a put got {other:?}"),
        }
    }

    /// Deletes the keys of a range. Returns after its fsync.
    pub async fn delete_range(&self, delete: DeleteRange) -> Result<Reply<DeleteRangeReply>> {
        match self.execute(Command::DeleteRange(delete)).await? {
            Reply { revision, body: CommandReply::DeleteRange(body) } => {
                Ok(Reply { revision, body })
            }
            other => unreachable!("a delete got {other:?}"),
        }
    }

    /// Does a transaction, on the caller's side if it only reads. Checks its operations first.
    pub async fn txn(&self, txn: Txn) -> Result<Reply<TxnReply>> {
        txn.check(self.shared.options.txn_ops_max)?;
        if txn.is_read_only() {
            if !self.shared.is_ready() {
                return Err(Error::NotReady);
            }
            let cost = txn_cost(&txn, &self.shared.mvcc);
            let reply = self.read(cost, move |reader| txn::read_only(&txn, reader)).await?;
            if let Some(span) = &self.span {
                span.answered(reply.revision, reply.body.responses.len());
            }
            return Ok(reply);
        }
        for lease in txn.leases() {
            self.await_lease(lease).await;
        }
        match self.execute(Command::Txn(txn)).await? {
            Reply { revision, body: CommandReply::Txn(body) } => Ok(Reply { revision, body }),
            other => unreachable!("a transaction got {other:?}"),
        }
    }

    /// Reads a range, without the writer.
    pub async fn range(&self, range: Range) -> Result<Reply<RangeReply>> {
        let reply = self.read_range(range).await?;
        if let Some(span) = &self.span {
            span.answered(reply.revision, reply.body.kvs.len());
        }
        Ok(reply)
    }

    async fn read_range(&self, range: Range) -> Result<Reply<RangeReply>> {
        if !self.shared.is_ready() {
            return Err(Error::NotReady);
        }
        let now = self.shared.mvcc.get_now(&range);
        if let Some(reply) = now.map_err(|failure| self.shared.refuse(failure))? {
            return Ok(reply);
        }
        if let Some(reply) = self.range_at_once(&range)? {
            return Ok(reply);
        }
        let cost = self.shared.mvcc.cost(&range);
        self.read(cost, move |reader| {
            Ok(Reply { revision: reader.revision(), body: reader.range_in_chunks(&range)? })
        })
        .await
    }

    /// The puts of a key that are kept, newest first: see [`Reader::versions`]. `through` is `None` for the first of them.
    pub async fn versions(
        &self,
        key: bytes::Bytes,
        through: Option<Revision>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<KeyVersion>> {
        if !self.shared.is_ready() {
            return Err(Error::NotReady);
        }
        self.read(count_max as u64, move |reader| {
            let through = through.unwrap_or_else(|| reader.revision());
            reader.versions(&key, through, count_max, bytes_max)
        })
        .await
    }

    fn range_at_once(&self, range: &Range) -> Result<Option<Reply<RangeReply>>> {
        let reader = self.shared.mvcc.reader();
        let revision = reader.revision();
        let body = reader.range_at_once(range).map_err(|failure| self.shared.refuse(failure))?;
        Ok(body.map(|body| Reply { revision, body }))
    }

    /// Gives up the history before a revision; answers the current one. `physical`: after the space is given up, too.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<Revision> {
        let reply = self.execute(Command::Compact { revision }).await?;
        if physical {
            let (done, wait) = oneshot::channel();
            self.send(Task::AwaitReclaim(self.shared.mvcc.compacted(), done))?;
            wait.await.map_err(|_| Error::Stopped)??;
        }
        Ok(reply.revision)
    }

    /// Raises an alarm, or ends it. Answers whether it was on. The one that a store without room raises is not ended so.
    pub async fn set_alarm(&self, alarm: Alarm, on: bool) -> Result<bool> {
        match self.execute(Command::Alarm { alarm, on }).await? {
            Reply { body: CommandReply::Alarm { was_on }, .. } => Ok(was_on),
            other => unreachable!("an alarm got {other:?}"),
        }
    }

    /// The keys that are attached to a lease, as far as this member knows.
    pub fn keys_of_lease(&self, id: LeaseId) -> Vec<bytes::Bytes> {
        self.shared.lessor.keys(id).unwrap_or_default()
    }

    /// The alarms that are on: those of clients, and that of a store without room, once each.
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = self.shared.alarms.list();
        let own = Alarm { kind: AlarmKind::NoSpace, member: self.shared.member.id };
        if self.is_out_of_space()
            && let Err(place) = alarms.binary_search(&own)
        {
            alarms.insert(place, own);
        }
        alarms
    }

    /// Hashes the live state at a revision (zero or less: the current one).
    pub async fn hash_kv(&self, revision: i64) -> Result<StateHash> {
        self.read(u64::MAX, move |reader| reader.hash(revision)).await
    }

    /// Hashes everything that is stored.
    pub async fn hash(&self) -> Result<u32> {
        self.read(u64::MAX, |reader| Ok(reader.hash_log()?)).await
    }

    /// A new watch stream: the state of one client's Watch RPC.
    pub fn watch(&self) -> WatchStream {
        let mail = Arc::new(Notify::new());
        let waker = Arc::clone(&mail);
        let waker = Box::new(move || waker.notify_one());
        let stream =
            Stream::new(Arc::clone(&self.shared.hub), Arc::clone(&self.shared.mvcc), waker);
        WatchStream { stream, mail, shared: Arc::clone(&self.shared) }
    }

    /// Resolves when the member starts to stop: streams end then.
    pub async fn stopping(&self) {
        let mut stopping = self.shared.stopping.subscribe();
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Reads on the caller's thread if it is quick, on one that may block if not.
    async fn read<T, F>(&self, cost: u64, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Reader<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let read = move || f(&shared.mvcc.reader()).map_err(|failure| shared.refuse(failure));
        if cost <= INLINE_KEYS_MAX {
            return read();
        }
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Stopped)?
    }

    pub(super) async fn execute(&self, command: Command) -> Result<Reply<CommandReply>> {
        if !self.shared.is_ready() {
            return Err(Error::NotReady);
        }
        // A compaction is a member's own.
        if !matches!(command, Command::Compact { .. }) {
            self.shared.until_sure().await?;
        }
        let (reply, wait) = oneshot::channel();
        let queued = self.span.as_ref().map(|span| Box::new(Queued::now(span)));
        self.send(Task::Command {
            command,
            reply,
            home: self.home.clone(),
            ack: self.ack,
            queued,
        })?;
        let _pending = Pending::new(&self.shared.metrics);
        let reply = match tokio::time::timeout(self.shared.options.timeout, wait).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(self.given_up(Error::Stopped)),
            Err(_) => return Err(self.given_up(Error::Timeout)),
        };
        if let Some(span) = &self.span {
            span.answered(reply.revision, keys_of(&reply.body));
        }
        Ok(reply)
    }

    fn given_up(&self, error: Error) -> Error {
        self.shared.metrics.writes_failed.inc();
        error
    }

    pub(super) fn send(&self, task: Task) -> Result<()> {
        self.queue.try_send(task).map_err(|error| match error {
            TrySendError::Full(_) => Error::TooManyRequests,
            TrySendError::Disconnected(_) => Error::Stopped,
        })
    }
}

/// A write that waits for its answer, or that its client waits for no more.
struct Pending<'a>(&'a Metrics);

impl<'a> Pending<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.writes_pending.inc();
        Self(metrics)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.writes_pending.dec();
    }
}

/// How many keys an answer is about; of a transaction, how many of its steps were done.
fn keys_of(reply: &CommandReply) -> usize {
    match reply {
        CommandReply::Put(_) => 1,
        CommandReply::DeleteRange(reply) => usize::try_from(reply.deleted).unwrap_or(usize::MAX),
        CommandReply::Txn(reply) => reply.responses.len(),
        _ => 0,
    }
}

fn txn_cost(txn: &Txn, mvcc: &Mvcc) -> u64 {
    let compares = txn.compares.iter().map(|compare| mvcc.cost(&Range::new(compare.range.clone())));
    let ranges = txn.success.iter().chain(&txn.failure).map(|op| match op {
        TxnOp::Range(range) => mvcc.cost(range),
        _ => 0,
    });
    compares.chain(ranges).fold(0, u64::saturating_add)
}

/// A random positive id, as etcd draws them.
pub(super) fn draw_lease_id() -> LeaseId {
    LeaseId(rand::random_range(1..=i64::MAX))
}

/// The watchers of one client stream. Dropping it ends them.
pub struct WatchStream {
    stream: Stream,
    mail: Arc<Notify>,
    shared: Arc<Shared>,
}

impl WatchStream {
    /// Adds a watcher. Its `Created` or `Refused` reply comes through [`Self::next`], before any of its events and in the
    /// order of the calls.
    pub fn create(&mut self, create: WatchCreate) {
        self.stream.create(create);
    }

    /// Takes an id for a watcher that another member serves, or says through [`Self::next`] why there is none.
    pub fn adopt(&mut self, create: &WatchCreate) -> Option<i64> {
        self.stream.adopt(create)
    }

    /// A watcher that another member serves has ended at the client's wish.
    pub fn release(&mut self, id: i64) {
        self.stream.release(id);
    }

    /// A watcher that another member serves has ended, since what it needs next is compacted there.
    pub fn expire(&mut self, id: i64) {
        self.stream.expire(id);
    }

    /// The member that serves a watcher is not reached: it ends as compacted here. `is_new`: the client does not know of it yet.
    pub fn lose(&mut self, id: i64, is_new: bool) {
        self.stream.lose(id, is_new);
    }

    /// Whether this member serves no watcher of the stream.
    pub fn is_idle(&self) -> bool {
        self.stream.is_idle()
    }

    /// Says through [`Self::next`] that there is no watcher, since whoever asks may not have one.
    pub fn deny(&mut self, reason: AuthError) {
        self.stream.deny(reason);
    }

    /// Ends all watchers of keys that may not be read any more. Answers those of them that other members serve.
    pub fn withdraw(&mut self, may_read: impl Fn(&KeyRange) -> Result<(), AuthError>) -> Vec<i64> {
        self.stream.withdraw(may_read)
    }

    /// Ends a watcher; an unknown id is ignored.
    pub fn cancel(&mut self, id: i64) {
        self.stream.cancel(id);
    }

    /// Asks for a progress reply for all watchers of the stream.
    pub fn request_progress(&mut self) {
        self.stream.request_progress();
    }

    /// How many replies wait to be taken: while there are many, the client's requests should wait, too.
    pub fn backlog(&self) -> usize {
        self.stream.backlog()
    }

    /// The next reply. Cancel-safe: a call that is dropped loses nothing. It waits for ever when nothing happens.
    pub async fn next(&mut self) -> Result<WatchReply> {
        let interval = self.shared.options.progress_interval;
        let look = (interval / PROGRESS_LOOKS).max(PROGRESS_LOOK_MIN);
        loop {
            if let Some(reply) = self.try_next()? {
                return Ok(reply);
            }
            // A timeout is only the time to look again.
            let _ = tokio::time::timeout(look, self.mail.notified()).await;
            let interval_millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            self.stream.tick(self.shared.clock.now().monotonic_millis, interval_millis);
        }
    }

    /// The next reply if there is one already, to fill a write with.
    pub fn try_next(&mut self) -> Result<Option<WatchReply>> {
        self.stream.poll().map_err(|error| self.shared.refuse(Failure::Broken(error)))
    }
}
