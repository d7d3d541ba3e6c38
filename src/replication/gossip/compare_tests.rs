use std::ops::Range;

use super::compare::Comparison;
use super::{Gossip, Input, Options, Output};
use crate::replication::message::{Compare, Compared, Dot, Head, Message, RangeSum, Span};
use crate::replication::settled::{Frontier, Membership};
use crate::time::{Now, Timestamp};
use crate::types::{MemberId, Origin};

pub(super) const ME: Origin = Origin { member: MemberId(1), run: 1 };
pub(super) const BROKEN: MemberId = MemberId(2);
pub(super) const OTHER: MemberId = MemberId(3);
/// How many keys there are here.
const KEYS: u64 = 1 << 16;
/// Into how many parts ranges are split, and when no more.
const PARTS: u64 = 16;

pub(super) fn at(millis: u64) -> Now {
    Now { wall_millis: 1_000_000 + millis, monotonic_millis: millis }
}

fn key(number: u64) -> bytes::Bytes {
    number.to_be_bytes().to_vec().into()
}

fn numbers(span: &Span) -> Range<u64> {
    let number = |key: &bytes::Bytes| key.as_ref().try_into().map_or(0, u64::from_be_bytes);
    number(&span.from)..span.to.as_ref().map_or(KEYS, number)
}

fn dot(number: u64) -> Dot {
    Dot { key: key(number), time: Timestamp(1), head: Head { origin: ME, seq: number } }
}

/// What an engine that holds the keys from zero on makes of a question.
fn read(output: &Output) -> Option<(MemberId, Compare)> {
    let Output::Compare { to, spans, upto, number } = output else { return None };
    let mut compare = Compare { sums: Vec::new(), dots: Vec::new(), upto: *upto, number: *number };
    for span in spans {
        let keys = numbers(span);
        let count = keys.end - keys.start;
        if count <= PARTS {
            compare.dots.extend(keys.map(dot));
            continue;
        }
        let step = usize::try_from(count.div_ceil(PARTS)).unwrap();
        for from in keys.clone().step_by(step) {
            let to = Some(key(from + count.div_ceil(PARTS))).filter(|to| *to < key(keys.end));
            let span = Span { from: key(from), to: to.or_else(|| span.to.clone()) };
            compare.sums.push(RangeSum { span, keys: 1, hash: 1 });
        }
    }
    Some((*to, compare))
}

/// An answer by which everything differs.
fn everything(compare: &Compare) -> Compared {
    let differing = compare.sums.iter().map(|sum| sum.span.clone()).collect();
    Compared { number: compare.number, differing, gone: compare.dots.clone() }
}

pub(super) fn gossip(peers: &[MemberId], options: Options) -> Gossip {
    let frontier = Frontier::new(ME.member, Timestamp(9), Timestamp(9));
    let head = Head { origin: ME, seq: 1 };
    let mut gossip = Gossip::new(ME, options, 1, &[head], frontier, at(0));
    let all = peers.iter().chain([&ME.member]);
    let members = all.clone().map(|member| (*member, Timestamp(1))).collect();
    let runs = all.map(|member| (*member, (1, Timestamp(1)))).collect();
    gossip.step(at(0), Input::Membership(Membership::new(members, runs).into()));
    gossip.step(at(0), Input::Live(peers.to_vec()));
    gossip
}

/// A member that has begun to merge with the broken peer, and its first question.
fn merging(peers: &[MemberId]) -> (Gossip, Compare) {
    let mut gossip = gossip(peers, Options { scrub_millis: None, ..Options::default() });
    gossip.begin_merge(BROKEN, Timestamp(9), at(0));
    let outputs = gossip.step(at(0), Input::Tick);
    let question = asked(&mut gossip, &outputs, at(0)).expect("it asks");
    (gossip, question)
}

/// The question among some outputs, read and sent.
fn asked(gossip: &mut Gossip, outputs: &[Output], now: Now) -> Option<Compare> {
    let (to, compare) = outputs.iter().find_map(read)?;
    let sent = gossip.step(now, Input::Asking(to, compare.clone()));
    assert!(sent.contains(&Output::Send(to, Message::Compare(compare.clone()))), "{sent:?}");
    Some(compare)
}

fn answer(gossip: &mut Gossip, compared: Compared, now: Now) -> Vec<Output> {
    gossip.step(now, Input::Receive(BROKEN, Message::Compared(compared)))
}

/// Whom the data is asked of anew.
pub(super) fn starts_over_with(outputs: &[Output]) -> Option<MemberId> {
    outputs.iter().find_map(|output| match output {
        Output::Send(to, Message::CatchUp(_)) => Some(*to),
        _ => None,
    })
}

#[test]
fn a_comparison_ends_whatever_the_peer_says() {
    let (mut gossip, mut question) = merging(&[BROKEN, OTHER]);
    let (mut questions, mut dropped) = (1, 0);
    while gossip.is_merging() {
        let outputs = answer(&mut gossip, everything(&question), at(0));
        let gone = outputs.iter().map(|output| match output {
            Output::Drop(dots) => dots.len() as u64,
            _ => 0,
        });
        dropped += gone.sum::<u64>();
        if let Some(next) = asked(&mut gossip, &outputs, at(0)) {
            (question, questions) = (next, questions + 1);
        }
        let pending = gossip.merging.as_ref().map_or(0, |it| it.comparison.pending());
        assert!(pending <= 4 * 64 * 16, "{pending}");
    }
    // Each of the ranges of sixteen keys is asked about once, 64 at a time, and each that they are parts of.
    let bound = KEYS / PARTS / 64 * 17 / 16 + 4;
    assert!(questions <= bound, "{questions} questions of {bound}");
    assert_eq!(dropped, KEYS);
    assert_eq!(gossip.counts().misanswers, 0);
}

