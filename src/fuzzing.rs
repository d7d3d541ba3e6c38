//! Every decoder of bytes from disk or network, as a function that takes any bytes.
//!
//! A target panics if something is wrong: what it calls must refuse bytes that make no sense, must not change those that
//! it takes, and must not take the process down. The tests here give each target arbitrary bytes, mutations of valid
//! ones, and every file that is kept in `bench/fuzz/corpus`; `bench/fuzz` has the same functions for libFuzzer.

mod peer;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http::{HeaderMap, Request};
use http_body::{Body, Frame};
use prost::Message;
use starling_proto::etcdserverpb as pb;
use tonic::Status;

use crate::api::convert;
use crate::engine::command::{Command, DeleteRange, Put, Range};
use crate::engine::watch::Stream;
use crate::engine::{Options, Writer};
use crate::replication::message::Head;
use crate::storage::schema::{
    AlarmRecord, Identity, LeaseRecord, Meta, Op, OriginIndex, Place, Row, RowStamp, Table,
};
use crate::storage::{Batch, Disk, DiskOptions, Durability, Memory, Space, Store};
use crate::time::{Now, Timestamp};
use crate::types::{
    Alarm, AlarmKind, ClusterId, KeyRange, KeyValue, LeaseId, MemberId, Origin, Revision,
};
use crate::{api, config, http as server, storage};

/// What is given any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("row", row),
    ("meta", meta),
    ("journal", journal),
    ("restore", restore),
    ("directory", directory),
    ("requests", requests),
    ("framing", framing),
    ("http", http_heads),
    ("gateway", gateway),
    ("settings", settings),
    ("peer_frame", peer::frames),
];

const NOW: Now = Now { wall_millis: 1_000, monotonic_millis: 0 };
const TXN_OPS_MAX: usize = 128;
const PICKED_LEASE: i64 = 77;
/// What is read of a log at a time.
const READ_BYTES_MAX: usize = 1 << 16;
/// How many origins a store in [`restore`] knows.
const ORIGINS: u32 = 4;
/// The largest message in [`framing`].
const MESSAGE_BYTES_MAX: usize = 64;

/// Takes small pieces of the input to decide by.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn short(&mut self, length_max: usize) -> Bytes {
        let length = self.below(length_max + 1);
        Bytes::copy_from_slice(self.bytes(length))
    }

    /// Small mostly, and sometimes anything.
    fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..0xf0 => u64::from(small),
            0xf0 => u64::MAX,
            0xf1 => u64::from(u32::MAX),
            0xf2 => i64::MAX.cast_unsigned(),
            _ => self.0.try_get_u64().unwrap_or(u64::MAX),
        }
    }

    fn number_u32(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }
}

/// A row of the log: its place, then its value. What is read is written as it was.
fn row(input: &[u8]) {
    let (place, value) =
        input.split_at(input.len().min(Place::first_of(Revision(0)).encode().len()));
    let Ok(place) = Place::decode(place, 0) else { return };
    if let Ok(row) = Row::decode(place, Bytes::copy_from_slice(value)) {
        assert_eq!(row.encode(place), value, "{row:?}");
    }
}

/// A row about the store: the length of its key, the key, the value.
fn meta(input: &[u8]) {
    let mut choices = Choices(input);
    let key = choices.short(16);
    if let Ok(meta) = Meta::decode(&key, Bytes::copy_from_slice(choices.0)) {
        assert_eq!(meta.encode(), (key, Bytes::copy_from_slice(choices.0)), "{meta:?}");
    }
}

/// A directory of its own for each thread, removed with it.
fn with_directory<T>(work: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static DIRECTORY: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    DIRECTORY.with_borrow_mut(|directory| {
        let directory = directory.get_or_insert_with(|| tempfile::tempdir().expect("a directory"));
        for entry in fs::read_dir(directory.path()).expect("it is there").flatten() {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .expect("it is ours");
        }
        work(directory.path())
    })
}

