//! What a watch stream says, as it goes over the wire.
//!
//! A change is encoded once, when it is made ([`crate::engine::Pair`]); each watcher's reply is a frame of its own
//! around copies of that. A large reply is split for clients that ask for it.

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use prost::Message;
use starling_proto::etcdserverpb::WatchResponse;
use starling_proto::mvccpb::event::EventType;
use tonic::Status;

use super::wire::{self, Answer};
use super::{Context, header, status};
use crate::engine::watch::{Event, EventKind, WatchRefusal, WatchReply};
use crate::error::AuthError;

/// The id in replies that are about no watcher, or about all of them.
pub(super) const NO_WATCHER: i64 = -1;

/// The fields of `WatchResponse` and `Event` that are messages.
const EVENTS_TAG: u32 = 11;
const KV_TAG: u32 = 2;
const PREV_KV_TAG: u32 = 3;
/// `Event.type` is a delete: tag and value. Puts are zero, and so left out.
const DELETE: [u8; 2] = [1 << 3, EventType::Delete as u8];

/// Appends a reply to a buffer: one message, or more if it is split.
pub(super) fn append(
    context: &Context,
    reply: &WatchReply,
    buffer: &mut BytesMut,
) -> Result<(), Status> {
    let frame = frame(context, reply);
    let WatchReply::Events { events, fragment, .. } = reply else {
        return wire::append(&frame, buffer);
    };
    context.metrics.events.inc_by(events.len() as u64);
    let whole = Told { frame, events };
    if *fragment {
        return whole.append_split(context.max_message_bytes(), buffer);
    }
    wire::append(&whole, buffer)
}

/// Everything of a reply but its events.
fn frame(context: &Context, reply: &WatchReply) -> WatchResponse {
    let header = |revision| Some(header::at(&context.node, revision));
    let empty = WatchResponse::default();
    match *reply {
        WatchReply::Created { id, revision } => {
            WatchResponse { header: header(revision), watch_id: id, created: true, ..empty }
        }
        WatchReply::Refused { reason, revision } => WatchResponse {
            header: header(revision),
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason: refusal(reason),
            ..empty
        },
        WatchReply::Events { id, revision, .. } => {
            WatchResponse { header: header(revision), watch_id: id, ..empty }
        }
        WatchReply::Denied { id, reason, revision } => WatchResponse {
            header: header(revision),
            watch_id: id,
            canceled: true,
            cancel_reason: denial(reason),
            ..empty
        },
        WatchReply::Canceled { id, revision } => {
            WatchResponse { header: header(revision), watch_id: id, canceled: true, ..empty }
        }
        // Clients tell this end by its revision; etcd gives neither a reason nor a current revision.
        WatchReply::Compacted { id, compacted } => WatchResponse {
            header: Some(header::without_revision(&context.node)),
            watch_id: id,
            canceled: true,
            compact_revision: compacted.shown(),
            ..empty
        },
        WatchReply::Progress { id, revision } => {
            WatchResponse { header: header(revision), watch_id: id.unwrap_or(NO_WATCHER), ..empty }
        }
    }
}

/// etcd's texts.
fn refusal(reason: WatchRefusal) -> String {
    let text = match reason {
        WatchRefusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
        WatchRefusal::EmptyRange => "mvcc: watcher range is empty",
        WatchRefusal::NegativeStart => status::COMPACTED,
        WatchRefusal::Denied(reason) => return denial(reason),
    };
    text.to_owned()
}

/// As Go prints a status.
fn denial(reason: AuthError) -> String {
    let status = Status::from(reason);
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// A reply with events.
struct Told<'a> {
    frame: WatchResponse,
    events: &'a [Event],
}

impl Answer for Told<'_> {
    fn len(&self) -> usize {
        self.frame.encoded_len() + self.events.iter().map(framed_len).sum::<usize>()
    }

    /// The events come last, as their tag is the highest.
    fn encode_to(&self, buffer: &mut BytesMut) {
        self.frame.encode_raw(buffer);
        for event in self.events {
            wire::put_nested(EVENTS_TAG, event_len(event), buffer);
            if event.kind == EventKind::Delete {
                buffer.put_slice(&DELETE);
            }
            let pairs = [(KV_TAG, Some(&event.pair)), (PREV_KV_TAG, event.prev.as_ref())];
            for (tag, pair) in pairs {
                let Some(pair) = pair else { continue };
                wire::put_nested(tag, pair.wire().len(), buffer);
                buffer.put_slice(pair.wire());
            }
        }
    }
}

impl Told<'_> {
    /// Splits a reply of `max_bytes` and more into smaller ones of at least one event each, the last of which is
    /// not marked as a fragment.
    fn append_split(&self, max_bytes: usize, buffer: &mut BytesMut) -> Result<(), Status> {
        if self.events.len() < 2 || self.len() < max_bytes {
            return wire::append(self, buffer);
        }
        let frame = WatchResponse { fragment: true, ..self.frame.clone() };
        let sizes = self.events.iter().map(framed_len);
        for part in parts(sizes, max_bytes, frame.encoded_len()) {
            let is_last = part.end == self.events.len();
            let frame = WatchResponse { fragment: !is_last, ..frame.clone() };
            wire::append(&Told { frame, events: &self.events[part] }, buffer)?;
        }
        Ok(())
    }
}

