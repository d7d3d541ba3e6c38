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
}

impl Membership {
    /// When it was announced that an origin has ended, if it has.
    pub fn ended(&self, origin: Origin) -> Option<Timestamp> {
        if let Some(removed) = self.removed.get(&origin.member) {
            return Some(*removed);
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

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// The last promise that was heard.
    heard: Option<Promise>,
    /// The last one whose entries are all here.
    covered: Option<Promise>,
}

/// What this member knows of everybody's promises.
#[derive(Clone, Debug)]
pub struct Frontier {
    me: MemberId,
    standings: BTreeMap<MemberId, Standing>,
    /// The last covered promise of runs that have ended, until that is closed.
    ending: BTreeMap<Origin, Timestamp>,
    complete: Timestamp,
    current: Timestamp,
    settled: Timestamp,
}

impl Frontier {
    /// Goes on from what was on record: `complete` and `settled` hold for ever.
    pub fn new(me: MemberId, complete: Timestamp, settled: Timestamp) -> Self {
        Self {
            me,
            standings: BTreeMap::new(),
            ending: BTreeMap::new(),
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

    /// Takes note of a promise. Answers whether it is news.
    pub fn hear(&mut self, promise: Promise) -> bool {
        let heard = &mut self.standings.entry(promise.member).or_default().heard;
        let is_news =
            heard.is_none_or(|known| (known.run, known.time) < (promise.run, promise.time));
        if is_news {
            // What is held stays held, whatever a member says after it lost its disk.
            let complete = heard.map_or(promise.complete, |known| known.complete);
            let current = heard.map_or(promise.current, |known| known.current);
            *heard = Some(Promise {
                complete: promise.complete.max(complete),
                current: promise.current.max(current),
                ..promise
            });
        }
        is_news
    }

    /// The last promise of each member that was heard, in their order; one that says nothing for those that were not.
    pub fn promises<'a>(
        &'a self,
        membership: &'a Membership,
    ) -> impl Iterator<Item = Promise> + 'a {
        membership.members.iter().map(|(member, joined)| {
            let heard = self.standings.get(member).and_then(|standing| standing.heard);
            heard.unwrap_or(Promise {
                member: *member,
                run: 0,
                time: *joined,
                seq: 0,
                complete: Timestamp::default(),
                current: Timestamp::default(),
            })
        })
    }

    /// What the membership says has changed. Answers the heads of ended runs that this member holds further than anybody
    /// has said: it has to say so at once, in an entry of its own.
    pub fn membership_changed(&mut self, membership: &Membership, heads: &Heads) -> Vec<Head> {
        self.standings.retain(|member, _| membership.members.contains_key(member));
        let mut unsaid = Vec::new();
        let sealed = membership.seals.keys().map(|origin| Head { origin: *origin, seq: 0 });
        for head in heads.all().into_iter().chain(sealed) {
            let origin = head.origin;
            if membership.ended(origin).is_none() {
                continue;
            }
            let covered = self.covered(origin.member, membership);
            self.ending.entry(origin).or_insert(covered);
            if head.seq > membership.limit(origin) {
                unsaid.push(head);
            }
        }
        unsaid
    }

    /// Up to which time everything of a member is here.
    fn covered(&self, member: MemberId, membership: &Membership) -> Timestamp {
        let covered = self.standings.get(&member).and_then(|standing| standing.covered);
        let joined = membership.members.get(&member).copied().unwrap_or_default();
        covered.map_or(joined, |promise| promise.time)
    }

    /// Draws the conclusions from what is held and what was heard. Costs a look at every member.
    pub fn conclude(&mut self, membership: &Membership, heads: &Heads) {
        for (member, standing) in &mut self.standings {
            let is_covered = |promise: &Promise| {
                heads.seq(Origin { member: *member, run: promise.run }) >= promise.seq
            };
            if let Some(promise) = standing.heard.filter(is_covered) {
                standing.covered = Some(promise);
            }
        }
        if membership.awaits || membership.members.is_empty() {
            return;
        }
        let members = membership.members.keys();
        let current = members.map(|member| self.covered(*member, membership)).min();
        let current = current.unwrap_or_default();
        self.current = self.current.max(current);
        let ending = std::mem::take(&mut self.ending);
        let mut complete = current;
        for (origin, covered) in ending {
            if !self.is_closed(origin, membership) {
                complete = complete.min(covered);
            } else if heads.seq(origin) < membership.limit(origin) {
                complete = complete.min(covered);
            } else {
                // It is over: nothing more of it will come.
                continue;
            }
            self.ending.insert(origin, covered);
        }
        self.complete = self.complete.max(complete);
        let everybody = membership.members.keys().map(|member| match *member {
            me if me == self.me => self.complete,
            peer => {
                let heard = self.standings.get(&peer).and_then(|standing| standing.heard);
                heard.map_or(Timestamp::default(), |promise| promise.complete)
            }
        });
        self.settled = self.settled.max(everybody.min().unwrap_or_default());
    }

    /// Whether every member has said how far it holds a run that has ended.
    fn is_closed(&self, origin: Origin, membership: &Membership) -> bool {
        let Some(announced) = membership.ended(origin) else { return false };
        let sealed = membership.seals.get(&origin).map_or(announced, |(_, time)| *time);
        let since = announced.max(sealed);
        membership.members.keys().all(|member| {
            if *member == self.me {
                return self.current >= since;
            }
            let covered = self.standings.get(member).and_then(|standing| standing.covered);
            covered.is_some_and(|promise| promise.current >= since)
        })
    }

    /// Runs that have ended but are not closed yet: they hold `complete` back.
    pub fn ending(&self) -> impl Iterator<Item = Origin> {
        self.ending.keys().copied()
    }

    /// What a member has last said of itself.
    pub fn heard(&self, member: MemberId) -> Option<Promise> {
        self.standings.get(&member)?.heard
    }
}
