//! Members without data: the gossip alone, for clusters of thousands. Entries are the same for all and stand in one
//! place, so that a member is no larger than what it knows of the others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::world::{Actor, now_at};
use crate::replication::Gossip;
use crate::replication::entry::{Entry, EntryOp, Segment};
use crate::replication::gossip::{Input, Options, Output};
use crate::replication::message::{Head, Message, Segments};
use crate::replication::settled::{Frontier, Membership};
use crate::time::{HybridClock, Timestamp};
use crate::types::{LeaseId, MemberId, Origin};

/// The run of every light member, which is never started twice.
pub(super) const RUN: u64 = 1;

/// All entries that were ever accepted, and who has seen them when.
#[derive(Debug, Default)]
pub(super) struct Everything {
    entries: BTreeMap<Origin, Vec<Arc<Entry>>>,
    /// Of each entry that is watched: when it was accepted, and how long it took to become visible at each member that
    /// has it, in virtual microseconds.
    pub seen: BTreeMap<(Origin, u64), (u64, Vec<u32>)>,
    /// Whether entries that are accepted now are watched.
    pub watching: bool,
}

impl Everything {
    /// The entries of each origin, in the order of their seqs.
    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = (Origin, &[Arc<Entry>])> {
        self.entries.iter().map(|(origin, entries)| (*origin, entries.as_slice()))
    }

    fn segment(&self, want: Head, bytes_max: u64) -> Option<Segment> {
        let first = usize::try_from(want.seq).ok()?;
        let rest = self.entries.get(&want.origin)?.get(first..)?;
        let mut bytes = 0;
        let within = |entry: &&Arc<Entry>| {
            let before = bytes;
            bytes += entry.bytes() as u64;
            before < bytes_max
        };
        let entries: Vec<_> = rest.iter().take_while(within).cloned().collect();
        let through = entries.last()?.seq;
        Some(Segment { origin: want.origin, after: want.seq, through, entries })
    }
}

/// When a commit is done, and what is durable then.
type Commit = (u64, Vec<(Origin, Arc<Entry>)>);

/// A member without data.
#[derive(Debug)]
pub(super) struct Light {
    /// Its gossip.
    pub gossip: Gossip,
    me: Origin,
    everything: Rc<RefCell<Everything>>,
    clock: HybridClock,
    seq: u64,
    /// What the next commit makes durable.
    open: Vec<(Origin, Arc<Entry>)>,
    /// What the commit under way makes durable, and when.
    committing: Option<Commit>,
    commit_micros: u64,
    sent: Vec<(MemberId, Message)>,
    /// Whether it runs.
    pub up: bool,
}

impl Light {
    /// A member that commits in so many microseconds.
    pub(super) fn new(
        member: MemberId,
        options: Options,
        seed: u64,
        membership: Arc<Membership>,
        everything: Rc<RefCell<Everything>>,
        commit_micros: u64,
    ) -> Self {
        let me = Origin { member, run: RUN };
        let none = Timestamp::default();
        let frontier = Frontier::new(member, none, none);
        let now = now_at(0);
        // There is nothing to compare.
        let options = Options { scrub_millis: None, ..options };
        let mut gossip = Gossip::new(me, options, seed, &[], frontier, now);
        let joined = membership.members.values().max().copied().unwrap_or_default();
        let live = membership.members.keys().copied().collect();
        let mut outputs = gossip.step(now, Input::Membership(membership));
        outputs.extend(gossip.step(now, Input::Live(live)));
        let mut light = Self {
            gossip,
            me,
            everything,
            // What is written here is later than the member is a member.
            clock: HybridClock::after(joined),
            seq: 0,
            open: Vec::new(),
            committing: None,
            commit_micros,
            sent: Vec::new(),
            up: true,
        };
        light.carry_out(0, outputs);
        light
    }

