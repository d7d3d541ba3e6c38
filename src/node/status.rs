//! What operators see of a cluster: facts that the driver gathers now and then, for the admin service, metrics and the log.
//!
//! Gathering costs a look at every member, so it happens the less often the more of them there are; nothing of it
//! is done when a write comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::acks::{Acks, AcksWaiting};
use crate::engine::directory::Directory;
use crate::engine::replica::{ClockFacts, Replica};
use crate::replication::Gossip;
use crate::replication::gossip;
use crate::replication::liveness::{Liveness, State};
use crate::storage::schema::member::MemberRecord;
use crate::time::{Now, Timestamp};
use crate::transport::{PeerStats, Transport};
use crate::types::{MemberId, Origin};

/// How often facts are gathered in a small cluster ...
const GATHER_MILLIS: u64 = 250;
/// ... and in a large one: so long for each member.
const GATHER_MILLIS_PER_MEMBER: u64 = 1;
/// `settled` follows the present by so much: two rounds of promises, and what a commit or a retry may add ...
const SETTLED_LAG_MILLIS: u64 = 30_000;
/// ... and another two for each doubling of the members, by which promises get around.
const SETTLED_LAG_PER_DOUBLING_MILLIS: u64 = 10_000;
/// A catch-up says how far it is so often at least.
const CATCH_UP_LOG_MILLIS: u64 = 5000;
/// A tenth of all, in the thousandths that a catch-up counts in.
const THOUSANDTHS_PER_TENTH: u16 = 100;

/// A peer, or a member that was never started, as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Whether it seems to run; `None` for a member that was never started.
    pub state: Option<State>,
    /// Whether it says that it takes no writes because of its clock.
    pub is_fenced: bool,
    /// When anything last came from it, in monotonic milliseconds.
    pub heard_millis: Option<u64>,
    /// Its current run; zero if it is not known.
    pub run: u64,
    /// Its entries of that run up to this one are held here, durably.
    pub head: u64,
    /// Entries that it has written and that are known to be missing here.
    pub missing_here: u64,
    /// Entries of this member that it is not known to hold.
    pub missing_there: u64,
    /// Up to when it holds everything, as it has said.
    pub complete: Timestamp,
    /// What was said to it and came from it.
    pub traffic: PeerStats,
    /// Writes that were lost in conflicts with it.
    pub conflicts: u64,
}

/// A catch-up that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// From whom.
    pub from: MemberId,
    /// How much of its log has been gone through.
    pub thousandths: u16,
}

/// Why `settled` does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A founder has never been met.
    NeverMet,
    /// A member is dead.
    Dead,
    /// A member lacks something, or has not said for long that it does not.
    Behind,
    /// A former run has ended, and not all have said yet how far they hold it.
    RunNotClosed,
}

impl Reason {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NeverMet => "never_met",
            Self::Dead => "dead",
            Self::Behind => "behind",
            Self::RunNotClosed => "run_not_closed",
        }
    }
}

/// Who holds `settled` back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The member.
    pub member: MemberId,
    /// Why.
    pub reason: Reason,
    /// What is known of it ends here; zero if nothing is.
    pub since: Timestamp,
}

