//! The client port: HTTP/1.1 and HTTP/2 on one socket, gRPC and plain paths on either side of it.
//!
//! ```text
//!                   +-> thread 0: connections -> App -+-> api::router  (HTTP/2, application/grpc)
//!  sockets, dealt --+                                 +-> gateway      (HTTP/1, /v3/...: JSON for the router)
//!  round-robin      +-> thread 1: ...                 +-> faces        (/map, /keys/...: what earlier systems had)
//!                                                     +-> paths        (/health, /metrics, ...)
//! ```
//!
//! Each thread has a runtime of its own and never hands a connection to another: that costs a third less than
//! one runtime on several threads. What a connection may hold in memory is bounded by the constants of
//! [`server`], and a client that is slow or silent only delays itself.

pub(crate) mod faces;
pub mod forwarded;
pub(crate) mod gateway;
pub(crate) mod limit;
pub(crate) mod paths;
pub mod server;
mod socket;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tonic::{Code, Status};

pub use faces::FaceOptions;
pub use server::{Server, ServerOptions};
pub use socket::Listener;

use crate::api::router::{self, Call, Router};
use crate::api::{CertificateUser, Context};
use faces::Faces;
use gateway::Gateway;
use limit::MessageLimit;
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
    /// None where only plain paths are served.
    router: Option<Arc<Router>>,
    /// None where it is switched off, too.
    gateway: Option<Gateway>,
    /// None where there are none.
    faces: Option<Faces>,
    paths: Paths,
    max_message_bytes: usize,
}

impl App {
    pub(crate) fn new(context: &Context, options: &ServerOptions) -> Self {
        let max_message_bytes = context.max_message_bytes();
        let router = (!options.plain_only).then(|| Arc::new(Router::new(context)));
        let gateway = router.as_ref().filter(|_| options.gateway);
        Self {
            gateway: gateway.map(|router| Gateway::new(Arc::clone(router), max_message_bytes)),
            router,
            faces: Faces::new(context, options.faces),
            paths: Paths::new(context.clone()),
            max_message_bytes,
        }
    }

    /// gRPC needs HTTP/2; over HTTP/1 its paths are as unknown as any other.
    pub(crate) fn call<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let http2 = request.version() == Version::HTTP_2;
        // As in etcd, which tells gRPC by its content type where there is TLS.
        let only_grpc = http2 && request.extensions().get::<ByTls>().is_none();
        if let Some(router) = &self.router
            && http2
            && router::is_grpc(&request)
        {
            return if request.method() == Method::POST {
                let limit = self.max_message_bytes;
                Answer::Rpc(router.call(request.map(|body| MessageLimit::new(body, limit))))
            } else {
                Answer::Ready(Some(wrong_method(request.method())))
            };
        }
        if let Some(gateway) = &self.gateway
            && !only_grpc
            && Gateway::has(request.uri().path())
        {
            if self.paths.knows_users() && request.extensions().get::<CertificateUser>().is_some() {
                let refusal = paths::error(StatusCode::BAD_REQUEST, CERTIFICATE_IGNORED);
                return Answer::Ready(Some(refusal));
            }
            return gateway.call(request);
        }
        if let Some(faces) = &self.faces
            && let Some(route) = faces.find(request.uri().path())
        {
            return faces.call(route, request);
        }
        let (head, _) = request.into_parts();
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
}

impl Future for Answer {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Rpc(call) => Pin::new(call).poll(cx),
            Self::Path(answer) => answer.as_mut().poll(cx).map(Ok),
            Self::Ready(answer) => Poll::Ready(Ok(answer.take().unwrap_or_default())),
        }
    }
}

/// The next two as grpc-go puts them.
fn wrong_method(method: &Method) -> Response<AnswerBody> {
    let text = format!("Received a HEADERS frame with :method \"{method}\" which should be POST");
    early(StatusCode::METHOD_NOT_ALLOWED, Status::internal(text))
}

fn wrong_content_type(head: &http::request::Parts) -> Response<AnswerBody> {
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
