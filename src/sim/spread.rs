//! How fast, and at what cost, writes reach everybody: the experiment behind `starling sim`.
//!
//! A cluster of light members is left alone until its members know each other and exchange nothing but what they must;
//! then it is watched idle; then some members write, with everything counted; then it is left to finish.

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

const MICROS_PER_SECOND: u64 = 1_000_000;
/// How often whoever waits for an experiment is told how far it is, in virtual microseconds.
const PROGRESS_MICROS: u64 = 100_000;
/// Points of a curve.
const CURVE_POINTS: u64 = 200;

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Members.
    pub members: usize,
    /// How many of them write.
    pub writers: usize,
    /// Writes per second, of all writers together.
    pub writes_per_second: u64,
    /// How long there are writes, in seconds.
    pub seconds: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Between the members.
    pub network: NetworkOptions,
    /// How long a commit takes, in microseconds.
    pub commit_micros: u64,
    /// In how many zones they are, one member after the other; none for zero.
    pub zones: usize,
    /// What the gossip is told.
    pub options: Options,
    /// Before and after the writes.
    pub quiet: Quiet,
    /// Everything that is left to chance follows from it.
    pub seed: u64,
}

/// How long nobody writes, in virtual microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    /// Before anything is counted. The members get to know each other, and the time between their exchanges grows.
    pub warm_up_micros: u64,
    /// While the traffic of an idle cluster is counted.
    pub idle_micros: u64,
    /// After the writes, until what has not arrived counts as missing.
    pub after_micros: u64,
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            warm_up_micros: 24 * MICROS_PER_SECOND,
            idle_micros: 12 * MICROS_PER_SECOND,
            after_micros: 12 * MICROS_PER_SECOND,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Members.
    pub members: usize,
    /// Writes.
    pub writes: u64,
    /// Of all writes and all members: the time from accepting a write to seeing it, in microseconds, in order.
    pub delays_micros: Vec<u32>,
    /// Pairs of a write and a member that has not seen it in the end.
    pub missing: u64,
    /// Bytes that a member sends per second while nobody writes, on average.
    pub idle_bytes_per_second: f64,
    /// Bytes that a member sends per second while there are writes, on average.
    pub busy_bytes_per_second: f64,
    /// How often an entry was sent to a member that needed it once, on average.
    pub payload_copies: f64,
    /// The virtual time at the end.
    pub virtual_micros: u64,
    /// A hash of everything that has happened: the same for the same experiment.
    pub trace: u64,
}

impl Outcome {
    /// After how long so many percent of all deliveries had been made, in microseconds. `None` if they never were.
    pub fn delay_micros(&self, percent: u64) -> Option<u32> {
        let needed = self.delays_micros.len() as u64 + self.missing;
        let rank = usize::try_from((needed * percent).div_ceil(100)).ok()?;
        self.delays_micros.get(rank.saturating_sub(1)).copied()
    }
}

impl Outcome {
    /// Which share of all deliveries had been made after so many microseconds: points of a curve, from zero on.
    #[expect(clippy::cast_precision_loss, reason = "shares")]
    pub fn curve(&self) -> Vec<(u32, f64)> {
        let needed = self.delays_micros.len() as u64 + self.missing;
        let first = self.delays_micros.first().map(|first| (*first, 0.0));
        let points = (1..=CURVE_POINTS).filter_map(|i| {
            let rank = (needed * i).div_ceil(CURVE_POINTS);
            let at = self.delays_micros.get(usize::try_from(rank).ok()?.checked_sub(1)?)?;
            Some((*at, rank as f64 / needed as f64))
        });
        first.into_iter().chain(points).collect()
    }
}

/// The id of the member with this number: spread over all numbers, as random ones are.
pub(super) fn member_id(number: usize) -> MemberId {
    MemberId(Dice::new(number as u64).roll())
}

/// An experiment under way.
struct Trial<'a> {
    experiment: &'a Experiment,
    everything: Rc<RefCell<Everything>>,
    world: World<Light>,
    dice: Dice,
    /// Told how far it is, in percent.
    progress: &'a mut dyn FnMut(u64),
}

impl Experiment {
    /// Runs it, in virtual time. `progress` is told now and then how far it is, in percent.
    pub fn run(&self, progress: &mut dyn FnMut(u64)) -> Outcome {
        let mut dice = Dice::new(self.seed);
        let everything = Rc::new(RefCell::new(Everything::default()));
        let world = self.world(&mut dice, &everything);
        let mut trial = Trial { experiment: self, everything, world, dice, progress };
        trial.introduce();
        trial.wait(self.quiet.warm_up_micros);
        let before = trial.traffic();
        trial.wait(self.quiet.idle_micros);
        let idle = trial.traffic();
        trial.write();
        let busy = trial.traffic();
        trial.wait(self.quiet.after_micros);
        let after = trial.traffic();
        trial.outcome([before, idle, busy, after])
    }

