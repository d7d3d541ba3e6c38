//! Runs the suites that python-etcd3, aetcd and etcd3gw ship. What is skipped of them stands in `python/*_suite.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use starling_compat_tests::server::Kind;
use starling_compat_tests::tools::EtcdTools;
use starling_compat_tests::{Server, client, tools};

struct Suite {
    library: &'static str,
    release: &'static str,
    /// What to install, `python/<library>.txt`.
    requirements: &'static str,
    tests: &'static str,
    /// The variable in which the suite looks for the server.
    endpoint: &'static str,
    /// The names of the members, if it takes more than one.
    cluster: &'static [&'static str],
    /// Tests that name revisions by numbers of their own, 1 or 3; in a cluster those are nobody's.
    alone: &'static [&'static str],
    /// What turns on tests of the suite that are off by default.
    args: &'static [&'static str],
}

/// What the suites know members by; they stop the last two.
const PIFPAF: &[&str] = &["pifpaf0", "pifpaf1", "pifpaf2"];

#[test]
fn python_etcd3() {
    run(&Suite {
        library: "etcd3",
        release: "0.12.0",
        requirements: include_str!("../../python/etcd3.txt"),
        tests: "tests",
        endpoint: "PYTHON_ETCD_HTTP_URL",
        cluster: PIFPAF,
        alone: &["test_compact", "test_watch_key_with_revision_compacted"],
        args: &[],
    });
}

#[test]
fn python_aetcd() {
    run(&Suite {
        library: "aetcd",
        release: "1.0.0",
        requirements: include_str!("../../python/aetcd.txt"),
        tests: "tests/integration",
        endpoint: "TEST_ETCD_HTTP_URL",
        cluster: PIFPAF,
        alone: &[],
        args: &["--with-cluster"],
    });
}

/// By the JSON gateway.
#[test]
fn python_etcd3gw() {
    run(&Suite {
        library: "etcd3gw",
        release: "2.7.0",
        requirements: include_str!("../../python/etcd3gw.txt"),
        tests: "etcd3gw/tests",
        endpoint: "TOOZ_TEST_HTTP_URL",
        cluster: &["solo"],
        alone: &[],
        args: &[],
    });
}

fn run(suite: &Suite) {
    let python = tools::toolchain("python3", "--version", "no client of Python is run");
    let Some(version) = python else { return };
    // The suites look at the server with etcdctl, too.
    let Some(etcd) = tools::etcd() else { return };
    let pins = format!("{version}{}", suite.requirements);
    let dir = client::install(&format!("python-{}", suite.library), &pins, |dir| {
        install(suite, dir);
    });
    let alone = suite.alone.join(" or ");
    let together = suite.alone.iter().map(|name| format!("not {name}")).collect::<Vec<_>>();
    let cluster = Server::start_cluster(Kind::Starling, suite.cluster, &[]);
    client::wait_until_formed(&cluster, etcd);
    let mut tests = pytest(suite, &dir, etcd, &cluster[0]);
    client::run(tests.args(["-k", &together.join(" and ")]), cluster[0].kind());
    if !alone.is_empty() {
        let server = Server::starling();
        client::run(pytest(suite, &dir, etcd, &server).args(["-k", &alone]), server.kind());
    }
}

fn pytest(suite: &Suite, dir: &Path, etcd: &EtcdTools, server: &Server) -> Command {
    let mut pytest = Command::new(dir.join("bin/python"));
    pytest
        .args(["-m", "pytest", "-p", &format!("{}_suite", suite.library), suite.tests])
        // What the packages' own configuration adds is for coverage.
        .args(["-o", "addopts=", "-p", "no:cacheprovider", "--disable-warnings"])
        .args(suite.args)
        .current_dir(source(suite, dir))
        .env("PATH", path_with(&[&tools::package_dir().join("python/bin"), parent(&etcd.etcdctl)]))
        .env("COMPAT_ETCDCTL", &etcd.etcdctl)
        .env("COMPAT_ETCDUTL", &etcd.etcdutl)
        .env("PYTHONPATH", tools::package_dir().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TEST_ETCD_VERSION", "v3.6.0")
        .env(suite.endpoint, server.url());
    pytest
}

fn install(suite: &Suite, dir: &Path) {
    tools::succeed(Command::new("python3").args(["-m", "venv"]).arg(dir));
    let python = || Command::new(dir.join("bin/python"));
    let pip = |command| {
        let mut pip = python();
        pip.args(["-m", "pip", command, "--quiet", "--disable-pip-version-check"]);
        pip
    };
    let requirements =
        tools::package_dir().join("python").join(suite.library).with_extension("txt");
    tools::succeed(pip("install").arg("-r").arg(requirements));
    // Only the source distribution has the tests.
    let pinned = format!("{}=={}", suite.library, suite.release);
    tools::succeed(
        pip("download")
            .args(["--no-deps", "--no-binary", suite.library, &pinned, "--dest"])
            .arg(dir),
    );
    let mut archive = source(suite, dir).into_os_string();
    archive.push(".tar.gz");
    tools::succeed(python().args(["-m", "tarfile", "-e"]).arg(archive).arg(dir));
}

fn source(suite: &Suite, dir: &Path) -> PathBuf {
    dir.join(format!("{}-{}", suite.library, suite.release))
}

pub(crate) fn parent(program: &Path) -> &Path {
    program.parent().expect("a program is in a folder")
}

/// The search path of programs, with some folders first.
pub(crate) fn path_with(folders: &[&Path]) -> std::ffi::OsString {
    let folders = folders.iter().map(|&folder| folder.to_owned());
    let others = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(folders.chain(std::env::split_paths(&others)))
        .expect("a folder of the source tree can be in the search path")
}
