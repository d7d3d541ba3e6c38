//! etcdctl sessions with the output that etcd gave, replayed against a server.
//!
//! A script is a text file of steps; what a step printed stands below it:
//!
//! ```text
//! $ put a 1                   etcdctl put a 1, to its end
//! | OK                        a line of its output
//! $ txn                       one that reads its input:
//! < value("a") = "1"
//! = 1                         the exit code, unless it is 0
//! ! Error: ...                a line of its errors
//! & w watch --prefix a        starts etcdctl watch beside the script, called w
//! > w progress                gives it a line of input
//! @ w 3                       waits until it has printed three lines in all
//! - w                         interrupts it and waits for its end
//! # ...                       a comment
//! ```
//!
//! Words are split at spaces; '...' and "..." group, and "..." knows \n \t \\ \" \xNN.
//! `LEASE1` is the first lease that any output has named, `CLIENT` the address of the server.
//! Output is masked ([`crate::mask`]). A server passes if every step prints what is recorded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::mem;
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustix::process::Signal;
use starling_proto::etcdserverpb as pb;

use crate::mask::Mask;
use crate::server::{self, Log, Server};
use crate::tools::EtcdTools;

/// How long one step may take; etcdctl itself gives up after five seconds.
const STEP_DEADLINE: Duration = Duration::from_secs(15);

/// Printed where a background command should have written more lines.
const SILENCE: &str = "(nothing more in time)";

/// A parsed script.
#[derive(Debug)]
pub struct Script {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// A comment or an empty line.
    Text(String),
    Step(Step),
}

#[derive(Debug)]
struct Step {
    line: usize,
    /// The step as written, with its input.
    source: Vec<String>,
    action: Action,
    recorded: Vec<String>,
}

#[derive(Debug)]
enum Action {
    Run { args: String, input: String },
    Start { name: String, args: String, input: String },
    Send { name: String, text: String },
    Wait { name: String, lines: usize },
    Interrupt { name: String },
}

impl Script {
    /// Reads a script.
    ///
    /// # Panics
    ///
    /// When a line is none of the forms in the module's documentation.
    pub fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        for (number, line) in text.lines().enumerate() {
            match line.chars().next() {
                None | Some('#') => parts.push(Part::Text(line.to_owned())),
                Some('|' | '!' | '=') => {
                    last_step(&mut parts, number).recorded.push(line.to_owned());
                }
                Some('<') => last_step(&mut parts, number).add_input(line),
                _ => parts.push(Part::Step(Step::parse(number + 1, line))),
            }
        }
        Self { parts }
    }

    /// Runs the script and returns what differs from the record; nothing, if the server passes.
    pub fn check(&self, server: &Server, tools: &EtcdTools) -> String {
        let mut report = String::new();
        let mut session = Session::new(server, tools);
        for step in self.steps() {
            let printed = session.take(&step.action);
            if printed != step.recorded {
                let (line, source) = (step.line, step.source.join("\n"));
                let (recorded, printed) = (step.recorded.join("\n  "), printed.join("\n  "));
                let _ = write!(
                    report,
                    "\nline {line}: {source}\n recorded:\n  {recorded}\n printed:\n  {printed}\n"
                );
            }
        }
        report
    }

    /// Runs the script and returns it with the server's output as the record.
    pub fn record(&self, server: &Server, tools: &EtcdTools) -> String {
        let mut text = String::new();
        let mut session = Session::new(server, tools);
        for part in &self.parts {
            let lines = match part {
                Part::Text(line) => vec![line.clone()],
                Part::Step(step) => [step.source.clone(), session.take(&step.action)].concat(),
            };
            lines.iter().for_each(|line| text.extend([line, "\n"]));
        }
        text
    }

    /// How many commands the script runs.
    pub fn commands(&self) -> usize {
        self.steps()
            .filter(|step| matches!(step.action, Action::Run { .. } | Action::Start { .. }))
            .count()
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.parts.iter().filter_map(|part| match part {
            Part::Step(step) => Some(step),
            Part::Text(_) => None,
        })
    }
}

fn last_step(parts: &mut [Part], number: usize) -> &mut Step {
    match parts.last_mut() {
        Some(Part::Step(step)) => step,
        _ => panic!("line {}: output or input without a step", number + 1),
    }
}

impl Step {
    fn parse(line: usize, source: &str) -> Self {
        let bad = || -> ! { panic!("line {line}: not a step: {source}") };
        let Some((sign, rest)) = source.split_once(' ') else { bad() };
        let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let name = name.to_owned();
        let action = match sign {
            "$" => Action::Run { args: rest.to_owned(), input: String::new() },
            "&" => Action::Start { name, args: more.to_owned(), input: String::new() },
            ">" => Action::Send { name, text: more.to_owned() },
            "@" => Action::Wait { name, lines: more.parse().unwrap_or_else(|_| bad()) },
            "-" => Action::Interrupt { name },
            _ => bad(),
        };
        Self { line, source: vec![source.to_owned()], action, recorded: Vec::new() }
    }

