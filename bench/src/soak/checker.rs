//! Whether the answers and events of a run keep etcd's contract, whatever happened to the server meanwhile.
//!
//! A watch of all keys is the log of the run: each revision with its events, dense. The checker replays it on the
//! [model](super::model) and asks of every revision who wrote it: a request that was answered with this revision, whose
//! answer and events are exactly those of the model; or a request whose answer was lost, once at most and no later than the
//! process that it was sent to lived; or a lease that was due. Whatever was answered and does not turn up, turns up
//! twice, or turns up unasked, is a violation. Reads must show the state at the revision of their header, and no
//! answer may have a revision below one that anybody had seen when its request was sent.
//!
//! A revision is replayed as soon as no call is in flight that could still be answered with it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use starling_proto::mvccpb::Event;
use starling_proto::mvccpb::event::EventType;

use super::model::{Op, Reply, State, execute, force, selects, undo};

/// How long a lease may outlive its time on a busy machine.
pub const LATE_MAX: Duration = Duration::from_secs(10);
/// Violations that are kept; one bug makes many.
const VIOLATIONS_MAX: usize = 50;
/// What is shown of a violation.
const SHOWN_MAX: usize = 1500;

/// A call in flight.
#[derive(Debug)]
pub struct Call {
    id: u64,
    floor: i64,
}

#[derive(Debug)]
struct Heard {
    revision: i64,
    events: Vec<Event>,
    at: Duration,
}

#[derive(Debug)]
struct Lost {
    op: Op,
    generation: u64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    /// When the last request was sent that kept it alive: it lives on for its TTL from then at the least.
    kept: Duration,
    /// When it should have ended.
    due: Duration,
    over: bool,
}

/// What a watcher wants to hear.
#[derive(Clone, Debug)]
pub struct Filter {
    /// From here.
    pub key: Bytes,
    /// To here, as in requests.
    pub range_end: Bytes,
    /// Deletes only.
    pub no_put: bool,
    /// Puts only.
    pub no_delete: bool,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    /// Everything below has been heard.
    next: i64,
    /// Revisions, first and last, that it knows of by a read instead.
    skipped: Vec<(i64, i64)>,
    expected: VecDeque<Event>,
    heard: VecDeque<Event>,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Revisions that were replayed.
    pub revisions: u64,
    /// Calls that were answered.
    pub answered: u64,
    /// Writes without an answer.
    pub lost: u64,
    /// Of these, how many had happened.
    pub found: u64,
    /// Leases that ended by themselves, with keys.
    pub expired: u64,
    /// Events that watchers heard, besides the log.
    pub events: u64,
    /// Watchers that came back too late, and were told so.
    pub compacted: u64,
    /// How late the latest lease ended.
    pub late: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Checker {
    state: State,
    applied: i64,
    log: VecDeque<Heard>,
    /// The greatest revision that anybody has seen.
    floor: i64,
    calls: u64,
    in_flight: BTreeMap<u64, i64>,
    answers: BTreeMap<i64, Vec<(Op, Reply)>>,
    lost: Vec<Lost>,
    /// The revision that the next process of each began with.
    ends: BTreeMap<u64, i64>,
    leases: BTreeMap<i64, Lease>,
    watchers: Vec<Watcher>,
    counters: BTreeMap<Bytes, (u64, u64)>,
    compaction_asked: i64,
    violations: Vec<String>,
    counts: Counts,
}

impl Checker {
    /// For a store without keys at `revision`.
    pub fn new(revision: i64) -> Self {
        Self { applied: revision, floor: revision, ..Self::default() }
    }

    /// What was found so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The revision that the model is at.
    pub fn applied(&self) -> i64 {
        self.applied
    }

    /// The log continues with this revision.
    pub fn log_next(&self) -> i64 {
        self.log.back().map_or(self.applied, |heard| heard.revision) + 1
    }

    /// How many living keys have a lease.
    pub fn leased(&self) -> usize {
        self.state.values().filter(|pair| pair.lease != 0).count()
    }

