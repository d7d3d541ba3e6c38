//! Who takes care of which lease: the end of those of this member, take-over from members that are gone, and keys that
//! leases have left behind.
//!
//! A lease has one owner, which alone keeps its deadline, and ends it. If the owner has been gone for a while, or was removed,
//! or says that it is fenced, since its clock is off, one of the others takes its place, the same in the eyes of all who see the same members alive, and gives the lease all of
//! its time anew. Two that see different members may both do so: the later record counts.
//!
//! What one side of a cut believes must not end what is kept alive on the other side. So whoever ends a lease, or takes one
//! over, must only just before have asked a majority of the voters, and hold all that those held: a lease that another member
//! has taken over meanwhile is not its own any more. A member that was without a majority, or stood still, gives all of its
//! leases their time anew before it ends any: nobody may have been able to keep them alive.
//!
//! A key whose lease is gone is deleted by the member that would take the lease over. It may only do so when it knows that no
//! record of the lease is on its way: the put is older than the removal, or this member is complete up to it, or the put is
//! old and a majority knows of no such record either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::command::Command;
use super::replica::Replica;
use super::{Failure, RecordWrite, Writer};
use crate::error::StoreError;
use crate::replication::heads::mix;
use crate::storage::schema::{LeaseRecord, Table};
use crate::time::{Now, Stamp, Timestamp};
use crate::types::{AlarmKind, LeaseExpiry, LeaseId, MemberId};

/// How long a majority may take to answer before it is asked again.
const ASK_MILLIS: u64 = 2000;
/// How long it counts that a majority has answered, from the question on.
const ANSWER_MILLIS: u64 = 3000;
/// A majority is asked so long before a lease ends, that its keys go as soon after its end as etcd's do: more than one look.
const AHEAD_MILLIS: u64 = 1000;
/// Who had to wait so long for a majority was cut off.
const CUT_OFF_MILLIS: u64 = 4000;
/// The questions of this module are numbered from here on, so that they are never taken for those of readers.
pub(super) const QUESTIONS: u64 = 1 << 63;
/// How long the owner of a lease is waited for that this member has not met: it may have just started itself.
const ABSENCE_MILLIS: u64 = 2000;
/// Between two looks at most: a member that comes later stood still, and others have waited for it in vain.
const LATE_MILLIS: u64 = 1000;
/// The same for a member without peers, which nobody can have asked in the meantime.
const LATE_ALONE_MILLIS: u64 = 5000;
/// Leases that end at one look (etcd: 1000 a second).
const EXPIRED_MAX: usize = 500;
/// Leases that are taken over at one look, by one entry ...
const TAKEN_OVER_MAX: usize = 500;
/// ... of so many that are looked at.
const CANDIDATES_MAX: usize = 4096;
/// Keys without a lease that are looked at each time.
const ORPHANS_MAX: usize = 256;
/// A put later than the removal of its lease may have seen a new lease of the same id, whose record is on its way. Not for so
/// long, if a majority does not have it: members that can talk compare notes every few seconds.
const ORPHAN_AGE_MILLIS: u64 = 60_000;

/// What a look at the leases has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseLook {
    /// Leases that have ended.
    pub ended: usize,
    /// Leases that were another member's before.
    pub taken_over: usize,
    /// Keys that were deleted since their leases are gone.
    pub orphans: usize,
    /// Leases of this member that have got all their time anew.
    pub extended: usize,
}

/// Whether leases may end now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// They may.
    Act,
    /// A majority has to be asked first.
    Ask,
    /// They may not, or not yet.
    StandStill,
    /// They get all their time first.
    Extend,
}

/// Whether there is anything that may only be done after a majority was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Nothing,
    /// Within [`AHEAD_MILLIS`].
    Soon,
    Now,
}

