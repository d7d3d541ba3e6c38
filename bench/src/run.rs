//! The run: which loads, in which order, on which servers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;
use crate::measure::Figures;
use crate::report::{Cell, Extra, Results, State};
use crate::server::{Kind, Recipe, Server};
use crate::special::{self, UnderCompaction};
use crate::watch::{self, FanOut};
use crate::work::{self, Load, Work};

/// Clients of loads that are run at one size only.
const CLIENTS: usize = 64;
/// Clients of reads beside writes: an eighth reads.
const CLIENTS_OF_READS_UNDER_PUTS: usize = 72;
/// Between two windows, for what the first has left behind.
const PAUSE: Duration = Duration::from_millis(300);
const FILL_CLIENTS: usize = 512;
/// Keys from which on memory, disk, start-up and pages are looked at.
pub const MANY_KEYS: u64 = 1_000_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Starling's binary.
    pub starling: PathBuf,
    /// etcd's binary.
    pub etcd: PathBuf,
    /// Where the data goes, of all servers.
    pub directory: PathBuf,
    /// Where the report goes.
    pub out: PathBuf,
    /// How many keys there are, for each stage.
    pub keys: Vec<u64>,
    /// How many clients at a time.
    pub clients: Vec<usize>,
    /// How often each load is run on each server.
    pub rounds: usize,
    /// How long a window is.
    pub window: Duration,
    /// Before it.
    pub warm_up: Duration,
    /// Threads of the clients.
    pub threads: usize,
    /// Only these loads; all if empty.
    pub only: Vec<String>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn recipe(&self, kind: Kind, stage: &str) -> Outcome<Recipe> {
        let program = match kind {
            Kind::Starling => self.starling.clone(),
            Kind::Etcd => self.etcd.clone(),
            Kind::Noop => std::env::current_exe()?,
        };
        let directory = self.directory.join(format!("{kind}-{stage}"));
        Ok(Recipe { kind, program, directory, flags: Vec::new() })
    }

    fn load(&self, work: Work, clients: usize, keys: u64) -> Load {
        let connections = match clients {
            0..8 => clients,
            8..500 => 8,
            _ => 40,
        };
        let Self { threads, warm_up, window, .. } = *self;
        Load { work, clients, connections, threads, keys, warm_up, window }
    }
}

/// Runs everything that is wanted.
pub fn run(options: &Options) -> Outcome<Results> {
    std::fs::create_dir_all(&options.directory)?;
    let mut results = Results::default();
    if options.wants("idle") {
        for kind in [Kind::Starling, Kind::Etcd] {
            let rss_mib = special::idle_rss_mib(&options.recipe(kind, "idle")?)?;
            results.note("idle RSS, MiB", 0, kind, rss_mib);
        }
    }
    for keys in &options.keys {
        let mut stage = Stage { options, keys: *keys, servers: Vec::new(), results: &mut results };
        let outcome = stage.run();
        stage.servers.clear();
        for kind in [Kind::Starling, Kind::Etcd] {
            let directory = options.recipe(kind, &keys.to_string())?.directory;
            if directory.exists() {
                std::fs::remove_dir_all(directory)?;
            }
        }
        outcome?;
    }
    Ok(results)
}

struct Stage<'a> {
    options: &'a Options,
    keys: u64,
    servers: Vec<Server>,
    results: &'a mut Results,
}

