//! Replays every script of `scripts/` on real etcd, which keeps the record true, and on starling.
//!
//! `COMPAT_RECORD=1` writes what etcd prints into the scripts.

use std::fs;

use starling_compat_tests::script::Script;
use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};

const COMPAT_RECORD: &str = "COMPAT_RECORD";

macro_rules! scripts {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn etcd() {
                super::replay(stringify!($name), super::Kind::Etcd);
            }

            #[test]
            fn starling() {
                super::replay(stringify!($name), super::Kind::Starling);
            }
        })*

        const SCRIPTS: &[&str] = &[$(stringify!($name)),*];
    };
}

scripts! { get put del txn compaction watch lease lock elect cluster }

fn replay(name: &str, kind: Kind) {
    let Some(tools) = tools::etcd() else { return };
    let path = tools::package_dir().join("scripts").join(name).with_extension("txt");
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let script = Script::parse(&text);
    let server = Server::start(kind, &[]);
    if kind == Kind::Etcd && std::env::var_os(COMPAT_RECORD).is_some() {
        fs::write(&path, script.record(&server, tools)).expect("the script can be written");
        return;
    }
    let differences = script.check(&server, tools);
    assert!(differences.is_empty(), "{name} on {kind:?}:\n{differences}");
}

#[test]
fn every_script_is_replayed_and_says_what_it_is_for() {
    let mut found = Vec::new();
    for entry in fs::read_dir(tools::package_dir().join("scripts")).expect("the scripts are there")
    {
        let path = entry.expect("a directory can be read").path();
        let text = fs::read_to_string(&path).expect("a script is text");
        assert!(text.starts_with("# "), "{} has no header", path.display());
        found.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    found.sort_unstable();
    let mut listed = SCRIPTS.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
