use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const A: MemberId = MemberId(0xa);
const B: MemberId = MemberId(0xb);
const C: MemberId = MemberId(0xc);

fn at(monotonic_millis: u64) -> Now {
    Now { wall_millis: 0, monotonic_millis }
}

fn start(member: MemberId, run: u64, millis: u64) -> Liveness {
    let me = Origin { member, run };
    Liveness::new(me, Options::default(), member.0, at(millis))
}

/// Members with nothing between them: what is sent arrives at once.
struct Room {
    millis: u64,
    members: BTreeMap<MemberId, Liveness>,
    changes: Vec<(MemberId, Output)>,
    sent: usize,
}

impl Room {
    fn new(members: &[MemberId]) -> Self {
        let started = members.iter().map(|member| (*member, start(*member, 1, 0))).collect();
        let mut room = Self { millis: 0, members: started, changes: Vec::new(), sent: 0 };
        for member in members {
            room.act(*member, |liveness, now| liveness.set_members(members, now));
        }
        room
    }

    /// Lets a member act, and everybody answer.
    fn act(&mut self, member: MemberId, act: impl FnOnce(&mut Liveness, Now) -> Vec<Output>) {
        let now = at(self.millis);
        let Some(actor) = self.members.get_mut(&member) else { return };
        let mut queue: VecDeque<_> = act(actor, now).into_iter().map(|o| (member, o)).collect();
        while let Some((from, output)) = queue.pop_front() {
            let Output::Send(to, bytes) = output else {
                self.changes.push((from, output));
                continue;
            };
            self.sent += 1;
            if let Some(peer) = self.members.get_mut(&to) {
                queue.extend(peer.receive(&bytes, from, now).into_iter().map(|o| (to, o)));
            }
        }
    }

    /// Lets time pass, in steps, in which some do something besides.
    fn run(&mut self, millis: u64, mut besides: impl FnMut(&mut Self)) {
        const STEP: u64 = 50;
        for _ in 0..millis / STEP {
            self.millis += STEP;
            for member in self.members.keys().copied().collect::<Vec<_>>() {
                if self.members[&member].wake_at() <= self.millis {
                    self.act(member, Liveness::tick);
                }
            }
            besides(self);
        }
    }

    fn live(&self, member: MemberId) -> Vec<MemberId> {
        self.members[&member].live()
    }
}

#[test]
fn members_find_each_other_at_once() {
    let room = Room::new(&[A, B, C]);
    assert_eq!([A, B, C].map(|m| room.live(m)), [vec![B, C], vec![A, C], vec![A, B]]);
    assert_eq!(room.members[&A].state(A), State::Alive);
    assert_eq!(room.members[&A].state(MemberId(9)), State::Dead);
}

#[test]
fn the_dead_are_suspected_first() {
    let mut room = Room::new(&[A, B, C]);
    room.members.remove(&C);
    let mut states = Vec::new();
    room.run(15_000, |room| states.push(room.members[&A].state(C)));
    states.dedup();
    assert_eq!(states, [State::Alive, State::Suspect, State::Dead]);
    assert_eq!(room.live(A), [B]);
    assert_eq!(room.changes.iter().filter(|(_, o)| *o == Output::Dead(C)).count(), 2);
}

#[test]
fn other_traffic_is_life() {
    let mut room = Room::new(&[A, B, C]);
    room.members.remove(&C);
    room.run(60_000, |room| {
        room.act(A, |a, now| a.heard_from(C, now));
        room.act(B, |b, now| b.heard_from(C, now));
    });
    assert_eq!((room.live(A), room.live(B)), (vec![B, C], vec![A, C]));
    assert_eq!(room.members[&A].counts().failed_probes, 0);
}

#[test]
fn other_traffic_saves_a_suspect() {
    let mut room = Room::new(&[A, B]);
    room.members.remove(&B);
    room.run(3000, |_| {});
    assert_eq!(room.members[&A].state(B), State::Suspect);
    room.act(A, |a, now| a.heard_from(B, now));
    room.run(4000, |_| {});
    assert_ne!(room.members[&A].state(B), State::Dead);
    room.run(10_000, |_| {});
    assert_eq!(room.members[&A].state(B), State::Dead, "it was heard only once");
}

#[test]
fn who_is_heard_and_not_known_is_called_now_and_then() {
    let mut a = start(A, 1, 0);
    a.set_members(&[B], at(0));
    let calls = |outputs: Vec<Output>| outputs.len();
    assert_eq!(calls(a.heard_from(B, at(10))), 1);
    assert_eq!(calls(a.heard_from(B, at(20))), 0);
    assert_eq!(calls(a.heard_from(C, at(30))), 0, "that is no member");
}

