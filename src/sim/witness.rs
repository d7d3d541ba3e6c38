//! A client that watches everything at one member, and never lists again unless it is told to: what it knows has to be what
//! the member has, at every revision, as it would be with etcd.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Pair;
use crate::engine::command::Range;
use crate::engine::mvcc::Mvcc;
use crate::engine::replica::Replica;
use crate::engine::watch::{Event, EventKind, Stream, WatchCreate, WatchReply};
use crate::types::{KeyRange, Revision};

pub(super) struct Witness {
    stream: Stream,
    mvcc: Arc<Mvcc>,
    /// All pairs, as far as it was told.
    known: BTreeMap<Bytes, Pair>,
    /// Up to this revision.
    revision: Revision,
    /// How often it had to list again, since the tag had changed.
    retags: u64,
}

impl Witness {
    pub(super) fn new(replica: &Replica) -> Self {
        let (hub, mvcc) = (replica.writer().hub(), replica.writer().mvcc());
        let mut witness = Self {
            stream: Stream::new(Arc::clone(hub), Arc::clone(mvcc), Box::new(|| ())),
            mvcc: Arc::clone(mvcc),
            known: BTreeMap::new(),
            revision: Revision(0),
            retags: 0,
        };
        witness.list();
        witness
    }

    fn list(&mut self) {
        let reader = self.mvcc.reader();
        self.known = pairs(&self.mvcc);
        self.revision = reader.revision();
        let start_revision = self.revision.next().shown();
        self.stream.create(WatchCreate { start_revision, ..everything() });
    }

    /// Hears everything that there is to hear. Answers what is wrong with it.
    pub(super) fn check(&mut self) -> Result<(), String> {
        while let Some(reply) = self.stream.poll().expect("no fault") {
            match reply {
                WatchReply::Created { .. } => {}
                WatchReply::Events { events, revision, .. } => self.hear(&events, revision)?,
                WatchReply::Compacted { compacted, .. } => {
                    if compacted.tag() == self.revision.tag() {
                        return Err(format!("at {} it was told {compacted}", self.revision));
                    }
                    self.retags += 1;
                    self.list();
                }
                other => return Err(format!("nobody has asked for {other:?}")),
            }
        }
        let now = pairs(&self.mvcc);
        if self.known == now {
            return Ok(());
        }
        Err(format!("at {} it knows {:?}, and there is {now:?}", self.revision, self.known))
    }

    fn hear(&mut self, events: &[Event], revision: Revision) -> Result<(), String> {
        for event in events {
            let fields = event.pair.fields();
            let (at, key) = (fields.mod_revision, Bytes::copy_from_slice(fields.key));
            // All events of a revision come at once, and each of them has the next one.
            let is_next = at == self.revision || at == self.revision.next();
            if !is_next || at > revision {
                return Err(format!("{event:?} follows {}, at {revision}", self.revision));
            }
            self.revision = at;
            let is_known = match event.kind {
                EventKind::Put => self.known.insert(key, event.pair.clone()).is_some(),
                EventKind::Delete => self.known.remove(&key).is_some(),
            };
            let is_expected = event.kind == EventKind::Delete || fields.create_revision != at;
            if is_known != is_expected {
                return Err(format!("{event:?} of a key that is known: {is_known}"));
            }
        }
        Ok(())
    }

    /// How often the member has changed its tag.
    pub(super) fn retags(&self) -> u64 {
        self.retags
    }
}

fn everything() -> WatchCreate {
    WatchCreate {
        range: KeyRange::all(),
        start_revision: 0,
        id: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        progress_notify: false,
        fragment: false,
    }
}

fn pairs(mvcc: &Mvcc) -> BTreeMap<Bytes, Pair> {
    let reply = mvcc.reader().range(&Range::new(KeyRange::all())).expect("no fault");
    let pairs = reply.kvs.into_iter();
    pairs.map(|pair| (Bytes::copy_from_slice(pair.key()), pair)).collect()
}
