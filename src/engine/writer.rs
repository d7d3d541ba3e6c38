//! The one writer: evaluates commands in order, and makes them durable a batch at a time.
//!
//! [`Writer::execute`] evaluates a command against everything before it, durable or not, and adds its rows to the
//! open batch. [`Writer::commit`] makes the batch durable with one fsync and then shows it to readers and watchers;
//! only after that may the replies leave. There is one step for each of evaluate, commit and answer, so
//! that a step can be put between them.
//!
//! Invariants
//! * Rows enter the log in the order of their places; the newest row is never removed, so the current revision can be
//!   read off the log at start. So can how far this run has come: what a sweep may remove of it is on record before.
//! * An operation that has begun cannot fail any more: everything was checked before.
//! * The rows of an open batch are in memory until the commit.
//! * Rows that are being ingested are neither in memory nor in the store. Nothing reads them: they are not shown before they
//!   are durable, and whatever may read or write anything else waits for that first.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::Failure;
use super::alarm::Alarms;
use super::auth::Auth;
use super::collection::Collection;
use super::command::{
    Command, CommandReply, DeleteRange, DeleteRangeReply, LeaseGrantReply, Put, PutReply, Reply,
    Txn, TxnOp, TxnOpReply, TxnReply,
};
use super::early::{Floor, Floors};
use super::lease::Lessor;
use super::mvcc::{Latest, Mvcc, Reader, Reclaim, SLICE_KEYS, SLICE_KEYS_BUSY, Sweep, row_bytes};
use super::quota::cost;
use super::replicated::Replicated;
use super::restore::{COUNT_MAX, StoreMeta, restore};
use super::settings::Settings;
use super::tags;
use super::txn::{self, Path};
use super::watch::{Change, EventKind, Hub};
use crate::error::{Error, StoreError};
use crate::replication::message::Head;
use crate::replication::packed::PackedPut;
use crate::storage::schema::{
    AlarmRecord, Identity, LeaseRecord, Meta, Op, OriginIndex, Place, Row, RowStamp, Table,
};
use crate::storage::{Batch, DiskSpace, Durability, Ingest, Space, Store};
use crate::time::{HybridClock, Now, Timestamp};
use crate::types::{Alarm, KeyValue, LeaseId, MediaType, MemberId, Origin, Revision, TAG_MAX};

/// NOSPACE ends when the store is at least this fraction below its quota again.
const QUOTA_CLEAR_FRACTION: u64 = 100;
/// What is left of the disk for the store's own work in the background, such as flushes: an I/O error there would end
/// the member.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// On a small disk the reserve is only this part of it.
const DISK_RESERVE_FRACTION: u64 = 4;
/// NOSPACE ends when at least this fraction of the reserve is free above it, and what did not fit does: room comes and goes
/// while logs are flushed, and an alarm that does so too helps nobody.
const DISK_CLEAR_FRACTION: u64 = 8;

/// How long tombstones stay at least, if there are peers.
const GC_AGE_MILLIS: u64 = 10 * 60 * 1000;
/// The part of a run's number below the seconds at which it began.
const RUN_ENTROPY_BITS: u32 = 20;
/// Runs that began after this many seconds since 1970, in the year 2106, are as if they had begun then.
const RUN_SECONDS_MAX: u64 = (1 << 32) - 1;

/// How many versions that were replaced lately stay in the cache, for watchers that want to see what was before.
const REPLACED_WARM_MAX: usize = 1024;

/// Settings of a writer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who the store belongs to, if it is a new one.
    pub identity: Identity,
    /// Who it belongs to from now on, if nothing was ever written to it: a place was reserved for this member.
    pub reserved: Option<MemberId>,
    /// The bytes that the data may take; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// The bytes that may wait in the log for members that are away, and of use to nobody else; `None` for no limit.
    pub log_bytes_max: Option<u64>,
    /// The bytes of values that are kept in memory.
    pub value_cache_bytes: u64,
    /// Shorter leases live this long, in seconds.
    pub lease_ttl_seconds_min: u64,
    /// The free space that writes leave alone, in bytes; a quarter of a disk at most.
    pub disk_reserve_bytes: u64,
    /// Tombstones stay at least this long, if there are peers, in milliseconds.
    pub gc_age_millis: u64,
    /// Anything random: an old copy of a data directory must not come by a run that was there before.
    pub run_entropy: u64,
    /// The tag of a store that has none yet, 1 to [`TAG_MAX`], if its member has anything to do with peers. Random, and
    /// none of theirs.
    ///
    /// [`TAG_MAX`]: crate::types::TAG_MAX
    pub tag: Option<u16>,
    /// Anything random: where the revisions of a new store with a tag start.
    pub revision_entropy: u64,
}

impl Options {
    /// Etcd's settings, for a store of `identity`.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            reserved: None,
            quota_bytes: Some(2 << 30),
            log_bytes_max: Some(2 << 30),
            value_cache_bytes: 64 << 20,
            lease_ttl_seconds_min: 2,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            gc_age_millis: GC_AGE_MILLIS,
            run_entropy: 0,
            tag: None,
            revision_entropy: 0,
        }
    }
}

/// Whether there is room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// The quota is used up (etcd's NOSPACE alarm).
    OverQuota {
        /// It ends when the data takes less than this: when there is room for what was refused.
        clear_below: u64,
    },
    /// The disk is full.
    DiskFull {
        /// What did not fit, in bytes.
        refused: u64,
    },
}

