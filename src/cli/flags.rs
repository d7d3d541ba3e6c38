//! The flags of a command: `--name value` or `--name=value`, with one dash or two, as the server takes them.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::ToolError;

/// What a switch has when it is set.
const ON: &str = "true";

/// A flag of a command.
pub struct Flag {
    name: &'static str,
    /// `None` for a switch, which takes no value.
    default: Option<&'static str>,
    help: &'static str,
}

/// A flag that takes a value.
pub const fn flag(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, default: Some(default), help }
}

/// A flag that takes none.
pub const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, default: None, help }
}

/// A list of flags for a help text.
pub fn list(flags: &[Flag]) -> String {
    let mut text = "Flags:\n".to_owned();
    for Flag { name, default, help } in flags {
        let default = default.map(|default| format!(" '{default}'")).unwrap_or_default();
        let _ = writeln!(text, "  --{name}{default}\n        {help}");
    }
    text
}

/// Reads arguments. `None` if help is wanted.
pub fn parse(flags: &[Flag], args: &[String]) -> Result<Option<Values>, ToolError> {
    match parse_first(flags, args)? {
        Some((_, [arg, ..])) => Err(ToolError::Usage(format!("{arg:?} is not a valid flag"))),
        parsed => Ok(parsed.map(|(values, _)| values)),
    }
}

/// Reads arguments up to the first that is no flag. `None` if help is wanted before that.
pub fn parse_first<'a>(
    flags: &[Flag],
    args: &'a [String],
) -> Result<Option<(Values, &'a [String])>, ToolError> {
    let default = |flag: &Flag| (flag.name, flag.default.unwrap_or_default().to_owned());
    let mut values: BTreeMap<_, _> = flags.iter().map(default).collect();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            let at = args.len() - rest.len() - 1;
            return Ok(Some((Values(values), &args[at..])));
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            return Ok(None);
        }
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            return Err(ToolError::Usage(format!("flag provided but not defined: -{name}")));
        };
        let value = match (flag.default, value) {
            (None, None) => ON,
            (None, Some(value)) => is_on(name, value)?,
            (Some(_), Some(value)) => value,
            (Some(_), None) => {
                let missing = || ToolError::Usage(format!("flag needs an argument: -{name}"));
                rest.next().ok_or_else(missing)?
            }
        };
        values.insert(flag.name, value.to_owned());
    }
    Ok(Some((Values(values), &[])))
}

fn is_on<'a>(name: &str, value: &'a str) -> Result<&'a str, ToolError> {
    match value {
        "true" => Ok(ON),
        "false" => Ok(""),
        _ => Err(ToolError::Usage(format!("--{name} takes true or false, not {value:?}"))),
    }
}

/// What the flags of a command were set to.
#[derive(Clone, Debug)]
pub struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// As it was written.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether a switch is set.
    pub fn is_set(&self, name: &str) -> bool {
        self.text(name) == ON
    }

    /// The path of a file, unless it is empty.
    pub fn path(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(str::to_owned)
    }

    /// A whole number within bounds.
    pub fn whole(&self, name: &str, bounds: (u64, u64)) -> Result<u64, ToolError> {
        whole(name, self.text(name), bounds)
    }

    /// Whole numbers within bounds, separated by commas.
    pub fn list(&self, name: &str, bounds: (u64, u64)) -> Result<Vec<u64>, ToolError> {
        self.text(name).split(',').map(|text| whole(name, text.trim(), bounds)).collect()
    }

    /// A number with up to three digits behind the point, in thousandths.
    pub fn thousandths(&self, name: &str, max: u64) -> Result<u64, ToolError> {
        let text = self.text(name);
        thousandths(text).filter(|number| *number <= max).ok_or_else(|| {
            let max = max / 1000;
            ToolError::Usage(format!(
                "--{name} takes numbers from 0 to {max} with up to three digits behind the point, not {text:?}"
            ))
        })
    }
}

fn whole(name: &str, text: &str, (min, max): (u64, u64)) -> Result<u64, ToolError> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| {
        ToolError::Usage(format!("--{name} takes numbers from {min} to {max}, not {text:?}"))
    })
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

    const FLAGS: &[Flag] = &[flag("endpoint", "here", "where"), switch("json", "as JSON")];

    fn read(line: &str) -> Result<Option<Values>, ToolError> {
        let args: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(FLAGS, &args)
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
    fn switches_take_no_value() {
        let cases = [
            ("", ("here", false)),
            ("--json --endpoint there", ("there", true)),
            ("-endpoint=there -json=false", ("there", false)),
        ];
        for (line, expected) in cases {
            let values = read(line).unwrap().unwrap();
            assert_eq!((values.text("endpoint"), values.is_set("json")), expected, "{line}");
        }
        assert!(read("--json --help").unwrap().is_none());
        let refused = read("--json=1").unwrap_err();
        assert_eq!(refused, ToolError::Usage("--json takes true or false, not \"1\"".to_owned()));
        assert!(read("--json there").is_err() && read("--endpoint").is_err());
    }

    #[test]
    fn a_command_may_follow() {
        let args = ["--json", "--endpoint", "there", "get", "--json=1"].map(str::to_owned);
        let (values, rest) = parse_first(FLAGS, &args).unwrap().unwrap();
        assert!(values.is_set("json") && values.text("endpoint") == "there");
        assert_eq!(rest, ["get", "--json=1"]);
    }

    #[test]
    fn all_flags_are_listed() {
        let expected = "Flags:\n  --endpoint 'here'\n        where\n  --json\n        as JSON\n";
        assert_eq!(list(FLAGS), expected);
    }
}
