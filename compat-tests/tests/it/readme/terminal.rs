//! A terminal of a reader's: what is typed there is run, and looked at until it shows what the page says.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use starling_compat_tests::server::{Log, READY, free_ports};
use starling_compat_tests::tools::{self, EtcdTools};
use tempfile::TempDir;

use super::page::{Shows, Step};

/// Members of `deploy/up.sh`, by the port on which the page has each serve clients. They talk to each other on the next one.
const UP_PORTS: [u16; 3] = [12379, 22379, 32379];
/// Other ports of the page; the next one after each is another.
const OTHER_PORTS: [u16; 5] = [2379, 42379, 52379, 62379, 9999];
/// How far members of `deploy/up.sh` are apart here.
const UP_STEP: u16 = 2;
/// What is not as on the page, besides ports: places that are not ours, and what would take minutes.
const EXCHANGES: &[(&str, &str)] = &[
    ("/usr/local/bin/", "bin/"),
    ("/var/lib/starling", "var"),
    // What cargo would run has been built.
    (
        "cargo run --release",
        "starling --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379",
    ),
    // Where etcd would listen by itself.
    (
        "etcd --data-dir default.etcd",
        "etcd --data-dir default.etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380",
    ),
    // In a build for tests.
    ("--members 1000,10000", "--members 10,20"),
    ("--members 100 ", "--members 10 "),
];
/// How long a reader looks at one command, ...
const PATIENCE: Duration = Duration::from_secs(120);
/// ... and at one that does not end, before it is typed again.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// Stands for any lines, and in a line for any words.
const ANYTHING: &str = "...";
/// What is said of a port that somebody else has.
const IN_USE: &str = "ddress already in use";

/// Somebody else has one of the ports that a command is to have.
#[derive(Debug)]
pub(super) struct PortInUse(pub(super) String);

/// A directory of its own, with our programs in its path, and what runs there.
pub(super) struct Terminal {
    directory: TempDir,
    /// As on the page, and here.
    ports: Vec<(u16, u16)>,
    /// Assignments that were typed.
    variables: String,
    /// Commands that go on.
    running: Vec<Running>,
}

impl Terminal {
    pub(super) fn open(etcd: &EtcdTools) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("bin")).expect("there is room");
        fs::create_dir_all(at("target/release")).expect("there is room");
        let root = tools::package_dir().parent().expect("the workspace");
        for (program, name) in [
            (tools::starling(), "target/release/starling"),
            (tools::starling(), "bin/starling"),
            (&etcd.etcdctl, "bin/etcdctl"),
            (&etcd.etcdutl, "bin/etcdutl"),
            (&root.join("deploy"), "deploy"),
        ] {
            symlink(program, at(name)).expect("it is not there yet");
        }
        let (first, _) = free_ports();
        let up = (0..).zip(UP_PORTS).map(|(number, shown)| (shown, first + UP_STEP * number));
        let others = OTHER_PORTS.map(|shown| (shown, free_ports().0));
        let pairs = up.chain(others);
        let ports = pairs.flat_map(|(shown, here)| [(shown, here), (shown + 1, here + 1)]);
        Self { ports: ports.collect(), directory, variables: String::new(), running: Vec::new() }
    }

    /// From now on `etcd` is real etcd.
    pub(super) fn install_etcd(&self, etcd: &EtcdTools) {
        symlink(&etcd.etcd, self.directory.path().join("bin/etcd")).expect("it is not there yet");
    }

    /// What is meant by text of the page here.
    fn here(&self, text: &str) -> String {
        let exchange = |text: String, (shown, here): &(&str, &str)| text.replace(shown, here);
        let text = EXCHANGES.iter().fold(text.to_owned(), exchange);
        let mut whole = String::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, digits) = rest.split_at(start);
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            let (number, after) = digits.split_at(end);
            let port = self.ports.iter().find(|(shown, _)| *number == shown.to_string());
            whole.push_str(before);
            match port {
                Some((_, here)) => whole.push_str(&here.to_string()),
                None => whole.push_str(number),
            }
            rest = after;
        }
        whole + rest
    }

    fn shown_here(&self, shows: &Shows) -> Shows {
        let here = |lines: &[String]| lines.iter().map(|line| self.here(line)).collect();
        match shows {
            Shows::Success => Shows::Success,
            Shows::Lines(lines) => Shows::Lines(here(lines)),
            Shows::Parts(parts) => Shows::Parts(here(parts)),
        }
    }

    fn start(&self, command: &str) -> Running {
        let port = |shown: u16| {
            let (_, here) = self.ports.iter().find(|(port, _)| *port == shown).expect("it is one");
            here.to_string()
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = self.directory.path().join("bin");
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("exec 2>&1\n{}{command}", self.variables)]);
        bash.current_dir(&self.directory).stdin(Stdio::null()).stdout(Stdio::piped());
        bash.env("PATH", format!("{}:{path}", programs.display()));
        bash.env("HOME", self.directory.path());
        // etcdctl takes no variable beside a flag.
        if !command.contains("--endpoints") {
            bash.env("ETCDCTL_ENDPOINTS", format!("127.0.0.1:{}", port(2379)));
        }
        bash.env("STARLING", tools::starling());
        bash.env("STARLING_DIR", self.directory.path().join("up"));
        bash.env("STARLING_PORT", port(UP_PORTS[0]));
        bash.env("STARLING_PORT_STEP", UP_STEP.to_string());
        // All that it starts can be ended with it.
        let mut child = bash.process_group(0).spawn().expect("bash is there");
        let log = Arc::new(Log::default());
        log.follow(child.stdout.take().expect("stdout is a pipe"));
        Running { child, log }
    }

    /// Types a command, and again until it shows what it should: who looks too early looks again.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), PortInUse> {
        if is_assignment(&step.command) {
            self.variables.push_str(&self.here(&step.command));
            self.variables.push('\n');
            return Ok(());
        }
        let (command, shows) = (self.here(&step.command), self.shown_here(&step.shows));
        let (begin, mut first) = (Instant::now(), None);
        loop {
            let mut running = self.start(&command);
            let is_seen = running.shows(&shows, Lasts::of(&command));
            let printed = running.log.lines(0);
            if printed.iter().any(|line| line.contains(IN_USE)) {
                return Err(PortInUse(command));
            }
            if is_seen {
                if Lasts::of(&command) != Lasts::No {
                    self.running.push(running);
                }
                return Ok(());
            }
            let (chapter, first) = (&step.chapter, first.get_or_insert_with(|| printed.clone()));
            assert!(
                begin.elapsed() < PATIENCE,
                "{chapter}: $ {command}\nshould show\n{shows:#?}\nand shows\n{printed:#?}\nand at first\n{first:#?}"
            );
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.running.clear();
        self.start("deploy/up.sh clean").ends();
    }
}

