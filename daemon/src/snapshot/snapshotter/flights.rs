//! What is under way: one caller at a time per key, and layers that have no record yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use ztoc::Digest;

/// Lets one caller per key through at a time.
#[derive(Debug)]
pub(super) struct Flights<K: Eq + Hash + Clone>(Slots<K>);

type Slots<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// Being the one caller. The next gets through when this is dropped.
#[derive(Debug)]
pub(super) struct Alone<K: Eq + Hash + Clone> {
    slots: Slots<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> Default for Flights<K> {
    fn default() -> Self {
        Self(Slots::default())
    }
}

impl<K: Eq + Hash + Clone> Flights<K> {
    /// Waits for those who came before.
    pub(super) async fn enter(&self, key: K) -> Alone<K> {
        let slot = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        // Made before the wait: a caller that gives up waiting clears the slot away too.
        let mut alone = Alone {
            slots: Arc::clone(&self.0),
            key,
            guard: None,
        };
        alone.guard = Some(slot.lock_owned().await);
        alone
    }
}

impl<K: Eq + Hash + Clone> Drop for Alone<K> {
    fn drop(&mut self) {
        let mut slots = self.slots.lock();
        self.guard = None;
        // The map's own reference is the last: no one flies, no one waits.
        if slots
            .get(&self.key)
            .is_some_and(|slot| Arc::strong_count(slot) == 1)
        {
            slots.remove(&self.key);
        }
    }
}

/// Layers that are being prepared, with how many times.
#[derive(Debug, Default)]
pub(super) struct Preparing(Arc<Mutex<BTreeMap<Digest, usize>>>);

/// One layer being prepared, until this is dropped.
#[derive(Debug)]
pub(super) struct Announced {
    layers: Arc<Mutex<BTreeMap<Digest, usize>>>,
    layer: Digest,
}

impl Preparing {
    pub(super) fn announce(&self, layer: Digest) -> Announced {
        *self.0.lock().entry(layer).or_default() += 1;
        Announced {
            layers: Arc::clone(&self.0),
            layer,
        }
    }

    pub(super) fn layers(&self) -> BTreeSet<Digest> {
        self.0.lock().keys().copied().collect()
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let mut layers = self.layers.lock();
        if let Some(count) = layers.get_mut(&self.layer) {
            *count -= 1;
            if *count == 0 {
                layers.remove(&self.layer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_flies_at_a_time_and_nothing_is_left_behind() {
        let flights = Flights::default();
        let first = flights.enter("k").await;
        let other = flights.enter("other").await;
        let pause = Duration::from_millis(20);
        let waiting = tokio::time::timeout(pause, flights.enter("k")).await;
        assert!(waiting.is_err());
        drop((first, other));
        drop(flights.enter("k").await);
        assert!(flights.0.lock().is_empty());
    }

    #[test]
    fn a_layer_prepared_twice_is_announced_until_both_are_done() {
        let preparing = Preparing::default();
        let layer = Digest::of(b"layer");
        let (first, second) = (preparing.announce(layer), preparing.announce(layer));
        drop(first);
        assert_eq!(preparing.layers(), [layer].into());
        drop(second);
        assert!(preparing.layers().is_empty());
    }
}