/// What was found at one moment. All zero for a member that never had a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// When, in monotonic milliseconds.
    pub gathered_millis: u64,
    /// The last entry of this run.
    pub head: u64,
    /// Entries of all members that have come here.
    pub entries: u64,
    /// A catch-up that is under way.
    pub catch_up: Option<CatchUp>,
    /// Whether it is being looked for what is here too much.
    pub is_merging: bool,
    /// All members but this one.
    pub peers: BTreeMap<MemberId, PeerFacts>,
    /// How many members a majority has; zero without peers.
    pub majority: usize,
    /// How many of those who count for a majority seem alive, this one included.
    pub voters_alive: usize,
    /// Up to when this member holds everything.
    pub complete: Timestamp,
    /// Up to when everybody does.
    pub settled: Timestamp,
    /// Who keeps `settled` from following.
    pub held_back: Option<HeldBack>,
    /// The bytes in the log that nobody here can read, but members that are away may want.
    pub waiting_bytes: u64,
    /// How many of them may be; `None` for no limit.
    pub waiting_bytes_max: Option<u64>,
    /// What the gossip has done.
    pub counts: gossip::Counts,
    /// When its last scrub ended, in monotonic milliseconds.
    pub last_scrub_millis: Option<u64>,
    /// Entries known to be missing here.
    pub missing: u64,
    /// Writes that wait for others.
    pub acks: AcksWaiting,
    /// Writes that were lost in conflicts.
    pub conflicts: u64,
    /// Whether entries go straight from their origin to everybody, as in small clusters.
    pub is_direct: bool,
    /// What the clock here shows compared to those of the others.
    pub clock: ClockFacts,
}

/// What is known of a cluster, and when this was asked.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// What the driver has found.
    pub facts: Arc<Facts>,
    /// All members, this one included.
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Whether this member has or had peers.
    pub has_peers: bool,
    /// The time of asking.
    pub now: Now,
}

impl ClusterStatus {
    /// How long ago a hybrid time was, in milliseconds; `None` for the beginning of time.
    pub fn age(&self, time: Timestamp) -> Option<u64> {
        (time > Timestamp::default()).then(|| self.now.wall_millis.saturating_sub(time.millis()))
    }

    /// The name of a member; empty for one that has none.
    pub fn name(&self, member: MemberId) -> String {
        self.members.get(&member).map_or_else(String::new, |record| record.name.clone())
    }

    /// A name for a member that no other one has: its own, unless that is missing or taken.
    pub fn label(&self, member: MemberId) -> String {
        let name = self.name(member);
        let mut others = self.members.iter().filter(|(other, _)| **other != member);
        match () {
            () if name.is_empty() => member.to_string(),
            () if others.any(|(_, other)| other.name == name) => format!("{name}-{member}"),
            () => name,
        }
    }

    /// How many peers seem alive.
    pub fn alive(&self) -> usize {
        let is_alive =
            |peer: &&PeerFacts| matches!(peer.state, Some(State::Alive | State::Suspect));
        self.facts.peers.values().filter(is_alive).count()
    }

    /// How long ago a monotonic time was, in milliseconds.
    pub fn since(&self, millis: u64) -> u64 {
        self.now.monotonic_millis.saturating_sub(millis)
    }
}

/// What the log says of who holds `settled` back.
#[derive(Debug, Default)]
struct Blame {
    /// Who, why, and since when.
    held: Option<(MemberId, Reason, u64)>,
    is_told: bool,
}

impl Blame {
    /// Answers what is to be said, if anything: who it is, or that it is nobody any more. What soon passes is not worth it.
    fn step(&mut self, held: Option<HeldBack>, now_millis: u64) -> Option<Option<HeldBack>> {
        let Some(HeldBack { member, reason, .. }) = held else {
            let was_told = std::mem::take(self).is_told;
            return was_told.then_some(None);
        };
        match self.held {
            Some((who, why, since)) if (who, why) == (member, reason) => {
                let is_due = !self.is_told && now_millis >= since + SETTLED_LAG_MILLIS;
                self.is_told |= is_due;
                is_due.then_some(held)
            }
            _ => {
                *self = Self { held: Some((member, reason, now_millis)), is_told: false };
                None
            }
        }
    }
}

/// Gathers facts, and logs what operators should know of them.
#[derive(Debug, Default)]
pub(super) struct Observer {
    next_millis: u64,
    blame: Blame,
    /// Whether it was said that too much waits in the log.
    is_long: bool,
    progress: Progress,
    /// The conflicts that were logged.
    conflicts: u64,
}

