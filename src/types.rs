//! Identifiers and bounds that every layer may name.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// One running server; random, persisted with its data, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One run of one member: what numbers its entries densely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The member.
    pub member: MemberId,
    /// The start of that member. Greater than those of all its former runs, and never used again, so that an origin and a
    /// seq name one entry for ever.
    pub run: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.member, self.run)
    }
}

/// The set of members that share one keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease as clients name it. 0 is "no lease"; negative ids are legal when a client chooses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// The lease of a key that has none.
    pub const NONE: Self = Self(0);

    /// Whether this names a lease at all.
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// There is no room for more data: what adds to it is refused.
    NoSpace = 1,
    /// Members hold different data: nothing may be changed.
    Corrupt = 2,
}

/// An alarm about a member, which need not be one of this cluster: clients name whom they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// About what.
    pub kind: AlarmKind,
    /// About whom.
    pub member: MemberId,
}

/// The bits of a revision below its tag.
const COUNTER_BITS: u32 = 41;
/// The greatest tag: with it, too, revisions stay below 2^53, since some clients keep numbers in doubles.
pub const TAG_MAX: u16 = (1 << (53 - COUNTER_BITS)) - 1;

/// A member's own dense counter of visible changes, and above it the tag of the member: `tag * 2^41 + counter`. A store that
/// never had a peer has the tag 0: when it is fresh it is at 1, its first write makes 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a store that was never written.
    pub const FIRST: Self = Self(1);

    /// The next revision.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The revision before this one; that of zero is zero.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The least number that is no counter.
    pub const COUNTER_END: u64 = 1 << COUNTER_BITS;

    /// The part that counts, as it is stored.
    #[must_use]
    pub fn counter(self) -> u64 {
        self.0 % Self::COUNTER_END
    }

    /// The part that names the member. Of what is no revision of anybody it is greater than [`TAG_MAX`].
    #[must_use]
    pub fn tag(self) -> u16 {
        u16::try_from(self.0 >> COUNTER_BITS).unwrap_or(u16::MAX)
    }

    /// The same counter under a tag.
    #[must_use]
    pub fn with_tag(self, tag: u16) -> Self {
        Self(u64::from(tag) << COUNTER_BITS | self.counter())
    }

    /// As clients see it. Revisions stay below 2^53, so nothing is lost.
    #[expect(clippy::cast_possible_wrap, reason = "revisions stay below 2^53")]
    pub fn shown(self) -> i64 {
        debug_assert!(self.0 <= i64::MAX as u64, "revision {} out of range", self.0);
        self.0 as i64
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who has a write on disk before it is answered. The member that took it always has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteAck {
    /// Nobody else.
    Local,
    /// One other member; nobody, if no other seems alive.
    #[default]
    One,
    /// A majority of the members.
    Majority,
    /// All members that seem alive.
    All,
    /// The same, and those too that keep nothing on disk: they hold it in memory. No setting, but what some faces promise.
    Everybody,
}

impl WriteAck {
    /// As it is written in settings and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::One => "one",
            Self::Majority => "majority",
            Self::All => "all",
            Self::Everybody => "everybody",
        }
    }
}

impl std::str::FromStr for WriteAck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "local" => Ok(Self::Local),
            "one" => Ok(Self::One),
            "majority" => Ok(Self::Majority),
            "all" => Ok(Self::All),
            _ => Err("expected local, one, majority or all".to_owned()),
        }
    }
}

/// Whom a linearizable read asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadLevel {
    /// Nobody: it sees what this member holds.
    #[default]
    Local,
    /// A majority of the members: it sees what any of them holds.
    Majority,
}

impl ReadLevel {
    /// As it is written in settings and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Majority => "majority",
        }
    }
}

impl std::str::FromStr for ReadLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "local" => Ok(Self::Local),
            "majority" => Ok(Self::Majority),
            _ => Err("expected local or majority".to_owned()),
        }
    }
}

/// Whom a member asks before it ends a lease, or takes one over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LeaseExpiry {
    /// A majority of the members: without one leases stand still.
    #[default]
    Majority,
    /// Nobody.
    Local,
}

impl std::str::FromStr for LeaseExpiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "majority" => Ok(Self::Majority),
            "local" => Ok(Self::Local),
            _ => Err("expected majority or local".to_owned()),
        }
    }
}

/// The HTTP interfaces of earlier systems, and which of them are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names of those systems")]
pub struct Faces {
    pub gossipcar: bool,
    pub mehdb: bool,
    pub chain: bool,
    pub yzma: bool,
}

impl Faces {
    /// Every one.
    pub const ALL: Self = Self { gossipcar: true, mehdb: true, chain: true, yzma: true };

