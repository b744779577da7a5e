//! Who shares what: values by key, alive as long as somebody holds them.
//!
//! `tests/view_sharing.rs` plays with the orders in which threads come and go.

use std::collections::HashMap;
use std::hash::Hash;

use super::sync::{Arc, Mutex, Weak};

/// Values that are shared. `V` does what is to be done at its end when it is dropped.
#[derive(Debug)]
pub(crate) struct Shares<K, V> {
    known: Mutex<HashMap<K, Weak<V>>>,
    /// Held here until those who need them have come.
    adopted: Mutex<Vec<Arc<V>>>,
}

impl<K: Eq + Hash + Clone, V> Shares<K, V> {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::new(HashMap::new()),
            adopted: Mutex::new(Vec::new()),
        }
    }

    /// The value of `key`, if somebody holds it.
    pub(crate) fn find(&self, key: &K) -> Option<Arc<V>> {
        self.known.lock().get(key)?.upgrade()
    }

    /// Makes a value known to those who come later; the caller is the first to hold it.
    pub(crate) fn publish(&self, key: K, value: V) -> Arc<V> {
        let value = Arc::new(value);
        let mut known = self.known.lock();
        known.retain(|_, other| other.strong_count() > 0);
        known.insert(key, Arc::downgrade(&value));
        value
    }

    /// Holds these until [`settle`](Self::settle).
    pub(crate) fn adopt(&self, adopted: Vec<Arc<V>>) {
        *self.adopted.lock() = adopted;
    }

    /// Lets go of what was adopted. Answers how many of them nobody else holds: these end here.
    pub(crate) fn settle(&self) -> usize {
        let adopted = std::mem::take(&mut *self.adopted.lock());
        let ended = adopted.into_iter().map(Arc::into_inner);
        ended.filter(Option::is_some).count()
    }

    /// All that somebody holds.
    pub(crate) fn alive(&self) -> Vec<(K, Arc<V>)> {
        let known = self.known.lock();
        let alive = known
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.upgrade()?)));
        alive.collect()
    }
}
