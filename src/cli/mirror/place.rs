//! How far a mirror is, and where that is kept: in a key of the destination, or in a file.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;

use super::side::Side;
use super::{Progress, RESERVED};
use crate::cli::ToolError;

/// How often a file is written. What was done since is done again after a crash.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

const CLUSTER: &str = "cluster";
const REVISION: &str = "revision";

/// Up to where the destination is as the source was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The cluster of the source.
    pub(super) cluster: u64,
    /// A revision there; 0 as long as the first copy is not complete.
    pub(super) revision: i64,
}

impl Place {
    pub(super) fn copying(cluster: u64) -> Self {
        Self { cluster, revision: 0 }
    }

    pub(super) fn is_copying(self) -> bool {
        self.revision == 0
    }

    /// As JSON. The cluster is in hexadecimal, as everywhere.
    pub(super) fn text(self) -> Bytes {
        let cluster = format!("{:x}", self.cluster);
        serde_json::json!({ CLUSTER: cluster, REVISION: self.revision }).to_string().into()
    }

    fn read(text: &[u8]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(text).ok()?;
        let cluster = u64::from_str_radix(value.get(CLUSTER)?.as_str()?, 16).ok()?;
        Some(Self { cluster, revision: value.get(REVISION)?.as_i64().filter(|it| *it >= 0)? })
    }
}

/// Where a place is kept.
pub(super) enum Keeper {
    /// In the destination, with the text that stands there.
    Key(Bytes, Option<Bytes>),
    File(PlaceFile),
}

/// A file that is not written each time.
pub(super) struct PlaceFile {
    path: PathBuf,
    unwritten: Option<Place>,
    next: Instant,
}

impl Keeper {
    pub(super) fn new(file: Option<String>, prefix: &[u8]) -> Self {
        match file {
            Some(path) => {
                let (path, next) = (PathBuf::from(path), Instant::now());
                Self::File(PlaceFile { path, unwritten: None, next })
            }
            None => Self::Key([RESERVED, prefix].concat().into(), None),
        }
    }

    /// The key of the destination, if it is one.
    pub(super) fn key(&self) -> Option<Bytes> {
        match self {
            Self::Key(key, _) => Some(key.clone()),
            Self::File(_) => None,
        }
    }

    /// What stands in that key.
    pub(super) fn known(&self) -> Option<Bytes> {
        match self {
            Self::Key(_, known) => known.clone(),
            Self::File(_) => None,
        }
    }

    /// What people know it by.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Key(key, _) => {
                format!("the destination (see its key {:?})", key.escape_ascii().to_string())
            }
            Self::File(file) => file.path.display().to_string(),
        }
    }

    /// What an earlier run has left.
    pub(super) async fn load(
        &mut self,
        destination: &mut Side,
        progress: &mut Progress,
    ) -> Result<Option<Place>, ToolError> {
        let text = match self {
            Self::Key(key, known) => {
                let request = pb::RangeRequest { key: key.clone(), ..Default::default() };
                let reply = destination.range(&request, progress).await?;
                *known = reply.kvs.first().map(|kv| kv.value.clone());
                known.clone()
            }
            Self::File(file) => match fs::read(&file.path) {
                Ok(text) => Some(text.into()),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(failed(&file.path, &error)),
            },
        };
        let unreadable = || ToolError::Failed(format!("no place of a mirror: {}", self.shown()));
        text.map(|text| Place::read(&text).ok_or_else(unreadable)).transpose()
    }

    /// The place has moved; in a key, together with what was written.
    pub(super) fn note(&mut self, place: Place) -> Result<(), ToolError> {
        match self {
            Self::Key(_, known) => {
                *known = Some(place.text());
                Ok(())
            }
            Self::File(file) => {
                file.unwritten = Some(place);
                if Instant::now() < file.next { Ok(()) } else { self.flush() }
            }
        }
    }

    /// Writes what is not written yet.
    pub(super) fn flush(&mut self) -> Result<(), ToolError> {
        let Self::File(file) = self else { return Ok(()) };
        let Some(place) = file.unwritten.take() else { return Ok(()) };
        file.next = Instant::now() + FILE_INTERVAL;
        replace(&file.path, &place.text()).map_err(|error| failed(&file.path, &error))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> ToolError {
    ToolError::Failed(format!("{}: {error}", path.display()))
}

/// Writes a file so that there is the former one or the new one at any time.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written() {
        let place = Place { cluster: 0xcdf8_1819_4e3a_8c32, revision: 1 << 52 };
        assert_eq!(place.text(), r#"{"cluster":"cdf818194e3a8c32","revision":4503599627370496}"#);
        assert_eq!(Place::read(&place.text()), Some(place));
        let refused =
            ["", "{}", "7", r#"{"cluster":1,"revision":1}"#, r#"{"cluster":"1","revision":-1}"#];
        assert!(refused.iter().all(|text| Place::read(text.as_bytes()).is_none()));
    }

    #[test]
    fn a_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place");
        let mut keeper = Keeper::new(Some(path.display().to_string()), b"");
        let place = Place::copying(7);
        keeper.note(place).unwrap();
        keeper.note(Place { revision: 9, ..place }).unwrap();
        assert_eq!(Place::read(&fs::read(&path).unwrap()), Some(place), "not each time");
        keeper.flush().unwrap();
        assert_eq!(Place::read(&fs::read(&path).unwrap()).map(|it| it.revision), Some(9));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
