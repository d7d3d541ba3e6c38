//! Writes what a member holds as a database of etcd.

use std::collections::BTreeMap;
use std::io::{Seek, Write};

use prost::Message;
use serde_json::json;
use starling_proto::{authpb, etcdserverpb, mvccpb};

use super::{
    ALARM, AUTH, AUTH_ENABLED, AUTH_REVISION, AUTH_ROLES, AUTH_USERS, CLUSTER, CLUSTER_VERSION,
    CONF_STATE, CONSISTENT_INDEX, FINISHED_COMPACTION, KEY, LEASE, Lease, MEMBERS, MEMBERS_REMOVED,
    META, SCHEDULED_COMPACTION, STORAGE_VERSION, TERM, TOMBSTONE, revision_key,
};
use crate::bolt::{BoltError, Writer};
use crate::engine::auth::AuthState;
use crate::engine::mvcc::Reader;
use crate::engine::{Failure, Pair};
use crate::storage::schema::member::MemberRecord;
use crate::types::{Alarm, MemberId};

/// A key that nobody has, unless they want to; then it gets longer.
const ABSENT_KEY: &[u8] = b"\0no such key";

/// Everything beside the keys.
pub struct State<'a> {
    /// Users and roles.
    pub auth: &'a AuthState,
    /// Leases, by id.
    pub leases: BTreeMap<i64, Lease>,
    /// Alarms that are on.
    pub alarms: Vec<Alarm>,
    /// The members.
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Those that were removed.
    pub removed: Vec<MemberId>,
    /// etcd's raft index and term. Neither may be zero.
    pub index: u64,
    /// See there.
    pub term: u64,
    /// As what version of etcd to be read, all three numbers.
    pub version: &'a str,
}

/// Why there is no file.
#[derive(Debug)]
pub enum ExportError {
    /// The store cannot be read.
    Store(Failure),
    /// The file cannot be written.
    File(BoltError),
}

impl From<Failure> for ExportError {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

impl From<BoltError> for ExportError {
    fn from(error: BoltError) -> Self {
        Self::File(error)
    }
}

/// Writes it all, at the revision of the reader, to a file that is empty yet. Answers its length, too.
pub fn write<W: Write + Seek>(
    out: W,
    reader: &Reader<'_>,
    state: &State<'_>,
) -> Result<(W, u64), ExportError> {
    let mut file = Writer::new(out)?;
    write_keys(&mut file, reader)?;
    write_meta(&mut file, reader.revision().0, state)?;
    for (id, lease) in &state.leases {
        file.put(&id.to_be_bytes(), &lease.encode_to_vec())?;
    }
    file.end_bucket(LEASE)?;
    write_auth(&mut file, state.auth)?;
    write_members(&mut file, state)?;
    Ok(file.finish()?)
}

/// If nothing that lives is as new as the revision, a tombstone of nobody stands there, so that all readers of the file
/// see how far it goes.
fn write_keys<W: Write + Seek>(
    file: &mut Writer<W>,
    reader: &Reader<'_>,
) -> Result<(), ExportError> {
    let revision = reader.revision();
    let mut newest = 0;
    reader.visit_live(revision, |place, row| {
        let crate::storage::schema::Op::Put(kv) = &row.op else { return Ok(()) };
        newest = place.revision.0;
        let key = revision_key(newest, u64::from(place.n));
        Ok::<_, ExportError>(file.put(&key, Pair::from(kv).wire())?)
    })?;
    if newest < revision.0 {
        let mut absent = ABSENT_KEY.to_vec();
        while reader.exists(&absent).map_err(Failure::from)? {
            absent.push(0);
        }
        let nobody = mvccpb::KeyValue { key: absent.into(), ..Default::default() };
        let key = [&revision_key(revision.0, 0)[..], &[TOMBSTONE]].concat();
        file.put(&key, &nobody.encode_to_vec())?;
    }
    Ok(file.end_bucket(KEY)?)
}

fn write_meta<W: Write + Seek>(
    file: &mut Writer<W>,
    revision: u64,
    state: &State<'_>,
) -> Result<(), BoltError> {
    let voters: Vec<u64> =
        state.members.iter().filter(|(_, record)| !record.learner).map(|(id, _)| id.0).collect();
    let conf_state = json!({ "voters": voters, "auto_leave": false }).to_string();
    file.put(CONF_STATE, conf_state.as_bytes())?;
    file.put(CONSISTENT_INDEX, &state.index.max(1).to_be_bytes())?;
    // What lives is all there is: older revisions cannot be read.
    file.put(FINISHED_COMPACTION, &revision_key(revision, 0))?;
    file.put(SCHEDULED_COMPACTION, &revision_key(revision, 0))?;
    file.put(STORAGE_VERSION, state.version.as_bytes())?;
    file.put(TERM, &state.term.max(1).to_be_bytes())?;
    file.end_bucket(META)
}

fn write_auth<W: Write + Seek>(file: &mut Writer<W>, auth: &AuthState) -> Result<(), BoltError> {
    file.put(AUTH_ENABLED, &[u8::from(auth.is_enabled())])?;
    file.put(AUTH_REVISION, &auth.revision().to_be_bytes())?;
    file.end_bucket(AUTH)?;
    for name in auth.users() {
        let password = auth.password(name);
        let user = authpb::User {
            name: name.clone().into(),
            password: password.cloned().unwrap_or_default(),
            roles: auth.roles_of(name).cloned().collect(),
            options: Some(authpb::UserAddOptions { no_password: password.is_none() }),
        };
        file.put(name.as_bytes(), &user.encode_to_vec())?;
    }
    file.end_bucket(AUTH_USERS)?;
    for name in auth.roles() {
        let permissions = auth.permissions(name).map(|permission| authpb::Permission {
            perm_type: permission.kind as i32,
            key: permission.key,
            range_end: permission.range_end,
        });
        let role =
            authpb::Role { name: name.clone().into(), key_permission: permissions.collect() };
        file.put(name.as_bytes(), &role.encode_to_vec())?;
    }
    file.end_bucket(AUTH_ROLES)
}

fn write_members<W: Write + Seek>(
    file: &mut Writer<W>,
    state: &State<'_>,
) -> Result<(), BoltError> {
    let name = |id: MemberId| format!("{:x}", id.0);
    let members = state.members.iter().map(|(id, record)| {
        let mut member = json!({ "id": id.0, "peerURLs": record.peer_urls });
        if record.learner {
            member["isLearner"] = true.into();
        }
        if record.is_started() {
            member["name"] = record.name.clone().into();
            member["clientURLs"] = record.client_urls.clone().into();
        }
        (name(*id), member.to_string())
    });
    // The order of the names is not that of the numbers.
    for (name, member) in members.collect::<BTreeMap<_, _>>() {
        file.put(name.as_bytes(), member.as_bytes())?;
    }
    file.end_bucket(MEMBERS)?;
    let removed: std::collections::BTreeSet<_> = state.removed.iter().map(|id| name(*id)).collect();
    for name in removed {
        file.put(name.as_bytes(), b"removed")?;
    }
    file.end_bucket(MEMBERS_REMOVED)?;
    file.put(CLUSTER_VERSION, state.version.as_bytes())?;
    file.end_bucket(CLUSTER)?;
    let alarms = state.alarms.iter().map(|alarm| {
        let kind = alarm.kind as i32;
        etcdserverpb::AlarmMember { member_id: alarm.member.0, alarm: kind }.encode_to_vec()
    });
    for alarm in alarms.collect::<std::collections::BTreeSet<_>>() {
        file.put(&alarm, &[])?;
    }
    file.end_bucket(ALARM)
}
