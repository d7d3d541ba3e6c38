//! Joining others, and leaving them, while the member runs.
//!
//! Who a member is, and what of its data counts, is settled when its store is opened. So both end with a start on the same store:
//! [`Node::anew`](super::Node::anew) tells whoever owns the member. Before that everything is checked that can be, so that a join
//! that would be refused changes nothing.
//!
//! A join is symmetric: of two sides the one that has no peers comes to the other. If both have none, that is the side that was
//! told to join; two clusters do not become one.
//!
//! The store of a member that was alone merges with the data of those it joins: see `engine/strays.rs`. One that leaves keeps its
//! data: see `engine/parted.rs`.

use std::fmt;
use std::time::Duration;

use starling_proto::starling::peer::v1 as pb;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::driver::Task;
use super::handle::{Handle, Shared};
use super::peers::Search;
use crate::error::Error;
use crate::transport::resolve::{Candidate, PeerUrl};
use crate::transport::wire::PROTOCOL;
use crate::types::{ClusterId, MemberId};

/// How long somebody who is to be joined may take to answer, the connection included.
const CONTACT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a member that leaves waits for somebody who could hear of it. One that has just joined knows what the others have before
/// it takes them for alive.
const HEARING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a wish to join waits for its turn, names and the answers of others included.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Wishes to join that wait.
const CALLS_MAX: usize = 4;
/// Addresses in one wish.
const CONTACTS_MAX: usize = 64;

/// Why a member does not join others, or does not leave them. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// It listens for no other members.
    NoPeers,
    /// This is no address, or none was given.
    BadAddress(String),
    /// Nobody answers there, for this reason.
    Unreachable(String),
    /// Whoever is there does not want it, for this reason.
    Refused(String),
    /// Both sides have peers already.
    BothHavePeers,
    /// No other member is alive that could hear of it.
    NobodyHears,
    /// As with any request.
    Failed(Error),
}

impl From<Error> for JoinError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeers => f.write_str(
                "this member listens for no others: start it with --listen-peer-urls and --initial-advertise-peer-urls",
            ),
            Self::BadAddress(why) => f.write_str(why),
            Self::Unreachable(why) => write!(f, "not reached: {why}"),
            Self::Refused(why) => write!(f, "not admitted: {why}"),
            Self::BothHavePeers => f.write_str(
                "both members are in clusters with others already: one of them has to leave its own first",
            ),
            Self::NobodyHears => f.write_str(
                "no other member is alive to hear that this one leaves: remove those that are gone for good, or try again",
            ),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for JoinError {}

/// What a wish to join has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// They are in one cluster already.
    Already,
    /// This member joins: it starts anew for that, and serves when it has the others' data.
    Joins,
    /// The other one joins this member, likewise.
    Called,
}

/// Somebody that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Who it is.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// Its cluster, as of before.
    pub cluster: ClusterId,
    /// What has come of it.
    pub how: Joining,
}

/// What has come of a wish to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// There are no others.
    Alone,
    /// This member has left: it starts anew, alone, with all of its data.
    Left,
}

/// A member is to start anew on the same store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anew {
    /// Whom it is to join, if that is not what its settings say.
    pub contacts: Vec<String>,
    /// Whether it has just left others, who may still listen.
    pub has_left: bool,
    /// Who it is to be: there is a place for that member.
    pub reserved: Option<MemberId>,
}

/// Somebody wants this member to join.
pub(super) struct Call {
    contacts: Vec<PeerUrl>,
    /// Whether those may be told to join this one.
    is_own: bool,
    reply: oneshot::Sender<Result<Joined, JoinError>>,
}

/// Where wishes go, and where they come out.
pub(super) fn calls() -> (mpsc::Sender<Call>, mpsc::Receiver<Call>) {
    mpsc::channel(CALLS_MAX)
}

