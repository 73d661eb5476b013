//! What a server that is being stopped waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what should be finished before the server ends.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    transfers: AtomicUsize,
    installations: AtomicUsize,
}

/// One of them; over when dropped.
#[derive(Debug)]
pub struct InFlight {
    drain: Drain,
    transfer: bool,
}

impl Drain {
    fn counter(&self, transfer: bool) -> &AtomicUsize {
        if transfer { &self.0.transfers } else { &self.0.installations }
    }

    /// A transfer begins.
    #[must_use]
    pub fn transfer(&self) -> InFlight {
        self.begin(true)
    }

    /// A Pi was told to format.
    #[must_use]
    pub fn installation(&self) -> InFlight {
        self.begin(false)
    }

    fn begin(&self, transfer: bool) -> InFlight {
        self.counter(transfer).fetch_add(1, Ordering::Relaxed);
        InFlight { drain: self.clone(), transfer }
    }

    /// How many transfers go on, and how many Pis were told to format and have not reported the end.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let load = |transfer| self.counter(transfer).load(Ordering::Relaxed);
        (load(true), load(false))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.drain.counter(self.transfer).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_counts() {
        let drain = Drain::default();
        let one = drain.transfer();
        let other = drain.installation();
        assert_eq!(drain.counts(), (1, 1));
        drop((one, other));
        assert_eq!(drain.counts(), (0, 0));
    }
}
