//! Go's syntax of flags, durations and URLs, and its words for what is wrong with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::UsageError;
use super::flags::{self, Flag, Kind};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenUrl {
    /// A TCP port; 0 takes a free one.
    Tcp {
        /// An IP address or `localhost`.
        host: String,
        /// The port.
        port: u16,
        /// By TLS.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// The values of flags that were set, by name.
pub(super) type Values = BTreeMap<&'static str, String>;

/// What a command line says.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    pub(super) values: Values,
    pub(super) help: bool,
    pub(super) version: bool,
    pub(super) config_file: Option<String>,
    /// The first word that is no flag.
    pub(super) word: Option<String>,
}

/// Reads a command line. Flags begin with one dash or two; a value follows behind `=` or as the next word, but that of a
/// bool only behind `=`. The last one of a name counts; `--` ends the flags.
pub(super) fn command_line(args: &[String]) -> Result<CommandLine, UsageError> {
    let mut line = CommandLine::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            line.word = Some(arg.clone());
            break;
        };
        if body.is_empty() {
            line.word = if arg == "--" { rest.next().cloned() } else { Some(arg.clone()) };
            break;
        }
        if body.starts_with(['-', '=']) {
            return Err(UsageError::syntax(format!("bad flag syntax: {arg}")));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        match name {
            "h" | "help" => line.help = true,
            "version" => line.version = value.is_none_or(|value| parse_bool(&value) == Some(true)),
            "config-file" => line.config_file = Some(with_value(name, value, &mut rest)?),
            _ => {
                let flag = flags::find(name).ok_or_else(|| {
                    UsageError::syntax(format!("flag provided but not defined: -{name}"))
                })?;
                let value = match flag.kind {
                    Kind::Bool => value.unwrap_or_else(|| "true".to_owned()),
                    _ => with_value(name, value, &mut rest)?,
                };
                check(flag, &value)?;
                line.values.insert(flag.name, value);
            }
        }
    }
    Ok(line)
}

fn with_value<'a>(
    name: &str,
    value: Option<String>,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<String, UsageError> {
    let missing = || UsageError::syntax(format!("flag needs an argument: -{name}"));
    value.or_else(|| rest.next().cloned()).ok_or_else(missing)
}

/// Checks that a value is of the flag's kind.
pub(super) fn check(flag: &Flag, value: &str) -> Result<(), UsageError> {
    let name = flag.name;
    fault(flag, value).map_or(Ok(()), |fault| {
        Err(UsageError::syntax(match flag.kind {
            Kind::Bool => format!("invalid boolean value {value:?} for -{name}: {fault}"),
            _ => format!("invalid value {value:?} for flag -{name}: {fault}"),
        }))
    })
}

/// Checks the same of an environment variable.
pub(super) fn check_variable(flag: &Flag, variable: &str, value: &str) -> Result<(), UsageError> {
    fault(flag, value).map_or(Ok(()), |fault| {
        Err(UsageError::config(format!("invalid value {value:?} for {variable}: {fault}")))
    })
}

/// What is wrong with a value, in Go's words.
fn fault(flag: &Flag, value: &str) -> Option<String> {
    const PARSE: &str = "parse error";
    const RANGE: &str = "value out of range";
    let fault = match flag.kind {
        Kind::Text if flag.name == "feature-gates" => return feature_gates_fault(value),
        Kind::Text => None,
        Kind::Bool => parse_bool(value).is_none().then_some(PARSE),
        Kind::Duration => parse_duration(value).is_none().then_some(PARSE),
        Kind::Int => match parse_number(value) {
            Some(number) => i64::try_from(number).is_err().then_some(RANGE),
            None => Some(PARSE),
        },
        Kind::Uint => match parse_number(value) {
            Some(number) if !value.starts_with(['+', '-']) => {
                u64::try_from(number).is_err().then_some(RANGE)
            }
            _ => Some(PARSE),
        },
    };
    fault.map(str::to_owned)
}

/// Names with a bool each.
fn feature_gates_fault(value: &str) -> Option<String> {
    value.split(',').map(str::trim).filter(|gate| !gate.is_empty()).find_map(|gate| {
        let Some((name, value)) = gate.split_once('=') else {
            return Some(format!("missing bool value for {gate}"));
        };
        if parse_bool(value.trim()).is_none() {
            return Some(format!("invalid value of {name}={value}"));
        }
        let is_known = flags::FEATURE_GATES.contains(&name.trim());
        (!is_known).then(|| format!("unrecognized feature gate: {name}"))
    })
}

