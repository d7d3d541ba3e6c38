//! This member among its peers: what they say goes to the writer's thread, what it says to them goes to the transport.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use starling_proto::starling::peer::v1 as pb;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

use super::blocked::BlockChange;
use super::discovery::{Discovery, Plan, Step};
use super::driver::{Queue, Task, step_back};
use super::forward::Services;
use super::handle::{Handle, Shared};
use super::joining::{self, Anew, Call};
use crate::engine::replica::{Admission, ClusterOptions, Refusal, Replica};
use crate::replication::message::Message;
use crate::storage::schema::member::MemberRecord;
use crate::time::Timestamp;
use crate::transport::resolve::{Candidate, PeerUrl};
use crate::transport::wire::PROTOCOL;
use crate::transport::{
    Identity, PeerAddress, PeerHandler, PeerListener, TlsFiles, Transport, TransportOptions,
};
use crate::types::{ClusterId, MemberId, Origin};

/// How long a peer's message waits for room in the writer's queue before it looks again.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);
/// What a member is told that has the name or the address of another.
const TAKEN: &str = "a living member has this name or address";
/// What a member is told that was removed (etcd's words).
const REMOVED: &str = "the member has been permanently removed from the cluster";
/// What a member is told that is on the list of those not to talk to.
const BLOCKED: &str = "this member does not talk to you: it has blocked your name";

/// How often founders look for each other, and joiners for a contact.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// So many looks in a row without a cluster before somebody begins one, where a name stands for all members.
const FOUNDING_LOOKS: u32 = 10;
/// A member without peers looks every so many times whether those it was to join have come together without it.
const REUNION_LOOKS: u32 = 10;

/// How long another founder may take to say who it is. One without data does not serve before that.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Peers far behind that wait for their turn at most: the gossip lets fewer in at once.
const BACKGROUND_MAX: usize = 16;
/// The priority of serving them: about a tenth of a core remains where clients want all of it.
const BACKGROUND_NICE: i32 = 10;

/// How a member reaches its peers, and they it.
#[derive(Debug)]
pub struct PeerOptions {
    /// Where it listens for them.
    pub listeners: Vec<TcpListener>,
    /// Whether it speaks TLS there.
    pub listens_with_tls: bool,
    /// The files for that.
    pub tls: Option<TlsFiles>,
    /// Its place in the cluster.
    pub cluster: ClusterOptions,
    /// Addresses of members to join.
    pub join: Vec<PeerUrl>,
    /// Whose SRV records name members.
    pub discovery: Option<Discovery>,
    /// Addresses of members to join when they are reached. Until then this one serves alone.
    pub seek: Vec<PeerUrl>,
    /// Names of members not to talk to.
    pub block: Vec<String>,
    /// What answers requests that other members send on.
    pub services: Option<Services>,
}

impl PeerOptions {
    /// A store that has left a cluster does not go by the settings that brought it there; one that was told to join others
    /// goes to those, too.
    pub(super) fn go_by(&mut self, replica: &Replica, called: &[String]) {
        let is_called = !called.is_empty();
        if replica.writer().has_parted() || is_called {
            self.cluster.initial.clear();
            // It joins, and founds nothing.
            self.discovery.iter_mut().for_each(|discovery| discovery.token = None);
        }
        if replica.writer().has_parted() {
            self.join.clear();
            self.seek.clear();
            self.discovery = None;
        }
        self.join.extend(parse_all(called.iter()));
    }
}

/// What peers and the shell both know of where members are.
#[derive(Debug, Default)]
struct Addresses {
    /// As the records of the members say.
    members: BTreeMap<MemberId, Vec<PeerUrl>>,
    /// Of those that were met before their records had come.
    met: BTreeMap<MemberId, Vec<PeerUrl>>,
}

/// Takes what peers say.
struct Gate {
    shared: Arc<Shared>,
    queue: Queue,
    /// Whose parts of its data have been handed on, and are not dealt with yet; one each.
    parts: Mutex<BTreeMap<MemberId, oneshot::Receiver<()>>>,
}

impl Gate {
    /// Puts a task into the writer's queue, waiting for room.
    async fn submit(&self, mut task: Task) -> Result<(), Status> {
        loop {
            task = match self.queue.try_send(task) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(task)) => task,
                Err(TrySendError::Disconnected(_)) => return Err(stopped()),
            };
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
    }
}

