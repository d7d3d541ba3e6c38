//! Entries of other members: what they change here.
//!
//! Of each key there are two stamps: `P`, the greatest of its puts, and `D`, the greatest `seen` of its deletes. The key
//! lives iff `P > D`. Two states merge by taking both maxima, so the order in which entries come does not matter. One of
//! them is enough to go on: of a key that lives `P`, since every delete that counts will be greater; of one that is dead
//! `D`. Both are stamps of the whole cluster: a time, and of equal times the greater origin.
//!
//! To clients an entry is like the write of another client: all that it changes takes the next revision, together. What
//! changes nothing is kept as a hidden row, for other members; an entry of hidden rows only takes no revision.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::graves::Grave;
use super::mvcc::{Latest, Standing};
use super::records::{self, Effect};
use super::restore::{COUNT_MAX, TIME_MAX};
use super::writer::{Visibility, Written};
use super::{Failure, Writer};
use crate::error::StoreError;
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::{Dot, Head};
use crate::replication::packed::{Bounds, PackedEntries, PackedEntry};
use crate::storage::schema::{Op, OriginIndex, RowStamp, Table};
use crate::time::{Now, Stamp, Timestamp};
use crate::types::{KeyValue, Origin};

/// Two puts of different members that are no further apart had probably not seen each other. A guess: entries do not say
/// what they had seen.
const CONCURRENT_MILLIS: u64 = 1000;
/// More than any message holds: nobody has written a larger key and value.
const OP_BYTES_MAX: usize = 1 << 30;

/// What came of entries of another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether they were taken.
    pub outcome: Outcome,
    /// How far the origin's entries are here now; not durable before the next commit.
    pub head: u64,
    /// How many entries were new.
    pub entries: u64,
    /// Puts that have won or lost against others that had not seen them.
    pub conflicts: Vec<Conflict>,
}

/// Whether entries were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They were, or are known.
    Taken,
    /// Some between the head and these are missing.
    Gap,
    /// Nobody can have written this.
    Unsound,
    /// The disk is full.
    NoRoom,
}

/// One of two puts of a key has lost, and its author may not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key.
    pub key: Bytes,
    /// The put that counts.
    pub kept: Stamp,
    /// The put that does not.
    pub lost: Stamp,
}

/// What an op does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A put that counts.
    Wins,
    /// A put that comes after a greater one, or after its delete.
    Loses { kept: RowStamp },
    /// A put that is here already.
    Known,
    /// A delete of a key that lives.
    Deletes,
    /// A delete of what may be on its way.
    Buries,
    /// A delete that changes nothing.
    Late,
    /// About a record, which is judged when it is done.
    Internal,
}

/// An origin of entries of a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct CaughtUp {
    origin: Origin,
    index: OriginIndex,
    /// How far its entries are here.
    head: u64,
}

/// Where entries come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The log of a member: what changes nothing is kept for others.
    Segment,
    /// The state of a member: only what changes something is kept.
    CatchUp,
}

impl Writer {
    /// Takes entries of another member. Those that are known are passed over. Nothing is done if some are missing.
    pub fn apply(&mut self, segment: &Segment, now: Now) -> Result<Applied, StoreError> {
        self.set_peered();
        let (origin, known) = (segment.origin, self.open_head(segment.origin));
        let mut applied =
            Applied { outcome: Outcome::Taken, head: known, entries: 0, conflicts: Vec::new() };
        applied.outcome = self.judge_segment(segment, known);
        if applied.outcome != Outcome::Taken || segment.through <= known {
            return Ok(applied);
        }
        let index = self.intern(origin);
        for entry in segment.entries.iter().filter(|entry| entry.seq > known) {
            self.apply_entry((origin, index), entry, Source::Segment, &mut applied.conflicts, now)?;
            self.note_entry(origin, entry);
            applied.entries += 1;
        }
        applied.head = segment.through;
        self.replica.moved.insert(index, segment.through);
        Ok(applied)
    }

    /// Takes some of the state of another member, which tells nothing about how far its origins are here. Idempotent.
    /// After a crash in the middle there is more here than the heads say, which does no harm.
    pub fn apply_catch_up(
        &mut self,
        entries: &PackedEntries,
        now: Now,
    ) -> Result<Applied, StoreError> {
        let mut applied = self.begin_catch_up(entries);
        if applied.outcome == Outcome::Taken {
            self.apply_packed(entries.iter(), &mut None, &mut applied, now)?;
        }
        Ok(applied)
    }

