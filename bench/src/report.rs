//! Results as Markdown and JSON, and the bars that they are held against.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::{Figures, median, medians};
use crate::run::MANY_KEYS;
use crate::server::Kind;
use crate::work::Work;

/// In which state the servers were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Filled, then started anew.
    Fresh,
    /// During or after writes at random.
    AfterWrites,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::AfterWrites => "written",
        }
    }
}

/// One load on all servers.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What.
    pub work: Work,
    /// By how many.
    pub clients: usize,
    /// On how many connections.
    pub connections: usize,
    /// Of how many keys.
    pub keys: u64,
    /// In which state.
    pub state: State,
    /// What came out, each round.
    pub rounds: BTreeMap<Kind, Vec<Figures>>,
}

impl Cell {
    /// Medians of a server.
    pub fn of(&self, kind: Kind) -> Option<Figures> {
        self.rounds.get(&kind).map(|rounds| medians(rounds))
    }

    /// What it is, in short.
    pub fn label(&self) -> String {
        let Self { work, clients, keys, state, .. } = self;
        format!("{work} x{clients}, {} k keys, {}", keys / 1000, state.name())
    }

    /// One line.
    pub fn summary(&self) -> String {
        let mut text = format!("{} x{} {}", self.work, self.clients, self.state.name());
        for kind in self.rounds.keys() {
            let f = self.of(*kind).unwrap_or_default();
            let _ = write!(
                text,
                " | {kind} {:.0}/s p50 {:.0} p99 {:.0} cpu {:.1} (client {:.1})",
                f.per_second, f.p50_us, f.p99_us, f.cpu_us, f.client_cpu_us
            );
        }
        text
    }

    /// Starling over another server: the median over rounds, in which both were measured side by side.
    pub fn ratio(&self, to: Kind, field: fn(&Figures) -> f64) -> Option<f64> {
        let (ours, theirs) = (self.rounds.get(&Kind::Starling)?, self.rounds.get(&to)?);
        let pairs = ours.iter().zip(theirs);
        Some(median(pairs.map(|(ours, theirs)| field(ours) / field(theirs).max(1e-9))))
    }
}

/// A figure that is no load's.
#[derive(Clone, Debug)]
pub struct Extra {
    /// What, with its unit.
    pub name: String,
    /// Of how many keys.
    pub keys: u64,
    /// Each time it was measured.
    pub values: BTreeMap<Kind, Vec<f64>>,
}

impl Extra {
    /// The name of the ratio that compaction is judged by.
    pub const COMPACTION: &str = "put p99 under compaction, ratio to quiet";

    fn of(&self, kind: Kind) -> Option<f64> {
        self.values.get(&kind).map(|values| median(values.iter().copied()))
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The loads.
    pub cells: Vec<Cell>,
    /// What else there is.
    pub extras: Vec<Extra>,
}

/// What a measurement should be.
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

struct Verdict {
    what: String,
    bar: Bar,
    measured: f64,
}

impl Results {
    /// Adds a figure.
    pub fn note(&mut self, name: &str, keys: u64, kind: Kind, value: f64) {
        let known = self.extras.iter().position(|extra| extra.name == name && extra.keys == keys);
        let at = known.unwrap_or_else(|| {
            self.extras.push(Extra { name: name.to_owned(), keys, values: BTreeMap::new() });
            self.extras.len() - 1
        });
        self.extras[at].values.entry(kind).or_default().push(value);
    }

    /// Tables: what was to be reached, and everything.
    pub fn markdown(&self) -> String {
        let mut text = String::from("## Bars\n\n| work | bar | measured | |\n|---|---|---|---|\n");
        for Verdict { what, bar, measured } in self.verdicts() {
            let (bar, met) = match bar {
                Bar::AtLeast(bar) => (format!(">= {bar}"), measured >= bar),
                Bar::AtMost(bar) => (format!("<= {bar}"), measured <= bar),
            };
            let met = if met { "met" } else { "**missed**" };
            let _ = writeln!(text, "| {what} | {bar} | {measured:.2} | {met} |");
        }
        text += "\n## Loads\n\nMedians of all rounds. Ratios are Starling's to etcd's, and in the last column to the no-op service's.\n\n";
        text += "| work | keys | state | clients (connections) | server | ops/s | p50 us | p99 us | CPU us/op | ops/s ratio | CPU ratio | CPU to no-op |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for cell in &self.cells {
            cell_rows(&mut text, cell);
        }
        text += "\n## Other figures\n\n| what | keys | starling | etcd | ratio |\n|---|---|---|---|---|\n";
        for extra in &self.extras {
            let (ours, theirs) = (extra.of(Kind::Starling), extra.of(Kind::Etcd));
            let (ours, theirs) = (ours.unwrap_or(f64::NAN), theirs.unwrap_or(f64::NAN));
            let Extra { name, keys, .. } = extra;
            let ratio = ours / theirs;
            let _ = writeln!(text, "| {name} | {keys} | {ours:.2} | {theirs:.2} | {ratio:.2} |");
        }
        text
    }

    /// Every round of everything.
    pub fn json(&self) -> Value {
        let cells = self.cells.iter().map(|cell| {
            let rounds: BTreeMap<String, Vec<Value>> = cell
                .rounds
                .iter()
                .map(|(kind, rounds)| (kind.to_string(), rounds.iter().map(figures).collect()))
                .collect();
            json!({
                "work": cell.work.to_string(), "clients": cell.clients, "connections": cell.connections,
                "keys": cell.keys, "state": cell.state.name(), "rounds": rounds,
            })
        });
        let extras = self.extras.iter().map(|extra| {
            let values: BTreeMap<String, &Vec<f64>> =
                extra.values.iter().map(|(kind, values)| (kind.to_string(), values)).collect();
            json!({ "name": extra.name, "keys": extra.keys, "values": values })
        });
        json!({ "loads": cells.collect::<Vec<_>>(), "other": extras.collect::<Vec<_>>() })
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = self.cells.iter().flat_map(verdicts_of_cell).collect();
        verdicts.extend(self.page_verdict());
        verdicts.extend(self.extras.iter().filter_map(verdict_of_extra));
        verdicts
    }

