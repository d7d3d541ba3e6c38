//! What is in `deploy/`: its flags are ours, and its scripts do what they say.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_norway::Value;
use starling::config::{self, Invocation};

use crate::process::free_port;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn documents(name: &str) -> Vec<Value> {
    use serde::Deserialize;
    let text = fs::read_to_string(deploy(name)).unwrap();
    serde_norway::Deserializer::from_str(&text).map(|it| Value::deserialize(it).unwrap()).collect()
}

/// All lists under this name, wherever they are.
fn lists<'a>(value: &'a Value, name: &str, found: &mut Vec<Vec<&'a str>>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                match value {
                    Value::Sequence(items) if key.as_str() == Some(name) => {
                        found.push(items.iter().filter_map(Value::as_str).collect());
                    }
                    value => lists(value, name, found),
                }
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| lists(item, name, found)),
        _ => {}
    }
}

fn check_settings(args: &[String], environment: &[(String, String)]) {
    let load = config::load("starling", args, environment.iter().cloned(), |_| unreachable!());
    match load {
        Ok(Invocation::Run(config, warnings)) => {
            assert!(warnings.is_empty(), "{args:?}: {warnings:?}");
            assert!(!config.cluster.listen_peer_urls.is_empty(), "{args:?}");
        }
        other => panic!("{args:?} {environment:?}: {other:?}"),
    }
}

#[test]
fn the_flags_of_the_manifests_are_ours() {
    let manifests = [
        ("k8s/statefulset/statefulset.yaml", "args"),
        ("k8s/sidecar/deployment.yaml", "args"),
        ("k8s/tls/urls.yaml", "value"),
    ];
    for (manifest, name) in manifests {
        let documents = documents(manifest);
        let mut found = Vec::new();
        documents.iter().for_each(|document| lists(document, name, &mut found));
        assert_eq!(found.len(), 1, "{manifest}");
        let values =
            [("$(POD_NAME)", "m-0"), ("$(POD_NAMESPACE)", "default"), ("$(POD_IP)", "10.0.0.1")];
        let fill = |arg: &&str| {
            values.iter().fold((*arg).to_owned(), |arg, (name, value)| arg.replace(name, value))
        };
        check_settings(&found[0].iter().map(fill).collect::<Vec<_>>(), &[]);
    }
}

#[test]
fn the_variables_of_the_compose_file_are_ours() {
    let file = documents("compose.yaml").remove(0);
    let services = file.get("services").and_then(Value::as_mapping).unwrap();
    assert_eq!(services.len(), 3);
    let common = file.get("x-environment").unwrap();
    for (name, service) in services {
        let mut environment = BTreeMap::new();
        for from in [common, service.get("environment").unwrap()] {
            for (name, value) in from.as_mapping().unwrap() {
                if let Some(value) = value.as_str() {
                    environment.insert(name.as_str().unwrap().to_owned(), value.to_owned());
                }
            }
        }
        environment.remove("<<");
        assert_eq!(environment["ETCD_NAME"], name.as_str().unwrap());
        check_settings(&[], &environment.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn three_members_come_up_and_go_down() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let starling = env!("CARGO_BIN_EXE_starling");
    let run = |what: &str| -> Output {
        let mut up = Command::new(deploy("up.sh"));
        up.arg(what).env("STARLING", starling).env("STARLING_DIR", dir.path());
        up.env("STARLING_PORT", port.to_string()).env("STARLING_PORT_STEP", "2");
        up.output().unwrap()
    };
    let say = |port: u16, words: &[&str]| {
        let mut shell = Command::new(starling);
        shell.args(["shell", "--endpoint", &format!("127.0.0.1:{port}")]).args(words);
        let output = shell.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let up = run("up");
    // Should a port be somebody else's, there is nothing to see here.
    if String::from_utf8_lossy(&up.stderr).contains("Address already in use") {
        run("down");
        return;
    }
    assert!(up.status.success(), "{up:?}");
    assert_eq!(String::from_utf8_lossy(&up.stdout).lines().count(), 3);
    while say(port, &["sync"]).1 != "equal: b, c\n" {}
    assert!(say(port, &["put", "a", "b"]).0);
    for other in [port + 2, port + 4] {
        assert_eq!(say(other, &["get", "a"]).1, "a : b\n");
    }
    assert!(run("up").status.success(), "it can be said twice");
    assert!(run("down").status.success());
    assert!(!say(port, &["get", "a"]).0, "nobody is there");
    assert!(run("down").status.success(), "it can be said twice");
    assert!(dir.path().join("a").exists());
    assert!(run("clean").status.success());
    assert!(!dir.path().join("a").exists());
    assert_eq!(run("sideways").status.code(), Some(2));
}

#[test]
fn systemd_takes_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has systemd-analyze");
        eprintln!("*** SKIPPED: systemd-analyze is not installed ***");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deploy("starling.service")).unwrap();
    let text = text.replace("/usr/bin/starling", env!("CARGO_BIN_EXE_starling"));
    // Without the page where it would be installed, it would be told as missing.
    let path = dir.path().join("starling.service");
    fs::write(&path, text).unwrap();
    let mut verify = Command::new("systemd-analyze");
    let output = verify.args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let of_unit: Vec<_> = said.lines().filter(|line| line.contains("starling")).collect();
    assert!(output.status.success() && of_unit.is_empty(), "{said}");
}

#[test]
fn a_binary_that_needs_libraries_is_not_packed() {
    let mut image = Command::new(deploy("image.sh"));
    let output = image.arg(env!("CARGO_BIN_EXE_starling")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // In a static build it would go on to the engine, which may not be there.
    assert!(!output.status.success() && said.contains("needs libraries"), "{said}");
}

#[test]
fn a_long_list_of_libraries_is_a_list_too() {
    let tools = tempfile::tempdir().unwrap();
    let ldd = tools.path().join("ldd");
    // More than a pipe holds: whoever does not read on would end it by a signal.
    fs::write(&ldd, "#!/bin/sh\necho 'liba => /liba'\nyes 'libb => /libb' | head -c 1000000\n")
        .unwrap();
    fs::set_permissions(&ldd, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    let mut image = Command::new(deploy("image.sh"));
    let image = image.arg(env!("CARGO_BIN_EXE_starling")).env("PATH", path);
    let said = String::from_utf8_lossy(&image.output().unwrap().stderr).into_owned();
    assert!(said.contains("needs libraries"), "{said}");
}
