//! Entries: those of segments in columns, those of a catch-up in one piece.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use starling_proto::starling::peer::v1 as pb;

use super::{ENTRIES_MAX, HEADS_MAX, Malformed, OPS_MAX, check_columns, check_count};
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::message::{Segments, TRACES_MAX, TracedEntry};
use crate::replication::packed::{PackedEntries, Unreadable};
use crate::storage::schema::Table;
use crate::time::{Stamp, Timestamp};
use crate::types::{LeaseId, MediaType, MemberId, Origin, TraceContext};

pub(super) fn encode_segments(segments: &Segments) -> pb::Segments {
    let Segments { segments, collected, answers, has_holes, traces, patient } = segments;
    let (answers, has_holes, patient) = (*answers, *has_holes, *patient);
    let mut columns =
        pb::Segments { collected: collected.0, answers, has_holes, patient, ..<_>::default() };
    let mut writer = Writer::default();
    for segment in segments {
        let origin = writer.origin_number(segment.origin);
        writer.begin(origin, segment.after);
        columns.origins.push(origin);
        columns.afters.push(segment.after);
        columns.lengths.push(segment.through.wrapping_sub(segment.after));
        columns.counts.push(number(segment.entries.len()));
        for entry in &segment.entries {
            writer.entry(origin, entry);
        }
    }
    columns.entries = (!segments.is_empty()).then_some(writer.columns);
    if !traces.is_empty() {
        columns.traces = Some(encode_traces(traces, segments));
    }
    columns
}

fn encode_traces(traces: &[TracedEntry], segments: &[Segment]) -> pb::Traces {
    let rows: BTreeMap<_, _> = segments.iter().map(|segment| segment.origin).zip(0..).collect();
    let mut columns = pb::Traces::default();
    for trace in traces {
        let Some(row) = rows.get(&trace.origin) else { continue };
        columns.segments.push(*row);
        columns.seqs.push(trace.seq);
        columns.contexts.push(Bytes::copy_from_slice(&trace.context.to_bytes()));
    }
    columns
}

fn decode_traces(
    columns: Option<pb::Traces>,
    segments: &[Segment],
) -> Result<Vec<TracedEntry>, Malformed> {
    let Some(pb::Traces { segments: rows, seqs, contexts }) = columns else {
        return Ok(Vec::new());
    };
    check_count(rows.len(), TRACES_MAX)?;
    check_columns(rows.len(), &[seqs.len(), contexts.len()])?;
    let mut traces = Vec::with_capacity(rows.len());
    for ((row, seq), context) in rows.into_iter().zip(seqs).zip(contexts) {
        let segment = usize::try_from(row).ok().and_then(|row| segments.get(row));
        let origin = segment
            .filter(|segment| seq > segment.after && seq <= segment.through)
            .ok_or(Malformed("a trace of an entry that is not there"))?
            .origin;
        let context = TraceContext::from_bytes(&context).ok_or(Malformed("a trace of nothing"))?;
        traces.push(TracedEntry { origin, seq, context });
    }
    Ok(traces)
}

pub(super) fn decode_segments(columns: pb::Segments) -> Result<Segments, Malformed> {
    let rows = columns.origins.len();
    check_columns(rows, &[columns.afters.len(), columns.lengths.len(), columns.counts.len()])?;
    let mut reader = Reader::new(columns.entries.unwrap_or_default())?;
    let mut known = BTreeSet::new();
    let mut segments = Vec::with_capacity(rows);
    let ranges = columns.afters.into_iter().zip(columns.lengths);
    for ((origin, (after, length)), count) in
        columns.origins.into_iter().zip(ranges).zip(columns.counts)
    {
        if !known.insert(origin) {
            return Err(Malformed("two segments of one origin"));
        }
        let through = after.checked_add(length).ok_or(Malformed("a segment without an end"))?;
        reader.begin(origin, after)?;
        let entries = reader.segment_entries(origin, count)?;
        let origin = reader.origin(origin)?;
        let segment = Segment { origin, after, through, entries };
        if !segment.is_sound() {
            return Err(Malformed("a segment that is not what it says"));
        }
        segments.push(segment);
    }
    reader.end()?;
    let traces = decode_traces(columns.traces, &segments)?;
    let (collected, answers) = (Timestamp(columns.collected), columns.answers);
    let (has_holes, patient) = (columns.has_holes, columns.patient);
    Ok(Segments { segments, collected, answers, has_holes, traces, patient })
}

