//! When an old Pi is installed: it proves nothing by one thing alone.

use crate::provision::bounded_cache::BoundedCache;
use std::net::IpAddr;
use std::time::Instant;

/// What an old Pi has done since it was told to format. It proves nothing by one thing alone:
/// one kind reports the end first and downloads then, the other does it the other way round.
#[derive(Debug, Default)]
pub struct Installs(BoundedCache<IpAddr, Install>);

#[derive(Debug, Clone, Copy)]
struct Install {
    told: Instant,
    formatted: bool,
    downloaded: bool,
}

/// What an old Pi did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// It reported `IS_FORMATTED`.
    Formatted,
    /// It got the whole archive by a transfer that began then.
    Downloaded(Instant),
}

impl Installs {
    /// It was told to format, now.
    pub fn told(&self, address: IpAddr) {
        self.0.put(address, Install { told: Instant::now(), formatted: false, downloaded: false });
    }

    /// Returns whether the installation is complete by this; then it is forgotten.
    pub(crate) fn advance(&self, address: IpAddr, with: Advance) -> bool {
        let mut known = self.0.lock();
        let Some((_, install)) = known.get_mut(&address) else { return false };
        match with {
            Advance::Formatted => install.formatted = true,
            Advance::Downloaded(began) if began >= install.told => install.downloaded = true,
            // What it got it may have formatted away since.
            Advance::Downloaded(_) => {}
        }
        let complete = install.formatted && install.downloaded;
        if complete {
            known.remove(&address);
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_pi_is_installed_by_both_in_either_order() {
        let (installs, pi) = (Installs::default(), IpAddr::from([10, 0, 0, 1]));
        let before = Instant::now();
        assert!(!installs.advance(pi, Advance::Formatted), "nobody told it to");
        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Formatted));
        assert!(!installs.advance(pi, Advance::Downloaded(before)), "from before it formatted");
        assert!(!installs.advance([10, 0, 0, 10].into(), Advance::Downloaded(Instant::now())));
        assert!(installs.advance(pi, Advance::Downloaded(Instant::now())));
        assert!(!installs.advance(pi, Advance::Downloaded(Instant::now())), "it is over");

        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Downloaded(Instant::now())));
        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Formatted), "it was told again, so it begins anew");
        assert!(installs.advance(pi, Advance::Downloaded(Instant::now())));
    }
}
