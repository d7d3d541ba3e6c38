//! Runs the suites that python-etcd3, aetcd and etcd3gw ship. What is skipped of them stands in `python/*_suite.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use starling_compat_tests::{Server, client, tools};

struct Suite {
    library: &'static str,
    release: &'static str,
    /// What to install, `python/<library>.txt`.
    requirements: &'static str,
    tests: &'static str,
    /// The variable in which the suite looks for the server.
    endpoint: &'static str,
}

#[test]
fn python_etcd3() {
    run(&Suite {
        library: "etcd3",
        release: "0.12.0",
        requirements: include_str!("../../python/etcd3.txt"),
        tests: "tests",
        endpoint: "PYTHON_ETCD_HTTP_URL",
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
    let server = Server::starling();
    let mut pytest = Command::new(dir.join("bin/python"));
    pytest
        .args(["-m", "pytest", "-p", &format!("{}_suite", suite.library), suite.tests])
        // What the packages' own configuration adds is for coverage.
        .args(["-o", "addopts=", "-p", "no:cacheprovider", "--disable-warnings"])
        .current_dir(source(suite, &dir))
        .env("PATH", path_with(&etcd.etcdctl))
        .env("PYTHONPATH", tools::package_dir().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TEST_ETCD_VERSION", "v3.6.0")
        .env(suite.endpoint, server.url());
    client::run(&mut pytest, server.kind());
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

/// The search path of programs, with the folder of `program` first.
fn path_with(program: &Path) -> std::ffi::OsString {
    let folder = program.parent().map(Path::to_owned);
    let others = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(folder.into_iter().chain(std::env::split_paths(&others)))
        .expect("a folder of the target directory can be in the search path")
}