    /// Nothing of it is applied yet. Answers whether it can be.
    pub(super) fn begin_catch_up(&mut self, entries: &PackedEntries) -> Applied {
        self.set_peered();
        let outcome = if !Self::are_sound(entries) {
            Outcome::Unsound
        } else if !self.has_room_for(entries.bytes()) {
            Outcome::NoRoom
        } else {
            Outcome::Taken
        };
        Applied { outcome, head: 0, entries: 0, conflicts: Vec::new() }
    }

    /// Takes entries of the state of another member into the open batch.
    pub(super) fn apply_packed<'a>(
        &mut self,
        entries: impl IntoIterator<Item = PackedEntry<'a>>,
        source: &mut Option<CaughtUp>,
        applied: &mut Applied,
        now: Now,
    ) -> Result<(), StoreError> {
        for entry in entries {
            let Some(index) = self.wants_packed(&entry, source) else { continue };
            let PackedEntry { origin, seq, time, .. } = entry;
            let conflicts = &mut applied.conflicts;
            if let Some(put) = entry.put() {
                let stamp = RowStamp { time, origin: index };
                self.apply_single_put(put.into(), seq, (origin, stamp), Source::CatchUp, conflicts);
            } else {
                let entry = entry.unpack();
                self.apply_entry((origin, index), &entry, Source::CatchUp, conflicts, now)?;
            }
            applied.entries += 1;
        }
        Ok(())
    }

    /// The number of the origin of an entry, unless that is here already. No head moves during a catch-up, and most entries
    /// are of the same origin as the one before, `last`.
    pub(super) fn wants_packed(
        &mut self,
        entry: &PackedEntry<'_>,
        last: &mut Option<CaughtUp>,
    ) -> Option<OriginIndex> {
        let PackedEntry { origin, seq, .. } = *entry;
        if let Some(CaughtUp { head, index, .. }) = last.filter(|last| last.origin == origin) {
            return (seq > head).then_some(index);
        }
        let head = self.open_head(origin);
        if seq <= head || origin == self.origin() {
            return None;
        }
        let index = self.intern(origin);
        *last = Some(CaughtUp { origin, head, index });
        Some(index)
    }

    /// Likewise, so that all that they change shows under one revision. Each key may be in one of them only.
    pub(super) fn apply_catch_up_at_once(
        &mut self,
        entries: &PackedEntries,
        now: Now,
    ) -> Result<Applied, StoreError> {
        self.group_shows = Some(false);
        let applied = self.apply_catch_up(entries, now);
        self.group_shows = None;
        applied
    }

    /// Deletes puts that others have deleted and forgotten, by an entry of this member, where they still stand.
    pub fn drop_puts(&mut self, dots: &[Dot], now: Now) -> Result<(), StoreError> {
        let stamp = self.begin_entry(now);
        for dot in dots {
            let Some(latest) = self.mvcc.latest(&dot.key) else { continue };
            if self.mvcc.origins().read().stamp(latest.stamp) == dot.stamp() {
                self.delete(dot.key.clone(), latest, latest.stamp, stamp);
            }
        }
        let _ = self.end_entry_alone();
        Ok(())
    }

    /// Writes puts anew that somebody has lost, by an entry of this member, where they still stand.
    pub fn rewrite_puts(&mut self, dots: &[Dot], now: Now) -> Result<(), StoreError> {
        self.finish_ingest()?;
        let stamp = self.begin_entry(now);
        for dot in dots {
            let Some(latest) = self.mvcc.latest(&dot.key) else { continue };
            if self.mvcc.origins().read().stamp(latest.stamp) != dot.stamp() {
                continue;
            }
            let kv = match self.reader().fetch_put(latest.head.place()) {
                Ok((kv, _)) => kv,
                Err(Failure::Broken(error)) => return Err(error),
                // There is nothing to write anew.
                Err(Failure::Refused(_)) => continue,
            };
            self.put_version(kv.into(), Some(latest), stamp);
        }
        let _ = self.end_entry_alone();
        Ok(())
    }

    /// Everything that these heads cover is here now. Durable with the next commit.
    pub fn finish_catch_up(&mut self, heads: &[Head]) {
        self.set_peered();
        self.ends_ingest = true;
        for Head { origin, seq } in heads.iter().filter(|head| is_head(head)) {
            if *origin != self.origin() && *seq > self.open_head(*origin) {
                let index = self.intern(*origin);
                self.replica.moved.insert(index, *seq);
            }
        }
    }

    /// Whether all entries are ones that can be stored and read again.
    pub(super) fn are_sound(entries: &PackedEntries) -> bool {
        let is_sound = |entry: PackedEntry<'_>| entry.is_put() || is_sound(&entry.unpack());
        let are_origins = entries.origins().iter().all(|origin| is_origin(*origin));
        let Bounds { seq_min, seq_max, time_max, are_puts } = entries.bounds();
        let are_counted = is_counted(seq_min, time_max) && is_counted(seq_max, time_max);
        entries.is_empty()
            || are_origins && are_counted && (are_puts || entries.iter().all(is_sound))
    }

    /// How far the entries of an origin are here, durable or not.
    fn open_head(&self, origin: Origin) -> u64 {
        let index = self.mvcc.origins().read().index(origin);
        match index {
            Some(index) if index == self.origin => self.seq,
            Some(index) => self.replica.head(index),
            None => 0,
        }
    }

    fn judge_segment(&self, segment: &Segment, known: u64) -> Outcome {
        let is_sound = segment.is_sound()
            && is_head(&Head { origin: segment.origin, seq: segment.through })
            && segment.entries.iter().all(|entry| is_sound(entry));
        // Nobody knows more of this run than this run does.
        let is_foreign = segment.origin == self.origin() && segment.through > known;
        if !is_sound || is_foreign {
            return Outcome::Unsound;
        }
        if segment.after > known {
            return Outcome::Gap;
        }
        if segment.through > known && !self.has_room_for(segment.bytes()) {
            return Outcome::NoRoom;
        }
        Outcome::Taken
    }

    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.open_bytes().saturating_add(bytes as u64) < self.disk_room_bytes
    }

    fn apply_entry(
        &mut self,
        (origin, index): (Origin, OriginIndex),
        entry: &Entry,
        source: Source,
        conflicts: &mut Vec<Conflict>,
        now: Now,
    ) -> Result<(), StoreError> {
        let stamp = RowStamp { time: entry.time, origin: index };
        if let [op @ EntryOp::Put { .. }] = entry.ops.as_slice() {
            self.apply_single_put(written(op), entry.seq, (origin, stamp), source, conflicts);
            return Ok(());
        }
        let verdicts = self.plan(entry, stamp);
        self.begin_remote_entry(entry.seq, entry.time);
        let shows = verdicts.iter().any(|it| matches!(it, Verdict::Wins | Verdict::Deletes));
        if shows && !self.entry_shows {
            self.take_revision();
        }
        for ((number, op), verdict) in (0..).zip(&entry.ops).zip(verdicts) {
            self.entry_ops = number;
            match op {
                EntryOp::Put { key, .. } => {
                    let latest = self.mvcc.latest(key);
                    let name = Stamp { time: entry.time, origin };
                    conflicts.extend(self.conflict(key, name, verdict, latest));
                    self.apply_put(written(op), verdict, latest, stamp, source);
                }
                EntryOp::Delete { key, seen } => {
                    let seen = self.row_stamp(*seen);
                    self.apply_delete(key, seen, verdict, stamp, source);
                }
                EntryOp::InternalPut { .. } | EntryOp::InternalDelete { .. } => {
                    self.apply_internal(
                        op,
                        (stamp, Stamp { time: entry.time, origin }),
                        source,
                        now,
                    )?;
                }
            }
        }
        self.end_remote_entry(index);
        Ok(())
    }

    /// An entry of one put, as most are.
    fn apply_single_put(
        &mut self,
        put: Written,
        seq: u64,
        (origin, stamp): (Origin, RowStamp),
        source: Source,
        conflicts: &mut Vec<Conflict>,
    ) {
        let (standing, latest) = self.mvcc.standing(&put.key);
        let verdict = self.judge_put(standing, stamp);
        let name = Stamp { time: stamp.time, origin };
        conflicts.extend(self.conflict(&put.key, name, verdict, latest));
        self.begin_remote_entry(seq, stamp.time);
        self.entry_ops = 0;
        self.apply_put(put, verdict, latest, stamp, source);
        self.end_remote_entry(stamp.origin);
    }

    /// What each op will do, one after the other.
    fn plan(&mut self, entry: &Entry, stamp: RowStamp) -> Vec<Verdict> {
        // What ops before have done, for entries that touch a key twice.
        let mut done: BTreeMap<&[u8], Standing> = BTreeMap::new();
        let is_alone = entry.ops.len() == 1;
        let mut verdicts = Vec::with_capacity(entry.ops.len());
        for op in &entry.ops {
            let (EntryOp::Put { key, .. } | EntryOp::Delete { key, .. }) = op else {
                verdicts.push(Verdict::Internal);
                continue;
            };
            let standing = done.get(key.as_ref()).copied();
            let standing = standing.unwrap_or_else(|| self.mvcc.standing(key).0);
            let (verdict, after) = match op {
                EntryOp::Delete { seen, .. } => {
                    let seen = self.row_stamp(*seen);
                    (self.judge_delete(standing, seen), Standing::Dead(seen))
                }
                _ => (self.judge_put(standing, stamp), Standing::Alive(stamp)),
            };
            let changes = matches!(verdict, Verdict::Wins | Verdict::Deletes | Verdict::Buries);
            if changes && !is_alone {
                done.insert(key, after);
            }
            verdicts.push(verdict);
        }
        verdicts
    }

    fn judge_put(&self, standing: Standing, stamp: RowStamp) -> Verdict {
        match standing {
            Standing::Unknown => Verdict::Wins,
            Standing::Alive(put) if put == stamp => Verdict::Known,
            Standing::Alive(other) | Standing::Dead(other) => {
                if self.mvcc.origins().read().compare(other, stamp).is_lt() {
                    Verdict::Wins
                } else {
                    Verdict::Loses { kept: other }
                }
            }
        }
    }

    fn judge_delete(&self, standing: Standing, seen: RowStamp) -> Verdict {
        let is_later = |than| self.mvcc.origins().read().compare(than, seen).is_lt();
        match standing {
            Standing::Unknown => Verdict::Buries,
            Standing::Alive(put) if put == seen || is_later(put) => Verdict::Deletes,
            Standing::Dead(former) if is_later(former) => Verdict::Buries,
            Standing::Alive(_) | Standing::Dead(_) => Verdict::Late,
        }
    }

    pub(super) fn row_stamp(&mut self, stamp: Stamp) -> RowStamp {
        RowStamp { time: stamp.time, origin: self.intern(stamp.origin) }
    }

    fn begin_remote_entry(&mut self, seq: u64, time: Timestamp) {
        self.clock.observe(time);
        self.entry_start = self.open.len();
        self.entry_shows = self.group_shows.unwrap_or(false);
        self.entry_seq = seq;
    }

    fn end_remote_entry(&mut self, origin: OriginIndex) {
        if let Some((_, row)) = self.open[self.entry_start..].last_mut() {
            row.last = true;
            self.mark_entry(origin);
        }
        if let Some(shows) = &mut self.group_shows {
            *shows = self.entry_shows;
        }
    }

    fn apply_put(
        &mut self,
        put: Written,
        verdict: Verdict,
        latest: Option<Latest>,
        stamp: RowStamp,
        source: Source,
    ) {
        match verdict {
            Verdict::Wins => {
                self.put_version(put, latest, stamp);
            }
            Verdict::Loses { .. } if source == Source::Segment => {
                let Written { key, value, lease, media_type } = put;
                let kv = KeyValue {
                    key,
                    create_revision: self.revision,
                    mod_revision: self.revision,
                    version: 1,
                    value,
                    lease,
                    media_type,
                };
                self.append(Op::Put(kv), stamp, Visibility::Hidden);
            }
            _ => {}
        }
    }

    fn apply_delete(
        &mut self,
        key: &Bytes,
        seen: RowStamp,
        verdict: Verdict,
        stamp: RowStamp,
        source: Source,
    ) {
        match verdict {
            Verdict::Deletes => {
                let latest = self.mvcc.latest(key).expect("it was found to live");
                self.delete(key.clone(), latest, seen, stamp);
            }
            Verdict::Buries => {
                let op = Op::Delete { key: key.clone(), seen };
                let place = self.append(op, stamp, Visibility::Hidden);
                self.mvcc.bury(key, Grave { seen, time: stamp.time, place, hidden: true });
            }
            _ if source == Source::Segment => {
                let op = Op::Delete { key: key.clone(), seen };
                self.append(op, stamp, Visibility::Hidden);
            }
            _ => {}
        }
    }

    fn apply_internal(
        &mut self,
        op: &EntryOp,
        (stamp, name): (RowStamp, Stamp),
        source: Source,
        now: Now,
    ) -> Result<(), StoreError> {
        let (effect, op) = match op {
            EntryOp::InternalPut { table, key, value, seen } => {
                let effect = self.mvcc.records().read().judge_put((*table, key), *seen, name);
                let seen = seen.map(|seen| self.row_stamp(seen));
                let (table, key, value) = (*table, key.clone(), value.clone());
                (effect, Op::InternalPut { table, key, value, seen })
            }
            EntryOp::InternalDelete { table, key } => {
                let effect = self.mvcc.records().read().judge_removal(*table, key, name);
                (effect, Op::InternalDelete { table: *table, key: key.clone() })
            }
            EntryOp::Put { .. } | EntryOp::Delete { .. } => unreachable!("{op:?} is not internal"),
        };
        match effect {
            Effect::Changes => self.append_record(op, stamp, now)?,
            Effect::None if source == Source::Segment => {
                self.append(op, stamp, Visibility::Hidden);
            }
            Effect::None | Effect::Known => {}
        }
        Ok(())
    }

    /// Whether a put and the one that it meets had probably not seen each other.
    fn conflict(
        &self,
        key: &Bytes,
        stamp: Stamp,
        verdict: Verdict,
        latest: Option<Latest>,
    ) -> Option<Conflict> {
        let origins = || self.mvcc.origins().read();
        match verdict {
            Verdict::Loses { kept } => {
                let kept = origins().stamp(kept);
                // One that was deleted had been seen.
                let is_conflict = kept.origin.member != stamp.origin.member && kept != stamp;
                is_conflict.then(|| Conflict { key: key.clone(), kept, lost: stamp })
            }
            Verdict::Wins => {
                let lost = origins().stamp(latest?.stamp);
                let apart = stamp.time.millis().abs_diff(lost.time.millis());
                let is_conflict =
                    lost.origin.member != stamp.origin.member && apart <= CONCURRENT_MILLIS;
                is_conflict.then(|| Conflict { key: key.clone(), kept: stamp, lost })
            }
            _ => None,
        }
    }
}

