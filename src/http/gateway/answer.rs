//! The answer to a request: frames of gRPC in, JSON out.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::requests::PREFIX_BYTES;
use super::schema::Route;
use super::{APPLICATION_GRPC, AnswerBody, http_status, json};
use crate::api::router::Call;

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The header of gRPC's answer, handed on.
const GRPC_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");

/// Around each message of a stream.
const RESULT: (&str, &str) = ("{\"result\":", "}\n");

/// What a call comes to.
pub(super) async fn of_call(
    call: Call,
    route: &'static Route,
    deadline: Option<Instant>,
) -> Response<AnswerBody> {
    let response = match within(deadline, call).await {
        Ok(Ok(response)) => response,
        Err(status) => return refusal(&status),
    };
    let refused =
        Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok);
    let messages =
        Messages { body: response.into_body(), data: BytesMut::new(), refused, deadline };
    if route.gives_stream {
        of_stream(messages, route).await
    } else {
        of_one(messages, route).await
    }
}

async fn within<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Result<T, Status> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => tokio::time::timeout_at(deadline, future)
            .await
            .map_err(|_| Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// An error on its own: as etcd puts it, with the field that it had up to 3.5 besides, since there are clients that read it.
pub(super) fn refusal(status: &Status) -> Response<AnswerBody> {
    let (code, message) = (i32::from(status.code()), status.message());
    let body = json!({ "code": code, "message": message, "error": message });
    with_status(status, body.to_string())
}

fn with_status(status: &Status, body: String) -> Response<AnswerBody> {
    let mut response = json_response(AnswerBody::new(Full::new(body.into())));
    *response.status_mut() = http_status(status.code());
    if status.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(WWW_AUTHENTICATE, message);
    }
    response
}

fn json_response(body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON);
    response
}

fn success(body: AnswerBody) -> Response<AnswerBody> {
    let mut response = json_response(body);
    response.headers_mut().insert(GRPC_CONTENT_TYPE, APPLICATION_GRPC);
    response
}

async fn of_one(mut messages: Messages, route: &Route) -> Response<AnswerBody> {
    let written = match messages.next().await {
        Ok(Some(message)) => json::write(message, &route.output, ("", "")).await,
        Ok(None) => Err(Status::internal("empty response")),
        Err(status) => Err(status),
    };
    match written {
        Ok(json) => success(AnswerBody::new(Full::new(json))),
        Err(status) => refusal(&status),
    }
}

/// The status of the response is known when the first message is.
async fn of_stream(mut messages: Messages, route: &'static Route) -> Response<AnswerBody> {
    let first = match next_line(&mut messages, route).await {
        Ok(Some(first)) => first,
        Ok(None) => return Response::new(AnswerBody::empty()),
        Err(status) => return with_status(&status, error_line(&status)),
    };
    let lines =
        stream::unfold((Some(first), Some(messages)), move |(first, messages)| async move {
            let mut messages = messages?;
            if let Some(first) = first {
                return Some((first, (None, Some(messages))));
            }
            match next_line(&mut messages, route).await {
                Ok(line) => line.map(|line| (line, (None, Some(messages)))),
                Err(status) => Some((error_line(&status).into(), (None, None))),
            }
        });
    let frames = futures_util::StreamExt::map(lines, |line| Ok::<_, Status>(Frame::data(line)));
    success(AnswerBody::new(StreamBody::new(Box::pin(frames))))
}

async fn next_line(messages: &mut Messages, route: &Route) -> Result<Option<Bytes>, Status> {
    match messages.next().await? {
        Some(message) => json::write(message, &route.output, RESULT).await.map(Some),
        None => Ok(None),
    }
}

/// An error in a stream, with the fields of 3.7 and those of 3.5.
fn error_line(status: &Status) -> String {
    let code = i32::from(status.code());
    let http_code = http_status(status.code());
    let error = json!({
        "code": code,
        "message": status.message(),
        "grpc_code": code,
        "http_code": http_code.as_u16(),
        "http_status": http_code.canonical_reason().unwrap_or_default(),
    });
    format!("{}\n", json!({ "error": error }))
}

/// The messages of a gRPC response.
struct Messages {
    body: AnswerBody,
    /// What has come and is no whole message yet.
    data: BytesMut,
    /// What the head of the response said.
    refused: Option<Status>,
    deadline: Option<Instant>,
}

impl Messages {
    /// The next one; `None` at the end of a call that went well.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(status) = self.refused.take() {
            return Err(status);
        }
        loop {
            if let Some(message) = self.take_message() {
                return Ok(Some(message));
            }
            let Some(frame) = within(self.deadline, self.body.frame()).await? else {
                return Ok(None);
            };
            match frame?.into_data() {
                Ok(data) => self.data.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    match Status::from_header_map(&trailers) {
                        Some(status) if status.code() != Code::Ok => return Err(status),
                        _ => return Ok(None),
                    }
                }
            }
        }
    }

    fn take_message(&mut self) -> Option<Bytes> {
        let mut prefix = self.data.get(1..PREFIX_BYTES)?;
        let length = usize::try_from(prefix.get_u32()).ok()?;
        let end = PREFIX_BYTES.checked_add(length)?;
        if self.data.len() < end {
            return None;
        }
        self.data.advance(PREFIX_BYTES);
        Some(self.data.split_to(length).freeze())
    }
}
