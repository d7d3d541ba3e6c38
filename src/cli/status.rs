//! `starling cluster status`: how a cluster is, as one of its members sees it.

use serde_json::{Value, json};
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::Liveness;
use starling_proto::starling::admin::v1::held_back::Reason;

use super::figures::{count, counted, size, span};
use super::flags::{self, Flag, flag, switch};
use super::member::{self, Member};
use super::table::{Look, Side, Table};
use super::{Output, ToolError};

/// Members that a reply has.
const MEMBERS_MAX: u64 = 1000;
/// In the place of what is not known.
const UNKNOWN: &str = "-";
/// Before the verdict.
const MARK: &str = "\u{25cf}";
/// Who has not been heard for so long is looked at twice.
const SILENT_MILLIS: u64 = 10_000;
/// A wall clock that is so far from the one that entries follow has jumped.
const WALL_APART_MILLIS: u64 = 100;
const PERCENT: u32 = 10;

const FLAGS: &[Flag] = &[
    member::ENDPOINT,
    member::CA_CERT,
    member::CERT,
    member::KEY,
    member::USER,
    flag("members", "50", "so many members at most; those who are not alive come first then"),
    switch("watch", "ask every second, and show it in the same place"),
    switch("json", "everything, for programs; with --watch one line each time"),
];

/// The help text.
pub(super) fn help() -> String {
    format!(
        "\
How is the cluster, as one of its members sees it? Who is alive, how far are they apart, and what keeps deleted keys from
being forgotten. docs/operations.md says what to make of it.

Usage:
  starling cluster status [flags]

{}",
        flags::list(FLAGS)
    )
}

/// Runs the command.
pub(super) fn run(args: &[String], output: &mut Output<'_>) -> Result<(), ToolError> {
    let Some(values) = flags::parse(FLAGS, args)? else {
        return super::show(output.to, &help());
    };
    let members = u32::try_from(values.whole("members", (1, MEMBERS_MAX))?).unwrap_or(u32::MAX);
    let member: Member = super::endpoint(&values)?;
    let colours = output.colours();
    let (is_json, is_watched) = (values.is_set("json"), values.is_set("watch"));
    let look = move || {
        let reply = member.status(members)?;
        Ok(match (is_json, is_watched) {
            (true, false) => format!("{:#}\n", json(&reply)),
            (true, true) => format!("{}\n", json(&reply)),
            (false, _) => render(&reply, colours),
        })
    };
    if is_watched {
        // Lines of JSON are for whoever reads them all.
        return super::watch(output.to, output.is_terminal && !is_json, look);
    }
    super::show(output.to, &look()?)
}

/// All of it, for people.
pub(super) fn render(reply: &pb::StatusReply, colours: bool) -> String {
    let (look, verdict) = verdict(reply);
    let mut text = format!("\n  {}\n\n", look.on(&format!("{MARK} {verdict}"), colours));
    text.push_str(&table(reply).text(colours));
    let left_out =
        reply.members_total.saturating_sub(u32::try_from(reply.members.len()).unwrap_or(0));
    if left_out > 0 {
        text.push_str(&format!("  and {} more\n", count(u64::from(left_out))));
    }
    text.push('\n');
    for (name, line) in lines(reply) {
        let name = Look::Faint.on(&format!("{name:<12}"), colours);
        text.push_str(&format!("  {name} {line}\n"));
    }
    text.push('\n');
    text
}

