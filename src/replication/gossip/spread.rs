//! How news gets around: straight from its origin where there are few members, by announcements where there are many.

use std::collections::BTreeSet;

use super::{
    ANNOUNCE_BYTES_PER_SECOND, ANNOUNCE_WINDOW_MAX_MILLIS, ANNOUNCED_HEAD_BYTES, Gossip, HEADS_MAX,
    INLINE_PAUSE_MILLIS, Output, SEGMENTS_BYTES_MAX,
};
use crate::replication::message::{Head, Message, Segments};
use crate::time::Now;
use crate::types::{MemberId, Origin};

/// How long acknowledgements are gathered that nobody waits for.
const ACKNOWLEDGE_MILLIS: u64 = 10;
/// How long own entries are gathered that nobody waits for, after some have been sent: fewer messages have less work in them,
/// here and where each makes a batch of its own.
const GATHER_MILLIS: u64 = 4;

impl Gossip {
    /// Heads have moved: tells those who want to know.
    pub(super) fn spread(&mut self, moved: &BTreeSet<Origin>, now: Now) {
        if moved.is_empty() {
            return;
        }
        self.hurry(now);
        if self.is_direct() {
            if moved.contains(&self.me) {
                let due = if self.is_awaited { 0 } else { self.pushed_millis + GATHER_MILLIS };
                self.next_push.get_or_insert(due);
                self.push_when_due(now);
            }
            let me = self.me;
            for origin in moved.iter().filter(|origin| **origin != me) {
                if self.peers.get(&origin.member).is_some_and(|peer| peer.is_patient) {
                    let due = now.monotonic_millis + ACKNOWLEDGE_MILLIS;
                    self.next_acknowledge.get_or_insert(due);
                    self.unacknowledged.insert(*origin);
                } else {
                    self.acknowledge(*origin);
                }
            }
            return;
        }
        self.dirty.extend(moved);
        if moved.contains(&self.me) && self.send_inline(now) {
            self.dirty.remove(&self.me);
        }
        if self.dirty.is_empty() {
            return;
        }
        let window = self.announce_window();
        self.next_announce.get_or_insert(now.monotonic_millis + window);
    }

    /// Tells those who wait for nothing what has become durable since they were told last.
    pub(super) fn acknowledge_when_due(&mut self, now: Now) {
        if self.next_acknowledge.is_none_or(|due| due > now.monotonic_millis) {
            return;
        }
        self.next_acknowledge = None;
        for origin in std::mem::take(&mut self.unacknowledged) {
            self.acknowledge(origin);
        }
    }

    /// Tells the origin of some entries that they are durable here.
    pub(super) fn acknowledge(&mut self, origin: Origin) {
        self.unacknowledged.remove(&origin);
        if self.live.binary_search(&origin.member).is_ok() {
            let head = Head { origin, seq: self.heads.seq(origin) };
            self.send(origin.member, Message::Announce(vec![head]));
        }
    }

    pub(super) fn acknowledged_by(&mut self, from: MemberId, seq: u64) {
        if !self.membership.members.contains_key(&from) {
            return;
        }
        let peer = self.peers.entry(from).or_default();
        if peer.acknowledge(seq) {
            self.outputs.push(Output::Acknowledged(from, seq));
        }
        if self.is_direct() && self.next_push.is_none() {
            self.push_to(from);
        }
    }

    /// Sends own entries to all, if that is due.
    pub(super) fn push_when_due(&mut self, now: Now) {
        let now_millis = now.monotonic_millis;
        if self.next_push.is_none_or(|due| due > now_millis && !self.is_awaited) {
            return;
        }
        self.next_push = None;
        self.pushed_millis = now_millis;
        for peer in self.live.clone() {
            self.push_to(peer);
        }
    }

