//! Clusters in virtual time: many members in one process, on a network that loses, delays, repeats and cuts, from one
//! seed. The same seed tells the same story.

mod light;
pub mod network;
pub mod spread;
pub mod world;
