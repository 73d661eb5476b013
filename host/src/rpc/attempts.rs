//! How many wrong passwords are looked at, per address and in all.
//!
//! Old clients wait one second for the answer to their login, so a server cannot slow guessing down by answering
//! late. It looks at fewer passwords instead: what comes over the limit is refused without a look at it, the
//! right password too.
//!
//! A protected login costs the server a key exchange before there is anything to look at: who may not try is refused
//! before that, and who begins and never proves anything has used up an attempt.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sys::lock::lock;

/// How many wrong passwords one address may try in a row.
const BURST: f64 = 10.0;
/// How many more it may try each second after that.
const PER_SECOND: f64 = 1.0;
/// The same for all addresses together that have not logged in before.
const BURST_ALL: f64 = 100.0;
const PER_SECOND_ALL: f64 = 10.0;
/// How many unfinished logins count beyond the last attempt: they may all have begun at the same moment.
const DEBT_MAX: f64 = 60.0;
/// How many addresses are remembered.
const ADDRESSES_MAX: usize = 4096;

/// What came of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// The password is right.
    Right,
    /// It is wrong.
    Wrong,
    /// Nobody has looked: too many wrong ones came before.
    Unseen,
}

/// A number of attempts that grows again with time.
#[derive(Debug, Clone, Copy)]
struct Left {
    attempts: f64,
    at: Instant,
}

impl Left {
    fn refill(&mut self, now: Instant, burst: f64, per_second: f64) -> f64 {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        (self.attempts, self.at) = ((self.attempts + more).min(burst), now);
        self.attempts
    }
}

#[derive(Debug)]
struct Address {
    left: Left,
    /// Whether somebody has logged in from there: then the crowd of others does not lock it out.
    known: bool,
}

#[derive(Debug)]
struct Table {
    all: Left,
    addresses: HashMap<IpAddr, Address>,
    warned: Option<Instant>,
}

/// The attempts of all clients of one server.
#[derive(Debug)]
pub(super) struct Attempts(Mutex<Table>);

impl Attempts {
    pub(super) fn new(now: Instant) -> Self {
        let all = Left { attempts: BURST_ALL, at: now };
        Self(Mutex::new(Table { all, addresses: HashMap::new(), warned: None }))
    }

    /// Judges one login: `right` is only asked if the address may try.
    pub(super) fn judge(&self, address: IpAddr, now: Instant, right: impl FnOnce() -> bool) -> Judged {
        let mut table = lock(&self.0);
        let key = network(address);
        if let Some(whose) = table.refused(key, now) {
            table.warn(address, now, whose);
            return Judged::Unseen;
        }
        let known = table.addresses.get(&key).is_some_and(|a| a.known);
        let right = right();
        if !right && !known {
            table.all.attempts -= 1.0;
        }
        // An address without a history needs no place.
        if !right || !known {
            let here = table.place(key, now);
            here.known |= right;
            here.left.attempts -= if right { 0.0 } else { 1.0 };
        }
        if right { Judged::Right } else { Judged::Wrong }
    }
}

impl Attempts {
    /// Whether a login of this address would be looked at now.
    pub(super) fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let mut table = lock(&self.0);
        let whose = table.refused(network(address), now);
        if let Some(whose) = whose {
            table.warn(address, now, whose);
        }
        whose.is_none()
    }

    /// A login of this address has cost a key exchange, and was given up before anything was proved.
    pub(super) fn unfinished(&self, address: IpAddr, now: Instant) {
        let mut table = lock(&self.0);
        let here = table.place(network(address), now);
        here.left.refill(now, BURST, PER_SECOND);
        here.left.attempts = (here.left.attempts - 1.0).max(-DEBT_MAX);
    }
}