fn stopped() -> Status {
    Status::unavailable("the member stops")
}

#[tonic::async_trait]
impl PeerHandler for Gate {
    async fn deliver(&self, from: MemberId, run: u64, message: Message) {
        let (done, wait) = oneshot::channel();
        let is_part = matches!(message, Message::CatchUpPart(_));
        let former = self.parts.lock().remove(&from);
        if let Some(former) = former {
            let _ = former.await;
        }
        if is_part {
            // The next one is read and decoded meanwhile.
            self.parts.lock().insert(from, wait);
            let from = Origin { member: from, run };
            let _ = self.submit(Task::Peer(from, Box::new(message), done)).await;
            return;
        }
        let from = Origin { member: from, run };
        if self.submit(Task::Peer(from, Box::new(message), done)).await.is_ok() {
            // The next message is read when this one has been dealt with.
            let _ = wait.await;
        }
    }

    async fn hello(&self, request: pb::HelloRequest) -> Result<pb::HelloReply, Status> {
        let shared = &self.shared;
        Ok(pb::HelloReply {
            protocol: PROTOCOL,
            cluster_id: shared.cluster().0,
            member_id: shared.member.id.0,
            run: shared.run,
            name: shared.member.name.clone(),
            in_cluster: shared.is_ready(),
            admits_caller: shared.admits(MemberId(request.member_id)),
            alone: shared.is_alone(),
        })
    }

    async fn join(&self, request: pb::JoinRequest) -> Result<pb::JoinReply, Status> {
        let refuse =
            |why: &str| Ok(pb::JoinReply { refusal: why.to_owned(), ..pb::JoinReply::default() });
        let takes_reserved = request.takes_reserved;
        if request.protocol != PROTOCOL {
            return refuse("another protocol version is spoken here");
        }
        if request.cluster_id != 0 && request.cluster_id != self.shared.cluster().0 {
            return refuse("cluster id mismatch");
        }
        if request.name.is_empty() || request.peer_urls.is_empty() || request.member_id == 0 {
            return refuse("a member needs an id, a name and peer URLs");
        }
        if !self.shared.is_ready() {
            return refuse("this member has not joined yet itself");
        }
        let Some(_open) = self.shared.opens_door() else {
            return refuse("this member is about to join or leave others itself");
        };
        if self.shared.is_unsure() {
            return refuse("this member has just started");
        }
        if self.shared.is_fenced() {
            return refuse("the clock of this member is off");
        }
        if self.shared.blocked.has(|| Some(&request.name)) {
            return refuse(BLOCKED);
        }
        let member = MemberId(request.member_id);
        let record = MemberRecord {
            name: request.name,
            peer_urls: request.peer_urls,
            client_urls: request.client_urls,
            zone: request.zone,
            learner: request.learner,
            volatile: request.volatile,
            ..MemberRecord::default()
        };
        if request.check {
            return match self.shared.judge(member, &record) {
                Ok(()) => Ok(pb::JoinReply::default()),
                Err(Refusal::Removed) => refuse(REMOVED),
                Err(Refusal::Taken) => refuse(TAKEN),
            };
        }
        let reserved = takes_reserved.then(|| self.shared.reserved(&record.peer_urls)).flatten();
        if let Some(reserved) = reserved.filter(|reserved| *reserved != member) {
            let now = self.shared.clock.now();
            if !self.shared.places.offer(reserved, member, now) {
                return refuse(TAKEN);
            }
            let reserved_member_id = reserved.0;
            return Ok(pb::JoinReply { reserved_member_id, ..pb::JoinReply::default() });
        }
        // Another member may have offered the place to it, before that one could know that it was taken.
        if request.run != 0 && self.shared.has_other_run(member, request.run) {
            return refuse(TAKEN);
        }
        let (reply, wait) = oneshot::channel();
        self.submit(Task::Admit { member, record: Box::new(record), reply }).await?;
        match wait.await.map_err(|_| stopped())? {
            Ok(admission) => Ok(to_reply(&admission)),
            Err(Refusal::Removed) => refuse(REMOVED),
            Err(Refusal::Taken) => refuse(TAKEN),
        }
    }

