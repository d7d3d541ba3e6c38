//! The JSON gateway: etcd's gRPC methods for clients that only have HTTP/1 and JSON.
//!
//! ```text
//!   POST /v3/kv/put {"key":"Zm9v"} ─▶ schema: path ─▶ method, messages
//!                                     json: JSON ─▶ message ─▶ (gRPC frame) ─▶ api::Router
//!   200 {"header":{...}}           ◀─ json: JSON ◀─ message ◀─ (gRPC frame) ◀─┘
//! ```
//!
//! It is one translator for all methods: paths and messages come from the descriptors of etcd's protos. A request becomes
//! a gRPC call of the same router that serves gRPC clients, without a socket in between, so limits, errors, counters and
//! tokens are the same. Descriptors are unpacked when the first request comes; who does not use the gateway
//! does not pay for it.
//!
//! A method with one request takes the first JSON value of the body; one with a stream of them takes values one after the
//! other, as they come. A stream of answers is one `{"result":...}` a line. The same goes by [WebSocket](websocket).
//!
//! Source: grpc-gateway v2, `runtime`, as etcd sets it up in `server/embed/serve.go`.

mod answer;
mod json;
mod requests;
mod schema;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, TE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::access_control::Allowed;
use super::limit::{Limits, MessageLimit};
use super::{Answer, AnswerBody, ServerOptions};
use crate::api::Context;
use crate::api::router::{self, Router};
use requests::{FirstObject, Requests, first_request, max_json_bytes};
use schema::{Route, schema};
use websocket::{Pings, Terms};

/// Where the gateway's paths begin, and where they did before they were stable.
pub(super) const ROOT: &str = "/v3/";
pub(super) const FORMER_ROOT: &str = "/v3beta/";

const APPLICATION_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// How long the caller will wait.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static(router::GRPC_TIMEOUT);

/// Headers with this before their name are metadata of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// Translates between JSON and gRPC.
pub(super) struct Gateway {
    context: Context,
    router: Arc<Router>,
    limits: Limits,
    pings: Pings,
    /// The pages that may ask by WebSocket.
    origins: Allowed,
    /// Held by whoever is no HTTP connection any more, and has to be waited for.
    open: mpsc::Sender<Infallible>,
}

impl Gateway {
    pub(super) fn new(
        context: &Context,
        options: &ServerOptions,
        router: Arc<Router>,
        limits: Limits,
        open: mpsc::Sender<Infallible>,
    ) -> Self {
        let pings =
            Pings { interval: options.keepalive_interval, timeout: options.keepalive_timeout };
        let (context, origins) = (context.clone(), options.origins.clone());
        Self { context, router, limits, pings, origins, open }
    }

    /// Whether a path is the gateway's, known or not.
    pub(super) fn has(path: &str) -> bool {
        below_root(path).is_some()
    }

    /// Answers a request for a path that it [has](Self::has).
    pub(super) fn call<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if websocket::is_wanted(request.headers()) {
            return Answer::Ready(Some(self.upgrade(request)));
        }
        let Some(route) = route(request.uri().path()) else {
            return Answer::Ready(Some(unknown_path()));
        };
        if request.method() != Method::POST {
            let not_allowed = Status::unimplemented("Method Not Allowed");
            return Answer::Ready(Some(answer::refusal(&not_allowed)));
        }
        let (head, body) = request.into_parts();
        let call = serve(Arc::clone(&self.router), route, self.limits, head, body);
        Answer::Path(Box::pin(call))
    }

    /// Answers by WebSocket. As in etcd that a path is not there is only said then.
    fn upgrade<B>(&self, mut request: Request<B>) -> Response<AnswerBody> {
        if !self.origins.allows_request(request.headers()) {
            return websocket::foreign_origin();
        }
        let answer = websocket::answer(&request);
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return answer;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let (mut head, _) = request.into_parts();
        websocket::move_token(&mut head.headers);
        let terms = Terms {
            context: self.context.clone(),
            max_message_bytes: max_json_bytes(self.limits.max_bytes),
            pings: self.pings,
            _open: self.open.clone(),
        };
        let (router, limits) = (Arc::clone(&self.router), self.limits);
        let call = async move |messages| match route(head.uri.path()) {
            None => unknown_path(),
            Some(route) if route.takes_stream => serve(router, route, limits, head, messages).await,
            Some(route) => serve(router, route, limits, head, FirstObject::new(messages)).await,
        };
        tokio::spawn(websocket::serve(upgrade, terms, call));
        answer
    }
}

