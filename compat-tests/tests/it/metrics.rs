//! `/metrics` next to etcd's: names, types and labels; what the log says of slow requests; and what is made of both in `deploy`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};
use starling_compat_tests::server::Kind;
use starling_compat_tests::tools::succeed;
use starling_compat_tests::{Server, tools};

use crate::http;

/// How long a line may take to get into the log.
const DEADLINE: Duration = Duration::from_secs(30);
/// In docs/operations.md, where what is left out has its reasons.
const LEFT_OUT: &str = "### What is left out";

/// What is known of a metric from what a server shows.
#[derive(Debug, Default)]
struct Metric {
    kind: String,
    /// The names of its labels, if it has any value.
    labels: Option<BTreeSet<String>>,
}

/// Reads Prometheus' text format.
fn metrics(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::<String, Metric>::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().kind = kind.to_owned();
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let suffixes = ["_bucket", "_sum", "_count"].map(|suffix| name.strip_suffix(suffix));
        let of_histogram = suffixes.into_iter().flatten().find(|name| metrics.contains_key(*name));
        let metric = metrics.get_mut(of_histogram.unwrap_or(name));
        let metric = metric.unwrap_or_else(|| panic!("{name} has no type"));
        let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let labels =
            labels.map_or("", |(labels, _)| labels).split("\",").filter(|it| !it.is_empty());
        let names = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        metric.labels.get_or_insert_default().extend(names.filter(|name| name != "le"));
    }
    metrics
}

/// What docs/operations.md says is left out, by names that may end in a star.
fn left_out() -> Vec<String> {
    let page = tools::package_dir().join("../docs/operations.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let (_, section) = page.split_once(LEFT_OUT).expect("the page says what is left out");
    let section = section.split("\n##").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','));
    names.map(|name| name.trim().trim_matches('`').to_owned()).collect()
}

fn is_named(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
}

/// A bit of everything, so that what is counted shows.
fn scrape(server: &Server, tools: &tools::EtcdTools) -> String {
    let run = |args: &[&str]| {
        let mut command = Command::new(&tools.etcdctl);
        command.args(["--endpoints", &server.address()]).args(args);
        succeed(&mut command)
    };
    run(&["put", "a", "1"]);
    run(&["get", "a"]);
    run(&["del", "a"]);
    run(&["lease", "grant", "60"]);
    run(&["compaction", "3"]);
    run(&["endpoint", "hashkv"]);
    for path in ["health", "livez", "readyz"] {
        assert_eq!(http::get(server, &format!("/{path}")).0, "200 OK", "{path}");
    }
    http::get(server, "/metrics").1
}

#[test]
fn names_types_and_labels_are_those_of_etcd() {
    let Some(tools) = tools::etcd() else { return };
    let flags = &["--metrics=extensive"];
    let (etcd, starling) = (Server::start(Kind::Etcd, flags), Server::start(Kind::Starling, flags));
    let (there, here) = (metrics(&scrape(&etcd, tools)), metrics(&scrape(&starling, tools)));
    let left_out = left_out();
    let mut report = String::new();
    for (name, metric) in &there {
        let is_left_out = left_out.iter().any(|pattern| is_named(name, pattern));
        match here.get(name) {
            None if !is_left_out => _ = writeln!(report, "{name} is missing"),
            Some(_) if is_left_out => {
                _ = writeln!(report, "{name} is there, but the page says not");
            }
            Some(own) if own.kind != metric.kind => {
                let _ = writeln!(report, "{name} is a {}, not a {}", own.kind, metric.kind);
            }
            Some(Metric { labels: Some(own), .. })
                if metric.labels.as_ref().is_some_and(|it| it != own) =>
            {
                let _ = writeln!(report, "{name} has the labels {own:?}, not {:?}", metric.labels);
            }
            _ => {}
        }
    }
    assert!(report.is_empty(), "\n{report}");
    // Those of peers show only where there are any.
    let needs_peers = |pattern: &str| pattern.starts_with("etcd_network_");
    let unused: Vec<_> = left_out
        .iter()
        .filter(|pattern| !needs_peers(pattern))
        .filter(|pattern| !there.keys().any(|name| is_named(name, pattern)))
        .collect();
    assert!(unused.is_empty(), "etcd has none of these: {unused:?}");
}

