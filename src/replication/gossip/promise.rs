//! Promises on their way through the cluster.

use super::{Gossip, Output, PROMISE_STEP_BITS};
use crate::replication::heads::mix;
use crate::replication::message::{Message, Promise, Promises};
use crate::time::{Now, Timestamp};
use crate::types::MemberId;

impl Gossip {
    /// Our own promise is durable: passes it on to somebody, who passes it on in turn.
    pub(super) fn promised(&mut self, time: Timestamp, seq: u64, now: Now) {
        self.frontier.hear(Promise {
            member: self.me.member,
            run: self.me.run,
            time: coarse(time),
            seq,
            complete: coarse(self.frontier.complete()),
            current: coarse(self.frontier.current()),
        });
        self.conclude();
        self.table = self.hash_of_members();
        if let Some(peer) = self.dice.pick(&self.live).copied() {
            self.send_promises(peer, true, time, now);
        }
    }

    /// Draws the conclusions of all promises.
    pub(super) fn conclude(&mut self) {
        let before = self.frontier.settled();
        self.frontier.conclude(&self.membership, &self.heads);
        let settled = self.frontier.settled();
        if settled > before {
            self.outputs.push(Output::Settled(settled));
        }
    }

    fn send_promises(&mut self, to: MemberId, reply: bool, time: Timestamp, now: Now) {
        let rows = self.frontier.promises(&self.membership).collect();
        let table = self.table;
        let named = self.peers.get(&to).and_then(|peer| peer.table) != Some(table);
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
        let known: Vec<_> = self.frontier.promises(&self.membership).collect();
        let is_readable =
            promises.named || promises.table == self.table && promises.rows.len() == known.len();
        if is_readable {
            for (i, row) in promises.rows.into_iter().enumerate() {
                let row = if promises.named {
                    row
                } else {
                    Promise { member: known[i].member, run: known[i].run, ..row }
                };
                if self.membership.members.contains_key(&row.member) && row.run > 0 {
                    self.frontier.hear(row);
                }
            }
            self.table = self.hash_of_members();
        }
        if promises.reply {
            self.send_promises(from, false, promises.now, now);
        }
    }

    /// A hash of who the members are and which runs of theirs have promised, which is what rows without names rely on.
    pub(super) fn hash_of_members(&self) -> u64 {
        let promises = self.frontier.promises(&self.membership);
        promises.fold(0, |hash, promise| mix(mix(hash ^ promise.member.0) ^ promise.run))
    }
}

/// A time that is not later, in fewer bits.
fn coarse(time: Timestamp) -> Timestamp {
    Timestamp(time.0 >> PROMISE_STEP_BITS << PROMISE_STEP_BITS)
}
