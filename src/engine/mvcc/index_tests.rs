use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::storage::schema::OriginIndex;
use crate::time::Timestamp;

/// The same index, as simple as can be: every version of every key.
type Model = BTreeMap<Vec<u8>, Vec<Version>>;

#[derive(Clone, Debug)]
enum Step {
    Put(u16),
    Delete(u16),
    /// Compacts at this fraction of the history, in slices of so many keys.
    Prune(u8, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..600_u16).prop_map(Step::Put),
        6 => (0..600_u16).prop_map(Step::Delete),
        1 => (any::<u8>(), 1..50_usize).prop_map(|(at, budget)| Step::Prune(at, budget)),
    ];
    prop::collection::vec(step, 0..1500)
}

fn key(k: u16) -> Vec<u8> {
    format!("key{k:03}").into_bytes()
}

fn latest(head: Version) -> Latest {
    let stamp = RowStamp { time: Timestamp(head.place().revision.0), origin: OriginIndex(0) };
    Latest { head, create_revision: head.place().revision, version: 1, lease: LeaseId::NONE, stamp }
}

fn write(index: &mut Index, model: &mut Model, key: &[u8], head: Version) {
    let alive =
        model.get(key).and_then(|versions| versions.last()).is_some_and(|last| !last.is_dead());
    if head.is_dead() && !alive {
        return;
    }
    index.write(key, |before| {
        assert_eq!(before.is_some_and(|latest| !latest.head.is_dead()), alive);
        Some(latest(head))
    });
    model.entry(key.to_vec()).or_default().push(head);
}

fn prune_model(model: &mut Model, floor: Revision) {
    model.retain(|_, versions| {
        let current = versions.iter().rposition(|version| version.place().revision <= floor);
        if let Some(current) = current {
            let dead = versions[current].is_dead() && versions[current].place().revision < floor;
            versions.drain(..current + usize::from(dead));
        }
        !versions.is_empty()
    });
}

fn check(index: &Index, model: &Model, revision: Revision) {
    let ranges = [
        KeyRange::all(),
        KeyRange::from_request("key1".into(), "key2".into()),
        KeyRange::from_request("key250".into(), Bytes::from_static(&[0])),
        KeyRange::single("key300".into()),
        KeyRange::from_request("key9".into(), "key1".into()),
    ];
    for range in ranges {
        let mut found = Vec::new();
        index.visit(&range, None, &mut |key, history| {
            found.push((key.to_vec(), history.at(revision)));
            ControlFlow::Continue(())
        });
        let expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| range.contains(key))
            .map(|(key, versions)| {
                let at = versions.iter().rfind(|version| version.place().revision <= revision);
                (key.clone(), at.copied())
            })
            .collect();
        assert_eq!(found, expected, "{range:?} at {revision}");
        let live = model.iter().filter(|(key, versions)| {
            range.contains(key) && versions.last().is_some_and(|last| !last.is_dead())
        });
        let sum = index.sum(&range);
        assert_eq!((sum.keys, sum.live), (expected.len() as u64, live.count() as u64), "{range:?}");

        let mut back = Vec::new();
        index.visit_back(&range, None, &mut |key, history| {
            back.push((key.to_vec(), history.at(revision)));
            ControlFlow::Continue(())
        });
        back.reverse();
        assert_eq!(back, expected, "backwards {range:?}");
    }
}

fn depth_is_even(node: &Node) -> usize {
    match node {
        Node::Leaf(entries) => {
            assert!(entries.len() <= LEAF_ENTRIES_MAX);
            1
        }
        Node::Inner(children) => {
            assert!(children.len() <= CHILDREN_MAX);
            let depths: Vec<_> =
                children.items().iter().map(|child| depth_is_even(&child.node)).collect();
            assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "{depths:?}");
            assert!(children.items().is_sorted_by(|a, b| a.low < b.low), "{children:?}");
            assert!(children.items().iter().all(|child| child.low <= child.node.low()));
            assert!(children.items().iter().all(|child| child.summary == child.node.summary()));
            depths[0] + 1
        }
    }
}

fn run(steps: Vec<Step>) {
    let (mut index, mut model) = (Index::new(), Model::new());
    let mut revision = Revision::FIRST;
    let mut compacted = Revision(0);
    for step in steps {
        match step {
            Step::Put(k) => {
                revision = revision.next();
                write(&mut index, &mut model, &key(k), Version::put(Place::first_of(revision), 10));
            }
            Step::Delete(k) => {
                let place = Place::first_of(revision.next());
                let before = model.values().map(Vec::len).sum::<usize>();
                write(&mut index, &mut model, &key(k), Version::tombstone(place, 5));
                if model.values().map(Vec::len).sum::<usize>() > before {
                    revision = revision.next();
                }
            }
            Step::Prune(at, budget) => {
                let floor = Revision(revision.0 * u64::from(at) / 255);
                compacted = compacted.max(floor);
                let kept = model.values().map(Vec::len).sum::<usize>();
                prune_model(&mut model, floor);
                let (mut freed, mut from) = (Vec::new(), None);
                loop {
                    from = index.prune(floor, from, budget, &mut freed, None);
                    if from.is_none() {
                        break;
                    }
                }
                assert_eq!(freed.len(), kept - model.values().map(Vec::len).sum::<usize>());
                depth_is_even(&index.root);
            }
        }
    }
    for at in [revision, compacted.max(Revision(revision.0 / 2)), compacted] {
        check(&index, &model, at);
    }
    depth_is_even(&index.root);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_as_its_model(steps in steps()) {
        run(steps);
    }
}

