//! A member that has left its cluster of its own will, and goes on alone, as somebody else, with all of its data.
//!
//! Its store stays as it is: the stamps of all that was written, whoever wrote it, and the tag of its revisions, so its clients
//! see no change. Who the members were does not count any more, nor what was promised and settled among them. When
//! the store joins others again, the same ones or not, it is as any store with data: see `engine/strays.rs`. If they are the
//! same, the stamps tell what they know, and a state merge what they have deleted of it.
//!
//! Invariants
//! * The member's removal, for the others, and that it has left, for whoever opens the store next, are in one batch.
//! * A store that has left never goes back by itself to those that its settings name.

use super::Writer;
use super::restore::StoreMeta;
use crate::replication::heads::mix;
use crate::storage::Space;
use crate::storage::schema::{Identity, Meta, Op, OriginIndex, Place, Row, Table};
use crate::time::Timestamp;
use crate::types::ClusterId;

/// What a store that has left lets go of.
#[derive(Debug)]
pub(super) struct Gone {
    floors: Vec<OriginIndex>,
}

impl StoreMeta {
    /// The store has no peers any more, and belongs to a cluster of its own. To be called before the log is read.
    pub(super) fn part(&mut self, identity: &mut Identity, entropy: u64) -> Gone {
        identity.cluster = ClusterId(mix(entropy ^ mix(identity.member.0)));
        // Only times go on: what comes is later than all that was.
        self.promised = self.time();
        (self.peered, self.settled, self.collected) =
            (None, Timestamp::default(), Timestamp::default());
        self.complete = Timestamp::default();
        Gone { floors: std::mem::take(&mut self.floors).into_iter().map(|(at, _)| at).collect() }
    }

    /// Whether a row says who the members of a cluster were that this store has left.
    pub(super) fn is_of_former_cluster(&self, place: Place, row: &Row) -> bool {
        let (Op::InternalPut { table, .. } | Op::InternalDelete { table, .. }) = &row.op else {
            return false;
        };
        let is_before = self.left || self.parted.is_some_and(|parted| place.with_tag(0) <= parted);
        is_before && matches!(table, Table::Member | Table::Run | Table::Seal)
    }
}

impl Writer {
    /// This member leaves its cluster: with the next commit it is settled that the next one to open the store is somebody
    /// else, alone.
    pub fn mark_left(&mut self) {
        self.put_meta(Meta::Left);
    }

    /// Whether this store's member has ever left a cluster: then it does not go by what its settings say of one.
    pub fn has_parted(&self) -> bool {
        self.has_parted
    }

    /// Puts on record that the store belongs to nobody else any more, with the first commit of its new owner.
    pub(super) fn record_parting(&mut self, meta: &StoreMeta, gone: Gone) {
        let none = Timestamp::default();
        let rows = [Meta::Left, Meta::Peered(none), Meta::Settled(none), Meta::Collected(none)];
        let floors = gone.floors.into_iter().map(|index| Meta::Floor(index, 0, none));
        for row in rows.into_iter().chain(floors) {
            self.batch.delete(Space::Meta, row.encode().0);
        }
        self.put_meta(Meta::Promised(meta.promised, meta.complete));
        meta.parted.map(Meta::Parted).into_iter().for_each(|row| self.put_meta(row));
    }

    /// Entries of those who were members where this store was before mean nothing to its next peers, who get what they have
    /// left here as state.
    pub(super) fn forget_former_cluster(&mut self) {
        let me = self.identity.member;
        let origins = self.mvcc.origins().read();
        let heads = self.replica.heads.keys().copied();
        let former: Vec<_> = heads.filter(|index| origins.name(*index).member != me).collect();
        drop(origins);
        for index in former {
            self.replica.heads.remove(&index);
            self.batch.delete(Space::Meta, Meta::Head(index, 0).encode().0);
        }
    }
}
