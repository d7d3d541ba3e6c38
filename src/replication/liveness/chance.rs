//! Our dice, as foca wants to roll them.

use std::convert::Infallible;

use crate::replication::Dice;

/// Random numbers that follow from a seed.
#[derive(Debug)]
pub(super) struct Chance(pub Dice);

impl rand_core::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.0.roll() >> u32::BITS).expect("the upper half"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.roll())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for part in bytes.chunks_mut(size_of::<u64>()) {
            part.copy_from_slice(&self.0.roll().to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}
