//! Hashes of passwords. They are slow on purpose, so they are made on threads of their own, and only a few at a time.
//!
//! Source: etcd hashes with bcrypt, at cost 10 (`--bcrypt-cost`).

use std::sync::LazyLock;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::error::{AuthError, Error, Result};

/// Who tries passwords must not keep everybody else waiting.
const HASHES_AT_ONCE: usize = 2;
/// bcrypt looks at no more of a password (Go's refuses longer ones, and so do we).
const PASSWORD_BYTES_MAX: usize = 72;

/// etcd's cost of a hash.
pub const COST_DEFAULT: u32 = 10;
/// The least and the greatest cost (Go's bcrypt).
pub const COSTS: std::ops::RangeInclusive<u32> = 4..=31;

static ROOM: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(HASHES_AT_ONCE));

async fn on_its_own<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    // It is never closed.
    let _room = ROOM.acquire().await.map_err(|_| Error::Stopped)?;
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)
}

/// Hashes a password.
pub(super) async fn hash(password: String, cost: u32) -> Result<Bytes> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(AuthError::PasswordTooLong.into());
    }
    let hash = on_its_own(move || bcrypt::hash(password, cost)).await?;
    Ok(hash.expect("the cost was checked").into())
}

/// Whether it is the password of this hash. A hash that is none is nobody's.
pub(super) async fn verify(password: String, hash: Bytes) -> Result<bool> {
    let work = move || {
        let hash = std::str::from_utf8(&hash).ok()?;
        bcrypt::verify(password, hash).ok()
    };
    Ok(on_its_own(work).await?.unwrap_or(false))
}
