//! The HTTP/1.1 endpoints that probes and scrapers use, on the port that also speaks gRPC.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use starling_compat_tests::server::{Kind, until};
use starling_compat_tests::{Server, tools};

use crate::differences;

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Requests whose status, content type and body have to be etcd's.
pub(super) const REQUESTS: &[&str] = &[
    "GET /health",
    "GET /health?serializable=true",
    "GET /health?exclude=NOSPACE",
    "GET /livez",
    "GET /livez?verbose",
    "GET /livez/serializable_read",
    "GET /livez/nonsense",
    "GET /readyz",
    "GET /readyz?verbose",
    "GET /readyz?verbose&exclude=non_learner",
    "GET /readyz?exclude=nonsense",
    "GET /readyz/serializable_read",
    "GET /readyz/linearizable_read",
    "GET /readyz/data_corruption",
    "POST /health",
    "POST /version",
    "PUT /livez",
    "DELETE /readyz",
    "HEAD /health",
    "GET /nonsense",
    "POST /nonsense",
    "GET /",
    "HEAD /version",
    "GET /version/",
    "GET /health/",
    "GET /readyz/non_learner",
    "GET /readyz/nonsense",
    "GET /livez?exclude=serializable_read",
    "GET /livez/serializable_read?verbose",
    "POST /etcdserverpb.KV/Range",
    "POST /debug/vars",
];

/// Metrics that dashboards and alerts of etcd are made of.
const METRICS: &[&str] = &[
    "etcd_server_has_leader 1",
    "etcd_server_is_leader 1",
    "etcd_server_leader_changes_seen_total ",
    "etcd_server_proposals_committed_total ",
    "etcd_server_proposals_applied_total ",
    "etcd_server_proposals_pending ",
    "etcd_server_proposals_failed_total ",
    "etcd_server_quota_backend_bytes ",
    "etcd_server_version{",
    "etcd_mvcc_db_total_size_in_bytes ",
    "etcd_mvcc_db_total_size_in_use_in_bytes ",
    "etcd_debugging_mvcc_current_revision 2",
    "etcd_debugging_mvcc_keys_total 1",
    "etcd_debugging_mvcc_watcher_total ",
    "etcd_debugging_mvcc_compact_revision ",
    "etcd_mvcc_put_total ",
    "etcd_mvcc_range_total ",
    "etcd_mvcc_delete_total ",
    "etcd_mvcc_txn_total ",
    "etcd_debugging_lease_granted_total ",
    "etcd_debugging_lease_revoked_total ",
    "etcd_disk_wal_fsync_duration_seconds_bucket{",
    "etcd_disk_backend_commit_duration_seconds_bucket{",
    "grpc_server_handled_total{",
    "grpc_server_started_total{",
    "etcd_network_client_grpc_sent_bytes_total ",
    "etcd_network_client_grpc_received_bytes_total ",
    "process_resident_memory_bytes ",
    "process_open_fds ",
];

pub(super) struct Answer {
    status: String,
    content_type: String,
    body: String,
}

