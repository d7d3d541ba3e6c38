//! The internal records about users and roles. What somebody grants and what another one grants at the same time elsewhere are
//! records of their own, so both are there in the end.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::StoreError;
use crate::storage::codec::{Reader, corrupt, put_bytes, put_varint};
use crate::types::MemberId;

const KIND_SWITCH: u8 = 1;
const KIND_REVISION: u8 = 2;
const KIND_USER: u8 = 3;
const KIND_GRANT: u8 = 4;
const KIND_ROLE: u8 = 5;
const KIND_PERMISSION: u8 = 6;

/// The bytes of a new secret that tokens are signed with.
pub const SECRET_BYTES: usize = 32;

/// What a permission lets a user do (etcd's `authpb.Permission.Type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "etcd's names say it")]
pub enum PermissionType {
    Read = 0,
    Write = 1,
    ReadWrite = 2,
}

impl PermissionType {
    /// The type with etcd's number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Read, Self::Write, Self::ReadWrite].into_iter().find(|it| *it as i32 == number)
    }

    /// Whether it lets its holder read.
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether it lets its holder write.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// What names a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthKey {
    /// Whether anybody has to say who they are.
    Switch,
    /// How many changes a member has seen when it made its last one.
    Revision(MemberId),
    /// A user.
    User(String),
    /// A user has a role.
    Grant {
        /// Who.
        user: String,
        /// Which.
        role: String,
    },
    /// A role.
    Role(String),
    /// A role may do something with a range of keys.
    Permission {
        /// Which.
        role: String,
        /// The range, as etcd's requests describe it.
        key: Bytes,
        /// Its end, likewise.
        range_end: Bytes,
    },
}

/// What such a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthValue {
    /// Of the switch.
    Switch {
        /// Whether it is on.
        on: bool,
        /// What tokens are signed with.
        secret: Bytes,
    },
    /// Of a revision.
    Revision(u64),
    /// Of a user: the hash of the password; `None` for one who cannot come by password.
    User(Option<Bytes>),
    /// Of a grant and of a role: nothing more than that it is there.
    Present,
    /// Of a permission.
    Permission {
        /// What it lets its holder do.
        kind: PermissionType,
        /// Which of several for one key came first: the revision of users and roles that it was first given at.
        since: u64,
    },
}

impl AuthKey {
    /// The key of the record.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Switch => out.put_u8(KIND_SWITCH),
            Self::Revision(member) => {
                out.put_u8(KIND_REVISION);
                out.put_u64(member.0);
            }
            Self::User(name) => {
                out.put_u8(KIND_USER);
                out.put_slice(name.as_bytes());
            }
            Self::Grant { user, role } => {
                out.put_u8(KIND_GRANT);
                put_bytes(&mut out, user.as_bytes());
                out.put_slice(role.as_bytes());
            }
            Self::Role(name) => {
                out.put_u8(KIND_ROLE);
                out.put_slice(name.as_bytes());
            }
            Self::Permission { role, key, range_end } => {
                out.put_u8(KIND_PERMISSION);
                put_bytes(&mut out, role.as_bytes());
                put_bytes(&mut out, key);
                out.put_slice(range_end);
            }
        }
        out.freeze()
    }

    /// Reads a key.
    pub fn decode(key: &Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(key.clone());
        let key = match reader.u8()? {
            KIND_SWITCH => Self::Switch,
            KIND_REVISION => {
                let member = reader.rest();
                let member = member.as_ref().try_into();
                let member = member.map_err(|_| corrupt("member id has the wrong length"))?;
                return Ok(Self::Revision(MemberId(u64::from_be_bytes(member))));
            }
            KIND_USER => return Ok(Self::User(text(&reader.rest())?)),
            KIND_GRANT => {
                let user = text(&reader.bytes()?)?;
                return Ok(Self::Grant { user, role: text(&reader.rest())? });
            }
            KIND_ROLE => return Ok(Self::Role(text(&reader.rest())?)),
            KIND_PERMISSION => {
                let (role, key) = (text(&reader.bytes()?)?, reader.bytes()?);
                return Ok(Self::Permission { role, key, range_end: reader.rest() });
            }
            kind => return Err(StoreError::Corrupt(format!("unknown record {kind} of users"))),
        };
        reader.end()?;
        Ok(key)
    }
}

