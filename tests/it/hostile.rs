//! Clients that send too much, too little or nonsense, and those that do not read. None of them may hurt others.

use std::net::SocketAddr;
use std::process::Command;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, Request, StatusCode};
use prost::Message;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use starling::http::ServerOptions;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::api::{Watching, put};
use crate::member::{Member, eventually, in_time};

const MAX_REQUEST_BYTES: usize = 1536 * 1024;
const MAX_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;

/// A message as gRPC frames it.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a short message");
    let mut bytes = BytesMut::from(&[0][..]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.freeze()
}

pub(crate) async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    client
}

/// Begins a call.
pub(crate) async fn begin(
    client: &SendRequest<Bytes>,
    method: Method,
    path: &str,
    content_type: &str,
) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://localhost{path}"))
        .header("content-type", content_type)
        .header("te", "trailers");
    let mut client = client.clone().ready().await.expect("the connection is open");
    client.send_request(request.body(()).expect("a valid request"), false).expect("it can be sent")
}

/// The answer to a call: its HTTP status, and its gRPC status from headers or trailers.
pub(crate) async fn answer(response: ResponseFuture) -> (StatusCode, Status) {
    let response = in_time("an answer", response).await.expect("an answer");
    let (head, mut body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return (head.status, status);
    }
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        body.flow_control().release_capacity(data.len()).expect("it was received");
    }
    let trailers = body.trailers().await.expect("no error");
    let status = trailers.and_then(|trailers| Status::from_header_map(&trailers));
    (head.status, status.unwrap_or_else(|| Status::unknown("no status")))
}

/// Sends a whole call with this body.
pub(crate) async fn call(
    address: SocketAddr,
    method: Method,
    path: &str,
    kind: &str,
    body: &[u8],
) -> (StatusCode, Status) {
    let client = connect(address).await;
    let (response, mut stream) = begin(&client, method, path, kind).await;
    stream.send_data(Bytes::copy_from_slice(body), true).expect("it can be sent");
    answer(response).await
}

pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(crate) const GRPC: &str = "application/grpc";

/// That somebody else is served as ever.
pub(crate) async fn serves(member: &Member) {
    let mut kv = KvClient::new(member.channel().await);
    in_time("a put", kv.put(put("alive", "yes"))).await.expect("a put");
}

#[tokio::test]
async fn calls_that_make_no_sense_are_refused_as_by_grpc_go() {
    let member = Member::start();
    let good = frame(&put("a", "b").encode_to_vec());
    let method = "unknown method Foo for service etcdserverpb.KV";
    let content_type = "invalid gRPC request content-type \"application/json\"";
    let post = "Received a HEADERS frame with :method \"PATCH\" which should be POST";
    let table = [
        (Method::POST, PUT, GRPC, 200, Code::Ok, ""),
        (Method::POST, "/etcdserverpb.KV/Foo", GRPC, 200, Code::Unimplemented, method),
        (Method::POST, "/foo.Bar/Foo", GRPC, 200, Code::Unimplemented, "unknown service foo.Bar"),
        (Method::POST, PUT, "application/json", 415, Code::InvalidArgument, content_type),
        (Method::PATCH, PUT, GRPC, 405, Code::Internal, post),
    ];
    for (method, path, kind, http_status, code, message) in table {
        let (got, status) = call(member.address, method.clone(), path, kind, &good).await;
        let got = (got.as_u16(), status.code(), status.message());
        assert_eq!(got, (http_status, code, message), "{method} {path} {kind}");
    }
}

#[tokio::test]
async fn bodies_that_make_no_sense_are_internal_errors() {
    let member = Member::start();
    let good = frame(&put("a", "b").encode_to_vec());
    let nonsense = frame(b"\xff\xff\xff\xff");
    let bad_flag = [&[7], &good[1..]].concat();
    let compressed = [&[1], &good[1..]].concat();
    // An overlong number, a group, a field of the wrong kind, one that is longer than the message, field 0.
    let malformed: [&[u8]; 5] = [
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b",
        b"\x08\x01",
        b"\x0a\x05k",
        b"\x00\x01",
    ];
    let malformed = malformed.map(frame);
    let bodies = [&nonsense[..], &[], &good[..3], &good[..7], &bad_flag, &compressed];
    for body in bodies.into_iter().chain(malformed.iter().map(|body| &body[..])) {
        let (_, status) = call(member.address, Method::POST, PUT, GRPC, body).await;
        assert_eq!(status.code(), Code::Internal, "{body:?}: {status:?}");
    }
    let (_, status) = call(member.address, Method::POST, WATCH, GRPC, &nonsense).await;
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    assert_eq!(member.handle().revision().0, 1);
}

