//! Compiles .proto files to a descriptor set where a build script calls protoc.
//!
//! It understands what prost-build passes and nothing more: `-o OUT`, `-I DIR` and files.

use std::path::PathBuf;
use std::process::ExitCode;

use prost::Message;

fn main() -> ExitCode {
    match compile(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn compile(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut out, mut includes, mut files) = (None, Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-o" => out = args.next(),
            "-I" => includes.extend(args.next()),
            "--version" => return version(),
            flag if flag.starts_with("--") => {}
            _ => files.push(PathBuf::from(arg)),
        }
    }
    let out = out.ok_or("no -o given")?;
    let descriptors = protox::compile(files, includes).map_err(|error| error.to_string())?;
    std::fs::write(out, descriptors.encode_to_vec()).map_err(|error| error.to_string())
}

#[expect(clippy::print_stdout, reason = "this is what --version asks for")]
#[expect(clippy::unnecessary_wraps, reason = "the result of the whole program")]
fn version() -> Result<(), String> {
    println!("libprotoc 25.0");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a compiler reports errors there")]
fn report(error: &str) {
    eprintln!("{error}");
}
