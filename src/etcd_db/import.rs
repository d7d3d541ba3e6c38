//! Reads a database of etcd into a new store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use prost::Message;
use starling_proto::{authpb, mvccpb};

use super::{
    AUTH, AUTH_ENABLED, AUTH_REVISION, AUTH_ROLES, AUTH_USERS, FINISHED_COMPACTION, KEY, LEASE,
    Lease, META, SCHEDULED_COMPACTION, read_revision,
};
use crate::bolt::{BoltError, Item, Reader};
use crate::engine::import::Import;
use crate::error::StoreError;
use crate::storage::Store;
use crate::storage::schema::auth::{AuthKey, AuthValue, PermissionType};
use crate::storage::schema::{Identity, LeaseRecord};
use crate::time::Timestamp;
use crate::types::{KeyValue, LeaseId, MediaType, Revision};

/// The revision of etcd when nothing was ever written.
const REVISION_FIRST: u64 = 1;
/// What etcd aligns its files to: what is left over is a checksum.
const SECTOR_BYTES: u64 = 512;
/// The bytes of a SHA-256.
const CHECKSUM_BYTES: u64 = 32;
/// So much is read at once for the checksum.
const CHUNK_BYTES: usize = 1 << 16;

/// Why there is no new store.
#[derive(Debug)]
pub enum ImportError {
    /// The file cannot be read.
    File(BoltError),
    /// What it says cannot be.
    Refused(String),
    /// The store cannot be written.
    Store(StoreError),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Refused(why) => why.fmt(f),
            Self::Store(StoreError::Io(error)) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ImportError {}

impl From<BoltError> for ImportError {
    fn from(error: BoltError) -> Self {
        Self::File(error)
    }
}

impl From<io::Error> for ImportError {
    fn from(error: io::Error) -> Self {
        Self::File(error.into())
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, ImportError> {
    Err(ImportError::Refused(why.into()))
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Pairs that live.
    pub keys: u64,
    /// The current revision, where the store is compacted, too.
    pub revision: u64,
    /// Leases.
    pub leases: u64,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
    /// Keys whose lease is gone: they stay, without it.
    pub without_lease: u64,
    /// Whether everybody has to say who they are.
    pub auth: bool,
}

/// Checks the checksum at the end of a snapshot, and answers how long it is without it. `None` if there is none.
pub fn verify<R: Read + Seek>(file: &mut R) -> Result<Option<u64>, ImportError> {
    let bytes = file.seek(SeekFrom::End(0))?;
    if bytes % SECTOR_BYTES != CHECKSUM_BYTES {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(0))?;
    let (mut left, mut chunk) = (bytes - CHECKSUM_BYTES, vec![0; CHUNK_BYTES]);
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        file.read_exact(&mut chunk[..wanted])?;
        digest.update(&chunk[..wanted]);
        left -= wanted as u64;
    }
    let mut expected = Vec::new();
    file.read_to_end(&mut expected)?;
    if digest.finish().as_ref() != expected {
        return refuse("the checksum at its end is not that of the snapshot");
    }
    Ok(Some(bytes - CHECKSUM_BYTES))
}

/// Reads the first `bytes` bytes of a file into a store that is empty. `now` is when that is, and `secret` what tokens are
/// signed with.
pub fn read<R: Read + Seek>(
    file: R,
    bytes: u64,
    store: &Store,
    identity: Identity,
    now: Timestamp,
    secret: Bytes,
) -> Result<Imported, ImportError> {
    let mut file = Reader::open(file, bytes)?;
    let mut imported = Imported::default();
    let latest = Latest::read(&mut file)?;
    let leases = leases(&mut file)?;
    let auth = auth(&mut file, secret, &mut imported)?;
    let mut import = Import::new(store, identity, Revision(latest.revision), now)?;
    let Some(keys) = file.bucket(KEY)? else { return refuse("it has no bucket of keys") };
    file.walk(&keys, |key, item| {
        let (Some((main, sub, false)), Item::Value(value)) = (read_revision(key), item) else {
            return Ok::<_, ImportError>(());
        };
        let pair = decode::<mvccpb::KeyValue>(value, "a pair")?;
        if latest.places.get(&pair.key) != Some(&(main, sub, false)) {
            return Ok(());
        }
        let mut pair = pair_of(pair, main)?;
        if pair.lease.is_some() && !leases.contains_key(&pair.lease.0) {
            imported.without_lease += 1;
            pair.lease = LeaseId::NONE;
        }
        imported.keys += 1;
        Ok(import.put(pair)?)
    })?;
    for lease in leases.values() {
        let ttl_seconds = u64::try_from(lease.ttl).unwrap_or(0).max(1);
        let (id, owner) = (LeaseId(lease.id), identity.member);
        import.lease(&LeaseRecord { id, ttl_seconds, owner })?;
        imported.leases += 1;
    }
    for (key, value) in auth.records(identity) {
        import.auth(&key, &value)?;
    }
    import.finish()?;
    imported.revision = latest.revision;
    Ok(imported)
}

/// Where the newest row of each key stands.
struct Latest {
    places: HashMap<Bytes, (u64, u64, bool)>,
    revision: u64,
}

impl Latest {
    fn read<R: Read + Seek>(file: &mut Reader<R>) -> Result<Self, ImportError> {
        let (mut places, mut revision) = (HashMap::new(), REVISION_FIRST);
        let Some(keys) = file.bucket(KEY)? else { return refuse("it has no bucket of keys") };
        file.walk(&keys, |key, item| {
            let Some((main, sub, dead)) = read_revision(key) else {
                return refuse("a row of its keys is at no revision");
            };
            revision = revision.max(main);
            let Item::Value(value) = item else { return refuse("there are buckets in its keys") };
            // A revision alone, by which etcdutl has bumped the current one, is of no key.
            let pair = decode::<mvccpb::KeyValue>(value, "a pair")?;
            if !pair.key.is_empty() {
                // With memory of its own, not that of the value.
                places.insert(Bytes::copy_from_slice(&pair.key), (main, sub, dead));
            }
            Ok(())
        })?;
        let Some(meta) = file.bucket(META)? else { return refuse("it has no bucket of facts") };
        file.walk(&meta, |key, item| {
            if let (FINISHED_COMPACTION | SCHEDULED_COMPACTION, Item::Value(value)) = (key, item)
                && let Some((main, _, _)) = read_revision(value)
            {
                revision = revision.max(main);
            }
            Ok::<_, ImportError>(())
        })?;
        Ok(Self { places, revision })
    }
}

fn pair_of(pair: mvccpb::KeyValue, main: u64) -> Result<KeyValue, ImportError> {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(KeyValue {
        key: pair.key,
        create_revision: Revision(number(pair.create_revision)),
        mod_revision: Revision(main),
        version: number(pair.version),
        value: pair.value,
        lease: LeaseId(pair.lease),
        media_type: MediaType::NONE,
    })
}

fn decode<M: Message + Default>(value: &[u8], what: &str) -> Result<M, ImportError> {
    M::decode(value).map_err(|error| ImportError::Refused(format!("{what} is none: {error}")))
}

/// The values of a bucket that may be missing.
fn values<R: Read + Seek>(
    file: &mut Reader<R>,
    bucket: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let Some(root) = file.bucket(bucket)? else { return Ok(()) };
    file.walk(&root, |key, item| match item {
        Item::Value(value) => visit(key, value),
        Item::Bucket(_) => refuse("there is a bucket where a value should be"),
    })
}

fn leases<R: Read + Seek>(file: &mut Reader<R>) -> Result<BTreeMap<i64, Lease>, ImportError> {
    let mut leases = BTreeMap::new();
    values(file, LEASE, |_, value| {
        let lease: Lease = decode(value, "a lease")?;
        leases.insert(lease.id, lease);
        Ok(())
    })?;
    Ok(leases)
}

/// Users and roles.
struct Auth {
    switch: Option<AuthValue>,
    revision: u64,
    users: Vec<authpb::User>,
    roles: Vec<authpb::Role>,
}

fn auth<R: Read + Seek>(
    file: &mut Reader<R>,
    secret: Bytes,
    imported: &mut Imported,
) -> Result<Auth, ImportError> {
    let mut auth = Auth { switch: None, revision: 1, users: Vec::new(), roles: Vec::new() };
    let mut is_on = false;
    values(file, AUTH, |key, value| {
        match (key, <[u8; 8]>::try_from(value)) {
            (AUTH_ENABLED, _) => is_on = value == [1],
            (AUTH_REVISION, Ok(revision)) => auth.revision = u64::from_be_bytes(revision).max(1),
            _ => {}
        }
        Ok(())
    })?;
    if is_on {
        auth.switch = Some(AuthValue::Switch { on: true, secret });
    }
    values(file, AUTH_USERS, |_, value| {
        auth.users.push(decode(value, "a user")?);
        Ok(())
    })?;
    values(file, AUTH_ROLES, |_, value| {
        auth.roles.push(decode(value, "a role")?);
        Ok(())
    })?;
    let is_known = |kind: i32| PermissionType::from_number(kind).is_some();
    let mut permissions = auth.roles.iter().flat_map(|role| &role.key_permission);
    let names = auth.users.iter().map(|user| &user.name);
    let mut names = names.chain(auth.roles.iter().map(|role| &role.name));
    if permissions.any(|it| !is_known(it.perm_type))
        || names.any(|name| str::from_utf8(name).is_err())
    {
        return refuse("a user or a role is none");
    }
    (imported.users, imported.roles) = (auth.users.len() as u64, auth.roles.len() as u64);
    imported.auth = is_on;
    Ok(auth)
}

impl Auth {
    fn records(self, identity: Identity) -> Vec<(AuthKey, AuthValue)> {
        let text = |name: &Bytes| String::from_utf8_lossy(name).into_owned();
        let mut records =
            vec![(AuthKey::Revision(identity.member), AuthValue::Revision(self.revision))];
        for role in &self.roles {
            let name = text(&role.name);
            records.push((AuthKey::Role(name.clone()), AuthValue::Present));
            for (since, permission) in (1..).zip(&role.key_permission) {
                let (key, range_end) = (permission.key.clone(), permission.range_end.clone());
                let kind = PermissionType::from_number(permission.perm_type);
                let key = AuthKey::Permission { role: name.clone(), key, range_end };
                let kind = kind.unwrap_or(PermissionType::Read);
                records.push((key, AuthValue::Permission { kind, since }));
            }
        }
        for user in self.users {
            let name = text(&user.name);
            let has_none = user.options.is_some_and(|options| options.no_password);
            let password = Some(user.password).filter(|_| !has_none);
            records.push((AuthKey::User(name.clone()), AuthValue::User(password)));
            for role in user.roles.into_iter().collect::<BTreeSet<_>>() {
                records.push((AuthKey::Grant { user: name.clone(), role }, AuthValue::Present));
            }
        }
        // Last, so that it never stands without the users.
        records.extend(self.switch.map(|switch| (AuthKey::Switch, switch)));
        records
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::bolt::Writer;
    use crate::etcd_db::revision_key;
    use crate::storage::Memory;
    use crate::types::{ClusterId, MemberId};

    fn pair(key: &str, created: i64, version: i64) -> mvccpb::KeyValue {
        let key = key.to_owned().into();
        mvccpb::KeyValue { key, create_revision: created, version, ..Default::default() }
    }

    fn file(rows: &[(u64, u64, mvccpb::KeyValue)], tombstone: Option<(u64, &str)>) -> Vec<u8> {
        let mut file = Writer::new(Cursor::new(Vec::new())).unwrap();
        for (main, sub, pair) in rows {
            file.put(&revision_key(*main, *sub), &pair.encode_to_vec()).unwrap();
        }
        if let Some((main, key)) = tombstone {
            let row = [&revision_key(main, 0)[..], b"t"].concat();
            file.put(&row, &pair(key, 0, 0).encode_to_vec()).unwrap();
        }
        file.end_bucket(KEY).unwrap();
        file.end_bucket(META).unwrap();
        file.finish().unwrap().0.into_inner()
    }

    fn import(file: &[u8]) -> Result<Imported, ImportError> {
        let store = Store::Memory(Memory::new());
        let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
        let (bytes, now) = (file.len() as u64, Timestamp::from_millis(1 << 40));
        read(Cursor::new(file), bytes, &store, identity, now, Bytes::new())
    }

    #[test]
    fn only_what_lives_is_imported() {
        let rows = [
            (2, 0, pair("a", 2, 1)),
            (2, 1, pair("b", 2, 1)),
            (3, 0, pair("a", 2, 2)),
            (4, 0, pair("leased", 4, 1)),
        ];
        let mut rows = rows.to_vec();
        rows[3].2.lease = 7;
        let imported = import(&file(&rows, Some((5, "b")))).unwrap();
        let expected = Imported { keys: 2, revision: 5, without_lease: 1, ..Imported::default() };
        assert_eq!(imported, expected);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let wrong = [(2, pair("a", 3, 1)), (2, pair("a", 0, 1)), (2, pair("a", 2, 0))];
        for (main, pair) in wrong {
            assert!(import(&file(&[(main, 0, pair)], None)).is_err());
        }
        assert!(import(&file(&[(1 << 62, 0, pair("a", 2, 1))], None)).is_err());
    }

    #[test]
    fn a_broken_file_is_imported_or_refused() {
        let rows: Vec<_> = (2..200).map(|i| (i, 0, pair(&format!("key{i}"), 2, 1))).collect();
        let good = file(&rows, None);
        for at in (0..good.len()).step_by(7) {
            let mut broken = good.clone();
            broken[at] ^= 0x41;
            let _ = import(&broken);
        }
    }
}
