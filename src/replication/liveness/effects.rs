//! What foca does to the world, and what can be learned of it from that.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use foca::{Member, Message, Notification, Runtime, Timer};

use super::Output;
use super::identity::Identity;
use super::options::PACKET_BYTES_MAX;
use super::timers::Timers;
use super::wire::{self, Packet};
use crate::types::{MemberId, Origin};

/// For so long a death is repeated on what is sent anyhow. News is passed on a few times only, and much of that is lost while half
/// of the members are out of reach: whoever missed it would find out by a probe of its own, which takes a second for each member.
const OBITUARY_MILLIS: u64 = 30_000;
/// Deaths repeated on one packet.
const OBITUARIES: usize = 100;

/// The probe under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub of: Identity,
    pub number: u8,
    pub at: u64,
}

/// What foca does to the world, and what can be learned of it from that.
#[derive(Debug)]
pub(super) struct Effects {
    pub me: Origin,
    pub now: u64,
    pub timers: Timers,
    pub outputs: Vec<Output>,
    pub live: BTreeSet<MemberId>,
    pub probe: Option<Probe>,
    /// Who has died lately, and when. Those at the front are repeated next.
    obituaries: VecDeque<(Identity, u64)>,
    /// Whom we have just come to suspect, and which incarnation of it.
    pub accused: Vec<(Identity, u16)>,
    /// Whether someone knows us by our identity of now.
    pub is_connected: bool,
    /// Whether that has just ceased to be.
    pub is_cut_off: bool,
    pub failed_probes: u64,
    pub returns: u64,
    /// When the last turn began, unless it is the first.
    pub returned_at: Option<u64>,
}

impl Effects {
    pub(super) fn new(me: Origin) -> Self {
        Self {
            me,
            now: 0,
            timers: Timers::default(),
            outputs: Vec::new(),
            live: BTreeSet::new(),
            probe: None,
            obituaries: VecDeque::new(),
            accused: Vec::new(),
            is_connected: false,
            is_cut_off: false,
            failed_probes: 0,
            returns: 0,
            returned_at: None,
        }
    }

    /// Sends a packet that is not foca's.
    pub(super) fn send(&mut self, to: MemberId, packet: Vec<u8>) {
        self.outputs.push(Output::Send(to, packet.into()));
    }

    pub(super) fn forget(&mut self, member: MemberId) {
        self.timers.forget(member);
        self.accused.retain(|(suspect, _)| suspect.member() != member);
        self.probe.take_if(|probe| probe.of.member() == member);
        self.take_back_obituary(member);
    }

    fn take_back_obituary(&mut self, member: MemberId) {
        self.obituaries.retain(|(dead, _)| dead.member() != member);
    }

    /// Repeats some of the latest deaths on a packet, in turn.
    fn with_obituaries(&mut self, bytes: Bytes) -> Bytes {
        let has_room = bytes.len() + OBITUARIES * wire::MEMBER_BYTES_MAX <= PACKET_BYTES_MAX;
        if self.obituaries.is_empty() || !has_room {
            return bytes;
        }
        let Ok(mut packet) = Packet::decode(&bytes) else { return bytes };
        self.add_obituaries(&mut packet);
        packet.encode().into()
    }

    fn add_obituaries(&mut self, packet: &mut Packet) {
        for _ in 0..OBITUARIES.min(self.obituaries.len()) {
            let Some((dead, at)) = self.obituaries.pop_front() else { return };
            if self.now < at + OBITUARY_MILLIS {
                packet.updates.push(Member::down(dead));
                self.obituaries.push_back((dead, at));
            }
        }
    }
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(id) => {
                if self.live.insert(id.member()) {
                    self.take_back_obituary(id.member());
                    self.outputs.push(Output::Alive(id.member()));
                }
            }
            Notification::MemberDown(id) => {
                if self.live.remove(&id.member()) {
                    self.obituaries.push_back((*id, self.now));
                    self.outputs.push(Output::Dead(id.member()));
                }
            }
            // One run or turn instead of another.
            Notification::Rename(..) => {}
            Notification::Active => self.is_connected = true,
            Notification::Idle => {
                self.is_connected = false;
                self.is_cut_off = true;
            }
            Notification::Rejoin(_) | Notification::Defunct => {
                self.is_connected = false;
                self.is_cut_off = true;
                self.returns += 1;
                self.returned_at = Some(self.now);
            }
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        let bytes = Bytes::copy_from_slice(data);
        let message = wire::header(&mut &*data).ok().map(|header| header.message);
        if let Some(Message::Ping(number)) = message {
            self.probe = Some(Probe { of: to, number, at: self.now });
        }
        let is_regular = matches!(message, Some(Message::Ping(_) | Message::Ack(_)));
        let bytes = if is_regular { self.with_obituaries(bytes) } else { bytes };
        self.outputs.push(Output::Send(to.member(), bytes));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
            self.failed_probes += 1;
            self.accused.push((*member_id, *incarnation));
        }
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.timers.put(self.now, self.now.saturating_add(after), timer);
    }
}
