//! The HTTP faces of four earlier systems, on the one keyspace: what their users' scripts ask for is answered here.
//!
//! ```text
//!   PUT /map?k=foo        POST /store/set       POST /keys/foo
//!        │ gossipcar           │ chain               │ yzma         a face each: parses, formats, and keeps nothing
//!        └────────────│────────┘─────────────────────┘
//!                     ▼
//!                node::Handle, as for the gRPC services; so a key that is written by one face is read by all
//! ```
//!
//! Off unless `--http-faces` names them. Who asks and what they may do is the same as for gRPC ([`Access`]), by
//! `Authorization`. Bodies are bounded when they are read, and what may be large is sent in pieces; what is wrong becomes a
//! [`Refusal`], which each face words in its own way. Who is the leader, or head, and the tail is derived from who seems alive
//! ([`order`]): nobody is elected. `docs/faces.md` has every request and its answer.

mod chain;
mod gossipcar;
mod mehdb;
mod order;
mod yzma;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::limit::too_slow;
use super::{Answer, AnswerBody};
use crate::api::{Access, Context};
use crate::engine::command::{Put, Range};
use crate::error::{AuthError, Error};
use crate::metrics::FaceMetrics;
use crate::node::{Handle, WRITE_ACK};
use crate::types::{Faces as Served, KeyRange, KeyValue, MediaType, WriteAck};

/// What is gathered of an answer before it is sent; what is larger goes out in pieces of about this size.
const PIECE_BYTES: usize = 256 * 1024;
/// How many keys are looked up at once for a list.
const PAGE_KEYS: usize = 512;
/// What JSON around a value may take in a request: names, quotes, and an escape of six bytes for each of its own at worst.
const JSON_EXPANSION: usize = 6;

const JSON: &str = "application/json";
const OCTETS: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";
/// What a browser should ask its user for.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"starling\"");

/// Which of them are served, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaceOptions {
    /// Which.
    pub faces: Served,
    /// The port of other members on which they serve theirs, if that is not the one for clients.
    pub port: Option<u16>,
}

/// The faces that are served.
pub(super) struct Faces {
    context: Context,
    options: FaceOptions,
    /// How long a body may take to come.
    body_timeout: Duration,
    counters: [FaceMetrics; 4],
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Gossipcar(gossipcar::Route),
    Mehdb(mehdb::Route),
    Chain(chain::Route),
    Yzma(yzma::Route),
}

impl Route {
    /// `None` for a path that none of the faces has.
    fn find(faces: Served, path: &str) -> Option<Self> {
        let gossipcar = || gossipcar::Route::find(path).map(Self::Gossipcar);
        let mehdb = || mehdb::Route::find(path).map(Self::Mehdb);
        let chain = || chain::Route::find(path).map(Self::Chain);
        let yzma = || yzma::Route::find(path).map(Self::Yzma);
        // No path is of two faces.
        (faces.gossipcar.then(gossipcar).flatten())
            .or_else(|| faces.mehdb.then(mehdb).flatten())
            .or_else(|| faces.chain.then(chain).flatten())
            .or_else(|| faces.yzma.then(yzma).flatten())
    }

    fn face(&self) -> usize {
        match self {
            Self::Gossipcar(_) => 0,
            Self::Mehdb(_) => 1,
            Self::Chain(_) => 2,
            Self::Yzma(_) => 3,
        }
    }

    /// The form of its path, for traces. Keys do not belong there.
    fn shape(&self) -> &'static str {
        match self {
            Self::Gossipcar(route) => route.shape(),
            Self::Mehdb(route) => route.shape(),
            Self::Chain(route) => route.shape(),
            Self::Yzma(route) => route.shape(),
        }
    }
}

impl Faces {
    /// `None` if there is none to serve.
    pub(super) fn new(
        context: &Context,
        options: FaceOptions,
        body_timeout: Duration,
    ) -> Option<Self> {
        if !options.faces.any() {
            return None;
        }
        let counters =
            [gossipcar::FACE, "mehdb", "chain", "yzma"].map(|face| context.metrics.face(face));
        Some(Self { context: context.clone(), options, body_timeout, counters })
    }

    /// What a path names; `None` if it is none of these.
    pub(super) fn find(&self, path: &str) -> Option<Route> {
        Route::find(self.options.faces, path)
    }

    pub(super) fn call<B>(&self, route: Route, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let counters = self.counters[route.face()].clone();
        let mut context = self.context.clone();
        let span = context.node.traces().and_then(|traces| {
            let names = (method_name(&head.method), route.shape());
            traces.http_request(names, &head.headers, context.node.member().id)
        });
        if let Some(span) = &span {
            context.node = context.node.with_span(Arc::clone(span));
        }
        let (port, body_timeout) = (self.options.port, self.body_timeout);
        let call = Call { context, head, port, body_timeout };
        Answer::Path(Box::pin(async move {
            let response = match route {
                Route::Gossipcar(route) => gossipcar::answer(&call, route, body).await,
                Route::Mehdb(route) => mehdb::answer(&call, route, body).await,
                Route::Chain(route) => chain::answer(&call, route, body).await,
                Route::Yzma(route) => yzma::answer(&call, &route, body).await,
            };
            let status = response.status();
            let is_good = status.is_success() || status.is_redirection();
            if is_good {
                counters.good.inc()
            } else {
                counters.bad.inc()
            };
            if let Some(span) = span {
                span.finish_http(status.as_u16());
            }
            response
        }))
    }
}

