//! Alarms that clients raise. They stay, through restarts, until a client ends them; what a full store does by itself is
//! the writer's own.
//!
//! Source: etcd `server/etcdserver/api/v3alarm`, and `apply/capped.go` and `apply/corrupt.go` for what they stop.

use std::collections::BTreeSet;

use parking_lot::RwLock;

use super::command::Command;
use super::quota::cost;
use crate::error::Error;
use crate::types::{Alarm, AlarmKind, MemberId};

/// Clients name members as they like: without a bound they could fill the memory with alarms.
const ALARMS_MAX: usize = 1024;

/// The alarms that are on, shared by the writer and readers.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: RwLock<BTreeSet<Alarm>>,
}

impl Alarms {
    /// All of them, in order.
    pub fn list(&self) -> Vec<Alarm> {
        self.raised.read().iter().copied().collect()
    }

    /// Whether there is one of a kind.
    pub fn is_raised(&self, kind: AlarmKind) -> bool {
        let least = Alarm { kind, member: MemberId(0) };
        self.raised.read().range(least..).next().is_some_and(|alarm| alarm.kind == kind)
    }

    /// Whether this one is on.
    pub fn contains(&self, alarm: Alarm) -> bool {
        self.raised.read().contains(&alarm)
    }

    /// Whether a command may be done. Nothing that changes data may while data is corrupt, and nothing that adds to
    /// it while there is no space. Whoever only reads does not ask.
    pub(super) fn check(&self, command: &Command) -> Result<(), Error> {
        if matches!(
            command,
            Command::Alarm { .. }
                | Command::Auth(_)
                | Command::SetLeader(_)
                | Command::Downgrade(_)
        ) || self.raised.read().is_empty()
        {
            return Ok(());
        }
        if self.is_raised(AlarmKind::Corrupt) {
            return Err(Error::Corrupt);
        }
        if self.is_raised(AlarmKind::NoSpace) && cost(command) > 0 {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Whether there is room for one more.
    pub(super) fn check_room(&self) -> Result<(), Error> {
        if self.raised.read().len() < ALARMS_MAX { Ok(()) } else { Err(Error::TooManyRequests) }
    }

    pub(super) fn raise(&self, alarm: Alarm) {
        self.raised.write().insert(alarm);
    }

    pub(super) fn end(&self, alarm: Alarm) {
        self.raised.write().remove(&alarm);
    }
}
