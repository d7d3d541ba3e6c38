//! History: the visible changes between two revisions, read off the log in order, for watchers that are behind.

use std::ops::Bound;

use super::{Failure, Mvcc, Reader};
use crate::engine::Pair;
use crate::engine::watch::Change;
use crate::error::StoreError;
use crate::storage::Space;
use crate::storage::schema::{Op, Place, Row};
use crate::types::Revision;

/// A stretch of history: every change in `(.., through]` from where it was asked for.
#[derive(Debug)]
pub(in crate::engine) struct Stretch {
    /// In order.
    pub(in crate::engine) changes: Vec<Change>,
    /// The last revision that is complete in it.
    pub(in crate::engine) through: Revision,
}

impl Mvcc {
    /// The changes from revision `from` to `to`, as far as the bounds let it: whole revisions only, at least one. The
    /// caller holds a reader from before it checked that `from` is not compacted. Costs what it returns.
    pub(in crate::engine) fn history(
        &self,
        from: Revision,
        to: Revision,
        revisions_max: usize,
        bytes_max: usize,
    ) -> Result<Stretch, StoreError> {
        let (first, last) = (Place::first_of(from).encode(), Place::first_of(to.next()).encode());
        let mut stretch = Stretch { changes: Vec::new(), through: to };
        let (mut revisions, mut bytes, mut current) = (0, 0, Revision(0));
        for item in self.store().rows(Space::Log, Bound::Included(&first), Bound::Excluded(&last)) {
            let (key, value) = item?;
            let place = Place::decode(&key, to.tag())?;
            let size = value.len();
            let Some(change) = change_of(place, Row::decode(place, value)?) else { continue };
            if place.revision != current {
                if revisions == revisions_max || bytes >= bytes_max {
                    stretch.through = current;
                    break;
                }
                current = place.revision;
                revisions += 1;
            }
            bytes += size;
            stretch.changes.push(change);
        }
        Ok(stretch)
    }
}

impl Reader<'_> {
    /// The pair that a change at `revision` has replaced, if that revision is kept and there was one.
    pub(in crate::engine) fn before(
        &self,
        key: &[u8],
        revision: Revision,
    ) -> Result<Option<Pair>, StoreError> {
        let before = revision.prev();
        // It may be of a tag that the store had before this reader.
        if before > self.revision() || self.check_kept(before).is_err() {
            return Ok(None);
        }
        match self.get(key, before) {
            Ok(pair) => Ok(pair),
            Err(Failure::Broken(error)) => Err(error),
            Err(Failure::Refused(_)) => Ok(None),
        }
    }
}

fn change_of(place: Place, row: Row) -> Option<Change> {
    match row.op {
        _ if row.hidden => None,
        Op::Put(kv) => Some(Change::put(&kv)),
        Op::Delete { key, .. } => Some(Change::delete(&key, place.revision)),
        Op::InternalPut { .. } | Op::InternalDelete { .. } => None,
    }
}
