//! `KV.RangeStream`: a Range in pieces, so that neither side has to hold all of it (new in etcd 3.7).
//!
//! Everything is of one revision: the current one when the call began, or the one that it asks for. Pieces begin small, so that
//! the first comes soon, and grow to about the size of the largest request. The next is read when there is room for it on
//! the way out. What is ordered by something else than the key is sorted first, without the values: only its keys are held.
//! etcd refuses such calls, and those with filters.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/key.go`.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use starling_proto::etcdserverpb as pb;
use tonic::Status;

use super::{Context, convert, header};
use crate::engine::Pair;
use crate::engine::command::{Range, RangeReply, SortOrder, SortTarget};
use crate::error::Error;
use crate::types::{KeyRange, RangeEnd, Revision};

/// Keys of the first piece.
const KEYS_FIRST: usize = 10;
/// Keys of any piece.
const KEYS_MAX: usize = 1 << 16;

/// A piece of the answer.
pub(super) type Pieces = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

/// What is left to send.
enum Left {
    /// The rest of a range in the order of its keys.
    Walk {
        range: Range,
        /// How many pairs more, if that is bounded.
        limit: Option<usize>,
    },
    /// These keys, in this order.
    Keys(VecDeque<Bytes>),
    Nothing,
}

struct Answering {
    context: Context,
    left: Left,
    /// Of everything.
    revision: Revision,
    /// Current when it began.
    shown: Revision,
    count: u64,
    more: bool,
    keys_only: bool,
    keys: usize,
}

/// Answers a range in pieces.
pub(super) async fn answer(context: Context, range: Range) -> Result<Pieces, Status> {
    let counting = Range { count_only: true, limit: None, ..range.clone() };
    let reply = context.node.range(counting).await?;
    let shown = reply.revision;
    let revision = u64::try_from(range.revision).ok().filter(|it| *it > 0).map_or(shown, Revision);
    let mut answering = Answering {
        context,
        left: Left::Nothing,
        revision,
        shown,
        count: reply.body.count,
        more: false,
        keys_only: range.keys_only,
        keys: KEYS_FIRST,
    };
    if !range.count_only {
        answering.begin(range).await?;
    }
    Ok(Box::pin(stream::try_unfold(Some(answering), |answering| async {
        let Some(mut answering) = answering else { return Ok(None) };
        let piece = answering.next().await?;
        let is_last = matches!(answering.left, Left::Nothing);
        Ok::<_, Status>(Some((piece, Some(answering).filter(|_| !is_last))))
    })))
}

/// A finished answer, in one piece.
pub(super) fn whole(answer: pb::RangeResponse) -> Pieces {
    let piece = pb::RangeStreamResponse { range_response: Some(answer) };
    Box::pin(stream::once(async { Ok(piece) }))
}

impl Answering {
    async fn begin(&mut self, range: Range) -> Result<(), Error> {
        let is_by_key = range.sort.is_none_or(|sort| sort.target == SortTarget::Key);
        let range = Range { revision: self.revision.shown(), ..range };
        if is_by_key {
            self.left = Left::Walk { limit: range.limit, range };
            return Ok(());
        }
        let sorted = self.context.node.range(Range { keys_only: true, ..range }).await?;
        let RangeReply { kvs, more, .. } = sorted.body;
        let keys = kvs.iter().map(|pair| Bytes::copy_from_slice(pair.fields().key));
        (self.left, self.more) = (Left::Keys(keys.collect()), more);
        Ok(())
    }

    async fn next(&mut self) -> Result<pb::RangeStreamResponse, Status> {
        let kvs = match std::mem::replace(&mut self.left, Left::Nothing) {
            Left::Walk { range, limit } => self.walk(range, limit).await?,
            Left::Keys(keys) => self.take(keys).await?,
            Left::Nothing => Vec::new(),
        };
        self.resize(&kvs);
        let is_last = matches!(self.left, Left::Nothing);
        let kvs = kvs.iter().map(|pair| convert::key_value(pair.into())).collect();
        let mut answer = pb::RangeResponse { kvs, ..Default::default() };
        if is_last {
            answer.header = Some(header::at(&self.context.node, self.shown));
            answer.more = self.more;
            answer.count = convert::shown(self.count);
        }
        Ok(pb::RangeStreamResponse { range_response: Some(answer) })
    }

    /// The next pairs in the order of their keys.
    async fn walk(&mut self, mut range: Range, limit: Option<usize>) -> Result<Vec<Pair>, Error> {
        let wanted = self.keys.min(limit.unwrap_or(usize::MAX));
        range.limit = Some(wanted);
        let RangeReply { kvs, more, .. } = self.context.node.range(range.clone()).await?.body;
        let limit = limit.map(|limit| limit - kvs.len());
        match kvs.last() {
            Some(last) if more && limit != Some(0) => {
                range.range = behind(&range, last.fields().key);
                self.left = Left::Walk { range, limit };
            }
            _ => self.more = more,
        }
        Ok(kvs)
    }

    /// The next of some keys.
    async fn take(&mut self, mut keys: VecDeque<Bytes>) -> Result<Vec<Pair>, Error> {
        let mut pairs = Vec::new();
        for key in keys.drain(..self.keys.min(keys.len())).collect::<Vec<_>>() {
            let range = Range {
                revision: self.revision.shown(),
                keys_only: self.keys_only,
                ..Range::new(KeyRange::single(key))
            };
            pairs.extend(self.context.node.range(range).await?.body.kvs);
        }
        if !keys.is_empty() {
            self.left = Left::Keys(keys);
        }
        Ok(pairs)
    }

    /// The next piece is to come close to the size of the largest request.
    fn resize(&mut self, sent: &[Pair]) {
        let bytes: usize = sent.iter().map(|pair| pair.wire().len()).sum();
        let wanted = self.context.max_request_bytes;
        if bytes > wanted {
            self.keys = (self.keys / 2).max(1);
        } else if bytes <= wanted / 2 {
            self.keys = (self.keys * 2).min(KEYS_MAX);
        }
    }
}

/// What is left of a range behind a key.
fn behind(range: &Range, key: &[u8]) -> KeyRange {
    let is_down = range.sort.is_some_and(|sort| sort.order == Some(SortOrder::Descending));
    if is_down {
        let end = RangeEnd::Before(Bytes::copy_from_slice(key));
        return KeyRange { start: range.range.start.clone(), end };
    }
    let mut start = BytesMut::with_capacity(key.len() + 1);
    start.put_slice(key);
    start.put_u8(0);
    KeyRange { start: start.freeze(), end: range.range.end.clone() }
}