pub(super) fn encode_packed(entries: &PackedEntries) -> Option<pb::PackedEntries> {
    let origins = || entries.origins().iter();
    (!entries.is_empty()).then(|| pb::PackedEntries {
        origin_members: origins().map(|origin| origin.member.0).collect(),
        origin_runs: origins().map(|origin| origin.run).collect(),
        entries: entries.packed().clone(),
    })
}

pub(super) fn decode_packed(packed: Option<pb::PackedEntries>) -> Result<PackedEntries, Malformed> {
    let pb::PackedEntries { origin_members, origin_runs, entries } = packed.unwrap_or_default();
    check_count(origin_members.len(), HEADS_MAX)?;
    check_columns(origin_members.len(), &[origin_runs.len()])?;
    let origins = origin_members.into_iter().zip(origin_runs);
    let origins = origins.map(|(member, run)| Origin { member: MemberId(member), run });
    let entries = PackedEntries::read(origins.collect(), entries)
        .map_err(|Unreadable(why)| Malformed(why))?;
    check_count(entries.len(), ENTRIES_MAX)?;
    check_count(entries.ops(), OPS_MAX)?;
    Ok(entries)
}

/// Whether a receiver takes so many.
pub(super) fn fit(columns: Option<&pb::Entries>) -> bool {
    columns.is_none_or(|columns| {
        columns.origin_members.len() <= HEADS_MAX
            && columns.seqs.len() <= ENTRIES_MAX
            && columns.kinds.len() <= OPS_MAX
    })
}

fn seen(op: &EntryOp) -> Option<Stamp> {
    match op {
        EntryOp::Delete { seen, .. } => Some(*seen),
        EntryOp::InternalPut { seen, .. } => *seen,
        EntryOp::Put { .. } | EntryOp::InternalDelete { .. } => None,
    }
}

/// Counts that do not fit are those of messages that are too large, and are not sent.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// With wrap-around, so that it exists for any two numbers.
#[expect(clippy::cast_possible_wrap, reason = "the bits are meant")]
pub(super) fn difference(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b) as i64
}

/// Appends entries to columns.
#[derive(Default)]
struct Writer {
    columns: pb::Entries,
    numbers: BTreeMap<Origin, u32>,
    /// The seq of the last entry of each origin, by its number.
    seqs: Vec<u64>,
    /// The time of the last entry.
    time: u64,
}

impl Writer {
    fn origin_number(&mut self, origin: Origin) -> u32 {
        let next = number(self.seqs.len());
        *self.numbers.entry(origin).or_insert_with(|| {
            self.columns.origin_members.push(origin.member.0);
            self.columns.origin_runs.push(origin.run);
            self.seqs.push(0);
            next
        })
    }

    /// Replaces the last seq of an origin.
    fn begin(&mut self, origin: u32, seq: u64) -> u64 {
        let last = usize::try_from(origin).ok().and_then(|index| self.seqs.get_mut(index));
        last.map_or(0, |last| mem::replace(last, seq))
    }

    fn entry(&mut self, origin: u32, entry: &Entry) {
        let last = self.begin(origin, entry.seq);
        self.columns.seqs.push(difference(entry.seq, last));
        self.columns.times.push(difference(entry.time.0, self.time));
        self.columns.op_counts.push(number(entry.ops.len()));
        self.time = entry.time.0;
        for op in &entry.ops {
            self.op(entry.time, op);
        }
    }