/// The one thing to know.
fn verdict(reply: &pb::StatusReply) -> (Look, String) {
    let this = reply.this.clone().unwrap_or_default();
    let alive = format!(
        "{} of {} alive",
        count(u64::from(reply.members_alive)),
        counted(u64::from(reply.members_total), "member", "members")
    );
    if let Some(catch_up) = &this.catch_up {
        let percent = catch_up.thousandths / PERCENT;
        let from = name_of(reply, catch_up.member_id);
        return (
            Look::Doubtful,
            format!("{alive}, this one is catching up from {from}: {percent} %"),
        );
    }
    if this.merging {
        return (
            Look::Doubtful,
            format!("{alive}, this one looks for keys that others have deleted"),
        );
    }
    if !this.ready {
        return (
            Look::Bad,
            format!("{alive}, this one has not got the data yet, and serves nobody"),
        );
    }
    if let Some(clock) = this.clock.filter(|clock| clock.fenced) {
        let off = clock.skew_millis.map(off).unwrap_or_default();
        return (Look::Bad, format!("{alive}, this one takes no writes: its clock is {off}"));
    }
    if reply.members_total == 1 {
        return (Look::Good, format!("{alive}, and it has no peers"));
    }
    let held = reply.held_back.as_ref().map(|held| blame(reply, held));
    let (voters, majority) = (reply.voters_alive, reply.majority);
    if voters < majority {
        let missing = format!("{alive}, no majority: {voters} of the {majority} that it takes");
        let held = held.map(|held| format!("; {held}")).unwrap_or_default();
        return (Look::Bad, missing + &held);
    }
    if let Some(held) = held {
        return (Look::Doubtful, format!("{alive}; {held}"));
    }
    let equal = reply.settled_age_millis.map_or_else(
        || "not known to be equal yet".to_owned(),
        |age| format!("all equal up to {} ago", span(age)),
    );
    let is_whole = reply.members_alive == reply.members_total;
    (if is_whole { Look::Good } else { Look::Doubtful }, format!("{alive}, {equal}"))
}

/// How far a clock is off, in words.
fn off(skew_millis: i64) -> String {
    match skew_millis {
        0 => "as the others'".to_owned(),
        1.. => format!("{} ahead of the others'", span(skew_millis.unsigned_abs())),
        _ => format!("{} behind the others'", span(skew_millis.unsigned_abs())),
    }
}

/// How the clock here compares to those of the others.
fn clock_line(clock: pb::Clock) -> String {
    let (Some(skew), Some(wall_skew)) = (clock.skew_millis, clock.wall_skew_millis) else {
        return "not compared yet".to_owned();
    };
    let fenced = if clock.fenced { "; no writes are taken until that is over" } else { "" };
    let wall = match wall_skew.abs_diff(skew) {
        apart if apart > WALL_APART_MILLIS => format!("; the wall clock is {}", off(wall_skew)),
        _ if !clock.confirmed => "; the wall clock is not confirmed yet".to_owned(),
        _ => String::new(),
    };
    format!("{}{wall}{fenced}", off(skew))
}

/// Who holds `settled` back, as a sentence.
fn blame(reply: &pb::StatusReply, held: &pb::HeldBack) -> String {
    let name = match held.member_name.as_str() {
        "" => name_of(reply, held.member_id),
        name => name.to_owned(),
    };
    let since = held.age_millis.map(|age| format!(" for {}", span(age))).unwrap_or_default();
    match held.reason() {
        Reason::NeverMet => {
            format!("founder {name} has never been met, and holds deleted keys back{since}")
        }
        Reason::Dead => format!("{name} is dead, and holds deleted keys back{since}"),
        Reason::RunNotClosed => {
            format!("the end of a run of {name} is not closed, and holds deleted keys back{since}")
        }
        Reason::Behind | Reason::Unspecified => {
            format!("{name} is behind, and holds deleted keys back{since}")
        }
    }
}

/// A member by name, or else by address or id.
fn name_of(reply: &pb::StatusReply, id: u64) -> String {
    match reply.members.iter().find(|member| member.id == id) {
        Some(member) => shown_name(member),
        None => format!("{id:x}"),
    }
}

fn shown_name(member: &pb::Member) -> String {
    match (member.name.as_str(), member.peer_urls.first()) {
        ("", Some(url)) => format!("({url})"),
        ("", None) => format!("({:x})", member.id),
        (name, _) => name.to_owned(),
    }
}

