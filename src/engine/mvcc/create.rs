//! Many keys that are created one after the other, with one hold on the index.

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::index::{Latest, Version};
use super::marks::Marks;
use super::{Guarded, Mvcc, bytes_of_row};
use crate::engine::graves::Graves;
use crate::storage::schema::{Place, PutView, RowStamp};
use crate::types::Revision;

/// Holds on to the index. Nobody reads meanwhile.
pub(in crate::engine) struct Creation<'a> {
    guarded: RwLockWriteGuard<'a, Guarded>,
    graves: RwLockReadGuard<'a, Graves>,
    marks: RwLockWriteGuard<'a, Marks>,
    /// The revision of the last key.
    newest: Option<Revision>,
}

impl Mvcc {
    /// Begins to create keys.
    pub(in crate::engine) fn begin_creation(&self) -> Creation<'_> {
        let guarded = self.guarded.write();
        let (graves, marks) = (self.graves.read(), self.marks.write());
        Creation { guarded, graves, marks, newest: None }
    }
}

impl Creation<'_> {
    /// Adds the first version of a key, by an entry that does nothing else, unless anything is known of that key. Answers whether
    /// it has.
    pub(in crate::engine) fn create(
        &mut self,
        put: &PutView<'_>,
        place: Place,
        stamp: RowStamp,
        seq: u64,
    ) -> bool {
        if !self.graves.is_empty() && self.graves.get(put.key).is_some() {
            return false;
        }
        let size = bytes_of_row(put.key.len() + put.value.len() + put.media_type.len());
        let (create_revision, version, lease) = (place.revision, 1, put.lease);
        let head = Version::put(place, size);
        let mut is_new = false;
        self.guarded.index.write(put.key, |former| {
            is_new = former.is_none();
            is_new.then_some(Latest { head, create_revision, version, lease, stamp })
        });
        if is_new {
            self.guarded.live_bytes += u64::from(size);
            self.marks.note(stamp.origin, seq, place);
            self.newest = Some(place.revision);
        }
        is_new
    }
}

impl Drop for Creation<'_> {
    /// These are too many births to remember one by one.
    fn drop(&mut self) {
        if let Some(newest) = self.newest {
            self.guarded.recent.clear();
            self.guarded.recent_after = newest;
        }
    }
}
