//! Who is answered with `--only-known`: nobody whose serial number, as far as a request or the state tells it, is not in
//! the device list.
//!
//! A request that names no serial number, from a hardware address of which the state knows none, is answered: it may
//! be a listed Pi's first. What it says of itself is believed.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::dhcp::Who;
use super::dhcp::message::Ask;
use super::who_asks::{Asker, WhoAsks, last_8};
use crate::state::{Device, ListedPi, State};
use crate::sys::lock::lock;

/// How old what is known may be.
const FRESH: Duration = Duration::from_secs(2);

/// Decides who is answered.
pub struct OnlyKnown {
    state: Arc<dyn State>,
    known: Mutex<Option<(Instant, Arc<Known>)>>,
    who_asks: Arc<WhoAsks>,
}

/// What is known of all Pis.
#[derive(Debug, Default)]
struct Known {
    devices: Vec<Device>,
    listed: Vec<ListedPi>,
}

impl Known {
    fn has(&self, name: &str) -> bool {
        self.listed.iter().any(|pi| pi.name == name)
    }

    fn has_serial(&self, serial: &str) -> bool {
        let last = last_8(serial);
        self.has(serial) || last.is_some() && self.listed.iter().any(|pi| last_8(&pi.name) == last)
    }

    /// The name under which this one is refused; `None`: it is listed, or cannot be told.
    fn refuses(&self, serial: Option<&str>, mac: Option<&str>, ip: Option<IpAddr>) -> Option<String> {
        let listed_otherwise =
            mac.is_some_and(|m| self.has(m)) || ip.is_some_and(|ip| self.has(&ip.to_string()));
        if listed_otherwise {
            return None;
        }
        if let Some(serial) = serial {
            return (!self.has_serial(serial)).then(|| serial.to_owned());
        }
        let device = self.devices.iter().find(|d| mac.is_some() && d.mac.as_deref() == mac)?;
        let serial = device.serial.as_deref()?;
        (!self.has_serial(serial) && !self.has(&device.address)).then(|| serial.to_owned())
    }
}

impl OnlyKnown {
    /// By the device list of this state.
    #[must_use]
    pub fn new(state: Arc<dyn State>, who_asks: Arc<WhoAsks>) -> Self {
        Self { state, known: Mutex::default(), who_asks }
    }

    /// What is known; without the state nobody is.
    fn known(&self) -> Arc<Known> {
        let mut known = lock(&self.known);
        if let Some((_, fresh)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(fresh);
        }
        let read = || Ok(Known { devices: self.state.devices()?, listed: self.state.listed()? });
        let read = read().unwrap_or_else(|e: crate::state::StateError| {
            tracing::warn!("the device list cannot be read, so nobody with a serial number is answered: {e}");
            Known::default()
        });
        Arc::clone(&known.insert((Instant::now(), Arc::new(read))).1)
    }

    /// The name under which whoever asks for this file is refused; `None`: it is answered.
    pub fn refuses_file(&self, ip: IpAddr, asked: &str) -> Option<String> {
        let Asker { serial, mac } = self.who_asks.of(ip, asked);
        self.known().refuses(serial.as_deref(), mac.as_deref(), Some(ip))
    }

    /// The name under which this client of DHCP is refused; `None`: it is answered.
    pub fn refuses_dhcp(&self, ask: &Ask) -> Option<String> {
        let (known, mac) = (self.known(), ask.mac.to_string());
        if !ask.tells_serial() {
            return known.refuses(None, Some(&mac), ask.address().map(IpAddr::V4));
        }
        let is = |pi: &ListedPi| {
            let number = last_8(&pi.name).and_then(|last| u32::from_str_radix(last, 16).ok());
            number.is_some_and(|number| ask.is(Who::Serial(number)))
        };
        let address = ask.address().map(|ip| ip.to_string());
        let listed =
            known.has(&mac) || address.is_some_and(|ip| known.has(&ip)) || known.listed.iter().any(is);
        (!listed).then_some(mac)
    }
}

#[cfg(test)]
mod tests {
    use piman_core::dhcp::Kind;

    use super::*;
    use crate::netboot::dhcp::message::tests::{ask, rom};
    use crate::state::{Batch, Change, Identity, Sqlite};

    #[test]
    fn clients_of_dhcp() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(Sqlite::serve(folder.path()).unwrap());
        let seen = Identity {
            serial: Some("10000000abcdef07".into()),
            mac: Some("b8:27:eb:00:00:07".into()),
            address: [10, 0, 0, 7].into(),
        };
        state.save(&Batch { changes: vec![Change::of(seen)], ..Batch::default() }).unwrap();
        // The boot ROM of `rom` has the serial number ...abcdef01.
        for (listed, refused) in [
            ("10000000abcdef02", [true, false, true]),
            ("10000000abcdef01", [false, false, true]),
            ("abcdef01", [false, false, true]),
            ("b8:27:eb:00:00:01", [false, false, true]),
            ("10000000abcdef07", [true, false, false]),
        ] {
            state.add_listed(&[(listed.into(), None)], "test").unwrap();
            let known = OnlyKnown::new(Arc::clone(&state) as _, Arc::default());
            let asks = [
                ask(Kind::Discover, 1, &rom()),
                // It says no serial number, and none is known of its hardware address.
                ask(Kind::Discover, 1, &[]),
                ask(Kind::Discover, 7, &[]),
            ];
            assert_eq!(asks.map(|ask| known.refuses_dhcp(&ask).is_some()), refused, "{listed}");
            state.remove_listed(&[listed.into()]).unwrap();
        }
    }

    #[test]
    fn who_is_refused() {
        let device = |serial: Option<&str>, mac: &str, address: &str| Device {
            serial: serial.map(Into::into),
            mac: Some(mac.into()),
            address: address.into(),
            ..Device::default()
        };
        let listed =
            |name: &str| ListedPi { name: name.into(), label: None, added_ms: 0, source: String::new() };
        let known = Known {
            devices: vec![
                device(Some("10000000abcdef01"), "b8:27:eb:00:00:01", "10.0.0.1"),
                device(Some("10000000abcdef02"), "b8:27:eb:00:00:02", "10.0.0.2"),
                device(Some("10000000abcdef03"), "b8:27:eb:00:00:03", "10.0.0.3"),
                device(None, "b8:27:eb:00:00:05", "10.0.0.5"),
            ],
            listed: ["10000000abcdef01", "abcdef04", "10.0.0.3", "b8:27:eb:00:00:06"].map(listed).to_vec(),
        };
        let refuses = |serial, mac: u8, ip: u8| {
            let mac = format!("b8:27:eb:00:00:{mac:02}");
            known.refuses(serial, Some(&mac), Some([10, 0, 0, ip].into())).is_some()
        };
        for (serial, mac, ip, refused) in [
            (None, 1, 1, false),
            (None, 2, 2, true),
            (None, 3, 9, false),
            (None, 2, 3, false),
            (None, 5, 5, false),
            (None, 7, 7, false),
            (Some("abcdef01"), 9, 9, false),
            (Some("10000000abcdef04"), 9, 9, false),
            (Some("abcdef02"), 9, 9, true),
            (Some("abcdef09"), 9, 9, true),
            (Some("abcdef09"), 6, 9, false),
        ] {
            assert_eq!(refuses(serial, mac, ip), refused, "{serial:?} {mac} {ip}");
        }
    }
}
