use std::ops::Bound;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{Batch, Disk, DiskOptions, Durability, Space};
use super::*;

/// A journal as it was left behind by some commits.
struct Written {
    directory: TempDir,
    bytes: Vec<u8>,
    /// Where its batches begin, and where the last one ends.
    bounds: Vec<usize>,
}

/// Commits one row per length.
fn written(value_lens: &[usize]) -> Written {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::open(&DiskOptions::new(directory.path())).expect("opens");
    for (i, len) in value_lens.iter().enumerate() {
        let mut batch = Batch::default();
        let name = b"abc"[i];
        let value: Vec<u8> = (1..=255).map(|byte: u8| byte ^ name).cycle().take(*len).collect();
        batch.put(Space::Log, Bytes::copy_from_slice(&[name]), value.into());
        batch.delete(Space::Meta, Bytes::from_static(b"x"));
        disk.commit(batch, Durability::Fsync).expect("commits");
    }
    drop(disk);
    let mut journal = Journal::open(path(&directory)).expect("opens");
    let mut bounds = vec![0];
    while let Parsed::Batch { end, .. } = journal.batch(bounds[bounds.len() - 1]).expect("reads") {
        bounds.push(end);
    }
    let bounds: Vec<_> = bounds.into_iter().map(|at| usize::try_from(at).expect("fits")).collect();
    assert_eq!(bounds.len(), value_lens.len() + 1);
    let mut bytes = fs::read(path(&directory)).expect("reads");
    bytes.truncate(bounds[bounds.len() - 1]);
    Written { directory, bytes, bounds }
}

fn path(directory: &TempDir) -> PathBuf {
    directory.path().join("db/0.jnl")
}

impl Written {
    /// Checks the journal with other bytes in it; says how long it is afterwards.
    fn check(&self, bytes: &[u8]) -> Result<usize> {
        fs::write(path(&self.directory), bytes)?;
        check(&self.directory.path().join("db"))?;
        Ok(fs::read(path(&self.directory))?.len())
    }

