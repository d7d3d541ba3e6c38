//! How much is compared: the README says a number, and this counts.

use std::fs;
use std::path::{Path, PathBuf};

use starling_compat_tests::tools;

use crate::{differences, http};

const SENTENCE: &str = "There are more than ";

#[test]
fn the_readme_does_not_boast() {
    let tests = tools::package_dir().join("tests/it/raw");
    let raw: usize = files(&tests).iter().map(|text| raw_cases(text)).sum();
    let scripts = files(&tools::package_dir().join("scripts"));
    let commands: usize = scripts.iter().map(|text| commands(text)).sum();
    let (requests, differences) = (http::REQUESTS.len(), differences::ROWS.len());
    let all = raw + commands + requests + differences;
    println!("{raw} raw cases, {commands} commands of etcdctl, {requests} HTTP requests,");
    println!("{differences} differences: {all} cases");
    let readme = tools::package_dir().join("README.md");
    let readme = fs::read_to_string(readme).expect("the README is there");
    let (_, number) = readme.split_once(SENTENCE).expect("the README says how many there are");
    let number = number.split(' ').next().unwrap_or_default();
    let number: usize = number.parse().expect("a number follows");
    assert!(all > number, "{all} cases, and the README has {number}");
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the cases are there");
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.iter().map(|path| fs::read_to_string(path).expect("cases are text")).collect()
}

/// The names in tables of cases.
fn raw_cases(text: &str) -> usize {
    let tables = text.split("cases![").skip(1);
    tables
        .filter_map(|table| table.split(']').next())
        .map(|names| names.split_whitespace().count())
        .sum()
}

/// What a script has etcdctl do, at once or beside it.
fn commands(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("$ ") || line.starts_with("& ")).count()
}
