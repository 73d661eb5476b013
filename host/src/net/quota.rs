//! How much peers may bring to the disk in a day, each and all together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Instant;

use super::reserve::Reserve;
use crate::sys::lock::lock;

/// In this time a quota that is used up is free again, in seconds.
const DAY: f64 = 86_400.0;
/// How many addresses are remembered.
const PEERS_MAX: usize = 4096;

/// What peers may bring, in bytes a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quotas {
    /// One address. `None`: half of what is free.
    pub peer: Option<u64>,
    /// All addresses together. `None`: what is free.
    pub all: Option<u64>,
}

impl Quotas {
    /// No limit.
    pub const NONE: Self = Self { peer: Some(u64::MAX), all: None };
}

/// What peers may bring, and what they leave free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// What stays free on the disk.
    pub reserve: Reserve,
    /// What addresses may bring.
    pub quotas: Quotas,
}

impl Allowance {
    /// No limit.
    pub const NONE: Self = Self { reserve: Reserve::NONE, quotas: Quotas::NONE };
}

/// What they have brought.
#[derive(Debug, Default)]
pub struct Quota {
    quotas: Quotas,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    peers: HashMap<IpAddr, Mark>,
    all: Option<Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    bytes: f64,
    at: Instant,
}

impl Mark {
    /// What counts at this moment of what was used, where `limit` is free again in a day.
    fn now(self, limit: f64, now: Instant) -> f64 {
        let free_again = now.duration_since(self.at).as_secs_f64() * limit / DAY;
        (self.bytes - free_again).max(0.0)
    }
}

/// A quota is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{whose} brought {} of {} MiB that are allowed in a day: wait, or raise {option}", .used >> 20, .limit >> 20
)]
pub struct OverQuota {
    whose: String,
    used: u64,
    limit: u64,
    option: &'static str,
}

impl Quota {
    /// Of so much.
    #[must_use]
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, used: Mutex::default() }
    }

    /// This address wants to bring so many bytes; so many are free on the disk.
    ///
    /// # Errors
    /// If that is more than is left of a quota.
    pub fn take(&self, peer: IpAddr, bytes: u64, free: u64) -> Result<(), OverQuota> {
        self.take_at(peer, bytes, free, Instant::now())
    }

    fn take_at(&self, peer: IpAddr, bytes: u64, free: u64, now: Instant) -> Result<(), OverQuota> {
        let mut used = lock(&self.used);
        let wanted = bytes as f64;
        let here = used.peers.get(&peer).copied().unwrap_or(Mark { bytes: 0.0, at: now });
        // Half of what would be free without it, so that nobody can take half of the rest again and again.
        let limit = self.quotas.peer.map_or((free as f64 + here.bytes) / 2.0, |limit| limit as f64);
        let brought = here.now(limit, now);
        if brought + wanted > limit {
            let whose = format!("this address ({peer})");
            let option = "the quota of a peer";
            return Err(OverQuota { whose, used: brought as u64, limit: limit as u64, option });
        }
        let before = used.all.unwrap_or(Mark { bytes: 0.0, at: now });
        let all = match self.quotas.all.map(|limit| limit as f64) {
            Some(limit) => {
                let all = before.now(limit, now);
                if all + wanted > limit {
                    let whose = "all addresses together".to_owned();
                    let option = "the quota of all";
                    return Err(OverQuota { whose, used: all as u64, limit: limit as u64, option });
                }
                all + wanted
            }
            None => 0.0,
        };
        used.all = Some(Mark { bytes: all, at: now });
        used.make_room(peer);
        used.peers.insert(peer, Mark { bytes: brought + wanted, at: now });
        Ok(())
    }

    /// It has not brought so many of them.
    pub fn give_back(&self, peer: IpAddr, bytes: u64) {
        let mut used = lock(&self.used);
        let Used { peers, all } = &mut *used;
        for mark in peers.get_mut(&peer).into_iter().chain(all.as_mut()) {
            mark.bytes = (mark.bytes - bytes as f64).max(0.0);
        }
    }
}

impl Used {
    /// Forgets the address that brought least, if there is no place for another one.
    fn make_room(&mut self, peer: IpAddr) {
        if self.peers.len() < PEERS_MAX || self.peers.contains_key(&peer) {
            return;
        }
        let least = self.peers.iter().min_by(|(_, a), (_, b)| a.bytes.total_cmp(&b.bytes)).map(|(ip, _)| *ip);
        least.and_then(|ip| self.peers.remove(&ip));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn one_and_all_have_a_quota_that_comes_back() {
        let quota = Quota::new(Quotas { peer: Some(1000), all: Some(2500) });
        let began = Instant::now();
        let take = |n: u8, bytes: u64, hours: u64| {
            quota.take_at(ip(n), bytes, u64::MAX, began + Duration::from_secs(hours * 3600))
        };
        take(1, 900, 0).unwrap();
        let over = take(1, 101, 0).unwrap_err().to_string();
        assert!(over.contains("10.0.0.1") && over.contains("quota of a peer"), "{over}");
        quota.give_back(ip(1), 100);
        take(1, 200, 0).unwrap();
        take(2, 1000, 0).unwrap();
        assert!(take(3, 501, 0).unwrap_err().to_string().contains("all addresses"));
        assert!(take(1, 500, 11).is_err());
        take(1, 500, 13).unwrap();
    }

    #[test]
    fn without_a_quota_nobody_takes_more_than_half() {
        let quota = Quota::default();
        let mut free = 1000;
        while quota.take(ip(1), 10, free).is_ok() {
            free -= 10;
        }
        assert!((495..=505).contains(&free), "{free}");
        quota.take(ip(2), 10, free).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let quota = Quota::default();
        for n in 0..2 * PEERS_MAX as u32 {
            quota.take(IpAddr::from(n.to_be_bytes()), 1, 1000).unwrap();
        }
        assert!(lock(&quota.used).peers.len() <= PEERS_MAX);
    }
}
