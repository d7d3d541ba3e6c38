//! Hashes of passwords. They are slow on purpose, so they are made on threads of their own, and only a few at a time.
//!
//! Source: etcd hashes with bcrypt, at cost 10 (`--bcrypt-cost`).

use std::sync::{Arc, LazyLock};

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

static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(HASHES_AT_ONCE)));

async fn on_its_own<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    // It is never closed.
    let room = Arc::clone(&ROOM).acquire_owned().await.map_err(|_| Error::Stopped)?;
    let work = move || {
        // Whoever asked may go away, but the thread works on: the room is given up when that is done.
        let _room = room;
        work()
    };
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_goes_away_leaves_no_more_work_than_there_is_room_for() {
        let (begun, beginnings) = mpsc::channel();
        let (go_on, gate) = mpsc::channel::<()>();
        let gate = Arc::new(parking_lot::Mutex::new(gate));
        for number in 0..HASHES_AT_ONCE + 3 {
            let (begun, gate) = (begun.clone(), Arc::clone(&gate));
            let work = move || {
                let _ = begun.send(number);
                let _ = gate.lock().recv();
            };
            // Asked for, and given up at once.
            assert!(on_its_own(work).now_or_never().is_none());
        }
        let first: Vec<_> = (0..HASHES_AT_ONCE).map(|_| beginnings.recv().unwrap()).collect();
        assert_eq!(ROOM.available_permits(), 0, "{first:?} are at work");
        drop(go_on);
        // Nobody waits for the others any more, so they never begin.
        let _room = Arc::clone(&ROOM)
            .acquire_many_owned(u32::try_from(HASHES_AT_ONCE).unwrap())
            .await
            .unwrap();
        assert!(beginnings.try_recv().is_err());
    }
}
