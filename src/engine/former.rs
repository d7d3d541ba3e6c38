//! What a member that was removed brings along when it comes back, as somebody else.
//!
//! Its store stays as it is. But what was written there so far is *former*: nothing of it counts, and the data comes
//! from the others, as for a member without any. That is the state merge with a dot rule which is exact for free: what the
//! others hold is there, what they have deleted is not, even where they have forgotten that they have.
//!
//! Some entries may be here which nobody else has, and nobody takes any more: those that its former runs have written when
//! nobody heard of them. When the others' data is here it is known which. Somebody may miss them, so they are *lost and
//! found*: told once, in their order, before the store lets go of them.
//!
//! Invariants
//! * No head covers a former row that has not come again since.
//! * A sweep takes no former row before it is known what is lost.

use bytes::Bytes;

use super::Writer;
use super::restore::{LogEnd, StoreMeta};
use super::strays::Slice;
use crate::error::StoreError;
use crate::replication::settled::Membership;
use crate::storage::Space;
use crate::storage::schema::member::MemberRecord;
use crate::storage::schema::{Meta, Op, Row, Table};
use crate::time::{Stamp, Timestamp};
use crate::types::LeaseId;

/// A write that has no effect any more: its author was removed before anybody else had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWrite {
    /// Of which key.
    pub key: Bytes,
    /// What it was to be; `None` for a delete.
    pub value: Option<Bytes>,
    /// The lease that it named.
    pub lease: LeaseId,
    /// When it was accepted, and by whom.
    pub stamp: Stamp,
    /// The entry that it is part of.
    pub seq: u64,
}

impl LogEnd {
    /// Takes note of a row that does not count.
    pub(super) fn note_former(&mut self, row: &Row) {
        self.hidden_bytes += u64::from(super::mvcc::row_bytes(&row.op));
        match &row.op {
            Op::InternalPut { table: Table::Member, key, value, .. } if !row.hidden => {
                self.former_members.insert(key.clone(), value.clone());
            }
            Op::InternalDelete { table: Table::Member, key } => {
                self.former_members.remove(key);
            }
            _ => {}
        }
    }

    /// Where the members were that this one knew before it was removed.
    pub(super) fn former_peers(&self) -> Result<Vec<String>, StoreError> {
        let records = self.former_members.values().cloned().map(MemberRecord::decode);
        let urls: Result<Vec<_>, _> = records.map(|it| it.map(|it| it.peer_urls)).collect();
        Ok(urls?.into_iter().flatten().collect())
    }
}

impl StoreMeta {
    /// Everything so far becomes former, for a member that is new from now on.
    pub(super) fn leave_behind(&mut self, end: &LogEnd) {
        let newest = end.newest.with_tag(0);
        let next = self.strays.and_then(|(_, next)| next);
        (self.former, self.strays) = (Some(newest), Some((newest, next)));
        self.compacted = Some(newest.revision);
        // What it promised was another's word. Only times go on: what comes is later than all that was.
        (self.peered, self.settled, self.collected) =
            (Some(Timestamp::default()), Timestamp::default(), Timestamp::default());
        self.complete = Timestamp::default();
    }
}

impl Writer {
    /// This member was removed from its cluster: with the next commit it is settled that the next one to open the store
    /// is somebody else.
    pub fn mark_removed(&mut self) {
        self.put_meta(Meta::Removed);
    }

    /// Where the members were that a former owner of this store knew.
    pub fn former_peers(&self) -> &[String] {
        &self.former_peers
    }

    /// Puts on record that the store has got another owner.
    pub(super) fn record_new_owner(&mut self, meta: &StoreMeta) {
        let gone = [Meta::Removed, Meta::Settled(meta.settled)];
        let heads = meta.heads.iter().map(|(index, _)| Meta::Head(*index, 0));
        for row in gone.into_iter().chain(heads) {
            self.batch.delete(Space::Meta, row.encode().0);
        }
        let kept = [
            meta.former.map(Meta::Former),
            meta.strays.map(|(until, next)| Meta::Strays(until, next)),
            meta.compacted.map(Meta::Compacted),
            meta.peered.map(Meta::Peered),
        ];
        kept.into_iter().flatten().for_each(|row| self.put_meta(row));
        self.put_meta(Meta::Collected(meta.collected));
        self.put_meta(Meta::Promised(meta.promised, meta.complete));
    }

    /// Whether a former owner's writes are still to be looked through.
    pub(super) fn has_former(&self) -> bool {
        self.replica.strays.is_some() && self.mvcc.former().is_some()
    }

    /// Looks through some of the former owner's writes, with the open batch, and answers those that are lost: nobody else
    /// has them, and nobody will. To be called when the others' data is here, and to be written down elsewhere before
    /// the commit.
    pub fn find_lost(&mut self, membership: &Membership) -> Result<Vec<LostWrite>, StoreError> {
        let Some((until, next)) = self.replica.strays else { return Ok(Vec::new()) };
        let Slice { rows, next } =
            self.read_strays(until, next, |writer, _, row| writer.is_lost(row, membership))?;
        let origins = self.mvcc.origins().read();
        let lost = rows.into_iter().filter_map(|(_, row)| {
            let (key, value, lease) = match row.op {
                Op::Put(kv) => (kv.key, Some(kv.value), kv.lease),
                Op::Delete { key, .. } => (key, None, LeaseId::NONE),
                Op::InternalPut { .. } | Op::InternalDelete { .. } => return None,
            };
            Some(LostWrite { key, value, lease, stamp: origins.stamp(row.stamp), seq: row.seq })
        });
        let lost = lost.collect();
        drop(origins);
        self.set_strays(next.map(|next| (until, Some(next))));
        Ok(lost)
    }

    /// Whether a row had an effect here that it has nowhere else: its run has ended, and is not held so far by anybody.
    /// What members that are still there have written comes from them.
    fn is_lost(&self, row: &Row, membership: &Membership) -> bool {
        let origin = self.mvcc.origins().read().name(row.stamp.origin);
        let is_coming = match membership.ended(origin) {
            Some(_) => row.seq <= membership.limit(origin),
            None => membership.members.contains_key(&origin.member),
        };
        !row.hidden && !is_coming && row.seq > self.replica.head(row.stamp.origin)
    }
}
