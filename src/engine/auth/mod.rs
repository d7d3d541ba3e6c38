//! Users, roles, and whether anybody has to say who they are.
//!
//! All of it stands in internal records (`storage/schema/auth.rs`), which every member has; this is what they say, in memory. A
//! change is an entry like any other, evaluated by the writer ([`changes`]). Readers have the state as it is after all that
//! was evaluated.
//!
//! Source: etcd `server/auth/store.go`.

mod changes;
mod rights;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

pub use crate::storage::schema::auth::PermissionType;
pub use rights::KeySet;

use super::records::RecordChange;
use crate::error::StoreError;
#[cfg(test)]
use crate::storage::schema::Table;
use crate::storage::schema::auth::{AuthKey, AuthValue};
use crate::types::{KeyRange, MemberId};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// The revision of a store without any user (etcd counts from there).
const REVISION_FIRST: u64 = 1;

/// A permission of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// What.
    pub kind: PermissionType,
    /// With which keys, as etcd's requests describe them.
    pub key: Bytes,
    /// Their end, likewise.
    pub range_end: Bytes,
}

/// What a user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Everything.
    pub is_root: bool,
    /// What they may read.
    pub reads: KeySet,
    /// What they may write.
    pub writes: KeySet,
}

impl Rights {
    /// Whether they may read a range.
    pub fn may_read(&self, range: &KeyRange) -> bool {
        self.is_root || self.reads.contains(range)
    }

    /// Whether they may write it.
    pub fn may_write(&self, range: &KeyRange) -> bool {
        self.is_root || self.writes.contains(range)
    }
}

/// The permissions of a role, by key and range end, and since when each is there.
type Permissions = BTreeMap<(Bytes, Bytes), (PermissionType, u64)>;

/// Everything about users and roles, at one moment.
#[derive(Debug, Default)]
pub struct AuthState {
    enabled: bool,
    secret: Bytes,
    /// What each member has counted.
    revisions: BTreeMap<MemberId, u64>,
    /// The hashes of passwords.
    users: BTreeMap<String, Option<Bytes>>,
    /// Who has which roles; some may not be there any more.
    grants: BTreeSet<(String, String)>,
    roles: BTreeSet<String>,
    permissions: BTreeMap<String, Permissions>,
    /// What was asked for before.
    rights: RwLock<BTreeMap<String, Arc<Rights>>>,
}

impl Clone for AuthState {
    fn clone(&self) -> Self {
        Self {
            enabled: self.enabled,
            secret: self.secret.clone(),
            revisions: self.revisions.clone(),
            users: self.users.clone(),
            grants: self.grants.clone(),
            roles: self.roles.clone(),
            permissions: self.permissions.clone(),
            rights: RwLock::default(),
        }
    }
}

impl AuthState {
    /// Whether everybody has to say who they are.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What tokens are signed with, since authentication was enabled last.
    pub fn secret(&self) -> &Bytes {
        &self.secret
    }

    /// Grows with every change of users and roles.
    pub fn revision(&self) -> u64 {
        self.revisions.values().copied().max().unwrap_or(REVISION_FIRST)
    }

    /// All users, in order.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// Whether there is this user.
    pub fn has_user(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// The hash of a user's password; `None` if there is no such user, or none with a password.
    pub fn password(&self, name: &str) -> Option<&Bytes> {
        self.users.get(name)?.as_ref()
    }

    /// The roles of a user, in order.
    pub fn roles_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a String> {
        let first = (user.to_owned(), String::new());
        let grants = self.grants.range(first..).take_while(move |(name, _)| name == user);
        grants.map(|(_, role)| role)
    }

    /// Whether a user has a role.
    pub fn has_role_of(&self, user: &str, role: &str) -> bool {
        self.grants.contains(&(user.to_owned(), role.to_owned()))
    }

    /// All roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &String> {
        self.roles.iter()
    }

    /// Whether there is this role.
    pub fn has_role(&self, name: &str) -> bool {
        self.roles.contains(name)
    }

    /// The permissions of a role, in the order of their keys, those of one key as they came.
    pub fn permissions(&self, role: &str) -> impl Iterator<Item = Permission> {
        let permissions = self.permissions.get(role).into_iter().flatten();
        let mut permissions: Vec<_> = permissions.collect();
        permissions.sort_by_key(|((key, _), (_, since))| (key, *since));
        permissions.into_iter().map(|((key, range_end), (kind, _))| Permission {
            kind: *kind,
            key: key.clone(),
            range_end: range_end.clone(),
        })
    }

