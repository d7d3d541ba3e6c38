//! Auto-compaction: when to give up history, and how much of it.
//!
//! Source: etcd `server/etcdserver/api/v3compactor`.

use std::collections::VecDeque;

use crate::types::Revision;

const MINUTE_MILLIS: u64 = 60_000;
/// How often the revision mode looks.
const REVISION_INTERVAL_MILLIS: u64 = 5 * MINUTE_MILLIS;
/// The periodic mode compacts at least this often.
const PERIOD_INTERVAL_MAX_MILLIS: u64 = 60 * MINUTE_MILLIS;
/// The periodic mode takes this many samples per interval.
const SAMPLES_PER_INTERVAL: u64 = 10;
/// Samples that are kept at most; older ones are thinned out.
const SAMPLES_MAX: usize = 4096;

/// How much history to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// All of it.
    Everything,
    /// What is younger than so many milliseconds.
    PeriodMillis(u64),
    /// So many revisions.
    Revisions(u64),
}

/// Decides when to compact at which revision.
#[derive(Debug)]
pub(super) struct Compactor {
    retention: Retention,
    /// Revisions and when they were current, oldest first.
    samples: VecDeque<(u64, Revision)>,
    next_sample_millis: u64,
    next_compaction_millis: u64,
    compacted: Revision,
}

impl Compactor {
    /// A compactor that starts to watch now.
    pub(super) fn new(retention: Retention, now_millis: u64) -> Self {
        let interval = interval_millis(retention);
        Self {
            retention,
            samples: VecDeque::new(),
            next_sample_millis: now_millis,
            next_compaction_millis: now_millis.saturating_add(interval),
            compacted: Revision(0),
        }
    }

    /// To be called now and then. Answers the revision to compact at, if it is time to.
    pub(super) fn tick(&mut self, now_millis: u64, current: Revision) -> Option<Revision> {
        if current.tag() != self.compacted.tag() {
            // What was remembered are numbers of nobody now.
            self.samples.clear();
            self.compacted = Revision(0).with_tag(current.tag());
        }
        let candidate = match self.retention {
            Retention::Everything => return None,
            Retention::PeriodMillis(period) => {
                self.sample(now_millis, current);
                self.older_than(now_millis.checked_sub(period))
            }
            Retention::Revisions(keep) => {
                let counter = current.counter().checked_sub(keep);
                counter.map(|counter| Revision(counter).with_tag(current.tag()))
            }
        };
        if now_millis < self.next_compaction_millis {
            return None;
        }
        let revision = candidate.filter(|revision| *revision > self.compacted)?;
        self.compacted = revision;
        self.next_compaction_millis = now_millis.saturating_add(interval_millis(self.retention));
        Some(revision)
    }

    fn sample(&mut self, now_millis: u64, current: Revision) {
        if now_millis < self.next_sample_millis {
            return;
        }
        self.next_sample_millis =
            now_millis + (interval_millis(self.retention) / SAMPLES_PER_INTERVAL).max(1);
        self.samples.push_back((now_millis, current));
        if self.samples.len() > SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// The newest revision that was current at `millis`; drops older samples.
    fn older_than(&mut self, millis: Option<u64>) -> Option<Revision> {
        let millis = millis?;
        while self.samples.get(1).is_some_and(|(at, _)| *at <= millis) {
            self.samples.pop_front();
        }
        self.samples.front().filter(|(at, _)| *at <= millis).map(|(_, revision)| *revision)
    }
}

fn interval_millis(retention: Retention) -> u64 {
    match retention {
        Retention::Everything => u64::MAX,
        Retention::PeriodMillis(period) => period.min(PERIOD_INTERVAL_MAX_MILLIS),
        Retention::Revisions(_) => REVISION_INTERVAL_MILLIS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * MINUTE_MILLIS;

    /// Runs a store that writes one revision a second; answers when it compacted at what.
    fn run(retention: Retention, hours: u64) -> Vec<(u64, u64)> {
        let mut compactor = Compactor::new(retention, 0);
        let mut compactions = Vec::new();
        for millis in (0..hours * HOUR).step_by(1000) {
            if let Some(revision) = compactor.tick(millis, Revision(1 + millis / 1000)) {
                compactions.push((millis / 1000, revision.0));
            }
        }
        compactions
    }

    #[test]
    fn a_period_is_kept_and_compaction_comes_hourly() {
        let compactions = run(Retention::PeriodMillis(2 * HOUR), 6);
        assert_eq!(compactions.len(), 4, "{compactions:?}");
        for (seconds, revision) in compactions {
            let kept = seconds + 1 - revision;
            assert!((7200..=7200 + 360).contains(&kept), "at {seconds} s keeps {kept}");
        }
    }

    #[test]
    fn a_short_period_is_its_own_interval() {
        let compactions = run(Retention::PeriodMillis(10 * MINUTE_MILLIS), 1);
        assert_eq!(compactions.len(), 5, "{compactions:?}");
        assert!(
            compactions.iter().all(|(seconds, revision)| seconds + 1 - revision >= 600),
            "{compactions:?}"
        );
    }

    #[test]
    fn so_many_revisions_are_kept() {
        let compactions = run(Retention::Revisions(100), 1);
        assert_eq!(compactions.len(), 11, "{compactions:?}");
        assert!(
            compactions.iter().all(|(seconds, revision)| seconds + 1 - revision == 100),
            "{compactions:?}"
        );
    }

    #[test]
    fn another_tag_starts_anew() {
        for retention in [Retention::PeriodMillis(10 * MINUTE_MILLIS), Retention::Revisions(100)] {
            let mut compactor = Compactor::new(retention, 0);
            let mut compactions = Vec::new();
            for minute in 0..60 {
                let tag = if minute < 30 { 7 } else { 3 };
                let current = Revision(1000 + minute).with_tag(tag);
                compactions.extend(compactor.tick(minute * MINUTE_MILLIS, current));
            }
            let tags: Vec<u16> = compactions.iter().map(|revision| revision.tag()).collect();
            assert!(tags.is_sorted_by(|a, b| a >= b), "{tags:?}");
            assert!(tags.contains(&7) && tags.contains(&3), "{tags:?}");
        }
    }

    #[test]
    fn an_idle_store_is_compacted_once() {
        let mut compactor = Compactor::new(Retention::PeriodMillis(HOUR), 0);
        let ticks = (0..10 * HOUR)
            .step_by(60_000)
            .filter(|millis| compactor.tick(*millis, Revision(7)).is_some());
        assert_eq!(ticks.count(), 1);
        assert_eq!(run(Retention::Everything, 1), []);
    }
}