fn route(path: &str) -> Option<&'static Route> {
    schema().route(&format!("{ROOT}{}", below_root(path)?))
}

fn unknown_path() -> Response<AnswerBody> {
    answer::refusal(&Status::not_found("Not Found"))
}

/// Reads JSON as one message of a method, and as a stream of them in pieces of a size; for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn look(
    path: &str,
    json: &[u8],
    size: usize,
) -> Option<(Result<Bytes, Status>, Vec<Bytes>)> {
    use std::time::Duration;

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};
    let Route { input, .. } = schema().route(path)?;
    let limits = Limits { max_bytes: json.len(), max_time: Duration::from_secs(1) };
    let whole = Full::new(Bytes::copy_from_slice(json));
    let first = requests::read_first_request(whole, input, limits.max_bytes);
    let first = first.now_or_never().expect("all of it is there");
    let pieces = json.chunks(size).map(Bytes::copy_from_slice);
    let pieces = pieces.map(|piece| Ok::<_, Status>(http_body::Frame::data(piece)));
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let mut requests = Requests::new(body, input.clone(), limits);
    let mut frames = Vec::new();
    while let Some(frame) = requests.frame().now_or_never().expect("all of it is there") {
        frames.extend(frame.ok().and_then(|frame| frame.into_data().ok()));
    }
    Some((first, frames))
}

fn below_root(path: &str) -> Option<&str> {
    path.strip_prefix(ROOT).or_else(|| path.strip_prefix(FORMER_ROOT))
}

async fn serve<B>(
    router: Arc<Router>,
    route: &'static Route,
    limits: Limits,
    head: Parts,
    body: B,
) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let deadline = match deadline(&head.headers) {
        Ok(deadline) => deadline,
        Err(status) => return answer::refusal(&status),
    };
    let requests = if route.takes_stream {
        AnswerBody::new(Requests::new(body, route.input.clone(), limits))
    } else {
        match first_request(body, &route.input, limits).await {
            Ok(frame) => AnswerBody::new(http_body_util::Full::new(frame)),
            Err(status) => return answer::refusal(&status),
        }
    };
    let requests = MessageLimit::new(requests, limits);
    let call = router.call(grpc_request(route, &head.headers, requests), None);
    answer::of_call(call, route, deadline).await
}

/// The call as a gRPC client would make it.
fn grpc_request<B>(route: &Route, headers: &HeaderMap, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = route.uri.clone();
    *request.headers_mut() = metadata(headers);
    request
}

/// The token, the place in a trace, and whatever else is marked as metadata.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(CONTENT_TYPE, APPLICATION_GRPC);
    metadata.insert(TE, TRAILERS);
    for name in [AUTHORIZATION, TRACEPARENT, TRACESTATE] {
        if let Some(value) = headers.get(&name) {
            metadata.insert(name, value.clone());
        }
    }
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix(METADATA_PREFIX)
            && let Ok(name) = HeaderName::try_from(name)
            && !metadata.contains_key(&name)
        {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

/// When the caller stops waiting.
fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let Some(timeout) = router::timeout(text.as_bytes()) else {
        return Err(Status::invalid_argument(format!("invalid grpc-timeout: {text}")));
    };
    Ok(Instant::now().checked_add(timeout))
}

/// grpc-gateway's status for each code.
fn http_status(code: tonic::Code) -> StatusCode {
    use tonic::Code;
    /// nginx's word for a client that has gone.
    const CLIENT_CLOSED_REQUEST: u16 = 499;
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default(),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_under_both_roots() {
        assert_eq!(below_root("/v3/kv/put"), Some("kv/put"));
        assert_eq!(below_root("/v3beta/kv/put"), Some("kv/put"));
        assert_eq!(below_root("/v3/"), Some(""));
        for other in ["/v3", "/v3alpha/kv/put", "/metrics", "/", ""] {
            assert_eq!(below_root(other), None, "{other}");
        }
    }

    #[test]
    fn tokens_and_marked_headers_are_metadata() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "token"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-content-type", "text/plain"),
            ("traceparent", "00-1-2-01"),
            ("user-agent", "curl"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let metadata = metadata(&headers);
        assert_eq!(metadata.get("authorization").map(HeaderValue::as_bytes), Some(&b"token"[..]));
        assert_eq!(metadata.get("hasleader").map(HeaderValue::as_bytes), Some(&b"true"[..]));
        assert_eq!(metadata.get("content-type"), Some(&APPLICATION_GRPC));
        assert!(metadata.contains_key("traceparent"));
        assert_eq!(metadata.len(), 5);
    }
}