impl Shared {
    /// Hands on a wish to join, and waits for what comes of it.
    pub(super) async fn call(
        &self,
        contacts: Vec<PeerUrl>,
        is_own: bool,
    ) -> Result<Joined, JoinError> {
        let calls = self.calls.get().ok_or(JoinError::NoPeers)?;
        let (reply, wait) = oneshot::channel();
        let call = Call { contacts, is_own, reply };
        calls.try_send(call).map_err(|_| JoinError::Failed(Error::TooManyRequests))?;
        match timeout(CALL_TIMEOUT, wait).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Stopped.into()),
            Err(_) => Err(Error::Timeout.into()),
        }
    }

    /// Whether there are no others, and never were or are gone.
    pub(super) fn is_alone(&self) -> bool {
        let Some(directory) = self.directory() else { return true };
        directory.members.keys().all(|member| *member == self.member.id)
    }

    /// Keeps whom to join, on a thread where that may take its time.
    async fn keep_contacts(&self, contacts: Vec<String>) -> Result<(), JoinError> {
        let file = self.contacts.clone();
        let kept = tokio::task::spawn_blocking(move || file.write(&contacts)).await;
        let kept = kept.map_err(std::io::Error::other).and_then(|kept| kept);
        kept.map_err(|error| {
            tracing::error!(%error, "cannot keep whom to join");
            JoinError::Failed(Error::NoSpace)
        })
    }
}

impl Handle {
    /// Joins the members at any of these addresses (`host:port` or URLs of their ports for members), or has them join this one.
    /// After [`Joining::Joins`] this member starts anew.
    pub async fn join(&self, contacts: &[String]) -> Result<Joined, JoinError> {
        if self.transport.is_none() {
            return Err(JoinError::NoPeers);
        }
        let parse = |contact: &String| {
            contact.parse().map_err(|error| JoinError::BadAddress(format!("{error}")))
        };
        let contacts: Result<Vec<PeerUrl>, _> = contacts.iter().map(parse).collect();
        let contacts = contacts?;
        if contacts.is_empty() || contacts.len() > CONTACTS_MAX {
            let why = format!("1 to {CONTACTS_MAX} addresses are needed");
            return Err(JoinError::BadAddress(why));
        }
        self.shared.call(contacts, true).await
    }

    /// Leaves the cluster. After [`Leaving::Left`] this member starts anew, alone, with all of its data. One that was told to join
    /// others, and has not been admitted yet, does so no more. It leaves also if nobody waits for that any more.
    pub async fn leave(&self) -> Result<Leaving, JoinError> {
        let handle = self.clone();
        let left = tokio::spawn(async move { handle.leave_now().await }).await;
        left.unwrap_or(Err(JoinError::Failed(Error::Stopped)))
    }

    async fn leave_now(&self) -> Result<Leaving, JoinError> {
        let shared = &self.shared;
        // Whoever is asked just now may admit this member, and would be left with one that never comes.
        let asks = shared.asks().await;
        let _shut = shared.shuts_door().await;
        if shared.starts_anew() || shared.is_joining() {
            return Err(Error::NotReady.into());
        }
        let is_outside = shared.directory().is_none();
        let waits = is_outside && !shared.is_ready() && shared.is_called();
        if shared.is_alone() && !waits {
            return Ok(Leaving::Alone);
        }
        if waits {
            shared.keep_contacts(Vec::new()).await?;
            shared.start_anew(Anew::default());
            return Ok(Leaving::Left);
        }
        drop(asks);
        if !shared.is_ready() {
            return Err(Error::NotReady.into());
        }
        if shared.is_fenced() {
            return Err(Error::ClockSkew.into());
        }
        let mut live = shared.follow_live();
        let somebody = async { live.wait_for(|live| !live.is_empty()).await.is_ok() };
        if timeout(HEARING_TIMEOUT, somebody).await != Ok(true) {
            return Err(JoinError::NobodyHears);
        }
        shared.keep_contacts(Vec::new()).await?;
        let (done, wait) = oneshot::channel();
        self.send(Task::Leave { is_alone: false, done })?;
        let heard = timeout(shared.options.timeout, wait).await;
        if matches!(heard, Ok(Err(_))) {
            return Err(Error::Stopped.into());
        }
        // It is on record here, whoever has heard of it.
        if heard.is_err() {
            tracing::warn!("no other member has said that it knows that this one has left");
        }
        shared.start_anew(Anew { has_left: true, ..Anew::default() });
        Ok(Leaving::Left)
    }
}

impl Search {
    /// Does what somebody wants, if it can be done.
    pub(super) async fn take_call(&self, call: Call) {
        let outcome = self.join_any(&call).await;
        // Whoever wanted it may have gone away.
        let _ = call.reply.send(outcome);
    }

