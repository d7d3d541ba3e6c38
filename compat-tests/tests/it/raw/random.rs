//! Combinations of options that nobody thinks of: requests from dice that always fall the same.
//!
//! Every answer is compared, so the two servers take the same way as long as they agree.

use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::compare::TargetUnion;
use starling_proto::etcdserverpb::request_op::Request;

use super::case::{Case, FROM_KEY, all, bytes, delete, get, put, range, watch};
use super::cases;

const KEYS: [&str; 7] = ["a", "a\0", "aa", "b", "ba", "c", "\u{e9}"];
/// Ends of ranges, beside the keys.
const ENDS: [&str; 5] = ["", "\0", "b\0", "z", "0"];
const LEASES: [i64; 2] = [9901, 9902];

const HISTORY: usize = 40;
const RANGES: usize = 400;
const WATCHES: usize = 50;
const TXNS: usize = 300;
/// How deep transactions are nested.
const DEPTH: u32 = 2;

#[test]
fn random_requests_get_the_answers_of_etcd() {
    super::compare(cases![
        random_ranges
        random_ranges_after_a_compaction
        random_txns
        random_watches
    ]);
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = u32::try_from(self.0 >> 32).unwrap_or_default();
        high % sides
    }

    /// True once in `sides` throws.
    fn once_in(&mut self, sides: u32) -> bool {
        self.roll(sides) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        let sides = u32::try_from(choices.len()).expect("there are few choices");
        let index = usize::try_from(self.roll(sides)).expect("an index is small");
        choices.get(index).copied().expect("a roll is below the number of sides")
    }

    fn number(&mut self, least: i64, most: i64) -> i64 {
        let sides = u32::try_from(most - least + 1).expect("a small range");
        least + i64::from(self.roll(sides))
    }

    fn end(&mut self) -> &'static str {
        if self.once_in(2) { self.of(&KEYS) } else { self.of(&ENDS) }
    }
}

/// Single puts and deletes: no two keys were created or changed at one revision, and no two values are equal,
/// so that an order by them is one.
async fn history(case: &mut Case, dice: &mut Dice) {
    for number in 0..HISTORY {
        let key = dice.of(&KEYS);
        if dice.once_in(5) {
            case.delete("delete", delete(key, "")).await;
        } else {
            case.put("put", put(key, format!("{}{number}", dice.roll(10)))).await;
        }
    }
}

async fn random_ranges(case: &mut Case) {
    let mut dice = Dice(1);
    history(case, &mut dice).await;
    ranges(case, &mut dice, HISTORY_REVISIONS).await;
}

async fn random_ranges_after_a_compaction(case: &mut Case) {
    let mut dice = Dice(2);
    history(case, &mut dice).await;
    case.compact("compact", case.revision(HISTORY_REVISIONS / 2), true).await;
    ranges(case, &mut dice, HISTORY_REVISIONS).await;
}

/// About as many as there are revisions: some deletes find nothing.
const HISTORY_REVISIONS: i64 = 36;

async fn ranges(case: &mut Case, dice: &mut Dice, revisions: i64) {
    for number in 0..RANGES {
        let request = random_range(case, dice, revisions);
        case.range(&format!("{number}: {request:?}"), request).await;
    }
}

fn random_range(case: &Case, dice: &mut Dice, revisions: i64) -> pb::RangeRequest {
    let mut revision = |sides: u32| {
        let is_set = dice.once_in(sides);
        let relative = dice.number(-1, revisions + 1);
        if is_set { case.revision(relative) } else { 0 }
    };
    let bounds = [revision(3), revision(6), revision(6), revision(6), revision(6)];
    let [at, min_mod_revision, max_mod_revision, min_create_revision, max_create_revision] = bounds;
    pb::RangeRequest {
        key: bytes(dice.of(&KEYS)),
        range_end: bytes(if dice.once_in(4) { "" } else { dice.end() }),
        limit: if dice.once_in(2) { dice.number(-1, 4) } else { 0 },
        revision: at,
        sort_order: dice.number(0, 2).try_into().unwrap_or_default(),
        // Not by version (1): those tie, and etcd's sort is not stable.
        sort_target: dice.of(&[0, 0, 2, 3, 4]),
        serializable: dice.once_in(3),
        keys_only: dice.once_in(4),
        count_only: dice.once_in(6),
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    }
}

/// Transactions of all there is, and what is there after each; then all that has happened, as a watch tells it.
async fn random_txns(case: &mut Case) {
    let mut dice = Dice(3);
    for lease in LEASES {
        case.grant("grant", lease, 600).await;
    }
    for number in 0..TXNS {
        let request = random_txn(case, &mut dice, DEPTH);
        case.txn(&format!("{number}: {request:?}"), request).await;
        case.all("after it").await;
        if dice.once_in(25) {
            let revision = case.revision(i64::try_from(number).unwrap_or_default() / 4);
            case.compact("compact", revision, true).await;
        }
    }
    for lease in LEASES {
        case.time_to_live("keys of a lease", lease, true).await;
    }
    what_happened(case).await;
    for lease in LEASES {
        case.revoke("revoke", lease).await;
    }
    case.all("what no lease has").await;
}

