//! The binary as its users start and stop it: flags, files, exit codes, and what it says.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::watch_client::WatchClient;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use tonic::Code;
use tonic::transport::Channel;

use crate::member::in_time;

const READY: &str = "ready to serve client requests";
/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// On a free port, which the log tells.
const ANYWHERE: &[&str] =
    &["--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:1"];

fn starling(program: &Path, directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env_clear().stdin(Stdio::null());
    command
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_starling"))
}

/// Runs it where it is expected to end by itself; otherwise the lines say how far it came.
fn run(directory: &Path, args: &[&str]) -> Output {
    let mut command = starling(binary(), directory, args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = Pid::from_child(&child);
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || drop(done.send(child.wait_with_output().unwrap())));
    let output = wait.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        let _ = kill_process(id, Signal::KILL);
        panic!("{args:?} does not end")
    });
    thread.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

/// Exit code, and what it said on stderr.
fn refusal(directory: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = run(directory, args);
    (output.status.code(), text(&output.stderr).to_owned())
}

/// A process that serves, killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far.
    log: Vec<String>,
    /// Where it listens, in the order of its settings.
    addresses: Vec<String>,
}

impl Running {
    /// Starts it and waits until it serves on so many listeners.
    fn start(mut command: Command, listeners: usize) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut running = Self { child, lines, log: Vec::new(), addresses: Vec::new() };
        while running.addresses.len() < listeners {
            let line = running.next_line();
            if line.contains(READY) {
                let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
                let address = line["address"].as_str().expect("the address of a listener");
                running.addresses.push(address.to_owned());
            }
        }
        running
    }

    fn next_line(&mut self) -> String {
        let line = self.lines.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|error| panic!("{error} after {:#?}", self.log));
        self.log.push(line.clone());
        line
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end and answers the exit code; what was still to be read goes to the log.
    fn wait(&mut self) -> Option<i32> {
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.log.push(line);
        }
        self.child.wait().unwrap().code()
    }

    async fn channel(&self) -> Channel {
        let endpoint = format!("http://{}", self.addresses[0]);
        Channel::from_shared(endpoint).unwrap().connect().await.expect("the member serves")
    }

    fn get(&self, listener: usize, path: &str) -> String {
        get(TcpStream::connect(&self.addresses[listener]).unwrap(), path)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer to a GET, from the status line on.
fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

#[test]
fn the_version_is_printed_as_etcd_prints_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let names: Vec<_> =
        text(&output.stdout).lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(names, ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "Starling Version"]);
    let version = text(&output.stdout).lines().next().unwrap().trim_start_matches("etcd Version: ");
    assert_eq!(
        version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(),
        3,
        "{version}"
    );
}

#[test]
fn help_is_printed_even_if_nobody_reads_on() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("--listen-client-urls"), "{output:?}");
    let mut command = starling(binary(), dir.path(), &["--help"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn what_cannot_be_is_refused_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--foo"], 2, "flag provided but not defined: -foo"),
        (&["--max-txn-ops"], 2, "flag needs an argument: -max-txn-ops"),
        (&["bla"], 1, "\"bla\" is not a valid flag"),
        (&["grpc-proxy", "start"], 1, "etcd's command \"grpc-proxy\" is not supported"),
        (
            &["--cert-file", "a.pem"],
            1,
            "KeyFile and CertFile must both be present[key: , cert: a.pem]",
        ),
        (&["--discovery", "http://a:1"], 1, "etcd has removed v2 discovery, too: --discovery"),
        (
            &["--initial-cluster", "default=http://a:1,b=http://b:1"],
            1,
            "--initial-cluster has default=http://a:1 but missing from --initial-advertise-peer-urls=http://localhost:2380",
        ),
        (
            &["--listen-client-urls", "http://127.0.0.1:0"],
            1,
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
    ];
    for (args, code, line) in cases {
        let (exit, stderr) = refusal(dir.path(), args);
        assert_eq!((exit, stderr.lines().next()), (Some(*code), Some(*line)), "{args:?}");
        // As in etcd, the usage follows upon what is no command line, and nothing upon the rest.
        assert_eq!(stderr.lines().count() > 1, *code == 2, "{stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "refused before anything is made");
}

#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let mut command = starling(binary(), dir.path(), &["--data-dir"]);
    let output = command.arg(std::ffi::OsStr::from_bytes(b"\xff")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn under_the_name_of_etcd_it_stands_in_for_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = dir.path().join("etcd");
    std::os::unix::fs::symlink(binary(), &etcd).unwrap();
    let mut args = ANYWHERE.to_vec();
    args.extend(["--name=infra0", "--snapshot-count=5", "--enable-v2"]);
    let mut command = starling(&etcd, dir.path(), &args);
    command.env("ETCD_MAX_WALS", "7").env("ETCD_TYPO", "1");
    let running = Running::start(command, 1);
    assert!(dir.path().join("infra0.etcd").is_dir());
    let log = running.log.join("\n");
    for named in ["--snapshot-count", "--enable-v2", "--max-wals", "ETCD_TYPO"] {
        assert!(log.contains(named), "{named} is not named:\n{log}");
    }
}

#[test]
fn a_port_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("--listen-client-urls=http://{}", taken.local_addr().unwrap());
    let (code, stderr) = refusal(dir.path(), &[&url, ANYWHERE[1]]);
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(code, Some(1));
    assert!(
        last.starts_with(&format!("cannot listen on {}", taken.local_addr().unwrap())),
        "{stderr}"
    );
}

#[test]
fn a_data_directory_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(starling(binary(), dir.path(), ANYWHERE), 1);
    let (code, stderr) = refusal(dir.path(), ANYWHERE);
    assert_eq!(code, Some(1));
    assert!(stderr.lines().last().unwrap().contains("default.starling"), "{stderr}");
    assert!(running.get(0, "/livez").starts_with("HTTP/1.1 200"), "the first one goes on");
}

#[test]
fn a_foreign_data_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for foreign in ["member/snap/db", "letters/mom.txt"] {
        let file = dir.path().join(foreign);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "data").unwrap();
        let mut args = ANYWHERE.to_vec();
        args.extend(["--data-dir", "."]);
        let (code, stderr) = refusal(dir.path(), &args);
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
        fs::remove_dir_all(dir.path().join(foreign.split('/').next().unwrap())).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was added: {stderr}");
    }
}