/// Whether a command goes on until it is told to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasts {
    No,
    /// A server, which says when it serves.
    Serves,
    /// Something that shows what happens.
    Shows,
}

impl Lasts {
    fn of(command: &str) -> Self {
        // What comes last is what lasts.
        let last = command.split("; ").last().unwrap_or_default();
        let mut words = without_assignments(last).split_whitespace();
        match (words.next(), words.next()) {
            (Some("starling" | "etcd"), next) if next.is_none_or(|it| it.starts_with('-')) => {
                Self::Serves
            }
            (Some("starling"), Some("mirror")) if !command.contains("--once") => Self::Shows,
            (Some("etcdctl"), Some("watch")) => Self::Shows,
            _ => Self::No,
        }
    }
}

/// A command without what is assigned before it.
pub(super) fn without_assignments(command: &str) -> &str {
    let mut rest = command;
    while let Some((word, others)) = rest.split_once(' ')
        && is_assignment(word)
    {
        rest = others;
    }
    rest
}

/// Whether this is nothing but `name=value`, once or more.
fn is_assignment(command: &str) -> bool {
    command.split_whitespace().all(|word| {
        let name = word.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| !name.is_empty() && name.chars().all(is_of_a_name))
    })
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A command that was started.
struct Running {
    child: Child,
    log: Arc<Log>,
}

impl Running {
    /// Whether it has ended, and well, before it takes too long.
    fn ends(&mut self) -> bool {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.log.wait_for_end(COMMAND_TIMEOUT);
                return status.success();
            }
            if begin.elapsed() > COMMAND_TIMEOUT {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    fn shows(&mut self, shows: &Shows, lasts: Lasts) -> bool {
        match (lasts, shows) {
            (Lasts::No, Shows::Success) => self.ends(),
            (Lasts::No, _) => {
                self.ends();
                is_seen(shows, &self.log.lines(0))
            }
            (Lasts::Serves, _) => {
                self.log.wait_for(READY, COMMAND_TIMEOUT) && is_seen(shows, &self.log.lines(0))
            }
            (Lasts::Shows, _) => {
                let begin = Instant::now();
                while !is_seen(shows, &self.log.lines(0)) {
                    if begin.elapsed() > COMMAND_TIMEOUT {
                        return false;
                    }
                    thread::sleep(POLL);
                }
                true
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it has started in the background is to go on, if it has ended itself.
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

fn is_seen(shows: &Shows, printed: &[String]) -> bool {
    match shows {
        Shows::Success => true,
        Shows::Lines(lines) => matches(lines, printed, is_same),
        Shows::Parts(parts) => parts.iter().all(|part| printed.join("\n").contains(part)),
    }
}

/// Whether what was printed is what is shown, by lines or by words.
fn matches<S: AsRef<str>>(shown: &[S], printed: &[S], is_same: fn(&str, &str) -> bool) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.as_ref().trim() == ANYTHING => {
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

#[test]
fn what_is_shown_may_leave_things_out() {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let shows = |shown: &[&str], printed: &[&str]| matches(&lines(shown), &lines(printed), is_same);
    assert!(shows(&["a ... c", "..."], &["a   b  c", "d", "e"]));
    assert!(!shows(&["a ... c"], &["a b c", "d"]));
    assert!(!shows(&["...", "e"], &["a", "d"]));
}

#[test]
fn what_lasts_is_told_by_its_words() {
    for command in ["starling", "A=b starling --name a", "echo > c; starling -c c", "etcd --name a"]
    {
        assert!(Lasts::of(command) == Lasts::Serves, "{command}");
    }
    for command in ["starling mirror --from a", "etcdctl watch a"] {
        assert!(Lasts::of(command) == Lasts::Shows, "{command}");
    }
    for command in ["starling shell", "starling mirror --once", "etcdctl get a", "deploy/up.sh"] {
        assert!(Lasts::of(command) == Lasts::No, "{command}");
    }
    assert!(is_assignment("a=1 B_2=3") && !is_assignment("a=1 b"));
}
