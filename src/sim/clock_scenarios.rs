//! Stories of clocks that are wrong.

use bytes::Bytes;

use super::cluster::{Cluster, SECOND};
use super::scenarios::{busy, seeds};
use crate::engine::replica::ClockNews;
use crate::error::Error;

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