    fn refusal(&self, bytes: &[u8]) -> String {
        match self.check(bytes) {
            Err(StoreError::Corrupt(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// The keys that are there after a start.
    fn keys(&self, bytes: &[u8]) -> String {
        fs::write(path(&self.directory), bytes).expect("writes");
        let disk = Disk::open(&DiskOptions::new(self.directory.path())).expect("opens");
        let rows = disk.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        rows.map(|row| String::from_utf8_lossy(&row.expect("reads").0).into_owned()).collect()
    }

    fn flipped(&self, at: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[at] ^= 0x40;
        bytes
    }
}

#[test]
fn whole_journals_are_left_alone() {
    let journal = written(&[10, 2000, 0]);
    assert_eq!(journal.check(&journal.bytes).expect("is whole"), journal.bytes.len());
    let mut padded = journal.bytes.clone();
    padded.resize(1 << 20, 0);
    assert_eq!(journal.check(&padded).expect("is whole"), 1 << 20);
    assert_eq!(journal.check(&[]).expect("is empty"), 0);
    assert_eq!(journal.keys(&journal.bytes), "abc");
}

#[test]
fn a_torn_batch_is_cut_off_wherever_it_ends() {
    let journal = written(&[10, 100, 150]);
    let [.., start, end] = journal.bounds[..] else { panic!("has batches") };
    for cut in start..end {
        let mut bytes = journal.bytes[..cut].to_vec();
        assert_eq!(journal.check(&bytes).expect("is torn"), start, "without preallocation");
        bytes.resize(1 << 17, 0);
        let len = if cut == start { 1 << 17 } else { start };
        assert_eq!(journal.check(&bytes).expect("is torn"), len, "with preallocation");
    }
    assert_eq!(journal.keys(&journal.bytes[..end - 1]), "ab");
}

/// Pages reach the disk in any order.
#[test]
fn a_batch_with_a_hole_is_torn() {
    let journal = written(&[10, 100, 3000]);
    let [.., start, end] = journal.bounds[..] else { panic!("has batches") };
    let sectors = start / 512 + 1..end / 512;
    assert!(sectors.len() > 4);
    for sector in sectors {
        let mut bytes = journal.bytes.clone();
        bytes[sector * 512..(sector + 1) * 512].fill(0);
        assert_eq!(journal.check(&bytes).expect("is torn"), start);
        assert_eq!(journal.keys(&bytes), "ab");
    }
    let mut bytes = journal.bytes.clone();
    bytes[start..(start / 512 + 1) * 512].fill(0);
    assert_eq!(journal.check(&bytes).expect("is torn"), start, "the part in the first sector");
}

#[test]
fn damage_before_a_valid_batch_is_refused() {
    let journal = written(&[10, 700, 40]);
    for at in 0..journal.bounds[2] {
        let bytes = journal.flipped(at);
        match journal.check(&bytes) {
            Err(StoreError::Corrupt(why)) => assert!(why.contains("0.jnl is damaged"), "{why}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    let why = journal.refusal(&journal.flipped(journal.bounds[1] + 100));
    let expected = format!("the batch at byte {} of", journal.bounds[1]);
    assert!(why.starts_with(&expected), "{why}");
    assert!(why.ends_with(&format!("a valid one at byte {}", journal.bounds[2])), "{why}");
}

/// The end of the damaged batch is gone as well, so that nothing points to the one behind.
#[test]
fn a_hole_over_a_boundary_is_refused() {
    let journal = written(&[600, 600, 40]);
    let mut bytes = journal.bytes.clone();
    bytes[journal.bounds[2] - 300..journal.bounds[2]].fill(0);
    assert!(journal.refusal(&bytes).contains("is a valid one"));
    let mut bytes = journal.bytes.clone();
    bytes[..journal.bounds[1]].fill(0);
    assert!(journal.refusal(&bytes).contains("is a valid one"), "a hole at the beginning");
}

#[test]
fn damage_to_a_last_batch_that_is_complete_is_refused() {
    let journal = written(&[10, 700]);
    for at in journal.bounds[1]..journal.bounds[2] {
        let is_trailer = at + END_BYTES >= journal.bounds[2];
        let is_seqno = (5..START_BYTES).contains(&(at - journal.bounds[1]));
        match journal.check(&journal.flipped(at)) {
            Err(StoreError::Corrupt(why)) => assert!(why.contains("0.jnl is damaged"), "{why}"),
            // Without its end a batch cannot be told from a torn one.
            Ok(len) if is_trailer => assert_eq!(len, journal.bounds[1]),
            Ok(_) => assert!(is_seqno, "byte {at}"),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn an_older_journal_must_be_whole() {
    let journal = written(&[10, 100]);
    let newer = journal.directory.path().join("db/1.jnl");
    fs::write(&newer, [0; 100]).expect("writes");
    journal.check(&journal.bytes).expect("is whole");
    let why = journal.refusal(&journal.bytes[..journal.bounds[2] - 1]);
    assert!(why.contains("newer journals"), "{why}");
    fs::write(&newer, &journal.bytes).expect("writes");
    let why = journal.refusal(&journal.bytes);
    assert!(why.contains("out of order"), "the same numbers again: {why}");
}

/// A hole is passed over, and what is behind it is not.
#[test]
fn what_is_behind_a_hole_counts() {
    const HOLE: u64 = 8 << 20;
    let journal = written(&[10, 100, 200]);
    let (first, last) = (journal.bounds[1], journal.bounds[2]);
    for behind in [None, Some(&journal.bytes[last..]), Some(&b"something"[..])] {
        let file = File::create(path(&journal.directory)).expect("creates");
        file.write_all_at(&journal.bytes[..first], 0).expect("writes");
        file.write_all_at(behind.unwrap_or_default(), HOLE).expect("writes");
        file.set_len(2 * HOLE).expect("grows");
        let opened = Journal::open(path(&journal.directory)).expect("opens");
        let end = behind.map(|behind| HOLE + behind.len() as u64);
        assert_eq!(opened.written(first as u64).expect("reads"), end);
        let checked = check(path(&journal.directory).parent().expect("a directory"));
        let is_valid = behind.is_some_and(|behind| behind.len() > 100);
        assert_eq!(checked.is_err(), is_valid, "{checked:?}");
    }
}

/// What looks like the beginning of a batch everywhere takes bounded work.
#[test]
fn a_search_ends() {
    let journal = written(&[10]);
    let mut bytes = journal.bytes.clone();
    let start = [&[TAG_START, 1, 0, 0, 0], &1000_u64.to_le_bytes()[..], &[TAG_ITEM, 0, 0]].concat();
    let item =
        [&[0; 8][..], &[1, 0], &60_000_u32.to_le_bytes(), &60_000_u32.to_le_bytes()].concat();
    for _ in 0..4000 {
        bytes.extend_from_slice(&start);
        bytes.extend_from_slice(&item);
    }
    let why = journal.refusal(&bytes);
    assert!(why.contains("too much that looks like a batch"), "{why}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, ones in vec(0..4_u8, 0..300)) {
        let directory = tempfile::tempdir()?;
        for bytes in [bytes, ones] {
            fs::write(directory.path().join("0.jnl"), bytes)?;
            let _ = check(directory.path());
        }
    }
}
