//! How fast, and at what cost, writes reach everybody: the experiment behind `starling sim`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::light::{Everything, Light, RUN};
use super::network::{Network, NetworkOptions};
use super::world::{Traffic, World, now_at};
use crate::replication::Dice;
use crate::replication::gossip::Options;
use crate::replication::settled::Membership;
use crate::time::Timestamp;
use crate::types::MemberId;

/// How long a cluster is left alone before and after the writes, in virtual microseconds.
const SETTLING_MICROS: u64 = 12_000_000;
const MICROS_PER_SECOND: u64 = 1_000_000;

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Members.
    pub members: usize,
    /// How many of them write.
    pub writers: usize,
    /// Writes per second, of all writers together.
    pub writes_per_second: u64,
    /// How long, in seconds.
    pub seconds: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Between the members.
    pub network: NetworkOptions,
    /// How long a commit takes, in microseconds.
    pub commit_micros: u64,
    /// What the gossip is told.
    pub options: Options,
    /// Everything that is left to chance follows from it.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Writes.
    pub writes: u64,
    /// Of all writes and all members: the time from accepting a write to seeing it, in microseconds, in order.
    pub delays_micros: Vec<u64>,
    /// Pairs of a write and a member that has not seen it in the end.
    pub missing: u64,
    /// Bytes that a member sends per second while nobody writes, on average.
    pub idle_bytes_per_second: f64,
    /// Bytes that a member sends per second while there are writes, on average.
    pub busy_bytes_per_second: f64,
    /// How often an entry was sent to a member that needed it once, on average.
    pub payload_copies: f64,
}

impl Outcome {
    /// The delay that such a part of all deliveries does not exceed, in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank of a sorted list"
    )]
    pub fn delay_micros(&self, part: f64) -> Option<u64> {
        let rank = (self.delays_micros.len() as f64 * part).ceil() as usize;
        self.delays_micros.get(rank.saturating_sub(1)).copied()
    }
}

/// The id of the member with this number: spread over all numbers, as random ones are.
pub(super) fn member_id(number: usize) -> MemberId {
    MemberId(Dice::new(number as u64).roll())
}

impl Experiment {
    /// Runs it, in virtual time.
    #[expect(clippy::cast_precision_loss, reason = "averages")]
    pub fn run(&self) -> Outcome {
        let mut dice = Dice::new(self.seed);
        let everything = Rc::new(RefCell::new(Everything::default()));
        let mut world = self.world(&mut dice, &everything);
        let total = |world: &World<Light>| {
            world.traffic.iter().fold(Traffic::default(), |sum, traffic| Traffic {
                messages: sum.messages + traffic.messages,
                bytes: sum.bytes + traffic.bytes,
                entries: sum.entries + traffic.entries,
            })
        };
        // The first exchanges are introductions.
        world.run_until(2 * SETTLING_MICROS);
        let before = total(&world);
        world.run_until(3 * SETTLING_MICROS);
        let idle = total(&world);
        self.write(&mut world, &mut dice);
        let busy = total(&world);
        world.run_until(world.micros() + SETTLING_MICROS);
        let after = total(&world);

        let members = self.members as f64;
        let everything = everything.borrow();
        let mut outcome = Outcome {
            writes: everything.seen.len() as u64,
            idle_bytes_per_second: (idle.bytes - before.bytes) as f64
                / members
                / (SETTLING_MICROS / MICROS_PER_SECOND) as f64,
            busy_bytes_per_second: (busy.bytes - idle.bytes) as f64
                / members
                / self.seconds.max(1) as f64,
            ..Outcome::default()
        };
        for (accepted, seen) in everything.seen.values() {
            outcome.missing += (self.members - seen.len()) as u64;
            outcome.delays_micros.extend(seen.iter().map(|at| at - accepted));
        }
        outcome.delays_micros.sort_unstable();
        let needed = outcome.writes as f64 * (members - 1.0);
        outcome.payload_copies = (after.entries - idle.entries) as f64 / needed;
        outcome
    }

    fn world(&self, dice: &mut Dice, everything: &Rc<RefCell<Everything>>) -> World<Light> {
        let network = Network::new(self.network.clone(), Dice::new(dice.roll()));
        let mut world = World::new(network);
        let joined = Timestamp::from_millis(now_at(0).wall_millis);
        let ids = || (0..self.members).map(member_id);
        let members = ids().map(|member| (member, joined)).collect();
        let runs = ids().map(|member| (member, (RUN, joined))).collect();
        let membership = Arc::new(Membership::new(members, runs));
        for number in 0..self.members {
            let member = member_id(number);
            let light = Light::new(
                member,
                self.options.clone(),
                dice.roll(),
                Arc::clone(&membership),
                Rc::clone(everything),
                self.commit_micros,
            );
            world.add(member, light);
        }
        world
    }

    fn write(&self, world: &mut World<Light>, dice: &mut Dice) {
        let value = Bytes::from(vec![7; self.value_bytes]);
        let start = world.micros();
        let writes = self.writes_per_second * self.seconds;
        for i in 0..writes {
            world.run_until(start + i * MICROS_PER_SECOND / self.writes_per_second.max(1));
            let writer = dice.below(self.writers.clamp(1, self.members) as u64);
            let writer = usize::try_from(writer).expect("one of the members");
            world.with(writer, |light, micros| light.write(micros, &value));
        }
        world.run_until(start + self.seconds * MICROS_PER_SECOND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn experiment(members: usize) -> Experiment {
        Experiment {
            members,
            writers: members.min(64),
            writes_per_second: 20,
            seconds: 5,
            value_bytes: 256,
            network: NetworkOptions { loss_ppm: 10_000, ..NetworkOptions::lan() },
            commit_micros: 500,
            options: Options::default(),
            seed: 1,
        }
    }

    fn show(name: &str, outcome: &Outcome) -> String {
        format!(
            "{name}: {} writes, missing {}, p50 {:?} p99 {:?} all {:?} us, idle {:.0} B/s, busy {:.0} B/s, copies {:.3}",
            outcome.writes,
            outcome.missing,
            outcome.delay_micros(0.5),
            outcome.delay_micros(0.99),
            outcome.delay_micros(1.0),
            outcome.idle_bytes_per_second,
            outcome.busy_bytes_per_second,
            outcome.payload_copies,
        )
    }

    #[test]
    fn three_members_hear_at_once() {
        let outcome = experiment(3).run();
        let shown = show("3", &outcome);
        assert_eq!(outcome.missing, 0, "{shown}");
        eprintln!("{shown}");
    }

    #[test]
    fn a_hundred_members_hear_soon() {
        let outcome = experiment(100).run();
        let shown = show("100", &outcome);
        assert_eq!(outcome.missing, 0, "{shown}");
        eprintln!("{shown}");
    }

    #[test]
    fn a_thousand_members_hear_in_time() {
        let outcome = experiment(1000).run();
        let shown = show("1000", &outcome);
        assert_eq!(outcome.missing, 0, "{shown}");
        eprintln!("{shown}");
    }

    #[test]
    fn a_seed_is_a_story() {
        assert_eq!(experiment(20).run(), experiment(20).run());
    }
}
