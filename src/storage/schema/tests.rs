use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::types::TAG_MAX;

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn any_place() -> impl Strategy<Value = Place> {
    (0..Revision::COUNTER_END, any::<u32>())
        .prop_map(|(counter, n)| Place { revision: Revision(counter), n })
}

fn any_revision() -> impl Strategy<Value = Revision> {
    (0..Revision::COUNTER_END).prop_map(Revision)
}

fn any_stamp() -> impl Strategy<Value = RowStamp> {
    (any::<u64>(), any::<u32>())
        .prop_map(|(time, origin)| RowStamp { time: Timestamp(time), origin: OriginIndex(origin) })
}

fn any_put(place: Place) -> impl Strategy<Value = Op> {
    let create = (0..=place.revision.0).prop_map(Revision);
    let media_type = prop_oneof![Just(String::new()), "[ -~]{1,255}"];
    (any_bytes(), create, any::<u64>(), any_bytes(), any::<i64>(), media_type).prop_map(
        move |(key, create_revision, version, value, lease, media_type)| {
            let (mod_revision, lease) = (place.revision, LeaseId(lease));
            let media_type = MediaType::parse(media_type.as_bytes()).expect("it is printable");
            Op::Put(KeyValue {
                key,
                create_revision,
                mod_revision,
                version,
                value,
                lease,
                media_type,
            })
        },
    )
}

fn any_op(place: Place) -> impl Strategy<Value = Op> {
    let table = || {
        prop_oneof![Just(Table::Lease), Just(Table::Alarm), Just(Table::Member), Just(Table::Seal)]
    };
    prop_oneof![
        any_put(place),
        (any_bytes(), any_stamp()).prop_map(|(key, seen)| Op::Delete { key, seen }),
        (table(), any_bytes(), any_bytes(), prop::option::of(any_stamp()))
            .prop_map(|(table, key, value, seen)| Op::InternalPut { table, key, value, seen }),
        (table(), any_bytes()).prop_map(|(table, key)| Op::InternalDelete { table, key }),
    ]
}

fn any_row() -> impl Strategy<Value = (Place, Row)> {
    any_place().prop_flat_map(|place| {
        let of_entry = (any_stamp(), any::<(u64, u32, bool, bool)>());
        (any_op(place), of_entry).prop_map(move |(op, (stamp, (seq, op_number, last, hidden)))| {
            (place, Row { stamp, seq, op_number, last, hidden, op })
        })
    })
}

fn any_meta() -> impl Strategy<Value = Meta> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(member, cluster)| Meta::Identity(Identity {
            member: MemberId(member),
            cluster: ClusterId(cluster)
        })),
        any::<(u32, u64, u64)>().prop_map(|(index, member, run)| Meta::Origin(
            OriginIndex(index),
            Origin { member: MemberId(member), run }
        )),
        any_revision().prop_map(Meta::Compacted),
        any::<(u32, u64)>().prop_map(|(index, entries)| Meta::Run(OriginIndex(index), entries)),
        (any_revision(), any::<u64>())
            .prop_map(|(revision, time)| Meta::Swept(revision, Timestamp(time))),
        any::<(u32, u64)>().prop_map(|(index, seq)| Meta::Head(OriginIndex(index), seq)),
        any::<u64>().prop_map(|time| Meta::Settled(Timestamp(time))),
        any::<u64>().prop_map(|time| Meta::Collected(Timestamp(time))),
        any::<u64>().prop_map(|time| Meta::Peered(Timestamp(time))),
        any::<(u64, u64)>()
            .prop_map(|(time, complete)| Meta::Promised(Timestamp(time), Timestamp(complete))),
        any::<u16>().prop_map(Meta::Tag),
        any::<(u32, u64, u64)>().prop_map(|(index, seq, time)| Meta::Floor(
            OriginIndex(index),
            seq,
            Timestamp(time)
        )),
        (any_place(), proptest::option::of(any_place())).prop_map(|(until, next)| {
            Meta::Strays(until.with_tag(0), next.map(|next| next.with_tag(0)))
        }),
        Just(Meta::Removed),
        any_place().prop_map(|place| Meta::Former(place.with_tag(0))),
        Just(Meta::Left),
        any_place().prop_map(|place| Meta::Parted(place.with_tag(0))),
    ]
}

