//! Members that are dead for too long are removed, if somebody wants that: they hold back what may be forgotten.
//!
//! Only whoever hears of a majority of all members may tell who is dead: the others may be on the wrong side of a cut. And only
//! what was seen without a break counts, neither before a time without a majority nor before this process stood still.

use std::collections::BTreeMap;

use super::{Effect, Replica};
use crate::error::StoreError;
use crate::time::Now;
use crate::types::MemberId;

/// How often it is looked who is dead.
const LOOK_MILLIS: u64 = 1000;
/// A look that is so late means that the process stood still.
const LATE_MILLIS: u64 = 5000;
/// The others wait for the first one among the living to do it, and each for those before it.
const TURN_MILLIS: u64 = 2000;

/// Since when members are dead.
#[derive(Debug, Default)]
pub(super) struct Dead {
    since: BTreeMap<MemberId, u64>,
    next_look: u64,
}

impl Dead {
    pub(super) fn wake_at(&self, is_wanted: bool) -> u64 {
        if is_wanted { self.next_look } else { u64::MAX }
    }
}

impl Replica {
    /// Removes who is dead for too long.
    pub(super) fn remove_dead(&mut self, now: Now) -> Result<(), StoreError> {
        let Some(after_millis) = self.options.remove_dead_after_millis else { return Ok(()) };
        let (is_fit, me) = (self.is_ready() && self.may_write(), self.writer.identity().member);
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let (dead, millis) = (&mut cluster.dead, now.monotonic_millis);
        if millis < dead.next_look {
            return Ok(());
        }
        let is_late = millis > dead.next_look + LATE_MILLIS;
        dead.next_look = millis + LOOK_MILLIS;
        let lives = |member: &MemberId| *member == me || cluster.live.binary_search(member).is_ok();
        let voices = cluster.directory.voters().filter(lives).count();
        if is_late || !is_fit || voices < cluster.directory.majority() {
            dead.since.clear();
            return Ok(());
        }
        let members = &cluster.directory.members;
        dead.since.retain(|member, _| members.contains_key(member) && !lives(member));
        for (member, record) in members {
            if record.is_started() && !lives(member) {
                dead.since.entry(*member).or_insert(millis);
            }
        }
        let turn = cluster.live.partition_point(|peer| *peer < me) as u64;
        let patience = after_millis.saturating_add(turn * TURN_MILLIS);
        let is_due = |since: &u64| millis.saturating_sub(*since) >= patience;
        let due: Vec<_> = dead.since.extract_if(.., |_, since| is_due(since)).collect();
        for (member, _) in due {
            let writes = self.removal_of(member);
            self.write(writes, now)?;
            self.effects.push(Effect::RemovedDead(member));
        }
        Ok(())
    }
}
