//! The gateway by WebSocket: streams that go on, who may ask, what is bounded, how it ends.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use starling::http::{Allowed, ServerOptions};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::attacks::{http, secured};
use crate::gateway::call;
use crate::hostile::serves;
use crate::member::{Member, eventually, in_time};

const CREATE: &str = r#"{"create_request":{"key":"AA==","range_end":"AA=="}}"#;

struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn connect(member: &Member, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_connect(member, path, headers).await.expect("it becomes a websocket")
    }

    async fn try_connect(
        member: &Member,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let url = format!("ws://{}{path}", member.address);
        let mut request = url.into_client_request().expect("a URL");
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().expect("a name");
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        let stream = TcpStream::connect(member.address).await.expect("the member listens");
        let (socket, _) = in_time("a websocket", client_async(request, stream)).await?;
        Ok(Self(socket))
    }

    async fn send(&mut self, json: &str) {
        self.0.send(Message::text(json)).await.expect("it is sent");
    }

    /// The next message, or why there is none.
    async fn next(&mut self) -> Result<String, CloseCode> {
        loop {
            match in_time("a message", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Close(Some(frame)))) => return Err(frame.code),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn next_with(&mut self, part: &str) {
        let message = self.next().await.expect("a message");
        assert!(message.contains(part), "no {part} in {message}");
    }
}

async fn ask(member: &Member, path: &str, headers: &[(&str, &str)], json: &str) -> String {
    let mut client = Client::connect(member, path, headers).await;
    client.send(json).await;
    let answer = client.next().await.expect("an answer");
    assert_eq!(client.next().await, Err(CloseCode::Normal), "{path}");
    answer
}