/// Journals: how long the first one is, which may be nothing, and the bytes of both. What passes the check once passes
/// it again, unchanged.
fn journal(input: &[u8]) {
    let mut choices = Choices(input);
    let first = usize::from(u16::from_le_bytes([choices.byte(), choices.byte()]));
    let first = choices.bytes(first);
    let second = choices.0;
    with_directory(|directory| {
        let paths = [directory.join("1.jnl"), directory.join("2.jnl")];
        fs::write(&paths[0], first).expect("there is room");
        fs::write(&paths[1], second).expect("there is room");
        if storage::check_journals(directory).is_err() {
            return;
        }
        let left = paths.clone().map(|path| fs::read(path).expect("it was kept"));
        assert_eq!(left[0], first, "an older journal is not touched");
        assert!(second.starts_with(&left[1]), "a torn batch is cut off, no more");
        storage::check_journals(directory).expect("it was found good");
        assert_eq!(left, paths.map(|path| fs::read(path).expect("it was kept")));
    });
}

fn writer_options() -> Options {
    let identity = Identity { member: MemberId(1), cluster: ClusterId(2) };
    Options { value_cache_bytes: 1 << 16, ..Options::new(identity) }
}

/// A store with well-formed rows that need not make sense together, as a bug or a hand might leave them. It is refused,
/// or works.
fn restore(input: &[u8]) {
    let mut choices = Choices(input);
    let store = Memory::new();
    let mut batch = Batch::default();
    for number in 0..ORIGINS {
        let origin = Origin { member: MemberId(u64::from(number)), run: 1 };
        let (key, value) = Meta::Origin(OriginIndex(number), origin).encode();
        batch.put(Space::Meta, key, value);
    }
    let mut places = BTreeSet::new();
    while !choices.is_empty() {
        if choices.byte().is_multiple_of(3) {
            let (key, value) = any_meta(&mut choices).encode();
            batch.put(Space::Meta, key, value);
            continue;
        }
        let place = Place { revision: any_revision(&mut choices), n: choices.number_u32() };
        // Rows are written once.
        if places.insert(place) {
            let row = any_row(&mut choices, place);
            batch.put(Space::Log, place.encode(), row.encode(place));
        }
    }
    let store = Store::Memory(store);
    store.commit(batch, Durability::Fsync).expect("memory takes it");
    if let Ok(writer) = Writer::open(store.clone(), &writer_options(), NOW) {
        use_store(writer);
        if let Ok(writer) = Writer::open(store, &writer_options(), NOW) {
            use_store(writer);
        }
    }
}

fn any_revision(choices: &mut Choices<'_>) -> Revision {
    Revision(choices.number()).with_tag(0)
}

fn any_meta(choices: &mut Choices<'_>) -> Meta {
    match choices.byte() {
        0xf0.. => Meta::Tag(u16::try_from(choices.number()).unwrap_or(u16::MAX)),
        0xe0.. => Meta::Promised(Timestamp(choices.number()), Timestamp(choices.number())),
        kind => any_other_meta(kind, choices),
    }
}

fn any_other_meta(kind: u8, choices: &mut Choices<'_>) -> Meta {
    match kind % 9 {
        0 => Meta::Identity(writer_options().identity),
        1 => {
            let member = MemberId(choices.number());
            let origin = Origin { member, run: choices.number() };
            Meta::Origin(OriginIndex(choices.number_u32()), origin)
        }
        2 => Meta::Compacted(any_revision(choices)),
        3 => Meta::Run(any_origin(choices), choices.number()),
        4 => Meta::Swept(any_revision(choices), Timestamp(choices.number())),
        5 => Meta::Head(any_origin(choices), choices.number()),
        6 => Meta::Settled(Timestamp(choices.number())),
        7 => Meta::Collected(Timestamp(choices.number())),
        _ => Meta::Peered(Timestamp(choices.number())),
    }
}

fn any_stamp(choices: &mut Choices<'_>) -> RowStamp {
    let origin = any_origin(choices);
    RowStamp { time: Timestamp(choices.number()), origin }
}