#[test]
fn a_pause_of_our_own_is_nobodys_death() {
    let mut room = Room::new(&[A, B, C]);
    room.run(5000, |_| {});
    // B and C are out of reach while A pauses, and for a moment after.
    let away: Vec<_> = [B, C].map(|m| (m, room.members.remove(&m).unwrap())).into();
    room.run(1400, |_| {});
    room.millis += 60_000;
    room.act(A, Liveness::tick);
    assert_eq!(room.members[&A].counts().pauses, 1);
    room.run(GRACE_MILLIS / 2, |_| {});
    assert_eq!(room.live(A), [B, C]);
    room.members.extend(away);
    room.run(20_000, |_| {});
    assert!(room.changes.iter().all(|(by, o)| *by != A || !matches!(o, Output::Dead(_))));
}

#[test]
fn what_came_in_a_pause_is_read_before_anybody_is_suspected() {
    let mut room = Room::new(&[A, B]);
    room.members.remove(&B);
    // Shortly before the probe would have failed.
    room.run(1900, |_| {});
    assert_eq!(room.members[&A].effects.probe.unwrap().at, 1000);
    room.millis += 60_000;
    room.act(A, Liveness::tick);
    room.act(A, |a, now| a.heard_from(B, now));
    room.run(GRACE_MILLIS, |_| {});
    assert_eq!(room.members[&A].counts().failed_probes, 0);
}

#[test]
fn a_suspect_hears_of_it_at_once() {
    let mut room = Room::new(&[A, B]);
    let mut b = room.members.remove(&B).unwrap();
    let mut a = room.members.remove(&A).unwrap();
    let mut sent = Vec::new();
    while a.state(B) == State::Alive {
        sent = a.tick(at(a.wake_at()));
    }
    let now = at(a.effects.now);
    let accusation = sent.into_iter().find_map(|output| match output {
        Output::Send(B, bytes) => {
            let packet = Packet::decode(&bytes).unwrap();
            (packet.header.message == Message::Ping(0)).then_some(bytes)
        }
        _ => None,
    });
    for output in b.receive(&accusation.unwrap(), A, now) {
        let Output::Send(A, objection) = output else { continue };
        a.receive(&objection, B, now);
    }
    assert_eq!(a.state(B), State::Alive);
}

#[test]
fn being_a_little_late_is_no_pause() {
    let mut a = start(A, 1, 0);
    a.set_members(&[B], at(0));
    a.tick(at(a.wake_at() + LATE_MILLIS));
    assert_eq!(a.counts().pauses, 0);
    a.tick(at(a.wake_at() + LATE_MILLIS + 1));
    assert_eq!(a.counts().pauses, 1);
}

#[test]
fn who_is_always_late_finds_the_dead() {
    let mut a = start(A, 1, 0);
    a.set_members(&[B, C], at(0));
    let b = start(B, 1, 0);
    let call = b.packet(*b.foca.identity(), Identity::any_run(A), Message::Announce).encode();
    a.receive(&call, B, at(1));
    assert_eq!(a.live(), [B]);
    while a.state(B) != State::Dead {
        let late = a.wake_at() + LATE_MILLIS + 50;
        assert!(late < 60_000);
        a.tick(at(late));
    }
}

#[test]
fn a_higher_run_replaces_a_lower_one() {
    let mut room = Room::new(&[A, B, C]);
    let former = room.members.insert(C, start(C, 2, 0)).unwrap();
    room.act(C, |c, now| c.set_members(&[A, B], now));
    let run = |room: &Room| room.members[&A].find(C).unwrap().id().origin.run;
    assert_eq!(run(&room), 2);
    // Something of the former run is still on its way.
    let old = former.packet(*former.foca.identity(), Identity::any_run(A), Message::Announce);
    room.act(A, |a, now| a.receive(&old.encode(), C, now));
    assert_eq!((run(&room), room.live(A)), (2, vec![B, C]));
}

#[test]
fn who_was_taken_for_dead_comes_back() {
    let mut room = Room::new(&[A, B, C]);
    let away = room.members.remove(&C).unwrap();
    room.run(15_000, |_| {});
    assert_eq!((room.live(A), room.live(B)), (vec![B], vec![A]));
    room.members.insert(C, away);
    room.run(15_000, |_| {});
    assert_eq!([A, B, C].map(|m| room.live(m)), [vec![B, C], vec![A, C], vec![A, B]]);
    assert_eq!(room.members[&C].counts().returns, 1);
    assert_eq!(room.members[&A].find(C).unwrap().id().turn, 1);
}

