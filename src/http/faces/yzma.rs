//! YzmaDB: `POST`, `GET` and `DELETE /keys/key`, with media types and all versions that are kept, and joining and leaving.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{Method, Response, StatusCode};
use http_body::Body;
use serde::{Deserialize, Serialize};

use super::{
    Call, JSON, OCTETS, PIECE_BYTES, Pieces, Refusal, in_pieces, key_of, parameters, respond,
};
use crate::api::Context;
use crate::engine::KeyVersion;
use crate::engine::command::DeleteRange;
use crate::error::Error;
use crate::http::AnswerBody;
use crate::types::{KeyRange, MediaType, Revision};

/// How many versions are looked up at once, and how many are listed at most.
const PAGE_VERSIONS: usize = 64;
const VERSIONS_MAX: usize = 4096;
/// A list of peers has no more bytes.
const PEERS_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Route {
    Key(Bytes),
    Join,
    Leave,
}

impl Route {
    pub(super) fn find(path: &str) -> Option<Self> {
        match path {
            "/cluster/join" => Some(Self::Join),
            "/cluster/leave" => Some(Self::Leave),
            _ => key_of(path.strip_prefix("/keys/")?).map(Self::Key),
        }
    }

    pub(super) fn shape(&self) -> &'static str {
        match self {
            Self::Key(_) => "/keys/{key}",
            Self::Join => "/cluster/join",
            Self::Leave => "/cluster/leave",
        }
    }
}

/// The form of what is said of a write, and of joining.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    status: &'static str,
    data: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failed<'a> {
    status: &'static str,
    error: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Found<'a> {
    status: &'static str,
    error: &'static str,
    data: String,
    #[serde(rename = "Type")]
    media_type: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Peers {
    peers: Vec<String>,
}

/// A version of a key, in the list of all of them.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version<'a> {
    data: String,
    #[serde(rename = "Type")]
    media_type: &'a str,
    revision: u64,
    version: u64,
    stamp: VersionStamp,
    origin: VersionOrigin,
}

/// When its entry was accepted: milliseconds since 1970, and a counter among those of the same one.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VersionStamp {
    millis: u64,
    counter: u32,
}

/// By which run of which member.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VersionOrigin {
    member: String,
    run: String,
}

pub(super) async fn answer<B>(call: &Call, route: &Route, body: B) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answered = match (route, &call.head.method) {
        (Route::Key(key), &Method::POST) => post(call, key, body).await,
        (Route::Key(key), &Method::GET) => get(call, key).await,
        (Route::Key(key), &Method::DELETE) => delete(call, key).await,
        (Route::Join, &Method::POST) => join(call, body).await,
        (Route::Leave, &Method::POST) => leave(call).await,
        (Route::Key(_), _) => Err(Refusal::wrong_method("DELETE, GET, POST")),
        (Route::Join | Route::Leave, _) => Err(Refusal::wrong_method("POST")),
    };
    answered.unwrap_or_else(|refusal| {
        let body = text_of(&Failed { status: "error", error: &refusal.text });
        refusal.with_body(body, JSON)
    })
}

fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers can be written")
}

fn done(data: String) -> Response<AnswerBody> {
    respond(StatusCode::OK, text_of(&Done { status: "ok", data }), JSON)
}

/// What was said of a value, or else what may be taken for granted.
fn shown(media_type: &MediaType) -> &str {
    if media_type.is_some() { media_type.as_str() } else { OCTETS }
}

async fn post<B>(call: &Call, key: &Bytes, body: B) -> Result<Response<AnswerBody>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let access = call.access().await?;
    let said = call.head.headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let media_type = MediaType::parse(said).ok_or_else(|| {
        let text = format!(
            "a Content-Type has at most {} characters, all of them printable ASCII",
            MediaType::BYTES_MAX
        );
        Refusal::new(StatusCode::BAD_REQUEST, text)
    })?;
    let value = call.body(body, call.max_bytes()).await?;
    call.write(&access, (key.clone(), value), media_type, None).await?;
    Ok(done(format!("added {}", String::from_utf8_lossy(key))))
}