    async fn join_any(&self, call: &Call) -> Result<Joined, JoinError> {
        let shared = &self.shared;
        if !shared.is_ready() {
            return Err(Error::NotReady.into());
        }
        if shared.is_fenced() {
            return Err(Error::ClockSkew.into());
        }
        let mut why = JoinError::Unreachable("no such name".to_owned());
        for candidate in self.candidates(&call.contacts).await {
            match self.join_one(&candidate, call).await {
                Ok(joined) => return Ok(joined),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn join_one(&self, candidate: &Candidate, call: &Call) -> Result<Joined, JoinError> {
        let shared = &self.shared;
        let contact = self.reach(candidate).await?;
        let joined = |how| Joined {
            member: MemberId(contact.member_id),
            name: contact.name.clone(),
            cluster: ClusterId(contact.cluster_id),
            how,
        };
        if contact.member_id == shared.member.id.0 {
            return Err(JoinError::Refused("that is this member itself".to_owned()));
        }
        if contact.cluster_id == shared.cluster().0
            && shared.has_member(MemberId(contact.member_id))
        {
            return Ok(joined(Joining::Already));
        }
        if !contact.in_cluster {
            return Err(JoinError::Refused("it has not got its own data yet".to_owned()));
        }
        if shared.is_alone() {
            self.go_to_if_admitted(candidate).await?;
            return Ok(joined(Joining::Joins));
        }
        if !contact.alone || !call.is_own {
            return Err(JoinError::BothHavePeers);
        }
        self.have_join(candidate).await?;
        tracing::info!(member = %MemberId(contact.member_id), "joins this member");
        Ok(joined(Joining::Called))
    }

    /// Tells somebody to join this member.
    pub(super) async fn have_join(&self, candidate: &Candidate) -> Result<(), JoinError> {
        let peer_urls = self.shared.member.peer_urls.clone();
        let request = pb::CallRequest { protocol: PROTOCOL, peer_urls };
        let answer = self.transport.call(candidate.clone(), request).await;
        let answer = answer.map_err(|status| JoinError::Refused(status.message().to_owned()))?;
        if answer.refusal.is_empty() { Ok(()) } else { Err(JoinError::Refused(answer.refusal)) }
    }

    /// Who is there, if anybody is.
    async fn reach(&self, candidate: &Candidate) -> Result<pb::HelloReply, JoinError> {
        let (member_id, cluster_id) = (self.shared.member.id.0, self.shared.cluster().0);
        let request = pb::HelloRequest { protocol: PROTOCOL, member_id, cluster_id };
        let hello = self.transport.hello(candidate.clone(), request);
        let why = match timeout(CONTACT_TIMEOUT, hello).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {} ms", CONTACT_TIMEOUT.as_millis()),
        };
        Err(JoinError::Unreachable(format!("{}: {why}", candidate.url)))
    }

    /// Joins somebody, who may still refuse that: then nothing has changed. Of two that would go to each other at the same time
    /// neither does.
    pub(super) async fn go_to_if_admitted(&self, candidate: &Candidate) -> Result<(), JoinError> {
        let _shut = self.shared.shuts_door().await;
        // Whoever has come meanwhile would be left behind.
        if !self.shared.is_alone() {
            return Err(JoinError::BothHavePeers);
        }
        self.ask_first(candidate).await?;
        self.go_to(candidate).await
    }

    /// Whether this member would be admitted.
    async fn ask_first(&self, candidate: &Candidate) -> Result<(), JoinError> {
        let request = pb::JoinRequest { check: true, ..self.wish() };
        let answer = self.transport.join(candidate.clone(), request).await;
        let answer = answer.map_err(|status| JoinError::Refused(status.message().to_owned()))?;
        if answer.refusal.is_empty() { Ok(()) } else { Err(JoinError::Refused(answer.refusal)) }
    }

    /// Starts anew, to join whoever is there.
    async fn go_to(&self, candidate: &Candidate) -> Result<(), JoinError> {
        let shared = &self.shared;
        let contacts = vec![candidate.url.to_string()];
        shared.keep_contacts(contacts.clone()).await?;
        // A store that had peers has to let go of who they were.
        if shared.directory().is_some() {
            let (done, wait) = oneshot::channel();
            let task = Task::Leave { is_alone: true, done };
            self.queue.try_send(task).map_err(|_| JoinError::Failed(Error::TooManyRequests))?;
            wait.await.map_err(|_| JoinError::Failed(Error::Stopped))?;
        }
        tracing::warn!(contact = %candidate.url, "this member starts anew, to join others");
        shared.start_anew(Anew { contacts, ..Anew::default() });
        Ok(())
    }
}
