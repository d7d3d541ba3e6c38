//! What goes before every path of plain HTTP: hosts, origins, paths in strange forms, and the upgrade to WebSocket. Each request
//! goes to etcd and to starling as it stands here, and status, headers and body have to be the same.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Headers whose values are compared. Lengths are not: errors of the gateway are longer here, by a field.
const HEADERS: &[&str] = &[
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "allow",
    "content-type",
    "location",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "upgrade",
    "x-content-type-options",
];

const PATHS: &[&str] = &[
    "/v3",
    "/v3?x=1&y=%20",
    "/v3/",
    "//health",
    "///",
    "/health/../version",
    "/../health",
    "/./health?a=b",
    "/health//",
    "/health/.",
    "/health/..",
    "/..health",
    "/%2e%2e/health",
    "/a%2f..%2fhealth",
    "/HEALTH",
    "/health;a",
    "/livez//x",
    "/v3/kv//range",
    "/v3/kv/../kv/range",
    "/v3/kv/range/../../../health",
    "//v3/kv/range",
    "/v3/kv/range%00",
    "/v3%2fkv%2frange",
    "/v3beta",
    "/v3beta//kv",
    "*",
    "http://evil.example/health",
    "http://evil.example/v3/kv/../kv/range",
    "/debug",
    "/debug/",
    "/debug/vars/",
    "/debug/requests",
    "/debug/events",
    "/debug/pprof",
    "/debug/pprof/",
    "/debug/pprof/heap",
    "/metrics/",
    "/version/x",
    "/members",
    "/raft",
    "/raft/probing",
    "/leases",
    "/v2/keys",
    "/config/local/log",
    "/index.html",
];

const ORIGINS: &[&str] = &[
    "Origin: http://x.example:80",
    "Origin: https://y.example:443",
    "Origin: http://z.example:80",
    "Origin: HTTP://x.example:80",
    "Origin: null",
    "Origin: ",
    "Origin: https://y.example:443\r\nOrigin: http://z.example:80",
    "X: y",
];

const HOSTS: &[&str] = &[
    "localhost",
    "localhost:99",
    "a.example",
    "a.example:2379",
    "LOCALHOST",
    "127.0.0.1",
    "127.0.0.1:2379",
    "[::1]:2379",
    "[::1]",
    "evil.example",
    "a.example:1:2",
    "a.example.evil",
    "",
];

const KEY: &str = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket";

#[test]
fn paths_in_strange_forms_lead_where_those_of_etcd_do() {
    let requests = PATHS.iter().flat_map(|path| {
        ["GET", "HEAD", "POST", "DELETE"].map(|method| request(method, path, "Host: localhost"))
    });
    compare(&[], requests.collect());
}

#[test]
fn pages_may_read_what_those_of_etcd_may() {
    let requests: Vec<String> = ORIGINS
        .iter()
        .flat_map(|origin| {
            [
                ("GET", "/health"),
                ("GET", "/nothing"),
                ("GET", "/v3"),
                ("POST", "/v3/kv/range"),
                ("GET", "/v3/kv/range"),
                ("OPTIONS", "/v3/kv/range"),
                ("OPTIONS", "/nothing"),
                ("OPTIONS", "/health//x"),
                ("OPTIONS", "*"),
                ("PUT", "/version"),
            ]
            .map(|(method, path)| request(method, path, &format!("Host: localhost\r\n{origin}")))
        })
        .collect();
    compare(&[], requests.clone());
    compare(&["--cors=http://x.example:80,https://y.example:443"], requests);
}

#[test]
fn hosts_are_refused_as_by_etcd() {
    let requests = HOSTS.iter().flat_map(|host| {
        [
            ("GET", "/health"),
            ("POST", "/v3/kv/range"),
            ("OPTIONS", "/v3/kv/range"),
            ("GET", "/v3"),
            ("GET", "http://localhost/health"),
            ("GET", "http://evil.example:2379/health"),
        ]
        .map(|(method, path)| request(method, path, &format!("Host: {host}")))
    });
    compare(&["--host-whitelist=localhost,a.example,::1"], requests.collect());
}

