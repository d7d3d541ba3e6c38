//! Messages as JSON, by the rules of etcd's gateway: names as in the protos, 64-bit numbers as strings, bytes in base64,
//! nothing where a field has its default. What comes in may have names in camel case and numbers as such, and fields
//! that are not known are left out.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);

const WRITE: SerializeOptions = SerializeOptions::new()
    .use_proto_field_name(true)
    .skip_default_fields(true)
    .stringify_64_bit_integers(true);

/// A message larger than this is written on a thread of its own, so that it holds up no one else.
const INLINE_BYTES_MAX: usize = 256 * 1024;

/// Reads the first value of some JSON; none at all is a message without fields.
pub(super) fn read(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    if json.trim_ascii_start().is_empty() {
        return Ok(Vec::new());
    }
    // What comes after the value is not looked at, as in Go.
    let mut json = serde_json::Deserializer::from_slice(json);
    DynamicMessage::deserialize_with_options(message.clone(), &mut json, &READ)
        .map(|message| message.encode_to_vec())
        .map_err(|error| Status::invalid_argument(reason(&error)))
}

/// The end of a body that was cut short is Go's error, all others are in words of our own.
fn reason(error: &serde_json::Error) -> String {
    if error.is_eof() { "unexpected EOF".to_owned() } else { format!("proto: {error}") }
}

/// Writes a message, between two pieces of text.
pub(super) async fn write(
    message: Bytes,
    descriptor: &MessageDescriptor,
    around: (&'static str, &'static str),
) -> Result<Bytes, Status> {
    let descriptor = descriptor.clone();
    if message.len() <= INLINE_BYTES_MAX {
        return write_inline(message, descriptor, around);
    }
    let write = move || write_inline(message, descriptor, around);
    let written = tokio::task::spawn_blocking(write).await;
    written.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
}

fn write_inline(
    message: Bytes,
    descriptor: MessageDescriptor,
    (before, after): (&str, &str),
) -> Result<Bytes, Status> {
    let broken = |error: &dyn std::error::Error| Status::internal(error.to_string());
    let message = DynamicMessage::decode(descriptor, message).map_err(|error| broken(&error))?;
    let mut json = Vec::from(before);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &WRITE)
        .map_err(|error| broken(&error))?;
    json.extend_from_slice(after.as_bytes());
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use starling_proto::etcdserverpb as pb;

    use super::super::schema::schema;
    use super::*;

    fn put(json: &str) -> Result<pb::PutRequest, String> {
        let route = schema().route("/v3/kv/put").expect("a path of etcd's");
        let message = read(json.as_bytes(), &route.input);
        message
            .map(|message| pb::PutRequest::decode(&*message).expect("what was written is read"))
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn requests_are_read_as_generously_as_in_go() {
        let request =
            pb::PutRequest { key: "foo".into(), lease: 7, prev_kv: true, ..Default::default() };
        for json in [
            r#"{"key":"Zm9v","lease":7,"prev_kv":true}"#,
            r#"{"key":"Zm9v","lease":"7","prevKv":true}"#,
            r#"{"key":"Zm9v","lease":7.0,"prev_kv":true,"nothing":[{"a":1}]} and more"#,
            r#"{"prev_kv":true,"lease":7,"key":"Zm9v","value":null}"#,
        ] {
            assert_eq!(put(json).as_ref(), Ok(&request), "{json}");
        }
        for none in ["", "  \n", "{}"] {
            assert_eq!(put(none), Ok(pb::PutRequest::default()), "{none:?}");
        }
    }

    #[test]
    fn base64_may_be_of_either_kind_and_without_padding() {
        for (json, value) in [
            (r#"{"value":"_-8="}"#, &b"\xff\xef"[..]),
            (r#"{"value":"/+8="}"#, b"\xff\xef"),
            (r#"{"value":"_-8"}"#, b"\xff\xef"),
            (r#"{"value":""}"#, b""),
        ] {
            assert_eq!(put(json).map(|put| put.value), Ok(value.into()), "{json}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(put(r#"{"key":"Zm9v""#), Err("unexpected EOF".to_owned()));
        for json in [
            r#"{"key":"Zm9!"}"#,
            r#"{"key":5}"#,
            r#"{"lease":1.5}"#,
            r#"{"lease":"x"}"#,
            r#"{"lease":9223372036854775808}"#,
            r#"{"prev_kv":"yes"}"#,
            "[]",
            "null",
            "x",
            "\u{0}",
        ] {
            let error = put(json).expect_err(json);
            assert!(error.starts_with("proto: "), "{json}: {error}");
        }
        let deep = "{\"x\":".repeat(10_000);
        put(&deep).expect_err("too deep");
    }

    #[tokio::test]
    async fn answers_have_names_of_the_protos_and_no_defaults() {
        let route = schema().route("/v3/kv/range").expect("a path of etcd's");
        let header = pb::ResponseHeader { cluster_id: u64::MAX, revision: 7, ..Default::default() };
        let kv = starling_proto::mvccpb::KeyValue {
            key: b"\xff\xef"[..].into(),
            mod_revision: 3,
            ..Default::default()
        };
        let response =
            pb::RangeResponse { header: Some(header), kvs: vec![kv], more: false, count: 1 };
        let json = write(response.encode_to_vec().into(), &route.output, ("<", ">")).await;
        let expected = r#"<{"header":{"cluster_id":"18446744073709551615","revision":"7"},"kvs":[{"key":"/+8=","mod_revision":"3"}],"count":"1"}>"#;
        assert_eq!(json.expect("a message"), expected);
    }
}
