//! Calls of KV and Election that another member has to answer, since what they name are revisions of that member.
//!
//! The client gets that member's answer as it is, so its next request may name that member again. What cannot be reached is
//! answered here, as if those revisions were compacted. But a call that changes something must not be done twice: once any of it has
//! been sent, only the other member's word counts, and without one the client is told that nobody knows.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use http::uri::PathAndQuery;
use prost::Message;
use starling_proto::etcdserverpb as pb;
use tokio::time::{Instant, sleep};
use tonic::client::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::engine::command::Txn;
use crate::engine::tags::{Names, tag_of};
use crate::error::Error;
use crate::node::{FORWARDED, FORWARDED_REFUSED, Forward, Handle};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
pub(super) const PROCLAIM: &str = "/v3electionpb.Election/Proclaim";
pub(super) const RESIGN: &str = "/v3electionpb.Election/Resign";

/// How long a lease may take to a member that has to attach it to a key.
const LEASE_TIME: Duration = Duration::from_secs(1);
const LEASE_POLL: Duration = Duration::from_millis(10);

/// Whether a call can be done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Reads,
    Changes,
}

/// The request, in case another member is to answer it.
pub(super) fn kept<M: Revisions + Clone>(node: &Handle, request: &M) -> Option<M> {
    let own = node.own_tag()?;
    let is_foreign = |number| ![0, own].contains(&tag_of(number));
    request.any(&is_foreign).then(|| request.clone())
}

/// The other member's answer to a Range; `None` if this one is to answer.
pub(super) async fn range(
    node: &Handle,
    request: Option<pb::RangeRequest>,
    names: impl FnOnce(u16) -> Names,
) -> Result<Option<pb::RangeResponse>, Status> {
    let Some((request, forward)) = way(node, request, names) else { return Ok(None) };
    // In a box, so that a call that stays here is no larger for it.
    Box::pin(call(&forward, RANGE, request, Effect::Reads)).await
}

/// The other member's answer to a transaction; `None` if this one is to answer.
pub(super) async fn txn(
    node: &Handle,
    request: Option<pb::TxnRequest>,
    txn: &Txn,
) -> Result<Option<pb::TxnResponse>, Status> {
    let Some((request, forward)) = way(node, request, |tag| txn.names(tag)) else {
        return Ok(None);
    };
    Box::pin(call_with_leases(node, &forward, request, txn)).await
}

/// A lease may have been granted just now by a client of this member.
async fn call_with_leases(
    node: &Handle,
    forward: &Forward,
    request: pb::TxnRequest,
    txn: &Txn,
) -> Result<Option<pb::TxnResponse>, Status> {
    let effect = if txn.is_read_only() { Effect::Reads } else { Effect::Changes };
    let deadline = Instant::now() + LEASE_TIME;
    loop {
        let answer = call(forward, TXN, request.clone(), effect).await;
        let waits = is_no_lease(&answer) && Instant::now() < deadline;
        // It has changed nothing, and may be on its way there from here.
        if !waits || !node.has_leases(txn).await {
            return answer;
        }
        sleep(LEASE_POLL).await;
    }
}

fn is_no_lease<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| is_error(status, &Error::LeaseNotFound))
}

/// The other member's answer to a compaction, which is its own; `None` if this one is to answer.
pub(super) async fn compact(
    node: &Handle,
    request: pb::CompactionRequest,
) -> Result<Option<pb::CompactionResponse>, Status> {
    let names = |tag| Names::of(request.revision, tag);
    let Some((request, forward)) = way(node, Some(request), names) else { return Ok(None) };
    Box::pin(call(&forward, COMPACT, request, Effect::Changes)).await
}

