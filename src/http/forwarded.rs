//! The port for members, as far as it answers requests of clients: those that another member has sent on.
//!
//! They are etcd's own services, behind a handle that has no way to other members. Who does not say that it is a member is
//! not served: clients have a port of their own.

use std::sync::Arc;

use axum::extract::Request;
use http::{HeaderMap, HeaderValue};
use tokio::sync::watch;
use tonic::Status;

use super::limit::{Limits, MessageLimit};
use super::{AnswerBody, server};
use crate::api::router::{self, Router};
use crate::api::{Context, SlowLimits};
use crate::metrics::Metrics;
use crate::node::{
    FORWARDED, FORWARDED_ANSWERED, FORWARDED_BY, FORWARDED_REFUSED, FORWARDED_TO, Handle,
};
use crate::types::MemberId;

/// What each call needs.
struct Services {
    router: Router,
    node: Handle,
    limits: Limits,
    /// As long as this is here, streams go on until the member stops.
    _closing: watch::Sender<bool>,
}

/// etcd's services, for requests that other members send on.
pub fn router(node: Handle, metrics: Arc<Metrics>, max_request_bytes: usize) -> axum::Router {
    let (closing_sender, closing) = watch::channel(false);
    // Whoever sends a request on has checked who asks.
    let is_trusted = true;
    let context = Context {
        node: node.clone(),
        metrics,
        max_request_bytes,
        is_trusted,
        // The member that sends it on has the limits, and the client.
        slow: SlowLimits::NEVER,
        closing,
    };
    let services = Arc::new(Services {
        router: Router::new(&context),
        node,
        limits: Limits {
            max_bytes: context.max_message_bytes(),
            max_time: server::REQUEST_TIMEOUT,
        },
        _closing: closing_sender,
    });
    axum::Router::new().fallback(move |request: Request| {
        let services = Arc::clone(&services);
        async move { services.answer(request).await }
    })
}

impl Services {
    async fn answer(&self, request: Request) -> http::Response<AnswerBody> {
        if let Err(refusal) = self.check(&request) {
            return marked(refusal.into_http(), FORWARDED_REFUSED);
        }
        let limits = self.limits;
        let Ok(response) =
            self.router.call(request.map(|body| MessageLimit::new(body, limits)), None).await;
        marked(response, FORWARDED_ANSWERED)
    }

    fn check(&self, request: &Request) -> Result<(), Status> {
        if !router::is_grpc(request) {
            return Err(Status::invalid_argument("members speak gRPC"));
        }
        let marks = member(request.headers(), FORWARDED_BY)
            .zip(member(request.headers(), FORWARDED_TO))
            .ok_or_else(|| Status::permission_denied("only members are served here"))?;
        let (by, to) = marks;
        if !self.node.takes_forwarded(by, to) {
            return Err(Status::permission_denied(format!(
                "a request of {by} for {to} is not taken"
            )));
        }
        // They ask a member about itself.
        if router::is_for_operators(request.uri().path()) {
            return Err(Status::unimplemented("operators are served on the port for clients"));
        }
        Ok(())
    }
}

/// Tells an error of this member's from one of the way here. Whatever else comes on that way is no error.
fn marked<B>(mut response: http::Response<B>, mark: &'static str) -> http::Response<B> {
    if response.headers().contains_key(Status::GRPC_STATUS) {
        response.headers_mut().insert(FORWARDED, HeaderValue::from_static(mark));
    }
    response
}

fn member(headers: &HeaderMap, name: &str) -> Option<MemberId> {
    headers.get(name)?.to_str().ok()?.parse().ok().map(MemberId)
}