#[test]
fn it_stops_in_order_under_an_open_watch() {
    let dir = tempfile::tempdir().unwrap();
    for (name, signal) in [("terminated", Signal::TERM), ("interrupted", Signal::INT)] {
        let mut running = Running::start(starling(binary(), dir.path(), ANYWHERE), 1);
        runtime().block_on(in_time("the stop", async {
            let channel = running.channel().await;
            let create = pb::WatchCreateRequest {
                key: vec![0].into(),
                range_end: vec![0].into(),
                ..Default::default()
            };
            let create =
                pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
            let mut watch =
                WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
            assert!(watch.message().await.unwrap().unwrap().created);
            KvClient::new(channel).put(put("k", name)).await.unwrap();
            assert_eq!(watch.message().await.unwrap().unwrap().events.len(), 1);
            running.signal(signal);
            let end = watch.message().await.expect_err("the stream ends with the member");
            assert_eq!(
                (end.code(), end.message()),
                (Code::Unavailable, "etcdserver: server stopped")
            );
        }));
        assert_eq!(running.wait(), Some(0), "{:#?}", running.log);

        let running = Running::start(starling(binary(), dir.path(), ANYWHERE), 1);
        let range = pb::RangeRequest { key: b"k".to_vec().into(), ..Default::default() };
        let reply = runtime().block_on(async {
            KvClient::new(running.channel().await).range(range).await.unwrap().into_inner()
        });
        assert_eq!(reply.kvs[0].value, name.as_bytes(), "it is there after the restart");
    }
}

#[test]
fn a_file_sets_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = "
name: from-file
data-dir: filed
listen-client-urls: http://127.0.0.1:0
advertise-client-urls: http://192.0.2.1:2379
log-outputs: [stderr, filed.log]
";
    fs::write(dir.path().join("etcd.yaml"), file).unwrap();
    let args = ["--config-file", "etcd.yaml", "--name=ignored"];
    let running = Running::start(starling(binary(), dir.path(), &args), 1);
    assert!(dir.path().join("filed").is_dir());
    // The line before the one that was waited for: each place gets a line before any gets the next one.
    assert!(fs::read_to_string(dir.path().join("filed.log")).unwrap().contains("data is loaded"));
    let members = runtime().block_on(async {
        use pb::cluster_client::ClusterClient;
        let mut client = ClusterClient::new(running.channel().await);
        client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members
    });
    assert_eq!((members[0].name.as_str(), members.len()), ("from-file", 1));
    assert_eq!(members[0].client_ur_ls, ["http://192.0.2.1:2379"]);
}

#[test]
fn it_listens_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let urls = format!("--listen-client-urls=http://127.0.0.1:0,unix://{}", socket.display());
    let args = [&urls, ANYWHERE[1], "--listen-metrics-urls=http://127.0.0.1:0"];
    let mut running = Running::start(starling(binary(), dir.path(), &args), 3);
    assert_eq!(Path::new(&running.addresses[1]), socket);

    assert!(get(UnixStream::connect(&socket).unwrap(), "/version").contains("etcdserver"));
    for (listener, path) in
        [(0, "/health"), (0, "/metrics"), (2, "/health"), (2, "/metrics"), (2, "/readyz")]
    {
        let answer = running.get(listener, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{listener}{path}: {answer}");
    }
    let key_count = |running: &Running| {
        runtime().block_on(async {
            let all = pb::RangeRequest {
                key: vec![0].into(),
                range_end: vec![0].into(),
                ..Default::default()
            };
            KvClient::new(running.channel().await)
                .range(all)
                .await
                .map(|reply| reply.into_inner().count)
        })
    };
    assert_eq!(key_count(&running).unwrap(), 0);
    running.addresses.rotate_left(2);
    key_count(&running).expect_err("the port for metrics has no data");
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0));
    assert!(!socket.exists(), "the socket is removed");
}
