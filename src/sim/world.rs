//! Virtual time: actors, and what happens to them in which order. One seed, one story.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::network::Network;
use crate::replication::heads::mix;
use crate::replication::message::Message;
use crate::time::Now;
use crate::transport::wire::frame_bytes;
use crate::types::MemberId;

/// 2024-01-01, so that wall clocks in the simulation look like wall clocks.
const EPOCH_MILLIS: u64 = 1_704_067_200_000;

/// The wall clock and the monotonic clock at a virtual time.
pub fn now_at(micros: u64) -> Now {
    let millis = micros / 1000;
    Now { wall_millis: EPOCH_MILLIS + millis, monotonic_millis: millis }
}

/// Someone who gets messages and wakes up.
pub trait Actor {
    /// A message has come.
    fn receive(&mut self, micros: u64, from: MemberId, message: Message);
    /// It is time for what [`Self::wake_at`] has said, or later.
    fn wake(&mut self, micros: u64);
    /// When it wants to wake up, in virtual microseconds.
    fn wake_at(&self) -> u64;
    /// What it has to send.
    fn take_sent(&mut self) -> Vec<(MemberId, Message)>;
    /// Whether it is there at all: messages to one that is not get lost.
    fn is_up(&self) -> bool;
}

enum Event {
    Deliver { to: usize, from: MemberId, message: Box<Message> },
    Wake { actor: usize },
}

/// What went over the network from one actor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Entries sent, each as often as it was sent.
    pub entries: u64,
}

/// Actors on a network.
pub struct World<A> {
    /// In the order of their numbers.
    pub actors: Vec<A>,
    /// Between them.
    pub network: Network,
    /// By the numbers of the senders.
    pub traffic: Vec<Traffic>,
    micros: u64,
    trace: u64,
    /// By time, then by order of appearance, then what.
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    count: u64,
    /// When each actor is to be woken next.
    wakes: Vec<u64>,
    numbers: BTreeMap<MemberId, usize>,
    names: Vec<MemberId>,
}

impl<A: Actor> World<A> {
    /// Time begins.
    pub fn new(network: Network) -> Self {
        Self {
            actors: Vec::new(),
            network,
            traffic: Vec::new(),
            micros: 0,
            trace: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            count: 0,
            wakes: Vec::new(),
            numbers: BTreeMap::new(),
            names: Vec::new(),
        }
    }

    /// Adds an actor that is reached as `member`. Answers its number.
    pub fn add(&mut self, member: MemberId, actor: A) -> usize {
        let number = self.actors.len();
        self.numbers.insert(member, number);
        self.names.push(member);
        self.actors.push(actor);
        self.traffic.push(Traffic::default());
        self.wakes.push(u64::MAX);
        self.settle(number);
        number
    }

    /// From now on an actor is reached as someone else.
    pub fn rename(&mut self, number: usize, member: MemberId) {
        self.numbers.insert(member, number);
        self.names[number] = member;
    }

    /// The virtual time.
    pub fn micros(&self) -> u64 {
        self.micros
    }

    /// A hash of everything that has happened so far: what, when, to whom, and what was sent.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what);
    }

    /// Lets someone act from outside, now.
    pub fn with<T>(&mut self, number: usize, act: impl FnOnce(&mut A, u64) -> T) -> T {
        let result = act(&mut self.actors[number], self.micros);
        self.settle(number);
        result
    }

    /// Takes what an actor has sent, and notes when it wants to wake.
    fn settle(&mut self, number: usize) {
        for (to, message) in self.actors[number].take_sent() {
            self.send(number, to, message);
        }
        let wake = self.actors[number].wake_at().max(self.micros);
        if wake < self.wakes[number] || self.wakes[number] <= self.micros {
            self.wakes[number] = wake;
            if wake < u64::MAX {
                self.schedule(wake, Event::Wake { actor: number });
            }
        }
    }

    fn send(&mut self, number: usize, to: MemberId, message: Message) {
        let bytes = frame_bytes(&message);
        let traffic = &mut self.traffic[number];
        traffic.messages += 1;
        traffic.bytes += bytes as u64;
        if let Message::Segments(segments) = &message {
            let entries = segments.segments.iter().map(|segment| segment.entries.len() as u64);
            traffic.entries += entries.sum::<u64>();
        }
        self.note(bytes as u64);
        let Some(&to) = self.numbers.get(&to) else { return };
        let from = self.names[number];
        let (first, again) = self.network.deliveries(self.micros, number, to, bytes);
        if let Some(at) = again {
            let message = Box::new(message.clone());
            self.schedule(at, Event::Deliver { to, from, message });
        }
        if let Some(at) = first {
            self.schedule(at, Event::Deliver { to, from, message: Box::new(message) });
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.count += 1;
        self.queue.push(Reverse((at, self.count, slot)));
    }

    /// The time of the next event, if there is one.
    pub fn next_event(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Lets the next event happen. Answers whom it concerned.
    pub fn step(&mut self) -> Option<usize> {
        let Reverse((at, _, slot)) = self.queue.pop()?;
        self.micros = at;
        self.note(at);
        self.free.push(slot);
        let number = match self.events[slot].take()? {
            Event::Deliver { to, from, message } => {
                if self.actors[to].is_up() {
                    self.actors[to].receive(at, from, *message);
                }
                to
            }
            Event::Wake { actor } => {
                if self.wakes[actor] == at {
                    self.wakes[actor] = u64::MAX;
                    self.actors[actor].wake(at);
                }
                actor
            }
        };
        self.note(number as u64);
        self.settle(number);
        Some(number)
    }

    /// Lets everything happen up to a time.
    pub fn run_until(&mut self, micros: u64) {
        while self.next_event().is_some_and(|at| at <= micros) {
            self.step();
        }
        self.micros = self.micros.max(micros);
    }
}
