//! Which Pi boots from the folder of its own image, so that its kernel and that of the system that it gets are of one
//! kind.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::who_asks::{Asker, WhoAsks, last_8};
use crate::state::{Catalogue, Device, State, StateError};
use crate::sys::lock::lock;

/// How old what is known may be.
const FRESH: Duration = Duration::from_secs(2);

/// Finds the image of whoever asks.
pub struct ImageFolders {
    state: Arc<dyn State>,
    who_asks: Arc<WhoAsks>,
    known: Mutex<Option<(Instant, Arc<Known>)>>,
}

/// What is known of all Pis.
#[derive(Debug, Default)]
struct Known {
    devices: Vec<Device>,
    catalogue: Catalogue,
}

impl ImageFolders {
    /// By the catalogue of this state.
    #[must_use]
    pub fn new(state: Arc<dyn State>, who_asks: Arc<WhoAsks>) -> Self {
        Self { state, who_asks, known: Mutex::default() }
    }

    /// The name of the image that is meant for whoever asks for this file; `None`: none has a name.
    pub fn of(&self, ip: IpAddr, asked: &str) -> Option<String> {
        self.known().image(&self.who_asks.of(ip, asked), ip).map(str::to_owned)
    }

    /// What is known; without the state it is what was known last.
    fn known(&self) -> Arc<Known> {
        let mut known = lock(&self.known);
        if let Some((_, fresh)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(fresh);
        }
        let read = || Ok(Known { devices: self.state.devices()?, catalogue: self.state.catalogue()? });
        let now = match read() {
            Ok(now) => Arc::new(now),
            Err(e) => {
                let e: StateError = e;
                tracing::warn!("which Pi gets which image cannot be read: {e}");
                known.take().map(|(_, last)| last).unwrap_or_default()
            }
        };
        Arc::clone(&known.insert((Instant::now(), now)).1)
    }
}

impl Known {
    /// Its own image, else its group's, else the default, as with what is installed.
    fn image(&self, asker: &Asker, ip: IpAddr) -> Option<&str> {
        let Asker { serial, mac } = asker;
        let address = ip.to_string();
        let same = |a: Option<&str>, b: Option<&str>| a.is_some() && a == b;
        let is_device = |device: &&Device| match serial {
            Some(serial) => same(device.serial.as_deref().and_then(last_8), last_8(serial)),
            None => same(device.mac.as_deref(), mac.as_deref()),
        };
        let device = self.devices.iter().find(is_device);
        let is_it = |name: &str| {
            let names = device.map(|d| [d.serial.as_deref(), d.mac.as_deref(), Some(&*d.address)]);
            names.into_iter().flatten().flatten().any(|own| own == name)
                || serial.as_deref().is_some_and(|own| own == name || same(last_8(own), last_8(name)))
                || mac.as_deref() == Some(name)
                || address == name
        };
        let Catalogue { images, choices, members } = &self.catalogue;
        let own = choices.iter().find(|choice| !choice.is_group && is_it(&choice.who));
        let group = || {
            let group = members.iter().find(|(device, _)| is_it(device)).map(|(_, group)| group)?;
            choices.iter().find(|choice| choice.is_group && choice.who == *group)
        };
        let default = || images.iter().find(|image| image.is_default).map(|image| image.name.as_str());
        own.or_else(group).map(|choice| choice.image.as_str()).or_else(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Choice, Registered};

    #[test]
    fn whose_image_it_is() {
        let image =
            |name: &str| Registered { name: name.into(), is_default: name == "all", ..Registered::default() };
        let choice =
            |who: &str, is_group, image: &str| Choice { who: who.into(), is_group, image: image.into() };
        let device = |serial: &str, mac: &str, address: &str| Device {
            serial: Some(serial.into()),
            mac: Some(mac.into()),
            address: address.into(),
            ..Device::default()
        };
        let known = Known {
            devices: vec![
                device("10000000abcdef01", "b8:27:eb:00:00:01", "10.0.0.1"),
                device("10000000abcdef02", "b8:27:eb:00:00:02", "10.0.0.2"),
                device("10000000abcdef03", "b8:27:eb:00:00:03", "10.0.0.3"),
            ],
            catalogue: Catalogue {
                images: ["all", "lab", "one", "two"].map(image).to_vec(),
                choices: vec![
                    choice("10000000abcdef01", false, "one"),
                    choice("b8:27:eb:00:00:03", false, "two"),
                    choice("10000000abcdef09", false, "two"),
                    choice("room", true, "lab"),
                ],
                members: [("10000000abcdef01", "room"), ("10000000abcdef02", "room")]
                    .map(|(device, group)| (device.to_owned(), group.to_owned()))
                    .to_vec(),
            },
        };
        let asks = |serial: &str, mac: &str| Asker {
            serial: Some(serial.to_owned()).filter(|s| !s.is_empty()),
            mac: Some(mac.to_owned()).filter(|m| !m.is_empty()),
        };
        for (serial, mac, image) in [
            ("abcdef01", "", "one"),
            ("10000000abcdef01", "", "one"),
            ("abcdef02", "b8:27:eb:00:00:99", "lab"),
            ("", "b8:27:eb:00:00:02", "lab"),
            ("abcdef03", "", "two"),
            ("abcdef09", "", "two"),
            ("abcdef04", "", "all"),
            ("", "", "all"),
        ] {
            let found = known.image(&asks(serial, mac), [10, 0, 0, 99].into());
            assert_eq!(found, Some(image), "{serial} {mac}");
        }
        assert_eq!(Known::default().image(&asks("abcdef01", ""), [10, 0, 0, 1].into()), None);
    }
}
