//! Messages as gRPC frames them, and answers whose parts are encoded already.

use std::any::Any;
use std::pin::Pin;
use std::task::{self, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use starling_proto::etcdserverpb::DeleteRangeResponse;
use tonic::Status;

/// A flag for compression and the length of the message go before it.
pub(super) const PREFIX_BYTES: usize = 5;
/// A message that says how it is compressed.
const ENCODING: &str = "grpc-encoding";
const OK: HeaderValue = HeaderValue::from_static("0");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// An answer that can be sent.
pub(crate) trait Answer {
    /// The bytes that [`Self::encode_to`] takes.
    fn len(&self) -> usize;
    /// Appends it to a buffer with room for it.
    fn encode_to(&self, buffer: &mut BytesMut);
    /// How many pairs of a range it has, for the log; `None` if it is no range.
    fn pairs(&self) -> Option<usize> {
        None
    }
    /// How many keys it counts, for the log.
    fn counted(&self) -> i64 {
        0
    }
}

impl<M: Message + Any> Answer for M {
    fn len(&self) -> usize {
        self.encoded_len()
    }

    fn encode_to(&self, buffer: &mut BytesMut) {
        self.encode_raw(buffer);
    }

    fn counted(&self) -> i64 {
        let deletes = (self as &dyn Any).downcast_ref::<DeleteRangeResponse>();
        deletes.map_or(0, |answer| answer.deleted)
    }
}

/// Appends an answer with its prefix.
pub(super) fn append(answer: &impl Answer, buffer: &mut BytesMut) -> Result<(), Status> {
    let length = answer.len();
    let announced = u32::try_from(length).map_err(|_| {
        // What grpc-go answers when a message does not fit its prefix.
        Status::resource_exhausted(format!("grpc: message too large ({length} bytes)"))
    })?;
    let end = buffer.len() + PREFIX_BYTES + length;
    buffer.reserve(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(announced);
    answer.encode_to(buffer);
    debug_assert_eq!(buffer.len(), end, "an answer is as long as it says");
    Ok(())
}

/// The bytes of a message within another.
pub(super) fn nested_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

/// Begins a message within another, whose bytes follow.
pub(super) fn put_nested(tag: u32, length: usize, buffer: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

/// Whether messages are compressed, or say so: nothing here reads that.
pub(super) fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get(ENCODING).is_some_and(|encoding| encoding != "identity")
}

/// As tonic refuses what it cannot read.
pub(super) fn refuse_compressed(headers: &HeaderMap) -> Status {
    let encoding = headers.get(ENCODING).and_then(|encoding| encoding.to_str().ok());
    let encoding = encoding.unwrap_or("unknown");
    let text = format!("Content is compressed with `{encoding}` which isn't supported");
    let mut status = Status::unimplemented(text);
    let known = tonic::metadata::MetadataValue::from_static("identity");
    status.metadata_mut().insert("grpc-accept-encoding", known);
    status
}

/// A response with a body of messages.
pub(super) fn response<B>(body: B) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Send + 'static,
{
    let mut response = Response::new(tonic::body::Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The end of a body where all went well.
pub(super) fn ok() -> Frame<Bytes> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, OK);
    Frame::trailers(trailers)
}

/// Bytes from a task, one or more whole messages at a time; then how it ended.
pub(super) struct Messages(Option<tokio::sync::mpsc::Receiver<Result<Bytes, Status>>>);

impl Messages {
    pub(super) fn new(batches: tokio::sync::mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self(Some(batches))
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(batches) = &mut self.0 else { return Poll::Ready(None) };
        let ended = match task::ready!(batches.poll_recv(cx)) {
            Some(Ok(batch)) => return Poll::Ready(Some(Ok(Frame::data(batch)))),
            Some(Err(status)) => Err(status),
            None => Ok(()),
        };
        self.0 = None;
        Poll::Ready(Some(match ended {
            Ok(()) => Ok(ok()),
            Err(status) => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
