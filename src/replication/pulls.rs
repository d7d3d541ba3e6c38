//! What this member lacks, who has it, and what it has asked for.
//!
//! One request is under way per peer, and each origin is asked of one peer at a time, so that hardly anything comes twice.
//! A request that is not answered in time goes to the next peer that has it.

use std::collections::BTreeMap;

use super::heads::Heads;
use super::message::Head;
use crate::types::{MemberId, Origin};

/// Peers remembered for one origin.
const HOLDERS_MAX: usize = 4;
/// Origins asked for in one request.
const WANTS_MAX: usize = 1024;
/// A request has this many times the usual time ...
const PATIENCE: u64 = 8;
/// ... but at least this long, in milliseconds, ...
const TIMEOUT_MIN_MILLIS: u64 = 15;
/// ... and at most this long.
const TIMEOUT_MAX_MILLIS: u64 = 500;
/// The weight of the former average in a new one, of eight parts.
const AVERAGE_KEEPS: u64 = 7;
/// The fixed point of the average: a millisecond is so much.
const MILLI: u64 = 256;

#[derive(Clone, Debug, Default)]
struct Lack {
    /// Up to where somebody has it.
    through: u64,
    /// Who has how much, the latest news last.
    holders: Vec<(MemberId, u64)>,
    /// Who has been asked.
    asked: Option<MemberId>,
}

#[derive(Clone, Debug)]
struct Request {
    origins: Vec<Origin>,
    sent_millis: u64,
    deadline_millis: u64,
}

/// Requests to peers, and those to come.
#[derive(Clone, Debug)]
pub(super) struct Pulls {
    lacks: BTreeMap<Origin, Lack>,
    requests: BTreeMap<MemberId, Request>,
    /// Peers that are not to be asked before.
    busy: BTreeMap<MemberId, u64>,
    /// How long answers take, on average, in [`MILLI`]s; `None` before the first.
    answer_time: Option<u64>,
}

impl Pulls {
    /// Lacks nothing.
    pub(super) fn new() -> Self {
        Self {
            lacks: BTreeMap::new(),
            requests: BTreeMap::new(),
            busy: BTreeMap::new(),
            answer_time: None,
        }
    }

    /// Takes note that a peer has an origin up to some entry.
    pub(super) fn learn(&mut self, from: MemberId, head: Head, heads: &Heads) {
        if head.seq <= heads.applied(head.origin) {
            return;
        }
        let lack = self.lacks.entry(head.origin).or_default();
        lack.through = lack.through.max(head.seq);
        lack.holders.retain(|(holder, _)| *holder != from);
        if lack.holders.len() == HOLDERS_MAX
            && let Some(least) = (0..HOLDERS_MAX).min_by_key(|i| lack.holders[*i].1)
        {
            lack.holders.remove(least);
        }
        lack.holders.push((from, head.seq));
    }

    /// No more is to be taken of some origins than this: what is behind it is not asked for.
    pub(super) fn limit(&mut self, limit: impl Fn(Origin) -> u64, heads: &Heads) {
        self.lacks.retain(|origin, lack| {
            let limit = limit(*origin);
            lack.through = lack.through.min(limit);
            for (_, seq) in &mut lack.holders {
                *seq = (*seq).min(limit);
            }
            lack.through > heads.applied(*origin)
        });
    }

    /// Takes note of what has come.
    pub(super) fn satisfy(&mut self, origin: Origin, heads: &Heads) {
        let applied = heads.applied(origin);
        if self.lacks.get(&origin).is_some_and(|lack| lack.through <= applied) {
            self.lacks.remove(&origin);
        }
    }

    /// The request to a peer is done, one way or the other.
    pub(super) fn answered(&mut self, from: MemberId, now_millis: u64) {
        let Some(request) = self.requests.remove(&from) else { return };
        let took = now_millis.saturating_sub(request.sent_millis) * MILLI;
        // The first answer says more than any guess: most members that write little see few of them.
        self.answer_time = Some(match self.answer_time {
            Some(average) => (average * AVERAGE_KEEPS + took) / (AVERAGE_KEEPS + 1),
            None => took,
        });
        self.release(from, &request.origins);
    }

