//! What must hold of the gossip whatever the network does: a few light members whose messages come late, in any order,
//! twice or never.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::light::{Everything, Light, RUN};
use super::spread::member_id;
use super::world::{Actor, now_at};
use crate::replication::gossip::Options;
use crate::replication::message::{Head, Message};
use crate::replication::settled::Membership;
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

const MILLI: u64 = 1000;
/// How long members get to agree once the network works again: promises take a few rounds.
const CALM_MILLIS: u64 = 60_000;
const CALM_STEP_MILLIS: u64 = 10;
/// More messages than this are not kept under way: the oldest are lost.
const UNDER_WAY_MAX: usize = 200;

/// Something that happens; indices count modulo what there is.
#[derive(Clone, Debug)]
enum Happening {
    Write(usize),
    Deliver(usize),
    DeliverTwice(usize),
    Lose(usize),
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => any::<usize>().prop_map(Happening::Write),
        8 => any::<usize>().prop_map(Happening::Deliver),
        1 => any::<usize>().prop_map(Happening::DeliverTwice),
        3 => any::<usize>().prop_map(Happening::Lose),
        4 => (1_u64..400).prop_map(Happening::Wait),
    ]
}

/// Members, and what is under way between them.
struct Few {
    lights: Vec<Light>,
    everything: Rc<RefCell<Everything>>,
    under_way: Vec<(MemberId, MemberId, Message)>,
    micros: u64,
    /// What each member last said of itself: none of it may go back.
    said: Vec<(BTreeMap<Origin, u64>, Timestamp, Timestamp)>,
}

impl Few {
    fn new(members: usize, direct_max: usize, seed: u64) -> Self {
        let everything = Rc::new(RefCell::new(Everything::default()));
        everything.borrow_mut().watching = true;
        let joined = Timestamp::from_millis(now_at(0).wall_millis);
        let ids = || (0..members).map(member_id);
        let membership = Arc::new(Membership::new(
            ids().map(|member| (member, joined)).collect(),
            ids().map(|member| (member, (RUN, joined))).collect(),
        ));
        let options = Options { direct_max, ..Options::default() };
        let light = |number: usize| {
            let seed = seed.wrapping_add(number as u64);
            let everything = Rc::clone(&everything);
            let membership = Arc::clone(&membership);
            Light::new(member_id(number), options.clone(), seed, membership, everything, MILLI)
        };
        let lights: Vec<_> = (0..members).map(light).collect();
        let said = vec![Default::default(); members];
        Self { lights, everything, under_way: Vec::new(), micros: 0, said }
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Write(number) => {
                let number = number % self.lights.len();
                self.lights[number].write(self.micros, &Bytes::from_static(b"value"));
            }
            Happening::Deliver(at) => self.deliver(*at, true),
            Happening::DeliverTwice(at) => self.deliver(*at, false),
            Happening::Lose(at) => {
                if !self.under_way.is_empty() {
                    self.under_way.swap_remove(at % self.under_way.len());
                }
            }
            Happening::Wait(millis) => self.wait(*millis),
        }
        self.look();
    }

    fn deliver(&mut self, at: usize, is_last: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let at = at % self.under_way.len();
        let (from, to, message) =
            if is_last { self.under_way.remove(at) } else { self.under_way[at].clone() };
        let to = (0..self.lights.len()).find(|number| member_id(*number) == to);
        self.lights[to.expect("one of the members")].receive(self.micros, from, message);
    }

    fn wait(&mut self, millis: u64) {
        let end = self.micros + millis * MILLI;
        while let Some(next) = self.lights.iter().map(Actor::wake_at).min()
            && next <= end
        {
            self.micros = self.micros.max(next);
            for light in self.lights.iter_mut().filter(|light| light.wake_at() <= self.micros) {
                light.wake(self.micros);
            }
            self.collect();
        }
        self.micros = end;
    }

    fn collect(&mut self) {
        for (number, light) in self.lights.iter_mut().enumerate() {
            let sent = light.take_sent().into_iter();
            self.under_way.extend(sent.map(|(to, message)| (member_id(number), to, message)));
        }
        let surplus = self.under_way.len().saturating_sub(UNDER_WAY_MAX);
        self.under_way.drain(..surplus);
    }

    fn heads(&self, number: usize) -> BTreeMap<Origin, u64> {
        let heads = self.lights[number].gossip.heads().all();
        heads.into_iter().map(|Head { origin, seq }| (origin, seq)).collect()
    }

    /// Checks what holds at every moment.
    fn look(&mut self) {
        self.collect();
        let frontiers = self.lights.iter().map(|light| light.gossip.frontier());
        let complete = frontiers.map(|it| it.complete()).min().expect("there are members");
        for number in 0..self.lights.len() {
            let heads = self.heads(number);
            let frontier = self.lights[number].gossip.frontier();
            let now = (heads, frontier.complete(), frontier.settled());
            let before = &self.said[number];
            for (origin, seq) in &before.0 {
                assert!(now.0.get(origin) >= Some(seq), "the head of {origin:?} went back");
            }
            assert!(now.1 >= before.1 && now.2 >= before.2, "a promise went back");
            assert!(now.2 <= complete, "settled is later than what somebody has");
            self.said[number] = now;
        }
        self.check_complete();
    }

    /// Whoever says that it is complete up to some time has every entry up to then.
    fn check_complete(&self) {
        let everything = self.everything.borrow();
        for light in &self.lights {
            let complete = light.gossip.frontier().complete();
            for (origin, entries) in everything.entries() {
                let needed = entries.iter().filter(|entry| entry.time <= complete).count() as u64;
                let held = light.gossip.heads().seq(origin);
                assert!(held >= needed, "complete to {complete:?} with {held} of {needed}");
            }
        }
    }

    /// The network works from now on: everybody gets everything, once, and knows it.
    fn agree(&mut self) {
        let last = |everything: &Everything| {
            let times = everything.entries().flat_map(|(_, entries)| entries.last());
            times.map(|entry| entry.time).max().unwrap_or_default()
        };
        let last = last(&self.everything.borrow());
        let end = self.micros + CALM_MILLIS * MILLI;
        while self.micros < end {
            for (from, to, message) in std::mem::take(&mut self.under_way) {
                self.under_way.push((from, to, message));
                self.deliver(self.under_way.len() - 1, true);
            }
            self.wait(CALM_STEP_MILLIS);
            self.look();
            if self.lights.iter().all(|light| light.gossip.frontier().settled() > last) {
                break;
            }
        }
        let everything = self.everything.borrow();
        let expected: BTreeMap<_, _> =
            everything.entries().map(|(origin, entries)| (origin, entries.len() as u64)).collect();
        for number in 0..self.lights.len() {
            assert_eq!(self.heads(number), expected, "the heads of member {number}");
            let settled = self.lights[number].gossip.frontier().settled();
            assert!(settled > last, "{settled:?} is not later than {last:?}");
        }
        for (entry, (_, delays)) in &everything.seen {
            assert_eq!(delays.len(), self.lights.len(), "{entry:?} was not seen once by each");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn members_agree_whatever_the_network_has_done(
        members in 3_usize..=5,
        direct in any::<bool>(),
        seed in any::<u64>(),
        happenings in prop::collection::vec(happening(), 0..120),
    ) {
        let mut few = Few::new(members, if direct { 16 } else { 0 }, seed);
        for happening in &happenings {
            few.happen(happening);
        }
        few.agree();
    }
}
