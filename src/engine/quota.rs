//! What a command may add to the data, as etcd estimates it for its quota.
//!
//! Source: etcd `server/storage/quota.go`.

use super::command::{Command, Put, Txn, TxnOp};

/// What etcd counts for a pair beyond its key and value when it checks the quota.
const QUOTA_PAIR_OVERHEAD_BYTES: u64 = 256;
/// What etcd counts for a lease when it checks the quota.
const QUOTA_LEASE_BYTES: u64 = 64;

/// What a command may add to the data, in bytes, as etcd estimates it; zero for what only takes away.
pub(super) fn cost(command: &Command) -> u64 {
    match command {
        Command::Put(put) => put_cost(put),
        Command::Txn(txn) => txn_cost(txn),
        Command::LeaseGrant { .. } => QUOTA_LEASE_BYTES,
        Command::DeleteRange(_)
        | Command::Compact { .. }
        | Command::LeaseRevoke { .. }
        | Command::Alarm { .. }
        | Command::Auth(_)
        | Command::SetLeader(_)
        | Command::Downgrade(_) => 0,
    }
}

fn put_cost(put: &Put) -> u64 {
    QUOTA_PAIR_OVERHEAD_BYTES
        + (put.key.len() + put.value.len() + put.media_type.as_str().len()) as u64
}

/// The dearer branch counts.
fn txn_cost(txn: &Txn) -> u64 {
    let branch_cost = |ops: &[TxnOp]| {
        ops.iter().fold(0, |sum, op| match op {
            TxnOp::Put(put) => sum + put_cost(put),
            TxnOp::Txn(txn) => sum + txn_cost(txn),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) => sum,
        })
    };
    branch_cost(&txn.success).max(branch_cost(&txn.failure))
}