fn table(reply: &pb::StatusReply) -> Table {
    let mut table = Table::new(&[
        ("member", Side::Left),
        ("id", Side::Left),
        ("zone", Side::Left),
        ("state", Side::Left),
        ("heard", Side::Right),
        ("entries", Side::Right),
        ("we lack", Side::Right),
        ("it lacks", Side::Right),
        ("complete", Side::Right),
        ("sent", Side::Right),
        ("received", Side::Right),
    ]);
    let me = reply.this.as_ref().map_or(0, |this| this.id);
    for member in &reply.members {
        table.push(row(member, member.id == me));
    }
    table
}

fn row(member: &pb::Member, is_me: bool) -> Vec<(String, Look)> {
    let plain = |text: String| (text, Look::Plain);
    let is_started = member.liveness() != Liveness::Unstarted;
    let not_mine = |text: String, look| match is_me || !is_started {
        true => (UNKNOWN.to_owned(), Look::Faint),
        false => (text, look),
    };
    let lack = |number: u64| {
        let look = if number == 0 { Look::Faint } else { Look::Doubtful };
        not_mine(count(number), look)
    };
    let age = |age: Option<u64>| {
        age.map_or_else(|| UNKNOWN.to_owned(), |age| format!("{} ago", span(age)))
    };
    let silent = member.heard_age_millis.is_none_or(|age| age > SILENT_MILLIS);
    let heard = if silent { Look::Doubtful } else { Look::Plain };
    vec![
        plain(shown_name(member)),
        (format!("{:x}", member.id), Look::Faint),
        plain(member.zone.clone()),
        state(member, is_me),
        not_mine(age(member.heard_age_millis), heard),
        plain(if is_started { count(member.head) } else { UNKNOWN.to_owned() }),
        lack(member.missing_here),
        lack(member.missing_there),
        plain(age(member.complete_age_millis)),
        not_mine(size(member.sent_bytes), Look::Plain),
        not_mine(size(member.received_bytes), Look::Plain),
    ]
}

fn state(member: &pb::Member, is_me: bool) -> (String, Look) {
    let (state, look) = match member.liveness() {
        _ if is_me => ("this one", Look::Good),
        Liveness::Unstarted => ("never started", Look::Doubtful),
        Liveness::Alive => ("alive", Look::Good),
        Liveness::Suspect => ("suspect", Look::Doubtful),
        Liveness::Dead => ("dead", Look::Bad),
    };
    let learner = if member.learner { ", learner" } else { "" };
    let volatile = if member.volatile { ", volatile" } else { "" };
    let (fenced, look) = if member.fenced { (", fenced", Look::Bad) } else { ("", look) };
    let (blocked, look) = if member.blocked { (", blocked", Look::Bad) } else { ("", look) };
    (format!("{state}{learner}{volatile}{fenced}{blocked}"), look)
}

