//! What the shell can do.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use starling_proto::etcdserverpb as etcd;
use starling_proto::etcdserverpb::watch_request::RequestUnion;
use starling_proto::starling::admin::v1 as pb;
use starling_proto::starling::admin::v1::Liveness;
use starling_proto::starling::admin::v1::join_reply::Outcome;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Status};

use super::session::Session;
use super::words::shown;
use crate::cli::figures::{counted, span};
use crate::cli::status;
use crate::cli::table::{Look, Side, Table};

/// Keys and values of one reply: the largest ones fit.
const PAGE_KEYS: i64 = 32;
/// Keys that are offered for what has been typed.
const COMPLETIONS_MAX: i64 = 64;
/// How long `sync` waits, unless it is told otherwise.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);
/// How long `join` and `leave` wait for the data, or for the start.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// How a request says who has to have a write, and whom a read asks.
const WRITE_ACK: &str = "starling-write-ack";
const READ: &str = "starling-read";
const MAJORITY: &str = "majority";
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// A command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// Its arguments.
    usage: &'static str,
    help: &'static str,
    /// What its arguments are, for completion.
    pub(super) takes: Takes,
    run: fn(&mut Shell<'_>, &[Vec<u8>]) -> Result<(), String>,
}

/// What the first argument of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Keys,
    Members,
    Commands,
    Nothing,
}

/// All of them, in the order in which help lists them.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "put",
        usage: "[--write-ack LEVEL] KEY VALUE",
        help: "write a key; answers when all neighbours that are alive have it",
        takes: Takes::Keys,
        run: |shell, words| shell.put(words),
    },
    Command {
        name: "get",
        usage: "[--prefix] [--value] KEY",
        help: "read a key, or all that begin so; with --value only the values, as they are",
        takes: Takes::Keys,
        run: |shell, words| shell.get(words),
    },
    Command {
        name: "del",
        usage: "[--prefix] [--write-ack LEVEL] KEY",
        help: "delete a key, or all that begin so",
        takes: Takes::Keys,
        run: |shell, words| shell.del(words),
    },
    Command {
        name: "watch",
        usage: "[--prefix] [--count N] KEY",
        help: "show changes as they come, until Ctrl-C or so many have come",
        takes: Takes::Keys,
        run: |shell, words| shell.watch(words),
    },
    Command {
        name: "join",
        usage: "HOST:PORT...",
        help: "join the member whose port for members that is, or have it join this one",
        takes: Takes::Nothing,
        run: |shell, words| shell.join(words),
    },
    Command {
        name: "leave",
        usage: "",
        help: "leave the cluster: this member goes on alone, with all data",
        takes: Takes::Nothing,
        run: |shell, words| shell.leave(words),
    },
    Command {
        name: "show",
        usage: "",
        help: "list the neighbours",
        takes: Takes::Nothing,
        run: |shell, words| shell.show(words),
    },
    Command {
        name: "sync",
        usage: "[--timeout SECONDS]",
        help: "compare notes now, and wait until all neighbours that are alive are equal",
        takes: Takes::Nothing,
        run: |shell, words| shell.sync(words),
    },
    Command {
        name: "members",
        usage: "",
        help: "list all members, this one included",
        takes: Takes::Nothing,
        run: |shell, words| shell.members(words),
    },
    Command {
        name: "remove",
        usage: "NAME|ID",
        help: "remove a member that is gone for good",
        takes: Takes::Members,
        run: |shell, words| shell.remove(words),
    },
    Command {
        name: "status",
        usage: "",
        help: "how the cluster is, as starling cluster status shows it",
        takes: Takes::Nothing,
        run: |shell, words| shell.status(words),
    },
    Command {
        name: "snapshot",
        usage: "FILE",
        help: "save all keys to a file, as etcdctl snapshot save does",
        takes: Takes::Nothing,
        run: |shell, words| shell.snapshot(words),
    },
    Command {
        name: "clear",
        usage: "",
        help: "clear the screen",
        takes: Takes::Nothing,
        run: |shell, words| shell.clear(words),
    },
    Command {
        name: "help",
        usage: "[COMMAND]",
        help: "list the commands, or say how to use one",
        takes: Takes::Commands,
        run: |shell, words| shell.help(words),
    },
    Command {
        name: "exit",
        usage: "",
        help: "end the shell, as Ctrl-D does",
        takes: Takes::Nothing,
        run: |shell, words| shell.exit(words),
    },
];

