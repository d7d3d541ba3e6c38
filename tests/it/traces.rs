//! Traces of requests, as a collector gets them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use prost::Message as _;
use starling::traces::{Options, Traces};
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::faces::ask;
use crate::member::{Member, eventually};
use crate::process::Process;
use crate::tls::{Ca, Pair};

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const CLIENT_SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

/// A span, as far as it is looked at.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    instance: String,
    name: String,
    trace: u128,
    id: u64,
    parent: u64,
    took: u64,
    attributes: BTreeMap<String, String>,
}

/// Takes spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    fn spans(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    /// How many spans of each name each instance has sent.
    fn counts(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for span in self.spans() {
            *counts.entry((span.instance, span.name)).or_default() += 1;
        }
        counts
    }

    /// Waits until these have been sent, so often each.
    async fn until(&self, traces: &[Arc<Traces>], wanted: &[(&str, &str, usize)]) {
        let wanted = wanted.iter().map(|(who, what, n)| (((*who).into(), (*what).into()), *n));
        let wanted: BTreeMap<_, _> = wanted.collect();
        eventually("all spans", || {
            tokio::task::block_in_place(|| traces.iter().for_each(|traces| traces.flush()));
            let counts = self.counts();
            assert!(counts.keys().all(|key| wanted.contains_key(key)), "{counts:?}");
            counts == wanted
        })
        .await;
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn take(&self, request: ExportTraceServiceRequest) {
        let mut seen = self.0.lock().unwrap();
        for of_resource in request.resource_spans {
            let resource = texts(of_resource.resource.unwrap_or_default().attributes);
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen {
                    service: resource["service.name"].clone(),
                    instance: resource["service.instance.id"].clone(),
                    name: span.name,
                    trace: u128::from_be_bytes(span.trace_id.try_into().unwrap()),
                    id: u64::from_be_bytes(span.span_id.try_into().unwrap()),
                    parent: span.parent_span_id.try_into().map_or(0, u64::from_be_bytes),
                    took: span.end_time_unix_nano - span.start_time_unix_nano,
                    attributes: texts(span.attributes),
                });
            }
        }
    }

    /// By gRPC with TLS.
    async fn start_secure(pair: &Pair) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self::default();
        let read = |path| std::fs::read(path).unwrap();
        let identity = Identity::from_pem(read(&pair.cert), read(&pair.key));
        let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity));
        let server = server.unwrap().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    /// By HTTP/1.1 with TLS.
    async fn start_secure_http(pair: &Pair) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self::default();
        let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let taker = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let collector = taker.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let collector = collector.clone();
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        let body = request.into_body().collect().await?.to_bytes();
                        collector.take(ExportTraceServiceRequest::decode(body).unwrap());
                        Ok::<_, hyper::Error>(http::Response::new(Full::<Bytes>::default()))
                    }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        (collector, address)
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|it| (it.key, text(it.value))).collect()
}

/// A put that is part of a client's trace, or not.
fn put(key: &'static str, is_sampled: Option<bool>) -> Request<PutRequest> {
    let mut request =
        Request::new(PutRequest { key: key.into(), value: "secret".into(), ..<_>::default() });
    if let Some(is_sampled) = is_sampled {
        let flags = u8::from(is_sampled);
        let parent = format!("00-{TRACE:032x}-{CLIENT_SPAN:016x}-{flags:02x}");
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    }
    request
}

