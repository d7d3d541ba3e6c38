//! The gateway by WebSocket, with one client against both servers: the same messages have to come.
//!
//! Methods with one request are not compared: etcd waits for the end of the body, which a WebSocket has not, and never answers.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::gateway::masked;

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What is sent, and how many messages are awaited. The end counts as one.
struct Step {
    path: &'static str,
    messages: &'static [&'static str],
    awaited: usize,
}

const fn step(path: &'static str, messages: &'static [&'static str], awaited: usize) -> Step {
    Step { path, messages, awaited }
}

const STEPS: &[Step] = &[
    step(
        "/v3/watch",
        &[
            r#"{"create_request":{"key":"YQ=="}}"#,
            r#"{"createRequest":{"key":"Yg==","watchId":5}}"#,
            r#"{"cancel_request":{"watch_id":5}}"#,
        ],
        3,
    ),
    step(
        "/v3/watch",
        &[
            r#"{"create_request":{"key":"YQ==","watch_id":5}}"#,
            r#"{"create_request":{"key":"YQ==","watch_id":5}}"#,
        ],
        2,
    ),
    step("/v3beta/watch", &[r#"{"create_request":{"key":"YQ==","start_revision":99}}"#], 1),
    step("/v3/watch?method=GET", &[r#"{"create_request":{"key":"YQ=="}}"#], 1),
    step("/v3/watch", &[r#"{"create_request":"#, r#"{"key":"YQ=="}}"#], 1),
    step("/v3/lease/keepalive", &[r#"{"ID":7}"#, r#"{"ID":"8"} {"ID":9}"#], 3),
    step("/v3/lease/keepalive", &[r#"{"ID":7}"#, "nonsense"], 2),
    step("/v3/kv/range", &["nonsense"], 2),
    step("/v3/nothing", &[], 2),
    step("/v3/", &[], 2),
];

#[tokio::test]
async fn streams_are_those_of_etcd() {
    if tools::etcd().is_none() {
        return;
    }
    let (etcd, starling) = (Server::start(Kind::Etcd, &[]), Server::start(Kind::Starling, &[]));
    let mut report = String::new();
    for step in STEPS {
        let (there, here) = (talk(&etcd, step).await, talk(&starling, step).await);
        if there != here {
            let Step { path, messages, .. } = step;
            report.push_str(&format!(
                "\n{path} {messages:?}\n  etcd:     {there:#?}\n  starling: {here:#?}\n"
            ));
        }
    }
    assert!(report.is_empty(), "{report}");
}

async fn talk(server: &Server, step: &Step) -> Vec<String> {
    let url = format!("ws://{}{}", server.address(), step.path);
    let request = url.into_client_request().expect("a URL");
    let stream = TcpStream::connect(server.address()).await.expect("a started server listens");
    let (mut socket, _) =
        tokio_tungstenite::client_async(request, stream).await.expect("it becomes a websocket");
    for message in step.messages {
        socket.send(Message::text(*message)).await.expect("it is sent");
    }
    let mut answers = Vec::new();
    while answers.len() < step.awaited {
        let next = tokio::time::timeout(ANSWER_DEADLINE, socket.next()).await;
        match next {
            Ok(Some(Ok(Message::Text(text)))) => answers.push(masked(text.as_str())),
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => answers.push("the end".to_owned()),
            Ok(Some(Ok(other))) => answers.push(format!("{other:?}")),
            Err(_) => answers.push("nothing".to_owned()),
        }
    }
    answers
}
