//! Which watchers a key concerns.
//!
//! Most watchers watch one key or one prefix. Those are found by lookups: one for the key, one for each length of
//! prefix that anybody watches. "Every key from here on" is a walk over what matches. Other ranges are rare and are
//! tried one by one, those that start at or below the key.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::{KeyRange, RangeEnd};

/// Watchers by what they watch.
#[derive(Debug)]
pub(super) struct Matcher<T> {
    keys: BTreeMap<Bytes, Vec<T>>,
    prefixes: BTreeMap<Bytes, Vec<T>>,
    /// How many different prefixes of each length are watched.
    prefix_lengths: BTreeMap<usize, usize>,
    from_keys: BTreeMap<Bytes, Vec<T>>,
    spans: BTreeMap<(Bytes, Bytes), Vec<T>>,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            prefix_lengths: BTreeMap::new(),
            from_keys: BTreeMap::new(),
            spans: BTreeMap::new(),
        }
    }
}

impl<T: Copy + PartialEq> Matcher<T> {
    /// Whether nobody watches anything.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.prefixes.is_empty()
            && self.from_keys.is_empty()
            && self.spans.is_empty()
    }

    pub(super) fn insert(&mut self, range: &KeyRange, watcher: T) {
        let start = range.start.clone();
        match &range.end {
            RangeEnd::Single => self.keys.entry(start).or_default().push(watcher),
            RangeEnd::Unbounded => self.from_keys.entry(start).or_default().push(watcher),
            RangeEnd::Before(end) if is_prefix(&start, end) => {
                let length = start.len();
                let watchers = self.prefixes.entry(start).or_default();
                if watchers.is_empty() {
                    *self.prefix_lengths.entry(length).or_default() += 1;
                }
                watchers.push(watcher);
            }
            RangeEnd::Before(end) => {
                self.spans.entry((start, end.clone())).or_default().push(watcher);
            }
        }
    }

    pub(super) fn remove(&mut self, range: &KeyRange, watcher: T) {
        let start = &range.start;
        match &range.end {
            RangeEnd::Single => {
                take(&mut self.keys, start, watcher);
            }
            RangeEnd::Unbounded => {
                take(&mut self.from_keys, start, watcher);
            }
            RangeEnd::Before(end) if is_prefix(start, end) => {
                let was_last = take(&mut self.prefixes, start, watcher);
                if was_last && let Some(prefixes) = self.prefix_lengths.get_mut(&start.len()) {
                    *prefixes -= 1;
                    if *prefixes == 0 {
                        self.prefix_lengths.remove(&start.len());
                    }
                }
            }
            RangeEnd::Before(end) => {
                take(&mut self.spans, &(start.clone(), end.clone()), watcher);
            }
        }
    }

    /// Calls `f` with every watcher of `key`, once each.
    pub(super) fn for_each(&self, key: &[u8], mut f: impl FnMut(T)) {
        let mut all = |watchers: &Vec<T>| watchers.iter().for_each(|watcher| f(*watcher));
        if let Some(watchers) = self.keys.get(key) {
            all(watchers);
        }
        for length in self.prefix_lengths.keys() {
            match key.get(..*length).map(|prefix| self.prefixes.get(prefix)) {
                Some(Some(watchers)) => all(watchers),
                Some(None) => {}
                None => break,
            }
        }
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        self.from_keys.range::<[u8], _>(upto).for_each(|(_, watchers)| all(watchers));
        for ((start, end), watchers) in &self.spans {
            if start.as_ref() > key {
                break;
            }
            if key < end.as_ref() {
                all(watchers);
            }
        }
    }
}

/// Takes a watcher out; answers whether it was the last of its range.
fn take<K: Ord, T: PartialEq>(map: &mut BTreeMap<K, Vec<T>>, range: &K, watcher: T) -> bool {
    let Some(watchers) = map.get_mut(range) else { return false };
    watchers.retain(|other| *other != watcher);
    let was_last = watchers.is_empty();
    if was_last {
        map.remove(range);
    }
    was_last
}

/// Whether `[start, end)` is every key that begins with `start`: the end is the start with its last byte, 0xff bytes
/// at the end left out, one greater.
fn is_prefix(start: &[u8], end: &[u8]) -> bool {
    let Some((last, head)) = end.split_last() else { return false };
    let Some(byte) = last.checked_sub(1) else { return false };
    let Some((middle, tail)) = start.split_at_checked(end.len()) else { return false };
    middle.split_last() == Some((&byte, head)) && tail.iter().all(|byte| *byte == 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(b'b'), Just(0xff)],
            1..4,
        )
    }

    fn prefix_end(prefix: &[u8]) -> Vec<u8> {
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = vec![0],
        }
        end
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        let range = |start: Vec<u8>, end: Vec<u8>| KeyRange::from_request(start.into(), end.into());
        prop_oneof![
            key().prop_map(move |start| range(start, vec![])),
            key().prop_map(move |start| range(start, vec![0])),
            key().prop_map(move |start| range(start.clone(), prefix_end(&start))),
            (key(), key()).prop_map(move |(start, end)| range(start, end)),
        ]
    }

    proptest! {
        #[test]
        fn finds_exactly_the_ranges_that_hold_the_key(
            ranges in prop::collection::vec(range(), 0..20),
            removed: Vec<prop::sample::Index>,
            keys in prop::collection::vec(key(), 1..20),
        ) {
            let mut matcher = Matcher::default();
            for (i, range) in ranges.iter().enumerate() {
                matcher.insert(range, i);
            }
            let mut left: Vec<_> = ranges.iter().enumerate().collect();
            for index in removed.iter().filter(|_| !ranges.is_empty()) {
                let i = index.index(ranges.len());
                matcher.remove(&ranges[i], i);
                left.retain(|(other, _)| *other != i);
            }
            for key in keys {
                let mut found = Vec::new();
                matcher.for_each(&key, |i| found.push(i));
                found.sort_unstable();
                let expected: Vec<_> =
                    left.iter().filter(|(_, range)| range.contains(&key)).map(|(i, _)| *i).collect();
                prop_assert_eq!(found, expected, "{:?} in {:?}", key, &left);
            }
            left.iter().for_each(|(i, range)| matcher.remove(range, *i));
            prop_assert!(matcher.is_empty() && matcher.prefix_lengths.is_empty());
        }
    }
}
