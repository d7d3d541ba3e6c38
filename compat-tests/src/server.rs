//! Server processes, on free ports, each with a data directory of its own: members alone, and clusters of some.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::tools;

/// Starts etcd where a test asks for starling, to check the tests and the masking themselves.
const COMPAT_SELF: &str = "COMPAT_SELF";

/// What etcd logs when clients can come; tools that start etcd wait for these words.
pub const READY: &str = "ready to serve client requests";
pub const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The name of a member alone.
const NAME: &str = "solo";

/// Another process may take a free port before the server does.
const PORT_ATTEMPTS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Starling,
    Etcd,
}

impl Kind {
    /// What tests in other languages know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starling => "starling",
            Self::Etcd => "etcd",
        }
    }
}

/// A running server; dropping it kills the process and removes its data.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    /// What starts the program: words that come before its flags.
    program: Vec<String>,
    args: Vec<String>,
    process: Process,
    place: Place,
    data: TempDir,
}

/// Who a member is, and where.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    client_port: u16,
    peer_port: u16,
    /// All members that found the cluster.
    cluster: String,
}

impl Place {
    /// Places of members that found a cluster together.
    fn of_all(names: &[&str]) -> Vec<Self> {
        let mut places: Vec<_> = names
            .iter()
            .map(|&name| {
                let (client_port, peer_port) = free_ports();
                Self { name: name.to_owned(), client_port, peer_port, cluster: String::new() }
            })
            .collect();
        let founders: Vec<_> =
            places.iter().map(|place| format!("{}={}", place.name, place.peer_url())).collect();
        for place in &mut places {
            place.cluster = founders.join(",");
        }
        places
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }
}

impl Server {
    /// Starts the `starling` of this workspace.
    pub fn starling() -> Self {
        Self::start(Kind::Starling, &[])
    }

    /// Starts real etcd.
    ///
    /// # Panics
    ///
    /// Without a Go toolchain; ask [`tools::etcd`] first.
    pub fn etcd() -> Self {
        Self::start(Kind::Etcd, &[])
    }

    /// Starts a server with more flags than the addresses.
    ///
    /// # Panics
    ///
    /// When the server does not come up, with its log.
    pub fn start(kind: Kind, args: &[&str]) -> Self {
        Self::start_under(kind, args, |_| Vec::new())
    }

    /// Starts a server by a command that `wrap` makes for the folder of its data.
    ///
    /// # Panics
    ///
    /// When the server does not come up, with its log.
    pub fn start_under(kind: Kind, args: &[&str], wrap: impl Fn(&Path) -> Vec<String>) -> Self {
        let mut cluster = Self::start_all(kind, &[NAME], args, wrap);
        cluster.pop().expect("one member was started")
    }

    /// Starts members that found a cluster together. Each is ready; whether they know each other is another matter.
    ///
    /// # Panics
    ///
    /// When one of them does not come up, with its log.
    pub fn start_cluster(kind: Kind, names: &[&str], args: &[&str]) -> Vec<Self> {
        Self::start_all(kind, names, args, |_| Vec::new())
    }

    /// Starts a member at a place that those of a cluster know of: whoever has announced it has drawn the ports.
    ///
    /// # Panics
    ///
    /// When it does not come up, with its log.
    pub fn join(&self, name: &str, (client_port, peer_port): (u16, u16)) -> Self {
        let mut place =
            Place { name: name.to_owned(), client_port, peer_port, cluster: String::new() };
        place.cluster = format!("{},{name}={}", self.place.cluster, place.peer_url());
        let data = TempDir::new().expect("the temporary directory is writable");
        let args = vec!["--initial-cluster-state=existing".to_owned()];
        let server = Self::spawn(self.kind, self.program.clone(), args, place, data);
        server.ready().unwrap_or_else(|log| panic!("{name} did not start:\n{log}"))
    }

