//! The etcd v3 API as Rust types, generated from the vendored protos in `etcd/`; and what members say to each other
//! and to operators, from `starling/peer.proto` and `starling/admin.proto`.
//!
//! Every `bytes` field is a [`bytes::Bytes`], so a value that a member has in memory goes into a
//! reply without a copy.

#![allow(clippy::all, unreachable_pub, missing_docs, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/etcd.rs"));

include!(concat!(env!("OUT_DIR"), "/starling.rs"));

/// etcd's protos as an encoded `FileDescriptorSet`, with the annotations that map HTTP paths to methods.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.binpb"));
