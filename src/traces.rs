//! OpenTelemetry traces, sent by OTLP: what a request waited for, and when other members had what it wrote.
//!
//! Off unless something says where to send them: the standard `OTEL_*` variables, which the SDK reads itself, or etcd's
//! flags. Off costs a request one branch. Spans are gathered and sent by a thread and a runtime of their own, so that a
//! collector that is slow or gone holds up nobody: what it does not take is dropped.

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, Status, TraceContextExt, TraceFlags, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, SpanId, TraceId, Value};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{
    Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{self as sdk, Sampler, SdkTracer, SdkTracerProvider};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub use opentelemetry::KeyValue as Attribute;
pub use opentelemetry::trace::SpanKind as Kind;

use crate::tls;
use crate::types::{MemberId, Revision, TraceContext};

/// What spans say they come from.
const SCOPE: &str = "starling";
/// Where etcd sends them if nothing else is said.
const ADDRESS_DEFAULT: &str = "localhost:4317";
/// What etcd calls itself there, and what we do.
const ETCD_SERVICE: &str = "etcd";
const SERVICE: &str = "starling";
/// etcd's sampling rates are parts of this.
const RATE_MAX: f64 = 1_000_000.0;
/// How long the last spans may take to be sent when the member stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const TIMEOUTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
/// How long sending may take if they say nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";
const NAME_ATTRIBUTE: &str = "service.name";
const INSTANCE_ATTRIBUTE: &str = "service.instance.id";

/// etcd's flags for traces. What is not set is left to the variables of OpenTelemetry, and then to etcd's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether the flags want traces. If not, the others mean nothing.
    pub enabled: bool,
    /// Where to, as `host:port`: without TLS, as etcd does it.
    pub address: Option<String>,
    /// Under which name.
    pub service_name: Option<String>,
    /// Under which id.
    pub instance_id: Option<String>,
    /// How many in a million are sampled of those whose clients do not say.
    pub sampling_rate: Option<u32>,
}

/// Makes spans, and sends them away.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    /// Taken when this is dropped.
    runtime: Option<Runtime>,
}

impl Traces {
    /// Starts, if something says where to send traces. `name` tells this member from others.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the settings. That nobody listens there is none: that may change.
    pub fn start(options: &Options, name: &str) -> Result<Option<Self>, String> {
        if !is_wanted(options, &variable) {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start to trace: {error}"))?;
        let exporter = {
            let _runtime = runtime.enter();
            exporter(options).map_err(|error| format!("cannot trace: {error}"))?
        };
        let exporter = Remote { exporter: Arc::new(exporter), runtime: runtime.handle().clone() };
        let mut provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(options, name));
        if let Some(sampler) = sampler(options, variable(SAMPLER).is_some()) {
            provider = provider.with_sampler(sampler);
        }
        let provider = provider.build();
        let tracer = provider.tracer(SCOPE);
        let propagator = TraceContextPropagator::new();
        Ok(Some(Self { provider, tracer, propagator, runtime: Some(runtime) }))
    }

    /// The span of a request that begins now, if it is sampled. Where its client says to which trace it belongs, it is
    /// part of that.
    pub fn request(
        &self,
        (service, method): (&'static str, &'static str),
        headers: &HeaderMap,
        member: MemberId,
    ) -> Option<Arc<RequestSpan>> {
        let what = [
            Attribute::new("rpc.system", "grpc"),
            Attribute::new("rpc.service", service),
            Attribute::new("rpc.method", method),
        ];
        self.begin(format!("{service}/{method}"), what, headers, member)
    }

    /// The same of a request by plain HTTP, named by its method and the form of its path.
    pub fn http_request(
        &self,
        (method, route): (&'static str, &'static str),
        headers: &HeaderMap,
        member: MemberId,
    ) -> Option<Arc<RequestSpan>> {
        let what = [
            Attribute::new("http.request.method", method),
            Attribute::new("http.route", route),
            Attribute::new("network.protocol.name", "http"),
        ];
        self.begin(format!("{method} {route}"), what, headers, member)
    }

    fn begin(
        &self,
        name: String,
        what: [Attribute; 3],
        headers: &HeaderMap,
        member: MemberId,
    ) -> Option<Arc<RequestSpan>> {
        let parent = self.propagator.extract_with_context(&Context::new(), &Headers(headers));
        let member = Attribute::new("starling.member", member.to_string());
        let builder = SpanBuilder::from_name(name)
            .with_kind(Kind::Server)
            .with_attributes(what.into_iter().chain([member]));
        let span = self.tracer.build_with_context(builder, &parent);
        let context = span.span_context();
        if !context.is_sampled() {
            return None;
        }
        let context = TraceContext {
            trace: context.trace_id().to_bytes(),
            span: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        };
        Some(Arc::new(RequestSpan { span: Mutex::new(span), context }))
    }

