//! What a member is asked and what it answers, in its own types.
//!
//! The `api` layer turns etcd's messages into these: whatever is here has been checked for form. The fields
//! mean what they mean in etcd's `rpc.proto`.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Pair;
use super::auth::Permission;
use crate::types::{Alarm, KeyRange, LeaseId, MediaType, MemberId, Revision};

/// A change that goes through the one writer.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Writes one key.
    Put(Put),
    /// Deletes the keys of a range.
    DeleteRange(DeleteRange),
    /// Compares, then does one of two lists.
    Txn(Txn),
    /// Gives up the history before a revision.
    Compact {
        /// The oldest revision that stays readable. As the client sent it, any number.
        revision: i64,
    },
    /// Creates a lease.
    LeaseGrant {
        /// The id that the client chose, or the one that was drawn for it.
        id: LeaseId,
        /// In seconds, as the client sent it.
        ttl_seconds: i64,
    },
    /// Ends a lease and deletes its keys.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// Raises an alarm, or ends it.
    Alarm {
        /// Which.
        alarm: Alarm,
        /// Whether it is to be on.
        on: bool,
    },
    /// Changes users or roles.
    Auth(AuthChange),
    /// Has a member taken for the leader, while it lives.
    SetLeader(MemberId),
    /// Says that somebody wants to go back to a version; `None` if not any more.
    Downgrade(Option<String>),
}

/// A change of users or roles, or of whether they matter. Passwords come as hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum AuthChange {
    /// From now on everybody has to say who they are.
    Enable {
        /// Random bytes, to sign tokens with.
        secret: Bytes,
    },
    Disable,
    /// `None` for a user who cannot come by password.
    AddUser {
        name: String,
        password: Option<Bytes>,
    },
    DeleteUser {
        name: String,
    },
    ChangePassword {
        name: String,
        password: Option<Bytes>,
    },
    GrantRole {
        user: String,
        role: String,
    },
    RevokeRole {
        user: String,
        role: String,
    },
    AddRole {
        name: String,
    },
    DeleteRole {
        name: String,
    },
    GrantPermission {
        role: String,
        permission: Permission,
    },
    RevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Put {
    /// The key, not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach it to. None detaches it from its former one.
    pub lease: LeaseId,
    /// Whether the reply has the pair as it was before.
    pub prev_kv: bool,
    /// Keep the value as it is. The key must exist.
    pub ignore_value: bool,
    /// Keep the lease as it is. The key must exist.
    pub ignore_lease: bool,
    /// What the value is, if that is said. It is gone with the next put.
    pub media_type: MediaType,
}

/// Deletes the keys of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Whether the reply has the pairs as they were.
    pub prev_kv: bool,
}

/// Reads the keys of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub range: KeyRange,
    /// How many pairs at most; `None` for all.
    pub limit: Option<usize>,
    /// At which revision, as the client sent it: zero and less is the current one (less than zero is compacted
    /// within a transaction).
    pub revision: i64,
    /// In which order; by key where nothing is said.
    pub sort: Option<Sort>,
    /// Leave out the values.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Bounds on the pairs that are returned (not on those that are counted).
    pub filter: Filter,
}

impl Range {
    /// Everything about a range of keys, now.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            limit: None,
            revision: 0,
            sort: None,
            keys_only: false,
            count_only: false,
            filter: Filter::default(),
        }
    }
}

/// An order of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// By which field.
    pub target: SortTarget,
    /// Which way. `None` for another target than the key sorts upwards, but only the first `limit + 1` keys in
    /// key order, as etcd does.
    pub order: Option<SortOrder>,
}

/// The field that pairs are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum SortTarget {
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// Which way pairs are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum SortOrder {
    Ascending,
    Descending,
}

/// Inclusive bounds on revisions; zero is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub struct Filter {
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

/// Compares, then does one of two lists.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Txn {
    /// All of these must hold for `success` to be done.
    pub compares: Vec<Compare>,
    /// What is done if they hold.
    pub success: Vec<TxnOp>,
    /// What is done if one does not.
    pub failure: Vec<TxnOp>,
}

impl Txn {
    /// The leases that its puts name, whichever of them are done.
    pub fn leases(&self) -> BTreeSet<LeaseId> {
        let ops = self.success.iter().chain(&self.failure);
        let leases = ops.flat_map(|op| match op {
            TxnOp::Put(put) if put.lease.is_some() => BTreeSet::from([put.lease]),
            TxnOp::Txn(txn) => txn.leases(),
            _ => BTreeSet::new(),
        });
        leases.collect()
    }

    /// Whether it can only read: both lists have nothing but ranges. As in etcd, a nested transaction counts as
    /// a write whatever is in it.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, TxnOp::Range(_)))
    }
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum TxnOp {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// A condition on every key of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keys. A range with no key in it is compared as a key that does not exist.
    pub range: KeyRange,
    /// How.
    pub result: CompareResult,
    /// With what.
    pub target: CompareTarget,
}

/// How two values must compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// The field that is compared, and what with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    Value(Bytes),
    Lease(i64),
}

/// An answer, and the revision that its header shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply<T> {
    /// The revision of the change, or the current one if nothing changed.
    pub revision: Revision,
    /// The answer.
    pub body: T,
}

/// The answer to a [`Command`], of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandReply {
    /// To a put.
    Put(PutReply),
    /// To a delete.
    DeleteRange(DeleteRangeReply),
    /// To a transaction.
    Txn(TxnReply),
    /// To a compaction.
    Compact,
    /// To a grant.
    LeaseGrant(LeaseGrantReply),
    /// To a revoke.
    LeaseRevoke,
    /// To an alarm.
    Alarm {
        /// Whether it was on before.
        was_on: bool,
    },
    /// To a change of users or roles.
    Auth,
    /// To a setting of the cluster.
    Setting,
}

/// The answer to a put.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PutReply {
    /// The pair as it was before, if asked for and there was one.
    pub prev_kv: Option<Pair>,
}

/// The answer to a delete.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DeleteRangeReply {
    /// How many keys were deleted.
    pub deleted: u64,
    /// The pairs as they were, in key order, if asked for.
    pub prev_kvs: Vec<Pair>,
}

/// The answer to a range.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeReply {
    /// The pairs.
    pub kvs: Vec<Pair>,
    /// Whether there are more than the limit let through.
    pub more: bool,
    /// How many keys are in the range at that revision, whatever limit and filters say.
    pub count: u64,
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TxnReply {
    /// Whether the compares held.
    pub succeeded: bool,
    /// An answer per step that was done. The revision in each is that of its own header.
    pub responses: Vec<TxnOpReply>,
}

/// The answer to one step of a transaction.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum TxnOpReply {
    Range(Reply<RangeReply>),
    Put(Reply<PutReply>),
    DeleteRange(Reply<DeleteRangeReply>),
    Txn(Reply<TxnReply>),
}

/// The answer to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrantReply {
    /// The lease.
    pub id: LeaseId,
    /// What it lives for without a keep-alive, in seconds: at least the minimum.
    pub ttl_seconds: i64,
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The member that keeps its deadline.
    pub owner: MemberId,
    /// What is left of it, in whole seconds; below zero when it is overdue.
    pub remaining_seconds: i64,
    /// What was granted.
    pub granted_seconds: i64,
    /// The keys attached to it, in order.
    pub keys: Vec<Bytes>,
}
