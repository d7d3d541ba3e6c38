//! WebSocket, for clients that cannot stream by HTTP: browsers, above all.
//!
//! Every path of the gateway takes it. Each message of the client is JSON as the body of a request has it, and each line of
//! the answer is a message; when the answer ends, so does the connection. A browser can set no `Authorization`, so
//! the token may be in `Sec-WebSocket-Protocol: Bearer, <token>`, or in a cookie.
//!
//! A method with one request takes the first object that comes. What a client may have under way is bounded: one message of
//! the size of a request, and one line of the answer; neither side is read from while the other does not take.
//!
//! Source: `grpc-websocket-proxy` as etcd sets it up in `server/embed/serve.go`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Utf8Bytes};
use tonic::Status;

use super::AnswerBody;
use crate::api::Context;
use crate::http::paths;

/// The version of the protocol that everybody speaks.
const VERSION: &str = "13";
const KEY_BYTES: usize = 16;

/// The protocol that carries a token.
const BEARER: &str = "Bearer";
const TOKEN_COOKIE: &str = "token";

/// What is read ahead of a client.
const READ_AHEAD_BYTES: usize = 4096;

/// Messages that the call has not taken yet.
const WAITING_MAX: usize = 1;

/// For a farewell, and for the last words of an answer when the server stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// After so long a silence a client is asked whether it is there, and how long it may take to answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pings {
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Duration,
}

/// What a connection needs to know once it is no HTTP any more.
pub(super) struct Terms {
    pub(super) context: Context,
    pub(super) max_message_bytes: usize,
    pub(super) pings: Pings,
    /// As long as this is here, the server knows that somebody is to be waited for.
    pub(super) _open: mpsc::Sender<Infallible>,
}

/// Whether a request is to become a WebSocket.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    has_word(headers, &CONNECTION, "upgrade") && has_word(headers, &UPGRADE, "websocket")
}

fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case(word))
}

/// The head of the answer to a request that may become one. The refusals are etcd's.
pub(super) fn answer<B>(request: &Request<B>) -> Response<AnswerBody> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_key = BASE64.decode(key).is_ok_and(|key| key.len() == KEY_BYTES);
    let is_version = has_word(headers, &SEC_WEBSOCKET_VERSION, VERSION);
    if !is_key || !is_version || request.version() != Version::HTTP_11 {
        return refusal(StatusCode::BAD_REQUEST, "Bad Request\n");
    }
    let mut response = Response::new(AnswerBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let said = response.headers_mut();
    said.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    said.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(proof) = HeaderValue::from_str(&derive_accept_key(key)) {
        said.insert(SEC_WEBSOCKET_ACCEPT, proof);
    }
    if protocols(headers).is_some_and(|protocols| protocols.starts_with(BEARER)) {
        said.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    response
}

/// A page that may not ask from where it is.
pub(super) fn foreign_origin() -> Response<AnswerBody> {
    refusal(StatusCode::FORBIDDEN, "Forbidden\n")
}

fn refusal(code: StatusCode, text: &str) -> Response<AnswerBody> {
    let mut response = paths::error(code, text);
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

fn protocols(headers: &HeaderMap) -> Option<&str> {
    headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()
}

/// Puts the token where the other clients of the gateway have it. That of a cookie goes first, as in etcd.
pub(super) fn move_token(headers: &mut HeaderMap) {
    let token = cookie(headers).or_else(|| {
        let (_, token) = protocols(headers)?.split_once("Bearer,")?;
        Some(token.trim())
    });
    let token = token.and_then(|token| HeaderValue::from_str(&format!("{BEARER} {token}")).ok());
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, token);
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == TOKEN_COOKIE).then(|| value.trim_matches('"'))
    })
}

/// The messages of a client, as the body of a request.
pub(super) struct Messages(mpsc::Receiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

/// Waits for the end of HTTP on a connection, and serves it from then on.
pub(super) async fn serve<F>(upgrade: OnUpgrade, terms: Terms, call: impl FnOnce(Messages) -> F)
where
    F: Future<Output = Response<AnswerBody>> + Send + 'static,
{
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "a connection did not become a websocket");
            return;
        }
    };
    let max = Some(terms.max_message_bytes);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_AHEAD_BYTES)
        .write_buffer_size(0)
        .max_message_size(max)
        .max_frame_size(max);
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (requests, received) = mpsc::channel(WAITING_MAX);
    let answer = Answering::Call(Box::pin(call(Messages(received))));
    converse(socket, requests, answer, &terms).await;
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// An answer that is being made.
enum Answering {
    Call(BoxFuture<'static, Response<AnswerBody>>),
    Body(AnswerBody),
}

impl Answering {
    /// The next piece, which is made of whole lines. Nothing is lost when this is dropped before it is ready.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self {
                Self::Call(call) => {
                    let response = call.as_mut().await;
                    *self = Self::Body(response.into_body());
                }
                Self::Body(body) => {
                    let frame = body.frame().await?;
                    if let Ok(data) = frame.ok()?.into_data() {
                        return Some(data);
                    }
                }
            }
        }
    }
}

