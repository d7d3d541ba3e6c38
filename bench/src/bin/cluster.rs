//! Clusters of Starling beside clusters of real etcd.
//!
//! ```text
//! cluster --starling PATH --etcd PATH [--dir D] [--only puts,idle,join] [--rounds 3] [--millis 3000] [--keys 1000000]
//! ```

#![expect(clippy::print_stdout, reason = "it prints its report")]

use std::path::PathBuf;
use std::time::Duration;

use starling_bench::Outcome;
use starling_bench::cluster::{self, Options};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Outcome {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut take = |name: &str, default: &str| -> Outcome<String> {
        let Some(at) = args.iter().position(|arg| arg == name) else {
            return Ok(default.to_owned());
        };
        args.remove(at);
        if at < args.len() {
            Ok(args.remove(at))
        } else {
            Err(format!("{name} wants a value").into())
        }
    };
    let options = Options {
        starling: PathBuf::from(take("--starling", "target/release/starling")?),
        etcd: PathBuf::from(take("--etcd", "target/etcd-bin/etcd")?),
        directory: PathBuf::from(take("--dir", "target/cluster-data")?),
        rounds: take("--rounds", "3")?.parse()?,
        window: Duration::from_millis(take("--millis", "3000")?.parse()?),
        keys: take("--keys", "1000000")?.parse()?,
        only: take("--only", "")?
            .split(',')
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    if !args.is_empty() {
        return Err(format!("unknown: {args:?}").into());
    }
    if options.directory.exists() {
        return Err(format!("{} is there already", options.directory.display()).into());
    }
    let report = cluster::run(&options);
    std::fs::remove_dir_all(&options.directory)?;
    println!("{}", report?);
    Ok(())
}