    fn page_verdict(&self) -> Option<Verdict> {
        let p50 = |work| {
            let cell = self.cells.iter().find(|cell| cell.work == work)?;
            cell.of(Kind::Starling).map(|figures| figures.p50_us)
        };
        let measured = p50(Work::PageOfAll)? / p50(Work::PageOfRegion)?;
        let what = "a page of 500: p50 of 1 M keys to that of 10 k keys".to_owned();
        Some(Verdict { what, bar: Bar::AtMost(1.5), measured })
    }
}

fn figures(figures: &Figures) -> Value {
    json!({
        "per_second": figures.per_second, "p50_us": figures.p50_us, "p99_us": figures.p99_us,
        "server_cpu_us": figures.cpu_us, "client_cpu_us": figures.client_cpu_us,
    })
}

fn cell_rows(text: &mut String, cell: &Cell) {
    let Cell { work, keys, clients, connections, state, .. } = cell;
    for kind in cell.rounds.keys() {
        let Figures { per_second, p50_us, p99_us, cpu_us, .. } = cell.of(*kind).unwrap_or_default();
        let _ = write!(
            text,
            "| {work} | {keys} | {} | {clients} ({connections}) | {kind} | {per_second:.0} | {p50_us:.0} | {p99_us:.0} | {cpu_us:.1} |",
            state.name(),
        );
        let ratios = [
            cell.ratio(Kind::Etcd, |f| f.per_second),
            cell.ratio(Kind::Etcd, |f| f.cpu_us),
            cell.ratio(Kind::Noop, |f| f.cpu_us),
        ];
        for ratio in ratios {
            let ratio = ratio.filter(|_| *kind == Kind::Starling);
            let _ = write!(text, " {} |", ratio.map_or_else(String::new, |r| format!("{r:.2}")));
        }
        text.push('\n');
    }
}

const fn per_second(figures: &Figures) -> f64 {
    figures.per_second
}

const fn cpu(figures: &Figures) -> f64 {
    figures.cpu_us
}

type Rule = (&'static str, Kind, fn(&Figures) -> f64, Bar);

/// What a load is held against.
fn rules(cell: &Cell) -> Vec<Rule> {
    use Bar::{AtLeast, AtMost};
    use Kind::{Etcd, Noop};
    let (throughput, cpu_per_op) = ("ops/s to etcd's", "CPU to etcd's");
    match (cell.work, cell.clients) {
        (Work::Put, 1) => vec![("p50 to etcd's", Etcd, |f| f.p50_us, AtMost(0.75))],
        (Work::Put, _) => vec![
            (throughput, Etcd, per_second, AtLeast(2.0)),
            (cpu_per_op, Etcd, cpu, AtMost(0.38)),
        ],
        (Work::Get, _) => vec![
            (throughput, Etcd, per_second, AtLeast(2.5)),
            (cpu_per_op, Etcd, cpu, AtMost(0.25)),
            ("CPU to the no-op service's", Noop, cpu, AtMost(2.0)),
        ],
        (Work::Range, _) => {
            let bar = if cell.keys >= MANY_KEYS { 0.45 } else { 0.33 };
            vec![(throughput, Etcd, per_second, AtLeast(2.5)), (cpu_per_op, Etcd, cpu, AtMost(bar))]
        }
        (Work::Mixed, _) => vec![
            (throughput, Etcd, per_second, AtLeast(3.0)),
            (cpu_per_op, Etcd, cpu, AtMost(0.25)),
        ],
        (Work::ReadsUnderPuts, _) => vec![("p99 to etcd's", Etcd, |f| f.p99_us, AtMost(0.5))],
        (Work::CountAll, _) => vec![(throughput, Etcd, per_second, AtLeast(20.0))],
        _ => Vec::new(),
    }
}

fn verdicts_of_cell(cell: &Cell) -> Vec<Verdict> {
    let Cell { work, clients, keys, state, .. } = cell;
    let name = format!("{work}, {clients} clients, {keys} keys, {}", state.name());
    let verdict = |(what, to, field, bar): Rule| {
        let measured = cell.ratio(to, field)?;
        Some(Verdict { what: format!("{name}: {what}"), bar, measured })
    };
    rules(cell).into_iter().filter_map(verdict).collect()
}

fn verdict_of_extra(extra: &Extra) -> Option<Verdict> {
    let large = extra.keys >= MANY_KEYS;
    let ours = extra.of(Kind::Starling)?;
    let ratio = ours / extra.of(Kind::Etcd)?;
    let (bar, measured) = match extra.name.as_str() {
        "watch, 100 streams x 1, net CPU us/event" => (0.45, ratio),
        "watch, 1 stream x 100, net CPU us/event" => (0.6, ratio),
        "RSS after fill, MiB" | "RSS after restart, MiB" if large => (0.7, ratio),
        "disk after fill, MiB" | "disk after restart, MiB" if large => (0.6, ratio),
        "start-up to first read, ms" if large => (0.35, ratio),
        Extra::COMPACTION => (1.5, ours),
        "idle RSS, MiB" => (16.0, ours),
        _ => return None,
    };
    let what = format!("{}, {} keys", extra.name, extra.keys);
    Some(Verdict { what, bar: Bar::AtMost(bar), measured })
}