impl Observer {
    /// Gathers facts if it is time to.
    pub(super) fn tick(
        &mut self,
        replica: &Replica,
        acks: &Acks,
        transport: Option<&Transport>,
        now: Now,
    ) -> Option<Facts> {
        if now.monotonic_millis < self.next_millis {
            return None;
        }
        let (gossip, directory) = (replica.gossip()?, replica.directory()?);
        let per_member = directory.members.len() as u64 * GATHER_MILLIS_PER_MEMBER;
        self.next_millis = now.monotonic_millis + GATHER_MILLIS.max(per_member);
        let facts = gather(replica, gossip, acks, transport, now)?;
        self.log(&facts, directory, now);
        self.log_length(&facts, replica.writer().is_log_too_long());
        self.log_conflicts(replica);
        Some(facts)
    }

    fn log(&mut self, facts: &Facts, directory: &Directory, now: Now) {
        let name = |member: MemberId| match directory.members.get(&member) {
            Some(record) if record.is_started() => record.name.clone(),
            _ => member.to_string(),
        };
        match self.progress.step(facts, now.monotonic_millis) {
            Some(Told::Begun(from)) => tracing::info!(from = name(from), "catching up"),
            Some(Told::At(from, percent)) => {
                tracing::info!(from = name(from), percent, "catching up");
            }
            Some(Told::Merging) => tracing::info!("looking for keys that others have deleted"),
            Some(Told::Ended(millis)) => tracing::info!(millis, "caught up"),
            None => {}
        }
        match self.blame.step(facts.held_back, now.monotonic_millis) {
            Some(Some(HeldBack { member, reason: Reason::Dead | Reason::NeverMet, .. })) => {
                let member = name(member);
                tracing::warn!(member, "deleted keys stay until this member is back, or removed");
            }
            Some(Some(HeldBack { member, reason, .. })) => {
                let (member, reason) = (name(member), reason.label());
                tracing::warn!(member, reason, "deleted keys cannot be forgotten yet");
            }
            Some(None) => tracing::info!("deleted keys can be forgotten again"),
            None => {}
        }
    }

    /// Says so once, until it is over.
    fn log_length(&mut self, facts: &Facts, is_long: bool) {
        if std::mem::replace(&mut self.is_long, is_long) == is_long {
            return;
        }
        let (bytes, max) = (facts.waiting_bytes, facts.waiting_bytes_max.unwrap_or(u64::MAX));
        if is_long {
            tracing::warn!(
                bytes,
                max,
                "too much is kept for members that are away: replaced writes go, and they will have to take over all data"
            );
        } else {
            tracing::info!(bytes, max, "no longer too much is kept for members that are away");
        }
    }

    fn log_conflicts(&mut self, replica: &Replica) {
        let Some(conflicts) = replica.conflicts() else { return };
        let new = usize::try_from(conflicts.total() - self.conflicts).unwrap_or(usize::MAX);
        self.conflicts = conflicts.total();
        for conflict in conflicts.newest().take(new) {
            let key = String::from_utf8_lossy(&conflict.key);
            tracing::debug!(%key, kept = %conflict.kept, lost = %conflict.lost, "conflict");
        }
    }
}

