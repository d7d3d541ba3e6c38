//! Promises, and what follows from them: up to which time I hold everything (`complete`), and up to which time everybody
//! does (`settled`).
//!
//! Every member promises now and then: all entries of my current run up to time T are those up to seq s. Whoever holds them
//! up to s has everything of that member up to T; the least such T over all members bounds `complete`. Members tell each other
//! their `complete`; the least of those is `settled`. Below it nothing can arrive any more that anybody has not seen,
//! so tombstones can go (Golding's timestamped anti-entropy, 1992: one number per member instead of a matrix).
//!
//! A run that has ended promises nothing any more, and its disk may have been rolled back, so that others hold more of it
//! than its member does. So whoever learns of the end says how far it holds that run, if that is further than anyone has
//! said (a *seal*), and takes no more of it than somebody has said. The end is *closed* when every member is known to
//! hold all that was said of it; until then the last promise of that run that was covered bounds `complete`.
//!
//! Invariants
//! * Neither `complete` nor `settled` ever goes back.
//! * `settled <= complete` of every member that is not removed, dead or alive.

use std::collections::BTreeMap;

use super::heads::Heads;
use super::message::{Head, Promise};
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

/// Who belongs to the cluster, and which runs have ended, as the internal records say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The members, and when their records were first written: everything that they write comes later.
    pub members: BTreeMap<MemberId, Timestamp>,
    /// The current run of each, and when it was announced.
    pub runs: BTreeMap<MemberId, (u64, Timestamp)>,
    /// Those who were removed, and when.
    pub removed: BTreeMap<MemberId, Timestamp>,
    /// How far somebody holds a run that has ended, and when the last one said so.
    pub seals: BTreeMap<Origin, (u64, Timestamp)>,
    /// Whether there are members that we know of but have never met: nothing is complete before.
    pub awaits: bool,
    /// Where they are, those who say so.
    pub zones: BTreeMap<MemberId, String>,
    /// The members, in order.
    numbers: Vec<MemberId>,
    /// Of each, in this order: the current run, zero if it is not known, and when its record was first written.
    rows: Vec<(u64, Timestamp)>,
}

impl Membership {
    /// Members whose runs are known, none of which has ended.
    pub fn new(
        members: BTreeMap<MemberId, Timestamp>,
        runs: BTreeMap<MemberId, (u64, Timestamp)>,
    ) -> Self {
        let numbers = members.keys().copied().collect();
        let row = |(member, joined): (&MemberId, &Timestamp)| {
            (runs.get(member).map_or(0, |(run, _)| *run), *joined)
        };
        let rows = members.iter().map(row).collect();
        Self { members, runs, numbers, rows, ..Self::default() }
    }

    /// The place of a member in the order of all.
    pub fn number(&self, member: MemberId) -> Option<usize> {
        self.numbers.binary_search(&member).ok()
    }

    /// The members, in order.
    pub fn numbers(&self) -> &[MemberId] {
        &self.numbers
    }

    /// When it was announced that an origin has ended, if it has.
    pub fn ended(&self, origin: Origin) -> Option<Timestamp> {
        if let Some(removed) = self.removed.get(&origin.member) {
            return Some(*removed);
        }
        if !self.members.contains_key(&origin.member) {
            // It was removed so long ago that only the seal is left.
            return self.seals.get(&origin).map(|(_, time)| *time);
        }
        self.runs.get(&origin.member).filter(|(run, _)| origin.run < *run).map(|(_, time)| *time)
    }

    /// How far the entries of an origin may be taken: of one that has ended as far as somebody holds it.
    pub fn limit(&self, origin: Origin) -> u64 {
        match self.ended(origin) {
            Some(_) => self.seals.get(&origin).map_or(0, |(seq, _)| *seq),
            None => u64::MAX,
        }
    }
}

/// What is known of one member.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// The last promise that was heard; run zero if there was none.
    run: u64,
    time: Timestamp,
    seq: u64,
    /// What it holds, as it has said.
    complete: Timestamp,
    current: Timestamp,
    /// Everything of it up to here is held: the time of its last promise whose entries are all here ...
    covered: Timestamp,
    /// ... and what it had said with that one.
    covered_current: Timestamp,
}

