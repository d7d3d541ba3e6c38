//! Puts of one key that had not seen each other: one of them is lost, and its author may not know. Counted, and the newest
//! remembered, for operators.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Conflict;
use crate::time::Stamp;
use crate::types::MemberId;

/// Conflicts that are remembered.
pub const CONFLICTS_MAX: usize = 1000;
/// What is remembered of a key.
pub const KEY_BYTES_MAX: usize = 1024;

/// A conflict as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The key, or the beginning of a long one.
    pub key: Bytes,
    /// How long the key is.
    pub key_bytes: usize,
    /// The put that counts.
    pub kept: Stamp,
    /// The put that does not.
    pub lost: Stamp,
    /// When it was noticed here, in milliseconds since 1970.
    pub noted_millis: u64,
}

/// The conflicts that a run of a member has noticed.
#[derive(Clone, Debug)]
pub struct Conflicts {
    me: MemberId,
    /// The newest last.
    newest: VecDeque<Noted>,
    total: u64,
    by_peer: BTreeMap<MemberId, u64>,
}

impl Conflicts {
    pub(super) fn new(me: MemberId) -> Self {
        Self { me, newest: VecDeque::new(), total: 0, by_peer: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, conflict: &Conflict, noted_millis: u64) {
        let Conflict { key, kept, lost } = conflict;
        self.total += 1;
        *self.by_peer.entry(self.peer(*kept, *lost)).or_default() += 1;
        if self.newest.len() == CONFLICTS_MAX {
            self.newest.pop_front();
        }
        // A copy: the key itself may keep the whole message in memory that it came in.
        let remembered = Bytes::copy_from_slice(&key[..key.len().min(KEY_BYTES_MAX)]);
        self.newest.push_back(Noted {
            key: remembered,
            key_bytes: key.len(),
            kept: *kept,
            lost: *lost,
            noted_millis,
        });
    }

    /// Whose writes have come into conflict with those here: the author of the other put, or of the lost one if both
    /// are others'.
    fn peer(&self, kept: Stamp, lost: Stamp) -> MemberId {
        let lost = lost.origin.member;
        if lost == self.me { kept.origin.member } else { lost }
    }

    /// Forgets what was counted for those who are no members.
    pub(super) fn keep_members(&mut self, is_member: impl Fn(MemberId) -> bool) {
        self.by_peer.retain(|peer, _| is_member(*peer));
    }

    /// Those that are remembered, the newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Noted> {
        self.newest.iter().rev()
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many there were with a member.
    pub fn with(&self, peer: MemberId) -> u64 {
        self.by_peer.get(&peer).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::types::Origin;

    const ME: MemberId = MemberId(1);

    fn stamp(member: u64, time: u64) -> Stamp {
        Stamp { time: Timestamp(time), origin: Origin { member: MemberId(member), run: 1 } }
    }

    fn conflict(key: Vec<u8>, kept: Stamp, lost: Stamp) -> Conflict {
        Conflict { key: key.into(), kept, lost }
    }

    #[test]
    fn each_is_counted_for_the_other_side() {
        let mut conflicts = Conflicts::new(ME);
        for (kept, lost) in [(1, 2), (2, 1), (2, 3), (1, 3)] {
            conflicts.note(&conflict(b"k".to_vec(), stamp(kept, 5), stamp(lost, 4)), 9);
        }
        let counts = [2, 3, 1].map(|peer| conflicts.with(MemberId(peer)));
        assert_eq!((counts, conflicts.total()), ([2, 2, 0], 4));
        conflicts.keep_members(|peer| peer == MemberId(2));
        assert_eq!((conflicts.with(MemberId(3)), conflicts.total()), (0, 4));
    }

    #[test]
    fn memory_is_bounded() {
        let mut conflicts = Conflicts::new(ME);
        for time in 0..=CONFLICTS_MAX as u64 {
            conflicts
                .note(&conflict(vec![b'k'; 2 * KEY_BYTES_MAX], stamp(2, time), stamp(1, 0)), 9);
        }
        let newest: Vec<_> = conflicts.newest().collect();
        assert_eq!((newest.len(), conflicts.total()), (CONFLICTS_MAX, CONFLICTS_MAX as u64 + 1));
        assert_eq!((newest[0].key.len(), newest[0].key_bytes), (KEY_BYTES_MAX, 2 * KEY_BYTES_MAX));
        assert_eq!(newest[0].kept.time, Timestamp(CONFLICTS_MAX as u64));
        assert_eq!(newest[CONFLICTS_MAX - 1].kept.time, Timestamp(1));
    }
}
