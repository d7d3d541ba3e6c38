//! Who owns a name: the recipe that locks and elections are made of.
//!
//! Whoever wants a name creates a key under it, called after their lease, and owns it once every key under it that was
//! created earlier is gone. Since a key goes with its lease, so does ownership. Clients that follow the recipe on their
//! own side make the same keys, and wait in the same queue.
//!
//! The waiting is done by a task for each call: it hears when the client has gone, and takes the key back then. Such a call
//! costs one watcher of a single key, told of nothing but its end.
//!
//! Source: etcd `client/v3/concurrency`, which etcd's own services of these names use within the server.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::oneshot;
use tonic::{Request, Status};

use super::access::Access;
use super::{Context, status};
use crate::engine::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Filter, Put, Range, RangeReply, Reply,
    Sort, SortOrder, SortTarget, Txn, TxnOp, TxnOpReply, TxnReply,
};
use crate::engine::watch::{WatchCreate, WatchReply};
use crate::error::{AuthError, Error, Invalid, Result};
use crate::node::{Handle, WatchStream};
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

/// The time to live of a lease that is granted to a caller without one, in seconds. Nobody keeps it alive.
const DEFAULT_TTL_SECONDS: i64 = 60;

/// What stands between a name and the lease in a key, and what comes right after it.
const SEPARATOR: u8 = b'/';
const AFTER_SEPARATOR: u8 = SEPARATOR + 1;

/// A key that nobody wants any more keeps others waiting, so a member that is busy is asked to delete it more than once.
const WITHDRAWALS_MAX: u32 = 10;
const WITHDRAWAL_PAUSE: Duration = Duration::from_millis(100);

/// The fields of etcd's transaction for a claim, apart from the key in each and the value.
const CLAIM_KEYS: usize = 5;
const CLAIM_OVERHEAD_BYTES: usize = 128;

/// What somebody wants.
pub(super) struct Wish {
    pub(super) name: Bytes,
    /// Zero for one of the server's.
    pub(super) lease: i64,
    /// What to give the key as its value. `None` is no value, and leaves alone the one that it has.
    pub(super) value: Option<Bytes>,
}

/// A key that somebody owns a name by, or waits with.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) key: Bytes,
    pub(super) lease: LeaseId,
    /// The revision at which the key was created, maybe in a client's words: what is older goes first.
    pub(super) created: i64,
}

/// A claim whose turn it is.
pub(super) struct Owned {
    pub(super) claim: Claim,
    /// The revision of the transaction that created the key, or found it.
    pub(super) entered: Revision,
    /// Whether others had to go first.
    pub(super) waited: bool,
}

