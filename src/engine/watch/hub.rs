//! The hub: matches what is published against the synced watchers of all streams.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::matcher::Matcher;
use super::{Change, Changes};
use crate::types::{KeyRange, Revision};

/// Changes that a mailbox holds at most before its stream has to read the log instead.
pub(super) const MAILBOX_CHANGES_MAX: usize = 4096;
/// The same in bytes of keys and values.
const MAILBOX_BYTES_MAX: usize = 4 << 20;

/// Called when a stream has mail. It must not block or call back into the hub.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A stream, unique in its hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId(u64);

/// A synced watcher: its stream, and its number there, which is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watcher {
    pub(super) stream: StreamId,
    pub(super) serial: u64,
}

/// What one publication means to one stream.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) changes: Changes,
    /// Which watcher gets which change, in the order of the changes.
    pub(super) hits: Vec<(u64, usize)>,
    /// The revision that was published.
    pub(super) through: Revision,
}

/// What waits for a stream.
#[derive(Debug, Default)]
struct Mail {
    queue: VecDeque<Delivery>,
    changes: usize,
    bytes: usize,
    /// Everything from this revision on was dropped.
    dropped_from: Option<Revision>,
    /// The member has taken another tag at this revision. Nothing else comes before the stream has taken note of it.
    retagged: Option<Revision>,
}

/// The mailbox of a stream.
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    waker: Waker,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mail.fmt(f)
    }
}

impl Mailbox {
    /// The next delivery.
    pub(super) fn take(&self) -> Option<Delivery> {
        let mut mail = self.mail.lock();
        let delivery = mail.queue.pop_front()?;
        mail.changes -= delivery.hits.len();
        mail.bytes -= bytes_of(&delivery.changes);
        Some(delivery)
    }

    fn put(&self, delivery: Delivery) {
        let mut mail = self.mail.lock();
        if mail.dropped_from.is_some() || mail.retagged.is_some() {
            return;
        }
        let bytes = bytes_of(&delivery.changes);
        let is_full = mail.changes + delivery.hits.len() > MAILBOX_CHANGES_MAX
            || mail.bytes + bytes > MAILBOX_BYTES_MAX;
        // One delivery is always taken: it is in memory anyway, and reading it back would cost as much.
        if is_full && !mail.queue.is_empty() {
            mail.dropped_from = delivery.changes.first().map(|change| change.revision);
        } else {
            mail.changes += delivery.hits.len();
            mail.bytes += bytes;
            mail.queue.push_back(delivery);
        }
        drop(mail);
        (self.waker)();
    }

    /// Nothing from a revision on is put here.
    fn skip(&self, from: Revision) {
        let mut mail = self.mail.lock();
        if mail.retagged.is_none() {
            mail.dropped_from.get_or_insert(from);
        }
        drop(mail);
        (self.waker)();
    }

    fn is_empty(&self) -> bool {
        let mail = self.mail.lock();
        mail.queue.is_empty() && mail.dropped_from.is_none() && mail.retagged.is_none()
    }

    /// In place of all that waits here: its watchers end.
    fn retag(&self, revision: Revision) {
        *self.mail.lock() = Mail { retagged: Some(revision), ..Mail::default() };
        (self.waker)();
    }

    /// The revision at which the member has taken another tag, once.
    pub(super) fn take_retagged(&self) -> Option<Revision> {
        self.mail.lock().retagged.take()
    }
}

fn bytes_of(changes: &[Change]) -> usize {
    changes.iter().map(|change| change.pair.wire().len()).sum()
}

#[derive(Debug)]
struct State {
    published: Revision,
    matcher: Matcher<Watcher>,
    streams: BTreeMap<StreamId, Arc<Mailbox>>,
    next_stream: u64,
    watchers: u64,
}

/// Where streams register and changes are published.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
}

