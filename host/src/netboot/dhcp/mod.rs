//! DHCP for Pis: boot information beside another server (proxy), or addresses too (server).
//!
//! [`message`] reads requests and builds replies, [`network`] says what clients are told of theirs, [`proxy`] and [`pool`] decide without clock or
//! socket, [`store`] keeps leases over a restart, [`probe`] asks whether somebody has an address
//! already, and [`server`] moves packets. [`piman_core::dhcp`] is the codec.
//!
//! Nothing here answers unless it was configured for an interface, and only on that interface.

pub mod message;
pub mod network;
pub mod pool;
pub mod probe;
pub mod proxy;
pub mod server;
pub mod store;

#[cfg(test)]
mod golden;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Deserialize;

pub use server::{Dhcp, Mode, Report, Settings, Tell};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no hardware address; write b8:27:eb:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            // A sign is a number's, not an address's.
            let digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or_else(wrong)
    }
}

/// The prefixes of hardware addresses that Raspberry Pis have.
const PI_PREFIXES: [[u8; 3]; 7] = [
    [0xb8, 0x27, 0xeb],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
    [0x2c, 0xcf, 0x67],
    [0x88, 0xa2, 0x9e],
];

impl Mac {
    /// Whether a Raspberry Pi has this address.
    #[must_use]
    pub fn is_pi(self) -> bool {
        let [a, b, c, ..] = self.0;
        PI_PREFIXES.contains(&[a, b, c])
    }
}

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
