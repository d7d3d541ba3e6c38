//! What peers are given, and what is asked of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compare_tests::{BROKEN, ME, OTHER, at, gossip};
use super::{Gossip, Input, Options, Output};
use crate::replication::entry::{Entry, Segment};
use crate::replication::message::{Head, Message, Segments};
use crate::replication::settled::Membership;
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

fn entry(seq: u64) -> Arc<Entry> {
    Arc::new(Entry { seq, time: Timestamp(seq), ops: Vec::new() })
}

fn sent(outputs: &[Output], to: MemberId) -> Vec<Segment> {
    let segments = outputs.iter().filter_map(|output| match output {
        Output::Send(peer, Message::Segments(Segments { segments, .. })) if *peer == to => {
            Some(segments.clone())
        }
        _ => None,
    });
    segments.flatten().collect()
}

fn pulled(outputs: &[Output]) -> Vec<Head> {
    let wants = outputs.iter().filter_map(|output| match output {
        Output::Send(_, Message::Pull { wants, .. }) => Some(wants.clone()),
        _ => None,
    });
    wants.flatten().collect()
}

/// An entry became durable without ever having been offered, and the one behind it is offered before that is known here: whoever
/// got the second alone would take it for both.
#[test]
fn what_is_offered_has_no_gaps() {
    let mut gossip = gossip(&[OTHER], Options::default());
    assert_eq!(gossip.heads().seq(ME), 1);
    let mut outputs = gossip.step(at(10), Input::Offered(vec![entry(3)]));
    let entries = [2, 3].map(|seq| (ME, entry(seq))).to_vec();
    outputs.extend(gossip.step(at(11), Input::Committed { entries, heads: Vec::new() }));
    outputs.extend(gossip.step(at(12), Input::Offered(vec![entry(4)])));
    let mut seqs = Vec::new();
    for segment in sent(&outputs, OTHER) {
        assert_eq!(segment.after, seqs.last().copied().unwrap_or(1), "{outputs:?}");
        seqs.extend(segment.entries.iter().map(|entry| entry.seq));
        assert_eq!(seqs.last(), Some(&segment.through), "{outputs:?}");
    }
    assert_eq!(seqs, [2, 3, 4], "{outputs:?}");
}

fn commit(gossip: &mut Gossip, millis: u64, seq: u64) -> Vec<u64> {
    let entries = vec![(ME, entry(seq))];
    let outputs = gossip.step(at(millis), Input::Committed { entries, heads: Vec::new() });
    seqs(&outputs)
}

fn seqs(outputs: &[Output]) -> Vec<u64> {
    let entries = sent(outputs, OTHER).into_iter().flat_map(|segment| segment.entries);
    entries.map(|entry| entry.seq).collect()
}

/// The first after a while goes at once, the others together; unless somebody comes to wait.
#[test]
fn what_nobody_waits_for_is_gathered() {
    let mut gossip = gossip(&[OTHER], Options::default());
    gossip.set_awaited(false);
    assert!(seqs(&gossip.step(at(100), Input::Offered(vec![entry(2)]))).is_empty());
    assert_eq!(commit(&mut gossip, 100, 2), [2], "nothing was sent for long");
    assert!(commit(&mut gossip, 101, 3).is_empty());
    let acknowledged = Message::Announce(vec![Head { origin: ME, seq: 2 }]);
    let outputs = gossip.step(at(102), Input::Receive(OTHER, acknowledged));
    assert!(seqs(&outputs).is_empty(), "{outputs:?}");
    assert!(commit(&mut gossip, 103, 4).is_empty());
    assert_eq!(gossip.wake_at(), 104);
    assert_eq!(seqs(&gossip.step(at(104), Input::Tick)), [3, 4]);
    assert!(gossip.wake_at() > 104, "there is nothing left");
    assert!(commit(&mut gossip, 105, 5).is_empty());
    gossip.set_awaited(true);
    let outputs = gossip.step(at(106), Input::Offered(vec![entry(6)]));
    assert_eq!(seqs(&outputs), [5, 6], "{outputs:?}");
    assert!(commit(&mut gossip, 106, 6).is_empty(), "it was sent");
}

/// A member has a new run, and of its former one nobody has said yet how far it goes: nothing of that would be taken, so nobody
/// is asked for it. Then somebody says so.
#[test]
fn what_would_not_be_taken_is_not_asked_for() {
    let mut gossip = gossip(&[BROKEN, OTHER], Options::default());
    let former = Origin { member: BROKEN, run: 1 };
    let missing = Head { origin: former, seq: 9 };
    let segment = Segment { origin: former, after: 8, through: 9, entries: vec![entry(9)] };
    let news = Segments {
        segments: vec![segment],
        collected: Timestamp(0),
        answers: false,
        has_holes: false,
        traces: Vec::new(),
        patient: false,
    };
    let outputs = gossip.step(at(10), Input::Receive(OTHER, Message::Segments(news.clone())));
    let asked = Head { seq: 0, ..missing };
    assert_eq!(pulled(&outputs), [asked], "it is missing");

    let members = [ME.member, BROKEN, OTHER].map(|member| (member, Timestamp(1)));
    let runs = [(ME.member, 1), (BROKEN, 2), (OTHER, 1)].map(|(it, run)| (it, (run, Timestamp(9))));
    let ended = Membership::new(members.into(), runs.into());
    let mut outputs = gossip.step(at(11), Input::Membership(ended.clone().into()));
    for millis in 12..2000 {
        outputs.extend(gossip.step(at(millis), Input::Tick));
    }
    assert_eq!(pulled(&outputs), []);

    let mut sealed = ended;
    sealed.seals = BTreeMap::from([(former, (9, Timestamp(10)))]);
    gossip.step(at(2000), Input::Membership(sealed.into()));
    let outputs = gossip.step(at(2001), Input::Receive(OTHER, Message::Segments(news)));
    assert_eq!(pulled(&outputs), [asked]);
}

/// Ten thousand simulated members took more than 22 GB: each had something on record about all others as soon as it promised.
#[test]
fn only_those_are_on_record_with_whom_there_was_something() {
    let others: Vec<_> = (100..1100).map(MemberId).collect();
    let mut gossip = gossip(&others, Options::default());
    for millis in 1..20 {
        let promised = Input::Promised { time: Timestamp(millis), seq: 1, is_log_long: true };
        gossip.step(at(millis), promised);
    }
    assert!(gossip.peers.len() < 100, "{} peers", gossip.peers.len());
    assert!(gossip.dead_since.is_empty());
    gossip.step(at(20), Input::Live(others[1..].to_vec()));
    gossip.step(at(30), Input::Promised { time: Timestamp(30), seq: 1, is_log_long: false });
    assert_eq!(gossip.dead_since, BTreeMap::from([(others[0], 30)]));
    gossip.step(at(40), Input::Live(others));
    gossip.step(at(50), Input::Promised { time: Timestamp(50), seq: 1, is_log_long: false });
    assert!(gossip.dead_since.is_empty());
}
