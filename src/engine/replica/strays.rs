//! What a store that joins holds already: when it is written anew.

use super::{Effect, Replica};
use crate::error::StoreError;
use crate::replication::message::Message;
use crate::time::Now;
use crate::types::MemberId;

/// When somebody may ask again for the data of a member that has not written all of it yet.
const BUSY_MILLIS: u64 = 1000;

impl Replica {
    /// Writes some of it, with the open batch, when the others' data is here.
    pub(super) fn write_strays(&mut self, now: Now) -> Result<(), StoreError> {
        let is_catching_up = self.gossip().is_some_and(|gossip| gossip.catching_up().is_some());
        // Times of a clock that is off would hide what others write.
        let is_time = self.has_caught_up() && !is_catching_up && self.may_write();
        if self.cluster.is_none() || !self.writer.has_strays() || !is_time {
            return Ok(());
        }
        if self.writer.has_former() {
            self.tell_lost()?;
        } else {
            self.writer.write_strays(now)?;
        }
        if !self.writer.has_strays() {
            self.effects.push(Effect::Ready);
        }
        Ok(())
    }

    /// Looks through what a former owner of the store has left.
    fn tell_lost(&mut self) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let lost = self.writer.find_lost(&cluster.directory.membership)?;
        if !lost.is_empty() {
            self.effects.push(Effect::Lost(lost));
        }
        Ok(())
    }

    /// Answers what is left of a message: nobody gets the data of a member that is yet to write it.
    pub(super) fn withhold_strays(&mut self, from: MemberId, message: Message) -> Option<Message> {
        let asks = matches!(message, Message::CatchUp(_) | Message::Compare(_));
        if !asks || !self.writer.has_strays() {
            return Some(message);
        }
        self.effects.push(Effect::Send(from, Message::Busy { retry_millis: BUSY_MILLIS }));
        None
    }
}