/// What a put writes.
pub(super) struct Written {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) lease: LeaseId,
    pub(super) media_type: MediaType,
}

impl From<KeyValue> for Written {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { key, value, lease, media_type, .. } = kv;
        Self { key, value, lease, media_type }
    }
}

impl From<PackedPut> for Written {
    fn from(put: PackedPut) -> Self {
        let PackedPut { key, value, lease, media_type } = put;
        Self { key, value, lease, media_type }
    }
}

/// The one writer of a member.
pub struct Writer {
    pub(super) mvcc: Arc<Mvcc>,
    pub(super) lessor: Arc<Lessor>,
    pub(super) hub: Arc<Hub>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) auth: Arc<Auth>,
    pub(super) settings: Arc<Settings>,
    pub(super) identity: Identity,
    /// The number of the own run.
    pub(super) origin: OriginIndex,
    /// How often this member was started.
    pub(super) starts: u64,
    pub(super) seq: u64,
    /// Entries of all former runs of this member, as far as the log shows them.
    pub(super) entries_before: u64,
    pub(super) clock: HybridClock,
    /// The revision after everything executed, durable or not.
    pub(super) revision: Revision,
    /// The next number under the current revision.
    pub(super) next_n: u32,
    pub(super) batch: Batch,
    /// The rows of the open batch, in order.
    pub(super) open: Vec<(Place, Row)>,
    /// Versions that were replaced lately, oldest first.
    pub(super) replaced: VecDeque<Place>,
    /// The newest row of the log, open or durable.
    pub(super) newest: Place,
    /// The newest row that is durable.
    pub(super) durable: Place,
    /// Rows behind that on their way into the store, past the journal.
    pub(super) ingesting: Option<Ingesting>,
    /// How many rows of the open batch, from the first on, may go that way.
    pub(super) open_bulk: usize,
    /// How many changes of the open batch name an origin, and do nothing else.
    pub(super) open_origins: usize,
    /// Whether the next commit has to wait for rows on their way.
    pub(super) ends_ingest: bool,
    /// Where the entry that is being executed starts in `open`.
    pub(super) entry_start: usize,
    /// Whether that entry has taken a revision.
    pub(super) entry_shows: bool,
    /// Whether an entry before it has, while the changes of several are shown under one.
    pub(super) group_shows: Option<bool>,
    /// The seq of that entry.
    pub(super) entry_seq: u64,
    /// How many ops it has so far.
    pub(super) entry_ops: u32,
    /// A compaction in the open batch.
    pub(super) compacting: Option<Revision>,
    pub(super) reclaim: Option<Reclaim>,
    pub(super) collection: Collection,
    pub(super) replica: Replicated,
    /// Where the members were that a former owner of the store knew.
    pub(super) former_peers: Vec<String>,
    /// Whether this store's member has ever left a cluster.
    pub(super) has_parted: bool,
    /// Whether nothing had ever been written to the store when it was opened.
    is_blank: bool,
    room: Room,
    pub(super) quota_bytes: Option<u64>,
    /// So much may wait in the log for members that are away.
    log_bytes_max: Option<u64>,
    /// How far each origin is held by all that are not away.
    pub(super) held: Vec<Head>,
    /// The bytes of the rows in `open`.
    pub(super) open_bytes: u64,
    pub(super) disk_reserve_bytes: u64,
    /// What the disk had left after the last commit, beyond the reserve.
    pub(super) disk_room_bytes: u64,
}

/// Whether a store is some member's already.
pub fn has_owner(store: &Store) -> Result<bool, StoreError> {
    Ok(StoreMeta::read(store)?.identity.is_some())
}

