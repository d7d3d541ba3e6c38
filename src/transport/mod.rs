//! Moves messages between members, and decides nothing.

pub mod wire;