/// What else there is to know, in lines.
fn lines(reply: &pb::StatusReply) -> Vec<(&'static str, String)> {
    let this = reply.this.clone().unwrap_or_default();
    let pb::This { name, revision, keys, live_bytes, log_bytes, log_entries, .. } = this;
    let is_held = reply.held_back.is_some() && this.waiting_bytes > 0;
    let waiting = if is_held {
        format!("; {} wait for who is away", size(this.waiting_bytes))
    } else {
        String::new()
    };
    let mut lines = vec![
        (
            "this member",
            format!(
                "{name}, Starling {}; revision {revision}, {} of {}",
                this.version,
                counted(keys, "key", "keys"),
                size(live_bytes),
            ),
        ),
        (
            "log",
            format!(
                "{} on disk, {}{waiting}",
                size(log_bytes),
                counted(log_entries, "entry", "entries")
            ),
        ),
    ];
    if reply.members_total < 2 {
        return lines;
    }
    let ago = |age: Option<u64>| {
        age.map_or_else(|| "not known yet".to_owned(), |age| format!("{} ago", span(age)))
    };
    let (complete, settled) = (ago(reply.complete_age_millis), ago(reply.settled_age_millis));
    let is_held = if reply.held_back.is_some() { ", held back" } else { "" };
    lines.push(("complete", format!("here: {complete}; everywhere (settled): {settled}{is_held}")));
    if let Some(clock) = reply.this.as_ref().and_then(|this| this.clock) {
        lines.push(("clock", clock_line(clock)));
    }
    lines.extend(gossip_lines(&reply.gossip.unwrap_or_default()));
    let waiting = reply.acks_waiting.unwrap_or_default();
    let pb::AcksWaiting { one, majority, all } = waiting;
    let voters = format!("majority {} of those who vote", reply.majority);
    lines.push((
        "writes",
        match one + majority + all {
            0 => format!("none waits for others; {voters}"),
            _ => format!(
                "{} wait for one other, {} for a majority, {} for all; {voters}",
                count(one),
                count(majority),
                count(all)
            ),
        },
    ));
    let conflicts = counted(reply.conflicts, "write", "writes");
    lines.push((
        "conflicts",
        match reply.conflicts {
            0 => "none".to_owned(),
            _ => format!(
                "{conflicts} lost to others that had probably not seen them; see starling conflicts"
            ),
        },
    ));
    lines
}

fn gossip_lines(gossip: &pb::Gossip) -> [(&'static str, String); 2] {
    let pb::Gossip { rounds, exchanges, mismatches, pulls, pull_timeouts, .. } = *gossip;
    let timeouts = match pull_timeouts {
        0 => String::new(),
        _ => format!(" ({} not answered)", count(pull_timeouts)),
    };
    let mut entries = format!(
        "{} taken from others, {} came twice, {} known to be missing here",
        count(gossip.entries_taken),
        count(gossip.entries_twice),
        count(gossip.entries_missing)
    );
    for (number, one, many) in [
        (gossip.catch_ups, "catch-up", "catch-ups"),
        (gossip.merges, "state merge", "state merges"),
        (gossip.scrubs, "scrub", "scrubs"),
        (gossip.differences, "put written anew", "puts written anew"),
        (gossip.misanswers, "peer misanswered", "peers misanswered"),
    ] {
        if number > 0 {
            entries.push_str(&format!(", {}", counted(number, one, many)));
        }
    }
    [
        (
            "gossip",
            format!(
                "{}, {} compared, {} of them differed, {}{timeouts}",
                counted(rounds, "round", "rounds"),
                counted(exchanges, "digest", "digests"),
                count(mismatches),
                counted(pulls, "pull", "pulls"),
            ),
        ),
        ("entries", entries),
    ]
}

/// All of it, for programs. Ids are in hexadecimal, as etcd's tools print them: as numbers they would lose digits.
fn json(reply: &pb::StatusReply) -> Value {
    let this = reply.this.clone().unwrap_or_default();
    let gossip = reply.gossip.unwrap_or_default();
    let waiting = reply.acks_waiting.unwrap_or_default();
    json!({
        "verdict": verdict(reply).1,
        "cluster_id": id(reply.cluster_id),
        "this": {
            "id": id(this.id),
            "name": this.name,
            "run": this.run,
            "version": this.version,
            "revision": this.revision,
            "keys": this.keys,
            "live_bytes": this.live_bytes,
            "log_bytes": this.log_bytes,
            "log_entries": this.log_entries,
            "waiting_bytes": this.waiting_bytes,
            "head": this.head,
            "ready": this.ready,
            "catch_up": this.catch_up.map(|it| json!({
                "member_id": id(it.member_id),
                "thousandths": it.thousandths,
            })),
            "merging": this.merging,
            "clock": this.clock.map(|clock| json!({
                "skew_millis": clock.skew_millis,
                "wall_skew_millis": clock.wall_skew_millis,
                "confirmed": clock.confirmed,
                "fenced": clock.fenced,
            })),
        },
        "members": reply.members.iter().map(member_json).collect::<Vec<_>>(),
        "members_total": reply.members_total,
        "members_alive": reply.members_alive,
        "majority": reply.majority,
        "voters_alive": reply.voters_alive,
        "complete_age_millis": reply.complete_age_millis,
        "settled_age_millis": reply.settled_age_millis,
        "held_back": reply.held_back.as_ref().map(|held| json!({
            "member_id": id(held.member_id),
            "member_name": held.member_name,
            "reason": reason(held.reason()),
            "age_millis": held.age_millis,
        })),
        "gossip": {
            "rounds": gossip.rounds,
            "exchanges": gossip.exchanges,
            "mismatches": gossip.mismatches,
            "pulls": gossip.pulls,
            "pull_timeouts": gossip.pull_timeouts,
            "entries_taken": gossip.entries_taken,
            "entries_twice": gossip.entries_twice,
            "entries_missing": gossip.entries_missing,
            "catch_ups": gossip.catch_ups,
            "merges": gossip.merges,
            "scrubs": gossip.scrubs,
            "differences": gossip.differences,
            "misanswers": gossip.misanswers,
        },
        "acks_waiting": { "one": waiting.one, "majority": waiting.majority, "all": waiting.all },
        "conflicts": reply.conflicts,
        "last_scrub_age_millis": reply.last_scrub_age_millis,
        "gathered_age_millis": reply.gathered_age_millis,
    })
}

fn member_json(member: &pb::Member) -> Value {
    let liveness = match member.liveness() {
        Liveness::Unstarted => "unstarted",
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
    };
    json!({
        "id": id(member.id),
        "name": member.name,
        "zone": member.zone,
        "peer_urls": member.peer_urls,
        "client_urls": member.client_urls,
        "learner": member.learner,
        "volatile": member.volatile,
        "liveness": liveness,
        "heard_age_millis": member.heard_age_millis,
        "run": member.run,
        "head": member.head,
        "missing_here": member.missing_here,
        "missing_there": member.missing_there,
        "complete_age_millis": member.complete_age_millis,
        "sent_messages": member.sent_messages,
        "sent_bytes": member.sent_bytes,
        "received_messages": member.received_messages,
        "received_bytes": member.received_bytes,
        "dropped_messages": member.dropped_messages,
        "failures": member.failures,
        "conflicts": member.conflicts,
        "fenced": member.fenced,
        "blocked": member.blocked,
    })
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unknown",
        Reason::NeverMet => "never_met",
        Reason::Dead => "dead",
        Reason::Behind => "behind",
        Reason::RunNotClosed => "run_not_closed",
    }
}

