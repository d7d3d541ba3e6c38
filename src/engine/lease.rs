//! Leases: who holds which keys, and until when.
//!
//! A lease is granted and revoked through the log, which also says which member owns it. Its deadline is memory of the
//! owner only, and starts anew with its full time to live after a start of that member, as etcd's does after an election.
//! A keep-alive therefore writes nothing. The others know the lease and its keys, but never when it ends.
//!
//! A put may come from another member before the lease that it names does, and stay when the lease has gone: such a key
//! is an orphan until it is put again or deleted, or the lease comes.
//!
//! Source: etcd `server/lease/lessor.go`.
//!
//! Invariants
//! * A key is attached to at most one lease, the one that its newest put names, or it is an orphan of it.
//! * `deadlines` has exactly one entry per lease of this member, unless its revocation is under way.
//! * `elsewhere` has every lease of another member once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::command::LeaseStatus;
use crate::error::{Error, Invalid};
use crate::time::Now;
use crate::types::{LeaseId, MemberId};

/// The longest time to live that can be granted, in seconds (etcd `MaxLeaseTTL`).
const TTL_SECONDS_MAX: i64 = 9_000_000_000;
const MILLIS_PER_SECOND: u64 = 1000;

#[derive(Debug)]
struct Lease {
    owner: MemberId,
    ttl_seconds: u64,
    /// Means nothing for a lease of another member.
    deadline_millis: u64,
    /// It is overdue, and its revocation is on the way.
    expiring: bool,
    keys: BTreeSet<Bytes>,
}

impl Lease {
    fn ttl_millis(&self) -> u64 {
        self.ttl_seconds.saturating_mul(MILLIS_PER_SECOND)
    }
}

#[derive(Debug, Default)]
struct Table {
    leases: BTreeMap<LeaseId, Lease>,
    /// By deadline, all leases of this member that may still expire.
    deadlines: BTreeSet<(u64, LeaseId)>,
    /// By owner, all leases of other members.
    elsewhere: BTreeMap<MemberId, BTreeSet<LeaseId>>,
    /// The keys that name a lease which is not there.
    orphans: BTreeMap<LeaseId, BTreeSet<Bytes>>,
}

impl Table {
    /// The keys that name a lease, if there are any.
    fn keys_mut(&mut self, id: LeaseId) -> Option<&mut BTreeSet<Bytes>> {
        match self.leases.get_mut(&id) {
            Some(lease) => Some(&mut lease.keys),
            None => self.orphans.get_mut(&id),
        }
    }

    fn detach(&mut self, key: &[u8], id: LeaseId) {
        if let Some(keys) = self.keys_mut(id) {
            keys.remove(key);
        }
        if self.orphans.get(&id).is_some_and(BTreeSet::is_empty) {
            self.orphans.remove(&id);
        }
    }

    fn attach(&mut self, key: &[u8], id: LeaseId) {
        let keys = match self.leases.get_mut(&id) {
            Some(lease) => &mut lease.keys,
            None => self.orphans.entry(id).or_default(),
        };
        keys.insert(Bytes::copy_from_slice(key));
    }

    /// Takes a lease out. Answers the keys that name it, if it was there.
    fn take(&mut self, id: LeaseId) -> Option<BTreeSet<Bytes>> {
        let lease = self.leases.remove(&id)?;
        self.deadlines.remove(&(lease.deadline_millis, id));
        if let Some(owned) = self.elsewhere.get_mut(&lease.owner) {
            owned.remove(&id);
            if owned.is_empty() {
                self.elsewhere.remove(&lease.owner);
            }
        }
        Some(lease.keys)
    }
}

/// The leases as this member knows them. The writer grants and revokes; keep-alives come from any thread.
#[derive(Debug)]
pub struct Lessor {
    table: Mutex<Table>,
    me: MemberId,
    ttl_seconds_min: u64,
    /// Nothing expires now: see [`Self::stand_still`].
    stands_still: AtomicBool,
}

/// What came of a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// It lives for so many seconds more.
    Renewed(i64),
    /// It has run out, and its revocation is on the way: ask again when that is done.
    Expiring,
    /// Another member keeps its deadline.
    Elsewhere(MemberId),
    /// There is no such lease.
    Unknown,
}

