//! One client's watch stream: its watchers, what they are owed, and the replies to them in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::hub::{Delivery, Hub, Mailbox, StreamId, Waker, Watcher as SyncedWatcher};
use super::{Change, Event, EventKind, WatchCreate, WatchRefusal, WatchReply};
use crate::engine::mvcc::{Mvcc, Reader};
use crate::engine::tags;
use crate::error::{AuthError, StoreError};
use crate::types::{KeyRange, Revision};

/// Revisions that one read of the log returns at most (etcd `watchBatchMaxRevs`).
const CATCH_UP_REVISIONS: usize = 1000;
/// The same in bytes.
const CATCH_UP_BYTES: usize = 1 << 20;

/// A watcher of this stream.
#[derive(Debug)]
struct Watcher {
    create: WatchCreate,
    /// What the client asked to start at; zero for "now".
    start: Revision,
    /// The first revision that it still needs; of a synced watcher: needed when it was synced.
    next: Revision,
    synced: bool,
    serial: u64,
    /// When it was last told anything, for progress notifications.
    told_millis: u64,
}

impl Watcher {
    fn wants(&self, change: &Change) -> bool {
        let filtered = match change.kind {
            EventKind::Put => self.create.no_put,
            EventKind::Delete => self.create.no_delete,
        };
        !filtered && change.revision >= self.next
    }
}

/// One client's watch stream. Dropping it ends its watchers.
#[derive(Debug)]
pub struct Stream {
    hub: Arc<Hub>,
    mvcc: Arc<Mvcc>,
    id: StreamId,
    mailbox: Arc<Mailbox>,
    watchers: BTreeMap<i64, Watcher>,
    /// The ids of synced watchers.
    by_serial: BTreeMap<u64, i64>,
    /// Watchers that compaction has ended. As in etcd their ids stay taken until the client cancels them.
    ended: BTreeSet<i64>,
    /// The ids of watchers that other members serve, and their keys.
    elsewhere: BTreeMap<i64, KeyRange>,
    next_id: i64,
    next_serial: u64,
    behind: usize,
    progress_asked: bool,
    ready: VecDeque<WatchReply>,
    now_millis: u64,
}

impl Stream {
    /// A stream without watchers. `waker` is called when there may be a reply.
    pub fn new(hub: Arc<Hub>, mvcc: Arc<Mvcc>, waker: Waker) -> Self {
        let (id, mailbox) = hub.open(waker);
        Self {
            hub,
            mvcc,
            id,
            mailbox,
            watchers: BTreeMap::new(),
            by_serial: BTreeMap::new(),
            ended: BTreeSet::new(),
            elsewhere: BTreeMap::new(),
            next_id: 0,
            next_serial: 0,
            behind: 0,
            progress_asked: false,
            ready: VecDeque::new(),
            now_millis: 0,
        }
    }

    /// How many replies wait to be taken.
    pub fn backlog(&self) -> usize {
        self.ready.len()
    }

    /// Adds a watcher. The reply says its id, or why there is none.
    pub fn create(&mut self, create: WatchCreate) {
        // Those before it end, but not this one.
        self.take_retagged();
        match self.check(&create) {
            Ok(id) if tags::is_unknown(create.start_revision, self.mvcc.revision()) => {
                self.refuse_start(id);
            }
            Ok(id) => self.add(id, create),
            Err(reason) => self.refuse(reason),
        }
    }

    fn refuse(&mut self, reason: WatchRefusal) {
        self.ready.push_back(WatchReply::Refused { reason, revision: self.hub.published() });
    }

    /// Takes an id for a watcher that another member serves. If there can be no such watcher, the reply says why.
    pub fn adopt(&mut self, create: &WatchCreate) -> Option<i64> {
        match self.check(create) {
            Ok(id) => {
                self.elsewhere.insert(id, create.range.clone());
                Some(id)
            }
            Err(reason) => {
                self.refuse(reason);
                None
            }
        }
    }

