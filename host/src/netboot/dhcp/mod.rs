//! DHCP for Pis: boot information beside another server (proxy), or addresses too (server).
//!
//! [`message`] reads requests and builds replies, [`network`] says what clients are told of theirs, [`proxy`] and [`pool`] decide without clock or
//! socket, [`store`] keeps leases over a restart, [`probe`] asks whether somebody has an address
//! already, [`search`] looks for other servers, and [`server`] moves packets. [`piman_core::dhcp`] is the codec.
//!
//! Nothing here answers unless it was configured for an interface, and only on that interface.

pub mod message;
pub mod network;
pub mod pool;
pub mod probe;
pub mod proxy;
pub mod search;
pub mod server;
pub mod store;

#[cfg(test)]
mod golden;

use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::sys::mac::Mac;
use serde::Deserialize;

pub use server::{Dhcp, Known, Mode, Report, Settings, Tell};

/// Addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Range {
    /// The first.
    pub first: Ipv4Addr,
    /// The last, not before the first.
    pub last: Ipv4Addr,
}

impl Range {
    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&ip)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no range of addresses; write 192.168.1.100-192.168.1.199");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let range = Self {
            first: first.trim().parse().map_err(|_| wrong())?,
            last: last.trim().parse().map_err(|_| wrong())?,
        };
        (range.first <= range.last).then_some(range).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for Fixed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Which Pi always gets which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Fixed {
    /// Who.
    pub who: Who,
    /// What.
    pub ip: Ipv4Addr,
}

/// A Pi in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By its hardware address.
    Mac(Mac),
    /// By the last 8 digits of its serial number.
    Serial(u32),
}

impl FromStr for Fixed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no fixed lease; write b8:27:eb:00:00:01=192.168.1.10, or a serial number before the `=`"
            )
        };
        let (who, ip) = text.split_once('=').ok_or_else(wrong)?;
        let ip = ip.trim().parse().map_err(|_| wrong())?;
        let who = who.trim();
        if let Ok(mac) = who.parse() {
            return Ok(Self { who: Who::Mac(mac), ip });
        }
        if !matches!(who.len(), 8 | 16) || !who.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let low = who.get(who.len() - 8..).ok_or_else(wrong)?;
        let serial = u32::from_str_radix(low, 16).map_err(|_| wrong())?;
        Ok(Self { who: Who::Serial(serial), ip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_may_say() {
        let mac = Mac([0xb8, 0x27, 0xeb, 0, 0, 1]);
        assert_eq!("B8:27:eb:00:00:01".parse(), Ok(mac));
        assert_eq!(("b8-27-eb-00-00-01".parse(), mac.to_string().as_str()), (Ok(mac), "b8:27:eb:00:00:01"));
        assert!(mac.is_pi() && !Mac([0; 6]).is_pi());
        for bad in [
            "",
            "b8:27:eb:00:00",
            "b8:27:eb:00:00:01:02",
            "b8:27:eb:00:00:+1",
            "b8:27:eb:00:00:x1",
            "b8:27:eb:00:00:1",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        let range: Range = "10.0.0.5-10.0.0.9".parse().unwrap();
        assert!(range.contains([10, 0, 0, 9].into()) && !range.contains([10, 0, 0, 10].into()));
        for bad in ["", "10.0.0.5", "10.0.0.9-10.0.0.5", "a-b"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
        let ip = [10, 0, 0, 7].into();
        assert_eq!("b8:27:eb:00:00:01=10.0.0.7".parse(), Ok(Fixed { who: Who::Mac(mac), ip }));
        for serial in ["abcdef01", "10000000abcdef01"] {
            assert_eq!(format!("{serial}=10.0.0.7").parse(), Ok(Fixed { who: Who::Serial(0xabcd_ef01), ip }));
        }
        for bad in ["x=10.0.0.7", "abcdef01", "abcdef01=x"] {
            assert!(bad.parse::<Fixed>().is_err(), "{bad}");
        }
    }
}
