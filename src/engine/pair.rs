//! A pair as it goes over the wire.
//!
//! Most pairs are read far more often than they are written, and all that is done with them is to send them. So they
//! are kept as etcd's `mvccpb.KeyValue` in protobuf: to answer is to copy bytes, one allocation per pair is
//! all that the cache holds, and watchers share it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{KeyValue, LeaseId, MediaType, Revision};

/// The fields of `mvccpb.KeyValue` as they begin: number and wire type, a byte for each.
mod field {
    const VARINT: u8 = 0;
    const BYTES: u8 = 2;

    pub(super) const KEY: u8 = 1 << 3 | BYTES;
    pub(super) const CREATE_REVISION: u8 = 2 << 3 | VARINT;
    pub(super) const MOD_REVISION: u8 = 3 << 3 | VARINT;
    pub(super) const VERSION: u8 = 4 << 3 | VARINT;
    pub(super) const VALUE: u8 = 5 << 3 | BYTES;
    pub(super) const LEASE: u8 = 6 << 3 | VARINT;
}

/// What the numbers of a pair and the lengths of its bytes take at most: six fields of a byte and a varint each.
const NUMBERS_BYTES_MAX: usize = 6 * 11;
/// Pairs up to this size are put together on the stack.
const SMALL_BYTES: usize = 1024;

/// A pair, encoded. Cloning it copies nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair(Arc<[u8]>);

/// A look into a [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fields<'a> {
    pub key: &'a [u8],
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    pub value: &'a [u8],
    pub lease: LeaseId,
}

impl Pair {
    /// Its encoding.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        let mut wire = self.wire();
        match wire.split_first() {
            Some((&field::KEY, rest)) => {
                wire = rest;
                let length = take_varint(&mut wire);
                take_bytes(&mut wire, length)
            }
            _ => &[],
        }
    }

    /// What is in it. Costs a walk over six fields.
    pub fn fields(&self) -> Fields<'_> {
        let mut fields = Fields::default();
        let mut wire = self.wire();
        while let Some((field, rest)) = wire.split_first() {
            wire = rest;
            let number = take_varint(&mut wire);
            match *field {
                field::KEY => fields.key = take_bytes(&mut wire, number),
                field::CREATE_REVISION => fields.create_revision = Revision(number),
                field::MOD_REVISION => fields.mod_revision = Revision(number),
                field::VERSION => fields.version = number,
                field::VALUE => fields.value = take_bytes(&mut wire, number),
                field::LEASE => fields.lease = LeaseId(number.cast_signed()),
                other => unreachable!("field {other} in a pair that was encoded here"),
            }
        }
        fields
    }

    /// The same pair with no value.
    #[must_use]
    pub fn without_value(&self) -> Self {
        Self::encode(&Fields { value: &[], ..self.fields() })
    }

    /// The same pair with no lease. Costs nothing if it has none.
    #[must_use]
    pub fn without_lease(self) -> Self {
        let fields = self.fields();
        if !fields.lease.is_some() {
            return self;
        }
        Self::encode(&Fields { lease: LeaseId::NONE, ..fields })
    }

    /// The pair of some fields. Costs one copy of them.
    pub(super) fn encode(fields: &Fields<'_>) -> Self {
        // On the stack, so that the pair itself is the only thing that is allocated.
        let mut small = [0; SMALL_BYTES];
        let mut large = Vec::new();
        let bytes_max = fields.key.len() + fields.value.len() + NUMBERS_BYTES_MAX;
        let out = if bytes_max <= SMALL_BYTES {
            &mut small[..]
        } else {
            large.resize(bytes_max, 0);
            &mut large[..]
        };
        let mut wire = Wire { out, len: 0 };
        wire.put_bytes(field::KEY, fields.key);
        wire.put_number(field::CREATE_REVISION, fields.create_revision.0);
        wire.put_number(field::MOD_REVISION, fields.mod_revision.0);
        wire.put_number(field::VERSION, fields.version);
        wire.put_bytes(field::VALUE, fields.value);
        wire.put_number(field::LEASE, fields.lease.0.cast_unsigned());
        Self(Arc::from(&wire.out[..wire.len]))
    }
}

/// An encoding in the making. What is zero is left out, as is what is empty.
struct Wire<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Wire<'_> {
    fn put_number(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.put(field);
            self.put_varint(number);
        }
    }

    fn put_bytes(&mut self, field: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.put(field);
            self.put_varint(bytes.len() as u64);
            self.out[self.len..][..bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest seven bits are meant")]
    fn put_varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.put((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.put(number as u8);
    }

    fn put(&mut self, byte: u8) {
        self.out[self.len] = byte;
        self.len += 1;
    }
}

fn take_varint(wire: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = wire.split_first().expect("what was encoded here has an end");
        *wire = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

fn take_bytes<'a>(wire: &mut &'a [u8], length: u64) -> &'a [u8] {
    let length = usize::try_from(length).expect("what was encoded is in memory");
    let (bytes, rest) = wire.split_at(length);
    *wire = rest;
    bytes
}

impl From<&KeyValue> for Pair {
    fn from(kv: &KeyValue) -> Self {
        Self::encode(&Fields {
            key: &kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: &kv.value,
            lease: kv.lease,
        })
    }
}

impl From<&Pair> for KeyValue {
    /// Key and value share one copy.
    fn from(pair: &Pair) -> Self {
        let Fields { key, create_revision, mod_revision, version, value, lease } = pair.fields();
        let mut key_and_value = Bytes::from([key, value].concat());
        let key = key_and_value.split_to(key.len());
        let (value, media_type) = (key_and_value, MediaType::NONE);
        Self { key, create_revision, mod_revision, version, value, lease, media_type }
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_pair() -> impl Strategy<Value = KeyValue> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        let number = || prop_oneof![Just(0), 0..300_u64, any::<u64>()];
        (bytes(), number(), number(), number(), bytes(), prop_oneof![Just(0), any::<i64>()])
            .prop_map(|(key, create, modified, version, value, lease)| KeyValue {
                key,
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                version,
                value,
                lease: LeaseId(lease),
                media_type: MediaType::NONE,
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(kv in any_pair()) {
            let pair = Pair::from(&kv);
            prop_assert_eq!(&KeyValue::from(&pair), &kv);
            prop_assert_eq!(pair.key(), &kv.key);
            let bare = KeyValue { value: Bytes::new(), ..kv };
            prop_assert_eq!(&KeyValue::from(&pair.without_value()), &bare);
            let barer = KeyValue { lease: LeaseId::NONE, ..bare };
            prop_assert_eq!(KeyValue::from(&pair.without_value().without_lease()), barer);
        }
    }

    #[test]
    fn the_encoding_is_that_of_protobuf() {
        let kv = KeyValue {
            key: "k".into(),
            create_revision: Revision(300),
            mod_revision: Revision(1),
            version: 0,
            value: "ab".into(),
            lease: LeaseId(-1),
            media_type: MediaType::NONE,
        };
        let lease = [&[0x30][..], &[0xff; 9], &[1]].concat();
        let wire = [&b"\x0a\x01k\x10\xac\x02\x18\x01\x2a\x02ab"[..], &lease].concat();
        assert_eq!(Pair::from(&kv).wire(), wire);
        assert!(Pair::from(&KeyValue::default()).wire().is_empty());
    }
}
