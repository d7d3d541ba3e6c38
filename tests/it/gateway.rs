//! The JSON gateway: streams that go on, clients that go, servers that stop. What it answers is compared with etcd elsewhere.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::attacks::http;
use crate::member::{Member, eventually, in_time};

const CREATE: &str = r#"{"create_request":{"key":"AA==","range_end":"AA=="}}"#;

/// A request whose body may go on.
struct Exchange {
    stream: BufReader<TcpStream>,
}

impl Exchange {
    async fn start(member: &Member, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(member.address).await.expect("the member listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the head is sent");
        Self { stream: BufReader::new(stream) }
    }

    async fn send(&mut self, json: &str) {
        let chunk = format!("{:x}\r\n{json}\r\n", json.len());
        self.stream.write_all(chunk.as_bytes()).await.expect("a chunk is sent");
    }

    async fn end(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.expect("the end is sent");
    }

    /// The next line that contains something.
    async fn line_with(&mut self, part: &str) -> String {
        let mut line = String::new();
        let find = async {
            while !line.contains(part) {
                line.clear();
                let read = self.stream.read_line(&mut line).await.expect("an answer");
                assert!(read > 0, "the answer ended before {part}");
            }
        };
        in_time(part, find).await;
        line
    }
}

/// A whole request, and a part of its answer, such as the status.
pub(crate) async fn call(member: &Member, path: &str, headers: &str, json: &str, part: &str) {
    let mut call = Exchange::start(member, path, headers).await;
    call.send(json).await;
    call.end().await;
    call.line_with(part).await;
}

#[tokio::test]
async fn a_watch_hears_requests_while_it_answers() {
    let member = Member::start();
    let mut watch = Exchange::start(&member, "/v3/watch", "").await;
    watch.send(&CREATE[..20]).await;
    watch.send(&CREATE[20..]).await;
    watch.line_with("\"created\":true").await;
    call(&member, "/v3/kv/put", "", r#"{"key":"YQ==","value":"MQ=="}"#, "200 OK").await;
    watch.line_with(r#""events":[{"kv":{"key":"YQ==""#).await;
    watch.send(r#"{"create_request":{"key":"YQ==","watch_id":7}}"#).await;
    watch.line_with(r#""watch_id":"7","created":true"#).await;
    watch.end().await;
    assert_eq!(member.handle().status().watchers, 2);
    drop(watch);
    eventually("the watchers to end", || member.handle().status().watch_streams == 0).await;
}

#[tokio::test]
async fn a_stop_ends_streams_with_an_error() {
    let mut member = Member::start();
    let mut watch = Exchange::start(&member, "/v3/watch", "").await;
    watch.send(CREATE).await;
    watch.line_with("\"created\":true").await;
    let end = async {
        let line = watch.line_with("\"error\"").await;
        let text = "etcdserver: server stopped";
        let error = serde_json::json!({"code": 14, "message": text, "grpc_code": 14, "http_code": 503, "http_status": "Service Unavailable"});
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line, serde_json::json!({ "error": error }));
    };
    tokio::join!(in_time("the stop", member.stop_server()), end);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_given_up() {
    let member = Member::start();
    call(&member, "/v3/lease/grant", "", r#"{"ID":7,"TTL":600}"#, "200 OK").await;
    call(&member, "/v3/lease/grant", "", r#"{"ID":8,"TTL":600}"#, "200 OK").await;
    call(&member, "/v3/lock/lock", "", r#"{"name":"bA==","lease":7}"#, "200 OK").await;
    let hurry = "Grpc-Timeout: 50m\r\n";
    let waiting = r#"{"name":"bA==","lease":8}"#;
    call(&member, "/v3/lock/lock", hurry, waiting, "504 Gateway Timeout").await;
    eventually("the key to go", || member.handle().status().keys == 1).await;
}

/// Clients of etcd before 3.6 read a field that is not there any more.
#[tokio::test]
async fn errors_have_the_fields_of_all_releases() {
    let member = Member::start();
    let text = "etcdserver: key is not provided";
    let answer = http(&member, "POST /v3/kv/put", "", "{}").await;
    let expected = format!("{{\"code\":3,\"error\":\"{text}\",\"message\":\"{text}\"}}");
    assert!(answer.ends_with(&expected), "{answer}");
}
