//! Rules that no compiler checks: which layer may name which, what pure layers do without, and that the reference pages are
//! complete. All by text, in a fraction of a second.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use starling::config::flags::{self, Effect, Flag, Kind};

/// The layers in reading order, and which others each may name. `docs/architecture.md` explains them.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("time", &["types"]),
    ("error", &["types"]),
    ("metrics", &[]),
    ("traces", &["types", "tls"]),
    ("tls", &[]),
    ("storage", &["types", "time", "error"]),
    ("replication", &["types", "time", "error", "storage"]),
    ("engine", &["types", "time", "error", "storage", "replication"]),
    ("bolt", &[]),
    ("etcd_db", &["types", "time", "error", "storage", "engine", "bolt"]),
    ("transport", &["types", "time", "error", "metrics", "tls", "storage", "replication"]),
    (
        "node",
        &[
            "types",
            "time",
            "error",
            "metrics",
            "traces",
            "storage",
            "replication",
            "engine",
            "bolt",
            "etcd_db",
            "transport",
        ],
    ),
    ("api", &["types", "time", "error", "metrics", "traces", "replication", "engine", "node"]),
    ("cli", &["types", "time", "storage", "etcd_db"]),
    ("sim", &["types", "time", "error", "storage", "replication", "engine", "transport", "cli"]),
    ("http", &["types", "time", "error", "metrics", "tls", "engine", "node", "api"]),
    ("config", &["types", "time", "error", "traces", "tls", "node"]),
    ("logging", &["config"]),
    (
        "fuzzing",
        &[
            "types",
            "time",
            "storage",
            "replication",
            "engine",
            "transport",
            "api",
            "http",
            "config",
            "sim",
        ],
    ),
];

/// What makes the same input give the same output: these hold no task, socket or message of a protocol.
const PURE_LAYERS: &[&str] = &["storage", "replication", "engine", "bolt"];
const IMPURE_WORDS: &[&str] = &["async", "await", "tokio", "tonic", "prost", "hyper"];

/// Names that say nothing about what is in a file.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc", "manager"];

/// What comments may draw with.
const DRAWING: &str = "\u{2500}\u{2502}\u{2514}\u{2518}\u{250c}\u{2510}\u{251c}\u{2524}\u{25b6}\u{25c0}\u{25b2}\u{25bc}";

/// Set to write the tables of `docs/configuration.md` anew.
const UPDATE: &str = "STARLING_UPDATE_DOCS";
const TABLES_BEGIN: &str = "<!-- The tables are made from src/config/flags.rs. -->\n";

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn shown(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }

    /// The name of the layer that a file of `src` belongs to.
    fn layer(&self) -> String {
        let path = self.path.strip_prefix(root().join("src")).expect("a file of src");
        let first = path.components().next().expect("a path has a first part");
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    }

    /// The lines without what stands in comments. Good enough for text that holds `//`: that only hides its end.
    fn code(&self) -> impl Iterator<Item = &str> {
        self.text.lines().map(|line| line.split("//").next().unwrap_or_default())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a directory of the repository that end in `suffix`, in order.
fn files(directory: &str, suffix: &str) -> Vec<Source> {
    let mut files = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory of the repository");
            open.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.to_string_lossy().ends_with(suffix) {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            files.push(Source { path, text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!files.is_empty(), "no {suffix} in {directory}");
    files
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("a page of the documentation")
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|character| !is_word(character)).filter(|word| !word.is_empty())
}

/// The modules at the root of the crate that some code names, by `crate::a` or `crate::{a, b::c}`.
fn named_layers(code: &str) -> BTreeSet<String> {
    let leading_word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut named = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + found.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(leading_word(rest));
            continue;
        };
        let mut depth = 0;
        let mut is_first = true;
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_first = true,
                _ if is_first && is_word(character) => {
                    named.insert(leading_word(&group[at..]));
                    is_first = false;
                }
                _ => {}
            }
        }
    }
    named
}

