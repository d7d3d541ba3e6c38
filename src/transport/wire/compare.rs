//! The questions and answers of a state merge.

use starling_proto::starling::peer::v1 as pb;

use super::{Malformed, check_columns, check_count};
use crate::replication::message::{Compare, Compared, Dot, Head, RangeSum, Span};
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

/// The most ranges, and the most puts, in a message: twice those of all parts of the ranges that one question is about,
/// since keys may come while it is read.
pub(super) const ROWS_MAX: usize = 2048;

pub(super) fn encode_compare(compare: &Compare) -> pb::Compare {
    let spans = || compare.sums.iter().map(|sum| &sum.span);
    pb::Compare {
        from: spans().map(|span| span.from.clone()).collect(),
        to: spans().map(|span| span.to.clone().unwrap_or_default()).collect(),
        keys: compare.sums.iter().map(|sum| sum.keys).collect(),
        hashes: compare.sums.iter().map(|sum| sum.hash).collect(),
        dots: compare.dots.iter().map(encode_dot).collect(),
        upto: compare.upto.0,
        number: compare.number,
    }
}

pub(super) fn decode_compare(compare: pb::Compare) -> Result<Compare, Malformed> {
    let pb::Compare { from, to, keys, hashes, dots, upto, number } = compare;
    check_columns(from.len(), &[to.len(), keys.len(), hashes.len()])?;
    let spans = decode_spans(from, to)?;
    let sums = spans.into_iter().zip(keys).zip(hashes);
    let sums = sums.map(|((span, keys), hash)| RangeSum { span, keys, hash }).collect();
    Ok(Compare { sums, dots: decode_dots(dots)?, upto: Timestamp(upto), number })
}

pub(super) fn encode_compared(compared: &Compared) -> pb::Compared {
    let spans = compared.differing.iter();
    pb::Compared {
        from: spans.clone().map(|span| span.from.clone()).collect(),
        to: spans.map(|span| span.to.clone().unwrap_or_default()).collect(),
        gone: compared.gone.iter().map(encode_dot).collect(),
        number: compared.number,
    }
}

pub(super) fn decode_compared(compared: pb::Compared) -> Result<Compared, Malformed> {
    let pb::Compared { from, to, gone, number } = compared;
    check_columns(from.len(), &[to.len()])?;
    Ok(Compared { number, differing: decode_spans(from, to)?, gone: decode_dots(gone)? })
}

fn decode_spans(from: Vec<bytes::Bytes>, to: Vec<bytes::Bytes>) -> Result<Vec<Span>, Malformed> {
    check_count(from.len(), ROWS_MAX)?;
    let span = |(from, to): (bytes::Bytes, bytes::Bytes)| {
        let to = Some(to).filter(|to| !to.is_empty());
        if to.as_ref().is_some_and(|to| *to <= from) {
            return Err(Malformed("a range the wrong way round"));
        }
        Ok(Span { from, to })
    };
    let spans: Vec<Span> = from.into_iter().zip(to).map(span).collect::<Result<_, _>>()?;
    // Whoever answers walks over each of them.
    let apart = |pair: &[Span]| pair[0].to.as_ref().is_some_and(|to| *to <= pair[1].from);
    if spans.windows(2).all(apart) { Ok(spans) } else { Err(Malformed("ranges that overlap")) }
}

fn encode_dot(dot: &Dot) -> pb::Dot {
    let Head { origin, seq } = dot.head;
    let (key, time) = (dot.key.clone(), dot.time.0);
    pb::Dot { key, time, member: origin.member.0, run: origin.run, seq }
}

fn decode_dots(dots: Vec<pb::Dot>) -> Result<Vec<Dot>, Malformed> {
    check_count(dots.len(), ROWS_MAX)?;
    let dot = |dot: pb::Dot| {
        if dot.key.is_empty() {
            return Err(Malformed("an empty key"));
        }
        let origin = Origin { member: MemberId(dot.member), run: dot.run };
        let (key, time) = (dot.key, Timestamp(dot.time));
        Ok(Dot { key, time, head: Head { origin, seq: dot.seq } })
    };
    let dots: Vec<Dot> = dots.into_iter().map(dot).collect::<Result<_, _>>()?;
    let in_order = dots.is_sorted_by(|a, b| a.key < b.key);
    if in_order { Ok(dots) } else { Err(Malformed("puts out of order")) }
}
