//! Clients that send or hold far more than they need. What each of them costs the member is bounded, and goes with it.
//!
//! Memory is measured, so each flood runs in a process of its own.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use prost::Message;
use starling::http::ServerOptions;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::Code;

use crate::api::put;
use crate::hostile::{
    GRPC, PREFACE, PUT, WATCH, answer, begin, call, connect, frame, in_child, peak_bytes,
    resident_bytes, serves,
};
use crate::member::{Member, eventually, in_time};

const MIB: usize = 1024 * 1024;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call, as HPACK has them without any table of its own.
fn call_headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [
        // POST, http, the path, the authority, the content type, te.
        &[0x83, 0x86, 0x04][..],
        &text(path),
        &[0x01],
        &text("localhost"),
        &[0x0f, 0x10],
        &text(GRPC),
        &[0x00],
        &text("te"),
        &text("trailers"),
    ]
    .concat()
}

/// So many frames as one after the other.
fn frames(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(each).collect()
}

/// What floods a connection, by name.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let headers = call_headers(PUT);
    let stream = |i: u32| 2 * i + 1;
    let open = |i| h2_frame(HEADERS, END_HEADERS, stream(i), &headers);
    let reset = |i| h2_frame(RST_STREAM, 0, stream(i), &8_u32.to_be_bytes());
    let large = [&[0x00, 0x01, b'x', 0x7f, 0xfb, 0x7e][..], &[b'y'; 16 * 1024 - 6]].concat();
    vec![
        ("rapid reset", frames(50_000, |i| [open(i), reset(i)].concat())),
        ("headers without an end", {
            let begin = h2_frame(HEADERS, 0, 1, &headers);
            [begin, frames(3000, |_| h2_frame(CONTINUATION, 0, 1, &large))].concat()
        }),
        ("empty continuations", {
            let begin = h2_frame(HEADERS, 0, 1, &headers);
            [begin, frames(100_000, |_| h2_frame(CONTINUATION, 0, 1, &[]))].concat()
        }),
        ("settings", frames(600_000, |_| h2_frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]))),
        ("pings", frames(600_000, |_| h2_frame(PING, 0, 0, b"floodedd"))),
        ("empty data", { [open(0), frames(100_000, |_| h2_frame(0, 0, 1, &[]))].concat() }),
        ("window updates", frames(100_000, |_| h2_frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("unknown frames", frames(10_000, |_| h2_frame(0xfa, 0, 0, &[0; 1000]))),
    ]
}

#[test]
fn floods_of_frames_end_their_own_connection_at_most() {
    in_child("floods::child_under_floods_of_frames");
}

#[tokio::test]
#[ignore = "run in a process of its own by floods_of_frames_end_their_own_connection_at_most"]
async fn child_under_floods_of_frames() {
    const GROWTH_MAX: usize = 16 * MIB;
    /// Who does not read is not heard for long: then the server waits, and so does the flood.
    const UNHEARD: Duration = Duration::from_millis(300);
    let member = Member::start();
    serves(&member).await;
    let floods = floods();
    let before = resident_bytes();
    for (name, flood) in &floods {
        for reads in [true, false] {
            let mut connection = Raw::connect(&member).await;
            if reads {
                connection.flood(flood).await;
            } else {
                let _ = tokio::time::timeout(UNHEARD, connection.to.write_all(flood)).await;
            }
            serves(&member).await;
            let grown = resident_bytes().saturating_sub(before);
            assert!(grown < GROWTH_MAX, "{name}: {grown} bytes more");
        }
    }
}

/// A connection that sends frames as they are.
struct Raw {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

impl Raw {
    async fn connect(member: &Member) -> Self {
        let stream = TcpStream::connect(member.address).await.expect("it listens");
        let (from, mut to) = stream.into_split();
        to.write_all(PREFACE).await.expect("it listens");
        Self { from, to }
    }

