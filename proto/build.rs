//! Compiles the protos, without protoc: the vendored ones of etcd, to Rust types and to a description of them, and what
//! members say to each other and to operators, to types only.

use std::fs;
use std::path::PathBuf;

use protox::Compiler;

const PROTOS: &[&str] =
    &["kv.proto", "auth.proto", "rpc.proto", "v3lock.proto", "v3election.proto"];

const OWN_PROTOS: &[&str] = &["peer.proto", "admin.proto"];

/// Annotations say which path of the JSON gateway is for which method. They are in the description, and no types.
const ANNOTATIONS: &str = "google/";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let package = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let roots = [package.join("etcd"), package.clone()];
    for root in ["etcd", "google", "starling"] {
        println!("cargo:rerun-if-changed={root}");
    }
    let mut files = protox::compile(PROTOS, &roots)?;
    files.file.retain(|file| !file.name().starts_with(ANNOTATIONS));
    tonic_prost_build::configure().bytes(".").include_file("etcd.rs").compile_fds(files)?;

    let own = protox::compile(OWN_PROTOS, [package.join("starling")])?;
    tonic_prost_build::configure().bytes(".").include_file("starling.rs").compile_fds(own)?;

    let mut compiler = Compiler::new(&roots)?;
    compiler.include_imports(true).include_source_info(false).open_files(PROTOS)?;
    let description = PathBuf::from(std::env::var("OUT_DIR")?).join("etcd.binpb");
    fs::write(description, compiler.encode_file_descriptor_set())?;
    Ok(())
}
