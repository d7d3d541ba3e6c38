//! Where the programs come from: `starling` from this workspace, etcd and etcdctl through Go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::SystemTime;

/// Runs this `starling` instead of the workspace's.
const STARLING_BIN: &str = "STARLING_BIN";

/// The programs of one etcd release.
#[derive(Debug)]
pub struct EtcdTools {
    pub etcd: PathBuf,
    pub etcdctl: PathBuf,
    pub etcdutl: PathBuf,
    /// bbolt's own tool, to check files.
    pub bbolt: PathBuf,
}

/// Real etcd, built once per test run; `None` without a Go toolchain, after saying so.
///
/// # Panics
///
/// In CI (`CI=true`) when Go is missing, and anywhere when the build fails.
pub fn etcd() -> Option<&'static EtcdTools> {
    static TOOLS: OnceLock<Option<EtcdTools>> = OnceLock::new();
    TOOLS.get_or_init(|| go_is_installed().then(build_etcd)).as_ref()
}

/// The `starling` under test, built if its sources are newer than it.
pub fn starling() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os(STARLING_BIN) {
        Some(path) => path.into(),
        None => built_by_cargo_test().unwrap_or_else(build_starling),
    })
}

/// The folder of this package in the source tree.
pub fn package_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's target directory, where everything built for the tests goes.
///
/// # Panics
///
/// When the running test is not in a target directory.
pub fn target_dir() -> PathBuf {
    let profile = profile_dir();
    profile.parent().expect("a profile directory is in a target directory").to_owned()
}

fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors().nth(2).expect("cargo puts tests into target/<profile>/deps").to_owned()
}

/// The version of a language's toolchain; `None` without it, after saying so.
///
/// # Panics
///
/// In CI (`CI=true`) when it is missing.
#[expect(clippy::print_stderr, reason = "a skipped test has to be seen")]
pub fn toolchain(program: &str, version: &str, without: &str) -> Option<String> {
    let output = Command::new(program).arg(version).output();
    if let Ok(output) = output
        && output.status.success()
    {
        return Some(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{program} is not installed, and CI must run these tests"
    );
    eprintln!("*** SKIPPED: {program} is not installed, so {without} ***");
    None
}

fn go_is_installed() -> bool {
    toolchain("go", "version", "nothing here is compared with real etcd").is_some()
}

fn build_etcd() -> EtcdTools {
    let dir = target_dir().join("etcd-bin");
    let _lock = lock(&dir);
    let build = |name: &str, package: &str| {
        let path = dir.join(name);
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&path).arg(package).current_dir(package_dir().join("go"));
        succeed(&mut go);
        path
    };
    EtcdTools {
        etcd: build("etcd", "go.etcd.io/etcd/server/v3"),
        etcdctl: build("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
        etcdutl: build("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        bbolt: build("bbolt", "go.etcd.io/bbolt/cmd/bbolt"),
    }
}

/// Two test runs at once must not build into one place; the lock is held until the file is dropped.
pub fn lock(dir: &Path) -> File {
    fs::create_dir_all(dir).expect("the target directory is writable");
    let file = File::create(dir.join(".lock")).expect("the target directory is writable");
    file.lock().expect("the file system of the target directory has locks");
    file
}

/// `cargo test --workspace` has built the binary already; building it alone, with the fewer features
/// that it needs then, would compile most dependencies once more.
fn built_by_cargo_test() -> Option<PathBuf> {
    let binary = profile_dir().join("starling");
    let built = modified(&binary)?;
    let sources = fs::read_to_string(binary.with_extension("d")).ok()?;
    let (_, sources) = sources.trim_end().split_once(": ")?;
    let fresh = sources.replace("\\ ", "\0").split(' ').all(|source| {
        modified(Path::new(&source.replace('\0', " "))).is_some_and(|changed| changed <= built)
    });
    fresh.then_some(binary)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

fn build_starling() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match profile_dir().file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev".to_owned(),
        Some(name) => name.to_owned(),
    };
    let mut build = Command::new(cargo);
    build
        .args(["build", "--locked", "-p", "starling", "--bin", "starling", "--profile", &profile])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(package_dir());
    let output = succeed(&mut build);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(executable)
        .expect("cargo names the binary that it built")
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message["target"]["name"] == "starling")
        .then(|| message["executable"].as_str().map(PathBuf::from))
        .flatten()
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it fails, with what it has written.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