    /// Accepts a write of a client.
    pub(super) fn write(&mut self, micros: u64, value: &Bytes) {
        let time = self.clock.tick(now_at(micros));
        self.seq += 1;
        let key = Bytes::copy_from_slice(&self.seq.to_be_bytes());
        let op = EntryOp::Put { key, value: value.clone(), lease: LeaseId::NONE };
        let entry = Arc::new(Entry { seq: self.seq, time, ops: vec![op] });
        let mut everything = self.everything.borrow_mut();
        everything.entries.entry(self.me).or_default().push(Arc::clone(&entry));
        if everything.watching {
            everything.seen.insert((self.me, self.seq), (micros, Vec::new()));
        }
        drop(everything);
        self.open.push((self.me, entry));
        self.begin_commit(micros);
    }

    fn begin_commit(&mut self, micros: u64) {
        if self.committing.is_none() && !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.committing = Some((micros + self.commit_micros, open));
        }
    }

    fn end_commit(&mut self, micros: u64) {
        let Some((_, entries)) = self.committing.take_if(|(at, _)| *at <= micros) else { return };
        let mut everything = self.everything.borrow_mut();
        for (origin, entry) in &entries {
            if let Some((accepted, delays)) = everything.seen.get_mut(&(*origin, entry.seq)) {
                delays.push(u32::try_from(micros - *accepted).unwrap_or(u32::MAX));
            }
        }
        drop(everything);
        self.step(micros, Input::Committed { entries, heads: Vec::new() });
        self.begin_commit(micros);
    }

    fn step(&mut self, micros: u64, input: Input) {
        let outputs = self.gossip.step(now_at(micros), input);
        self.carry_out(micros, outputs);
    }

    fn carry_out(&mut self, micros: u64, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(to, message) => self.sent.push((to, message)),
                Output::Apply(_, segment) => {
                    let origin = segment.origin;
                    let entries = segment.entries.into_iter().map(|entry| (origin, entry));
                    self.open.extend(entries);
                }
                Output::Load { to, wants, bytes_max } => {
                    let everything = self.everything.borrow();
                    let held = |head: &Head| head.seq < self.gossip.heads().seq(head.origin);
                    let wants = wants.into_iter().filter(held);
                    let segments =
                        wants.filter_map(|want| everything.segment(want, bytes_max)).collect();
                    drop(everything);
                    let (collected, traces) = (Timestamp::default(), Vec::new());
                    let (answers, has_holes, patient) = (true, false, false);
                    let segments =
                        Segments { segments, collected, answers, has_holes, traces, patient };
                    self.sent.push((to, Message::Segments(segments)));
                    self.step(micros, Input::Loaded(to));
                }
                Output::Promise { .. } => {
                    // What is open is not durable, and no promise can be made about it yet.
                    if self.open.is_empty() && self.committing.is_none() {
                        let time = self.clock.tick(now_at(micros));
                        self.step(
                            micros,
                            Input::Promised { time, seq: self.seq, is_log_long: false },
                        );
                    }
                }
                Output::Observe(time) => self.clock.observe(time),
                Output::Settled(_) | Output::Acknowledged(..) => {}
                Output::LoadCatchUp(..)
                | Output::ApplyCatchUp(_)
                | Output::AbandonCatchUp
                | Output::FinishCatchUp { .. }
                | Output::Complete(_)
                | Output::Compare { .. }
                | Output::AnswerCompare(..)
                | Output::Drop(_)
                | Output::Differ(..)
                | Output::Misanswered(_)
                | Output::Seal(_)
                | Output::Passed(_)
                | Output::OldCopy
                | Output::Swim(..) => unreachable!("light members neither leave nor collect"),
            }
        }
        self.begin_commit(micros);
    }
}

impl Actor for Light {
    fn receive(&mut self, micros: u64, from: MemberId, message: Message) {
        self.end_commit(micros);
        self.step(micros, Input::Receive(from, message));
    }

    fn wake(&mut self, micros: u64) {
        self.end_commit(micros);
        if self.up && self.gossip.wake_at() <= micros / 1000 {
            self.step(micros, Input::Tick);
        }
    }

    fn wake_at(&self) -> u64 {
        let commit = self.committing.as_ref().map_or(u64::MAX, |(at, _)| *at);
        commit.min(self.gossip.wake_at().saturating_mul(1000))
    }

    fn take_sent(&mut self) -> Vec<(MemberId, Message)> {
        std::mem::take(&mut self.sent)
    }

    fn is_up(&self) -> bool {
        self.up
    }
}
