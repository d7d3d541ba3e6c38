//! Keys, values and a random order, the same for every server.

use bytes::Bytes;

/// Keys that share a prefix, which a range of 100 asks for.
pub const KEYS_PER_GROUP: u64 = 100;
/// Keys that share the longer prefix which a count asks for.
pub const KEYS_PER_REGION: u64 = 10_000;

const VALUE_BYTES: usize = 256;
/// Keys are 18 bytes long, and up to this many more.
const KEY_TAIL_MAX: u64 = 14;
const KEY_TAIL: &str = "abcdefghijklmnopqrstuvwxyz";

/// `/bench/GGGGGGGG/NN`, and a tail: 18 to 32 bytes.
pub fn key(number: u64) -> Bytes {
    let (group, member) = (number / KEYS_PER_GROUP, number % KEYS_PER_GROUP);
    let tail = usize::try_from(Random::new(number).below(KEY_TAIL_MAX + 1)).unwrap_or(0);
    format!("/bench/{group:08}/{member:02}{}", &KEY_TAIL[..tail]).into()
}

/// The first key that the group of a number can have, and the first key behind it.
pub fn group(number: u64) -> (Bytes, Bytes) {
    let group = number / KEYS_PER_GROUP;
    (format!("/bench/{group:08}/").into(), format!("/bench/{group:08}0").into())
}

/// The same for the region.
pub fn region(number: u64) -> (Bytes, Bytes) {
    let first = number / KEYS_PER_REGION * (KEYS_PER_REGION / KEYS_PER_GROUP);
    let next = first + KEYS_PER_REGION / KEYS_PER_GROUP;
    (format!("/bench/{first:08}/").into(), format!("/bench/{next:08}/").into())
}

/// All keys.
pub fn everything() -> (Bytes, Bytes) {
    (Bytes::from_static(b"/bench/"), Bytes::from_static(b"/bench0"))
}

/// Half noise, half text that compresses, as in a Kubernetes object.
pub fn value(random: &mut Random) -> Bytes {
    let mut value = *b"\
        managedFields:v1:metadata:labels:spec:containers:image:resources:limits:cpu:100m\
        :memory:128Mi:ports:protocol:TCP:status:phase:Running:conditions:type:Ready:last\
        TransitionTime:2026-01-01T00:00:00Z:hostIP:10.0.0.1:podIP:10.244.0.1:qosClass:Bu\
        rstable:::::::::";
    for chunk in value[..VALUE_BYTES / 2].chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes());
    }
    Bytes::copy_from_slice(&value)
}

/// xorshift64*: cheap enough not to be seen in the figures.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
}
