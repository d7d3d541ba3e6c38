//! The client port: HTTP/1.1 and HTTP/2 on one socket, gRPC and plain paths on either side of it.
//!
//! ```text
//!                   +-> thread 0: connections -> App -+-> api::router  (HTTP/2, application/grpc)
//!  sockets, dealt --+                                 +-> gateway      (HTTP/1, /v3/...: JSON for the router)
//!  round-robin      +-> thread 1: ...                 +-> paths        (/health, /metrics, ...)
//! ```
//!
//! What is no gRPC goes by [`access_control`] first.
//!
//! Each thread has a runtime of its own and never hands a connection to another: that costs a third less than
//! one runtime on several threads. What a connection may hold in memory is bounded by the constants of
//! [`server`], and a client that is slow or silent only delays itself.

mod access_control;
pub mod forwarded;
pub(crate) mod gateway;
pub(crate) mod limit;
pub(crate) mod paths;
pub mod server;
mod socket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::sync::mpsc;
use tonic::{Code, Status};

pub use access_control::Allowed;
pub use server::{Server, ServerOptions, Serves};
pub use socket::Listener;

use crate::api::router::{self, Call, Router};
use crate::api::{CertificateUser, Context};
use gateway::Gateway;
use limit::{Limits, MessageLimit};
use paths::Paths;

/// In the extensions of a request that has come by TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByTls;

/// Whoever comes with a certificate by plain HTTP may think that it says who they are.
const CERTIFICATE_IGNORED: &str = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";

/// The body of every answer.
pub(crate) type AnswerBody = tonic::body::Body;

/// Answers requests, whatever they are for. Each thread that serves has its own.
pub(crate) struct App {
    router: Arc<Router>,
    gateway: Option<Gateway>,
    paths: Paths,
    serves: Serves,
    hosts: Allowed,
    origins: Allowed,
    limits: Limits,
}

impl App {
    /// `open` is held by connections that are no HTTP any more.
    pub(crate) fn new(
        context: &Context,
        options: &ServerOptions,
        open: mpsc::Sender<Infallible>,
    ) -> Self {
        let limits =
            Limits { max_bytes: context.max_message_bytes(), max_time: options.request_timeout };
        let router = Arc::new(Router::new(context));
        let has_gateway = options.gateway && options.serves != Serves::Monitoring;
        let gateway =
            has_gateway.then(|| Gateway::new(context, options, Arc::clone(&router), limits, open));
        Self {
            router,
            gateway,
            paths: Paths::new(context.clone(), options.serves),
            serves: options.serves,
            hosts: options.hosts.clone(),
            origins: options.origins.clone(),
            limits,
        }
    }

    /// gRPC needs HTTP/2; over HTTP/1 its paths are as unknown as any other.
    pub(crate) fn call<B>(&self, request: Request<B>, remote: Option<SocketAddr>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let http2 = request.version() == Version::HTTP_2;
        if self.serves == Serves::Everything && http2 && router::is_grpc(&request) {
            return if request.method() == Method::POST {
                let limits = self.limits;
                let request = request.map(|body| MessageLimit::new(body, limits));
                Answer::Rpc(self.router.call(request, remote))
            } else {
                Answer::Ready(Some(wrong_method(request.method())))
            };
        }
        let (head, body) = request.into_parts();
        if let Some(refusal) = access_control::refuse_hosts(&head) {
            return Answer::Ready(Some(refusal));
        }
        if self.serves == Serves::Monitoring {
            return self.find(head, body);
        }
        let by_tls = head.extensions.get::<ByTls>().is_some();
        let refusal = if by_tls {
            self.refuse_certificate(&head)
        } else {
            access_control::refuse_host(&self.hosts, &head)
        };
        if let Some(refusal) = refusal {
            return Answer::Ready(Some(refusal));
        }
        if head.method == Method::OPTIONS && head.uri.path() == "*" {
            return Answer::Ready(Some(Response::new(AnswerBody::empty())));
        }
        let origin = self.origins.origin(&head.headers);
        let answer = if head.method == Method::OPTIONS {
            Answer::Ready(Some(Response::new(AnswerBody::empty())))
        } else {
            self.find(head, body)
        };
        match origin {
            Some(origin) => Answer::OpenTo(origin, Box::new(answer)),
            None => answer,
        }
    }

    fn refuse_certificate(&self, head: &Parts) -> Option<Response<AnswerBody>> {
        let has_user = head.extensions.get::<CertificateUser>().is_some();
        let is_ignored = self.gateway.is_some() && Gateway::has(head.uri.path());
        (has_user && is_ignored && self.paths.knows_users())
            .then(|| paths::error(StatusCode::BAD_REQUEST, CERTIFICATE_IGNORED))
    }

    /// What is at a path.
    fn find<B>(&self, head: Parts, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if head.uri.path() == "*" {
            let mut refusal = Response::new(AnswerBody::empty());
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            return Answer::Ready(Some(refusal));
        }
        // As in etcd, which tells gRPC by its content type where there is TLS.
        let only_grpc = head.version == Version::HTTP_2 && head.extensions.get::<ByTls>().is_none();
        let gateway = self.gateway.as_ref().filter(|_| !only_grpc);
        let roots = match gateway {
            Some(_) => (gateway::ROOT, gateway::FORMER_ROOT),
            None => ("/", gateway::FORMER_ROOT),
        };
        if let Some(elsewhere) = access_control::redirect(&head.method, &head.uri, roots) {
            return Answer::Ready(Some(elsewhere));
        }
        if let Some(gateway) = gateway.filter(|_| Gateway::has(head.uri.path())) {
            return gateway.call(Request::from_parts(head, body));
        }
        match self.paths.find(&head) {
            Some(answer) => answer,
            None if only_grpc && head.method == Method::POST => {
                Answer::Ready(Some(wrong_content_type(&head)))
            }
            None => Answer::Ready(Some(paths::not_found())),
        }
    }
}

/// A response that is being made.
pub(crate) enum Answer {
    Rpc(Call),
    Path(BoxFuture<'static, Response<AnswerBody>>),
    Ready(Option<Response<AnswerBody>>),
    /// One that the pages of an origin may read.
    OpenTo(HeaderValue, Box<Self>),
}

impl Future for Answer {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Rpc(call) => Pin::new(call).poll(cx),
            Self::Path(answer) => answer.as_mut().poll(cx).map(Ok),
            Self::Ready(answer) => Poll::Ready(Ok(answer.take().unwrap_or_default())),
            Self::OpenTo(origin, answer) => {
                Pin::new(&mut **answer).poll(cx).map_ok(|mut answer| {
                    // What is no HTTP any more is open to whom it was opened for.
                    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                        access_control::open_to(origin, answer.headers_mut());
                    }
                    answer
                })
            }
        }
    }
}

/// The next two as grpc-go puts them.
fn wrong_method(method: &Method) -> Response<AnswerBody> {
    let text = format!("Received a HEADERS frame with :method \"{method}\" which should be POST");
    early(StatusCode::METHOD_NOT_ALLOWED, Status::internal(text))
}

fn wrong_content_type(head: &Parts) -> Response<AnswerBody> {
    let content_type = head.headers.get(http::header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = format!("invalid gRPC request content-type {content_type:?}");
    early(StatusCode::UNSUPPORTED_MEDIA_TYPE, Status::new(Code::InvalidArgument, text))
}

fn early(code: StatusCode, status: Status) -> Response<AnswerBody> {
    let mut response = status.into_http();
    *response.status_mut() = code;
    response
}
