//! Who may transfer now, who waits for it, and who is told that it is too much.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Limits;
use crate::net::queue::{FairQueue, QueuePlace};
use crate::sys::lock::lock;

/// How much there is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Transfers that go on.
    pub active: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Requests that were refused since the start: too many in all, or of one address.
    pub refused: u64,
}

/// The gate of a server.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    slots: Arc<FairQueue>,
    current: Mutex<Current>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Current {
    requests: HashSet<(SocketAddr, String)>,
    by_address: HashMap<IpAddr, usize>,
}

/// One request being answered; over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    gate: Arc<Admission>,
    key: (SocketAddr, String),
    /// The place in the line.
    pub(super) ticket: QueuePlace,
}

impl Turn {
    /// Who asked.
    pub(super) fn peer(&self) -> SocketAddr {
        self.key.0
    }
}

/// What becomes of a request.
pub(super) enum Entry {
    New(Turn),
    /// The same request is being answered already: the client was impatient.
    Repeated,
    Refused(&'static str),
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let slots = FairQueue::new(limits.transfers.max(1));
        Arc::new(Self { limits, slots, current: Mutex::default(), refused: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }

    pub(super) fn enter(self: &Arc<Self>, peer: SocketAddr, name: &str) -> Entry {
        let key = (peer, name.to_owned());
        let mut current = self.lock();
        if current.requests.contains(&key) {
            return Entry::Repeated;
        }
        let here = current.by_address.get(&peer.ip()).copied().unwrap_or(0);
        let wrong = match () {
            () if here >= self.limits.per_address => Some("too many transfers to this address"),
            () if current.requests.len() >= self.limits.transfers.saturating_add(self.limits.waiting) => {
                Some("the server is busy, ask again later")
            }
            () => None,
        };
        if let Some(wrong) = wrong {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Entry::Refused(wrong);
        }
        current.by_address.insert(peer.ip(), here + 1);
        current.requests.insert(key.clone());
        Entry::New(Turn { gate: Arc::clone(self), key, ticket: self.slots.queue() })
    }

    pub(super) fn load(&self) -> Load {
        Load {
            active: self.slots.taken(),
            waiting: self.slots.waiting(),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut current = self.gate.lock();
        current.requests.remove(&self.key);
        let address = self.key.0.ip();
        if let Some(n) = current.by_address.get_mut(&address) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                current.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_who_is_refused() {
        let limits = Limits { transfers: 1, waiting: 2, per_address: 2, ..Limits::default() };
        let gate = Admission::new(limits);
        let enter = |host: u8, name| match gate.enter(([10, 0, 0, host], 1000).into(), name) {
            Entry::New(turn) => Ok(turn),
            Entry::Repeated => Err("repeated"),
            Entry::Refused(why) => Err(why),
        };
        let first = enter(1, "a").unwrap();
        let slot = first.ticket.take().unwrap();
        assert_eq!(enter(1, "a").unwrap_err(), "repeated");
        let second = enter(1, "b").unwrap();
        assert_eq!(second.ticket.take().unwrap_err(), 1);
        assert!(enter(1, "c").unwrap_err().contains("this address"));
        let third = enter(2, "a").unwrap();
        assert!(enter(3, "a").unwrap_err().contains("busy"));
        assert_eq!(gate.load(), Load { active: 1, waiting: 2, refused: 2 });
        // One that gives up, and one that is done.
        drop(second);
        drop((slot, first));
        let slot = third.ticket.take().unwrap();
        assert_eq!(gate.load(), Load { active: 1, waiting: 0, refused: 2 });
        drop((slot, third));
        assert!(enter(1, "a").is_ok());
    }
}
