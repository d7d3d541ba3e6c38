//! The storage spike: which layout on fjall, with which settings, and what it costs beside etcd.
//!
//! ```text
//! storage_spike run     dir=D [name=value ...]   fill, put, get, range of one candidate, in this process
//! storage_spike reopen  dir=D [name=value ...]   start-up of what `run` left, then get and range
//! storage_spike reclaim dir=D [name=value ...]   random overwrites while dead records are removed
//! storage_spike idle    dir=D [name=value ...]   memory of an empty store
//! storage_spike etcd    dir=D etcd=PATH [...]    the same questions to a real etcd, over gRPC
//! storage_spike suite   dir=D [etcd=PATH] [...]  all of it in fresh processes, as a table of medians
//! ```
//!
//! Every figure leaves as one line, `name value`; `suite` collects these lines.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measuring tool: it prints, and turns counts into ratios"
)]

mod etcd;
mod layout;
mod load;
mod measure;
mod options;
mod reclaim;
mod single;
mod suite;

use options::Options;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments)?;
    match command.as_str() {
        "run" => single::run(&options),
        "reopen" => single::reopen(&options),
        "idle" => single::idle(&options),
        "reclaim" => reclaim::reclaim(&options),
        "etcd" => etcd::etcd(&options),
        "suite" => suite::suite(&options),
        _ => {
            Err("usage: storage_spike run|reopen|reclaim|idle|etcd|suite dir=D [name=value ...]"
                .into())
        }
    }
}