/// Who is there, as a member sees it.
#[derive(Clone, Debug)]
struct View {
    me: MemberId,
    voters: Vec<MemberId>,
    majority: usize,
    /// Those that leases may fall to: learners have yet to get the data.
    heirs: BTreeSet<MemberId>,
    /// The others that seem alive, in order.
    live: Vec<MemberId>,
    /// Those of them that write nothing because of their clocks.
    fenced: BTreeSet<MemberId>,
}

impl View {
    fn is_live(&self, member: MemberId) -> bool {
        member == self.me || self.live.binary_search(&member).is_ok()
    }

    /// Whether it can take care of leases.
    fn is_able(&self, member: MemberId) -> bool {
        self.heirs.contains(&member) && self.is_live(member) && !self.fenced.contains(&member)
    }
}

/// A majority was asked what it holds.
#[derive(Clone, Copy, Debug)]
struct Question {
    number: u64,
    asked: u64,
    /// All of it is here by now.
    is_answered: bool,
}

/// What a member remembers from look to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Duty {
    expiry: LeaseExpiry,
    /// The newest one.
    question: Option<Question>,
    /// Owners of leases that were there in this run, ...
    met: BTreeSet<MemberId>,
    /// ... and since when others are waited for.
    absent: BTreeMap<MemberId, u64>,
    /// Whether there was no majority.
    cut_off: bool,
    /// Since when an answer is waited for.
    waiting_since: Option<u64>,
    looked_at: Option<u64>,
    /// Which lease of a member that is gone was looked at last.
    candidate: Option<(MemberId, LeaseId)>,
    orphan: Option<(LeaseId, Bytes)>,
}

impl Duty {
    pub(super) fn new(expiry: LeaseExpiry) -> Self {
        Self { expiry, ..Self::default() }
    }

    /// A number for a question to a majority.
    fn ask(&mut self, now: Now) -> u64 {
        let number = self.question.map_or(QUESTIONS, |question| question.number + 1);
        self.question = Some(Question { number, asked: now.monotonic_millis, is_answered: false });
        number
    }

    /// What a majority held when it was asked is here now. Answers whether that was a question of this module.
    pub(super) fn answer(&mut self, number: u64) -> bool {
        if let Some(question) = &mut self.question
            && question.number == number
        {
            question.is_answered = true;
        }
        number >= QUESTIONS
    }

    /// Whether this look comes so late that the whole process must have stood still.
    fn is_late(&mut self, late_millis: u64, now: Now) -> bool {
        let before = self.looked_at.replace(now.monotonic_millis);
        before.is_some_and(|before| now.monotonic_millis > before.saturating_add(late_millis))
    }

    /// Whether leases may end or change hands.
    fn judge(&mut self, view: &View, want: Want, now: Now) -> Verdict {
        let is_alone = view.voters.iter().all(|voter| *voter == view.me);
        if self.expiry == LeaseExpiry::Local || is_alone {
            return Verdict::Act;
        }
        let millis = now.monotonic_millis;
        let live = view.voters.iter().filter(|voter| view.is_live(**voter)).count();
        if live < view.majority {
            self.cut_off = true;
            self.waiting_since = None;
            return Verdict::StandStill;
        }
        if std::mem::take(&mut self.cut_off) {
            return Verdict::Extend;
        }
        let counts_millis = match want {
            Want::Nothing => {
                self.waiting_since = None;
                return Verdict::Act;
            }
            Want::Soon => ANSWER_MILLIS - AHEAD_MILLIS,
            Want::Now => ANSWER_MILLIS,
        };
        match self.question {
            Some(question) if question.is_answered && millis - question.asked <= counts_millis => {}
            Some(question) if !question.is_answered && millis - question.asked < ASK_MILLIS => {
                return Verdict::StandStill;
            }
            _ => {
                self.waiting_since.get_or_insert(millis);
                return Verdict::Ask;
            }
        }
        match self.waiting_since.take() {
            Some(since) if millis - since > CUT_OFF_MILLIS => Verdict::Extend,
            _ => Verdict::Act,
        }
    }

