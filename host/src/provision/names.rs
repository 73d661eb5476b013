//! From which address a Pi uses its name: another one that says the same name is not taken for it meanwhile.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::state::Identity;
use crate::sys::lock::lock;

/// A name belongs to its address for this time after its last use.
const KEPT: Duration = Duration::from_secs(600);
/// How many names are remembered, and how many of one address.
const NAMES_MAX: usize = 20_000;
const OF_ONE_MAX: usize = 8;

/// The names that are in use.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Debug, Clone, Copy)]
struct Holder {
    address: IpAddr,
    used: Instant,
    /// How many connections use it.
    held: usize,
}

/// A name in use by one connection; dropped when that is over.
#[derive(Debug)]
pub struct Held {
    names: Names,
    name: String,
}

impl Names {
    /// A Pi has said its name. Whether it is not in use at another address.
    pub fn said(&self, pi: &Identity) -> bool {
        self.said_at(pi, Instant::now())
    }

    fn said_at(&self, pi: &Identity, now: Instant) -> bool {
        let (key, address) = (pi.key(), pi.address);
        let mut names = lock(&self.0);
        if let Some(holder) = names.get_mut(&key) {
            let free = holder.held == 0 && now.duration_since(holder.used) >= KEPT;
            if holder.address != address && !free {
                return false;
            }
            (holder.address, holder.used) = (address, now);
            return true;
        }
        let unused = |address: Option<IpAddr>| {
            let all = names.iter().filter(|(_, h)| h.held == 0 && address.is_none_or(|a| a == h.address));
            all.min_by_key(|(_, h)| h.used).map(|(name, _)| name.clone())
        };
        let here = names.values().filter(|holder| holder.address == address).count();
        let goes = if here >= OF_ONE_MAX {
            unused(Some(address))
        } else if names.len() >= NAMES_MAX {
            unused(None)
        } else {
            None
        };
        if let Some(name) = goes {
            names.remove(&name);
        } else if here >= OF_ONE_MAX || names.len() >= NAMES_MAX {
            return false;
        }
        names.insert(key, Holder { address, used: now, held: 0 });
        true
    }

    /// A connection from this Pi's address uses its name; `None`: that is in use at another address.
    #[must_use]
    pub fn hold(&self, pi: &Identity) -> Option<Held> {
        if !self.said(pi) {
            return None;
        }
        let name = pi.key();
        if let Some(holder) = lock(&self.0).get_mut(&name) {
            holder.held += 1;
        }
        Some(Held { names: self.clone(), name })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(holder) = lock(&self.names.0).get_mut(&self.name) {
            holder.held = holder.held.saturating_sub(1);
            holder.used = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pi(serial: &str, n: u8) -> Identity {
        Identity { serial: Some(serial.into()), mac: None, address: [10, 0, 0, n].into() }
    }

    #[test]
    fn a_name_is_of_one_address_for_a_while() {
        let (names, now) = (Names::default(), Instant::now());
        assert!(names.said_at(&pi("a", 1), now));
        assert!(!names.said_at(&pi("a", 2), now + KEPT / 2));
        assert!(names.said_at(&pi("a", 1), now + KEPT / 2));
        assert!(!names.said_at(&pi("a", 2), now + KEPT), "it was used in between");
        assert!(names.said_at(&pi("a", 2), now + KEPT * 2), "it has moved");
        let held = names.hold(&pi("b", 1)).unwrap();
        assert!(!names.said_at(&pi("b", 2), now + KEPT * 100), "it is connected");
        drop(held);
        assert!(names.hold(&pi("b", 2)).is_none());
    }

    #[test]
    fn one_address_does_not_take_all_names() {
        let names = Names::default();
        let real = names.said(&pi("real", 1));
        for n in 0..1000 {
            names.said(&pi(&format!("made up {n}"), 9));
        }
        assert!(real && lock(&names.0).len() <= 1 + OF_ONE_MAX);
        let held: Vec<_> =
            (0..OF_ONE_MAX).map(|n| names.hold(&pi(&format!("held {n}"), 9)).unwrap()).collect();
        assert!(names.hold(&pi("more", 9)).is_none());
        drop(held);
    }
}
