//! Starling: an etcd v3 server without a leader.
//!
//! To its clients every member is an etcd of its own; between members changes travel by gossip. The layers,
//! in reading order, each of which may name those before it:
//!
//! * [`types`], [`time`], [`error`], [`metrics`], [`traces`]: the words, counters and spans that all layers share.
//! * [`storage`]: bytes on disk, by fjall.
//! * [`replication`]: how members come to hold the same, by gossip. Pure, as the engine.
//! * [`engine`]: what etcd clients may observe: revisions, transactions, watches, leases. Pure: no
//!   clock, thread, socket or random source of its own.
//! * [`tls`]: certificates, for clients and between members.
//! * [`transport`]: moves messages between members, and decides nothing.
//! * [`node`]: the runtime around it: the one writer, clocks, background work.
//! * [`api`] and [`http`]: etcd's gRPC services, and the plain HTTP paths on the same port.
//! * [`cli`], [`sim`]: the commands of the program that are no member.
//! * [`config`], [`logging`]: etcd's flags, environment and configuration file; the log.
//!
//! `docs/architecture.md` has the map with its invariants.

pub mod api;
pub mod bolt;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod etcd_db;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod replication;
pub mod sim;
pub mod storage;
pub mod time;
pub mod tls;
pub mod traces;
pub mod transport;
pub mod types;