    async fn call(&self, request: pb::CallRequest) -> Result<pb::CallReply, Status> {
        let refuse = |why: String| Ok(pb::CallReply { refusal: why });
        if request.protocol != PROTOCOL {
            return refuse("another protocol version is spoken here".to_owned());
        }
        match self.shared.call(parse_all(request.peer_urls.iter()), false).await {
            Ok(_) => Ok(pb::CallReply::default()),
            Err(why) => refuse(why.to_string()),
        }
    }

    fn admit(&self, from: MemberId, _run: u64) -> Result<(), String> {
        if self.shared.has_removed(from) {
            Err(REMOVED.to_owned())
        } else if self.shared.blocks(from) {
            Err(BLOCKED.to_owned())
        } else if self.shared.admits(from) {
            Ok(())
        } else {
            Err("not a member of this cluster: join first".to_owned())
        }
    }

    fn on_connected(&self, from: MemberId, _run: u64) {
        // A full queue means that the writer is busy; it finds out by the messages that come.
        let _ = self.queue.try_send(Task::Contact(from));
    }

    fn on_disconnected(&self, from: MemberId, _run: u64) {
        let _ = self.queue.try_send(Task::Lost(from));
    }

    fn on_unreachable(&self, to: MemberId, status: &Status) {
        // Whoever is no member here has no say in it.
        let is_removal = status.code() == Code::FailedPrecondition && status.message() == REMOVED;
        if is_removal && self.shared.has_member(to) {
            let _ = self.queue.try_send(Task::Removed(to));
        }
    }
}

fn to_reply(admission: &Admission) -> pb::JoinReply {
    let members = admission.members.iter().map(|(member, record)| pb::Record {
        key: MemberRecord::key(*member),
        value: record.value(),
        stamp: None,
    });
    pb::JoinReply {
        refusal: String::new(),
        cluster_id: admission.cluster.0,
        now: admission.time.0,
        members: members.collect(),
        reserved_member_id: 0,
    }
}

fn from_reply(reply: pb::JoinReply) -> Result<Admission, String> {
    if !reply.refusal.is_empty() {
        return Err(reply.refusal);
    }
    let time = Timestamp(reply.now);
    if time > Timestamp::HEARD_MAX {
        return Err("its clock shows no time that could be right".to_owned());
    }
    let members = reply.members.into_iter().map(|record| {
        Ok((MemberRecord::member(&record.key)?, MemberRecord::decode(record.value)?))
    });
    let members: Result<_, crate::error::StoreError> = members.collect();
    Ok(Admission {
        cluster: ClusterId(reply.cluster_id),
        time,
        members: members.map_err(|error| error.to_string())?,
    })
}

/// The way to the peers.
pub(super) struct Peers {
    pub(super) transport: Transport,
    runtime: tokio::runtime::Runtime,
    background: SyncSender<Work>,
    addresses: Arc<Mutex<Addresses>>,
}

/// Something that may take long and block.
type Work = Box<dyn FnOnce() + Send>;

impl Peers {
    /// Listens, and begins to look for those to be found; also at former addresses of members.
    pub(super) fn start(
        options: PeerOptions,
        handle: &Handle,
        former: &[String],
    ) -> Result<Self, String> {
        let Handle { shared, queue, .. } = handle;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("peers")
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let block = BlockChange { add: options.block, ..BlockChange::default() };
        let refused = |why| format!("--peer-block: {why}");
        shared.blocked.change(&shared.member.name, block).map_err(refused)?;
        let founders = parse_all(options.cluster.initial.iter().flatten());
        // The same command may have been started before, on a disk that is gone.
        shared.look_around(shared.mvcc.keys() == 0 && !founders.is_empty());
        let gate =
            Gate { shared: Arc::clone(shared), queue: queue.clone(), parts: Mutex::default() };
        let identity =
            Identity { cluster: Some(shared.cluster()), member: shared.member.id, run: shared.run };
        let transport_options =
            TransportOptions { identity, tls: options.tls, timing: Default::default() };
        let transport = Transport::start(transport_options, Arc::new(gate), runtime.handle())
            .map_err(|error| error.to_string())?;
        let tls = options.listens_with_tls;
        let listeners =
            options.listeners.into_iter().map(|socket| PeerListener { socket, tls }).collect();
        let mut router = transport.router();
        if let Some(services) = options.services {
            let _runtime = runtime.enter();
            router = router.merge(services.router(handle.at_home()));
        }
        transport
            .serve(listeners, &router)
            .map_err(|error| format!("cannot listen for peers: {error}"))?;
        let addresses = Arc::default();
        let search = Search {
            transport: transport.clone(),
            shared: Arc::clone(shared),
            queue: queue.clone(),
            addresses: Arc::clone(&addresses),
            founders,
            join: options.join,
            seek: options.seek,
            former: parse_all(former.iter()),
            discovery: options.discovery,
            record: options.cluster.record,
        };
        let (calls, called) = joining::calls();
        // There is one search for each member.
        let _ = shared.calls.set(calls);
        let background = start_background().map_err(|error| format!("cannot start: {error}"))?;
        runtime.spawn(search.run(called));
        Ok(Self { transport, runtime, background, addresses })
    }