/// Ranges of items that stay below a size together with their frame, if they are more than one.
fn parts(
    sizes: impl Iterator<Item = usize>,
    max_bytes: usize,
    frame_bytes: usize,
) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut bytes = frame_bytes;
    for (i, size) in sizes.enumerate() {
        bytes += size;
        match parts.last_mut() {
            Some(part) if bytes < max_bytes => part.end = i + 1,
            _ => {
                bytes = frame_bytes + size;
                parts.push(i..i + 1);
            }
        }
    }
    parts
}

fn event_len(event: &Event) -> usize {
    let kind = if event.kind == EventKind::Delete { DELETE.len() } else { 0 };
    let prev =
        event.prev.as_ref().map_or(0, |pair| wire::nested_len(PREV_KV_TAG, pair.wire().len()));
    kind + wire::nested_len(KV_TAG, event.pair.wire().len()) + prev
}

/// An event with its tag and length.
fn framed_len(event: &Event) -> usize {
    wire::nested_len(EVENTS_TAG, event_len(event))
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};
    use starling_proto::etcdserverpb::ResponseHeader;
    use starling_proto::mvccpb;

    use super::*;
    use crate::api::convert;
    use crate::engine::watch::Change;
    use crate::types::{KeyValue, LeaseId, Revision};

    const MAX: usize = 1000;

    fn kv(key: &str, value_size: usize) -> KeyValue {
        KeyValue {
            key: Bytes::from(key.to_owned()),
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version: 7,
            value: vec![b'v'; value_size].into(),
            lease: LeaseId(-9),
        }
    }

    fn event(change: &Change, prev: Option<&KeyValue>) -> Event {
        Event { kind: change.kind, pair: change.pair.clone(), prev: prev.map(Into::into) }
    }

    fn response() -> WatchResponse {
        let header = ResponseHeader { revision: 300, member_id: 1, ..ResponseHeader::default() };
        WatchResponse { header: Some(header), watch_id: 5, ..WatchResponse::default() }
    }

    fn puts(value_sizes: &[usize]) -> Vec<Event> {
        let put =
            |(i, size): (usize, &usize)| event(&Change::put(&kv(&format!("k{i}"), *size)), None);
        value_sizes.iter().enumerate().map(put).collect()
    }

    /// The messages in a buffer.
    fn read(mut buffer: BytesMut) -> Vec<WatchResponse> {
        let mut messages = Vec::new();
        while buffer.has_remaining() {
            assert_eq!(buffer.get_u8(), 0);
            let length = buffer.get_u32() as usize;
            let message = buffer.split_to(length);
            messages.push(WatchResponse::decode(message).expect("what was encoded"));
        }
        messages
    }

    fn split(value_sizes: &[usize]) -> (Vec<WatchResponse>, Vec<usize>) {
        let events = puts(value_sizes);
        let mut buffer = BytesMut::new();
        let whole = Told { frame: response(), events: &events };
        whole.append_split(MAX, &mut buffer).expect("they are small");
        let parts = read(buffer);
        let counts = parts.iter().map(|part| part.events.len()).collect();
        (parts, counts)
    }

    #[test]
    fn events_are_encoded_as_prost_does_it() {
        let (new, old) = (kv("k", 300), kv("k", 3));
        let delete = Change::delete(b"k", Revision(301));
        let tombstone =
            mvccpb::KeyValue { key: "k".into(), mod_revision: 301, ..Default::default() };
        let put = |prev: Option<&KeyValue>| mvccpb::Event {
            r#type: EventType::Put.into(),
            kv: Some(convert::key_value(new.clone())),
            prev_kv: prev.cloned().map(convert::key_value),
        };
        let expected = WatchResponse {
            events: vec![
                put(None),
                put(Some(&old)),
                mvccpb::Event {
                    r#type: EventType::Delete.into(),
                    kv: Some(tombstone),
                    prev_kv: Some(convert::key_value(old.clone())),
                },
            ],
            ..response()
        };
        let change = Change::put(&new);
        let events = [event(&change, None), event(&change, Some(&old)), event(&delete, Some(&old))];
        let mut buffer = BytesMut::new();
        wire::append(&Told { frame: response(), events: &events }, &mut buffer).expect("small");
        assert_eq!(&buffer[wire::PREFIX_BYTES..], expected.encode_to_vec());
        assert_eq!(read(buffer), [expected]);
    }

    #[test]
    fn small_replies_and_single_events_stay_whole() {
        for sizes in [&[10, 10][..], &[5 * MAX], &[]] {
            let (parts, counts) = split(sizes);
            assert_eq!(counts, [sizes.len()]);
            assert!(!parts[0].fragment);
        }
    }

    #[test]
    fn large_replies_are_split_below_the_limit() {
        let (parts, counts) = split(&[290; 10]);
        assert_eq!(counts, [3, 3, 3, 1]);
        assert!(parts.iter().all(|part| part.encoded_len() < MAX));
        let flags: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        assert_eq!(flags, [true, true, true, false]);
        assert!(parts.iter().all(|part| part.header == response().header && part.watch_id == 5));
        let keys = parts.iter().flat_map(|part| &part.events).filter_map(|event| event.kv.as_ref());
        assert!(keys.map(|kv| kv.key.clone()).eq((0..10).map(|i| Bytes::from(format!("k{i}")))));
    }

    #[test]
    fn an_event_above_the_limit_goes_alone() {
        assert_eq!(split(&[10, 2 * MAX, 10, 10]).1, [1, 1, 2]);
    }
}
