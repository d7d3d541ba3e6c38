use std::sync::Arc;

use super::compare_tests::{BROKEN, ME, OTHER, at, gossip, starts_over_with};
use super::{CATCH_UP_PATIENCE_MILLIS, Gossip, Input, Options, Output};
use crate::replication::entry::{Entry, EntryOp};
use crate::replication::message::{CatchUpPart, Cursor, Head, Message};
use crate::replication::packed::PackedEntries;
use crate::time::{Now, Timestamp};
use crate::types::{LeaseId, MediaType, MemberId, Origin};

const THEM: Origin = Origin { member: BROKEN, run: 1 };
const END: Cursor = Cursor { revision: 1 << 40, n: 0 };
/// What is asked for at once, and what the peer's log takes.
const ASKED_BYTES: u64 = 8 << 20;
const LOG_BYTES: u64 = 100 << 20;

fn place(revision: u64) -> Cursor {
    Cursor { revision, n: 0 }
}

/// A part without entries, from one place to another.
fn part(after: Option<u64>, next: Option<u64>) -> CatchUpPart {
    CatchUpPart {
        heads: vec![Head { origin: THEM, seq: 7 }],
        complete: Timestamp(20),
        collected: Timestamp(20),
        entries: PackedEntries::default(),
        after: after.map(place),
        next: next.map(place),
        end: END,
        log_bytes: LOG_BYTES,
        more: false,
        progress: 0,
        floors: Vec::new(),
    }
}

/// The same with so many bytes in it.
fn full(part: CatchUpPart, bytes: usize) -> CatchUpPart {
    let (key, value) = (b"key".to_vec().into(), vec![0; bytes].into());
    let ops = vec![EntryOp::Put { key, value, lease: LeaseId::NONE, media_type: MediaType::NONE }];
    let entry = Arc::new(Entry { seq: 1, time: Timestamp(15), ops });
    CatchUpPart { entries: [(THEM, entry)].into_iter().collect(), ..part }
}

/// A member that has begun to take over the data of the broken peer.
fn catching_up(peers: &[MemberId]) -> Gossip {
    let options = Options { scrub_millis: None, catch_up_bytes: ASKED_BYTES, ..Options::default() };
    let mut gossip = gossip(peers, options);
    let outputs = gossip.step(at(0), Input::CatchUpFrom(BROKEN));
    assert_eq!(starts_over_with(&outputs), Some(BROKEN));
    gossip
}

fn hear(gossip: &mut Gossip, part: CatchUpPart, now: Now) -> Vec<Output> {
    gossip.step(now, Input::Receive(BROKEN, Message::CatchUpPart(Box::new(part))))
}

fn is_left(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Misanswered(BROKEN)) && outputs.contains(&Output::AbandonCatchUp)
}

#[test]
fn parts_without_end_are_left() {
    // Parts with nothing in them, and parts of which each has the same.
    for bytes in [0, 1 << 20, 10 << 20] {
        let mut gossip = catching_up(&[BROKEN, OTHER]);
        let mut parts = 0;
        let outputs = loop {
            let part = part((parts > 0).then_some(parts), Some(parts + 1));
            let outputs = hear(&mut gossip, full(part, bytes), at(parts));
            parts += 1;
            if is_left(&outputs) {
                break outputs;
            }
            assert!(parts < 10_000, "{parts} parts of {bytes} bytes are taken");
        };
        // Twice the log and 64 MiB, by the bytes, or by 128 KiB each.
        let bound = (2 * LOG_BYTES + (64 << 20)) / (bytes as u64).max(128 << 10) + 1;
        assert!(parts <= bound, "{parts} parts of {bytes} bytes");
        assert_eq!(starts_over_with(&outputs), Some(OTHER));
        assert_eq!(gossip.counts().misanswers, 1);
    }
}

#[test]
fn parts_that_do_not_go_on_are_left() {
    let beyond = END.revision + 1;
    let huge = CatchUpPart { log_bytes: u64::MAX, ..part(None, Some(1)) };
    let wrong = [
        vec![part(None, Some(beyond))],
        vec![part(None, Some(5)), part(Some(5), Some(5))],
        vec![part(None, Some(5)), part(Some(5), Some(4))],
        vec![part(None, Some(5)), part(Some(5), Some(END.revision))],
        vec![huge],
    ];
    for parts in wrong {
        let mut gossip = catching_up(&[BROKEN, OTHER]);
        let (last, first) = parts.split_last().unwrap();
        for part in first {
            assert!(!is_left(&hear(&mut gossip, part.clone(), at(0))), "{parts:?}");
        }
        let outputs = hear(&mut gossip, last.clone(), at(0));
        assert!(is_left(&outputs), "{parts:?}: {outputs:?}");
        assert_eq!(starts_over_with(&outputs), Some(OTHER), "{parts:?}");
    }
}

/// What was asked twice is answered twice, by parts that need not be the same.
#[test]
fn answers_to_a_former_question_are_no_lie() {
    let mut gossip = catching_up(&[BROKEN, OTHER]);
    hear(&mut gossip, part(None, Some(5)), at(0));
    let later = Cursor { n: 1, ..END };
    for next in [Some(5), Some(END.revision), None] {
        let other = CatchUpPart { end: later, ..part(Some(5), next) };
        assert_eq!(hear(&mut gossip, other, at(0)), []);
    }
    assert_eq!(gossip.counts().misanswers, 0);
    assert!(gossip.catching_up().is_some());
}