impl Hub {
    /// A hub at the revision of a store that has just been opened.
    pub fn new(published: Revision) -> Self {
        let state = State {
            published,
            matcher: Matcher::default(),
            streams: BTreeMap::new(),
            next_stream: 0,
            watchers: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// How many streams there are, and how many synced watchers.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.streams.len() as u64, state.watchers)
    }

    /// The revision up to which everything has been handed to the mailboxes.
    pub(super) fn published(&self) -> Revision {
        self.state.lock().published
    }

    /// Hands changes to the streams that they concern. Costs a few lookups per change, and nothing without watchers.
    pub(in crate::engine) fn publish(&self, through: Revision, changes: Vec<Change>) {
        let mut state = self.state.lock();
        assert!(state.published <= through, "published {} then {through}", state.published);
        state.published = through;
        if state.matcher.is_empty() || changes.is_empty() {
            return;
        }
        let mut hits: BTreeMap<StreamId, Vec<(u64, usize)>> = BTreeMap::new();
        for (i, change) in changes.iter().enumerate() {
            state.matcher.for_each(change.pair.key(), |watcher| {
                hits.entry(watcher.stream).or_default().push((watcher.serial, i));
            });
        }
        let changes = Changes::from(changes);
        for (stream, hits) in hits {
            if let Some(mailbox) = state.streams.get(&stream) {
                mailbox.put(Delivery { changes: Arc::clone(&changes), hits, through });
            }
        }
    }

    /// Everything from a revision on up to another one is in the log, but has not been handed to anybody: watchers read it
    /// there.
    pub(in crate::engine) fn skip(&self, from: Revision, through: Revision) {
        let mut state = self.state.lock();
        assert!(state.published < from && from <= through, "{} then {from}", state.published);
        state.published = through;
        state.streams.values().for_each(|mailbox| mailbox.skip(from));
    }

    /// The member has taken another tag, and is at `revision`: all watchers end.
    pub(in crate::engine) fn retag(&self, revision: Revision) {
        let mut state = self.state.lock();
        state.published = revision;
        state.streams.values().for_each(|mailbox| mailbox.retag(revision));
    }

    /// A new stream with an empty mailbox.
    pub(super) fn open(&self, waker: Waker) -> (StreamId, Arc<Mailbox>) {
        let mut state = self.state.lock();
        let id = StreamId(state.next_stream);
        state.next_stream += 1;
        let mailbox = Arc::new(Mailbox { mail: Mutex::default(), waker });
        state.streams.insert(id, Arc::clone(&mailbox));
        (id, mailbox)
    }

    /// Ends a stream, whose watchers have been removed.
    pub(super) fn close(&self, stream: StreamId) {
        self.state.lock().streams.remove(&stream);
    }

    /// Makes a watcher synced if it needs nothing that is published already. Answers the published revision, and
    /// whether it is synced now.
    pub(super) fn sync(
        &self,
        watcher: Watcher,
        range: &KeyRange,
        next: Revision,
    ) -> (Revision, bool) {
        let mut state = self.state.lock();
        let synced = next > state.published;
        if synced {
            state.matcher.insert(range, watcher);
            state.watchers += 1;
        }
        (state.published, synced)
    }

    /// Makes a watcher synced from the published revision on, which it answers.
    pub(super) fn sync_now(&self, watcher: Watcher, range: &KeyRange) -> Revision {
        let mut state = self.state.lock();
        state.matcher.insert(range, watcher);
        state.watchers += 1;
        state.published
    }

    /// Takes a synced watcher out.
    pub(super) fn remove(&self, watcher: Watcher, range: &KeyRange) {
        let mut state = self.state.lock();
        state.matcher.remove(range, watcher);
        state.watchers -= 1;
    }

    /// The revision up to which a stream with only synced watchers has been told everything, if its mailbox is empty.
    pub(super) fn progress(&self, mailbox: &Mailbox) -> Option<Revision> {
        let state = self.state.lock();
        mailbox.is_empty().then_some(state.published)
    }

    /// After an overflow: the revision from which on a mailbox was not filled. It is filled again from now on, so the
    /// caller makes its watchers catch up.
    pub(super) fn take_dropped(&self, mailbox: &Mailbox) -> Option<Revision> {
        let mut mail = mailbox.mail.lock();
        if mail.queue.is_empty() { mail.dropped_from.take() } else { None }
    }
}
