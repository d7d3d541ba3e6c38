use std::path::PathBuf;

use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Set to write the valid encodings into the corpus.
const UPDATE: &str = "STARLING_UPDATE_CORPUS";
/// The corpus is in the repository.
const CORPUS_BYTES_MAX: u64 = 200 * 1024;
const INPUT_BYTES_MAX: usize = 512;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/fuzz/corpus")
}

/// The kept inputs of a target, with their names.
fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(target)).expect("each target has a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).expect("it is in the table").1
}

/// A change of some bytes: where, and what.
#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let special = prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff]);
    prop_oneof![
        4 => (at(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip(at, bits)),
        2 => (at(), vec(prop_oneof![any::<u8>(), special], 1..9))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), 1..9_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (at(), 1..32_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let piece = |bytes: &[u8], at: usize, length: usize| at..bytes.len().min(at + length);
    match change {
        Change::Flip(at, bits) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Change::Flip(..) => {}
        Change::Insert(at, new) => {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, new.iter().copied());
        }
        Change::Remove(at, length) => {
            let at = at.index(bytes.len() + 1);
            bytes.drain(piece(bytes, at, *length));
        }
        Change::Repeat(at, length) => {
            let at = at.index(bytes.len() + 1);
            let again = bytes[piece(bytes, at, *length)].to_vec();
            bytes.splice(at..at, again);
        }
        Change::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
    }
}

/// Arbitrary bytes, and what is kept of this target, changed.
fn input(kept: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed = (prop::sample::select(kept), vec(change(), 1..6)).prop_map(|(kept, changes)| {
        changes.iter().fold(kept, |mut bytes, change| {
            apply(&mut bytes, change);
            bytes
        })
    });
    prop_oneof![1 => vec(any::<u8>(), 0..INPUT_BYTES_MAX), 3 => changed]
}

