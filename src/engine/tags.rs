//! Revisions name their member: whose numbers a request has, and what becomes of numbers that are nobody's.
//!
//! A revision is a member's own counter, and above it the member's *tag* (see [`Revision`]). A client that got a number
//! from one member may send it to another, in five places: Range (the revision, and bounds on revisions), Watch (the start),
//! Compact, and compares of mod and create revisions. Such a request belongs to the member that the number names.
//!
//! Where that member cannot be asked, or there is none, the number is *unknown*: so is one ahead of all that a client can
//! have seen here, which a member on an old copy of its disk once gave away. Clients have to be told that what
//! they remember is gone, by what every client of etcd's knows:
//!
//! * Range and Compact are refused as compacted.
//! * A watch is cancelled as compacted at the current revision.
//! * A compare is false, whatever its operator. So are all compares of a transaction that names two members: no member could
//!   judge them all.
//!
//! Zero names nobody, and keeps its meaning: "now", "no bound", "does not exist". So do negative numbers. A store without a tag
//! never had a peer: it knows nothing of this, and does as etcd does.

use std::collections::BTreeSet;

use super::command::{Command, Compare, CompareTarget, Filter, Range, Txn, TxnOp};
use super::watch::WatchCreate;
use crate::types::{Revision, TAG_MAX};

/// No member's numbers come this far. As bounds they bound nothing, and are taken as numbers.
const NUMBERS_END: i64 = (TAG_MAX as i64 + 1) << Revision::COUNTER_END.trailing_zeros();

/// The tag of a number that a client sent; that of what names nobody is 0.
pub fn tag_of(number: i64) -> u16 {
    u64::try_from(number).map_or(0, |number| Revision(number).tag())
}

/// Whether a number is no revision of this member, whose current one is `current`, nor the one that comes next. Never so for
/// a member without a tag.
pub(super) fn is_unknown(number: i64, current: Revision) -> bool {
    current.tag() != 0
        && number > 0
        && (tag_of(number) != current.tag() || number > current.next().shown())
}

/// Picks a tag that is not taken, by chance.
pub fn free_tag(entropy: u64, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    let start = u16::try_from(entropy % u64::from(TAG_MAX)).unwrap_or(0);
    let all = (0..TAG_MAX).map(|step| (start + step) % TAG_MAX + 1);
    all.into_iter().find(|tag| !is_taken(*tag))
}

/// The tags that a request names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    own: bool,
    foreign: BTreeSet<u16>,
}

impl Names {
    /// What one number names, for a member with this tag.
    pub fn of(number: i64, tag: u16) -> Self {
        let mut names = Self::default();
        names.add(number, tag);
        names
    }

    /// Those of others, as the member sees it that was asked.
    pub fn foreign(&self) -> &BTreeSet<u16> {
        &self.foreign
    }

    /// The one member that can answer the request, if it is not the one that was asked.
    pub fn elsewhere(&self) -> Option<u16> {
        match (self.own, self.foreign.first()) {
            (false, Some(tag)) if self.foreign.len() == 1 => Some(*tag),
            _ => None,
        }
    }

    /// Whether no member can judge all of it.
    pub(super) fn is_divided(&self) -> bool {
        self.foreign.len() + usize::from(self.own) > 1
    }

    fn add(&mut self, number: i64, tag: u16) {
        if number <= 0 || tag == 0 {
            return;
        }
        match tag_of(number) {
            own if own == tag => self.own = true,
            foreign => _ = self.foreign.insert(foreign),
        }
    }

    fn add_range(&mut self, range: &Range, tag: u16) {
        self.add(range.revision, tag);
        range.filter.bounds().for_each(|bound| self.add(bound, tag));
    }

    fn add_txn(&mut self, txn: &Txn, tag: u16) {
        txn.compares.iter().filter_map(Compare::named).for_each(|number| self.add(number, tag));
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(range) => self.add_range(range, tag),
                TxnOp::Txn(txn) => self.add_txn(txn, tag),
                TxnOp::Put(_) | TxnOp::DeleteRange(_) => {}
            }
        }
    }
}

impl Filter {
    /// The bounds that name a revision.
    fn bounds(&self) -> impl Iterator<Item = i64> {
        let Self { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision } =
            *self;
        [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision]
            .into_iter()
            .filter(|bound| *bound < NUMBERS_END)
    }

    /// Whether a bound is no revision of this member.
    pub(super) fn is_unknown(&self, current: Revision) -> bool {
        *self != Self::default() && self.bounds().any(|bound| is_unknown(bound, current))
    }
}

impl Compare {
    /// The revision that it compares with, if it does.
    pub(super) fn named(&self) -> Option<i64> {
        match self.target {
            CompareTarget::CreateRevision(number) | CompareTarget::ModRevision(number) => {
                Some(number)
            }
            CompareTarget::Version(_) | CompareTarget::Value(_) | CompareTarget::Lease(_) => None,
        }
    }
}

impl Range {
    /// The tags that it names, for a member with this one.
    pub fn names(&self, tag: u16) -> Names {
        let mut names = Names::default();
        if tag != 0 {
            names.add_range(self, tag);
        }
        names
    }
}

impl Txn {
    /// The tags that it names, for a member with this one.
    pub fn names(&self, tag: u16) -> Names {
        let mut names = Names::default();
        if tag != 0 {
            names.add_txn(self, tag);
        }
        names
    }
}

impl Command {
    /// The tags that it names, for a member with this one.
    pub fn names(&self, tag: u16) -> Names {
        match self {
            Self::Txn(txn) => txn.names(tag),
            Self::Compact { revision } => Names::of(*revision, tag),
            Self::Put(_)
            | Self::DeleteRange(_)
            | Self::LeaseGrant { .. }
            | Self::LeaseRevoke { .. }
            | Self::Alarm { .. }
            | Self::Auth(_)
            | Self::SetLeader(_)
            | Self::Downgrade(_) => Names::default(),
        }
    }
}

impl WatchCreate {
    /// The tags that it names, for a member with this one.
    pub fn names(&self, tag: u16) -> Names {
        Names::of(self.start_revision, tag)
    }
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