/// What this member knows of everybody's promises.
#[derive(Clone, Debug)]
pub struct Frontier {
    me: MemberId,
    /// In the order of the members.
    standings: Vec<Standing>,
    /// Up to when the runs that have ended are held, until their ends are closed.
    ending: BTreeMap<Origin, Timestamp>,
    /// How far all members hold an origin that are not away, as its member has said. Those of runs that have ended, too.
    held: BTreeMap<Origin, u64>,
    complete: Timestamp,
    current: Timestamp,
    settled: Timestamp,
}

impl Frontier {
    /// Goes on from what was on record: `complete` and `settled` hold for ever.
    pub fn new(me: MemberId, complete: Timestamp, settled: Timestamp) -> Self {
        Self {
            me,
            standings: Vec::new(),
            ending: BTreeMap::new(),
            held: BTreeMap::new(),
            complete,
            current: Timestamp::default(),
            settled,
        }
    }

    /// Up to which time this member holds everything that anyone wrote.
    pub fn complete(&self) -> Timestamp {
        self.complete
    }

    /// The same without the runs that have ended.
    pub fn current(&self) -> Timestamp {
        self.current
    }

    /// Up to which time everybody holds everything.
    pub fn settled(&self) -> Timestamp {
        self.settled
    }

    /// Somebody else's data has been taken over as a whole, complete up to here.
    pub fn raise_complete(&mut self, complete: Timestamp) {
        self.complete = self.complete.max(complete);
    }

    /// Takes note of a promise of the member with this number.
    pub fn hear(&mut self, number: usize, promise: &Promise) {
        let Some(standing) = self.standings.get_mut(number) else { return };
        if promise.held > 0 {
            let origin = Origin { member: promise.member, run: promise.run };
            let held = self.held.entry(origin).or_default();
            *held = promise.held.max(*held);
        }
        if (promise.run, promise.time) > (standing.run, standing.time) {
            (standing.run, standing.time) = (promise.run, promise.time);
            standing.seq = promise.seq;
            // What is held stays held, whatever a member says after it has lost its disk.
            standing.complete = standing.complete.max(promise.complete);
            standing.current = standing.current.max(promise.current);
        }
    }

