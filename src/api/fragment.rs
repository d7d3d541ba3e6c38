//! Splitting a large watch reply, for clients that ask for it.

use prost::Message;
use prost::encoding::encoded_len_varint;
use starling_proto::etcdserverpb::WatchResponse;
use starling_proto::mvccpb::Event;

/// The tag of an event, and that of the fragment flag with its value.
const EVENT_TAG_BYTES: usize = 1;
const FRAGMENT_FLAG_BYTES: usize = 2;

/// Splits a reply of `max_bytes` and more into smaller ones of at least one event each, the last of which is
/// not marked as a fragment.
pub(crate) fn split(mut response: WatchResponse, max_bytes: usize) -> Vec<WatchResponse> {
    if response.events.len() < 2 || response.encoded_len() < max_bytes {
        return vec![response];
    }
    let events = std::mem::take(&mut response.events);
    let frame = WatchResponse { fragment: true, ..response };
    let mut parts: Vec<WatchResponse> =
        groups(events, max_bytes, frame.encoded_len() + FRAGMENT_FLAG_BYTES)
            .into_iter()
            .map(|events| WatchResponse { events, ..frame.clone() })
            .collect();
    if let Some(last) = parts.last_mut() {
        last.fragment = false;
    }
    parts
}

fn groups(events: Vec<Event>, max_bytes: usize, frame_bytes: usize) -> Vec<Vec<Event>> {
    let mut groups = vec![Vec::new()];
    let mut bytes = frame_bytes;
    for event in events {
        let size = event_bytes(&event);
        let group = groups.last_mut().filter(|group| group.is_empty() || bytes + size < max_bytes);
        bytes += size;
        match group {
            Some(group) => group.push(event),
            None => {
                bytes = frame_bytes + size;
                groups.push(vec![event]);
            }
        }
    }
    groups
}

fn event_bytes(event: &Event) -> usize {
    let body = event.encoded_len();
    EVENT_TAG_BYTES + encoded_len_varint(body as u64) + body
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use starling_proto::etcdserverpb::ResponseHeader;
    use starling_proto::mvccpb::KeyValue;

    use super::*;

    const MAX: usize = 1000;

    fn response(value_sizes: &[usize]) -> WatchResponse {
        let event = |(i, size): (usize, &usize)| Event {
            kv: Some(KeyValue {
                key: Bytes::from(format!("k{i}")),
                value: Bytes::from(vec![b'v'; *size]),
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        WatchResponse {
            header: Some(ResponseHeader { revision: 9, ..ResponseHeader::default() }),
            watch_id: 5,
            events: value_sizes.iter().enumerate().map(event).collect(),
            ..WatchResponse::default()
        }
    }

    fn counts(parts: &[WatchResponse]) -> Vec<usize> {
        parts.iter().map(|part| part.events.len()).collect()
    }

    #[test]
    fn small_replies_and_single_events_stay_whole() {
        for sizes in [&[10, 10][..], &[5 * MAX], &[]] {
            let whole = response(sizes);
            assert_eq!(split(whole.clone(), MAX), [whole]);
        }
    }

    #[test]
    fn large_replies_are_split_below_the_limit() {
        let whole = response(&[300; 10]);
        let parts = split(whole.clone(), MAX);
        assert_eq!(counts(&parts), [3, 3, 3, 1]);
        assert!(parts.iter().all(|part| part.encoded_len() < MAX));
        let flags: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        assert_eq!(flags, [true, true, true, false]);
        assert!(parts.iter().all(|part| part.header == whole.header && part.watch_id == 5));
        let joined: Vec<Event> = parts.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(joined, whole.events);
    }

    #[test]
    fn an_event_above_the_limit_goes_alone() {
        let parts = split(response(&[10, 2 * MAX, 10, 10]), MAX);
        assert_eq!(counts(&parts), [1, 1, 2]);
    }
}
