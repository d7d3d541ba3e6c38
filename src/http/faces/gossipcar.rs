//! Gossipcar: `PUT` and `GET /map?k=key`, and `/stats`.

use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::ACCEPT;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body;

use super::{
    Call, OCTETS, PIECE_BYTES, Pieces, Refusal, TEXT, bare, in_pieces, parameters, respond,
};
use crate::api::Context;
use crate::engine::command::Range;
use crate::error::Error;
use crate::http::AnswerBody;
use crate::types::{KeyRange, MediaType};

/// As its requests are counted.
pub(super) const FACE: &str = "gossipcar";
/// The largest value, as it was there.
const VALUE_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Route {
    Map,
    Stats,
}

impl Route {
    pub(super) fn find(path: &str) -> Option<Self> {
        match path {
            "/map" => Some(Self::Map),
            "/stats" => Some(Self::Stats),
            _ => None,
        }
    }

    pub(super) fn shape(self) -> &'static str {
        match self {
            Self::Map => "/map",
            Self::Stats => "/stats",
        }
    }
}

pub(super) async fn answer<B>(call: &Call, route: Route, body: B) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answered = match (route, &call.head.method) {
        (Route::Map, &Method::PUT) => put(call, body).await,
        (Route::Map, &Method::GET) => get(call).await,
        (Route::Stats, &Method::GET) => stats(call),
        // A path of its own for each method, so to speak.
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "")),
    };
    // It said nothing but the code.
    answered.unwrap_or_else(|refusal| refusal.with_body("", TEXT))
}

/// The keys of a request, which are text.
fn keys(call: &Call) -> Result<Vec<Bytes>, Refusal> {
    let unprocessable = || Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "");
    let keys: Vec<Bytes> = parameters(call.head.uri.query(), "k").map(Bytes::from).collect();
    let is_sound = |key: &Bytes| !key.is_empty() && std::str::from_utf8(key).is_ok();
    if keys.is_empty() || !keys.iter().all(is_sound) {
        return Err(unprocessable());
    }
    Ok(keys)
}

async fn put<B>(call: &Call, body: B) -> Result<Response<AnswerBody>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let access = call.access().await?;
    let key = keys(call)?.swap_remove(0);
    let value = call.body(body, VALUE_BYTES_MAX).await?;
    let is_new = call.write(&access, (key, value), MediaType::NONE, None).await?;
    Ok(bare(if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT }))
}

async fn get(call: &Call) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    let keys = keys(call)?;
    for key in &keys {
        access.read(&KeyRange::single(key.clone()))?;
    }
    call.context.node.begin_read().await?;
    let (context, keys) = (call.context.clone(), keys.into_iter());
    let mut lines = Lines { context, revision: 0, keys };
    let Some(first) = lines.next_piece().await? else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, ""));
    };
    if lines.keys.as_slice().is_empty() {
        return Ok(respond(StatusCode::OK, first, OCTETS));
    }
    // There may be more than should be in memory at once.
    Ok(in_pieces(first, lines, OCTETS))
}

/// The pairs of a request, a line each. Those that are not there are left out.
struct Lines {
    context: Context,
    /// The one of the first answer; zero before that.
    revision: i64,
    keys: std::vec::IntoIter<Bytes>,
}

impl Pieces for Lines {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES
            && let Some(key) = self.keys.next()
        {
            let single = Range::new(KeyRange::single(key));
            let range = Range { revision: self.revision, ..single };
            let reply = self.context.node.range(range).await?;
            self.revision = reply.revision.shown();
            self.context.metrics.ranges.inc();
            for pair in &reply.body.kvs {
                let fields = pair.fields();
                piece.extend_from_slice(fields.key);
                piece.extend_from_slice(b"=");
                piece.extend_from_slice(fields.value);
                piece.extend_from_slice(b"\n");
            }
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

fn stats(call: &Call) -> Result<Response<AnswerBody>, Refusal> {
    if !accepts_text(&call.head.headers) {
        return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, ""));
    }
    let Context { node, metrics, .. } = &call.context;
    let since = UNIX_EPOCH + Duration::from_secs_f64(metrics.started_seconds());
    let up = since.elapsed().unwrap_or_default().as_secs();
    let since = httpdate::fmt_http_date(since);
    let counts = node.cluster_status().facts.counts;
    // A round is one that this member began; what else was exchanged others began.
    let (syncs_out, syncs_in) = (counts.rounds, counts.exchanges);
    let counters = metrics.face(FACE);
    let (bad, good) = (counters.bad.get(), counters.good.get());
    let text = format!(
        "upTimeSecs={up}\nupSince={since}\nnOutSyncs={syncs_out}\nnInSyncs={syncs_in}\n\
         nBadHttpReqs={bad}\nnGoodHttpReqs={good}\n"
    );
    Ok(respond(StatusCode::OK, text, "text/plain; charset=UTF-8"))
}

/// Whether whoever asks takes plain text; who says nothing takes anything.
fn accepts_text(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().peekable();
    if accepted.peek().is_none() {
        return true;
    }
    let ranges = accepted.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    ranges.map(str::trim).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_text = matches!(media.as_str(), "*/*" | "text/*" | "text/plain");
        let is_refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight == Some(0.0)
        };
        is_text && !parts.any(is_refused)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn text_is_accepted_where_it_is_said_or_nothing_is() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT, HeaderValue::from_static(value));
            }
            accepts_text(&headers)
        };
        for yes in [&[][..], &["*/*"], &["application/json, TEXT/*;q=0.1"], &["a/b", "text/plain"]]
        {
            assert!(accepts(yes), "{yes:?}");
        }
        for no in [&["application/json"][..], &["text/plain; q=0"], &["text/html"], &[""]] {
            assert!(!accepts(no), "{no:?}");
        }
    }
}
