//! Histograms of durations that are cheap enough for every request: a few relaxed additions, no lock.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::Family;

const NANOS_PER_SECOND: f64 = 1e9;

/// How long things took. Its clones are the same histogram.
#[derive(Clone)]
pub struct Seconds(Arc<Inner>);

struct Inner {
    /// Upper bounds in nanoseconds, the last one left out: it has none.
    bounds: Box<[u64]>,
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl fmt::Debug for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seconds").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Seconds {
    /// With these upper bounds, in seconds.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let nanos = |bound| Duration::from_secs_f64(bound).as_nanos();
        let bounds: Box<[u64]> = bounds
            .into_iter()
            .map(|bound| u64::try_from(nanos(bound)).unwrap_or(u64::MAX))
            .collect();
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, nanos: AtomicU64::new(0) }))
    }

    /// Something took this long.
    pub fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.0.bounds.partition_point(|bound| *bound < nanos);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many things there were.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Seconds {
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a hundred days are exact")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = self.0.bounds.iter().map(|bound| *bound as f64 / NANOS_PER_SECOND);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::MAX]).zip(counts).collect();
        // Of what is shown, so that the last bucket is the count at any moment.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.nanos.load(Ordering::Relaxed) as f64 / NANOS_PER_SECOND;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A family of such histograms.
pub(super) type Durations<L> = Family<L, Seconds, fn() -> Seconds>;

/// One histogram of a family, which shows from its first use on and is looked up once.
#[derive(Debug)]
pub(super) struct Lazy<L> {
    family: Durations<L>,
    labels: L,
    found: OnceLock<Seconds>,
}

impl<L> Lazy<L>
where
    L: EncodeLabelSet + Clone + Eq + std::hash::Hash,
{
    pub(super) fn new(family: &Durations<L>, labels: L) -> Self {
        Self { family: family.clone(), labels, found: OnceLock::new() }
    }

    pub(super) fn observe(&self, time: Duration) {
        let find = || self.family.get_or_create_owned(&self.labels);
        self.found.get_or_init(find).observe(time);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let seconds = Seconds::new([0.001, 0.002]);
        for micros in [0, 1000, 1001, 2000, 2001, 9_000_000] {
            seconds.observe(Duration::from_micros(micros));
        }
        let mut registry = Registry::default();
        registry.register("x", "how long", seconds);
        let mut text = String::new();
        text::encode_registry(&mut text, &registry).unwrap();
        let lines: Vec<_> = text.lines().skip(2).collect();
        let expected = [
            "x_sum 9.006002",
            "x_count 6",
            "x_bucket{le=\"0.001\"} 2",
            "x_bucket{le=\"0.002\"} 4",
            "x_bucket{le=\"+Inf\"} 6",
        ];
        assert_eq!(lines, expected);
    }
}
