//! Members that say what they must not.

use std::future;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt, stream};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::*;

/// Bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// Opens a stream, sends bytes in frames, and returns what the member says in the end.
async fn say(
    member: &Member,
    frames: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<u64, Status> {
    let endpoint = Endpoint::from_shared(member.url.to_string()).expect("an address");
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.expect("it listens"));
    grpc.ready().await.expect("it is connected");
    let path = http::uri::PathAndQuery::from_static("/starling.peer.v1.Peer/Exchange");
    let call = grpc.client_streaming(Request::new(frames), path, Raw);
    let answer = timeout(PATIENCE, call).await.expect("an answer")?;
    let end = pb::ExchangeEnd::decode(answer.into_inner()).expect("an end");
    Ok(end.messages)
}

fn good() -> pb::Greeting {
    pb::Greeting {
        protocol: wire::PROTOCOL,
        cluster_id: CLUSTER.0,
        member_id: 9,
        run: 1,
        receiver_id: 1,
    }
}

fn greeting(greeting: pb::Greeting) -> Bytes {
    encoded(&pb::Frame { body: Some(pb::frame::Body::Greeting(greeting)) })
}

fn encoded(frame: &pb::Frame) -> Bytes {
    frame.encode_to_vec().into()
}

fn frame(message: &Message) -> Bytes {
    encoded(&wire::encode(message))
}

/// Those frames, and then silence for ever.
fn and_wait(frames: Vec<Bytes>) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::iter(frames).chain(stream::once(future::pending()))
}

#[tokio::test]
async fn a_greeting_that_does_not_fit_is_refused() {
    let member = Member::start(1);
    let cases = [
        (pb::Greeting { protocol: 2, ..good() }, "protocol version mismatch: 2, not 1"),
        (pb::Greeting { cluster_id: 0xc2, ..good() }, "cluster id mismatch: c2, not c1"),
        (pb::Greeting { receiver_id: 5, ..good() }, "member id mismatch: 5, not 1"),
    ];
    for (wrong, why) in cases {
        let frames = vec![greeting(wrong), frame(&busy(1))];
        let status = say(&member, and_wait(frames)).await.expect_err("it does not fit");
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, why));
    }
    for id in [0, 1] {
        let frames = vec![greeting(pb::Greeting { member_id: id, ..good() }), frame(&busy(1))];
        let status = say(&member, and_wait(frames)).await.expect_err("nobody says so");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    for first in [frame(&busy(1)), Bytes::new()] {
        let status = say(&member, and_wait(vec![first])).await.expect_err("no greeting");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    say(&member, stream::empty()).await.expect_err("no greeting");
    assert_eq!(*member.diary.events.borrow(), [], "nobody was let in");
}

#[tokio::test]
async fn a_receiver_that_is_not_known_need_not_be_named() {
    let member = Member::start(1);
    let frames = vec![greeting(pb::Greeting { receiver_id: 0, ..good() }), frame(&busy(1))];
    assert_eq!(say(&member, stream::iter(frames)).await.expect("all is well"), 1);
    let (from, run) = (MemberId(9), 1);
    let expected = [
        Event::Connected(from, run),
        Event::Message(from, busy(1)),
        Event::Disconnected(from, run),
    ];
    let events = member.diary.wait("the end", |events| events.len() >= 3).await;
    assert_eq!(events, expected);
}

#[tokio::test]
async fn a_malformed_frame_ends_its_stream() {
    let member = Member::start(1);
    let heads = pb::Heads { members: vec![1], runs: vec![], seqs: vec![] };
    let uneven = pb::Frame { body: Some(pb::frame::Body::Announce(heads)) };
    let piece = pb::Piece { data: "abc".into(), last: true, total_bytes: 9 };
    let piece = pb::Frame { body: Some(pb::frame::Body::Piece(piece)) };
    let cases = [
        (Bytes::from_static(b"\xff\xff\xff"), Code::Internal),
        (Bytes::new(), Code::InvalidArgument),
        (greeting(good()), Code::InvalidArgument),
        (encoded(&uneven), Code::InvalidArgument),
        (encoded(&piece), Code::InvalidArgument),
        (Bytes::from(vec![0; wire::FRAME_BYTES_MAX + 1]), Code::OutOfRange),
    ];
    let rounds = cases.len();
    for (i, (bad, code)) in (0..).zip(cases) {
        let frames = vec![greeting(good()), frame(&busy(i)), bad, frame(&busy(100))];
        let status = say(&member, and_wait(frames)).await.expect_err("a bad frame");
        assert_eq!(status.code(), code, "{i}: {status}");
    }
    let ended = |event: &&Event| matches!(event, Event::Disconnected(..));
    let is_over = |events: &[Event]| events.iter().filter(ended).count() == rounds;
    member.diary.wait("the ends", is_over).await;
    let expected: Vec<_> = (0..rounds as u64).map(busy).collect();
    assert_eq!(member.diary.messages(rounds).await, expected, "what was good, and no more");
}

#[tokio::test]
async fn the_newest_stream_of_a_member_is_the_one() {
    let member = Arc::new(Member::start(1));
    let first = {
        let (member, frames) = (Arc::clone(&member), and_wait(vec![greeting(good())]));
        tokio::spawn(async move { say(&member, frames).await })
    };
    member.diary.wait_for(Event::Connected(MemberId(9), 1)).await;
    let (sender, receiver) = mpsc::channel(2);
    let frames =
        stream::unfold(
            receiver,
            |mut receiver| async move { Some((receiver.recv().await?, receiver)) },
        );
    let second = {
        let member = Arc::clone(&member);
        tokio::spawn(async move { say(&member, frames).await })
    };
    sender.send(greeting(pb::Greeting { run: 2, ..good() })).await.expect("it is read");
    let status = first.await.expect("no panic").expect_err("another one took over");
    assert_eq!(status.code(), Code::Aborted);
    sender.send(frame(&busy(1))).await.expect("it is read");
    member.diary.messages(1).await;
    drop(sender);
    assert_eq!(second.await.expect("no panic").expect("all is well"), 1);
    let from = MemberId(9);
    let expected = [
        Event::Connected(from, 1),
        Event::Connected(from, 2),
        Event::Message(from, busy(1)),
        Event::Disconnected(from, 2),
    ];
    let events = member.diary.wait("the end", |events| events.len() >= 4).await;
    assert_eq!(events, expected);
}