    /// Sends frames, and reads until the server has taken all of them, or hung up; says which.
    async fn flood(&mut self, frames: &[u8]) -> bool {
        let Self { from, to } = self;
        let last = h2_frame(PING, 0, 0, LAST);
        let write = async {
            // The server may hang up at any point.
            let _ = to.write_all(frames).await;
            let _ = to.write_all(&last).await;
        };
        let read = async {
            let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let Ok(read @ 1..) = from.read(&mut buffer).await else { return false };
                heard.extend_from_slice(&buffer[..read]);
                if heard.windows(LAST.len()).any(|window| window == LAST) {
                    return true;
                }
                heard.drain(..heard.len().saturating_sub(LAST.len()));
            }
        };
        in_time("the flood", async { tokio::join!(write, read).1 }).await
    }
}

/// What the last ping says, and its answer.
const LAST: &[u8; 8] = b"the last";

#[tokio::test]
async fn headers_are_bounded() {
    let member = Member::start();
    let client = connect(member.address).await;
    let request = http::Request::post(format!("http://localhost{PUT}"))
        .header("content-type", GRPC)
        .header("x-large", "y".repeat(128 * 1024))
        .body(())
        .expect("a valid request");
    let mut sender = client.clone().ready().await.expect("the connection is open");
    let (response, _) = sender.send_request(request, true).expect("it can be sent");
    match in_time("an answer", response).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    serves(&member).await;
}

#[tokio::test]
async fn nothing_is_unpacked() {
    let member = Member::start();
    // 16 MiB of zeros by gzip would begin like this; nobody looks.
    let bomb = [&[1, 0, 0, 64, 0][..], &[0x1f, 0x8b, 8, 0], &[0; 16 * 1024 - 4]].concat();
    for (path, encoding) in [(PUT, "gzip"), (WATCH, "gzip"), (PUT, "nonsense"), (WATCH, "zstd")] {
        let client = connect(member.address).await;
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", GRPC)
            .header("te", "trailers")
            .header("grpc-encoding", encoding)
            .body(())
            .expect("a valid request");
        let mut sender = client.clone().ready().await.expect("the connection is open");
        let (response, mut stream) = sender.send_request(request, false).expect("it can be sent");
        stream.send_data(Bytes::copy_from_slice(&bomb), true).expect("it can be sent");
        let (_, status) = answer(response).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path} {encoding}: {status:?}");
    }
    serves(&member).await;
}

const TXN: &str = "/etcdserverpb.KV/Txn";

/// A transaction in a transaction in a transaction ...
fn nested(levels: usize) -> Vec<u8> {
    let mut message = Vec::new();
    for _ in 0..levels {
        let txn = pb::TxnRequest::decode(&*message).expect("a transaction");
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestTxn(txn)) };
        message = pb::TxnRequest { success: vec![op], ..Default::default() }.encode_to_vec();
    }
    message
}

#[tokio::test]
async fn deep_transactions_are_refused() {
    let member = Member::start();
    let (_, shallow) = call(member.address, Method::POST, TXN, GRPC, &frame(&nested(40))).await;
    assert_eq!(shallow.code(), Code::Ok, "{shallow:?}");
    // By hand, since nothing here encodes what cannot be decoded.
    let mut deep = Vec::new();
    while deep.len() < 100_000 {
        for field in [0x22, 0x12] {
            let mut outer = vec![field];
            prost::encoding::encode_varint(deep.len() as u64, &mut outer);
            outer.extend_from_slice(&deep);
            deep = outer;
        }
    }
    let (_, status) = call(member.address, Method::POST, TXN, GRPC, &frame(&deep)).await;
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    serves(&member).await;
}

#[test]
fn transactions_of_nothing_cost_little() {
    in_child("floods::child_with_transactions_of_nothing");
}

