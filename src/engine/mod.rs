//! What etcd clients may observe: one keyspace with dense revisions, transactions, watches and leases.
//!
//! ```text
//!   Command ──▶ Writer ── evaluates, fills a batch ──▶ commit (one fsync) ──▶ publish ──▶ replies, events
//!                 │                                                            │
//!                 └──────────────── Mvcc (index, log, cache) ◀── readers ──────┘──▶ watch::Hub ──▶ streams
//! ```
//!
//! One [`Writer`] changes everything, one command after the other; [`Mvcc`] is what it shares with readers.
//! [`lease::Lessor`] keeps deadlines, [`watch::Hub`] tells watchers what happened. Nothing here waits, sleeps, draws
//! a random number or asks for the time: the `node` layer passes that in.
//!
//! Vocabulary: a *revision* counts visible changes of the store, below the *tag* that names the member ([`tags`]); a *version*
//! counts the puts of one key since it came into being. A *compaction* gives up what was current before its revision.
//!
//! Invariants
//! * A change is visible (to readers, watchers and in replies) only after it is durable.
//! * A command that is refused has changed nothing.
//! * Every visible change takes exactly one revision; all of a transaction's changes share one.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod alarm;
mod apply;
pub mod auth;
mod bulk;
mod collection;
pub mod command;
pub mod conflicts;
pub mod directory;
mod early;
mod entries;
pub mod former;
mod graves;
pub mod import;
pub mod lease;
pub mod lease_owner;
pub mod mvcc;
mod origins;
mod pair;
mod parted;
mod quota;
mod record_writes;
mod records;
pub mod replica;
mod replicated;
mod restore;
pub mod settings;
pub mod staged;
pub mod strays;
pub mod tags;
pub mod txn;
pub mod watch;
mod writer;

use crate::error::{AuthError, Error, Invalid, StoreError};

pub use apply::{Applied, Conflict, Outcome};
pub use mvcc::KeyVersion;
pub use pair::Pair;
pub use records::RecordChange;
pub use replicated::RecordWrite;
pub use writer::{Options, Writer, has_owner};

/// Why an operation did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The client gets an answer, and nothing has changed.
    Refused(Error),
    /// The store is broken: the member must stop.
    Broken(StoreError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(invalid.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Broken(error)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod replication_tests;
#[cfg(test)]
mod testscripts;
