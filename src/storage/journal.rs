//! A look at fjall's journals before fjall replays them.
//!
//! fjall takes the first damaged batch for the end of a journal, cuts the file there, and so loses without a
//! word what was committed behind it; or it refuses a batch that was torn by a loss of power, which nobody
//! was told to be durable. So we look first, and tell the two apart.
//!
//! A journal is a sequence of batches, and zeros to its end. Numbers are little-endian:
//! ```text
//! batch = start item* end
//! start = 01, count u32, seqno u64                  count = number of items; seqno increases
//! item  = 02, kind u8, compression u8, keyspace u64, key length u16, value length u32,
//!         value length in the file u32, key, value
//!       | 04, keyspace u64                          the keyspace was cleared
//! end   = 03, XXH3-64 of all items u64, "FJL" 03
//! ```
//!
//! What a loss of power may leave behind: [`Disk::commit`](super::Disk) never has more than one batch that is
//! written but not synced, so only the last batch of the newest journal can be torn. A torn batch lacks at
//! least one sector; a sector that was never written reads as zeros, or the file ends before it. So
//! * damage in an older journal, or with a valid batch behind it, is damage to something durable: refused;
//! * so is a last batch that has its end, no sector of zeros, and the wrong checksum;
//! * any other damage is a torn batch: the journal is cut before it.
//!
//! Two things cannot be seen. A last batch that holds a sector of zeros as part of a value, and is then
//! damaged elsewhere, looks torn. And the seqno of a batch is outside of its checksum: only its order is
//! checked.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::Result;
use crate::error::StoreError;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;
/// What comes behind the checksum.
const MAGIC: [u8; 4] = *b"FJL\x03";

const START_BYTES: usize = 13;
const ITEM_HEADER_BYTES: usize = 21;
const CLEAR_BYTES: usize = 9;
const END_BYTES: usize = 13;

/// The greatest kind of an item that fjall writes into a journal: a weak tombstone.
const ITEM_KIND_MAX: u8 = 2;
/// The greatest number of a compression.
const COMPRESSION_MAX: u8 = 1;
/// Much more than fjall's counter moves between two batches; it also counts flushes and the like.
const SEQNO_STEP_MAX: u64 = 1 << 32;

/// What a disk writes in one piece.
const SECTOR_BYTES: usize = 512;
/// How much is read at a time.
const WINDOW_BYTES: usize = 64 << 10;
/// Looking for a batch behind the damage may read what is there so often, and no more: values can be made to
/// look like the beginnings of batches.
const SEARCH_PASSES_MAX: u64 = 64;

/// Whether a file of the database is a journal, by its name.
pub(super) fn is_journal(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "jnl")
}

/// Checks all journals of a database that is about to be opened, and cuts a torn batch off the newest one.
pub(super) fn check(database: &Path) -> Result<()> {
    let mut paths = journals(database)?;
    let newest = paths.pop();
    let mut seqno = None;
    for path in paths {
        let mut journal = Journal::open(path)?;
        let end = journal.replay(&mut seqno)?;
        if journal.written(end)?.is_some() {
            return Err(journal.damaged(end, "behind it are newer journals"));
        }
    }
    newest.map_or(Ok(()), |path| check_newest(path, seqno))
}

fn check_newest(path: PathBuf, mut seqno: Option<u64>) -> Result<()> {
    let mut journal = Journal::open(path)?;
    let end = journal.replay(&mut seqno)?;
    let Some(written) = journal.written(end)? else { return Ok(()) };
    if let Some(at) = journal.find_batch(end + 1..written, seqno)? {
        return Err(journal.damaged(end, &format!("behind it is a valid one at byte {at}")));
    }
    let complete = match journal.batch(end)? {
        Parsed::Mismatch { end } => Some(end),
        _ => journal.ends_at(written)?.then_some(written),
    };
    if let Some(complete) = complete
        && !journal.has_empty_sector(end..complete)?
    {
        return Err(journal.damaged(end, "it was written in full"));
    }
    journal.cut(end)
}

/// The journals of a database, oldest first.
fn journals(database: &Path) -> Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(database)? {
        let name = entry?.file_name();
        if !is_journal(&name) {
            continue;
        }
        let path = database.join(&name);
        let number =
            path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse::<u64>().ok());
        let number = number.ok_or_else(|| {
            StoreError::Corrupt(format!("{} is not the name of a journal", path.display()))
        })?;
        journals.push((number, path));
    }
    journals.sort();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

struct Journal {
    path: PathBuf,
    reader: BufReader<File>,
    len: u64,
}

/// What stands at a place of a journal.
enum Parsed {
    /// A batch as it was written.
    Batch { seqno: u64, end: u64 },
    /// All parts of a batch, but not those that the checksum was made of.
    Mismatch { end: u64 },
    /// Something else.
    Broken,
}

