//! Finding where two members hold different puts, at a cost that follows the differences: sums over ranges of keys,
//! split until few keys are left (Meyer, "Range-Based Set Reconciliation", 2023).
//!
//! Each question makes sense alone, and the one who is asked keeps no state for it: a round costs a walk over the ranges
//! that differ, the first one a walk over everything, a few keys at a time.

use std::ops::ControlFlow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{CHUNK_KEYS, Latest, Mvcc};
use crate::error::StoreError;
use crate::replication::heads::mix;
use crate::replication::message::{Compare, Compared, Dot, Head, RangeSum, Span};
use crate::storage::Space;
use crate::storage::schema::{Place, Row, RowStamp};
use crate::time::Timestamp;
use crate::types::{KeyRange, RangeEnd};

/// Into how many parts a range is split, at most.
const PARTS: u64 = 16;
/// Ranges of so few keys are not split: their puts are named.
const DOTS_MAX: u64 = 16;

impl Mvcc {
    /// The next question about some ranges in which another member holds something else: smaller ranges, or the puts
    /// themselves. Only puts up to a time count. No range in it is one of `spans`, so that asking comes to an end.
    pub fn compare(
        &self,
        spans: &[Span],
        upto: Timestamp,
        number: u64,
    ) -> Result<Compare, StoreError> {
        let mut compare = Compare { sums: Vec::new(), dots: Vec::new(), upto, number };
        for span in spans {
            self.split_or_name(span, &mut compare)?;
        }
        Ok(compare)
    }

    fn split_or_name(&self, span: &Span, compare: &mut Compare) -> Result<(), StoreError> {
        let upto = compare.upto;
        loop {
            let keys = self.count(span, upto);
            if keys <= DOTS_MAX {
                return self.name_puts(span, upto, &mut compare.dots);
            }
            let parts = self.split(span, keys.div_ceil(PARTS), upto);
            // Unless most of them have gone since they were counted.
            if parts.len() > 1 {
                compare.sums.extend(parts);
                return Ok(());
            }
        }
    }

    /// How many keys live in a span by a put that counts.
    fn count(&self, span: &Span, upto: Timestamp) -> u64 {
        let keys = self.guarded.read().index.sum(&range_of(span)).keys;
        let is_all = upto == Timestamp(u64::MAX) || keys <= DOTS_MAX;
        if is_all { keys } else { self.sum(span, upto).0 }
    }

    /// Answers another member's question: in which of its ranges this one holds something else, and which of its puts
    /// are gone: known here, and deleted. `heads` are what this member holds, in the order of the origins.
    pub fn answer_compare(
        &self,
        compare: &Compare,
        heads: &[Head],
    ) -> Result<Compared, StoreError> {
        let differs = |sum: &&RangeSum| self.sum(&sum.span, compare.upto) != (sum.keys, sum.hash);
        let differing = compare.sums.iter().filter(differs).map(|sum| sum.span.clone()).collect();
        let held = |origin| {
            let at = heads.binary_search_by_key(&origin, |head: &Head| head.origin);
            at.map_or(0, |at| heads[at].seq)
        };
        let is_gone = |dot: &&Dot| held(dot.head.origin) >= dot.head.seq && !self.has_put_like(dot);
        let gone = compare.dots.iter().filter(is_gone).cloned().collect();
        Ok(Compared { number: compare.number, differing, gone })
    }

    /// Whether the key lives by this put or a greater one.
    fn has_put_like(&self, dot: &Dot) -> bool {
        let stamp = self.latest(&dot.key).map(|latest| self.origins.read().stamp(latest.stamp));
        stamp.is_some_and(|stamp| stamp >= dot.stamp())
    }

    /// Walks the live keys of a span, letting go of the index now and then.
    fn walk(&self, span: &Span, upto: Timestamp, f: &mut dyn FnMut(&[u8], &Latest)) {
        let range = range_of(span);
        let mut from: Option<Vec<u8>> = None;
        loop {
            let mut last: Option<Vec<u8>> = None;
            let mut seen = 0;
            let guarded = self.guarded.read();
            guarded.index.visit(&range, from.as_deref(), &mut |key, history| {
                if let Some(latest) = history.alive().filter(|latest| latest.stamp.time <= upto) {
                    f(key, latest);
                }
                seen += 1;
                if seen < CHUNK_KEYS {
                    return ControlFlow::Continue(());
                }
                // The key behind this one.
                last = Some([key, &[0]].concat());
                ControlFlow::Break(())
            });
            drop(guarded);
            if last.is_none() {
                return;
            }
            from = last;
        }
    }

    /// How many keys live in a span, and the sum of the hashes of their puts.
    fn sum(&self, span: &Span, upto: Timestamp) -> (u64, u64) {
        let (mut keys, mut sum) = (0, 0_u64);
        let seeds = self.seeds();
        self.walk(span, upto, &mut |key, latest| {
            keys += 1;
            sum = sum.wrapping_add(hash(key, latest.stamp, &seeds));
        });
        (keys, sum)
    }

