//! The questions and answers of a state merge.
//!
//! The ranges of a question lie side by side, and so do the keys in them: a string names only what is not at the
//! beginning of the one before. That makes a question a third as long.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use starling_proto::starling::peer::v1 as pb;

use super::entries::{difference, number};
use super::{HEADS_MAX, Malformed, check_columns, check_count};
use crate::replication::message::{Compare, Compared, Dot, Head, RangeSum, Span};
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

/// The most ranges, and the most puts, in a message: twice those of all parts of the ranges that one question is about,
/// since keys may come while it is read.
pub(super) const ROWS_MAX: usize = 2048;
/// What the strings of a list may have in common, in bytes, all together: so much more than what has come may be allocated.
const SHARED_BYTES_MAX: usize = 16 << 20;

pub(super) fn encode_compare(compare: &Compare) -> pb::Compare {
    pb::Compare {
        bounds: encode_spans(compare.sums.iter().map(|sum| &sum.span)),
        keys: compare.sums.iter().map(|sum| sum.keys).collect(),
        hashes: compare.sums.iter().map(|sum| sum.hash).collect(),
        dots: encode_dots(&compare.dots),
        upto: compare.upto.0,
        number: compare.number,
    }
}

pub(super) fn decode_compare(compare: pb::Compare) -> Result<Compare, Malformed> {
    let pb::Compare { bounds, keys, hashes, dots, upto, number } = compare;
    let spans = decode_spans(bounds)?;
    check_columns(spans.len(), &[keys.len(), hashes.len()])?;
    let sums = spans.into_iter().zip(keys).zip(hashes);
    let sums = sums.map(|((span, keys), hash)| RangeSum { span, keys, hash }).collect();
    Ok(Compare { sums, dots: decode_dots(dots)?, upto: Timestamp(upto), number })
}

pub(super) fn encode_compared(compared: &Compared) -> pb::Compared {
    pb::Compared {
        bounds: encode_spans(compared.differing.iter()),
        gone: encode_dots(&compared.gone),
        number: compared.number,
    }
}

pub(super) fn decode_compared(compared: pb::Compared) -> Result<Compared, Malformed> {
    let pb::Compared { bounds, gone, number } = compared;
    Ok(Compared { number, differing: decode_spans(bounds)?, gone: decode_dots(gone)? })
}

/// Whether a receiver takes so many.
pub(super) fn fit(bounds: Option<&pb::Strings>, dots: Option<&pb::Dots>) -> bool {
    bounds.is_none_or(|bounds| bounds.lengths.len() <= 2 * ROWS_MAX)
        && dots.is_none_or(|dots| dots.origins.len() <= ROWS_MAX)
}

fn encode_spans<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<pb::Strings> {
    let bounds = spans.flat_map(|span| [span.from.as_ref(), span.to.as_deref().unwrap_or(&[])]);
    encode_strings(bounds)
}

fn decode_spans(bounds: Option<pb::Strings>) -> Result<Vec<Span>, Malformed> {
    let bounds = decode_strings(bounds, 2 * ROWS_MAX)?;
    if !bounds.len().is_multiple_of(2) {
        return Err(Malformed("a range with one bound"));
    }
    let span = |bounds: &[Bytes]| {
        let (from, to) = (bounds[0].clone(), bounds[1].clone());
        let to = Some(to).filter(|to| !to.is_empty());
        if to.as_ref().is_some_and(|to| *to <= from) {
            return Err(Malformed("a range the wrong way round"));
        }
        Ok(Span { from, to })
    };
    let spans: Vec<Span> = bounds.chunks_exact(2).map(span).collect::<Result<_, _>>()?;
    // Whoever answers walks over each of them.
    let apart = |pair: &[Span]| pair[0].to.as_ref().is_some_and(|to| *to <= pair[1].from);
    if spans.windows(2).all(apart) { Ok(spans) } else { Err(Malformed("ranges that overlap")) }
}

