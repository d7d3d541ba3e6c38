//! Files of bbolt, the database below etcd: written from the bottom up, and read with every bound checked.
//!
//! ```text
//!   page 0, 1   meta: where the root is, and how many pages there are; the valid one with the greater txid counts
//!   page 2      freelist: empty here, since nothing was ever freed
//!   page 3 ...  leaf and branch pages of the buckets, each bucket's root behind its other pages
//!   last page   the root bucket: a leaf whose values are the places of the named buckets
//! ```
//!
//! Numbers are little-endian. A page is 4096 bytes here; files of other machines may have larger ones.
//!
//! ```text
//!   page header, 16 bytes    id u64, flags u16, count u16, overflow u32 (so many pages follow that belong to it)
//!   branch element, 16       pos u32 (of the key, from this element on), ksize u32, page u64
//!   leaf element, 16         flags u32 (1: a bucket), pos u32, ksize u32, vsize u32; the value follows its key
//!   bucket, 16               root page u64 (0: the page follows at once, in the same value), sequence u64
//!   meta, 64                 magic u32, version u32, page size u32, flags u32, root bucket, freelist u64, pages u64,
//!                            txid u64, FNV-1a 64 of the 56 bytes before
//! ```
//!
//! Pages fill in the order of their keys, so writing takes as much memory as the tree is high, and one value. Only the
//! meta pages, which come first, are written last.
//!
//! Nothing here knows etcd. Source of the layout: go.etcd.io/bbolt, `internal/common`.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;

pub use reader::{Item, Reader, Root};
pub use writer::Writer;

/// The pages of what is written.
pub const PAGE_BYTES: usize = 4096;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
const BUCKET_BYTES: usize = 16;
/// The bytes of a meta page's content, without and with its checksum.
const META_CHECKED_BYTES: usize = 56;
const META_BYTES: usize = 64;
const FREELIST_PAGE: u64 = 2;
/// The first page behind metas and freelist.
const FIRST_PAGE: u64 = 3;

const FLAG_BRANCH: u16 = 0x01;
const FLAG_LEAF: u16 = 0x02;
const FLAG_META: u16 = 0x04;
const FLAG_FREELIST: u16 = 0x10;
/// Of a leaf element: its value is a bucket.
const ELEMENT_BUCKET: u32 = 0x01;

/// Why a file cannot be read or written.
#[derive(Debug)]
pub enum BoltError {
    /// The disk.
    Io(io::Error),
    /// It is no such file, or a broken one, or would become one.
    Corrupt(String),
}

impl fmt::Display for BoltError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Corrupt(why) => write!(f, "not a sound bbolt file: {why}"),
        }
    }
}

impl std::error::Error for BoltError {}

impl From<io::Error> for BoltError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn corrupt<T>(why: impl Into<String>) -> Result<T, BoltError> {
    Err(BoltError::Corrupt(why.into()))
}

fn checksum(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}
