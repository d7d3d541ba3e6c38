//! The server of a soak, and the report.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::mpsc;

use super::checker::Checker;
use super::clients::{self, Order, Tally};
use crate::Outcome;
use crate::client::Connection;
use crate::data::Random;
use crate::measure::percentile;
use crate::server::{Kind, Recipe, Server};
use crate::work::get_request;

const TICK: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
const ORDERS_MAX: usize = 16;
/// So that idle watchers hear of progress.
const FLAGS: &[&str] = &["--watch-progress-notify-interval", "1s"];

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server's binary.
    pub program: PathBuf,
    /// Where its data goes; it must not exist.
    pub directory: PathBuf,
    /// How long.
    pub length: Duration,
    /// Operations a second, about.
    pub rate: u64,
    /// The mean time between two restarts.
    pub restart_every: Duration,
    /// For everything that is random.
    pub seed: u64,
}

/// What came out.
pub struct Soaked {
    /// What the clients found.
    pub checker: Checker,
    /// What the server did wrong otherwise.
    pub failures: Vec<String>,
    /// The report, in Markdown.
    pub report: String,
}

impl Soaked {
    /// Whether nothing at all was wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.checker.violations().is_empty()
    }
}

struct Restart {
    signal: Signal,
    at: Duration,
    start_up: Duration,
    away: Duration,
}

struct Control {
    plan: Plan,
    server: Option<Server>,
    orders: mpsc::Sender<Order>,
    tally: Arc<Tally>,
    random: Random,
    generation: u64,
    begin: Instant,
    restarts: Vec<Restart>,
    failures: Vec<String>,
    rows: String,
    counted: u64,
}

/// Runs a plan; each line of the report goes to `show` as soon as it is there.
pub fn run(plan: &Plan, mut show: impl FnMut(&str)) -> Outcome<Soaked> {
    std::fs::create_dir(&plan.directory)?;
    let (orders, receiver) = mpsc::channel(ORDERS_MAX);
    let tally = Arc::new(Tally::default());
    let clients = {
        let (tally, rate, seed) = (Arc::clone(&tally), plan.rate, plan.seed);
        thread::spawn(move || clients::run(receiver, tally, rate, seed))
    };
    let mut control = Control::new(plan, orders, tally);
    control.start()?;
    control.drive(&mut show)?;
    control.orders.blocking_send(Order::Stop)?;
    let checker = clients.join().map_err(|_| "a client panicked")??;
    let report = control.report(&checker);
    let failures = std::mem::take(&mut control.failures);
    Ok(Soaked { checker, failures, report })
}

impl Control {
    fn new(plan: &Plan, orders: mpsc::Sender<Order>, tally: Arc<Tally>) -> Self {
        Self {
            plan: plan.clone(),
            server: None,
            orders,
            tally,
            random: Random::new(plan.seed),
            generation: 0,
            begin: Instant::now(),
            restarts: Vec::new(),
            failures: Vec::new(),
            rows: String::new(),
            counted: 0,
        }
    }

    fn start(&mut self) -> Outcome {
        let server = Server::start(&Recipe {
            kind: Kind::Starling,
            program: self.plan.program.clone(),
            directory: self.plan.directory.clone(),
            flags: FLAGS.iter().map(ToString::to_string).collect(),
        })?;
        self.generation += 1;
        let (generation, port) = (self.generation, server.port());
        let revision = revision(port)?;
        self.server = Some(server);
        self.orders.blocking_send(Order::Serve { generation, port, revision })?;
        Ok(())
    }

    fn drive(&mut self, show: &mut impl FnMut(&str)) -> Outcome {
        let mut restart_at = self.next_restart();
        let mut row_at = MINUTE;
        show(HEAD);
        while self.begin.elapsed() < self.plan.length && self.failures.is_empty() {
            thread::sleep(TICK);
            let now = self.begin.elapsed();
            if now >= row_at {
                let row = self.row();
                show(&row);
                self.rows.push_str(&row);
                row_at += MINUTE;
            }
            if let Some(status) = self.server.as_mut().and_then(|s| s.ended().transpose()) {
                self.failures.push(format!("the server ended by itself: {}", status?));
            } else if now >= restart_at {
                if !self.is_steady(now) {
                    self.restart()?;
                }
                restart_at = self.next_restart();
            }
        }
        Ok(())
    }

