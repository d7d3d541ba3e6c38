//! Whose revisions a request names: see [`crate::engine::tags`].

use std::collections::BTreeMap;

use super::handle::Handle;
use crate::engine::tags::Names;
use crate::storage::schema::member::MemberRecord;
use crate::types::{MemberId, Revision};

impl Handle {
    /// The member that a request has to go to, since what it names are revisions of that member; `names` tells what it names, for
    /// a member with some tag. `None` if this member is to answer: that is so, too, if the other one is unknown or seems
    /// dead, and then the engine answers as if those revisions were compacted.
    pub fn elsewhere(&self, names: impl FnOnce(u16) -> Names) -> Option<(MemberId, MemberRecord)> {
        let own = Revision::tag(self.revision());
        if own == 0 {
            return None;
        }
        let tag = names(own).elsewhere()?;
        let directory = self.shared.directory()?;
        let member = holder(tag, &directory.members, &self.shared.live())?;
        Some((member, directory.members[&member].clone()))
    }
}

/// Who of the living has a tag. Nobody if there are two, who are about to give it up.
fn holder(
    tag: u16,
    members: &BTreeMap<MemberId, MemberRecord>,
    live: &[MemberId],
) -> Option<MemberId> {
    let mut holders = members.iter().filter(|(_, record)| tag != 0 && record.tag == tag);
    match (holders.next(), holders.next()) {
        (Some((member, _)), None) if live.contains(member) => Some(*member),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_leads_to_the_one_living_member_that_has_it() {
        let record = |tag| MemberRecord { tag, former_tags: vec![9], ..MemberRecord::default() };
        let tags = [(1, 5), (2, 6), (3, 6), (4, 0), (5, 8)];
        let members = tags.into_iter().map(|(id, tag)| (MemberId(id), record(tag))).collect();
        let live = [1, 2, 3, 4].map(MemberId);
        let holders = [5, 6, 0, 8, 9].map(|tag| holder(tag, &members, &live));
        assert_eq!(holders, [Some(MemberId(1)), None, None, None, None]);
    }
}
