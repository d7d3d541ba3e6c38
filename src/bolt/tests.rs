use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;

use super::*;

type Bucket = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<Vec<u8>, Bucket>;

fn write(buckets: &Buckets) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    // In any order: that of the file is its own affair.
    for (name, bucket) in buckets.iter().rev() {
        for (key, value) in bucket {
            writer.put(key, value).unwrap();
        }
        writer.end_bucket(name).unwrap();
    }
    let (file, bytes) = writer.finish().unwrap();
    assert_eq!(file.get_ref().len() as u64, bytes);
    file.into_inner()
}

fn read(file: &[u8]) -> Result<Buckets, BoltError> {
    let mut reader = Reader::open(Cursor::new(file), file.len() as u64)?;
    let mut roots = BTreeMap::new();
    let root = reader.root();
    reader.walk(&root, |name, item| {
        if let Item::Bucket(root) = item {
            roots.insert(name.to_vec(), root);
        }
        Ok::<_, BoltError>(())
    })?;
    let mut buckets = Buckets::new();
    for (name, root) in roots {
        let mut bucket = Bucket::new();
        reader.walk(&root, |key, item| {
            if let Item::Value(value) = item {
                bucket.insert(key.to_vec(), value.to_vec());
            }
            Ok::<_, BoltError>(())
        })?;
        buckets.insert(name, bucket);
    }
    Ok(buckets)
}

fn any_bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..max)
}

fn any_buckets() -> impl Strategy<Value = Buckets> {
    let value = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (0..20_000_usize).prop_map(|bytes| vec![7; bytes]),
    ];
    let key = prop_oneof![4 => any_bytes(20), 1 => any_bytes(1500)];
    let bucket = prop::collection::btree_map(key, value, 0..300);
    prop::collection::btree_map(any_bytes(12), bucket, 0..4)
}

/// Three levels, so that branches are full, too.
fn tall() -> Buckets {
    let pair = |i: u32| (format!("{i:0>200}").into_bytes(), vec![b'v'; 300]);
    BTreeMap::from([(b"key".to_vec(), (0..3000).map(pair).collect())])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read_back(buckets in any_buckets()) {
        prop_assert_eq!(read(&write(&buckets)).unwrap(), buckets);
    }

    #[test]
    fn broken_files_are_read_or_refused(
        buckets in any_buckets(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = write(&buckets);
        for (at, byte) in flips {
            // Mostly in the heads of pages, where it hurts.
            let at = at.index(file.len());
            let at = if byte & 1 == 0 { at } else { at & !0xfff | at & 0x3f };
            file[at] ^= byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = read(&file);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert!(read(&bytes).is_err());
    }
}

#[test]
fn a_tall_tree_is_read_back() {
    assert_eq!(read(&write(&tall())).unwrap(), tall());
}

#[test]
fn a_circle_comes_to_an_end() {
    let mut file = write(&tall());
    // Every branch leads to the last page but one, which is the root of the bucket.
    let pages = file.len() / PAGE_BYTES;
    let root = (pages - 2) as u64;
    let page = &mut file[(pages - 2) * PAGE_BYTES..][..PAGE_BYTES];
    assert_eq!(page[8..10], FLAG_BRANCH.to_le_bytes());
    page[HEADER_BYTES + 8..][..8].copy_from_slice(&root.to_le_bytes());
    assert!(matches!(read(&file), Err(BoltError::Corrupt(_))));
}

#[test]
fn the_other_meta_page_will_do() {
    for page in 0..2 {
        let mut file = write(&tall());
        file[page * PAGE_BYTES + 20] ^= 1;
        assert_eq!(read(&file).unwrap(), tall(), "{page}");
    }
}

#[test]
fn a_bucket_within_its_element_is_read() {
    let leaf = |key: &[u8], flags: u32, value: &[u8]| {
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let numbers = [flags, 16, size(key), size(value)];
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut header = [0; HEADER_BYTES];
        header[8] = 2;
        header[10] = 1;
        [&header[..], &numbers, key, value].concat()
    };
    let inline = [&[0; BUCKET_BYTES][..], &leaf(b"k", 0, b"v")].concat();
    let page = leaf(b"b", ELEMENT_BUCKET, &inline);
    let mut file = write(&Buckets::new());
    let root = file.len() - PAGE_BYTES;
    file[root + 8..][..page.len() - 8].copy_from_slice(&page[8..]);
    let bucket = Bucket::from([(b"k".to_vec(), b"v".to_vec())]);
    assert_eq!(read(&file).unwrap(), Buckets::from([(b"b".to_vec(), bucket)]));
}

#[test]
fn what_is_out_of_order_is_not_written() {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    writer.put(b"b", b"").unwrap();
    assert!(writer.put(b"a", b"").is_err());
    assert!(writer.put(b"b", b"").is_err());
    assert!(writer.put(b"", b"").is_err());
}
