//! Who seems alive: SWIM, with what a cluster of databases knows besides.
//!
//! Every member probes one other a second. If that does not answer, three others probe it as well; if they have nothing to
//! report either, it is suspected, and if it does not object in time, it is dead to everybody. What is found out travels on the probes.
//! See Das, Gupta, Motivala, "SWIM" (2002). The protocol is the crate `foca`; what is here around it:
//!
//! * **Members are given** ([`Liveness::set_members`]); nobody becomes one by being talked about. Whoever is not known to
//!   be alive is called now and then, quickly at first: so members find each other at the start, and after a cut.
//! * **Any traffic is life** ([`Liveness::heard_from`]): a member that sends us data needs no answer to our probe, and is not
//!   declared dead for want of one.
//! * **A pause is our own fault**: when we are called much later than we asked for, every deadline moves by that and by
//!   [`GRACE_MILLIS`], so that what has piled up is read before anybody is suspected (after Dadgar, Phillips, Currey,
//!   "Lifeguard", 2017).
//! * **A suspect is told at once**, so that its objection does not depend on gossip reaching it.
//! * **The dead come back**: in SWIM, dead is final. So a run of a member has turns, and one that hears of its death
//!   takes the next. A higher run of a member replaces all turns of those before it.
//!
//! This steers traffic and decides nothing: who belongs to the cluster is data (see [`super::settled`]).
//!
//! Invariants
//! * [`Output::Alive`] and [`Output::Dead`] of a member take turns; together they are [`Liveness::live`].
//! * Nothing is kept or sent about anyone who is not a member. All that is kept is bounded by the number of members.

mod chance;
mod effects;
mod identity;
mod options;
#[cfg(test)]
mod tests;
mod timers;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use foca::{Foca, Header, Member, Message, NoCustomBroadcast, Timer};

use super::dice::Dice;
use crate::time::Now;
use crate::types::{MemberId, Origin};
use chance::Chance;
use effects::Effects;
use identity::Identity;
pub use options::{Options, PACKET_BYTES_MAX};
use wire::{Packet, Wire};

/// Called so much later than asked for, we were paused. Less than that is the usual delay of a busy machine.
pub const LATE_MILLIS: u64 = 250;
/// After a pause deadlines move so much further: time to read what has come meanwhile.
pub const GRACE_MILLIS: u64 = 1000;
/// That time is given so often at most: who is always late must find the dead all the same.
const GRACE_AGAIN_MILLIS: u64 = 10_000;
/// How many of those that are not known to be alive are called at once.
const CALLS: usize = 3;
/// Someone who is heard, and yet not known to be alive, is called this often at most.
const CALL_AGAIN_MILLIS: u64 = 1000;
/// A member takes another turn so often at most. Peers that remember a later run of it would send it from turn to turn.
const RETURN_AGAIN_MILLIS: u64 = 1000;
/// While calls are in vain, the time to the next ones grows by a half.
const BACK_OFF: (u64, u64) = (3, 2);
/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers, or others say so.
    Alive,
    /// It does not answer, or others say so, and may still object. It counts as live.
    Suspect,
    /// It does not answer, or has never been heard of.
    Dead,
}

/// What the failure detector wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to a peer, for its [`Liveness::receive`]; it may get lost.
    Send(MemberId, Bytes),
    /// A peer is live from now on.
    Alive(MemberId),
    /// A peer is not live any more: it seems dead, or it is no member any more.
    Dead(MemberId),
}

/// Counters of the failure detector, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Probes of our own without an answer.
    pub failed_probes: u64,
    /// Pauses of our own.
    pub pauses: u64,
    /// How often others took us for dead.
    pub returns: u64,
    /// Packets that could not be read, or were none of our business.
    pub refused: u64,
}

/// A peer, as far as foca does not know it.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// When anything last came from it.
    heard_at: Option<u64>,
    /// When it was last called because it was heard.
    called_at: Option<u64>,
}