#[tokio::test]
async fn large_requests_are_refused_with_etcds_texts() {
    // What the fields of the put take, and what a log entry adds in etcd.
    const PUT_BYTES: usize = "a".len() + 6;
    const ENTRY_BYTES: usize = 18;
    let member = Member::start();
    let mut kv = KvClient::new(member.channel().await);
    let largest = "v".repeat(MAX_REQUEST_BYTES - PUT_BYTES - ENTRY_BYTES);
    assert_eq!(put("a", &largest).encoded_len() + ENTRY_BYTES, MAX_REQUEST_BYTES);
    kv.put(put("a", &largest)).await.expect("it is not too large");

    let refused = kv.put(put("a", &(largest + "v"))).await.expect_err("too large");
    let expected = (Code::InvalidArgument, "etcdserver: request is too large");
    assert_eq!((refused.code(), refused.message()), expected);

    let long_key = "k".repeat(MAX_REQUEST_BYTES);
    let read = pb::RangeRequest { key: long_key.into(), ..Default::default() };
    assert_eq!(kv.range(read).await.expect("reads may be that large").into_inner().count, 0);

    let value = "v".repeat(MAX_MESSAGE_BYTES);
    let length = put("a", &value).encoded_len();
    let refused = kv.put(put("a", &value)).await.expect_err("too large");
    let text = format!("grpc: received message larger than max ({length} vs. {MAX_MESSAGE_BYTES})");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text.as_str()));

    // The length alone decides, before anything of it is kept; on streams, too.
    for path in [PUT, WATCH] {
        let (_, status) = call(member.address, Method::POST, path, GRPC, &[0, 0x7f, 0, 0, 0]).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status:?}");
    }
    kv.put(put("a", "1")).await.expect("the connection still works");
}

#[tokio::test]
async fn an_aborted_call_changes_nothing() {
    let member = Member::start();
    let client = connect(member.address).await;
    let body = frame(&put("half", "value").encode_to_vec());
    let (response, mut stream) = begin(&client, Method::POST, PUT, GRPC).await;
    stream.send_data(body.slice(..body.len() / 2), false).expect("it can be sent");
    stream.send_reset(Reason::CANCEL);
    response.await.expect_err("it was canceled");
    serves(&member).await;
    assert_eq!(member.handle().status().keys, 1);
}

#[tokio::test]
async fn watchers_go_with_their_connection() {
    let member = Member::start();
    let create = pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest::default());
    let create = pb::WatchRequest { request_union: Some(create) }.encode_to_vec();
    for reset in [false, true] {
        let socket = TcpStream::connect(member.address).await.expect("it listens");
        if reset {
            let at_once = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&socket, at_once).expect("a TCP socket");
        }
        let (client, connection) = h2::client::handshake(socket).await.expect("it speaks HTTP/2");
        let connection = tokio::spawn(connection);
        let (_response, mut stream) = begin(&client, Method::POST, WATCH, GRPC).await;
        stream.send_data(frame(&create), false).expect("it can be sent");
        eventually("the watcher", || member.handle().status().watchers == 1).await;
        connection.abort();
        eventually("its end", || member.handle().status().watch_streams == 0).await;
    }
    serves(&member).await;
}

/// The start of an HTTP/2 connection with no settings.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn noise_ends_its_own_connection_only() {
    let member = Member::start();
    let after_preface = |bytes: &[u8]| [PREFACE, bytes].concat();
    let noise = [
        b"\0".to_vec(),
        b"\xff\xfe\xfd nonsense \r\n\r\n".repeat(100),
        b"GET".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        // HTTP/0.9, TLS, SSH, a proxy's header, and the preface with something else behind it.
        b"GET /\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"SSH-2.0-OpenSSH_9.0\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"
            .to_vec(),
        [&b"GET / HTTP/1.1\r\n"[..], &b"X: y\r\n".repeat(100_000)].concat(),
        PREFACE[..10].to_vec(),
        after_preface(b""),
        // A frame cut short, one larger than any may be, headers that are no HPACK, data on a stream that is not there.
        after_preface(b"\0\0\xff\x01\x05\0\0\0\x01cut"),
        after_preface(b"\xff\xff\xff\0\0\0\0\0\x01"),
        after_preface(b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"),
        after_preface(b"\0\0\x01\0\0\0\0\0\x07x"),
        after_preface(&b"noise".repeat(10_000)),
    ];
    for bytes in noise {
        let mut stream = TcpStream::connect(member.address).await.expect("it listens");
        // The server may hang up at any point.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = in_time("the end of the connection", stream.read_to_end(&mut answer)).await;
        serves(&member).await;
    }
}