impl Stage<'_> {
    fn run(&mut self) -> Outcome {
        eprintln!("{} keys", self.keys);
        self.fill()?;
        self.restart()?;
        self.reads(State::Fresh)?;
        self.pages()?;
        self.writes()?;
        self.fan_outs()?;
        self.reads(State::AfterWrites)?;
        self.compactions()
    }

    fn is_large(&self) -> bool {
        self.keys >= MANY_KEYS
    }

    fn fill(&mut self) -> Outcome {
        for kind in [Kind::Starling, Kind::Etcd, Kind::Noop] {
            let recipe = self.options.recipe(kind, &self.keys.to_string())?;
            let server = Server::start(&recipe)?;
            if kind != Kind::Noop {
                let load = self.options.load(Work::Fill, FILL_CLIENTS, self.keys);
                let length = work::fill(&server, &load)?;
                eprintln!("  {kind}: filled in {:.1} s", length.as_secs_f64());
                let footprint = special::footprint(&server);
                self.results.note("RSS after fill, MiB", self.keys, kind, footprint.rss_mib);
                self.results.note("disk after fill, MiB", self.keys, kind, footprint.disk_mib);
            }
            self.servers.push(server);
        }
        Ok(())
    }

    fn restart(&mut self) -> Outcome {
        let rounds = if self.options.wants("start-up") { self.options.rounds } else { 1 };
        for server in std::mem::take(&mut self.servers) {
            let mut server = server;
            for _ in 0..rounds {
                if server.kind() == Kind::Noop {
                    break;
                }
                server = server.restart()?;
                let millis = server.start_up.as_secs_f64() * 1e3;
                self.results.note("start-up to first read, ms", self.keys, server.kind(), millis);
            }
            if server.kind() != Kind::Noop {
                let footprint = special::footprint(&server);
                let (keys, kind) = (self.keys, server.kind());
                self.results.note("RSS after restart, MiB", keys, kind, footprint.rss_mib);
                self.results.note("disk after restart, MiB", keys, kind, footprint.disk_mib);
            }
            self.servers.push(server);
        }
        Ok(())
    }

    fn reads(&mut self, state: State) -> Outcome {
        let all = if state == State::Fresh { self.options.clients.clone() } else { vec![CLIENTS] };
        for work in [Work::Get, Work::Range] {
            for clients in &all {
                self.cell(work, *clients, state)?;
            }
        }
        if state == State::Fresh {
            self.cell(Work::Count, CLIENTS, state)?;
        }
        Ok(())
    }

    fn writes(&mut self) -> Outcome {
        for work in [Work::Put, Work::Mixed] {
            for clients in self.options.clients.clone() {
                self.cell(work, clients, State::AfterWrites)?;
            }
        }
        self.cell(Work::Txn, CLIENTS, State::AfterWrites)?;
        self.cell(Work::ReadsUnderPuts, CLIENTS_OF_READS_UNDER_PUTS, State::AfterWrites)?;
        self.cell(Work::KeepAlive, CLIENTS, State::AfterWrites)
    }

    fn pages(&mut self) -> Outcome {
        if self.is_large() {
            self.cell(Work::CountAll, 1, State::Fresh)?;
            self.cell(Work::PageOfAll, 1, State::Fresh)?;
            self.cell(Work::PageOfRegion, 1, State::Fresh)?;
        }
        Ok(())
    }

    /// One load on all servers in turn, in another order each round.
    fn cell(&mut self, work: Work, clients: usize, state: State) -> Outcome {
        if !self.options.wants(&work.to_string()) {
            return Ok(());
        }
        let load = self.options.load(work, clients, self.keys);
        let mut rounds: BTreeMap<Kind, Vec<Figures>> = BTreeMap::new();
        for round in 0..self.options.rounds {
            for i in 0..self.servers.len() {
                let server = &self.servers[(i + round) % self.servers.len()];
                if server.kind() == Kind::Noop && !noop_can(work) {
                    continue;
                }
                std::thread::sleep(PAUSE);
                let figures = work::run(server, &load)?.figures();
                rounds.entry(server.kind()).or_default().push(figures);
            }
        }
        let cell =
            Cell { work, clients, connections: load.connections, keys: self.keys, state, rounds };
        eprintln!("  {}", cell.summary());
        self.results.cells.push(cell);
        Ok(())
    }

    fn fan_outs(&mut self) -> Outcome {
        if !self.options.wants("watch") || self.is_large() && self.options.keys.len() > 1 {
            return Ok(());
        }
        for (name, streams, watchers) in
            [("watch, 100 streams x 1", 100, 1), ("watch, 1 stream x 100", 1, 100)]
        {
            for round in 0..self.options.rounds {
                for i in 0..self.servers.len() {
                    let server = &self.servers[(i + round) % self.servers.len()];
                    if server.kind() == Kind::Noop {
                        continue;
                    }
                    std::thread::sleep(PAUSE);
                    let window = self.options.window;
                    let plain = watch::run(server, FanOut { streams: 0, watchers: 0 }, window)?;
                    let cost = watch::run(server, FanOut { streams, watchers }, window)?;
                    let (kind, net) = (server.kind(), cost.net_us_per_event(&plain));
                    let per_second = cost.events as f64 / cost.length.as_secs_f64();
                    eprintln!("  {name}, {kind}: {net:.2} us/event, {per_second:.0} events/s");
                    self.results.note(&format!("{name}, net CPU us/event"), self.keys, kind, net);
                    self.results.note(&format!("{name}, events/s"), self.keys, kind, per_second);
                }
            }
        }
        Ok(())
    }

    fn compactions(&mut self) -> Outcome {
        if !self.options.wants("compaction") {
            return Ok(());
        }
        let load = self.options.load(Work::Put, CLIENTS, self.keys);
        for _ in 0..self.options.rounds {
            for server in &self.servers {
                if server.kind() == Kind::Noop {
                    continue;
                }
                std::thread::sleep(PAUSE);
                let UnderCompaction { quiet, compacting, length } =
                    special::under_compaction(server, &load)?;
                let (kind, ratio) = (server.kind(), compacting.p99_us / quiet.p99_us.max(1e-9));
                eprintln!(
                    "  compaction, {kind}: p99 {:.0} us quiet, {:.0} us meanwhile ({:.1} s)",
                    quiet.p99_us,
                    compacting.p99_us,
                    length.as_secs_f64()
                );
                self.results.note("put p99 quiet, us", self.keys, kind, quiet.p99_us);
                self.results.note(
                    "put p99 under compaction, us",
                    self.keys,
                    kind,
                    compacting.p99_us,
                );
                self.results.note(Extra::COMPACTION, self.keys, kind, ratio);
            }
        }
        Ok(())
    }
}

fn noop_can(work: Work) -> bool {
    !matches!(work, Work::KeepAlive | Work::CountAll | Work::PageOfAll | Work::PageOfRegion)
}