    /// Whether there is any.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl std::str::FromStr for Faces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut faces = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "gossipcar" => faces.gossipcar = true,
                "mehdb" => faces.mehdb = true,
                "chain" => faces.chain = true,
                "yzma" => faces.yzma = true,
                "all" => faces = Self::ALL,
                _ => return Err("expected gossipcar, mehdb, chain, yzma or all".to_owned()),
            }
        }
        Ok(faces)
    }
}

/// Where in a trace something belongs: under which span of which trace. Opaque to everybody but those who make spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace. Not all zero.
    pub trace: [u8; 16],
    /// The span that caused this. Not all zero.
    pub span: [u8; 8],
    /// As in the header `traceparent`: the lowest bit says that the trace is recorded.
    pub flags: u8,
}

impl TraceContext {
    /// How long it is as bytes.
    pub const BYTES: usize = 25;

    /// The trace, the span and the flags, one behind the other.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [self.flags; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes
    }

    /// Reads them back; `None` if that is no place in a trace.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let [flags] = *rest else { return None };
        let is_valid = *trace != [0; 16] && *span != [0; 8];
        is_valid.then_some(Self { trace: *trace, span: *span, flags })
    }
}

/// A set of keys as etcd's requests describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Only the key `start`.
    Single,
    /// Every key from `start` up to this one, which is left out.
    Before(Bytes),
    /// Every key from `start` on.
    Unbounded,
}

impl KeyRange {
    /// The range of one key.
    pub fn single(key: Bytes) -> Self {
        Self { start: key, end: RangeEnd::Single }
    }

    /// Every key there is.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: RangeEnd::Unbounded }
    }

    /// Reads etcd's pair of fields: an empty `range_end` is one key, a single zero byte is "no end".
    pub fn from_request(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// Whether this range names one key only.
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
            RangeEnd::Unbounded => key >= self.start.as_ref(),
        }
    }

    /// The upper bound, for ordered collections.
    pub fn upper(&self) -> Bound<&[u8]> {
        match &self.end {
            RangeEnd::Single => Bound::Included(&self.start),
            RangeEnd::Before(end) => Bound::Excluded(end),
            RangeEnd::Unbounded => Bound::Unbounded,
        }
    }
}

/// A live key at some revision, as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The revision at which the key last came into being.
    pub create_revision: Revision,
    /// The revision of its last put.
    pub mod_revision: Revision,
    /// How many puts since it came into being, that one included.
    pub version: u64,
    /// Its value.
    pub value: Bytes,
    /// Its lease, if any.
    pub lease: LeaseId,
    /// What its value is, if whoever put it has said so. etcd's clients never see it.
    pub media_type: MediaType,
}

/// What a value is, such as `text/plain; charset=utf-8`, in the words of whoever put it; mostly nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MediaType(Option<Arc<str>>);

impl MediaType {
    /// That of a value of which nothing was said.
    pub const NONE: Self = Self(None);

    /// The longest there is, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Reads one, which is printable ASCII; none at all is [`Self::NONE`].
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|_| Self::is_sound(text))?;
        Some(Self((!text.is_empty()).then(|| text.into())))
    }

    /// Whether [`Self::parse`] reads it.
    pub fn is_sound(text: &[u8]) -> bool {
        text.len() <= Self::BYTES_MAX && text.iter().all(|c| matches!(c, b' '..=b'~'))
    }

    /// Its text, which is empty where nothing was said.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether anything was said.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

/// Where the members of a new cluster find each other, and how to get there: the registry of etcd's v3 discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    /// The servers that have it; any is as good.
    pub endpoints: Vec<String>,
    /// What the members of one cluster have in common.
    pub token: String,
    /// How long a connection may take.
    pub dial_timeout: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How often a server is pinged, and how long it has to answer that.
    pub keepalive: (Duration, Duration),
    /// Whether to use TLS where endpoints do not say so.
    pub is_secure: bool,
    /// Who has signed their certificates, if not whom the system trusts.
    pub ca: Option<String>,
    /// Certificate to show, ...
    pub cert: Option<String>,
    /// ... with its key.
    pub key: Option<String>,
    /// Who asks: name and password.
    pub user: Option<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_25_bytes_and_names_a_trace_and_a_span() {
        let context = TraceContext { trace: *b"0123456789abcdef", span: *b"01234567", flags: 1 };
        let bytes = context.to_bytes();
        assert_eq!(&bytes, b"0123456789abcdef01234567\x01");
        assert_eq!(TraceContext::from_bytes(&bytes), Some(context));
        let without_trace = TraceContext { trace: [0; 16], ..context }.to_bytes();
        let without_span = TraceContext { span: [0; 8], ..context }.to_bytes();
        let longer = [&bytes[..], &[0]].concat();
        for wrong in [&bytes[..24], &longer, &without_trace, &without_span, &[]] {
            assert_eq!(TraceContext::from_bytes(wrong), None, "{wrong:?}");
        }
    }
}