    /// What a user may do; nothing, if there is no such user.
    pub fn rights(&self, user: &str) -> Arc<Rights> {
        if let Some(rights) = self.rights.read().get(user) {
            return Arc::clone(rights);
        }
        // Users that are not there are not remembered: there are too many of them.
        if !self.has_user(user) {
            return Arc::default();
        }
        let rights = Arc::new(self.sum_of_rights(user));
        self.rights.write().insert(user.to_owned(), Arc::clone(&rights));
        rights
    }

    fn sum_of_rights(&self, user: &str) -> Rights {
        let roles: Vec<_> = self.roles_of(user).filter(|role| self.has_role(role)).collect();
        let all = || {
            let permissions = roles.iter().flat_map(|role| self.permissions(role));
            permissions.map(|it| (it.kind, KeyRange::from_request(it.key, it.range_end)))
        };
        let reads: Vec<_> = all().filter(|(kind, _)| kind.reads()).map(|(_, it)| it).collect();
        let writes: Vec<_> = all().filter(|(kind, _)| kind.writes()).map(|(_, it)| it).collect();
        Rights {
            // It may be granted before it is there.
            is_root: self.has_role_of(user, ROOT),
            reads: KeySet::new(&reads),
            writes: KeySet::new(&writes),
        }
    }

    /// Since when a role has a permission for a range.
    fn permitted_since(&self, role: &str, key: &Bytes, range_end: &Bytes) -> Option<u64> {
        let range = (key.clone(), range_end.clone());
        Some(self.permissions.get(role)?.get(&range)?.1)
    }

    /// Takes over what a record says; `None` if it is gone.
    fn apply(&mut self, key: AuthKey, value: Option<AuthValue>) {
        self.rights.get_mut().clear();
        match (key, value) {
            (AuthKey::Switch, Some(AuthValue::Switch { on, secret })) => {
                (self.enabled, self.secret) = (on, secret);
            }
            (AuthKey::Switch, _) => self.enabled = false,
            (AuthKey::Revision(member), Some(AuthValue::Revision(revision))) => {
                self.revisions.insert(member, revision);
            }
            // What was counted stays.
            (AuthKey::Revision(_), _) => {}
            (AuthKey::User(name), Some(AuthValue::User(hash))) => {
                self.users.insert(name, hash);
            }
            (AuthKey::User(name), _) => _ = self.users.remove(&name),
            (AuthKey::Grant { user, role }, Some(_)) => _ = self.grants.insert((user, role)),
            (AuthKey::Grant { user, role }, None) => _ = self.grants.remove(&(user, role)),
            (AuthKey::Role(name), Some(_)) => _ = self.roles.insert(name),
            (AuthKey::Role(name), None) => _ = self.roles.remove(&name),
            (
                AuthKey::Permission { role, key, range_end },
                Some(AuthValue::Permission { kind, since }),
            ) => {
                self.permissions.entry(role).or_default().insert((key, range_end), (kind, since));
            }
            (AuthKey::Permission { role, key, range_end }, _) => {
                if let Some(permissions) = self.permissions.get_mut(&role) {
                    permissions.remove(&(key, range_end));
                    if permissions.is_empty() {
                        self.permissions.remove(&role);
                    }
                }
            }
        }
    }
}

/// The state, shared by the writer and all who ask.
#[derive(Debug, Default)]
pub struct Auth {
    /// The same as the state says, for those who need no more.
    enabled: AtomicBool,
    changes: AtomicU64,
    state: RwLock<Arc<AuthState>>,
}

impl Auth {
    /// Whether everybody has to say who they are. Costs next to nothing.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// How often anything has changed here.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Everything, as it is now.
    pub fn state(&self) -> Arc<AuthState> {
        Arc::clone(&self.state.read())
    }

    /// Takes over a record, as if it had been written.
    #[cfg(test)]
    pub(crate) fn tell(&self, key: AuthKey, value: AuthValue) {
        let change =
            RecordChange { table: Table::Auth, key: key.encode(), value: Some(value.encode()) };
        self.show(&change).expect("it is a record");
    }

    /// Takes over the change of a record. Costs a copy of the state if somebody looks at it.
    pub(super) fn show(&self, change: &RecordChange) -> Result<(), StoreError> {
        let key = AuthKey::decode(&change.key)?;
        let value = change.value.clone().map(|value| AuthValue::decode(&key, value)).transpose()?;
        let mut state = self.state.write();
        let changed = Arc::make_mut(&mut state);
        changed.apply(key, value);
        self.enabled.store(changed.enabled, Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}
