//! Follows the changes of the source by a watch, and writes whole revisions of it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::mvccpb::Event;
use starling_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::place::Place;
use super::side::{MESSAGE_BYTES_MAX, Side};
use super::{Change, Mirror, Progress, TXN_BYTES_MAX, figures, is_reserved, range_of};
use crate::cli::ToolError;

/// So much is read before it is written, but for what belongs to one revision or comes in one message.
const UNWRITTEN_BYTES_MAX: usize = 4 << 20;
/// How often a source in which nothing happens is asked where it is, so that the place is not left behind by its compaction.
const ASK_INTERVAL: Duration = Duration::from_secs(60);
/// What a client may have on its way to the server.
const REQUESTS_MAX: usize = 4;
/// Revisions of Starling's members begin with who counts them.
const COUNTER_BITS: u32 = 41;

/// The changes of a revision of the source.
#[derive(Debug, Default, PartialEq, Eq)]
struct Revision {
    number: i64,
    changes: Vec<Change>,
    bytes: usize,
}

/// What was read and is not written.
#[derive(Debug, Default)]
struct Unwritten {
    revisions: VecDeque<Revision>,
    bytes: usize,
}

impl Unwritten {
    fn push(&mut self, event: Event) {
        let kind = event.r#type();
        let Some(kv) = event.kv else { return };
        if self.revisions.back().is_none_or(|last| last.number != kv.mod_revision) {
            self.revisions.push_back(Revision { number: kv.mod_revision, ..Default::default() });
        }
        if is_reserved(&kv.key) {
            return;
        }
        let change = match kind {
            EventType::Put => Change::Put(kv.key, kv.value),
            EventType::Delete => Change::Delete(kv.key),
        };
        if let Some(last) = self.revisions.back_mut() {
            let bytes = change.bytes();
            // A transaction of the destination does not take a key twice.
            last.changes.retain(|earlier| earlier.key() != change.key());
            last.changes.push(change);
            last.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// The oldest revision, and those after it that one transaction takes, too: whole ones, and no key twice, so that each version
    /// of a key is written.
    fn take(&mut self, ops_max: usize) -> Option<Revision> {
        let mut taken = self.revisions.pop_front()?;
        let mut keys: BTreeSet<Bytes> = taken.changes.iter().map(|it| it.key().clone()).collect();
        while let Some(next) = self.revisions.pop_front_if(|next| {
            taken.changes.len() + next.changes.len() <= ops_max
                && taken.bytes + next.bytes <= TXN_BYTES_MAX
                && next.changes.iter().all(|change| !keys.contains(change.key()))
        }) {
            keys.extend(next.changes.iter().map(|it| it.key().clone()));
            taken.number = next.number;
            taken.bytes += next.bytes;
            taken.changes.extend(next.changes);
        }
        self.bytes = self.bytes.saturating_sub(taken.bytes);
        Some(taken)
    }
}

/// A watch of the source, and a way to ask it where it is.
struct Watch {
    replies: Streaming<pb::WatchResponse>,
    requests: mpsc::Sender<pb::WatchRequest>,
}

impl Watch {
    async fn open(
        source: &mut Side,
        prefix: &[u8],
        place: Place,
        progress: &mut Progress,
    ) -> Result<Self, ToolError> {
        let (key, range_end) = range_of(prefix);
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: place.revision + 1,
            progress_notify: true,
            fragment: true,
            ..Default::default()
        };
        loop {
            let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
            // The channel is empty.
            let _ = requests.try_send(request(RequestUnion::CreateRequest(create.clone())));
            let (channel, message) =
                source.request(ReceiverStream::new(receiver), progress).await?;
            let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            match client.watch(message).await {
                Ok(replies) => return Ok(Self { replies: replies.into_inner(), requests }),
                Err(status) => source.failed(status, progress).await?,
            }
        }
    }

    fn ask(&self) {
        // If there are so many questions on their way already, one more does not help.
        let progress = pb::WatchProgressRequest {};
        let _ = self.requests.try_send(request(RequestUnion::ProgressRequest(progress)));
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

/// Whether a source that was at one revision and is now at another has gone back: it was restored from a snapshot.
/// Numbers of two members of a Starling say nothing about each other.
fn has_gone_back(before: i64, now: i64) -> bool {
    before >> COUNTER_BITS == now >> COUNTER_BITS && now < before
}

impl Mirror {
    /// Follows the source from a place on. Returns with the reason when everything has to be compared anew.
    pub(super) async fn follow(&mut self, mut place: Place) -> Result<String, ToolError> {
        loop {
            let header = self.source.header(&mut self.progress).await?;
            if header.cluster_id != place.cluster || has_gone_back(place.revision, header.revision)
            {
                return Ok("the source has gone back to an earlier state".to_owned());
            }
            let watch = Watch::open(&mut self.source, &self.prefix, place, &mut self.progress);
            let mut watch = watch.await?;
            if let Some(why) = self.follow_watch(&mut watch, &mut place).await? {
                return Ok(why);
            }
        }
    }

    /// The same while one watch lasts. Nothing if it has to be opened anew.
    async fn follow_watch(
        &mut self,
        watch: &mut Watch,
        place: &mut Place,
    ) -> Result<Option<String>, ToolError> {
        let mut unwritten = Unwritten::default();
        let mut ask_at = Instant::now() + ASK_INTERVAL;
        loop {
            let reply = tokio::select! {
                reply = watch.replies.message() => reply,
                () = sleep_until(ask_at) => {
                    ask_at = Instant::now() + ASK_INTERVAL;
                    watch.ask();
                    continue;
                }
            };
            let mut reply = match reply {
                Ok(reply) => reply,
                Err(status) => {
                    self.source.failed(status, &mut self.progress).await?;
                    return Ok(None);
                }
            };
            // What else has come goes into the same transactions. A revision is complete with the last fragment of its message.
            let mut is_told = None;
            loop {
                let Some(message) = reply else {
                    let status = Status::unavailable("the watch has ended");
                    self.source.failed(status, &mut self.progress).await?;
                    return Ok(None);
                };
                if message.canceled {
                    return self.ended(&message).await;
                }
                self.source.answered();
                if message.events.is_empty() && !message.created {
                    is_told = message.header.map(|header| header.revision);
                }
                message.events.into_iter().for_each(|event| unwritten.push(event));
                if message.fragment {
                    reply = match watch.replies.message().await {
                        Ok(reply) => reply,
                        Err(status) => {
                            self.source.failed(status, &mut self.progress).await?;
                            return Ok(None);
                        }
                    };
                    continue;
                }
                if unwritten.bytes >= UNWRITTEN_BYTES_MAX {
                    break;
                }
                match watch.replies.message().now_or_never() {
                    Some(Ok(more)) => reply = more,
                    // It is met again, after what has come before.
                    Some(Err(_)) | None => break,
                }
            }
            while let Some(revision) = unwritten.take(self.ops_max - 1) {
                *place = Place { revision: revision.number, ..*place };
                self.write(&revision.changes, Some(*place)).await?;
                self.say(*place);
            }
            if let Some(told) = is_told.filter(|told| *told > place.revision) {
                *place = Place { revision: told, ..*place };
                self.write(&[], Some(*place)).await?;
            }
            self.say(*place);
        }
    }

    fn say(&mut self, place: Place) {
        let (puts, deletes) = (figures::count(self.puts), figures::count(self.deletes));
        self.progress.tick(|| {
            format!(
                "following: revision {} of the source; {puts} written, {deletes} deleted",
                place.revision
            )
        });
    }

    /// The source has ended the watch.
    async fn ended(&mut self, message: &pb::WatchResponse) -> Result<Option<String>, ToolError> {
        if message.compact_revision != 0 {
            let revision = message.compact_revision;
            return Ok(Some(format!("the source has compacted up to revision {revision}")));
        }
        let status = Status::permission_denied(message.cancel_reason.clone());
        self.source.failed(status, &mut self.progress).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use starling_proto::mvccpb::KeyValue;

    use super::*;

    fn event(key: &str, mod_revision: i64, kind: EventType) -> Event {
        let key = key.to_owned().into();
        let kv = Some(KeyValue { key, mod_revision, ..Default::default() });
        Event { r#type: kind.into(), kv, prev_kv: None }
    }

    /// What goes into each transaction: the place after it, and its keys.
    fn batches(events: &[(&str, i64)], ops_max: usize) -> Vec<(i64, String)> {
        let mut unwritten = Unwritten::default();
        for (key, revision) in events {
            unwritten.push(event(key, *revision, EventType::Put));
        }
        let mut batches = Vec::new();
        while let Some(Revision { number, changes, .. }) = unwritten.take(ops_max) {
            let keys = changes.iter().map(|it| String::from_utf8_lossy(it.key()).into_owned());
            batches.push((number, keys.collect::<String>()));
        }
        assert_eq!(unwritten.bytes, 0);
        batches
    }

    #[test]
    fn revisions_stay_whole() {
        let batch = |number, keys: &str| (number, keys.to_owned());
        let four = [("a", 2), ("b", 3), ("c", 3), ("d", 4)];
        assert_eq!(batches(&four, 4), [batch(4, "abcd")]);
        assert_eq!(batches(&four, 3), [batch(3, "abc"), batch(4, "d")]);
        assert_eq!(batches(&four, 2), [batch(2, "a"), batch(3, "bc"), batch(4, "d")]);
        assert_eq!(batches(&four, 1)[1], batch(3, "bc"), "larger than allowed: it is cut later");
        let again = [("a", 2), ("b", 3), ("a", 4), ("c", 5)];
        assert_eq!(batches(&again, 9), [batch(3, "ab"), batch(5, "ac")], "each version is written");
    }

    #[test]
    fn places_of_mirrors_are_not_mirrored() {
        assert_eq!(batches(&[("starling/mirror/", 2)], 9), [(2, String::new())]);
    }

    #[test]
    fn a_key_is_changed_once_in_a_revision() {
        let mut unwritten = Unwritten::default();
        unwritten.push(event("a", 2, EventType::Delete));
        unwritten.push(event("a", 2, EventType::Put));
        let taken = unwritten.take(9).map(|it| it.changes);
        assert_eq!(taken, Some(vec![Change::Put("a".into(), Bytes::new())]));
    }

    #[test]
    fn only_numbers_of_one_member_are_compared() {
        assert!(has_gone_back(7, 6) && !has_gone_back(6, 7) && !has_gone_back(7, 7));
        assert!(!has_gone_back((5 << COUNTER_BITS) + 9, (4 << COUNTER_BITS) + 1));
    }
}
