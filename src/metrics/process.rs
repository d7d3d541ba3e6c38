//! What the system knows of this process.

use std::fs;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use super::{gauge, shown};

/// Ticks per second in `/proc/self/stat`: 100 on every Linux, whatever its kernel counts in.
const USER_HZ: f64 = 100.0;

/// Shows it, as Go's programs do.
#[expect(
    clippy::cast_precision_loss,
    reason = "no limit is shown as a number so large that it does not matter"
)]
pub(super) fn register(now: &mut Registry) {
    let Some(process) = Process::read() else { return };
    let cpu = ConstCounter::new(process.cpu_seconds);
    now.register("process_cpu_seconds", "CPU time used", cpu);
    gauge(now, "process_resident_memory_bytes", "Memory in use", process.resident_bytes);
    gauge(now, "process_virtual_memory_bytes", "Address space in use", process.virtual_bytes);
    let limit = getrlimit(Resource::As).current.unwrap_or(u64::MAX) as f64;
    let help = "Address space that may be in use";
    now.register("process_virtual_memory_max_bytes", help, ConstGauge::new(limit));
    gauge(now, "process_open_fds", "Open file descriptors", process.open_fds);
    gauge(now, "os_fd_used", "Open file descriptors", process.open_fds);
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        gauge(now, "process_max_fds", "Most file descriptors that may be open", shown(limit));
        gauge(now, "os_fd_limit", "Most file descriptors that may be open", shown(limit));
    }
    let network = fs::read_to_string("/proc/self/net/netstat");
    if let Some((received, sent)) = network.ok().as_deref().and_then(octets) {
        let help = "Bytes received by the network that this process is in, by others in it, too";
        now.register("process_network_receive_bytes", help, ConstCounter::new(received));
        let help = "Bytes sent there";
        now.register("process_network_transmit_bytes", help, ConstCounter::new(sent));
    }
}

/// What Linux knows about this process.
struct Process {
    cpu_seconds: f64,
    resident_bytes: i64,
    virtual_bytes: i64,
    open_fds: i64,
}

impl Process {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Some(Self {
            cpu_seconds: cpu_ticks(&stat)? / USER_HZ,
            resident_bytes: status_bytes(&status, "VmRSS:")?,
            virtual_bytes: status_bytes(&status, "VmSize:")?,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count().try_into().ok()?,
        })
    }
}

/// User and system time: the 14th and 15th field, of which the second may have spaces but is in brackets.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
    Some(fields.next()?? + fields.next()??)
}

/// A line of `/proc/self/status` that has kilobytes.
fn status_bytes(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What came and went, of `/proc/self/net/netstat`: a line of names, then one of numbers.
fn octets(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let named = |wanted: &str| {
        let mut pairs = names.split(' ').zip(numbers.split(' '));
        pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
    };
    Some((named("InOctets")?, named("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let stat = "42 (a b) c) S 1 1 1 0 -1 4194304 100 0 0 0 120 34 0 0 20 0 4 0 1000 1 2";
        assert_eq!(cpu_ticks(stat), Some(154.0));
        assert_eq!(cpu_ticks("nonsense"), None);
        let status = "Name:\tx\nVmSize:\t  2048 kB\nVmRSS:\t   100 kB\n";
        assert_eq!(status_bytes(status, "VmRSS:"), Some(102_400));
        assert_eq!(status_bytes(status, "VmSwap:"), None);
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 1 22 333\n";
        assert_eq!(octets(netstat), Some((22, 333)));
        assert_eq!(octets("IpExt: InOctets\n"), None);
    }
}
