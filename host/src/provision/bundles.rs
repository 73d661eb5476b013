//! The bundles that Pis were offered, kept until they are fetched.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use piman_core::hash::Hash;
use piman_core::install::Personal;

use crate::state::Identity;
use crate::sys::lock::lock;

/// As many bytes of bundles are kept, and as many bundles: the oldest go first. Who comes too late asks again.
const KEPT_BYTES: usize = 256 << 20;
const KEPT: usize = 20_000;

/// The bundles that Pis were offered.
#[derive(Debug, Default)]
pub struct Bundles(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_hash: HashMap<Hash, (Owners, Arc<[u8]>)>,
    /// The oldest first.
    order: VecDeque<Hash>,
    bytes: usize,
}

/// Whose a bundle is: many Pis have the same one if nothing in it is about a Pi.
#[derive(Default)]
struct Owners {
    names: HashSet<String>,
    addresses: HashSet<IpAddr>,
}

impl Owners {
    fn add(&mut self, pi: &Identity) {
        // Of so many those come first again that still want it: they ask for a decision again.
        if self.names.len() >= KEPT {
            *self = Self::default();
        }
        self.names.insert(pi.key());
        self.addresses.insert(pi.address);
    }

    fn has(&self, pi: &Identity) -> bool {
        self.names.contains(&pi.key()) || self.addresses.contains(&pi.address)
    }
}

/// How many: passwords are in them.
impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bundles of {} bytes", self.order.len(), self.bytes)
    }
}

impl Bundles {
    /// Keeps one for a Pi, and returns what the Pi is told of it.
    pub fn keep(&self, pi: &Identity, bundle: &[u8]) -> Personal {
        let hash = Hash(*blake3::hash(bundle).as_bytes());
        let mut kept = lock(&self.0);
        match kept.by_hash.get_mut(&hash) {
            Some((owners, _)) => owners.add(pi),
            None => {
                let mut owners = Owners::default();
                owners.add(pi);
                kept.by_hash.insert(hash, (owners, bundle.into()));
                kept.order.push_back(hash);
                kept.bytes += bundle.len();
            }
        }
        while kept.bytes > KEPT_BYTES || kept.order.len() > KEPT {
            let Some(oldest) = kept.order.pop_front() else { break };
            let gone = kept.by_hash.remove(&oldest).map_or(0, |(_, bundle)| bundle.len());
            kept.bytes = kept.bytes.saturating_sub(gone);
        }
        Personal { hash, bytes: u32::try_from(bundle.len()).unwrap_or(0) }
    }

    /// The one with this hash, if it is for this Pi.
    #[must_use]
    pub fn find(&self, pi: &Identity, hash: Hash) -> Option<Arc<[u8]>> {
        let kept = lock(&self.0);
        let (owners, bundle) = kept.by_hash.get(&hash)?;
        owners.has(pi).then(|| Arc::clone(bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pi(serial: &str, host: u8) -> Identity {
        Identity { serial: Some(serial.into()), ..Identity::of([10, 0, 0, host].into()) }
    }

    #[test]
    fn a_bundle_is_for_its_pi() {
        let bundles = Bundles::default();
        let told = bundles.keep(&pi("1", 1), b"x");
        assert_eq!(told.bytes, 1);
        assert!(bundles.find(&pi("1", 2), told.hash).is_some(), "it has another address now");
        assert!(bundles.find(&Identity::of([10, 0, 0, 1].into()), told.hash).is_some());
        assert!(bundles.find(&pi("2", 2), told.hash).is_none());
        // Another Pi has the same one: the first still gets it.
        assert_eq!(bundles.keep(&pi("2", 2), b"x"), told);
        assert!(
            bundles.find(&pi("1", 1), told.hash).is_some() && bundles.find(&pi("2", 2), told.hash).is_some()
        );
        assert!(bundles.find(&pi("3", 3), told.hash).is_none());
        assert!(bundles.find(&pi("1", 1), Hash([0; 32])).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let bundles = Bundles::default();
        let hashes: Vec<_> = (0..40_u8).map(|n| bundles.keep(&pi("1", 1), &vec![n; 8 << 20]).hash).collect();
        assert!(bundles.find(&pi("1", 1), hashes[0]).is_none());
        assert!(bundles.find(&pi("1", 1), hashes[39]).is_some());
        assert_eq!(
            format!("{bundles:?}"),
            "Bundles(Mutex { data: 32 bundles of 268435456 bytes, poisoned: false, .. })"
        );
        for n in 0..=KEPT {
            bundles.keep(&pi("1", 1), &n.to_le_bytes());
        }
        assert!(lock(&bundles.0).order.len() <= KEPT && lock(&bundles.0).by_hash.len() <= KEPT);
    }
}