/// Whether two values that were checked mean the same.
pub(super) fn is_same(kind: Kind, a: &str, b: &str) -> bool {
    a == b
        || match kind {
            Kind::Text => false,
            Kind::Bool => parse_bool(a) == parse_bool(b),
            Kind::Int | Kind::Uint => parse_number(a) == parse_number(b),
            Kind::Duration => parse_duration(a) == parse_duration(b),
        }
}

/// A bool as Go reads it.
pub(super) fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A number as Go reads it: decimal, or with a prefix 0x, 0o, 0b or 0.
pub(super) fn parse_int(value: &str) -> Option<i64> {
    parse_number(value).and_then(|number| i64::try_from(number).ok())
}

/// The number, or the largest there is for one that is larger still.
fn parse_number(value: &str) -> Option<i128> {
    let (negative, digits) = match value.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, value.strip_prefix('+').unwrap_or(value)),
    };
    let lower = digits.to_ascii_lowercase().replace('_', "");
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    Some(if negative { -magnitude } else { magnitude })
}

/// A duration as Go reads it, such as `1h30m` or `1.5s`. A negative one is none here.
pub(super) fn parse_duration(value: &str) -> Option<Duration> {
    if value == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = value.strip_prefix('+').unwrap_or(value);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit_seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit_seconds;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// URLs separated by commas, checked as etcd checks them.
pub(super) fn urls(name: &str, value: &str) -> Result<Vec<String>, UsageError> {
    let mut urls: Vec<String> = value.split(',').map(|url| url.trim().to_owned()).collect();
    for url in &urls {
        let wrong = |what: String| {
            UsageError::syntax(format!("invalid value {value:?} for flag -{name}: {what}"))
        };
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("http" | "https") => {
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let (authority, path) =
                    rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
                let port =
                    authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                if port.is_none() {
                    return Err(wrong(format!(
                        "URL address does not have the form \"host:port\": {url}"
                    )));
                }
                if path.is_some() {
                    return Err(wrong(format!("URL must not contain a path: {url}")));
                }
            }
            Some("unix" | "unixs") => {}
            _ => {
                return Err(wrong(format!(
                    "URL scheme must be http, https, unix, or unixs: {url}"
                )));
            }
        }
    }
    urls.sort();
    Ok(urls)
}

/// Names separated by commas; `None` for all there are. etcd's help says that nothing means all.
pub(super) fn names(value: &str) -> Option<Vec<String>> {
    let names = value.split(',').map(|name| name.trim().to_owned());
    let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    (!names.is_empty() && !names.iter().any(|name| name == "*")).then_some(names)
}

/// Origins as browsers write them: a port is only needed where it is not that of the scheme. etcd wants one always.
pub(super) fn origins(flag: &str, value: &str) -> Result<Option<Vec<String>>, UsageError> {
    let Some(origins) = names(value) else { return Ok(None) };
    for origin in &origins {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#', '@'])) {
            return Err(UsageError::syntax(format!(
                "invalid value {value:?} for flag -{flag}: an origin is http:// or https:// and a host: {origin}"
            )));
        }
    }
    Ok(Some(origins.into_iter().map(|origin| origin.to_ascii_lowercase()).collect()))
}

/// Where a URL that was checked by [`urls`] listens.
pub(super) fn listen_url(name: &str, url: &str) -> Result<ListenUrl, UsageError> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    match scheme {
        "unix" => Ok(ListenUrl::Unix(PathBuf::from(rest))),
        "http" | "https" => {
            let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "0"));
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let is_bindable =
                host.is_empty() || host == "localhost" || host.parse::<IpAddr>().is_ok();
            if !is_bindable {
                return Err(UsageError::config(format!("expected IP in URL for binding ({url})")));
            }
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let (port, tls) = (port.parse().unwrap_or(0), scheme == "https");
            Ok(ListenUrl::Tcp { host: host.to_owned(), port, tls })
        }
        _ => Err(UsageError::config(format!(
            "TLS on a Unix socket is not supported: --{name}={url}"
        ))),
    }
}