    /// The last promise of each member's current run that was heard, in the order of the members; one that says nothing
    /// where there was none.
    pub fn promises<'a>(
        &'a self,
        membership: &'a Membership,
    ) -> impl Iterator<Item = Promise> + 'a {
        let members = membership.numbers.iter().zip(&membership.rows);
        members.zip(&self.standings).map(|((member, (run, joined)), standing)| {
            let is_current = standing.run == *run;
            Promise {
                member: *member,
                run: *run,
                time: if is_current { standing.time } else { *joined },
                seq: if is_current { standing.seq } else { 0 },
                complete: standing.complete,
                current: standing.current,
                held: self.held.get(&Origin { member: *member, run: *run }).copied().unwrap_or(0),
            }
        })
    }

    /// Takes note of promises of all members, in their order, which rely on who they are and which runs are current.
    pub fn hear_all(&mut self, rows: &[Promise], membership: &Membership) {
        let known = membership.numbers.iter().zip(&membership.rows);
        for (number, (row, (member, (run, _)))) in rows.iter().zip(known).enumerate() {
            self.hear(number, &Promise { member: *member, run: *run, ..*row });
        }
    }

    /// Who belongs to the cluster, or what runs have ended, has changed from `before`. Answers the heads of ended runs that
    /// this member holds further than anybody has said: it has to say so at once, in an entry of its own.
    pub fn membership_changed(
        &mut self,
        before: &Membership,
        membership: &Membership,
        heads: &Heads,
    ) -> Vec<Head> {
        let known: BTreeMap<_, _> =
            before.members.keys().copied().zip(std::mem::take(&mut self.standings)).collect();
        self.held.retain(|origin, _| membership.members.contains_key(&origin.member));
        let mut unsaid = Vec::new();
        let sealed = membership.seals.keys().map(|origin| Head { origin: *origin, seq: 0 });
        for head in heads.all().into_iter().chain(sealed) {
            let origin = head.origin;
            if membership.ended(origin).is_none() {
                continue;
            }
            let joined = before.members.get(&origin.member).copied().unwrap_or_default();
            let covered = known.get(&origin.member).map_or(joined, |standing| standing.covered);
            self.ending.entry(origin).or_insert(covered);
            if head.seq > membership.limit(origin) {
                unsaid.push(head);
            }
        }
        self.standings = membership
            .members
            .iter()
            .map(|(member, joined)| {
                let standing = known.get(member).copied().unwrap_or_default();
                Standing { covered: standing.covered.max(*joined), ..standing }
            })
            .collect();
        unsaid
    }

    /// Draws the conclusions from what is held and what was heard. Costs a look at every member.
    pub fn conclude(&mut self, membership: &Membership, heads: &Heads) {
        for (member, standing) in membership.numbers.iter().zip(&mut self.standings) {
            let origin = Origin { member: *member, run: standing.run };
            // Most members of a large cluster write nothing, and need no look at the heads.
            let is_held = || standing.seq == 0 || heads.seq(origin) >= standing.seq;
            if standing.run > 0 && is_held() {
                standing.covered = standing.covered.max(standing.time);
                standing.covered_current = standing.current;
            }
        }
        if membership.awaits || self.standings.is_empty() {
            return;
        }
        let current = self.standings.iter().map(|standing| standing.covered).min();
        self.current = self.current.max(current.unwrap_or_default());
        let mut complete = self.current;
        let ending = std::mem::take(&mut self.ending);
        for (origin, covered) in ending {
            let is_held = heads.seq(origin) >= membership.limit(origin);
            if !(is_held && self.is_closed(origin, membership)) {
                complete = complete.min(covered);
                self.ending.insert(origin, covered);
            }
        }
        self.complete = self.complete.max(complete);
        let everybody = membership.numbers.iter().zip(&self.standings).map(|(member, standing)| {
            if *member == self.me { self.complete } else { standing.complete }
        });
        self.settled = self.settled.max(everybody.min().unwrap_or_default());
    }

    /// Whether every member has said how far it holds a run that has ended.
    fn is_closed(&self, origin: Origin, membership: &Membership) -> bool {
        let Some(announced) = membership.ended(origin) else { return false };
        let sealed = membership.seals.get(&origin).map_or(announced, |(_, time)| *time);
        let since = announced.max(sealed);
        membership.numbers.iter().zip(&self.standings).all(|(member, standing)| {
            let current = if *member == self.me { self.current } else { standing.covered_current };
            current >= since
        })
    }

    /// How far all members that are not away hold the entries of an origin, as far as its member has said.
    pub fn held(&self) -> impl Iterator<Item = Head> {
        self.held.iter().map(|(origin, seq)| Head { origin: *origin, seq: *seq })
    }

    /// When a run ended that everybody holds to its end; `None` if it has not, or not everybody is known to do so. Whoever is
    /// complete up to then holds all of it.
    pub fn retired(&self, head: Head, membership: &Membership) -> Option<Timestamp> {
        let announced = membership.ended(head.origin)?;
        let sealed = membership.seals.get(&head.origin).map_or(announced, |(_, time)| *time);
        let since = announced.max(sealed);
        let is_held = head.seq >= membership.limit(head.origin);
        let is_settled = since <= self.settled && !self.ending.contains_key(&head.origin);
        (is_held && is_settled).then_some(since)
    }

    /// Runs that have ended but are not closed yet, and up to when they are held: they hold `complete` back.
    pub fn ending(&self) -> impl Iterator<Item = (Origin, Timestamp)> {
        self.ending.iter().map(|(origin, covered)| (*origin, *covered))
    }

    /// Up to when the current run of each member is held here, in the order of the members.
    pub fn covered(&self) -> impl Iterator<Item = Timestamp> {
        self.standings.iter().map(|standing| standing.covered)
    }

    /// Up to when each member says that it is complete, in the order of the members.
    pub fn completes(&self) -> impl Iterator<Item = Timestamp> {
        self.standings.iter().map(|standing| standing.complete)
    }
}
