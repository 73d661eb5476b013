//! How long to wait before trying again: doubling, with a limit, and spread by chance so
//! that a room full of Pis does not come back at the same moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubling waits between two limits.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

/// From one second to a minute: for a server that may be away for long.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60))
    }
}

impl Backoff {
    /// The first wait is about `first`, none is longer than `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next wait: between half of its length and all of it, by chance.
    pub fn wait(&mut self) -> Duration {
        let full = self.next.min(self.longest);
        self.next = full.saturating_mul(2).min(self.longest);
        // The standard library's hash keys are random numbers of the kernel.
        let chance = RandomState::new().hash_one(0u8) % 1024;
        full / 2 + full.mul_f64(chance as f64 / 2048.0)
    }

    /// Starts again with the first wait: something succeeded.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_again() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut backoff = Backoff::new(first, longest);
        let mut full = first;
        for _ in 0..100 {
            let wait = backoff.wait();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(longest);
        }
        assert_eq!(full, longest);
        backoff.reset();
        assert!(backoff.wait() <= first);
    }

    #[test]
    fn chance_spreads_them() {
        let waits: std::collections::HashSet<_> =
            (0..100).map(|_| Backoff::new(Duration::from_secs(1), Duration::MAX).wait()).collect();
        assert!(waits.len() > 20);
    }

    #[test]
    fn the_longest_of_all_waits_is_no_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        assert!(backoff.wait() <= Duration::MAX);
        assert!(backoff.wait() >= Duration::MAX / 2);
    }
}
