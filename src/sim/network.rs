//! A network in virtual time: delay, loss, duplication, and links that are cut one way or both ways.

use std::collections::BTreeSet;

use crate::replication::Dice;

/// Parts of a million, for probabilities.
const MILLION: u64 = 1_000_000;

/// What a network does to messages.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The shortest way from one member to another, in microseconds.
    pub latency_micros: u64,
    /// What may come on top, in microseconds. It lets messages overtake each other.
    pub jitter_micros: u64,
    /// Messages that get lost, in millionths.
    pub loss_ppm: u64,
    /// Messages that come twice, in millionths.
    pub duplicate_ppm: u64,
    /// Bytes per second that one member can send.
    pub bytes_per_second: u64,
}

impl NetworkOptions {
    /// A local network: half a millisecond there and back, a gigabit per second.
    pub fn lan() -> Self {
        Self {
            latency_micros: 200,
            jitter_micros: 100,
            loss_ppm: 0,
            duplicate_ppm: 0,
            bytes_per_second: 125_000_000,
        }
    }
}

/// The links between actors, by their numbers.
#[derive(Clone, Debug)]
pub struct Network {
    /// May be changed while it runs.
    pub options: NetworkOptions,
    cut: BTreeSet<(usize, usize)>,
    /// When the line out of each actor is free again.
    free_micros: Vec<u64>,
    dice: Dice,
}

impl Network {
    /// A network that nothing is wrong with yet.
    pub fn new(options: NetworkOptions, dice: Dice) -> Self {
        Self { options, cut: BTreeSet::new(), free_micros: Vec::new(), dice }
    }

    /// Cuts a link in one direction.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Cuts all links between two groups, both ways.
    pub fn part(&mut self, left: &[usize], right: &[usize]) {
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            self.cut(a, b);
            self.cut(b, a);
        }
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether messages get through in this direction.
    pub fn connects(&self, from: usize, to: usize) -> bool {
        self.cut.is_empty() || !self.cut.contains(&(from, to))
    }

    /// When a message that is sent now arrives, and when it does so again: mostly once, but there is no telling.
    pub fn deliveries(
        &mut self,
        now: u64,
        from: usize,
        to: usize,
        bytes: usize,
    ) -> (Option<u64>, Option<u64>) {
        if self.free_micros.len() <= from {
            self.free_micros.resize(from + 1, 0);
        }
        let takes = bytes as u64 * MILLION / self.options.bytes_per_second.max(1);
        let sent = self.free_micros[from].max(now) + takes;
        self.free_micros[from] = sent;
        if !self.connects(from, to) || self.happens(self.options.loss_ppm) {
            return (None, None);
        }
        let is_repeated = self.happens(self.options.duplicate_ppm);
        let first = sent + self.travel();
        (Some(first), is_repeated.then(|| sent + self.travel()))
    }

    fn travel(&mut self) -> u64 {
        self.options.latency_micros + self.dice.below(self.options.jitter_micros + 1)
    }

    fn happens(&mut self, ppm: u64) -> bool {
        ppm > 0 && self.dice.below(MILLION) < ppm
    }
}
