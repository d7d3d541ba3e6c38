//! mehdb: `PUT /set/key` where the leader is, `GET /get/key` anywhere, `/keys` and `/status`.

use bytes::{Bytes, BytesMut};
use http::header::LOCATION;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Body;

use super::order::{self, Link};
use super::{
    Call, JSON, OCTETS, PAGE_KEYS, PIECE_BYTES, Pieces, Refusal, TEXT, bare, in_pieces, parameters,
    respond,
};
use crate::api::Context;
use crate::engine::Pair;
use crate::engine::command::Range;
use crate::error::Error;
use crate::http::AnswerBody;
use crate::types::{KeyRange, MediaType, WriteAck};

/// The keys that it can name begin with one of these.
const FIRST_LETTER: &[u8] = b"a";
const BEHIND_LAST_LETTER: &[u8] = b"{";
/// Before the first key of a list.
const BEGIN: &str = "[\"";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Route {
    Set(Bytes),
    Get(Bytes),
    Keys,
    Status,
}

impl Route {
    pub(super) fn find(path: &str) -> Option<Self> {
        let key =
            |key: &str| is_key(key.as_bytes()).then(|| Bytes::copy_from_slice(key.as_bytes()));
        match path {
            "/keys" => Some(Self::Keys),
            "/status" => Some(Self::Status),
            _ => match path.strip_prefix("/set/") {
                Some(rest) => key(rest).map(Self::Set),
                None => key(path.strip_prefix("/get/")?).map(Self::Get),
            },
        }
    }

    pub(super) fn shape(&self) -> &'static str {
        match self {
            Self::Set(_) => "/set/{key}",
            Self::Get(_) => "/get/{key}",
            Self::Keys => "/keys",
            Self::Status => "/status",
        }
    }
}

/// Whether this is a key that it can name.
fn is_key(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(u8::is_ascii_lowercase)
}

pub(super) async fn answer<B>(call: &Call, route: Route, body: B) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answered = match (route, &call.head.method) {
        (Route::Set(key), &Method::PUT) => set(call, key, body).await,
        (Route::Get(key), &Method::GET) => get(call, key).await,
        (Route::Keys, &Method::GET) => keys(call).await,
        (Route::Status, &Method::GET) => status(call).await,
        (Route::Set(_), _) => Err(Refusal::wrong_method("PUT")),
        _ => Err(Refusal::wrong_method("GET")),
    };
    answered.unwrap_or_else(|refusal| refusal.in_plain_text())
}

/// The first of the chain, if that is another member.
fn other_leader(context: &Context) -> Option<Link> {
    let leader = order::chain(&context.node).into_iter().next()?;
    (leader.member != context.node.member().id).then_some(leader)
}

/// The leader answers when every member that is alive has it; others say who that is.
async fn set<B>(call: &Call, key: Bytes, body: B) -> Result<Response<AnswerBody>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let access = call.access().await?;
    // Whoever is still sending does not read.
    let value = call.body(body, call.max_bytes()).await?;
    if let Some(leader) = other_leader(&call.context) {
        return redirect(call, &leader, &key);
    }
    call.write(&access, (key, value), MediaType::NONE, Some(WriteAck::Everybody)).await?;
    Ok(respond(StatusCode::OK, "WRITE completed", TEXT))
}

