//! A Wi-Fi network, by what the system has for it.

use std::fmt::Write as _;

use piman_core::install::personal::Place;

use super::draft::{Done, Work};
use super::profile::{Secret, Wifi};
use crate::images::fitness::Has;

pub(super) fn write(work: &mut Work<'_>) -> Done {
    let Some(wifi) = work.rest.wifi.take() else { return Ok(()) };
    let system = work.subject.system;
    if let Some(country) = &wifi.country {
        let text = format!("options cfg80211 ieee80211_regdom={country}\n");
        work.root_file("/etc/modprobe.d/piman-wifi.conf", &text)?;
    }
    if system.has(Has::NetworkManager) {
        let path = "/etc/NetworkManager/system-connections/piman-wifi.nmconnection";
        return work.file(Place::Root, path, 0o600, network_manager(&wifi).as_bytes());
    }
    if !system.has(Has::WpaSupplicant) || !system.has(Has::Networkd) {
        return Err(work.lacks("wifi", "neither NetworkManager nor wpa_supplicant with systemd-networkd"));
    }
    let path = "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf";
    work.file(Place::Root, path, 0o600, wpa_supplicant(&wifi).as_bytes())?;
    work.enable("wpa_supplicant@wlan0.service", "/lib/systemd/system/wpa_supplicant@.service")?;
    let network = "[Match]\nName=wlan0\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nDHCP=yes\n";
    work.root_file("/etc/systemd/network/25-piman-wifi.network", network)
}

/// A connection file of NetworkManager.
pub(super) fn network_manager(wifi: &Wifi) -> String {
    // As numbers: a name may have what means something in such a file.
    let ssid: String = wifi.ssid.bytes().map(|b| format!("{b};")).collect();
    let hash = blake3::hash(wifi.ssid.as_bytes()).to_hex();
    let part = |range: std::ops::Range<usize>| hash.get(range).unwrap_or_default();
    let uuid = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-");
    let mut text = format!(
        "[connection]\nid=piman-wifi\nuuid={uuid}\ntype=wifi\n\n\
         [wifi]\nmode=infrastructure\nssid={ssid}\nhidden={}\n\n",
        wifi.hidden
    );
    if let Some(psk) = &wifi.psk {
        // A space at an end would be lost, and a backslash begins an escape.
        let psk = psk.reveal().replace('\\', "\\\\").replace(' ', "\\s");
        // Writing to a string does not fail.
        let _ = write!(text, "[wifi-security]\nkey-mgmt=wpa-psk\npsk={psk}\n\n");
    }
    text + "[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n"
}

/// A configuration of wpa_supplicant.
pub(super) fn wpa_supplicant(wifi: &Wifi) -> String {
    let ssid: String = wifi.ssid.bytes().map(|b| format!("{b:02x}")).collect();
    let mut text = String::from("ctrl_interface=DIR=/run/wpa_supplicant GROUP=netdev\nupdate_config=1\n");
    if let Some(country) = &wifi.country {
        let _ = writeln!(text, "country={country}");
    }
    let _ = writeln!(text, "network={{\n\tssid={ssid}");
    if wifi.hidden {
        text.push_str("\tscan_ssid=1\n");
    }
    let _ = match wifi.psk.as_ref().map(Secret::reveal) {
        // A key is without quotes, and so told from a password.
        Some(key) if key.len() == 64 => writeln!(text, "\tpsk={key}"),
        Some(password) => writeln!(text, "\tpsk=\"{password}\""),
        None => writeln!(text, "\tkey_mgmt=NONE"),
    };
    text + "}\n"
}
