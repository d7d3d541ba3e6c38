//! Writes buckets one after the other, each in the order of its keys.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};

use super::{
    BUCKET_BYTES, BoltError, ELEMENT_BUCKET, ELEMENT_BYTES, FIRST_PAGE, FLAG_BRANCH, FLAG_FREELIST,
    FLAG_LEAF, FLAG_META, FREELIST_PAGE, HEADER_BYTES, MAGIC, META_CHECKED_BYTES, PAGE_BYTES,
    VERSION, checksum, corrupt,
};

/// What bbolt takes as a key, and as a value.
const KEY_BYTES_MAX: usize = 32768;
const VALUE_BYTES_MAX: usize = (1 << 31) - 2;
/// The page size as a meta page tells it.
const PAGE_SIZE: u32 = 4096;

/// A page in the making.
#[derive(Default)]
struct Page {
    /// Each element without the place of its key: flags or nothing, page or value size.
    elements: Vec<(u32, u64, usize)>,
    /// Keys, with values behind them in a leaf.
    data: Vec<u8>,
    /// What leads here from above.
    first_key: Vec<u8>,
}

impl Page {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.data.len()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.elements.is_empty() || self.bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES
    }

    fn add(&mut self, flags: u32, key: &[u8], page: u64, value: &[u8]) {
        if self.elements.is_empty() {
            self.first_key = key.to_vec();
        }
        self.elements.push((flags, page, key.len()));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }
}

/// The bucket that is being written: its leaf, and the branches above, from the bottom up.
#[derive(Default)]
struct Tree {
    leaf: Page,
    branches: Vec<Page>,
    last_key: Option<Vec<u8>>,
    /// The sizes of the values in the leaf.
    value_bytes: Vec<usize>,
}

/// A file in the making. Until it is finished it is none that bbolt would open.
pub struct Writer<W: Write + Seek> {
    out: W,
    next_page: u64,
    tree: Tree,
    roots: BTreeMap<Vec<u8>, u64>,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins at the start of `out`, which is to be empty.
    pub fn new(mut out: W) -> Result<Self, BoltError> {
        for _ in 0..FIRST_PAGE {
            out.write_all(&[0; PAGE_BYTES])?;
        }
        Ok(Self { out, next_page: FIRST_PAGE, tree: Tree::default(), roots: BTreeMap::new() })
    }

