//! History: the visible changes between two revisions, read off the log in order, for watchers that are behind.

use std::ops::Bound;

use super::index::Version;
use super::{Failure, Mvcc, Reader};
use crate::engine::Pair;
use crate::engine::watch::Change;
use crate::error::StoreError;
use crate::storage::Space;
use crate::storage::schema::{Op, Place, Row};
use crate::time::Stamp;
use crate::types::{KeyValue, Revision};

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

/// A put of a key, with what etcd's clients do not see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// What it has put. Its media type is there, too.
    pub kv: KeyValue,
    /// By which entry.
    pub stamp: Stamp,
}

impl Reader<'_> {
    /// The puts of a key up to a revision that are kept, newest first: so many, and after the first no more than that many
    /// bytes. None if the key did not live at the reader's revision. Each costs a look at the disk.
    pub fn versions(
        &self,
        key: &[u8],
        through: Revision,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<KeyVersion>, Failure> {
        let found: Vec<_> = {
            let guarded = self.index()?;
            let Some(history) = guarded.index.find(key) else { return Ok(Vec::new()) };
            if history.at(self.revision).is_none_or(Version::is_dead) {
                return Ok(Vec::new());
            }
            let down = history.down_from(through.min(self.revision));
            down.filter(|version| !version.is_dead()).take(count_max).collect()
        };
        let (mut versions, mut bytes) = (Vec::with_capacity(found.len()), 0);
        for version in found {
            let (kv, stamp) = self.fetch_put(version.place())?;
            bytes += kv.value.len();
            if bytes > bytes_max && !versions.is_empty() {
                break;
            }
            let stamp = self.mvcc.origins.read().stamp(stamp);
            versions.push(KeyVersion { kv, stamp });
        }
        Ok(versions)
    }

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