/// Parts that overlap bring what is between, and what came twice nothing.
#[test]
fn parts_may_overlap() {
    let mut gossip = catching_up(&[BROKEN, OTHER]);
    let is_taken = |outputs: &[Output]| matches!(outputs, [Output::ApplyCatchUp(_), ..]);
    assert!(is_taken(&hear(&mut gossip, part(None, Some(5)), at(0))));
    assert!(!is_taken(&hear(&mut gossip, part(None, Some(5)), at(0))));
    assert!(!is_taken(&hear(&mut gossip, part(Some(2), Some(4)), at(0))));
    assert!(is_taken(&hear(&mut gossip, part(Some(2), Some(7)), at(0))));
    assert!(!is_taken(&hear(&mut gossip, part(Some(8), Some(9)), at(0))), "one is missing");
    assert!(is_taken(&hear(&mut gossip, part(Some(5), None), at(0))));
    assert_eq!(gossip.counts().misanswers, 0);
}

#[test]
fn while_there_is_nobody_else_the_same_peer_is_asked_again_later() {
    let mut gossip = catching_up(&[BROKEN]);
    hear(&mut gossip, part(None, Some(5)), at(0));
    let outputs = hear(&mut gossip, part(Some(5), Some(5)), at(0));
    assert!(is_left(&outputs) && starts_over_with(&outputs).is_none(), "{outputs:?}");
    // Whatever it says meanwhile.
    let outputs = hear(&mut gossip, part(None, Some(5)), at(1));
    assert!(starts_over_with(&outputs).is_none(), "{outputs:?}");
    let outputs = gossip.step(at(CATCH_UP_PATIENCE_MILLIS), Input::Tick);
    let asks_anew = |output: &Output| match output {
        Output::Send(BROKEN, Message::CatchUp(it)) => it.cursor.is_none() && it.end.is_none(),
        _ => false,
    };
    assert!(outputs.iter().any(asks_anew), "{outputs:?}");
}

#[test]
fn who_is_silent_or_busy_for_long_is_left() {
    for is_busy in [false, true] {
        let mut gossip = catching_up(&[BROKEN, OTHER]);
        hear(&mut gossip, part(None, Some(5)), at(0));
        let other = (1..1000).find_map(|step| {
            let now = at(step * 100);
            let busy = Input::Receive(BROKEN, Message::Busy { retry_millis: 50 });
            let outputs = gossip.step(now, if is_busy { busy } else { Input::Tick });
            starts_over_with(&outputs).filter(|it| *it != BROKEN).zip(Some(step))
        });
        let (other, step) = other.expect("it waits for ever");
        assert_eq!(other, OTHER);
        assert!((300..=500).contains(&step), "after {step} tenths of a second");
        assert_eq!(gossip.counts().misanswers, 0, "that may happen to anybody");
    }
}

/// A long log in full parts, with stretches in which nothing is of use.
#[test]
fn a_long_log_is_taken_to_its_end() {
    let mut gossip = catching_up(&[BROKEN, OTHER]);
    let parts = LOG_BYTES >> 20;
    for number in 0..parts {
        let bytes = if number % 3 == 0 { 0 } else { 1 << 20 };
        let next = part((number > 0).then_some(number), Some(number + 1));
        let outputs = hear(&mut gossip, full(next, bytes), at(number));
        assert!(!is_left(&outputs), "part {number}: {outputs:?}");
        assert!(matches!(outputs[0], Output::ApplyCatchUp(_)), "{outputs:?}");
    }
    let outputs = hear(&mut gossip, part(Some(parts), None), at(parts));
    let is_end = |output: &Output| matches!(output, Output::FinishCatchUp { .. });
    assert!(outputs.iter().any(is_end), "{outputs:?}");
    assert_eq!(gossip.counts().catch_ups, 0, "it is not written yet");
    assert!(gossip.catching_up().is_some());
    gossip.step(at(parts), Input::TakenOver);
    assert_eq!((gossip.counts().catch_ups, gossip.heads().applied(THEM)), (1, 7));
    assert!(gossip.is_merging() && gossip.catching_up().is_none());
    assert_eq!(gossip.heads().applied(ME), 1);
}

#[test]
fn what_cannot_be_written_is_asked_for_again() {
    for is_unsound in [false, true] {
        let mut gossip = catching_up(&[BROKEN, OTHER]);
        hear(&mut gossip, part(None, Some(5)), at(0));
        let outputs = gossip.step(at(0), Input::NotTakenOver { is_unsound });
        assert!(outputs.contains(&Output::AbandonCatchUp));
        assert_eq!(outputs.contains(&Output::Misanswered(BROKEN)), is_unsound);
        assert_eq!(starts_over_with(&outputs), is_unsound.then_some(OTHER));
        let outputs = gossip.step(at(CATCH_UP_PATIENCE_MILLIS), Input::Tick);
        let expected = if is_unsound { OTHER } else { BROKEN };
        assert_eq!(starts_over_with(&outputs), Some(expected));
    }
}