/// Why a name was not got.
pub(super) enum Refusal {
    /// By the member.
    Failed(Error),
    /// The leader's key is not the leader's any more.
    NotLeader,
    /// The server is closing, and the claim is as it was.
    Closing,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// All refusals that etcd's services hand on from the client within them have lost their code.
pub(super) fn unknown(error: Error) -> Status {
    match error {
        Error::Stopped => status::stopped(),
        other => Status::unknown(Status::from(other).message()),
    }
}

/// Whether somebody may do what it takes to own a name: the recipe looks at all keys of it, and writes one of them.
pub(super) fn may_claim<T>(
    context: &Context,
    request: &Request<T>,
    (name, lease): (&[u8], i64),
) -> Result<(), Status> {
    let lease = LeaseId(lease);
    may(context, request, |access| {
        access.read(&keys_of(name))?;
        access.put(context, &Put { key: claim_key(name, lease), lease, ..Put::default() })
    })
}

/// Whether somebody may do something. A refusal has lost its code, as all others.
pub(super) fn may<T>(
    context: &Context,
    request: &Request<T>,
    check: impl FnOnce(&Access) -> Result<(), AuthError>,
) -> Result<(), Status> {
    let access = Access::of(context, request.metadata(), request.extensions().get());
    access.and_then(|access| Ok(check(&access)?)).map_err(unknown)
}

/// Whether somebody may change a claim.
pub(super) fn may_change<T>(
    context: &Context,
    request: &Request<T>,
    key: &Bytes,
) -> Result<(), Status> {
    let range = KeyRange::single(key.clone());
    may(context, request, |access| {
        access.read(&range)?;
        access.write(&range)
    })
}

/// Waits until the caller owns the name. A caller that goes before leaves no key behind.
pub(super) async fn acquire(context: &Context, wish: Wish) -> Result<Owned, Refusal> {
    let (decided, decision) = oneshot::channel();
    tokio::spawn(decide(context.clone(), wish, decided));
    decision.await.unwrap_or(Err(Refusal::Closing))
}

type Decided = oneshot::Sender<Result<Owned, Refusal>>;

async fn decide(context: Context, wish: Wish, mut decided: Decided) {
    let rivals = keys_of(&wish.name);
    let Entered { claim, revision, is_new } = match enter(&context, wish).await {
        Ok(entered) => entered,
        // Whoever is not there to hear it has no key.
        Err(refusal) => return drop(decided.send(Err(refusal))),
    };
    // A turn that has come goes first: a caller who owned the name before this call must not lose it by going.
    let waited = tokio::select! {
        biased;
        waited = wait(&context.node, rivals, &claim) => waited,
        () = context.closed() => return drop(decided.send(Err(Refusal::Closing))),
        () = decided.closed() => return withdraw(&context.node, &claim).await,
    };
    match waited {
        Ok(waited) => {
            let owned = Owned { claim: claim.clone(), entered: revision, waited };
            let is_unheard = decided.send(Ok(owned)).is_err();
            if is_unheard && (is_new || waited) {
                withdraw(&context.node, &claim).await;
            }
        }
        Err(error) => {
            withdraw(&context.node, &claim).await;
            drop(decided.send(Err(error.into())));
        }
    }
}

/// A claim that waits for its turn.
struct Entered {
    claim: Claim,
    /// Of the transaction that created the key, or found it.
    revision: Revision,
    /// Whether it was created.
    is_new: bool,
}

/// Creates the key, or finds it.
async fn enter(context: &Context, wish: Wish) -> Result<Entered, Refusal> {
    let Wish { name, lease, value } = wish;
    let lease = lease_or_new(&context.node, lease).await?;
    let key = claim_key(&name, lease);
    let size = CLAIM_OVERHEAD_BYTES + CLAIM_KEYS * key.len() + value.as_ref().map_or(0, Bytes::len);
    if size > context.max_request_bytes {
        return Err(Error::from(Invalid::TooLarge).into());
    }
    let put =
        Put { key: key.clone(), value: value.clone().unwrap_or_default(), lease, ..Put::default() };
    let reply = context
        .node
        .txn(Txn {
            compares: vec![created_at(key.clone(), NEVER)],
            success: vec![TxnOp::Put(put)],
            failure: vec![TxnOp::Range(Range::new(KeyRange::single(key.clone())))],
        })
        .await?;
    let found = found(reply.body);
    let created = found.as_ref().map_or(reply.revision, |kv| kv.create_revision).shown();
    let claim = Claim { key, lease, created };
    let is_new = found.is_none();
    if let (Some(value), Some(kv)) = (value, found)
        && value != kv.value
        && let Err(refusal) = replace(&context.node, &claim, value).await
    {
        withdraw(&context.node, &claim).await;
        return Err(refusal);
    }
    Ok(Entered { claim, revision: reply.revision, is_new })
}

/// The pair that the transaction has found in place of creating it.
fn found(reply: TxnReply) -> Option<KeyValue> {
    match reply.responses.into_iter().next() {
        Some(TxnOpReply::Range(found)) => one(found.body),
        _ => None,
    }
}

/// Lease zero is one of the server's own.
pub(super) async fn lease_or_new(node: &Handle, lease: i64) -> Result<LeaseId> {
    let lease = LeaseId(lease);
    if lease.is_some() {
        return Ok(lease);
    }
    Ok(node.lease_grant(lease, DEFAULT_TTL_SECONDS).await?.body.id)
}

/// Writes another value to the key of a claim, if it still is that of the claim.
pub(super) async fn replace(
    node: &Handle,
    claim: &Claim,
    value: Bytes,
) -> Result<Revision, Refusal> {
    let put = Put { key: claim.key.clone(), value, lease: claim.lease, ..Put::default() };
    let reply = if_claimed(node, claim, TxnOp::Put(put)).await?;
    if reply.body.succeeded { Ok(reply.revision) } else { Err(Refusal::NotLeader) }
}

/// Deletes the key of a claim, if it still is that of the claim.
pub(super) async fn give_up(node: &Handle, claim: &Claim) -> Result<Revision> {
    let delete = DeleteRange { range: KeyRange::single(claim.key.clone()), prev_kv: false };
    Ok(if_claimed(node, claim, TxnOp::DeleteRange(delete)).await?.revision)
}

async fn if_claimed(node: &Handle, claim: &Claim, then: TxnOp) -> Result<Reply<TxnReply>> {
    if claim.key.is_empty() {
        return Err(Invalid::EmptyKey.into());
    }
    let compares = vec![created_at(claim.key.clone(), claim.created)];
    node.txn(Txn { compares, success: vec![then], failure: vec![] }).await
}

/// The revision of the creation of a key that is not there.
const NEVER: i64 = 0;

fn created_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        range: KeyRange::single(key),
        result: CompareResult::Equal,
        target: CompareTarget::CreateRevision(revision),
    }
}

