//! Runs `rust-client/`, which uses the etcd-client crate, against both servers.
//!
//! It is a package of its own, outside of the workspace: the build script of etcd-client wants protoc, which
//! is ours here (`src/bin/protoc.rs`), and nobody should need it to build the rest.

use std::process::Command;

use starling_compat_tests::{Server, tools};

#[test]
fn rust_client_on_etcd() {
    if tools::etcd().is_some() {
        run(&Server::etcd());
    }
}

#[test]
fn rust_client_on_starling() {
    run(&Server::starling());
}

fn run(server: &Server) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--locked", "--manifest-path"]);
    command.arg(tools::package_dir().join("rust-client/Cargo.toml"));
    command.arg("--target-dir").arg(tools::target_dir().join("rust-client"));
    command.env("PROTOC", env!("CARGO_BIN_EXE_protoc")).env("COMPAT_ENDPOINT", server.url());
    let output = command.output().expect("cargo can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on {:?}\n{errors}", server.kind());
}
