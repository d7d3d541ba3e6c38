//! Which service a path names, and what goes around every call: its count, and the end of its stream when the
//! server closes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use parking_lot::RwLock;
use starling_proto::etcdserverpb::auth_server::AuthServer;
use starling_proto::etcdserverpb::cluster_server::ClusterServer;
use starling_proto::etcdserverpb::kv_server::{Kv as _, KvServer};
use starling_proto::etcdserverpb::lease_server::LeaseServer;
use starling_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use starling_proto::starling::admin::v1::cluster_server::ClusterServer as AdminServer;
use starling_proto::v3electionpb::election_server::ElectionServer;
use starling_proto::v3lockpb::lock_server::LockServer;
use tonic::codegen::Service as _;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use super::admin::AdminService;
use super::auth::AuthService;
use super::cluster::ClusterService;
use super::election::ElectionService;
use super::health::HealthService;
use super::kv::KvService;
use super::lease::LeaseService;
use super::lock::LockService;
use super::maintenance::MaintenanceService;
use super::slow::{SlowLimits, Timed};
use super::{Context, status, unary, watch};
use crate::error::Error;
use crate::metrics::{ClientMetrics, RpcKind, RpcMetrics};
use crate::node::{READ, WRITE_ACK};
use crate::traces::RequestSpan;
use crate::types::{ReadLevel, WriteAck};

/// How long a client will wait, and how many digits it may say that with.
pub(crate) const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Where what is for operators begins.
const OPERATORS_PATH: &str = "/starling.admin.";
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Which API a client was made for. Any text will do.
const CLIENT_API_VERSION: &str = "client-api-version";
/// Versions that are remembered; a client may name anything.
const CLIENTS_MAX: usize = 16;
const INVALID_API_VERSION: &str = "etcdserver: invalid client api version";

/// A gRPC service that is served.
#[derive(Clone, Copy, Debug)]
enum ServiceName {
    Kv,
    Watch,
    Lease,
    Cluster,
    Maintenance,
    Auth,
    Lock,
    Election,
    Health,
    Admin,
}

/// A service as paths name it, and its methods.
struct Service {
    service: ServiceName,
    name: &'static str,
    unary: &'static [&'static str],
    streams: &'static [(&'static str, RpcKind)],
}

