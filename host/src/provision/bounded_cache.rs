//! A map of bounded size.

use crate::sys::lock::lock;
use std::collections::HashMap;
use std::hash::Hash as Key;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// How many addresses are remembered in memory.
const ADDRESSES_MAX: usize = 20_000;

/// A map of bounded size: when it is full, everything older than the newest half goes.
#[derive(Debug)]
pub struct BoundedCache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for BoundedCache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Key + Eq + Clone, V: Clone> BoundedCache<K, V> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<K, (Instant, V)>> {
        lock(&self.0)
    }

    /// What is known under this key.
    pub fn find(&self, key: &K) -> Option<V> {
        self.lock().get(key).map(|(_, v)| v.clone())
    }

    /// Forgets.
    pub fn remove(&self, key: &K) {
        self.lock().remove(key);
    }

    /// Remembers.
    pub fn put(&self, key: K, value: V) {
        let mut map = self.lock();
        if map.len() >= ADDRESSES_MAX && !map.contains_key(&key) {
            let mut times: Vec<Instant> = map.values().map(|(at, _)| *at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            map.retain(|_, (at, _)| *at > median);
        }
        map.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recent_is_bounded() {
        let recent = BoundedCache::default();
        for n in 0..=ADDRESSES_MAX {
            recent.put(n, n);
        }
        assert!(recent.lock().len() <= ADDRESSES_MAX);
        assert_eq!(recent.find(&ADDRESSES_MAX), Some(ADDRESSES_MAX));
    }
}
