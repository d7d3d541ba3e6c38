//! Writes that nobody has any more, kept in a file: see `engine/former.rs`.
//!
//! One JSON object a line, in the order in which the writes were accepted: `docs/operations.md` describes it. A line is
//! there before the store lets go of the write, so after a loss of power some may be there twice.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use crate::engine::former::LostWrite;
use crate::types::LeaseId;

/// The file in the directory.
const WRITES: &str = "writes.jsonl";

/// The directory.
#[derive(Debug)]
pub(super) struct LostAndFound {
    path: Option<PathBuf>,
}

#[derive(Serialize)]
struct Line {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    delete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<i64>,
    time_millis: u64,
    member: String,
    run: u64,
    seq: u64,
}

impl Line {
    fn of(lost: &LostWrite) -> Self {
        let origin = lost.stamp.origin;
        Self {
            key: BASE64.encode(&lost.key),
            value: lost.value.as_ref().map(|value| BASE64.encode(value)),
            delete: lost.value.is_none(),
            lease: (lost.lease != LeaseId::NONE).then_some(lost.lease.0),
            time_millis: lost.stamp.time.millis(),
            member: origin.member.to_string(),
            run: origin.run,
            seq: lost.seq,
        }
    }
}

impl LostAndFound {
    /// It is made when there is something to keep. A member without a disk has none.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// Keeps these writes, durably. Answers where.
    pub(super) fn keep(&self, lost: &[LostWrite]) -> io::Result<Option<PathBuf>> {
        let Some(directory) = &self.path else { return Ok(None) };
        std::fs::create_dir_all(directory)?;
        let path = directory.join(WRITES);
        let mut lines = Vec::new();
        for lost in lost {
            serde_json::to_writer(&mut lines, &Line::of(lost))?;
            lines.push(b'\n');
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(&lines)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        if let Some(parent) = directory.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Some(path))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::time::{Stamp, Timestamp};
    use crate::types::{MemberId, Origin};

    #[test]
    fn what_is_kept_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin { member: MemberId(0xab), run: 3 };
        let stamp = Stamp { time: Timestamp::from_millis(1_700_000_000_000), origin };
        let put = LostWrite {
            key: Bytes::from_static(b"foo"),
            value: Some(Bytes::from_static(b"bar\n\xff")),
            lease: LeaseId(7),
            stamp,
            seq: 9,
        };
        let delete = LostWrite { value: None, lease: LeaseId::NONE, seq: 10, ..put.clone() };
        let kept = LostAndFound::new(Some(dir.path().join("lost-and-found")));
        kept.keep(&[put]).unwrap();
        let path = kept.keep(&[delete]).unwrap().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let expected = concat!(
            r#"{"key":"Zm9v","value":"YmFyCv8=","lease":7,"time_millis":1700000000000,"member":"ab","run":3,"seq":9}"#,
            "\n",
            r#"{"key":"Zm9v","delete":true,"time_millis":1700000000000,"member":"ab","run":3,"seq":10}"#,
            "\n",
        );
        assert_eq!(text, expected);
        assert_eq!(LostAndFound::new(None).keep(&[]).unwrap(), None);
    }
}