impl Writer {
    /// Takes over a store: reads the log back into memory and starts a new run. Costs a read of the whole log.
    pub fn open(store: Store, options: &Options, now: Now) -> Result<Self, StoreError> {
        let mut meta = StoreMeta::read(&store)?;
        meta.take_tag(options.tag);
        let mut identity = meta.identity.unwrap_or(options.identity);
        if meta.removed || meta.left {
            identity.member = options.identity.member;
        }
        let is_blank = meta.is_blank(&store)?;
        if let Some(reserved) = options.reserved.filter(|_| is_blank) {
            identity.member = reserved;
        }
        let left = meta.left.then(|| meta.part(&mut identity, options.run_entropy));
        let mvcc = Arc::new(Mvcc::new(store, options.value_cache_bytes, meta.tag));
        let lessor = Arc::new(Lessor::new(identity.member, options.lease_ttl_seconds_min));
        let end = restore(&mvcc, &lessor, &mut meta, options.revision_entropy)?;
        let origin = meta.origins.next();
        let run = next_run(&meta, identity.member, options.run_entropy, now)?;
        let revision = end.newest.revision;
        let heads = meta.heads.iter().copied().filter(|_| !meta.removed);
        let mut writer = Self {
            hub: Arc::new(Hub::new(revision)),
            mvcc,
            lessor,
            alarms: Arc::default(),
            auth: Arc::default(),
            settings: Arc::default(),
            identity,
            origin,
            starts: meta.origins.runs_of(identity.member).count() as u64 + 1,
            seq: 0,
            entries_before: meta.run.map_or(0, |(_, entries)| entries + end.seq),
            clock: HybridClock::after(end.time),
            revision,
            next_n: end.newest.n + 1,
            newest: end.newest,
            durable: end.newest,
            ingesting: None,
            open_bulk: 0,
            open_origins: 0,
            ends_ingest: false,
            batch: Batch::default(),
            open: Vec::new(),
            replaced: VecDeque::new(),
            entry_start: 0,
            entry_shows: false,
            group_shows: None,
            entry_seq: 0,
            entry_ops: 0,
            compacting: None,
            reclaim: None,
            collection: meta.collection(options.gc_age_millis),
            replica: Replicated::new(heads, (meta.promised, meta.complete)),
            former_peers: end.former_peers()?,
            has_parted: false,
            is_blank,
            room: Room::Enough,
            quota_bytes: options.quota_bytes,
            log_bytes_max: options.log_bytes_max,
            held: Vec::new(),
            open_bytes: 0,
            disk_reserve_bytes: options.disk_reserve_bytes,
            disk_room_bytes: u64::MAX,
        };
        writer.replica.strays = meta.strays;
        writer.has_parted = meta.parted.is_some();
        if let Some(left) = left {
            writer.record_parting(&meta, left);
        }
        *writer.mvcc.floors().write() = Floors::new(meta.floors.iter().copied());
        writer.show_records(now)?;
        writer.mvcc.set_durable(end.newest);
        writer.mvcc.add_dead(end.hidden_bytes, writer.clock_of_peers());
        writer.begin_run(&meta, Origin { member: identity.member, run }, end.seq)?;
        Ok(writer)
    }

    /// Records the run before it accepts anything, so that no two entries ever have the same origin and seq.
    fn begin_run(
        &mut self,
        meta: &StoreMeta,
        origin: Origin,
        former_seq: u64,
    ) -> Result<(), StoreError> {
        if meta.removed {
            self.record_new_owner(meta);
        }
        if meta.identity != Some(self.identity) {
            self.put_meta(Meta::Identity(self.identity));
        }
        if let Some((former, _)) = meta.run.filter(|_| !meta.removed) {
            self.put_meta(Meta::Head(former, former_seq));
            self.replica.heads.insert(former, former_seq);
        }
        if let Some(compacted) = meta.compacted.filter(|_| meta.takes_tag) {
            self.put_meta(Meta::Tag(meta.tag));
            self.put_meta(Meta::Compacted(compacted));
        }
        self.put_meta(Meta::Origin(self.origin, origin));
        self.put_meta(Meta::Run(self.origin, self.entries_before));
        let batch = std::mem::take(&mut self.batch);
        self.store().commit(batch, Durability::Fsync)?;
        self.mvcc.origins().write().insert(self.origin, origin);
        self.mvcc.publish(self.revision);
        if let Some(compacted) = meta.compacted {
            let compacted = compacted.with_tag(meta.tag);
            self.mvcc.set_compacted(compacted);
            self.reclaim = Some(Reclaim::begin(&self.mvcc, compacted, None));
        }
        self.check_space()
    }

    /// Whether nothing had ever been written to the store when it was opened, so that it may as well be somebody else's.
    pub fn is_blank(&self) -> bool {
        self.is_blank
    }

    /// What readers share with the writer.
    pub fn mvcc(&self) -> &Arc<Mvcc> {
        &self.mvcc
    }

    /// The leases.
    pub fn lessor(&self) -> &Arc<Lessor> {
        &self.lessor
    }

    /// Where watchers register.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The alarms that clients have raised.
    pub fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    /// Users and roles.
    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// What clients have set for the whole cluster.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Whose store this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How often this member was started, this start included.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// This run of this member: the origin of its entries.
    pub fn origin(&self) -> Origin {
        self.mvcc.origins().read().name(self.origin)
    }

    /// Entries that this member has accepted; never goes back while it runs.
    pub fn entries(&self) -> u64 {
        self.entries_before + self.seq
    }

    /// The tag of this member's revisions; zero if it has none.
    pub fn tag(&self) -> u16 {
        self.revision.tag()
    }

    /// The counter of the current revision, durable or not. A peer that has heard of a greater one under this tag has met
    /// somebody else, or this member before its disk was put back: then it needs another tag.
    pub fn counter(&self) -> u64 {
        self.revision.counter()
    }

    /// Makes what is open durable, and takes another tag: all revisions are shown under it from now on, and the history ends
    /// here. Reads that are under way fail as compacted, and all watchers end so. Takes time for each version in memory, in
    /// which nobody reads.
    pub fn retag(&mut self, tag: u16) -> Result<(), StoreError> {
        assert!((1..=TAG_MAX).contains(&tag) && tag != self.tag(), "{tag} after {}", self.tag());
        self.commit()?;
        self.finish_ingest()?;
        let revision = self.revision.with_tag(tag);
        self.put_meta(Meta::Tag(tag));
        self.put_meta(Meta::Compacted(revision));
        let batch = std::mem::take(&mut self.batch);
        self.store().commit(batch, Durability::Fsync)?;
        self.mvcc.retag(tag);
        self.revision = revision;
        self.newest = self.newest.with_tag(tag);
        self.durable = self.durable.with_tag(tag);
        self.replaced.clear();
        // In place of a walk that is under way, since this goes further.
        self.reclaim = Some(Reclaim::begin(&self.mvcc, revision, self.reclaim.take()));
        self.hub.retag(revision);
        Ok(())
    }

