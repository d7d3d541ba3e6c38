//! Chain replication: `/store/set` and `/store/get`, and how the chain is.
//!
//! There is no chain to walk along: whoever takes a write sends it to all others at once, and answers when every one that is
//! alive has it. So any member answers for the head and for the tail. What repaired or began the chain there does nothing here.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body::Body;
use serde::{Deserialize, Serialize};

use super::order::{self, Link};
use super::{Call, JSON, JSON_EXPANSION, Refusal, TEXT, bare, key_of, respond};
use crate::http::AnswerBody;
use crate::types::{MediaType, WriteAck};

const BANNER: &str = "Hello World GoProxy";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Route {
    Banner,
    Set,
    Get(Bytes),
    Chain,
    Index,
    Health,
    Neighbors,
    Neighbor,
    SetNeighbor,
}

impl Route {
    pub(super) fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Banner,
            "/store/set" => Self::Set,
            "/chain" => Self::Chain,
            "/chain/index" => Self::Index,
            "/chain/health" => Self::Health,
            "/chain/neighbors" => Self::Neighbors,
            "/neighbor" => Self::Neighbor,
            _ => match path.strip_prefix("/store/get/") {
                Some(key) => Self::Get(key_of(key)?),
                None => key_of(path.strip_prefix("/neighbor/")?).map(|_| Self::SetNeighbor)?,
            },
        })
    }

    pub(super) fn shape(&self) -> &'static str {
        match self {
            Self::Banner => "/",
            Self::Set => "/store/set",
            Self::Get(_) => "/store/get/{key}",
            Self::Chain => "/chain",
            Self::Index => "/chain/index",
            Self::Health => "/chain/health",
            Self::Neighbors => "/chain/neighbors",
            Self::Neighbor => "/neighbor",
            Self::SetNeighbor => "/neighbor/{ip}",
        }
    }
}

/// A key and its value, which are text here.
#[derive(Deserialize, Serialize)]
struct Pair {
    key: String,
    value: String,
}

#[derive(Serialize)]
struct Index {
    head: String,
    tail: String,
}

#[derive(Serialize)]
struct Health {
    node: String,
    healthy: bool,
}

pub(super) async fn answer<B>(call: &Call, route: Route, body: B) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answered = match (route, &call.head.method) {
        (Route::Set, &Method::POST) => set(call, body).await,
        (Route::Set, _) => Err(Refusal::wrong_method("POST")),
        (_, method) if *method != Method::GET => Err(Refusal::wrong_method("GET")),
        (Route::Banner, _) => Ok(respond(StatusCode::OK, BANNER, TEXT)),
        (Route::Get(key), _) => get(call, key).await,
        (route, _) => shape_of_chain(call, &route).await,
    };
    answered.unwrap_or_else(|refusal| refusal.in_plain_text())
}

async fn set<B>(call: &Call, body: B) -> Result<Response<AnswerBody>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let access = call.access().await?;
    let body = call.body(body, call.max_bytes().saturating_mul(JSON_EXPANSION)).await?;
    let wrong = |why: String| Refusal::new(StatusCode::BAD_REQUEST, why);
    let Pair { key, value } =
        serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
    if key.is_empty() {
        return Err(wrong("key is not provided".to_owned()));
    }
    let pair = (key.into_bytes().into(), value.into_bytes().into());
    call.write(&access, pair, MediaType::NONE, Some(WriteAck::Everybody)).await?;
    Ok(bare(StatusCode::OK))
}

async fn get(call: &Call, key: Bytes) -> Result<Response<AnswerBody>, Refusal> {
    let access = call.access().await?;
    let value = call.read(&access, key.clone()).await?;
    let value = value.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not found"))?;
    // What is no text is shown as Go's encoder shows it.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(json(&Pair { key: text(&key), value: text(&value) }))
}

/// Who is in it, in which order.
async fn shape_of_chain(call: &Call, route: &Route) -> Result<Response<AnswerBody>, Refusal> {
    call.access().await?.known()?;
    let node = &call.context.node;
    let address = |link: &Link| link.address().to_owned();
    let chain = order::chain(node);
    Ok(match route {
        Route::Chain => json(&chain.iter().map(address).collect::<Vec<_>>()),
        Route::Index => {
            let end = |link: Option<&Link>| link.map(address).unwrap_or_default();
            json(&Index { head: end(chain.first()), tail: end(chain.last()) })
        }
        Route::Health => {
            let all = order::all(node);
            let health =
                |(link, healthy): &(Link, bool)| Health { node: address(link), healthy: *healthy };
            json(&all.iter().map(health).collect::<Vec<_>>())
        }
        Route::Neighbor => {
            let mut behind =
                chain.iter().skip_while(|link| link.member != node.member().id).skip(1);
            match behind.next() {
                Some(next) => json(&next.address()),
                None => return Err(Refusal::new(StatusCode::NOT_FOUND, "this is the tail")),
            }
        }
        // It is as it should be at any time.
        _ => bare(StatusCode::OK),
    })
}

/// On a line, as Go's encoder puts it.
fn json(value: &impl Serialize) -> Response<AnswerBody> {
    let mut text = serde_json::to_string(value).expect("text and bools can be written");
    text.push('\n');
    respond(StatusCode::OK, text, JSON)
}