/// Three members that have met, and send the spans of requests that are sampled already.
async fn cluster() -> (Collector, Vec<Arc<Traces>>, Vec<Member>) {
    let (collector, address) = Collector::start().await;
    let start = |member| {
        let address = Some(address.to_string());
        let options = Options { enabled: true, address, ..Options::default() };
        let traces = Traces::start(&options, &format!("m{member}")).expect("sound settings");
        Arc::new(traces.expect("it is wanted"))
    };
    let traces: Vec<_> = (1..=3).map(start).collect();
    let of = |member: u64| traces.get(usize::try_from(member - 1).unwrap()).cloned();
    let members = Member::found_traced(3, of);
    for member in &members {
        eventually("all are members, and alive", || {
            let (known, live) = (member.handle().members(), member.handle().live_members());
            live.len() == 3 && known.len() == 3 && known.values().all(|record| record.tag != 0)
        })
        .await;
    }
    (collector, traces, members)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_on_its_way_to_every_member_is_one_trace() {
    let (collector, traces, members) = cluster().await;
    let mut kv = KvClient::new(members[0].channel().await);
    for is_sampled in [None, Some(false)] {
        kv.put(put("unseen", is_sampled)).await.expect("it is put");
    }
    let reply = kv.put(put("hidden", Some(true))).await.expect("it is put");
    let revision = reply.into_inner().header.expect("a header").revision;
    let wanted = [
        ("m1", "etcdserverpb.KV/Put", 1),
        ("m1", "queue", 1),
        ("m1", "commit", 1),
        ("m1", "replicate", 2),
        ("m2", "apply", 1),
        ("m3", "apply", 1),
    ];
    collector.until(&traces, &wanted).await;

    let spans = collector.spans();
    let root = spans.iter().find(|span| span.name.ends_with("Put")).expect("it was counted");
    assert_eq!(root.parent, CLIENT_SPAN);
    assert_eq!(root.attributes["rpc.grpc.status_code"], "0");
    assert_eq!(root.attributes["starling.keys"], "1");
    assert_eq!(root.attributes["starling.revision"], revision.to_string());
    for span in &spans {
        assert_eq!(span.trace, TRACE, "{span:?}");
        assert!(span.id == root.id || span.parent == root.id, "{span:?}");
        assert!(span.took < 30_000_000_000, "{span:?}");
        let text = format!("{span:?}");
        assert!(!text.contains("hidden") && !text.contains("secret"), "{text}");
    }
    let peers = spans.iter().filter_map(|span| span.attributes.get("starling.peer"));
    let appliers = spans.iter().filter(|span| span.name == "apply");
    let appliers = appliers.map(|span| &span.attributes["starling.member"]);
    let (mut peers, mut appliers): (Vec<_>, Vec<_>) = (peers.collect(), appliers.collect());
    peers.sort_unstable();
    appliers.sort_unstable();
    assert_eq!(peers, appliers, "those that have it are those that said so");
}

/// Rows C10 and C11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_by_the_chains_interface_is_one_trace() {
    let (collector, traces, members) = cluster().await;
    let parent = format!("traceparent: 00-{TRACE:032x}-{CLIENT_SPAN:016x}-01\r\n");
    let body = br#"{"key":"hidden","value":"secret"}"#;
    let answer = ask(members[1].address, "POST /store/set", &parent, body).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    let name = "POST /store/set";
    let wanted = [
        ("m2", name, 1),
        ("m2", "queue", 1),
        ("m2", "commit", 1),
        ("m2", "replicate", 2),
        ("m1", "apply", 1),
        ("m3", "apply", 1),
    ];
    collector.until(&traces, &wanted).await;
    let spans = collector.spans();
    let root = spans.iter().find(|span| span.name == name).expect("it was counted");
    assert_eq!(root.parent, CLIENT_SPAN);
    assert_eq!(root.attributes["http.response.status_code"], "200");
    for span in &spans {
        assert!(span.trace == TRACE && (span.id == root.id || span.parent == root.id), "{span:?}");
        let text = format!("{span:?}");
        assert!(!text.contains("hidden") && !text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_another_member_answers_is_one_trace() {
    let (collector, traces, members) = cluster().await;
    let mut kv = KvClient::new(members[0].channel().await);
    let reply = kv.put(put("k", None)).await.expect("it is put").into_inner();
    let revision = reply.header.expect("a header").revision;
    let mut read = Request::new(RangeRequest { key: "k".into(), revision, ..<_>::default() });
    *read.metadata_mut() = put("k", Some(true)).metadata().clone();
    let mut other = KvClient::new(members[1].channel().await);
    other.range(read).await.expect("the first one answers");

    let range = "etcdserverpb.KV/Range";
    collector.until(&traces, &[("m1", range, 1), ("m2", range, 1)]).await;
    let spans = collector.spans();
    let of = |instance| spans.iter().find(|it| it.instance == instance).expect("it was counted");
    assert_eq!((of("m2").trace, of("m2").parent), (TRACE, CLIENT_SPAN));
    assert_eq!((of("m1").trace, of("m1").parent), (TRACE, of("m2").id));
    assert_eq!(of("m1").attributes["starling.keys"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_variables_of_opentelemetry_are_enough() {
    let (collector, address) = Collector::start().await;
    let endpoint = format!("http://{address}");
    let dir = tempfile::tempdir().unwrap();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_SERVICE_NAME", "orders"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=first"),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
    ];
    let process = Process::try_start_in(dir.path(), &[], &environment).expect("it starts");
    let mut kv = process.kv().await;
    kv.put(put("k", None)).await.expect("it is put");
    kv.put(put("", None)).await.expect_err("no key");
    kv.range(RangeRequest { key: "k".into(), ..<_>::default() }).await.expect("it is read");
    tokio::task::spawn_blocking(|| process.stop()).await.expect("what is left is sent first");

    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let puts = spans.iter().filter(|span| span.name == "etcdserverpb.KV/Put");
    let codes: Vec<_> = puts.map(|span| span.attributes["rpc.grpc.status_code"].as_str()).collect();
    assert_eq!(codes, ["0", "3"], "{names:?}");
    assert_eq!(spans.len(), 5, "a queue and a commit, two puts and a range: {names:?}");
    for span in &spans {
        assert_eq!((span.service.as_str(), span.instance.as_str()), ("orders", "first"));
    }
    let traces: Vec<_> = spans.iter().filter(|span| span.parent == 0).map(|it| it.trace).collect();
    assert_eq!(traces.len(), 3, "{spans:?}");
}

/// Who has signed the collector's certificate is said by OpenTelemetry's variable, or is known to the system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collectors_with_tls_are_sent_to_if_they_are_trusted() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let pair = ca.pair("collector");
    let trusts = |ca: &Ca, variable| (variable, ca.file("ca.pem").display().to_string());
    let of_the_system = "SSL_CERT_FILE";
    let of_traces = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let cases = [
        ("grpc", trusts(&ca, of_traces), true),
        ("grpc", trusts(&ca, of_the_system), true),
        ("grpc", trusts(&stranger, of_the_system), false),
        ("http/protobuf", trusts(&ca, of_traces), true),
        ("http/protobuf", trusts(&ca, of_the_system), true),
        ("http/protobuf", trusts(&stranger, of_traces), false),
    ];
    for (protocol, (variable, file), is_trusted) in cases {
        let (collector, address) = if protocol == "grpc" {
            Collector::start_secure(&pair).await
        } else {
            Collector::start_secure_http(&pair).await
        };
        let endpoint = format!("https://{address}");
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
            (variable, &file),
        ];
        let dir = tempfile::tempdir().unwrap();
        let process = Process::try_start_in(dir.path(), &[], &environment).expect("it starts");
        process.kv().await.put(put("k", None)).await.expect("it is put");
        tokio::task::spawn_blocking(|| process.stop()).await.expect("it stops");
        let has_come = collector.spans().iter().any(|span| span.name == "etcdserverpb.KV/Put");
        assert_eq!(has_come, is_trusted, "{protocol}, {variable}");
    }
}