    /// Sends a peer what it lacks of our own entries, as long as it keeps up.
    pub(super) fn push_to(&mut self, to: MemberId) {
        if self.live.binary_search(&to).is_err() {
            return;
        }
        let head = Head { origin: self.me, seq: self.heads.seq(self.me) };
        let peer = self.peers.entry(to).or_default();
        let mut pushed = peer.pushed.unwrap_or(peer.acknowledged).max(peer.acknowledged);
        while pushed < head.seq.max(self.offered) {
            let peer = self.peers.entry(to).or_default();
            if peer.in_flight_bytes >= self.options.push_window_bytes {
                // It gets the rest as it acknowledges this.
                return;
            }
            let want = Head { origin: self.me, seq: pushed };
            let Some(segment) = self.recent.behind(want, SEGMENTS_BYTES_MAX) else {
                // Too long ago to be in memory: it has to ask.
                peer.pushed = Some(head.seq);
                self.send(to, Message::Announce(vec![head]));
                return;
            };
            pushed = segment.through;
            peer.push(pushed, segment.bytes());
            let (segments, collected) = (vec![segment], self.collected);
            let traces = self.traced.within(&segments);
            let patient = !self.is_awaited && traces.is_empty();
            let (answers, has_holes) = (false, false);
            let segments = Segments { segments, collected, answers, has_holes, traces, patient };
            self.send(to, Message::Segments(segments));
        }
    }

    /// How long moves are gathered: the more there is to say, the longer.
    fn announce_window(&self) -> u64 {
        let fan_out = self.fan_out() as u64;
        let bytes = self.dirty.len() as u64 * ANNOUNCED_HEAD_BYTES * fan_out;
        let window = bytes * 1000 / ANNOUNCE_BYTES_PER_SECOND;
        window.clamp(self.options.announce_millis, ANNOUNCE_WINDOW_MAX_MILLIS)
    }

    /// To how many random peers news is announced: enough for all but some e^-f of them to hear it that way.
    fn fan_out(&self) -> usize {
        let members = self.membership.members.len().max(2);
        let (mut digits, mut rest) = (0_u64, members);
        // Ten times the decimal logarithm, by halves: no floating point, the same everywhere.
        while rest > 1 {
            rest /= 2;
            digits += 3;
        }
        usize::try_from((digits * 3).div_ceil(10)).unwrap_or(3).max(3)
    }

    pub(super) fn announce_when_due(&mut self, now: Now) {
        if self.next_announce.is_none_or(|due| due > now.monotonic_millis) {
            return;
        }
        self.next_announce = None;
        if self.dirty.contains(&self.me) {
            self.told_own = (self.heads.seq(self.me), now.monotonic_millis);
        }
        let heads: Vec<_> = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|origin| Head { origin, seq: self.heads.seq(origin) })
            .collect();
        let listeners = self.listeners();
        for heads in heads.chunks(HEADS_MAX) {
            for peer in &listeners {
                self.send(*peer, Message::Announce(heads.to_vec()));
            }
        }
    }

    /// Sends own entries to those who would be told of them, if they are few and the first for a while: they need not ask, and
    /// nobody waits for the announcement. Answers whether it did.
    fn send_inline(&mut self, now: Now) -> bool {
        let (told, told_millis) = self.told_own;
        let is_quiet = now.monotonic_millis >= told_millis + INLINE_PAUSE_MILLIS;
        if !is_quiet || self.options.inline_bytes == 0 {
            return false;
        }
        let want = Head { origin: self.me, seq: told };
        let head = self.heads.seq(self.me);
        let Some(segment) = self.recent.behind(want, self.options.inline_bytes) else {
            return false;
        };
        if segment.through < head || segment.bytes() > self.options.inline_bytes {
            return false;
        }
        self.told_own = (head, now.monotonic_millis);
        let (segments, collected) = (vec![segment], self.collected);
        let traces = self.traced.within(&segments);
        let (answers, has_holes, patient) = (false, false, true);
        let segments = Segments { segments, collected, answers, has_holes, traces, patient };
        for peer in self.listeners() {
            self.send(peer, Message::Segments(segments.clone()));
        }
        true
    }

    /// A few random peers, and both neighbours in the ring of all members, so that everybody is somebody's neighbour.
    fn listeners(&mut self) -> Vec<MemberId> {
        let mut listeners = BTreeSet::new();
        let ring = self.live.partition_point(|peer| *peer < self.me.member);
        if let (Some(next), Some(previous)) = (
            self.live.get(ring).or_else(|| self.live.first()),
            self.live[..ring].last().or_else(|| self.live.last()),
        ) {
            listeners.extend([*next, *previous]);
        }
        let wanted = (self.fan_out() + listeners.len()).min(self.live.len());
        // Small zones have fewer members than listeners are wanted; one choice in four is among all.
        while listeners.len() < wanted {
            listeners.extend(self.somebody());
        }
        listeners.into_iter().collect()
    }
}
