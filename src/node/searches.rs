//! Asking all peers for something that is not known here, a bounded number of times at once.
//!
//! Clients may ask for what nobody has as often as they like, and each such question goes to all peers. So whoever asks for
//! what is being looked for already gets the same answer, and of other things only so many are looked for at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::types::LeaseId;

/// Leases that are looked for at the same time.
const SEARCHES_MAX: usize = 64;

/// What is being looked for; the answers, once they are there.
#[derive(Clone, Debug)]
pub(super) struct Searches {
    running: Arc<Mutex<BTreeMap<LeaseId, watch::Receiver<Option<bool>>>>>,
    room: Arc<Semaphore>,
}

impl Default for Searches {
    fn default() -> Self {
        Self { running: Arc::default(), room: Arc::new(Semaphore::new(SEARCHES_MAX)) }
    }
}

impl Searches {
    /// Whether the search finds it. There is one search for all who ask at the same time; who does not wait for its end does
    /// not stop it.
    pub(super) async fn find<F>(&self, id: LeaseId, search: impl FnOnce() -> F + Send) -> bool
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let under_way = self.running.lock().get(&id).cloned();
        let mut answer = match under_way {
            Some(answer) => answer,
            None => self.begin(id, search).await,
        };
        let found = answer.wait_for(Option::is_some).await;
        found.is_ok_and(|found| *found == Some(true))
    }

    async fn begin<F>(
        &self,
        id: LeaseId,
        search: impl FnOnce() -> F + Send,
    ) -> watch::Receiver<Option<bool>>
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let (sender, answer) = watch::channel(None);
        // It is never closed. Who waits in vain gives up by itself.
        let permit = Arc::clone(&self.room).acquire_owned().await;
        let mut running = self.running.lock();
        if let Some(answer) = running.get(&id) {
            // Somebody has begun meanwhile.
            return answer.clone();
        }
        running.insert(id, answer.clone());
        drop(running);
        let (running, search) = (Arc::clone(&self.running), search());
        tokio::spawn(async move {
            let found = search.await;
            running.lock().remove(&id);
            sender.send_replace(Some(found));
            drop(permit);
        });
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    const ASKERS: usize = 1000;

    /// Counts searches, which end when they are told.
    #[derive(Default)]
    struct Scene {
        searches: Searches,
        begun: Arc<AtomicUsize>,
        at_once: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        end: Arc<Notify>,
    }

    impl Scene {
        async fn find(&self, id: i64) -> bool {
            let (begun, at_once) = (Arc::clone(&self.begun), Arc::clone(&self.at_once));
            let (most, end) = (Arc::clone(&self.most), Arc::clone(&self.end));
            let search = || async move {
                begun.fetch_add(1, Ordering::Relaxed);
                let now = at_once.fetch_add(1, Ordering::Relaxed) + 1;
                most.fetch_max(now, Ordering::Relaxed);
                end.notified().await;
                at_once.fetch_sub(1, Ordering::Relaxed);
                id == 1
            };
            self.searches.find(LeaseId(id), search).await
        }

        /// Lets everything go on as far as it can, and all searches end.
        async fn end_all(&self) {
            loop {
                tokio::task::yield_now().await;
                self.end.notify_waiters();
            }
        }
    }

    #[tokio::test]
    async fn who_asks_for_the_same_gets_the_same_answer() {
        let scene = Scene::default();
        let all = join_all((0..ASKERS).map(|_| scene.find(1)));
        let found = tokio::select! {
            found = all => found,
            () = scene.end_all() => unreachable!("it does not end"),
        };
        assert!(found.into_iter().all(|found| found));
        assert_eq!(scene.begun.load(Ordering::Relaxed), 1);
        assert!(scene.searches.running.lock().is_empty());
    }

    #[tokio::test]
    async fn only_so_many_are_looked_for_at_once() {
        let scene = Scene::default();
        let all = join_all((0..ASKERS).map(|id| scene.find(i64::try_from(id).unwrap())));
        let found = tokio::select! {
            found = all => found,
            () = scene.end_all() => unreachable!("it does not end"),
        };
        assert_eq!(found.into_iter().filter(|found| *found).count(), 1);
        assert_eq!(scene.begun.load(Ordering::Relaxed), ASKERS);
        assert_eq!(scene.most.load(Ordering::Relaxed), SEARCHES_MAX);
    }

    /// Who has asked first need not be there to the end.
    #[tokio::test]
    async fn a_search_goes_on_without_who_has_begun_it() {
        let scene = Scene::default();
        let first = scene.find(1);
        tokio::select! {
            biased;
            _ = first => unreachable!("nobody has ended it"),
            () = tokio::task::yield_now() => {}
        }
        let found = tokio::select! {
            found = scene.find(1) => found,
            () = scene.end_all() => unreachable!("it does not end"),
        };
        assert!(found);
        assert_eq!(scene.begun.load(Ordering::Relaxed), 1);
    }
}
