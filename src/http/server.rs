//! Threads that serve, and how they start and stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::socket::{Accepted, AsyncListener, Socket, Stream};
use super::{Allowed, Answer, AnswerBody, App, ByTls, Listener};
use crate::api::{CertificateUser, Context, SlowLimits};
use crate::metrics::Metrics;
use crate::node::Handle;
use crate::tls::Tls;

/// Connections dealt to a thread that it has not taken up yet. When it is full, others wait in the kernel.
const DEALT_MAX: usize = 128;

/// What a client may send on a stream, and on all of them, before the server has read it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Answers on a stream that its client has not read yet. More waits where it came from.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// The headers of a request: tokens are large, but not as large as this.
const HEADER_BYTES: u32 = 64 * 1024;
/// The same on HTTP/1, where this is what is read of a body at once, too.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;

/// Streams that a client may take back before they were looked at. Clients with deadlines do that in bursts.
const PENDING_RESETS_MAX: usize = 1024;

/// For the first bytes of a connection, the head of an HTTP/1 request, and a message that has begun. grpc-go has the same for
/// the first of these.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// After a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What is served on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// gRPC and HTTP.
    Everything,
    /// HTTP only.
    Http,
    /// Metrics and health checks only.
    Monitoring,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The largest request that may change something. Messages may be 512 KiB larger.
    pub max_request_bytes: usize,
    /// Calls at the same time on one connection.
    pub max_concurrent_streams: u32,
    /// After how long in silence the server pings a client.
    pub keepalive_interval: Option<Duration>,
    /// How long the client may take to answer before its connection is closed.
    pub keepalive_timeout: Duration,
    /// Threads that serve connections.
    pub worker_threads: usize,
    /// How long calls may go on when the server stops.
    pub stop_grace: Duration,
    /// How long a client may take to say what it wants.
    pub request_timeout: Duration,
    /// Serve the JSON gateway.
    pub gateway: bool,
    /// What else is served.
    pub serves: Serves,
    /// The hosts that plain HTTP without TLS may name.
    pub hosts: Allowed,
    /// The pages that may read answers.
    pub origins: Allowed,
    /// From when on requests are in the log.
    pub slow: SlowLimits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_request_bytes: 1536 * 1024,
            max_concurrent_streams: u32::MAX,
            keepalive_interval: Some(Duration::from_secs(2 * 60 * 60)),
            keepalive_timeout: Duration::from_secs(20),
            worker_threads: thread::available_parallelism().map_or(1, usize::from),
            stop_grace: Duration::from_secs(5),
            request_timeout: REQUEST_TIMEOUT,
            gateway: true,
            serves: Serves::Everything,
            hosts: Allowed::Any,
            origins: Allowed::Any,
            slow: SlowLimits::default(),
        }
    }
}

/// A server that runs. Dropped without [`Server::stop`], it stops in the background.
pub struct Server {
    closing: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// Closed once every thread has ended.
    ended: mpsc::Receiver<Infallible>,
}

/// A connection, and what it takes to greet its client.
type Dealt = (Accepted, Option<Arc<Tls>>);

/// What a thread that serves is given.
struct Worker {
    context: Context,
    options: ServerOptions,
    connections: mpsc::Receiver<Dealt>,
    _running: mpsc::Sender<Infallible>,
}

impl Server {
    /// Serves a member on all listeners.
    pub fn start(
        options: &ServerOptions,
        node: Handle,
        metrics: Arc<Metrics>,
        listeners: Vec<Listener>,
    ) -> io::Result<Self> {
        let (closing, closing_receiver) = watch::channel(false);
        let (running, ended) = mpsc::channel(1);
        let max_request_bytes = options.max_request_bytes;
        let context = Context {
            node,
            metrics,
            max_request_bytes,
            is_trusted: false,
            slow: options.slow,
            closing: closing_receiver,
        };
        let mut server = Self { closing, threads: Vec::new(), ended };
        let mut workers = Vec::new();
        for i in 0..options.worker_threads.max(1) {
            let (worker, connections) = mpsc::channel(DEALT_MAX);
            let (context, options, _running) = (context.clone(), options.clone(), running.clone());
            let worker_state = Worker { context, options, connections, _running };
            server
                .spawn(format!("serve-{i}"), move |runtime| runtime.block_on(worker_state.run()))?;
            workers.push(worker);
        }
        let closing = context.closing.clone();
        server.spawn("accept".to_owned(), move |runtime| {
            runtime.block_on(accept_all(listeners, &workers, closing));
            drop(running);
        })?;
        Ok(server)
    }

    /// A thread with a runtime of its own.
    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce(&runtime::Runtime) + Send + 'static,
    ) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        self.threads.push(thread::Builder::new().name(name).spawn(move || body(&runtime))?);
        Ok(())
    }

    /// Stops: takes no more connections, ends streams, lets calls finish for a while, closes what is left.
    pub async fn stop(mut self) {
        self.closing.send_replace(true);
        // Nothing is ever sent, so this waits for the last sender to go.
        let _: Option<Infallible> = self.ended.recv().await;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }
}

