//! What this member knows of one peer.

use std::collections::VecDeque;

use super::revisions::Revisions;

/// A peer, as far as digests and pushes are concerned.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Up to which of its arrivals it has told us, and in which epoch.
    pub(super) told: Option<(u32, u64)>,
    /// Up to which of our arrivals it has been told, as it says itself.
    pub(super) heard: Option<u64>,
    /// The arrivals of both at the last exchange with different roots, and how often nothing had changed since.
    pub(super) mismatch: Option<((u64, u64), u32)>,
    /// The table of members that it had last.
    pub(super) table: Option<u64>,
    /// It holds our entries up to this one.
    pub(super) acknowledged: u64,
    /// It was sent our entries up to this one; `None` until we know where it stands.
    pub(super) pushed: Option<u64>,
    /// What was pushed and not acknowledged: where it ends, and its bytes.
    pub(super) in_flight: VecDeque<(u64, usize)>,
    /// The bytes of all that.
    pub(super) in_flight_bytes: usize,
    /// Nobody there waits for what it sends to be acknowledged.
    pub(super) is_patient: bool,
    /// Its revisions, and ours.
    pub(super) revisions: Revisions,
}

impl Peer {
    /// It holds our entries up to `seq`. Answers whether that is news.
    pub(super) fn acknowledge(&mut self, seq: u64) -> bool {
        let is_news = seq > self.acknowledged;
        self.acknowledged = self.acknowledged.max(seq);
        while let Some((through, bytes)) = self.in_flight.front()
            && *through <= seq
        {
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
        is_news
    }

    /// It was sent our entries up to `through`.
    pub(super) fn push(&mut self, through: u64, bytes: usize) {
        self.pushed = Some(through);
        self.in_flight.push_back((through, bytes));
        self.in_flight_bytes += bytes;
    }

    /// What was pushed has not arrived, or is not to be waited for.
    pub(super) fn forget_pushes(&mut self) {
        self.pushed = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }
}