/// One line of a log, without what every line has.
fn line(server: &Server, message: &str, words: &str) -> Map<String, Value> {
    let is_it = |line: &str| line.contains(message) && line.contains(words);
    let started = std::time::Instant::now();
    let log = loop {
        let log = server.log();
        if log.lines().any(is_it) {
            break log;
        }
        assert!(started.elapsed() < DEADLINE, "no {message:?} with {words:?} in\n{log}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let found = log.lines().find(|line| is_it(line)).expect("it was there");
    let value: Value = serde_json::from_str(found).expect("lines are JSON");
    let Value::Object(mut fields) = value else { panic!("{found} is no object") };
    for name in ["level", "ts", "timestamp", "caller", "msg", "message"] {
        fields.remove(name);
    }
    fields
}

/// Fields whose values may differ: times, and sizes with ids in them.
const MASKED: &[&str] = &["took", "start time", "time spent", "remote", "response size"];

/// A line as it can be compared.
fn masked(fields: Map<String, Value>) -> BTreeMap<String, String> {
    let mask = |(name, value): (String, Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // Go's own format has one space or two.
        let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((head, _)) = text.split_once("size:").filter(|_| name == "response") {
            text = format!("{head}size:-");
        }
        let is_masked = MASKED.contains(&name.as_str());
        (name, if is_masked { "-".to_owned() } else { text })
    };
    fields.into_iter().map(mask).collect()
}

#[test]
fn slow_requests_are_logged_as_by_etcd() {
    let Some(tools) = tools::etcd() else { return };
    let flags = &["--warning-apply-duration=1ns", "--warning-unary-request-duration=1ns"];
    let (etcd, starling) = (Server::start(Kind::Etcd, flags), Server::start(Kind::Starling, flags));
    let commands: &[&[&str]] = &[
        &["put", "slow-key", "hidden-value"],
        &["get", "slow-get", "--limit=3"],
        &["del", "slow-del"],
        &["lease", "grant", "600"],
    ];
    for server in [&etcd, &starling] {
        for command in commands {
            let mut etcdctl = Command::new(&tools.etcdctl);
            succeed(etcdctl.args(["--endpoints", &server.address()]).args(*command));
        }
    }
    let lines = [
        ("request stats", "slow-key"),
        ("request stats", "slow-get"),
        ("request stats", "slow-del"),
        ("request stats", "LeaseGrant"),
        ("apply request took too long", "slow-get"),
    ];
    for (message, words) in lines {
        let (there, here) = (line(&etcd, message, words), line(&starling, message, words));
        assert_eq!(masked(there), masked(here), "{message}: {words}");
    }
    // etcd has the whole entry of its log there.
    let put = line(&starling, "apply request took too long", "slow-key");
    let there = line(&etcd, "apply request took too long", "slow-key");
    assert!(put.keys().eq(there.keys()), "{put:?} and {there:?}");
    assert!(!starling.log().contains("hidden-value"), "values are not logged");
    let slow = http::get(&starling, "/metrics").1;
    let slow = slow.lines().find_map(|line| line.strip_prefix("etcd_server_slow_apply_total "));
    assert!(slow.is_some_and(|slow| slow.parse().is_ok_and(|slow: u64| slow >= 3)), "{slow:?}");
}

/// Nothing is slow by etcd's defaults here.
#[test]
fn quick_requests_are_not_logged() {
    let Some(tools) = tools::etcd() else { return };
    let server = Server::start(Kind::Starling, &["--warning-apply-duration=1h"]);
    let mut etcdctl = Command::new(&tools.etcdctl);
    succeed(etcdctl.args(["--endpoints", &server.address(), "put", "a", "1"]));
    assert!(!server.log().contains("took too long"), "{}", server.log());
}

#[test]
fn prometheus_takes_the_alerts() {
    if tools::toolchain("promtool", "--version", "the alerts are not checked by Prometheus")
        .is_none()
    {
        return;
    }
    let alerts = tools::package_dir().join("../deploy/prometheus/alerts.yaml");
    let checked = succeed(Command::new("promtool").args(["check", "rules"]).arg(alerts));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("SUCCESS"), "{said}");
}

/// etcdctl's own load test of a small store.
#[test]
fn etcdctl_checks_the_scale_of_data() {
    let Some(tools) = tools::etcd() else { return };
    let server = Server::starling();
    let mut etcdctl = Command::new(&tools.etcdctl);
    etcdctl.args(["--endpoints", &server.address(), "--command-timeout=60s"]);
    let checked = succeed(etcdctl.args([
        "check",
        "datascale",
        "--load=s",
        "--auto-compact",
        "--auto-defrag",
    ]));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("PASS: Approximate system memory used"), "{said}");
}
