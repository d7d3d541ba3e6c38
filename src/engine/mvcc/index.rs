//! The index: every key that has a history, and where in the log each of its versions stands.
//!
//! A B+tree in memory, rebuilt from the log at start. Values stay on disk. Each inner node keeps a
//! [`Summary`] per child, so that the live keys of any range are counted in O(log n), and a walk over what
//! compaction can free skips every subtree that has nothing to give.
//!
//! Invariants
//! * Keys are in order, each once; every leaf but a lone root has at least one entry.
//! * The versions of a key are in revision order, and a tombstone never follows a tombstone.
//! * The summary of a child is the sum over its entries.

use std::ops::ControlFlow;

use super::sorted::{Keyed, Sorted};
use crate::engine::graves::Grave;
use crate::storage::schema::{Place, RowStamp};
use crate::time::Timestamp;
use crate::types::{KeyRange, LeaseId, RangeEnd, Revision};

/// The entries of a leaf at most. 64 entries are 4 KiB: an insertion moves 2 KiB on average.
const LEAF_ENTRIES_MAX: usize = 64;
/// The children of an inner node at most.
const CHILDREN_MAX: usize = 64;
/// Set in [`Version::tag`] for a tombstone; the rest is the size.
const DEAD: u32 = 1 << 31;

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Version {
    revision: Revision,
    n: u32,
    tag: u32,
}

impl Version {
    /// A put of a row of `size` bytes.
    pub(super) fn put(place: Place, size: u32) -> Self {
        assert!(size < DEAD, "a row of {size} bytes");
        Self { revision: place.revision, n: place.n, tag: size }
    }

    /// A tombstone of a row of `size` bytes.
    pub(super) fn tombstone(place: Place, size: u32) -> Self {
        assert!(size < DEAD, "a row of {size} bytes");
        Self { revision: place.revision, n: place.n, tag: size | DEAD }
    }

    /// Where its row stands.
    pub(in crate::engine) fn place(self) -> Place {
        Place { revision: self.revision, n: self.n }
    }

    /// The bytes of its row.
    pub(super) fn size(self) -> u32 {
        self.tag & !DEAD
    }

    /// Whether it is a tombstone.
    pub(super) fn is_dead(self) -> bool {
        self.tag & DEAD != 0
    }
}

/// What the index knows of the newest version of a key beyond its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Latest {
    /// Where it stands. A tombstone leaves nothing else that matters.
    pub(in crate::engine) head: Version,
    /// When the key came into being.
    pub(in crate::engine) create_revision: Revision,
    /// How many puts since. Of a tombstone, the time of its entry.
    pub(in crate::engine) version: u64,
    /// Its lease.
    pub(in crate::engine) lease: LeaseId,
    /// The stamp of the put, for deletes to name what they saw; of a tombstone, what it has seen.
    pub(in crate::engine) stamp: RowStamp,
}

impl Latest {
    /// A tombstone of an entry of some time, which has seen a put.
    pub(super) fn tombstone(head: Version, seen: RowStamp, time: Timestamp) -> Self {
        let none = LeaseId::NONE;
        Self { head, create_revision: Revision(0), version: time.0, lease: none, stamp: seen }
    }

    /// The grave of a tombstone that leaves the index.
    fn grave(&self) -> Grave {
        let (seen, time, place) = (self.stamp, Timestamp(self.version), self.head.place());
        Grave { seen, time, place, hidden: false }
    }
}

/// Every version of a key that is still kept.
#[derive(Clone, Debug)]
pub(super) struct History {
    latest: Latest,
    /// Older versions, oldest first. Boxed: most keys have none.
    #[expect(clippy::box_collection, reason = "one word for the many keys that have no history")]
    older: Option<Box<Vec<Version>>>,
}

impl History {
    fn new(latest: Latest) -> Self {
        Self { latest, older: None }
    }

    /// The newest version.
    pub(super) fn latest(&self) -> &Latest {
        &self.latest
    }

    /// The newest version if the key lives.
    pub(super) fn alive(&self) -> Option<&Latest> {
        (!self.latest.head.is_dead()).then_some(&self.latest)
    }

    /// The version that is current at `revision`, a tombstone too.
    pub(super) fn at(&self, revision: Revision) -> Option<Version> {
        if self.latest.head.revision <= revision {
            return Some(self.latest.head);
        }
        let older = self.older.as_deref()?;
        let newer = older.partition_point(|version| version.revision <= revision);
        newer.checked_sub(1).map(|i| older[i])
    }

