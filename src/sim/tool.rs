//! `starling sim`: experiments on the command line, with a table, JSON and plots of what came of them.

use std::io::Write;
use std::time::Instant;

use super::network::NetworkOptions;
use super::spread::{Experiment, Outcome, Quiet};
use super::{plot, report};
use crate::cli::flags::{self, Flag, Values, flag};
use crate::cli::{ToolError, show};
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

fn write(path: &str, text: &str, out: &mut dyn Write) -> Result<(), ToolError> {
    if path == STDOUT {
        return show(out, text);
    }
    std::fs::write(path, text)
        .map_err(|error| ToolError::Failed(format!("cannot write {path}: {error}")))
}

/// The help text.
fn help() -> String {
    format!(
        "\
How fast, and at what cost, do writes reach everybody in a cluster of this size? Tried in virtual time, with the gossip
that members use, on a network that loses and delays. The same flags give the same results.

Usage:
  starling sim [flags]

{}
Examples:
  starling sim --members 10,100,1000 --svg spread.svg
  starling sim --members 50 --latency 40 --jitter 20 --loss 5 --json -
  starling sim --members 10000 --writers 256      (takes minutes, and 8 GB of memory)
",
        flags::list(FLAGS)
    )
}

/// Reads the arguments. `None` if help is wanted.
pub(super) fn parse(args: &[String]) -> Result<Option<Request>, ToolError> {
    flags::parse(FLAGS, args)?.map(|values| request(&values)).transpose()
}

fn request(values: &Values) -> Result<Request, ToolError> {
    let members = values.list("members", (2, MEMBERS_MAX))?;
    let experiments: Result<_, _> =
        members.into_iter().map(|members| experiment(values, members)).collect();
    Ok(Request { experiments: experiments?, json: values.path("json"), svg: values.path("svg") })
}

fn experiment(values: &Values, members: u64) -> Result<Experiment, ToolError> {
    let millis_max = SECONDS_MAX * 1000 * MICROS_PER_MILLI;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let writes_per_second = values.whole("writes-per-second", (1, WRITES_MAX))?;
    let seconds = values.whole("seconds", (1, SECONDS_MAX))?;
    let writes = writes_per_second.saturating_mul(seconds);
    if writes > WRITES_MAX || writes.saturating_mul(members) > DELIVERIES_MAX {
        return Err(ToolError::Usage(format!(
            "{writes} writes to {members} members are too many to remember all"
        )));
    }
    Ok(Experiment {
        members: count(members),
        writers: count(values.whole("writers", (1, MEMBERS_MAX))?),
        writes_per_second,
        seconds,
        value_bytes: count(values.whole("value-size", (0, VALUE_BYTES_MAX))?),
        // A thousandth of a millisecond is a microsecond.
        network: NetworkOptions {
            latency_micros: values.thousandths("latency", millis_max)?,
            jitter_micros: values.thousandths("jitter", millis_max)?,
            loss_ppm: values.thousandths("loss", PERCENT_MAX)? * PPM_PER_THOUSANDTH_PERCENT,
            ..NetworkOptions::lan()
        },
        commit_micros: values.thousandths("commit", millis_max)?,
        zones: 0,
        options: gossip::Options {
            direct_max: count(values.whole("direct-max", (0, MEMBERS_MAX))?),
            ..gossip::Options::default()
        },
        quiet: Quiet::default(),
        seed: values.whole("seed", (0, u64::MAX))?,
    })
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