/// The other member's answer to what a leader wants, whose key was created at this revision; `None` if this one is to answer. If
/// that member is gone, nobody can tell here whether it still is the leader, so it is not.
pub(super) async fn leader<M, R>(
    node: &Handle,
    path: &'static str,
    request: M,
    revision: i64,
) -> Result<Option<R>, Status>
where
    M: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let names = |tag| Names::of(revision, tag);
    let Some((request, forward)) = way(node, Some(request), names) else { return Ok(None) };
    Box::pin(call(&forward, path, request, Effect::Changes)).await
}

fn way<M>(
    node: &Handle,
    request: Option<M>,
    names: impl FnOnce(u16) -> Names,
) -> Option<(M, Forward)> {
    let request = request?;
    let member = node.elsewhere(names)?;
    let forward = node.forward(member).ok()?;
    Some((request, forward))
}

/// Asks the member; `None` if it is as if it had not been asked.
async fn call<M, R>(
    forward: &Forward,
    path: &'static str,
    message: M,
    effect: Effect,
) -> Result<Option<R>, Status>
where
    M: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let (messages, sent) = parcel(message);
    let asked = async {
        let mut client = Grpc::new(forward.channel()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        client.client_streaming(forward.request(messages), path, ProstCodec::default()).await
    };
    let answer = tokio::select! {
        answer = asked => answer,
        () = forward.lost() => Err(Status::unavailable("the member seems dead")),
    };
    let status = match answer {
        Ok(answer) => return Ok(Some(answer.into_inner())),
        Err(status) => status,
    };
    match judge(&status, sent.give_up(), effect) {
        Verdict::Answered => Err(Status::new(status.code(), status.message())),
        Verdict::Unknown => Err(Error::Timeout.into()),
        Verdict::Unreachable => {
            tracing::debug!(member = %forward.to(), %status, path, "a call was not forwarded");
            Ok(None)
        }
    }
}

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Answered,
    /// Nothing has come of it, and nothing will.
    Unreachable,
    Unknown,
}

fn judge(status: &Status, is_unsent: bool, effect: Effect) -> Verdict {
    let lost = if effect == Effect::Reads { Verdict::Unreachable } else { Verdict::Unknown };
    match status.metadata().get(FORWARDED) {
        _ if is_unsent => Verdict::Unreachable,
        None => lost,
        Some(mark) if mark == FORWARDED_REFUSED => Verdict::Unreachable,
        Some(_) if is_error(status, &Error::NotReady) => Verdict::Unreachable,
        Some(_) if is_error(status, &Error::Timeout) => Verdict::Answered,
        // Refused before anything is done.
        Some(_) if is_error(status, &Error::ClockSkew) => Verdict::Answered,
        Some(_) if status.code() == Code::Unavailable => lost,
        Some(_) => Verdict::Answered,
    }
}

fn is_error(status: &Status, error: &Error) -> bool {
    let expected = Status::from(error.clone());
    status.code() == expected.code() && status.message() == expected.message()
}

/// A message, and the word whether it has been sent.
fn parcel<M: Send + 'static>(message: M) -> (impl Stream<Item = M> + Send + 'static, Sent) {
    let decided = Arc::new(AtomicBool::new(false));
    let sent = Sent(Arc::clone(&decided));
    let mut message = Some(message);
    // It is asked for when there is a connection, not before.
    let take = move || message.take().filter(|_| !decided.swap(true, Ordering::AcqRel));
    (stream::iter(iter::from_fn(take)), sent)
}

/// Who comes first decides: the connection that takes the message, or the one who gives up.
struct Sent(Arc<AtomicBool>);