fn id(id: u64) -> String {
    format!("{id:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, liveness: Liveness) -> pb::Member {
        pb::Member {
            id,
            name: name.to_owned(),
            liveness: liveness.into(),
            heard_age_millis: Some(400),
            head: 1234,
            complete_age_millis: Some(6100),
            sent_bytes: 45_600,
            received_bytes: 1200,
            ..pb::Member::default()
        }
    }

    fn three() -> pb::StatusReply {
        pb::StatusReply {
            cluster_id: 0xc1,
            this: Some(pb::This {
                id: 0xa1,
                name: "a".to_owned(),
                run: 3,
                version: "0.1.0".to_owned(),
                revision: 12_345,
                keys: 10_000,
                live_bytes: 2_600_000,
                log_bytes: 3_100_000,
                log_entries: 12_400,
                ready: true,
                ..pb::This::default()
            }),
            members: vec![
                member(0xa1, "a", Liveness::Alive),
                member(0xb2, "b", Liveness::Alive),
                pb::Member {
                    missing_there: 78,
                    heard_age_millis: Some(130_000),
                    ..member(0xc3, "c", Liveness::Alive)
                },
            ],
            members_total: 3,
            members_alive: 3,
            majority: 2,
            voters_alive: 3,
            complete_age_millis: Some(6100),
            settled_age_millis: Some(7400),
            gossip: Some(pb::Gossip {
                rounds: 1203,
                pulls: 1,
                catch_ups: 1,
                ..pb::Gossip::default()
            }),
            ..pb::StatusReply::default()
        }
    }

    fn dead(reply: &mut pb::StatusReply, count: u32) {
        reply.members_alive -= count;
        reply.voters_alive -= count;
        for member in reply.members.iter_mut().rev().take(usize::try_from(count).unwrap()) {
            member.set_liveness(Liveness::Dead);
        }
    }

    #[test]
    fn a_status_is_a_verdict_a_table_and_some_lines() {
        let rule = "\u{2500}".repeat(90);
        let expected = format!(
            "
  \u{25cf} 3 of 3 members alive, all equal up to 7.4 s ago

  member  id  state          heard  entries  we lack  it lacks   complete     sent  received
  {rule}
  a       a1  this one           -    1,234        -         -  6.1 s ago        -         -
  b       b2  alive     400 ms ago    1,234        0         0  6.1 s ago  45.6 kB    1.2 kB
  c       c3  alive      2 min ago    1,234        0        78  6.1 s ago  45.6 kB    1.2 kB

  this member  a, Starling 0.1.0; revision 12345, 10,000 keys of 2.6 MB
  log          3.1 MB on disk, 12,400 entries
  complete     here: 6.1 s ago; everywhere (settled): 7.4 s ago
  gossip       1,203 rounds, 0 digests compared, 0 of them differed, 1 pull
  entries      0 taken from others, 0 came twice, 0 known to be missing here, 1 catch-up
  writes       none waits for others; majority 2 of those who vote
  conflicts    none

"
        );
        assert_eq!(render(&three(), false), expected);
    }

    #[test]
    fn the_verdict_names_what_matters_most() {
        let mut reply = three();
        dead(&mut reply, 1);
        assert_eq!(verdict(&reply).1, "2 of 3 members alive, all equal up to 7.4 s ago");
        let (reason, member_name) = (Reason::Dead.into(), "c".to_owned());
        let age_millis = Some(720_000);
        reply.held_back = Some(pb::HeldBack { member_id: 0xc3, member_name, reason, age_millis });
        let held = "c is dead, and holds deleted keys back for 12 min";
        assert_eq!(verdict(&reply), (Look::Doubtful, format!("2 of 3 members alive; {held}")));
        dead(&mut reply, 1);
        let none = "1 of 3 members alive, no majority: 1 of the 2 that it takes";
        assert_eq!(verdict(&reply), (Look::Bad, format!("{none}; {held}")));
        if let Some(this) = &mut reply.this {
            this.catch_up = Some(pb::CatchUp { member_id: 0xb2, thousandths: 437 });
        }
        let text = verdict(&reply).1;
        assert_eq!(text, "1 of 3 members alive, this one is catching up from b: 43 %");
    }

    #[test]
    fn a_founder_without_a_name_is_known_by_its_address() {
        let mut reply = three();
        reply.members[2] = pb::Member {
            peer_urls: vec!["http://c:2380".to_owned()],
            ..member(0xc3, "", Liveness::Unstarted)
        };
        let reason = Reason::NeverMet.into();
        reply.held_back = Some(pb::HeldBack { member_id: 0xc3, reason, ..pb::HeldBack::default() });
        let text = render(&reply, false);
        assert!(text.contains("founder (http://c:2380) has never been met"), "{text}");
        assert!(text.contains("  (http://c:2380)  c3  never started"), "{text}");
    }

    #[test]
    fn programs_get_everything() {
        let mut reply = three();
        dead(&mut reply, 1);
        let json = json(&reply);
        assert_eq!(json["this"]["id"], "a1");
        assert_eq!(json["members"][2]["liveness"], "dead");
        assert_eq!(json["members"][2]["missing_there"], 78);
        assert_eq!(json["settled_age_millis"], 7400);
        assert!(json["held_back"].is_null() && json["last_scrub_age_millis"].is_null());
    }
}
