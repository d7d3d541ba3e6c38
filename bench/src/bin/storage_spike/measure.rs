//! What a phase cost: wall time, CPU time, latencies; and what the process holds: memory, disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time of all threads of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// One measured phase, begun by [`Phase::begin`], printed by [`Phase::end`].
pub(crate) struct Phase {
    name: String,
    wall: Instant,
    cpu: Duration,
    latencies_us: Vec<f32>,
}

impl Phase {
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        Self { name: name.into(), cpu: cpu_time(), wall: Instant::now(), latencies_us: Vec::new() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.wall.elapsed()
    }

    /// Runs one call and keeps its latency.
    pub(crate) fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.latencies_us.push(start.elapsed().as_secs_f32() * 1e6);
        result
    }

    pub(crate) fn end(mut self, operations: u64) {
        let wall_us = self.wall.elapsed().as_secs_f64() * 1e6;
        let cpu_us = (cpu_time() - self.cpu).as_secs_f64() * 1e6;
        let operations = operations.max(1) as f64;
        figure(&self.name, "wall_us", wall_us / operations);
        figure(&self.name, "cpu_us", cpu_us / operations);
        if self.latencies_us.is_empty() {
            return;
        }
        self.latencies_us.sort_by(f32::total_cmp);
        for (label, share) in
            [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999), ("max_us", 1.0)]
        {
            figure(&self.name, label, f64::from(quantile(&self.latencies_us, share)));
        }
    }
}

pub(crate) fn quantile(sorted: &[f32], share: f64) -> f32 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share) as usize).copied().unwrap_or_default()
}

pub(crate) fn figure(phase: &str, name: &str, value: f64) {
    println!("{phase}.{name} {value:.3}");
}

/// A field of `/proc/PID/FILE` such as `VmRSS:   123 kB`, as a number.
fn proc_field(pid: &str, file: &str, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

pub(crate) fn rss_mib(pid: &str) -> f64 {
    proc_field(pid, "status", "VmRSS:") / 1024.0
}

pub(crate) fn written_mib(pid: &str) -> f64 {
    proc_field(pid, "io", "write_bytes:") / 1024.0 / 1024.0
}

/// Blocks that the files of a directory take, not their length: journals are preallocated as holes.
pub(crate) fn disk_mib(directory: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0.0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_mib(&entry.path()),
        // A file may go away between the listing and the look.
        Ok(metadata) => metadata.blocks() as f64 * 512.0 / 1024.0 / 1024.0,
        Err(_) => 0.0,
    });
    sizes.sum()
}
