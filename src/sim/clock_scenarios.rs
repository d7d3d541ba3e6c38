//! Stories of clocks that are wrong.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};
use crate::engine::replica::ClockNews;
use crate::error::Error;

const MILLI: u64 = 1000;
const HOUR_MILLIS: i64 = 3_600_000;
/// Clocks may be so far apart, and a message takes its time.
const SKEW_MILLIS: i64 = 510;

fn news(cluster: &Cluster, number: usize) -> &[ClockNews] {
    &cluster.world.actors[number].clock_news
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Nobody is far ahead of the right time.
fn check_times(cluster: &Cluster) {
    for number in cluster.up() {
        let ahead = cluster.ahead(number);
        assert!(ahead <= SKEW_MILLIS, "n{number} is {ahead} ms ahead");
    }
}

#[test]
fn a_jump_of_one_wall_clock_moves_no_time() {
    for (seed, jump) in seeds(1).into_iter().flat_map(|seed| [(seed, 1), (seed, -1)]) {
        for members in [2, 3, 5] {
            let mut cluster = Cluster::found(members, seed);
            busy(&mut cluster, 5 * SECOND);
            cluster.set_clock(1, jump * HOUR_MILLIS);
            busy(&mut cluster, 10 * SECOND);
            check_times(&cluster);
            assert!(cluster.ahead(1) > -1000, "it goes on by monotonic time");
            assert!(cluster.try_put(1, &key("jumped")).is_ok());
            let [ClockNews::Jumped(by)] = news(&cluster, 1) else { panic!("one jump") };
            assert!((jump * HOUR_MILLIS - by).abs() < 100, "{by}");
            cluster.set_clock(1, 0);
            busy(&mut cluster, 5 * SECOND);
            cluster.run(10 * SECOND);
            assert_eq!(news(&cluster, 1)[1..], [ClockNews::Confirmed]);
            assert!((0..members).all(|other| other == 1 || news(&cluster, other).is_empty()));
            cluster.check_converged();
        }
    }
}

#[test]
fn who_starts_with_a_wrong_clock_takes_no_writes_until_it_is_mended() {
    for (seed, off) in seeds(1).into_iter().flat_map(|seed| [(seed, 1), (seed, -1)]) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        cluster.crash(1);
        cluster.set_clock(1, off * HOUR_MILLIS);
        busy(&mut cluster, 5 * SECOND);
        cluster.start(1);
        busy(&mut cluster, 10 * SECOND);
        check_times(&cluster);
        let [ClockNews::Fenced(by)] = news(&cluster, 1) else {
            panic!("it says so once: {:?} {off} {seed}", news(&cluster, 1))
        };
        assert!((off * HOUR_MILLIS - by).abs() < 100, "{by}");
        assert_eq!(cluster.try_put(1, &key("skewed")), Err(Error::ClockSkew));
        // It goes on receiving.
        cluster.put(0, &key("received"));
        cluster.run(SECOND);
        assert!(cluster.state(1).contains_key(&key("received")), "seed {seed}");
        cluster.set_clock(1, 0);
        cluster.run(5 * SECOND);
        assert_eq!(news(&cluster, 1)[1..], [ClockNews::Unfenced]);
        assert_eq!(cluster.try_put(1, &key("mended")), Ok(()));
        cluster.run(10 * SECOND);
        assert!((0..3).all(|other| other == 1 || news(&cluster, other).is_empty()));
        cluster.check_converged();
    }
}

/// What it has written before it knew is taken when it is due, and neither it nor its time gets to the others before.
#[test]
fn a_founder_that_is_ahead_waits_until_it_is_due() {
    for (seed, members) in seeds(2).into_iter().flat_map(|seed| [(seed, 2), (seed, 3)]) {
        let mut skews = vec![0; members];
        skews[1] = 20_000;
        let mut cluster = Cluster::found_with_clocks(&skews, seed);
        // One of the others is asked every two seconds, which may be the same one again.
        busy(&mut cluster, 8 * SECOND);
        assert!(
            matches!(news(&cluster, 1), [ClockNews::Fenced(_)]),
            "seed {seed}: {:?}",
            news(&cluster, 1)
        );
        assert_eq!(cluster.try_put(1, &key("ahead")), Err(Error::ClockSkew));
        assert!(cluster.try_put(0, &key("right")).is_ok());
        assert!(cluster.ahead(0) <= SKEW_MILLIS && cluster.ahead(1) > 10_000);
        cluster.set_clock(1, 0);
        busy(&mut cluster, 5 * SECOND);
        assert_eq!(news(&cluster, 1).len(), 1, "what it has given out is ahead still");
        busy(&mut cluster, 20 * SECOND);
        cluster.run(10 * SECOND);
        assert_eq!(news(&cluster, 1)[1..], [ClockNews::Unfenced], "seed {seed}");
        assert!((0..members).all(|other| other == 1 || news(&cluster, other).is_empty()));
        cluster.check_converged();
    }
}

#[test]
fn a_restart_gives_out_no_time_twice() {
    for seed in seeds(3) {
        let mut cluster = Cluster::found(3, seed);
        for _ in 0..5 {
            busy(&mut cluster, 2 * SECOND);
            let before = cluster.ahead(1);
            cluster.crash(1);
            cluster.set_clock(1, -HOUR_MILLIS);
            cluster.start(1);
            // A commit that was under way is lost.
            assert!(cluster.ahead(1) >= before - 500, "seed {seed}");
            cluster.set_clock(1, 0);
        }
        cluster.run(10 * SECOND);
        cluster.check_converged();
    }
}