impl Journal {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, reader: BufReader::with_capacity(WINDOW_BYTES, file), len })
    }

    /// Walks over the valid batches at the beginning, to where they end.
    fn replay(&mut self, last_seqno: &mut Option<u64>) -> Result<u64> {
        let mut at = 0;
        while let Parsed::Batch { seqno, end } = self.batch(at)? {
            if !follows(seqno, *last_seqno) {
                return Err(self.damaged(at, "its number is out of order"));
            }
            *last_seqno = Some(seqno);
            at = end;
        }
        Ok(at)
    }

    /// Reads what should be a batch.
    fn batch(&mut self, at: u64) -> io::Result<Parsed> {
        if self.reader.stream_position()? != at {
            self.reader.seek(SeekFrom::Start(at))?;
        }
        match self.batch_here(at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Parsed::Broken),
            parsed => parsed,
        }
    }

    fn batch_here(&mut self, at: u64) -> io::Result<Parsed> {
        let mut end = at;
        let start: [u8; START_BYTES] = self.take(&mut end)?;
        let Some((count, seqno)) = parse_start(&start) else { return Ok(Parsed::Broken) };
        let mut checksum = Xxh3::new();
        for _ in 0..count {
            if !self.item(&mut end, &mut checksum)? {
                return Ok(Parsed::Broken);
            }
        }
        let trailer: [u8; END_BYTES] = self.take(&mut end)?;
        Ok(match parse_end(&trailer) {
            None => Parsed::Broken,
            Some(expected) if expected == checksum.finish() => Parsed::Batch { seqno, end },
            Some(_) => Parsed::Mismatch { end },
        })
    }

    /// Reads an item; says whether it is one.
    fn item(&mut self, at: &mut u64, checksum: &mut Xxh3) -> io::Result<bool> {
        let [tag] = self.take(at)?;
        checksum.update(&[tag]);
        match tag {
            TAG_CLEAR => {
                checksum.update(&self.take::<{ CLEAR_BYTES - 1 }>(at)?);
                Ok(true)
            }
            TAG_ITEM => {
                let header: [u8; ITEM_HEADER_BYTES - 1] = self.take(at)?;
                let Some(payload) = parse_item(&header) else { return Ok(false) };
                checksum.update(&header);
                self.hash(at, payload, checksum)
            }
            _ => Ok(false),
        }
    }

    fn take<const N: usize>(&mut self, at: &mut u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        *at += N as u64;
        Ok(bytes)
    }

    /// Hashes what comes next; says whether there is so much.
    fn hash(&mut self, at: &mut u64, mut len: u64, checksum: &mut Xxh3) -> io::Result<bool> {
        if len > self.len.saturating_sub(*at) {
            return Ok(false);
        }
        *at += len;
        let mut bytes = [0; 4096];
        while len > 0 {
            let step = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            self.reader.read_exact(&mut bytes[..step])?;
            checksum.update(&bytes[..step]);
            len -= step as u64;
        }
        Ok(true)
    }

    /// Where zeros begin that go on to the end of the file, if anything but zeros stands at or behind `at`.
    fn written(&self, at: u64) -> io::Result<Option<u64>> {
        let (mut written, mut at) = (None, at);
        // A place of its own in the file, which is not the reader's.
        let file = File::open(&self.path)?;
        while let Some(range) = data(&file, at..self.len)? {
            at = range.end;
            self.windows(range, 0, |start, window| {
                if !is_zero(window) {
                    let last = window.iter().rposition(|byte| *byte != 0);
                    written = last.map(|last| start + last as u64 + 1);
                }
            })?;
        }
        Ok(written)
    }

    /// The first valid batch that begins within a range.
    fn find_batch(&mut self, range: Range<u64>, last_seqno: Option<u64>) -> Result<Option<u64>> {
        let mut candidates = Vec::new();
        let mut budget = SEARCH_PASSES_MAX.saturating_mul(range.end.saturating_sub(range.start));
        let mut at = range.start;
        while at < range.end {
            let window = at..range.end.min(at + WINDOW_BYTES as u64);
            at = window.end;
            candidates.clear();
            self.windows(window.clone(), START_BYTES + CLEAR_BYTES, |start, bytes| {
                let places = bytes.iter().enumerate().filter(|(_, byte)| **byte == TAG_START);
                let places = places.filter(|(i, _)| may_begin(&bytes[*i..], last_seqno));
                candidates
                    .extend(places.map(|(i, _)| start + i as u64).filter(|at| window.contains(at)));
            })?;
            for &candidate in &candidates {
                let parsed = self.batch(candidate)?;
                if matches!(parsed, Parsed::Batch { .. }) {
                    return Ok(Some(candidate));
                }
                let read = self.reader.stream_position()?.saturating_sub(candidate);
                budget = budget.checked_sub(read).ok_or_else(|| {
                    self.damaged(range.start - 1, "behind it is too much that looks like a batch")
                })?;
            }
        }
        Ok(None)
    }

    /// Whether a batch ends here.
    fn ends_at(&self, end: u64) -> io::Result<bool> {
        let Some(at) = end.checked_sub(END_BYTES as u64) else { return Ok(false) };
        let mut trailer = [0; END_BYTES];
        self.reader.get_ref().read_exact_at(&mut trailer, at)?;
        Ok(parse_end(&trailer).is_some())
    }

    /// Whether the part of any sector that lies in a range holds nothing.
    fn has_empty_sector(&self, range: Range<u64>) -> io::Result<bool> {
        let mut sector = [0; SECTOR_BYTES];
        let mut at = range.start;
        while at < range.end {
            let end = (at + 1).next_multiple_of(SECTOR_BYTES as u64).min(range.end);
            let part = &mut sector[..usize::try_from(end - at).unwrap_or(0)];
            self.reader.get_ref().read_exact_at(part, at)?;
            if is_zero(part) {
                return Ok(true);
            }
            at = end;
        }
        Ok(false)
    }

    /// Goes over a range piece by piece; each piece comes with some bytes of the next one.
    fn windows(
        &self,
        range: Range<u64>,
        overlap: usize,
        mut each: impl FnMut(u64, &[u8]),
    ) -> io::Result<()> {
        let mut window = vec![0; WINDOW_BYTES + overlap];
        let mut at = range.start;
        while at < range.end {
            let left = self.len.min(range.end + overlap as u64) - at;
            let len = window.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.reader.get_ref().read_exact_at(&mut window[..len], at)?;
            each(at, &window[..len]);
            at += WINDOW_BYTES as u64;
        }
        Ok(())
    }

    /// Removes a torn batch, as fjall does when it recognizes one.
    fn cut(&self, at: u64) -> Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(at)?;
        file.sync_all()?;
        Ok(())
    }

    fn damaged(&self, at: u64, why: &str) -> StoreError {
        let path = self.path.display();
        StoreError::Corrupt(format!("the batch at byte {at} of {path} is damaged, and {why}"))
    }
}