/// Names of spans are few.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// A request, but for its body.
struct Call {
    context: Context,
    head: Parts,
    /// Where other members serve their faces, if that is not their port for clients.
    port: Option<u16>,
    body_timeout: Duration,
}

impl Call {
    /// Who asks. Looked at before anything is read.
    async fn access(&self) -> Result<Access, Refusal> {
        Ok(Access::of_http(&self.context, &self.head.headers).await?)
    }

    /// The largest key with its value.
    fn max_bytes(&self) -> usize {
        self.context.max_request_bytes
    }

    /// The body, in time.
    async fn body<B>(&self, body: B, max: usize) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, too_slow().message());
        timeout(self.body_timeout, read_body(body, max)).await.map_err(late)?
    }

    /// The value of a key, with what its put says of it.
    async fn read(&self, access: &Access, key: Bytes) -> Result<Option<Bytes>, Refusal> {
        let range = Range::new(KeyRange::single(key));
        access.range(&range)?;
        self.context.node.begin_read().await?;
        let reply = self.context.node.range(range).await?;
        self.context.metrics.ranges.inc();
        Ok(reply.body.kvs.first().map(|pair| KeyValue::from(pair).value))
    }

    /// Writes a key. Answers whether it is new.
    async fn write(
        &self,
        access: &Access,
        (key, value): (Bytes, Bytes),
        media_type: MediaType,
        ack: Option<WriteAck>,
    ) -> Result<bool, Refusal> {
        if key.len() + value.len() > self.max_bytes() {
            return Err(Refusal::too_large());
        }
        let mut put = Put { key, value, media_type, ..Put::default() };
        access.put(&self.context, &put)?;
        // Nobody is told what was there, only that it was.
        put.prev_kv = true;
        let reply = self.node_with(ack)?.put(put).await?;
        self.context.metrics.puts.inc();
        Ok(reply.body.prev_kv.is_none())
    }
}

impl Call {
    /// The member, for a write that waits for others: as the face does, or the request says, or else as the member is set up.
    fn node_with(&self, ack: Option<WriteAck>) -> Result<Handle, Refusal> {
        let node = &self.context.node;
        if let Some(ack) = ack {
            return Ok(node.with_ack(ack));
        }
        let Some(said) = self.head.headers.get(WRITE_ACK) else { return Ok(node.clone()) };
        let ack = said.to_str().map_err(|_| "expected text".to_owned()).and_then(str::parse);
        let wrong = |what| Refusal::new(StatusCode::BAD_REQUEST, format!("{WRITE_ACK}: {what}"));
        Ok(node.with_ack(ack.map_err(wrong)?))
    }
}

/// Why a request gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    code: StatusCode,
    text: String,
    /// Which methods there are, if it was the wrong one.
    allow: Option<&'static str>,
}

impl Refusal {
    fn new(code: StatusCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), allow: None }
    }

    fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request is too large")
    }

    fn wrong_method(allow: &'static str) -> Self {
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        Self { allow: Some(allow), ..refusal }
    }

    /// With a body of whatever form.
    fn with_body(
        &self,
        body: impl Into<Bytes>,
        content_type: &'static str,
    ) -> Response<AnswerBody> {
        let mut response = respond(self.code, body, content_type);
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.code == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    }

    /// The text, on a line.
    fn in_plain_text(&self) -> Response<AnswerBody> {
        self.with_body(format!("{}\n", self.text), TEXT)
    }
}

impl From<Error> for Refusal {
    /// What is wrong with the store is 500, as these systems had it.
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Auth(AuthError::PermissionDenied) => StatusCode::FORBIDDEN,
            Error::Auth(_) => StatusCode::UNAUTHORIZED,
            Error::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Stopped | Error::NotReady | Error::ClockSkew | Error::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, Status::from(error).message())
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        Error::Auth(error).into()
    }
}

/// All of a body, which may not have more than so many bytes.
async fn read_body<B>(mut body: B, max: usize) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if usize::try_from(body.size_hint().lower()).is_ok_and(|bytes| bytes > max) {
        return Err(Refusal::too_large());
    }
    // Mostly all of it comes at once, and need not be copied.
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let text = Status::new(Code::Unknown, error.into().to_string()).message().to_owned();
            Refusal::new(StatusCode::BAD_REQUEST, text)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + whole.len() + data.len() > max {
            return Err(Refusal::too_large());
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut first));
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// A key that is the rest of a path: one segment, with any bytes as `%xx`.
fn key_of(segment: &str) -> Option<Bytes> {
    let is_segment = !segment.is_empty() && !segment.contains('/');
    is_segment.then(|| percent_decode_str(segment).collect::<Vec<u8>>().into())
}