fn encode_dots(dots: &[Dot]) -> Option<pb::Dots> {
    let mut columns = pb::Dots {
        keys: encode_strings(dots.iter().map(|dot| dot.key.as_ref())),
        ..pb::Dots::default()
    };
    let mut numbers = BTreeMap::new();
    let (mut time, mut seq) = (0, 0);
    for dot in dots {
        let Head { origin, .. } = dot.head;
        let next = number(numbers.len());
        let row = *numbers.entry(origin).or_insert_with(|| {
            columns.origin_members.push(origin.member.0);
            columns.origin_runs.push(origin.run);
            next
        });
        columns.origins.push(row);
        columns.times.push(difference(dot.time.0, time));
        columns.seqs.push(difference(dot.head.seq, seq));
        (time, seq) = (dot.time.0, dot.head.seq);
    }
    (!dots.is_empty()).then_some(columns)
}

fn decode_dots(dots: Option<pb::Dots>) -> Result<Vec<Dot>, Malformed> {
    let Some(columns) = dots else { return Ok(Vec::new()) };
    let keys = decode_strings(columns.keys, ROWS_MAX)?;
    let rows = [columns.origins.len(), columns.times.len(), columns.seqs.len()];
    check_columns(keys.len(), &rows)?;
    check_count(columns.origin_members.len(), HEADS_MAX)?;
    check_columns(columns.origin_members.len(), &[columns.origin_runs.len()])?;
    let named = columns.origin_members.into_iter().zip(columns.origin_runs);
    let named: Vec<_> =
        named.map(|(member, run)| Origin { member: MemberId(member), run }).collect();
    let (mut time, mut seq) = (0_u64, 0_u64);
    let numbers = columns.origins.into_iter().zip(columns.times).zip(columns.seqs);
    let dot = |(key, ((row, later), further)): (Bytes, ((u32, i64), i64))| {
        if key.is_empty() {
            return Err(Malformed("an empty key"));
        }
        let origin = usize::try_from(row).ok().and_then(|row| named.get(row));
        let origin = *origin.ok_or(Malformed("an origin that is not named"))?;
        (time, seq) = (time.wrapping_add_signed(later), seq.wrapping_add_signed(further));
        Ok(Dot { key, time: Timestamp(time), head: Head { origin, seq } })
    };
    let dots: Vec<Dot> = keys.into_iter().zip(numbers).map(dot).collect::<Result<_, _>>()?;
    let in_order = dots.is_sorted_by(|a, b| a.key < b.key);
    if in_order { Ok(dots) } else { Err(Malformed("puts out of order")) }
}

fn encode_strings<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Option<pb::Strings> {
    let mut columns = pb::Strings::default();
    let (mut before, mut rest): (&[u8], _) = (&[], Vec::new());
    let mut left = SHARED_BYTES_MAX;
    for string in strings {
        let common = string.iter().zip(before).take_while(|(a, b)| a == b).count();
        // What would be too much is said again.
        let shared = if common <= left { common } else { 0 };
        left -= shared;
        columns.shared.push(number(shared));
        columns.lengths.push(number(string.len() - shared));
        rest.extend_from_slice(&string[shared..]);
        before = string;
    }
    columns.rest = rest.into();
    (!columns.lengths.is_empty()).then_some(columns)
}

fn decode_strings(columns: Option<pb::Strings>, rows_max: usize) -> Result<Vec<Bytes>, Malformed> {
    let Some(pb::Strings { shared, lengths, mut rest }) = columns else { return Ok(Vec::new()) };
    check_count(lengths.len(), rows_max)?;
    check_columns(lengths.len(), &[shared.len()])?;
    let mut strings: Vec<Bytes> = Vec::with_capacity(lengths.len());
    let mut left = SHARED_BYTES_MAX;
    for (shared, length) in shared.into_iter().zip(lengths) {
        let shared = usize::try_from(shared).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let before = strings.last().map_or(&[][..], AsRef::as_ref);
        if shared > before.len() || shared > left || length > rest.len() {
            return Err(Malformed("a string that is longer than what there is of it"));
        }
        left -= shared;
        let string = [&before[..shared], &rest[..length]].concat();
        rest.advance(length);
        strings.push(string.into());
    }
    if !rest.is_empty() {
        return Err(Malformed("a column that goes on"));
    }
    Ok(strings)
}
