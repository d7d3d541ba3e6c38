//! See the crate's documentation for what is compared with what.

mod access;
mod apiserver;
mod cluster;
mod counts;
mod differences;
mod drop_in;
mod etcdctl;
mod gateway;
mod go;
mod http;
mod http2;
mod java;
mod kubernetes;
mod learner;
mod metrics;
mod migration;
mod mirror;
mod node;
mod python;
mod raw;
mod readme;
mod registry;
mod rust_client;
mod rust_suite;
mod tls;
mod websocket;