fn gather(
    replica: &Replica,
    gossip: &Gossip,
    acks: &Acks,
    transport: Option<&Transport>,
    now: Now,
) -> Option<Facts> {
    let (directory, liveness) = (replica.directory()?, replica.liveness()?);
    let conflicts = replica.conflicts()?;
    let me = replica.writer().origin();
    let head = gossip.heads().seq(me);
    let mut peers = peers(directory, gossip, liveness, me);
    let traffic = transport.map(Transport::stats).unwrap_or_default();
    for (member, facts) in &mut peers {
        facts.traffic = traffic.get(member).copied().unwrap_or_default();
        facts.conflicts = conflicts.with(*member);
        facts.is_fenced = replica.is_peer_fenced(*member, now);
    }
    let is_alive =
        |member: &MemberId| *member == me.member || replica.live().binary_search(member).is_ok();
    let catch_up = gossip.catching_up().map(|(from, thousandths)| CatchUp { from, thousandths });
    let frontier = gossip.frontier();
    Some(Facts {
        gathered_millis: now.monotonic_millis,
        head,
        entries: gossip.heads().all().iter().map(|head| head.seq).sum(),
        catch_up,
        is_merging: gossip.is_merging(),
        majority: directory.majority(),
        voters_alive: directory.voters().filter(is_alive).count(),
        complete: frontier.complete(),
        settled: frontier.settled(),
        held_back: Holding::new(directory, gossip, &peers, me.member).held_back(now),
        waiting_bytes: replica.writer().mvcc().waiting_bytes(),
        waiting_bytes_max: replica.writer().log_bytes_max(),
        counts: gossip.counts(),
        last_scrub_millis: gossip.last_scrub_millis(),
        missing: gossip.lag(),
        acks: acks.waiting(),
        conflicts: conflicts.total(),
        is_direct: gossip.is_direct(),
        clock: replica.clock_facts(),
        peers,
    })
}

fn peers(
    directory: &Directory,
    gossip: &Gossip,
    liveness: &Liveness,
    me: Origin,
) -> BTreeMap<MemberId, PeerFacts> {
    let membership = gossip.membership();
    let head = gossip.heads().seq(me);
    let (lags, suspects) = (gossip.lags(), liveness.suspects());
    let live: BTreeSet<_> = liveness.live().into_iter().collect();
    let completes = membership.numbers().iter().copied().zip(gossip.frontier().completes());
    let completes: BTreeMap<_, _> = completes.collect();
    let state = |member: MemberId| match (live.contains(&member), suspects.contains(&member)) {
        (false, _) => State::Dead,
        (true, false) => State::Alive,
        (true, true) => State::Suspect,
    };
    let facts = |member: MemberId, record: &MemberRecord| {
        let run = membership.runs.get(&member).map_or(0, |(run, _)| *run);
        PeerFacts {
            state: record.is_started().then(|| state(member)),
            heard_millis: liveness.heard_at(member),
            run,
            head: gossip.heads().seq(Origin { member, run }),
            missing_here: lags.get(&member).copied().unwrap_or(0),
            missing_there: head.saturating_sub(gossip.acknowledged(member)),
            complete: completes.get(&member).copied().unwrap_or_default(),
            ..PeerFacts::default()
        }
    };
    let others = directory.members.iter().filter(|(member, _)| **member != me.member);
    others.map(|(member, record)| (*member, facts(*member, record))).collect()
}

/// What tells who holds `settled` back.
struct Holding {
    settled: Timestamp,
    /// A founder whom nobody has met.
    awaited: Option<MemberId>,
    members: Vec<Standing>,
    /// Runs that have ended but are not closed, and up to when they are held here.
    ending: Vec<(Origin, Timestamp)>,
}

/// A member that was started.
struct Standing {
    member: MemberId,
    is_dead: bool,
    /// Up to when it holds everything, as it has said.
    complete: Timestamp,
    /// Up to when what it has written is held here.
    covered: Timestamp,
}

impl Holding {
    fn new(
        directory: &Directory,
        gossip: &Gossip,
        peers: &BTreeMap<MemberId, PeerFacts>,
        me: MemberId,
    ) -> Self {
        let (frontier, membership) = (gossip.frontier(), gossip.membership());
        let is_awaited =
            |(_, record): &(&MemberId, &MemberRecord)| record.initial && !record.is_started();
        let said = frontier.completes().zip(frontier.covered());
        let standing = |(member, (complete, covered)): (&MemberId, (Timestamp, Timestamp))| {
            let is_dead = peers.get(member).is_some_and(|peer| peer.state == Some(State::Dead));
            let complete = if *member == me { frontier.complete() } else { complete };
            Standing { member: *member, is_dead, complete, covered }
        };
        Self {
            settled: frontier.settled(),
            awaited: directory.members.iter().find(is_awaited).map(|(member, _)| *member),
            members: membership.numbers().iter().zip(said).map(standing).collect(),
            ending: frontier.ending().collect(),
        }
    }