    /// The owners that are gone: to seem dead takes a while, so who was there before is not waited for again.
    fn gone(&mut self, owners: Vec<MemberId>, view: &View, now: Now) -> Vec<MemberId> {
        let millis = now.monotonic_millis;
        self.met.retain(|owner| owners.binary_search(owner).is_ok());
        let is_there = |owner: &MemberId| view.is_able(*owner);
        let (there, absent): (Vec<_>, Vec<_>) = owners.into_iter().partition(is_there);
        self.met.extend(there);
        self.absent.retain(|owner, _| absent.binary_search(owner).is_ok());
        let is_gone = |owner: &MemberId| {
            let since = *self.absent.entry(*owner).or_insert(millis);
            self.met.contains(owner) || millis - since >= ABSENCE_MILLIS
        };
        absent.into_iter().filter(is_gone).collect()
    }
}

/// Who takes over a lease whose owner is gone: the same for all who see the same members alive.
fn successor(lease: LeaseId, live: &[MemberId]) -> Option<MemberId> {
    let rank = |member: &MemberId| mix(mix(lease.0.cast_unsigned()) ^ member.0);
    live.iter().copied().max_by_key(|member| (rank(member), *member))
}

impl Replica {
    /// Ends the leases of this member whose time is up, takes over those of members that are gone, and deletes keys that leases
    /// have left behind; a bounded number of each. To be called about twice a second.
    pub fn look_at_leases(&mut self, now: Now) -> Result<LeaseLook, StoreError> {
        let late_millis = if self.directory().is_some() { LATE_MILLIS } else { LATE_ALONE_MILLIS };
        let is_late = self.duty.is_late(late_millis, now);
        // No deletion would be done, and what has run out is to be found again.
        let is_corrupt = self.writer().alarms().is_raised(AlarmKind::Corrupt);
        if !self.is_ready() || !self.may_write() || is_corrupt {
            return Ok(LeaseLook::default());
        }
        let mut look = LeaseLook::default();
        let lessor = Arc::clone(self.writer().lessor());
        if is_late {
            look.extended = lessor.extend_all(now);
        }
        let view = self.view(now);
        let gone = self.duty.gone(lessor.other_owners(), &view, now);
        let heirs: Vec<_> = view.heirs.iter().copied().filter(|heir| view.is_able(*heir)).collect();
        let Orphans { mut certain, old } = self.orphans(&heirs, now);
        let want = if !gone.is_empty() || !old.is_empty() || lessor.expires_within(0, now) {
            Want::Now
        } else if lessor.expires_within(AHEAD_MILLIS, now) {
            Want::Soon
        } else {
            Want::Nothing
        };
        let verdict = self.duty.judge(&view, want, now);
        lessor.stand_still(verdict != Verdict::Act);
        match verdict {
            Verdict::Act => {
                look.ended = self.end_leases(now)?;
                look.taken_over = self.take_over(&gone, &heirs, now)?;
                certain.extend(old);
            }
            Verdict::Ask => self.ask_majority(now)?,
            Verdict::StandStill => {}
            Verdict::Extend => look.extended = lessor.extend_all(now),
        }
        look.orphans = certain.len();
        self.writer_mut().delete_keys(certain, now);
        Ok(look)
    }

    fn ask_majority(&mut self, now: Now) -> Result<(), StoreError> {
        let number = self.duty.ask(now);
        if !self.begin_read(number, now.monotonic_millis + ASK_MILLIS, now)? {
            self.duty.answer(number);
        }
        Ok(())
    }

    fn view(&self, now: Now) -> View {
        let me = self.writer().identity().member;
        let live = self.live().to_vec();
        let fenced = live.iter().copied().filter(|peer| self.is_peer_fenced(*peer, now)).collect();
        let Some(directory) = self.directory() else {
            return View { me, voters: Vec::new(), majority: 0, heirs: [me].into(), live, fenced };
        };
        let heirs = directory.members.iter();
        let heirs = heirs.filter(|(_, record)| record.is_started() && !record.learner);
        View {
            me,
            voters: directory.voters().collect(),
            majority: directory.majority(),
            heirs: heirs.map(|(member, _)| *member).collect(),
            live,
            fenced,
        }
    }