/// When all clocks are set anew, they are right.
#[test]
fn all_clocks_may_jump_together() {
    for (seed, jump) in seeds(2).into_iter().flat_map(|seed| [(seed, 1), (seed, -1)]) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        (0..3).for_each(|number| cluster.set_clock(number, jump * HOUR_MILLIS));
        busy(&mut cluster, 10 * SECOND);
        for number in 0..3 {
            // Time does not go back, and nobody is off.
            let expected = HOUR_MILLIS * jump.max(0) - 11_000;
            assert!(cluster.ahead(number) > expected, "seed {seed}");
            assert!(!news(&cluster, number).iter().any(|it| matches!(it, ClockNews::Fenced(_))));
        }
        cluster.run(5 * SECOND);
        cluster.check_converged();
    }
}

fn fences(cluster: &Cluster) -> Vec<usize> {
    let is_fenced =
        |number: &usize| news(cluster, *number).iter().any(|it| matches!(it, ClockNews::Fenced(_)));
    cluster.up().into_iter().filter(is_fenced).collect()
}

/// What was heard of a peer before both jumped says nothing any more: nobody takes the others for off, however short the time.
#[test]
fn all_clocks_may_jump_forth_and_back_at_once() {
    let jumps = [(1, 0), (1, 200), (-1, 0), (-1, 200)];
    for (seed, (jump, apart)) in seeds(1).into_iter().flat_map(|seed| jumps.map(|it| (seed, it))) {
        for members in [2, 3, 5] {
            let mut cluster = Cluster::found(members, seed);
            busy(&mut cluster, 5 * SECOND);
            for jump in [jump, 0, jump, 0] {
                for number in 0..members {
                    cluster.set_clock(number, jump * HOUR_MILLIS);
                    // Not all at the same moment.
                    let apart = cluster.dice.below(apart + 1) / members as u64;
                    cluster.run(apart * MILLI);
                }
                let pause = 1 + cluster.dice.below(6);
                busy(&mut cluster, pause * SECOND / 2);
                assert_eq!(fences(&cluster), [0; 0], "{members} members, seed {seed}, {apart} ms");
            }
            busy(&mut cluster, 5 * SECOND);
            assert_eq!(fences(&cluster), [0; 0], "{members} members, seed {seed}, {apart} ms");
            cluster.run(10 * SECOND);
            cluster.check_converged();
        }
    }
}

/// A few clocks that jump together are wrong, even if those whose clocks they are answer each other first.
#[test]
fn two_of_five_clocks_that_jump_together_move_no_time() {
    for (seed, jump) in seeds(2).into_iter().flat_map(|seed| [(seed, 1), (seed, -1)]) {
        let mut cluster = Cluster::found(5, seed);
        busy(&mut cluster, 5 * SECOND);
        for jump in [jump, 0].repeat(6) {
            [1, 2].into_iter().for_each(|number| cluster.set_clock(number, jump * HOUR_MILLIS));
            busy(&mut cluster, SECOND);
            check_times(&cluster);
            assert!([1, 2].iter().all(|number| cluster.ahead(*number) > -1000), "seed {seed}");
            assert_eq!(fences(&cluster), [0; 0], "seed {seed}");
        }
        cluster.run(10 * SECOND);
        cluster.check_converged();
    }
}

/// Whom nobody has confirmed does not believe its wall clock as soon as that has jumped: it waits for answers, as after a start.
#[test]
fn who_is_alone_when_its_clock_jumps_is_fenced_when_it_meets_the_others() {
    for (seed, off) in seeds(2).into_iter().flat_map(|seed| [(seed, 1), (seed, -1)]) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        cluster.crash(1);
        cluster.world.network.part(&[1], &[0, 2]);
        cluster.start(1);
        cluster.run(4 * SECOND);
        cluster.set_clock(1, off * HOUR_MILLIS);
        cluster.run(2 * SECOND);
        cluster.world.network.heal();
        busy(&mut cluster, 10 * SECOND);
        assert_eq!(fences(&cluster), [1], "seed {seed}");
        assert_eq!(cluster.try_put(1, &key("skewed")), Err(Error::ClockSkew));
        check_times(&cluster);
        // It jumps on, to where it is as wrong.
        for hours in [2, 1, 3, 2, 1].repeat(5) {
            cluster.set_clock(1, off * hours * HOUR_MILLIS);
            cluster.run(300 * MILLI);
            assert_eq!(cluster.try_put(1, &key("skewed")), Err(Error::ClockSkew), "seed {seed}");
        }
        assert_eq!(news(&cluster, 1).len(), 1, "seed {seed}");
        cluster.set_clock(1, 0);
        cluster.run(3 * SECOND);
        assert_eq!(news(&cluster, 1)[1..], [ClockNews::Unfenced], "seed {seed}");
        assert_eq!(cluster.try_put(1, &key("mended")), Ok(()));
        cluster.run(10 * SECOND);
        cluster.check_converged();
    }
}

#[test]
fn a_clock_that_jumps_all_the_time_does_not_keep_a_member_alone_from_writing_for_ever() {
    for seed in seeds(2) {
        let mut cluster = Cluster::found(3, seed);
        busy(&mut cluster, 5 * SECOND);
        cluster.crash(1);
        cluster.world.network.part(&[1], &[0, 2]);
        cluster.start(1);
        for second in 0..20 {
            assert_eq!(cluster.try_put(1, &key("early")), Err(Error::NotReady), "{second} s");
            cluster.set_clock(1, -HOUR_MILLIS * (second % 2));
            cluster.run(SECOND);
        }
        cluster.run(SECOND);
        assert_eq!(cluster.try_put(1, &key("alone")), Ok(()), "seed {seed}");
        cluster.set_clock(1, 0);
        cluster.world.network.heal();
        cluster.run(10 * SECOND);
        assert_eq!(fences(&cluster), [0; 0], "seed {seed}");
        cluster.check_converged();
    }
}
