//! The database of etcd, as a snapshot holds it: what it calls its buckets and their keys, written from the state of a
//! member ([`export`]), and read into a new store ([`import`]). So whoever comes from etcd can go back.
//!
//! ```text
//!   key              revision (main u64, '_', sub u64, big-endian; a 't' behind: a tombstone) -> mvccpb.KeyValue
//!   meta             consistent_index, term (u64 big-endian), confState (JSON), storageVersion,
//!                    scheduledCompactRev, finishedCompactRev (a revision)
//!   lease            id (i64 big-endian) -> leasepb.Lease
//!   auth             authEnabled (0 or 1), authRevision (u64 big-endian)
//!   authUsers        name -> authpb.User
//!   authRoles        name -> authpb.Role
//!   members          id (hexadecimal) -> JSON
//!   members_removed  id (hexadecimal) -> "removed"
//!   cluster          clusterVersion -> "3.7.0"
//!   alarm            etcdserverpb.AlarmMember -> nothing
//! ```
//!
//! History does not travel, in neither direction: pairs keep their revisions and versions, and what is written is
//! compacted at its current revision.
//!
//! Source: etcd `server/storage/schema`, `server/storage/mvcc/revision.go`, `etcdutl/snapshot`.

pub mod export;
pub mod import;

const KEY: &[u8] = b"key";
const META: &[u8] = b"meta";
const LEASE: &[u8] = b"lease";
const AUTH: &[u8] = b"auth";
const AUTH_USERS: &[u8] = b"authUsers";
const AUTH_ROLES: &[u8] = b"authRoles";
const MEMBERS: &[u8] = b"members";
const MEMBERS_REMOVED: &[u8] = b"members_removed";
const CLUSTER: &[u8] = b"cluster";
const ALARM: &[u8] = b"alarm";

const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const TERM: &[u8] = b"term";
const CONF_STATE: &[u8] = b"confState";
const STORAGE_VERSION: &[u8] = b"storageVersion";
const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
const AUTH_ENABLED: &[u8] = b"authEnabled";
const AUTH_REVISION: &[u8] = b"authRevision";
const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// The bytes of a revision as a key.
const REVISION_BYTES: usize = 17;
/// What stands between its numbers.
const REVISION_SEPARATOR: u8 = b'_';
/// Behind the revision of a tombstone.
const TOMBSTONE: u8 = b't';

/// etcd's `leasepb.Lease`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Lease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Its time to live, in seconds, as granted.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// What is left of it; zero for all.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// The key of a row of the bucket `key`.
fn revision_key(main: u64, sub: u64) -> [u8; REVISION_BYTES] {
    let mut key = [0; REVISION_BYTES];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[8] = REVISION_SEPARATOR;
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// Reads such a key: the two numbers, and whether it is that of a tombstone.
fn read_revision(key: &[u8]) -> Option<(u64, u64, bool)> {
    let (revision, rest) = key.split_first_chunk::<REVISION_BYTES>()?;
    let is_tombstone = match rest {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    let (main, rest) = revision.split_first_chunk()?;
    let (separator, sub) = rest.split_first()?;
    let sub = u64::from_be_bytes(sub.try_into().ok()?);
    (*separator == REVISION_SEPARATOR).then_some((u64::from_be_bytes(*main), sub, is_tombstone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_read_back() {
        let key = revision_key(7, 2);
        assert_eq!(&key, b"\0\0\0\0\0\0\0\x07_\0\0\0\0\0\0\0\x02");
        assert_eq!(read_revision(&key), Some((7, 2, false)));
        assert_eq!(read_revision(&[&key[..], b"t"].concat()), Some((7, 2, true)));
        for wrong in [&key[..16], &[&key[..], b"x"].concat(), &[b'_'; 16], &[b'a'; 17]] {
            assert_eq!(read_revision(wrong), None);
        }
    }
}
