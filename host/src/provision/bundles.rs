//! The bundles that Pis were offered, kept until they are fetched.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Mutex};

use piman_core::hash::Hash;
use piman_core::install::Personal;

use crate::sys::lock::lock;

/// As many bytes of bundles are kept, and as many bundles: the oldest go first. Who comes too late asks again.
const KEPT_BYTES: usize = 256 << 20;
const KEPT: usize = 20_000;

/// The bundles that Pis were offered.
#[derive(Debug, Default)]
pub struct Bundles(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_hash: HashMap<Hash, Arc<[u8]>>,
    /// The oldest first.
    order: VecDeque<Hash>,
    bytes: usize,
}

/// How many: passwords are in them.
impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bundles of {} bytes", self.order.len(), self.bytes)
    }
}

impl Bundles {
    /// Keeps one, and returns what its Pi is told of it. Several Pis have the same one if nothing in it is about a Pi.
    pub fn keep(&self, bundle: &[u8]) -> Personal {
        let hash = Hash(*blake3::hash(bundle).as_bytes());
        let mut kept = lock(&self.0);
        if let Entry::Vacant(place) = kept.by_hash.entry(hash) {
            place.insert(bundle.into());
            kept.bytes += bundle.len();
        } else if let Some(place) = kept.order.iter().rposition(|kept| *kept == hash) {
            kept.order.remove(place);
        }
        kept.order.push_back(hash);
        while kept.bytes > KEPT_BYTES || kept.order.len() > KEPT {
            let Some(oldest) = kept.order.pop_front() else { break };
            let gone = kept.by_hash.remove(&oldest).map_or(0, |bundle| bundle.len());
            kept.bytes = kept.bytes.saturating_sub(gone);
        }
        Personal { hash, bytes: u32::try_from(bundle.len()).unwrap_or(0) }
    }

    /// The one with this hash. Whoever names that was told it, or knows all that is in it: no address is asked for, since
    /// a Pi may come by another way than it asked for the decision.
    #[must_use]
    pub fn find(&self, hash: Hash) -> Option<Arc<[u8]>> {
        lock(&self.0).by_hash.get(&hash).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_for_who_knows_its_hash() {
        let bundles = Bundles::default();
        let told = bundles.keep(b"x");
        assert_eq!((told.bytes, bundles.keep(b"x")), (1, told), "another Pi has the same one");
        assert_eq!(bundles.find(told.hash).as_deref(), Some(&b"x"[..]));
        assert_eq!(bundles.find(Hash([0; 32])), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let bundles = Bundles::default();
        let hashes: Vec<_> = (0..40_u8).map(|n| bundles.keep(&vec![n; 8 << 20]).hash).collect();
        assert!(bundles.find(hashes[0]).is_none());
        assert!(bundles.find(hashes[39]).is_some());
        assert_eq!(
            format!("{bundles:?}"),
            "Bundles(Mutex { data: 32 bundles of 268435456 bytes, poisoned: false, .. })"
        );
        // The one that was offered again just now is the last to go.
        bundles.keep(&vec![8; 8 << 20]);
        bundles.keep(&vec![50; 8 << 20]);
        assert!(bundles.find(hashes[8]).is_some() && bundles.find(hashes[9]).is_none());
        for n in 0..=KEPT {
            bundles.keep(&n.to_le_bytes());
        }
        assert!(lock(&bundles.0).order.len() <= KEPT && lock(&bundles.0).by_hash.len() <= KEPT);
    }
}