/// Unary methods that are called often enough to have a way of their own.
#[derive(Clone, Copy, Debug)]
enum Hot {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Hot {
    fn of(service: ServiceName, method: &str) -> Option<Self> {
        match (service, method) {
            (ServiceName::Kv, "Range") => Some(Self::Range),
            (ServiceName::Kv, "Put") => Some(Self::Put),
            (ServiceName::Kv, "DeleteRange") => Some(Self::DeleteRange),
            (ServiceName::Kv, "Txn") => Some(Self::Txn),
            _ => None,
        }
    }
}

const SERVICES: &[Service] = &[
    Service {
        service: ServiceName::Kv,
        name: "etcdserverpb.KV",
        unary: &["Range", "Put", "DeleteRange", "Txn", "Compact"],
        streams: &[("RangeStream", RpcKind::ServerStream)],
    },
    Service {
        service: ServiceName::Watch,
        name: "etcdserverpb.Watch",
        unary: &[],
        streams: &[("Watch", RpcKind::BidiStream)],
    },
    Service {
        service: ServiceName::Lease,
        name: "etcdserverpb.Lease",
        unary: &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"],
        streams: &[("LeaseKeepAlive", RpcKind::BidiStream)],
    },
    Service {
        service: ServiceName::Cluster,
        name: "etcdserverpb.Cluster",
        unary: &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"],
        streams: &[],
    },
    Service {
        service: ServiceName::Maintenance,
        name: "etcdserverpb.Maintenance",
        unary: &["Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade"],
        streams: &[("Snapshot", RpcKind::ServerStream)],
    },
    Service {
        service: ServiceName::Auth,
        name: "etcdserverpb.Auth",
        unary: &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
        streams: &[],
    },
    Service {
        service: ServiceName::Lock,
        name: "v3lockpb.Lock",
        unary: &["Lock", "Unlock"],
        streams: &[],
    },
    Service {
        service: ServiceName::Election,
        name: "v3electionpb.Election",
        unary: &["Campaign", "Proclaim", "Leader", "Resign"],
        streams: &[("Observe", RpcKind::ServerStream)],
    },
    Service {
        service: ServiceName::Health,
        name: "grpc.health.v1.Health",
        unary: &["Check"],
        streams: &[("Watch", RpcKind::ServerStream)],
    },
    Service {
        service: ServiceName::Admin,
        name: "starling.admin.v1.Cluster",
        unary: &["Status", "Conflicts", "Block", "Join", "Leave"],
        streams: &[],
    },
];

type Answering = BoxFuture<'static, Result<Response<tonic::body::Body>, Infallible>>;

/// A method that is served.
struct Method {
    service: ServiceName,
    kind: RpcKind,
    /// The service and the method.
    names: (&'static str, &'static str),
    hot: Option<Hot>,
    metrics: RpcMetrics,
}

/// Every service, ready to be called. Each thread that serves has its own.
pub(crate) struct Router {
    context: Context,
    methods: HashMap<String, Arc<Method>>,
    clients: Clients,
    hot: Arc<KvService>,
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    auth: AuthServer<AuthService>,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
    health: HealthServer<HealthService>,
    admin: AdminServer<AdminService>,
}

impl Router {
    pub(crate) fn new(context: &Context) -> Self {
        // The size of messages is checked before, with etcd's text.
        let unlimited = usize::MAX;
        let context = context.clone();
        let hot = Arc::new(KvService::new(context.clone()));
        Self {
            methods: methods(&context),
            clients: Clients::default(),
            kv: KvServer::from_arc(Arc::clone(&hot)).max_decoding_message_size(unlimited),
            hot,
            lease: LeaseServer::new(LeaseService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            cluster: ClusterServer::new(ClusterService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            maintenance: MaintenanceServer::new(MaintenanceService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            auth: AuthServer::new(AuthService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            lock: LockServer::new(LockService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            election: ElectionServer::new(ElectionService::new(context.clone()))
                .max_decoding_message_size(unlimited),
            health: HealthServer::new(HealthService),
            admin: AdminServer::new(AdminService::new(context.clone())),
            context,
        }
    }

    /// Answers one call. The body has been bounded already.
    pub(crate) fn call<B>(&self, request: Request<B>, remote: Option<SocketAddr>) -> Call
    where
        B: Body<Data = Bytes, Error = Status> + Unpin + Send + 'static,
    {
        let Some(method) = self.methods.get(request.uri().path()) else {
            return Call::Unknown(Some(unknown(request.uri().path())));
        };
        if let Some(refusal) = refusal(request.headers()) {
            return Call::Unknown(Some(refusal.into_http()));
        }
        if !self.context.is_trusted && self.context.node.is_learner() && !is_for_learners(method) {
            return Call::Unknown(Some(Status::from(Error::Learner).into_http()));
        }
        let levels = match Levels::of(request.headers()) {
            Ok(levels) => levels,
            Err(refusal) => return Call::Unknown(Some(refusal.into_http())),
        };
        let span = match self.context.node.traces() {
            Some(traces) if method.kind == RpcKind::Unary => {
                traces.request(method.names, request.headers(), self.context.node.member().id)
            }
            _ => None,
        };
        self.clients.count(&self.context, request.headers(), method.kind);
        let timed = Timed { names: method.names, begun: Instant::now(), remote };
        let has_more = levels != Levels::default() || span.is_some();
        let hot = method.hot.filter(|_| unary::is_plain(&request));
        let future = match method.service {
            ServiceName::Lease if let Some(span) = &span => self.lease_with(span).call(request),
            _ if let Some(hot) = hot => {
                let kv = if has_more {
                    self.kv_with(levels, span.clone())
                } else {
                    Arc::clone(&self.hot)
                };
                answer(hot, kv, timed, request)
            }
            ServiceName::Kv if has_more => {
                let kv = KvServer::from_arc(self.kv_with(levels, span.clone()));
                kv.max_decoding_message_size(usize::MAX).call(request)
            }
            ServiceName::Kv => self.kv.clone().call(request),
            ServiceName::Watch => {
                let response = watch::serve(self.context.clone(), request);
                Box::pin(std::future::ready(Ok(response)))
            }
            ServiceName::Lease => self.lease.clone().call(request),
            ServiceName::Cluster => self.cluster.clone().call(request),
            ServiceName::Maintenance => self.maintenance.clone().call(request),
            ServiceName::Auth => self.auth.clone().call(request),
            ServiceName::Lock => self.lock.clone().call(request),
            ServiceName::Election => self.election.clone().call(request),
            ServiceName::Health => self.health.clone().call(request),
            ServiceName::Admin => self.admin.clone().call(request),
        };
        let future = match span {
            Some(span) => Box::pin(traced(span, future)),
            None => future,
        };
        method.metrics.started();
        let context = (method.kind != RpcKind::Unary).then(|| self.context.clone());
        let slow = (hot.is_none() && method.kind == RpcKind::Unary).then_some(self.context.slow);
        let handled = Handled { method: Some(Arc::clone(method)), timed, slow };
        Call::Known { future, handled, context }
    }
}

impl Router {
    /// For a request that says whom it wants to wait for, or that is traced.
    fn kv_with(&self, levels: Levels, span: Option<Arc<RequestSpan>>) -> Arc<KvService> {
        let mut node = self.context.node.clone();
        if let Some(span) = span {
            node = node.with_span(span);
        }
        if let Some(ack) = levels.ack {
            node = node.with_ack(ack);
        }
        if let Some(reads) = levels.reads {
            node = node.with_reads(reads);
        }
        let context = Context { node, ..self.context.clone() };
        Arc::new(KvService::new(context))
    }

    fn lease_with(&self, span: &Arc<RequestSpan>) -> LeaseServer<LeaseService> {
        let node = self.context.node.with_span(Arc::clone(span));
        let context = Context { node, ..self.context.clone() };
        LeaseServer::new(LeaseService::new(context)).max_decoding_message_size(usize::MAX)
    }
}

fn answer<B>(method: Hot, kv: Arc<KvService>, timed: Timed, request: Request<B>) -> Answering
where
    B: Body<Data = Bytes, Error = Status> + Unpin + Send + 'static,
{
    use unary::{answer_timed, unchecked};
    match method {
        Hot::Range => Box::pin(async move {
            let timed = (kv.context(), timed);
            Ok(answer_timed(request, timed, unchecked, |request| kv.answer_range(request)).await)
        }),
        Hot::Put => Box::pin(async move {
            let timed = (kv.context(), timed);
            Ok(answer_timed(request, timed, unchecked, |request| kv.put(request)).await)
        }),
        Hot::DeleteRange => Box::pin(async move {
            let timed = (kv.context(), timed);
            Ok(answer_timed(request, timed, unchecked, |request| kv.delete_range(request)).await)
        }),
        Hot::Txn => Box::pin(async move {
            let timed = (kv.context(), timed);
            let check = |message: &[u8]| kv.check_parts(message);
            Ok(answer_timed(request, timed, check, |request| kv.txn(request)).await)
        }),
    }
}

/// The counters of clients by the versions that they name. There are few, so they are looked through.
#[derive(Default)]
struct Clients(RwLock<Vec<(Option<HeaderValue>, ClientMetrics)>>);

impl Clients {
    fn count(&self, context: &Context, headers: &HeaderMap, kind: RpcKind) {
        let version = headers.get(CLIENT_API_VERSION);
        let count = |(_, metrics): &(Option<HeaderValue>, ClientMetrics)| {
            (if kind == RpcKind::Unary { &metrics.unary } else { &metrics.streams }).inc();
        };
        let find = |clients: &[(Option<HeaderValue>, ClientMetrics)]| {
            clients.iter().position(|(known, _)| known.as_ref() == version)
        };
        {
            let clients = self.0.read();
            if let Some(at) = find(&clients) {
                return count(&clients[at]);
            }
        }
        let mut clients = self.0.write();
        let text = version.and_then(|version| version.to_str().ok()).unwrap_or_default();
        let metrics = context.metrics.client(text, clients.len());
        let client = (version.cloned(), metrics);
        count(&client);
        // What is counted as unknown need not be found again.
        if clients.len() < CLIENTS_MAX && find(&clients).is_none() {
            clients.push(client);
        }
    }
}

fn methods(context: &Context) -> HashMap<String, Arc<Method>> {
    let mut methods = HashMap::new();
    for Service { service, name, unary, streams } in SERVICES {
        let unary = unary.iter().map(|method| (*method, RpcKind::Unary));
        for (method, kind) in unary.chain(streams.iter().copied()) {
            let metrics = context.metrics.rpc(name, method, kind);
            let method_path = format!("/{name}/{method}");
            let hot = Hot::of(*service, method);
            let names = (*name, method);
            let method = Method { service: *service, kind, names, hot, metrics };
            methods.insert(method_path, Arc::new(method));
        }
    }
    methods
}

/// Whether a learner answers it, as in etcd: a Range, too, if it says that it takes what is there.
fn is_for_learners(method: &Method) -> bool {
    match method.service {
        ServiceName::Health | ServiceName::Admin => true,
        ServiceName::Kv => matches!(method.hot, Some(Hot::Range)),
        ServiceName::Maintenance => matches!(method.names.1, "Status" | "Snapshot"),
        _ => false,
    }
}

/// What is refused for its headers alone.
fn refusal(headers: &HeaderMap) -> Option<Status> {
    if let Some(timeout) = headers.get(GRPC_TIMEOUT)
        && self::timeout(timeout.as_bytes()).is_none()
    {
        return Some(Status::internal(format!("malformed grpc-timeout: {timeout:?}")));
    }
    let version = headers.get(CLIENT_API_VERSION)?;
    let is_text = std::str::from_utf8(version.as_bytes()).is_ok();
    (!is_text).then(|| Status::invalid_argument(INVALID_API_VERSION))
}

/// Whom a request wants to wait for, as far as it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Levels {
    ack: Option<WriteAck>,
    reads: Option<ReadLevel>,
}

impl Levels {
    fn of(headers: &HeaderMap) -> Result<Self, Status> {
        Ok(Self { ack: level(headers, WRITE_ACK)?, reads: level(headers, READ)? })
    }
}

fn level<T: FromStr<Err = String>>(headers: &HeaderMap, name: &str) -> Result<Option<T>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let level = value.to_str().map_err(|_| "expected text".to_owned()).and_then(str::parse);
    level.map(Some).map_err(|what| Status::invalid_argument(format!("{name}: {what}")))
}

/// How long a client will wait, if that is said as gRPC does: up to eight digits and a unit. The client keeps to it itself.
pub(crate) fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > TIMEOUT_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 60 * 60),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// As grpc-go puts it.
fn unknown(path: &str) -> Response<tonic::body::Body> {
    let text = match path.strip_prefix('/').unwrap_or(path).rsplit_once('/') {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if SERVICES.iter().any(|known| known.name == service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    };
    Status::unimplemented(text).into_http()
}

/// What is read of a request's head, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn look(request: &Request<()>) {
    let refusal = refusal(request.headers());
    let answers = [refusal.map(Status::into_http), Some(unknown(request.uri().path()))];
    for answer in answers.iter().flatten() {
        assert!(Status::from_header_map(answer.headers()).is_some(), "{answer:?}");
    }
    let _: bool = is_grpc(request) && unary::is_plain(request);
}

/// A call that is being answered.
pub(crate) enum Call {
    /// By a service.
    Known {
        future: Answering,
        handled: Handled,
        /// Only for streams.
        context: Option<Context>,
    },
    /// By nobody, or by nobody yet.
    Unknown(Option<Response<tonic::body::Body>>),
}

impl Future for Call {
    type Output = Result<Response<tonic::body::Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Known { future, handled, context } => {
                let Ok(response) = ready!(future.as_mut().poll(cx));
                Poll::Ready(Ok(finish(response, handled, context.take())))
            }
            Self::Unknown(response) => Poll::Ready(Ok(response.take().unwrap_or_default())),
        }
    }
}

/// Ends the span of a unary call with its answer.
async fn traced(
    span: Arc<RequestSpan>,
    future: Answering,
) -> Result<Response<tonic::body::Body>, Infallible> {
    let Ok(response) = future.await;
    let failed = response.headers().get(Status::GRPC_STATUS).map(code);
    span.finish(failed.unwrap_or(Code::Ok));
    Ok(response)
}

/// A call that failed says so at once, in its headers. Otherwise a unary call is done, and a stream has begun.
fn finish(
    response: Response<tonic::body::Body>,
    handled: &mut Handled,
    stream: Option<Context>,
) -> Response<tonic::body::Body> {
    let failed = response.headers().get(Status::GRPC_STATUS).map(code);
    match (failed, stream) {
        (Some(code), _) => handled.finish(code),
        (None, None) => handled.finish(Code::Ok),
        (None, Some(context)) => {
            let closed = Box::pin(async move { context.closed().await });
            let handled = handled.take();
            return response.map(|inner| {
                tonic::body::Body::new(StreamBody { inner, handled, closed: Some(closed) })
            });
        }
    }
    response
}

fn code(value: &HeaderValue) -> Code {
    Code::from_bytes(value.as_bytes())
}

/// Counts a call once: with its code, or as canceled when its client goes before it has one.
pub(crate) struct Handled {
    /// `None` once it is counted.
    method: Option<Arc<Method>>,
    timed: Timed,
    /// For calls that nobody else looks at when they took long.
    slow: Option<SlowLimits>,
}

impl Handled {
    fn take(&mut self) -> Self {
        Self { method: self.method.take(), ..*self }
    }