#[tokio::test]
async fn a_watch_goes_both_ways() {
    let member = Member::start();
    let mut watch = Client::connect(&member, "/v3/watch", &[]).await;
    watch.send(CREATE).await;
    watch.next_with(r#""created":true"#).await;
    call(&member, "/v3/kv/put", "", r#"{"key":"YQ==","value":"MQ=="}"#, "200 OK").await;
    watch.next_with(r#""events":[{"kv":{"key":"YQ==""#).await;
    // In two messages, of the other kind.
    let create = r#"{"create_request":{"key":"YQ==","watch_id":7}}"#;
    let (head, tail) = create.split_at(20);
    for piece in [head, tail] {
        let piece = piece.as_bytes().to_vec();
        watch.0.send(Message::Binary(piece.into())).await.expect("it is sent");
    }
    watch.next_with(r#""watch_id":"7","created":true"#).await;
    watch.0.send(Message::Ping("x".into())).await.expect("it is sent");
    let pong = in_time("a pong", watch.0.next()).await.expect("an answer").expect("no error");
    assert_eq!(pong, Message::Pong("x".into()));
    assert_eq!(member.handle().status().watchers, 2);
    watch.0.close(None).await.expect("it is sent");
    eventually("the watchers to end", || member.handle().status().watch_streams == 0).await;
}

#[tokio::test]
async fn a_method_with_one_request_answers_the_first_object() {
    let member = Member::start();
    let put = r#"{"key":"YQ==","value":"MQ=="}"#;
    let answer = ask(&member, "/v3/kv/put", &[], put).await;
    assert!(answer.contains(r#""revision":"2""#), "{answer}");
    let answer = ask(&member, "/v3beta/kv/range", &[], r#"{"key":"YQ=="} "#).await;
    assert!(answer.contains(r#""value":"MQ==""#), "{answer}");
    let answer = ask(&member, "/v3/kv/put", &[], "nonsense").await;
    assert!(answer.contains(r#""code":3"#), "{answer}");
    let mut unknown = Client::connect(&member, "/v3/kv/nothing", &[]).await;
    unknown.next_with(r#""message":"Not Found""#).await;
    assert_eq!(unknown.next().await, Err(CloseCode::Normal));
    // Who goes away has not asked for anything. etcd would disable authentication here.
    let mut gone = Client::connect(&member, "/v3/maintenance/defragment", &[]).await;
    gone.0.close(None).await.expect("it is sent");
    while in_time("the end", gone.0.next()).await.is_some_and(|message| message.is_ok()) {}
    serves(&member).await;
    let metrics = http(&member, "GET /metrics", "", "").await;
    let labels =
        r#"{grpc_method="Defragment",grpc_service="etcdserverpb.Maintenance",grpc_type="unary"}"#;
    assert!(!metrics.contains(&format!("grpc_server_started_total{labels} 1")), "{metrics}");
}

#[tokio::test]
async fn the_token_is_where_a_browser_can_put_it() {
    let member = secured().await;
    let range = r#"{"key":"YQ=="}"#;
    let token = member.token("ann", "secret").await;
    let protocols = format!("Bearer, {token}");
    let cookie = format!("a=b; token={token}");
    for (name, value) in
        [("sec-websocket-protocol", &protocols), ("cookie", &cookie), ("authorization", &token)]
    {
        let mut client = Client::connect(&member, "/v3/kv/range", &[(name, value)]).await;
        client.send(range).await;
        client.next_with(r#""count":"1""#).await;
    }
    for headers in [vec![], vec![("sec-websocket-protocol", "Bearer, nonsense")]] {
        let mut client = Client::try_connect(&member, "/v3/kv/range", &headers).await;
        let client = client.as_mut().expect("it becomes a websocket");
        client.send(range).await;
        let refused = client.next().await.expect("an answer");
        assert!(refused.contains(r#""code":"#) && !refused.contains("kvs"), "{refused}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_not_ask() {
    let origins = Allowed::These(["https://a.example".to_owned()].into());
    let options = ServerOptions { worker_threads: 1, origins, ..ServerOptions::default() };
    let member = Member::start_with(&options, vec![]);
    for (origin, is_allowed) in [
        ("https://a.example", true),
        ("http://a.example", false),
        ("https://a.example.evil", false),
        ("null", false),
    ] {
        match Client::try_connect(&member, "/v3/watch", &[("origin", origin)]).await {
            Ok(_) => assert!(is_allowed, "{origin}"),
            Err(Error::Http(response)) => assert_eq!(
                (response.status(), is_allowed),
                (http::StatusCode::FORBIDDEN, false),
                "{origin}"
            ),
            Err(error) => panic!("{error}"),
        }
    }
    // What is no page may.
    Client::connect(&member, "/v3/watch", &[]).await;
}

#[tokio::test]
async fn messages_are_bounded() {
    const MAX_BYTES: usize = 2 * (1536 + 512) * 1024;
    let member = Member::start();
    for path in ["/v3/watch", "/v3/kv/put"] {
        let mut client = Client::connect(&member, path, &[]).await;
        // The server may hang up before all of it is sent.
        let _ = client.0.send(Message::text("x".repeat(MAX_BYTES + 1))).await;
        assert_eq!(client.next().await, Err(CloseCode::Size), "{path}");
    }
    let mut client = Client::connect(&member, "/v3/watch", &[]).await;
    let broken = Frame::message(&b"\xff\xff"[..], OpCode::Data(Data::Text), true);
    let broken = Message::Frame(broken);
    client.0.send(broken).await.expect("it is sent");
    assert_eq!(client.next().await, Err(CloseCode::Invalid));
    serves(&member).await;
    eventually("their end", || member.handle().status().watch_streams == 0).await;
}

#[tokio::test]
async fn clients_that_have_vanished_are_noticed_and_others_are_pinged() {
    const SOON: Duration = Duration::from_millis(50);
    let options = ServerOptions {
        keepalive_interval: Some(SOON),
        keepalive_timeout: Duration::from_millis(500),
        ..ServerOptions::default()
    };
    let member = Member::start_with(&options, vec![]);
    let mut there = Client::connect(&member, "/v3/watch", &[]).await;
    let mut vanished = Client::connect(&member, "/v3/watch", &[]).await;
    for client in [&mut there, &mut vanished] {
        client.send(CREATE).await;
        client.next_with(r#""created":true"#).await;
    }
    assert_eq!(member.handle().status().watch_streams, 2);
    // One of them reads, and so answers pings.
    let mut pings = 0;
    let read = async {
        while let Some(message) = there.0.next().await {
            pings += u32::from(message.expect("no error").is_ping());
        }
    };
    let gone = eventually("its end", || member.handle().status().watch_streams == 1);
    tokio::select! {
        () = read => panic!("who answers is there"),
        () = gone => {}
    }
    assert!(pings > 1, "{pings}");
}

#[tokio::test]
async fn a_stop_says_so_and_does_not_wait_for_those_who_have_not_asked() {
    let options = ServerOptions {
        worker_threads: 1,
        stop_grace: Duration::from_secs(3600),
        ..ServerOptions::default()
    };
    let mut member = Member::start_with(&options, vec![]);
    let mut watch = Client::connect(&member, "/v3/watch", &[]).await;
    watch.send(CREATE).await;
    watch.next_with(r#""created":true"#).await;
    let mut silent = Client::connect(&member, "/v3/kv/put", &[]).await;
    let ends = async {
        watch.next_with("etcdserver: server stopped").await;
        assert_eq!(watch.next().await, Err(CloseCode::Normal));
        assert_eq!(silent.next().await, Err(CloseCode::Away));
        // Farewells are answered by who reads on.
        tokio::join!(watch.0.next(), silent.0.next());
    };
    tokio::join!(in_time("the stop", member.stop_server()), ends);
}