    fn start_all(
        kind: Kind,
        names: &[&str],
        args: &[&str],
        wrap: impl Fn(&Path) -> Vec<String>,
    ) -> Vec<Self> {
        let (kind, binary) = program(kind);
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut refused = String::new();
        for _ in 0..PORT_ATTEMPTS {
            // Members of a cluster may wait for each other, so all are there before any has to be ready.
            let started: Vec<_> = Place::of_all(names)
                .into_iter()
                .map(|place| {
                    let data = TempDir::new().expect("the temporary directory is writable");
                    let mut program = wrap(data.path());
                    program.push(binary.display().to_string());
                    Self::spawn(kind, program, args.clone(), place, data)
                })
                .collect();
            let ready: Result<Vec<_>, _> = started.into_iter().map(Self::ready).collect();
            match ready {
                Ok(servers) => return servers,
                Err(log) if log.contains("address already in use") => refused = log,
                Err(log) => panic!("{} did not start:\n{log}", binary.display()),
            }
        }
        panic!("{} found no free port:\n{refused}", binary.display());
    }

    fn spawn(
        kind: Kind,
        program: Vec<String>,
        args: Vec<String>,
        place: Place,
        data: TempDir,
    ) -> Self {
        let flags = [flags(kind, &data, &place), args.clone()].concat();
        let process = Process::spawn(&program, &flags);
        Self { kind, program, args, process, place, data }
    }

    fn ready(mut self) -> Result<Self, String> {
        self.process.ready()?;
        Ok(self)
    }

    /// Which program this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `127.0.0.1:PORT` of the client port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.place.client_port)
    }

    /// `http://127.0.0.1:PORT` of the client port.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `127.0.0.1:PORT` of the peer port.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.place.peer_port)
    }

    /// All that the process has written so far.
    pub fn log(&self) -> String {
        self.process.log.text()
    }

    /// Kills the process and starts it again on the same ports and data.
    ///
    /// # Panics
    ///
    /// When it does not come up again, with its log.
    pub fn restart(&mut self) {
        self.process.kill();
        self.start_again();
    }

    /// Kills the process and starts it again on the same ports, without its data.
    ///
    /// # Panics
    ///
    /// When it does not come up again, with its log.
    pub fn start_over(&mut self) {
        self.process.kill();
        fs::remove_dir_all(self.data_dir()).expect("the temporary directory is writable");
        self.start_again();
    }

    /// Kills the process and starts it again on the same ports, with the data that `fill` puts into the directory.
    ///
    /// # Panics
    ///
    /// When it does not come up again, with its log.
    pub fn replace_data(&mut self, fill: impl FnOnce(&Path)) {
        self.process.kill();
        fs::remove_dir_all(self.data_dir()).expect("the temporary directory is writable");
        fill(&self.data_dir());
        self.start_again();
    }

    fn start_again(&mut self) {
        let flags = [flags(self.kind, &self.data, &self.place), self.args.clone()].concat();
        self.process = Process::spawn(&self.program, &flags);
        if let Err(log) = self.process.ready() {
            panic!("{:?} did not start again:\n{log}", self.program);
        }
    }

    /// Where the program keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(&self.data)
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Asks the process to end (SIGTERM) and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.terminate()
    }
}

/// What is started where a test asks for a kind.
fn program(kind: Kind) -> (Kind, PathBuf) {
    let self_check = std::env::var_os(COMPAT_SELF).is_some();
    match if self_check { Kind::Etcd } else { kind } {
        Kind::Starling => (Kind::Starling, tools::starling().to_owned()),
        Kind::Etcd => (Kind::Etcd, tools::etcd().expect("real etcd needs Go").etcd.clone()),
    }
}

fn data_dir(data: &TempDir) -> PathBuf {
    data.path().join("data")
}

fn flags(kind: Kind, data: &TempDir, place: &Place) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", place.client_port);
    let peer = place.peer_url();
    let mut flags = vec!["--name".to_owned(), place.name.clone(), "--data-dir".to_owned()];
    flags.push(data_dir(data).display().to_string());
    for (flag, url) in [
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
    ] {
        flags.extend([flag.to_owned(), url.clone()]);
    }
    flags.extend(["--initial-cluster".to_owned(), place.cluster.clone()]);
    // The disk of the machine is not what these tests are about; starling syncs as always.
    if kind == Kind::Etcd {
        flags.push("--unsafe-no-fsync".to_owned());
    }
    flags
}

/// Two ports that were free a moment ago.
///
/// # Panics
///
/// When there is no free port.
pub fn free_ports() -> (u16, u16) {
    (free_port(), free_port())
}