    fn add_input(&mut self, line: &str) {
        let text = line.strip_prefix("< ").unwrap_or("");
        match &mut self.action {
            Action::Run { input, .. } | Action::Start { input, .. } => input.extend([text, "\n"]),
            _ => panic!("line {}: only a command has input", self.line),
        }
        self.source.push(line.to_owned());
    }
}

/// One script running against one server.
struct Session<'a> {
    server: &'a Server,
    tools: &'a EtcdTools,
    mask: Mask,
    running: BTreeMap<String, Running>,
}

struct Running {
    process: Child,
    input: ChildStdin,
    output: Arc<Log>,
    errors: Arc<Log>,
    /// Lines of output that the script has seen.
    shown: usize,
}

impl<'a> Session<'a> {
    fn new(server: &'a Server, tools: &'a EtcdTools) -> Self {
        let mask = Mask::of_addresses(&server.address(), &server.peer_address());
        let mut session = Self { server, tools, mask, running: BTreeMap::new() };
        session.learn_ids();
        session
    }

    /// The ids of the server, from the header of any answer.
    fn learn_ids(&mut self) {
        let answer =
            self.etcdctl("get no-such-key -w json").output().expect("etcdctl can be started");
        let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let id = |name: &str| answer["header"][name].as_u64().unwrap_or(0);
        self.mask.learn_ids(id("cluster_id"), id("member_id"));
    }

    fn take(&mut self, action: &Action) -> Vec<String> {
        match action {
            Action::Run { args, input } => self.run(args, input),
            Action::Start { name, args, input } => self.start(name, args, input),
            Action::Send { name, text } => self.send(name, text),
            Action::Wait { name, lines } => self.wait(name, *lines),
            Action::Interrupt { name } => self.interrupt(name),
        }
    }