    /// The versions up to `revision`, newest first, tombstones too.
    pub(super) fn down_from(&self, revision: Revision) -> impl Iterator<Item = Version> {
        let older = self.older.as_deref().into_iter().flatten().rev();
        let all = std::iter::once(&self.latest.head).chain(older).copied();
        all.skip_while(move |version| version.revision > revision)
    }

    /// Whether the version at `place` is still kept.
    pub(super) fn holds(&self, place: Place) -> bool {
        let older = || {
            self.older
                .as_deref()
                .is_some_and(|older| older.binary_search_by_key(&place, |v| v.place()).is_ok())
        };
        self.latest.head.place() == place || older()
    }

    /// Shows its revisions under another tag.
    fn retag(&mut self, tag: u16) {
        let latest = &mut self.latest;
        // A tombstone has none.
        if !latest.head.is_dead() {
            latest.create_revision = latest.create_revision.with_tag(tag);
        }
        let older = self.older.as_deref_mut().into_iter().flatten();
        for version in older.chain([&mut latest.head]) {
            version.revision = version.revision.with_tag(tag);
        }
    }

    fn push(&mut self, latest: Latest) {
        let before = std::mem::replace(&mut self.latest, latest);
        assert!(before.head.place() < latest.head.place(), "{before:?} then {latest:?}");
        self.older.get_or_insert_default().push(before.head);
    }

    /// Whether compaction may find something to free here, now or later.
    fn is_stale(&self) -> bool {
        self.older.is_some() || self.latest.head.is_dead()
    }

    fn summary(&self) -> Summary {
        Summary {
            keys: 1,
            live: u64::from(!self.latest.head.is_dead()),
            stale: u64::from(self.is_stale()),
        }
    }

    /// Gives up what nobody can read or watch once `floor` is compacted: every version before the one that is
    /// current at `floor`, and that one too if it is a tombstone, unless it was made at `floor` itself, where a
    /// watch may still start. Answers whether nothing is left.
    fn prune(&mut self, floor: Revision, freed: &mut Vec<Version>) -> bool {
        if let Some(older) = self.older.as_deref_mut() {
            let mut keep = older.partition_point(|version| version.revision <= floor);
            if self.latest.head.revision > floor && keep > 0 {
                let current = older[keep - 1];
                if !current.is_dead() || current.revision == floor {
                    keep -= 1;
                }
            }
            freed.extend(older.drain(..keep));
            if older.is_empty() {
                self.older = None;
            } else {
                older.shrink_to(older.len() * 2);
            }
        }
        let gone =
            self.older.is_none() && self.latest.head.is_dead() && self.latest.head.revision < floor;
        if gone {
            freed.push(self.latest.head);
        }
        gone
    }
}

/// Sums over a subtree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Keys with any history.
    pub(super) keys: u64,
    /// Keys that live now.
    pub(super) live: u64,
    /// Keys where compaction may find something.
    pub(super) stale: u64,
}

impl Summary {
    fn add(&mut self, other: Self) {
        self.keys += other.keys;
        self.live += other.live;
        self.stale += other.stale;
    }

    fn replace(&mut self, before: Self, after: Self) {
        self.keys = self.keys + after.keys - before.keys;
        self.live = self.live + after.live - before.live;
        self.stale = self.stale + after.stale - before.stale;
    }
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    history: History,
}

impl Keyed for Entry {
    fn key(&self) -> &[u8] {
        &self.key
    }
}

#[derive(Debug)]
struct Child {
    /// No key below this one is in the child. The bound of a first child goes down with the keys that are put there.
    low: Box<[u8]>,
    summary: Summary,
    node: Node,
}

impl Keyed for Child {
    fn key(&self) -> &[u8] {
        &self.low
    }
}

#[derive(Debug)]
enum Node {
    Leaf(Sorted<Entry>),
    Inner(Sorted<Child>),
}

/// The right half of a node that grew too large.
struct Split {
    low: Box<[u8]>,
    node: Node,
}

impl Split {
    fn of(node: Node) -> Self {
        Self { low: node.low(), node }
    }
}

/// A walk's verdict on whether to go on.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &History) -> ControlFlow<()>;

impl Node {
    fn leaf(entries: Vec<Entry>) -> Self {
        Self::Leaf(Sorted::new(entries))
    }