    /// Everybody's `complete` stands still with that of a dead member, and that in turn with what others hold of it. So the
    /// dead are blamed first.
    fn held_back(&self, now: Now) -> Option<HeldBack> {
        if let Some(member) = self.awaited {
            return Some(HeldBack { member, reason: Reason::NeverMet, since: self.settled });
        }
        let doublings = u64::from(self.members.len().max(1).ilog2());
        let lag = SETTLED_LAG_MILLIS + doublings * SETTLED_LAG_PER_DOUBLING_MILLIS;
        let is_early = now.monotonic_millis < lag;
        if is_early || now.wall_millis.saturating_sub(self.settled.millis()) < lag {
            return None;
        }
        let members = || self.members.iter();
        let least = members().min_by_key(|standing| (standing.complete, !standing.is_dead))?;
        let bound = members().min_by_key(|standing| (standing.covered, !standing.is_dead))?;
        let dead = [(least, least.complete), (bound, bound.covered)];
        if let Some((dead, since)) = dead.into_iter().find(|(standing, _)| standing.is_dead) {
            return Some(HeldBack { member: dead.member, reason: Reason::Dead, since });
        }
        let ending = self.ending.iter().min_by_key(|(_, covered)| *covered);
        if let Some((origin, covered)) = ending.filter(|(_, covered)| *covered < bound.covered) {
            let (member, reason) = (origin.member, Reason::RunNotClosed);
            return Some(HeldBack { member, reason, since: *covered });
        }
        Some(HeldBack { member: least.member, reason: Reason::Behind, since: least.complete })
    }
}

/// What is said of a catch-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It has begun, from this member.
    Begun(MemberId),
    /// So many percent are there.
    At(MemberId, u16),
    /// The data has come; what is here too much is being looked for.
    Merging,
    /// It is done, after so many milliseconds.
    Ended(u64),
}

/// What has been said of a catch-up.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    begun_millis: Option<u64>,
    told_millis: u64,
    tenths: u16,
    merging: bool,
}