/// A shell at work.
pub(super) struct Shell<'a> {
    pub(super) session: &'a Session,
    pub(super) out: &'a mut dyn Write,
    pub(super) is_terminal: bool,
    pub(super) colours: bool,
    /// Who has a write before it is answered; `None` for what the member is set to.
    pub(super) ack: Option<AsciiMetadataValue>,
    /// Whether the user wants to go.
    pub(super) is_over: bool,
}

/// Names of members, and of levels of acknowledgement.
pub(super) fn acknowledgement(level: &str) -> Result<Option<AsciiMetadataValue>, String> {
    match level {
        "member" => Ok(None),
        "local" | "one" | MAJORITY | "all" => level.parse().map(Some).map_err(|_| String::new()),
        _ => Err(format!(
            "--write-ack takes local, one, majority, all, or member for what the member is set to, not {level:?}"
        )),
    }
}

/// The list of commands.
pub(super) fn list() -> String {
    let width = COMMANDS.iter().map(|it| it.name.len() + it.usage.len() + 1).max().unwrap_or(0);
    let line = |it: &Command| {
        let usage = format!("{} {}", it.name, it.usage);
        format!("  {usage:<width$}  {}\n", it.help)
    };
    COMMANDS.iter().map(line).collect()
}

/// The arguments of a command, its options taken out.
struct Arguments {
    options: Vec<(&'static str, String)>,
    words: Vec<Vec<u8>>,
}

impl Arguments {
    /// Reads options, of which those that end in `=` take a value, up to the first word that is none, or `--`.
    fn read(known: &[&'static str], words: &[Vec<u8>]) -> Result<Self, String> {
        let mut options = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.as_slice().first() {
            let Some(name) = word.strip_prefix(b"--") else { break };
            rest.next();
            if name.is_empty() {
                break;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (name, None),
            };
            let unknown = || format!("no option --{name}");
            let is_it = |known: &&&str| known.trim_end_matches('=') == name;
            let known = known.iter().find(is_it).ok_or_else(unknown)?;
            let value = match (known.ends_with('='), value) {
                (false, None) => String::new(),
                (false, Some(_)) => return Err(format!("--{name} takes no value")),
                (true, Some(value)) => value,
                (true, None) => {
                    let value = rest.next().ok_or_else(|| format!("--{name} takes a value"))?;
                    String::from_utf8_lossy(value).into_owned()
                }
            };
            options.push((known.trim_end_matches('='), value));
        }
        Ok(Self { options, words: rest.as_slice().to_vec() })
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The last one counts.
    fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.value(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number > 0);
        number.map(Some).ok_or_else(|| format!("--{name} takes a number, not {text:?}"))
    }

    /// So many words, and no others.
    fn words<const N: usize>(&self) -> Result<[Vec<u8>; N], String> {
        let count = self.words.len();
        let wrong = |_| match N {
            0 => "it takes no arguments".to_owned(),
            _ => format!("it takes {}, not {count}", counted(N as u64, "argument", "arguments")),
        };
        self.words.clone().try_into().map_err(wrong)
    }

    /// A key, or all that begin so, as etcd's ranges have it.
    fn range(&self) -> Result<(Bytes, Bytes), String> {
        let [key] = self.words()?;
        if !self.has("prefix") {
            if key.is_empty() {
                return Err("the key is empty".to_owned());
            }
            return Ok((key.into(), Bytes::new()));
        }
        let end = prefix_end(&key);
        Ok((if key.is_empty() { Bytes::from_static(&[0]) } else { key.into() }, end))
    }
}

/// The first key behind all that begin so.
pub(super) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

/// Keys that begin so, a few.
pub(super) fn keys(session: &Session, prefix: &[u8]) -> Result<Vec<Bytes>, String> {
    let reply = session.run(async |connection| {
        let request = etcd::RangeRequest {
            key: if prefix.is_empty() { Bytes::from_static(&[0]) } else { prefix.to_vec().into() },
            range_end: prefix_end(prefix),
            limit: COMPLETIONS_MAX,
            keys_only: true,
            serializable: true,
            ..etcd::RangeRequest::default()
        };
        connection.kv().range(connection.request(request)).await
    })?;
    Ok(reply.into_inner().kvs.into_iter().map(|kv| kv.key).collect())
}

fn others(status: &pb::StatusReply) -> impl Iterator<Item = &pb::Member> {
    let me = status.this.as_ref().map_or(0, |this| this.id);
    status.members.iter().filter(move |member| member.id != me)
}

fn alive(status: &pb::StatusReply) -> impl Iterator<Item = &pb::Member> {
    others(status).filter(|member| member.liveness() == Liveness::Alive)
}

/// Whether the two hold the same entries, as far as this one knows.
fn is_equal(member: &pb::Member) -> bool {
    member.missing_here == 0 && member.missing_there == 0
}

fn is_ready(status: &pb::StatusReply) -> bool {
    status.this.as_ref().is_some_and(|this| this.ready && this.catch_up.is_none() && !this.merging)
}

fn is_fresh(status: &pb::StatusReply, since: Duration) -> bool {
    Duration::from_millis(status.gathered_age_millis) < since
}

fn name(member: &pb::Member) -> String {
    match (member.name.as_str(), member.peer_urls.first()) {
        ("", Some(url)) => shown(url.as_bytes()),
        ("", None) => format!("{:x}", member.id),
        (name, _) => shown(name.as_bytes()),
    }
}

fn names<'a>(members: impl Iterator<Item = &'a pb::Member>) -> String {
    members.map(name).collect::<Vec<_>>().join(", ")
}

impl Shell<'_> {
    /// Does what a line says. An error is to be told, with the name of the command before it.
    pub(super) fn run(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let Some((first, rest)) = words.split_first() else { return Ok(()) };
        let is_it = |it: &&Command| it.name.as_bytes() == first || is_alias(it.name, first);
        let Some(command) = COMMANDS.iter().find(is_it) else {
            return Err(format!("no command {:?}; these there are:\n{}", shown(first), list()));
        };
        (command.run)(self, rest).map_err(|why| format!("{}: {why}", command.name))
    }

