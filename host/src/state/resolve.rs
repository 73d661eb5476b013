//! Which Pi somebody means: by serial number, hardware address or address, and never by a part of one.

use crate::state::Device;
use crate::sys::mac::Mac;
use anyhow::{anyhow, bail};
use std::fmt;
use std::net::IpAddr;

/// The fewest characters of a serial number that stand for all of it.
const PREFIX_MIN: usize = 4;

/// A Pi as somebody named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The exact name: a serial number, hardware address or address.
    pub name: String,
    /// What whoever named it should know.
    pub note: Option<Note>,
}

/// What whoever named a Pi should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// No Pi with this was seen yet: `address`, say.
    Unseen(&'static str),
    /// The address that was named is this Pi's now.
    HasNow(String),
    /// What was named is the beginning of this serial number.
    Begins(String),
}

/// For whoever orders something for it.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unseen(what) => {
                write!(f, "no Pi with this {what} was seen yet; the order waits for it")
            }
            Self::HasNow(address) => write!(f, "this is {address}, as long as it has that address"),
            Self::Begins(serial) => write!(f, "this is {serial}"),
        }
    }
}

/// Finds out which Pi is meant.
///
/// # Errors
/// If it can be none, or several.
pub fn resolve(text: &str, devices: &[Device]) -> anyhow::Result<Named> {
    let text = text.trim().to_ascii_lowercase();
    let unseen = |what| Some(Note::Unseen(what));
    if let Ok(address) = text.parse::<IpAddr>() {
        let name = address.to_canonical().to_string();
        let here = devices.iter().find(|d| d.address == name);
        let note = match here {
            None => unseen("address"),
            // An address may be another Pi's tomorrow.
            Some(Device { serial: Some(own), .. } | Device { mac: Some(own), .. }) => {
                return Ok(Named { name: own.clone(), note: Some(Note::HasNow(name)) });
            }
            Some(_) => None,
        };
        return Ok(Named { name, note });
    }
    if let Ok(mac) = text.parse::<Mac>() {
        let name = mac.to_string();
        let seen = devices.iter().any(|d| d.mac.as_deref() == Some(&name));
        return Ok(Named { note: if seen { None } else { unseen("hardware address") }, name });
    }
    let serials = || devices.iter().filter_map(|d| d.serial.as_deref());
    if serials().any(|s| s == text) {
        return Ok(Named { name: text, note: None });
    }
    let mut begin: Vec<&str> = serials().filter(|s| s.starts_with(&text)).collect();
    begin.sort_unstable();
    begin.dedup();
    match begin.as_slice() {
        [one] if text.len() >= PREFIX_MIN => {
            return Ok(Named { name: (*one).into(), note: Some(Note::Begins((*one).into())) });
        }
        [_] => bail!("`{text}` is too short: give {PREFIX_MIN} characters of a serial number at least"),
        [] => {}
        several => bail!("`{text}` is not one Pi: {} begin so; give more of it", several.join(", ")),
    }
    if (8..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(Named { name: text, note: unseen("serial number") });
    }
    Err(anyhow!(
        "`{text}` is no Pi that was seen, and neither a serial number, a hardware address nor an address; `piman devices` shows those that were seen"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Vec<Device> {
        let pi = |serial: &str, address: &str| Device {
            serial: Some(serial.into()),
            mac: Some("b8:27:eb:00:00:01".into()),
            address: address.into(),
            ..Device::default()
        };
        let old = Device { address: "10.0.0.10".into(), ..Device::default() };
        vec![
            pi("10000000abcdef01", "10.0.0.1"),
            pi("10000000abcd", "10.0.0.2"),
            pi("20000000ffff", "10.0.0.3"),
            old,
        ]
    }

    #[test]
    fn who_is_meant() {
        let devices = seen();
        for (text, name, noted) in [
            ("10.0.0.10", "10.0.0.10", false),
            ("10.0.0.1", "10000000abcdef01", true),
            ("10.0.0.100", "10.0.0.100", true),
            ("B8-27-EB-00-00-01", "b8:27:eb:00:00:01", false),
            ("10000000ABCDEF01", "10000000abcdef01", false),
            ("10000000abcd", "10000000abcd", false),
            ("10000000abcde", "10000000abcdef01", true),
            ("2000", "20000000ffff", true),
            ("30000000ffff", "30000000ffff", true),
        ] {
            let found = resolve(text, &devices).unwrap();
            assert_eq!((found.name.as_str(), found.note.is_some()), (name, noted), "{text}");
        }
    }

    #[test]
    fn who_cannot_be_meant() {
        let devices = seen();
        for (text, says) in [
            ("1000", "10000000abcd, 10000000abcdef01"),
            ("200", "too short"),
            ("all", "piman devices"),
            ("10.0.0", "piman devices"),
            ("", "not one Pi"),
        ] {
            let error = resolve(text, &devices).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
