//! The disk under a running member: full, damaged, in use, foreign.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use starling_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest,
};
use tonic::Code;

use crate::process::Process;

const MIB: usize = 1 << 20;
/// The small disk.
const DISK_MIB: usize = 160;
const VALUE_BYTES: usize = MIB;
const DEADLINE: Duration = Duration::from_secs(60);

/// A file system of its own for a test, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::create_dir(&path).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path);
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        is_mounted.then_some(Self { path, _dir: dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn put(number: u64) -> PutRequest {
    let value = noise(number, VALUE_BYTES).into();
    PutRequest { key: format!("key{number:04}").into(), value, ..Default::default() }
}

/// A full disk refuses what needs room, goes on with everything else, and is forgotten when there is room again.
#[test]
fn a_full_disk_is_a_refusal_not_an_end() {
    let Some(disk) = SmallDisk::new() else {
        assert!(std::env::var_os("CI").is_none(), "in CI a test may mount a small disk");
        eprintln!("SKIPPED: this user may not mount a small disk");
        return;
    };
    let data_dir = disk.path.join("data");
    let mut member = Process::start(&data_dir, &["--quota-backend-bytes", "-1"]);
    let filled = runtime().block_on(fill(&member));
    assert!(filled > 40, "only {filled} MiB fit");
    runtime().block_on(async {
        let mut kv = member.kv().await;
        let value =
            kv.range(RangeRequest { key: "key0001".into(), ..Default::default() }).await.unwrap();
        assert_eq!(value.into_inner().kvs[0].value, noise(1, VALUE_BYTES), "reads go on");
    });
    // A full disk must not keep a member from starting either.
    member.kill();
    member = Process::start(&data_dir, &["--quota-backend-bytes", "-1"]);
    runtime().block_on(make_room(&member));
}

/// Puts until there is no room; answers how many went in.
async fn fill(member: &Process) -> u64 {
    let mut kv = member.kv().await;
    for number in 0..DISK_MIB as u64 * 2 {
        if let Err(status) = kv.put(put(number)).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
            return number;
        }
    }
    panic!("a disk of {DISK_MIB} MiB took twice as much");
}

async fn make_room(member: &Process) {
    let mut kv = member.kv().await;
    let all =
        DeleteRangeRequest { key: "key".into(), range_end: "kez".into(), ..Default::default() };
    let reply = kv.delete_range(all).await.unwrap().into_inner();
    let revision = reply.header.unwrap().revision;
    kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    let start = Instant::now();
    while let Err(status) = kv.put(put(0)).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(start.elapsed() < DEADLINE, "there is still no room");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

/// A damaged journal with answered writes behind the damage keeps a member from starting.
#[test]
fn a_damaged_journal_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let member = Process::start(&data_dir, &[]);
    runtime().block_on(async {
        let mut kv = member.kv().await;
        for number in 0..20 {
            kv.put(PutRequest { value: noise(number, 4096).into(), ..put(number) }).await.unwrap();
        }
    });
    member.kill();
    let journal = files(&data_dir, "jnl").pop().expect("there is a journal");
    let mut bytes = fs::read(&journal).unwrap();
    let middle =
        bytes.windows(64).position(|window| window == &noise(7, 4096)[1000..1064]).unwrap();
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let log = Process::try_start(&data_dir, &[]).err().expect("a damaged store is not served");
    assert!(log.contains("damaged"), "{log}");
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    drop(Process::start(&data_dir, &[]));
}
