//! The same work asked for several times at once is done once.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

/// Work in progress by key. It is driven by those who wait for it, and dropped when nobody does any more;
/// results are not kept.
pub(crate) struct SingleFlight<K, V> {
    flying: Mutex<HashMap<K, Flight<V>>>,
}

type Flight<V> = Shared<BoxFuture<'static, V>>;

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            flying: Mutex::default(),
        }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Eq + Hash + Clone,
    V: Clone + Send + Sync + 'static,
{
    /// The result of `work`, or of the work for `key` that is on its way.
    pub(crate) async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = {
            let mut flying = self.flying.lock();
            // Ended, or given up by all who waited.
            flying.retain(|_, flight| flight.peek().is_none() && flight.strong_count() > Some(1));
            let flight = flying.entry(key.clone());
            flight.or_insert_with(|| work().boxed().shared()).clone()
        };
        let result = flight.clone().await;
        let mut flying = self.flying.lock();
        if flying.get(&key).is_some_and(|known| known.ptr_eq(&flight)) {
            flying.remove(&key);
        }
        result
    }
}

impl<K, V> fmt::Debug for SingleFlight<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn work_asked_for_ten_times_at_once_is_done_once_and_later_again() {
        let flights = SingleFlight::<u8, u32>::default();
        let done = Arc::new(AtomicU32::new(0));
        let work = || {
            let done = Arc::clone(&done);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                done.fetch_add(1, Ordering::SeqCst)
            }
        };
        let all = futures::future::join_all((0..10).map(|_| flights.run(1, work))).await;
        assert_eq!(all, [0; 10]);
        assert_eq!(flights.run(1, work).await, 1);
    }

    #[tokio::test]
    async fn work_outlives_a_caller_who_gives_up_if_another_waits_and_is_redone_if_none_does() {
        let flights = SingleFlight::<u8, u32>::default();
        let never = flights.run(1, std::future::pending);
        let given_up = tokio::time::timeout(Duration::from_millis(5), never);
        assert!(given_up.await.is_err());
        assert_eq!(flights.run(1, || async { 7 }).await, 7);
    }
}
