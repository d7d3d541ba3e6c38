//! Black-box tests of a running `starling` with the tools and clients that etcd's users have.
//!
//! The reference is etcd itself, not our reading of it. etcd and etcdctl are built from source
//! (`go/go.mod` pins the release), and what they answer is what starling has to answer:
//!
//! * `scripts/` are etcdctl sessions with etcd's output recorded ([`script`]); both servers replay them.
//! * The raw gRPC cases of `tests/it` run on both servers and the transcripts are compared.
//! * Client libraries (`go/`, `rust-client/`) assert, and run on both servers.
//! * `apiserver/` is Kubernetes' API machinery with a server as its storage.
//! * Those of other languages (`python/`, `node/`, `java/`), and the suite of etcd-client, run on starling, and on
//!   etcd when asked to ([`client`]).
//!
//! Ids, times and sizes differ between servers that agree; [`mask`] says which.

pub mod client;
pub mod mask;
pub mod script;
pub mod server;
pub mod tools;

pub use server::Server;
