//! Watch: every change of a set of keys, in order, without gaps.
//!
//! ```text
//!   Writer ──publish──▶ Hub ──match──▶ Mailbox of each stream that is concerned ──▶ Stream ──▶ replies
//!                                                                       log ──▶ (catching up)
//! ```
//!
//! A watcher is *synced* when it has been told everything up to the published revision; then the [`Hub`] matches
//! each new change against it and puts what concerns it into its stream's mailbox. A watcher that starts in the past,
//! or whose client reads so slowly that the mailbox overflows, is *behind*: its [`Stream`] reads the log from the
//! revision that the watcher needs next until it has caught up. So a slow client costs memory up to the bound of
//! its mailbox, and otherwise only itself.
//!
//! Source: etcd `server/storage/mvcc/watchable_store.go`; the rules that clients see are in etcd's
//! documentation, "Watch API guarantees".
//!
//! Invariants
//! * A synced watcher has been told (or has in its stream's mailbox) everything from its start to the hub's
//!   published revision; a watcher that is behind everything below its `next`.
//! * A reply holds whole revisions.
//! * Nothing below a watcher's start revision is told, no progress either.

mod hub;
mod matcher;
mod stream;

use std::sync::Arc;

pub use hub::{Hub, Waker};
pub use stream::Stream;

use super::pair::{Fields, Pair};
use crate::error::AuthError;
use crate::types::{KeyRange, KeyValue, Revision};

/// A visible change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Put or delete.
    pub kind: EventKind,
    /// When it happened.
    pub revision: Revision,
    /// The pair after it; of a delete its key and mod revision only. Encoded once for all who hear of it.
    pub pair: Pair,
}

impl Change {
    /// A put of a pair.
    pub fn put(kv: &KeyValue) -> Self {
        Self { kind: EventKind::Put, revision: kv.mod_revision, pair: kv.into() }
    }

    /// A delete of a key.
    pub fn delete(key: &[u8], revision: Revision) -> Self {
        let fields = Fields { key, mod_revision: revision, ..Fields::default() };
        Self { kind: EventKind::Delete, revision, pair: Pair::encode(&fields) }
    }
}

/// Changes that were published together.
pub type Changes = Arc<[Change]>;

/// A watcher to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchCreate {
    /// The keys.
    pub range: KeyRange,
    /// From which revision on, inclusive, as the client sent it; zero is from now on.
    pub start_revision: i64,
    /// The id that the client chose; zero takes the next free one.
    pub id: i64,
    /// Whether events carry the pair as it was before.
    pub prev_kv: bool,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
    /// Report the revision now and then when nothing happens.
    pub progress_notify: bool,
    /// Split large replies.
    pub fragment: bool,
}

/// What a watch stream says to its client.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchReply {
    /// The watcher is there; events follow.
    Created {
        /// Its id.
        id: i64,
        /// The current revision.
        revision: Revision,
    },
    /// There is no watcher.
    Refused {
        /// Why.
        reason: WatchRefusal,
        /// The current revision.
        revision: Revision,
    },
    /// Changes, whole revisions at a time.
    Events {
        /// Whose.
        id: i64,
        /// At least the revision of the last event.
        revision: Revision,
        /// In order.
        events: Vec<Event>,
        /// Whether the client wants it split where it is large.
        fragment: bool,
    },
    /// The watcher has ended at the client's wish.
    Canceled {
        /// Which.
        id: i64,
        /// The current revision.
        revision: Revision,
    },
    /// The watcher has ended because what it needs next is compacted.
    Compacted {
        /// Which.
        id: i64,
        /// The last compaction.
        compacted: Revision,
    },
    /// The watcher has ended, since whoever asked for it may not read these keys any more.
    Denied {
        /// Which.
        id: i64,
        /// Why.
        reason: AuthError,
        /// The current revision.
        revision: Revision,
    },
    /// Everything up to this revision has been sent.
    Progress {
        /// To this watcher, or to all of the stream.
        id: Option<i64>,
        /// The revision.
        revision: Revision,
    },
}

/// Why a watcher could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchRefusal {
    /// The stream has a watcher of that id.
    DuplicateId,
    /// No key can be in the range.
    EmptyRange,
    /// The start revision is negative.
    NegativeStart,
    /// Whoever asks may not read these keys, or has not said who they are.
    Denied(AuthError),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// The pair after the change; of a delete its key and mod revision only.
    pub pair: Pair,
    /// The pair before, if asked for and still there.
    pub prev: Option<Pair>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum EventKind {
    Put,
    Delete,
}
