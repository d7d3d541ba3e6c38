//! Closed loops of etcd clients against Starling and real etcd, in turn.
//!
//! ```text
//! load --starling PATH --etcd PATH [--dir D] [--out D] [--only put,get] [--keys 100000,1000000]
//!      [--clients 1,64,1000] [--rounds 3] [--millis 3000] [--threads 1] [--quick]
//! ```
//!
//! Loads for `--only`: put get range count txn mixed reads-under-puts watch keep-alive count-all page-of-all
//! page-of-10k compaction start-up idle.

#![expect(clippy::print_stdout, reason = "it prints its report")]

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use starling_bench::run::{self, Options};
use starling_bench::{Outcome, noop, plot};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const QUICK_MILLIS: u64 = 1000;
/// The number of clients that the plot of ratios is about.
const RATIOS_OF_CLIENTS: usize = 64;

fn main() -> Outcome {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [noop, port] = args.as_slice()
        && noop == "noop"
    {
        return noop::serve(port.parse()?);
    }
    let options = options(&mut args)?;
    let results = run::run(&options)?;
    std::fs::create_dir_all(&options.out)?;
    let write = |name: &str, text: String| std::fs::write(options.out.join(name), text);
    let markdown = results.markdown();
    println!("{markdown}");
    write("load.md", markdown)?;
    write("load.json", serde_json::to_string_pretty(&results.json())?)?;
    let throughput = plot::bars(&results, "Operations a second", |f| f.per_second);
    write("throughput.svg", throughput)?;
    let cpu = plot::bars(&results, "Server CPU per operation, microseconds", |f| f.cpu_us);
    write("cpu.svg", cpu)?;
    let p50 =
        plot::bars(&results, "Half of the operations took at most, microseconds", |f| f.p50_us);
    write("p50.svg", p50)?;
    let p99 = plot::bars(&results, "99 of 100 operations took at most, microseconds", |f| f.p99_us);
    write("p99.svg", p99)?;
    write("ratios.svg", plot::ratios(&results, RATIOS_OF_CLIENTS))?;
    Ok(())
}

fn options(args: &mut Vec<String>) -> Outcome<Options> {
    let quick = args.iter().position(|arg| arg == "--quick").map(|i| args.remove(i)).is_some();
    let mut take = |name: &str, default: &str| -> Outcome<String> {
        let Some(i) = args.iter().position(|arg| arg == name) else {
            return Ok(default.to_owned());
        };
        args.remove(i);
        if i < args.len() {
            Ok(args.remove(i))
        } else {
            Err(format!("{name} wants a value").into())
        }
    };
    let (millis, warm_up, rounds) = if quick { (QUICK_MILLIS, 200, "1") } else { (3000, 500, "3") };
    let options = Options {
        starling: PathBuf::from(take("--starling", "target/release/starling")?),
        etcd: PathBuf::from(take("--etcd", "etcd")?),
        directory: PathBuf::from(take("--dir", "target/load-data")?),
        out: PathBuf::from(take("--out", "target/load")?),
        keys: list(&take("--keys", if quick { "100000" } else { "100000,1000000" })?)?,
        clients: list(&take("--clients", "1,64,1000")?)?,
        rounds: take("--rounds", rounds)?.parse()?,
        window: Duration::from_millis(take("--millis", &millis.to_string())?.parse()?),
        warm_up: Duration::from_millis(warm_up),
        threads: take("--threads", "1")?.parse()?,
        only: list(&take("--only", "")?)?,
    };
    if args.is_empty() { Ok(options) } else { Err(format!("unknown: {args:?}").into()) }
}

fn list<T: FromStr>(text: &str) -> Outcome<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let parts = text.split(',').filter(|part| !part.is_empty());
    Ok(parts.map(T::from_str).collect::<Result<_, _>>()?)
}
