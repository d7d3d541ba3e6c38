//! Moves messages between members, and decides nothing.

pub mod resolve;
pub mod wire;
