//! `grpc.health.v1.Health`: the server as a whole, which is the service without a name.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

pub(crate) struct HealthService;

/// `None` for a service that has no health of its own.
fn serving(service: &str) -> Option<ServingStatus> {
    service.is_empty().then_some(ServingStatus::Serving)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        // As grpc-go puts it.
        let unknown = || Status::not_found("unknown service");
        serving(&request.get_ref().service).map(response).map(Response::new).ok_or_else(unknown)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Says how it is now. That changes only when the stream ends.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let now = serving(&request.get_ref().service).unwrap_or(ServingStatus::ServiceUnknown);
        let now = tokio_stream::once(Ok(response(now)));
        Ok(Response::new(Box::pin(now.chain(tokio_stream::pending()))))
    }
}
