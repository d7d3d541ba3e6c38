//! Who asks, and what they may do.
//!
//! As in etcd, a request is looked at for its form first, then for who asks. Whoever forwards a request to another member has
//! checked it; members do not ask each other for tokens.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, header};
use tonic::metadata::MetadataMap;

use super::Context;
use crate::engine::auth::{AuthState, Rights};
use crate::engine::command::{Compare, DeleteRange, Put, Range, Txn, TxnOp};
use crate::error::{AuthError, Error};
use crate::types::{KeyRange, LeaseId};

/// Where clients put their tokens: clientv3 there, ...
const TOKEN: &str = "token";
/// ... the gateway and its clients here.
const AUTHORIZATION: &str = "authorization";
const BEARER: &str = "Bearer ";

/// The user that a client's certificate names, in the extensions of a request.
#[derive(Clone, Debug)]
pub(crate) struct CertificateUser(pub(crate) Arc<str>);

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Nobody has to say who they are.
    Open,
    /// Somebody who has not said so.
    Nobody,
    /// A user, who need not exist any more.
    User {
        name: Arc<str>,
        rights: Arc<Rights>,
        /// Whether there is such a user.
        exists: bool,
    },
}

impl Access {
    /// Reads who asks off a request. A token that is not good is refused, whatever is asked.
    pub(crate) fn of(
        context: &Context,
        metadata: &MetadataMap,
        certificate: Option<&CertificateUser>,
    ) -> Result<Self, Error> {
        let auth = context.node.auth();
        if context.is_trusted || !auth.is_enabled() {
            return Ok(Self::Open);
        }
        let state = auth.state();
        match (token(metadata), certificate) {
            (Some(token), _) => {
                let name = context.node.whose_token(token, &state)?;
                Ok(Self::user(&state, name.into()))
            }
            (None, Some(CertificateUser(name))) => Ok(Self::user(&state, Arc::clone(name))),
            (None, None) => Ok(Self::Nobody),
        }
    }

    /// The same of a request by plain HTTP, which may have a user and a password in place of a token. Certificates say
    /// nothing there, as by the gateway.
    pub(crate) async fn of_http(context: &Context, headers: &HeaderMap) -> Result<Self, Error> {
        let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let basic = basic.and_then(basic_credentials);
        let (user, password) = match basic {
            Some(credentials) if context.node.auth().is_enabled() => credentials,
            _ => return Self::of(context, &MetadataMap::from_headers(headers.clone()), None),
        };
        let state = context.node.check_password(&user, password).await?;
        Ok(Self::user(&state, user.into()))
    }

    fn user(state: &AuthState, name: Arc<str>) -> Self {
        let (rights, exists) = (state.rights(&name), state.has_user(&name));
        Self::User { name, rights, exists }
    }

    /// The same user, by what they may do now.
    pub(crate) fn renewed(&self, context: &Context) -> Self {
        let auth = context.node.auth();
        match self {
            _ if context.is_trusted || !auth.is_enabled() => Self::Open,
            Self::User { name, .. } => Self::user(&auth.state(), Arc::clone(name)),
            Self::Open | Self::Nobody => Self::Nobody,
        }
    }

    fn rights(&self) -> Result<Option<&Rights>, AuthError> {
        match self {
            Self::Open => Ok(None),
            Self::Nobody => Err(AuthError::UserEmpty),
            Self::User { exists: false, .. } => Err(AuthError::PermissionDenied),
            Self::User { rights, .. } => Ok(Some(rights)),
        }
    }

    fn check(&self, may: impl FnOnce(&Rights) -> bool) -> Result<(), AuthError> {
        match self.rights()? {
            Some(rights) if !may(rights) => Err(AuthError::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// The name of the user, if there has to be one.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::User { name, .. } => Some(name),
            Self::Open | Self::Nobody => None,
        }
    }

    /// Only root may.
    pub(crate) fn admin(&self) -> Result<(), AuthError> {
        self.check(|rights| rights.is_root)
    }

    /// Everybody may who says who they are.
    pub(crate) fn known(&self) -> Result<(), AuthError> {
        self.rights().map(drop)
    }

    pub(crate) fn read(&self, range: &KeyRange) -> Result<(), AuthError> {
        self.check(|rights| rights.may_read(range))
    }

    pub(crate) fn write(&self, range: &KeyRange) -> Result<(), AuthError> {
        self.check(|rights| rights.may_write(range))
    }

    pub(crate) fn range(&self, range: &Range) -> Result<(), AuthError> {
        self.read(&range.range)
    }

    /// Whoever puts a key on a lease could let all keys of it go.
    pub(crate) fn put(&self, context: &Context, put: &Put) -> Result<(), AuthError> {
        if matches!(self, Self::Open) {
            return Ok(());
        }
        let range = KeyRange::single(put.key.clone());
        self.write(&range)?;
        self.lease(context, put.lease)?;
        if put.prev_kv { self.read(&range) } else { Ok(()) }
    }

    pub(crate) fn delete(&self, delete: &DeleteRange) -> Result<(), AuthError> {
        self.write(&delete.range)?;
        if delete.prev_kv { self.read(&delete.range) } else { Ok(()) }
    }

    /// Both branches, whichever is taken.
    pub(crate) fn txn(&self, context: &Context, txn: &Txn) -> Result<(), AuthError> {
        if matches!(self, Self::Open) {
            return Ok(());
        }
        txn.compares.iter().try_for_each(|Compare { range, .. }| self.read(range))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            TxnOp::Range(range) => self.range(range),
            TxnOp::Put(put) => self.put(context, put),
            TxnOp::DeleteRange(delete) => self.delete(delete),
            TxnOp::Txn(txn) => self.txn(context, txn),
        })
    }

    /// Whoever changes a lease changes all its keys.
    pub(crate) fn lease(&self, context: &Context, lease: LeaseId) -> Result<(), AuthError> {
        self.lease_keys(context, lease, Self::write)
    }

    /// Whoever sees the keys of a lease has to be allowed to read them.
    pub(crate) fn read_lease(&self, context: &Context, lease: LeaseId) -> Result<(), AuthError> {
        self.lease_keys(context, lease, Self::read)
    }

    fn lease_keys(
        &self,
        context: &Context,
        lease: LeaseId,
        may: impl Fn(&Self, &KeyRange) -> Result<(), AuthError>,
    ) -> Result<(), AuthError> {
        let Some(rights) = self.rights()? else { return Ok(()) };
        if rights.is_root || !lease.is_some() {
            return Ok(());
        }
        let keys = context.node.keys_of_lease(lease);
        keys.into_iter().try_for_each(|key| may(self, &KeyRange::single(key)))
    }
}

/// A user and a password, as HTTP's Basic has them.
fn basic_credentials(value: &str) -> Option<(String, String)> {
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The token of a request.
fn token(metadata: &MetadataMap) -> Option<&str> {
    let token = metadata.get(TOKEN).or_else(|| metadata.get(AUTHORIZATION))?;
    let token = token.to_str().unwrap_or_default();
    Some(token.strip_prefix(BEARER).unwrap_or(token))
}