async fn get(call: &Call, key: &Bytes) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    access.read(&KeyRange::single(key.clone()))?;
    let node = &call.context.node;
    node.begin_read().await?;
    let not_found = || Refusal::new(StatusCode::NOT_FOUND, "not found");
    let wants_all = parameters(call.head.uri.query(), "all").any(|value| value == b"true");
    if !wants_all {
        let newest = node.versions(key.clone(), None, 1, 0).await?;
        call.context.metrics.ranges.inc();
        let KeyVersion { kv, .. } = newest.first().ok_or_else(not_found)?;
        let (data, media_type) = (BASE64.encode(&kv.value), shown(&kv.media_type));
        let found = Found { status: "ok", error: "", data, media_type };
        return Ok(respond(StatusCode::OK, text_of(&found), JSON));
    }
    let mut list = List {
        context: call.context.clone(),
        key: key.clone(),
        through: None,
        left: VERSIONS_MAX,
        before: BEGIN,
        is_over: false,
    };
    let first = list.next_piece().await?.ok_or_else(not_found)?;
    if list.is_over {
        return Ok(respond(StatusCode::OK, first, JSON));
    }
    Ok(in_pieces(first, list, JSON))
}

/// Before the first version.
const BEGIN: &str = "{\"Status\":\"ok\",\"Error\":\"\",\"Data\":[";
const END: &[u8] = b"]}";

/// All versions of a key that are kept, newest first; none at all if it is not there.
struct List {
    context: Context,
    key: Bytes,
    /// The next one is no newer than that.
    through: Option<Revision>,
    /// How many more are listed at most.
    left: usize,
    before: &'static str,
    is_over: bool,
}

impl Pieces for List {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES && !self.is_over {
            let (key, count) = (self.key.clone(), self.left.min(PAGE_VERSIONS));
            let node = &self.context.node;
            let page = node.versions(key, self.through, count, PIECE_BYTES).await?;
            self.context.metrics.ranges.inc();
            for version in &page {
                piece.extend_from_slice(self.before.as_bytes());
                piece.extend_from_slice(text_of(&Version::of(version)).as_bytes());
                self.before = ",";
            }
            self.left -= page.len();
            self.through = page.last().map(|oldest| oldest.kv.mod_revision.prev());
            if self.left == 0 || self.through.is_none() {
                self.is_over = true;
                // Who has not been found has no list.
                if self.before != BEGIN {
                    piece.extend_from_slice(END);
                }
            }
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

impl<'a> Version<'a> {
    fn of(KeyVersion { kv, stamp }: &'a KeyVersion) -> Self {
        let (time, origin) = (stamp.time, stamp.origin);
        Self {
            data: BASE64.encode(&kv.value),
            media_type: shown(&kv.media_type),
            revision: kv.mod_revision.0,
            version: kv.version,
            stamp: VersionStamp { millis: time.millis(), counter: time.counter() },
            origin: VersionOrigin {
                member: origin.member.to_string(),
                run: format!("{:x}", origin.run),
            },
        }
    }
}

/// Whether it was there or not.
async fn delete(call: &Call, key: &Bytes) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    let delete = DeleteRange { range: KeyRange::single(key.clone()), prev_kv: false };
    access.delete(&delete)?;
    call.node_with(None)?.delete_range(delete).await?;
    call.context.metrics.deletes.inc();
    Ok(done(format!("deleted {}", String::from_utf8_lossy(key))))
}

/// Joins whoever is reached first. This member starts anew for that, in a moment.
async fn join<B>(call: &Call, body: B) -> Result<Response<AnswerBody>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    call.access().await?.admin()?;
    let body = call.body(body, PEERS_BYTES_MAX).await?;
    let failed = |why: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why);
    let Peers { peers } =
        serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
    let joined = call.context.node.join(&peers).await;
    let joined = joined.map_err(|error| failed(error.to_string()))?;
    Ok(done(format!("joined {}", joined.name)))
}

/// Goes on alone, with all of its data.
async fn leave(call: &Call) -> Result<Response<AnswerBody>, Refusal> {
    call.access().await?.admin()?;
    let left = call.context.node.leave().await;
    left.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(done("leave ok".to_owned()))
}
