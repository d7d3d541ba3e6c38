//! Options as `name=value`, with defaults where they are asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::Outcome;

pub(crate) const MIB: u64 = 1024 * 1024;

#[derive(Clone)]
pub(crate) struct Options(BTreeMap<String, String>);

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let pairs = arguments.map(|argument| match argument.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("expected name=value, got {argument:?}")),
        });
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    pub(crate) fn with(&self, name: &str, value: impl ToString) -> Self {
        let mut options = self.clone();
        options.0.insert(name.to_owned(), value.to_string());
        options
    }

    /// The arguments another process needs to see the same options.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(name, value)| format!("{name}={value}"))
    }

    pub(crate) fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.0.get(name).map_or(default, String::as_str)
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        self.0.get(name).map_or(default, |value| value.parse().unwrap_or(default))
    }

    pub(crate) fn bytes_of_mib(&self, name: &str, default_mib: u64) -> u64 {
        self.number(name, default_mib) * MIB
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        self.number(name, u64::from(default)) != 0
    }

    pub(crate) fn directory(&self) -> Outcome<PathBuf> {
        let directory = self.0.get("dir").ok_or("dir=D says where the data goes")?;
        Ok(PathBuf::from(directory))
    }
}
