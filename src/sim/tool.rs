//! `starling sim`: experiments on the command line, with a table, JSON and plots of what came of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::time::Instant;

use super::network::NetworkOptions;
use super::spread::{Experiment, Outcome, Quiet};
use super::{plot, report};
use crate::replication::gossip;

/// Members of one experiment: what each knows of all takes the square of that.
const MEMBERS_MAX: u64 = 20_000;
/// Writes of one experiment.
const WRITES_MAX: u64 = 10_000_000;
/// Deliveries of one experiment, each of which is remembered.
const DELIVERIES_MAX: u64 = 1_000_000_000;
/// The longest of anything, in seconds.
const SECONDS_MAX: u64 = 86_400;
/// The largest value, in bytes.
const VALUE_BYTES_MAX: u64 = 1 << 20;
const MICROS_PER_MILLI: u64 = 1000;
/// Thousandths of a percent are tens of a millionth.
const PPM_PER_THOUSANDTH_PERCENT: u64 = 10;
const PERCENT_MAX: u64 = 100_000;
/// Takes back what a terminal shows in the current line.
const CLEAR_LINE: &[u8] = b"\r\x1b[K";
/// Where a file is named, this means the standard output.
const STDOUT: &str = "-";

/// A flag, which always takes a value.
struct Flag {
    name: &'static str,
    default: &'static str,
    help: &'static str,
}

const fn flag(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, default, help }
}

#[rustfmt::skip]
const FLAGS: &[Flag] = &[
    flag("members", "1000", "how many members; several numbers, separated by commas, for one experiment each"),
    flag("writers", "64", "how many of them write"),
    flag("writes-per-second", "20", "of all writers together"),
    flag("seconds", "5", "how long they write"),
    flag("value-size", "256", "bytes of a value"),
    flag("latency", "0.2", "the least time that a message takes, in milliseconds"),
    flag("jitter", "0.1", "what may come on top, in milliseconds; messages overtake each other"),
    flag("loss", "1", "messages that get lost, in percent"),
    flag("commit", "0.5", "how long it takes to make writes durable, in milliseconds"),
    flag("seed", "1", "decides everything that is left to chance"),
    flag("direct-max", "16", "up to so many members, writes go straight to all"),
    flag("json", "", "a file for all results, or - for standard output, without the table then"),
    flag("svg", "", "a file for a picture: who has a write after which time, and with several --members what it costs"),
];

/// Why nothing, or not everything, was done.
#[derive(Debug, PartialEq, Eq)]
pub enum ToolError {
    /// This is no command line.
    Usage(String),
    /// A file cannot be written.
    Failed(String),
}

/// What was asked for.
#[derive(Debug)]
pub(super) struct Request {
    /// One experiment for each number of members.
    pub experiments: Vec<Experiment>,
    json: Option<String>,
    svg: Option<String>,
}

/// An experiment, and what came of it.
pub(super) struct Run {
    /// What was tried.
    pub experiment: Experiment,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took in real time, in seconds.
    pub real_seconds: f64,
}

/// Runs what the arguments behind `starling sim` say. Results go to `out`, and how far it is to `progress`, if that is a
/// terminal.
pub fn run(
    args: &[String],
    out: &mut dyn Write,
    mut progress: Option<&mut dyn Write>,
) -> Result<(), ToolError> {
    let Some(request) = parse(args)? else {
        return show(out, &help());
    };
    let has_table = request.json.as_deref() != Some(STDOUT);
    if has_table {
        show(out, &report::head(&request))?;
    }
    let mut runs = Vec::new();
    for experiment in request.experiments {
        let start = Instant::now();
        let mut shown = None;
        let outcome = experiment.run(&mut |percent| {
            if shown.replace(percent) != Some(percent)
                && let Some(progress) = &mut progress
            {
                // Nobody depends on it.
                let _ = write!(progress, "\r{} members: {percent} %", experiment.members);
                let _ = progress.flush();
            }
        });
        if let Some(progress) = &mut progress {
            let _ = progress.write_all(CLEAR_LINE).and_then(|()| progress.flush());
        }
        let run = Run { experiment, outcome, real_seconds: start.elapsed().as_secs_f64() };
        if has_table {
            show(out, &report::row(&run))?;
        }
        runs.push(run);
    }
    if let Some(path) = &request.json {
        write(path, &report::json(&runs), out)?;
    }
    if let Some(path) = &request.svg {
        write(path, &plot::page(&runs), out)?;
    }
    Ok(())
}