    /// Ends the leases whose time is up.
    fn end_leases(&mut self, now: Now) -> Result<usize, StoreError> {
        let mut ended = 0;
        for id in self.writer().lessor().take_expired(now, EXPIRED_MAX) {
            match self.execute(Command::LeaseRevoke { id }, now) {
                Ok(_) => ended += 1,
                // It was revoked in this very batch.
                Err(Failure::Refused(_)) => {}
                Err(Failure::Broken(error)) => return Err(error),
            }
        }
        Ok(ended)
    }

    /// Takes over what falls to this member of the leases of those who are gone.
    fn take_over(
        &mut self,
        gone: &[MemberId],
        heirs: &[MemberId],
        now: Now,
    ) -> Result<usize, StoreError> {
        let me = self.writer().identity().member;
        let candidates = self.candidates(gone);
        let mut writes = Vec::new();
        for id in candidates {
            if successor(id, heirs) != Some(me) || writes.len() == TAKEN_OVER_MAX {
                continue;
            }
            let Some(ttl_seconds) = self.writer().lessor().ttl_seconds(id) else { continue };
            let record = LeaseRecord { id, ttl_seconds, owner: me };
            let (key, value) = (LeaseRecord::key(id), Some(record.value()));
            writes.push(RecordWrite { table: Table::Lease, key, value });
        }
        let taken = writes.len();
        if taken > 0 {
            self.write(writes, now)?;
        }
        Ok(taken)
    }

    /// Some leases of those who are gone; the next ones each time, around and around.
    fn candidates(&mut self, gone: &[MemberId]) -> Vec<LeaseId> {
        let lessor = self.writer().lessor();
        let mut found = Vec::new();
        let begin = self.duty.candidate.and_then(|(owner, id)| {
            let at = gone.iter().position(|member| *member == owner)?;
            Some((at, Some(id)))
        });
        let (at, mut behind) = begin.unwrap_or((0, None));
        let mut last = None;
        for owner in &gone[at.min(gone.len())..] {
            let ids = lessor.owned_by(*owner, behind.take(), CANDIDATES_MAX - found.len());
            last = ids.last().map(|id| (*owner, *id)).or(last);
            found.extend(ids);
        }
        let is_end = found.len() < CANDIDATES_MAX;
        self.duty.candidate = last.filter(|_| !is_end);
        found
    }

    /// Some keys that this member should delete since their leases are gone; the next ones each time, around and around.
    fn orphans(&mut self, heirs: &[MemberId], now: Now) -> Orphans {
        let me = self.writer().identity().member;
        let lessor = self.writer().lessor();
        let keys = lessor.orphans_behind(self.duty.orphan.as_ref(), ORPHANS_MAX);
        let is_end = keys.len() < ORPHANS_MAX;
        self.duty.orphan = keys.last().filter(|_| !is_end).cloned();
        let complete = self.gossip().map_or_else(Timestamp::default, |it| it.frontier().complete());
        let mut orphans = Orphans::default();
        for (id, key) in keys {
            if successor(id, heirs) != Some(me) {
                continue;
            }
            match self.writer().judge_orphan((id, &key), complete, now) {
                Some(Fate::Certain) => orphans.certain.push(key),
                Some(Fate::Old) => orphans.old.push(key),
                None => {}
            }
        }
        orphans
    }
}

/// Keys that name leases which are gone.
#[derive(Debug, Default)]
struct Orphans {
    certain: Vec<Bytes>,
    old: Vec<Bytes>,
}

/// What is known of a key whose lease is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No record of a new lease of that id can come any more that the put had seen.
    Certain,
    /// It would have come by now.
    Old,
}

