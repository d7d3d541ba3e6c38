//! Whose revisions a request names: see [`crate::engine::tags`].

use std::collections::BTreeMap;

use super::handle::Handle;
use crate::engine::tags::Names;
use crate::storage::schema::member::MemberRecord;
use crate::types::MemberId;

impl Handle {
    /// The tag by which to tell revisions of others; `None` if there are no others, or what is to be answered has come from one
    /// of them.
    pub fn own_tag(&self) -> Option<u16> {
        self.transport.as_ref()?;
        Some(self.revision().tag()).filter(|own| *own != 0)
    }

    /// The member that a request has to go to, since what it names are revisions of that member; `names` tells what it names, for
    /// a member with some tag. `None` if this member is to answer: that is so, too, if the other one is unknown or seems
    /// dead, and then the engine answers as if those revisions were compacted.
    pub fn elsewhere(&self, names: impl FnOnce(u16) -> Names) -> Option<MemberId> {
        let tag = names(self.own_tag()?).elsewhere()?;
        let directory = self.shared.directory()?;
        // Who has nothing yet answers nothing.
        holder(tag, &directory.members, &self.shared.live()).filter(|_| self.is_ready())
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