    /// Adds a pair to the bucket that is being written. Its key is to be greater than all before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return corrupt("a key or a value is of no size that can be written");
        }
        if self.tree.last_key.as_deref().is_some_and(|last| last >= key) {
            return corrupt("keys are to be written in order");
        }
        self.put_leaf(0, key, value)
    }

    fn put_leaf(&mut self, flags: u32, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        if !self.tree.leaf.has_room(key.len() + value.len()) {
            self.end_leaf(false)?;
        }
        self.tree.last_key = Some(key.to_vec());
        self.tree.leaf.add(flags, key, 0, value);
        self.tree.value_bytes.push(value.len());
        Ok(())
    }

    /// Ends the bucket: what was put since the last one was ended is in it.
    pub fn end_bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        if name.is_empty() || name.len() > KEY_BYTES_MAX || self.roots.contains_key(name) {
            return corrupt("a bucket needs a name of its own");
        }
        let root = self.end_tree()?;
        self.roots.insert(name.to_vec(), root);
        Ok(())
    }

    /// Writes the root and what leads there. Answers the file, and how long it is.
    pub fn finish(mut self) -> Result<(W, u64), BoltError> {
        for (name, page) in std::mem::take(&mut self.roots) {
            let mut value = [0; BUCKET_BYTES];
            value[..8].copy_from_slice(&page.to_le_bytes());
            self.put_leaf(ELEMENT_BUCKET, &name, &value)?;
        }
        let root = self.end_tree()?;
        let pages = self.next_page;
        self.out.seek(SeekFrom::Start(0))?;
        for txid in 0..2 {
            self.out.write_all(&meta_page(txid, root, pages))?;
        }
        let mut freelist = [0; PAGE_BYTES];
        freelist[..HEADER_BYTES].copy_from_slice(&header(FREELIST_PAGE, FLAG_FREELIST, 0, 0));
        self.out.write_all(&freelist)?;
        self.out.flush()?;
        Ok((self.out, pages * PAGE_BYTES as u64))
    }

    /// Writes what is left of a tree; answers its root.
    fn end_tree(&mut self) -> Result<u64, BoltError> {
        if self.tree.branches.is_empty() {
            let root = self.end_leaf(true)?;
            self.tree = Tree::default();
            return Ok(root);
        }
        self.end_leaf(false)?;
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.tree.branches.len();
            let page = std::mem::take(&mut self.tree.branches[level]);
            match page.elements.as_slice() {
                // A branch of one child leads nowhere else.
                [(_, child, _)] if is_top => {
                    let root = *child;
                    self.tree = Tree::default();
                    return Ok(root);
                }
                _ => {}
            }
            let (first_key, id) = (page.first_key.clone(), self.write_branch(&page)?);
            if is_top {
                self.tree = Tree::default();
                return Ok(id);
            }
            self.add_child(level + 1, &first_key, id)?;
            level += 1;
        }
    }

    /// Writes the leaf; unless it is the root, the branch above hears of it.
    fn end_leaf(&mut self, is_root: bool) -> Result<u64, BoltError> {
        let page = std::mem::take(&mut self.tree.leaf);
        let sizes = std::mem::take(&mut self.tree.value_bytes);
        let mut elements = Vec::with_capacity(page.elements.len() * ELEMENT_BYTES);
        let mut offset = page.elements.len() * ELEMENT_BYTES;
        for (i, ((flags, _, key), value)) in page.elements.iter().zip(sizes).enumerate() {
            elements.extend_from_slice(&flags.to_le_bytes());
            elements.extend_from_slice(&small(offset - i * ELEMENT_BYTES)?.to_le_bytes());
            elements.extend_from_slice(&small(*key)?.to_le_bytes());
            elements.extend_from_slice(&small(value)?.to_le_bytes());
            offset += key + value;
        }
        let id = self.write_page(FLAG_LEAF, page.elements.len(), &[&elements, &page.data])?;
        if !is_root {
            self.add_child(0, &page.first_key, id)?;
        }
        Ok(id)
    }

    fn write_branch(&mut self, page: &Page) -> Result<u64, BoltError> {
        let mut elements = Vec::with_capacity(page.elements.len() * ELEMENT_BYTES);
        let mut offset = page.elements.len() * ELEMENT_BYTES;
        for (i, (_, child, key)) in page.elements.iter().enumerate() {
            elements.extend_from_slice(&small(offset - i * ELEMENT_BYTES)?.to_le_bytes());
            elements.extend_from_slice(&small(*key)?.to_le_bytes());
            elements.extend_from_slice(&child.to_le_bytes());
            offset += key;
        }
        self.write_page(FLAG_BRANCH, page.elements.len(), &[&elements, &page.data])
    }

    /// A page is there: the branch of that level leads to it. A full one is written first.
    fn add_child(&mut self, mut level: usize, key: &[u8], id: u64) -> Result<(), BoltError> {
        let (mut key, mut id) = (key.to_vec(), id);
        loop {
            if level == self.tree.branches.len() {
                self.tree.branches.push(Page::default());
            }
            if self.tree.branches[level].has_room(key.len()) {
                self.tree.branches[level].add(0, &key, id, &[]);
                return Ok(());
            }
            let full = std::mem::take(&mut self.tree.branches[level]);
            self.tree.branches[level].add(0, &key, id, &[]);
            id = self.write_branch(&full)?;
            key = full.first_key;
            level += 1;
        }
    }

    fn write_page(&mut self, flags: u16, count: usize, parts: &[&[u8]]) -> Result<u64, BoltError> {
        let bytes = HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let pages = bytes.div_ceil(PAGE_BYTES);
        let (id, count) = (self.next_page, u16::try_from(count).map_err(too_large)?);
        self.out.write_all(&header(id, flags, count, small(pages - 1)?))?;
        for part in parts {
            self.out.write_all(part)?;
        }
        self.out.write_all(&[0; PAGE_BYTES][..pages * PAGE_BYTES - bytes])?;
        self.next_page += pages as u64;
        Ok(id)
    }
}

fn header(id: u64, flags: u16, count: u16, overflow: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&id.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    header[10..12].copy_from_slice(&count.to_le_bytes());
    header[12..].copy_from_slice(&overflow.to_le_bytes());
    header
}

fn meta_page(txid: u64, root: u64, pages: u64) -> [u8; PAGE_BYTES] {
    let mut content = Vec::with_capacity(META_CHECKED_BYTES);
    for number in [MAGIC, VERSION, PAGE_SIZE, 0] {
        content.extend_from_slice(&number.to_le_bytes());
    }
    for number in [root, 0, FREELIST_PAGE, pages, txid] {
        content.extend_from_slice(&number.to_le_bytes());
    }
    content.extend_from_slice(&checksum(&content).to_le_bytes());
    let mut page = [0; PAGE_BYTES];
    page[..HEADER_BYTES].copy_from_slice(&header(txid, FLAG_META, 0, 0));
    page[HEADER_BYTES..HEADER_BYTES + content.len()].copy_from_slice(&content);
    page
}

fn small(number: usize) -> Result<u32, BoltError> {
    u32::try_from(number).map_err(too_large)
}

fn too_large(_: std::num::TryFromIntError) -> BoltError {
    io::Error::other("a page would be too large").into()
}