#[tokio::test]
#[ignore = "run in a process of its own by transactions_of_nothing_cost_little"]
async fn child_with_transactions_of_nothing() {
    const CLIENTS: usize = 4;
    const GROWTH_MAX: usize = 32 * MIB;
    const PEAK_MAX: usize = 96 * MIB;
    let member = Member::start();
    serves(&member).await;
    let before = resident_bytes();
    // A million empty compares, or operations.
    for field in [0x0a, 0x12] {
        let body = frame(&[field, 0].repeat(MIB - 16));
        let calls = (0..CLIENTS).map(|_| call(member.address, Method::POST, TXN, GRPC, &body));
        for (_, status) in futures_util::future::join_all(calls).await {
            let expected =
                (Code::InvalidArgument, "etcdserver: too many operations in txn request");
            assert_eq!((status.code(), status.message()), expected);
        }
        let grown = resident_bytes().saturating_sub(before);
        let peak = peak_bytes();
        println!("field {field}: {grown} bytes more, {peak} at most");
        assert!(peak < PEAK_MAX, "{peak} bytes at most");
        assert!(grown < GROWTH_MAX, "{grown} bytes more after field {field}");
    }
    serves(&member).await;
}

#[test]
fn watchers_cost_little_and_go() {
    in_child("floods::child_with_many_watchers");
}

#[tokio::test]
#[ignore = "run in a process of its own by watchers_cost_little_and_go"]
async fn child_with_many_watchers() {
    const WATCHERS: u64 = 50_000;
    const BYTES_EACH_MAX: usize = 2048;
    let member = Member::start();
    serves(&member).await;
    let before = resident_bytes();
    let client = connect(member.address).await;
    let (response, mut stream) = begin(&client, Method::POST, WATCH, GRPC).await;
    let create = |i: u64| {
        let key = format!("key {i}").into();
        let create = pb::WatchCreateRequest { key, ..Default::default() };
        let request_union = Some(RequestUnion::CreateRequest(create));
        frame(&pb::WatchRequest { request_union }.encode_to_vec())
    };
    let creates: Vec<u8> = (0..WATCHERS).flat_map(create).collect();
    stream.send_data(creates.into(), false).expect("it can be sent");
    let response = in_time("a stream", response).await.expect("a stream");
    let mut body = response.into_body();
    let read = async {
        while let Some(data) = body.data().await {
            let data = data.expect("no error");
            body.flow_control().release_capacity(data.len()).expect("it was received");
        }
    };
    let all = eventually("all watchers", || member.handle().status().watchers == WATCHERS);
    tokio::select! {
        () = read => panic!("the stream ended"),
        () = all => {}
    }
    let each = resident_bytes().saturating_sub(before) / 50_000;
    assert!(each < BYTES_EACH_MAX, "{each} bytes per watcher");
    drop((stream, body, client));
    eventually("their end", || member.handle().status().watchers == 0).await;
    serves(&member).await;
}

#[test]
fn requests_whose_answers_nobody_reads_are_not_heard_for_long() {
    in_child("floods::child_with_unread_answers");
}

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Bidirectional streams that send and send, and never read.
#[tokio::test]
#[ignore = "run in a process of its own by requests_whose_answers_nobody_reads_are_not_heard_for_long"]
async fn child_with_unread_answers() {
    const GROWTH_MAX: usize = 32 * MIB;
    const FLOOD_BYTES: usize = 8 * MIB;
    /// Once nothing has been taken for so long, the server has stopped to hear.
    const UNHEARD: Duration = Duration::from_millis(500);
    let member = Member::start();
    serves(&member).await;
    let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    let progress = pb::WatchRequest { request_union: Some(progress) }.encode_to_vec();
    let create = RequestUnion::CreateRequest(pb::WatchCreateRequest::default());
    let create = pb::WatchRequest { request_union: Some(create) }.encode_to_vec();
    let keep_alive = pb::LeaseKeepAliveRequest { id: 7 }.encode_to_vec();
    let before = resident_bytes();
    for (path, message) in [(KEEP_ALIVE, keep_alive), (WATCH, progress), (WATCH, create)] {
        let message = frame(&message);
        let client = connect(member.address).await;
        let (_response, mut stream) = begin(&client, Method::POST, path, GRPC).await;
        let flood = message.repeat(FLOOD_BYTES / message.len());
        let mut sent = 0;
        while sent < flood.len() {
            stream.reserve_capacity(16 * 1024);
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let Ok(room) = tokio::time::timeout(UNHEARD, room).await else { break };
            let room = room.expect("the stream is open").expect("no error");
            let end = flood.len().min(sent + room);
            let piece = Bytes::copy_from_slice(&flood[sent..end]);
            stream.send_data(piece, false).expect("there was room");
            sent = end;
        }
        println!("{path}: {sent} bytes were heard");
        serves(&member).await;
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{path}: {grown} bytes more after {sent}");
    }
    eventually("their end", || member.handle().status().watch_streams == 0).await;
}