/// Accepts on all listeners until the server closes.
async fn accept_all(
    listeners: Vec<Listener>,
    workers: &[mpsc::Sender<Dealt>],
    mut closing: watch::Receiver<bool>,
) {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let tls = listener.tls();
        match listener.into_async() {
            Ok(listener) => drop(accepting.spawn(accept(listener, tls, workers.to_vec()))),
            Err(error) => tracing::error!(%error, "cannot listen"),
        }
    }
    // An error means that the server was dropped.
    let _closed = closing.wait_for(|closing| *closing).await.is_ok();
    accepting.shutdown().await;
}

/// Deals connections to the threads in turn, so that few connections are not all on one of them.
async fn accept(listener: AsyncListener, tls: Option<Arc<Tls>>, workers: Vec<mpsc::Sender<Dealt>>) {
    let mut failures = Failures::default();
    let mut turn = workers.iter().cycle();
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let Some(worker) = turn.next() else { return };
                if worker.send((connection, tls.clone())).await.is_err() {
                    return;
                }
            }
            Err(error) if is_of_connection(&error) => {
                tracing::debug!(%error, "a connection was lost early");
            }
            Err(error) => {
                failures.note(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error is about one connection, so that the next can be accepted at once.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

/// Logs failures to accept, but not each of them.
#[derive(Default)]
struct Failures {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Failures {
    fn note(&mut self, error: &io::Error) {
        self.unlogged += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now - logged >= ACCEPT_LOG_INTERVAL) {
            tracing::warn!(%error, times = self.unlogged, "cannot accept connections");
            (self.logged, self.unlogged) = (Some(now), 0);
        }
    }
}

impl Worker {
    /// Serves connections until no more can come and those there are have ended.
    async fn run(mut self) {
        self.context.node = self.context.node.at_home();
        let (open, mut opened) = mpsc::channel(1);
        let serving = Arc::new(Serving {
            builder: builder(&self.options),
            app: Arc::new(App::new(&self.context, &self.options, open)),
            request_timeout: self.options.request_timeout,
            metrics: Arc::clone(&self.context.metrics),
            closing: self.context.closing.clone(),
        });
        let connections = GracefulShutdown::new();
        while let Some((accepted, tls)) = self.connections.recv().await {
            match Stream::new(accepted) {
                Ok(stream) => {
                    let serving = Arc::clone(&serving);
                    tokio::spawn(serve(serving, stream, tls, connections.watcher()));
                }
                Err(error) => tracing::debug!(%error, "a connection was lost early"),
            }
        }
        drop(serving);
        let end = async {
            connections.shutdown().await;
            // Nothing is ever sent, so this waits for those that are no HTTP any more.
            let _: Option<Infallible> = opened.recv().await;
        };
        if tokio::time::timeout(self.options.stop_grace, end).await.is_err() {
            tracing::info!("calls that did not end in time are cut off");
        }
    }
}

/// What the connections of a thread share.
struct Serving {
    builder: auto::Builder<TokioExecutor>,
    app: Arc<App>,
    request_timeout: Duration,
    metrics: Arc<Metrics>,
    closing: watch::Receiver<bool>,
}

async fn serve(serving: Arc<Serving>, stream: Stream, tls: Option<Arc<Tls>>, stopping: Watcher) {
    let by_tls = tls.is_some().then_some(ByTls);
    let remote = stream.remote();
    let (stream, user) = match tls {
        None => (stream, None),
        Some(tls) => match greet(&serving, &tls, stream).await {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::debug!(%error, "a client could not be greeted by tls");
                return;
            }
        },
    };
    let socket = Socket::new(stream, serving.request_timeout, &serving.metrics);
    let service = Service { app: Arc::clone(&serving.app), by_tls, user, remote };
    let connection = serving.builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
    // Clients go in many ways, none of which is worth more than this.
    if let Err(error) = stopping.watch(connection).await {
        tracing::debug!(error, "a connection ended");
    }
}

/// Greets a client by TLS, and finds out which user its certificate names.
async fn greet(
    serving: &Serving,
    tls: &Tls,
    stream: Stream,
) -> io::Result<(Stream, Option<CertificateUser>)> {
    let mut closing = serving.closing.clone();
    let stream = tokio::select! {
        greeted = tokio::time::timeout(serving.request_timeout, tls.accept(stream)) => {
            greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?
        }
        _ = closing.wait_for(|closing| *closing) => {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    };
    let user = tls.user(stream.get_ref().1.peer_certificates());
    Ok((Stream::Tls(Box::new(stream)), user.map(|name| CertificateUser(name.into()))))
}

fn builder(options: &ServerOptions) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.request_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        // Nobody reads it, and it is new every second.
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    builder
}

/// [`App`] as hyper calls it, for one connection.
struct Service {
    app: Arc<App>,
    by_tls: Option<ByTls>,
    /// Whom the certificate of the client names.
    user: Option<CertificateUser>,
    /// Where it is, if it came by TCP.
    remote: Option<SocketAddr>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        if let Some(by_tls) = self.by_tls {
            request.extensions_mut().insert(by_tls);
        }
        if let Some(user) = &self.user {
            request.extensions_mut().insert(user.clone());
        }
        self.app.call(request, self.remote)
    }
}