impl Writer {
    /// Whether a key is to be deleted since its lease is gone.
    fn judge_orphan(
        &self,
        (id, key): (LeaseId, &Bytes),
        complete: Timestamp,
        now: Now,
    ) -> Option<Fate> {
        let latest = self.mvcc.latest(key).filter(|latest| latest.lease == id)?;
        let put: Stamp = self.mvcc.origins().read().stamp(latest.stamp);
        if put.time <= complete {
            return Some(Fate::Certain);
        }
        let removed = self.mvcc.records().read().removed_at(Table::Lease, &LeaseRecord::key(id))?;
        let is_old = put.time.millis().saturating_add(ORPHAN_AGE_MILLIS) <= now.wall_millis;
        match put < removed {
            true => Some(Fate::Certain),
            false => is_old.then_some(Fate::Old),
        }
    }

    /// Deletes keys that live, by one entry.
    fn delete_keys(&mut self, keys: Vec<Bytes>, now: Now) {
        if keys.is_empty() {
            return;
        }
        let stamp = self.begin_entry(now);
        for key in keys {
            if let Some(latest) = self.mvcc.latest(&key) {
                self.delete(key, latest, latest.stamp, stamp);
            }
        }
        self.end_entry_alone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: MemberId = MemberId(1);

    fn at(millis: u64) -> Now {
        Now { wall_millis: 0, monotonic_millis: millis }
    }

    /// A member and four others, the first of which seem alive.
    fn view(live: u64) -> View {
        let voters: Vec<_> = (1..=5).map(MemberId).collect();
        let live = (2..2 + live).map(MemberId).collect();
        let (heirs, fenced) = (voters.iter().copied().collect(), BTreeSet::new());
        View { me: ME, heirs, voters, majority: 3, live, fenced }
    }

    fn ids(members: &[u64]) -> Vec<MemberId> {
        members.iter().copied().map(MemberId).collect()
    }

    #[test]
    fn nothing_ends_without_a_majority_and_then_there_is_time_anew() {
        let mut duty = Duty::default();
        let question = duty.ask(at(9900));
        assert!(duty.answer(question));
        assert_eq!(duty.judge(&view(1), Want::Now, at(10_000)), Verdict::StandStill);
        assert_eq!(duty.judge(&view(2), Want::Now, at(10_500)), Verdict::Extend);
        assert_eq!(duty.judge(&view(2), Want::Now, at(11_000)), Verdict::Act);
        let mut alone = Duty::new(LeaseExpiry::Local);
        assert_eq!(alone.judge(&view(0), Want::Now, at(10_000)), Verdict::Act);
    }

    #[test]
    fn a_majority_is_asked_and_asked_again() {
        let mut duty = Duty::default();
        assert_eq!(
            duty.judge(&view(4), Want::Nothing, at(10_000)),
            Verdict::Act,
            "nothing is to be done"
        );
        assert_eq!(duty.judge(&view(4), Want::Now, at(10_000)), Verdict::Ask);
        let first = duty.ask(at(10_000));
        assert_eq!(duty.judge(&view(4), Want::Now, at(10_500)), Verdict::StandStill);
        assert_eq!(duty.judge(&view(4), Want::Now, at(12_000)), Verdict::Ask);
        let second = duty.ask(at(12_000));
        assert!(duty.answer(first), "nobody waits for it any more");
        assert_eq!(duty.judge(&view(4), Want::Now, at(12_500)), Verdict::StandStill);
        assert!(duty.answer(second));
        assert_eq!(duty.judge(&view(4), Want::Now, at(13_000)), Verdict::Act);
        assert_eq!(
            duty.judge(&view(4), Want::Now, at(15_001)),
            Verdict::Ask,
            "that was too long ago"
        );
        assert!(!duty.answer(1), "that is a reader's");
    }

    /// A lease that ends at 11 s, with a look twice a second, goes at the first look after that.
    #[test]
    fn a_majority_is_asked_before_it_is_needed() {
        for answered in [None, Some(8000), Some(9500)] {
            let mut duty = Duty::default();
            if let Some(millis) = answered {
                let question = duty.ask(at(millis));
                duty.answer(question);
            }
            for millis in [10_100, 10_600] {
                if duty.judge(&view(4), Want::Soon, at(millis)) == Verdict::Ask {
                    let question = duty.ask(at(millis));
                    duty.answer(question);
                }
            }
            assert_eq!(duty.judge(&view(4), Want::Now, at(11_100)), Verdict::Act, "{answered:?}");
        }
    }

    #[test]
    fn who_has_waited_long_was_cut_off() {
        let mut duty = Duty::default();
        assert_eq!(duty.judge(&view(4), Want::Now, at(10_000)), Verdict::Ask);
        assert_eq!(duty.judge(&view(4), Want::Now, at(14_000)), Verdict::Ask);
        let question = duty.ask(at(14_000));
        duty.answer(question);
        assert_eq!(duty.judge(&view(4), Want::Now, at(14_500)), Verdict::Extend);
        assert_eq!(duty.judge(&view(4), Want::Now, at(15_000)), Verdict::Act);
    }

    #[test]
    fn an_owner_is_gone_when_it_seems_dead_or_was_never_met() {
        let mut duty = Duty::default();
        let owners = ids(&[2, 5, 9]);
        assert_eq!(duty.gone(owners.clone(), &view(2), at(1000)), []);
        assert_eq!(duty.gone(owners.clone(), &view(2), at(2999)), []);
        assert_eq!(duty.gone(owners.clone(), &view(2), at(3000)), ids(&[5, 9]), "9 is no member");
        assert_eq!(duty.gone(owners.clone(), &view(4), at(3500)), ids(&[9]), "5 has come");
        assert_eq!(duty.gone(owners.clone(), &view(0), at(4000)), owners, "all were met or missed");
        assert_eq!(duty.gone(ids(&[9]), &view(4), at(4500)), ids(&[9]));
        assert_eq!(
            duty.gone(owners, &view(0), at(5000)),
            ids(&[9]),
            "who has no lease is forgotten"
        );
    }

    #[test]
    fn who_is_fenced_cannot_take_care_of_leases() {
        let mut duty = Duty::default();
        let fenced = View { fenced: ids(&[2]).into_iter().collect(), ..view(4) };
        assert_eq!(duty.gone(ids(&[2, 3]), &view(4), at(1000)), []);
        assert_eq!(duty.gone(ids(&[2, 3]), &fenced, at(1500)), ids(&[2]));
        assert!(!fenced.is_able(MemberId(2)) && fenced.is_able(MemberId(3)));
    }

    #[test]
    fn a_late_look_is_told_once() {
        let mut duty = Duty::default();
        let looks = [0, 500, 1500, 2501, 3000];
        let late: Vec<_> = looks.map(|t| duty.is_late(LATE_MILLIS, at(t))).into();
        assert_eq!(late, [false, false, false, true, false]);
    }

    /// What members compare must never change.
    #[test]
    fn a_lease_falls_to_one_member_and_moves_only_if_that_goes() {
        let all = ids(&[1, 2, 3, 4, 5]);
        let heirs =
            |all: &[MemberId]| (1..=8).map(|id| successor(LeaseId(id), all)).collect::<Vec<_>>();
        let before = heirs(&all);
        let numbers: Vec<_> = before.iter().flatten().map(|member| member.0).collect();
        assert_eq!(numbers, [1, 1, 1, 5, 4, 4, 4, 5]);
        let after = heirs(&ids(&[1, 2, 4, 5]));
        for (before, after) in before.into_iter().zip(after) {
            assert!(before == after || before == Some(MemberId(3)));
        }
        assert_eq!(successor(LeaseId(1), &[]), None);
    }
}