    /// A part of the answer has come: the rest gets its time anew.
    pub(super) fn progress(&mut self, from: MemberId, now_millis: u64) {
        let timeout = self.timeout();
        if let Some(request) = self.requests.get_mut(&from) {
            request.deadline_millis = now_millis + timeout;
        }
    }

    fn release(&mut self, from: MemberId, origins: &[Origin]) {
        for origin in origins {
            if let Some(lack) = self.lacks.get_mut(origin)
                && lack.asked == Some(from)
            {
                lack.asked = None;
            }
        }
    }

    /// A peer has had its chance for an origin: others come first now.
    pub(super) fn demote(&mut self, from: MemberId, origin: Origin) {
        let Some(lack) = self.lacks.get_mut(&origin) else { return };
        if let Some(at) = lack.holders.iter().position(|(holder, _)| *holder == from) {
            let holder = lack.holders.remove(at);
            lack.holders.insert(0, holder);
        }
    }

    /// A peer does not want to be asked for a while.
    pub(super) fn refused(&mut self, from: MemberId, until_millis: u64, now_millis: u64) {
        self.answered(from, now_millis);
        self.busy.insert(from, until_millis);
    }

    /// A peer is gone: nobody waits for it.
    pub(super) fn forget(&mut self, peer: MemberId) {
        if let Some(request) = self.requests.remove(&peer) {
            self.release(peer, &request.origins);
        }
        self.busy.remove(&peer);
        self.lacks.retain(|_, lack| {
            lack.holders.retain(|(holder, _)| *holder != peer);
            !lack.holders.is_empty()
        });
    }

    fn timeout(&self) -> u64 {
        let usual = self.answer_time.map(|average| average * PATIENCE / MILLI);
        usual.unwrap_or(TIMEOUT_MAX_MILLIS).clamp(TIMEOUT_MIN_MILLIS, TIMEOUT_MAX_MILLIS)
    }

    /// Gives up requests that took too long; answers the peers that they went to.
    pub(super) fn expire(&mut self, now_millis: u64) -> Vec<MemberId> {
        self.busy.retain(|_, until| *until > now_millis);
        let late: Vec<_> =
            self.requests.extract_if(.., |_, r| r.deadline_millis <= now_millis).collect();
        for (from, request) in &late {
            self.release(*from, &request.origins);
            request.origins.iter().for_each(|origin| self.demote(*from, *origin));
        }
        // Where answers take longer than they did, patience has to grow.
        if let Some(average) = self.answer_time.as_mut().filter(|_| !late.is_empty()) {
            *average += (*average / AVERAGE_KEEPS).max(1);
            *average = (*average).min(TIMEOUT_MAX_MILLIS * MILLI / PATIENCE);
        }
        late.into_iter().map(|(from, _)| from).collect()
    }

    /// The requests that are to be sent now.
    pub(super) fn due(&mut self, now_millis: u64, heads: &Heads) -> Vec<(MemberId, Vec<Head>)> {
        let mut wants: BTreeMap<MemberId, Vec<Head>> = BTreeMap::new();
        for (origin, lack) in self.lacks.iter_mut().filter(|(_, lack)| lack.asked.is_none()) {
            let head = Head { origin: *origin, seq: heads.applied(*origin) };
            let useful = lack.holders.iter().rev().find(|(holder, seq)| {
                *seq > head.seq
                    && !self.requests.contains_key(holder)
                    && !self.busy.contains_key(holder)
                    && wants.get(holder).is_none_or(|wants| wants.len() < WANTS_MAX)
            });
            if let Some((holder, _)) = useful {
                lack.asked = Some(*holder);
                wants.entry(*holder).or_default().push(head);
            }
        }
        let deadline_millis = now_millis + self.timeout();
        for (peer, wants) in &wants {
            let origins = wants.iter().map(|head| head.origin).collect();
            let request = Request { origins, sent_millis: now_millis, deadline_millis };
            self.requests.insert(*peer, request);
        }
        wants.into_iter().collect()
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let requests = self.requests.values().map(|request| request.deadline_millis);
        requests.chain(self.busy.values().copied()).min()
    }