/// From the revision where nothing is compacted any more.
async fn what_happened(case: &mut Case) {
    let mut stream = case.watch();
    let request = pb::WatchCreateRequest {
        start_revision: case.revision(i64::try_from(TXNS / 4).unwrap_or_default()),
        prev_kv: true,
        ..watch(FROM_KEY, FROM_KEY)
    };
    stream.create(request).await;
    case.items("created, and events", &mut stream, 1 + EVENTS).await;
}

/// Fewer than there are.
const EVENTS: usize = 60;

/// Watches of what has happened, until each has caught up.
async fn random_watches(case: &mut Case) {
    let mut dice = Dice(4);
    history(case, &mut dice).await;
    for number in 0..HISTORY {
        let request = random_txn(case, &mut dice, DEPTH);
        case.txn(&format!("{number}: {request:?}"), request).await;
    }
    case.compact("compact", case.revision(HISTORY_REVISIONS / 3), true).await;
    for number in 0..WATCHES {
        let request = random_watch(case, &mut dice);
        let label = format!("{number}: {request:?}");
        let mut stream = case.watch();
        stream.create(request).await;
        case.history(&label, &mut stream).await;
    }
}

fn random_watch(case: &Case, dice: &mut Dice) -> pb::WatchCreateRequest {
    let is_negative = dice.once_in(20);
    let start = dice.number(1, HISTORY_REVISIONS);
    pb::WatchCreateRequest {
        start_revision: if is_negative { -start } else { case.revision(start) },
        progress_notify: dice.once_in(2),
        filters: match dice.roll(6) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            _ => Vec::new(),
        },
        prev_kv: dice.once_in(2),
        watch_id: dice.number(0, 3),
        fragment: dice.once_in(2),
        ..watch(dice.of(&KEYS), if dice.once_in(4) { "" } else { dice.end() })
    }
}

fn random_txn(case: &Case, dice: &mut Dice, depth: u32) -> pb::TxnRequest {
    let compares = dice.roll(3);
    let (success, failure) = (dice.roll(4), dice.roll(3));
    pb::TxnRequest {
        compare: (0..compares).map(|_| random_compare(case, dice)).collect(),
        success: (0..success).map(|_| random_op(case, dice, depth)).collect(),
        failure: (0..failure).map(|_| random_op(case, dice, depth)).collect(),
    }
}

fn random_compare(case: &Case, dice: &mut Dice) -> pb::Compare {
    let revision = case.revision(dice.number(0, 40));
    let union = match dice.roll(6) {
        0 => Some(TargetUnion::Version(dice.number(0, 3))),
        1 => Some(TargetUnion::CreateRevision(revision)),
        2 => Some(TargetUnion::ModRevision(revision)),
        3 => Some(TargetUnion::Value(bytes(dice.number(0, 9).to_string()))),
        4 => Some(TargetUnion::Lease(dice.of(&LEASES))),
        _ => None,
    };
    let target = match (&union, dice.roll(10)) {
        (None, _) | (_, 0) => dice.number(0, 4).try_into().unwrap_or_default(),
        (Some(TargetUnion::Version(_)), _) => 0,
        (Some(TargetUnion::CreateRevision(_)), _) => 1,
        (Some(TargetUnion::ModRevision(_)), _) => 2,
        (Some(TargetUnion::Value(_)), _) => 3,
        (Some(TargetUnion::Lease(_)), _) => 4,
    };
    pb::Compare {
        result: dice.number(0, 3).try_into().unwrap_or_default(),
        target,
        key: bytes(dice.of(&KEYS)),
        range_end: bytes(if dice.once_in(3) { dice.end() } else { "" }),
        target_union: union,
    }
}

fn random_op(case: &Case, dice: &mut Dice, depth: u32) -> pb::RequestOp {
    let request = match dice.roll(if depth > 0 { 9 } else { 8 }) {
        0..4 => Some(Request::RequestPut(random_put(dice))),
        4..6 => Some(Request::RequestRange(random_read(case, dice))),
        6 => Some(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            prev_kv: dice.once_in(2),
            ..delete(dice.of(&KEYS), if dice.once_in(2) { "" } else { dice.end() })
        })),
        8 => Some(Request::RequestTxn(random_txn(case, dice, depth - 1))),
        _ if dice.once_in(40) => None,
        _ => Some(Request::RequestRange(all())),
    };
    pb::RequestOp { request }
}

fn random_put(dice: &mut Dice) -> pb::PutRequest {
    let ignore_value = dice.once_in(8);
    let value = if ignore_value { String::new() } else { dice.number(0, 9).to_string() };
    let ignore_lease = dice.once_in(8);
    pb::PutRequest {
        lease: if !ignore_lease && dice.once_in(4) { dice.of(&LEASES) } else { 0 },
        prev_kv: dice.once_in(3),
        ignore_value,
        ignore_lease,
        ..put(dice.of(&KEYS), value)
    }
}

/// In the order of keys, since those of one transaction tie in all else, and not of keys only, where etcd 3.7 leaves
/// out the lease (`differences.rs`).
fn random_read(case: &Case, dice: &mut Dice) -> pb::RangeRequest {
    let bounds =
        if dice.once_in(3) { get(dice.of(&KEYS)) } else { range(dice.of(&KEYS), dice.end()) };
    let relative = dice.number(-1, 60);
    pb::RangeRequest {
        limit: dice.number(0, 3),
        revision: if dice.once_in(10) { case.revision(relative) } else { 0 },
        sort_order: dice.number(0, 2).try_into().unwrap_or_default(),
        count_only: dice.once_in(8),
        ..bounds
    }
}