    fn etcdctl(&self, args: &str) -> Command {
        let mut command = Command::new(&self.tools.etcdctl);
        command.arg(format!("--endpoints={}", self.server.address()));
        command.args(split(&self.mask.unmask(args)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCDCTL_")) {
            command.env_remove(variable);
        }
        command
    }

    fn run(&mut self, args: &str, input: &str) -> Vec<String> {
        if args.contains("protobuf") {
            return self.run_protobuf(args);
        }
        let mut running = self.spawn(args, input);
        drop(running.input);
        let code = server::wait(&mut running.process, STEP_DEADLINE);
        running.output.wait_for_end(STEP_DEADLINE);
        running.errors.wait_for_end(STEP_DEADLINE);
        let mut printed = self.masked("|", &running.output.lines(0));
        printed.extend(self.ending(code, &running.errors));
        printed
    }

    /// The one output that is not text: decoded here, so that the record can be read.
    fn run_protobuf(&mut self, args: &str) -> Vec<String> {
        let output = self.etcdctl(args).output().expect("etcdctl can be started");
        let bytes = output.stdout.as_slice();
        let text = match args.split(' ').next() {
            Some("get") => pb::RangeResponse::decode(bytes).map(|answer| format!("{answer:?}")),
            Some("put") => pb::PutResponse::decode(bytes).map(|answer| format!("{answer:?}")),
            Some("del") => {
                pb::DeleteRangeResponse::decode(bytes).map(|answer| format!("{answer:?}"))
            }
            _ => panic!("{args}: this answer is not decoded yet"),
        };
        let text = text.unwrap_or_else(|error| error.to_string());
        self.masked("|", &[text.replace("raft_term: ", "\"raft_term\":")])
    }

    fn start(&mut self, name: &str, args: &str, input: &str) -> Vec<String> {
        let running = self.spawn(args, input);
        assert!(
            self.running.insert(name.to_owned(), running).is_none(),
            "{name} is running already"
        );
        Vec::new()
    }

    fn spawn(&self, args: &str, input: &str) -> Running {
        let mut process = self.etcdctl(args).spawn().expect("etcdctl can be started");
        let (output, errors) = (Arc::new(Log::default()), Arc::new(Log::default()));
        output.follow(process.stdout.take().expect("stdout is a pipe"));
        errors.follow(process.stderr.take().expect("stderr is a pipe"));
        let mut stdin = process.stdin.take().expect("stdin is a pipe");
        // A command that has failed already does not read its input.
        let _ = stdin.write_all(input.as_bytes());
        Running { process, input: stdin, output, errors, shown: 0 }
    }

    fn send(&mut self, name: &str, text: &str) -> Vec<String> {
        let text = self.mask.unmask(text);
        let _ = writeln!(self.named(name).input, "{text}");
        Vec::new()
    }

    fn wait(&mut self, name: &str, lines: usize) -> Vec<String> {
        let running = self.named(name);
        let came = running.output.wait_for_lines(lines, STEP_DEADLINE);
        let mut seen = running.output.lines(running.shown);
        seen.truncate(lines.saturating_sub(running.shown));
        running.shown += seen.len();
        if !came {
            seen.push(SILENCE.to_owned());
        }
        self.masked("|", &seen)
    }

    fn interrupt(&mut self, name: &str) -> Vec<String> {
        let mut running =
            self.running.remove(name).unwrap_or_else(|| panic!("{name} is not running"));
        server::signal(&running.process, Signal::INT);
        let code = server::wait(&mut running.process, STEP_DEADLINE);
        running.output.wait_for_end(STEP_DEADLINE);
        running.errors.wait_for_end(STEP_DEADLINE);
        let mut printed = self.masked("|", &running.output.lines(running.shown));
        printed.extend(self.ending(code, &running.errors));
        printed
    }

    fn named(&mut self, name: &str) -> &mut Running {
        self.running.get_mut(name).unwrap_or_else(|| panic!("{name} is not running"))
    }

    fn ending(&mut self, code: Option<i32>, errors: &Log) -> Vec<String> {
        // The client's own log repeats the error with the time and the place in its source.
        let errors: Vec<String> =
            errors.lines(0).into_iter().filter(|line| !line.starts_with("{\"level\":")).collect();
        let mut lines = self.masked("!", &errors);
        match code {
            Some(0) => {}
            Some(code) => lines.push(format!("= {code}")),
            None => lines.push("= interrupted".to_owned()),
        }
        lines
    }

    fn masked(&mut self, sign: &str, lines: &[String]) -> Vec<String> {
        if lines.is_empty() {
            return Vec::new();
        }
        let text = self.mask.apply(&lines.join("\n"));
        text.split('\n').map(|line| format!("{sign} {line}").trim_end().to_owned()).collect()
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        for running in self.running.values_mut() {
            let _ = running.process.kill();
            let _ = running.process.wait();
        }
    }
}

/// Splits a line into words as a small shell would.
fn split(line: &str) -> Vec<OsString> {
    let (mut words, mut word, mut open) = (Vec::new(), None::<Vec<u8>>, None);
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        match (open, byte) {
            (None, b' ') => words.extend(word.take().map(OsString::from_vec)),
            (None, b'\'' | b'"') => {
                open = Some(byte);
                word.get_or_insert_default();
            }
            (Some(quote), byte) if byte == quote => open = None,
            (Some(b'"'), b'\\') => word.get_or_insert_default().push(escaped(&mut bytes, line)),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    assert!(open.is_none(), "a quote is not closed: {line}");
    words.extend(word.as_mut().map(mem::take).map(OsString::from_vec));
    words
}

fn escaped(bytes: &mut impl Iterator<Item = u8>, line: &str) -> u8 {
    let mut next = || bytes.next().unwrap_or_else(|| panic!("an escape is cut off: {line}"));
    match next() {
        b'n' => b'\n',
        b't' => b'\t',
        b'x' => {
            let digits = [next(), next()].map(char::from).into_iter().collect::<String>();
            u8::from_str_radix(&digits, 16)
                .unwrap_or_else(|_| panic!("not hexadecimal: {digits} in {line}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_by_a_shell() {
        let words =
            |line: &str| split(line).into_iter().map(OsString::into_vec).collect::<Vec<_>>();
        assert_eq!(
            words("put a  'b c' \"\""),
            [b"put".to_vec(), b"a".to_vec(), b"b c".to_vec(), Vec::new()]
        );
        assert_eq!(
            words(r#"get "\x00\xff" --rev=2"#),
            [b"get".to_vec(), vec![0, 255], b"--rev=2".to_vec()]
        );
        assert_eq!(words(r#"put x"y z"'"'"#), [b"put".to_vec(), b"xy z\"".to_vec()]);
    }

    #[test]
    fn a_script_has_steps_with_their_input_and_record() {
        let script =
            Script::parse("# what\n\n$ txn\n< a\n<\n| SUCCESS\n= 1\n& w watch a\n@ w 3\n- w\n");
        assert_eq!(script.commands(), 2);
        let first = script.steps().next().map(|step| (&step.action, step.recorded.clone()));
        let Some((Action::Run { args, input }, recorded)) = first else { panic!("{first:?}") };
        assert_eq!((args.as_str(), input.as_str()), ("txn", "a\n\n"));
        assert_eq!(recorded, ["| SUCCESS", "= 1"]);
    }

    #[test]
    #[should_panic(expected = "not a step")]
    fn a_line_of_no_form_is_refused() {
        Script::parse("put a 1");
    }
}
