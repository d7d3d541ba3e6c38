//! A starling process of a test: started on free ports with a directory of its own, killed when dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use starling_proto::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;

/// How long a start may take on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a start is tried on another port, should somebody else have taken the first.
const START_TRIES: usize = 5;

pub(crate) struct Process {
    child: Child,
    pub(crate) port: u16,
}

impl Process {
    /// Starts a member on `data_dir` and waits until it serves.
    pub(crate) fn start(data_dir: &Path, flags: &[&str]) -> Self {
        let mut last = String::new();
        for _ in 0..START_TRIES {
            match Self::try_start(data_dir, flags) {
                Ok(process) => return process,
                Err(log) => last = log,
            }
        }
        panic!("starling does not start:\n{last}");
    }

    /// Starts a member, or answers what it said before it gave up.
    pub(crate) fn try_start(data_dir: &Path, flags: &[&str]) -> Result<Self, String> {
        Self::try_start_in(data_dir, flags, &[])
    }

    /// The same with these variables and no others.
    pub(crate) fn try_start_in(
        data_dir: &Path,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, String> {
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_starling"))
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(flags)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built with this test");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (ready, wait) = mpsc::channel();
        // The thread goes on reading until the process ends, so that its log never blocks it.
        std::thread::spawn(move || {
            let mut log = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    let _ = ready.send(Ok(()));
                }
                log.push_str(&line);
                log.push('\n');
            }
            let _ = ready.send(Err(log));
        });
        match wait.recv_timeout(START_TIMEOUT) {
            Ok(Ok(())) => Ok(Self { child, port }),
            Ok(Err(log)) => {
                let _ = child.wait();
                Err(log)
            }
            Err(_) => {
                let _ = child.kill();
                Err(format!("not ready after {START_TIMEOUT:?}"))
            }
        }
    }

    /// Ends the process at once, as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours to kill");
        self.child.wait().expect("it was killed");
    }

    /// Asks the process to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it is ours to stop");
        let begin = Instant::now();
        while self.child.try_wait().expect("it can be waited for").is_none() {
            assert!(begin.elapsed() < STOP_TIMEOUT, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A connection to it.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        Channel::from_shared(endpoint)
            .expect("a valid address")
            .connect()
            .await
            .expect("the member serves")
    }

    /// A KV client of its own connection.
    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a member is given so that others reach it at this port.
pub(crate) fn peer_flags(name: &str, peer_port: u16) -> [String; 3] {
    let url = format!("http://127.0.0.1:{peer_port}");
    [
        format!("--name={name}"),
        format!("--listen-peer-urls={url}"),
        format!("--initial-advertise-peer-urls={url}"),
    ]
}

/// Below those that the system gives to outgoing connections: one of these could take a port before the server does that it is
/// meant for.
pub(crate) fn free_port() -> u16 {
    const PORTS: Range<u16> = 16_384..32_768;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Other test programs may run at the same time.
    let start = std::process::id() % u32::from(PORTS.end - PORTS.start);
    let start = u16::try_from(start).expect("there are fewer ports");
    let next = || {
        let number = TAKEN.fetch_add(1, Ordering::Relaxed).wrapping_add(start);
        PORTS.start + number % (PORTS.end - PORTS.start)
    };
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = PORTS.map(|_| next());
    ports.find(is_free).expect("the loopback interface has free ports")
}
