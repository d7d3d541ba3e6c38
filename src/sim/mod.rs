//! Clusters in virtual time: many members in one process, on a network that loses, delays, repeats and cuts, from one
//! seed. The same seed tells the same story.

#[cfg(test)]
mod away_scenarios;
#[cfg(test)]
mod catching_up;
#[cfg(test)]
mod clock_scenarios;
#[cfg(test)]
mod cluster;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "the stories need more of a member than the fuzzer")
)]
pub(crate) mod full;
#[cfg(test)]
mod leases;
mod light;
#[cfg(test)]
mod liveness_tests;
#[cfg(test)]
mod merge_scenarios;
pub mod network;
#[cfg(test)]
mod old_copy_scenarios;
mod plot;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod removal_scenarios;
mod report;
#[cfg(test)]
mod restart_scenarios;
#[cfg(test)]
mod scenarios;
pub mod spread;
#[cfg(test)]
mod take_over_scenarios;
pub mod tool;
#[cfg(test)]
mod witness;
pub mod world;