/// What a put writes. Its bytes are shared.
fn written(put: &EntryOp) -> Written {
    let EntryOp::Put { key, value, lease, media_type } = put else {
        unreachable!("{put:?} is no put");
    };
    let (key, value, media_type) = (key.clone(), value.clone(), media_type.clone());
    Written { key, value, lease: *lease, media_type }
}

fn is_origin(origin: Origin) -> bool {
    origin.run <= COUNT_MAX
}

pub(super) fn is_head(head: &Head) -> bool {
    is_origin(head.origin) && head.seq <= COUNT_MAX
}

fn is_stamp(stamp: Stamp) -> bool {
    stamp.time < TIME_MAX && is_origin(stamp.origin)
}

fn is_counted(seq: u64, time: Timestamp) -> bool {
    (1..=COUNT_MAX).contains(&seq) && time <= Timestamp::HEARD_MAX
}

/// Whether an entry is one that can be stored and read again.
fn is_sound(entry: &Entry) -> bool {
    let is_record = |table: Table, key: &Bytes, value: Option<&Bytes>| {
        records::check(table, key, value).is_ok()
    };
    let is_sound = |op: &EntryOp| {
        op.bytes() <= OP_BYTES_MAX
            && match op {
                EntryOp::Put { key, .. } => !key.is_empty(),
                EntryOp::Delete { key, seen } => {
                    !key.is_empty() && is_stamp(*seen) && seen.time <= entry.time
                }
                EntryOp::InternalPut { table, key, value, seen } => {
                    is_record(*table, key, Some(value))
                        && seen.is_none_or(|seen| is_stamp(seen) && seen.time < entry.time)
                }
                EntryOp::InternalDelete { table, key } => is_record(*table, key, None),
            }
    };
    is_counted(entry.seq, entry.time)
        && entry.ops.len() <= u32::MAX as usize
        && entry.ops.iter().all(is_sound)
}
