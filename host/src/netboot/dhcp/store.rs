//! The leases in the state folder: one line of text each, replaced as a whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;

use super::pool::Lease;
use crate::sys::files::replace;

/// The name of the file in the state folder.
pub const FILE: &str = "dhcp-leases";

/// The leases that were saved; lines that make no sense are left out, and the log says so.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn load(folder: &Path) -> anyhow::Result<BTreeMap<Ipv4Addr, Lease>> {
    let path = folder.join(FILE);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).with_context(|| format!("reading the leases {}", path.display())),
    };
    let mut leases = BTreeMap::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        match parse(line) {
            Some((ip, lease)) => {
                leases.insert(ip, lease);
            }
            None => tracing::warn!("{}: not a lease, left out: {line:.80}", path.display()),
        }
    }
    Ok(leases)
}

fn parse(line: &str) -> Option<(Ipv4Addr, Lease)> {
    let mut words = line.split_whitespace();
    let (ip, mac, until) = (words.next()?, words.next()?, words.next()?);
    Some((ip.parse().ok()?, Lease { mac: mac.parse().ok()?, until: until.parse().ok()? }))
}

/// Saves all leases.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(folder: &Path, leases: &BTreeMap<Ipv4Addr, Lease>) -> anyhow::Result<()> {
    let mut text = String::from("# address, hardware address, until when in seconds since 1970\n");
    for (ip, lease) in leases {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{ip} {} {}", lease.mac, lease.until);
    }
    let written = replace(&folder.join(FILE), 0o600, text.as_bytes());
    written.with_context(|| format!("writing the leases to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_survive() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_empty());
        let lease = Lease { mac: "b8:27:eb:00:00:01".parse().unwrap(), until: 1_800_000_000 };
        let leases = BTreeMap::from([([10, 0, 0, 7].into(), lease)]);
        save(dir.path(), &leases).unwrap();
        assert_eq!(load(dir.path()).unwrap(), leases);
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(FILE), format!("{text}\u{0}\nx y z\n10.0.0.8 b8:27:eb:00:00\n")).unwrap();
        assert_eq!(load(dir.path()).unwrap(), leases);
        assert!(save(&dir.path().join("none"), &leases).is_err());
    }
}
