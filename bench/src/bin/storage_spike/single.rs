//! One candidate in one process: fill, put, get, range; start-up; an empty store.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::layout::{Layout, RangeRead, Remove, Store};
use crate::load::{KEYS_PER_GROUP, Put, Random, VALUE_BYTES, group, key, value};
use crate::measure::{Phase, disk_mib, figure, rss_mib, written_mib};
use crate::options::Options;

const FILL_BATCH: u64 = 128;
const READ_RANGES: u64 = 20;
/// Long enough for workers to finish and for the allocator to return pages.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn run(options: &Options) -> Outcome {
    let directory = options.directory()?;
    let mut store = Store::open(&directory, options)?;
    let keys = options.number("keys", 100_000);
    fill(&mut store, keys)?;
    memory_and_disk("fill", &store, &directory);
    reads(&store, options, "fresh")?;
    for batch in [1, 32, 128] {
        put(&mut store, options, batch)?;
    }
    settle(&store);
    memory_and_disk("puts", &store, &directory);
    reads(&store, options, "scattered")?;
    memory_and_disk("end", &store, &directory);
    store.trim()?;
    settle(&store);
    memory_and_disk("trimmed", &store, &directory);
    Ok(())
}

/// Fills in key order, as a bulk load does: places of a group are adjacent.
pub(crate) fn fill(store: &mut Store, keys: u64) -> Outcome {
    let mut random = Random::new(1);
    let mut phase = Phase::begin("fill");
    let mut dead = Vec::new();
    let mut puts = Vec::new();
    for number in 0..keys {
        puts.push((key(number), value(&mut random)));
        if puts.len() as u64 == FILL_BATCH || number + 1 == keys {
            phase.time(|| store.commit(&puts, Remove::Nothing, &mut dead))?;
            puts.clear();
        }
    }
    phase.end(keys);
    settle(store);
    Ok(())
}

pub(crate) fn settle(store: &Store) {
    let calm = || store.db.active_compactions() == 0 && store.db.outstanding_flushes() == 0;
    for _ in 0..60 {
        thread::sleep(SETTLE);
        if calm() {
            return;
        }
    }
}

pub(crate) fn memory_and_disk(phase: &str, store: &Store, directory: &Path) {
    figure(phase, "rss_mib", rss_mib("self"));
    figure(phase, "disk_mib", disk_mib(directory));
    figure(phase, "written_mib", written_mib("self"));
    figure(phase, "tables", store.log.table_count() as f64);
    figure(phase, "journals", store.db.journal_count() as f64);
}

/// Random overwrites in batches of one size, for a while.
fn put(store: &mut Store, options: &Options, batch: usize) -> Outcome {
    let keys = options.number("keys", 100_000);
    let length = Duration::from_millis(options.number("millis", 3000));
    let mut random = Random::new(batch as u64);
    let mut phase = Phase::begin(format!("put{batch}"));
    let mut dead = Vec::new();
    let mut operations = 0;
    while phase.elapsed() < length {
        let puts = overwrites(&mut random, keys, batch);
        phase.time(|| store.commit(&puts, Remove::Nothing, &mut dead))?;
        operations += batch as u64;
    }
    phase.end(operations);
    Ok(())
}

pub(crate) fn overwrites(random: &mut Random, keys: u64, batch: usize) -> Vec<Put> {
    (0..batch).map(|_| (key(random.below(keys)), value(random))).collect()
}

/// Chooses one of so many keys.
type Draw = fn(&mut Random, u64) -> u64;

/// Gets, uniform and skewed, and ranges, each read in the ways that the layout offers.
fn reads(store: &Store, options: &Options, state: &str) -> Outcome {
    let keys = options.number("keys", 100_000);
    let draws: [(&str, Draw); 2] = [("uniform", Random::below), ("skewed", Random::skewed)];
    for (name, draw) in draws {
        get(store, options, &format!("{state}.get_{name}"), |random| draw(random, keys))?;
    }
    let ways: &[(&str, RangeRead)] = match store.layout {
        Layout::Log => &[
            ("key_order", RangeRead::InKeyOrder),
            ("place_order", RangeRead::InPlaceOrder),
            ("span", RangeRead::Span),
            ("cache_first", RangeRead::CacheFirst),
        ],
        Layout::Keys | Layout::Memory => &[("key_order", RangeRead::InKeyOrder)],
    };
    for (name, way) in ways {
        range(store, options, &format!("{state}.range_{name}"), *way)?;
    }
    Ok(())
}

fn get(store: &Store, options: &Options, name: &str, draw: impl Fn(&mut Random) -> u64) -> Outcome {
    let length = Duration::from_millis(options.number("millis", 3000) / 2);
    let mut random = Random::new(7);
    let mut reply = Vec::new();
    let mut operations = 0;
    // The first half warms the caches.
    for half in ["warm", "get"] {
        let phase = Phase::begin(name);
        while phase.elapsed() < length {
            for _ in 0..KEYS_PER_GROUP {
                reply.clear();
                store.get(&key(draw(&mut random)), &mut reply)?;
                if reply.len() != VALUE_BYTES {
                    return Err("a get must find its value".into());
                }
                operations += 1;
            }
        }
        if half == "get" {
            phase.end(operations);
        }
        operations = 0;
    }
    Ok(())
}

fn range(store: &Store, options: &Options, name: &str, way: RangeRead) -> Outcome {
    let length = Duration::from_millis(options.number("millis", 3000) / 2);
    let groups = options.number("keys", 100_000) / KEYS_PER_GROUP;
    let mut random = Random::new(9);
    let mut reply = Vec::new();
    let mut operations = 0;
    let phase = Phase::begin(name);
    while phase.elapsed() < length {
        for _ in 0..READ_RANGES {
            reply.clear();
            let (start, end) = group(random.below(groups));
            if store.range(&start, &end, way, &mut reply)? != KEYS_PER_GROUP as usize {
                return Err("a range must find a hundred keys".into());
            }
            operations += 1;
        }
    }
    phase.end(operations);
    Ok(())
}

pub(crate) fn reopen(options: &Options) -> Outcome {
    let directory = options.directory()?;
    let phase = Phase::begin("open");
    let mut store = Store::open(&directory, options)?;
    let open = phase.elapsed();
    let scan = Phase::begin("scan");
    let records = store.rebuild()?;
    let scanned = scan.elapsed();
    scan.end(records);
    phase.end(1);
    figure("open", "fjall_ms", open.as_secs_f64() * 1e3);
    figure("open", "total_ms", (open + scanned).as_secs_f64() * 1e3);
    figure("open", "records", records as f64);
    figure("open", "rss_mib", rss_mib("self"));
    settle(&store);
    memory_and_disk("opened", &store, &directory);
    reads(&store, options, "opened")?;
    memory_and_disk("read", &store, &directory);
    Ok(())
}

/// An empty store that has taken a few writes, as a member that nobody uses.
pub(crate) fn idle(options: &Options) -> Outcome {
    let directory = options.directory()?;
    let mut store = Store::open(&directory, options)?;
    memory_and_disk("empty", &store, &directory);
    let mut random = Random::new(3);
    for _ in 0..1000 {
        let puts = overwrites(&mut random, 100, 1);
        store.commit(&puts, Remove::Nothing, &mut Vec::new())?;
    }
    settle(&store);
    memory_and_disk("thousand_puts", &store, &directory);
    Ok(())
}
