//! The internal records about the cluster as a whole that clients may change.

use bytes::Bytes;

use crate::error::StoreError;
use crate::storage::codec::corrupt;
use crate::types::MemberId;

const LEADER: u8 = 1;
const DOWNGRADE: u8 = 2;
/// A version has three numbers.
const VERSION_BYTES_MAX: usize = 64;

/// Such a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Who is to be taken for the leader, while it lives.
    Leader(MemberId),
    /// The version that somebody wants to go back to.
    Downgrade(String),
}

impl Setting {
    /// The key of [`Self::Leader`].
    pub const LEADER: Bytes = Bytes::from_static(&[LEADER]);
    /// The key of [`Self::Downgrade`].
    pub const DOWNGRADE: Bytes = Bytes::from_static(&[DOWNGRADE]);

    /// The key and the value of the record.
    pub fn encode(&self) -> (Bytes, Bytes) {
        match self {
            Self::Leader(member) => (Self::LEADER, Bytes::copy_from_slice(&member.0.to_be_bytes())),
            Self::Downgrade(version) => (Self::DOWNGRADE, Bytes::from(version.clone())),
        }
    }

    /// Checks a key alone.
    pub fn check_key(key: &[u8]) -> Result<(), StoreError> {
        match key {
            [LEADER | DOWNGRADE] => Ok(()),
            _ => Err(corrupt("unknown setting")),
        }
    }

    /// Reads a record.
    pub fn decode(key: &[u8], value: &Bytes) -> Result<Self, StoreError> {
        match key {
            [LEADER] => {
                let id = value.as_ref().try_into();
                let id = id.map_err(|_| corrupt("member id has the wrong length"))?;
                Ok(Self::Leader(MemberId(u64::from_be_bytes(id))))
            }
            [DOWNGRADE] if value.len() <= VERSION_BYTES_MAX => {
                let version = String::from_utf8(value.to_vec());
                Ok(Self::Downgrade(version.map_err(|_| corrupt("a version is no text"))?))
            }
            _ => Err(corrupt("unknown setting")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        for setting in [Setting::Leader(MemberId(7)), Setting::Downgrade("3.6.0".to_owned())] {
            let (key, value) = setting.encode();
            assert_eq!(Setting::decode(&key, &value).unwrap(), setting);
            assert!(Setting::check_key(&key).is_ok());
        }
        let long = Bytes::from(vec![b'3'; 65]);
        let wrong =
            [(&[][..], &b""[..]), (&[9], b""), (&[1], b"short"), (&[2], &long), (&[2], b"\xff")];
        for (key, value) in wrong {
            assert!(Setting::decode(key, &Bytes::copy_from_slice(value)).is_err(), "{key:?}");
        }
    }
}