proptest! {
    #[test]
    fn rows_come_back((place, row) in any_row(), tag in 0..=TAG_MAX) {
        let bytes = row.encode(place);
        prop_assert_eq!(Row::decode(place, bytes)?, row);
        prop_assert_eq!(Place::decode(&place.encode(), 0)?, place);
        let shown = place.with_tag(tag);
        prop_assert_eq!((shown.revision.tag(), shown.revision.counter()), (tag, place.revision.0));
        prop_assert_eq!(shown.encode(), place.encode());
        prop_assert_eq!(Place::decode(&place.encode(), tag)?, shown);
    }

    /// Whoever looks at a row sees what whoever reads it gets, or is refused, too.
    #[test]
    fn rows_look_as_they_are(
        (place, row) in any_row(), at: prop::sample::Index, flip: u8, cut: prop::sample::Index
    ) {
        let mut bytes = row.encode(place).to_vec();
        *at.get_mut(&mut bytes) ^= flip;
        for bytes in [row.encode(place), bytes.clone().into(), bytes[..cut.index(bytes.len())].to_vec().into()] {
            let Ok(row) = Row::decode(place, bytes.clone()) else {
                let _seen_or_refused = RowView::of(&bytes);
                continue;
            };
            let view = RowView::of(&bytes)?;
            prop_assert_eq!((view.stamp, view.seq, view.hidden), (row.stamp, row.seq, row.hidden));
            let seen = view.put.map(|put| (put.key, put.value, put.lease, put.media_type));
            let read = match &row.op {
                Op::Put(kv) => {
                    let media_type = kv.media_type.as_str().as_bytes();
                    Some((kv.key.as_ref(), kv.value.as_ref(), kv.lease, media_type))
                }
                _ => None,
            };
            prop_assert_eq!(seen, read);
        }
    }

    /// Neither the key nor the value of a row changes when its store takes another tag.
    #[test]
    fn rows_do_not_tell_the_tag((place, row) in any_row(), tag in 0..=TAG_MAX) {
        let mut shown = row.clone();
        if let Op::Put(kv) = &mut shown.op {
            kv.create_revision = kv.create_revision.with_tag(tag);
            kv.mod_revision = kv.mod_revision.with_tag(tag);
        }
        prop_assert_eq!(shown.encode(place.with_tag(tag)), row.encode(place));
        prop_assert_eq!(Row::decode(place.with_tag(tag), row.encode(place))?, shown);
    }

    #[test]
    fn places_are_ordered_as_keys(a in any_place(), b in any_place(), n: u32) {
        prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
        let neighbour = Place { n, ..a };
        prop_assert_eq!(a.cmp(&neighbour), a.encode().cmp(&neighbour.encode()));
    }

    #[test]
    fn rows_about_the_store_come_back(meta in any_meta()) {
        let (key, value) = meta.encode();
        prop_assert_eq!(Meta::decode(&key, value)?, meta);
    }

    #[test]
    fn leases_come_back(id: i64, ttl_seconds: u64, owner: u64) {
        let record = LeaseRecord { id: LeaseId(id), ttl_seconds, owner: MemberId(owner) };
        prop_assert_eq!(LeaseRecord::decode(&LeaseRecord::key(record.id), record.value())?, record);
    }

    /// What is not refused is a row that is written as just these bytes.
    #[test]
    fn damaged_rows_are_refused_or_another_row(
        (place, row) in any_row(), at: prop::sample::Index, flip in 1..=255_u8, cut: prop::sample::Index
    ) {
        let whole = row.encode(place);
        let mut damaged = whole.to_vec();
        damaged[at.index(whole.len())] ^= flip;
        for bytes in [Bytes::from(damaged), whole.slice(..cut.index(whole.len()))] {
            if let Ok(other) = Row::decode(place, bytes.clone()) {
                prop_assert_ne!(&other, &row);
                prop_assert_eq!(other.encode(place), bytes);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(place in any_place(), key in any_bytes(), bytes in any_bytes(), kind in 1..5_u8) {
        let of_a_kind = [&[kind], &bytes[..]].concat().into();
        for bytes in [bytes.clone(), of_a_kind] {
            if let Ok(row) = Row::decode(place, Bytes::clone(&bytes)) {
                prop_assert_eq!(row.encode(place), bytes);
            }
        }
        let _ = Place::decode(&key, 0);
        let _ = LeaseRecord::decode(&key, bytes.clone());
        let _ = AlarmRecord::decode(&key, bytes.clone());
        if let Ok(meta) = Meta::decode(&key, bytes.clone()) {
            prop_assert_eq!(meta.encode(), (key, bytes));
        }
    }

    #[test]
    fn truncated_rows_about_the_store_are_refused(meta in any_meta(), cut: prop::sample::Index) {
        let (key, value) = meta.encode();
        prop_assert!(Meta::decode(&key, value.slice(..cut.index(value.len()))).is_err());
        prop_assert!(Meta::decode(&key[..cut.index(key.len())], value).is_err());
    }
}

#[test]
fn places_have_one_length() {
    let place = Place { revision: Revision(7), n: 3 }.encode();
    for len in 0..PLACE_BYTES {
        assert!(Place::decode(&place[..len], 0).is_err());
    }
    assert!(Place::decode(&[&place[..], &[0]].concat(), 0).is_err());
}

#[test]
fn the_document_has_these_bytes() {
    let document = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/storage-format.md"));
    assert!(document.contains(&format!("starling storage format {FORMAT_VERSION}\n")));
    for (name, key, value) in examples() {
        let example = format!("{name}\n  key    {}\n  value  {}\n", hex(&key), hex(&value));
        assert!(document.contains(&example), "the document lacks this:\n{example}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// One record of every kind.
fn examples() -> Vec<(&'static str, Bytes, Bytes)> {
    let stamp =
        |seq| RowStamp { time: Timestamp((1_800_000_000_000 << 16) + seq), origin: OriginIndex(1) };
    let row = |revision, n, seq, op| {
        let place = Place { revision: Revision(revision), n };
        let row = Row { stamp: stamp(seq), seq, op_number: 0, last: true, hidden: false, op };
        (place.encode(), row.encode(place))
    };
    let key = Bytes::from_static(b"foo");
    let kv = KeyValue {
        key: key.clone(),
        create_revision: Revision(3),
        mod_revision: Revision(5),
        version: 2,
        value: Bytes::from_static(b"bar"),
        lease: LeaseId(-1),
        media_type: MediaType::NONE,
    };
    let media_type = MediaType::parse(b"text/css").expect("it is printable");
    let typed = Op::Put(KeyValue { media_type, ..kv.clone() });
    let put = row(5, 0, 300, Op::Put(kv));
    let typed = row(5, 0, 300, typed);
    let delete = row(6, 0, 301, Op::Delete { key, seen: stamp(300) });
    let lease = LeaseRecord { id: LeaseId(7), ttl_seconds: 60, owner: MemberId(0x11) };
    let (table, id) = (Table::Lease, LeaseRecord::key(lease.id));
    let grant = |seen| Op::InternalPut { table, key: id.clone(), value: lease.value(), seen };
    let internal_put = row(6, 1, 302, grant(None));
    let internal_delete = row(6, 2, 303, Op::InternalDelete { table, key: id.clone() });
    let internal_put_again = row(6, 3, 304, grant(Some(stamp(303))));
    let hidden = Row {
        stamp: RowStamp { origin: OriginIndex(2), ..stamp(17) },
        seq: 9,
        op_number: 0,
        last: true,
        hidden: true,
        op: Op::Delete { key: "foo".into(), seen: stamp(1) },
    };
    let place = Place { revision: Revision(6), n: 4 };
    let hidden = (place.encode(), hidden.encode(place));
    let (member, cluster) = (MemberId(0x11), ClusterId(0x22));
    let time = Timestamp(1_800_000_000_000 << 16);
    let metas = [
        ("identity", Meta::Identity(Identity { member, cluster })),
        ("origin", Meta::Origin(OriginIndex(1), Origin { member, run: 4 })),
        ("compacted", Meta::Compacted(Revision(5))),
        ("run", Meta::Run(OriginIndex(1), 300)),
        ("swept", Meta::Swept(Revision(5), time)),
        ("head", Meta::Head(OriginIndex(2), 300)),
        ("settled", Meta::Settled(time)),
        ("collected", Meta::Collected(time)),
        ("peered", Meta::Peered(time)),
        ("promised", Meta::Promised(time, time)),
        ("tag", Meta::Tag(300)),
        ("strays", Meta::Strays(place, None)),
        ("removed", Meta::Removed),
        ("former", Meta::Former(place)),
        ("floor", Meta::Floor(OriginIndex(2), 300, time)),
        ("left", Meta::Left),
        ("parted", Meta::Parted(place)),
    ];
    let rows = [
        ("put", put),
        ("put with a media type", typed),
        ("delete", delete),
        ("internal put", internal_put),
        ("internal delete", internal_delete),
        ("internal put after a removal", internal_put_again),
        ("hidden delete", hidden),
    ];
    let metas = metas.map(|(name, meta)| (name, meta.encode()));
    rows.into_iter().chain(metas).map(|(name, (key, value))| (name, key, value)).collect()
}
