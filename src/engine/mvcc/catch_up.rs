//! The state as a member wants it that the log does not reach back to: what lives, and what says that something is gone.
//!
//! It is read off the log, in order, part by part, while the writer goes on. What is overwritten meanwhile is left out:
//! what overwrote it comes later in the log, or is newer than the heads that were told with the first part. What the
//! open batch overwrites is not left out, though, since a crash may bring it back. It ends where the log ended when it began.

use std::ops::Bound;

use super::Mvcc;
use crate::engine::entries::entry_op;
use crate::engine::records::RowStanding;
use crate::error::StoreError;
use crate::replication::message::{CatchUp, CatchUpPart, Cursor, Head};
use crate::replication::packed::{PackedEntries, Packer};
use crate::storage::Space;
use crate::storage::schema::{Op, OriginIndex, Place, PutView, Row, RowView};
use crate::time::Timestamp;
use crate::types::Revision;

/// A part: small enough that neither side does anything else for long.
const PART_BYTES_MAX: usize = 1 << 20;
/// A part while others use the same link: on one of 1 Gbit/s they wait 2 ms for it.
const SMALL_PART_BYTES: usize = 256 << 10;
/// Room for the op that is one too many, mostly.
const PART_BYTES_MORE: usize = 4 << 10;
/// In how many parts a request is answered.
const PARTS: usize = 8;
/// Rows that are looked at for one part, so that it does not take long where nothing is to be told.
const ROWS_MAX: usize = 1 << 17;
/// The whole log, as a measure of progress.
const THOUSAND: u64 = 1000;

/// A part of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePart {
    /// In the order of the log. Ops that mean nothing any more are left out.
    pub entries: PackedEntries,
    /// Where to go on; `None` behind the last part.
    pub next: Option<Cursor>,
    /// How much of the log is behind it, in thousandths.
    pub progress: u16,
}

/// What a member claims of itself when it is asked for its data.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Its heads.
    pub heads: Vec<Head>,
    /// How far it is complete.
    pub complete: Timestamp,
    /// Up to when it has forgotten what was deleted.
    pub collected: Timestamp,
}

/// What is to come after a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// A part that nobody minds.
    Large,
    /// A part for which others do not wait long.
    Small,
    /// Nothing: the last one was not taken.
    Stop,
}

impl Mvcc {
    /// Answers a request for the data, in parts, of which the first is a small one.
    pub fn serve_catch_up(
        &self,
        request: &CatchUp,
        claims: &Claims,
        mut take: impl FnMut(CatchUpPart) -> Onward,
    ) -> Result<(), StoreError> {
        let mut left = usize::try_from(request.bytes_max).unwrap_or(usize::MAX);
        let large = (left / PARTS).clamp(1, PART_BYTES_MAX);
        let small = large.min(SMALL_PART_BYTES);
        let mut part_bytes = small;
        // What is not there yet is not covered by what is claimed: it comes as entries.
        let newest = Place { revision: self.revision(), n: u32::MAX };
        let durable = self.marks.read().durable.unwrap_or(newest);
        let end = request.end.unwrap_or_else(|| cursor_of(durable));
        let log_bytes = self.log_bytes();
        let mut after = request.cursor;
        loop {
            let part = self.catch_up(&request.heads, (after, Some(end)), part_bytes)?;
            let StatePart { entries, next, progress } = part;
            // However little it has, since many rows were looked at: who asks for the next part has time for others in between.
            let least = if entries.bytes() < part_bytes { large / 2 } else { 0 };
            left = left.saturating_sub(entries.bytes().max(least).max(1));
            let more = left > 0 && next.is_some();
            let Claims { heads, complete, collected } = claims.clone();
            let floors = if next.is_none() { self.origin_floors() } else { Vec::new() };
            let part = CatchUpPart {
                heads,
                complete,
                collected,
                entries,
                after,
                next,
                end,
                log_bytes,
                more,
                progress,
                floors,
            };
            part_bytes = match take(part) {
                Onward::Large => large,
                Onward::Small => small,
                Onward::Stop => return Ok(()),
            };
            if !more {
                return Ok(());
            }
            after = next;
        }
    }

    /// What lives, and what is kept to say that something is gone, as far as `heads` does not cover it. Behind a place, and
    /// up to another one, if there is one; about so many bytes, whole entries. Reads the log once, in all calls together.
    pub fn catch_up(
        &self,
        heads: &[Head],
        between: (Option<Cursor>, Option<Cursor>),
        bytes_max: usize,
    ) -> Result<StatePart, StoreError> {
        self.under_one_tag(|tag| self.catch_up_under(tag, heads, between, bytes_max))
    }

