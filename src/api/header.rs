//! The header of every answer: who answers, and at which revision.

use starling_proto::etcdserverpb::ResponseHeader;

use crate::node::Handle;
use crate::types::Revision;

/// A full header at the revision that an answer is about.
pub(crate) fn at(node: &Handle, revision: Revision) -> ResponseHeader {
    ResponseHeader { revision: revision.shown(), ..without_revision(node) }
}

/// A full header at the current revision.
pub(crate) fn current(node: &Handle) -> ResponseHeader {
    at(node, node.revision())
}

/// The header of answers that are not about the keyspace.
pub(crate) fn without_revision(node: &Handle) -> ResponseHeader {
    let member = node.member();
    ResponseHeader {
        cluster_id: node.cluster().0,
        member_id: member.id.0,
        revision: 0,
        raft_term: node.term(),
    }
}

/// The header of a step within a transaction, which in etcd names nothing but the revision.
pub(crate) fn nested(revision: Revision) -> ResponseHeader {
    ResponseHeader { revision: revision.shown(), ..ResponseHeader::default() }
}