/// The values of a parameter, in order.
fn parameters<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    let pairs = query.unwrap_or_default().split('&');
    let named = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    named.filter(move |(of, _)| *of == name).map(|(_, value)| {
        let value = value.replace('+', " ");
        percent_decode_str(&value).collect()
    })
}

fn respond(
    code: StatusCode,
    body: impl Into<Bytes>,
    content_type: &'static str,
) -> Response<AnswerBody> {
    let body = body.into();
    let is_empty = body.is_empty();
    let mut response = Response::new(AnswerBody::new(Full::new(body)));
    *response.status_mut() = code;
    if !is_empty {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}

/// Nothing but a status.
fn bare(code: StatusCode) -> Response<AnswerBody> {
    respond(code, Bytes::new(), TEXT)
}

/// An answer that is made piece by piece, as its client reads it.
trait Pieces {
    /// The next one; `None` at the end.
    fn next_piece(&mut self) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;
}

/// The first piece, and then the others. What goes wrong later breaks the answer off.
fn in_pieces<P>(first: Bytes, pieces: P, content_type: &'static str) -> Response<AnswerBody>
where
    P: Pieces + Send + 'static,
{
    let frames = stream::unfold((Some(first), Some(pieces)), |(first, pieces)| async move {
        let mut pieces = pieces?;
        if let Some(first) = first {
            return Some((Ok(Frame::data(first)), (None, Some(pieces))));
        }
        match pieces.next_piece().await {
            Ok(piece) => piece.map(|piece| (Ok(Frame::data(piece)), (None, Some(pieces)))),
            Err(error) => Some((Err(Status::from(error)), (None, None))),
        }
    });
    let mut response = Response::new(AnswerBody::new(StreamBody::new(Box::pin(frames))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What a path names, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn look(url: &http::Uri) {
    let route = Route::find(Served::ALL, url.path());
    let keys = parameters(url.query(), "k").map(|key| key.len()).sum::<usize>();
    assert!(keys <= url.query().unwrap_or_default().len(), "{route:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_one_segment() {
        let found = |segment| key_of(segment).map(|key| key.to_vec());
        assert_eq!(found("a%2Fb%00%ff"), Some(b"a/b\0\xff".to_vec()));
        assert_eq!(found("a+b"), Some(b"a+b".to_vec()), "a plus is one in a path");
        for none in ["", "/", "a/b", "../a"] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn parameters_come_in_order() {
        let found = |query| parameters(Some(query), "k").collect::<Vec<_>>();
        assert_eq!(found("k=b&x=y&k=a%20+c&k"), [b"b".to_vec(), b"a  c".to_vec(), vec![]]);
        assert_eq!(found("kk=a&K=b").len() + parameters(None, "k").count(), 0);
    }

    #[test]
    fn no_path_is_of_two_faces() {
        let paths = [
            "/",
            "/map",
            "/stats",
            "/set/a",
            "/get/a",
            "/status",
            "/keys",
            "/keys/a",
            "/store/set",
            "/store/get/a",
            "/chain",
            "/chain/index",
            "/chain/health",
            "/chain/neighbors",
            "/neighbor",
            "/neighbor/a",
            "/cluster/join",
            "/cluster/leave",
        ];
        let each = [
            Served { gossipcar: true, ..Served::default() },
            Served { mehdb: true, ..Served::default() },
            Served { chain: true, ..Served::default() },
            Served { yzma: true, ..Served::default() },
        ];
        for path in paths {
            let owners = each.iter().filter(|faces| Route::find(**faces, path).is_some());
            assert_eq!(owners.count(), 1, "{path}");
            assert_eq!(Route::find(Served::default(), path), None, "{path}");
        }
        for path in ["/health", "/metrics", "/version", "/v3/kv/put", "/map/", "/store", "/set/"] {
            assert_eq!(Route::find(Served::ALL, path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn bodies_are_bounded_however_they_come() {
        let body = |pieces: &[&'static str]| {
            let frame = |piece: &&'static str| Ok::<_, Status>(Frame::data((*piece).into()));
            StreamBody::new(tokio_stream::iter(pieces.iter().map(frame).collect::<Vec<_>>()))
        };
        for pieces in [&["abcd"][..], &["ab", "", "cd"], &["a", "bcd"], &["", "abcd"]] {
            assert_eq!(read_body(body(pieces), 4).await, Ok(Bytes::from_static(b"abcd")));
            assert_eq!(read_body(body(pieces), 3).await, Err(Refusal::too_large()));
        }
        let known = Full::new(Bytes::from_static(b"abcd"));
        assert_eq!(read_body(known, 3).await, Err(Refusal::too_large()));
    }
}
