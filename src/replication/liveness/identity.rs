//! Who a member is to the failure detector: which run of it, and which turn of that run.

use crate::types::{MemberId, Origin};

/// A run of a member that was declared dead cannot come back: it takes another turn. A higher run ends all turns of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub origin: Origin,
    pub turn: u32,
}

impl Identity {
    /// The first turn of a run.
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, turn: 0 }
    }

    /// Whichever run of a member is there now.
    pub(super) fn any_run(member: MemberId) -> Self {
        Self::new(Origin { member, run: 0 })
    }

    /// Whether this is a later run or turn of the same member.
    pub(super) fn replaces(self, other: Self) -> bool {
        self.origin.member == other.origin.member
            && (self.origin.run, self.turn) > (other.origin.run, other.turn)
    }

    /// The member.
    pub(super) fn member(self) -> MemberId {
        self.origin.member
    }
}

impl foca::Identity for Identity {
    type Addr = MemberId;

    fn renew(&self) -> Option<Self> {
        let turn = self.turn.checked_add(1)?;
        Some(Self { turn, ..*self })
    }

    fn addr(&self) -> MemberId {
        self.origin.member
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.replaces(*adversary)
    }
}
