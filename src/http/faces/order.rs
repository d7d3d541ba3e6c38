//! Who is first and last of the members that seem alive: by name, with numbers in it as numbers, then by id. Every member that
//! sees the same ones alive derives the same order, and asks nobody. Nothing but what these faces show depends on it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::node::{Handle, MemberRecord};
use crate::types::MemberId;

/// A member as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) member: MemberId,
    pub(super) record: MemberRecord,
}

impl Link {
    /// Where its clients reach it, if it says so: scheme, host and port.
    pub(super) fn client(&self) -> Option<(&str, &str)> {
        let urls = self.record.client_urls.iter().filter_map(|url| url.split_once("://"));
        let mut urls = urls.filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
        urls.next().map(|(scheme, rest)| (scheme, rest.split('/').next().unwrap_or_default()))
    }

    /// As the chain names it: by the address for clients, or by its name.
    pub(super) fn address(&self) -> &str {
        self.client().map_or(&self.record.name, |(_, address)| address)
    }
}

/// The members that were ever started, in order, with whether they seem alive. Learners have no place among them.
pub(super) fn all(node: &Handle) -> Vec<(Link, bool)> {
    let live = node.live_members();
    let ordered = sorted(node.members());
    ordered
        .into_iter()
        .map(|link| {
            let is_alive = live.binary_search(&link.member).is_ok();
            (link, is_alive)
        })
        .collect()
}

/// Those that seem alive, from the head to the tail.
pub(super) fn chain(node: &Handle) -> Vec<Link> {
    all(node).into_iter().filter(|(_, is_alive)| *is_alive).map(|(link, _)| link).collect()
}

fn sorted(members: BTreeMap<MemberId, MemberRecord>) -> Vec<Link> {
    let links = members.into_iter().map(|(member, record)| Link { member, record });
    let mut links: Vec<_> =
        links.filter(|link| link.record.is_started() && !link.record.learner).collect();
    links.sort_by(|a, b| {
        by_name(&a.record.name, &b.record.name).then_with(|| a.member.cmp(&b.member))
    });
    links
}

/// Compares names, in which numbers count as numbers: `node-9` is before `node-10`.
fn by_name(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (first, second) = match (a.first(), b.first()) {
            (Some(first), Some(second)) => (first, second),
            (first, second) => return first.is_some().cmp(&second.is_some()),
        };
        if !first.is_ascii_digit() || !second.is_ascii_digit() {
            if first != second {
                return first.cmp(second);
            }
            (a, b) = (&a[1..], &b[1..]);
            continue;
        }
        let (number, rest_of_a) = number_at(a);
        let (other, rest_of_b) = number_at(b);
        // Without zeros in front of it the longer one is the greater one.
        let order = number.len().cmp(&other.len()).then_with(|| number.cmp(other));
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_of_a, rest_of_b);
    }
}

/// The number at the start of a name, without the zeros in front of it, and what follows.
fn number_at(name: &[u8]) -> (&[u8], &[u8]) {
    let end = name.iter().position(|c| !c.is_ascii_digit()).unwrap_or(name.len());
    let (number, rest) = name.split_at(end);
    let zeros = number.iter().take_while(|c| **c == b'0').count();
    (&number[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let names =
            ["", "a", "mehdb-0", "mehdb-2", "mehdb-10", "mehdb-10-a", "mehdb-x", "n9z1", "n10"];
        assert!(names.is_sorted_by(|a, b| by_name(a, b).is_lt()), "{names:?}");
        assert_eq!(by_name("n007", "n7"), Ordering::Equal);
        assert_eq!(
            by_name("n99999999999999999999999", "n100000000000000000000000"),
            Ordering::Less
        );
    }

    #[test]
    fn learners_and_those_never_started_have_no_place() {
        let record = |name: &str, learner| MemberRecord {
            name: name.to_owned(),
            learner,
            client_urls: vec!["unix://a".to_owned(), format!("http://{name}:2379/")],
            ..MemberRecord::default()
        };
        let members = [
            (1, record("b", false)),
            (2, record("a", true)),
            (3, record("", false)),
            (4, record("b", false)),
            (5, record("a", false)),
        ];
        let members = members.into_iter().map(|(id, record)| (MemberId(id), record)).collect();
        let links = sorted(members);
        assert_eq!(links.iter().map(|link| link.member.0).collect::<Vec<_>>(), [5, 1, 4]);
        assert_eq!(links[0].client(), Some(("http", "a:2379")));
    }
}