/// The failure detector of one member.
pub struct Liveness {
    foca: Foca<Identity, Wire, Chance, NoCustomBroadcast>,
    effects: Effects,
    options: Options,
    dice: Dice,
    peers: BTreeMap<MemberId, Peer>,
    call_interval: u64,
    next_call: u64,
    /// When grace is given again.
    next_grace: u64,
    /// There is news to pass on.
    next_gossip: Option<u64>,
    counts: Counts,
}

impl Liveness {
    /// A run of a member, which knows of nobody yet.
    pub fn new(me: Origin, options: Options, seed: u64, now: Now) -> Self {
        let mut dice = Dice::new(seed);
        let chance = Chance(Dice::new(dice.roll()));
        Self {
            foca: Foca::new(Identity::new(me), options.config(1), chance, Wire),
            effects: Effects::new(me),
            call_interval: options.call_millis,
            next_call: now.monotonic_millis,
            next_grace: now.monotonic_millis,
            next_gossip: None,
            options,
            dice,
            peers: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Says who the members are, with or without this one. Those who are left out are forgotten.
    pub fn set_members(&mut self, members: &[MemberId], now: Now) -> Vec<Output> {
        let millis = self.begin(now);
        let me = self.effects.me.member;
        let members: BTreeSet<_> = members.iter().copied().filter(|m| *m != me).collect();
        let gone = self.peers.keys().filter(|peer| !members.contains(peer));
        for peer in gone.copied().collect::<Vec<_>>() {
            self.forget(peer);
        }
        let known = self.peers.len();
        for member in &members {
            self.peers.entry(*member).or_default();
        }
        if self.peers.len() > known {
            self.call_soon(millis);
        }
        let config = self.options.config(members.len() + 1);
        self.foca.set_config(config).expect("what foca does not let change is the same");
        self.finish()
    }

    /// Takes what a peer has sent by [`Output::Send`]. Bytes that are no packet from a peer to us change nothing.
    pub fn receive(&mut self, bytes: &[u8], from: MemberId, now: Now) -> Vec<Output> {
        let millis = self.begin(now);
        match self.accept(bytes, from) {
            Some(packet) => {
                self.note_heard(from, millis);
                self.take(packet);
            }
            None => self.counts.refused += 1,
        }
        self.finish()
    }

    /// Takes note that anything else has come from a peer. It sends nothing, unless that peer was not known to be alive.
    pub fn heard_from(&mut self, member: MemberId, now: Now) -> Vec<Output> {
        let millis = self.begin(now);
        self.note_heard(member, millis);
        if !self.effects.live.contains(&member)
            && let Some(peer) = self.peers.get_mut(&member)
            && peer.called_at.is_none_or(|at| millis >= at + CALL_AGAIN_MILLIS)
        {
            peer.called_at = Some(millis);
            self.call(member);
        }
        self.finish()
    }

    /// To be called when [`Self::wake_at`] says so.
    pub fn tick(&mut self, now: Now) -> Vec<Output> {
        self.begin(now);
        self.finish()
    }

    /// When to call [`Self::tick`] at the latest, in monotonic milliseconds. Being called much later counts as a pause of our
    /// own.
    pub fn wake_at(&self) -> u64 {
        if self.peers.is_empty() {
            return u64::MAX;
        }
        let timers = [self.effects.timers.next(), self.next_gossip];
        timers.into_iter().flatten().fold(self.next_call, u64::min)
    }

    /// The peers that are not dead, in order.
    pub fn live(&self) -> Vec<MemberId> {
        self.effects.live.iter().copied().collect()
    }

    /// What is known of a member. We ourselves are alive.
    pub fn state(&self, member: MemberId) -> State {
        if member == self.effects.me.member {
            return State::Alive;
        }
        if !self.effects.live.contains(&member) {
            return State::Dead;
        }
        let is_suspect =
            self.find(member).is_some_and(|known| known.state() == foca::State::Suspect);
        if is_suspect { State::Suspect } else { State::Alive }
    }

    /// The peers that do not answer and may still object.
    pub fn suspects(&self) -> BTreeSet<MemberId> {
        let known = self.foca.iter_membership_state();
        let suspects = known.filter(|known| known.state() == foca::State::Suspect);
        let live = &self.effects.live;
        suspects.map(|known| known.id().member()).filter(|peer| live.contains(peer)).collect()
    }

    /// When anything last came from a peer, in monotonic milliseconds.
    pub fn heard_at(&self, member: MemberId) -> Option<u64> {
        self.peers.get(&member).and_then(|peer| peer.heard_at)
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        Counts {
            failed_probes: self.effects.failed_probes,
            returns: self.effects.returns,
            ..self.counts
        }
    }

    fn find(&self, member: MemberId) -> Option<&Member<Identity>> {
        self.foca.iter_membership_state().find(|known| known.id().member() == member)
    }

    /// Time has passed: too much of it, if we come late.
    fn begin(&mut self, now: Now) -> u64 {
        let millis = now.monotonic_millis;
        self.effects.now = millis;
        let late = millis.saturating_sub(self.wake_at());
        if late > LATE_MILLIS {
            self.counts.pauses += 1;
            let grace = self.grace();
            self.effects.timers.postpone(late + grace);
        }
        millis
    }

    fn grace(&mut self) -> u64 {
        if self.effects.now < self.next_grace {
            return 0;
        }
        self.next_grace = self.effects.now + GRACE_AGAIN_MILLIS;
        GRACE_MILLIS
    }

    /// Reads a packet, and leaves out of it what is none of our business.
    fn accept(&self, bytes: &[u8], from: MemberId) -> Option<Packet> {
        if bytes.len() > PACKET_BYTES_MAX || !self.peers.contains_key(&from) {
            return None;
        }
        let mut packet = Packet::decode(bytes).ok()?;
        let is_ours = packet.header.dst.member() == self.effects.me.member;
        if packet.header.src.member() != from || !is_ours {
            return None;
        }
        let me = *self.foca.identity();
        let may_return = self.may_return();
        let is_our_death = packet.header.message == Message::TurnUndead && packet.header.dst == me;
        if is_our_death && !may_return {
            return None;
        }
        packet.updates.retain(|update| {
            // What is said of our former turns is old.
            let is_about_me =
                *update.id() == me && (update.state() != foca::State::Down || may_return);
            is_about_me || self.peers.contains_key(&update.id().member())
        });
        Some(packet)
    }

    fn may_return(&self) -> bool {
        let again_at = self.effects.returned_at.map(|at| at + RETURN_AGAIN_MILLIS);
        again_at.is_none_or(|at| self.effects.now >= at)
    }

    fn take(&mut self, mut packet: Packet) {
        let me = *self.foca.identity();
        if me.replaces(packet.header.dst) {
            // The sender has not heard of our latest turn, and learns of it by any answer.
            if packet.header.message == Message::TurnUndead {
                let hello = self.packet(me, packet.header.src, Message::Gossip);
                self.effects.send(packet.header.src.member(), hello.encode());
                return;
            }
            packet.header.dst = me;
        }
        // Foca would pass on as news all that it is told of the others when it joins.
        let is_feed = packet.header.message == Message::Feed;
        let others = if is_feed { std::mem::take(&mut packet.updates) } else { Vec::new() };
        let bytes = packet.encode();
        let result = self.foca.handle_data(&bytes, &mut self.effects);
        self.note(result);
        if !others.is_empty() {
            let result = self.foca.apply_many(others.into_iter(), false, &mut self.effects);
            self.note(result);
        }
    }

    fn note(&mut self, result: Result<(), foca::Error>) {
        if result.is_err() {
            self.counts.refused += 1;
        }
    }

    fn note_heard(&mut self, member: MemberId, millis: u64) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.heard_at = Some(millis);
        }
    }