    /// The parts of a span of `step` keys each, with their sums; in the last one is what is left.
    fn split(&self, span: &Span, step: u64, upto: Timestamp) -> Vec<RangeSum> {
        let (seeds, mut sums) = (self.seeds(), Vec::new());
        let mut part = RangeSum { span: span.clone(), keys: 0, hash: 0 };
        let mut before = Vec::new();
        self.walk(span, upto, &mut |key, latest| {
            if part.keys == step && (sums.len() as u64) < PARTS - 1 {
                let bound = separator(&before, key);
                part.span.to = Some(bound.clone());
                let next = Span { from: bound, to: span.to.clone() };
                sums.push(std::mem::replace(&mut part, RangeSum { span: next, keys: 0, hash: 0 }));
            }
            part.keys += 1;
            part.hash = part.hash.wrapping_add(hash(key, latest.stamp, &seeds));
            before.clear();
            before.extend_from_slice(key);
        });
        sums.push(part);
        sums
    }

    /// The puts by which the keys of a span live.
    fn name_puts(
        &self,
        span: &Span,
        upto: Timestamp,
        dots: &mut Vec<Dot>,
    ) -> Result<(), StoreError> {
        let mut puts: Vec<(Bytes, Place, RowStamp)> = Vec::new();
        self.walk(span, upto, &mut |key, latest| {
            puts.push((Bytes::copy_from_slice(key), latest.head.place(), latest.stamp));
        });
        for (key, place, stamp) in puts {
            // It may have been replaced meanwhile, or not be on the disk yet: then it is no difference to settle now.
            let Some(row) = self.store.row(Space::Log, &place.encode())? else { continue };
            let seq = Row::decode(place, row)?.seq;
            let origin = self.origins.read().name(stamp.origin);
            dots.push(Dot { key, time: stamp.time, head: Head { origin, seq } });
        }
        Ok(())
    }

    /// For each origin here, what its puts' hashes start from.
    fn seeds(&self) -> impl Fn(RowStamp) -> u64 + use<> {
        let origins = self.origins.read().clone();
        move |stamp| {
            let origin = origins.name(stamp.origin);
            mix(mix(stamp.time.0 ^ mix(origin.member.0)) ^ origin.run)
        }
    }
}

fn hash(key: &[u8], stamp: RowStamp, seeds: &impl Fn(RowStamp) -> u64) -> u64 {
    xxh3_64_with_seed(key, seeds(stamp))
}

fn range_of(span: &Span) -> KeyRange {
    let end = span.to.clone().map_or(RangeEnd::Unbounded, RangeEnd::Before);
    KeyRange { start: span.from.clone(), end }
}

/// The shortest key above `before` and not above `key`.
fn separator(before: &[u8], key: &[u8]) -> Bytes {
    let common = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    Bytes::copy_from_slice(&key[..(common + 1).min(key.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::command::{Command, Put};
    use crate::engine::{Options, Writer};
    use crate::storage::schema::Identity;
    use crate::storage::{Memory, Store};
    use crate::time::Now;
    use crate::types::{ClusterId, MemberId};

    /// More than a few, and less than a range of a sixteenth of all keys.
    const OLD_KEYS: u64 = 40;
    const KEYS: u64 = 2000;

    fn put(writer: &mut Writer, keys: impl IntoIterator<Item = u64>, wall_millis: u64) {
        for number in keys {
            let put = Put { key: format!("key{number:05}").into(), ..Put::default() };
            let now = Now { wall_millis, monotonic_millis: wall_millis };
            writer.execute(Command::Put(put), now).unwrap();
        }
        writer.commit().unwrap();
    }

    /// Whatever a peer finds to differ, no range is asked about again.
    #[test]
    fn asking_comes_to_an_end_when_most_keys_are_too_young() {
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        let store = Store::Memory(Memory::new());
        let now = Now { wall_millis: 1, monotonic_millis: 1 };
        let mut writer = Writer::open(store, &Options::new(identity), now).unwrap();
        put(&mut writer, (0..KEYS).step_by(50), 1000);
        let upto = writer.mvcc().latest(b"key00000").unwrap().stamp.time;
        let upto = Timestamp(upto.0 + OLD_KEYS);
        put(&mut writer, (0..KEYS).filter(|number| number % 50 != 0), 2000);
        let mut pending = vec![Span { from: Bytes::new(), to: None }];
        let mut named = 0;
        for round in 0.. {
            let compare = writer.mvcc().compare(&pending, upto, round).unwrap();
            assert!(compare.sums.len() as u64 <= pending.len() as u64 * PARTS);
            named += compare.dots.len() as u64;
            let parts: Vec<Span> = compare.sums.into_iter().map(|sum| sum.span).collect();
            assert!(parts.iter().all(|part| !pending.contains(part)), "{pending:?}");
            assert!(round < 8, "it goes on and on: {parts:?}");
            if parts.is_empty() {
                break;
            }
            pending = parts;
        }
        assert_eq!(named, OLD_KEYS);
    }
}