impl Lessor {
    /// No leases yet. Shorter grants than the minimum are raised to it.
    pub(super) fn new(me: MemberId, ttl_seconds_min: u64) -> Self {
        Self { table: Mutex::default(), me, ttl_seconds_min, stands_still: AtomicBool::new(false) }
    }

    /// Checks a grant; answers the time to live that it would get, in seconds.
    pub(super) fn check_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<u64, Error> {
        if ttl_seconds > TTL_SECONDS_MAX {
            return Err(Invalid::LeaseTtlTooLarge.into());
        }
        if self.exists(id) {
            return Err(Error::LeaseExists);
        }
        Ok(u64::try_from(ttl_seconds).unwrap_or(0).max(self.ttl_seconds_min))
    }

    /// Adds a lease, or changes the time or the owner of one. If it is this member's, its whole time is before it.
    pub(super) fn grant(&self, id: LeaseId, ttl_seconds: u64, owner: MemberId, now: Now) {
        let mut table = self.table.lock();
        let keys = match table.take(id) {
            Some(keys) => keys,
            None => table.orphans.remove(&id).unwrap_or_default(),
        };
        let mut lease = Lease { owner, ttl_seconds, deadline_millis: 0, expiring: false, keys };
        if owner == self.me {
            lease.deadline_millis = now.monotonic_millis.saturating_add(lease.ttl_millis());
            table.deadlines.insert((lease.deadline_millis, id));
        } else {
            table.elsewhere.entry(owner).or_default().insert(id);
        }
        table.leases.insert(id, lease);
    }

    /// Ends a lease. Its keys are the caller's to delete; those that are left become orphans.
    pub(super) fn revoke(&self, id: LeaseId) -> Result<(), Error> {
        let mut table = self.table.lock();
        let keys = table.take(id).ok_or(Error::LeaseNotFound)?;
        if !keys.is_empty() {
            table.orphans.insert(id, keys);
        }
        Ok(())
    }

    /// The leases that keys name but that are not there, and those keys.
    pub fn orphans(&self) -> Vec<(LeaseId, Vec<Bytes>)> {
        let table = self.table.lock();
        let orphans = table.orphans.iter();
        orphans.map(|(id, keys)| (*id, keys.iter().cloned().collect())).collect()
    }

    /// Keys that name a lease which is not there, in order, behind one of them: `max` at most.
    pub(super) fn orphans_behind(
        &self,
        behind: Option<&(LeaseId, Bytes)>,
        max: usize,
    ) -> Vec<(LeaseId, Bytes)> {
        let table = self.table.lock();
        let from = behind.map_or(LeaseId(i64::MIN), |(id, _)| *id);
        let orphans = table.orphans.range(from..).flat_map(|(id, keys)| {
            let after = behind.filter(|(of, _)| of == id).map(|(_, key)| key);
            let after = after.map_or(Bound::Unbounded, Bound::Excluded);
            keys.range::<Bytes, _>((after, Bound::Unbounded)).map(|key| (*id, key.clone()))
        });
        orphans.take(max).collect()
    }

    /// Whether there is such a lease.
    pub fn exists(&self, id: LeaseId) -> bool {
        self.table.lock().leases.contains_key(&id)
    }

    /// Who keeps the deadline of a lease.
    pub fn owner(&self, id: LeaseId) -> Option<MemberId> {
        self.table.lock().leases.get(&id).map(|lease| lease.owner)
    }

    /// The other members that own leases.
    pub(super) fn other_owners(&self) -> Vec<MemberId> {
        let table = self.table.lock();
        table.elsewhere.keys().copied().collect()
    }

    /// The leases of another member, in order, behind one of them: `max` at most.
    pub(super) fn owned_by(
        &self,
        owner: MemberId,
        behind: Option<LeaseId>,
        max: usize,
    ) -> Vec<LeaseId> {
        let table = self.table.lock();
        let Some(owned) = table.elsewhere.get(&owner) else { return Vec::new() };
        let behind = behind.map_or(Bound::Unbounded, Bound::Excluded);
        owned.range((behind, Bound::Unbounded)).copied().take(max).collect()
    }