/// One that is there, as a rule.
fn any_origin(choices: &mut Choices<'_>) -> OriginIndex {
    match choices.byte() {
        0xff => OriginIndex(choices.number_u32()),
        byte => OriginIndex(u32::from(byte) % ORIGINS),
    }
}

/// A lease, an alarm, or what is neither.
fn any_record(choices: &mut Choices<'_>) -> (Table, Bytes, Bytes) {
    match choices.byte() % 4 {
        0 | 1 => {
            let id = LeaseId(choices.number().cast_signed());
            let (ttl_seconds, owner) = (choices.number(), MemberId(choices.number()));
            let lease = LeaseRecord { id, ttl_seconds, owner };
            (Table::Lease, LeaseRecord::key(id), lease.value())
        }
        2 => {
            let kind = if choices.byte() == 0 { AlarmKind::NoSpace } else { AlarmKind::Corrupt };
            let alarm = Alarm { kind, member: MemberId(choices.number()) };
            (Table::Alarm, AlarmRecord::key(alarm), AlarmRecord { alarm }.value())
        }
        _ => (Table::Member, choices.short(3), choices.short(8)),
    }
}

fn any_row(choices: &mut Choices<'_>, place: Place) -> Row {
    let key = choices.short(3);
    let op = match choices.byte() % 8 {
        0..4 => Op::Put(KeyValue {
            key,
            create_revision: Revision(place.revision.0.saturating_sub(choices.number())),
            mod_revision: place.revision,
            version: choices.number(),
            value: choices.short(8),
            lease: LeaseId(choices.number().cast_signed()),
        }),
        4..6 => Op::Delete { key, seen: any_stamp(choices) },
        6 => {
            let (table, key, value) = any_record(choices);
            let seen = choices.byte().is_multiple_of(2).then(|| any_stamp(choices));
            Op::InternalPut { table, key, value, seen }
        }
        _ => {
            let (table, key, _) = any_record(choices);
            Op::InternalDelete { table, key }
        }
    };
    Row {
        stamp: any_stamp(choices),
        seq: choices.number(),
        op_number: choices.number_u32(),
        last: choices.byte().is_multiple_of(2),
        hidden: choices.byte().is_multiple_of(8),
        op,
    }
}

/// Everything that a store which opens must stand. Errors are fine.
fn use_store(mut writer: Writer) {
    let everything = || Range::new(KeyRange::all());
    let read = |writer: &Writer, range: &Range| drop(writer.mvcc().reader().range(range));
    let key = Bytes::from_static(b"new");
    let put = Put {
        key: key.clone(),
        value: Bytes::from_static(b"value"),
        lease: LeaseId::NONE,
        prev_kv: true,
        ignore_value: false,
        ignore_lease: false,
    };
    read(&writer, &everything());
    read(&writer, &Range { count_only: true, ..everything() });
    let _ = writer.execute(Command::Put(put), NOW);
    writer.commit().expect("memory takes it");
    let revision = writer.mvcc().revision().shown();
    read(&writer, &Range { revision: revision.saturating_sub(1), ..everything() });
    let _ = writer.execute(Command::Compact { revision: revision.saturating_sub(1) }, NOW);
    let delete = DeleteRange { range: KeyRange::all(), prev_kv: true };
    let _ = writer.execute(Command::DeleteRange(delete), NOW);
    writer.commit().expect("memory takes it");
    while writer.can_reclaim() {
        writer.reclaim();
    }
    if let Some(sweep) = writer.begin_sweep(true).expect("memory takes it") {
        sweep.run(writer.mvcc()).expect("its rows were read before");
        writer.end_sweep(&sweep);
        writer.commit().expect("memory takes it");
    }
    read(&writer, &everything());
    let heads = writer.heads();
    let none: Vec<Head> = heads.iter().map(|head| Head { seq: 0, ..*head }).collect();
    let segments = writer.mvcc().segments(&none, &heads, READ_BYTES_MAX).expect("memory gives it");
    let state =
        writer.mvcc().catch_up(&none, (None, None), READ_BYTES_MAX).expect("memory gives it");
    // Whatever a store says, others take it or leave it.
    let store = Store::Memory(Memory::new());
    let identity = Identity { member: MemberId(99), cluster: ClusterId(2) };
    let mut other = Writer::open(store, &Options::new(identity), NOW).expect("it is empty");
    for segment in segments {
        other.apply(&segment, NOW).expect("memory takes it");
    }
    other.apply_catch_up(&state.entries, NOW).expect("memory takes it");
    other.commit().expect("memory takes it");
    read(&other, &everything());
}

