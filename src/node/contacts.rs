//! Whom a running member was told to join: kept in a file, since the settings it is started with do not say so.
//!
//! One address a line. It is there from the moment the member is told until it leaves again, so that the join outlives a crash.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

/// The file, and what is written before it takes its place.
#[derive(Clone, Debug, Default)]
pub(super) struct Contacts {
    /// `None` for a member that keeps nothing.
    path: Option<PathBuf>,
}

impl Contacts {
    pub(super) fn at(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// The addresses; none if the member was told nothing.
    pub(super) fn read(&self) -> io::Result<Vec<String>> {
        let Some(path) = &self.path else { return Ok(Vec::new()) };
        match fs::read_to_string(path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Keeps other addresses, durably; none for nobody.
    pub(super) fn write(&self, contacts: &[String]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if contacts.is_empty() {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else {
            let new = path.with_extension("new");
            let mut file = File::create(&new)?;
            contacts.iter().try_for_each(|contact| writeln!(file, "{contact}"))?;
            file.sync_all()?;
            fs::rename(&new, path)?;
        }
        let parent = path.parent().map(File::open);
        parent.map_or(Ok(()), |parent| parent?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contacts_are_there_until_they_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let contacts = Contacts::at(Some(dir.path().join("contacts")));
        let none: Vec<String> = Vec::new();
        assert_eq!(contacts.read().unwrap(), none);
        for urls in [vec!["http://a:1".to_owned(), "http://b:2".to_owned()], none] {
            contacts.write(&urls).unwrap();
            assert_eq!(contacts.read().unwrap(), urls);
        }
        contacts.write(&[]).unwrap();
        assert_eq!(Contacts::default().read().unwrap(), Vec::<String>::new());
    }
}