fn redirect(call: &Call, leader: &Link, key: &[u8]) -> Result<Response<AnswerBody>, Refusal> {
    let unknown = || {
        let text = format!("the leader {} says nowhere to reach it", leader.record.name);
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let (scheme, address) = leader.client().ok_or_else(unknown)?;
    let address = match (call.port, address.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("{host}:{port}"),
        _ => address.to_owned(),
    };
    let location = format!("{scheme}://{address}/set/{}", String::from_utf8_lossy(key));
    let mut response = bare(StatusCode::TEMPORARY_REDIRECT);
    let location = HeaderValue::try_from(location).map_err(|_| unknown())?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

async fn get(call: &Call, key: Bytes) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    match call.read(&access, key).await? {
        Some(value) => Ok(respond(StatusCode::OK, value, OCTETS)),
        None => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
    }
}

/// Which it is, and by `level=full` how many keys it can serve.
async fn status(call: &Call) -> Result<Response<AnswerBody>, Refusal> {
    let is_full = parameters(call.head.uri.query(), "level").any(|level| level == b"full");
    if !is_full {
        // Who has not joined yet knows nobody.
        let leads = call.context.node.is_ready() && other_leader(&call.context).is_none();
        let role = if leads { "leader" } else { "follower" };
        return Ok(respond(StatusCode::OK, role, TEXT));
    }
    let mut pages = Pages::new(call);
    let mut count = 0;
    loop {
        // Whatever it is, it is not ready then.
        let page = pages.next().await.map_err(|error| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Refusal::from(error).text)
        })?;
        let Some(page) = page else { break };
        count += page.iter().filter(|pair| is_key(pair.key())).count();
        tokio::task::yield_now().await;
    }
    Ok(respond(StatusCode::OK, count.to_string(), TEXT))
}

async fn keys(call: &Call) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    access.read(&range_of_keys())?;
    call.context.node.begin_read().await?;
    let mut list = List { pages: Pages::new(call), before: BEGIN, is_over: false };
    let first = list.next_piece().await?.unwrap_or_default();
    if list.is_over {
        return Ok(respond(StatusCode::OK, first, JSON));
    }
    Ok(in_pieces(first, list, JSON))
}

fn range_of_keys() -> KeyRange {
    let (start, end) = (Bytes::from_static(FIRST_LETTER), Bytes::from_static(BEHIND_LAST_LETTER));
    KeyRange::from_request(start, end)
}

/// The keys that begin with a small letter, some at a time, at one revision.
struct Pages {
    context: Context,
    /// Where the next one starts; `None` behind the last one.
    next: Option<Bytes>,
    /// Zero before the first one.
    revision: i64,
}

impl Pages {
    fn new(call: &Call) -> Self {
        let next = Some(Bytes::from_static(FIRST_LETTER));
        Self { context: call.context.clone(), next, revision: 0 }
    }

    async fn next(&mut self) -> Result<Option<Vec<Pair>>, Error> {
        let Some(start) = self.next.take() else { return Ok(None) };
        let whole = range_of_keys();
        let range = KeyRange { start, ..whole };
        let (revision, limit) = (self.revision, Some(PAGE_KEYS));
        let range = Range { revision, limit, keys_only: true, ..Range::new(range) };
        let reply = self.context.node.range(range).await?;
        self.context.metrics.ranges.inc();
        self.revision = reply.revision.shown();
        let pairs = reply.body.kvs;
        if reply.body.more
            && let Some(last) = pairs.last()
        {
            let mut next = BytesMut::from(last.key());
            next.extend_from_slice(&[0]);
            self.next = Some(next.freeze());
        }
        Ok(Some(pairs))
    }
}

/// A list in JSON. The keys that are listed have nothing in them that would need an escape.
struct List {
    pages: Pages,
    /// What goes before the next key.
    before: &'static str,
    is_over: bool,
}

impl Pieces for List {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES && !self.is_over {
            for pair in self.pages.next().await?.iter().flatten() {
                if is_key(pair.key()) {
                    for part in [self.before.as_bytes(), pair.key(), b"\""] {
                        piece.extend_from_slice(part);
                    }
                    self.before = ",\"";
                }
            }
            if self.pages.next.is_none() {
                // None was listed.
                let end: &[u8] = if self.before == BEGIN { b"[]" } else { b"]" };
                piece.extend_from_slice(end);
                self.is_over = true;
            }
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_small_letters() {
        assert_eq!(Route::find("/set/abc"), Some(Route::Set("abc".into())));
        assert_eq!(Route::find("/get/z"), Some(Route::Get("z".into())));
        for path in ["/set/", "/set/A", "/set/a1", "/get/a/b", "/get/a%62", "/set/a-b", "/get"] {
            assert_eq!(Route::find(path), None, "{path}");
        }
    }
}
