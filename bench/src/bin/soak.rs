//! Mixed load for a long time, with restarts, and a check of every answer and event.
//!
//! ```text
//! soak --starling PATH --dir D [--minutes 30] [--rate 300] [--restart-seconds 60] [--seed 1]
//! ```
//!
//! It fails if anything was lost, invented, repeated or out of order.

#![expect(clippy::print_stdout, reason = "it prints its report")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use starling_bench::Outcome;
use starling_bench::soak::control::{self, Plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Outcome<ExitCode> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let plan = plan(&mut args)?;
    let soaked = control::run(&plan, |line| print!("{line}"))?;
    println!("\n{}", soaked.report);
    if !soaked.passed() {
        println!("the data is kept in {}", plan.directory.display());
        return Ok(ExitCode::FAILURE);
    }
    std::fs::remove_dir_all(&plan.directory)?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &mut Vec<String>) -> Outcome<Plan> {
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
    let minutes: f64 = take("--minutes", "30")?.parse()?;
    let plan = Plan {
        program: PathBuf::from(take("--starling", "target/release/starling")?),
        directory: PathBuf::from(take("--dir", "target/soak-data")?),
        length: Duration::from_secs_f64(minutes * 60.0),
        rate: take("--rate", "300")?.parse()?,
        restart_every: Duration::from_secs(take("--restart-seconds", "60")?.parse()?),
        seed: take("--seed", "1")?.parse()?,
    };
    if args.is_empty() { Ok(plan) } else { Err(format!("unknown: {args:?}").into()) }
}
