//! `starling.admin.v1.Cluster`: what a member tells its operators.

use std::collections::BTreeMap;

use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::Context;
use crate::engine::conflicts::{CONFLICTS_MAX, Noted};
use crate::node::{
    BlockChange, BlockRefused, ClockFacts, ClusterStatus, HeldBack, JoinError, Joining, Leaving,
    MemberRecord, PeerFacts, Reason, State,
};
use crate::time::Stamp;
use crate::types::MemberId;

/// Members in one reply.
const MEMBERS_MAX: usize = 1000;
/// Keys in one reply, in bytes, give or take one.
const KEY_BYTES_MAX: usize = 1 << 20;

pub(crate) struct AdminService {
    context: Context,
}

impl AdminService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    fn own(&self, status: &ClusterStatus) -> pb::This {
        let node = &self.context.node;
        let (member, state, facts) = (node.member(), node.status(), &status.facts);
        pb::This {
            id: member.id.0,
            name: member.name.clone(),
            run: node.run(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: state.revision.shown(),
            keys: state.keys,
            live_bytes: state.live_bytes,
            log_bytes: state.disk_bytes,
            log_entries: if status.has_peers { facts.entries } else { state.entries },
            head: facts.head,
            ready: node.is_ready(),
            catch_up: facts.catch_up.map(|catch_up| pb::CatchUp {
                member_id: catch_up.from.0,
                thousandths: u32::from(catch_up.thousandths),
            }),
            merging: facts.is_merging,
            clock: status.has_peers.then(|| clock(facts.clock)),
            waiting_bytes: facts.waiting_bytes,
        }
    }

    /// This member, then the others by name; with those first who are not alive where not all fit.
    fn members(&self, status: &ClusterStatus, max: usize) -> Vec<pb::Member> {
        let me = self.context.node.member().id;
        let member = |(id, record): (&MemberId, &MemberRecord)| pb::Member {
            blocked: self.context.node.blocks(*id),
            ..shown(*id, record, me, status)
        };
        let mut members: Vec<_> = status.members.iter().map(member).collect();
        let is_me = |member: &pb::Member| member.id == me.0;
        let by_name = |a: &pb::Member, b: &pb::Member| {
            (!is_me(a), &a.name, a.id).cmp(&(!is_me(b), &b.name, b.id))
        };
        if members.len() > max {
            let is_alive = |member: &pb::Member| member.liveness() == pb::Liveness::Alive;
            members.sort_by(|a, b| {
                let first = |member| !is_me(member) && is_alive(member);
                first(a).cmp(&first(b)).then_with(|| by_name(a, b))
            });
            members.truncate(max);
        }
        members.sort_by(by_name);
        members
    }

    fn stamp(&self, stamp: Stamp, members: &BTreeMap<MemberId, MemberRecord>) -> pb::Stamp {
        let member = stamp.origin.member;
        pb::Stamp {
            member_id: member.0,
            member_name: members.get(&member).map_or_else(String::new, |it| it.name.clone()),
            run: stamp.origin.run,
            time_millis: stamp.time.millis(),
            time_counter: stamp.time.counter(),
        }
    }

    fn conflict(&self, noted: Noted, members: &BTreeMap<MemberId, MemberRecord>) -> pb::Conflict {
        pb::Conflict {
            key_bytes: noted.key_bytes as u64,
            kept: Some(self.stamp(noted.kept, members)),
            lost: Some(self.stamp(noted.lost, members)),
            noted_millis: noted.noted_millis,
            key: noted.key,
        }
    }
}

/// What was asked for, or all that may be.
fn bounded(asked: u32, max: usize) -> usize {
    match usize::try_from(asked) {
        Ok(asked) if asked > 0 => asked.min(max),
        _ => max,
    }
}

fn shown(id: MemberId, record: &MemberRecord, me: MemberId, status: &ClusterStatus) -> pb::Member {
    let unknown = PeerFacts::default();
    let peer = status.facts.peers.get(&id).unwrap_or(&unknown);
    let liveness = match peer.state {
        _ if id == me => pb::Liveness::Alive,
        None => pb::Liveness::Unstarted,
        Some(State::Alive) => pb::Liveness::Alive,
        Some(State::Suspect) => pb::Liveness::Suspect,
        Some(State::Dead) => pb::Liveness::Dead,
    };
    let mut member = pb::Member {
        id: id.0,
        name: record.name.clone(),
        zone: record.zone.clone(),
        peer_urls: record.peer_urls.clone(),
        client_urls: record.client_urls.clone(),
        learner: record.learner,
        volatile: record.volatile,
        liveness: liveness.into(),
        heard_age_millis: peer.heard_millis.map(|millis| status.since(millis)),
        run: peer.run,
        head: peer.head,
        missing_here: peer.missing_here,
        missing_there: peer.missing_there,
        complete_age_millis: status.age(peer.complete),
        sent_messages: peer.traffic.sent,
        sent_bytes: peer.traffic.sent_bytes,
        received_messages: peer.traffic.received,
        received_bytes: peer.traffic.received_bytes,
        dropped_messages: peer.traffic.lost + peer.traffic.refused,
        failures: peer.traffic.failures,
        conflicts: peer.conflicts,
        fenced: peer.is_fenced,
        blocked: false,
    };
    if id == me {
        member.fenced = status.facts.clock.is_fenced;
        member.head = status.facts.head;
        member.complete_age_millis = status.age(status.facts.complete);
    }
    member
}

