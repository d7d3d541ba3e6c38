//! How members agree without a leader: what they tell each other, and what follows from it.
//!
//! Pure: no clock, thread, socket or random source of its own, and no data either, which is the engine's.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod clocks;
mod dice;
pub mod entry;
pub mod gossip;
pub mod heads;
pub mod liveness;
pub mod message;
pub mod packed;
mod pulls;
mod recent;
pub mod settled;
mod traced;

pub use clocks::Clocks;
pub use dice::Dice;
pub use gossip::Gossip;
pub use liveness::Liveness;