fn try_target(name: &str, cases: u32) {
    let target = target(name);
    for (path, bytes) in kept(name) {
        println!("{}", path.display());
        target(&bytes);
    }
    let kept = kept(name).into_iter().map(|(_, bytes)| bytes).collect();
    // `PROPTEST_CASES` asks for more than the usual 256 of a property.
    let usual = u64::from(Config::default().cases);
    let cases = u32::try_from(u64::from(cases) * usual / 256).unwrap_or(u32::MAX).max(1);
    let config = Config { failure_persistence: None, cases, ..Config::default() };
    TestRunner::new(config)
        .run(&input(kept), |bytes| {
            target(&bytes);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

macro_rules! targets {
    ($($name:ident: $cases:expr,)*) => {
        $(#[test]
        fn $name() {
            try_target(stringify!($name), $cases);
        })*

        #[test]
        fn all_targets_are_tried() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    row: 2000,
    meta: 2000,
    journal: 500,
    restore: 500,
    directory: 32,
    requests: 500,
    framing: 1000,
    http: 1000,
    gateway: 1000,
    settings: 500,
    peer_frame: 500,
}

#[test]
fn the_corpus_is_small_and_complete() {
    if std::env::var_os(UPDATE).is_some() {
        for (target, name, bytes) in seeds() {
            fs::create_dir_all(corpus().join(target)).unwrap();
            fs::write(corpus().join(target).join(name), bytes).unwrap();
        }
    }
    let mut bytes = 0;
    for (target, _) in TARGETS {
        assert!(!kept(target).is_empty(), "{target}");
        bytes += kept(target).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
    for (target, name, bytes) in seeds() {
        let path = corpus().join(target).join(name);
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{}: run with {UPDATE}=1", path.display());
    }
    for entry in fs::read_dir(corpus()).unwrap() {
        target(&entry.unwrap().file_name().to_string_lossy());
    }
}

/// A valid encoding of everything: target, name, bytes.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    for (name, op) in ops() {
        let place = Place { revision: Revision(7), n: 1 };
        let stamp = RowStamp { time: Timestamp(99), origin: OriginIndex(300) };
        let row = Row { stamp, seq: 5, op_number: 1, last: true, hidden: name == "hidden", op };
        add("row", name, [place.encode(), row.encode(place)].concat());
    }
    for (name, meta) in metas() {
        let (key, value) = meta.encode();
        let length = u8::try_from(key.len()).unwrap();
        add("meta", name, [&[length], &key[..], &value].concat());
    }
    let (one, two) = (journal_batch(1, 1), journal_batch(2, 3));
    let journals = |first: &[u8], second: &[u8]| {
        let length = u16::try_from(first.len()).unwrap().to_le_bytes();
        [&length, first, second].concat()
    };
    add("journal", "two", journals(&one, &two));
    add("journal", "one-of-two-batches", journals(&[], &[&one[..], &two, &[0; 40]].concat()));
    add("journal", "torn", journals(&one, &two[..two.len() - 20]));
    let story: Vec<u8> = (0..200_u8).map(|i| i.wrapping_mul(37)).collect();
    add("restore", "story", story);
    let found: [(&str, &[u8]); 6] = [
        ("revision-zero", &[1, 0, 0, 1, b'k', 0, 0]),
        ("last-number", &[1, 2, 0xf1, 1, b'k', 0, 0]),
        ("last-run", &[0, 1, 1, 0xf0, 0]),
        ("compacted-ahead", &[0, 2, 200]),
        ("tagged", &[0, 0xf0, 7, 0, 2, 2, 1, 2, 0, 1, b'k', 0, 0]),
        ("tagged-not-compacted", &[0, 0xf0, 7]),
    ];
    for (name, bytes) in found {
        add("restore", name, bytes.to_vec());
    }
    add("restore", "put-delete", vec![1, 2, 0, 1, b'k', 0, 0, 1, 1, b'v', 0, 0, 0, 1, 0, 0]);
    add("directory", "sound", Vec::new());
    for file in 0..12 {
        add("directory", &format!("changed-{file}"), vec![file, 9, 0, 0, 1]);
        add("directory", &format!("cut-{file}"), vec![file, 9, 0, 4]);
        add("directory", &format!("gone-{file}"), vec![file, 0, 0, 7]);
    }
    let mut everything = Vec::new();
    for (name, kind, message) in messages() {
        let length = u16::try_from(message.len()).unwrap().to_le_bytes();
        let framed = [&[kind][..], &length, &message].concat();
        everything.extend_from_slice(&framed);
        add("requests", name, framed);
    }
    add("requests", "everything", everything);
    let range = pb::RangeRequest { key: "key".into(), ..Default::default() }.encode_to_vec();
    let framed = [&[3, 0, 0, 0, 0, 5][..], &range].concat();
    add("framing", "range", framed.clone());
    add("framing", "twice", [&framed[..], &framed[1..]].concat());
    add("framing", "too-large", vec![1, 0, 0xff, 0xff, 0xff, 0xff, 1]);
    add("framing", "compressed", vec![1, 1, 0, 0, 0, 1, 1]);
    let json =
        br#"{"key":"Zm9v","range_end":"AA==","limit":"7","sort_order":"DESCEND","x":[{}]}{}"#;
    add("gateway", "range", [&[0, 3][..], json].concat());
    let json = br#"{"compare":[{"target":"VALUE","key":"YQ","value":"Yg=="}],"success":[{"request_put":{"key":"YQ=="}}]}"#;
    add("gateway", "txn", [&[3, 9][..], json].concat());
    let json = br#"{"create_request":{"key":"YQ==","filters":[0,"NODELETE",-1]}} {"cancel_request":{"watch_id":-1}}"#;
    add("gateway", "watches", [&[4, 0][..], json].concat());
    let head = "/readyz?exclude=NOSPACE&verbose\ncontent-type:application/grpc\ngrpc-timeout:1S";
    add("http", "probe", head.into());
    let head = "/etcdserverpb.KV/Range\ncontent-type: application/grpc+proto\nclient-api-version:3.6\n\
        grpc-encoding:gzip";
    add("http", "call", head.into());
    add(
        "settings",
        "flags",
        b"\0--data-dir=d\0--quota-backend-bytes\x008589934592\0\
        --listen-client-urls=http://[::1]:1,unix://s:2\0--heartbeat-interval=0x10"
            .to_vec(),
    );
    add(
        "settings",
        "variables",
        b"\x01ETCD_NAME\0n\0ETCD_GRPC_KEEPALIVE_INTERVAL\x001h2m3.5s".to_vec(),
    );
    add(
        "settings",
        "file",
        b"\x02name: n\nlisten-client-urls: [http://0:1]\n\
        watch-progress-notify-interval: 1000000000\nclient-transport-security: {auto-tls: false}\n"
            .to_vec(),
    );
    for (name, bytes) in peer::seeds::all() {
        add("peer_frame", name, bytes);
    }
    seeds
}

fn ops() -> Vec<(&'static str, Op)> {
    let kv = KeyValue {
        key: "key".into(),
        create_revision: Revision(3),
        mod_revision: Revision(7),
        version: 2,
        value: "value".into(),
        lease: LeaseId(-1),
        media_type: MediaType::NONE,
    };
    let typed =
        KeyValue { media_type: MediaType::parse(b"a/b").expect("it is printable"), ..kv.clone() };
    let stamp = RowStamp { time: Timestamp(98), origin: OriginIndex(1) };
    let (table, key) = (Table::Lease, LeaseRecord::key(LeaseId(7)));
    let value = LeaseRecord { id: LeaseId(7), ttl_seconds: 60, owner: MemberId(1) }.value();
    vec![
        ("put", Op::Put(kv)),
        ("put-typed", Op::Put(typed)),
        ("delete", Op::Delete { key: "key".into(), seen: stamp }),
        ("hidden", Op::Delete { key: "key".into(), seen: stamp }),
        (
            "internal-put",
            Op::InternalPut { table, key: key.clone(), value: value.clone(), seen: None },
        ),
        (
            "internal-put-again",
            Op::InternalPut { table, key: key.clone(), value, seen: Some(stamp) },
        ),
        ("internal-delete", Op::InternalDelete { table, key }),
    ]
}

fn metas() -> Vec<(&'static str, Meta)> {
    let origin = Origin { member: MemberId(1), run: 3 };
    vec![
        ("identity", Meta::Identity(writer_options().identity)),
        ("origin", Meta::Origin(OriginIndex(4), origin)),
        ("compacted", Meta::Compacted(Revision(7))),
        ("run", Meta::Run(OriginIndex(4), 300)),
        ("swept", Meta::Swept(Revision(6), Timestamp(99))),
        ("head", Meta::Head(OriginIndex(4), 300)),
        ("settled", Meta::Settled(Timestamp(99))),
        ("collected", Meta::Collected(Timestamp(98))),
        ("peered", Meta::Peered(Timestamp(97))),
        ("tag", Meta::Tag(300)),
    ]
}

/// A batch as fjall writes it into a journal.
fn journal_batch(items: u32, seqno: u64) -> Vec<u8> {
    let mut body = BytesMut::new();
    for _ in 0..items {
        body.put_slice(&[2, 0, 0]);
        body.put_u64_le(1);
        body.put_u16_le(3);
        body.put_u32_le(5);
        body.put_u32_le(5);
        body.put_slice(b"keyvalue");
    }
    let mut batch = BytesMut::new();
    batch.put_u8(1);
    batch.put_u32_le(items);
    batch.put_u64_le(seqno);
    batch.put_slice(&body);
    batch.put_u8(3);
    batch.put_u64_le(xxhash_rust::xxh3::xxh3_64(&body));
    batch.put_slice(b"FJL\x03");
    batch.to_vec()
}

fn messages() -> Vec<(&'static str, u8, Vec<u8>)> {
    use pb::request_op::Request;
    use pb::watch_request::RequestUnion;
    let key = || Bytes::from_static(b"key");
    let range = pb::RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        limit: 3,
        revision: 1,
        sort_order: 2,
        sort_target: 4,
        max_mod_revision: 9,
        ..Default::default()
    };
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 7 };
    let put = pb::PutRequest { key: key(), value: "value".into(), lease: 7, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: key(), prev_kv: true, ..Default::default() };
    let op = |request| pb::RequestOp { request: Some(request) };
    let compare = pb::Compare {
        result: 1,
        target: 3,
        key: key(),
        range_end: "l".into(),
        target_union: Some(pb::compare::TargetUnion::Value("v".into())),
    };
    let inner = pb::TxnRequest {
        success: vec![op(Request::RequestDeleteRange(delete.clone()))],
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: vec![
            op(Request::RequestPut(put.clone())),
            op(Request::RequestRange(range.clone())),
        ],
        failure: vec![op(Request::RequestTxn(inner))],
    };
    let create = pb::WatchCreateRequest {
        key: key(),
        start_revision: 1,
        filters: vec![0, 1],
        watch_id: 7,
        prev_kv: true,
        fragment: true,
        ..Default::default()
    };
    let watch = |union| pb::WatchRequest { request_union: Some(union) }.encode_to_vec();
    vec![
        ("grant", 6, grant.encode_to_vec()),
        ("watch", 5, watch(RequestUnion::CreateRequest(create))),
        ("put", 1, put.encode_to_vec()),
        ("range", 0, range.encode_to_vec()),
        ("txn", 3, txn.encode_to_vec()),
        ("progress", 5, watch(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))),
        ("cancel", 5, watch(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 }))),
        ("keep-alive", 8, pb::LeaseKeepAliveRequest { id: 7 }.encode_to_vec()),
        ("time-to-live", 9, pb::LeaseTimeToLiveRequest { id: 7, keys: true }.encode_to_vec()),
        ("delete", 2, delete.encode_to_vec()),
        ("revoke", 7, pb::LeaseRevokeRequest { id: 7 }.encode_to_vec()),
        ("compact", 4, pb::CompactionRequest { revision: 2, physical: true }.encode_to_vec()),
        ("alarm", 10, pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 }.encode_to_vec()),
        ("hash-kv", 11, pb::HashKvRequest { revision: 2 }.encode_to_vec()),
    ]
}