impl AuthValue {
    /// The value of the record.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Switch { on, secret } => {
                out.put_u8(u8::from(*on));
                out.put_slice(secret);
            }
            Self::Revision(revision) => put_varint(&mut out, *revision),
            Self::User(hash) => {
                out.put_u8(u8::from(hash.is_some()));
                out.put_slice(hash.as_deref().unwrap_or_default());
            }
            Self::Present => out.put_u8(0),
            Self::Permission { kind, since } => {
                out.put_u8(*kind as u8);
                put_varint(&mut out, *since);
            }
        }
        out.freeze()
    }

    /// Reads the value of the record with this key.
    pub fn decode(key: &AuthKey, value: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(value);
        let value = match key {
            AuthKey::Switch => {
                let on = flag(reader.u8()?)?;
                return Ok(Self::Switch { on, secret: reader.rest() });
            }
            AuthKey::Revision(_) => Self::Revision(reader.varint()?),
            AuthKey::User(_) => {
                let has_password = flag(reader.u8()?)?;
                let hash = reader.rest();
                return Ok(Self::User(has_password.then_some(hash)));
            }
            AuthKey::Grant { .. } | AuthKey::Role(_) => {
                flag(reader.u8()?)?;
                Self::Present
            }
            AuthKey::Permission { .. } => {
                let kind = PermissionType::from_number(i32::from(reader.u8()?));
                let kind = kind.ok_or_else(|| corrupt("unknown kind of permission"))?;
                Self::Permission { kind, since: reader.varint()? }
            }
        };
        reader.end()?;
        Ok(value)
    }
}

fn flag(byte: u8) -> Result<bool, StoreError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(corrupt("neither yes nor no")),
    }
}

fn text(bytes: &Bytes) -> Result<String, StoreError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| corrupt("a name is no text"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn any_record() -> impl Strategy<Value = (AuthKey, AuthValue)> {
        let permission = (any::<(String, u8)>(), any_bytes(), any_bytes());
        prop_oneof![
            (any::<bool>(), any_bytes())
                .prop_map(|(on, secret)| (AuthKey::Switch, AuthValue::Switch { on, secret })),
            any::<(u64, u64)>().prop_map(|(member, revision)| {
                (AuthKey::Revision(MemberId(member)), AuthValue::Revision(revision))
            }),
            (any::<String>(), proptest::option::of(any_bytes()))
                .prop_map(|(name, hash)| (AuthKey::User(name), AuthValue::User(hash))),
            any::<(String, String)>()
                .prop_map(|(user, role)| (AuthKey::Grant { user, role }, AuthValue::Present)),
            any::<String>().prop_map(|name| (AuthKey::Role(name), AuthValue::Present)),
            permission.prop_map(|((role, kind), key, range_end)| {
                let kind = PermissionType::from_number(i32::from(kind % 3)).expect("below three");
                let since = u64::from(kind as u8) << 40;
                (
                    AuthKey::Permission { role, key, range_end },
                    AuthValue::Permission { kind, since },
                )
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_come_back((key, value) in any_record()) {
            let bytes = value.encode();
            prop_assert_eq!(&AuthKey::decode(&key.encode())?, &key);
            prop_assert_eq!(AuthValue::decode(&key, bytes)?, value);
        }

        #[test]
        fn any_bytes_are_read_or_refused(key in any_bytes(), value in any_bytes()) {
            if let Ok(key) = AuthKey::decode(&key) {
                let _ = AuthValue::decode(&key, value);
            }
        }
    }
}