impl Sent {
    /// Whether the message has not been sent. It never will be then.
    fn give_up(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A request whose numbers may be revisions.
pub(super) trait Revisions {
    /// Whether one of them, at least, is as asked for.
    fn any(&self, is: &dyn Fn(i64) -> bool) -> bool;
}

impl Revisions for pb::RangeRequest {
    fn any(&self, is: &dyn Fn(i64) -> bool) -> bool {
        is(self.revision)
            || is(self.min_mod_revision)
            || is(self.max_mod_revision)
            || is(self.min_create_revision)
            || is(self.max_create_revision)
    }
}

impl Revisions for pb::TxnRequest {
    fn any(&self, is: &dyn Fn(i64) -> bool) -> bool {
        self.compare.iter().any(|compare| compare.any(is))
            || self.success.iter().chain(&self.failure).any(|op| op.any(is))
    }
}

impl Revisions for pb::Compare {
    fn any(&self, is: &dyn Fn(i64) -> bool) -> bool {
        use pb::compare::TargetUnion;
        match self.target_union {
            Some(TargetUnion::CreateRevision(number) | TargetUnion::ModRevision(number)) => {
                is(number)
            }
            _ => false,
        }
    }
}

impl Revisions for pb::RequestOp {
    fn any(&self, is: &dyn Fn(i64) -> bool) -> bool {
        use pb::request_op::Request;
        match &self.request {
            Some(Request::RequestRange(range)) => range.any(is),
            Some(Request::RequestTxn(txn)) => txn.any(is),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;
    use crate::node::FORWARDED_ANSWERED;

    fn status(error: Error, mark: &'static str) -> Status {
        let mut status = Status::from(error);
        status.metadata_mut().insert(FORWARDED, MetadataValue::from_static(mark));
        status
    }

    #[test]
    fn a_change_that_was_sent_is_never_done_again() {
        use Effect::{Changes, Reads};
        use Verdict::{Answered, Unknown, Unreachable};
        let answered = |error| status(error, FORWARDED_ANSWERED);
        let broken = Status::unavailable("the connection broke");
        let table = [
            (&broken, Unreachable, Unknown),
            (&status(Error::Stopped, FORWARDED_REFUSED), Unreachable, Unreachable),
            (&answered(Error::NotReady), Unreachable, Unreachable),
            (&answered(Error::Stopped), Unreachable, Unknown),
            (&answered(Error::Timeout), Answered, Answered),
            (&answered(Error::ClockSkew), Answered, Answered),
            (&answered(Error::LeaseNotFound), Answered, Answered),
            (&answered(Error::NoSpace), Answered, Answered),
        ];
        for (status, read, change) in table {
            assert_eq!(judge(status, false, Reads), read, "{status}");
            assert_eq!(judge(status, false, Changes), change, "{status}");
            assert_eq!(judge(status, true, Changes), Unreachable, "{status}, never sent");
        }
    }

    #[tokio::test]
    async fn what_was_given_up_is_not_sent_later() {
        use futures_util::StreamExt;
        let (mut messages, sent) = parcel(7);
        assert_eq!(messages.next().await, Some(7));
        assert_eq!(messages.next().await, None);
        assert!(!sent.give_up());
        let (mut messages, sent) = parcel(7);
        assert!(sent.give_up());
        assert_eq!(messages.next().await, None);
    }

    #[test]
    fn revisions_are_found_wherever_they_stand() {
        use pb::compare::TargetUnion;
        use pb::request_op::Request;
        let nested = |request: Request| pb::TxnRequest {
            failure: vec![pb::RequestOp { request: Some(request) }],
            ..pb::TxnRequest::default()
        };
        let compare = |union| pb::TxnRequest {
            compare: vec![pb::Compare { target_union: Some(union), ..pb::Compare::default() }],
            ..pb::TxnRequest::default()
        };
        let range = pb::RangeRequest { max_create_revision: 7, ..pb::RangeRequest::default() };
        let is = |number| number == 7;
        assert!(range.any(&is));
        assert!(nested(Request::RequestRange(range)).any(&is));
        assert!(compare(TargetUnion::ModRevision(7)).any(&is));
        let create = compare(TargetUnion::CreateRevision(7));
        assert!(nested(Request::RequestTxn(create)).any(&is));
        assert!(!compare(TargetUnion::Version(7)).any(&is));
    }
}