    /// A watcher that another member serves has ended at the client's wish.
    pub fn release(&mut self, id: i64) {
        self.elsewhere.remove(&id);
    }

    /// A watcher that another member serves has ended, since what it needs next is compacted there.
    pub fn expire(&mut self, id: i64) {
        if self.elsewhere.remove(&id).is_some() {
            self.ended.insert(id);
        }
    }

    /// The member that serves a watcher is not reached: the watcher ends as compacted here. `is_new`: it was not there yet.
    pub fn lose(&mut self, id: i64, is_new: bool) {
        let revision = self.mvcc.revision();
        if self.elsewhere.remove(&id).is_none() {
            return;
        }
        if is_new {
            self.ready.push_back(WatchReply::Created { id, revision });
        }
        self.end(id, revision);
    }

    /// Whether this member serves no watcher of the stream.
    pub fn is_idle(&self) -> bool {
        self.watchers.is_empty()
    }

    fn check(&mut self, create: &WatchCreate) -> Result<i64, WatchRefusal> {
        if create.start_revision < 0 {
            return Err(WatchRefusal::NegativeStart);
        }
        if create.range.is_empty() {
            return Err(WatchRefusal::EmptyRange);
        }
        if create.id != 0 {
            let taken = self.is_taken(create.id);
            return if taken { Err(WatchRefusal::DuplicateId) } else { Ok(create.id) };
        }
        while self.is_taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    fn is_taken(&self, id: i64) -> bool {
        self.watchers.contains_key(&id)
            || self.ended.contains(&id)
            || self.elsewhere.contains_key(&id)
    }

    fn add(&mut self, id: i64, create: WatchCreate) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let key = SyncedWatcher { stream: self.id, serial };
        let start = Revision(u64::try_from(create.start_revision).unwrap_or(0));
        let (revision, synced, next) = if start == Revision(0) {
            let revision = self.hub.sync_now(key, &create.range);
            (revision, true, revision.next())
        } else {
            let (revision, synced) = self.hub.sync(key, &create.range, start);
            (revision, synced, start)
        };
        if synced {
            self.by_serial.insert(serial, id);
        } else {
            self.behind += 1;
        }
        let watcher = Watcher { create, start, next, synced, serial, told_millis: self.now_millis };
        self.watchers.insert(id, watcher);
        self.ready.push_back(WatchReply::Created { id, revision });
    }

    /// What the watcher would start at is gone, if it ever was.
    fn refuse_start(&mut self, id: i64) {
        let revision = self.mvcc.revision();
        self.ready.push_back(WatchReply::Created { id, revision });
        self.end(id, revision);
    }