#[test]
fn answers_that_nobody_reads_go_with_their_clients() {
    in_child("floods::child_with_unread_ranges");
}

const RANGE: &str = "/etcdserverpb.KV/Range";

#[tokio::test]
#[ignore = "run in a process of its own by answers_that_nobody_reads_go_with_their_clients"]
async fn child_with_unread_ranges() {
    const KEYS: usize = 64;
    const VALUE_BYTES: usize = 64 * 1024;
    const CLIENTS: usize = 24;
    const ANSWER_BYTES: usize = KEYS * VALUE_BYTES;
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    let value = "v".repeat(VALUE_BYTES);
    for i in 0..KEYS {
        kv.put(put(&format!("k{i}"), &value)).await.expect("a put");
    }
    let range = pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let before = resident_bytes();
    let mut stalled = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(member.address).await;
        let (response, mut stream) = begin(&client, Method::POST, RANGE, GRPC).await;
        stream.send_data(frame(&range.encode_to_vec()), true).expect("it can be sent");
        // It keeps the answer, but never reads its body, so its window closes.
        stalled.push((in_time("an answer", response).await.expect("an answer"), client));
    }
    serves(&member).await;
    let each = resident_bytes().saturating_sub(before) / CLIENTS;
    println!("{each} bytes per unread answer of {ANSWER_BYTES}");
    // An answer is encoded once, and is held until it is read.
    assert!(each < ANSWER_BYTES * 3 / 2, "{each} bytes per unread answer of {ANSWER_BYTES}");
    drop(stalled);
    let left = || resident_bytes().saturating_sub(before);
    eventually("the memory back", || left() < ANSWER_BYTES * CLIENTS / 4).await;
}

#[test]
fn streams_of_a_connection_can_be_bounded() {
    in_child("floods::child_with_many_streams");
}

#[tokio::test]
#[ignore = "run in a process of its own by streams_of_a_connection_can_be_bounded"]
async fn child_with_many_streams() {
    const STREAMS: u32 = 50_000;
    const BYTES_EACH_MAX: usize = 8 * 1024;
    let headers = call_headers(PUT);
    let open = frames(STREAMS, |i| h2_frame(HEADERS, END_HEADERS, 2 * i + 1, &headers));
    let all = usize::try_from(STREAMS).expect("a small number") * BYTES_EACH_MAX;
    for (max, growth_max) in [(100, 8 * MIB), (u32::MAX, all)] {
        let options = ServerOptions { max_concurrent_streams: max, ..ServerOptions::default() };
        let member = Member::start_with(&options, vec![]);
        serves(&member).await;
        let before = resident_bytes();
        let mut connection = Raw::connect(&member).await;
        let taken = connection.flood(&open).await;
        serves(&member).await;
        let grown = resident_bytes().saturating_sub(before);
        println!("{grown} bytes for {STREAMS} streams where {max} are allowed, {taken}");
        assert!(grown < growth_max, "{grown} bytes for {STREAMS} streams, {max} allowed");
    }
}

#[tokio::test]
async fn clients_that_have_vanished_are_noticed() {
    const SOON: Duration = Duration::from_millis(50);
    let options = ServerOptions {
        keepalive_interval: Some(SOON),
        keepalive_timeout: SOON,
        ..ServerOptions::default()
    };
    let member = Member::start_with(&options, vec![]);
    let create = RequestUnion::CreateRequest(pb::WatchCreateRequest::default());
    let create = frame(&pb::WatchRequest { request_union: Some(create) }.encode_to_vec());
    let mut stream = TcpStream::connect(member.address).await.expect("it listens");
    let open = h2_frame(HEADERS, END_HEADERS, 1, &call_headers(WATCH));
    let bytes = [PREFACE, &open, &h2_frame(0, 0, 1, &create)].concat();
    stream.write_all(&bytes).await.expect("it listens");
    eventually("the watcher", || member.handle().status().watchers == 1).await;
    // It stays connected, and answers no ping.
    eventually("its end", || member.handle().status().watch_streams == 0).await;
    serves(&member).await;
}

