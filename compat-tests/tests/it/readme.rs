//! The README's tour, taken: its commands are run as they stand there, one after the other, and have to print what it shows.
//!
//! Ports are exchanged for free ones, so that the tour can be taken beside other tests. What is shown as `...` may be anything, as may
//! ids and process numbers. A reader who looks too early looks again; so does this.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use starling_compat_tests::server::free_ports;
use starling_compat_tests::tools;

/// The chapters whose commands are run.
const CHAPTERS: &[&str] = &["A tour of two minutes"];
/// Members that the README starts, by the port on which each serves clients. They talk to each other on the next one.
const CLIENT_PORTS: [&str; 3] = ["12379", "22379", "32379"];
/// How long a reader looks at one command.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often ports are looked for.
const ATTEMPTS: usize = 3;
/// Stands for any lines, and in a line for any words.
const ANYTHING: &str = "...";

/// A command, and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    prints: Vec<String>,
}

/// The steps of all blocks of a chapter that are shown as a terminal.
fn steps(readme: &str, chapter: &str) -> Vec<Step> {
    let heading = format!("## {chapter}\n");
    let (_, rest) = readme.split_once(&heading).expect("the chapter is there");
    let text = rest.split("\n## ").next().unwrap_or(rest);
    let blocks = text.split("```console\n").skip(1).map(|block| block.split("```").next());
    let mut steps: Vec<Step> = Vec::new();
    for line in blocks.flatten().flat_map(str::lines) {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { command: command.to_owned(), prints: Vec::new() }),
            None => steps.last_mut().expect("a command comes first").prints.push(line.to_owned()),
        }
    }
    steps
}

/// Whether what was printed is what is shown, by lines or by words.
fn matches<S: AsRef<str>>(shown: &[S], printed: &[S], is_same: fn(&str, &str) -> bool) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.as_ref() == ANYTHING => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..], is_same))
        }
        Some((first, rest)) => printed.split_first().is_some_and(|(line, others)| {
            is_same(first.as_ref(), line.as_ref()) && matches(rest, others, is_same)
        }),
    }
}

/// Whether a line is the one that is shown. Columns may be wider.
fn is_same(shown: &str, printed: &str) -> bool {
    let shown: Vec<_> = shown.split_whitespace().collect();
    let printed: Vec<_> = printed.split_whitespace().collect();
    matches(&shown, &printed, |shown, printed| shown == printed)
}

/// A terminal in a directory of its own, with our programs in its path.
struct Terminal {
    directory: tempfile::TempDir,
    ports: Vec<(&'static str, String)>,
    first: u16,
    step: u16,
}

impl Terminal {
    fn open(etcdctl: &Path) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let programs = directory.path().join("bin");
        fs::create_dir(&programs).expect("there is room");
        symlink(tools::starling(), programs.join("starling")).expect("it is not there yet");
        symlink(etcdctl, programs.join("etcdctl")).expect("it is not there yet");
        let root = tools::package_dir().parent().expect("the workspace");
        symlink(root.join("deploy"), directory.path().join("deploy")).expect("not there yet");
        let (first, _) = free_ports();
        let step = 2;
        let port = |number: u16| (first + step * number).to_string();
        let ports = (0..).zip(CLIENT_PORTS).map(|(number, shown)| (shown, port(number))).collect();
        Self { directory, ports, first, step }
    }

    /// One whose ports nobody has taken meanwhile: the members are started, and the tour finds them running.
    fn with_free_ports(etcdctl: &Path) -> Self {
        let terminals = std::iter::repeat_with(|| Self::open(etcdctl)).take(ATTEMPTS);
        let is_free = |terminal: &Self| {
            let printed = terminal.run("deploy/up.sh").join("\n");
            !printed.contains("Address already in use")
        };
        { terminals }.find(is_free).expect("there are free ports")
    }

    /// What is meant by text of the README here.
    fn here(&self, text: &str) -> String {
        let exchange = |text: String, (shown, port): &(&str, String)| text.replace(shown, port);
        self.ports.iter().fold(text.to_owned(), exchange)
    }

    fn run(&self, command: &str) -> Vec<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = self.directory.path().join("bin");
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("{} 2>&1", self.here(command))]).current_dir(&self.directory);
        bash.env("PATH", format!("{}:{path}", programs.display()));
        bash.env("STARLING", tools::starling())
            .env("STARLING_DIR", self.directory.path().join("up"));
        bash.env("STARLING_PORT", self.first.to_string());
        bash.env("STARLING_PORT_STEP", self.step.to_string());
        let output = bash.output().expect("bash is there");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    fn take(&self, step: &Step) {
        let shown: Vec<_> = step.prints.iter().map(|line| self.here(line)).collect();
        let begin = Instant::now();
        loop {
            let printed = self.run(&step.command);
            if matches(&shown, &printed, is_same) {
                return;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "$ {}\nshould print\n{shown:#?}\nand prints\n{printed:#?}",
                step.command
            );
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.run("deploy/up.sh clean");
    }
}

#[test]
fn the_tour_shows_what_it_says() {
    let Some(etcd) = tools::etcd() else { return };
    let root = tools::package_dir().parent().expect("the workspace");
    let readme = fs::read_to_string(root.join("README.md")).expect("the README is there");
    for chapter in CHAPTERS {
        let terminal = Terminal::with_free_ports(&etcd.etcdctl);
        let steps = steps(&readme, chapter);
        assert!(steps.len() > 5, "{chapter}: {steps:?}");
        steps.iter().for_each(|step| terminal.take(step));
    }
}

#[test]
fn blocks_are_read_as_a_terminal() {
    let readme = "# A\n## B\n```sh\nnot this\n```\n```console\n$ one\n1\n...\n$ two\n```\n## C\n```console\n$ no\n```\n";
    let step = |command: &str, prints: &[&str]| Step {
        command: command.to_owned(),
        prints: prints.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(steps(readme, "B"), [step("one", &["1", "..."]), step("two", &[])]);
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let shows = |shown: &[&str], printed: &[&str]| matches(&lines(shown), &lines(printed), is_same);
    assert!(shows(&["a ... c", "..."], &["a   b  c", "d", "e"]));
    assert!(!shows(&["a ... c"], &["a b c", "d"]));
    assert!(!shows(&["...", "e"], &["a", "d"]));
}