/// Below those that the system gives to outgoing connections: one of these could take a port before the server does that it is
/// meant for.
fn free_port() -> u16 {
    const PORTS: Range<u16> = 16_384..32_768;
    /// Some tests use those next to it as well.
    const APART: u16 = 8;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Other test programs may run at the same time.
    let start = std::process::id() % u32::from(PORTS.end - PORTS.start);
    let start = u16::try_from(start).expect("there are fewer ports");
    let next = || {
        let number = TAKEN.fetch_add(APART, Ordering::Relaxed).wrapping_add(start);
        PORTS.start + number % (PORTS.end - PORTS.start)
    };
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = PORTS.map(|_| next());
    ports.find(is_free).expect("the loopback interface has free ports")
}

/// A program that runs beside a test; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pub child: Child,
    /// All that it writes.
    pub log: Arc<Log>,
}

impl Process {
    fn spawn(program: &[String], args: &[String]) -> Self {
        let words = [program, args].concat();
        let (program, args) = words.split_first().expect("there is a program");
        Self::start(Command::new(program).args(args))
    }

    /// Starts a program, which has nothing to read.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = Arc::new(Log::default());
        log.follow(child.stdout.take().expect("stdout is a pipe"));
        log.follow(child.stderr.take().expect("stderr is a pipe"));
        Self { child, log }
    }

    /// Waits until it serves; on failure the log is the error.
    fn ready(&mut self) -> Result<(), String> {
        if self.log.wait_for(READY, START_DEADLINE) {
            return Ok(());
        }
        self.kill();
        Err(self.log.text())
    }

    fn kill(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn terminate(&mut self) -> Option<i32> {
        signal(&self.child, Signal::TERM);
        wait(&mut self.child, STOP_DEADLINE)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something holds.
///
/// # Panics
///
/// When it does not at the deadline.
pub fn until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    const POLL: Duration = Duration::from_millis(20);
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < deadline, "not in time: {what}");
        thread::sleep(POLL);
    }
}

/// Sends a signal; a process that has ended already is no error. One that is to stand still does so from then on: until one of
/// its threads comes to handle the signal, the others go on.
pub fn signal(child: &Child, signal: Signal) {
    let pid =
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
    let is_sent = kill_process(pid, signal).is_ok();
    if is_sent && signal == Signal::STOP {
        until("all threads stand still", START_DEADLINE, || stands_still(child.id()));
    }
}

fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have anything in it. A thread that has ended goes on no more, either.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_none_or(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
    })
}

/// Waits for the end of a process and returns its exit code; kills it at the deadline.
///
/// # Panics
///
/// When the process does not end in time.
pub fn wait(child: &mut Child, deadline: Duration) -> Option<i32> {
    const POLL: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code();
        }
        if started.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("a process did not end within {deadline:?}");
        }
        thread::sleep(POLL);
    }
}

/// Lines that a process has written, for readers that wait for some of them.
#[derive(Default, Debug)]
pub struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default, Debug)]
struct Lines {
    text: Vec<String>,
    /// Pipes that are still open; a wait is over when there are none.
    open: usize,
}

impl Log {
    /// Collects the lines of one more pipe.
    pub fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        self.lock().open += 1;
        let log = Arc::clone(self);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                log.lock().text.push(text);
                log.changed.notify_all();
                line.clear();
            }
            log.lock().open -= 1;
            log.changed.notify_all();
        });
    }

    /// Waits for a line that contains `words`; false at the deadline and when the process has ended.
    pub fn wait_for(&self, words: &str, deadline: Duration) -> bool {
        self.wait_until(deadline, |lines| lines.iter().any(|line| line.contains(words)))
    }

    /// Waits until there are `count` lines.
    pub fn wait_for_lines(&self, count: usize, deadline: Duration) -> bool {
        self.wait_until(deadline, |lines| lines.len() >= count)
    }

    /// Waits until the process has closed its pipes.
    pub fn wait_for_end(&self, deadline: Duration) {
        self.wait_until(deadline, |_| false);
    }

    fn wait_until(&self, deadline: Duration, found: impl Fn(&[String]) -> bool) -> bool {
        let (lines, _) = self
            .changed
            .wait_timeout_while(self.lock(), deadline, |lines| {
                lines.open > 0 && !found(&lines.text)
            })
            .unwrap_or_else(PoisonError::into_inner);
        found(&lines.text)
    }

    /// The lines so far, from line `start` on.
    pub fn lines(&self, start: usize) -> Vec<String> {
        self.lock().text.iter().skip(start).cloned().collect()
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.lines(0).join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