    /// Whether writes are refused for want of space.
    pub fn is_out_of_space(&self) -> bool {
        self.room != Room::Enough
    }

    /// Evaluates a command and adds what it changes to the open batch. The reply may leave after the next commit.
    pub fn execute(&mut self, command: Command, now: Now) -> Result<Reply<CommandReply>, Failure> {
        self.alarms.check(&command)?;
        self.check_room(&command)?;
        self.finish_ingest()?;
        match command {
            Command::Put(put) => self.execute_put(put, now),
            Command::DeleteRange(delete) => self.execute_delete(&delete, now),
            Command::Txn(txn) => self.execute_txn(&txn, now),
            Command::Compact { revision } => self.execute_compact(revision),
            Command::LeaseGrant { id, ttl_seconds } => self.execute_grant(id, ttl_seconds, now),
            Command::LeaseRevoke { id } => self.execute_revoke(id, now),
            Command::Alarm { alarm, on } => self.execute_alarm(alarm, on, now),
            Command::Auth(change) => self.execute_auth(change, now),
            Command::SetLeader(member) => self.set_leader(member, now),
            Command::Downgrade(version) => self.set_downgrade(version, now),
        }
    }

    fn execute_put(&mut self, put: Put, now: Now) -> Result<Reply<CommandReply>, Failure> {
        // Most puts refer to nothing, and need no reader.
        if put.lease.is_some() || put.ignore_value || put.ignore_lease {
            txn::check_put(&put, &self.reader(), &self.lessor)?;
        }
        let stamp = self.begin_entry(now);
        let body = self.put(put, stamp)?;
        Ok(self.end_entry(CommandReply::Put(body)))
    }

    fn execute_delete(
        &mut self,
        delete: &DeleteRange,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let stamp = self.begin_entry(now);
        let body = self.delete_range(delete, stamp)?;
        Ok(self.end_entry(CommandReply::DeleteRange(body)))
    }

    fn execute_txn(&mut self, txn: &Txn, now: Now) -> Result<Reply<CommandReply>, Failure> {
        let path = {
            let reader = self.reader();
            let path = txn::choose(txn, &reader)?;
            txn::check_branch(txn, &path, &reader, &self.lessor)?;
            path
        };
        let stamp = self.begin_entry(now);
        let body = self.txn(txn, &path, stamp)?;
        Ok(self.end_entry(CommandReply::Txn(body)))
    }

    fn execute_compact(&mut self, revision: i64) -> Result<Reply<CommandReply>, Failure> {
        let is_known = !tags::is_unknown(revision, self.revision);
        let is_done = |compacting: &Revision| is_known && revision <= compacting.shown();
        if let Some(compacting) = self.compacting.filter(is_done) {
            return Err(Error::Compacted { compacted: compacting }.into());
        }
        let revision = self.mvcc.check_compaction(revision, self.revision)?;
        self.compacting = Some(revision);
        self.put_meta(Meta::Compacted(revision));
        Ok(Reply { revision: self.revision, body: CommandReply::Compact })
    }

    fn execute_grant(
        &mut self,
        id: LeaseId,
        ttl_seconds: i64,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let ttl = self.lessor.check_grant(id, ttl_seconds)?;
        let stamp = self.begin_entry(now);
        let record = LeaseRecord { id, ttl_seconds: ttl, owner: self.identity.member };
        let name = (Table::Lease, LeaseRecord::key(id));
        self.put_record(name, record.value(), stamp, now)?;
        let granted = LeaseGrantReply { id, ttl_seconds: i64::try_from(ttl).unwrap_or(i64::MAX) };
        Ok(self.end_entry(CommandReply::LeaseGrant(granted)))
    }

    /// Ends a lease and deletes its keys in one revision.
    fn execute_revoke(&mut self, id: LeaseId, now: Now) -> Result<Reply<CommandReply>, Failure> {
        let keys = self.lessor.keys(id).ok_or(Error::LeaseNotFound)?;
        let stamp = self.begin_entry(now);
        for key in keys {
            let latest = self.mvcc.latest(&key).expect("a key on a lease lives");
            self.delete(key, latest, latest.stamp, stamp);
        }
        self.remove_record((Table::Lease, LeaseRecord::key(id)), stamp, now)?;
        Ok(self.end_entry(CommandReply::LeaseRevoke))
    }

    fn execute_alarm(
        &mut self,
        alarm: Alarm,
        on: bool,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let was_on = self.alarms.contains(alarm);
        if on && !was_on {
            self.alarms.check_room()?;
        }
        let stamp = self.begin_entry(now);
        let name = (Table::Alarm, AlarmRecord::key(alarm));
        match (was_on, on) {
            (false, true) => {
                self.put_record(name, AlarmRecord { alarm }.value(), stamp, now)?;
            }
            (true, false) => self.remove_record(name, stamp, now)?,
            _ => {}
        }
        Ok(self.end_entry(CommandReply::Alarm { was_on }))
    }

