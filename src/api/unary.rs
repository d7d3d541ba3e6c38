//! Unary calls of the KV service, the hot ones.
//!
//! tonic's own way through a unary call is one for streams, too: two buffers of 8 KiB, four boxes and a copy of the
//! message on either side. Here the message is decoded where the socket's buffer has it, and the answer is
//! encoded once, into what is sent. On the wire there is no difference; the cases of `compat-tests` hold for
//! both.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{self, Poll};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::Context;
use super::slow::{Content, Timed};
use super::wire::{self, Answer, PREFIX_BYTES};

/// What is set aside for a message in pieces when the first comes; the rest as it comes.
const PIECES_BYTES: usize = 16 * 1024;

/// For messages that are not much larger in memory than on the wire.
pub(crate) fn unchecked(_message: &[u8]) -> Result<(), Status> {
    Ok(())
}

/// Whether a call can be answered here. A body that is compressed is tonic's to refuse.
pub(super) fn is_plain<B>(request: &Request<B>) -> bool {
    !wire::is_compressed(request.headers())
}

/// Answers one call: reads its message, has it checked and handled, and dresses the answer. If it took long, says so.
pub(super) async fn answer_timed<B, R, A, F>(
    request: Request<B>,
    (context, timed): (&Context, Timed),
    check: impl FnOnce(&[u8]) -> Result<(), Status>,
    handle: impl FnOnce(tonic::Request<R>) -> F,
) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    R: Content,
    A: Answer,
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    let note = |message: &Bytes, outcome: &Result<tonic::Response<A>, Status>| {
        timed.note::<R, A>(context.slow, &context.metrics, message, outcome);
    };
    answer_and(request, check, handle, note).await
}

/// The same, whatever it took.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn answer<B, R, A, F>(
    request: Request<B>,
    check: impl FnOnce(&[u8]) -> Result<(), Status>,
    handle: impl FnOnce(tonic::Request<R>) -> F,
) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    R: Message + Default,
    A: Answer,
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    answer_and(request, check, handle, |_, _| {}).await
}

async fn answer_and<B, R, A, F>(
    request: Request<B>,
    check: impl FnOnce(&[u8]) -> Result<(), Status>,
    handle: impl FnOnce(tonic::Request<R>) -> F,
    note: impl FnOnce(&Bytes, &Result<tonic::Response<A>, Status>),
) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    R: Message + Default,
    A: Answer,
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    let (head, body) = request.into_parts();
    let mut kept = None;
    let handled = async {
        let message = read(body).await?;
        check(&message)?;
        // Its keys and values share this memory anyhow.
        kept = Some(message.clone());
        let message = R::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        let metadata = MetadataMap::from_headers(head.headers);
        handle(tonic::Request::from_parts(metadata, head.extensions, message)).await
    };
    let outcome = handled.await;
    if let Some(message) = &kept {
        note(message, &outcome);
    }
    match outcome {
        Ok(answer) => respond(answer.get_ref()),
        Err(status) => status.into_http(),
    }
}

/// The message of a call, once all of its body is there. Its size is bounded already; what follows it is dropped.
async fn read<B>(mut body: B) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    let mut whole = None;
    let mut pieces = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.is_some() {
            continue;
        }
        if pieces.is_empty() {
            whole = message(&data)?;
            if whole.is_some() {
                continue;
            }
            pieces.reserve(PIECES_BYTES.max(data.len()));
        }
        pieces.extend_from_slice(&data);
        if let Some(length) = length(&pieces)?
            && pieces.len() >= PREFIX_BYTES + length
        {
            whole = message(&pieces.split().freeze())?;
        }
    }
    whole.ok_or_else(|| Status::internal("Missing request message."))
}

/// The message at the start of some bytes, if all of it is there.
fn message(data: &Bytes) -> Result<Option<Bytes>, Status> {
    let end = length(data)?.map(|length| PREFIX_BYTES + length);
    Ok(end.filter(|end| *end <= data.len()).map(|end| data.slice(PREFIX_BYTES..end)))
}

