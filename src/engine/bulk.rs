//! The state of another member, written straight into the store: for a member that serves nobody yet.
//!
//! Nearly all of a state is puts of keys of which nothing is known here. Such a put goes from the message into the index
//! and into the rows that [`Ingest`] writes, without a value of its own in between, and without a batch. Whatever else
//! there is goes the usual way, and its rows join the others, as long as there is nothing in it that has to be committed
//! together with them.
//!
//! [`Ingest`]: crate::storage::Ingest

use std::sync::Arc;

use super::apply::CaughtUp;
use super::writer::Ingesting;
use super::{Applied, Outcome, Writer};
use crate::error::StoreError;
use crate::replication::packed::{PackedEntries, PackedEntry};
use crate::storage::schema::RowStamp;
use crate::storage::{Durability, EncodedRows};
use crate::time::Now;
use crate::types::LeaseId;

impl Writer {
    /// Takes some of the state of another member, as [`Self::apply_catch_up`] does, where nobody waits for it: the rows may
    /// be written past the journal, and be neither durable nor shown before something else is committed, such as the end of
    /// the catch-up.
    pub fn apply_catch_up_at_leisure(
        &mut self,
        entries: &PackedEntries,
        now: Now,
    ) -> Result<Applied, StoreError> {
        let mut applied = self.begin_catch_up(entries);
        if applied.outcome != Outcome::Taken {
            return Ok(applied);
        }
        let (mut rest, mut source, mut kept) = (entries.iter(), None, None);
        if self.open.is_empty() && self.is_bulk() {
            let mut rows = EncodedRows::with_capacity(entries.ops(), entries.bytes());
            while let Some(entry) =
                self.create_keys(&mut rest, &mut source, &mut rows, &mut applied)
            {
                if entry.has_records() {
                    // Some of what records change is committed together with them.
                    kept = Some(entry);
                    break;
                }
                self.apply_packed([entry], &mut source, &mut applied, now)?;
                self.encode_open(&mut rows);
            }
            self.ingest(rows)?;
        }
        let is_bulk = self.open_bulk == self.open.len();
        self.apply_packed(kept.into_iter().chain(rest), &mut source, &mut applied, now)?;
        if is_bulk {
            self.open_bulk = self.open.len();
        }
        Ok(applied)
    }

    /// Creates the keys of entries, up to one that does something else, or to a key of which there is something here.
    /// Answers that entry.
    fn create_keys<'a>(
        &mut self,
        entries: &mut impl Iterator<Item = PackedEntry<'a>>,
        source: &mut Option<CaughtUp>,
        rows: &mut EncodedRows,
        applied: &mut Applied,
    ) -> Option<PackedEntry<'a>> {
        let mvcc = Arc::clone(&self.mvcc);
        let mut creation = mvcc.begin_creation();
        for entry in entries {
            let Some(origin) = self.wants_packed(&entry, source) else { continue };
            let PackedEntry { seq, time, .. } = entry;
            let Some(put) = entry.put_view() else { return Some(entry) };
            let stamp = RowStamp { time, origin };
            let place = self.next_creation();
            if !creation.create(&put, place, stamp, seq) {
                return Some(entry);
            }
            self.take_creation(place, time);
            self.lessor.reattach(put.key, LeaseId::NONE, put.lease);
            rows.push_creation(place, stamp, seq, &put);
            applied.entries += 1;
        }
        None
    }

    /// Takes what is in the open batch to the rows that go past the journal.
    fn encode_open(&mut self, rows: &mut EncodedRows) {
        self.open.drain(..).for_each(|(place, row)| rows.push(place, &row));
        (self.open_bytes, self.open_bulk) = (0, 0);
    }

    /// Sends the open batch, of which all can take its time, on its way into the store.
    pub(super) fn ingest_open(&mut self) -> Result<(), StoreError> {
        let mut rows = EncodedRows::default();
        self.encode_open(&mut rows);
        self.ingest(rows)
    }

    /// Sends rows on their way into the store, the last of which is the newest of all, and the origins that they name ahead
    /// of them. They are shown when something else is committed.
    fn ingest(&mut self, rows: EncodedRows) -> Result<(), StoreError> {
        assert!(
            self.batch.len() == self.open_origins,
            "{} of {} changes are to wait for others",
            self.batch.len() - self.open_origins,
            self.batch.len()
        );
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.store().commit(batch, Durability::Fsync)?;
            self.open_origins = 0;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut ingesting = match self.ingesting.take() {
            Some(ingesting) => ingesting,
            None => Ingesting { rows: self.store().ingest()?, newest: self.newest },
        };
        ingesting.rows.add(rows)?;
        ingesting.newest = self.newest;
        self.ingesting = Some(ingesting);
        self.replaced.clear();
        self.look_at_disk()
    }
}
