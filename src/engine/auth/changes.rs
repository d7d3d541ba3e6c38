//! Changes of users and roles: what is refused, and what records are written.

use std::sync::Arc;

use bytes::Bytes;

use super::{AuthState, Permission, ROOT};
use crate::engine::command::{AuthChange, CommandReply, Reply};
use crate::engine::{Failure, Writer};
use crate::error::{AuthError, StoreError};
use crate::storage::schema::auth::{AuthKey, AuthValue};
use crate::storage::schema::{RowStamp, Table};
use crate::time::Now;
use crate::types::KeyRange;

/// Records that a change writes, or removes.
type Writes = Vec<(AuthKey, Option<AuthValue>)>;

impl Writer {
    /// Changes users or roles, or whether they matter.
    pub(in crate::engine) fn execute_auth(
        &mut self,
        change: AuthChange,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let state = self.auth.state();
        // Enabling is the only change that the revision does not count.
        let counts = !matches!(change, AuthChange::Enable { .. });
        let mut writes = writes(&state, change)?;
        if counts && !writes.is_empty() {
            let revision = AuthKey::Revision(self.identity.member);
            writes.push((revision, Some(AuthValue::Revision(state.revision() + 1))));
        }
        drop(state);
        let stamp = self.begin_entry(now);
        for (key, value) in writes {
            self.write_auth(&key, value, stamp, now)?;
        }
        Ok(self.end_entry(CommandReply::Auth))
    }

    fn write_auth(
        &mut self,
        key: &AuthKey,
        value: Option<AuthValue>,
        stamp: RowStamp,
        now: Now,
    ) -> Result<(), StoreError> {
        let name = (Table::Auth, key.encode());
        match value {
            Some(value) => self.put_record(name, value.encode(), stamp, now),
            None => self.remove_record(name, stamp, now),
        }
    }
}

fn writes(state: &Arc<AuthState>, change: AuthChange) -> Result<Writes, AuthError> {
    let is_on = state.is_enabled();
    Ok(match change {
        AuthChange::Enable { .. } if is_on => Writes::new(),
        AuthChange::Enable { secret } => enable(state, secret)?,
        AuthChange::Disable if !is_on => Writes::new(),
        AuthChange::Disable => vec![(
            AuthKey::Switch,
            Some(AuthValue::Switch { on: false, secret: state.secret().clone() }),
        )],
        AuthChange::AddUser { name, password } => add_user(state, name, password)?,
        AuthChange::DeleteUser { name } => {
            if is_on && name == ROOT {
                return Err(AuthError::InvalidManagement);
            }
            check_user(state, &name)?;
            let mut writes = grants_of(state, &name);
            writes.push((AuthKey::User(name), None));
            writes
        }
        AuthChange::ChangePassword { name, password } => {
            check_user(state, &name)?;
            // Who was made without a password does not get one.
            let password = password.filter(|_| state.password(&name).is_some());
            vec![(AuthKey::User(name), Some(AuthValue::User(password)))]
        }
        AuthChange::GrantRole { user, role } => {
            check_user(state, &user)?;
            if role != ROOT {
                check_role(state, &role)?;
            }
            if state.has_role_of(&user, &role) {
                return Ok(Writes::new());
            }
            vec![(AuthKey::Grant { user, role }, Some(AuthValue::Present))]
        }
        AuthChange::RevokeRole { user, role } => {
            if is_on && user == ROOT && role == ROOT {
                return Err(AuthError::InvalidManagement);
            }
            check_user(state, &user)?;
            if !state.has_role_of(&user, &role) {
                return Err(AuthError::RoleNotGranted);
            }
            vec![(AuthKey::Grant { user, role }, None)]
        }
        AuthChange::AddRole { name } => {
            if name.is_empty() {
                return Err(AuthError::RoleEmpty);
            }
            if state.has_role(&name) {
                return Err(AuthError::RoleExists);
            }
            vec![(AuthKey::Role(name), Some(AuthValue::Present))]
        }
        AuthChange::DeleteRole { name } => {
            if is_on && name == ROOT {
                return Err(AuthError::InvalidManagement);
            }
            check_role(state, &name)?;
            delete_role(state, name)
        }
        AuthChange::GrantPermission { role, permission } => {
            grant_permission(state, role, permission)?
        }
        AuthChange::RevokePermission { role, key, range_end } => {
            check_role(state, &role)?;
            let is_same = |it: &Permission| (&it.key, &it.range_end) == (&key, &range_end);
            if !state.permissions(&role).any(|it| is_same(&it)) {
                return Err(AuthError::PermissionNotGranted);
            }
            vec![(AuthKey::Permission { role, key, range_end }, None)]
        }
    })
}

fn enable(state: &AuthState, secret: Bytes) -> Result<Writes, AuthError> {
    if !state.has_user(ROOT) {
        return Err(AuthError::RootUserMissing);
    }
    if !state.has_role_of(ROOT, ROOT) {
        return Err(AuthError::RootRoleMissing);
    }
    // Tokens from before do not come back.
    Ok(vec![(AuthKey::Switch, Some(AuthValue::Switch { on: true, secret }))])
}

fn add_user(state: &AuthState, name: String, password: Option<Bytes>) -> Result<Writes, AuthError> {
    if name.is_empty() {
        return Err(AuthError::UserEmpty);
    }
    if state.has_user(&name) {
        return Err(AuthError::UserExists);
    }
    // Somebody may have granted something to a former user of that name, when that one was about to go.
    let mut writes = grants_of(state, &name);
    writes.push((AuthKey::User(name), Some(AuthValue::User(password))));
    Ok(writes)
}

/// Takes all roles from a user.
fn grants_of(state: &AuthState, user: &str) -> Writes {
    let grant =
        |role: &String| (AuthKey::Grant { user: user.to_owned(), role: role.clone() }, None);
    state.roles_of(user).map(grant).collect()
}

/// Takes a role from everybody, and all its permissions from it.
fn delete_role(state: &AuthState, name: String) -> Writes {
    let users = state.users().filter(|user| state.has_role_of(user, &name));
    let grants = users.map(|user| AuthKey::Grant { user: user.clone(), role: name.clone() });
    let permissions = state.permissions(&name).map(|Permission { key, range_end, .. }| {
        AuthKey::Permission { role: name.clone(), key, range_end }
    });
    let mut writes: Writes = grants.chain(permissions).map(|key| (key, None)).collect();
    writes.push((AuthKey::Role(name), None));
    writes
}

fn grant_permission(
    state: &AuthState,
    role: String,
    permission: Permission,
) -> Result<Writes, AuthError> {
    let Permission { kind, key, range_end } = permission;
    let range = KeyRange::from_request(key.clone(), range_end.clone());
    if key.is_empty() || range.is_empty() {
        return Err(AuthError::InvalidManagement);
    }
    check_role(state, &role)?;
    // Whatever it permits by now, it keeps its place.
    let since = state.permitted_since(&role, &key, &range_end).unwrap_or_else(|| state.revision());
    let key = AuthKey::Permission { role, key, range_end };
    Ok(vec![(key, Some(AuthValue::Permission { kind, since }))])
}

fn check_user(state: &AuthState, name: &str) -> Result<(), AuthError> {
    if state.has_user(name) { Ok(()) } else { Err(AuthError::UserNotFound) }
}

fn check_role(state: &AuthState, name: &str) -> Result<(), AuthError> {
    if state.has_role(name) { Ok(()) } else { Err(AuthError::RoleNotFound) }
}