/// The first part of a range of a file that is not a hole, if there is any. Holes are zeros, which nobody has to read: a new
/// journal is one of 64 MiB. A file system that knows none says that there is data everywhere.
fn data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(range.start)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range)),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(range.end);
    Ok((start < end).then_some(start..end))
}

fn follows(seqno: u64, last: Option<u64>) -> bool {
    last.is_none_or(|last| seqno > last && seqno - last <= SEQNO_STEP_MAX)
}

/// The number of items and the seqno.
fn parse_start(start: &[u8; START_BYTES]) -> Option<(u32, u64)> {
    let (tag, rest) = start.split_first()?;
    let (count, seqno) = rest.split_first_chunk()?;
    let count = u32::from_le_bytes(*count);
    let seqno = u64::from_le_bytes(seqno.try_into().ok()?);
    (*tag == TAG_START && count > 0).then_some((count, seqno))
}

/// The length of key and value, from the header of an item behind its tag.
fn parse_item(header: &[u8; ITEM_HEADER_BYTES - 1]) -> Option<u64> {
    let [kind, compression, lengths @ ..] = header;
    let lengths = lengths.get(8..)?;
    let (key_len, lengths) = lengths.split_first_chunk()?;
    let (_, file_len) = lengths.split_first_chunk::<4>()?;
    let (key_len, file_len) =
        (u16::from_le_bytes(*key_len), u32::from_le_bytes(file_len.try_into().ok()?));
    let is_item = *kind <= ITEM_KIND_MAX && *compression <= COMPRESSION_MAX && key_len > 0;
    is_item.then_some(u64::from(key_len) + u64::from(file_len))
}

/// The checksum.
fn parse_end(end: &[u8; END_BYTES]) -> Option<u64> {
    let [TAG_END, rest @ ..] = end else { return None };
    let (checksum, magic) = rest.split_first_chunk()?;
    (*magic == MAGIC).then_some(u64::from_le_bytes(*checksum))
}

/// Whether these could be the first bytes of a batch.
fn may_begin(bytes: &[u8], last_seqno: Option<u64>) -> bool {
    let Some((start, rest)) = bytes.split_first_chunk() else { return false };
    let is_start = parse_start(start).is_some_and(|(_, seqno)| follows(seqno, last_seqno));
    is_start && matches!(rest.first(), Some(&TAG_ITEM | &TAG_CLEAR))
}

/// Compares, rather than looks at each byte: most of a new journal may be zeros, 64 MiB of them.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests;