/// The length in a message's prefix, if all of that is there.
fn length(data: &[u8]) -> Result<Option<usize>, Status> {
    let Some([flag, length @ ..]) = data.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    match flag {
        0 => Ok(usize::try_from(u32::from_be_bytes(*length)).ok()),
        1 => Err(Status::internal(
            "protocol error: received message with compressed-flag but no grpc-encoding was specified",
        )),
        flag => Err(Status::internal(format!(
            "protocol error: received message with invalid compression flag: {flag} (valid flags are 0 and 1), while sending request"
        ))),
    }
}

fn respond(answer: &impl Answer) -> Response<tonic::body::Body> {
    let mut buffer = BytesMut::new();
    match wire::append(answer, &mut buffer) {
        Ok(()) => wire::response(Unary::Message(buffer.freeze())),
        Err(status) => status.into_http(),
    }
}

/// The body of an answer: a message, then the status.
enum Unary {
    Message(Bytes),
    Status,
    Done,
}

impl Body for Unary {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match &mut *self {
            Self::Message(message) => {
                let message = std::mem::take(message);
                *self = Self::Status;
                Frame::data(message)
            }
            Self::Status => {
                *self = Self::Done;
                wire::ok()
            }
            Self::Done => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message(message) => SizeHint::with_exact(message.len() as u64),
            Self::Status | Self::Done => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use starling_proto::etcdserverpb::{RangeRequest, RangeResponse};

    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("a short message");
        [&[0][..], &length.to_be_bytes(), &message].concat()
    }

    async fn call(pieces: &[&[u8]]) -> Result<RangeResponse, Status> {
        let frames = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
        let body = StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>()));
        let count = async |request: tonic::Request<RangeRequest>| {
            let count = request.into_inner().key.len();
            let count = i64::try_from(count).expect("a short key");
            Ok(tonic::Response::new(RangeResponse { count, ..RangeResponse::default() }))
        };
        let response = answer(Request::new(body), unchecked, count).await;
        let failed = Status::from_header_map(response.headers());
        let body = response.into_body().collect().await?;
        let status = failed.or_else(|| Status::from_header_map(body.trailers()?));
        match status.expect("a status") {
            status if status.code() == tonic::Code::Ok => {
                let bytes = body.to_bytes();
                let message = message(&bytes)?.expect("a message");
                assert_eq!(bytes.len(), PREFIX_BYTES + message.len());
                Ok(RangeResponse::decode(message).expect("what was encoded"))
            }
            status => Err(status),
        }
    }

    #[tokio::test]
    async fn a_message_arrives_however_it_is_cut() {
        let request = RangeRequest { key: vec![b'k'; 300].into(), ..RangeRequest::default() };
        let bytes = framed(&request);
        for size in [1, 2, 4, 5, 6, 100, bytes.len() - 1, bytes.len()] {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            let reply = call(&pieces).await.unwrap_or_else(|error| panic!("{size}: {error}"));
            assert_eq!(reply.count, 300, "in pieces of {size}");
        }
        let twice = [&bytes[..], &framed(&RangeRequest::default())].concat();
        assert_eq!(call(&[&twice]).await.expect("the first counts").count, 300);
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let table: [(&[&[u8]], &str); 6] = [
            (&[], "Missing request message."),
            (&[&[0, 0, 0]], "Missing request message."),
            (&[&[0, 0, 0, 0, 9, 1]], "Missing request message."),
            (&[&[1, 0, 0, 0, 0]], "compressed-flag but no grpc-encoding"),
            (&[&[2, 0, 0, 0, 0]], "invalid compression flag: 2"),
            (&[&[0, 0, 0, 0, 2, 0xff, 0xff]], "failed to decode Protobuf message"),
        ];
        for (pieces, text) in table {
            let error = call(pieces).await.expect_err("it is no message");
            assert_eq!(error.code(), tonic::Code::Internal, "{pieces:?}");
            assert!(error.message().contains(text), "{pieces:?}: {error}");
        }
    }
}
