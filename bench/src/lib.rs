//! Benchmarks: closed loops of etcd clients against Starling, real etcd and a service that does nothing.
//!
//! ```text
//! bin/load ── run ──▶ server   a child process, its CPU time, memory and disk
//!               ├───▶ work     what a client asks, over and over; client: its connection
//!               ├───▶ watch    fan-out to many watchers
//!               ├───▶ special  memory, start-up, pages, compaction
//!               └───▶ report   tables, JSON; plot: SVG
//! bin/cluster ─ cluster ─▶ server   several members, and newcomers
//! bin/soak ── soak ─▶ server   mixed load for a long time, with restarts, and a checker
//! ```
//!
//! All servers run side by side and take turns, so that whatever else the machine does meets each of them.
//! CPU per operation is the figure to trust where the cores are shared; throughput says what is left of them.

#![expect(
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a measuring tool: it prints, and turns counts into ratios"
)]

pub mod client;
pub mod cluster;
pub mod data;
pub mod measure;
pub mod noop;
pub mod plot;
pub mod report;
pub mod run;
pub mod server;
pub mod soak;
pub mod special;
pub mod watch;
pub mod work;

/// What can fail here ends the run.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
