//! A long run under mixed load, with restarts, that checks every answer and every event.
//!
//! ```text
//! control (one thread) ── starts, stops and kills ──▶ server
//!    └─ tells the port ──▶ clients (another) ── calls ──▶ server
//!                             └─ all they send and hear ──▶ checker ──▶ model
//! ```
//!
//! Restarts come at random moments in the first and the last third, by SIGTERM and SIGKILL in turn. The third between
//! is for what grows: memory, descriptors, disk.

pub mod checker;
pub mod clients;
pub mod control;
pub mod model;

mod leases;
mod watches;