#[test]
fn who_has_missed_a_return_hears_of_it_by_the_next_answer() {
    let mut room = Room::new(&[A, B]);
    let c = Identity::new(Origin { member: C, run: 1 });
    let news = Member::alive(c);
    let mut others = Room::new(&[B, C]);
    // C has another turn, of which A knows nothing.
    others.act(C, |c, now| {
        let down = std::iter::once(Member::down(*c.foca.identity()));
        c.foca.apply_many(down, true, &mut c.effects).unwrap();
        c.tick(now)
    });
    room.members.insert(C, others.members.remove(&C).unwrap());
    room.act(C, |c, now| c.set_members(&[A, B], now));
    room.act(A, |a, now| a.set_members(&[B], now));
    room.act(A, |a, now| {
        a.peers.insert(C, Peer::default());
        a.foca.apply_many(std::iter::once(news), false, &mut a.effects).unwrap();
        let ping = a.packet(*a.foca.identity(), c, Message::Ping(0));
        a.effects.send(C, ping.encode());
        a.tick(now)
    });
    assert_eq!(room.members[&A].find(C).unwrap().id().turn, 1);
}

#[test]
fn a_run_that_is_taken_for_a_former_one_does_not_take_turns_for_ever() {
    let mut room = Room::new(&[A, B]);
    let later = Member::alive(Identity::new(Origin { member: B, run: 2 }));
    room.act(A, |a, now| {
        a.foca.apply_many(std::iter::once(later), false, &mut a.effects).unwrap();
        a.tick(now)
    });
    room.run(10_000, |_| {});
    assert!((1..=10).contains(&room.members[&B].counts().returns));
}

#[test]
fn who_is_no_member_is_nothing_to_us() {
    let mut room = Room::new(&[A, B, C]);
    room.act(A, |a, now| a.set_members(&[A, B], now));
    assert_eq!(room.live(A), [B]);
    assert_eq!(room.changes.last(), Some(&(A, Output::Dead(C))));
    // B and C go on talking about each other.
    room.run(30_000, |room| room.act(A, |a, now| a.heard_from(C, now)));
    assert_eq!(room.live(A), [B]);
    assert_eq!(room.members[&A].foca.iter_membership_state().count(), 1);
    room.act(A, |a, now| a.set_members(&[], now));
    assert_eq!((room.live(A), room.members[&A].wake_at()), (vec![], u64::MAX));
}

#[test]
fn packets_in_the_name_of_others_are_refused() {
    let mut room = Room::new(&[A, B, C]);
    let refused = |room: &Room| [A, B, C].map(|m| room.members[&m].counts().refused);
    let before = refused(&room);
    let b = &room.members[&B];
    let packet = b.packet(*b.foca.identity(), Identity::any_run(A), Message::Announce).encode();
    room.act(A, |a, now| a.receive(&packet, C, now));
    room.act(A, |a, now| a.receive(&packet, MemberId(9), now));
    room.act(C, |c, now| c.receive(&packet, B, now));
    let [a, b, c] = before;
    assert_eq!(refused(&room), [a + 2, b, c + 1]);
}

#[test]
fn settings_follow_the_number_of_members() {
    let seconds = |members| {
        let config = Options::default().config(members);
        config.suspect_to_down_after.as_secs_f64()
    };
    assert_eq!([1, 3, 16, 100, 1000, 5000].map(seconds), [4.8, 4.8, 4.8, 7.2, 10.8, 14.4]);
}

proptest! {
    /// Packets that differ from real ones in a few bytes, and any others, change nothing for the worse.
    #[test]
    fn any_bytes_are_taken_or_refused(
        noise: Vec<u8>,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        kind in 1..12u8,
    ) {
        let mut room = Room::new(&[A, B, C]);
        let me = *room.members[&A].foca.identity();
        let mut packet = room.members[&B].packet(*room.members[&B].foca.identity(), me, Message::Gossip);
        packet.updates = room.members[&B].foca.iter_membership_state().cloned().collect();
        let mut bytes = packet.encode();
        let kind_at = bytes.len() - 2 - packet.updates.len() * 12 - 1;
        prop_assert_eq!(bytes[kind_at], 9);
        bytes[kind_at] = kind;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        room.act(A, |a, now| a.receive(&noise, B, now));
        room.act(A, |a, now| a.receive(&bytes, B, now));
        room.run(3000, |_| {});
        prop_assert!(room.members[&A].foca.iter_membership_state().count() <= 2);
    }
}
