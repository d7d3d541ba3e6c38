//! `starling conflicts`: writes that were lost to others that had not seen them.

use serde_json::{Value, json};
use starling_proto::starling::admin::v1 as pb;

use super::figures::{count, counted, moment, span};
use super::flags::{self, Flag, flag, switch};
use super::member;
use super::table::{Look, Side, Table};
use super::{Output, ToolError};

/// Conflicts that a member remembers.
const CONFLICTS_MAX: u64 = 1000;
/// What is shown of a key, in characters.
const KEY_SHOWN: usize = 48;
/// In the place of the rest.
const CUT: char = '\u{2026}';

const FLAGS: &[Flag] = &[
    member::ENDPOINT,
    member::CA_CERT,
    member::CERT,
    member::KEY,
    member::USER,
    flag("limit", "1000", "so many conflicts at most, the newest first"),
    switch("json", "everything, for programs"),
];

fn help() -> String {
    format!(
        "\
Which writes were lost to others that had not seen them? A member lists what it has noticed since it started: two puts of
one key, accepted by two members, of which the later one counts everywhere. Entries do not say what their authors had
seen, so a put that overwrites another member's within a second is listed, too.

Usage:
  starling conflicts [flags]

{}",
        flags::list(FLAGS)
    )
}

/// Runs the command.
pub(super) fn run(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    let Some(values) = flags::parse(FLAGS, args)? else {
        return super::show(output.to, &help());
    };
    let limit = u32::try_from(values.whole("limit", (1, CONFLICTS_MAX))?).unwrap_or(u32::MAX);
    let reply = super::endpoint(&values)?.conflicts(limit)?;
    let text = if values.is_set("json") {
        format!("{:#}\n", json(&reply))
    } else {
        render(&reply, output.colours())
    };
    super::show(output.to, &text)
}

/// All of it, for people.
fn render(reply: &pb::ConflictsReply, colours: bool) -> String {
    if reply.total == 0 {
        return "\n  no conflicts since this member started\n\n".to_owned();
    }
    let conflicts = counted(reply.total, "conflict", "conflicts");
    let shown = match reply.conflicts.len() as u64 {
        all if all == reply.total => "newest first".to_owned(),
        some => format!("the newest {}", count(some)),
    };
    let mut table = Table::new(&[
        ("noticed (UTC)", Side::Left),
        ("key", Side::Left),
        ("kept", Side::Left),
        ("written (UTC)", Side::Left),
        ("lost", Side::Left),
        ("written", Side::Right),
    ]);
    for conflict in &reply.conflicts {
        table.push(row(conflict));
    }
    format!("\n  {conflicts} since this member started, {shown}\n\n{}\n", table.text(colours))
}

fn row(conflict: &pb::Conflict) -> Vec<(String, Look)> {
    let kept = conflict.kept.clone().unwrap_or_default();
    let lost = conflict.lost.clone().unwrap_or_default();
    let earlier = span(kept.time_millis.saturating_sub(lost.time_millis));
    let plain = |text: String| (text, Look::Plain);
    vec![
        (moment(conflict.noted_millis), Look::Faint),
        plain(key(conflict)),
        (author(&kept), Look::Good),
        plain(moment(kept.time_millis)),
        (author(&lost), Look::Bad),
        plain(format!("{earlier} before")),
    ]
}

fn author(stamp: &pb::Stamp) -> String {
    match stamp.member_name.as_str() {
        "" => format!("{:x}", stamp.member_id),
        name => name.to_owned(),
    }
}

/// A key on one line: what no terminal should get is escaped, and what is too long is cut.
fn key(conflict: &pb::Conflict) -> String {
    let text = String::from_utf8_lossy(&conflict.key);
    let escaped = text.chars().flat_map(|character| match character {
        character if character.is_control() => character.escape_default().collect::<Vec<_>>(),
        character => vec![character],
    });
    let mut shown: String = escaped.take(KEY_SHOWN + 1).collect();
    let is_part = conflict.key_bytes > conflict.key.len() as u64;
    if is_part || shown.chars().count() > KEY_SHOWN {
        shown = shown.chars().take(KEY_SHOWN - 1).chain([CUT]).collect();
    }
    shown
}

/// All of it, for programs. A key that is no UTF-8 is hexadecimal in `key_hex` only.
fn json(reply: &pb::ConflictsReply) -> Value {
    let stamp = |stamp: Option<&pb::Stamp>| {
        let stamp = stamp.cloned().unwrap_or_default();
        json!({
            "member_id": format!("{:x}", stamp.member_id),
            "member_name": stamp.member_name,
            "run": stamp.run,
            "time_millis": stamp.time_millis,
            "time_counter": stamp.time_counter,
        })
    };
    let conflicts = reply.conflicts.iter().map(|conflict| {
        json!({
            "key": std::str::from_utf8(&conflict.key).ok(),
            "key_hex": conflict.key.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "key_bytes": conflict.key_bytes,
            "kept": stamp(conflict.kept.as_ref()),
            "lost": stamp(conflict.lost.as_ref()),
            "noted_millis": conflict.noted_millis,
        })
    });
    json!({ "total": reply.total, "conflicts": conflicts.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_795_262_400_000;

    fn stamp(name: &str, time_millis: u64) -> Option<pb::Stamp> {
        let member_name = name.to_owned();
        Some(pb::Stamp { member_id: 0xb2, member_name, run: 1, time_millis, time_counter: 0 })
    }

    fn conflict(key: impl Into<Vec<u8>>) -> pb::Conflict {
        let key = key.into();
        pb::Conflict {
            key_bytes: key.len() as u64,
            key: key.into(),
            kept: stamp("a", NOON),
            lost: stamp("", NOON - 120),
            noted_millis: NOON + 7,
        }
    }

    #[test]
    fn conflicts_are_a_table() {
        let rule = "\u{2500}".repeat(81);
        let reply = pb::ConflictsReply { conflicts: vec![conflict("k\n1")], total: 1200 };
        let expected = format!(
            "
  1,200 conflicts since this member started, the newest 1

  noticed (UTC)            key   kept  written (UTC)            lost        written
  {rule}
  2026-11-21 12:00:00.007  k\\n1  a     2026-11-21 12:00:00.000  b2    120 ms before

"
        );
        assert_eq!(render(&reply, false), expected);
        let none = render(&pb::ConflictsReply::default(), true);
        assert_eq!(none, "\n  no conflicts since this member started\n\n");
    }

    #[test]
    fn long_keys_are_cut() {
        assert_eq!(key(&conflict("k".repeat(KEY_SHOWN))), "k".repeat(KEY_SHOWN));
        let cut = key(&conflict("k".repeat(KEY_SHOWN + 1)));
        assert_eq!((cut.chars().count(), cut.chars().last()), (KEY_SHOWN, Some(CUT)));
        let part = pb::Conflict { key_bytes: 9, ..conflict("k") };
        assert_eq!(key(&part), "k\u{2026}");
        assert_eq!(key(&conflict([0xff, b'\x1b'])), "\u{fffd}\\u{1b}");
    }

    #[test]
    fn programs_get_any_key() {
        let reply = pb::ConflictsReply { conflicts: vec![conflict([0xff, 1])], total: 1 };
        let json = json(&reply);
        assert!(json["conflicts"][0]["key"].is_null());
        assert_eq!(json["conflicts"][0]["key_hex"], "ff01");
        assert_eq!(json["conflicts"][0]["lost"]["time_millis"], NOON - 120);
    }
}
