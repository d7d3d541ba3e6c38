//! Keys, values and a random order, the same for every candidate and for etcd.

pub(crate) const KEY_BYTES: usize = 24;
pub(crate) const VALUE_BYTES: usize = 256;
pub(crate) const KEYS_PER_GROUP: u64 = 100;

pub(crate) type Key = [u8; KEY_BYTES];
pub(crate) type Put = (Key, [u8; VALUE_BYTES]);

/// `/bench/GGGGGGGGGGGGG/NNN`: a group is the prefix that a range of 100 asks for.
pub(crate) fn key(number: u64) -> Key {
    let text = format!("/bench/{:013}/{:03}", number / KEYS_PER_GROUP, number % KEYS_PER_GROUP);
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(text.as_bytes());
    key
}

/// The first key of a group and the first key behind it.
pub(crate) fn group(number: u64) -> (Key, Key) {
    (key(number * KEYS_PER_GROUP), key((number + 1) * KEYS_PER_GROUP))
}

/// Half noise, half text that compresses, as in a Kubernetes object.
pub(crate) fn value(random: &mut Random) -> [u8; VALUE_BYTES] {
    let mut value = *b"\
        managedFields:v1:metadata:labels:spec:containers:image:resources:limits:cpu:100m\
        :memory:128Mi:ports:protocol:TCP:status:phase:Running:conditions:type:Ready:last\
        TransitionTime:2026-01-01T00:00:00Z:hostIP:10.0.0.1:podIP:10.244.0.1:qosClass:Bu\
        rstable:::::::::";
    for chunk in value[..VALUE_BYTES / 2].chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes());
    }
    value
}

/// xorshift64*: cheap enough not to be seen in the figures.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    /// Nine of ten draws fall in the first tenth.
    pub(crate) fn skewed(&mut self, end: u64) -> u64 {
        let hot = self.below(10) < 9;
        self.below(if hot { end / 10 } else { end })
    }
}