    /// Something that must not be.
    pub fn violation(&mut self, mut what: String) {
        let end = (0..=SHOWN_MAX.min(what.len())).rev().find(|end| what.is_char_boundary(*end));
        what.truncate(end.unwrap_or(0));
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    /// A call is about to be sent.
    pub fn begin(&mut self) -> Call {
        self.calls += 1;
        self.in_flight.insert(self.calls, self.floor);
        Call { id: self.calls, floor: self.floor }
    }

    /// A call was answered.
    pub fn answered(&mut self, call: &Call, op: Op, revision: i64, reply: Reply) {
        self.in_flight.remove(&call.id);
        self.counts.answered += 1;
        if self.seen(call, revision, &op) {
            let answer = (op, reply.without_headers());
            if revision == self.applied {
                self.observe(answer);
            } else {
                self.answers.entry(revision).or_default().push(answer);
            }
        }
        self.settle();
    }

    /// The same for a call that neither reads nor changes keys.
    pub fn ended(&mut self, call: &Call, revision: i64) {
        self.in_flight.remove(&call.id);
        self.seen(call, revision, &"no keys");
        self.settle();
    }

    /// The call has no answer, and cannot have changed a key.
    pub fn given_up(&mut self, call: &Call) {
        self.in_flight.remove(&call.id);
        self.settle();
    }

    fn seen(&mut self, call: &Call, revision: i64, what: &dyn std::fmt::Debug) -> bool {
        if revision < call.floor {
            self.violation(format!(
                "answered at revision {revision} when {} had been seen: {what:?}",
                call.floor
            ));
        }
        self.floor = self.floor.max(revision);
        revision >= call.floor
    }

    /// The answer to a call will not come. It was sent to the process of this generation.
    pub fn lost(&mut self, call: &Call, op: Op, generation: u64) {
        self.in_flight.remove(&call.id);
        if op.writes() {
            self.counts.lost += 1;
            self.lost.push(Lost { op, generation });
        }
        self.settle();
    }

    /// The call was refused since its lease is not there.
    pub fn lease_not_found(&mut self, call: &Call, id: i64, now: Duration) {
        self.in_flight.remove(&call.id);
        self.lease_gone(id, now);
        self.settle();
    }

    /// A process ended, and the next began with this revision.
    pub fn restarted(&mut self, generation: u64, revision: i64, now: Duration) {
        if revision < self.floor {
            let floor = self.floor;
            self.violation(format!("back at revision {revision} when {floor} had been seen"));
        }
        self.floor = self.floor.max(revision);
        self.ends.insert(generation, revision);
        for lease in self.leases.values_mut() {
            lease.due = lease.due.max(now + lease.ttl);
        }
    }

    /// Events came on the watch of all keys.
    pub fn log_heard(&mut self, events: Vec<Event>, now: Duration) {
        for event in events {
            let revision = modified(&event);
            let next = self.log_next();
            match self.log.back_mut().filter(|heard| heard.revision == revision) {
                Some(heard) => heard.events.push(event),
                None => {
                    if revision != next {
                        self.violation(format!("the log goes from {} to {revision}", next - 1));
                    }
                    self.log.push_back(Heard { revision, events: vec![event], at: now });
                }
            }
            self.floor = self.floor.max(revision);
        }
        self.settle();
    }

    /// Replays what no call in flight can be answered with any more.
    fn settle(&mut self) {
        let settled = self.in_flight.values().min().copied().unwrap_or(i64::MAX);
        while self.log.front().is_some_and(|heard| heard.revision <= settled) {
            if let Some(heard) = self.log.pop_front() {
                self.apply(&heard);
            }
        }
    }

    fn apply(&mut self, heard: &Heard) {
        let revision = heard.revision;
        let mut answers = self.answers.remove(&revision).unwrap_or_default();
        let writer = answers.iter().position(|(op, reply)| self.wrote(op, Some(reply), heard));
        if let Some(writer) = writer {
            answers.remove(writer);
        } else if !self.wrote_unheard(heard) && !self.expired(heard) {
            let answers: Vec<_> = answers.iter().filter(|(op, _)| op.writes()).collect();
            let events = &heard.events;
            let what = format!("nobody wrote {revision}: {events:?}, answered then: {answers:?}");
            self.violation(what);
            force(&mut self.state, events);
        }
        self.applied = revision;
        self.counts.revisions += 1;
        for answer in answers {
            self.observe(answer);
        }
        self.ends_passed(revision);
        for event in &heard.events {
            for watcher in &mut self.watchers {
                watcher.expect(event);
            }
        }
        for i in 0..self.watchers.len() {
            self.compare(i);
        }
    }

    /// Whether these are the events of a request; then they are made.
    fn wrote(&mut self, op: &Op, reply: Option<&Reply>, heard: &Heard) -> bool {
        if !op.writes() {
            return false;
        }
        let (expected, events) = execute(&mut self.state, op, heard.revision);
        if !events.is_empty()
            && events == heard.events
            && reply.is_none_or(|reply| *reply == expected)
        {
            return true;
        }
        undo(&mut self.state, &events);
        false
    }

    fn wrote_unheard(&mut self, heard: &Heard) -> bool {
        let lost = std::mem::take(&mut self.lost);
        let in_time =
            |lost: &Lost| self.ends.get(&lost.generation).is_none_or(|end| heard.revision <= *end);
        let possible: Vec<usize> = (0..lost.len()).filter(|i| in_time(&lost[*i])).collect();
        let found = possible.into_iter().find(|i| self.wrote(&lost[*i].op, None, heard));
        self.lost = lost;
        if let Some(found) = found {
            self.lost.remove(found);
            self.counts.found += 1;
        }
        found.is_some()
    }

    fn expired(&mut self, heard: &Heard) -> bool {
        let first = heard.events.first().and_then(|event| event.prev_kv.as_ref());
        let Some(id) = first.map(|pair| pair.lease).filter(|id| *id != 0) else { return false };
        if !self.wrote(&Op::Revoke(id), None, heard) {
            return false;
        }
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        let early = (lease.kept + lease.ttl).saturating_sub(heard.at);
        let late = heard.at.saturating_sub(lease.due);
        lease.over = true;
        self.counts.expired += 1;
        self.counts.late = self.counts.late.max(late);
        if early > Duration::ZERO || late > LATE_MAX {
            let revision = heard.revision;
            self.violation(format!(
                "lease {id} ended at {revision}, {early:?} early, {late:?} late"
            ));
        }
        true
    }

    /// Checks an answer that changed nothing against the state that it was given at.
    fn observe(&mut self, (op, reply): (Op, Reply)) {
        let (expected, events) = execute(&mut self.state, &op, self.applied + 1);
        undo(&mut self.state, &events);
        if !events.is_empty() || expected != reply {
            let at = self.applied;
            self.violation(format!(
                "at {at}, {op:?} should have been answered {expected:?} with {} events, not {reply:?}",
                events.len()
            ));
        }
    }

    /// Forgets requests that cannot turn up any more.
    fn ends_passed(&mut self, revision: i64) {
        let ends = &self.ends;
        self.lost.retain(|lost| ends.get(&lost.generation).is_none_or(|end| revision < *end));
    }

    /// A lease was granted or kept alive by a request sent at `sent`.
    pub fn kept(&mut self, id: i64, ttl: Duration, sent: Duration, now: Duration) {
        let due = now + ttl;
        let lease = self.leases.entry(id).or_insert(Lease { ttl, kept: sent, due, over: false });
        if lease.over {
            self.violation(format!("lease {id} was kept alive after its end"));
            return;
        }
        (lease.kept, lease.due) = (sent, lease.due.max(due));
    }

    /// A client is about to end the lease.
    pub fn revoking(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.over = true;
        }
    }

