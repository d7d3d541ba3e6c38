//! A node's items in the order of their keys, found without following a pointer per comparison.
//!
//! Keys lie on the heap, each a cache miss away. So beside the items stand their *heads*: of each key the eight
//! bytes that follow what all keys of the node share, as a number. A search goes over the heads, which are
//! together in a few cache lines, and looks at a key only to confirm what it found, or where heads are equal.
//! (The technique is that of "poor man's normalized keys" with prefix truncation, Graefe, *Modern B-Tree
//! Techniques*, 2011, sections 3.4 and 3.5.)
//!
//! Invariants
//! * Items are in order of their keys, each key once.
//! * Every key starts with the same `shared` bytes; `heads[i]` is the head of `items[i]`.

use std::ops::Range;

/// What has a key.
pub(super) trait Keyed {
    /// It must stay as it is while the item is in a node.
    fn key(&self) -> &[u8];
}

/// Items in the order of their keys.
#[derive(Debug)]
pub(super) struct Sorted<T> {
    /// How many bytes all keys have in common, at least.
    shared: usize,
    heads: Vec<u64>,
    items: Vec<T>,
}

impl<T: Keyed> Sorted<T> {
    /// Of items that are in order.
    pub(super) fn new(items: Vec<T>) -> Self {
        let mut sorted = Self { shared: 0, heads: Vec::with_capacity(items.capacity()), items };
        sorted.rebuild();
        sorted
    }

    pub(super) fn items(&self) -> &[T] {
        &self.items
    }

    /// Their keys must not be changed.
    pub(super) fn items_mut(&mut self) -> &mut [T] {
        &mut self.items
    }

    pub(super) fn into_items(self) -> Vec<T> {
        self.items
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The item with a key. Looks at one key, mostly.
    pub(super) fn find(&self, key: &[u8]) -> Option<&T> {
        // Whether it starts as the others do shows when it is compared.
        let alike = self.alike(head(key.get(self.shared..)?));
        let items = &self.items[alike];
        items.binary_search_by(|item| item.key().cmp(key)).ok().map(|i| &items[i])
    }

    /// Where the item with a key is, or where it would be.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(first) = self.items.first() else { return Err(0) };
        let (shared, rest) = key.split_at(key.len().min(self.shared));
        match shared.cmp(&first.key()[..self.shared]) {
            std::cmp::Ordering::Less => return Err(0),
            std::cmp::Ordering::Greater => return Err(self.items.len()),
            std::cmp::Ordering::Equal => {}
        }
        let alike = self.alike(head(rest));
        let found = self.items[alike.clone()].binary_search_by(|item| item.key().cmp(key));
        found.map(|i| alike.start + i).map_err(|i| alike.start + i)
    }

    /// How many keys are below one.
    pub(super) fn below(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|i| i)
    }

    /// The items whose heads are equal to one.
    fn alike(&self, head: u64) -> Range<usize> {
        let start = self.heads.partition_point(|other| *other < head);
        let count = self.heads[start..].iter().take_while(|other| **other == head).count();
        start..start + count
    }

    /// Puts an item where [`Self::search`] says that it belongs.
    pub(super) fn insert(&mut self, i: usize, item: T) {
        let key = item.key();
        let shared = self.items.first().map_or(key.len(), |first| common_prefix(first.key(), key));
        if shared < self.shared || self.items.is_empty() {
            self.items.insert(i, item);
            self.rebuild();
        } else {
            self.heads.insert(i, head(&key[self.shared..]));
            self.items.insert(i, item);
        }
    }

    /// Takes out all from one on, into room for `capacity`.
    pub(super) fn split_off(&mut self, at: usize, capacity: usize) -> Self {
        let mut items = Vec::with_capacity(capacity);
        items.extend(self.items.drain(at..));
        self.rebuild();
        Self::new(items)
    }

    /// Does what it likes with the items, as long as they stay in order.
    pub(super) fn change(&mut self, f: impl FnOnce(&mut Vec<T>)) {
        f(&mut self.items);
        self.rebuild();
    }

    /// Finds out anew what the keys have in common.
    fn rebuild(&mut self) {
        // What the first and the last share, all between them do.
        self.shared = match self.items.as_slice() {
            [] => 0,
            [first, .., last] => common_prefix(first.key(), last.key()),
            [only] => only.key().len(),
        };
        self.heads.clear();
        let shared = self.shared;
        self.heads.extend(self.items.iter().map(|item| head(&item.key()[shared..])));
    }
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first eight bytes as a number, so that numbers are in the order of keys. Where they are equal the keys may
/// differ still, and be of different lengths.
fn head(rest: &[u8]) -> u64 {
    if let Some(head) = rest.first_chunk() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Keyed for Vec<u8> {
        fn key(&self) -> &[u8] {
            self
        }
    }

    /// Keys that share prefixes, end in zeros, and are prefixes of one another.
    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(&b""[..]),
            Just(&b"\0"[..]),
            Just(&b"\0\0\0"[..]),
            Just(&b"/registry/"[..]),
            Just(&b"aaaaaaaab"[..]),
            Just(&b"a"[..]),
            Just(&b"\xff"[..]),
        ];
        prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
    }

    fn check(sorted: &Sorted<Vec<u8>>, key: &Vec<u8>) {
        assert_eq!(sorted.search(key), sorted.items().binary_search(key), "{key:?} in {sorted:?}");
        assert_eq!(sorted.find(key).is_some(), sorted.items().contains(key), "{key:?}: {sorted:?}");
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(
            steps in prop::collection::vec((any_key(), any::<bool>()), 1..40),
            probes in prop::collection::vec(any_key(), 1..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut sorted = Sorted::new(Vec::new());
            for (key, insert) in steps {
                check(&sorted, &key);
                match sorted.search(&key) {
                    Err(i) => sorted.insert(i, key),
                    Ok(i) if !insert => sorted.change(|items| drop(items.remove(i))),
                    Ok(_) => {}
                }
            }
            let right = sorted.split_off(cut.index(sorted.len() + 1), 0);
            for key in probes.iter().chain(right.items()).chain(sorted.items()) {
                check(&sorted, key);
                check(&right, key);
            }
        }
    }
}