#[test]
fn layers_name_only_what_is_below_them() {
    let mut wrong = String::new();
    for source in files("src", ".rs") {
        let layer = source.layer();
        if matches!(layer.as_str(), "main" | "lib") {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            let _ = writeln!(wrong, "{}: {layer} is not in the table of layers", source.shown());
            continue;
        };
        let code = source.code().collect::<Vec<_>>().join("\n");
        for named in named_layers(&code) {
            if named != layer && !allowed.contains(&named.as_str()) {
                let _ = writeln!(wrong, "{}: {layer} may not name {named}", source.shown());
            }
        }
        if layer != "storage" && code.contains("fjall::") {
            let _ = writeln!(wrong, "{}: only storage may name fjall", source.shown());
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn named_layers_are_found() {
    let cases = [
        ("use crate::error::{Error, Invalid};", vec!["error"]),
        ("use crate::{a, b::{c, d}, e::F};", vec!["a", "b", "e"]),
        ("use crate::{\n    a::B,\n    c,\n};\nlet x = crate::d::e();", vec!["a", "c", "d"]),
        ("mycrate::a; starling_proto::b", vec![]),
        ("pub(crate) fn a() {}", vec![]),
    ];
    for (code, expected) in cases {
        let named = named_layers(code);
        assert_eq!(named.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{code}");
    }
}

#[test]
fn pure_layers_are_pure() {
    let mut wrong = String::new();
    for source in files("src", ".rs") {
        if !PURE_LAYERS.contains(&source.layer().as_str()) {
            continue;
        }
        for (line, code) in (1..).zip(source.code()) {
            for word in words(code).filter(|word| IMPURE_WORDS.contains(word)) {
                let _ = writeln!(wrong, "{}:{line}: {word}", source.shown());
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn every_file_says_what_it_is() {
    let mut wrong = String::new();
    for source in files("src", ".rs") {
        let name = source.path.file_stem().expect("a file").to_string_lossy().into_owned();
        let is_test = name.ends_with("tests") || name == "testscripts";
        if !is_test && !source.text.starts_with("//! ") {
            let _ = writeln!(wrong, "{}: begins without a word on what it is for", source.shown());
        }
        if words(&name).flat_map(|name| name.split('_')).any(|name| EMPTY_NAMES.contains(&name)) {
            let _ = writeln!(wrong, "{}: a name that says nothing", source.shown());
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn sources_are_ascii_but_for_drawings() {
    let mut wrong = String::new();
    for source in
        ["src", "tests", "proto", "bench", "compat-tests"].iter().flat_map(|d| files(d, ".rs"))
    {
        // Built code is none of ours.
        if source.path.components().any(|part| part.as_os_str() == "target") {
            continue;
        }
        for (line, text) in (1..).zip(source.text.lines()) {
            let code = text.split("//").next().unwrap_or_default();
            let drawn = text[code.len()..].chars().filter(|c| !DRAWING.contains(*c));
            if let Some(character) = code.chars().chain(drawn).find(|c| !c.is_ascii()) {
                let _ =
                    writeln!(wrong, "{}:{line}: {}", source.shown(), character.escape_unicode());
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn golden_scripts_say_what_they_are_for() {
    let mut wrong = String::new();
    for source in files("src", "") {
        let directories = source.path.components().map(|part| part.as_os_str());
        if directories.clone().any(|part| part == "testscripts") && !source.text.starts_with("# ") {
            let _ = writeln!(wrong, "{}: begins without a comment", source.shown());
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// `STARLING_UPDATE_DOCS=1 cargo test --test it tidy` writes the tables.
#[test]
fn every_flag_is_documented() {
    let page = page("configuration.md");
    let (prose, tables) = page
        .split_once(TABLES_BEGIN)
        .expect("docs/configuration.md has the line before its tables");
    let expected = flag_tables();
    if std::env::var_os(UPDATE).is_some() {
        let page = format!("{prose}{TABLES_BEGIN}{expected}");
        fs::write(root().join("docs/configuration.md"), page).expect("the page can be written");
        return;
    }
    assert_eq!(tables, expected, "docs/configuration.md is out of date: run with {UPDATE}=1");
}

fn flag_tables() -> String {
    let mut text = String::new();
    for group in flags::GROUPS {
        let _ = write!(
            text,
            "\n### {}\n\n| flag | takes | default | here | |\n|---|---|---|---|---|\n",
            group.title
        );
        for flag in group.flags {
            text.push_str(&flag_row(flag));
        }
    }
    text
}

fn flag_row(flag: &Flag) -> String {
    let kind = match flag.kind {
        Kind::Text => "text",
        Kind::Bool => "bool",
        Kind::Int | Kind::Uint => "number",
        Kind::Duration => "duration",
    };
    let default =
        if flag.default.is_empty() { String::new() } else { format!("`{}`", flag.default) };
    let effect = match flag.effect {
        Effect::Honoured => "honoured".to_owned(),
        Effect::Ignored(why) => format!("no effect: {why}"),
        Effect::Refused(why) => format!("**refused**: {why}"),
    };
    let row = format!("| `--{}` | {kind} | {default} | {effect} | {} |", flag.name, flag.help);
    row.replace("  |", " |") + "\n"
}

/// What docs/compatibility.md says of each RPC, in one word or two.
fn documented_rpcs() -> BTreeMap<String, String> {
    let page = page("compatibility.md");
    let (_, section) = page.split_once("\n## RPCs\n").expect("the page has a section on RPCs");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.strip_suffix('`')?;
        Some((name.to_owned(), cells.next()?.to_owned()))
    });
    rows.collect()
}

fn rpcs_of_the_protos() -> BTreeSet<String> {
    let mut rpcs = BTreeSet::new();
    for proto in files("proto/etcd", ".proto") {
        let mut service = "";
        for line in proto.code() {
            let mut words = words(line);
            match (words.next(), words.next()) {
                (Some("service"), Some(name)) => service = name,
                (Some("rpc"), Some(name)) => drop(rpcs.insert(format!("{service}.{name}"))),
                _ => {}
            }
        }
    }
    rpcs
}

#[test]
fn every_rpc_is_documented() {
    let documented = documented_rpcs();
    let rpcs = rpcs_of_the_protos();
    assert!(rpcs.contains("KV.Range") && rpcs.contains("Lock.Unlock"), "{rpcs:?}");
    let missing: Vec<_> = rpcs.iter().filter(|rpc| !documented.contains_key(*rpc)).collect();
    assert!(missing.is_empty(), "not in docs/compatibility.md: {missing:?}");
    let invented: Vec<_> = documented.keys().filter(|rpc| !rpcs.contains(*rpc)).collect();
    assert!(invented.is_empty(), "in docs/compatibility.md, but not in the protos: {invented:?}");
}

#[test]
fn what_is_not_implemented_is_documented_as_such() {
    let api: String = files("src/api", ".rs").into_iter().map(|source| source.text).collect();
    let router = files("src/api", "router.rs").remove(0).text;
    for (rpc, word) in documented_rpcs() {
        let (service, method) = rpc.split_once('.').expect("a service and a method");
        let is_routed =
            router.contains(&format!(".{service}\"")) && router.contains(&format!("\"{method}\""));
        let is_refused = !is_routed || api.contains(&format!("nimplemented(\"{rpc}\")"));
        let known = ["same", "differs", "not yet"].contains(&word.as_str());
        assert!(known, "{rpc}: {word:?} is none of same, differs, not yet");
        assert_eq!(word == "not yet", is_refused, "docs/compatibility.md says of {rpc}: {word}");
    }
}