/// The files of a small store: their paths, and what is in them but for zeros at the end.
fn sound_files() -> &'static [(PathBuf, Vec<u8>)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(&DiskOptions::new(directory.path())).expect("it is empty");
        let store = Store::Disk(disk);
        commit_sound(&store, 0..SOUND_ROWS / 2);
        // What is in tables, and what is in the journal only.
        store.sweep(Arc::new(|_, _| Ok(false))).expect("it works");
        commit_sound(&store, SOUND_ROWS / 2..SOUND_ROWS);
        drop(store);
        let mut files = Vec::new();
        collect(directory.path(), Path::new(""), &mut files);
        files
    })
}

const SOUND_ROWS: u64 = 8;

/// The rows of the small store, each in a batch of its own.
fn commit_sound(store: &Store, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut batch = Batch::default();
        let (key, value) = sound_row(number);
        batch.put(Space::Log, key, value);
        store.commit(batch, Durability::Fsync).expect("there is room");
    }
}

fn sound_row(number: u64) -> (Bytes, Bytes) {
    let place = Place::first_of(Revision(2 + number));
    let kv = KeyValue {
        key: format!("key {number}").into(),
        create_revision: place.revision,
        mod_revision: place.revision,
        version: 1,
        value: vec![b'v'; 600].into(),
        lease: LeaseId::NONE,
    };
    let stamp = RowStamp { time: Timestamp(number), origin: OriginIndex(0) };
    let row =
        Row { stamp, seq: number + 1, op_number: 0, last: true, hidden: false, op: Op::Put(kv) };
    (place.encode(), row.encode(place))
}

fn collect(root: &Path, within: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    let entries = fs::read_dir(root.join(within)).expect("it is there").map(|e| e.expect("it is"));
    let mut names: Vec<_> = entries.map(|entry| within.join(entry.file_name())).collect();
    names.sort();
    for name in names {
        if root.join(&name).is_dir() {
            collect(root, &name, files);
        } else {
            let mut bytes = fs::read(root.join(&name)).expect("it is there");
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            files.push((name, bytes));
        }
    }
}

/// A sound store in which some bytes were changed, added or lost: it is refused, or gives rows that were written.
fn directory(input: &[u8]) {
    let mut files = sound_files().to_vec();
    let mut choices = Choices(input);
    while !choices.is_empty() {
        damage(&mut files, &mut choices);
    }
    with_directory(|root| {
        for (path, bytes) in &files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap_or(root)).expect("there is room");
            fs::write(path, bytes).expect("there is room");
        }
        let Ok(disk) = Disk::open(&DiskOptions::new(root)) else { return };
        let rows = Store::Disk(disk).rows(Space::Log, Bound::Unbounded, Bound::Unbounded);
        let sound: BTreeSet<_> = (0..SOUND_ROWS).map(sound_row).collect();
        for row in rows.map_while(Result::ok) {
            assert!(sound.contains(&row), "nobody wrote {row:?}");
        }
    });
}

fn damage(files: &mut Vec<(PathBuf, Vec<u8>)>, choices: &mut Choices<'_>) {
    if files.is_empty() {
        *choices = Choices(&[]);
        return;
    }
    let file = choices.below(files.len());
    let bytes = &mut files[file].1;
    let at = usize::from(u16::from_le_bytes([choices.byte(), choices.byte()]));
    let at = at % bytes.len().max(1);
    match choices.byte() % 8 {
        0..4 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= choices.byte().max(1);
            }
        }
        4 => bytes.truncate(at),
        5 => bytes.extend_from_slice(choices.bytes(16)),
        6 => {
            let length = choices.below(64).min(bytes.len() - at);
            bytes[at..at + length].fill(0);
        }
        _ => drop(files.remove(file)),
    }
}

