//! Masks what differs between two servers, or two runs, that agree.
//!
//! Ids of the cluster, the member and leases, addresses, raft numbers, sizes, times, versions and hashes
//! become words. Everything else stays, above all revisions, counts, keys, values and error texts.
//!
//! A masked id still has an identity: the first lease of a run is `LEASE1` wherever it is printed, in
//! hexadecimal or decimal. And an absent id is not masked: a header without its member id shows as 0.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Ids up to here are those that a script made up; a server picks from 63 bits.
const SMALL_IDS: i64 = 1 << 32;

/// What to put in place of a match; `$1` and the like are its groups.
struct Rule {
    pattern: Regex,
    word: &'static str,
}

/// Ids that one server has, and the rules that hold for all.
#[derive(Debug, Default)]
pub struct Mask {
    words: Vec<(String, &'static str)>,
    leases: Vec<i64>,
}

impl Mask {
    /// Knows the addresses of a server.
    pub fn of_addresses(client: &str, peer: &str) -> Self {
        Self {
            words: vec![(client.to_owned(), "CLIENT"), (peer.to_owned(), "PEER")],
            leases: Vec::new(),
        }
    }

    /// Knows the ids that the server puts into its headers.
    pub fn learn_ids(&mut self, cluster: u64, member: u64) {
        for (id, word) in [(cluster, "CLUSTER"), (member, "MEMBER")] {
            if id != 0 {
                self.words.push((id.to_string(), word));
                self.words.push((format!("{id:x}"), word));
            }
        }
    }

    /// Masks one piece of output and learns the leases that it names.
    pub fn apply(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (id, word) in &self.words {
            text = text.replace(id, word);
        }
        self.learn_leases(&text);
        self.with_leases_named(&with_rules(&text))
    }

    /// Puts real ids back in: `LEASE1` in a command is the first lease that output has named.
    pub fn unmask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The last first, since LEASE1 also begins LEASE10.
        for (number, id) in self.leases.iter().enumerate().rev() {
            text = text.replace(&format!("LEASE{}", number + 1), &format!("{id:x}"));
        }
        self.words.iter().fold(text, |text, (id, word)| match *word {
            "CLIENT" => text.replace(word, id),
            _ => text,
        })
    }

