//! Random overwrites while the records they replace are removed: does the space come back, and at
//! what price for commits?

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fjall::{AbstractTree, Database, Keyspace};
use lsm_tree::compaction::PullDown;

use crate::Outcome;
use crate::layout::{Place, Remove, Store, forget_old_versions};
use crate::load::{Random, VALUE_BYTES, key};
use crate::measure::{Phase, disk_mib, figure, rss_mib, written_mib};
use crate::options::{MIB, Options};
use crate::single::{fill, overwrites, settle};

const LAST_LEVEL: u8 = 6;
const BATCH: usize = 32;
const COMMITS_PER_SAMPLE: u64 = 200;
const CHECKED_KEYS: u64 = 20_000;

pub(crate) fn reclaim(options: &Options) -> Outcome {
    let directory = options.directory()?;
    let mode = options.text("mode", "none").to_owned();
    let options = options.with("filter", u64::from(matches!(mode.as_str(), "major" | "merge")));
    let keys = options.number("keys", 1_000_000);
    let mut store = Store::open(&directory, &options)?;
    fill(&mut store, keys)?;
    figure("filled", "disk_mib", disk_mib(&directory));

    let stop = Arc::new(AtomicBool::new(false));
    let sweeps = Arc::new(AtomicU64::new(0));
    let live = store.log.disk_space();
    let sweeper = Sweep::from_mode(&mode).map(|kind| {
        let sweeper = Sweeper {
            kind,
            live,
            db: store.db.clone(),
            log: store.log.clone(),
            heads: store.heads.clone(),
            stop: stop.clone(),
            sweeps: sweeps.clone(),
        };
        thread::spawn(move || sweeper.sweep())
    });
    overwrite(&mut store, &options, &mode, &directory)?;
    stop.store(true, Ordering::Relaxed);
    if let Some(sweeper) = sweeper {
        sweeper.join().map_err(|_| "the sweeper must not panic")??;
    }
    let calm = Phase::begin("calm");
    settle(&store);
    figure("calm", "seconds", calm.elapsed().as_secs_f64());
    calm.end(1);
    for sample in 0..options.number("after_seconds", 0) {
        thread::sleep(Duration::from_secs(1));
        figure(&format!("after{sample}"), "disk_mib", disk_mib(&directory));
    }
    figure("end", "sweeps", sweeps.load(Ordering::Relaxed) as f64);
    figure("end", "disk_mib", disk_mib(&directory));
    figure("end", "log_mib", store.log.disk_space() as f64 / MIB as f64);
    figure("end", "rss_mib", rss_mib("self"));
    figure("end", "written_mib", written_mib("self"));
    check(&store, keys)?;
    drop(store);
    Ok(())
}

#[derive(Clone, Copy)]
enum Sweep {
    /// fjall's own major compaction: no other compaction runs beside it.
    Major,
    /// A merge of the last level with itself, beside flushes and moves.
    LastLevel,
}

impl Sweep {
    fn from_mode(mode: &str) -> Option<Self> {
        match mode {
            "major" => Some(Self::Major),
            "merge" => Some(Self::LastLevel),
            _ => None,
        }
    }

    fn run(self, db: &Database, log: &Keyspace) -> Outcome {
        match self {
            Self::Major => log.major_compact()?,
            Self::LastLevel => {
                let watermark = db.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
                log.tree.compact(Arc::new(PullDown(LAST_LEVEL, LAST_LEVEL)), watermark)?;
            }
        }
        Ok(())
    }
}

struct Sweeper {
    kind: Sweep,
    /// Bytes of the log while all of it was alive.
    live: u64,
    db: Database,
    log: Keyspace,
    heads: Option<Keyspace>,
    stop: Arc<AtomicBool>,
    sweeps: Arc<AtomicU64>,
}

impl Sweeper {
    /// Rewrites the log whenever half of it is dead.
    fn sweep(&self) -> Outcome {
        while !self.stop.load(Ordering::Relaxed) {
            if self.log.disk_space() > 2 * self.live {
                self.sweeps.fetch_add(1, Ordering::Relaxed);
                let phase = Phase::begin("sweep");
                self.kind.run(&self.db, &self.log)?;
                figure("sweep", "seconds", phase.elapsed().as_secs_f64());
                if let Some(heads) = &self.heads {
                    forget_old_versions(heads)?;
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn overwrite(store: &mut Store, options: &Options, mode: &str, directory: &Path) -> Outcome {
    let keys = options.number("keys", 1_000_000);
    let overwrites_total = options.number("overwrites", 3_000_000);
    let remove = match mode {
        "tombstone" => Remove::Tombstone,
        "weak" => Remove::WeakTombstone,
        "deferred" => Remove::Deferred,
        _ => Remove::Nothing,
    };
    let mut random = Random::new(11);
    let mut dead: Vec<Place> = Vec::new();
    let mut peak = (0.0_f64, 0.0_f64);
    let written = written_mib("self");
    let mut phase = Phase::begin("overwrite");
    let mut commits = 0;
    while commits * (BATCH as u64) < overwrites_total {
        let puts = overwrites(&mut random, keys, BATCH);
        phase.time(|| store.commit(&puts, remove, &mut dead))?;
        if remove == Remove::Deferred && dead.len() as u64 > keys / 10 && store.pending.is_empty() {
            dead.sort_unstable_by(|a, b| b.cmp(a));
            std::mem::swap(&mut dead, &mut store.pending);
        }
        if remove != Remove::Deferred {
            dead.clear();
        }
        commits += 1;
        if commits % COMMITS_PER_SAMPLE == 0 {
            peak = (peak.0.max(disk_mib(directory)), peak.1.max(rss_mib("self")));
        }
    }
    phase.end(overwrites_total);
    figure("overwrite", "peak_disk_mib", peak.0);
    figure("overwrite", "peak_rss_mib", peak.1);
    figure(
        "overwrite",
        "written_bytes_per_put",
        (written_mib("self") - written) * MIB as f64 / overwrites_total as f64,
    );
    figure("overwrite", "journals", store.db.journal_count() as f64);
    Ok(())
}

fn check(store: &Store, keys: u64) -> Outcome {
    let mut random = Random::new(5);
    let mut reply = Vec::new();
    let phase = Phase::begin("check");
    for _ in 0..CHECKED_KEYS {
        reply.clear();
        store.get(&key(random.below(keys)), &mut reply)?;
        if reply.len() != VALUE_BYTES {
            return Err("a live record must stay".into());
        }
    }
    phase.end(CHECKED_KEYS);
    Ok(())
}