    fn summary(&self) -> Summary {
        let mut sum = Summary::default();
        match self {
            Self::Leaf(entries) => {
                entries.items().iter().for_each(|entry| sum.add(entry.history.summary()));
            }
            Self::Inner(children) => {
                children.items().iter().for_each(|child| sum.add(child.summary));
            }
        }
        sum
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.len() == 0,
            Self::Inner(children) => children.items().iter().all(|child| child.node.is_empty()),
        }
    }

    /// The first key, or a bound of it.
    fn low(&self) -> Box<[u8]> {
        match self {
            Self::Leaf(entries) => entries.items().first().map(|entry| entry.key.clone()),
            Self::Inner(children) => children.items().first().map(|child| child.low.clone()),
        }
        .unwrap_or_default()
    }

    fn find(&self, key: &[u8]) -> Option<&History> {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(entries) => return entries.find(key).map(|entry| &entry.history),
                Self::Inner(children) => node = &children.items()[child_of(children, key)].node,
            }
        }
    }

    /// Writes one key; answers what was there and is there now, for the sums above, and a split if it came to one.
    fn write<F>(&mut self, key: &[u8], change: F) -> ([Summary; 2], Option<Split>)
    where
        F: FnOnce(Option<&Latest>) -> Option<Latest>,
    {
        match self {
            Self::Leaf(entries) => write_leaf(entries, key, change),
            Self::Inner(children) => {
                let i = child_of(children, key);
                if i == 0 && key < children.items()[0].low.as_ref() {
                    // Its right half, once it splits, must not come before it.
                    children.change(|children| children[0].low = key.into());
                }
                let child = &mut children.items_mut()[i];
                let ([before, after], split) = child.node.write(key, change);
                child.summary.replace(before, after);
                let split = split.and_then(|split| adopt(children, i, split));
                ([before, after], split)
            }
        }
    }

    /// Walks from `low` on; from the first key on if that is not in this node.
    fn visit(&self, low: Option<&[u8]>, range: &KeyRange, f: Visit<'_>) -> ControlFlow<()> {
        match self {
            Self::Leaf(entries) => {
                let first = low.map_or(0, |low| entries.below(low));
                let entries = &entries.items()[first..];
                let within = within(entries, range);
                for entry in within {
                    f(&entry.key, &entry.history)?;
                }
                if within.len() < entries.len() {
                    return ControlFlow::Break(());
                }
            }
            Self::Inner(children) => {
                let first = low.map_or(0, |low| child_of(children, low));
                let mut low = low;
                for child in &children.items()[first..] {
                    child.node.visit(low.take(), range, f)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// As `visit`, from the greatest key below `high` (none: no bound) down.
    fn visit_back(&self, high: Option<&[u8]>, range: &KeyRange, f: Visit<'_>) -> ControlFlow<()> {
        match self {
            Self::Leaf(entries) => {
                let end = high.map_or(entries.len(), |high| entries.below(high));
                for entry in entries.items()[..end].iter().rev() {
                    if entry.key.as_ref() < range.start.as_ref() {
                        return ControlFlow::Break(());
                    }
                    f(&entry.key, &entry.history)?;
                }
            }
            Self::Inner(children) => {
                let end = high.map_or(children.len(), |high| child_of(children, high) + 1);
                for child in children.items()[..end].iter().rev() {
                    child.node.visit_back(high, range, f)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The sums over the keys below `bound`.
    fn below(&self, bound: &[u8]) -> Summary {
        let mut sum = Summary::default();
        match self {
            Self::Leaf(entries) => {
                let end = entries.below(bound);
                entries.items()[..end].iter().for_each(|entry| sum.add(entry.history.summary()));
            }
            Self::Inner(children) => {
                let i = child_of(children, bound);
                children.items()[..i].iter().for_each(|child| sum.add(child.summary));
                sum.add(children.items()[i].node.below(bound));
            }
        }
        sum
    }

    fn retag(&mut self, tag: u16) {
        match self {
            Self::Leaf(entries) => {
                entries.items_mut().iter_mut().for_each(|entry| entry.history.retag(tag));
            }
            Self::Inner(children) => {
                children.items_mut().iter_mut().for_each(|child| child.node.retag(tag));
            }
        }
    }

    /// Prunes from `walk.from` on, as far as the budget goes.
    fn prune(&mut self, walk: &mut PruneWalk<'_>) {
        match self {
            Self::Leaf(entries) => prune_leaf(entries, walk),
            Self::Inner(children) => {
                let first = walk.from.as_deref().map_or(0, |from| child_of(children, from));
                for child in &mut children.items_mut()[first..] {
                    if walk.is_over() {
                        break;
                    }
                    if child.summary.stale > 0 {
                        child.node.prune(walk);
                        child.summary = child.node.summary();
                    }
                }
                if children.items().iter().any(|child| child.node.len() <= LEAF_ENTRIES_MAX / 4) {
                    children.change(merge_small);
                }
            }
        }
    }
}

/// Keys that have left the index, and what is left of them.
pub(super) type Buried = Vec<(Box<[u8]>, Grave)>;

/// One slice of a walk that frees versions.
struct PruneWalk<'a> {
    floor: Revision,
    /// The first key to look at.
    from: Option<Box<[u8]>>,
    /// How many more stale keys to look at.
    budget: usize,
    /// Where the next slice starts, once the budget is used up.
    resume: Option<Box<[u8]>>,
    freed: &'a mut Vec<Version>,
    /// The tombstones of keys of which nothing is left, if anybody wants to know.
    buried: Option<&'a mut Buried>,
}

impl PruneWalk<'_> {
    fn is_over(&self) -> bool {
        self.resume.is_some()
    }
}

fn write_leaf<F>(
    entries: &mut Sorted<Entry>,
    key: &[u8],
    change: F,
) -> ([Summary; 2], Option<Split>)
where
    F: FnOnce(Option<&Latest>) -> Option<Latest>,
{
    match entries.search(key) {
        Ok(i) => {
            let history = &mut entries.items_mut()[i].history;
            let before = history.summary();
            if let Some(latest) = change(Some(history.latest())) {
                history.push(latest);
            }
            ([before, history.summary()], None)
        }
        Err(i) => {
            let Some(latest) = change(None) else { return ([Summary::default(); 2], None) };
            let history = History::new(latest);
            let after = history.summary();
            entries.insert(i, Entry { key: key.into(), history });
            let split = (entries.len() > LEAF_ENTRIES_MAX).then(|| {
                let at = split_point(i, entries.len());
                Split::of(Node::Leaf(entries.split_off(at, LEAF_ENTRIES_MAX + 1)))
            });
            ([Summary::default(), after], split)
        }
    }
}

/// Takes the right half of a split child in; splits in turn if that is one too many.
fn adopt(children: &mut Sorted<Child>, i: usize, split: Split) -> Option<Split> {
    let summary = split.node.summary();
    let left = &mut children.items_mut()[i].summary;
    left.replace(summary, Summary::default());
    children.insert(i + 1, Child { low: split.low, summary, node: split.node });
    (children.len() > CHILDREN_MAX).then(|| {
        let at = split_point(i + 1, children.len());
        Split::of(Node::Inner(children.split_off(at, CHILDREN_MAX + 1)))
    })
}

/// Where to cut a full node whose newest item is `i`. Keys that arrive in order fill their nodes: behind an
/// append the left half stays full.
fn split_point(i: usize, len: usize) -> usize {
    if i + 1 == len { len - 1 } else { len / 2 }
}

/// The first of some entries, none of which is before the range, as far as they are in it.
fn within<'a>(entries: &'a [Entry], range: &KeyRange) -> &'a [Entry] {
    let is_within = |entry: &Entry| range.contains(&entry.key);
    // Most leaves of a long walk are in it as a whole.
    let all = entries.last().is_none_or(is_within);
    let end = if all { entries.len() } else { entries.partition_point(is_within) };
    &entries[..end]
}

/// The child that a key belongs to: the last that does not start behind it, or the first.
fn child_of(children: &Sorted<Child>, key: &[u8]) -> usize {
    match children.search(key) {
        Ok(i) => i,
        Err(i) => i.saturating_sub(1),
    }
}

fn prune_leaf(entries: &mut Sorted<Entry>, walk: &mut PruneWalk<'_>) {
    let first = walk.from.as_deref().map_or(0, |from| entries.below(from));
    let mut gone = Vec::new();
    for (i, entry) in entries.items_mut().iter_mut().enumerate().skip(first) {
        if !entry.history.is_stale() {
            continue;
        }
        if walk.budget == 0 {
            walk.resume = Some(entry.key.clone());
            break;
        }
        walk.budget -= 1;
        if entry.history.prune(walk.floor, walk.freed) {
            gone.push(i);
        }
    }
    if !gone.is_empty() {
        entries.change(|entries| {
            for i in gone.iter().rev() {
                let Entry { key, history } = entries.remove(*i);
                if let Some(buried) = &mut walk.buried {
                    buried.push((key, history.latest.grave()));
                }
            }
        });
    }
}

/// Joins neighbours that became small, and drops those that became empty.
fn merge_small(children: &mut Vec<Child>) {
    let mut i = 0;
    while i < children.len() {
        if children[i].node.is_empty() && children.len() > 1 {
            children.remove(i);
        } else if i > 0
            && children[i - 1].node.len() + children[i].node.len() <= LEAF_ENTRIES_MAX / 2
        {
            let right = children.remove(i);
            let left = &mut children[i - 1];
            left.summary.add(right.summary);
            match (&mut left.node, right.node) {
                (Node::Leaf(left), Node::Leaf(right)) => {
                    left.change(|entries| entries.extend(right.into_items()));
                }
                (Node::Inner(left), Node::Inner(right)) => {
                    left.change(|children| children.extend(right.into_items()));
                }
                _ => unreachable!("siblings are of one height"),
            }
        } else {
            i += 1;
        }
    }
}

/// The index of one member.
#[derive(Debug)]
pub(super) struct Index {
    root: Node,
    summary: Summary,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { root: Node::leaf(Vec::new()), summary: Summary::default() }
    }

    /// The sums over all keys.
    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    /// The history of a key. O(log n).
    pub(super) fn find(&self, key: &[u8]) -> Option<&History> {
        self.root.find(key)
    }

    /// Adds a version to a key: `change` gets the newest one there is and says what follows it, if anything. O(log n).
    pub(super) fn write<F>(&mut self, key: &[u8], change: F)
    where
        F: FnOnce(Option<&Latest>) -> Option<Latest>,
    {
        let ([before, after], split) = self.root.write(key, change);
        self.summary.replace(before, after);
        if let Some(Split { low, node }) = split {
            let left = std::mem::replace(&mut self.root, Node::leaf(Vec::new()));
            let children = [(left.low(), left), (low, node)];
            let children = children.map(|(low, node)| Child { low, summary: node.summary(), node });
            self.root = Node::Inner(Sorted::new(Vec::from(children)));
        }
    }

    /// Walks the keys of a range in order, starting at `from` where given, until told to stop.
    pub(super) fn visit(&self, range: &KeyRange, from: Option<&[u8]>, f: Visit<'_>) {
        let _ = self.root.visit(Some(from.unwrap_or(&range.start)), range, f);
    }

    /// Walks the keys of a range backwards, starting below `high` where given, until told to stop.
    pub(super) fn visit_back(&self, range: &KeyRange, high: Option<&[u8]>, f: Visit<'_>) {
        let single = [&range.start, &[0][..]].concat();
        let end = match &range.end {
            RangeEnd::Single => Some(single.as_slice()),
            RangeEnd::Before(end) => Some(end.as_ref()),
            RangeEnd::Unbounded => None,
        };
        let _ = self.root.visit_back(high.or(end), range, f);
    }

    /// The sums over a range. O(log n).
    pub(super) fn sum(&self, range: &KeyRange) -> Summary {
        let mut sum = match &range.end {
            RangeEnd::Single => {
                return self.find(&range.start).map_or_else(Summary::default, History::summary);
            }
            RangeEnd::Before(_) if range.is_empty() => return Summary::default(),
            RangeEnd::Before(end) => self.root.below(end),
            RangeEnd::Unbounded => self.summary,
        };
        sum.replace(self.root.below(&range.start), Summary::default());
        sum
    }

    /// Shows all revisions under another tag. O(n).
    pub(super) fn retag(&mut self, tag: u16) {
        self.root.retag(tag);
    }

    /// Frees what compaction at `floor` gives up, looking at no more than `budget` keys from `from` on.
    /// Answers where to go on, or `None` when all is done.
    pub(super) fn prune(
        &mut self,
        floor: Revision,
        from: Option<Box<[u8]>>,
        budget: usize,
        freed: &mut Vec<Version>,
        buried: Option<&mut Buried>,
    ) -> Option<Box<[u8]>> {
        let mut walk = PruneWalk { floor, from, budget, resume: None, freed, buried };
        self.root.prune(&mut walk);
        let resume = walk.resume;
        self.summary = self.root.summary();
        while let Node::Inner(children) = &mut self.root
            && children.len() == 1
        {
            let mut only = None;
            children.change(|children| only = children.pop());
            self.root = only.expect("there is one child").node;
        }
        resume
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