    /// Does something for a peer that is far behind: one such thing at a time, and clients go first.
    pub(super) fn spawn_background(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) =
            self.background.try_send(Box::new(work))
        {
            self.spawn_blocking(work);
        }
    }

    /// Runs something that may take long and block, such as a read of the log.
    pub(super) fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.runtime.spawn_blocking(work);
    }

    /// Takes note of where the members are.
    pub(super) fn set_members(&self, members: &BTreeMap<MemberId, MemberRecord>, me: MemberId) {
        let mut addresses = self.addresses.lock();
        addresses.members = members
            .iter()
            .filter(|(id, record)| **id != me && record.is_started())
            .map(|(id, record)| (*id, parse_all(record.peer_urls.iter())))
            .collect();
        self.transport.set_peers(addresses.all());
    }

    /// Ends all talk.
    pub(super) fn stop(self) {
        self.runtime.block_on(self.transport.stop());
        self.runtime.shutdown_background();
    }
}

impl Addresses {
    fn all(&self) -> Vec<PeerAddress> {
        let met = self.met.iter().filter(|(member, _)| !self.members.contains_key(member));
        let all = self.members.iter().chain(met);
        all.map(|(member, urls)| PeerAddress { member: *member, urls: urls.clone() }).collect()
    }
}

/// A thread that steps back for all others. It ends when nobody can send it anything any more.
fn start_background() -> std::io::Result<SyncSender<Work>> {
    let (sender, works) = std::sync::mpsc::sync_channel::<Work>(BACKGROUND_MAX);
    let run = move || {
        step_back(BACKGROUND_NICE);
        works.into_iter().for_each(|work| work());
    };
    std::thread::Builder::new().name("catch-up".to_owned()).spawn(run)?;
    Ok(sender)
}

fn parse_all<'a>(urls: impl Iterator<Item = &'a String>) -> Vec<PeerUrl> {
    // What cannot be read was refused where it came from; a record of another member may be newer than we are.
    urls.filter_map(|url| url.parse().ok()).collect()
}

/// Looks for the other founders, or for somebody to join.
pub(super) struct Search {
    pub(super) transport: Transport,
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Queue,
    addresses: Arc<Mutex<Addresses>>,
    founders: Vec<PeerUrl>,
    join: Vec<PeerUrl>,
    /// Where those are that are joined when they are reached.
    pub(super) seek: Vec<PeerUrl>,
    /// Where members were that a former owner of the store knew.
    former: Vec<PeerUrl>,
    discovery: Option<Discovery>,
    record: MemberRecord,
}