    /// Something that has happened, within a trace.
    pub fn record(&self, parent: TraceContext, done: Done) {
        let parent = SpanContext::new(
            TraceId::from_bytes(parent.trace),
            SpanId::from_bytes(parent.span),
            TraceFlags::new(parent.flags),
            true,
            TraceState::default(),
        );
        let parent = Context::new().with_remote_span_context(parent);
        let builder = SpanBuilder::from_name(done.name)
            .with_kind(done.kind)
            .with_start_time(done.start)
            .with_attributes(done.attributes);
        self.tracer.build_with_context(builder, &parent).end_with_timestamp(done.end);
    }

    /// Sends what there is so far. Blocks until that is done, or has failed.
    pub fn flush(&self) {
        if let Err(error) = self.provider.force_flush() {
            tracing::warn!(%error, "traces could not be sent");
        }
    }

    /// Sends what has not been sent yet. Blocks likewise; there are no spans after it.
    pub fn stop(&self) {
        match self.provider.shutdown_with_timeout(STOP_TIMEOUT) {
            Ok(()) | Err(OTelSdkError::AlreadyShutdown) => {}
            Err(error) => tracing::warn!(%error, "the last traces could not be sent"),
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            // This may be a thread that must not wait.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

/// A span that has ended.
#[derive(Debug)]
pub struct Done {
    /// What it was.
    pub name: &'static str,
    /// On which side of what.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What else there is to say.
    pub attributes: Vec<Attribute>,
}

/// The span of a request. It ends with [`Self::finish`], or when the last one drops it, since its client has gone.
#[derive(Debug)]
pub struct RequestSpan {
    span: Mutex<sdk::Span>,
    context: TraceContext,
}

impl RequestSpan {
    /// Where what it causes belongs.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// The same as W3C Trace Context writes it, for the header `traceparent`.
    pub fn traceparent(&self) -> String {
        let TraceContext { trace, span, flags } = self.context;
        let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
        format!("00-{trace:032x}-{span:016x}-{flags:02x}")
    }

    /// What it came to.
    pub fn answered(&self, revision: Revision, keys: usize) {
        let mut span = self.span.lock();
        span.set_attribute(Attribute::new("starling.revision", integer(revision.0)));
        span.set_attribute(Attribute::new("starling.keys", integer(keys as u64)));
    }

    /// It has been answered, with this code.
    pub fn finish(&self, code: Code) {
        let mut span = self.span.lock();
        span.set_attribute(Attribute::new("rpc.grpc.status_code", code as i64));
        if is_fault(code) {
            span.set_status(Status::error(code.description()));
        }
        span.end();
    }
}

impl RequestSpan {
    /// It has been answered, with this status of HTTP.
    pub fn finish_http(&self, status: u16) {
        let mut span = self.span.lock();
        span.set_attribute(Attribute::new("http.response.status_code", i64::from(status)));
        if status >= HTTP_FAULT {
            span.set_status(Status::error(status.to_string()));
        }
        span.end();
    }
}

/// From here on a status of HTTP says that it is the server that failed.
const HTTP_FAULT: u16 = 500;

/// Whether it is the server that failed, by the conventions for spans of servers.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// A number as attributes have them.
pub fn integer(number: u64) -> Value {
    Value::I64(i64::try_from(number).unwrap_or(i64::MAX))
}

/// Headers, for the propagator.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Sends spans from a runtime, whoever calls: the thread that gathers them has none.
#[derive(Debug)]
struct Remote {
    exporter: Arc<SpanExporter>,
    runtime: tokio::runtime::Handle,
}

impl sdk::SpanExporter for Remote {
    async fn export(&self, batch: Vec<sdk::SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sending = self.runtime.spawn(async move { exporter.export(batch).await });
        sending.await.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?
    }

    fn set_resource(&mut self, resource: &Resource) {
        // It is shared from the first export on only.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_wanted(options: &Options, variable: &dyn Fn(&str) -> Option<String>) -> bool {
    let is = |name, value: &str| variable(name).is_some_and(|is| is.eq_ignore_ascii_case(value));
    let is_off = is(DISABLED, "true") || is(EXPORTER, "none");
    !is_off && (options.enabled || ENDPOINTS.into_iter().any(|name| variable(name).is_some()))
}

/// By gRPC unless the variables say otherwise, as etcd does it.
fn exporter(options: &Options) -> Result<SpanExporter, String> {
    let has_variable = ENDPOINTS.into_iter().any(|name| variable(name).is_some());
    match (&options.address, has_variable) {
        (Some(address), _) if options.enabled => return grpc(Some(address)),
        (_, false) => return grpc(Some(ADDRESS_DEFAULT)),
        _ => {}
    }
    match PROTOCOLS.into_iter().find_map(variable).as_deref() {
        None | Some("grpc") => grpc(None),
        Some("http/protobuf") => http(),
        Some(other) => Err(format!("{other} is no protocol that is spoken here")),
    }
}

/// To `host:port`, or to where the variables say.
fn grpc(address: Option<&str>) -> Result<SpanExporter, String> {
    let mut builder = SpanExporter::builder().with_tonic();
    if let Some(address) = address {
        builder = builder.with_endpoint(format!("http://{address}"));
    } else if is_secure() {
        // By itself it would trust nobody.
        builder = builder.with_tls_config(Certificates::of_variables()?.for_grpc()?);
    }
    builder.build().map_err(|error| error.to_string())
}

fn http() -> Result<SpanExporter, String> {
    let mut builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    if is_secure() {
        builder = builder.with_http_client(secure_client()?);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Whether the variables want TLS.
fn is_secure() -> bool {
    ENDPOINTS.into_iter().find_map(variable).is_some_and(|it| it.starts_with("https:"))
}

fn secure_client() -> Result<HyperClient<HttpsConnector<HttpConnector>>, String> {
    let Certificates { ca, pair } = Certificates::of_variables()?;
    let tls = tls::of_a_client(ca.as_deref(), pair.as_ref()).map_err(|error| error.to_string())?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    let connector = builder.https_only().enable_http1().build();
    let millis = TIMEOUTS.into_iter().find_map(variable).and_then(|it| it.parse().ok());
    let timeout = millis.map_or(SEND_TIMEOUT, Duration::from_millis);
    Ok(HyperClient::new(connector, timeout, None))
}

/// What the variables say of TLS.
struct Certificates {
    /// Who may have signed the certificate of the collector; `None` for those whom the system trusts.
    ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pair: Option<(PathBuf, PathBuf)>,
}

impl Certificates {
    fn of_variables() -> Result<Self, String> {
        let file = |name| {
            [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")]
                .iter()
                .find_map(|name| variable(name))
                .map(PathBuf::from)
        };
        let pair = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                return Err(
                    "a certificate of a client needs its key, and the other way round".to_owned()
                );
            }
        };
        Ok(Self { ca: file("CERTIFICATE"), pair })
    }

    fn for_grpc(&self) -> Result<ClientTlsConfig, String> {
        let read = |file: &PathBuf| {
            std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
        };
        let mut tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = &self.pair {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }
}

/// Which requests are sampled whose clients do not say; `None` for what the variables, or the SDK, say.
fn sampler(options: &Options, has_variable: bool) -> Option<Sampler> {
    let rate = match options.sampling_rate {
        Some(rate) => rate,
        // etcd's default.
        None if options.enabled && !has_variable => 0,
        None => return None,
    };
    let root = match rate {
        0 => Sampler::AlwaysOff,
        rate => Sampler::TraceIdRatioBased(f64::from(rate) / RATE_MAX),
    };
    Some(Sampler::ParentBased(Box::new(root)))
}

/// What the spans are of: flags, then variables, then what we know ourselves.
fn resource(options: &Options, name: &str) -> Resource {
    let of_variables = Resource::builder().build();
    let default = if options.enabled { ETCD_SERVICE } else { SERVICE };
    let names_service = variable(SERVICE_NAME).is_some()
        || variable(RESOURCE).is_some_and(|attributes| attributes.contains(NAME_ATTRIBUTE));
    let service =
        options.service_name.as_deref().or(if names_service { None } else { Some(default) });
    let names_instance = of_variables.get_ref(&INSTANCE_ATTRIBUTE.into()).is_some();
    let instance =
        options.instance_id.as_deref().or(if names_instance { None } else { Some(name) });
    let mut builder = Resource::builder();
    if let Some(service) = service {
        builder = builder.with_service_name(service.to_owned());
    }
    if let Some(instance) = instance {
        let instance = instance.to_owned();
        builder = builder.with_attribute(Attribute::new(INSTANCE_ATTRIBUTE, instance));
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_traced_unless_somebody_says_where_to() {
        let is = |enabled, variables: &[(&str, &str)]| {
            let options = Options { enabled, ..Options::default() };
            let find = |name: &str| variables.iter().find(|(other, _)| *other == name);
            is_wanted(&options, &|name| find(name).map(|(_, value)| (*value).to_owned()))
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317");
        assert!(!is(false, &[]));
        assert!(!is(false, &[("OTEL_SERVICE_NAME", "s"), ("OTEL_TRACES_SAMPLER", "always_on")]));
        assert!(is(true, &[]) && is(false, &[endpoint]) && is(false, &[of_traces]));
        assert!(!is(true, &[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]));
        assert!(is(true, &[endpoint, ("OTEL_SDK_DISABLED", "1")]), "only the word counts");
        assert!(!is(true, &[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
    }

    #[test]
    fn etcds_rate_wins_over_the_variables_and_they_over_its_default() {
        let shown = |enabled, sampling_rate, has_variable| {
            let options = Options { enabled, sampling_rate, ..Options::default() };
            sampler(&options, has_variable).map(|sampler| format!("{sampler:?}"))
        };
        let off = Some("ParentBased(AlwaysOff)".to_owned());
        assert_eq!(shown(true, None, false), off);
        assert_eq!(shown(true, Some(0), true), off);
        let quarter = Some("ParentBased(TraceIdRatioBased(0.25))".to_owned());
        assert_eq!(shown(true, Some(250_000), true), quarter);
        assert_eq!(shown(true, None, true), None);
        assert_eq!(shown(false, None, false), None, "the SDK's: all of them");
    }
}
