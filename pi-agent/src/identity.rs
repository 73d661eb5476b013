//! Who this Pi is: what its firmware and its network interface say.

use std::fs;
use std::path::Path;

/// What tells one Pi from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The serial number, as the device tree has it.
    pub serial: Option<String>,
    /// The hardware address of the network interface.
    pub mac: Option<String>,
    /// The board.
    pub model: Option<String>,
}

impl Identity {
    /// Reads it from /proc and /sys; what is not there stays unknown.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self {
            serial: device_tree("serial-number").or_else(cpuinfo_serial),
            mac: mac(Path::new("/sys/class/net")),
            model: device_tree("model"),
        }
    }
}

fn device_tree(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/device-tree").join(name)).ok()?;
    Some(text.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|t| !t.is_empty())
}

fn cpuinfo_serial() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, serial) = text.lines().find(|l| l.starts_with("Serial"))?.split_once(':')?;
    Some(serial.trim().to_owned()).filter(|s| s.bytes().any(|b| b != b'0'))
}

/// The address of the first interface that is up, else of the first that has one; of a wireless one only where none is
/// wired.
fn mac(interfaces: &Path) -> Option<String> {
    let mut found: Vec<(bool, bool, String, String)> = fs::read_dir(interfaces)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
            let address = read("address")?.trim().to_owned();
            let real = address.len() == 17 && address.bytes().any(|b| b != b'0' && b != b':');
            let up = read("operstate").is_some_and(|s| s.trim() == "up");
            let wireless = ["wireless", "phy80211"].iter().any(|name| entry.path().join(name).exists());
            real.then(|| (wireless, !up, entry.file_name().to_string_lossy().into_owned(), address))
        })
        .collect();
    found.sort();
    found.into_iter().next().map(|(.., address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wired_interfaces_come_first_and_of_these_one_that_is_up() {
        let folder = std::env::temp_dir().join(format!("identity-{}", std::process::id()));
        for (name, address, state) in [
            ("lo", "00:00:00:00:00:00", "unknown"),
            ("eth0", "b8:27:eb:00:00:01", "down"),
            ("eth1", "b8:27:eb:00:00:02", "up"),
            ("awl0", "b8:27:eb:00:00:03", "up"),
        ] {
            let interface = folder.join(name);
            fs::create_dir_all(&interface).unwrap();
            fs::write(interface.join("address"), format!("{address}\n")).unwrap();
            fs::write(interface.join("operstate"), format!("{state}\n")).unwrap();
        }
        fs::create_dir(folder.join("awl0/phy80211")).unwrap();
        assert_eq!(mac(&folder).as_deref(), Some("b8:27:eb:00:00:02"));
        fs::remove_dir_all(folder.join("eth1")).unwrap();
        assert_eq!(mac(&folder).as_deref(), Some("b8:27:eb:00:00:01"));
        fs::remove_dir_all(folder.join("eth0")).unwrap();
        assert_eq!(mac(&folder).as_deref(), Some("b8:27:eb:00:00:03"));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(mac(&folder), None);
    }
}