fn show(out: &mut dyn Write, text: &str) -> Result<(), ToolError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads it may stop early.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(ToolError::Failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

fn write(path: &str, text: &str, out: &mut dyn Write) -> Result<(), ToolError> {
    if path == STDOUT {
        return show(out, text);
    }
    std::fs::write(path, text)
        .map_err(|error| ToolError::Failed(format!("cannot write {path}: {error}")))
}

/// The help text.
fn help() -> String {
    let mut text = "\
How fast, and at what cost, do writes reach everybody in a cluster of this size? Tried in virtual time, with the gossip
that members use, on a network that loses and delays. The same flags give the same results.

Usage:
  starling sim [flags]

Flags:
"
    .to_owned();
    for Flag { name, default, help } in FLAGS {
        let _ = fmt::Write::write_fmt(
            &mut text,
            format_args!("  --{name} '{default}'\n        {help}\n"),
        );
    }
    text.push_str(
        "
Examples:
  starling sim --members 10,100,1000 --svg spread.svg
  starling sim --members 50 --latency 40 --jitter 20 --loss 5 --json -
  starling sim --members 10000 --writers 256      (takes minutes, and 8 GB of memory)
",
    );
    text
}

/// Reads the arguments. `None` if help is wanted.
pub(super) fn parse(args: &[String]) -> Result<Option<Request>, ToolError> {
    let mut values: BTreeMap<&str, &str> =
        FLAGS.iter().map(|flag| (flag.name, flag.default)).collect();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(ToolError::Usage(format!("{arg:?} is not a valid flag")));
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            return Ok(None);
        }
        let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
            return Err(ToolError::Usage(format!("flag provided but not defined: -{name}")));
        };
        let value = value.or_else(|| rest.next().map(String::as_str));
        let missing = || ToolError::Usage(format!("flag needs an argument: -{name}"));
        values.insert(flag.name, value.ok_or_else(missing)?);
    }
    Values(values).request().map(Some)
}

struct Values<'a>(BTreeMap<&'a str, &'a str>);

impl Values<'_> {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn path(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(str::to_owned)
    }

    /// A whole number within bounds.
    fn number(&self, name: &str, text: &str, (min, max): (u64, u64)) -> Result<u64, ToolError> {
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| {
            ToolError::Usage(format!("--{name} takes numbers from {min} to {max}, not {text:?}"))
        })
    }

    fn whole(&self, name: &str, bounds: (u64, u64)) -> Result<u64, ToolError> {
        self.number(name, self.text(name), bounds)
    }

    /// A number with up to three digits behind the point, in thousandths.
    fn thousandths(&self, name: &str, max: u64) -> Result<u64, ToolError> {
        let text = self.text(name);
        thousandths(text).filter(|number| *number <= max).ok_or_else(|| {
            let max = max / 1000;
            ToolError::Usage(format!(
                "--{name} takes numbers from 0 to {max} with up to three digits behind the point, not {text:?}"
            ))
        })
    }

    fn request(&self) -> Result<Request, ToolError> {
        let members: Result<Vec<_>, _> = self
            .text("members")
            .split(',')
            .map(|text| self.number("members", text.trim(), (2, MEMBERS_MAX)))
            .collect();
        let experiments: Result<_, _> =
            members?.into_iter().map(|members| self.experiment(members)).collect();
        Ok(Request { experiments: experiments?, json: self.path("json"), svg: self.path("svg") })
    }

    fn experiment(&self, members: u64) -> Result<Experiment, ToolError> {
        let millis_max = SECONDS_MAX * 1000 * MICROS_PER_MILLI;
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let writes_per_second = self.whole("writes-per-second", (1, WRITES_MAX))?;
        let seconds = self.whole("seconds", (1, SECONDS_MAX))?;
        let writes = writes_per_second.saturating_mul(seconds);
        if writes > WRITES_MAX || writes.saturating_mul(members) > DELIVERIES_MAX {
            return Err(ToolError::Usage(format!(
                "{writes} writes to {members} members are too many to remember all"
            )));
        }
        Ok(Experiment {
            members: count(members),
            writers: count(self.whole("writers", (1, MEMBERS_MAX))?),
            writes_per_second,
            seconds,
            value_bytes: count(self.whole("value-size", (0, VALUE_BYTES_MAX))?),
            // A thousandth of a millisecond is a microsecond.
            network: NetworkOptions {
                latency_micros: self.thousandths("latency", millis_max)?,
                jitter_micros: self.thousandths("jitter", millis_max)?,
                loss_ppm: self.thousandths("loss", PERCENT_MAX)? * PPM_PER_THOUSANDTH_PERCENT,
                ..NetworkOptions::lan()
            },
            commit_micros: self.thousandths("commit", millis_max)?,
            options: gossip::Options {
                direct_max: count(self.whole("direct-max", (0, MEMBERS_MAX))?),
                ..gossip::Options::default()
            },
            quiet: Quiet::default(),
            seed: self.whole("seed", (0, u64::MAX))?,
        })
    }
}

