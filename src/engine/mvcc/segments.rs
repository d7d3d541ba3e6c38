//! The log as other members want it: the entries of some origins behind what they hold.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Mvcc;
use crate::engine::entries::entry_op;
use crate::engine::origins::Origins;
use crate::error::StoreError;
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::Head;
use crate::storage::Space;
use crate::storage::schema::{OriginIndex, Place, Row};
use crate::types::Origin;

/// What has been found of one origin.
struct Collected {
    origin: Origin,
    /// Entries behind this one are wanted, ...
    after: u64,
    /// ... up to this one.
    head: u64,
    entries: BTreeMap<u64, Entry>,
    /// From this one on they were left out.
    cut: Option<u64>,
}

impl Collected {
    fn wants(&self, seq: u64) -> bool {
        seq > self.after && seq <= self.head && self.cut.is_none_or(|cut| seq < cut)
    }

    /// Leaves out the last entry, unless it is the only one. Answers how many bytes it had.
    fn cut(&mut self) -> Option<usize> {
        if self.entries.len() < 2 {
            return None;
        }
        let (seq, entry) = self.entries.pop_last()?;
        self.cut = Some(seq);
        Some(entry.bytes())
    }

    /// The segment of what was found, if anything is certain. `to_end`: the whole log has been seen.
    fn segment(self, to_end: bool) -> Option<Segment> {
        let last = self.entries.last_key_value().map(|(seq, _)| *seq);
        let through = if to_end && self.cut.is_none() { self.head } else { last? };
        let entries = self.entries.into_values().map(Arc::new).collect();
        Some(Segment { origin: self.origin, after: self.after, through, entries })
    }
}

/// One pass over the log.
struct Pass<'a> {
    origins: &'a Origins,
    collected: BTreeMap<OriginIndex, Collected>,
    bytes: usize,
    bytes_max: usize,
    /// Before this nothing is certain.
    jumbled_until: Option<Place>,
    /// The entry whose rows are being read, and whether some were found before, elsewhere.
    current: Option<(OriginIndex, u64)>,
    is_again: bool,
    /// Whether the budget was used up on the way.
    is_cut: bool,
}

impl Pass<'_> {
    fn is_full(&self, place: Place) -> bool {
        (self.is_cut || self.bytes >= self.bytes_max) && self.is_certain(place)
    }

    /// Whether nothing is missing of what stands before.
    fn is_certain(&self, place: Place) -> bool {
        self.jumbled_until.is_none_or(|until| place > until)
    }

    /// Takes a row in. Answers whether to go on.
    fn take(&mut self, place: Place, row: &Row) -> bool {
        let entry = (row.stamp.origin, row.seq);
        let is_new = self.current != Some(entry);
        if is_new && self.is_full(place) {
            return false;
        }
        self.current = Some(entry);
        let Some(collected) = self.collected.get_mut(&entry.0) else { return true };
        if !collected.wants(row.seq) {
            return true;
        }
        if is_new {
            self.is_again = collected.entries.contains_key(&row.seq);
        }
        let op = entry_op(&row.op, self.origins);
        // Most have one.
        let new = || Entry { seq: row.seq, time: row.stamp.time, ops: Vec::with_capacity(1) };
        let found = collected.entries.entry(row.seq).or_insert_with(new);
        let before = if found.ops.is_empty() { 0 } else { found.bytes() };
        if !self.is_again || !found.ops.iter().any(|known| is_about_same(known, &op)) {
            found.ops.push(op);
        }
        self.bytes += found.bytes() - before;
        if !self.is_certain(place) {
            self.cut(entry.0);
        }
        true
    }
}

impl Pass<'_> {
    /// Keeps to the budget where the pass must not end: what comes last of an origin can be had another time.
    fn cut(&mut self, origin: OriginIndex) {
        let Some(collected) = self.collected.get_mut(&origin) else { return };
        while self.bytes > self.bytes_max
            && let Some(bytes) = collected.cut()
        {
            self.bytes -= bytes;
            self.is_cut = true;
        }
    }
}

/// Whether two ops of an entry are the same one: none has two of a key.
fn is_about_same(a: &EntryOp, b: &EntryOp) -> bool {
    match (a, b) {
        (EntryOp::Put { key: a, .. }, EntryOp::Put { key: b, .. })
        | (EntryOp::Delete { key: a, .. }, EntryOp::Delete { key: b, .. }) => a == b,
        (
            EntryOp::InternalPut { table: t, key: a, .. },
            EntryOp::InternalPut { table: u, key: b, .. },
        )
        | (
            EntryOp::InternalDelete { table: t, key: a },
            EntryOp::InternalDelete { table: u, key: b },
        ) => (t, a) == (u, b),
        _ => false,
    }
}

impl Mvcc {
    /// Entries behind `wants`, up to `heads`, which are the writer's. About so many bytes, but at least one entry if there
    /// is one. A segment reaches as far as it is certain that nothing is missing; what has been collected just is not
    /// there. The writer must know by then that it has peers. Origins that there was no room for have no segment. Reads the log from the first entry that is wanted, as
    /// far as it must.
    pub fn segments(
        &self,
        wants: &[Head],
        heads: &[Head],
        bytes_max: usize,
    ) -> Result<Vec<Segment>, StoreError> {
        self.under_one_tag(|tag| self.segments_under(tag, wants, heads, bytes_max))
    }

    fn segments_under(
        &self,
        tag: u16,
        wants: &[Head],
        heads: &[Head],
        bytes_max: usize,
    ) -> Result<Vec<Segment>, StoreError> {
        let origins = self.origins.read().clone();
        let mut pass = Pass {
            origins: &origins,
            collected: BTreeMap::new(),
            bytes: 0,
            bytes_max: bytes_max.max(1),
            jumbled_until: None,
            current: None,
            is_again: false,
            is_cut: false,
        };
        let mut start = None;
        {
            let marks = self.marks.read();
            for Head { origin, seq: after } in wants.iter().copied() {
                let head =
                    heads.iter().find(|head| head.origin == origin).map_or(0, |head| head.seq);
                let Some(index) = origins.index(origin).filter(|_| head > after) else { continue };
                let new = Collected { origin, after, head, entries: BTreeMap::new(), cut: None };
                pass.collected.insert(index, new);
                pass.jumbled_until = pass.jumbled_until.max(marks.jumbled_until(index, after));
                let place = marks.start(index, after);
                start = [start, place].into_iter().flatten().min();
            }
        }
        let to_end = match start {
            Some(start) => self.pass(start, tag, |place, row| pass.take(place, row))?,
            None => true,
        };
        let collected = pass.collected.into_values();
        Ok(collected.filter_map(|collected| collected.segment(to_end)).collect())
    }

    /// Shows the rows of the log from `start` on, until told to stop. Answers whether that was all.
    fn pass(
        &self,
        start: Place,
        tag: u16,
        mut take: impl FnMut(Place, &Row) -> bool,
    ) -> Result<bool, StoreError> {
        let start = start.encode();
        for item in self.store.rows(Space::Log, Bound::Included(&start), Bound::Unbounded) {
            let (key, value) = item?;
            let place = Place::decode(&key, tag)?;
            if self.is_former(place) {
                continue;
            }
            if !take(place, &Row::decode(place, value)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