    /// The time to live of a lease, in seconds.
    pub(super) fn ttl_seconds(&self, id: LeaseId) -> Option<u64> {
        self.table.lock().leases.get(&id).map(|lease| lease.ttl_seconds)
    }

    /// The keys of a lease, in order.
    pub fn keys(&self, id: LeaseId) -> Option<Vec<Bytes>> {
        Some(self.table.lock().leases.get(&id)?.keys.iter().cloned().collect())
    }

    /// Moves a key from one lease to another; either may be none, or not there.
    pub(super) fn reattach(&self, key: &[u8], from: LeaseId, to: LeaseId) {
        if from == to {
            return;
        }
        let mut table = self.table.lock();
        if from.is_some() {
            table.detach(key, from);
        }
        if to.is_some() {
            table.attach(key, to);
        }
    }

    /// Starts a lease's time anew. O(log n), and nothing is written.
    pub fn keep_alive(&self, id: LeaseId, now: Now) -> KeepAlive {
        let mut table = self.table.lock();
        let Table { leases, deadlines, .. } = &mut *table;
        let Some(lease) = leases.get_mut(&id) else { return KeepAlive::Unknown };
        if lease.owner != self.me {
            return KeepAlive::Elsewhere(lease.owner);
        }
        let is_over = lease.deadline_millis <= now.monotonic_millis
            && !self.stands_still.load(Ordering::Relaxed);
        if lease.expiring || is_over {
            return KeepAlive::Expiring;
        }
        deadlines.remove(&(lease.deadline_millis, id));
        lease.deadline_millis = now.monotonic_millis.saturating_add(lease.ttl_millis());
        deadlines.insert((lease.deadline_millis, id));
        KeepAlive::Renewed(seconds(lease.ttl_seconds))
    }

    /// While nothing may expire, a lease whose time has run out lives on, and can be kept alive.
    pub(super) fn stand_still(&self, on: bool) {
        self.stands_still.store(on, Ordering::Relaxed);
    }

    /// Whether the time of any lease will have run out in so many milliseconds.
    pub(super) fn expires_within(&self, millis: u64, now: Now) -> bool {
        let then = now.monotonic_millis.saturating_add(millis);
        let table = self.table.lock();
        table.deadlines.first().is_some_and(|(deadline, _)| *deadline <= then)
    }

    /// Takes up to `max` leases that have run out. Each is given out once; the caller revokes it.
    pub fn take_expired(&self, now: Now, max: usize) -> Vec<LeaseId> {
        let mut table = self.table.lock();
        let mut expired = Vec::new();
        while expired.len() < max
            && let Some(&(deadline, id)) = table.deadlines.first()
            && deadline <= now.monotonic_millis
        {
            table.deadlines.pop_first();
            if let Some(lease) = table.leases.get_mut(&id) {
                lease.expiring = true;
            }
            expired.push(id);
        }
        expired
    }

    /// Gives every lease of this member its full time again, when nobody may have been able to keep it alive. Answers how
    /// many they are.
    pub fn extend_all(&self, now: Now) -> usize {
        let mut table = self.table.lock();
        let Table { leases, deadlines, .. } = &mut *table;
        deadlines.clear();
        for (id, lease) in leases.iter_mut().filter(|(_, lease)| lease.owner == self.me) {
            lease.expiring = false;
            lease.deadline_millis = now.monotonic_millis.saturating_add(lease.ttl_millis());
            deadlines.insert((lease.deadline_millis, *id));
        }
        deadlines.len()
    }

    /// What is known of a lease; its keys only if wanted. Of another member's it is not known what is left of its time: all
    /// of it then.
    pub fn status(&self, id: LeaseId, with_keys: bool, now: Now) -> Option<LeaseStatus> {
        let table = self.table.lock();
        let lease = table.leases.get(&id)?;
        let granted_seconds = seconds(lease.ttl_seconds);
        let remaining_seconds = if lease.owner == self.me {
            let left = i128::from(lease.deadline_millis) - i128::from(now.monotonic_millis);
            let left = left.div_euclid(i128::from(MILLIS_PER_SECOND));
            i64::try_from(left).unwrap_or(i64::MAX)
        } else {
            granted_seconds
        };
        let keys = if with_keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
        Some(LeaseStatus { owner: lease.owner, remaining_seconds, granted_seconds, keys })
    }