    fn run_timers(&mut self) {
        let now = self.effects.now;
        while let Some((set_at, timer)) = self.effects.timers.take_due(now) {
            self.run_timer(set_at, timer);
        }
        if now >= self.next_call {
            self.call_some();
        }
        if self.next_gossip.is_some_and(|at| now >= at) {
            self.next_gossip = None;
            let result = self.foca.gossip(&mut self.effects);
            self.note(result);
        }
    }

    fn run_timer(&mut self, set_at: u64, timer: Timer<Identity>) {
        match &timer {
            Timer::SendIndirectProbe { .. } | Timer::ProbeRandomMember(_) => self.vouch(),
            // The next probe that fails begins anew.
            Timer::ChangeSuspectToDown { member_id, .. }
                if self.heard_at(member_id.member()) >= Some(set_at) =>
            {
                return;
            }
            _ => {}
        }
        let result = self.foca.handle_timer(timer, &mut self.effects);
        self.note(result);
    }

    /// If anything has come from the member being probed since then, that is as good as its answer.
    fn vouch(&mut self) {
        let Some(probe) = self.effects.probe else { return };
        if self.heard_at(probe.of.member()) < Some(probe.at) {
            return;
        }
        let message = Message::Ack(probe.number);
        let answer = self.packet(probe.of, *self.foca.identity(), message);
        let result = self.foca.handle_data(&answer.encode(), &mut self.effects);
        self.note(result);
    }

