//! What goes around a request: its authority, its deadline, the settings of the connection.

use starling_compat_tests::Server;
use starling_compat_tests::server::Kind;
use starling_compat_tests::tools;

use crate::http2::{Connection, grpc_headers};

/// `RangeRequest { key: "a" }`.
const GET: &[u8] = &[0x0a, 1, b'a'];
const RANGE: &str = "/etcdserverpb.KV/Range";

/// What clients name the server by. What is not well-formed is a difference (`differences.rs`).
const AUTHORITIES: &[&str] =
    &["127.0.0.1:2379", "localhost", "etcd.example:443", "[::1]:2379", "user@host", "0"];

#[test]
fn requests_need_no_particular_authority() {
    on_both(&[], |server| {
        AUTHORITIES.iter().map(|authority| answer(server, &[(":authority", authority)])).collect()
    });
}

#[test]
fn headers_that_are_refused_are_those_of_etcd() {
    on_both(&[], |server| {
        [
            ("grpc-timeout", "1H"),
            ("grpc-timeout", "1000000000H"),
            ("grpc-timeout", "1"),
            ("grpc-encoding", "identity"),
            ("grpc-encoding", "nonsense"),
            ("client-api-version", "3.7"),
        ]
        .into_iter()
        .map(|header| answer(server, &[(":authority", "localhost"), header]))
        .collect()
    });
}

/// gRPC has a family of types of content; another one is none of its calls.
#[test]
fn calls_are_told_by_their_content_type_and_method() {
    on_both(&[], |server| {
        [
            ("POST", "application/grpc+proto"),
            ("POST", "application/grpc+json"),
            ("POST", "application/grpc;charset=utf-8"),
            ("POST", "application/grpc-web"),
            ("POST", "application/json"),
            ("POST", "text/plain"),
            ("GET", "application/grpc"),
            ("PUT", "application/grpc"),
        ]
        .into_iter()
        .map(|(method, content_type)| {
            let headers = [
                (":method", method),
                (":scheme", "http"),
                (":path", RANGE),
                (":authority", "localhost"),
                ("content-type", content_type),
                ("te", "trailers"),
            ];
            format!("{method} {content_type}: {}", Connection::open(server).call(&headers, GET))
        })
        .collect()
    });
}

#[test]
fn streams_of_a_connection_are_as_many_as_the_flag_says() {
    for flags in [&[][..], &["--max-concurrent-streams=7"]] {
        on_both(flags, |server| {
            // Not to say it is to have no limit.
            let streams = Connection::open(server).max_concurrent_streams().unwrap_or(u32::MAX);
            vec![streams.to_string()]
        });
    }
}

fn answer(server: &Server, headers: &[(&str, &str)]) -> String {
    let mut all = grpc_headers(RANGE);
    // Those that begin with a colon come first.
    all.splice(1..1, headers.iter().copied().filter(|(name, _)| name.starts_with(':')));
    all.extend(headers.iter().copied().filter(|(name, _)| !name.starts_with(':')));
    format!("{headers:?}: {}", Connection::open(server).call(&all, GET))
}

/// Asks both servers the same and compares the answers.
fn on_both(flags: &[&str], ask: impl Fn(&Server) -> Vec<String>) {
    if tools::etcd().is_none() {
        return;
    }
    let etcd = ask(&Server::start(Kind::Etcd, flags));
    let starling = ask(&Server::start(Kind::Starling, flags));
    assert_eq!(etcd, starling, "etcd is on the left");
}
