//! `starling::fuzzing` for libFuzzer, by hand. In the repository's root:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir bench/fuzz requests -- -max_total_time=120 -rss_limit_mb=1024 -malloc_limit_mb=64
//! ```
//!
//! The targets are `row meta journal restore directory requests framing http gateway settings peer_frame`; an input that found something
//! goes into `corpus/<target>/`, where the tests of every build meet it again.

/// Gives the input to a target.
pub fn run(name: &str, input: &[u8]) {
    let (_, target) =
        starling::fuzzing::TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    target(input);
}
