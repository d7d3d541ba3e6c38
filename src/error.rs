//! What can go wrong, sorted by what the caller can do about it.
//!
//! The `api` layer turns each variant into etcd's own code and text, in one table. Nothing here
//! knows about gRPC. Unless a variant says otherwise, nothing was changed when it is returned.

use std::fmt;
use std::io;

use crate::types::Revision;

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The request itself is wrong: mend it.
    Invalid(Invalid),
    /// The revision is older than the last compaction: read at a newer one.
    Compacted {
        /// The last compaction.
        compacted: Revision,
    },
    /// The revision has not happened yet on this member.
    FutureRevision,
    /// The quota or the disk is full: delete and compact, or give it more space.
    NoSpace,
    /// An alarm says that members hold different data: nothing is changed until somebody ends it.
    Corrupt,
    /// More requests wait than this member keeps: slow down and try again.
    TooManyRequests,
    /// No such lease.
    LeaseNotFound,
    /// The chosen lease id is taken.
    LeaseExists,
    /// No such member.
    MemberNotFound,
    /// Addresses of a member that are none, or none at all.
    BadMemberUrls,
    /// A member has one of the addresses already.
    PeerUrlExists,
    /// No member would be left.
    NotEnoughMembers,
    /// Only a learner can be promoted.
    NotLearner,
    /// The learner is not there, or has not got the data yet.
    LearnerNotReady,
    /// A learner does not serve clients: go to another.
    Learner,
    /// This member is not taken for the leader.
    NotLeader,
    /// No member, or none that could be taken for the leader.
    BadLeaderTransferee,
    /// Somebody wants to go back to another version already.
    DowngradeInProcess,
    /// It was forwarded to this member, but another one has to answer it by now: ask again.
    OwnerChanged,
    /// This member has joined, but has not got the data yet: go to another.
    NotReady,
    /// The clock of this member is too far off those of the others: go to another, or mend it.
    ClockSkew,
    /// The member is stopping: go to another.
    Stopped,
    /// No answer within the request timeout. The request may still take effect.
    Timeout,
    /// Users and roles, or who somebody is.
    Auth(AuthError),
    /// This member does not do that (yet).
    Unimplemented(&'static str),
}

/// What is wrong with who asks, or with a change of users and roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's texts say it")]
pub enum AuthError {
    RootUserMissing,
    RootRoleMissing,
    UserExists,
    UserEmpty,
    UserNotFound,
    RoleExists,
    RoleNotFound,
    RoleEmpty,
    /// No such user, or the wrong password.
    Failed,
    /// A password for somebody who has none.
    NoPasswordUser,
    PasswordTooLong,
    PermissionNotGiven,
    PermissionDenied,
    RoleNotGranted,
    PermissionNotGranted,
    NotEnabled,
    InvalidToken,
    InvalidManagement,
    OldRevision,
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The key is empty.
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist, or an operation that is none.
    KeyNotFound,
    /// A value together with `ignore_value`.
    ValueProvided,
    /// A lease together with `ignore_lease`.
    LeaseProvided,
    /// More operations than a transaction may have.
    TooManyOps,
    /// Two operations of one transaction write the same key.
    DuplicateKey,
    /// An unknown sort order or target.
    SortOption,
    /// The request is larger than the limit.
    TooLarge,
    /// The lease would live longer than any lease may.
    LeaseTtlTooLarge,
    /// No version of the form `X.Y` or `X.Y.Z`.
    VersionFormat,
    /// Only the version right before this one can be gone back to.
    VersionTarget,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(invalid) => write!(f, "invalid request: {invalid:?}"),
            Self::Compacted { compacted } => write!(f, "compacted at revision {compacted}"),
            Self::FutureRevision => write!(f, "revision is in the future"),
            Self::NoSpace => write!(f, "no space"),
            Self::Corrupt => write!(f, "corrupt cluster"),
            Self::TooManyRequests => write!(f, "too many requests"),
            Self::LeaseNotFound => write!(f, "lease not found"),
            Self::LeaseExists => write!(f, "lease already exists"),
            Self::BadMemberUrls => write!(f, "bad member URLs"),
            Self::PeerUrlExists => write!(f, "a member has this peer URL"),
            Self::NotEnoughMembers => write!(f, "no member would be left"),
            Self::NotLearner => write!(f, "not a learner"),
            Self::LearnerNotReady => write!(f, "the learner has not got the data yet"),
            Self::Learner => write!(f, "this member is a learner"),
            Self::NotLeader => write!(f, "not leader"),
            Self::BadLeaderTransferee => write!(f, "bad leader transferee"),
            Self::DowngradeInProcess => write!(f, "a downgrade is under way"),
            Self::OwnerChanged => write!(f, "another member has to answer it by now"),
            Self::NotReady => write!(f, "the data has not come yet"),
            Self::ClockSkew => write!(f, "the clock is too far off"),
            Self::MemberNotFound => write!(f, "member not found"),
            Self::Stopped => write!(f, "server stopped"),
            Self::Timeout => write!(f, "request timed out"),
            Self::Auth(error) => write!(f, "authentication: {error:?}"),
            Self::Unimplemented(what) => write!(f, "{what} is not implemented"),
        }
    }
}

impl std::error::Error for Error {}

/// Why the store cannot be used. None of these is answered to a client: a member whose store is
/// broken stops, since it can no longer say what is true.
#[derive(Debug)]
pub enum StoreError {
    /// The disk or the file system failed.
    Io(io::Error),
    /// Bytes that are not what was written: a failed checksum, or a record that makes no sense.
    Corrupt(String),
    /// The directory is not ours to open: foreign files, a newer format, or another process has it.
    Refused(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => write!(f, "the store failed"),
            Self::Corrupt(what) => write!(f, "the store is damaged: {what}"),
            Self::Refused(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Corrupt(_) | Self::Refused(_) => None,
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