/// Carries messages both ways until either side has had enough.
async fn converse(
    mut socket: Socket,
    requests: mpsc::Sender<Bytes>,
    mut answer: Answering,
    terms: &Terms,
) {
    let Pings { interval, timeout: pong_timeout } = terms.pings;
    let patience = interval.map_or(Duration::MAX, |interval| interval + pong_timeout);
    let mut silence = Silence::new(interval);
    let code = loop {
        let is_full = requests.capacity() == 0 && !requests.is_closed();
        tokio::select! {
            // Nothing is sent: this only waits for room.
            _ = requests.reserve(), if is_full => {}
            read = socket.next(), if !is_full => {
                silence.end();
                match read {
                    Some(Ok(Message::Text(text))) => drop(requests.try_send(text.into())),
                    Some(Ok(Message::Binary(bytes))) => drop(requests.try_send(bytes)),
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_))) => break CloseCode::Normal,
                    Some(Err(error)) => match code_of(&error) {
                        Some(code) => break code,
                        None => return,
                    },
                    None => return,
                }
            }
            piece = answer.next() => {
                let Some(piece) = piece else { break CloseCode::Normal };
                if !matches!(timeout(patience, send(&mut socket, &piece)).await, Ok(Ok(()))) {
                    return;
                }
                silence.end();
            }
            () = terms.context.closed(), if !silence.is_last => silence.end_soon(),
            () = sleep_until(silence.until), if silence.has_end() => {
                if silence.is_last {
                    break CloseCode::Away;
                }
                if silence.is_asked {
                    return;
                }
                silence.ask(pong_timeout);
                let ping = socket.send(Message::Ping(Bytes::new()));
                if !matches!(timeout(pong_timeout, ping).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    };
    // The call ends first: nobody listens any more.
    drop(answer);
    let _ = timeout(FAREWELL_TIMEOUT, farewell(socket, code)).await;
}

async fn send(socket: &mut Socket, piece: &Bytes) -> Result<(), SocketError> {
    for line in piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // JSON is text.
        let line = Utf8Bytes::try_from(piece.slice_ref(line)).unwrap_or_default();
        socket.send(Message::Text(line)).await?;
    }
    Ok(())
}

/// Says why it is over, and waits until the client has heard it.
async fn farewell(mut socket: Socket, code: CloseCode) {
    let frame = CloseFrame { code, reason: Utf8Bytes::default() };
    if socket.close(Some(frame)).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}

/// What a client is told that sends what it may not; `None` for one that has gone.
fn code_of(error: &SocketError) -> Option<CloseCode> {
    match error {
        SocketError::Capacity(_) => Some(CloseCode::Size),
        SocketError::Utf8(_) => Some(CloseCode::Invalid),
        SocketError::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

/// How long nothing was heard of a client.
struct Silence {
    interval: Option<Duration>,
    until: Instant,
    /// Whether it was asked whether it is there.
    is_asked: bool,
    /// Whether the server stops.
    is_last: bool,
}

impl Silence {
    fn new(interval: Option<Duration>) -> Self {
        let until = Instant::now() + interval.unwrap_or_default();
        Self { interval, until, is_asked: false, is_last: false }
    }

    fn has_end(&self) -> bool {
        self.is_last || self.interval.is_some()
    }

    fn end(&mut self) {
        if !self.is_last {
            *self = Self::new(self.interval);
        }
    }

    fn ask(&mut self, timeout: Duration) {
        self.is_asked = true;
        self.until = Instant::now() + timeout;
    }

    fn end_soon(&mut self) {
        self.is_last = true;
        self.until = Instant::now() + FAREWELL_TIMEOUT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    #[test]
    fn an_upgrade_is_asked_for_by_two_headers() {
        for (connection, upgrade, expected) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "h2c, WebSocket", true),
            ("keep-alive", "websocket", false),
            ("upgrade", "h2c", false),
            ("notupgrade", "websocket", false),
        ] {
            let headers = headers(&[(CONNECTION, connection), (UPGRADE, upgrade)]);
            assert_eq!(is_wanted(&headers), expected, "{connection} {upgrade}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn tokens_come_in_protocols_and_cookies() {
        for (lines, token) in [
            (vec![(SEC_WEBSOCKET_PROTOCOL, "Bearer, tok")], Some("Bearer tok")),
            // Some browsers leave the space out.
            (vec![(SEC_WEBSOCKET_PROTOCOL, "Bearer,tok")], Some("Bearer tok")),
            (vec![(SEC_WEBSOCKET_PROTOCOL, "other")], None),
            (vec![(SEC_WEBSOCKET_PROTOCOL, "other"), (AUTHORIZATION, "tok")], Some("tok")),
            (vec![(COOKIE, "a=b; token=tok; c=d")], Some("Bearer tok")),
            (
                vec![(SEC_WEBSOCKET_PROTOCOL, "Bearer, one"), (COOKIE, "token=two")],
                Some("Bearer two"),
            ),
            (vec![(COOKIE, "tokens=x")], None),
            (vec![], None),
        ] {
            let mut headers = headers(&lines);
            move_token(&mut headers);
            let found = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            assert_eq!(found, token, "{lines:?}");
        }
    }
}