    /// How many leases there are.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether there are none")]
    pub fn len(&self) -> u64 {
        self.table.lock().leases.len() as u64
    }

    /// All leases, in the order of their ids.
    pub fn ids(&self) -> Vec<LeaseId> {
        self.table.lock().leases.keys().copied().collect()
    }
}

fn seconds(ttl_seconds: u64) -> i64 {
    i64::try_from(ttl_seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: MemberId = MemberId(1);
    const OTHER: MemberId = MemberId(2);

    fn at(seconds: u64) -> Now {
        Now { wall_millis: 0, monotonic_millis: seconds * MILLIS_PER_SECOND }
    }

    fn lessor() -> Lessor {
        let lessor = Lessor::new(ME, 2);
        lessor.grant(LeaseId(7), 10, ME, at(0));
        lessor
    }

    #[test]
    fn grants_are_bounded() {
        let lessor = lessor();
        assert_eq!(lessor.check_grant(LeaseId(7), 10), Err(Error::LeaseExists));
        assert_eq!(lessor.check_grant(LeaseId(8), -3), Ok(2));
        assert_eq!(lessor.check_grant(LeaseId(8), TTL_SECONDS_MAX), Ok(9_000_000_000));
        let too_long = lessor.check_grant(LeaseId(8), TTL_SECONDS_MAX + 1);
        assert_eq!(too_long, Err(Invalid::LeaseTtlTooLarge.into()));
    }

    #[test]
    fn a_lease_expires_once_unless_it_is_kept_alive() {
        let lessor = lessor();
        assert_eq!(lessor.keep_alive(LeaseId(7), at(9)), KeepAlive::Renewed(10));
        assert_eq!(lessor.take_expired(at(18), 10), []);
        assert_eq!(lessor.keep_alive(LeaseId(7), at(19)), KeepAlive::Expiring);
        assert_eq!(lessor.take_expired(at(19), 10), [LeaseId(7)]);
        assert_eq!(lessor.take_expired(at(19), 10), []);
        assert_eq!(lessor.keep_alive(LeaseId(7), at(19)), KeepAlive::Expiring);
        assert_eq!(lessor.revoke(LeaseId(7)), Ok(()));
        assert_eq!(lessor.keep_alive(LeaseId(7), at(19)), KeepAlive::Unknown);
        assert_eq!(lessor.revoke(LeaseId(7)), Err(Error::LeaseNotFound));
    }

    #[test]
    fn a_key_has_one_lease() {
        let lessor = lessor();
        lessor.grant(LeaseId(8), 10, ME, at(0));
        lessor.reattach(b"k", LeaseId::NONE, LeaseId(7));
        lessor.reattach(b"k", LeaseId(7), LeaseId(8));
        assert_eq!(lessor.keys(LeaseId(7)).unwrap(), Vec::<Bytes>::new());
        let status = lessor.status(LeaseId(8), true, at(3)).unwrap();
        assert_eq!(status.keys, [&b"k"[..]]);
        assert_eq!((status.remaining_seconds, status.granted_seconds), (7, 10));
        assert_eq!(lessor.status(LeaseId(8), false, at(12)).unwrap().remaining_seconds, -2);
        lessor.reattach(b"k", LeaseId(8), LeaseId::NONE);
        assert_eq!(lessor.keys(LeaseId(8)).unwrap(), Vec::<Bytes>::new());
    }

    #[test]
    fn keys_wait_for_their_lease() {
        let lessor = lessor();
        lessor.reattach(b"a", LeaseId::NONE, LeaseId(8));
        lessor.reattach(b"b", LeaseId::NONE, LeaseId(8));
        lessor.reattach(b"b", LeaseId(8), LeaseId(7));
        assert_eq!(lessor.orphans(), [(LeaseId(8), vec![Bytes::from("a")])]);
        lessor.grant(LeaseId(8), 10, ME, at(0));
        assert_eq!((lessor.orphans(), lessor.keys(LeaseId(8)).unwrap().len()), (vec![], 1));
        lessor.grant(LeaseId(8), 20, ME, at(0));
        assert_eq!(lessor.status(LeaseId(8), true, at(3)).unwrap().remaining_seconds, 17);
        assert_eq!(lessor.take_expired(at(15), 10), [LeaseId(7)], "it has one deadline");
        lessor.revoke(LeaseId(8)).unwrap();
        assert_eq!(lessor.orphans(), [(LeaseId(8), vec![Bytes::from("a")])]);
        lessor.reattach(b"a", LeaseId(8), LeaseId::NONE);
        assert_eq!(lessor.orphans(), []);
    }

    #[test]
    fn after_a_long_sleep_every_lease_starts_anew() {
        let lessor = lessor();
        assert_eq!(lessor.take_expired(at(60), 10), [LeaseId(7)]);
        lessor.extend_all(at(60));
        assert_eq!(lessor.keep_alive(LeaseId(7), at(69)), KeepAlive::Renewed(10));
        assert_eq!(lessor.take_expired(at(80), 10), [LeaseId(7)]);
    }

    #[test]
    fn only_the_owner_has_a_deadline() {
        let lessor = lessor();
        lessor.grant(LeaseId(8), 10, OTHER, at(0));
        assert_eq!(lessor.keep_alive(LeaseId(8), at(1)), KeepAlive::Elsewhere(OTHER));
        assert_eq!(lessor.status(LeaseId(8), false, at(99)).unwrap().remaining_seconds, 10);
        assert_eq!(lessor.take_expired(at(99), 10), [LeaseId(7)]);
        lessor.extend_all(at(100));
        assert_eq!(lessor.take_expired(at(999), 10), [LeaseId(7)], "not the other's");
        assert_eq!((lessor.other_owners(), lessor.len()), (vec![OTHER], 2));
    }

    #[test]
    fn a_lease_changes_its_owner_with_all_its_time_and_keys() {
        let lessor = lessor();
        lessor.reattach(b"k", LeaseId::NONE, LeaseId(7));
        lessor.grant(LeaseId(7), 10, OTHER, at(5));
        assert_eq!(lessor.take_expired(at(99), 10), [], "it is the other's now");
        assert_eq!(lessor.owned_by(OTHER, None, 9), [LeaseId(7)]);
        assert_eq!(lessor.owned_by(OTHER, Some(LeaseId(7)), 9), []);
        lessor.grant(LeaseId(7), 10, ME, at(100));
        assert_eq!((lessor.other_owners(), lessor.owner(LeaseId(7))), (vec![], Some(ME)));
        assert_eq!(lessor.take_expired(at(109), 10), []);
        assert_eq!(lessor.take_expired(at(110), 10), [LeaseId(7)]);
        assert_eq!(lessor.keys(LeaseId(7)).unwrap(), ["k"]);
    }

    #[test]
    fn what_stands_still_can_be_kept_alive_after_its_time() {
        let lessor = lessor();
        lessor.stand_still(true);
        assert!(lessor.expires_within(0, at(10)));
        assert_eq!(lessor.keep_alive(LeaseId(7), at(50)), KeepAlive::Renewed(10));
        lessor.stand_still(false);
        assert!(!lessor.expires_within(0, at(59)));
        assert_eq!(lessor.keep_alive(LeaseId(7), at(60)), KeepAlive::Expiring);
    }

    #[test]
    fn orphans_are_gone_through_in_pieces() {
        let lessor = lessor();
        for (key, id) in [("a", 8), ("b", 8), ("a", 9)] {
            lessor.reattach(key.as_bytes(), LeaseId::NONE, LeaseId(id));
        }
        let (mut behind, mut seen) = (None, Vec::new());
        while let Some(next) = lessor.orphans_behind(behind.as_ref(), 1).pop() {
            seen.push((next.0.0, next.1.clone()));
            behind = Some(next);
        }
        assert_eq!(seen, [(8, Bytes::from("a")), (8, Bytes::from("b")), (9, Bytes::from("a"))]);
        assert_eq!(lessor.orphans_behind(None, 2).len(), 2);
    }
}