    fn say(&mut self, text: &str) -> Result<(), String> {
        self.write(text.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let written = self.out.write_all(bytes).and_then(|()| self.out.flush());
        written.map_err(|error| format!("cannot write: {error}"))
    }

    fn ack(&self, arguments: &Arguments) -> Result<Option<AsciiMetadataValue>, String> {
        match arguments.value("write-ack") {
            Some(level) => acknowledgement(level),
            None => Ok(self.ack.clone()),
        }
    }

    fn put(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&["write-ack="], words)?;
        let [key, value] = arguments.words()?;
        let ack = self.ack(&arguments)?;
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        self.session.run(async |connection| {
            let (key, value) = (key.clone(), value.clone());
            let request = etcd::PutRequest { key, value, ..etcd::PutRequest::default() };
            connection.kv().put(acknowledged(connection.request(request), &ack)).await
        })?;
        self.say("OK\n")
    }

    fn get(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&["prefix", "value"], words)?;
        let (mut key, end) = arguments.range()?;
        let (is_bare, mut revision, mut found) = (arguments.has("value"), 0, false);
        loop {
            let reply = self.session.run(async |connection| {
                let request = etcd::RangeRequest {
                    key: key.clone(),
                    range_end: end.clone(),
                    limit: PAGE_KEYS,
                    revision,
                    ..etcd::RangeRequest::default()
                };
                connection.kv().range(connection.request(request)).await
            });
            let reply = reply?.into_inner();
            for kv in &reply.kvs {
                found = true;
                if is_bare {
                    self.write(&[kv.value.as_ref(), b"\n"].concat())?;
                } else {
                    self.say(&format!("{} : {}\n", shown(&kv.key), shown(&kv.value)))?;
                }
            }
            match reply.kvs.last() {
                Some(last) if reply.more => key = [last.key.as_ref(), &[0]].concat().into(),
                _ => break,
            }
            revision = reply.header.map_or(0, |header| header.revision);
        }
        if found || arguments.has("prefix") {
            return Ok(());
        }
        Err(format!("{} not found", shown(&key)))
    }

    fn del(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&["prefix", "write-ack="], words)?;
        let (key, range_end) = arguments.range()?;
        let ack = self.ack(&arguments)?;
        let reply = self.session.run(async |connection| {
            let (key, range_end) = (key.clone(), range_end.clone());
            let request = etcd::DeleteRangeRequest { key, range_end, prev_kv: false };
            connection.kv().delete_range(acknowledged(connection.request(request), &ack)).await
        });
        let deleted = reply?.into_inner().deleted.unsigned_abs();
        self.say(&format!("{} deleted\n", counted(deleted, "key", "keys")))
    }

    fn watch(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&["prefix", "count="], words)?;
        let (key, range_end) = arguments.range()?;
        let mut left = arguments.number("count")?;
        let out = std::cell::RefCell::new(&mut *self.out);
        let left = std::cell::RefCell::new(&mut left);
        let watched = self.session.run(async |connection| {
            let create = etcd::WatchCreateRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                ..etcd::WatchCreateRequest::default()
            };
            let create = RequestUnion::CreateRequest(create);
            let create = etcd::WatchRequest { request_union: Some(create) };
            // A stream that ended would end the watch.
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
            let replies = connection.watch().watch(connection.request(requests)).await;
            let mut replies = replies?.into_inner();
            while let Some(reply) = replies.message().await? {
                if reply.canceled {
                    return Err(Status::aborted(format!(
                        "the watch has ended: {}",
                        match reply.cancel_reason.as_str() {
                            "" => "the history that it needs is gone",
                            why => why,
                        }
                    )));
                }
                for event in reply.events {
                    let line = event_line(&event);
                    let mut out = out.borrow_mut();
                    let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
                    written.map_err(|error| Status::aborted(format!("cannot write: {error}")))?;
                    if let Some(left) = left.borrow_mut().as_mut() {
                        *left -= 1;
                        if *left == 0 {
                            return Ok(());
                        }
                    }
                }
            }
            Err(Status::unavailable("the member has ended the watch"))
        });
        match watched {
            // That is how one ends.
            Err(why) if why == super::session::INTERRUPTED => Ok(()),
            watched => watched,
        }
    }

    fn join(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&[], words)?;
        if arguments.words.is_empty() {
            return Err("it takes the address of a member, as in: join 10.0.0.2:2380".to_owned());
        }
        let contacts: Vec<_> =
            arguments.words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        self.say(&format!("connecting to {} ...\n", shown(contacts.join(", ").as_bytes())))?;
        let reply = self.session.run(async |connection| {
            let request = pb::JoinRequest { contacts: contacts.clone() };
            connection.cluster().join(connection.request(request)).await
        });
        let reply = reply?.into_inner();
        let contact = shown(reply.member_name.as_bytes());
        let doing = match reply.outcome() {
            Outcome::Already => return self.say(&format!("{contact} is a neighbour already\n")),
            Outcome::Called => format!("connected; {contact} joins this member ...\n"),
            Outcome::Joins | Outcome::Unspecified => {
                format!("connected; this member joins {contact} ...\n")
            }
        };
        self.say(&doing)?;
        let (is_done, status) = self.session.until(JOIN_PATIENCE, |status, elapsed| {
            let is_there =
                |member: &pb::Member| member.name == reply.member_name && is_equal(member);
            is_ready(status) && is_fresh(status, elapsed) && alive(status).any(is_there)
        })?;
        if !is_done {
            return Err(format!(
                "not done after {}; it goes on: see status",
                span(u64::try_from(JOIN_PATIENCE.as_millis()).unwrap_or(u64::MAX))
            ));
        }
        self.say(&format!(
            "joined: the cluster has {}\n",
            counted(u64::from(status.members_total), "member", "members")
        ))
    }

    fn leave(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        let reply = self.session.run(async |connection| {
            connection.cluster().leave(connection.request(pb::LeaveRequest {})).await
        });
        if !reply?.into_inner().left {
            return self.say("this member has no neighbours\n");
        }
        let is_alone =
            |status: &pb::StatusReply, _| is_ready(status) && others(status).next().is_none();
        let (is_done, _) = self.session.until(JOIN_PATIENCE, is_alone)?;
        if !is_done {
            return Err("not done yet; it goes on: see status".to_owned());
        }
        self.say("left: this member goes on alone, with all data\n")
    }

    fn show(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        let status = self.session.status()?;
        let mut text = String::new();
        for member in others(&status) {
            let urls = shown(member.peer_urls.join(" ").as_bytes());
            text.push_str(&format!("{}  {urls}  {}\n", name(member), state(member)));
        }
        if text.is_empty() {
            text.push_str("this member has no neighbours\n");
        }
        self.say(&text)
    }

    fn sync(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let arguments = Arguments::read(&["timeout="], words)?;
        let [] = arguments.words()?;
        let patience = arguments.number("timeout")?.map_or(SYNC_PATIENCE, Duration::from_secs);
        if others(&self.session.status()?).next().is_none() {
            return self.say("this member has no neighbours\n");
        }
        // Members compare notes for a read that a majority has to confirm. Without a majority the rest is all there is.
        let _ = self.session.run(async |connection| {
            let key = Bytes::from_static(&[0]);
            let request = etcd::RangeRequest { key, limit: 1, ..etcd::RangeRequest::default() };
            let mut request = connection.request(request);
            request.metadata_mut().insert(READ, AsciiMetadataValue::from_static(MAJORITY));
            connection.kv().range(request).await
        });
        let (is_done, status) = self.session.until(patience, |status, elapsed| {
            is_ready(status) && is_fresh(status, elapsed) && alive(status).all(is_equal)
        })?;
        let apart = names(alive(&status).filter(|member| !is_equal(member)));
        let absent = names(others(&status).filter(|it| it.liveness() != Liveness::Alive));
        if !is_done {
            return Err(if apart.is_empty() {
                "not in time".to_owned()
            } else {
                format!("{apart} differs still")
            });
        }
        if !absent.is_empty() {
            return Err(format!("{absent} cannot be reached; all others are equal"));
        }
        self.say(&format!("equal: {}\n", names(alive(&status))))
    }

    fn members(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        let status = self.session.status()?;
        let me = status.this.as_ref().map_or(0, |this| this.id);
        let mut table = Table::new(&[
            ("member", Side::Left),
            ("id", Side::Left),
            ("state", Side::Left),
            ("for members", Side::Left),
            ("for clients", Side::Left),
        ]);
        for member in &status.members {
            let is_me = member.id == me;
            let state = if is_me { "this one".to_owned() } else { state(member).to_owned() };
            let look =
                if is_me || member.liveness() == Liveness::Alive { Look::Good } else { Look::Bad };
            table.push(vec![
                (name(member), Look::Plain),
                (format!("{:x}", member.id), Look::Faint),
                (state, look),
                (shown(member.peer_urls.join(" ").as_bytes()), Look::Plain),
                (shown(member.client_urls.join(" ").as_bytes()), Look::Plain),
            ]);
        }
        let text = table.text(self.colours);
        self.say(&text)
    }

    fn remove(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [wanted] = Arguments::read(&[], words)?.words()?;
        let wanted = String::from_utf8_lossy(&wanted).into_owned();
        let status = self.session.status()?;
        let is_wanted =
            |member: &&pb::Member| member.name == wanted || format!("{:x}", member.id) == wanted;
        let found: Vec<_> = status.members.iter().filter(is_wanted).collect();
        let [member] = found.as_slice() else {
            return Err(match found.len() {
                0 => format!("no member {}", shown(wanted.as_bytes())),
                _ => {
                    format!("several members are called {}: give its id", shown(wanted.as_bytes()))
                }
            });
        };
        let id = member.id;
        self.session.run(async |connection| {
            let request = connection.request(etcd::MemberRemoveRequest { id });
            connection.etcd_cluster().member_remove(request).await
        })?;
        self.say(&format!("removed {}\n", name(member)))
    }

    fn status(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        let text = status::render(&self.session.status()?, self.colours);
        self.say(&text)
    }

    fn snapshot(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [path] = Arguments::read(&[], words)?.words()?;
        let path = String::from_utf8(path).map_err(|_| "the name of the file is not UTF-8")?;
        let part = format!("{path}.part");
        let cannot =
            |error: std::io::Error| Status::aborted(format!("cannot write {path}: {error}"));
        let bytes = self.session.run(async |connection| {
            let request = connection.request(etcd::SnapshotRequest {});
            let mut pieces = connection.maintenance().snapshot(request).await?.into_inner();
            let mut file = std::fs::File::create(&part).map_err(cannot)?;
            let mut bytes = 0;
            while let Some(piece) = pieces.message().await? {
                file.write_all(&piece.blob).map_err(cannot)?;
                bytes += piece.blob.len() as u64;
            }
            file.sync_all().map_err(cannot)?;
            std::fs::rename(&part, &path).map_err(cannot)?;
            Ok(bytes)
        })?;
        let text =
            format!("{} saved to {}\n", crate::cli::figures::size(bytes), shown(path.as_bytes()));
        self.say(&text)
    }

    fn clear(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        if self.is_terminal { self.say(CLEAR) } else { Ok(()) }
    }

    fn help(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [name] = words else { return self.say(&list()) };
        let command = COMMANDS.iter().find(|it| it.name.as_bytes() == name);
        let command = command.ok_or_else(|| format!("no command {:?}", shown(name)))?;
        self.say(&format!("{} {}\n  {}\n", command.name, command.usage, command.help))
    }

    fn exit(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        let [] = Arguments::read(&[], words)?.words()?;
        self.is_over = true;
        Ok(())
    }
}