    /// A packet without news. An incarnation of zero says nothing.
    fn packet(&self, src: Identity, dst: Identity, message: Message<Identity>) -> Packet {
        let header = Header { src, src_incarnation: 0, dst, message };
        Packet { header, updates: Vec::new() }
    }

    /// Calls some of those who are not known to be alive, or some of all while nobody knows us.
    fn call_some(&mut self) {
        let now = self.effects.now;
        let live = &self.effects.live;
        let is_connected = self.effects.is_connected;
        let absent = self.peers.keys().filter(|peer| !(is_connected && live.contains(peer)));
        let mut absent: Vec<_> = absent.copied().collect();
        for _ in 0..CALLS.min(absent.len()) {
            let number = self.dice.below(absent.len() as u64);
            let member = absent.swap_remove(usize::try_from(number).expect("below a length"));
            self.call(member);
        }
        self.next_call = now + self.dice.jitter(self.call_interval);
        let (grows, by) = BACK_OFF;
        self.call_interval = (self.call_interval * grows / by).min(self.options.call_max_millis);
    }

    fn call(&mut self, member: MemberId) {
        let result = self.foca.announce(Identity::any_run(member), &mut self.effects);
        self.note(result);
    }

    fn call_soon(&mut self, at: u64) {
        self.call_interval = self.options.call_millis;
        // Nobody was there to be called if it is long past.
        let is_past = self.next_call < self.effects.now;
        self.next_call = if is_past { at } else { self.next_call.min(at) };
    }

    fn forget(&mut self, member: MemberId) {
        if let Some(known) = self.find(member) {
            let identity = *known.id();
            let down = std::iter::once(Member::down(identity));
            let result = self.foca.apply_many(down, false, &mut self.effects);
            self.note(result);
            let result = self.foca.handle_timer(Timer::RemoveDown(identity), &mut self.effects);
            self.note(result);
        }
        self.effects.forget(member);
        self.peers.remove(&member);
    }

    /// Does what is due. Answers what is to be done about that, and about what has happened.
    fn finish(&mut self) -> Vec<Output> {
        self.run_timers();
        for (suspect, incarnation) in std::mem::take(&mut self.effects.accused) {
            // Its answer is its objection.
            let mut packet = self.packet(*self.foca.identity(), suspect, Message::Ping(0));
            packet.updates.push(Member::new(suspect, incarnation, foca::State::Suspect));
            self.effects.send(suspect.member(), packet.encode());
        }
        if std::mem::take(&mut self.effects.is_cut_off) {
            self.call_soon(self.effects.now + self.options.gossip_millis);
        }
        let has_news = self.foca.updates_backlog() > 0 && self.effects.is_connected;
        if !has_news {
            self.next_gossip = None;
        } else if self.next_gossip.is_none() {
            self.next_gossip = Some(self.effects.now + self.options.gossip_millis);
        }
        let mut outputs = std::mem::take(&mut self.effects.outputs);
        outputs.retain(
            |output| !matches!(output, Output::Send(to, _) if !self.peers.contains_key(to)),
        );
        outputs
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<_> = self.foca.iter_membership_state().collect();
        f.debug_struct("Liveness")
            .field("identity", self.foca.identity())
            .field("members", &members)
            .field("effects", &self.effects)
            .finish_non_exhaustive()
    }
}
