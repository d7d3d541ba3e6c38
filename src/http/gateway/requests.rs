//! The body of a request: JSON in, frames of gRPC out.

use std::error::Error;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prost_reflect::MessageDescriptor;
use tonic::{Code, Status};

use super::json;
use crate::http::limit::{Begun, Limits, too_slow};

/// Base64 takes a third more than what it stands for; names and escapes take little in a request that is large.
const JSON_EXPANSION: usize = 2;

/// A flag, that nothing is compressed, and a length before each message.
pub(super) const PREFIX_BYTES: usize = 5;

pub(super) fn max_json_bytes(max_message_bytes: usize) -> usize {
    max_message_bytes.saturating_mul(JSON_EXPANSION)
}

/// In grpc-go's words.
fn too_large(bytes: usize, max_message_bytes: usize) -> Status {
    let text = format!("grpc: received message larger than max ({bytes} vs. {max_message_bytes})");
    Status::new(Code::ResourceExhausted, text)
}

/// The frame of the one message of a body.
pub(super) async fn first_request<B>(
    body: B,
    input: &MessageDescriptor,
    limits: Limits,
) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let read = read_first_request(body, input, limits.max_bytes);
    tokio::time::timeout(limits.max_time, read).await.unwrap_or_else(|_| Err(too_slow()))
}

/// However long it takes.
pub(super) async fn read_first_request<B>(
    mut body: B,
    input: &MessageDescriptor,
    max_message_bytes: usize,
) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut json = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if json.len() + data.len() > max_json_bytes(max_message_bytes) {
            return Err(too_large(json.len() + data.len(), max_message_bytes));
        }
        json.extend_from_slice(&data);
    }
    json::read(&json, input).map(|message| frame(&message))
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    // A message is a few times larger than the JSON it was made of at most (`-1` takes ten bytes), and that is bounded
    // far below this.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// A body of many messages, as a body of gRPC. Nonsense ends it, as it does in etcd.
pub(super) struct Requests<B> {
    body: B,
    input: MessageDescriptor,
    max_message_bytes: usize,
    /// What has come and is no whole value yet.
    json: BytesMut,
    objects: Objects,
    begun: Begun,
    ended: bool,
}

impl<B> Requests<B> {
    pub(super) fn new(body: B, input: MessageDescriptor, limits: Limits) -> Self {
        let (json, objects) = (BytesMut::new(), Objects::default());
        let (begun, max_message_bytes) = (Begun::new(limits.max_time), limits.max_bytes);
        Self { body, input, max_message_bytes, json, objects, begun, ended: false }
    }

    /// The next message, if all of it has come.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(end) = self.objects.find_end(&self.json)? else {
            if self.json.len() > max_json_bytes(self.max_message_bytes) {
                return Err(too_large(self.json.len(), self.max_message_bytes));
            }
            return Ok(None);
        };
        let object = self.json.split_to(end);
        json::read(&object, &self.input).map(|message| Some(frame(&message)))
    }
}

impl<B> Body for Requests<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while !this.ended {
            match this.next() {
                Ok(Some(frame)) => {
                    this.begun.reset();
                    return Poll::Ready(Some(Ok(Frame::data(frame))));
                }
                Ok(None) => {}
                Err(status) => {
                    tracing::debug!(%status, "a request of the gateway makes no sense");
                    this.ended = true;
                    break;
                }
            }
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => return this.begun.wait(this.objects.is_within(), cx),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        this.json.extend_from_slice(&data);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(Status::from_error(error.into()))));
                }
                Poll::Ready(None) => this.ended = true,
            }
        }
        Poll::Ready(None)
    }
}

/// A body that ends with its first object; what came along behind that is not looked at. One that ends before that is an error: who goes away half-way has asked for
/// nothing.
pub(super) struct FirstObject<B> {
    body: B,
    objects: Objects,
    ended: bool,
}

impl<B> FirstObject<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, objects: Objects::default(), ended: false }
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for FirstObject<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            None => Err(Status::cancelled("there is no request")),
            Some(frame) => frame,
        };
        let data = frame.map(|frame| frame.into_data().unwrap_or_default());
        Poll::Ready(Some(data.and_then(|data| {
            this.ended = this.objects.is_end_in_piece(&data)?;
            Ok(Frame::data(data))
        })))
    }
}

