//! Errors as etcd's clients know them: a gRPC code and a text that they compare byte by byte.

use tonic::{Code, Status};

use crate::error::{AuthError, Error, Invalid};

/// etcd's text for a revision that is gone; watches that start there carry it as their reason, too.
pub(crate) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// The end of every stream of a member that stops. clientv3 takes `Unavailable` as "go elsewhere and resume".
pub(crate) fn stopped() -> Status {
    Error::Stopped.into()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, text) = code_and_text(&error);
        Self::new(code, text)
    }
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        Error::Auth(error).into()
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        Error::Invalid(invalid).into()
    }
}

fn code_and_text(error: &Error) -> (Code, String) {
    let (code, text) = match error {
        Error::Invalid(invalid) => return invalid_code_and_text(*invalid),
        Error::Compacted { .. } => (Code::OutOfRange, COMPACTED),
        Error::FutureRevision => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Error::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Error::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        Error::TooManyRequests => (Code::ResourceExhausted, "etcdserver: too many requests"),
        Error::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
        Error::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        Error::MemberNotFound => (Code::NotFound, "etcdserver: member not found"),
        Error::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        Error::BadMemberUrls => {
            (Code::InvalidArgument, "etcdserver: given member URLs are invalid")
        }
        Error::PeerUrlExists => (Code::FailedPrecondition, "etcdserver: Peer URLs already exists"),
        Error::NotEnoughMembers => (
            Code::FailedPrecondition,
            "etcdserver: re-configuration failed due to not enough started members",
        ),
        Error::NotLearner => {
            (Code::FailedPrecondition, "etcdserver: can only promote a learner member")
        }
        Error::Learner => (Code::FailedPrecondition, "etcdserver: rpc not supported for learner"),
        Error::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
        Error::BadLeaderTransferee => {
            (Code::FailedPrecondition, "etcdserver: bad leader transferee")
        }
        Error::DowngradeInProcess => {
            (Code::FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
        }
        Error::LearnerNotReady => (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        Error::OwnerChanged => (Code::Unavailable, "etcdserver: leader changed"),
        // What clients try elsewhere, as they do when a learner does not answer.
        Error::NotReady => (Code::Unavailable, "etcdserver: no leader"),
        Error::ClockSkew => (Code::Unavailable, "etcdserver: clock skew"),
        Error::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        Error::Auth(error) => return auth_code_and_text(*error),
        Error::Unimplemented(what) => {
            return (Code::Unimplemented, format!("{what} is not implemented"));
        }
    };
    (code, text.to_owned())
}

fn auth_code_and_text(error: AuthError) -> (Code, String) {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unknown};
    let (code, text) = match error {
        AuthError::RootUserMissing => (FailedPrecondition, "root user does not exist"),
        AuthError::RootRoleMissing => (FailedPrecondition, "root user does not have root role"),
        AuthError::UserExists => (FailedPrecondition, "user name already exists"),
        AuthError::UserEmpty => (InvalidArgument, "user name is empty"),
        AuthError::UserNotFound => (FailedPrecondition, "user name not found"),
        AuthError::RoleExists => (FailedPrecondition, "role name already exists"),
        AuthError::RoleNotFound => (FailedPrecondition, "role name not found"),
        AuthError::RoleEmpty => (InvalidArgument, "role name is empty"),
        AuthError::Failed => {
            (InvalidArgument, "authentication failed, invalid user ID or password")
        }
        AuthError::NoPasswordUser => {
            let text = "auth: authentication failed, password was given for no password user";
            return (Unknown, text.to_owned());
        }
        AuthError::PasswordTooLong => {
            return (Unknown, "bcrypt: password length exceeds 72 bytes".to_owned());
        }
        AuthError::PermissionNotGiven => (InvalidArgument, "permission not given"),
        AuthError::PermissionDenied => (PermissionDenied, "permission denied"),
        AuthError::RoleNotGranted => (FailedPrecondition, "role is not granted to the user"),
        AuthError::PermissionNotGranted => {
            (FailedPrecondition, "permission is not granted to the role")
        }
        AuthError::NotEnabled => (FailedPrecondition, "authentication is not enabled"),
        AuthError::InvalidToken => (Unauthenticated, "invalid auth token"),
        AuthError::InvalidManagement => (InvalidArgument, "invalid auth management"),
        AuthError::OldRevision => (InvalidArgument, "revision of auth store is old"),
    };
    (code, format!("etcdserver: {text}"))
}

fn invalid_code_and_text(invalid: Invalid) -> (Code, String) {
    let text = match invalid {
        Invalid::EmptyKey => "etcdserver: key is not provided",
        Invalid::KeyNotFound => "etcdserver: key not found",
        Invalid::ValueProvided => "etcdserver: value is provided",
        Invalid::LeaseProvided => "etcdserver: lease is provided",
        Invalid::TooManyOps => "etcdserver: too many operations in txn request",
        Invalid::DuplicateKey => "etcdserver: duplicate key given in txn request",
        Invalid::SortOption => "etcdserver: invalid sort option",
        Invalid::VersionFormat => "etcdserver: wrong downgrade target version format",
        Invalid::VersionTarget => "etcdserver: invalid downgrade target version",
        Invalid::TooLarge => "etcdserver: request is too large",
        Invalid::LeaseTtlTooLarge => {
            return (Code::OutOfRange, "etcdserver: too large lease TTL".to_owned());
        }
    };
    (Code::InvalidArgument, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn every_error_has_the_code_and_text_of_etcd() {
        let invalid = |invalid| Error::Invalid(invalid);
        let table = [
            (invalid(Invalid::EmptyKey), 3, "etcdserver: key is not provided"),
            (invalid(Invalid::KeyNotFound), 3, "etcdserver: key not found"),
            (invalid(Invalid::ValueProvided), 3, "etcdserver: value is provided"),
            (invalid(Invalid::LeaseProvided), 3, "etcdserver: lease is provided"),
            (invalid(Invalid::TooManyOps), 3, "etcdserver: too many operations in txn request"),
            (invalid(Invalid::DuplicateKey), 3, "etcdserver: duplicate key given in txn request"),
            (invalid(Invalid::SortOption), 3, "etcdserver: invalid sort option"),
            (invalid(Invalid::TooLarge), 3, "etcdserver: request is too large"),
            (invalid(Invalid::LeaseTtlTooLarge), 11, "etcdserver: too large lease TTL"),
            (
                Error::Compacted { compacted: Revision(7) },
                11,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (Error::FutureRevision, 11, "etcdserver: mvcc: required revision is a future revision"),
            (Error::NoSpace, 8, "etcdserver: mvcc: database space exceeded"),
            (Error::Corrupt, 15, "etcdserver: corrupt cluster"),
            (Error::TooManyRequests, 8, "etcdserver: too many requests"),
            (Error::LeaseNotFound, 5, "etcdserver: requested lease not found"),
            (Error::LeaseExists, 9, "etcdserver: lease already exists"),
            (Error::MemberNotFound, 5, "etcdserver: member not found"),
            (Error::Stopped, 14, "etcdserver: server stopped"),
            (Error::BadMemberUrls, 3, "etcdserver: given member URLs are invalid"),
            (Error::PeerUrlExists, 9, "etcdserver: Peer URLs already exists"),
            (
                Error::NotEnoughMembers,
                9,
                "etcdserver: re-configuration failed due to not enough started members",
            ),
            (
                Error::LearnerNotReady,
                9,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            (Error::NotLearner, 9, "etcdserver: can only promote a learner member"),
            (Error::Learner, 9, "etcdserver: rpc not supported for learner"),
            (Error::OwnerChanged, 14, "etcdserver: leader changed"),
            (Error::NotReady, 14, "etcdserver: no leader"),
            (Error::ClockSkew, 14, "etcdserver: clock skew"),
            (Error::Timeout, 14, "etcdserver: request timed out"),
            (Error::Unimplemented("KV.Jump"), 12, "KV.Jump is not implemented"),
            (Error::Auth(AuthError::PermissionDenied), 7, "etcdserver: permission denied"),
            (Error::Auth(AuthError::InvalidToken), 16, "etcdserver: invalid auth token"),
            (Error::Auth(AuthError::UserEmpty), 3, "etcdserver: user name is empty"),
        ];
        for (error, code, text) in table {
            let status = Status::from(error.clone());
            assert_eq!((status.code() as i32, status.message()), (code, text), "{error:?}");
        }
    }
}
