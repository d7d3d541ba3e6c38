//! The members as the internal records name them: who they are, and what follows for the gossip.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StoreError;
use crate::replication::settled::Membership;
use crate::storage::schema::Table;
use crate::storage::schema::member::{self, MemberRecord};
use crate::time::{Stamp, Timestamp};
use crate::types::{MemberId, Origin};

/// An internal record in force, or the last removal of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Of which kind.
    pub table: Table,
    /// Its key within that kind.
    pub key: Bytes,
    /// Its value; `None` if it is removed.
    pub value: Option<Bytes>,
    /// The entry that wrote or removed it.
    pub stamp: Stamp,
}

/// Who the members are.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// All members, those too that were never started.
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Records under which founders were awaited who have come since, as somebody else.
    pub arrived: BTreeMap<MemberId, MemberRecord>,
    /// What the gossip needs to know of them.
    pub membership: Arc<Membership>,
}

impl Directory {
    /// Reads the tables of members, runs and seals.
    pub fn read(standings: impl Iterator<Item = Standing>) -> Result<Self, StoreError> {
        let mut members: BTreeMap<_, MemberRecord> = BTreeMap::new();
        let mut started = BTreeMap::new();
        let mut runs: BTreeMap<MemberId, (u64, Timestamp)> = BTreeMap::new();
        let mut removed = BTreeMap::new();
        let mut seals: BTreeMap<Origin, (u64, Timestamp)> = BTreeMap::new();
        for Standing { table, key, value, stamp } in standings {
            match (table, value) {
                (Table::Member, Some(value)) => {
                    let (id, record) = (MemberRecord::member(&key)?, MemberRecord::decode(value)?);
                    if record.is_started() {
                        started.insert(id, record.joined);
                    }
                    members.insert(id, record);
                }
                (Table::Member, None) => {
                    removed.insert(MemberRecord::member(&key)?, stamp.time);
                }
                (Table::Run, Some(value)) => {
                    let run = (member::number(value)?, stamp.time);
                    runs.insert(MemberRecord::member(&key)?, run);
                }
                (Table::Seal, Some(value)) => {
                    let (origin, _) = member::seal(&key)?;
                    let seal = seals.entry(origin).or_default();
                    seal.0 = seal.0.max(member::number(value)?);
                    seal.1 = seal.1.max(stamp.time);
                }
                _ => {}
            }
        }
        // A founder that was awaited has come when somebody has its address.
        let met: BTreeSet<_> = members
            .values()
            .filter(|record| record.is_started())
            .flat_map(|record| record.peer_urls.clone())
            .collect();
        let has_arrived = |_: &MemberId, record: &mut MemberRecord| {
            !record.is_started() && record.peer_urls.iter().any(|url| met.contains(url))
        };
        let arrived = members.extract_if(.., has_arrived).collect();
        let awaits = members.values().any(|record| record.initial && !record.is_started());
        let mut membership = Membership::new(started, runs);
        (membership.removed, membership.seals, membership.awaits) = (removed, seals, awaits);
        let placed = members.iter().filter(|(_, record)| !record.zone.is_empty());
        membership.zones = placed.map(|(id, record)| (*id, record.zone.clone())).collect();
        Ok(Self { members, arrived, membership: Arc::new(membership) })
    }

    /// How many members a majority has. Learners, volatile members and those never started do not count.
    pub fn majority(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// The members that count for a majority.
    pub fn voters(&self) -> impl Iterator<Item = MemberId> {
        let counts =
            |record: &MemberRecord| record.is_started() && !record.learner && !record.volatile;
        self.members.iter().filter(move |(_, record)| counts(record)).map(|(id, _)| *id)
    }
}