fn clock(clock: ClockFacts) -> pb::Clock {
    let ClockFacts { skew_millis, wall_skew_millis, is_confirmed, is_fenced } = clock;
    pb::Clock { skew_millis, wall_skew_millis, confirmed: is_confirmed, fenced: is_fenced }
}

fn held_back(held: HeldBack, status: &ClusterStatus) -> pb::HeldBack {
    use pb::held_back::Reason as Shown;
    let reason = match held.reason {
        Reason::NeverMet => Shown::NeverMet,
        Reason::Dead => Shown::Dead,
        Reason::Behind => Shown::Behind,
        Reason::RunNotClosed => Shown::RunNotClosed,
    };
    pb::HeldBack {
        member_id: held.member.0,
        member_name: status.name(held.member),
        reason: reason.into(),
        age_millis: status.age(held.since),
    }
}

fn gossip(status: &ClusterStatus) -> pb::Gossip {
    let counts = status.facts.counts;
    pb::Gossip {
        rounds: counts.rounds,
        exchanges: counts.exchanges,
        mismatches: counts.mismatches,
        pulls: counts.pulls,
        pull_timeouts: counts.timeouts,
        entries_taken: counts.taken,
        entries_twice: counts.duplicates,
        catch_ups: counts.catch_ups,
        merges: counts.merges,
        scrubs: counts.scrubs,
        differences: counts.differences,
        misanswers: counts.misanswers,
        entries_missing: status.facts.missing,
    }
}

#[tonic::async_trait]
impl Cluster for AdminService {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        self.context.access(&request)?.known()?;
        let max = bounded(request.into_inner().members_max, MEMBERS_MAX);
        let node = &self.context.node;
        let status = node.cluster_status();
        let facts = &status.facts;
        let waiting = facts.acks;
        Ok(Response::new(pb::StatusReply {
            cluster_id: node.cluster().0,
            this: Some(self.own(&status)),
            members: self.members(&status, max),
            members_total: count(status.members.len()),
            members_alive: count(status.alive() + 1),
            majority: count(facts.majority.max(1)),
            voters_alive: count(if facts.majority == 0 { 1 } else { facts.voters_alive }),
            complete_age_millis: status.age(facts.complete),
            settled_age_millis: status.age(facts.settled),
            held_back: facts.held_back.map(|held| held_back(held, &status)),
            gossip: Some(gossip(&status)),
            acks_waiting: Some(pb::AcksWaiting {
                one: waiting.one,
                majority: waiting.majority,
                all: waiting.all,
            }),
            conflicts: facts.conflicts,
            last_scrub_age_millis: facts.last_scrub_millis.map(|at| status.since(at)),
            gathered_age_millis: if status.has_peers {
                status.since(facts.gathered_millis)
            } else {
                0
            },
        }))
    }

    async fn conflicts(
        &self,
        request: Request<pb::ConflictsRequest>,
    ) -> Result<Response<pb::ConflictsReply>, Status> {
        // They have keys.
        self.context.access(&request)?.admin()?;
        let max = bounded(request.into_inner().conflicts_max, CONFLICTS_MAX);
        let node = &self.context.node;
        let (newest, total) = node.conflicts(max).await?;
        let members = node.members();
        let mut bytes = 0;
        let fits = |noted: &Noted| {
            let fits = bytes < KEY_BYTES_MAX;
            bytes += noted.key.len();
            fits
        };
        let newest = newest.into_iter().take_while(fits);
        let conflicts = newest.map(|noted| self.conflict(noted, &members)).collect();
        Ok(Response::new(pb::ConflictsReply { conflicts, total }))
    }

    async fn block(
        &self,
        request: Request<pb::BlockRequest>,
    ) -> Result<Response<pb::BlockReply>, Status> {
        self.context.access(&request)?.admin()?;
        let pb::BlockRequest { add, remove, clear } = request.into_inner();
        let names = self.context.node.block(BlockChange { add, remove, clear });
        let names = names.map_err(|refused| match refused {
            BlockRefused::Itself => Status::invalid_argument(refused.to_string()),
            BlockRefused::TooMany => Status::resource_exhausted(refused.to_string()),
        })?;
        Ok(Response::new(pb::BlockReply { names: names.into_iter().collect() }))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinReply>, Status> {
        self.context.access(&request)?.admin()?;
        let joined = self.context.node.join(&request.into_inner().contacts).await?;
        let outcome = match joined.how {
            Joining::Already => pb::join_reply::Outcome::Already,
            Joining::Joins => pb::join_reply::Outcome::Joins,
            Joining::Called => pb::join_reply::Outcome::Called,
        };
        Ok(Response::new(pb::JoinReply {
            outcome: outcome.into(),
            member_id: joined.member.0,
            member_name: joined.name,
            cluster_id: joined.cluster.0,
        }))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveReply>, Status> {
        self.context.access(&request)?.admin()?;
        let left = self.context.node.leave().await? == Leaving::Left;
        Ok(Response::new(pb::LeaveReply { left }))
    }
}

impl From<JoinError> for Status {
    fn from(error: JoinError) -> Self {
        let text = error.to_string();
        match error {
            JoinError::BadAddress(_) => Self::invalid_argument(text),
            JoinError::Unreachable(_) => Self::unavailable(text),
            JoinError::NoPeers
            | JoinError::Refused(_)
            | JoinError::BothHavePeers
            | JoinError::NobodyHears => Self::failed_precondition(text),
            JoinError::Failed(error) => error.into(),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