/// Gives a claim up for a caller that does not hear of it. If it cannot be done, the key goes with its lease.
async fn withdraw(node: &Handle, claim: &Claim) {
    for _ in 0..WITHDRAWALS_MAX {
        match give_up(node, claim).await {
            Err(Error::TooManyRequests | Error::Timeout) => {
                tokio::time::sleep(WITHDRAWAL_PAUSE).await;
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits until none of its rivals is left that was created before a claim. Answers whether there was one.
async fn wait(node: &Handle, rivals: KeyRange, claim: &Claim) -> Result<bool> {
    let max_create_revision = claim.created - 1;
    let earlier = Range {
        filter: Filter { max_create_revision, ..Filter::default() },
        ..by_creation(rivals, SortOrder::Descending)
    };
    let mut waited = false;
    loop {
        let reply = node.range(earlier.clone()).await?;
        let Some(kv) = one(reply.body) else { return Ok(waited) };
        waited = true;
        wait_for_end(node, kv.key, reply.revision).await?;
    }
}

/// Waits until a key is deleted, or until it can no longer be said whether it was: the caller looks again.
async fn wait_for_end(node: &Handle, key: Bytes, from: Revision) -> Result<()> {
    let range = KeyRange::single(key);
    let mut end = watch(node, WatchCreate { no_put: true, ..changes(range, from) });
    loop {
        match end.next().await? {
            WatchReply::Created { .. } | WatchReply::Progress { .. } => {}
            _ => return Ok(()),
        }
    }
}

/// Everything that happens to a range from a revision on.
pub(super) fn changes(range: KeyRange, from: Revision) -> WatchCreate {
    WatchCreate {
        range,
        start_revision: from.shown(),
        id: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        progress_notify: false,
        fragment: false,
    }
}

/// A stream with one watcher.
pub(super) fn watch(node: &Handle, create: WatchCreate) -> WatchStream {
    let mut stream = node.watch();
    stream.create(create);
    stream
}

/// The owner's pair, and the revision at which it was looked for.
pub(super) async fn owner(node: &Handle, name: &[u8]) -> Result<Reply<Option<KeyValue>>> {
    let reply = node.range(by_creation(keys_of(name), SortOrder::Ascending)).await?;
    Ok(Reply { revision: reply.revision, body: one(reply.body) })
}

/// Whether the key of a claim is there, and at which revision that is so.
pub(super) async fn is_held(node: &Handle, claim: &Claim) -> Result<Reply<bool>> {
    let range = Range { count_only: true, ..Range::new(KeyRange::single(claim.key.clone())) };
    let reply = node.range(range).await?;
    Ok(Reply { revision: reply.revision, body: reply.body.count > 0 })
}

fn by_creation(range: KeyRange, order: SortOrder) -> Range {
    let sort = Some(Sort { target: SortTarget::CreateRevision, order: Some(order) });
    Range { limit: Some(1), sort, ..Range::new(range) }
}

fn one(reply: RangeReply) -> Option<KeyValue> {
    reply.kvs.first().map(KeyValue::from)
}

/// All keys of those who own or want a name.
pub(super) fn keys_of(name: &[u8]) -> KeyRange {
    KeyRange::from_request(joined(name, SEPARATOR, ""), joined(name, AFTER_SEPARATOR, ""))
}

fn claim_key(name: &[u8], lease: LeaseId) -> Bytes {
    joined(name, SEPARATOR, &hex(lease))
}

fn joined(name: &[u8], separator: u8, end: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(name.len() + 1 + end.len());
    key.put_slice(name);
    key.put_u8(separator);
    key.put_slice(end.as_bytes());
    key.freeze()
}

/// Ids may be negative; Go writes a sign then.
fn hex(lease: LeaseId) -> String {
    let sign = if lease.0 < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.0.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_called_after_their_lease() {
        assert_eq!(claim_key(b"l", LeaseId(7001)), "l/1b59");
        assert_eq!(claim_key(b"", LeaseId(-7002)), "/-1b5a");
        assert_eq!(claim_key(b"a/b", LeaseId(i64::MIN)), "a/b/-8000000000000000");
    }

    #[test]
    fn all_keys_of_a_name_are_those_under_it() {
        let keys = keys_of(b"a/b");
        for (key, is_in) in [
            ("a/b/1", true),
            ("a/b/", true),
            ("a/b/c/1", true),
            ("a/b", false),
            ("a/b0", false),
            ("a/bc/1", false),
        ] {
            assert_eq!(keys.contains(key.as_bytes()), is_in, "{key}");
        }
    }
}
