//! Reads any bytes as a file of bbolt: what is broken is an error, and every walk comes to an end.

use std::io::{ErrorKind, Read, Seek, SeekFrom};

use super::{
    BUCKET_BYTES, BoltError, ELEMENT_BUCKET, ELEMENT_BYTES, FLAG_BRANCH, FLAG_LEAF, HEADER_BYTES,
    MAGIC, META_BYTES, META_CHECKED_BYTES, VERSION, checksum, corrupt,
};

/// The page sizes that are tried where the first meta page is broken.
const PAGE_SIZES: [u64; 7] = [1024, 2048, 4096, 8192, 16384, 32768, 65536];
/// More branches than any tree has above each other.
const DEPTH_MAX: usize = 64;

/// Where a bucket begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// At a page.
    Page(u64),
    /// In this page, which is a part of another one.
    Inline(Vec<u8>),
}

/// What a key of a bucket has.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A value.
    Value(&'a [u8]),
    /// A bucket of its own.
    Bucket(Root),
}

/// What a valid meta page says.
#[derive(Clone, Copy)]
struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    txid: u64,
}

/// An open file.
pub struct Reader<R: Read + Seek> {
    file: R,
    meta: Meta,
    /// The pages that are really there.
    pages: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Looks for the newest meta page in the first `bytes` bytes of a file.
    pub fn open(mut file: R, bytes: u64) -> Result<Self, BoltError> {
        let first = read_meta(&mut file, 0)?;
        let sizes = first.map_or_else(|| PAGE_SIZES.to_vec(), |meta| vec![meta.page_bytes]);
        let mut newest = first;
        for size in sizes {
            let second = read_meta(&mut file, size)?.filter(|meta| meta.page_bytes == size);
            if let Some(second) = second
                && newest.is_none_or(|newest| newest.txid < second.txid)
            {
                newest = Some(second);
            }
        }
        let Some(meta) = newest else { return corrupt("neither meta page is valid") };
        let pages = bytes / meta.page_bytes;
        if meta.pages > pages {
            return corrupt(format!("it has {pages} of its {} pages", meta.pages));
        }
        Ok(Self { file, meta, pages: meta.pages })
    }

    /// The bucket of all buckets.
    pub fn root(&self) -> Root {
        Root::Page(self.meta.root)
    }

    /// A bucket of the root bucket.
    pub fn bucket(&mut self, name: &[u8]) -> Result<Option<Root>, BoltError> {
        let (root, mut found) = (self.root(), None);
        self.walk(&root, |key, item| {
            if let (true, Item::Bucket(bucket)) = (key == name, item) {
                found = Some(bucket);
            }
            Ok::<_, BoltError>(())
        })?;
        Ok(found)
    }

    /// Shows all of a bucket, in the order of its keys.
    pub fn walk<E: From<BoltError>>(
        &mut self,
        root: &Root,
        mut visit: impl FnMut(&[u8], Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walk = Walk { left: self.pages, last_key: None };
        let page = match root {
            Root::Page(id) => self.page(*id, &mut walk)?,
            Root::Inline(page) => Page::new(page.clone())?,
        };
        let mut stack = vec![(page, 0)];
        while let Some((page, i)) = stack.last_mut() {
            if *i == page.count {
                stack.pop();
                continue;
            }
            let at = *i;
            *i += 1;
            if page.is_leaf {
                let (key, item) = page.leaf(at)?;
                walk.check_order(key)?;
                visit(key, item)?;
            } else {
                let child = page.branch(at)?;
                if stack.len() == DEPTH_MAX {
                    return Err(BoltError::Corrupt("its branches are too many".to_owned()).into());
                }
                let child = self.page(child, &mut walk)?;
                stack.push((child, 0));
            }
        }
        Ok(())
    }

    /// Reads a page with those that belong to it. Each page is read once in a walk of a sound file.
    fn page(&mut self, id: u64, walk: &mut Walk) -> Result<Page, BoltError> {
        if id < 2 || id >= self.pages {
            return corrupt(format!("there is no page {id}"));
        }
        let page_bytes = self.meta.page_bytes;
        let mut header = [0; HEADER_BYTES];
        self.read_at(id * page_bytes, &mut header)?;
        let pages = u64::from(u32_at(&header, 12)?) + 1;
        if pages > self.pages - id || pages > walk.left {
            return corrupt(format!("page {id} has more pages than there are"));
        }
        walk.left -= pages;
        if u64_at(&header, 0)? != id {
            return corrupt(format!("page {id} has another number"));
        }
        let bytes = usize::try_from(pages * page_bytes)
            .map_err(|_| BoltError::Corrupt("a page is too large".to_owned()))?;
        let mut page = vec![0; bytes];
        self.read_at(id * page_bytes, &mut page)?;
        Page::new(page)
    }

    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), BoltError> {
        self.file.seek(SeekFrom::Start(offset))?;
        match self.file.read_exact(out) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => corrupt("it ends too early"),
            other => Ok(other?),
        }
    }
}

