//! What comes out of a window, and medians of many.

use std::time::Duration;

/// One window of load on one server.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// How long it was.
    pub length: Duration,
    /// Operations that ended in it.
    pub operations: u64,
    /// CPU time of the server.
    pub server_cpu: Duration,
    /// CPU time of the clients.
    pub client_cpu: Duration,
    /// Of each operation that counts, in nanoseconds.
    pub latencies: Vec<u32>,
}

/// Figures of a window, or medians of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Operations a second.
    pub per_second: f64,
    /// Half of the operations took at most this.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
    /// CPU time of the server per operation.
    pub cpu_us: f64,
    /// CPU time of the clients per operation.
    pub client_cpu_us: f64,
}

impl Window {
    /// Its figures.
    pub fn figures(mut self) -> Figures {
        self.latencies.sort_unstable();
        let operations = self.operations.max(1) as f64;
        Figures {
            per_second: self.operations as f64 / self.length.as_secs_f64().max(1e-9),
            p50_us: percentile(&self.latencies, 50),
            p99_us: percentile(&self.latencies, 99),
            cpu_us: self.server_cpu.as_secs_f64() * 1e6 / operations,
            client_cpu_us: self.client_cpu.as_secs_f64() * 1e6 / operations,
        }
    }
}

/// So many of a hundred are at most this, in microseconds.
pub fn percentile(sorted: &[u32], hundredths: usize) -> f64 {
    let at = (sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1));
    f64::from(sorted.get(at).copied().unwrap_or(0)) / 1e3
}

/// The middle of some values; of two middles the mean.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => 0.0,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Field by field.
pub fn medians(rounds: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| median(rounds.iter().map(field));
    Figures {
        per_second: of(|f| f.per_second),
        p50_us: of(|f| f.p50_us),
        p99_us: of(|f| f.p99_us),
        cpu_us: of(|f| f.cpu_us),
        client_cpu_us: of(|f| f.client_cpu_us),
    }
}

/// CPU time of this process so far.
pub fn own_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