#[test]
fn websockets_begin_as_with_etcd() {
    let lines = [
        UPGRADE.to_owned(),
        format!("{UPGRADE}\r\n{VERSION}"),
        format!("{UPGRADE}\r\n{KEY}"),
        format!("{UPGRADE}\r\n{VERSION}\r\nSec-WebSocket-Key: x"),
        format!("{UPGRADE}\r\n{KEY}\r\nSec-WebSocket-Version: 8"),
        format!("{UPGRADE}\r\n{KEY}\r\n{VERSION}"),
        format!("{UPGRADE}\r\n{KEY}\r\n{VERSION}\r\nSec-WebSocket-Protocol: Bearer, x"),
        format!("{UPGRADE}\r\n{KEY}\r\n{VERSION}\r\nSec-WebSocket-Protocol: other"),
        format!("{UPGRADE}\r\n{KEY}\r\n{VERSION}\r\nSec-WebSocket-Extensions: permessage-deflate"),
        format!("{UPGRADE}\r\n{KEY}\r\n{VERSION}\r\nOrigin: http://x.example:80"),
        format!("Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n{KEY}\r\n{VERSION}"),
    ];
    let mut requests = Vec::new();
    for line in &lines {
        for (method, path) in [("GET", "/v3/watch"), ("POST", "/v3/watch"), ("GET", "/v3/nothing")]
        {
            requests.push(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n"));
        }
    }
    // Where there is none to be had.
    let line = format!("Connection: close, Upgrade\r\nUpgrade: websocket\r\n{KEY}\r\n{VERSION}");
    for path in ["/health", "/v3", "/metrics/"] {
        requests.push(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n"));
    }
    compare(&[], requests);
}

/// What Go says of itself is left out here.
#[test]
fn variables_have_the_names_of_etcd() {
    if tools::etcd().is_none() {
        return;
    }
    let names = |kind| {
        let server = Server::start(kind, &[]);
        let answer = exchange(&server, &request("GET", "/debug/vars", "Host: localhost"));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let json = answer.split_once('{').map(|(_, json)| format!("{{{json}"));
        // Chunks of Go's may end anywhere, but not in a name.
        let json = json.expect("an object");
        let known = ["cmdline", "file_descriptor_limit", "raft.status", "raftState", "applied"];
        let known = known.iter().filter(|name| json.contains(&format!("\"{name}\"")));
        known.map(|name| (*name).to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(Kind::Starling), names(Kind::Etcd));
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
}

fn compare(flags: &[&str], requests: Vec<String>) {
    if tools::etcd().is_none() {
        return;
    }
    let (etcd, starling) = (Server::start(Kind::Etcd, flags), Server::start(Kind::Starling, flags));
    let mut report = String::new();
    for request in requests {
        let (there, here) = (exchange(&etcd, &request), exchange(&starling, &request));
        let (there, here) = (shown(&there), shown(&here));
        if there != here {
            report.push_str(&format!("\n{request}  etcd:     {there}\n  starling: {here}\n"));
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// Sends a request on a connection of its own and reads the answer: all of it, or the head where the connection goes on.
fn exchange(server: &Server, request: &str) -> String {
    let mut socket =
        TcpStream::connect(server.address()).expect("a started server accepts connections");
    socket.set_read_timeout(Some(ANSWER_DEADLINE)).expect("a socket has a deadline");
    socket.write_all(request.as_bytes()).expect("a request can be sent");
    let goes_on = !request.contains("close");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end
            && goes_on
        {
            answer.truncate(end + 4);
            break;
        }
        match socket.read(&mut buffer) {
            Ok(read @ 1..) => answer.extend_from_slice(&buffer[..read]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn shown(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim()));
    let mut headers: Vec<String> = headers
        .filter(|(name, _)| HEADERS.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort_unstable();
    format!("{status} {headers:?} {:?}", without_extras(body))
}

/// Errors of the gateway have the fields of older releases, too; only there is the JSON written in another order.
fn without_extras(body: &str) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(body) else {
        return body.to_owned();
    };
    fields.remove("error");
    serde_json::Value::Object(fields).to_string()
}