    /// How long it takes, in virtual microseconds.
    fn duration_micros(&self) -> u64 {
        let Quiet { warm_up_micros, idle_micros, after_micros } = self.quiet;
        warm_up_micros + idle_micros + self.seconds * MICROS_PER_SECOND + after_micros
    }

    fn writers(&self) -> usize {
        self.writers.clamp(1, self.members)
    }

    fn world(&self, dice: &mut Dice, everything: &Rc<RefCell<Everything>>) -> World<Light> {
        let network = Network::new(self.network.clone(), Dice::new(dice.roll()));
        let mut world = World::new(network);
        let joined = Timestamp::from_millis(now_at(0).wall_millis);
        let ids = || (0..self.members).map(member_id);
        let members = ids().map(|member| (member, joined)).collect();
        let runs = ids().map(|member| (member, (RUN, joined))).collect();
        let mut membership = Membership::new(members, runs);
        if self.zones > 0 {
            let zone = |number: usize| (member_id(number), format!("{}", number % self.zones));
            membership.zones = (0..self.members).map(zone).collect();
        }
        let membership = Arc::new(membership);
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
}

impl Trial<'_> {
    /// Each writer writes once, so that an idle cluster has something to compare.
    fn introduce(&mut self) {
        let value = Bytes::from(vec![7; self.experiment.value_bytes]);
        for writer in 0..self.experiment.writers() {
            self.world.with(writer, |light, micros| light.write(micros, &value));
        }
        self.everything.borrow_mut().watching = true;
    }

    fn wait(&mut self, micros: u64) {
        self.run_until(self.world.micros() + micros);
    }

    fn run_until(&mut self, micros: u64) {
        while self.world.micros() < micros {
            let now = self.world.micros();
            let next = (now / PROGRESS_MICROS + 1) * PROGRESS_MICROS;
            self.world.run_until(next.min(micros));
            if next <= micros {
                (self.progress)(next * 100 / self.experiment.duration_micros().max(1));
            }
        }
    }

    fn write(&mut self) {
        let value = Bytes::from(vec![7; self.experiment.value_bytes]);
        let start = self.world.micros();
        let rate = self.experiment.writes_per_second;
        for i in 0..rate * self.experiment.seconds {
            self.run_until(start + i * MICROS_PER_SECOND / rate.max(1));
            let writer = self.dice.below(self.experiment.writers() as u64);
            let writer = usize::try_from(writer).expect("one of the members");
            self.world.with(writer, |light, micros| light.write(micros, &value));
        }
        self.run_until(start + self.experiment.seconds * MICROS_PER_SECOND);
    }