#[test]
fn endpoints_answer_as_those_of_etcd() {
    if tools::etcd().is_none() {
        return;
    }
    let (etcd, starling) = (Server::start(Kind::Etcd, &[]), Server::start(Kind::Starling, &[]));
    let mut report = String::new();
    for request in REQUESTS {
        let (there, here) = (ask(&etcd, request).text(), ask(&starling, request).text());
        if there != here {
            report.push_str(&format!("\n{request}\n  etcd:     {there}\n  starling: {here}\n"));
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// What probes make of a full store.
#[test]
fn health_under_an_alarm_is_that_of_etcd() {
    if tools::etcd().is_none() {
        return;
    }
    let flags = &[differences::QUOTA];
    let (etcd, starling) = (Server::start(Kind::Etcd, flags), Server::start(Kind::Starling, flags));
    let _ = (differences::full(&etcd), differences::full(&starling));
    for request in ["GET /health", "GET /health?exclude=NOSPACE", "GET /livez", "GET /readyz"] {
        assert_eq!(ask(&etcd, request).text(), ask(&starling, request).text(), "{request}");
    }
}

#[test]
fn etcd_has_a_version() {
    if tools::etcd().is_some() {
        let etcd = Server::etcd();
        // It serves before it has settled on one.
        let is_settled = || !ask(&etcd, "GET /version").body.contains("not_decided");
        until("etcd has settled on a version", Duration::from_secs(60), is_settled);
        has_a_version(&etcd);
    }
}

#[test]
fn starling_has_a_version() {
    has_a_version(&Server::starling());
}

/// Clients compare the numbers, so there must be nothing but numbers.
fn has_a_version(server: &Server) {
    let answer = ask(server, "GET /version");
    assert_eq!(
        (answer.status.as_str(), answer.content_type.as_str()),
        ("200 OK", "application/json")
    );
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("the body is JSON");
    for name in ["etcdserver", "etcdcluster", "storage"] {
        let version = body[name].as_str().unwrap_or_else(|| panic!("{name} is not in {body}"));
        let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        assert_eq!(numbers.len(), 3, "{name} is {version}");
        assert_eq!(numbers.first(), Some(&3), "{name} is {version}");
    }
}

#[test]
fn etcd_has_metrics() {
    if tools::etcd().is_some() {
        has_metrics(&Server::etcd());
    }
}

#[test]
fn starling_has_metrics() {
    has_metrics(&Server::starling());
}

fn has_metrics(server: &Server) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(one_put(server));
    let answer = ask(server, "GET /metrics");
    assert_eq!(answer.status, "200 OK");
    assert!(
        answer.content_type.starts_with("text/plain; version=0.0.4"),
        "{}",
        answer.content_type
    );
    let lines: Vec<&str> = answer.body.lines().collect();
    let missing: Vec<_> = METRICS
        .iter()
        .filter(|metric| !lines.iter().any(|line| line.starts_with(**metric)))
        .collect();
    assert!(missing.is_empty(), "missing {missing:#?} in\n{}", answer.body);
}

async fn one_put(server: &Server) {
    use starling_proto::etcdserverpb::PutRequest;
    use starling_proto::etcdserverpb::kv_client::KvClient;
    let mut client =
        KvClient::connect(server.url()).await.expect("a started server accepts connections");
    let put = PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
    client.put(put).await.expect("a put succeeds");
}

/// Status and body of a path.
pub(super) fn get(server: &Server, path: &str) -> (String, String) {
    let answer = ask(server, &format!("GET {path}"));
    (answer.status, answer.body)
}

/// Sends one request on a connection of its own and reads all of the answer.
pub(super) fn ask(server: &Server, request: &str) -> Answer {
    let mut socket =
        TcpStream::connect(server.address()).expect("a started server accepts connections");
    socket.set_read_timeout(Some(ANSWER_DEADLINE)).expect("a socket has a deadline");
    let request = format!(
        "{request} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        server.address()
    );
    socket.write_all(request.as_bytes()).expect("a request can be sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the server answers, and closes as it was asked");
    Answer::parse(&String::from_utf8_lossy(&answer))
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.to_owned())
        };
        let chunked = header("transfer-encoding").is_some_and(|encoding| encoding == "chunked");
        Self {
            status: head.lines().next().unwrap_or("").trim_start_matches("HTTP/1.1 ").to_owned(),
            content_type: header("content-type").unwrap_or_default(),
            body: if chunked { unchunked(body) } else { body.to_owned() },
        }
    }

    /// The checks of `?verbose` come in no order.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<&str> = self.body.split('\n').collect();
        lines.sort_unstable();
        format!("{} ({}) {lines:?}", self.status, self.content_type)
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let Ok(length @ 1..) = usize::from_str_radix(length, 16) else { break };
        let Some((chunk, rest)) = rest.split_at_checked(length) else { break };
        text.push_str(chunk);
        body = rest.trim_start_matches("\r\n");
    }
    text
}
