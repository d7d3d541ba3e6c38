//! What members say to each other about who is alive, in bytes.
//!
//! ```text
//! packet    = sender incarnation recipient kind [probe] [third] [count(u16) count*member]
//! member    = identity incarnation state(u8)
//! identity  = member(u64) run turn
//! ```
//!
//! Fixed numbers are big-endian, all others are varints: seven bits a byte, the lowest first. `probe` (u8) and `third`, an identity,
//! are there if the kind needs them.

use std::fmt;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

use super::identity::Identity;
use crate::types::{MemberId, Origin};

/// The most that a member takes.
pub(super) const MEMBER_BYTES_MAX: usize = 8 + 10 + 5 + 3 + 1;
/// The least that a member takes.
const MEMBER_BYTES_MIN: usize = 8 + 1 + 1 + 1 + 1;

const PING: u8 = 1;
const ACK: u8 = 2;
const PING_REQ: u8 = 3;
const INDIRECT_PING: u8 = 4;
const INDIRECT_ACK: u8 = 5;
const FORWARDED_ACK: u8 = 6;
const ANNOUNCE: u8 = 7;
const FEED: u8 = 8;
const GOSSIP: u8 = 9;
const TURN_UNDEAD: u8 = 10;

/// Bytes that are no packet, or a packet that has no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed packet of the failure detector")
    }
}

impl std::error::Error for Malformed {}

/// A packet taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub header: Header<Identity>,
    pub updates: Vec<Member<Identity>>,
}

impl Packet {
    /// Reads a packet, to its last byte.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let header = header(&mut bytes)?;
        let mut updates = Vec::new();
        if !bytes.is_empty() {
            let count = usize::from(bytes.try_get_u16().map_err(|_| Malformed)?);
            if count > bytes.len() / MEMBER_BYTES_MIN {
                return Err(Malformed);
            }
            updates.reserve_exact(count);
            for _ in 0..count {
                updates.push(member(&mut bytes)?);
            }
        }
        if bytes.is_empty() { Ok(Self { header, updates }) } else { Err(Malformed) }
    }

    /// The bytes of it. There are never more updates than came in a packet.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_header(&mut bytes, &self.header);
        let count = u16::try_from(self.updates.len()).expect("no more than came in a packet");
        if count > 0 {
            bytes.put_u16(count);
            self.updates.iter().for_each(|update| put_member(&mut bytes, update));
        }
        bytes
    }
}

/// How foca reads and writes packets.
#[derive(Debug)]
pub(super) struct Wire;