/// What ends a walk over a file that leads in circles.
struct Walk {
    left: u64,
    last_key: Option<Vec<u8>>,
}

impl Walk {
    fn check_order(&mut self, key: &[u8]) -> Result<(), BoltError> {
        match &mut self.last_key {
            Some(last) if last.as_slice() >= key => return corrupt("its keys are not in order"),
            Some(last) => {
                last.clear();
                last.extend_from_slice(key);
            }
            None => self.last_key = Some(key.to_vec()),
        }
        Ok(())
    }
}

/// A branch or a leaf.
struct Page {
    bytes: Vec<u8>,
    count: usize,
    is_leaf: bool,
}

impl Page {
    fn new(bytes: Vec<u8>) -> Result<Self, BoltError> {
        let is_leaf = match u16_at(&bytes, 8)? {
            FLAG_LEAF => true,
            FLAG_BRANCH => false,
            flags => return corrupt(format!("a page of a bucket has the flags {flags:#x}")),
        };
        let count = usize::from(u16_at(&bytes, 10)?);
        Ok(Self { bytes, count, is_leaf })
    }

    fn branch(&self, i: usize) -> Result<u64, BoltError> {
        u64_at(&self.bytes, HEADER_BYTES + i * ELEMENT_BYTES + 8)
    }

    fn leaf(&self, i: usize) -> Result<(&[u8], Item<'_>), BoltError> {
        let element = HEADER_BYTES + i * ELEMENT_BYTES;
        let number = |at| Ok::<_, BoltError>(u32_at(&self.bytes, element + at)? as usize);
        let (flags, start) = (u32_at(&self.bytes, element)?, element + number(4)?);
        let (key_bytes, value_bytes) = (number(8)?, number(12)?);
        let key = slice(&self.bytes, start, key_bytes)?;
        let value = slice(&self.bytes, start + key_bytes, value_bytes)?;
        let item = match flags {
            0 => Item::Value(value),
            ELEMENT_BUCKET => Item::Bucket(match u64_at(value, 0)? {
                0 => Root::Inline(value.get(BUCKET_BYTES..).unwrap_or_default().to_vec()),
                page => Root::Page(page),
            }),
            _ => return corrupt("an element is neither a value nor a bucket"),
        };
        Ok((key, item))
    }
}

/// The meta page at a place, if it is a valid one.
fn read_meta<R: Read + Seek>(file: &mut R, offset: u64) -> Result<Option<Meta>, BoltError> {
    let mut page = [0; HEADER_BYTES + META_BYTES];
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(&mut page) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let meta = &page[HEADER_BYTES..];
    let page_bytes = u64::from(u32_at(meta, 8)?);
    let is_valid = u32_at(meta, 0)? == MAGIC
        && u32_at(meta, 4)? == VERSION
        && PAGE_SIZES.contains(&page_bytes)
        && u64_at(meta, META_CHECKED_BYTES)? == checksum(&meta[..META_CHECKED_BYTES]);
    let (root, pages, txid) = (u64_at(meta, 16)?, u64_at(meta, 40)?, u64_at(meta, 48)?);
    Ok(is_valid.then_some(Meta { page_bytes, root, pages, txid }))
}

fn slice(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], BoltError> {
    let end = start.checked_add(length);
    match end.and_then(|end| bytes.get(start..end)) {
        Some(slice) => Ok(slice),
        None => corrupt("something reaches beyond its page"),
    }
}

fn array<const N: usize>(bytes: &[u8], start: usize) -> Result<[u8; N], BoltError> {
    let mut array = [0; N];
    array.copy_from_slice(slice(bytes, start, N)?);
    Ok(array)
}

fn u16_at(bytes: &[u8], start: usize) -> Result<u16, BoltError> {
    array(bytes, start).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], start: usize) -> Result<u32, BoltError> {
    array(bytes, start).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], start: usize) -> Result<u64, BoltError> {
    array(bytes, start).map(u64::from_le_bytes)
}
