//! `starling shell` and `starling health`, as people and scripts use them: members that join, talk and leave while they run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::{Process, free_port, peer_flags};

/// A member that peers can reach, alone at first.
struct Member {
    process: Process,
    peer_port: u16,
    dir: TempDir,
}

fn strs(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

impl Member {
    fn start(name: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peer_port = free_port();
        let flags = peer_flags(name, peer_port);
        let flags = [strs(&flags), more.to_vec()].concat();
        Self { process: Process::start(dir.path(), &flags), peer_port, dir }
    }

    fn shell(&self, args: &[&str]) -> Output {
        shell(self.process.port, args, "")
    }

    /// What a command says when it works.
    fn says(&self, args: &[&str]) -> String {
        let output = self.shell(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Why it does not.
    fn refuses(&self, args: &[&str]) -> String {
        let output = self.shell(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn contact(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }
}

fn starling(command: &str, port: u16) -> Command {
    let mut starling = Command::new(env!("CARGO_BIN_EXE_starling"));
    starling.arg(command).arg(format!("--endpoint=127.0.0.1:{port}")).env_clear();
    starling
}

/// Runs a shell with this on its standard input.
fn shell(port: u16, args: &[&str], input: &str) -> Output {
    let mut command = starling("shell", port);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_script_goes_on_after_what_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let member = Process::start(dir.path(), &[]);
    let script = "\
# comments and empty lines are passed over

put 'a key' \"two\\nlines\"
get 'a key'
get missing
frobnicate
put half 'a
put b \\xff\\x00
get --prefix ''
get --value b
del b
del b
exit
get 'a key'
";
    let output = shell(member.port, &[], script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "OK\na key : two\\nlines\nOK\na key : two\\nlines\nb : \\xff\\x00\n\u{fffd}\0\n1 key deleted\n0 keys deleted\n";
    assert_eq!(text, expected);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines[0], "get: missing not found");
    assert!(
        lines[1].starts_with("no command \"frobnicate\"") && errors.contains("  join HOST:PORT")
    );
    assert_eq!(lines.last(), Some(&"a quote is not closed"));
    assert_eq!(output.status.code(), Some(1));

    let output = shell(member.port, &["-c", "put a 1\nget a"], "");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"OK\na : 1\n"[..]));
    // What the caller's shell has split is not split again.
    let output = shell(member.port, &["put", "a b", "\\n '"], "");
    assert!(output.status.success(), "{output:?}");
    let output = shell(member.port, &["get", "--value", "a b"], "");
    assert_eq!(output.stdout, b"\\n '\n");
    let output = shell(member.port, &["--frobnicate"], "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn nobody_there_is_told_in_one_line() {
    let port = free_port();
    let output = shell(port, &["get", "a"], "");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.starts_with("get: 127.0.0.1:") && errors.lines().count() == 1, "{errors}");
    let output = starling("health", port).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = starling("health", port).arg("--quiet").output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
}

#[test]
fn a_watch_shows_changes_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let member = Process::start(dir.path(), &[]);
    let mut watch = starling("shell", member.port);
    watch.args(["watch", "--prefix", "w/"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // Whether it watches yet is seen by what it shows.
    let put = |i: u32| shell(member.port, &["put", &format!("w/{i}"), "v"], "");
    let (seen, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let line = lines.next().unwrap().unwrap();
        seen.send(()).unwrap();
        (line, lines)
    });
    let mut i = 0;
    while first.try_recv().is_err() {
        put(i);
        i += 1;
        assert!(i < 1000, "it shows nothing");
    }
    let (line, mut lines) = reader.join().unwrap();
    assert!(line.starts_with("put w/") && line.ends_with(" : v"), "{line}");
    shell(member.port, &["del", "--prefix", "w/"], "");
    assert!(lines.any(|line| line.unwrap().starts_with("del w/")));
    // As by Ctrl-C.
    kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    assert!(watch.wait().unwrap().success());
}

#[test]
fn members_join_and_leave_while_they_run() {
    let (a, b) = (Member::start("a", &[]), Member::start("b", &[]));
    assert_eq!(a.says(&["show"]), "this member has no neighbours\n");
    assert_eq!(a.says(&["leave"]), "this member has no neighbours\n");
    a.says(&["put", "of a", "1"]);
    b.says(&["put", "of b", "2"]);
    let nobody = format!("127.0.0.1:{}", free_port());
    let why = b.refuses(&["join", &nobody]);
    assert!(why.starts_with("join: not reached: http://127.0.0.1:"), "{why}");
    let why = b.refuses(&["join", &b.contact()]);
    assert_eq!(why, "join: not admitted: that is this member itself\n");
    assert_eq!(b.says(&["get", "of b"]), "of b : 2\n");

    let joined = b.says(&["join", &a.contact()]);
    assert!(joined.ends_with("joined: the cluster has 2 members\n"), "{joined}");
    for member in [&a, &b] {
        assert_eq!(member.says(&["get", "--prefix", "of "]), "of a : 1\nof b : 2\n");
    }
    assert_eq!(b.says(&["join", &a.contact()]).lines().last(), Some("a is a neighbour already"));
    b.says(&["put", "both", "3"]);
    // It was answered when all had it.
    assert_eq!(a.says(&["get", "both"]), "both : 3\n");
    assert!(a.says(&["show"]).starts_with("b  http://127.0.0.1:"));
    assert_eq!(a.says(&["sync"]), "equal: b\n");
    assert!(a.says(&["members"]).contains("this one"));

    // The other way round: who has no neighbours comes to who is asked.
    let c = Member::start("c", &[]);
    let joined = a.says(&["join", &c.contact()]);
    assert!(joined.contains("c joins this member"), "{joined}");
    assert_eq!(c.says(&["get", "both"]), "both : 3\n");
    let d = Member::start("d", &[]);
    let e = Member::start("e", &[]);
    d.says(&["join", &e.contact()]);
    let why = d.refuses(&["join", &a.contact()]);
    assert!(why.contains("both members are in clusters with others already"), "{why}");

    // A start by the same command is no join: what was told while it ran is remembered.
    let Member { process, peer_port, dir } = b;
    process.stop();
    let flags = peer_flags("b", peer_port);
    let b = Member { process: Process::start(dir.path(), &strs(&flags)), peer_port, dir };
    assert_eq!(b.says(&["sync"]), "equal: a, c\n");

    assert_eq!(b.says(&["leave"]), "left: this member goes on alone, with all data\n");
    assert_eq!(b.says(&["show"]), "this member has no neighbours\n");
    assert_eq!(b.says(&["get", "both"]), "both : 3\n");
    assert_eq!(a.says(&["sync"]), "equal: c\n");
    b.says(&["put", "both", "4"]);
    b.says(&["del", "of b"]);
    a.says(&["del", "of a"]);
    let Member { process, peer_port, dir } = b;
    process.stop();
    let b = Member { process: Process::start(dir.path(), &strs(&flags)), peer_port, dir };
    assert_eq!(b.says(&["show"]), "this member has no neighbours\n");

    b.says(&["join", &c.contact()]);
    for member in [&a, &b, &c] {
        member.says(&["sync"]);
        assert_eq!(member.says(&["get", "--prefix", ""]), "both : 4\n");
    }
}

#[test]
fn members_that_share_a_name_find_each_other() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let all: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let join = format!("--join={}", all.join(","));
    let members: Vec<_> = (0..3)
        .map(|i| {
            let flags = peer_flags(&format!("m{i}"), ports[i]);
            let flags = [strs(&flags), vec![&join, "--volatile"]].concat();
            Process::start(dirs[i].path(), &flags)
        })
        .collect();
    for member in &members {
        let mut health = starling("health", member.port);
        health.args(["--ready", "--quiet"]);
        while !health.status().unwrap().success() {}
    }
    let put = shell(members[0].port, &["put", "k", "v"], "");
    assert!(put.status.success(), "{put:?}");
    for member in &members {
        while !shell(member.port, &["sync"], "").stdout.starts_with(b"equal: m") {}
        assert_eq!(shell(member.port, &["get", "k"], "").stdout, b"k : v\n");
    }
    // In memory or not: one that leaves keeps its data.
    let left = shell(members[2].port, &["leave"], "");
    assert!(left.status.success(), "{left:?}");
    assert_eq!(shell(members[2].port, &["get", "k"], "").stdout, b"k : v\n");
    let health = starling("health", members[2].port).output().unwrap();
    assert_eq!(health.stdout, b"{\"health\":\"true\",\"reason\":\"\"}\n");
}