    fn is_steady(&self, now: Duration) -> bool {
        (self.plan.length / 3..self.plan.length * 2 / 3).contains(&now)
    }

    fn next_restart(&mut self) -> Duration {
        let share = self.random.below(1500) as f64 / 1000.0 + 0.25;
        self.begin.elapsed() + self.plan.restart_every.mul_f64(share)
    }

    fn restart(&mut self) -> Outcome {
        let kill = self.restarts.len() % 2 == 1;
        let signal = if kill { Signal::KILL } else { Signal::TERM };
        let (at, begin) = (self.begin.elapsed(), Instant::now());
        let server = self.server.take().ok_or("no server")?;
        let status = server.end(signal)?;
        if !kill && !status.success() {
            self.failures.push(format!("the server ended by SIGTERM with {status}"));
        }
        self.start()?;
        let start_up = self.server.as_ref().map_or(Duration::ZERO, |server| server.start_up);
        self.restarts.push(Restart { signal, at, start_up, away: begin.elapsed() });
        Ok(())
    }

    /// The figures of the minute that ends now.
    fn row(&mut self) -> String {
        let Some(server) = &self.server else { return String::new() };
        let latencies = self.tally.latencies.lock().map(|mut l| std::mem::take(&mut *l));
        let mut latencies = latencies.unwrap_or_default();
        latencies.sort_unstable();
        let operations = self.tally.operations.load(Ordering::Relaxed);
        let minute = self.begin.elapsed().as_secs() / MINUTE.as_secs();
        let row = format!(
            "| {minute} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {} | {} | {} | {} |\n",
            operations - self.counted,
            percentile(&latencies, 50) / 1e3,
            percentile(&latencies, 99) / 1e3,
            server.rss_mib(),
            server.disk_mib(),
            server.descriptors(),
            self.tally.revision.load(Ordering::Relaxed),
            self.restarts.len(),
            self.tally.violations.load(Ordering::Relaxed),
        );
        self.counted = operations;
        row
    }

    fn report(&self, checker: &Checker) -> String {
        let counts = checker.counts();
        let mut text = format!("{HEAD}{}\n{RESTART_HEAD}", self.rows);
        for restart in &self.restarts {
            let signal = if restart.signal == Signal::KILL { "SIGKILL" } else { "SIGTERM" };
            let _ = writeln!(
                text,
                "| {} | {signal} | {:.0} | {:.0} |",
                restart.at.as_secs(),
                restart.start_up.as_secs_f64() * 1e3,
                restart.away.as_secs_f64() * 1e3
            );
        }
        let _ = writeln!(
            text,
            "\n{} revisions replayed, {} calls answered, {} writes without an answer of which {} had happened, \
             {} leases ended by themselves (the latest {:.2} s late), {} events on {} watchers besides the log, \
             {} reads and watches refused as compacted, {} restarts.\n",
            counts.revisions,
            counts.answered,
            counts.lost,
            counts.found,
            counts.expired,
            counts.late.as_secs_f64(),
            counts.events,
            checker.watchers(),
            counts.compacted,
            self.restarts.len(),
        );
        let wrong: Vec<_> = self.failures.iter().chain(checker.violations()).collect();
        let verdict = if wrong.is_empty() { "PASS" } else { "FAIL" };
        let _ = writeln!(text, "**{verdict}**: {} violations.", wrong.len());
        for violation in wrong {
            let _ = writeln!(text, "* {violation}");
        }
        text
    }
}

const HEAD: &str = "\
| minute | calls | p50 ms | p99 ms | RSS MiB | disk MiB | descriptors | revision | restarts | violations |
|---|---|---|---|---|---|---|---|---|---|
";
const RESTART_HEAD: &str = "\
| restart at s | by | start-up ms | away ms |
|---|---|---|---|
";

/// The revision that a server answers with.
fn revision(port: u16) -> Outcome<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let reply = Connection::open(port).await?.kv().range(get_request(0)).await?;
        Ok(reply.into_inner().header.map_or(0, |header| header.revision))
    })
}