/// Finds where objects end, without a second look at any byte.
#[derive(Default)]
struct Objects {
    looked_at: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Objects {
    /// Whether part of an object has come, and more is to.
    fn is_within(&self) -> bool {
        self.depth > 0
    }

    /// Whether the first object ends in a piece; each is shown once.
    fn is_end_in_piece(&mut self, piece: &[u8]) -> Result<bool, Status> {
        self.looked_at = 0;
        Ok(self.find_end(piece)?.is_some())
    }

    /// The end of the first object; `None` if it has not come yet. What it finds must be taken off before the next call.
    fn find_end(&mut self, json: &[u8]) -> Result<Option<usize>, Status> {
        while let Some(byte) = json.get(self.looked_at) {
            self.looked_at += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => continue,
                _ => {}
            }
            if self.depth == 0 {
                // Anything but an object is no request, however it ends; reading it says so.
                return Ok(Some(std::mem::take(&mut self.looked_at)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::super::schema::schema;
    use super::*;

    const MAX: usize = 1000;
    const LIMITS: Limits = Limits { max_bytes: MAX, max_time: Duration::from_secs(60) };

    async fn ids(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let input = schema().route("/v3/lease/keepalive").expect("a path of etcd's").input.clone();
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(tokio_stream::iter(pieces));
        let mut requests = Requests::new(body, input, LIMITS);
        let mut frames = Vec::new();
        while let Some(frame) = requests.frame().await {
            frames.push(frame.expect("no error").into_data().expect("data").to_vec());
        }
        frames
    }

    #[tokio::test]
    async fn values_are_taken_however_the_body_is_cut() {
        let body = br#" {"ID":1} {"ID":"2","x":"}\"{\\"} {"ID":{"a":[]}} {"ID":4}"#;
        let body = [&body[..], b"{\"x\":[{}],\"ID\":3}"].concat();
        // The third is no request, and ends the stream.
        let expected = [vec![0, 0, 0, 0, 2, 8, 1], vec![0, 0, 0, 0, 2, 8, 2]];
        for size in 1..=body.len() {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            assert_eq!(ids(&pieces).await, expected, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn nonsense_ends_the_stream() {
        assert_eq!(ids(&[b"{}x{}"]).await, [[0, 0, 0, 0, 0]]);
        assert_eq!(ids(&[b"{}]{}"]).await, [[0, 0, 0, 0, 0]]);
        assert_eq!(ids(&[b"{}{\"ID\":1"]).await, [[0, 0, 0, 0, 0]]);
        assert_eq!(ids(&[b"5"]).await.len() + ids(&[b""]).await.len(), 0);
    }

    #[tokio::test]
    async fn what_does_not_end_is_not_kept() {
        let endless = [b'{'; MAX];
        let pieces = vec![&endless[..]; JSON_EXPANSION + 2];
        assert_eq!(ids(&pieces).await.len(), 0);
        let input = &schema().route("/v3/lease/revoke").expect("a path of etcd's").input;
        let refused = first_request(Full::new(vec![b' '; 2 * MAX + 1].into()), input, LIMITS).await;
        assert_eq!(refused.expect_err("too large").code(), Code::ResourceExhausted);
    }

    /// A body that sends pieces, and then no more.
    fn stalled(pieces: &[&'static str]) -> impl Body<Data = Bytes, Error = Status> + Unpin {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data((*piece).into()))).collect();
        StreamBody::new(tokio_stream::iter(pieces).chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn what_does_not_come_is_not_waited_for() {
        let limits = Limits { max_time: Duration::from_millis(1), ..LIMITS };
        let input = &schema().route("/v3/lease/keepalive").expect("a path of etcd's").input;
        for pieces in [vec![], vec!["{}"], vec!["{\"ID\":"]] {
            let refused = first_request(stalled(&pieces), input, limits).await;
            assert_eq!(refused.expect_err("too slow").code(), Code::DeadlineExceeded);
        }
        let body = stalled(&["{}", "{\"ID\":"]);
        let mut requests = Requests::new(body, input.clone(), limits);
        requests.frame().await.expect("one came").expect("it is good");
        let refused = requests.frame().await.expect("an end").expect_err("too slow");
        assert_eq!(refused.code(), Code::DeadlineExceeded);
    }

    async fn first_object(pieces: &[&'static str]) -> Result<String, Code> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data((*piece).into()))).collect();
        let body = FirstObject::new(StreamBody::new(tokio_stream::iter(pieces)));
        let collected = body.collect().await.map_err(|status| status.code())?;
        Ok(String::from_utf8(collected.to_bytes().to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn the_first_object_is_all_that_is_read() {
        assert_eq!(first_object(&["{}", "{}", "x"]).await.as_deref(), Ok("{}"));
        assert_eq!(
            first_object(&["{\"a\":", "\"}\"} {", "}"]).await.as_deref(),
            Ok("{\"a\":\"}\"} {")
        );
        assert_eq!(first_object(&["nonsense"]).await.as_deref(), Ok("nonsense"));
        for pieces in [&[][..], &["{"], &["{\"a\":", "1"], &[" \n"]] {
            assert_eq!(first_object(pieces).await, Err(Code::Cancelled), "{pieces:?}");
        }
    }
}
