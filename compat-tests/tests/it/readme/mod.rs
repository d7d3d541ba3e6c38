//! The README, done: its commands are run as they stand there, chapter by chapter, and have to show what it says.
//!
//! Ports are exchanged for free ones, so that this can be done beside other tests. What is shown as `...` may be anything. A command
//! of a table has to show all the code of the row's last cell. What is not run is [named](NOT_RUN) with the reason.

mod page;
mod terminal;

use std::fs;

use page::{Page, Step};
use starling_compat_tests::tools;
use terminal::{PortInUse, Terminal, without_assignments};

/// How commands begin that are not run here, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("git clone", "the checkout is here"),
    ("cargo build", "what is tested was built"),
    ("cargo test", "CI runs these tests themselves"),
    ("target/release/load", "it measures for minutes, and needs a build for that"),
    ("target/release/cluster", "it measures for minutes, and needs a build for that"),
    (
        "kubectl",
        "there is no cluster: the module `kubernetes` checks the manifests with Kubernetes' own types",
    ),
];
/// Rows that have nothing to run.
const ONLY_SAID: &[&str] = &["G25", "N29", "Y23"];
/// Programs of which no other use is mentioned in a sentence than one that is run somewhere.
const PROGRAMS: &[&str] =
    &["starling", "etcdctl", "etcdutl", "curl", "cargo", "deploy/up.sh", "kubectl", "docker"];
/// How often other ports are tried.
const ATTEMPTS: usize = 3;

macro_rules! chapters {
    ($($name:ident: $heading:literal)*) => {
        /// The chapters that have something to run.
        const CHAPTERS: &[&str] = &[$($heading),*];

        $(#[test]
        fn $name() {
            do_chapter($heading);
        })*
    };
}

chapters! {
    start: "Start"
    tour: "A tour of two minutes"
    in_etcds_place: "In etcd's place"
    from_etcd_and_back: "From etcd, and back"
    several_members: "Several members"
    five_systems: "Five systems in one"
}

/// The chapter in which `etcd` is etcd.
const REAL_ETCD: &str = "From etcd, and back";

fn readme() -> String {
    let root = tools::package_dir().parent().expect("the workspace");
    fs::read_to_string(root.join("README.md")).expect("the README is there")
}

fn page() -> Page {
    Page::read(&readme()).unwrap_or_else(|error| panic!("{error}"))
}

fn is_run(step: &&Step) -> bool {
    let command = without_assignments(&step.command);
    !NOT_RUN.iter().any(|(begin, _)| command.starts_with(begin))
}

fn do_chapter(heading: &str) {
    let Some(etcd) = tools::etcd() else { return };
    if tools::toolchain("curl", "--version", "nobody does what the README says").is_none() {
        return;
    }
    let page = page();
    let steps: Vec<_> = page.steps.iter().filter(|step| step.chapter == heading).collect();
    let mut refused = String::new();
    for _ in 0..ATTEMPTS {
        let mut terminal = Terminal::open(etcd);
        if heading == REAL_ETCD {
            terminal.install_etcd(etcd);
        }
        let mut run = steps.iter().copied().filter(is_run);
        match run.try_for_each(|step| terminal.take(step)) {
            Ok(()) => return,
            Err(PortInUse(command)) => refused = command,
        }
    }
    panic!("no free port: {refused}");
}

#[test]
fn every_command_is_run_or_named() {
    let page = page();
    for step in page.steps.iter().filter(is_run) {
        assert!(CHAPTERS.contains(&step.chapter.as_str()), "nobody runs {step:?}");
    }
    for (begin, reason) in NOT_RUN {
        let is_there = page.steps.iter().any(|step| step.command.starts_with(begin));
        assert!(is_there, "{begin} is not in the README any more, though {reason}");
    }
    // What is mentioned is somewhere shown, at least as far as its second word.
    let beginning = |command: &str| command.split(' ').take(2).collect::<Vec<_>>().join(" ");
    for mention in &page.mentions {
        let program = mention.split(' ').next().unwrap_or_default();
        if PROGRAMS.contains(&program) && program != mention {
            let begin = beginning(mention);
            let is_shown = page.steps.iter().any(|step| step.command.contains(&begin));
            assert!(is_shown, "`{mention}` is mentioned, and `{begin}` is nowhere run");
        }
    }
}

#[test]
fn every_row_of_the_five_systems_has_a_command() {
    let page = page();
    let ids: Vec<_> = page.steps.iter().flat_map(|step| step.ids.split(", ")).collect();
    for (letter, last) in [("G", 25), ("M", 18), ("N", 30), ("C", 20), ("Y", 23)] {
        for number in 1..=last {
            let id = format!("{letter}{number}");
            let is_only_said = ONLY_SAID.contains(&id.as_str());
            assert_ne!(ids.contains(&id.as_str()), is_only_said, "{id}");
            assert!(
                !is_only_said
                    || readme().contains(&format!("({id}"))
                    || readme().contains(&format!(", {id})")),
                "{id} is nowhere said"
            );
        }
    }
}