    /// The server does not know the lease any more.
    pub fn lease_gone(&mut self, id: i64, now: Duration) {
        let lease = self.leases.get(&id).filter(|lease| !lease.over);
        if let Some(early) = lease.and_then(|lease| (lease.kept + lease.ttl).checked_sub(now))
            && early > Duration::ZERO
        {
            self.violation(format!("lease {id} is gone {early:?} early"));
        }
    }

    /// Somebody asks for a compaction.
    pub fn compacting(&mut self, revision: i64) {
        self.compaction_asked = self.compaction_asked.max(revision);
    }

    /// A read of `revision` was refused, or a watch from it ended, as compacted at `compacted`.
    pub fn compacted(&mut self, revision: i64, compacted: i64) {
        self.counts.compacted += 1;
        let asked = self.compaction_asked;
        if revision >= compacted || compacted > asked {
            self.violation(format!("{revision} is compacted at {compacted}, asked for {asked}"));
        }
    }

    /// The greatest revision that anybody has asked to compact.
    pub fn compaction_asked(&self) -> i64 {
        self.compaction_asked
    }

    /// A watcher that has heard nothing yet.
    pub fn watcher(&mut self, filter: Filter) -> usize {
        let next = self.applied + 1;
        let (skipped, expected, heard) = Default::default();
        self.watchers.push(Watcher { filter, next, skipped, expected, heard });
        self.watchers.len() - 1
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Where a watcher goes on.
    pub fn watch_next(&self, watcher: usize) -> i64 {
        self.watchers[watcher].next
    }

    /// A watcher was told that what it missed is compacted: it goes on behind a read at `revision`.
    pub fn watch_reset(&mut self, watcher: usize, revision: i64) {
        let watcher = &mut self.watchers[watcher];
        let skipped = watcher.next..=revision;
        watcher.expected.retain(|event| !skipped.contains(&modified(event)));
        watcher.skipped.push((watcher.next, revision));
        watcher.next = watcher.next.max(revision + 1);
    }

    /// Whole revisions came to a watcher. With no events it is told a revision up to which it has heard everything.
    pub fn watch_heard(&mut self, number: usize, events: Vec<Event>, progress: i64) {
        self.counts.events += events.len() as u64;
        let watcher = &mut self.watchers[number];
        let first = events.iter().map(modified).min();
        if let Some(first) = first.filter(|first| *first < watcher.next) {
            let next = watcher.next;
            self.violation(format!("watcher {number} at {next} hears of {first} again"));
            return;
        }
        let last = events.iter().map(modified).max();
        watcher.next = watcher.next.max(last.unwrap_or(progress) + 1);
        watcher.heard.extend(events);
        self.floor = self.floor.max(self.watchers[number].next - 1);
        self.compare(number);
    }

    fn compare(&mut self, number: usize) {
        let watcher = &mut self.watchers[number];
        while let (Some(expected), Some(heard)) = (watcher.expected.front(), watcher.heard.front())
        {
            if expected.r#type != heard.r#type || expected.kv != heard.kv {
                let what = format!("watcher {number} heard {heard:?} instead of {expected:?}");
                watcher.expected.clear();
                watcher.heard.clear();
                self.violation(what);
                return;
            }
            watcher.expected.pop_front();
            watcher.heard.pop_front();
        }
        // What it has been told the end of must have come.
        let missing = watcher.expected.front().filter(|event| modified(event) < watcher.next);
        if let Some(missing) = missing.filter(|_| watcher.heard.is_empty()) {
            let what = format!("watcher {number} is at {} without {missing:?}", watcher.next);
            watcher.expected.clear();
            self.violation(what);
        }
    }

