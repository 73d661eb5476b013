//! Who asks for a file: what the request names, what an earlier one from the same address named, and the hardware
//! address. Whoever asks may say anything: it decides which files somebody gets, not more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::dhcp::probe::hardware_address;
use super::tftp::folder::own_part;
use crate::sys::lock::lock;

/// Of how many addresses is remembered who asked.
const ADDRESSES_MAX: usize = 1000;
/// For how long after the last request: no file of a boot takes longer, and no address goes to another Pi sooner.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The last 8 digits of a serial number.
pub(super) fn last_8(name: &str) -> Option<&str> {
    let is_serial = matches!(name.len(), 8 | 16) && name.bytes().all(|b| b.is_ascii_hexdigit());
    name.get(name.len().checked_sub(8)?..).filter(|_| is_serial)
}

/// Who asks, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Asker {
    /// A serial number, or its last 8 digits; in lower case.
    pub(super) serial: Option<String>,
    /// A hardware address, `b8:27:eb:00:00:01`.
    pub(super) mac: Option<String>,
}

/// Remembers what addresses said of themselves: a boot ROM asks for the same file without its serial number next.
#[derive(Debug, Default)]
pub struct WhoAsks(Mutex<HashMap<IpAddr, (String, Instant)>>);

impl WhoAsks {
    /// Who asks for this file from there.
    pub(super) fn of(&self, ip: IpAddr, asked: &str) -> Asker {
        let own = own_part(asked).map(|(own, _)| own.to_ascii_lowercase());
        let own = self.remembered(ip, own, Instant::now());
        let mac = match ip {
            IpAddr::V4(ip) => hardware_address(ip),
            IpAddr::V6(_) => None,
        };
        match own {
            Some(own) if last_8(&own).is_some() => Asker { serial: Some(own), mac },
            Some(own) => Asker { serial: None, mac: Some(own.replace('-', ":")) },
            None => Asker { serial: None, mac },
        }
    }

    /// Who asks from this address: who the request names, else who the last one from there named.
    fn remembered(&self, ip: IpAddr, named: Option<String>, now: Instant) -> Option<String> {
        let mut said = lock(&self.0);
        if let Some(name) = named {
            if said.len() >= ADDRESSES_MAX {
                said.clear();
            }
            said.insert(ip, (name.clone(), now));
            return Some(name);
        }
        let (name, last) = said.get_mut(&ip)?;
        if now.saturating_duration_since(*last) >= REMEMBERED {
            said.remove(&ip);
            return None;
        }
        *last = now;
        Some(name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_goes_to_another_pi_is_not_the_first_one_for_ever() {
        let known = WhoAsks::default();
        let (ip, begin) = (IpAddr::from([10, 0, 0, 9]), Instant::now());
        let after = |named: Option<&str>, seconds| {
            known.remembered(ip, named.map(Into::into), begin + Duration::from_secs(seconds))
        };
        assert_eq!(after(None, 0), None);
        assert_eq!(after(Some("abcdef01"), 0).as_deref(), Some("abcdef01"));
        assert_eq!(after(None, 299).as_deref(), Some("abcdef01"));
        assert_eq!(after(None, 500).as_deref(), Some("abcdef01"));
        assert_eq!(after(None, 800), None);
        assert_eq!(after(None, 801), None);
        assert_eq!(after(Some("abcdef02"), 802).as_deref(), Some("abcdef02"));
    }
}
