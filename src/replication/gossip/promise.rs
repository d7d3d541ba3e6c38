//! Promises on their way through the cluster.

use super::{Gossip, Output, PROMISE_STEP_BITS};
use crate::replication::heads::mix;
use crate::replication::message::{Head, Message, Promise, Promises};
use crate::replication::settled::Membership;
use crate::time::{Now, Timestamp};
use crate::types::{MemberId, Origin};

/// In larger clusters promises go one way only: they get around, and nobody is in a hurry.
const REPLY_MEMBERS_MAX: usize = 64;

impl Gossip {
    /// Our own promise is durable: passes it on to somebody, who passes it on in turn.
    ///
    /// It says that this member knows what was written up to `current`, removals and new runs too. Others rely on it that
    /// whatever this member has to say of an end that it knows is among the entries that the promise covers. So it must not
    /// say what became known when those entries were on their way to the disk.
    pub(super) fn promised(&mut self, time: Timestamp, seq: u64, is_log_long: bool, now: Now) {
        let complete = coarse(self.frontier.complete());
        let current = coarse(self.current_when_pledged);
        self.note_dead(now.monotonic_millis);
        let held = if is_log_long { self.held_by_all_present(now).min(seq) } else { 0 };
        let Origin { member, run } = self.me;
        let promise = Promise { member, run, time: coarse(time), seq, complete, current, held };
        if let Some(number) = self.membership.number(member) {
            self.frontier.hear(number, &promise);
        }
        self.conclude();
        if let Some(peer) = self.dice.pick(&self.live).copied() {
            let reply = self.membership.members.len() <= REPLY_MEMBERS_MAX;
            self.send_promises(peer, reply, time, now);
        }
    }

    /// Takes note of who seems dead, and since when.
    fn note_dead(&mut self, millis: u64) {
        let (membership, live) = (&self.membership, &self.live);
        self.dead_since.retain(|member, _| {
            membership.members.contains_key(member) && live.binary_search(member).is_err()
        });
        for member in membership.numbers() {
            if *member != self.me.member && live.binary_search(member).is_err() {
                self.dead_since.entry(*member).or_insert(millis);
            }
        }
    }

    /// How far all members hold our entries that are not away.
    fn held_by_all_present(&self, now: Now) -> u64 {
        let is_away = |member: &MemberId| {
            let since = self.dead_since.get(member);
            since.is_some_and(|since| {
                now.monotonic_millis.saturating_sub(*since) >= self.options.away_millis
            })
        };
        let others = self.membership.numbers().iter().filter(|member| **member != self.me.member);
        others
            .filter(|member| !is_away(member))
            .map(|member| self.acknowledged(*member))
            .fold(self.heads.seq(self.me), u64::min)
    }

    /// Draws the conclusions of all promises.
    pub(super) fn conclude(&mut self) {
        let before = self.frontier.settled();
        self.frontier.conclude(&self.membership, &self.heads);
        let settled = self.frontier.settled();
        if settled > before {
            self.outputs.push(Output::Settled(settled));
        }
        self.retire_ended();
    }

    /// Leaves runs out of what is told that have ended, and that everybody holds to their end.
    fn retire_ended(&mut self) {
        let retired =
            |head: Head| Some((head.origin, self.frontier.retired(head, &self.membership)?));
        let retired: Vec<_> = self.heads.told().filter_map(retired).collect();
        for (origin, ended) in retired {
            self.heads.retire(origin);
            self.left_out = self.left_out.max(ended);
        }
    }

    fn send_promises(&mut self, to: MemberId, reply: bool, time: Timestamp, now: Now) {
        let rows = self.frontier.promises(&self.membership).collect();
        let table = self.table;
        // Most of the time everybody knows the same members.
        let known = self.peers.get(&to).and_then(|peer| peer.table);
        let named = known.is_some_and(|known| known != table);
        let wall_millis = now.wall_millis;
        self.send(
            to,
            Message::Promises(Promises { table, now: time, wall_millis, rows, named, reply }),
        );
    }

    pub(super) fn take_promises(&mut self, from: MemberId, promises: Promises, now: Now) {
        if !self.membership.members.contains_key(&from) {
            return;
        }
        self.peers.entry(from).or_default().table = Some(promises.table);
        self.outputs.push(Output::Observe(promises.now));
        if promises.named {
            for row in &promises.rows {
                if let Some(number) = self.membership.number(row.member) {
                    self.frontier.hear(number, row);
                }
            }
        } else if promises.table == self.table {
            self.frontier.hear_all(&promises.rows, &self.membership);
        } else {
            self.send_promises(from, true, promises.now, now);
            return;
        }
        if promises.reply {
            self.send_promises(from, false, promises.now, now);
        }
    }

    /// A hash of who the members are and which runs of theirs are current, which is what rows without names rely on.
    pub(super) fn hash_of_members(&self) -> u64 {
        let Membership { members, runs, .. } = &*self.membership;
        members.keys().fold(0, |hash, member| {
            let run = runs.get(member).map_or(0, |(run, _)| *run);
            mix(mix(hash ^ member.0) ^ run)
        })
    }
}

/// A time that is not later, in fewer bits.
fn coarse(time: Timestamp) -> Timestamp {
    Timestamp(time.0 >> PROMISE_STEP_BITS << PROMISE_STEP_BITS)
}