    fn txn(&mut self, txn: &Txn, path: &Path, stamp: RowStamp) -> Result<TxnReply, Failure> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in txn::branch(txn, path.succeeded) {
            let response = match op {
                TxnOp::Range(range) => {
                    let body = self.reader().range(range)?;
                    TxnOpReply::Range(self.reply_within(body))
                }
                TxnOp::Put(put) => {
                    let body = self.put(put.clone(), stamp)?;
                    TxnOpReply::Put(self.reply_within(body))
                }
                TxnOp::DeleteRange(delete) => {
                    let body = self.delete_range(delete, stamp)?;
                    TxnOpReply::DeleteRange(self.reply_within(body))
                }
                TxnOp::Txn(txn) => {
                    let path = nested.next().expect("one path per nested transaction");
                    let body = self.txn(txn, path, stamp)?;
                    TxnOpReply::Txn(Reply { revision: Revision(0), body })
                }
            };
            responses.push(response);
        }
        Ok(TxnReply { succeeded: path.succeeded, responses })
    }

    fn put(&mut self, put: Put, stamp: RowStamp) -> Result<PutReply, Failure> {
        let latest = self.mvcc.latest(&put.key);
        let before = match latest {
            Some(latest) if put.prev_kv => Some(self.reader().fetch(latest.head.place())?),
            _ => None,
        };
        let (value, media_type) = match latest {
            Some(latest) if put.ignore_value => {
                let (kept, _) = self.reader().fetch_put(latest.head.place())?;
                (kept.value, kept.media_type)
            }
            _ => (put.value, put.media_type),
        };
        let lease = if put.ignore_lease {
            latest.map_or(LeaseId::NONE, |latest| latest.lease)
        } else {
            put.lease
        };
        self.put_version(Written { key: put.key, value, lease, media_type }, latest, stamp);
        Ok(PutReply { prev_kv: before })
    }

    /// Adds a version of a key, of which `latest` is the one before.
    pub(super) fn put_version(
        &mut self,
        Written { key, value, lease, media_type }: Written,
        latest: Option<Latest>,
        stamp: RowStamp,
    ) {
        self.replaced.extend(latest.map(|latest| latest.head.place()));
        let former_lease = latest.map_or(LeaseId::NONE, |latest| latest.lease);
        self.lessor.reattach(&key, former_lease, lease);
        let next = self.next_visible();
        let op = Op::Put(KeyValue {
            key,
            create_revision: latest.map_or(next, |latest| latest.create_revision),
            mod_revision: next,
            version: latest.map_or(0, |latest| latest.version) + 1,
            value,
            lease,
            media_type,
        });
        self.append(op, stamp, Visibility::Visible);
    }

    fn delete_range(
        &mut self,
        delete: &DeleteRange,
        stamp: RowStamp,
    ) -> Result<DeleteRangeReply, Failure> {
        let keys = self.mvcc.live_keys(&delete.range);
        let mut reply = DeleteRangeReply { deleted: keys.len() as u64, prev_kvs: Vec::new() };
        if delete.prev_kv {
            reply.prev_kvs.reserve(keys.len());
            let reader = self.reader();
            for (_, latest) in &keys {
                reply.prev_kvs.push(reader.fetch(latest.head.place())?);
            }
        }
        for (key, latest) in keys {
            self.delete(key, latest, latest.stamp, stamp);
        }
        Ok(reply)
    }

    /// Ends a key that lives, whose puts up to `seen` are meant.
    pub(super) fn delete(&mut self, key: Bytes, latest: Latest, seen: RowStamp, stamp: RowStamp) {
        self.replaced.push_back(latest.head.place());
        self.lessor.reattach(&key, latest.lease, LeaseId::NONE);
        self.append(Op::Delete { key, seen }, stamp, Visibility::Visible);
    }

    /// Starts an entry. It takes a seq only if it comes to have rows.
    pub(super) fn begin_entry(&mut self, now: Now) -> RowStamp {
        self.entry_start = self.open.len();
        self.entry_shows = false;
        self.entry_seq = self.seq + 1;
        self.entry_ops = 0;
        RowStamp { time: self.clock.tick(now), origin: self.origin }
    }

    /// Ends an entry; the reply shows the revision that it has led to.
    pub(super) fn end_entry(&mut self, body: CommandReply) -> Reply<CommandReply> {
        self.end_entry_alone();
        Reply { revision: self.revision, body }
    }

    /// Ends an entry. Answers its seq, if it has come to have rows.
    pub(super) fn end_entry_alone(&mut self) -> Option<u64> {
        let (_, row) = self.open[self.entry_start..].last_mut()?;
        row.last = true;
        self.seq = self.entry_seq;
        self.mark_entry(self.origin);
        self.note_own_entry();
        Some(self.seq)
    }

    /// Marks where the entry stands, if there are peers that may want it.
    pub(super) fn mark_entry(&self, origin: OriginIndex) {
        if self.collection.is_peered()
            && let Some((place, row)) = self.open.get(self.entry_start)
        {
            self.mvcc.marks().write().note(origin, row.seq, *place);
        }
    }

    /// Adds a row to the entry, at the end of the log.
    pub(super) fn append(&mut self, op: Op, stamp: RowStamp, visibility: Visibility) -> Place {
        if visibility == Visibility::Visible && !self.entry_shows {
            self.take_revision();
        }
        let place = self.next_place();
        let hidden = visibility == Visibility::Hidden;
        let (seq, op_number) = (self.entry_seq, self.entry_ops);
        let row = Row { stamp, seq, op_number, last: false, hidden, op };
        self.entry_ops += 1;
        let bytes = u64::from(row_bytes(&row.op));
        match visibility {
            Visibility::Visible => self.show(place, &row),
            Visibility::Hidden => self.mvcc.add_dead(bytes, self.clock_of_peers()),
            Visibility::Internal => {}
        }
        self.open_bytes += bytes;
        assert!(self.newest < place, "a row at {place:?} behind {:?}", self.newest);
        self.newest = place;
        self.open.push((place, row));
        place
    }

    /// Takes a visible row into the index.
    fn show(&mut self, place: Place, row: &Row) {
        self.mvcc.add(place, row);
        if let Op::Put(kv) = &row.op
            && self.collection.is_peered()
        {
            self.mvcc.exhume(&kv.key);
        }
    }

    /// The current entry shows: its rows stand under the next revision.
    pub(super) fn take_revision(&mut self) {
        self.entry_shows = true;
        let next = self.revision.next();
        assert!(next.tag() == self.revision.tag(), "{next} is of another member");
        self.revision = next;
        self.next_n = 0;
    }

    /// Where an entry that creates a key would stand: see [`Self::take_creation`].
    pub(super) fn next_creation(&self) -> Place {
        Place::first_of(self.revision.next())
    }

    /// An entry of another member is there, which has created a key and done nothing else.
    pub(super) fn take_creation(&mut self, place: Place, time: Timestamp) {
        self.take_revision();
        let taken = self.next_place();
        assert!(taken == place && self.newest < place, "{place:?}, {taken:?}, {:?}", self.newest);
        self.newest = place;
        self.clock.observe(time);
    }

    fn next_place(&mut self) -> Place {
        let n = self.next_n;
        self.next_n = n.checked_add(1).expect("fewer rows under one revision than that");
        Place { revision: self.revision, n }
    }

    /// A time later than everything here, if there are peers, for what has to wait for them.
    fn clock_of_peers(&self) -> Option<Timestamp> {
        self.collection.is_peered().then(|| self.clock.last())
    }

    /// The revision that a visible change of the current entry gets.
    pub(super) fn next_visible(&self) -> Revision {
        if self.entry_shows { self.revision } else { self.revision.next() }
    }

    /// Reads the state after everything executed, the current entry's changes included.
    pub(super) fn reader(&self) -> Reader<'_> {
        self.mvcc.reader_of_open(self.revision, self.compacting, &self.open)
    }

    /// A reply within a transaction: its header shows the next revision once something has changed.
    fn reply_within<T>(&self, body: T) -> Reply<T> {
        Reply { revision: self.revision, body }
    }

    /// Whether a commit would do anything.
    pub fn has_open_batch(&self) -> bool {
        !self.open.is_empty()
            || !self.batch.is_empty()
            || !self.replica.moved.is_empty()
            || self.ends_ingest
    }

    /// The bytes that the next commit writes, roughly.
    pub fn open_bytes(&self) -> u64 {
        self.open_bytes + self.batch.bytes() as u64
    }

    /// Makes everything executed so far durable, then visible. After an error the member must stop.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if !self.has_open_batch() {
            return Ok(());
        }
        if self.is_bulk() && !self.open.is_empty() {
            return self.ingest_open();
        }
        self.finish_ingest()?;
        self.ends_ingest = false;
        self.record_heads();
        let mut batch = std::mem::take(&mut self.batch);
        let mut shown = Vec::with_capacity(self.open.len());
        for (place, row) in self.open.drain(..) {
            shown.extend(Shown::of(place, &row));
            batch.put(Space::Log, place.encode(), row.encode(place));
        }
        self.store().commit(batch, Durability::Fsync)?;
        (self.open_bytes, self.open_bulk, self.open_origins) = (0, 0, 0);
        self.durable = self.newest;
        self.replica.commit((self.origin, self.seq));
        if self.collection.is_peered() {
            self.mvcc.set_durable(self.durable);
        }
        self.publish(shown);
        self.look_at_disk()
    }

    /// Whether all of the open batch can take its time.
    pub(super) fn is_bulk(&self) -> bool {
        let is_only = self.open_bulk == self.open.len() && self.open_origins == self.batch.len();
        let is_quiet = self.replica.is_quiet() && self.compacting.is_none();
        is_only && is_quiet && !self.ends_ingest
    }

    /// Waits until the rows on their way are durable, and shows them. Watchers read them off the log.
    pub(super) fn finish_ingest(&mut self) -> Result<(), StoreError> {
        let Some(Ingesting { rows, newest }) = self.ingesting.take() else { return Ok(()) };
        rows.finish()?;
        self.durable = newest;
        if self.collection.is_peered() {
            self.mvcc.set_durable(newest);
        }
        let before = self.mvcc.revision();
        self.mvcc.publish(newest.revision);
        if before < newest.revision {
            self.hub.skip(before.next(), newest.revision);
        }
        Ok(())
    }

    /// Shows what has become durable: to readers first, so that whoever hears of a change can read it.
    fn publish(&mut self, shown: Vec<Shown>) {
        for Shown { place, change } in &shown {
            if change.kind == EventKind::Put {
                self.mvcc.warm(*place, change.pair.clone());
            }
        }
        // Dead values would fill the cache otherwise, and push out the live ones.
        let cold = self.replaced.len().saturating_sub(REPLACED_WARM_MAX);
        self.replaced.drain(..cold).for_each(|place| self.mvcc.cool(place));
        self.mvcc.publish(self.revision);
        if let Some(compacted) = self.compacting.take() {
            self.mvcc.set_compacted(compacted);
            self.reclaim = Some(Reclaim::begin(&self.mvcc, compacted, self.reclaim.take()));
        }
        self.hub.publish(self.revision, shown.into_iter().map(|shown| shown.change).collect());
    }

    /// Frees a slice of what the last compaction gave up. Answers whether there is more to do.
    pub fn reclaim(&mut self) -> bool {
        let keys = if self.has_open_batch() { SLICE_KEYS_BUSY } else { SLICE_KEYS };
        let clock = self.clock_of_peers();
        let Some(reclaim) = &mut self.reclaim else { return false };
        reclaim.step(&self.mvcc, keys, clock);
        if reclaim.is_done() {
            self.reclaim = None;
            self.check_quota(0);
        }
        self.reclaim.is_some()
    }

    /// A sweep of the log, if it is worth the work, or if there is anything to sweep and it is `wanted`. One at a time:
    /// the caller runs it on another thread and then calls [`Self::end_sweep`].
    pub fn begin_sweep(&mut self, wanted: bool) -> Result<Option<Sweep>, StoreError> {
        let is_long = self.is_log_too_long() && self.mvcc.is_worth_sweeping_early();
        let is_due = self.mvcc.is_worth_sweeping() || wanted && self.mvcc.can_be_swept() || is_long;
        if is_due { self.begin_sweep_anyhow() } else { Ok(None) }
    }

    /// The same, however little there is to sweep.
    pub fn begin_sweep_anyhow(&mut self) -> Result<Option<Sweep>, StoreError> {
        // Durable rows only: the end of the log must not be swept away under an open batch.
        let is_settled = self.reclaim.is_none()
            && self.compacting.is_none()
            && self.ingesting.is_none()
            && !self.has_open_batch();
        if !is_settled || self.has_former() {
            return Ok(None);
        }
        let rules = self.collection.begin_sweep(self.clock.last());
        self.move_floors();
        self.record_sweep()?;
        let through =
            if self.collection.is_peered() { self.collection.settled() } else { self.clock.last() };
        let floor = (self.mvcc.compacted().with_tag(0), through);
        Ok(Some(Sweep::new(&self.mvcc, floor, rules, self.newest.with_tag(0))))
    }

    /// Writes down what a sweep could take away: how far the own run has come, and what nobody can be given any more.
    fn record_sweep(&mut self) -> Result<(), StoreError> {
        if !self.collection.is_peered() {
            // The newest row, which stays, is of the own run.
            return Ok(());
        }
        self.put_meta(Meta::Head(self.origin, self.seq));
        self.put_meta(Meta::Collected(self.collection.collected()));
        let batch = std::mem::take(&mut self.batch);
        self.store().commit(batch, Durability::Fsync)
    }

    /// Whether more waits in the log for members that are away than may.
    pub fn is_log_too_long(&self) -> bool {
        self.log_bytes_max.is_some_and(|max| self.mvcc.waiting_bytes() > max)
    }

    /// Whether it may soon be so: then it is good to know what could go.
    pub fn is_log_long(&self) -> bool {
        self.log_bytes_max.is_some_and(|max| self.mvcc.waiting_bytes() > max / 2)
    }

    /// What may wait in the log; `None` for no limit.
    pub fn log_bytes_max(&self) -> Option<u64> {
        self.log_bytes_max
    }

    /// Everybody who is not away holds the entries of these origins so far.
    pub fn set_held(&mut self, held: Vec<Head>) {
        self.held = held;
    }

    /// Gives up what has to go for space, and forgets of what was given up what everybody has by now. On record before the sweep.
    fn move_floors(&mut self) {
        let given_up =
            if self.is_log_too_long() { self.what_all_present_hold() } else { Vec::new() };
        let mut floors = self.mvcc.floors().write();
        let settled = floors.settle(self.collection.collected());
        let raised = given_up.into_iter().filter_map(|(index, floor)| {
            let Floor { seq, time } = floors.raise(index, floor)?;
            Some(Meta::Floor(index, seq, time))
        });
        let raised: Vec<_> = raised.collect();
        drop(floors);
        for index in settled {
            let (key, _) = Meta::Floor(index, 0, Timestamp::default()).encode();
            self.batch.delete(Space::Meta, key);
        }
        raised.into_iter().for_each(|row| self.put_meta(row));
    }

    fn what_all_present_hold(&self) -> Vec<(OriginIndex, Floor)> {
        // Later than all that is here.
        let time = self.clock.last();
        let origins = self.mvcc.origins().read();
        let floor = |Head { origin, seq }: Head| {
            let index = origins.index(origin)?;
            let head = if index == self.origin { self.seq } else { self.replica.head(index) };
            Some((index, Floor { seq: seq.min(head), time }))
        };
        self.held.iter().copied().filter_map(floor).collect()
    }

    /// Puts a complete sweep on record, so that the next one can remove tombstones.
    pub fn end_sweep(&mut self, sweep: &Sweep) {
        self.mvcc.note_swept(sweep);
        let (floor, through) = sweep.floor();
        self.collection.end_sweep(floor, through);
        let (floor, through) = self.collection.swept();
        self.put_meta(Meta::Swept(floor, through));
    }

    /// Whether the last compaction has something left to free, and no reader from before it is in the way.
    pub fn can_reclaim(&self) -> bool {
        self.reclaim.as_ref().is_some_and(|reclaim| !reclaim.is_waiting())
    }

    /// Whether readers from before the last compaction keep what it gave up from being freed.
    pub fn reclaim_is_waiting(&self) -> bool {
        self.reclaim.as_ref().is_some_and(Reclaim::is_waiting)
    }

    /// Whether the space of a compaction at `revision` has been given up, and all before it.
    pub fn is_reclaimed(&self, revision: Revision) -> bool {
        // By the counters: the tag may be another by now.
        let is_before = |reclaim: &Reclaim| reclaim.floor().counter() < revision.counter();
        self.reclaim.as_ref().is_none_or(is_before) && self.compacting.is_none()
    }

    /// Finds out whether there is room again. To be called now and then.
    pub fn check_space(&mut self) -> Result<(), StoreError> {
        self.look_at_disk()?;
        self.check_quota(0);
        Ok(())
    }

    pub(super) fn look_at_disk(&mut self) -> Result<(), StoreError> {
        let (room, reserve) = match self.store().disk_space()? {
            Some(DiskSpace { free, total }) => {
                let reserve = self.disk_reserve_bytes.min(total / DISK_RESERVE_FRACTION);
                (free.saturating_sub(reserve), reserve)
            }
            None => (u64::MAX, 0),
        };
        self.disk_room_bytes = room;
        if room == 0 {
            self.disk_is_full(0);
        } else if let Room::DiskFull { refused } = self.room
            && room >= refused.max(reserve / DISK_CLEAR_FRACTION)
        {
            self.room = Room::Enough;
        }
        Ok(())
    }

    /// There is no room on the disk for `bytes` more.
    fn disk_is_full(&mut self, bytes: u64) {
        if !matches!(self.room, Room::DiskFull { .. }) {
            self.room = Room::DiskFull { refused: bytes };
        }
    }

    /// Whether the store could rewrite what lives without running out of disk.
    pub fn has_room_to_sweep(&self) -> bool {
        self.disk_room_bytes > self.mvcc.live_bytes()
    }

    /// Refuses what adds data when there is no room for it.
    fn check_room(&mut self, command: &Command) -> Result<(), Error> {
        let cost = cost(command);
        if cost == 0 || self.check_quota(cost) { Ok(()) } else { Err(Error::NoSpace) }
    }

    /// Whether `cost` more bytes fit. As in etcd nothing more is taken once something did not fit; here that ends
    /// by itself when there is room again.
    pub(super) fn check_quota(&mut self, cost: u64) -> bool {
        if cost > 0 && self.open_bytes().saturating_add(cost) > self.disk_room_bytes {
            self.disk_is_full(cost);
        }
        let is_disk_full = matches!(self.room, Room::DiskFull { .. });
        let (Some(quota), false) = (self.quota_bytes, is_disk_full) else {
            return self.room == Room::Enough;
        };
        let used = self.mvcc.live_bytes();
        if let Room::OverQuota { clear_below } = self.room
            && used < clear_below
        {
            self.room = Room::Enough;
        }
        if self.room == Room::Enough && cost > 0 && used.saturating_add(cost) >= quota {
            let slack = cost.max(quota / QUOTA_CLEAR_FRACTION);
            self.room = Room::OverQuota { clear_below: quota.saturating_sub(slack) };
        }
        self.room == Room::Enough
    }

    pub(super) fn put_meta(&mut self, meta: Meta) {
        let (key, value) = meta.encode();
        self.batch.put(Space::Meta, key, value);
    }

    pub(super) fn store(&self) -> &Store {
        self.mvcc.store()
    }
}

