//! The one way into a running member, for the `api` layer: cheap to clone, safe to use from any thread.

use crate::engine::command::{
    DeleteRange, DeleteRangeReply, LeaseGrantReply, LeaseStatus, Put, PutReply, Range, RangeReply,
    Reply, Txn, TxnReply,
};
use crate::engine::watch::{WatchCreate, WatchReply};
use crate::error::Result;
use crate::types::{ClusterId, LeaseId, MemberId, Revision};

/// A running member.
#[derive(Clone)]
pub struct Handle {}

/// Who this member is, for headers and member lists.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where its clients reach it.
    pub client_urls: Vec<String>,
}

/// The state of a member, for Maintenance.Status, metrics and health.
#[derive(Clone, Debug)]
pub struct Status {
    /// The current revision.
    pub revision: Revision,
    /// The last compaction; zero if there was none.
    pub compacted: Revision,
    /// The bytes on disk.
    pub disk_bytes: u64,
    /// The bytes of what can still be read.
    pub live_bytes: u64,
    /// What `live_bytes` may grow to; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// Whether writes are refused for want of space.
    pub no_space: bool,
    /// Entries accepted so far; never goes back (etcd's raft index).
    pub entries: u64,
    /// Starts of this member, plus one; never goes back (etcd's raft term).
    pub term: u64,
    /// The keys that live now.
    pub keys: u64,
}

/// A hash over the live keys at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C over keys, values, stamps and leases.
    pub hash: u32,
    /// The revision that was hashed.
    pub revision: Revision,
    /// The last compaction; zero if there was none.
    pub compacted: Revision,
}

impl Handle {
    pub fn member(&self) -> &Member {
        unimplemented!()
    }
    pub fn revision(&self) -> Revision {
        unimplemented!()
    }
    /// etcd's raft term, for headers.
    pub fn term(&self) -> u64 {
        unimplemented!()
    }
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    pub async fn put(&self, put: Put) -> Result<Reply<PutReply>> {
        unimplemented!()
    }
    pub async fn delete_range(&self, delete: DeleteRange) -> Result<Reply<DeleteRangeReply>> {
        unimplemented!()
    }
    /// Checks the transaction's rules (operation count, duplicate keys) itself.
    pub async fn txn(&self, txn: Txn) -> Result<Reply<TxnReply>> {
        unimplemented!()
    }
    pub async fn range(&self, range: Range) -> Result<Reply<RangeReply>> {
        unimplemented!()
    }
    /// `physical`: answer after the space has been given up, too.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<Revision> {
        unimplemented!()
    }
    /// `id` zero draws one.
    pub async fn lease_grant(
        &self,
        id: LeaseId,
        ttl_seconds: i64,
    ) -> Result<Reply<LeaseGrantReply>> {
        unimplemented!()
    }
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<Revision> {
        unimplemented!()
    }
    /// The time to live that the lease starts anew, in seconds; `None` for no such lease.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<i64>> {
        unimplemented!()
    }
    /// `None` for no such lease; keys only if asked for.
    pub fn lease_status(&self, id: LeaseId, keys: bool) -> Option<LeaseStatus> {
        unimplemented!()
    }
    pub fn leases(&self) -> Vec<LeaseId> {
        unimplemented!()
    }
    /// Hashes the state at a revision (zero or less: the current one).
    pub async fn hash_kv(&self, revision: i64) -> Result<HashKv> {
        unimplemented!()
    }
    /// A new watch stream: the state of one client's Watch RPC.
    pub fn watch(&self) -> WatchStream {
        unimplemented!()
    }
    /// Resolves when the member starts to stop: streams end then.
    pub async fn stopping(&self) {
        unimplemented!()
    }
}

/// The watchers of one client stream. Dropping it ends them.
pub struct WatchStream {}

impl WatchStream {
    /// Adds a watcher. Its `Created` or `Refused` reply comes through [`Self::next`], before any of its events and in the order of the calls.
    pub fn create(&mut self, create: WatchCreate) {
        unimplemented!()
    }
    /// Ends a watcher; an unknown id is ignored.
    pub fn cancel(&mut self, id: i64) {
        unimplemented!()
    }
    /// Asks for a progress reply for all watchers of the stream.
    pub fn request_progress(&mut self) {
        unimplemented!()
    }
    /// The next reply. Cancel-safe: a call that is dropped loses nothing. Never ends by itself.
    pub async fn next(&mut self) -> WatchReply {
        unimplemented!()
    }
    /// The next reply if one is there already, to fill a write with.
    pub fn try_next(&mut self) -> Option<WatchReply> {
        unimplemented!()
    }
}
