//! Clusters in virtual time: many members in one process, on a network that loses, delays, repeats and cuts, from one
//! seed. The same seed tells the same story.

mod light;
pub mod network;
pub mod spread;
pub mod world;

use crate::replication::message::Message;

/// What a message takes on the network, in bytes.
fn message_bytes(message: &Message) -> usize {
    match message {
        Message::Digest(digest) => 36 + 20 * digest.moved.len(),
        Message::Announce(heads) => 4 + 20 * heads.len(),
        Message::Pull { wants, .. } => 8 + 20 * wants.len(),
        Message::Segments(segments) => {
            16 + segments.segments.iter().map(|s| 30 + s.bytes()).sum::<usize>()
        }
        Message::Promises(p) => 24 + p.rows.len() * if p.named { 24 } else { 8 },
        _ => 600,
    }
}
