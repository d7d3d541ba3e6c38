//! The connection of a client: tonic's stubs straight on hyper's HTTP/2.

use std::task::{Context, Poll};

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};

use crate::Outcome;

/// Large enough that no answer waits for the client.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Answers are not checked for their size.
const MESSAGE_BYTES_MAX: usize = 512 << 20;

/// A connection that many clients can share.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Body>,
    origin: Uri,
}

impl Connection {
    /// Connects on the current runtime.
    pub async fn open(port: u16) -> Outcome<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        // It ends with the clients, or with the server, which their calls show.
        tokio::spawn(connection);
        Ok(Self { requests, origin: format!("http://127.0.0.1:{port}").parse()? })
    }

    /// For puts, ranges and transactions.
    pub fn kv(&self) -> KvClient<Self> {
        KvClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// For watches.
    pub fn watch(&self) -> WatchClient<Self> {
        WatchClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// For leases.
    pub fn lease(&self) -> LeaseClient<Self> {
        LeaseClient::with_origin(self.clone(), self.origin.clone())
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
