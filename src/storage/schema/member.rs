//! The internal records about members: who they are, which of their runs are current, and how far ended runs are held.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::StoreError;
use crate::storage::codec::{Reader, corrupt, put_bytes, put_varint};
use crate::time::Timestamp;
use crate::types::{MemberId, Origin};

/// Addresses of one member.
const URLS_MAX: usize = 64;
/// Tags that a member gave up, in its record.
pub const FORMER_TAGS_MAX: usize = 16;

const FLAG_LEARNER: u64 = 1;
const FLAG_VOLATILE: u64 = 2;
const FLAG_INITIAL: u64 = 4;

/// A member of the cluster, as all members know it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MemberRecord {
    /// Its name; empty for one that was added but never started.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where its clients reach it.
    pub client_urls: Vec<String>,
    /// Where it stands, as a hint whom to talk to.
    pub zone: String,
    /// Whether it counts for no majority, and takes no requests of clients.
    pub learner: bool,
    /// Whether it keeps nothing on disk.
    pub volatile: bool,
    /// Whether it belonged to the cluster from the beginning, before anyone had met it. While such a record has no name, nobody
    /// has yet.
    pub initial: bool,
    /// The number that its revisions carry.
    pub tag: u16,
    /// The numbers that its revisions carried before, oldest first.
    pub former_tags: Vec<u16>,
    /// Everything that it ever writes comes after this.
    pub joined: Timestamp,
}

impl MemberRecord {
    /// The key of a member's record.
    pub fn key(member: MemberId) -> Bytes {
        Bytes::copy_from_slice(&member.0.to_be_bytes())
    }

    /// Reads the member out of a key.
    pub fn member(key: &[u8]) -> Result<MemberId, StoreError> {
        let id = key.try_into().map_err(|_| corrupt("member id has the wrong length"))?;
        Ok(MemberId(u64::from_be_bytes(id)))
    }

    /// Whether it was ever started.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// Whether its revisions carry a tag, or did so before.
    pub fn names(&self, tag: u16) -> bool {
        self.tag == tag || self.former_tags.contains(&tag)
    }

    /// The value of this record.
    pub fn value(&self) -> Bytes {
        let mut out = BytesMut::new();
        let learner = if self.learner { FLAG_LEARNER } else { 0 };
        let volatile = if self.volatile { FLAG_VOLATILE } else { 0 };
        let initial = if self.initial { FLAG_INITIAL } else { 0 };
        put_varint(&mut out, learner | volatile | initial);
        put_varint(&mut out, u64::from(self.tag));
        put_varint(&mut out, self.joined.0);
        put_bytes(&mut out, self.name.as_bytes());
        put_bytes(&mut out, self.zone.as_bytes());
        for urls in [&self.peer_urls, &self.client_urls] {
            put_varint(&mut out, urls.len() as u64);
            urls.iter().for_each(|url| put_bytes(&mut out, url.as_bytes()));
        }
        put_varint(&mut out, self.former_tags.len() as u64);
        self.former_tags.iter().for_each(|tag| put_varint(&mut out, u64::from(*tag)));
        out.freeze()
    }

    /// Reads a record. What later versions add at its end is left alone.
    pub fn decode(value: Bytes) -> Result<Self, StoreError> {
        let mut reader = Reader::new(value);
        let flags = reader.varint()?;
        let tag = a_tag(&mut reader)?;
        let joined = Timestamp(reader.varint()?);
        let name = text(&mut reader)?;
        let zone = text(&mut reader)?;
        let peer_urls = texts(&mut reader)?;
        let client_urls = texts(&mut reader)?;
        let former_tags = tags(&mut reader)?;
        let (learner, volatile) = (flags & FLAG_LEARNER != 0, flags & FLAG_VOLATILE != 0);
        let initial = flags & FLAG_INITIAL != 0;
        Ok(Self {
            name,
            peer_urls,
            client_urls,
            zone,
            learner,
            volatile,
            initial,
            tag,
            former_tags,
            joined,
        })
    }
}

