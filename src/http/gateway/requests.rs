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

/// Base64 takes a third more than what it stands for; names and escapes take little in a request that is large.
const JSON_EXPANSION: usize = 2;

/// A flag, that nothing is compressed, and a length before each message.
pub(super) const PREFIX_BYTES: usize = 5;

fn max_json_bytes(max_message_bytes: usize) -> usize {
    max_message_bytes.saturating_mul(JSON_EXPANSION)
}

/// In grpc-go's words.
fn too_large(bytes: usize, max_message_bytes: usize) -> Status {
    let text = format!("grpc: received message larger than max ({bytes} vs. {max_message_bytes})");
    Status::new(Code::ResourceExhausted, text)
}

/// The frame of the one message of a body.
pub(super) async fn first_request<B>(
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
    ended: bool,
}

impl<B> Requests<B> {
    pub(super) fn new(body: B, input: MessageDescriptor, max_message_bytes: usize) -> Self {
        let (json, objects) = (BytesMut::new(), Objects::default());
        Self { body, input, max_message_bytes, json, objects, ended: false }
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
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                Ok(None) => {}
                Err(status) => {
                    tracing::debug!(%status, "a request of the gateway makes no sense");
                    this.ended = true;
                    break;
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.json.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(Status::from_error(error.into()))));
                }
                None => this.ended = true,
            }
        }
        Poll::Ready(None)
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
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::super::schema::schema;
    use super::*;

    const MAX: usize = 1000;

    async fn ids(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let input = schema().route("/v3/lease/keepalive").expect("a path of etcd's").input.clone();
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(tokio_stream::iter(pieces));
        let mut requests = Requests::new(body, input, MAX);
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
        let refused = first_request(Full::new(vec![b' '; 2 * MAX + 1].into()), input, MAX).await;
        assert_eq!(refused.expect_err("too large").code(), Code::ResourceExhausted);
    }
}
