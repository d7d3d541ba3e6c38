//! Places that `MemberAdd` has reserved, and who is about to take them.
//!
//! Whoever comes with the addresses of such a place is told its id, begins anew as that member, and asks again. Until then the
//! place still looks free: two processes that come at the same moment would both take it, and write over each other's entries.
//! So an offer is remembered for a while.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::time::Now;
use crate::types::MemberId;

/// How long somebody may take to come back under the id that it was offered.
const OFFER_MILLIS: u64 = 10_000;
/// Offers at the same time.
const OFFERS_MAX: usize = 64;

/// To whom places have been offered, and until when, by the ids of the places.
#[derive(Debug, Default)]
pub(super) struct Places {
    offers: Mutex<BTreeMap<MemberId, (MemberId, u64)>>,
}

impl Places {
    /// Whether a place may be offered to somebody: not if it was offered to somebody else a moment ago.
    pub(super) fn offer(&self, place: MemberId, to: MemberId, now: Now) -> bool {
        let mut offers = self.offers.lock();
        offers.retain(|_, (_, until)| *until > now.monotonic_millis);
        match offers.get(&place) {
            Some((other, _)) => *other == to,
            None if offers.len() >= OFFERS_MAX => false,
            None => offers.insert(place, (to, now.monotonic_millis + OFFER_MILLIS)).is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic_millis: u64) -> Now {
        Now { wall_millis: 0, monotonic_millis }
    }

    #[test]
    fn a_place_is_offered_to_one_at_a_time() {
        let places = Places::default();
        let [one, other] = [MemberId(1), MemberId(2)];
        assert!(places.offer(MemberId(7), one, at(5)));
        assert!(!places.offer(MemberId(7), other, at(5)));
        assert!(places.offer(MemberId(7), one, at(6)), "it may not have heard it");
        assert!(places.offer(MemberId(8), other, at(7)));
        assert!(!places.offer(MemberId(7), other, at(OFFER_MILLIS + 4)), "it may still come");
        assert!(places.offer(MemberId(7), other, at(OFFER_MILLIS + 5)), "it has not come");
        assert!(!places.offer(MemberId(7), one, at(OFFER_MILLIS + 5)));
    }

    #[test]
    fn there_are_only_so_many_offers() {
        let places = Places::default();
        for place in 0..OFFERS_MAX as u64 {
            assert!(places.offer(MemberId(place), MemberId(1000), at(0)));
        }
        let next = MemberId(OFFERS_MAX as u64);
        assert!(!places.offer(next, MemberId(1000), at(OFFER_MILLIS - 1)));
        assert!(places.offer(next, MemberId(1000), at(OFFER_MILLIS)));
        assert_eq!(places.offers.lock().len(), 1);
    }
}