    /// A counter was incremented, or perhaps.
    pub fn incremented(&mut self, key: &Bytes, answered: bool) {
        let counter = self.counters.entry(key.clone()).or_default();
        *(if answered { &mut counter.0 } else { &mut counter.1 }) += 1;
    }

    /// Whether nothing is open: all that was heard and answered has been compared.
    pub fn is_settled(&self) -> bool {
        self.open().is_empty()
    }

    fn open(&self) -> Vec<String> {
        let mut open = Vec::new();
        let mut check = |left: usize, what: &str| {
            if left > 0 {
                open.push(format!("{left} {what}"));
            }
        };
        check(self.in_flight.len(), "calls in flight");
        check(self.log.len(), "revisions of the log not replayed");
        let answers: usize = self.answers.values().map(Vec::len).sum();
        check(answers, "answers at revisions that the log never came to");
        for watcher in &self.watchers {
            check(watcher.expected.len(), "events that a watcher never heard");
            check(watcher.heard.len(), "events of a watcher that never happened");
        }
        check(self.leased(), "keys of leases that did not end");
        open
    }

    /// The end of the run.
    pub fn finish(&mut self) {
        for left in self.open() {
            self.violation(format!("at the end: {left}"));
        }
        let counters = std::mem::take(&mut self.counters);
        for (key, (answered, lost)) in counters {
            let value = self.state.get(&key).map_or(0, |pair| count_of(&pair.value));
            if value < answered || value > answered + lost {
                self.violation(format!(
                    "{key:?} is {value} after {answered} increments and perhaps {lost} more"
                ));
            }
        }
    }
}

impl Watcher {
    fn expect(&mut self, event: &Event) {
        let Some(pair) = &event.kv else { return };
        let hidden = match event.r#type() {
            EventType::Put => self.filter.no_put,
            EventType::Delete => self.filter.no_delete,
        };
        let selected = selects(&self.filter.key, &self.filter.range_end, &pair.key);
        let revision = pair.mod_revision;
        let skipped = self.skipped.iter().any(|(from, to)| (*from..=*to).contains(&revision));
        self.skipped.retain(|(_, to)| *to > revision);
        if selected && !hidden && !skipped {
            self.expected.push_back(event.clone());
        }
    }
}

fn modified(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |pair| pair.mod_revision)
}

/// The number that a counter's value begins with.
pub fn count_of(value: &[u8]) -> u64 {
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |count, digit| count * 10 + u64::from(digit - b'0'))
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