fn a_tag(reader: &mut Reader) -> Result<u16, StoreError> {
    u16::try_from(reader.varint()?).map_err(|_| corrupt("tag is out of range"))
}

/// Records from before there were any end here.
fn tags(reader: &mut Reader) -> Result<Vec<u16>, StoreError> {
    let count = if reader.is_at_end() { 0 } else { reader.varint()? };
    if count > FORMER_TAGS_MAX as u64 {
        return Err(corrupt("a member has had too many tags"));
    }
    (0..count).map(|_| a_tag(reader)).collect()
}

fn text(reader: &mut Reader) -> Result<String, StoreError> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| corrupt("text is not UTF-8"))
}

fn texts(reader: &mut Reader) -> Result<Vec<String>, StoreError> {
    let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    if count > URLS_MAX {
        return Err(corrupt("a member has too many addresses"));
    }
    (0..count).map(|_| text(reader)).collect()
}

/// The value of a record that holds a number: a run, or a seq.
pub fn number_value(number: u64) -> Bytes {
    let mut out = BytesMut::new();
    put_varint(&mut out, number);
    out.freeze()
}

/// Reads a record that holds a number.
pub fn number(value: Bytes) -> Result<u64, StoreError> {
    let mut reader = Reader::new(value);
    let number = reader.varint()?;
    reader.end()?;
    Ok(number)
}

/// The key of what one member says about how far it holds an origin that has ended.
pub fn seal_key(origin: Origin, reporter: MemberId) -> Bytes {
    let mut key = BytesMut::new();
    [origin.member.0, origin.run, reporter.0].into_iter().for_each(|part| key.put_u64(part));
    key.freeze()
}

/// Reads the origin, and who speaks of it, out of a key.
pub fn seal(key: &[u8]) -> Result<(Origin, MemberId), StoreError> {
    let mut reader = Reader::new(Bytes::copy_from_slice(key));
    // The key is big-endian, as all keys; the reader is not.
    let mut part = || reader.u64().map(u64::swap_bytes);
    let origin = Origin { member: MemberId(part()?), run: part()? };
    let reporter = MemberId(part()?);
    reader.end()?;
    Ok((origin, reporter))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = MemberRecord> {
        let urls = || prop::collection::vec(".{0,20}", 0..3);
        let tags = prop::collection::vec(any::<u16>(), 0..=FORMER_TAGS_MAX);
        let others = (any::<(bool, bool, bool, u16, u64)>(), tags);
        (".{0,9}", urls(), urls(), ".{0,9}", others).prop_map(
            |(name, peer_urls, client_urls, zone, (others, former_tags))| {
                let (learner, volatile, initial, tag, joined) = others;
                MemberRecord {
                    name,
                    peer_urls,
                    client_urls,
                    zone,
                    learner,
                    volatile,
                    initial,
                    tag,
                    former_tags,
                    joined: Timestamp(joined),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn records_come_back(record in record(), origin: (u64, u64), reporter: u64) {
            prop_assert_eq!(MemberRecord::decode(record.value())?, record);
            let origin = Origin { member: MemberId(origin.0), run: origin.1 };
            let reporter = MemberId(reporter);
            prop_assert_eq!(seal(&seal_key(origin, reporter))?, (origin, reporter));
            prop_assert_eq!(MemberRecord::member(&MemberRecord::key(reporter))?, reporter);
            prop_assert_eq!(number(number_value(origin.run))?, origin.run);
        }

        #[test]
        fn records_from_before_there_were_former_tags_are_read(record in record()) {
            let record = MemberRecord { former_tags: Vec::new(), ..record };
            let mut value = record.value();
            value.truncate(value.len() - 1);
            prop_assert_eq!(MemberRecord::decode(value)?, record);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = MemberRecord::decode(Bytes::from(bytes.clone()));
            let _ = seal(&bytes);
            let _ = number(Bytes::from(bytes));
        }
    }
}