impl Table {
    /// Why a login is not looked at: whose attempts are used up.
    fn refused(&mut self, key: IpAddr, now: Instant) -> Option<&'static str> {
        let all = self.all.refill(now, BURST_ALL, PER_SECOND_ALL);
        let (here, known) = match self.addresses.get_mut(&key) {
            Some(here) => (here.left.refill(now, BURST, PER_SECOND), here.known),
            None => (BURST, false),
        };
        if here < 1.0 {
            return Some("from this address");
        }
        (all < 1.0 && !known).then_some("in all")
    }

    /// What is kept of an address.
    fn place(&mut self, key: IpAddr, now: Instant) -> &mut Address {
        self.make_room(key, now);
        let fresh = Address { left: Left { attempts: BURST, at: now }, known: false };
        self.addresses.entry(key).or_insert(fresh)
    }

    /// Forgets the address with the least to tell, if there is no place for another one.
    fn make_room(&mut self, key: IpAddr, now: Instant) {
        if self.addresses.len() < ADDRESSES_MAX || self.addresses.contains_key(&key) {
            return;
        }
        // Many at once, since looking through all costs time. First those that could try as much as a new one;
        // the others are the ones that the limit is for.
        self.addresses.retain(|_, a| a.known || a.left.refill(now, BURST, PER_SECOND) < BURST);
        if self.addresses.len() < ADDRESSES_MAX {
            return;
        }
        let mut oldest: Vec<_> = self.addresses.iter().map(|(key, a)| (a.left.at, *key)).collect();
        oldest.sort_unstable();
        for (_, key) in oldest.into_iter().take(ADDRESSES_MAX / 4) {
            self.addresses.remove(&key);
        }
    }

    /// One line a second at most.
    fn warn(&mut self, address: IpAddr, now: Instant, whose: &str) {
        if self.warned.is_none_or(|at| now.saturating_duration_since(at) > Duration::from_secs(1)) {
            self.warned = Some(now);
            tracing::warn!(
                "rpc: {address}: login refused, its password was not looked at: too many wrong passwords {whose}"
            );
        }
    }
}

/// The owner of one IPv6 address usually has 2^64 of them, so a /64 counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(n))
    }

    #[test]
    fn one_address_gets_its_burst_and_one_a_second() {
        let began = Instant::now();
        let attempts = Attempts::new(began);
        let wrong = |now| attempts.judge(v4(1), now, || false);
        let first = (0..1000).filter(|_| wrong(began) == Judged::Wrong).count();
        assert_eq!(first, 10);
        let right = || -> bool { panic!("looked at") };
        assert_eq!(attempts.judge(v4(1), began, right), Judged::Unseen);
        // Another address is not concerned.
        assert_eq!(attempts.judge(v4(2), began, || true), Judged::Right);
        let minute =
            (0..6000).filter(|i| wrong(began + Duration::from_millis(i * 10)) == Judged::Wrong).count();
        assert!((58..=61).contains(&minute), "{minute}");
        let rested = began + Duration::from_secs(3600);
        assert_eq!(attempts.judge(v4(1), rested, || true), Judged::Right);
    }

    #[test]
    fn many_addresses_share_a_limit_and_do_not_lock_out_who_was_there_before() {
        let began = Instant::now();
        let attempts = Attempts::new(began);
        assert_eq!(attempts.judge(v4(0), began, || true), Judged::Right);
        let seen = (1..20_000).filter(|n| attempts.judge(v4(*n), began, || false) == Judged::Wrong).count();
        assert_eq!(seen, 100);
        assert_eq!(attempts.judge(v4(30_000), began, || true), Judged::Unseen);
        assert_eq!(attempts.judge(v4(0), began, || true), Judged::Right);
        let later = began + Duration::from_secs(10);
        let seen =
            (1..20_000).filter(|n| attempts.judge(v4(n + 40_000), later, || false) == Judged::Wrong).count();
        assert_eq!(seen, 100);
    }

    #[test]
    fn who_begins_and_proves_nothing_uses_up_attempts() {
        let began = Instant::now();
        let attempts = Attempts::new(began);
        for _ in 0..10 {
            assert!(attempts.may_try(v4(1), began));
            attempts.unfinished(v4(1), began);
        }
        assert!(!attempts.may_try(v4(1), began) && attempts.may_try(v4(2), began));
        assert_eq!(attempts.judge(v4(1), began, || true), Judged::Unseen);
        // However many it has begun, it comes to an end.
        (0..10_000).for_each(|_| attempts.unfinished(v4(1), began));
        assert!(!attempts.may_try(v4(1), began + Duration::from_secs(59)));
        assert!(attempts.may_try(v4(1), began + Duration::from_secs(62)));
    }

    #[test]
    fn memory_is_bounded_and_a_network_is_one_address() {
        let began = Instant::now();
        let attempts = Attempts::new(began);
        for n in 0..3 * ADDRESSES_MAX as u32 {
            // Slowly, so that each is looked at.
            let now = began + Duration::from_millis(100) * n;
            assert_eq!(
                attempts.judge(v4(n), now, || n % 2 == 0),
                if n % 2 == 0 { Judged::Right } else { Judged::Wrong }
            );
        }
        assert!(lock(&attempts.0).addresses.len() <= ADDRESSES_MAX);
        let v6 = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n));
        let later = began + Duration::from_secs(100_000);
        let seen = (0..1000).filter(|n| attempts.judge(v6(*n), later, || false) == Judged::Wrong).count();
        assert_eq!(seen, 10);
    }
}