#[test]
fn an_answer_to_something_else_ends_the_comparison() {
    let (_, question) = merging(&[BROKEN, OTHER]);
    let (first, second) = (question.sums[0].span.clone(), question.sums[1].span.clone());
    let all = Span { from: bytes::Bytes::new(), to: None };
    let inside = Span { to: Some(key(7)), ..first.clone() };
    let answers =
        [vec![all], vec![inside], vec![first.clone(), first.clone()], vec![second, first.clone()]];
    let answers = answers.into_iter().map(|differing| (differing, Vec::new()));
    // It was not asked about any key yet.
    for (differing, gone) in answers.chain([(vec![first], vec![dot(3)])]) {
        let (mut gossip, question) = merging(&[BROKEN, OTHER]);
        let compared = Compared { number: question.number, differing, gone };
        let outputs = answer(&mut gossip, compared.clone(), at(0));
        assert!(outputs.contains(&Output::Misanswered(BROKEN)), "{compared:?}: {outputs:?}");
        assert_eq!(starts_over_with(&outputs), Some(OTHER), "{compared:?}");
        assert!(!outputs.iter().any(|output| matches!(output, Output::Drop(_))), "{outputs:?}");
        assert_eq!(gossip.counts().misanswers, 1);
    }
}

#[test]
fn while_there_is_nobody_else_the_same_peer_is_asked_again_later() {
    let (mut gossip, question) = merging(&[BROKEN]);
    let wrong = Compared { number: question.number, differing: Vec::new(), gone: vec![dot(1)] };
    let outputs = answer(&mut gossip, wrong, at(0));
    assert!(outputs.iter().all(|output| read(output).is_none()), "not at once: {outputs:?}");
    let later = at(gossip.merging.as_ref().unwrap().comparison.deadline_millis);
    let outputs = gossip.step(later, Input::Tick);
    assert!(asked(&mut gossip, &outputs, later).is_some(), "{outputs:?}");
}

#[test]
fn late_answers_count_and_former_ones_do_not() {
    let (mut gossip, question) = merging(&[BROKEN, OTHER]);
    // The answer is late: the same question goes out again.
    let later = at(gossip.merging.as_ref().unwrap().comparison.deadline_millis);
    let again = gossip.step(later, Input::Tick);
    assert!(again.contains(&Output::Send(BROKEN, Message::Compare(question.clone()))), "{again:?}");
    let first = Compared { number: question.number, ..everything(&question) };
    let outputs = answer(&mut gossip, first.clone(), later);
    assert!(asked(&mut gossip, &outputs, later).is_some());
    // It has come twice, and says nothing about the next question.
    let empty = Compared { differing: Vec::new(), ..first.clone() };
    for former in [first, empty] {
        assert!(answer(&mut gossip, former, later).iter().all(|output| read(output).is_none()));
    }
    assert!(gossip.is_merging());
    assert_eq!(gossip.counts().misanswers, 0);
}

#[test]
fn who_never_answers_is_left() {
    let (mut gossip, _) = merging(&[BROKEN, OTHER]);
    let mut questions = 1;
    let other = loop {
        let deadline = gossip.merging.as_ref().unwrap().comparison.deadline_millis;
        let outputs = gossip.step(at(deadline), Input::Tick);
        if let Some(other) = starts_over_with(&outputs) {
            break other;
        }
        questions += 1;
        assert!(questions < 20, "it is asked without end");
    };
    assert_eq!(other, OTHER);
}

#[test]
fn a_scrub_with_a_broken_peer_ends() {
    let options = Options { scrub_millis: Some(1000), ..Options::default() };
    let mut gossip = gossip(&[BROKEN], options);
    let (now, question) = (1..100)
        .find_map(|step| {
            let now = at(step * 100);
            let outputs = gossip.step(now, Input::Tick);
            asked(&mut gossip, &outputs, now).map(|question| (now, question))
        })
        .expect("it scrubs");
    let all = Span { from: bytes::Bytes::new(), to: None };
    let wrong = Compared { number: question.number, differing: vec![all], gone: Vec::new() };
    let outputs = answer(&mut gossip, wrong, now);
    assert!(outputs.contains(&Output::Misanswered(BROKEN)), "{outputs:?}");
    assert!(outputs.iter().all(|output| read(output).is_none()));
    assert!(gossip.scrub.comparison().is_none());
}

#[test]
fn ranges_are_asked_about_in_order() {
    let mut comparison = Comparison::new(BROKEN, Timestamp(9));
    comparison.ask(1, at(0));
    let span = |from, to| Span { from: key(from), to: Some(key(to)) };
    comparison.answered([span(4, 6), span(0, 4)]);
    let Some(Output::Compare { spans, .. }) = comparison.ask(2, at(0)) else { panic!("it asks") };
    assert_eq!(spans, [span(0, 4), span(4, 6)]);
}