/// Requests as a client may send them, one after the other: which, how long, the message. What can be decoded is
/// carried out.
fn requests(input: &[u8]) {
    let mut choices = Choices(input);
    let store = Store::Memory(Memory::new());
    let mut writer = Writer::open(store, &writer_options(), NOW).expect("it is empty");
    let (hub, mvcc) = (Arc::clone(writer.hub()), Arc::clone(writer.mvcc()));
    let mut watchers = Stream::new(hub, mvcc, Box::new(|| {}));
    while !choices.is_empty() {
        let kind = choices.byte();
        let length = usize::from(u16::from_le_bytes([choices.byte(), choices.byte()]));
        let message = Bytes::copy_from_slice(choices.bytes(length));
        if let Some(command) = request(kind, message, &writer, &mut watchers) {
            let _ = writer.execute(command, NOW);
            writer.commit().expect("memory takes it");
        }
    }
    while let Ok(Some(_)) = watchers.poll() {}
    use_store(writer);
}

/// Decodes a message; what was decoded is the same when it is encoded again.
fn decode<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: Bytes) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let again = M::decode(&*message.encode_to_vec()).expect("it was encoded here");
    assert!(again == message, "{message:?} became {again:?}");
    Some(message)
}

fn request(kind: u8, bytes: Bytes, writer: &Writer, watchers: &mut Stream) -> Option<Command> {
    match kind % 12 {
        0 => {
            let range = convert::range(decode(bytes)?).ok()?;
            let _ = writer.mvcc().reader().range(&range);
        }
        1 => return convert::put(decode(bytes)?).ok().map(Command::Put),
        2 => return convert::delete_range(decode(bytes)?).ok().map(Command::DeleteRange),
        3 => {
            let txn = convert::txn(decode(bytes)?, TXN_OPS_MAX).ok()?;
            return txn.check(TXN_OPS_MAX).is_ok().then_some(Command::Txn(txn));
        }
        4 => {
            let revision = decode::<pb::CompactionRequest>(bytes)?.revision;
            return Some(Command::Compact { revision });
        }
        5 => watch(&decode(bytes)?, watchers),
        6 => {
            let grant: pb::LeaseGrantRequest = decode(bytes)?;
            // For those who leave it open the member picks one.
            let id = LeaseId(if grant.id == 0 { PICKED_LEASE } else { grant.id });
            return Some(Command::LeaseGrant { id, ttl_seconds: grant.ttl });
        }
        7 => {
            let id = LeaseId(decode::<pb::LeaseRevokeRequest>(bytes)?.id);
            return Some(Command::LeaseRevoke { id });
        }
        8 => {
            let id = LeaseId(decode::<pb::LeaseKeepAliveRequest>(bytes)?.id);
            let _ = writer.lessor().keep_alive(id, NOW);
        }
        9 => {
            let id = decode::<pb::LeaseTimeToLiveRequest>(bytes)?.id;
            let _ = writer.lessor().status(LeaseId(id), true, NOW);
        }
        10 => drop(decode::<pb::AlarmRequest>(bytes)),
        _ => drop(decode::<pb::HashKvRequest>(bytes)),
    }
    None
}

fn watch(request: &pb::WatchRequest, watchers: &mut Stream) {
    use pb::watch_request::RequestUnion;
    match &request.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            watchers.create(convert::watch_create(create));
        }
        Some(RequestUnion::CancelRequest(cancel)) => watchers.cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => watchers.request_progress(),
        None => {}
    }
}

/// A body that is there already.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl Body for Pieces<'_> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
        let piece = self.0.next().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
        std::task::Poll::Ready(piece)
    }
}

/// The body of a call, in pieces of a size: what arrives does not depend on how it was cut.
fn framing(input: &[u8]) {
    let mut choices = Choices(input);
    let size = choices.below(16) + 1;
    let whole = answer(choices.0, choices.0.len().max(1));
    let pieces = answer(choices.0, size);
    // Of two faults that it has, the one that is noticed first may be another.
    assert_eq!(
        whole.clone().ok(),
        pieces.clone().ok(),
        "{whole:?}, in pieces of {size} {pieces:?}"
    );
}

