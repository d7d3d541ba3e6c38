//! What a user may do: the permissions of all their roles, merged into ranges that do not touch.
//!
//! Source: etcd `server/auth/range_perm_cache.go`. A request is permitted when all of its range is, whichever permissions that
//! takes together.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{KeyRange, RangeEnd};

/// The end of a span: the first key behind it, `None` for no end.
type End = Option<Bytes>;

/// A set of keys: ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    spans: Vec<(Bytes, End)>,
}

impl KeySet {
    /// The union of some ranges. Costs a sort of them.
    pub fn new<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> Self {
        let mut ranges: Vec<_> =
            ranges.into_iter().filter(|range| !range.is_empty()).map(span).collect();
        ranges.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut spans: Vec<(Bytes, End)> = Vec::new();
        for (start, end) in ranges {
            match spans.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    let is_longer = match (&last, &end) {
                        (Some(last), Some(end)) => end > last,
                        (Some(_), None) => true,
                        (None, _) => false,
                    };
                    if is_longer {
                        *last = end;
                    }
                }
                _ => spans.push((start, end)),
            }
        }
        Self { spans }
    }

    /// Whether all keys of a range are in it. A range that can have no key is where its first one would be.
    pub fn contains(&self, range: &KeyRange) -> bool {
        let before = self.spans.partition_point(|(start, _)| *start <= range.start);
        let Some((_, end)) = before.checked_sub(1).and_then(|last| self.spans.get(last)) else {
            return false;
        };
        let Some(end) = end else { return true };
        let within = match range.upper() {
            Bound::Included(last) => last < end.as_ref(),
            Bound::Excluded(behind) => behind <= end.as_ref(),
            Bound::Unbounded => false,
        };
        within && range.start < *end
    }
}

fn span(range: &KeyRange) -> (Bytes, End) {
    let end = match &range.end {
        RangeEnd::Single => {
            let mut end = BytesMut::with_capacity(range.start.len() + 1);
            end.put_slice(&range.start);
            end.put_u8(0);
            Some(end.freeze())
        }
        RangeEnd::Before(end) => Some(end.clone()),
        RangeEnd::Unbounded => None,
    };
    (range.start.clone(), end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: &[u8], end: &[u8]) -> KeyRange {
        KeyRange::from_request(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end))
    }

    #[test]
    fn neighbours_are_one() {
        let set = KeySet::new(&[range(b"a", b"c"), range(b"c", b"e"), range(b"x", b"")]);
        assert_eq!(set.spans.len(), 2);
        assert!(set.contains(&range(b"b", b"d")) && set.contains(&range(b"a", b"e")));
        assert!(set.contains(&range(b"x", b"")) && !set.contains(&range(b"x", b"y")));
        assert!(!set.contains(&range(b"a", b"f")) && !set.contains(&range(b"e", b"")));
        assert!(!set.contains(&range(b"a", b"\0")));
        let rest = KeySet::new(&[range(b"m", b"\0"), range(b"z", b"")]);
        assert!(rest.contains(&range(b"m", b"\0")) && rest.contains(&range(b"zz", b"")));
        assert!(
            !rest.contains(&range(b"l", b"\0")) && !KeySet::default().contains(&range(b"a", b""))
        );
    }

    fn any_range() -> impl Strategy<Value = KeyRange> {
        let key = || proptest::collection::vec(b'a'..b'f', 1..3);
        let end = prop_oneof![Just(Vec::new()), Just(vec![0]), key()];
        (key(), end).prop_map(|(start, end)| range(&start, &end))
    }

    proptest! {
        /// Every key is in the set that is in one of its ranges, and no other; and a range is if all its keys are.
        #[test]
        fn a_set_is_the_sum_of_its_ranges(
            ranges in proptest::collection::vec(any_range(), 0..6),
            asked in any_range(),
            key in proptest::collection::vec(b'a'..b'f', 1..4),
        ) {
            let set = KeySet::new(&ranges);
            let single = KeyRange::single(Bytes::from(key.clone()));
            let is_in = ranges.iter().any(|range| range.contains(&key));
            prop_assert_eq!(set.contains(&single), is_in);
            if set.contains(&asked) && asked.contains(&key) {
                prop_assert!(is_in, "{:?} is in {:?}, but not {:?}", asked, set, key);
            }
        }
    }
}
