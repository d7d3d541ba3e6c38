//! All that lives at a revision, in the order in which it was written.

use std::ops::Bound;

use super::{Failure, Reader};
use crate::error::Error;
use crate::storage::Space;
use crate::storage::schema::{Op, Place, Row};
use crate::types::Revision;

impl Reader<'_> {
    /// Shows the put of every pair that lives at a revision that is kept. Reads the log once.
    pub(crate) fn visit_live<E: From<Failure>>(
        &self,
        revision: Revision,
        mut visit: impl FnMut(Place, &Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = Place::first_of(revision.next()).encode();
        for item in self.mvcc.store.rows(Space::Log, Bound::Unbounded, Bound::Excluded(&end)) {
            let (key, value) = item.map_err(Failure::from)?;
            let place = Place::decode(&key, revision.tag()).map_err(Failure::from)?;
            let row = Row::decode(place, value).map_err(Failure::from)?;
            if self.is_current(place, &row, revision).map_err(Failure::from)? {
                visit(place, &row)?;
            }
        }
        Ok(())
    }

    fn is_current(&self, place: Place, row: &Row, revision: Revision) -> Result<bool, Error> {
        let Op::Put(kv) = &row.op else { return Ok(false) };
        let guarded = self.index()?;
        let version = guarded.index.find(&kv.key).and_then(|history| history.at(revision));
        Ok(version.is_some_and(|version| version.place() == place))
    }
}
