//! The clock of the running system: the only place that asks what time it is.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::time::Now;

/// Tells the time to everything below.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[expect(
        clippy::new_without_default,
        reason = "a default would hide that it asks for the time"
    )]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            wall_millis: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            monotonic_millis: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