/// Rows on their way into the store.
pub(super) struct Ingesting {
    pub(super) rows: Ingest,
    /// The last of them.
    pub(super) newest: Place,
}

/// Whether a row takes a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visibility {
    /// It does, together with its entry.
    Visible,
    /// It does not, but it is part of the state.
    Internal,
    /// It changes nothing.
    Hidden,
}

/// A run greater than all former ones, those too that are not known here: the wall clock is ahead of those.
fn next_run(meta: &StoreMeta, member: MemberId, entropy: u64, now: Now) -> Result<u64, StoreError> {
    let former = meta.origins.runs_of(member).max().unwrap_or(0);
    let seconds = (now.wall_millis / 1000).min(RUN_SECONDS_MAX);
    let run = former.max(seconds << RUN_ENTROPY_BITS) + 1 + entropy % (1 << RUN_ENTROPY_BITS);
    if run > COUNT_MAX {
        return Err(StoreError::Corrupt(format!("the run {former} can have no successor")));
    }
    Ok(run)
}

/// A change that readers and watchers get to see.
struct Shown {
    place: Place,
    change: Change,
}

impl Shown {
    fn of(place: Place, row: &Row) -> Option<Self> {
        let change = match &row.op {
            _ if row.hidden => return None,
            Op::Put(kv) => Change::put(kv),
            Op::Delete { key, .. } => Change::delete(key, place.revision),
            Op::InternalPut { .. } | Op::InternalDelete { .. } => return None,
        };
        Some(Self { place, change })
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
