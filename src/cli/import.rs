//! `starling import` and `starling snapshot restore`: a new store with what an etcd, or another Starling, held.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::flags::{self, Flag, flag, switch};
use super::{Output, ToolError};
use crate::etcd_db::import::{self, ImportError, Imported};
use crate::storage::schema::Identity;
use crate::storage::schema::auth::SECRET_BYTES;
use crate::storage::{Disk, DiskOptions, Store};
use crate::time::Timestamp;
use crate::types::{ClusterId, MemberId};

const DATA_DIR: Flag = flag("data-dir", "", "where the new store is to be; missing or empty");

const IMPORT: &[Flag] = &[DATA_DIR];

const RESTORE: &[Flag] =
    &[DATA_DIR, switch("skip-hash-check", "take a file without a checksum at its end, too")];

fn import_help() -> String {
    format!(
        "\
Makes a new data directory from a snapshot of etcd, or from the database of an etcd that is stopped (member/snap/db).
Keys come with their values, revisions, versions and leases; users and roles come, too. History does not: the store
is compacted at its current revision.

Usage:
  starling import <file> --data-dir <directory>

{}",
        flags::list(IMPORT)
    )
}

fn restore_help() -> String {
    format!(
        "\
Makes a new data directory from a snapshot, of Starling or of etcd, whose checksum is verified. The new member has an id of
its own.

Usage:
  starling snapshot restore <file> --data-dir <directory>

{}",
        flags::list(RESTORE)
    )
}

/// Runs `starling import`.
pub(super) fn import(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    run(args, IMPORT, import_help, output)
}

/// Runs `starling snapshot`.
pub(super) fn snapshot(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    match args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("restore", rest)) => run(rest, RESTORE, restore_help, output),
        Some(("-h" | "-help" | "--help", _)) => super::show(output.to, &restore_help()),
        Some((word, _)) => Err(ToolError::Usage(format!("{word:?} is not a command of snapshot"))),
        None => Err(ToolError::Usage("snapshot needs a command: restore".to_owned())),
    }
}

fn run(
    args: &[String],
    flags: &[Flag],
    help: impl Fn() -> String,
    output: &mut Output<'_>,
) -> Result<(), ToolError> {
    let (file, rest) = match args.split_first() {
        Some((file, rest)) if !file.starts_with('-') => (Some(file), rest),
        _ => (None, args),
    };
    let Some(values) = flags::parse(flags, rest)? else {
        return super::show(output.to, &help());
    };
    let file = file.ok_or_else(|| ToolError::Usage("the file comes first".to_owned()))?;
    let directory = values.path("data-dir");
    let directory = directory.ok_or_else(|| ToolError::Usage("--data-dir is needed".to_owned()))?;
    // A database of etcd's has no checksum, a snapshot always has.
    let wants_checksum = flags.len() == RESTORE.len() && !values.is_set("skip-hash-check");
    let imported = fill(Path::new(file), Path::new(&directory), wants_checksum)?;
    super::show(output.to, &report(&imported, &directory))
}

fn fill(file: &Path, directory: &Path, wants_checksum: bool) -> Result<Imported, ToolError> {
    let failed = |error: &ImportError| ToolError::Failed(format!("{}: {error}", file.display()));
    let unreadable =
        |error: std::io::Error| ToolError::Failed(format!("{}: {error}", file.display()));
    let mut source = File::open(file).map_err(unreadable)?;
    let verified = import::verify(&mut source).map_err(|error| failed(&error))?;
    if verified.is_none() && wants_checksum {
        let text = "there is no checksum at its end; see --skip-hash-check";
        return Err(ToolError::Failed(format!("{}: {text}", file.display())));
    }
    let bytes = verified.map_or_else(|| source.seek(SeekFrom::End(0)), Ok).map_err(unreadable)?;
    refuse_full(directory)?;
    let store = Disk::open(&DiskOptions::new(directory));
    let store = store.map_err(|error| ToolError::Failed(error.to_string()))?;
    let identity =
        Identity { member: MemberId(rand::random()), cluster: ClusterId(rand::random()) };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp::from_millis(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX));
    let secret = rand::random::<[u8; SECRET_BYTES]>().to_vec().into();
    import::read(source, bytes, &Store::Disk(store), identity, now, secret).map_err(|error| {
        ToolError::Failed(format!(
            "{}: {error}; {} holds a part of it: remove it",
            file.display(),
            directory.display()
        ))
    })
}

fn refuse_full(directory: &Path) -> Result<(), ToolError> {
    match std::fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(ToolError::Failed(format!("{} is not empty", directory.display()))),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ToolError::Failed(format!("{}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}

fn report(imported: &Imported, directory: &str) -> String {
    let Imported { keys, revision, leases, users, roles, without_lease, auth } = imported;
    let mut text = format!(
        "{directory}: {keys} keys at revision {revision}, where it is compacted, {leases} leases, {users} users, {roles} roles\n"
    );
    if *auth {
        text.push_str("authentication is on, as it was; tokens have to be fetched anew\n");
    }
    if *without_lease > 0 {
        text.push_str(&format!(
            "{without_lease} keys had a lease that is gone; they stay, without it\n"
        ));
    }
    text
}