    fn op(&mut self, time: Timestamp, op: &EntryOp) {
        if let Some(stamp) = seen(op) {
            let number = self.origin_number(stamp.origin);
            self.columns.seen_origins.push(number);
            self.columns.seen_ages.push(difference(time.0, stamp.time.0));
        }
        let columns = &mut self.columns;
        let (kind, key) = match op {
            EntryOp::Put { key, value, lease, media_type } => {
                columns.values.push(value.clone());
                if media_type.is_some() {
                    columns.leases.push(lease.0);
                    columns.media_types.push(media_type.as_str().to_owned());
                    (pb::OpKind::PutTyped, key)
                } else if lease.is_some() {
                    columns.leases.push(lease.0);
                    (pb::OpKind::PutLeased, key)
                } else {
                    (pb::OpKind::Put, key)
                }
            }
            EntryOp::Delete { key, .. } => (pb::OpKind::Delete, key),
            EntryOp::InternalPut { table, key, value, seen } => {
                columns.tables.push(*table as u32);
                columns.values.push(value.clone());
                let kind = match seen {
                    Some(_) => pb::OpKind::InternalPutSeen,
                    None => pb::OpKind::InternalPut,
                };
                (kind, key)
            }
            EntryOp::InternalDelete { table, key } => {
                columns.tables.push(*table as u32);
                (pb::OpKind::InternalDelete, key)
            }
        };
        columns.kinds.push(kind.into());
        columns.keys.push(key.clone());
    }
}

/// Takes entries from columns.
struct Reader {
    /// The origins that are named, with the seq of the last entry of each.
    named: Vec<(Origin, u64)>,
    /// The time of the last entry.
    time: u64,
    seqs: vec::IntoIter<i64>,
    times: vec::IntoIter<i64>,
    op_counts: vec::IntoIter<u32>,
    kinds: vec::IntoIter<i32>,
    keys: vec::IntoIter<Bytes>,
    values: vec::IntoIter<Bytes>,
    leases: vec::IntoIter<i64>,
    media_types: vec::IntoIter<String>,
    seen_origins: vec::IntoIter<u32>,
    seen_ages: vec::IntoIter<i64>,
    tables: vec::IntoIter<u32>,
}

/// The next of a column, which ends only together with the others.
fn next<T>(column: &mut vec::IntoIter<T>) -> Result<T, Malformed> {
    column.next().ok_or(Malformed("a column that ends early"))
}

impl Reader {
    fn new(columns: pb::Entries) -> Result<Self, Malformed> {
        check_count(columns.origin_members.len(), HEADS_MAX)?;
        check_columns(columns.origin_members.len(), &[columns.origin_runs.len()])?;
        check_count(columns.seqs.len(), ENTRIES_MAX)?;
        check_count(columns.kinds.len(), OPS_MAX)?;
        check_columns(columns.seqs.len(), &[columns.times.len(), columns.op_counts.len()])?;
        let origins = columns.origin_members.into_iter().zip(columns.origin_runs);
        let origin = |(member, run)| (Origin { member: MemberId(member), run }, 0);
        Ok(Self {
            named: origins.map(origin).collect(),
            time: 0,
            seqs: columns.seqs.into_iter(),
            times: columns.times.into_iter(),
            op_counts: columns.op_counts.into_iter(),
            kinds: columns.kinds.into_iter(),
            keys: columns.keys.into_iter(),
            values: columns.values.into_iter(),
            leases: columns.leases.into_iter(),
            media_types: columns.media_types.into_iter(),
            seen_origins: columns.seen_origins.into_iter(),
            seen_ages: columns.seen_ages.into_iter(),
            tables: columns.tables.into_iter(),
        })
    }

