//! Settings of the failure detector, and what foca makes of them.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::Config;

/// A packet takes no more, which is enough to name some thousand members: bytes on a stream, not a datagram.
pub const PACKET_BYTES_MAX: usize = 16 << 10;
/// How many others probe a member that does not answer, and get what there is to gossip.
const FAN_OUT: NonZeroUsize = NonZeroUsize::new(3).expect("it is not zero");
/// A piece of news is passed on at least so often, and `NEWS_PER_DOUBLING` times for each doubling of the members.
const NEWS_MIN: u32 = 5;
const NEWS_PER_DOUBLING: (u32, u32) = (6, 5);
/// A suspect has so many probe intervals to object, for each tenfold number of members...
const SUSPICION_INTERVALS: u64 = 4;
/// ...which is about so many doublings.
const DOUBLINGS_PER_TENFOLD: (u64, u64) = (3, 10);
/// The fewest doublings that count: those up to 16 members.
const DOUBLINGS_MIN: u32 = 4;

/// Settings of the failure detector.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often one other member is probed, in milliseconds. It has half of that to answer itself, and all of it for an
    /// answer by way of others.
    pub probe_millis: u64,
    /// How often news is passed on while there is any.
    pub gossip_millis: u64,
    /// How soon those not known to be alive are called again at first...
    pub call_millis: u64,
    /// ...and in the end.
    pub call_max_millis: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { probe_millis: 1000, gossip_millis: 200, call_millis: 1000, call_max_millis: 1000 }
    }
}

impl Options {
    /// What foca is told in a cluster of so many members.
    pub(super) fn config(&self, members: usize) -> Config {
        let doublings = members.max(1).ilog2();
        let (per, of) = NEWS_PER_DOUBLING;
        let news = (doublings * per / of).max(NEWS_MIN);
        let (tenfold, doubling) = DOUBLINGS_PER_TENFOLD;
        let doublings = u64::from(doublings.max(DOUBLINGS_MIN));
        let suspicion = self.probe_millis * SUSPICION_INTERVALS * doublings * tenfold / doubling;
        let news = u8::try_from(news).expect("a number has few bits");
        Config {
            probe_period: Duration::from_millis(self.probe_millis),
            probe_rtt: Duration::from_millis(self.probe_millis / 2),
            num_indirect_probes: FAN_OUT,
            max_transmissions: NonZeroU8::new(news).expect("not below NEWS_MIN"),
            suspect_to_down_after: Duration::from_millis(suspicion),
            max_packet_size: NonZeroUsize::new(PACKET_BYTES_MAX).expect("it is not zero"),
            // Those who are dead are told so, to come back if they are not.
            notify_down_members: true,
            // A death is forgotten with the member only. What is periodic is ours, below.
            remove_down_after: None,
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: None,
        }
    }
}