    fn catch_up_under(
        &self,
        tag: u16,
        heads: &[Head],
        (cursor, end): (Option<Cursor>, Option<Cursor>),
        bytes_max: usize,
    ) -> Result<StatePart, StoreError> {
        let origins = self.origins.read().clone();
        let covered: std::collections::BTreeMap<OriginIndex, u64> =
            heads.iter().filter_map(|head| Some((origins.index(head.origin)?, head.seq))).collect();
        let start = cursor.map(place_of).max(self.former()).map(Place::encode);
        let start =
            start.as_ref().map_or(Bound::Unbounded, |start| Bound::Excluded(start.as_ref()));
        let last_revision = end.map_or_else(|| self.revision().counter(), |end| end.revision);
        let end = end.map(|end| place_of(end).encode());
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Included(end.as_ref()));
        let mut packer = Packer::with_capacity(bytes_max.min(PART_BYTES_MAX) + PART_BYTES_MORE);
        let (mut current, mut last, mut next) = (None, None, None);
        for (i, item) in self.store.passing_rows(Space::Log, start, end).enumerate() {
            let (key, value) = item?;
            let place = Place::decode(&key, tag)?;
            let row = RowView::of(&value)?;
            let entry = (row.stamp.origin, row.seq);
            let is_new = current.replace(entry) != Some(entry);
            if is_new && (packer.bytes() >= bytes_max.max(1) || i >= ROWS_MAX) {
                next = last;
                break;
            }
            last = Some(place);
            if covered.get(&entry.0).is_some_and(|head| row.seq <= *head) {
                continue;
            }
            let origin = origins.name(entry.0);
            if let Some(PutView { key, value, lease, media_type }) = row.put {
                if !row.hidden && self.is_newest(key, place) {
                    packer.begin(origin, row.seq, row.stamp.time);
                    packer.put(key, value, lease, media_type);
                }
                continue;
            }
            let row = Row::decode(place, value)?;
            if self.is_state(place, &row) {
                packer.begin(origin, row.seq, row.stamp.time);
                packer.op(&entry_op(&row.op, &origins));
            }
        }
        Ok(StatePart {
            entries: packer.finish(),
            next: next.map(cursor_of),
            progress: next.map_or_else(
                || progress(1, 1),
                |place| progress(place.revision.counter(), last_revision),
            ),
        })
    }

    /// Whether a row that is no put is part of the state, as it is on the disk.
    fn is_state(&self, place: Place, row: &Row) -> bool {
        match &row.op {
            Op::Delete { key, .. } => self.is_newest(key, place) || self.may_be_grave(key, place),
            Op::InternalPut { .. } | Op::InternalDelete { .. } if row.hidden => false,
            op => {
                let is_open = self.is_open(self.records.read().newest_place(op));
                let standing = self.standing_of_record(op, row.stamp, place);
                is_open || standing != RowStanding::Superseded
            }
        }
    }

    /// Whether the newest version of a key that is durable stands here.
    fn is_newest(&self, key: &[u8], place: Place) -> bool {
        let guarded = self.guarded.read();
        let version = guarded.index.find(key).and_then(|history| history.at(self.revision()));
        version.is_some_and(|version| version.place() == place)
    }

    /// Whether a delete counts that is not the newest version of its key.
    fn may_be_grave(&self, key: &[u8], place: Place) -> bool {
        let guarded = self.guarded.read();
        let newest = guarded.index.find(key).map(|history| history.latest().head.place());
        let grave = self.graves.read().get(key).map(|grave| grave.place);
        grave == Some(place) || self.is_open(grave) || self.is_open(newest)
    }

    /// Whether a row may still get lost.
    fn is_open(&self, place: Option<Place>) -> bool {
        place.is_some_and(|place| Some(place) > self.marks.read().durable)
    }
}

fn progress(done: u64, all: u64) -> u16 {
    let thousandths = u128::from(done) * u128::from(THOUSAND) / u128::from(all.max(1));
    u16::try_from(thousandths.min(u128::from(THOUSAND))).unwrap_or(u16::MAX)
}

/// Cursors have counters: revisions do not travel.
fn place_of(cursor: Cursor) -> Place {
    Place { revision: Revision(cursor.revision), n: cursor.n }
}

fn cursor_of(place: Place) -> Cursor {
    Cursor { revision: place.revision.counter(), n: place.n }
}
