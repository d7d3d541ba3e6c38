//! Reading and writing the fields of a record: varints, fixed integers, length-prefixed bytes.
//!
//! Varints are LEB128, least significant group first, at most ten bytes, in their shortest form. Signed
//! numbers are zigzag-coded first. A reader refuses whatever a writer cannot have written.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::StoreError;

/// The longest varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

/// Appends a varint.
#[expect(clippy::cast_possible_truncation, reason = "the lowest seven bits are meant")]
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends a signed varint.
#[expect(clippy::cast_sign_loss, reason = "zigzag coding is defined on the bits")]
pub(super) fn put_zigzag(out: &mut BytesMut, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// A signed number as it was before it was coded.
#[expect(clippy::cast_possible_wrap, reason = "zigzag coding is defined on the bits")]
pub(super) fn zigzag(coded: u64) -> i64 {
    (coded >> 1) as i64 ^ -((coded & 1) as i64)
}

/// Takes a varint from the front. Most are short.
#[inline]
pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<u64, StoreError> {
    if let [byte @ 0..0x80, behind @ ..] = *rest {
        *rest = behind;
        return Ok(u64::from(*byte));
    }
    take_long_varint(rest)
}

fn take_long_varint(rest: &mut &[u8]) -> Result<u64, StoreError> {
    let mut value = 0_u64;
    for i in 0..VARINT_BYTES_MAX {
        let byte = *rest.get(i).ok_or_else(|| corrupt("record ends within a number"))?;
        let group = u64::from(byte & 0x7f);
        if i == VARINT_BYTES_MAX - 1 && byte > 1 {
            return Err(corrupt("number is out of range"));
        }
        value |= group << (7 * i);
        if byte & 0x80 == 0 {
            if byte == 0 && i > 0 {
                return Err(corrupt("number is not in its shortest form"));
            }
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(corrupt("number is too long"))
}

/// Takes the fields of a record one by one. The slices it gives share the record's memory.
pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(record: Bytes) -> Self {
        Self { rest: record }
    }

    pub(super) fn u8(&mut self) -> Result<u8, StoreError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn u64(&mut self) -> Result<u64, StoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, StoreError> {
        let mut rest = self.rest.as_ref();
        let value = take_varint(&mut rest)?;
        let taken = self.rest.len() - rest.len();
        self.rest.advance(taken);
        Ok(value)
    }

    pub(super) fn zigzag(&mut self) -> Result<i64, StoreError> {
        self.varint().map(zigzag)
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, StoreError> {
        let len = usize::try_from(self.varint()?).map_err(|_| corrupt("length is out of range"))?;
        if len > self.rest.len() {
            return Err(corrupt("record ends within its bytes"));
        }
        Ok(self.rest.split_to(len))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), StoreError> {
        if self.rest.is_empty() { Ok(()) } else { Err(corrupt("bytes behind the record")) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let head = self.rest.first_chunk::<N>().copied();
        let head = head.ok_or_else(|| corrupt("record is too short"))?;
        self.rest.advance(N);
        Ok(head)
    }
}

/// Bytes that no version of ours has written.
pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(a: u64, b: i64, bytes: Vec<u8>, tail: Vec<u8>) {
            let mut out = BytesMut::new();
            put_varint(&mut out, a);
            put_zigzag(&mut out, b);
            put_bytes(&mut out, &bytes);
            out.put_u64_le(a);
            out.put_slice(&tail);
            let mut reader = Reader::new(out.freeze());
            prop_assert_eq!(reader.varint()?, a);
            prop_assert_eq!(reader.zigzag()?, b);
            prop_assert_eq!(reader.bytes()?, bytes);
            prop_assert_eq!(reader.u64()?, a);
            prop_assert_eq!(reader.rest(), tail);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let mut reader = Reader::new(bytes.clone());
            if let Ok(value) = reader.varint() {
                let mut again = BytesMut::new();
                put_varint(&mut again, value);
                prop_assert!(bytes.starts_with(&again), "{value} has one form only");
            }
            let _ = Reader::new(bytes).bytes();
        }
    }
}