    /// Whether anything is missing that somebody is known to have.
    pub(super) fn is_behind(&self) -> bool {
        !self.lacks.is_empty()
    }

    /// What is missing that somebody is known to have.
    pub(super) fn targets(&self) -> impl Iterator<Item = (Origin, u64)> {
        self.lacks.iter().map(|(origin, lack)| (*origin, lack.through))
    }

    /// How many entries are missing from each origin that somebody is known to have, at most.
    pub(super) fn lag(&self, heads: &Heads) -> u64 {
        let missing =
            |(origin, lack): (&Origin, &Lack)| lack.through.saturating_sub(heads.applied(*origin));
        self.lacks.iter().map(missing).sum()
    }

    /// The same by the members that wrote them; those of whom nothing is missing are left out.
    pub(super) fn lags(&self, heads: &Heads) -> BTreeMap<MemberId, u64> {
        let mut lags = BTreeMap::new();
        for (origin, lack) in &self.lacks {
            *lags.entry(origin.member).or_default() +=
                lack.through.saturating_sub(heads.applied(*origin));
        }
        lags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const X: Origin = Origin { member: MemberId(9), run: 1 };
    const Y: Origin = Origin { member: MemberId(8), run: 1 };

    fn head(origin: Origin, seq: u64) -> Head {
        Head { origin, seq }
    }

    #[test]
    fn an_origin_is_asked_of_one_peer_at_a_time() {
        let (mut pulls, heads) = (Pulls::new(), Heads::new());
        pulls.learn(A, head(X, 3), &heads);
        pulls.learn(A, head(Y, 2), &heads);
        pulls.learn(B, head(X, 5), &heads);
        assert_eq!(pulls.due(0, &heads), [(A, vec![head(Y, 0)]), (B, vec![head(X, 0)])]);
        assert_eq!(pulls.due(1, &heads), []);
        assert_eq!(pulls.lag(&heads), 7);
        assert_eq!(pulls.lags(&heads), BTreeMap::from([(X.member, 5), (Y.member, 2)]));
    }

    #[test]
    fn the_next_peer_is_asked_when_one_does_not_answer() {
        let (mut pulls, mut heads) = (Pulls::new(), Heads::new());
        pulls.learn(A, head(X, 3), &heads);
        pulls.learn(B, head(X, 5), &heads);
        assert_eq!(pulls.due(0, &heads), [(B, vec![head(X, 0)])]);
        assert_eq!(pulls.expire(499), []);
        assert_eq!(pulls.expire(500), [B]);
        assert_eq!(pulls.due(500, &heads), [(A, vec![head(X, 0)])]);
        heads.note_applied(X, 3);
        pulls.answered(A, 501);
        assert_eq!(pulls.due(501, &heads), [(B, vec![head(X, 3)])], "A has no more");
        heads.note_applied(X, 5);
        pulls.satisfy(X, &heads);
        assert!(!pulls.is_behind());
    }

    #[test]
    fn who_is_busy_is_not_asked() {
        let (mut pulls, heads) = (Pulls::new(), Heads::new());
        pulls.learn(A, head(X, 3), &heads);
        assert_eq!(pulls.due(0, &heads).len(), 1);
        pulls.refused(A, 100, 1);
        assert_eq!(pulls.due(1, &heads), []);
        assert_eq!(pulls.next_deadline(), Some(100));
        pulls.expire(100);
        assert_eq!(pulls.due(100, &heads).len(), 1);
        pulls.forget(A);
        assert!(!pulls.is_behind());
    }
}