/// Reads `1`, `0.25` or `.5` as thousandths.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 3 || whole.len() + part.len() == 0 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn refusal(line: &str) -> String {
        match parse(&words(line)) {
            Err(ToolError::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn decimals_are_read_without_rounding() {
        let cases = [
            ("1", Some(1000)),
            ("0.25", Some(250)),
            (".5", Some(500)),
            ("7.", Some(7000)),
            ("0.0001", None),
            ("", None),
            (".", None),
            ("-1", None),
            ("1e3", None),
        ];
        for (text, expected) in cases {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }

    #[test]
    fn flags_become_experiments() {
        let line =
            "--members=10,100 -writers 7 --latency 1.5 --loss=0.5 --seed 9 --json - --direct-max 0";
        let request = parse(&words(line)).unwrap().unwrap();
        let members: Vec<_> = request.experiments.iter().map(|it| it.members).collect();
        assert_eq!(members, [10, 100]);
        let experiment = &request.experiments[1];
        assert_eq!((experiment.writers, experiment.seed), (7, 9));
        assert_eq!(experiment.network.latency_micros, 1500);
        assert_eq!(experiment.network.loss_ppm, 5000);
        assert_eq!(experiment.options.direct_max, 0);
        assert_eq!((request.json.as_deref(), request.svg), (Some("-"), None));
        assert!(parse(&words("--seed 1 --help")).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(refusal("now"), "\"now\" is not a valid flag");
        assert_eq!(refusal("--member 3"), "flag provided but not defined: -member");
        assert_eq!(refusal("--members"), "flag needs an argument: -members");
        assert_eq!(refusal("--members 10,x"), "--members takes numbers from 2 to 20000, not \"x\"");
        assert!(refusal("--loss 101").contains("from 0 to 100"));
        assert!(refusal("--members 20000 --writes-per-second 100000").contains("too many"));
    }

    #[test]
    fn a_run_has_a_table_a_picture_and_all_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let (json, svg) = (directory.path().join("a.json"), directory.path().join("a.svg"));
        let line =
            format!("--members 3,20 --seconds 1 --json {} --svg {}", json.display(), svg.display());
        let mut out = Vec::new();
        run(&words(&line), &mut out, None).unwrap();
        let table = String::from_utf8(out).unwrap();
        let rows: Vec<_> = table.lines().filter(|line| line.contains(" ms ")).collect();
        assert_eq!(rows.len(), 2, "{table}");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(json[1]["members"], 20);
        assert_eq!(json[1]["missing"], 0);
        let svg = std::fs::read_to_string(svg).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        // Two clusters over time; what they cost, busy and idle, over their size.
        assert_eq!(svg.matches("class=\"curve\"").count(), 4, "{svg}");
    }
}