fn is_alias(name: &str, word: &[u8]) -> bool {
    matches!((name, word), ("exit", b"quit") | ("del", b"delete") | ("help", b"?"))
}

fn state(member: &pb::Member) -> &'static str {
    match member.liveness() {
        Liveness::Alive if is_equal(member) => "alive",
        Liveness::Alive => "alive, not equal yet",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
        Liveness::Unstarted => "never started",
    }
}

fn acknowledged<T>(mut request: Request<T>, ack: &Option<AsciiMetadataValue>) -> Request<T> {
    if let Some(ack) = ack {
        request.metadata_mut().insert(WRITE_ACK, ack.clone());
    }
    request
}

fn event_line(event: &starling_proto::mvccpb::Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    match event.r#type() {
        starling_proto::mvccpb::event::EventType::Put => {
            format!("put {} : {}\n", shown(&kv.key), shown(&kv.value))
        }
        starling_proto::mvccpb::event::EventType::Delete => format!("del {}\n", shown(&kv.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(known: &[&'static str], line: &str) -> Result<Arguments, String> {
        Arguments::read(known, &super::super::words::split(line.as_bytes()).unwrap())
    }

    #[test]
    fn options_come_first() {
        let known = ["prefix", "count="];
        let arguments = read(&known, "--count 3 --prefix k").unwrap();
        assert_eq!(arguments.number("count"), Ok(Some(3)));
        assert!(arguments.has("prefix"));
        assert_eq!(arguments.range().unwrap(), (Bytes::from("k"), Bytes::from("l")));
        let arguments = read(&known, "-- --prefix").unwrap();
        assert_eq!(arguments.range().unwrap(), (Bytes::from("--prefix"), Bytes::new()));
        for (line, why) in [
            ("--many k", "no option --many"),
            ("--prefix=1 k", "--prefix takes no value"),
            ("--count", "--count takes a value"),
        ] {
            assert_eq!(read(&known, line).err().as_deref(), Some(why), "{line}");
        }
        let none = read(&known, "--count none").unwrap();
        assert_eq!(none.number("count"), Err("--count takes a number, not \"none\"".to_owned()));
        let three = read(&known, "a b c").unwrap().words::<2>();
        assert_eq!(three, Err("it takes 2 arguments, not 3".to_owned()));
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_end(b"ab"), Bytes::from("ac"));
        assert_eq!(prefix_end(b"a\xff"), Bytes::from("b"));
        assert_eq!(prefix_end(b"\xff\xff"), Bytes::from_static(&[0]));
        assert_eq!(prefix_end(b""), Bytes::from_static(&[0]));
    }

    #[test]
    fn every_command_is_listed() {
        let list = list();
        for command in COMMANDS {
            assert!(list.contains(&format!("  {} ", command.name)), "{list}");
        }
    }
}