    fn named(&mut self, number: u32) -> Result<&mut (Origin, u64), Malformed> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        self.named.get_mut(index).ok_or(Malformed("an origin that is not named"))
    }

    fn origin(&mut self, number: u32) -> Result<Origin, Malformed> {
        self.named(number).map(|(origin, _)| *origin)
    }

    /// Begins a segment of an origin.
    fn begin(&mut self, number: u32, after: u64) -> Result<(), Malformed> {
        self.named(number)?.1 = after;
        Ok(())
    }

    fn entry(&mut self, number: u32) -> Result<Entry, Malformed> {
        let (seq, time) = (next(&mut self.seqs)?, next(&mut self.times)?);
        let last = &mut self.named(number)?.1;
        *last = last.wrapping_add_signed(seq);
        let seq = *last;
        self.time = self.time.wrapping_add_signed(time);
        let ops = self.ops()?;
        Ok(Entry { seq, time: Timestamp(self.time), ops })
    }

    /// What is allocated is bounded by what has come.
    fn ops(&mut self) -> Result<Vec<EntryOp>, Malformed> {
        let count = usize::try_from(next(&mut self.op_counts)?).unwrap_or(usize::MAX);
        if count > self.kinds.len() {
            return Err(Malformed("a column that ends early"));
        }
        let mut ops = Vec::with_capacity(count);
        for _ in 0..count {
            ops.push(self.op()?);
        }
        Ok(ops)
    }

    fn op(&mut self) -> Result<EntryOp, Malformed> {
        let kind = pb::OpKind::try_from(next(&mut self.kinds)?);
        let key = next(&mut self.keys)?;
        if key.is_empty() {
            return Err(Malformed("an empty key"));
        }
        Ok(match kind.map_err(|_| Malformed("an unknown op"))? {
            pb::OpKind::Unspecified => return Err(Malformed("an unknown op")),
            pb::OpKind::Put => {
                let (value, lease) = (next(&mut self.values)?, LeaseId::NONE);
                EntryOp::Put { key, value, lease, media_type: MediaType::NONE }
            }
            pb::OpKind::PutLeased => {
                let (value, lease) = (next(&mut self.values)?, self.lease()?);
                EntryOp::Put { key, value, lease, media_type: MediaType::NONE }
            }
            pb::OpKind::PutTyped => {
                let (value, lease) = (next(&mut self.values)?, LeaseId(next(&mut self.leases)?));
                EntryOp::Put { key, value, lease, media_type: self.media_type()? }
            }
            pb::OpKind::Delete => EntryOp::Delete { key, seen: self.stamp()? },
            pb::OpKind::InternalPut => {
                let (table, value) = (self.table()?, next(&mut self.values)?);
                EntryOp::InternalPut { table, key, value, seen: None }
            }
            pb::OpKind::InternalPutSeen => {
                let (table, value) = (self.table()?, next(&mut self.values)?);
                EntryOp::InternalPut { table, key, value, seen: Some(self.stamp()?) }
            }
            pb::OpKind::InternalDelete => EntryOp::InternalDelete { table: self.table()?, key },
        })
    }

    fn lease(&mut self) -> Result<LeaseId, Malformed> {
        let lease = LeaseId(next(&mut self.leases)?);
        if lease.is_some() { Ok(lease) } else { Err(Malformed("a lease that is none")) }
    }

    fn media_type(&mut self) -> Result<MediaType, Malformed> {
        let media_type = MediaType::parse(next(&mut self.media_types)?.as_bytes());
        media_type.filter(MediaType::is_some).ok_or(Malformed("a media type that is none"))
    }

    fn stamp(&mut self) -> Result<Stamp, Malformed> {
        let number = next(&mut self.seen_origins)?;
        let age = next(&mut self.seen_ages)?;
        let origin = self.origin(number)?;
        Ok(Stamp { time: Timestamp(self.time.wrapping_sub(age.cast_unsigned())), origin })
    }

    fn table(&mut self) -> Result<Table, Malformed> {
        let number = u8::try_from(next(&mut self.tables)?).ok();
        number.and_then(Table::from_number).ok_or(Malformed("an unknown kind of record"))
    }

    fn segment_entries(&mut self, number: u32, count: u32) -> Result<Vec<Arc<Entry>>, Malformed> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > self.seqs.len() {
            return Err(Malformed("a column that ends early"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(Arc::new(self.entry(number)?));
        }
        Ok(entries)
    }

    /// Checks that nothing is left.
    fn end(self) -> Result<(), Malformed> {
        let left = [
            self.seqs.len(),
            self.kinds.len(),
            self.keys.len(),
            self.values.len(),
            self.leases.len(),
            self.media_types.len(),
            self.seen_origins.len(),
            self.seen_ages.len(),
            self.tables.len(),
        ];
        check_columns(0, &left).map_err(|_| Malformed("a column that goes on"))
    }
}
