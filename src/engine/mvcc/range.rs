//! Range: the pairs of a range at one revision, counted, filtered, sorted and cut as etcd does.
//!
//! Sources: etcd `server/etcdserver/txn/range.go`. What a request does not return is not read: counts come from
//! the index, `keys_only` needs no rows for current versions, and a limit ends the walk.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::index::{History, Version};
use super::{CHUNK_KEYS, Failure, Reader};
use crate::engine::command::{Filter, Range, RangeReply, Sort, SortOrder, SortTarget};
use crate::engine::pair::{Fields, Pair};
use crate::error::Error;
use crate::storage::schema::Place;
use crate::types::{KeyRange, Revision};

/// How many candidates a sorted range with a limit collects before it drops those that cannot win.
const SORT_SLACK: usize = 1024;

/// Keys found by a walk: enough of them to decide whether their rows are needed.
#[derive(Default)]
struct Chunk {
    places: Vec<Place>,
    /// For each of them everything but the value, where the index knows it. Empty if nobody asked.
    heads: Vec<Option<Pair>>,
}

impl Chunk {
    fn truncate(&mut self, len: usize) {
        self.places.truncate(len);
        self.heads.truncate(len);
    }
}

/// In which direction a walk goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Reader<'_> {
    /// Answers a Range at the revision it asks for. Costs O(log n) and what it returns; with a sort by another
    /// field than the key, or filters, O(keys in the range).
    pub fn range(&self, range: &Range) -> Result<RangeReply, Failure> {
        match self.range_at_once(range)? {
            Some(reply) => Ok(reply),
            None => self.range_in_chunks(range),
        }
    }

    /// Answers a Range that [`Self::range_at_once`] does not: of many keys, or in another order than theirs.
    pub fn range_in_chunks(&self, range: &Range) -> Result<RangeReply, Failure> {
        let revision = self.check(range)?;
        let (kvs, more) = match (direction(range), range.sort) {
            (Some(way), _) => self.take(range, revision, way)?,
            (None, Some(Sort { target, order: None })) if range.filter == Filter::default() => {
                self.sort_prefix(range, revision, target)?
            }
            (None, sort) => {
                let Sort { target, order } = sort.expect("without a sort keys have a direction");
                self.sort(range, revision, target, order.unwrap_or(SortOrder::Ascending))?
            }
        };
        let count = self.index()?.count(&range.range, revision);
        Ok(shown(range, RangeReply { kvs, more, count }))
    }

    /// Answers a Range if it is one of few keys, at most [`CHUNK_KEYS`] to look at. `None` if it is not, or if that is
    /// not known without a look at all of them.
    pub fn range_at_once(&self, range: &Range) -> Result<Option<RangeReply>, Failure> {
        let revision = self.check(range)?;
        if range.range.is_single() {
            return Ok(Some(shown(range, self.single(range, revision)?)));
        }
        if range.count_only {
            let count = self.index()?.count(&range.range, revision);
            return Ok(Some(RangeReply { kvs: Vec::new(), more: false, count }));
        }
        let Some(way) = direction(range).filter(|_| range.filter == Filter::default()) else {
            return Ok(None);
        };
        let limit = range.limit.unwrap_or(usize::MAX);
        let mut walk = Walk::new(range, revision, way, range.keys_only);
        // One more than wanted tells whether there are more; its row is not read.
        let mut chunk = walk.next(self, limit.saturating_add(1))?.unwrap_or_default();
        let more = chunk.places.len() > limit;
        if !more && !walk.done {
            return Ok(None);
        }
        let count = match walk.done {
            true => chunk.places.len() as u64,
            false => self.index()?.count(&range.range, revision),
        };
        chunk.truncate(limit);
        let kvs = self.load(chunk, range.keys_only)?;
        Ok(Some(shown(range, RangeReply { kvs, more, count })))
    }

    /// A range of one key takes one lookup.
    fn single(&self, range: &Range, revision: Revision) -> Result<RangeReply, Failure> {
        let key = &range.range.start;
        let found = {
            let guarded = self.index()?;
            let history = guarded.index.find(key);
            history.and_then(|history| {
                let place = live_at(history, revision)?;
                let head = if range.keys_only { head_of(key, history, place) } else { None };
                Some((place, head))
            })
        };
        let Some((place, head)) = found else { return Ok(RangeReply::default()) };
        let mut reply = RangeReply { kvs: Vec::new(), more: false, count: 1 };
        if !range.count_only && range.filter.lets_through_mod(place.revision) {
            let pair = head.map_or_else(|| self.fetch(place), Ok)?;
            let pair = if range.keys_only { pair.without_value() } else { pair };
            reply.kvs.extend(Some(pair).filter(|pair| range.filter.lets_through_create(pair)));
        }
        Ok(reply)
    }

    /// The first pairs in the direction of the walk, and whether there are more.
    fn take(
        &self,
        range: &Range,
        revision: Revision,
        way: Direction,
    ) -> Result<(Vec<Pair>, bool), Failure> {
        let limit = range.limit.unwrap_or(usize::MAX);
        let mut kvs = Vec::new();
        let mut more = false;
        let mut walk = Walk::new(range, revision, way, range.keys_only);
        while !more {
            // One more than wanted tells whether there are more; its row is not read.
            let left = limit - kvs.len();
            let Some(mut chunk) = walk.next(self, left.saturating_add(1))? else { break };
            if range.filter == Filter::default() {
                more = chunk.places.len() > left;
                chunk.truncate(left);
            }
            for kv in self.load(chunk, range.keys_only)? {
                if !range.filter.lets_through_create(&kv) {
                    continue;
                }
                if kvs.len() == limit {
                    more = true;
                    break;
                }
                kvs.push(kv);
            }
        }
        Ok((kvs, more))
    }

    /// etcd's quirk: a sort target without an order sorts only what the limit let through, in key order.
    fn sort_prefix(
        &self,
        range: &Range,
        revision: Revision,
        target: SortTarget,
    ) -> Result<(Vec<Pair>, bool), Failure> {
        let cut = Range {
            limit: range.limit.map(|limit| limit.saturating_add(1)),
            keys_only: false,
            ..range.clone()
        };
        let (mut kvs, _) = self.take(&cut, revision, Direction::Up)?;
        kvs.sort_by(|a, b| compare(target, a.fields(), b.fields()));
        Ok(cut_at(kvs, range))
    }

    /// The least pairs by some field, and whether there are more. Holds no more than it must return, and a slack.
    fn sort(
        &self,
        range: &Range,
        revision: Revision,
        target: SortTarget,
        order: SortOrder,
    ) -> Result<(Vec<Pair>, bool), Failure> {
        let with_value = target == SortTarget::Value;
        let keep = range.limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let by = |a: &(Place, Pair), b: &(Place, Pair)| match order {
            SortOrder::Ascending => compare(target, a.1.fields(), b.1.fields()),
            SortOrder::Descending => compare(target, b.1.fields(), a.1.fields()),
        };
        let mut all: Vec<(Place, Pair)> = Vec::new();
        let mut walk = Walk::new(range, revision, Direction::Up, !with_value);
        while let Some(chunk) = walk.next(self, CHUNK_KEYS)? {
            let places = chunk.places.clone();
            let kvs = places.into_iter().zip(self.load(chunk, !with_value)?);
            all.extend(kvs.filter(|(_, kv)| range.filter.lets_through_create(kv)));
            if all.len() > keep.saturating_mul(2).saturating_add(SORT_SLACK) {
                all.sort_by(by);
                all.truncate(keep);
            }
        }
        all.sort_by(by);
        all.truncate(keep);
        let kvs = if with_value || range.keys_only {
            all.into_iter().map(|(_, kv)| kv).collect()
        } else {
            self.load(
                Chunk {
                    places: all.into_iter().map(|(place, _)| place).collect(),
                    heads: Vec::new(),
                },
                false,
            )?
        };
        Ok(cut_at(kvs, range))
    }

    /// The pairs that were found, in their order; without values if `keys_only`. What is not in the cache is read in
    /// the order of the log, in one sweep where it stands close together.
    fn load(&self, chunk: Chunk, keys_only: bool) -> Result<Vec<Pair>, Failure> {
        let mut pairs = Vec::with_capacity(chunk.places.len());
        let mut missing = Vec::new();
        let mut heads = chunk.heads.into_iter();
        for (i, place) in chunk.places.into_iter().enumerate() {
            let head = heads.next().flatten().filter(|_| keys_only);
            pairs.push(head.or_else(|| self.cached(place)));
            if pairs[i].is_none() {
                missing.push((place, i));
            }
        }
        if !missing.is_empty() {
            missing.sort_unstable();
            self.read_all(&missing, &mut pairs)?;
        }
        let pairs = pairs.into_iter().map(|pair| pair.expect("what was missing has been read"));
        Ok(if keys_only {
            pairs.map(|pair| pair.without_value()).collect()
        } else {
            pairs.collect()
        })
    }

    /// Every live pair of a range at a revision, in key order; `f` may stop it. `heads`: values may be
    /// left out.
    pub(in crate::engine) fn for_each(
        &self,
        range: &KeyRange,
        revision: Revision,
        heads: bool,
        mut f: impl FnMut(Fields<'_>) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let range = Range::new(range.clone());
        let mut walk = Walk::new(&range, revision, Direction::Up, heads);
        while let Some(chunk) = walk.next(self, CHUNK_KEYS)? {
            for pair in self.load(chunk, heads)? {
                if f(pair.fields()).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A walk over the live keys of a range at a revision, those that the filter on mod revisions lets through. The index
/// is locked for a chunk of keys at a time only.
struct Walk<'a> {
    range: &'a Range,
    revision: Revision,
    way: Direction,
    /// Whether to say what the index knows of each key.
    heads: bool,
    /// Where the next chunk starts: at this key, or below it on the way down.
    bound: Option<Vec<u8>>,
    done: bool,
}

impl<'a> Walk<'a> {
    fn new(range: &'a Range, revision: Revision, way: Direction, heads: bool) -> Self {
        Self { range, revision, way, heads, bound: None, done: false }
    }

    /// The next keys, about `wanted` of them; fewer if many are passed over, `None` at the end.
    fn next(&mut self, reader: &Reader<'_>, wanted: usize) -> Result<Option<Chunk>, Error> {
        if self.done {
            return Ok(None);
        }
        let Self { range, revision, heads, .. } = *self;
        let (mut chunk, mut seen, mut next) = (Chunk::default(), 0, None);
        chunk.places.reserve(wanted.min(CHUNK_KEYS));
        let mut visit = |key: &[u8], history: &History| {
            if seen == CHUNK_KEYS || chunk.places.len() == wanted {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            seen += 1;
            if let Some(place) = live_at(history, revision)
                && range.filter.lets_through_mod(place.revision)
            {
                chunk.places.push(place);
                if heads {
                    chunk.heads.push(head_of(key, history, place));
                }
            }
            ControlFlow::Continue(())
        };
        match self.way {
            Direction::Up => {
                reader.index()?.index.visit(&range.range, self.bound.as_deref(), &mut visit);
            }
            Direction::Down => {
                reader.index()?.index.visit_back(&range.range, self.bound.as_deref(), &mut visit);
            }
        }
        match next {
            None => self.done = true,
            // The way down goes below its bound, but the key that ended this chunk is still to come.
            Some(mut key) if self.way == Direction::Down => {
                key.push(0);
                self.bound = Some(key);
            }
            Some(key) => self.bound = Some(key),
        }
        Ok(Some(chunk))
    }
}

/// Where the put stands that is current at a revision, if the key lives then.
fn live_at(history: &History, revision: Revision) -> Option<Place> {
    history.at(revision).filter(|version| !version.is_dead()).map(Version::place)
}

/// What the index knows of the put at `place`: everything but the value, if it is the newest of its key.
fn head_of(key: &[u8], history: &History, place: Place) -> Option<Pair> {
    let latest = history.latest();
    (latest.head.place() == place).then(|| {
        Pair::encode(&Fields {
            key,
            create_revision: latest.create_revision,
            mod_revision: place.revision,
            version: latest.version,
            value: &[],
            lease: latest.lease,
        })
    })
}

/// Which way to walk for an order, if that is the order of keys.
fn direction(range: &Range) -> Option<Direction> {
    match range.sort {
        None => Some(Direction::Up),
        Some(Sort { target: SortTarget::Key, order: Some(SortOrder::Descending) }) => {
            Some(Direction::Down)
        }
        Some(Sort { target: SortTarget::Key, .. }) => Some(Direction::Up),
        Some(_) => None,
    }
}

/// `keys_only` leaves out the leases, too (since etcd 3.7).
fn shown(range: &Range, mut reply: RangeReply) -> RangeReply {
    if range.keys_only {
        reply.kvs = reply.kvs.into_iter().map(Pair::without_lease).collect();
    }
    reply
}

fn cut_at(mut kvs: Vec<Pair>, range: &Range) -> (Vec<Pair>, bool) {
    let limit = range.limit.unwrap_or(usize::MAX);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        kvs = kvs.iter().map(Pair::without_value).collect();
    }
    (kvs, more)
}

fn compare(target: SortTarget, a: Fields<'_>, b: Fields<'_>) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::CreateRevision => a.create_revision.cmp(&b.create_revision),
        SortTarget::ModRevision => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(b.value),
    }
}

impl Filter {
    fn lets_through_mod(&self, revision: Revision) -> bool {
        within(self.min_mod_revision, revision, self.max_mod_revision)
    }

    fn lets_through_create(&self, pair: &Pair) -> bool {
        let (min, max) = (self.min_create_revision, self.max_create_revision);
        (min == 0 && max == 0) || within(min, pair.fields().create_revision, max)
    }
}

/// Inclusive bounds as etcd reads them: zero is none. A negative maximum lets nothing through.
fn within(min: i64, revision: Revision, max: i64) -> bool {
    let revision = revision.shown();
    (min == 0 || revision >= min) && (max == 0 || revision <= max)
}