#[test]
fn keys_in_order_fill_their_leaves() {
    let mut index = Index::new();
    let mut model = Model::new();
    for k in 0..10_000_u64 {
        let head = Version::put(Place::first_of(Revision(k + 2)), 1);
        write(&mut index, &mut model, format!("key{k:06}").as_bytes(), head);
    }
    let Node::Inner(children) = &index.root else { panic!("10 000 keys in one leaf") };
    assert_eq!(index.summary().live, 10_000);
    let leaves = 10_000_usize.div_ceil(LEAF_ENTRIES_MAX);
    let grandchildren: usize = children.items().iter().map(|child| child.node.len()).sum();
    assert!(grandchildren <= leaves + 1, "{grandchildren} leaves for {leaves} full ones");
}

#[test]
fn a_tombstone_at_the_floor_stays_for_watchers() {
    let mut index = Index::new();
    let mut model = Model::new();
    write(&mut index, &mut model, b"k", Version::put(Place::first_of(Revision(2)), 1));
    write(&mut index, &mut model, b"k", Version::tombstone(Place::first_of(Revision(3)), 1));
    let mut freed = Vec::new();
    assert_eq!(index.prune(Revision(3), None, 10, &mut freed, None), None);
    assert_eq!(freed.len(), 1, "only the put goes");
    assert!(index.find(b"k").is_some());
    assert_eq!(index.prune(Revision(4), None, 10, &mut freed, None), None);
    assert!(index.find(b"k").is_none());
}

/// A node whose first child went away takes keys below the bound of what is its first child now; when it is joined with
/// its left neighbour, those keys must still be found.
#[test]
fn keys_before_a_first_child_survive_a_join() {
    const KEYS: u64 = 3 * (CHILDREN_MAX * LEAF_ENTRIES_MAX) as u64;
    let key = |k: u64| k.to_be_bytes();
    let put = |revision| Version::put(Place { revision: Revision(revision), n: 0 }, 1);
    let tombstone = |revision| Version::tombstone(Place { revision: Revision(revision), n: 0 }, 1);
    let mut index = Index::new();
    for k in 0..KEYS {
        index.write(&key(k), |_| Some(latest(put(1))));
    }
    let Node::Inner(children) = &index.root else { panic!("it is a leaf") };
    let Node::Inner(second) = &children.items()[1].node else { panic!("it is flat") };
    let (low, next) = (children.items()[1].low.clone(), second.items()[1].low.clone());
    let low = u64::from_be_bytes(low.as_ref().try_into().unwrap());
    let next = u64::from_be_bytes(next.as_ref().try_into().unwrap());
    let delete = |index: &mut Index, keys: std::ops::Range<u64>, revision| {
        for k in keys {
            index.write(&key(k), |_| Some(latest(tombstone(revision))));
        }
        index.prune(Revision(revision + 1), None, usize::MAX, &mut Vec::new(), None);
    };
    // The first leaf of the second node goes, a key that belonged there comes, and then both nodes shrink.
    delete(&mut index, low..next, 2);
    index.write(&key(low), |_| Some(latest(put(4))));
    delete(&mut index, 1..low, 5);
    delete(&mut index, next + 1..KEYS, 7);
    for k in [0, low, next] {
        assert!(index.find(&key(k)).is_some(), "{k} is lost");
    }
    assert_eq!(index.sum(&KeyRange::single(key(low).to_vec().into())).live, 1);
}

/// Keys that come before all others belong to the first child of each node, whose bound has to follow them: otherwise its
/// right half stands before it after a split, and keys are there twice or not at all.
#[test]
fn keys_in_any_order_are_found_and_counted() {
    const KEYS: u64 = 2 * (CHILDREN_MAX * LEAF_ENTRIES_MAX) as u64;
    let put = Version::put(Place { revision: Revision(1), n: 0 }, 1);
    let downwards = |i: u64| KEYS - 1 - i;
    let outwards = |i: u64| if i.is_multiple_of(2) { (KEYS + i) / 2 } else { (KEYS - 1 - i) / 2 };
    // An odd number of steps through a power of two comes to each key once.
    let scattered = |i: u64| i * 2_654_435_761 % KEYS;
    let orders: [&dyn Fn(u64) -> u64; 3] = [&downwards, &outwards, &scattered];
    for (number, order) in orders.iter().enumerate() {
        let mut index = Index::new();
        for i in 0..KEYS {
            index.write(&order(i).to_be_bytes(), |former| {
                assert!(former.is_none(), "{} comes twice in order {number}", order(i));
                Some(latest(put))
            });
        }
        depth_is_even(&index.root);
        for k in 0..KEYS {
            assert!(index.find(&k.to_be_bytes()).is_some(), "{k} is lost in order {number}");
        }
        for middle in [1, KEYS / 3, KEYS - 1] {
            let below = RangeEnd::Before(middle.to_be_bytes().to_vec().into());
            let range = KeyRange { start: Bytes::new(), end: below };
            assert_eq!(index.sum(&range).live, middle, "order {number}");
            let mut seen = 0;
            index.visit(&range, None, &mut |key, _| {
                assert_eq!(key, u64::to_be_bytes(seen), "order {number}");
                seen += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(seen, middle, "order {number}");
        }
    }
}