impl Search {
    async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        let mut told = BTreeSet::new();
        let mut is_admitted = false;
        let (mut in_vain, mut looks) = (0, 0_u32);
        loop {
            looks = looks.wrapping_add(1);
            if self.shared.looks_around() {
                is_admitted = is_admitted || self.look_around(&mut told).await;
            } else if !self.shared.is_ready() {
                in_vain = if self.look_for_contact(&mut told).await { in_vain + 1 } else { 0 };
                if in_vain >= FOUNDING_LOOKS {
                    tracing::info!("nobody here is in a cluster: this member begins one");
                    in_vain = 0;
                    let _ = self.queue.try_send(Task::StandAlone);
                }
            } else if !self.join.is_empty() && looks.is_multiple_of(REUNION_LOOKS) {
                self.look_for_reunion().await;
            } else if self.shared.awaits() {
                let contacts = self.look_for_founders(&mut told).await;
                self.ask_any_to_join(&contacts, &mut told).await;
            } else if !self.seek.is_empty() && self.shared.is_alone() {
                self.seek().await;
            }
            tokio::select! {
                () = tokio::time::sleep(SEARCH_INTERVAL) => {}
                Some(call) = calls.recv() => self.take_call(call).await,
            }
            if self.shared.is_stopping() {
                return;
            }
        }
    }

    pub(super) async fn candidates(&self, urls: &[PeerUrl]) -> Vec<Candidate> {
        match self.transport.resolver().candidates(urls).await {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::debug!(%error, "cannot find peers");
                Vec::new()
            }
        }
    }

    async fn hello(&self, candidate: &Candidate) -> Option<pb::HelloReply> {
        let reply = self.hello_to_any(candidate).await?;
        (reply.member_id != self.shared.member.id.0).then_some(reply)
    }

    /// The same, if it is this member itself, too.
    async fn hello_to_any(&self, candidate: &Candidate) -> Option<pb::HelloReply> {
        let request = pb::HelloRequest {
            protocol: PROTOCOL,
            member_id: self.shared.member.id.0,
            cluster_id: self.shared.cluster().0,
        };
        match self.transport.hello(candidate.clone(), request).await {
            Ok(reply) => Some(reply),
            Err(status) => {
                let address = candidate.address;
                tracing::debug!(%address, error = status.message(), "nobody there");
                None
            }
        }
    }

    /// A founder that has lost its disk must not serve before it has what the others have; one that is there for the first
    /// time has nobody to wait for. Answers whether it was admitted: then its records end this when they come.
    async fn look_around(&self, told: &mut BTreeSet<String>) -> bool {
        let contacts = self.look_for_founders(told).await;
        if contacts.is_empty() {
            self.shared.look_around(false);
        }
        self.ask_any_to_join(&contacts, told).await
    }

    /// Founders know each other by address only. Whoever is found there is talked to. Answers where the cluster goes on
    /// since long, without this member: it has lost its disk, it seems.
    async fn look_for_founders(&self, told: &mut BTreeSet<String>) -> Vec<Candidate> {
        let mut contacts = Vec::new();
        // Those whom DNS named are known by the records that await them.
        let mut founders = self.shared.awaited();
        founders.extend(self.founders.iter().cloned());
        founders.sort();
        founders.dedup();
        let found = join_all(founders.iter().map(|url| self.who_is_at(url))).await;
        for (candidate, reply) in found.into_iter().flatten() {
            if reply.cluster_id != self.shared.cluster().0 {
                if told.insert(candidate.url.to_string()) {
                    tracing::warn!(
                        url = %candidate.url,
                        cluster = %ClusterId(reply.cluster_id),
                        "a member of another cluster is there"
                    );
                }
            } else if reply.admits_caller {
                self.meet(MemberId(reply.member_id), &candidate.url);
            } else if reply.in_cluster {
                contacts.push(candidate);
            }
        }
        contacts
    }

    /// Those who answer, in time.
    pub(super) async fn who_is_at(&self, url: &PeerUrl) -> Vec<(Candidate, pb::HelloReply)> {
        let mut found = Vec::new();
        for candidate in self.candidates(std::slice::from_ref(url)).await {
            let hello = tokio::time::timeout(HELLO_TIMEOUT, self.hello(&candidate)).await;
            if let Ok(Some(reply)) = hello {
                found.push((candidate, reply));
            }
        }
        found
    }

    async fn ask_any_to_join(&self, contacts: &[Candidate], told: &mut BTreeSet<String>) -> bool {
        for contact in contacts {
            if self.ask_to_join(contact, told).await {
                return true;
            }
        }
        false
    }

    fn meet(&self, member: MemberId, url: &PeerUrl) {
        let mut addresses = self.addresses.lock();
        let urls = addresses.met.entry(member).or_default();
        if urls.contains(url) {
            return;
        }
        urls.push(url.clone());
        tracing::info!(%member, %url, "met a founder");
        self.transport.set_peers(addresses.all());
        drop(addresses);
        let _ = self.queue.try_send(Task::Contact(member));
    }

    /// Answers whether it is for this member to begin a cluster: it has been called by a name that stands for itself, too, and of
    /// those that answer there none is in one, nor is any before it.
    async fn look_for_contact(&mut self, told: &mut BTreeSet<String>) -> bool {
        let mut urls = self.join.clone();
        urls.extend(self.former.iter().cloned());
        if !self.former.is_empty() {
            urls.extend(self.founders.iter().cloned());
        }
        let named = self.named_by_dns(told).await;
        if self.shared.is_joining() {
            return false;
        }
        if let Some(plan) = self.plan(&named, told).await {
            self.follow(&plan, told).await;
            return false;
        }
        urls.extend(named);
        let (me, mut is_called, mut is_first) = (self.shared.member.id.0, false, true);
        for candidate in self.candidates(&urls).await {
            let Some(reply) = self.hello_to_any(&candidate).await else { continue };
            if reply.member_id == me {
                // What SRV records name is founded by a plan, or not at all.
                is_called |= self.join.contains(&candidate.url);
            } else if reply.in_cluster {
                is_first = false;
                if self.ask_to_join(&candidate, told).await {
                    return false;
                }
            } else {
                is_first &= me < reply.member_id;
            }
        }
        // One that had peers, or was told to join somebody, has a cluster to go to.
        is_called && is_first && self.former.is_empty() && !self.shared.is_called()
    }

    /// Two that did not see each other may both have begun a cluster: the later one by id goes to the other, if it is still alone.
    async fn look_for_reunion(&self) {
        if !self.shared.is_alone() {
            return;
        }
        let (me, cluster) = (self.shared.member.id.0, self.shared.cluster().0);
        for candidate in self.candidates(&self.join).await {
            let Some(reply) = self.hello(&candidate).await else { continue };
            let is_blocked = self.shared.blocked.has(|| Some(&reply.name));
            let goes = reply.in_cluster && reply.cluster_id != cluster && !is_blocked;
            if goes && (!reply.alone || reply.member_id < me) {
                match self.go_to_if_admitted(&candidate).await {
                    Ok(()) => return,
                    Err(why) => tracing::debug!(%why, "cannot join those that are elsewhere"),
                }
            }
        }
    }

    /// The members that SRV records name now.
    async fn named_by_dns(&self, told: &mut BTreeSet<String>) -> Vec<PeerUrl> {
        let Some(Discovery { domain, service, .. }) = &self.discovery else { return Vec::new() };
        match self.transport.resolver().members_of(domain, service).await {
            Ok(named) => named,
            Err(error) => {
                if told.insert(domain.clone()) {
                    tracing::warn!(domain, %error, "cannot discover members");
                }
                Vec::new()
            }
        }
    }

    /// The cluster that is to be founded by the records, unless this member is only to join one.
    async fn plan(&self, named: &[PeerUrl], told: &mut BTreeSet<String>) -> Option<Plan> {
        let token = self.discovery.as_ref()?.token.as_ref()?;
        if named.is_empty() || !self.former.is_empty() {
            return None;
        }
        let advertised = parse_all(self.record.peer_urls.iter());
        let plan = Plan::new(token, named, |url| advertised.contains(url));
        if plan.is_some() {
            return plan;
        }
        // The records may name it otherwise: by a name instead of an address.
        let mine: BTreeSet<_> =
            self.candidates(&advertised).await.into_iter().map(|it| it.address).collect();
        let mut own = Vec::new();
        for candidate in self.candidates(named).await {
            if mine.contains(&candidate.address) && !own.contains(&candidate.url) {
                own.push(candidate.url);
            }
        }
        let is_secure = |url: &PeerUrl| advertised.iter().any(|it| it.tls == url.tls);
        if let Some(url) = own.iter().find(|url| !is_secure(url)) {
            if told.insert(url.to_string()) {
                tracing::warn!(%url, "the records name this member with another scheme than its own");
            }
            return None;
        }
        let plan = Plan::new(token, named, |url| own.contains(url));
        if plan.is_none() && told.insert("no record".to_owned()) {
            tracing::warn!("the SRV records do not name this member: it can join, but not found");
        }
        plan
    }

    /// Founds a cluster with others that are as new, or joins the one that is there.
    async fn follow(&mut self, plan: &Plan, told: &mut BTreeSet<String>) {
        // By this the others see that they are after the same cluster.
        self.shared.set_cluster(plan.cluster);
        for url in plan.own.iter().map(PeerUrl::to_string) {
            if !self.record.peer_urls.contains(&url) {
                self.record.peer_urls.push(url);
            }
        }
        let seen = join_all(plan.others.iter().map(|url| self.who_is_at(url))).await;
        match plan.step(&seen) {
            Step::Wait if told.insert(plan.cluster.to_string()) => tracing::info!(
                founders = plan.others.len() + 1,
                "the cluster is founded when a majority of those named is there"
            ),
            Step::Wait => {}
            Step::Found => self.found(plan).await,
            Step::Join(contacts) => _ = self.ask_any_to_join(&contacts, told).await,
        }
    }

    async fn found(&self, plan: &Plan) {
        let (done, wait) = oneshot::channel();
        let task = Task::Found {
            cluster: plan.cluster,
            record: Box::new(self.record.clone()),
            others: plan.others.iter().map(|url| vec![url.to_string()]).collect(),
            done,
        };
        if self.queue.try_send(task).is_err() || wait.await.is_err() {
            return;
        }
        tracing::info!(cluster = %plan.cluster, founders = plan.others.len() + 1, "founded");
        self.transport.set_identity(Identity {
            cluster: Some(plan.cluster),
            member: self.shared.member.id,
            run: self.shared.run,
        });
    }

    /// What this member asks for when it wants to join.
    pub(super) fn wish(&self) -> pb::JoinRequest {
        let record = self.record.clone();
        pb::JoinRequest {
            protocol: PROTOCOL,
            member_id: self.shared.member.id.0,
            run: self.shared.run,
            name: record.name,
            peer_urls: record.peer_urls,
            client_urls: record.client_urls,
            zone: record.zone,
            learner: record.learner,
            volatile: record.volatile,
            ..pb::JoinRequest::default()
        }
    }

    /// Asks one member. Answers whether it has agreed.
    async fn ask_to_join(&self, candidate: &Candidate, told: &mut BTreeSet<String>) -> bool {
        let Some(contact) = self.hello(candidate).await else { return false };
        if self.shared.blocked.has(|| Some(&contact.name)) {
            return false;
        }
        let _asks = self.shared.asks().await;
        if self.shared.starts_anew() {
            return false;
        }
        let takes_reserved = self.shared.may_become_another();
        let wish = pb::JoinRequest { takes_reserved, ..self.wish() };
        let answer = self.transport.join(candidate.clone(), wish).await;
        if let Ok(reply) = &answer
            && takes_reserved
            && reply.reserved_member_id != 0
        {
            let reserved = MemberId(reply.reserved_member_id);
            tracing::info!(member = %reserved, "a place is reserved for this member: it takes that");
            self.shared.start_anew(Anew { reserved: Some(reserved), ..Anew::default() });
            return false;
        }
        let admission = answer.map_err(|status| status.message().to_owned()).and_then(from_reply);
        let admission = match admission {
            Ok(admission) => admission,
            Err(why) => {
                if why == REMOVED {
                    let _ = self.queue.try_send(Task::Removed(MemberId(contact.member_id)));
                }
                if told.insert(why.clone()) {
                    tracing::warn!(address = %candidate.address, why, "not admitted");
                }
                return false;
            }
        };
        let contact = MemberId(contact.member_id);
        tracing::info!(%contact, cluster = %admission.cluster, "admitted");
        {
            let mut addresses = self.addresses.lock();
            addresses.met = admission
                .members
                .iter()
                .filter(|(id, _)| *id != self.shared.member.id)
                .map(|(id, record)| (*id, parse_all(record.peer_urls.iter())))
                .collect();
            addresses.met.entry(contact).or_default().push(candidate.url.clone());
        }
        self.shared.set_cluster(admission.cluster);
        let identity = Identity {
            cluster: Some(admission.cluster),
            member: self.shared.member.id,
            run: self.shared.run,
        };
        self.transport.set_identity(identity);
        self.transport.set_peers(self.addresses.lock().all());
        let (done, wait) = oneshot::channel();
        let task = Task::Adopt { admission: Box::new(admission), contact, done };
        if self.queue.try_send(task).is_err() {
            return false;
        }
        let is_adopted = wait.await.is_ok();
        self.shared.set_adopted();
        is_adopted
    }
}
