//! Requests that no generated client sends: unknown methods and fields, broken messages.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use starling_proto::etcdserverpb as pb;
use tokio_stream::StreamExt as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status};

use super::case::{Case, get, in_time, put};
use super::cases;

#[test]
fn strange_requests_get_the_answers_of_etcd() {
    super::compare(cases![
        unknown_methods
        unknown_fields
        unknown_operation
        broken_messages
        empty_messages
        metadata
        version_of_the_client
        metadata_of_a_stream
        deadline
    ]);
}

async fn unknown_methods(case: &mut Case) {
    for path in [
        "/etcdserverpb.KV/Frobnicate",
        "/etcdserverpb.Nothing/Range",
        "/nothing.at.all/Range",
        "/etcdserverpb.KV/range",
        "/etcdserverpb.KV/",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let answer = call(case, path, Bytes::new()).await;
        case.keep(path, answer, |_, answer| format!("{answer:?}"));
    }
}

/// Fields of a later version of the API are left unread.
async fn unknown_fields(case: &mut Case) {
    case.set("a", "1").await;
    let unknown = [0xba, 0x3e, 3, b'x', b'y', b'z'];
    let request = [get("a").encode_to_vec(), unknown.to_vec()].concat();
    range_answer(case, "a field 999 in a range", request).await;
    let key = [0x0a, 1, b'b', 0x0a, 1, b'a'];
    range_answer(case, "the key twice, the last one counts", key.to_vec()).await;
    let request = [put("a", "2").encode_to_vec(), unknown.to_vec()].concat();
    let answer = call(case, "/etcdserverpb.KV/Put", request.into()).await;
    case.keep("a field 999 in a put", answer, |_, _| "ok".into());
    case.range("after", get("a")).await;
}

async fn range_answer(case: &mut Case, label: &str, request: Vec<u8>) {
    let answer = call(case, "/etcdserverpb.KV/Range", request.into()).await;
    let answer = answer
        .map(|answer| answer.map(|bytes| pb::RangeResponse::decode(bytes).unwrap_or_default()));
    case.keep(label, answer, super::show::Show::range);
}

/// A txn operation of a later version has no member of the union that we know.
async fn unknown_operation(case: &mut Case) {
    // success (field 2) { field 9: "x" }
    let request = [0x12, 3, 0x4a, 1, b'x'];
    let answer = call(case, "/etcdserverpb.KV/Txn", Bytes::copy_from_slice(&request)).await;
    case.keep("field 9 in an operation", answer, |_, answer| format!("{answer:?}"));
}

async fn broken_messages(case: &mut Case) {
    for (label, message) in [
        ("a length past the end", &[0x0a, 200, b'a'][..]),
        ("an endless varint", &[0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ("half a tag", &[0x80]),
        ("a group that does not end", &[0x0b]),
        ("field number 0", &[0x00, 1]),
    ] {
        for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.Lease/LeaseGrant"] {
            let answer = call(case, path, Bytes::copy_from_slice(message)).await;
            // The text has the decoder's own words; the code is what a client acts on.
            let line = match answer {
                Ok(_) => "ok".into(),
                Err(status) => format!("{:?}", status.code()),
            };
            case.note(format!("{label}: {path}"), line);
        }
    }
    case.set("the connection", "goes on").await;
}

async fn empty_messages(case: &mut Case) {
    for path in [
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/DeleteRange",
        "/etcdserverpb.Lease/LeaseRevoke",
    ] {
        let answer = call(case, path, Bytes::new()).await;
        case.keep(path, answer, |_, answer| format!("{answer:?}"));
    }
}

async fn metadata(case: &mut Case) {
    for (name, value) in [
        ("hasleader", "true"),
        ("hasleader", "nonsense"),
        ("client-api-version", "3.7"),
        ("client-api-version", "99"),
        ("token", "nonsense"),
        ("authorization", "Bearer nonsense"),
    ] {
        let mut request = Request::new(get("a"));
        let value_of = value.parse().expect("a valid value");
        request.metadata_mut().insert(name, value_of);
        let answer = in_time(super::case::kv(&case.channel).range(request)).await;
        case.keep(&format!("{name}: {value}"), answer, super::show::Show::range);
    }
}

/// etcd counts clients by it, so it must be text; what it says is not looked at.
async fn version_of_the_client(case: &mut Case) {
    for value in [&b"3.5.0"[..], b"", b"x", b"\xc3\xa9", b"\xff\xfe"] {
        let mut request = Request::new(get("a"));
        let value_of = value.try_into().expect("bytes that a header may have");
        request.metadata_mut().insert("client-api-version", value_of);
        let answer = in_time(super::case::kv(&case.channel).range(request)).await;
        case.keep(&format!("{}", value.escape_ascii()), answer, super::show::Show::range);
    }
}

/// A watch that asks for a leader, or comes from a client of a strange version.
async fn metadata_of_a_stream(case: &mut Case) {
    for (name, value) in [
        ("hasleader", &b"true"[..]),
        ("client-api-version", b"3.7"),
        ("client-api-version", b"\xff"),
    ] {
        let create = super::case::watch("a", "");
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        // One request, and the client's side stays open.
        let requests = tokio_stream::iter([pb::WatchRequest { request_union: Some(union) }])
            .chain(tokio_stream::pending());
        let mut request = Request::new(requests);
        let value_of = value.try_into().expect("bytes that a header may have");
        request.metadata_mut().insert(name, value_of);
        let mut client = super::case::watches(&case.channel);
        let mut answers = super::case::Answers::of(async move { client.watch(request).await });
        let answer = answers.next().await;
        case.keep(&format!("{name}: {}", value.escape_ascii()), answer, |show, answer| {
            answer
                .as_ref()
                .map_or_else(|| "end of stream".into(), |answer| show.watch(answer).join(" "))
        });
    }
}

/// A deadline that has passed when the request comes.
async fn deadline(case: &mut Case) {
    let mut request = Request::new(put("a", "1"));
    request.metadata_mut().insert("grpc-timeout", "nonsense".parse().expect("a valid value"));
    let answer = in_time(super::case::kv(&case.channel).put(request)).await;
    let line = answer.map_or_else(|status| format!("{:?}", status.code()), |_| "ok".into());
    case.note("a timeout that is none", line);
}

/// Sends bytes as they are, and returns those of the answer.
pub(super) async fn call(
    case: &Case,
    path: &'static str,
    message: Bytes,
) -> Result<Response<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(case.channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    in_time(client.unary(Request::new(message), path, RawCodec)).await
}

pub(super) struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