impl Progress {
    /// What is to be said now, if anything.
    fn step(&mut self, facts: &Facts, now_millis: u64) -> Option<Told> {
        let Some(CatchUp { from, thousandths }) = facts.catch_up else {
            let begun = self.begun_millis?;
            if facts.is_merging {
                return (!std::mem::replace(&mut self.merging, true)).then_some(Told::Merging);
            }
            *self = Self::default();
            return Some(Told::Ended(now_millis.saturating_sub(begun)));
        };
        let tenths = thousandths / THOUSANDTHS_PER_TENTH;
        if self.begun_millis.is_none() {
            let merging = false;
            *self =
                Self { begun_millis: Some(now_millis), told_millis: now_millis, tenths, merging };
            return Some(Told::Begun(from));
        }
        let is_news = tenths > self.tenths || now_millis >= self.told_millis + CATCH_UP_LOG_MILLIS;
        if !is_news {
            return None;
        }
        (self.tenths, self.told_millis) = (tenths, now_millis);
        Some(Told::At(from, thousandths / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const C: MemberId = MemberId(3);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn now(seconds: u64) -> Now {
        Now { wall_millis: seconds * 1000, monotonic_millis: seconds * 1000 }
    }

    fn standing(member: MemberId, is_dead: bool, complete: u64, covered: u64) -> Standing {
        Standing { member, is_dead, complete: at(complete), covered: at(covered) }
    }

    fn holding(members: Vec<Standing>) -> Holding {
        let settled = members.iter().map(|standing| standing.complete).min().unwrap_or_default();
        Holding { settled, awaited: None, members, ending: Vec::new() }
    }

    fn held(member: MemberId, reason: Reason, since: u64) -> Option<HeldBack> {
        Some(HeldBack { member, reason, since: at(since) })
    }

    #[test]
    fn nobody_is_blamed_for_the_usual_lag() {
        let calm = holding(vec![
            standing(A, false, 965, 990),
            standing(B, false, 970, 985),
            standing(C, false, 961, 999),
        ]);
        assert_eq!(calm.held_back(now(1000)), None);
        assert_eq!(calm.held_back(now(1001)), held(C, Reason::Behind, 961));
    }

    #[test]
    fn the_dead_are_blamed_before_those_who_wait_for_them() {
        let members = vec![
            standing(A, false, 700, 999),
            standing(B, false, 698, 999),
            standing(C, true, 699, 705),
        ];
        let stuck = holding(members);
        assert_eq!(stuck.held_back(now(1000)), held(C, Reason::Dead, 705));
        let members = vec![standing(A, false, 700, 999), standing(C, true, 690, 700)];
        assert_eq!(holding(members).held_back(now(1000)), held(C, Reason::Dead, 690));
    }

    #[test]
    fn founders_that_never_came_and_runs_that_are_not_closed_are_named() {
        let members = || vec![standing(A, false, 700, 999), standing(B, false, 700, 999)];
        let awaited = Holding { awaited: Some(C), ..holding(members()) };
        assert_eq!(awaited.held_back(now(701)), held(C, Reason::NeverMet, 700));
        let origin = Origin { member: B, run: 1 };
        let ending = Holding { ending: vec![(origin, at(700))], ..holding(members()) };
        assert_eq!(ending.held_back(now(1000)), held(B, Reason::RunNotClosed, 700));
    }

    #[test]
    fn right_after_a_start_nobody_is_blamed() {
        let old = holding(vec![standing(A, false, 10, 10), standing(B, true, 10, 10)]);
        let started = Now { monotonic_millis: 100, ..now(1000) };
        assert_eq!(old.held_back(started), None);
        assert_eq!(old.held_back(now(1000)), held(B, Reason::Dead, 10));
    }

    #[test]
    fn who_holds_things_back_is_told_when_it_lasts() {
        let mut blame = Blame::default();
        let (dead, behind) = (held(C, Reason::Dead, 1), held(C, Reason::Behind, 1));
        assert_eq!(blame.step(behind, 0), None);
        assert_eq!(blame.step(None, 1000), None, "it was not worth it");
        assert_eq!(blame.step(behind, 2000), None);
        assert_eq!(blame.step(dead, 3000), None);
        assert_eq!(blame.step(dead, 32_999), None);
        assert_eq!(blame.step(dead, 33_000), Some(dead));
        assert_eq!(blame.step(dead, 99_000), None, "once");
        assert_eq!(blame.step(None, 99_001), Some(None));
        assert_eq!(blame.step(None, 99_002), None);
    }

    #[test]
    fn a_catch_up_is_told_in_tenths_and_every_few_seconds() {
        let mut progress = Progress::default();
        let mut step = |thousandths: Option<u16>, is_merging, millis| {
            let catch_up = thousandths.map(|thousandths| CatchUp { from: B, thousandths });
            progress.step(&Facts { catch_up, is_merging, ..Facts::default() }, millis)
        };
        assert_eq!(step(None, false, 0), None);
        assert_eq!(step(Some(5), false, 100), Some(Told::Begun(B)));
        assert_eq!(step(Some(99), false, 200), None);
        assert_eq!(step(Some(123), false, 300), Some(Told::At(B, 12)));
        assert_eq!(step(Some(199), false, 5299), None);
        assert_eq!(step(Some(199), false, 5300), Some(Told::At(B, 19)));
        assert_eq!(step(None, true, 5400), Some(Told::Merging));
        assert_eq!(step(None, true, 5500), None);
        assert_eq!(step(None, false, 6100), Some(Told::Ended(6000)));
        assert_eq!(step(None, false, 6200), None);
    }
}
