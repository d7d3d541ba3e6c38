//! Makes the destination as the source was at one revision: both are walked in key order, and what differs is written.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::mvccpb::KeyValue;
use tonic::Code;

use super::place::Place;
use super::side::{CallError, MESSAGE_BYTES_MAX, Side};
use super::{Change, Mirror, Progress, TXN_BYTES_MAX, figures, is_reserved, range_of};
use crate::cli::ToolError;

/// Bytes that a page should have; how many keys that are is learned from the page before.
const PAGE_BYTES: usize = 4 << 20;
/// Keys of the first page: that many of the largest that an etcd takes, if it was told nothing else, are a page.
const PAGE_KEYS_MIN: i64 = 2;
const PAGE_KEYS_MAX: i64 = 10_000;
/// What etcd says, as do we, when a revision is gone.
const COMPACTED: &str = "required revision has been compacted";

/// The keys of a range, in order, page by page.
struct Pages {
    /// Where the next page begins; `None` behind the last.
    next: Option<Bytes>,
    end: Bytes,
    /// All pages are as of this revision; 0 for each as of its own time.
    revision: i64,
    keys_max: i64,
    page: VecDeque<KeyValue>,
}

impl Pages {
    fn new(prefix: &[u8], revision: i64) -> Self {
        let (start, end) = range_of(prefix);
        Self { next: Some(start), end, revision, keys_max: PAGE_KEYS_MIN, page: VecDeque::new() }
    }

    /// Whether there is a first key, which is fetched if need be.
    async fn fill(&mut self, side: &mut Side, progress: &mut Progress) -> Result<(), CallError> {
        while self.page.is_empty()
            && let Some(key) = self.next.clone()
        {
            let request = pb::RangeRequest {
                key,
                range_end: self.end.clone(),
                revision: self.revision,
                limit: self.keys_max,
                ..Default::default()
            };
            let reply = match side.range(&request, progress).await {
                Ok(reply) => reply,
                // Not what the server says, but that it said too much.
                Err(CallError::Refused { status, .. })
                    if status.code() == Code::OutOfRange
                        && !status.message().contains(COMPACTED)
                        && self.keys_max > 1 =>
                {
                    self.keys_max = (self.keys_max / 8).max(1);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let bytes = reply.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            self.keys_max = next_keys_max(reply.kvs.len(), bytes);
            self.next = match reply.kvs.last() {
                Some(last) if reply.more => Some([&last.key[..], b"\0"].concat().into()),
                _ => None,
            };
            self.page = reply.kvs.into_iter().filter(|kv| !is_reserved(&kv.key)).collect();
        }
        Ok(())
    }
}

/// How many keys the next page may have if they are as large as those of the last one.
fn next_keys_max(keys: usize, bytes: usize) -> i64 {
    let each = (bytes / keys.max(1)).max(1);
    let fitting = i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_KEYS_MAX);
    // Not all at once: the next ones may be larger.
    let grown = i64::try_from(keys.saturating_mul(4)).unwrap_or(PAGE_KEYS_MAX);
    fitting.min(grown).clamp(PAGE_KEYS_MIN, PAGE_KEYS_MAX)
}

/// The first difference between two sorted walks, and whose first keys are done with then.
fn difference(
    source: Option<&KeyValue>,
    destination: Option<&KeyValue>,
) -> (Option<Change>, Ordering) {
    let put = |kv: &KeyValue| Some(Change::Put(kv.key.clone(), kv.value.clone()));
    match (source, destination) {
        (Some(here), Some(there)) => match here.key.cmp(&there.key) {
            Ordering::Less => (put(here), Ordering::Less),
            Ordering::Equal if here.value == there.value => (None, Ordering::Equal),
            Ordering::Equal => (put(here), Ordering::Equal),
            Ordering::Greater => (Some(Change::Delete(there.key.clone())), Ordering::Greater),
        },
        (Some(here), None) => (put(here), Ordering::Less),
        (None, Some(there)) => (Some(Change::Delete(there.key.clone())), Ordering::Greater),
        (None, None) => (None, Ordering::Equal),
    }
}

impl Mirror {
    /// Makes everything as it is in the source now. A source that compacts meanwhile is copied as of later: what is there by then
    /// is only compared, which is so much quicker that this ends.
    pub(super) async fn copy(&mut self, cluster: u64) -> Result<Place, ToolError> {
        loop {
            let header = self.source.header(&mut self.progress).await?;
            if header.cluster_id != cluster {
                let (now, before) = (header.cluster_id, cluster);
                let text =
                    format!("the source has become another cluster: {now:x}, was {before:x}");
                return Err(ToolError::Failed(text));
            }
            match self.copy_at(header.revision).await? {
                Some(keys) => {
                    let place = Place { cluster, revision: header.revision };
                    self.write(&[], Some(place)).await?;
                    let keys = figures::counted(keys, "key", "keys");
                    let text =
                        format!("copied: {keys} at revision {} of the source", header.revision);
                    self.progress.line(&text);
                    return Ok(place);
                }
                None => {
                    self.progress.line("the source has compacted what was being copied: once more");
                }
            }
        }
    }