    /// What all members have sent so far.
    fn traffic(&self) -> Traffic {
        self.world.traffic.iter().fold(Traffic::default(), |sum, traffic| Traffic {
            messages: sum.messages + traffic.messages,
            bytes: sum.bytes + traffic.bytes,
            entries: sum.entries + traffic.entries,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "averages")]
    fn outcome(&self, [before, idle, busy, after]: [Traffic; 4]) -> Outcome {
        let members = self.experiment.members;
        let each_second = |bytes: u64, micros: u64| {
            bytes as f64 * MICROS_PER_SECOND as f64 / members as f64 / micros.max(1) as f64
        };
        let everything = self.everything.borrow();
        let writes = everything.seen.len() as u64;
        let busy_micros = self.experiment.seconds * MICROS_PER_SECOND;
        let needed = writes * (members as u64 - 1);
        let mut outcome = Outcome {
            members,
            writes,
            idle_bytes_per_second: each_second(
                idle.bytes - before.bytes,
                self.experiment.quiet.idle_micros,
            ),
            busy_bytes_per_second: each_second(busy.bytes - idle.bytes, busy_micros),
            payload_copies: (after.entries - idle.entries) as f64 / needed.max(1) as f64,
            virtual_micros: self.world.micros(),
            trace: self.world.trace(),
            ..Outcome::default()
        };
        for (_, delays) in everything.seen.values() {
            outcome.missing += (members - delays.len()) as u64;
            outcome.delays_micros.extend_from_slice(delays);
        }
        outcome.delays_micros.sort_unstable();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A local network on which one message in a hundred gets lost.
    fn experiment(members: usize) -> Experiment {
        Experiment {
            members,
            writers: 64,
            writes_per_second: 20,
            seconds: 5,
            value_bytes: 256,
            network: NetworkOptions { loss_ppm: 10_000, ..NetworkOptions::lan() },
            commit_micros: 500,
            zones: 0,
            options: Options::default(),
            quiet: Quiet::default(),
            seed: 1,
        }
    }

    fn run(experiment: &Experiment) -> Outcome {
        experiment.run(&mut |_| {})
    }

    /// Checks what holds for clusters of every size.
    fn check(outcome: &Outcome, most_micros: u32, all_micros: u32) {
        let Outcome { delays_micros, .. } = outcome;
        let shown = Outcome { delays_micros: Vec::new(), ..outcome.clone() };
        let [most, all] = [99, 100].map(|percent| outcome.delay_micros(percent));
        let shown = format!("99 % after {most:?} us, all after {all:?} us, {shown:?}");
        assert_eq!(outcome.missing, 0, "{shown}");
        assert_eq!(delays_micros.len() as u64, outcome.writes * outcome.members as u64, "{shown}");
        assert!(most.unwrap() <= most_micros, "{shown}");
        assert!(all.unwrap() <= all_micros, "{shown}");
        assert!(outcome.payload_copies <= 1.2, "{shown}");
    }

    #[test]
    fn three_members_hear_at_once() {
        let outcome = run(&experiment(3));
        check(&outcome, 10_000, 1_200_000);
        assert!(outcome.idle_bytes_per_second <= 100.0, "{}", outcome.idle_bytes_per_second);
    }

    #[test]
    fn a_hundred_members_hear_soon() {
        check(&run(&experiment(100)), 50_000, 1_200_000);
    }

    /// What docs/replication.md promises of a thousand members, in less time.
    #[test]
    fn a_thousand_members_hear_in_time() {
        let quiet =
            Quiet { warm_up_micros: 4_000_000, idle_micros: 3_000_000, after_micros: 1_500_000 };
        let outcome = run(&Experiment { seconds: 1, quiet, ..experiment(1000) });
        check(&outcome, 50_000, 1_200_000);
        assert!(outcome.idle_bytes_per_second <= 2048.0, "{}", outcome.idle_bytes_per_second);
    }

    /// Who hears of a small write first has it already, so all have it sooner, and no more often.
    #[test]
    fn small_writes_travel_with_their_news() {
        let members = std::env::var("SIM_MEMBERS").ok().and_then(|text| text.parse().ok());
        let outcomes = [0, Options::default().inline_bytes].map(|inline_bytes| {
            let options = Options { inline_bytes, ..Options::default() };
            let outcome = run(&Experiment { options, ..experiment(members.unwrap_or(100)) });
            let [half, most, all] = [50, 99, 100].map(|percent| outcome.delay_micros(percent));
            println!(
                "{inline_bytes} bytes inline: {half:?} {most:?} {all:?} us, {:.3} copies, {:.0} idle, {:.0} busy",
                outcome.payload_copies, outcome.idle_bytes_per_second, outcome.busy_bytes_per_second
            );
            check(&outcome, 50_000, 1_200_000);
            outcome
        });
        let [before, after] = outcomes;
        assert!(after.delay_micros(50) < before.delay_micros(50));
        assert!(after.busy_bytes_per_second < 1.01 * before.busy_bytes_per_second);
        assert!(after.payload_copies <= 1.05, "{}", after.payload_copies);
    }

    /// A hint where members are keeps nothing from anybody.
    #[test]
    fn zones_hear_of_each_other() {
        for zones in [2, 7, 60] {
            let outcome = run(&Experiment { zones, seconds: 2, ..experiment(120) });
            check(&outcome, 60_000, 1_200_000);
        }
    }

    #[test]
    fn a_seed_is_a_story() {
        let story = |seed, loss_ppm| {
            let mut experiment = Experiment { seed, seconds: 2, ..experiment(40) };
            experiment.network.loss_ppm = loss_ppm;
            run(&experiment)
        };
        for loss_ppm in [0, 50_000] {
            assert_eq!(story(7, loss_ppm), story(7, loss_ppm), "every event is the same");
        }
        assert_ne!(story(7, 0).trace, story(8, 0).trace);
    }

    #[test]
    fn what_never_arrives_counts() {
        let outcome =
            Outcome { delays_micros: (1..=8).collect(), missing: 2, ..Outcome::default() };
        assert_eq!(outcome.delay_micros(50), Some(5));
        assert_eq!(outcome.delay_micros(80), Some(8));
        assert_eq!(outcome.delay_micros(81), None);
        assert_eq!(outcome.delay_micros(100), None);
        let curve = outcome.curve();
        assert_eq!(curve.first(), Some(&(1, 0.0)));
        assert_eq!(curve.last(), Some(&(8, 0.8)));
    }
}