/// Runs an ignored test in a process of its own, where it may use up what a process has.
pub(crate) fn in_child(test: &str) {
    let program = std::env::current_exe().expect("this is a program");
    let output = Command::new(program).args([test, "--exact", "--ignored", "--nocapture"]).output();
    let output = output.expect("it starts");
    let text = [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

pub(crate) fn resident_bytes() -> usize {
    memory("VmRSS:")
}

/// The most that it has ever been.
pub(crate) fn peak_bytes() -> usize {
    memory("VmHWM:")
}

fn memory(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[test]
fn idle_connections_cost_little() {
    in_child("hostile::child_with_idle_connections");
}

#[tokio::test]
#[ignore = "run in a process of its own by idle_connections_cost_little"]
async fn child_with_idle_connections() {
    const CONNECTIONS: usize = 2000;
    const BYTES_EACH_MAX: usize = 48 * 1024;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up is allowed");
    let member = Member::start();
    serves(&member).await;
    let before = resident_bytes();
    let mut idle = Vec::new();
    for i in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(member.address).await.expect("it listens");
        if i % 2 == 0 {
            stream.write_all(PREFACE).await.expect("it is read");
            // The server's settings: it has taken up the connection.
            in_time("settings", stream.read_u8()).await.expect("an answer");
        }
        idle.push(stream);
    }
    serves(&member).await;
    let each = resident_bytes().saturating_sub(before) / CONNECTIONS;
    assert!(each < BYTES_EACH_MAX, "{each} bytes per idle connection");
}

#[test]
fn a_client_that_does_not_read_costs_little() {
    in_child("hostile::child_with_stalled_watches");
}

#[tokio::test]
#[ignore = "run in a process of its own by a_client_that_does_not_read_costs_little"]
async fn child_with_stalled_watches() {
    const STALLED: usize = 64;
    const BYTES_EACH_MAX: usize = 1024 * 1024;
    // Few large events, for which copies would show, and many small ones, for which queues would.
    const LARGE: usize = 200;
    const LARGE_BYTES: usize = 64 * 1024;
    const TXNS: usize = 128;
    const TXN_PUTS: usize = 128;
    let member = Member::start();
    let create =
        pb::WatchCreateRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request = pb::WatchRequest { request_union: Some(create.clone()) }.encode_to_vec();
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let client = connect(member.address).await;
        let (response, mut stream) = begin(&client, Method::POST, WATCH, GRPC).await;
        stream.send_data(frame(&request), false).expect("it can be sent");
        // It keeps the answer, but never reads its body, so its window closes.
        stalled.push((in_time("a stream", response).await.expect("a stream"), stream));
    }
    let mut reading = Watching::start(member.channel().await).await;
    reading.send(create).await;
    assert!(reading.next().await.created);
    eventually("all watchers", || member.handle().status().watchers == STALLED as u64 + 1).await;

    let mut kv = KvClient::new(member.channel().await);
    let large = put("k", &"v".repeat(LARGE_BYTES));
    let small = |i| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put(&format!("k{i}"), "small"))),
    };
    let small =
        pb::TxnRequest { success: (0..TXN_PUTS).map(small).collect(), ..Default::default() };
    let before = resident_bytes();
    let writes = async {
        for _ in 0..LARGE {
            kv.put(large.clone()).await.expect("a put");
        }
        for _ in 0..TXNS {
            kv.txn(small.clone()).await.expect("a transaction");
        }
    };
    let events = async {
        let mut events = 0;
        while events < LARGE + TXNS * TXN_PUTS {
            events += reading.next().await.events.len();
        }
    };
    tokio::join!(in_time("the writes", writes), in_time("the events", events));
    let stored = LARGE * LARGE_BYTES;
    let each = resident_bytes().saturating_sub(before + stored) / STALLED;
    assert!(each < BYTES_EACH_MAX, "{each} bytes per stalled watch");
    drop(stalled);
    eventually("their end", || member.handle().status().watch_streams == 1).await;
}

#[test]
fn a_lack_of_descriptors_passes() {
    in_child("hostile::child_without_descriptors");
}

#[tokio::test]
#[ignore = "run in a process of its own by a_lack_of_descriptors_passes"]
async fn child_without_descriptors() {
    const CLIENTS: usize = 32;
    const FREE: u64 = 4;
    let member = Member::start_with(
        &ServerOptions { worker_threads: 1, ..ServerOptions::default() },
        vec![],
    );
    let mut kv = KvClient::new(member.channel().await);
    kv.put(put("a", "1")).await.expect("a put");
    // Clients have their descriptors already, and so need none to connect.
    let sockets: Vec<_> =
        (0..CLIENTS).map(|_| tokio::net::TcpSocket::new_v4().expect("a socket")).collect();
    let open = std::fs::read_dir("/proc/self/fd").expect("Linux has /proc").count() as u64;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + FREE), ..limit })
        .expect("down is allowed");
    let mut clients = Vec::new();
    for socket in sockets {
        clients
            .push(in_time("the kernel", socket.connect(member.address)).await.expect("it listens"));
    }
    eventually("the lack", || std::fs::File::open("/dev/null").is_err()).await;
    kv.put(put("a", "2")).await.expect("who is connected is served");

    let mut last = clients.pop().expect("there are clients");
    clients.clear();
    let request = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    last.write_all(request).await.expect("it can be sent");
    let mut answer = String::new();
    in_time("an answer", last.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}
