//! One computation for everyone who wants the same thing at the same time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;

type Flight<V> = Shared<BoxFuture<'static, V>>;

/// Running computations by key. One that nobody waits for any more is cancelled.
pub(crate) struct Flights<K, V: Clone> {
    running: Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>,
}

impl<K: Eq + Hash, V: Clone + Send + 'static> Flights<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            running: Mutex::new(HashMap::new()),
        }
    }

    /// Waits for the computation of `key`, starting it if it is not under way.
    pub(crate) async fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = self.board(key, start);
        let value = flight.clone().await;
        self.land(&flight);
        value
    }

    fn board<F>(&self, key: K, start: impl FnOnce() -> F) -> Flight<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        running.retain(|_, flight| flight.upgrade().is_some());
        let flight = start().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            running.insert(key, weak);
        }
        flight
    }

    /// Whoever comes after the end starts anew.
    fn land(&self, flight: &Flight<V>) {
        self.running
            .lock()
            .retain(|_, other| other.upgrade().is_some_and(|other| !other.ptr_eq(flight)));
    }
}

impl<K, V: Clone> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("running", &self.running.lock().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn those_who_come_together_share_one_computation_and_the_next_starts_another() {
        let flights = Flights::new();
        let runs = Arc::new(AtomicU32::new(0));
        let start = || {
            let runs = runs.clone();
            async move {
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let pair = futures::join!(flights.join("k", start), flights.join("k", start));
        assert_eq!(pair, (1, 1));
        assert_eq!(flights.join("k", start).await, 2);
    }

    #[tokio::test]
    async fn one_that_leaves_does_not_take_the_others_down() {
        let flights = Flights::new();
        let (send, receive) = tokio::sync::oneshot::channel::<u32>();
        let mut first = Box::pin(flights.join("k", || async move { receive.await.unwrap_or(0) }));
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(flights.join("k", || async { 9 }));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        send.send(5).ok();
        assert_eq!(second.await, 5);
    }
}
