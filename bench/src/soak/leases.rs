//! Clients with leases: granted, kept alive for a while, and then revoked or left to end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::clients::Client;
use super::model::Op;

const TTL_SECONDS: u64 = 2;
const TTL_SECONDS_SPREAD: u64 = 3;
const KEYS_MAX: u64 = 4;
/// How often a lease is kept alive, at most.
const RENEWALS_MAX: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(30);

/// One lease after the other.
pub(super) async fn run(mut client: Client, number: u64) {
    while !client.context.is_stopping() {
        if let Some((id, ttl)) = grant(&mut client).await {
            live(&mut client, number, id, ttl).await;
        }
    }
}

async fn grant(client: &mut Client) -> Option<(i64, Duration)> {
    let ttl = TTL_SECONDS + client.random.below(TTL_SECONDS_SPREAD + 1);
    let id = i64::try_from(client.context.number()).ok()?;
    let mut leases = client.connection().await.lease();
    let (call, start, sent) = (client.begin(), Instant::now(), client.context.now());
    let request = pb::LeaseGrantRequest { ttl: i64::try_from(ttl).ok()?, id };
    match leases.lease_grant(request).await {
        Ok(reply) => {
            client.count(start);
            let (reply, now) = (reply.into_inner(), client.context.now());
            let ttl = Duration::from_secs(reply.ttl.unsigned_abs());
            let mut checker = client.context.checker.borrow_mut();
            checker.ended(&call, reply.header.map_or(0, |header| header.revision));
            checker.kept(id, ttl, sent, now);
            Some((id, ttl))
        }
        Err(status) => {
            client.context.checker.borrow_mut().given_up(&call);
            client.failed(&status).await;
            None
        }
    }
}

async fn live(client: &mut Client, number: u64, id: i64, ttl: Duration) {
    let keys = client.random.below(KEYS_MAX) + 1;
    let key = |n: u64| Bytes::from(format!("/l/{number:02}/{n}"));
    for n in 0..keys {
        client.put(key(n), id).await;
    }
    let renewals = client.random.below(RENEWALS_MAX);
    let mut stream = None;
    for _ in 0..renewals {
        sleep(ttl / 3).await;
        if !keep_alive(client, &mut stream, id, ttl).await {
            return;
        }
    }
    drop(stream);
    match client.random.below(3) {
        0 => {
            client.context.checker.borrow_mut().revoking(id);
            client.call(Op::Revoke(id)).await;
        }
        // One key outlives it.
        1 => drop(client.put(key(0), 0).await),
        _ => {}
    }
}

struct KeepAlive {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

/// Whether the lease may still be there.
async fn keep_alive(
    client: &mut Client,
    stream: &mut Option<KeepAlive>,
    id: i64,
    ttl: Duration,
) -> bool {
    let (start, sent) = (Instant::now(), client.context.now());
    let answer = match timeout(PATIENCE, renew(client, stream, id)).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer to a keep-alive")),
    };
    let now = client.context.now();
    match answer {
        Ok(0) => {
            client.context.checker.borrow_mut().lease_gone(id, now);
            false
        }
        Ok(_) => {
            client.count(start);
            client.context.checker.borrow_mut().kept(id, ttl, sent, now);
            true
        }
        Err(status) => {
            *stream = None;
            client.failed(&status).await;
            true
        }
    }
}

async fn renew(
    client: &mut Client,
    stream: &mut Option<KeepAlive>,
    id: i64,
) -> Result<i64, Status> {
    let request = pb::LeaseKeepAliveRequest { id };
    let open = match stream {
        Some(open) => {
            let sent = open.requests.send(request).await;
            sent.map_err(|_| Status::unavailable("the stream is over"))?;
            open
        }
        None => {
            let (requests, receiver) = mpsc::channel(1);
            // The answer may begin only with the first request.
            let _ = requests.send(request).await;
            let mut leases = client.connection().await.lease();
            let answers = leases.lease_keep_alive(ReceiverStream::new(receiver)).await?;
            stream.insert(KeepAlive { requests, answers: answers.into_inner() })
        }
    };
    let answer = open.answers.message().await?;
    answer.map(|answer| answer.ttl).ok_or_else(|| Status::unavailable("the stream ended"))
}
