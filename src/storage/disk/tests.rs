use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn open(directory: &TempDir) -> Result<Disk> {
    Disk::open(&DiskOptions::new(directory.path()))
}

fn opened(directory: &TempDir) -> Disk {
    open(directory).expect("opens")
}

/// Why it does not open.
fn refusal(directory: &TempDir) -> String {
    match open(directory) {
        Ok(_) => panic!("opened"),
        Err(StoreError::Refused(why)) => why,
        Err(error) => panic!("{error}"),
    }
}

fn key(i: u32) -> Bytes {
    Bytes::copy_from_slice(&i.to_be_bytes())
}

/// A value that does not compress, and that says which one it is.
fn value(i: u32, len: usize) -> Bytes {
    let mut state = u64::from(i) + 1;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..len).map(step).collect()
}

fn put(disk: &Disk, numbers: std::ops::Range<u32>, value_len: usize) {
    let mut batch = Batch::default();
    for i in numbers {
        batch.put(Space::Log, key(i), value(i, value_len));
    }
    disk.commit(batch, Durability::Fsync).expect("commits");
}

fn count(disk: &Disk) -> usize {
    disk.rows(Space::Log, Bound::Unbounded, Bound::Unbounded)
        .inspect(|row| assert!(row.is_ok()))
        .count()
}

/// Waits until fjall's own threads have come to something.
fn wait_until(is_done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_done() {
        assert!(std::time::Instant::now() < deadline, "nothing happened");
        std::thread::yield_now();
    }
}

/// The table files of the log, and what they take together.
fn tables(disk: &Disk) -> Vec<PathBuf> {
    let folder = disk.inner.log.path().join("tables");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("lists").map(|entry| entry.expect("is there").path()).collect();
    paths.sort();
    paths
}

fn flush(disk: &Disk) {
    disk.inner.log.rotate_memtable().expect("rotates");
    wait_until(|| disk.inner.log.sealed_memtable_count() == 0);
}

#[test]
fn a_directory_is_ours_alone() {
    let directory = directory();
    let data = directory.path().join("some/data");
    let disk = Disk::open(&DiskOptions::new(&data)).expect("creates its parents");
    let mode = fs::metadata(&data).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = Disk::open(&DiskOptions::new(&data)).map(|_| ()).expect_err("is in use");
    assert_eq!(
        error.to_string(),
        format!("data directory {} is in use by another process", data.display())
    );
    let other = disk.clone();
    drop(disk);
    assert!(Disk::open(&DiskOptions::new(&data)).is_err(), "a clone still has it");
    drop(other);
    for _ in 0..10 {
        let disk = Disk::open(&DiskOptions::new(&data)).expect("opens right after");
        put(&disk, 0..1, 10);
    }
}

#[test]
fn foreign_directories_are_left_alone() {
    let directory = directory();
    fs::write(directory.path().join("notes.txt"), "mine").expect("writes");
    assert!(refusal(&directory).ends_with("it holds notes.txt"));
    fs::create_dir(directory.path().join("member")).expect("creates");
    assert!(refusal(&directory).contains("looks like a data directory of etcd"));
    assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 2, "nothing was added");

    let file = directory.path().join("notes.txt");
    let error = Disk::open(&DiskOptions::new(&file)).map(|_| ()).expect_err("is a file");
    assert_eq!(error.to_string(), format!("{} is not a directory", file.display()));
}

#[test]
fn the_root_of_a_file_system_is_empty() {
    let directory = directory();
    fs::create_dir(directory.path().join(LOST_AND_FOUND)).expect("creates");
    drop(opened(&directory));
    opened(&directory);
}

#[test]
fn other_formats_are_refused() {
    let directory = directory();
    drop(opened(&directory));
    let format = directory.path().join(FORMAT_FILE);
    assert_eq!(fs::read_to_string(&format).expect("reads"), "starling storage format 2\n");
    fs::write(&format, "starling storage format 3\n").expect("writes");
    let why = refusal(&directory);
    assert!(why.contains("has storage format 3, this version reads format 2"), "{why}");
    fs::write(&format, "starling storage format 1\n").expect("writes");
    let why = refusal(&directory);
    assert!(why.contains("has storage format 1, which no release has written"), "{why}");
    for text in ["", "starling storage format 0\n", "starling storage format 2", "storage\n"] {
        fs::write(&format, text).expect("writes");
        assert!(matches!(open(&directory), Err(StoreError::Corrupt(_))), "{text:?}");
    }
}

/// The states in which a process can die while it creates a store.
#[test]
fn creation_can_stop_anywhere() {
    let directory = directory();
    let path = |name| directory.path().join(name);
    fs::create_dir_all(path(DATABASE_NEW).join("keyspaces")).expect("creates");
    fs::write(path(DATABASE_NEW).join("0.jnl"), "").expect("writes");
    fs::write(path(FORMAT_FILE_NEW), "starl").expect("writes");
    fs::write(path(LOCK_FILE), "").expect("writes");
    put(&opened(&directory), 0..1, 10);

    fs::rename(path(DATABASE), path(DATABASE_NEW)).expect("renames");
    assert_eq!(count(&opened(&directory)), 1, "the format is there, so the database is complete");

    fs::rename(path(DATABASE), path("elsewhere")).expect("renames");
    assert!(matches!(open(&directory), Err(StoreError::Corrupt(_))));
}

