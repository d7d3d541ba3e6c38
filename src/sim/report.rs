//! What came of experiments, for people and for programs.

use serde_json::{Value, json};

use super::tool::{Request, Run};
use crate::cli::figures::bytes;

const MICROS_PER_SECOND: f64 = 1e6;
const MICROS_PER_MILLI: f64 = 1e3;
/// From here on milliseconds are shown as seconds.
const MILLIS_AS_SECONDS: f64 = 10_000.0;
/// A horizontal line.
const RULE: &str = "\u{2500}";
const TABLE_WIDTH: usize = 99;

/// What stands above the table.
pub(super) fn head(request: &Request) -> String {
    let Some(one) = request.experiments.first() else { return String::new() };
    let millis = |micros: u64| trimmed(micros, 3);
    let network = &one.network;
    let rule = RULE.repeat(TABLE_WIDTH);
    format!(
        "
  {} writers, together {} writes of {} bytes per second for {} s, each durable after {} ms
  messages take {} to {} ms, {} % of them get lost; seed {}

  {:>7}  {:^28}  {:^19}  {:>6}  {:>7}  {:^15}
  {:>7}  {:>8}  {:>8}  {:>8}  {:>9} {:>9}  {:>6}  {:>7}  {:>7} {:>7}
  {rule}
",
        one.writers,
        one.writes_per_second,
        one.value_bytes,
        one.seconds,
        millis(one.commit_micros),
        millis(network.latency_micros),
        millis(network.latency_micros + network.jitter_micros),
        trimmed(network.loss_ppm, 4),
        one.seed,
        "",
        "a write is at ... of all after",
        "bytes/s of a member",
        "",
        "",
        "time it took",
        "members",
        "50 %",
        "99 %",
        "100 %",
        "idle",
        "busy",
        "copies",
        "missing",
        "virtual",
        "real",
    )
}

/// A row of the table.
pub(super) fn row(run: &Run) -> String {
    let outcome = &run.outcome;
    let [half, most, all] = [50, 99, 100].map(|percent| delay(outcome.delay_micros(percent)));
    format!(
        "  {:>7}  {half:>8}  {most:>8}  {all:>8}  {:>9} {:>9}  {:>6.3}  {:>7}  {:>7} {:>7}\n",
        outcome.members,
        bytes(outcome.idle_bytes_per_second),
        bytes(outcome.busy_bytes_per_second),
        outcome.payload_copies,
        outcome.missing,
        format!("{:.0} s", virtual_seconds(run)),
        format!("{:.1} s", run.real_seconds),
    )
}

/// A number of parts of ten to the `digits` with no more digits than it needs.
fn trimmed(number: u64, digits: u32) -> String {
    let one = 10_u64.pow(digits);
    let width = usize::try_from(digits).unwrap_or_default();
    let text = format!("{}.{:0width$}", number / one, number % one);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn delay(micros: Option<u32>) -> String {
    let Some(micros) = micros else { return "never".to_owned() };
    match f64::from(micros) / MICROS_PER_MILLI {
        millis if millis < 10.0 => format!("{millis:.2} ms"),
        millis if millis < 100.0 => format!("{millis:.1} ms"),
        millis if millis < MILLIS_AS_SECONDS => format!("{millis:.0} ms"),
        millis => format!("{:.1} s", millis / 1000.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn virtual_seconds(run: &Run) -> f64 {
    run.outcome.virtual_micros as f64 / MICROS_PER_SECOND
}

/// All results, with what they are results of.
pub(super) fn json(runs: &[Run]) -> String {
    let runs: Vec<_> = runs.iter().map(json_of).collect();
    format!("{:#}\n", Value::from(runs))
}

fn json_of(run: &Run) -> Value {
    let (experiment, outcome) = (&run.experiment, &run.outcome);
    let network = &experiment.network;
    let curve: Vec<_> =
        outcome.curve().into_iter().map(|(micros, share)| json!([micros, share])).collect();
    json!({
        "members": experiment.members,
        "writers": experiment.writers.min(experiment.members),
        "writes_per_second": experiment.writes_per_second,
        "seconds": experiment.seconds,
        "value_bytes": experiment.value_bytes,
        "latency_micros": network.latency_micros,
        "jitter_micros": network.jitter_micros,
        "loss_ppm": network.loss_ppm,
        "commit_micros": experiment.commit_micros,
        "direct_max": experiment.options.direct_max,
        "seed": experiment.seed,
        "writes": outcome.writes,
        "p50_micros": outcome.delay_micros(50),
        "p99_micros": outcome.delay_micros(99),
        "all_micros": outcome.delay_micros(100),
        "missing": outcome.missing,
        "idle_bytes_per_second": outcome.idle_bytes_per_second,
        "busy_bytes_per_second": outcome.busy_bytes_per_second,
        "payload_copies": outcome.payload_copies,
        "virtual_seconds": virtual_seconds(run),
        "real_seconds": run.real_seconds,
        "trace": format!("{:016x}", outcome.trace),
        "curve_micros_and_share": curve,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_can_be() {
        assert_eq!(trimmed(200, 3), "0.2");
        assert_eq!(trimmed(10_000, 4), "1");
        assert_eq!(trimmed(100_000, 3), "100");
        assert_eq!(trimmed(0, 3), "0");
        assert_eq!(delay(Some(789)), "0.79 ms");
        assert_eq!(delay(Some(117_954)), "118 ms");
        assert_eq!(delay(Some(12_000_000)), "12.0 s");
        assert_eq!(delay(None), "never");
    }
}
