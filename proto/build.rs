//! Compiles the vendored etcd protos, without protoc.

use std::path::PathBuf;

const PROTOS: &[&str] =
    &["kv.proto", "auth.proto", "rpc.proto", "v3lock.proto", "v3election.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("etcd");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = protox::compile(PROTOS, [root])?;
    tonic_prost_build::configure().bytes(".").include_file("etcd.rs").compile_fds(files)?;
    Ok(())
}