/// The length of the key that arrives, or how it fails.
fn answer(body: &[u8], size: usize) -> Result<usize, (tonic::Code, String)> {
    let arrived = std::cell::Cell::new(None);
    let limits =
        server::limit::Limits { max_bytes: MESSAGE_BYTES_MAX, max_time: Duration::from_secs(1) };
    let body = server::limit::MessageLimit::new(Pieces(body.chunks(size)), limits);
    let handle = async |request: tonic::Request<pb::RangeRequest>| {
        arrived.set(Some(request.into_inner().key.len()));
        Ok(tonic::Response::new(pb::RangeResponse::default()))
    };
    let response =
        api::unary::answer(Request::new(body), api::unary::unchecked, handle).now_or_never();
    let response = response.expect("all of it is there");
    match (arrived.get(), Status::from_header_map(response.headers())) {
        (Some(length), None) => Ok(length),
        (None, Some(status)) => Err((status.code(), status.message().to_owned())),
        (length, status) => panic!("{length:?} and {status:?}"),
    }
}

/// Paths of the gateway whose messages have all kinds of fields.
const GATEWAY_PATHS: &[&str] = &[
    "/v3/kv/range",
    "/v3/kv/put",
    "/v3/kv/deleterange",
    "/v3/kv/txn",
    "/v3/watch",
    "/v3/lease/grant",
    "/v3/lease/keepalive",
    "/v3/maintenance/alarm",
    "/v3/cluster/member/add",
    "/v3/auth/role/grant",
];
/// What JSON can grow by: `-1` in a list takes three bytes in JSON and ten in protobuf; and the frame.
const JSON_GROWTH: usize = 4;
const FRAME_BYTES: usize = 5;

/// A body for the gateway: which path, in pieces of which size, the JSON. However it is cut, the same messages arrive.
fn gateway(input: &[u8]) {
    let mut choices = Choices(input);
    let path = GATEWAY_PATHS[choices.below(GATEWAY_PATHS.len())];
    let size = choices.below(16) + 1;
    let json = choices.0;
    let look = |size| server::gateway::look(path, json, size).expect("a path of etcd's");
    let ((first, whole), (_, pieces)) = (look(json.len().max(1)), look(size));
    assert_eq!(whole, pieces, "in pieces of {size}");
    for frame in whole.iter().chain(&first.ok()) {
        assert!(frame.len() <= json.len() * JSON_GROWTH + FRAME_BYTES, "{frame:?}");
    }
}

/// What the first lines of a request say: a URL, and headers with a colon each.
fn http_heads(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let url = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = http::HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = http::HeaderValue::from_bytes(parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    if let Ok(url) = http::Uri::try_from(url) {
        *request.uri_mut() = url;
    }
    server::paths::look(request.uri());
    api::router::look(&request);
}

/// Settings: where they come from, and words between zero bytes. They are refused with a text, or taken.
fn settings(input: &[u8]) {
    let mut choices = Choices(input);
    let from = choices.byte();
    let text = String::from_utf8_lossy(choices.0).into_owned();
    let words: Vec<String> = text.split('\0').map(str::to_owned).collect();
    let pairs = || words.chunks(2).map(|pair| (pair[0].clone(), pair.last().cloned()));
    let loaded = match from % 3 {
        0 => config::load("starling", &words, [], |_| Ok(String::new())),
        1 => {
            let variables = pairs().map(|(name, value)| (name, value.unwrap_or_default()));
            config::load("etcd", &[], variables, |_| Ok(String::new()))
        }
        _ => config::load("starling", &["--config-file=f".to_owned()], [], |_| Ok(text.clone())),
    };
    if let Err(error) = loaded {
        assert!(!error.text.is_empty() && matches!(error.code, 1 | 2), "{error:?}");
    }
}

#[cfg(test)]
mod tests;
