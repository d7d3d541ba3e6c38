//! Chance, from a seed: the same seed gives the same numbers on every machine and with every version of everything,
//! so that a trace of the simulator can be kept.

use super::heads::mix;

/// A source of random numbers, good enough to pick peers and to spread timers.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        mix(self.state)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below {bound}");
        // The upper half of the product: as even as anyone here can tell.
        let product = u128::from(self.roll()) * u128::from(bound);
        u64::try_from(product >> u64::BITS).expect("the upper half of 128 bits")
    }

    /// An interval that is up to a fifth shorter or longer, so that members do not fall into step.
    pub fn jitter(&mut self, interval: u64) -> u64 {
        interval - interval / 5 + self.below(interval / 5 * 2 + 1)
    }

    /// One of several, unless there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        from.get(usize::try_from(self.below(from.len() as u64)).unwrap_or(0))
    }
}