    /// Ends all watchers if the member has taken another tag.
    fn take_retagged(&mut self) {
        let Some(compacted) = self.mailbox.take_retagged() else { return };
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id, compacted));
        self.progress_asked = false;
    }

    /// Ends a watcher since what it needs next is compacted.
    fn end(&mut self, id: i64, compacted: Revision) {
        self.remove(id);
        self.ended.insert(id);
        self.ready.push_back(WatchReply::Compacted { id, compacted });
    }

    /// Ends a watcher. An unknown id is ignored.
    pub fn cancel(&mut self, id: i64) {
        if self.remove(id) || self.ended.remove(&id) {
            self.ready.push_back(WatchReply::Canceled { id, revision: self.hub.published() });
        }
    }

    /// Says that there is no watcher, since whoever asks may not have one.
    pub fn deny(&mut self, reason: AuthError) {
        self.refuse(WatchRefusal::Denied(reason));
    }

    /// Ends all watchers of keys that may not be read any more. Answers those of them that other members serve.
    pub fn withdraw(&mut self, may_read: impl Fn(&KeyRange) -> Result<(), AuthError>) -> Vec<i64> {
        let own = self.watchers.iter().map(|(id, watcher)| (*id, &watcher.create.range));
        let elsewhere = self.elsewhere.iter().map(|(id, range)| (*id, range));
        let all = own.chain(elsewhere);
        let denied: Vec<_> =
            all.filter_map(|(id, range)| Some((id, may_read(range).err()?))).collect();
        let mut relayed = Vec::new();
        for (id, reason) in denied {
            if !self.remove(id) {
                self.elsewhere.remove(&id);
                relayed.push(id);
            }
            // What was on its way is not to be seen any more.
            self.ready
                .retain(|reply| !matches!(reply, WatchReply::Events { id: of, .. } if *of == id));
            self.ready.push_back(WatchReply::Denied { id, reason, revision: self.hub.published() });
        }
        relayed
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(&id) else { return false };
        if watcher.synced {
            self.by_serial.remove(&watcher.serial);
            self.hub.remove(
                SyncedWatcher { stream: self.id, serial: watcher.serial },
                &watcher.create.range,
            );
        } else {
            self.behind -= 1;
        }
        true
    }

    /// Asks for a progress reply. As in etcd none comes while a watcher is behind, or if there is none.
    pub fn request_progress(&mut self) {
        self.progress_asked |= !self.watchers.is_empty();
    }

    /// Tells the stream what time it is: watchers that want it and have heard nothing for `interval_millis` are told
    /// the revision.
    pub fn tick(&mut self, now_millis: u64, interval_millis: u64) {
        self.now_millis = now_millis;
        let due = |watcher: &Watcher| {
            watcher.create.progress_notify
                && watcher.synced
                && now_millis.saturating_sub(watcher.told_millis) >= interval_millis
        };
        if !self.ready.is_empty() || !self.watchers.values().any(due) {
            return;
        }
        let Some(revision) = self.hub.progress(&self.mailbox) else { return };
        for (id, watcher) in self.watchers.iter_mut().filter(|(_, watcher)| due(watcher)) {
            if revision >= watcher.start {
                self.ready.push_back(WatchReply::Progress { id: Some(*id), revision });
            }
            watcher.told_millis = now_millis;
        }
    }

    /// The next reply, if there is one now. Otherwise the waker says when to ask again. May read the disk, a bounded
    /// stretch of the log at a time.
    pub fn poll(&mut self) -> Result<Option<WatchReply>, StoreError> {
        loop {
            if let Some(reply) = self.ready.pop_front() {
                return Ok(Some(reply));
            }
            self.take_retagged();
            if !self.ready.is_empty() {
                continue;
            }
            if let Some(delivery) = self.mailbox.take() {
                self.deliver(&delivery)?;
            } else if let Some(from) = self.hub.take_dropped(&self.mailbox) {
                self.fall_behind(from);
            } else if self.behind > 0 {
                self.catch_up()?;
            } else if std::mem::take(&mut self.progress_asked) {
                self.report_progress();
            } else {
                return Ok(None);
            }
        }
    }

    /// Turns a delivery into one reply per watcher that it concerns.
    fn deliver(&mut self, delivery: &Delivery) -> Result<(), StoreError> {
        let id_of = |(serial, change): &(u64, usize)| Some((*self.by_serial.get(serial)?, *change));
        let mut hits: Vec<(i64, usize)> = delivery.hits.iter().filter_map(id_of).collect();
        hits.sort_unstable();
        let mvcc = Arc::clone(&self.mvcc);
        let reader = mvcc.reader();
        let mut changes = Vec::new();
        for hits in hits.chunk_by(|(a, _), (b, _)| a == b) {
            changes.clear();
            changes.extend(hits.iter().map(|(_, change)| &delivery.changes[*change]));
            self.tell(hits[0].0, &changes, delivery.through, &reader)?;
        }
        Ok(())
    }

    /// Queues the events that a watcher wants of some changes that concern it.
    fn tell(
        &mut self,
        id: i64,
        changes: &[&Change],
        revision: Revision,
        reader: &Reader<'_>,
    ) -> Result<(), StoreError> {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(()) };
        let wanted = changes.iter().filter(|change| watcher.wants(change));
        let events = wanted.map(|change| event_of(change, watcher.create.prev_kv, reader));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        if !events.is_empty() {
            watcher.told_millis = self.now_millis;
            let fragment = watcher.create.fragment;
            self.ready.push_back(WatchReply::Events { id, revision, events, fragment });
        }
        Ok(())
    }

    /// After an overflow of the mailbox: every synced watcher has missed what came from `from` on.
    fn fall_behind(&mut self, from: Revision) {
        for watcher in self.watchers.values_mut().filter(|watcher| watcher.synced) {
            self.hub.remove(
                SyncedWatcher { stream: self.id, serial: watcher.serial },
                &watcher.create.range,
            );
            watcher.synced = false;
            watcher.next = watcher.next.max(from);
            // Mail that came since is told again from the log: it must not be taken for this watcher's.
            self.by_serial.remove(&watcher.serial);
            watcher.serial = self.next_serial;
            self.next_serial += 1;
            self.behind += 1;
        }
    }

    /// Reads a stretch of the log for the watchers that are behind, and syncs those that need no more of it.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        let mvcc = Arc::clone(&self.mvcc);
        let reader = mvcc.reader();
        self.cancel_compacted(reader.compacted());
        let behind = self.watchers.values().filter(|watcher| !watcher.synced);
        let Some(from) = behind.map(|watcher| watcher.next).min() else { return Ok(()) };
        if from <= reader.revision() {
            let stretch =
                mvcc.history(from, reader.revision(), CATCH_UP_REVISIONS, CATCH_UP_BYTES)?;
            self.tell_history(&stretch.changes, stretch.through, &reader)?;
        }
        self.sync_up();
        Ok(())
    }

    fn cancel_compacted(&mut self, compacted: Revision) {
        let lost = |watcher: &Watcher| !watcher.synced && watcher.next < compacted;
        let lost: Vec<i64> =
            self.watchers.iter().filter(|(_, watcher)| lost(watcher)).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.end(id, compacted));
    }

    fn tell_history(
        &mut self,
        changes: &[Change],
        through: Revision,
        reader: &Reader<'_>,
    ) -> Result<(), StoreError> {
        let behind = |watcher: &Watcher| !watcher.synced && watcher.next <= through;
        let ids: Vec<i64> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| behind(watcher))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let range = &self.watchers[&id].create.range;
            let concerned: Vec<&Change> =
                changes.iter().filter(|change| range.contains(change.pair.key())).collect();
            self.tell(id, &concerned, through, reader)?;
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.next = through.next();
            }
        }
        Ok(())
    }

    fn sync_up(&mut self) {
        for (id, watcher) in self.watchers.iter_mut().filter(|(_, watcher)| !watcher.synced) {
            let key = SyncedWatcher { stream: self.id, serial: watcher.serial };
            let (_, synced) = self.hub.sync(key, &watcher.create.range, watcher.next);
            if synced {
                watcher.synced = true;
                self.by_serial.insert(watcher.serial, *id);
                self.behind -= 1;
            }
        }
    }

    fn report_progress(&mut self) {
        let Some(revision) = self.hub.progress(&self.mailbox) else {
            self.progress_asked = true;
            return;
        };
        if self.watchers.values().any(|watcher| revision < watcher.start) {
            return;
        }
        if !self.elsewhere.is_empty() {
            // This revision means nothing to the other watchers.
            let ids = self.watchers.keys();
            self.ready.extend(ids.map(|id| WatchReply::Progress { id: Some(*id), revision }));
        } else if !self.watchers.is_empty() {
            self.ready.push_back(WatchReply::Progress { id: None, revision });
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.remove(id);
        }
        self.hub.close(self.id);
    }
}

fn event_of(change: &Change, with_prev: bool, reader: &Reader<'_>) -> Result<Event, StoreError> {
    let Change { kind, revision, pair } = change;
    let prev = if with_prev { reader.before(pair.key(), *revision)? } else { None };
    Ok(Event { kind: *kind, pair: pair.clone(), prev })
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
