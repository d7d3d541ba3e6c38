//! A member with a little state, and peers that say anything: they have the right cluster id, and that is all.

#[cfg(test)]
pub(super) mod seeds;

use bytes::Bytes;
use prost::Message as _;
use starling_proto::starling::peer::v1 as pb;

use super::Choices;
use crate::engine::Options;
use crate::engine::command::{Command, DeleteRange, Put};
use crate::engine::replica::ClusterOptions;
use crate::replication::message::{Compared, Message};
use crate::sim::full::{Full, Setup};
use crate::sim::world::Actor;
use crate::storage::schema::Identity;
use crate::storage::schema::member::MemberRecord;
use crate::transport::wire::{self, Assembler};
use crate::types::{ClusterId, KeyRange, LeaseId, MemberId};

pub(super) const ME: MemberId = MemberId(1);
pub(super) const PEERS: [MemberId; 2] = [MemberId(2), MemberId(3)];
/// Some keys that are there at the start, and one that is deleted.
const KEYS: [&[u8]; 4] = [b"a", b"b", b"c", b"gone"];
const COMMIT_MICROS: u64 = 500;
/// What may pass before a frame, in milliseconds.
const PAUSES: [u64; 8] = [0, 0, 0, 1, 20, 600, 2100, 11_000];
/// After all frames, so that everything that waits for something gives up or asks again.
const REST_MILLIS: u64 = 15_000;
/// How often a member may wake up per millisecond, and in any case.
const WAKES_PER_MILLI: u64 = 4;
const WAKES: u64 = 1000;
/// What a member with so little in it may send in answer to a frame, and in the time until the next.
const SENT_BYTES_MAX: usize = 1 << 20;

/// Frames of peers, one after the other: whose and when in a byte, how long, the bytes. Whatever they say, the member goes
/// on, takes writes of its clients, and starts again on its disk.
pub(super) fn frames(input: &[u8]) {
    let mut choices = Choices(input);
    let mut scene = Scene::new();
    let mut assemblers = [Assembler::default(), Assembler::default()];
    while !choices.is_empty() {
        let head = usize::from(choices.byte());
        let (peer, pause) = (head % PEERS.len(), PAUSES[head / PEERS.len() % PAUSES.len()]);
        let length = usize::from(u16::from_le_bytes([choices.byte(), choices.byte()]));
        let bytes = Bytes::copy_from_slice(choices.bytes(length));
        scene.rest(pause);
        let frame = pb::Frame::decode(bytes).ok();
        let message = frame.map(|frame| assemblers[peer].take(frame));
        match message {
            Some(Ok(Some(message))) => scene.hear(PEERS[peer], message),
            Some(Ok(None)) => {}
            // Its stream ends, and it begins a new one.
            Some(Err(_)) | None => assemblers[peer] = Assembler::default(),
        }
    }
    scene.rest(REST_MILLIS);
    scene.write();
    scene.member.crash();
    scene.member.start(scene.micros);
    scene.rest(REST_MILLIS);
    scene.write();
}

struct Scene {
    member: Full,
    micros: u64,
    /// The last question of a comparison: whoever answers knows its number.
    asked: u64,
}

impl Scene {
    fn new() -> Self {
        let identity = Identity { member: ME, cluster: ClusterId(7) };
        let cluster = ClusterOptions { record: record(ME), seed: 1, ..ClusterOptions::default() };
        let writer = Options { value_cache_bytes: 1 << 16, ..Options::new(identity) };
        let setup = Setup {
            writer,
            cluster,
            commit_micros: COMMIT_MICROS,
            skew_millis: 0,
            is_awaited: None,
        };
        let mut scene = Self { member: Full::new(setup, 0), micros: 0, asked: 0 };
        for peer in PEERS {
            let admitted = scene.member.admit(0, peer, &record(peer)).expect("it is up");
            admitted.expect("there is room for it");
        }
        let grant = Command::LeaseGrant { id: LeaseId(7), ttl_seconds: 60 };
        scene.execute(grant).expect("nothing is wrong yet");
        for key in KEYS {
            let put = Put { key: Bytes::from_static(key), lease: LeaseId(7), ..Put::default() };
            scene.execute(Command::Put(put)).expect("nothing is wrong yet");
        }
        let range = KeyRange::single(Bytes::from_static(KEYS[3]));
        let delete = DeleteRange { range, prev_kv: false };
        scene.execute(Command::DeleteRange(delete)).expect("nothing is wrong yet");
        scene.rest(1);
        for peer in PEERS {
            scene.hear(peer, Message::Ask(1));
        }
        scene.rest(1);
        scene
    }

    fn execute(&mut self, command: Command) -> Option<()> {
        self.member.execute(self.micros, command)?.ok().map(drop)
    }

    /// A client writes, which may be refused.
    fn write(&mut self) {
        let put = Put { key: Bytes::from_static(b"new"), ..Put::default() };
        let _ = self.execute(Command::Put(put));
        self.rest(1);
    }

    fn hear(&mut self, from: MemberId, message: Message) {
        let message = match message {
            Message::Compared(compared) => {
                Message::Compared(Compared { number: self.asked, ..compared })
            }
            message => message,
        };
        self.member.receive(self.micros, from, message);
        self.look_at_sent();
    }

    /// Lets time pass.
    fn rest(&mut self, millis: u64) {
        let until = self.micros + millis * 1000;
        let mut wakes = 0;
        while self.member.wake_at() <= until {
            self.micros = self.micros.max(self.member.wake_at());
            self.member.wake(self.micros);
            wakes += 1;
            assert!(wakes <= WAKES + millis * WAKES_PER_MILLI, "it does not come to rest");
        }
        self.micros = until;
        self.look_at_sent();
    }

    fn look_at_sent(&mut self) {
        let sent = self.member.take_sent();
        let bytes: usize = sent.iter().map(|(_, message)| wire::weight(message)).sum();
        assert!(bytes <= SENT_BYTES_MAX, "{bytes} bytes in {} messages", sent.len());
        for (to, message) in sent {
            assert_ne!(to, ME, "{message:?}");
            if let Message::Compare(compare) = message {
                self.asked = compare.number;
            }
        }
    }
}

fn record(member: MemberId) -> MemberRecord {
    MemberRecord {
        name: format!("m{}", member.0),
        peer_urls: vec![format!("http://10.0.0.{}:2380", member.0)],
        ..MemberRecord::default()
    }
}