impl Codec<Identity> for Wire {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        put_header(&mut buf, header);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, Malformed> {
        header(&mut buf)
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < MEMBER_BYTES_MAX {
            return Err(Malformed);
        }
        put_member(&mut buf, member);
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, Malformed> {
        member(&mut buf)
    }
}

fn put_header(buf: &mut impl BufMut, header: &Header<Identity>) {
    put_identity(buf, header.src);
    put_varint(buf, header.src_incarnation.into());
    put_identity(buf, header.dst);
    match &header.message {
        Message::Ping(probe) => buf.put_slice(&[PING, *probe]),
        Message::Ack(probe) => buf.put_slice(&[ACK, *probe]),
        Message::PingReq { target, probe_number } => {
            put_third(buf, PING_REQ, *probe_number, *target);
        }
        Message::IndirectPing { origin, probe_number } => {
            put_third(buf, INDIRECT_PING, *probe_number, *origin);
        }
        Message::IndirectAck { target, probe_number } => {
            put_third(buf, INDIRECT_ACK, *probe_number, *target);
        }
        Message::ForwardedAck { origin, probe_number } => {
            put_third(buf, FORWARDED_ACK, *probe_number, *origin);
        }
        Message::Announce => buf.put_u8(ANNOUNCE),
        Message::Feed => buf.put_u8(FEED),
        Message::Gossip => buf.put_u8(GOSSIP),
        Message::TurnUndead => buf.put_u8(TURN_UNDEAD),
        Message::Broadcast => unreachable!("nothing is broadcast by way of the failure detector"),
    }
}

fn put_third(buf: &mut impl BufMut, kind: u8, probe: u8, third: Identity) {
    buf.put_slice(&[kind, probe]);
    put_identity(buf, third);
}

fn put_member(buf: &mut impl BufMut, member: &Member<Identity>) {
    put_identity(buf, *member.id());
    put_varint(buf, member.incarnation().into());
    buf.put_u8(match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
}

fn put_identity(buf: &mut impl BufMut, identity: Identity) {
    buf.put_u64(identity.origin.member.0);
    put_varint(buf, identity.origin.run);
    put_varint(buf, identity.turn.into());
}

fn put_varint(buf: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    buf.put_u8(u8::try_from(value).expect("seven bits"));
}

/// Reads what a packet begins with.
pub(super) fn header(buf: &mut impl Buf) -> Result<Header<Identity>, Malformed> {
    let src = identity(buf)?;
    let src_incarnation = varint(buf)?;
    let dst = identity(buf)?;
    let message = match byte(buf)? {
        PING => Message::Ping(byte(buf)?),
        ACK => Message::Ack(byte(buf)?),
        PING_REQ => Message::PingReq { probe_number: byte(buf)?, target: identity(buf)? },
        INDIRECT_PING => Message::IndirectPing { probe_number: byte(buf)?, origin: identity(buf)? },
        INDIRECT_ACK => Message::IndirectAck { probe_number: byte(buf)?, target: identity(buf)? },
        FORWARDED_ACK => Message::ForwardedAck { probe_number: byte(buf)?, origin: identity(buf)? },
        ANNOUNCE => Message::Announce,
        FEED => Message::Feed,
        GOSSIP => Message::Gossip,
        TURN_UNDEAD => Message::TurnUndead,
        _ => return Err(Malformed),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

fn member(buf: &mut impl Buf) -> Result<Member<Identity>, Malformed> {
    let identity = identity(buf)?;
    let incarnation = varint(buf)?;
    let state = match byte(buf)? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        _ => return Err(Malformed),
    };
    Ok(Member::new(identity, incarnation, state))
}

fn identity(buf: &mut impl Buf) -> Result<Identity, Malformed> {
    let member = MemberId(buf.try_get_u64().map_err(|_| Malformed)?);
    let origin = Origin { member, run: varint(buf)? };
    Ok(Identity { origin, turn: varint(buf)? })
}

fn byte(buf: &mut impl Buf) -> Result<u8, Malformed> {
    buf.try_get_u8().map_err(|_| Malformed)
}

/// A number that fits what it is for, in as few bytes as it takes.
fn varint<T: TryFrom<u64>>(buf: &mut impl Buf) -> Result<T, Malformed> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = byte(buf)?;
        let bits = u64::from(byte & 0x7f);
        if bits > u64::MAX >> shift || (byte == 0 && shift > 0) {
            return Err(Malformed);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return T::try_from(value).map_err(|_| Malformed);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identities() -> impl Strategy<Value = Identity> {
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(member, run, turn)| Identity {
            origin: Origin { member: MemberId(member), run },
            turn,
        })
    }

    fn messages() -> impl Strategy<Value = Message<Identity>> {
        (0..10u8, any::<u8>(), identities()).prop_map(|(kind, probe_number, third)| match kind {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq { target: third, probe_number },
            3 => Message::IndirectPing { origin: third, probe_number },
            4 => Message::IndirectAck { target: third, probe_number },
            5 => Message::ForwardedAck { origin: third, probe_number },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            _ => Message::TurnUndead,
        })
    }

    fn updates() -> impl Strategy<Value = Member<Identity>> {
        let states = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
        (identities(), any::<u16>(), states)
            .prop_map(|(identity, incarnation, state)| Member::new(identity, incarnation, state))
    }

    proptest! {
        #[test]
        fn packets_come_back(
            src in identities(),
            src_incarnation: u16,
            dst in identities(),
            message in messages(),
            updates in proptest::collection::vec(updates(), 0..5),
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let packet = Packet { header, updates };
            let bytes = packet.encode();
            prop_assert_eq!(Packet::decode(&bytes), Ok(packet));
            for cut in 0..bytes.len() {
                let part = Packet::decode(&bytes[..cut]);
                prop_assert!(part.is_err() || part.is_ok_and(|part| part.updates.is_empty()));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Packet::decode(&bytes);
        }
    }
}