    fn finish(&mut self, code: Code) {
        if let Some(method) = self.method.take() {
            method.metrics.handled(code as usize, self.timed.begun.elapsed());
            if let Some(limits) = self.slow {
                self.timed.note_unknown(limits);
            }
        }
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        self.finish(Code::Cancelled);
    }
}

/// The body of a stream: counts the code in its trailers, and ends it when the server closes.
struct StreamBody {
    inner: tonic::body::Body,
    handled: Handled,
    /// `None` once it has ended so.
    closed: Option<BoxFuture<'static, ()>>,
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(closed) = &mut this.closed else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(trailers) = frame.trailers_ref()
            {
                this.handled.finish(trailers.get(Status::GRPC_STATUS).map_or(Code::Unknown, code));
            }
            return Poll::Ready(frame);
        }
        ready!(closed.as_mut().poll(cx));
        this.closed = None;
        let stopped = status::stopped();
        this.handled.finish(stopped.code());
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(stopped.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

/// Whether a path is one of the services that etcd has not.
pub(crate) fn is_for_operators(path: &str) -> bool {
    path.starts_with(OPERATORS_PATH)
}

/// Whether a request is one for gRPC, as grpc-go decides it.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    const PREFIX: &[u8] = b"application/grpc";
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    match value.split_at_checked(PREFIX.len()) {
        Some((prefix, rest)) => {
            prefix.eq_ignore_ascii_case(PREFIX) && matches!(rest.first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(path: &str) -> String {
        let status = Status::from_header_map(unknown(path).headers()).expect("a status");
        assert_eq!(status.code(), Code::Unimplemented);
        status.message().to_owned()
    }

    #[test]
    fn unknown_paths_answer_as_grpc_go_does() {
        assert_eq!(
            message("/etcdserverpb.KV/Foo"),
            "unknown method Foo for service etcdserverpb.KV"
        );
        assert_eq!(message("/foo.Bar/Baz"), "unknown service foo.Bar");
        assert_eq!(message("/a/b/c"), "unknown service a/b");
        assert_eq!(message("/foo"), "malformed method name: \"/foo\"");
    }

    #[test]
    fn deadlines_are_digits_and_a_unit() {
        assert_eq!(timeout(b"1S"), Some(Duration::from_secs(1)));
        assert_eq!(timeout(b"00000010m"), Some(Duration::from_millis(10)));
        assert_eq!(timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        let refused: [&[u8]; 8] =
            [b"", b"S", b"123456789S", b"1s", b"-1S", b"+1S", b"nonsense", "1\u{b5}".as_bytes()];
        assert!(refused.iter().all(|value| timeout(value).is_none()));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let is = |value: &'static str| {
            let request =
                Request::builder().header(CONTENT_TYPE, value).body(()).expect("a request");
            is_grpc(&request)
        };
        assert!(
            is("application/grpc") && is("application/grpc+proto") && is("Application/GRPC;x=y")
        );
        assert!(!is("application/grpc-web") && !is("application/json") && !is("application"));
        assert!(!is_grpc(&Request::new(())));
    }
}
