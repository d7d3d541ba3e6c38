//! x
use super::Result;
use std::ffi::OsStr;
use std::path::Path;

/// Whether a file of the database is a journal, by its name.
pub(super) fn is_journal(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "jnl")
}

/// Checks all journals of a database that is about to be opened.
pub(super) fn check(_database: &Path) -> Result<()> {
    Ok(())
}