    /// Answers how many keys there are, or nothing if the revision is gone.
    async fn copy_at(&mut self, revision: i64) -> Result<Option<u64>, ToolError> {
        let mut source = Pages::new(&self.prefix, revision);
        let mut destination = Pages::new(&self.prefix, 0);
        let (mut changes, mut bytes, mut keys, mut seen) = (Vec::new(), 0, 0_u64, 0_u64);
        loop {
            match source.fill(&mut self.source, &mut self.progress).await {
                Err(CallError::Refused { status, .. }) if status.message().contains(COMPACTED) => {
                    return Ok(None);
                }
                filled => filled?,
            }
            destination.fill(&mut self.destination, &mut self.progress).await?;
            let (here, there) = (source.page.front(), destination.page.front());
            if (here, there) == (None, None) {
                break;
            }
            let (change, order) = difference(here, there);
            if order.is_le()
                && let Some(kv) = source.page.pop_front()
            {
                keys += 1;
                seen += (kv.key.len() + kv.value.len()) as u64;
            }
            if order.is_ge() {
                destination.page.pop_front();
            }
            if let Some(change) = change {
                bytes += change.bytes();
                changes.push(change);
            }
            if changes.len() + 1 >= self.ops_max || bytes >= TXN_BYTES_MAX {
                self.write(&changes, None).await?;
                (changes, bytes) = (Vec::new(), 0);
            }
            self.progress.tick(|| {
                let keys = figures::counted(keys, "key", "keys");
                format!("copying: {keys}, {}", figures::size(seen))
            });
        }
        self.write(&changes, None).await?;
        Ok(Some(keys))
    }
}

const _: () = assert!(PAGE_BYTES * 10 <= MESSAGE_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, value: &'static str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn walks_are_compared_key_by_key() {
        let put =
            |key: &'static str, value: &'static str| Some(Change::Put(key.into(), value.into()));
        let delete = |key: &'static str| Some(Change::Delete(key.into()));
        let (a, b, other) = (kv("a", "1"), kv("b", "1"), kv("a", "2"));
        let cases = [
            (Some(&a), Some(&b), put("a", "1"), Ordering::Less),
            (Some(&b), Some(&a), delete("a"), Ordering::Greater),
            (Some(&a), Some(&other), put("a", "1"), Ordering::Equal),
            (Some(&a), Some(&a), None, Ordering::Equal),
            (Some(&a), None, put("a", "1"), Ordering::Less),
            (None, Some(&a), delete("a"), Ordering::Greater),
        ];
        for (source, destination, change, order) in cases {
            let found = difference(source, destination);
            assert_eq!(found, (change, order), "{source:?} and {destination:?}");
        }
    }

    #[test]
    fn pages_follow_the_size_of_values() {
        assert_eq!(next_keys_max(2, 200), 8, "not all at once");
        assert_eq!(next_keys_max(9999, 9999), PAGE_KEYS_MAX);
        assert_eq!(next_keys_max(1000, 1000 * 65_536), 64);
        assert_eq!(next_keys_max(2, 3 << 20), PAGE_KEYS_MIN);
        assert_eq!(next_keys_max(0, 0), PAGE_KEYS_MIN);
    }
}