#[test]
fn an_empty_store_is_small() {
    let directory = directory();
    let disk = opened(&directory);
    assert!(disk.disk_bytes() < 1 << 20, "{}", disk.disk_bytes());
    put(&disk, 0..1000, 1000);
    assert!((1_000_000..3_000_000).contains(&disk.disk_bytes()), "{}", disk.disk_bytes());
    drop(disk);
    let disk = opened(&directory);
    assert!((1_000_000..3_000_000).contains(&disk.disk_bytes()), "{}", disk.disk_bytes());
    let space = disk.space().expect("asks");
    assert!(0 < space.free && space.free <= space.total, "{space:?}");
}

#[test]
fn a_sweep_gives_its_space_back_to_the_disk() {
    let directory = directory();
    let disk = opened(&directory);
    for part in 0..4 {
        put(&disk, part * 500..(part + 1) * 500, 1000);
        flush(&disk);
    }
    wait_until(|| disk.inner.database.active_compactions() == 0);
    let is_dead = |key: &[u8], _: &[u8]| Ok(key < &100_000_u32.to_be_bytes()[..]);
    disk.sweep(Arc::new(is_dead)).expect("sweeps");
    wait_until(|| tables(&disk).len() == 1);
    assert_eq!(count(&disk), 1);
    let bytes: u64 =
        tables(&disk).iter().map(|path| fs::metadata(path).expect("is there").len()).sum();
    assert!(bytes < 10_000, "{bytes}");
    assert_eq!(
        disk.rows(Space::Meta, Bound::Unbounded, Bound::Unbounded).count(),
        0,
        "no row of ours"
    );
}

/// fjall keeps a journal until every keyspace with rows in it has been flushed, the hardly written one too.
#[test]
fn journals_do_not_pile_up() {
    let directory = directory();
    let disk = opened(&directory);
    let large = value(0, 1_000_000);
    for part in 0..17 {
        let mut batch = Batch::default();
        batch.put(Space::Meta, key(0), key(part));
        disk.commit(batch, Durability::Buffered).expect("commits");
        let mut batch = Batch::default();
        for i in 0..10 {
            batch.put(Space::Log, key(part * 10 + i), large.clone());
        }
        disk.commit(batch, Durability::Buffered).expect("commits");
    }
    wait_until(|| disk.inner.database.journal_count() <= 2);
    let own = disk.row(Space::Meta, OWN_ROW).expect("reads");
    assert!(own.is_some(), "every journal has a row about the store that stays");
    assert_eq!(disk.rows(Space::Meta, Bound::Unbounded, Bound::Unbounded).count(), 1);
}

/// As when the disk is full: fjall's thread ends, and nobody is told.
#[test]
fn a_failed_flush_is_noticed_without_a_commit() {
    let directory = directory();
    let disk = opened(&directory);
    put(&disk, 0..10, 100);
    assert_eq!(disk.failed(), None);
    let folder = disk.inner.log.path().join("tables");
    fs::rename(&folder, directory.path().join("elsewhere")).expect("renames");
    disk.inner.log.rotate_memtable().expect("rotates");
    wait_until(|| disk.failed().is_some());
    let mut batch = Batch::default();
    batch.put(Space::Log, key(10), key(10));
    assert!(matches!(disk.commit(batch, Durability::Fsync), Err(StoreError::Io(_))));
    assert!(matches!(disk.row(Space::Log, &key(1)), Err(StoreError::Io(_))), "not read either");
    let is_dead = |_: &[u8], _: &[u8]| Ok(true);
    assert!(disk.sweep(Arc::new(is_dead)).is_err(), "does not wait for ever");
    drop(disk);

    fs::rename(directory.path().join("elsewhere"), &folder).expect("renames");
    assert_eq!(count(&opened(&directory)), 10, "the journal has it all");
}

/// Whatever byte of a table is damaged, what was written comes back, or an error that says so.
#[test]
fn damaged_tables_are_noticed() {
    let directory = directory();
    let disk = opened(&directory);
    put(&disk, 0..300, 40);
    flush(&disk);
    let [table] = &tables(&disk)[..] else { panic!("one table") };
    let table = table.clone();
    drop(disk);
    let whole = fs::read(&table).expect("reads");
    let (mut refused, mut harmless) = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&table, damaged).expect("writes");
        let read = open(&directory).and_then(|disk| {
            let rows = disk.rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
            rows.collect::<Result<Vec<_>>>()
        });
        match read {
            Ok(rows) => {
                harmless += 1;
                let written: Vec<_> = (0..300).map(|i| (key(i), value(i, 40))).collect();
                assert!(rows == written, "wrong rows after damage at {at}");
            }
            Err(StoreError::Corrupt(_)) => refused += 1,
            Err(error) => panic!("damage at {at}: {error:?}"),
        }
    }
    assert!(refused > 80, "{refused} times refused, {harmless} times harmless");
}