    fn learn_leases(&mut self, text: &str) {
        static HEX: LazyLock<Regex> =
            LazyLock::new(|| pattern(r"(?m)(?:\blease |/|^)([0-9a-f]{14,16})\b"));
        static DECIMAL: LazyLock<Regex> =
            LazyLock::new(|| pattern(r#""(?:ID|id|lease|Lease)" ?: ?([0-9]{15,})"#));
        let hex = HEX.captures_iter(text).map(|found| i64::from_str_radix(&found[1], 16));
        let decimal = DECIMAL.captures_iter(text).map(|found| found[1].parse());
        for id in hex.chain(decimal).filter_map(Result::ok) {
            if id > SMALL_IDS && !self.leases.contains(&id) {
                self.leases.push(id);
            }
        }
    }

    fn with_leases_named(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (number, id) in self.leases.iter().enumerate() {
            let word = format!("LEASE{}", number + 1);
            text = text.replace(&format!("{id:016x}"), &word).replace(&format!("{id:x}"), &word);
            text = text.replace(&id.to_string(), &word);
        }
        text
    }
}

fn with_rules(text: &str) -> String {
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(rules);
    let mut text = Cow::Borrowed(text);
    for rule in RULES.iter() {
        if let Cow::Owned(masked) = rule.pattern.replace_all(&text, rule.word) {
            text = Cow::Owned(masked);
        }
    }
    unpadded(&text)
}

fn rules() -> Vec<Rule> {
    // A zero is never masked: clients tell a server that does not fill a field in by it.
    let rule = |regex: &str, word| Rule { pattern: pattern(regex), word };
    vec![
        rule(
            r#"("(?:raft_term|raftTerm|RaftTerm|raftIndex|RaftIndex|raftAppliedIndex|RaftAppliedIndex)" ?: ?)[1-9][0-9]*"#,
            "${1}RAFT",
        ),
        rule(r#"("(?:dbSize|dbSizeInUse|DBSize|DBSizeInUse)" ?: ?)[1-9][0-9]*"#, "${1}SIZE"),
        rule(r#"("(?:hash|Hash)" ?: ?)[1-9][0-9]*"#, "${1}HASH"),
        rule(r#"(?m)^(CLIENT, )[1-9][0-9]*(, [0-9]+)$"#, "${1}HASH${2}"),
        rule(r"\b3\.[5-9]\.[0-9]+\b", "VERSION"),
        rule(r"\b3\.[5-9]\b", "VERSION"),
        // endpoint status: size, in use and its percentage are ours, the quota is not.
        rule(
            r"(VERSION(?:, | *\u{2502} *)VERSION(?:, | *\u{2502} *))[0-9.]+ [kMG]?B(, | *\u{2502} *)[0-9.]+ [kMG]?B(?:, | *\u{2502} *)[0-9]+%",
            "${1}SIZE${2}SIZE${2}PERCENT",
        ),
        rule(
            r"((?:true|false)(?:, | *\u{2502} *)(?:true|false)(, | *\u{2502} *))[1-9][0-9]*(?:, | *\u{2502} *)[1-9][0-9]*(?:, | *\u{2502} *)[1-9][0-9]*",
            "${1}RAFT${2}RAFT${2}RAFT",
        ),
        rule(r#"(took(?: = | |":"))[0-9.]+(?:ns|us|\u{b5}s|ms|s)"#, "${1}TIME"),
        rule(r"(\u{2502} *(?:true|false) \u{2502} *)[0-9.]+(?:ns|us|\u{b5}s|ms|s)\b", "${1}TIME"),
        // Remaining seconds of a living lease; the granted ones stay.
        rule(r"remaining\([0-9]+s\)", "remaining(TTL)"),
        rule(r#"("ttl":)[0-9]+(,"granted-ttl")"#, "${1}TTL${2}"),
        rule(r#"("TTL" : )[0-9]+(\n"GrantedTTL")"#, "${1}TTL${2}"),
    ]
}

/// Columns of a table are as wide as the ids in them were.
fn unpadded(text: &str) -> String {
    static RULE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\u{2500}+"));
    static CELL: LazyLock<Regex> = LazyLock::new(|| pattern(r" *\u{2502} *"));
    let lines = text.split('\n').map(|line| {
        let line = RULE.replace_all(line, "\u{2500}");
        CELL.replace_all(&line, |_: &Captures<'_>| " \u{2502} ").into_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn pattern(regex: &str) -> Regex {
    Regex::new(regex).unwrap_or_else(|error| panic!("{regex}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        let mut mask = Mask::of_addresses("127.0.0.1:2379", "127.0.0.1:2380");
        mask.learn_ids(324_952_591_200_643_719, 0x2e12_59d4_15f2_a040);
        mask
    }

    #[test]
    fn header_ids_and_terms_become_words_and_revisions_stay() {
        let json = r#"{"header":{"cluster_id":324952591200643719,"member_id":3319814642761637952,"revision":2,"raft_term":7}}"#;
        assert_eq!(
            mask().apply(json),
            r#"{"header":{"cluster_id":CLUSTER,"member_id":MEMBER,"revision":2,"raft_term":RAFT}}"#
        );
        assert_eq!(
            mask().apply("\"Revision\" : 12\n\"RaftTerm\" : 3"),
            "\"Revision\" : 12\n\"RaftTerm\" : RAFT"
        );
    }

    #[test]
    fn absent_ids_and_foreign_ids_are_seen() {
        let absent = r#"{"header":{"cluster_id":0,"member_id":5,"raft_term":0}}"#;
        assert_eq!(mask().apply(absent), absent);
    }

    #[test]
    fn a_lease_keeps_its_number_in_every_notation() {
        let mut mask = mask();
        assert_eq!(
            mask.apply("lease 694d9c2f1d8a1b04 granted with TTL(100s)"),
            "lease LEASE1 granted with TTL(100s)"
        );
        assert_eq!(
            mask.apply("lease 694d9c2f1d8a1b09 granted with TTL(2s)"),
            "lease LEASE2 granted with TTL(2s)"
        );
        assert_eq!(mask.apply(r#""lease":7587892673362139908,"#), r#""lease":LEASE1,"#);
        assert_eq!(mask.apply("name/694d9c2f1d8a1b09\n"), "name/LEASE2\n");
        assert_eq!(mask.unmask("put a 1 --lease=LEASE2"), "put a 1 --lease=694d9c2f1d8a1b09");
    }

    #[test]
    fn a_key_that_looks_like_a_number_is_no_lease() {
        let mut mask = mask();
        assert_eq!(mask.apply("1234567\nabc/12"), "1234567\nabc/12");
        assert!(mask.leases.is_empty());
    }

    #[test]
    fn remaining_time_is_masked_and_expiry_is_not() {
        let mut mask = mask();
        assert_eq!(
            mask.apply("lease 694d9c2f1d8a1b04 granted with TTL(60s), remaining(59s)"),
            "lease LEASE1 granted with TTL(60s), remaining(TTL)"
        );
        assert_eq!(mask.apply(r#""ttl":59,"granted-ttl":60"#), r#""ttl":TTL,"granted-ttl":60"#);
        assert_eq!(mask.apply(r#""ttl":-1,"granted-ttl":0"#), r#""ttl":-1,"granted-ttl":0"#);
    }

    #[test]
    fn status_keeps_the_quota_and_the_flags() {
        let line = "127.0.0.1:2379, 2e1259d415f2a040, 3.7.3, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 6, 6, , , false";
        assert_eq!(
            mask().apply(line),
            "CLIENT, MEMBER, VERSION, VERSION, SIZE, SIZE, PERCENT, 2.1 GB, true, false, RAFT, RAFT, RAFT, , , false"
        );
    }

    #[test]
    fn tables_lose_their_padding() {
        let table = "\u{250c}\u{2500}\u{2500}\u{2500}\u{2510}\n\u{2502}   ID  \u{2502} true \u{2502} 2.4ms \u{2502}";
        assert_eq!(
            mask().apply(table),
            "\u{250c}\u{2500}\u{2510}\n \u{2502} ID \u{2502} true \u{2502} TIME \u{2502} "
        );
    }

    #[test]
    fn times_and_hashes_are_masked() {
        assert_eq!(
            mask().apply("committed proposal: took = 2.44ms"),
            "committed proposal: took = TIME"
        );
        assert_eq!(mask().apply("127.0.0.1:2379, 2587454935, 2"), "CLIENT, HASH, 2");
        assert_eq!(
            mask().apply(r#""hash":25,"compact_revision":-1"#),
            r#""hash":HASH,"compact_revision":-1"#
        );
    }
}
