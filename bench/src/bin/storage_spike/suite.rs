//! Runs every candidate in fresh processes, alternating, and prints medians as a table.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::Outcome;
use crate::options::Options;

/// Name of a column, and what it sets.
type Candidate = (&'static str, &'static [(&'static str, &'static str)]);

/// The settings of the log that the document freezes.
const CANDIDATES: &[Candidate] = &[
    ("log, no cache", &[("layout", "log")]),
    ("log, 64 MiB", &[("layout", "log"), ("value_cache", "64")]),
    ("log, 256 MiB", &[("layout", "log"), ("value_cache", "256")]),
    ("keys", &[("layout", "keys"), ("block_cache", "64")]),
    ("memory", &[("layout", "memory")]),
];
const RECLAIMS: &[Candidate] = &[
    ("none", &[("mode", "none")]),
    ("tombstone", &[("mode", "tombstone")]),
    ("weak", &[("mode", "weak")]),
    ("deferred", &[("mode", "deferred")]),
    ("major", &[("mode", "major")]),
    ("merge", &[("mode", "merge")]),
];

type Figures = BTreeMap<String, BTreeMap<&'static str, Vec<f64>>>;

pub(crate) fn suite(options: &Options) -> Outcome {
    let mut figures = Figures::new();
    let reclaim = options.flag("reclaim", false);
    let candidates = if reclaim { RECLAIMS } else { CANDIDATES };
    for round in 0..options.number("rounds", 3) {
        for (name, settings) in candidates {
            eprintln!("round {round}: {name}");
            let options = settings
                .iter()
                .fold(options.clone(), |options, (name, value)| options.with(name, value));
            for command in if reclaim { &["reclaim"][..] } else { &["run", "reopen"] } {
                collect(&options, command, name, &mut figures)?;
            }
            fs::remove_dir_all(options.directory()?)?;
        }
        if !options.text("etcd", "").is_empty() && !reclaim {
            eprintln!("round {round}: etcd");
            collect(options, "etcd", "etcd", &mut figures)?;
            fs::remove_dir_all(options.directory()?)?;
        }
    }
    print(&figures);
    Ok(())
}

fn collect(
    options: &Options,
    command: &str,
    column: &'static str,
    figures: &mut Figures,
) -> Outcome {
    let output =
        Command::new(std::env::current_exe()?).arg(command).args(options.arguments()).output()?;
    if !output.status.success() {
        return Err(
            format!("{command} of {column}: {}", String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let (name, value) = line.split_once(' ').ok_or("a figure is a name and a value")?;
        figures.entry(name.to_owned()).or_default().entry(column).or_default().push(value.parse()?);
    }
    Ok(())
}

fn print(figures: &Figures) {
    let mut columns: Vec<&str> = figures.values().flat_map(|row| row.keys().copied()).collect();
    columns.sort_unstable();
    columns.dedup();
    println!("| figure | {} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for (name, row) in figures {
        let cells = columns.iter().map(|column| match row.get(column) {
            Some(values) => format!("{:.1}", median(values)),
            None => String::new(),
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