#[test]
fn leases_cost_little_and_go() {
    in_child("floods::child_with_many_leases");
}

#[tokio::test]
#[ignore = "run in a process of its own by leases_cost_little_and_go"]
async fn child_with_many_leases() {
    const LEASES: usize = 5000;
    const BYTES_EACH_MAX: usize = 4096;
    let member = Member::start();
    serves(&member).await;
    let before = resident_bytes();
    let channel = member.channel().await;
    let grant = |id: usize| {
        let mut leases = LeaseClient::new(channel.clone());
        let id = i64::try_from(id + 1).expect("small");
        async move { leases.lease_grant(pb::LeaseGrantRequest { ttl: 2, id }).await }
    };
    let ids: Vec<usize> = (0..LEASES).collect();
    for ids in ids.chunks(500) {
        let grants = ids.iter().map(|id| grant(*id));
        for granted in in_time("grants", futures_util::future::join_all(grants)).await {
            granted.expect("a lease");
        }
    }
    let each = resident_bytes().saturating_sub(before) / LEASES;
    assert!(each < BYTES_EACH_MAX, "{each} bytes per lease");
    serves(&member).await;
    let mut leases = LeaseClient::new(channel.clone());
    let count = async || {
        let reply = leases.clone().lease_leases(pb::LeaseLeasesRequest {}).await;
        reply.expect("a list").into_inner().leases.len()
    };
    // All of them end, and others are served meanwhile.
    let end = async {
        while count().await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("the end of all leases", end).await;
    let _ = leases.lease_leases(pb::LeaseLeasesRequest {}).await.expect("a list");
    serves(&member).await;
}

#[tokio::test]
async fn keys_are_any_bytes() {
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    for key in [&b"\0"[..], b"\0\0", b"\xff\xff", b"\xc3\x28", b"a\0b", b"\r\n", b"/../x"] {
        let key = Bytes::copy_from_slice(key);
        let request = pb::PutRequest { key: key.clone(), value: key.clone(), ..Default::default() };
        kv.put(request).await.expect("a put");
        let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let reply = kv.range(get).await.expect("a range").into_inner();
        let found = reply.kvs.first().map(|pair| (&pair.key, &pair.value));
        assert_eq!(found, Some((&key, &key)));
    }
}

const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";

#[tokio::test]
async fn snapshots_are_few() {
    const PLACES: usize = 3;
    const KEYS: usize = 64;
    let member = Member::start_tuned(|node| node.request.timeout = Duration::from_secs(2));
    let mut kv = KvClient::new(member.channel().await);
    // More than fits into what is on its way.
    let value = "v".repeat(64 * 1024);
    for i in 0..KEYS {
        kv.put(put(&format!("k{i}"), &value)).await.expect("a put");
    }
    let ask = async || {
        let client = connect(member.address).await;
        let (response, mut stream) = begin(&client, Method::POST, SNAPSHOT, GRPC).await;
        stream.send_data(frame(&[]), true).expect("it can be sent");
        (response, client)
    };
    let mut held = Vec::new();
    for _ in 0..PLACES {
        let (response, client) = ask().await;
        // It keeps the answer, but never reads its body.
        held.push((in_time("a snapshot", response).await.expect("an answer"), client));
    }
    let (response, _client) = ask().await;
    let (_, status) = answer(response).await;
    let expected = (Code::ResourceExhausted, "etcdserver: too many requests");
    assert_eq!((status.code(), status.message()), expected);
    // Who goes makes room for who waits.
    let (response, _client) = ask().await;
    drop(held.pop());
    let response = in_time("a snapshot", response).await.expect("an answer");
    assert!(!response.headers().contains_key("grpc-status"), "{response:?}");
    serves(&member).await;
}
