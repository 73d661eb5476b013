//! What each Pi was told and sent while it booted, as events of its device.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::dhcp::{self, probe::hardware_address};
use super::tftp::{self, What};
use crate::state::{Change, Device, DeviceEvent, Identity, Recorder, State};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;

/// How old what is known of all devices may be.
const FRESH: Duration = Duration::from_secs(2);
/// How many names that do not exist are remembered, in all and for one Pi.
const MISSES_MAX: usize = 1000;
const MISSES_OF_ONE: usize = 64;

/// Finds out who a Pi is and takes notes.
pub struct Timeline {
    recorder: Arc<Recorder>,
    state: Arc<dyn State>,
    known: Mutex<Known>,
    misses: Mutex<Misses>,
    /// Who was refused, which is said once.
    refused: Mutex<HashSet<String>>,
    storm: Mutex<tftp::Load>,
}

/// A request for a file.
struct Asked<'a> {
    service: &'static str,
    ip: IpAddr,
    /// What for, as it was sent.
    name: &'a str,
    /// Whether its address is its own for certain.
    proven: bool,
}

#[derive(Default)]
struct Known {
    at: Option<Instant>,
    devices: Vec<Device>,
}

#[derive(Default)]
struct Misses {
    said: HashSet<String>,
    of: HashMap<IpAddr, Vec<String>>,
}

impl Timeline {
    /// For a server's state.
    #[must_use]
    pub fn new(recorder: Arc<Recorder>, state: Arc<dyn State>) -> Self {
        let (known, misses, refused, storm) = Default::default();
        Self { recorder, state, known, misses, refused, storm }
    }

    /// Who has this hardware address, or a serial number that ends so; as it is kept in the state.
    fn who(&self, ip: Option<IpAddr>, mac: Option<&str>, serial: Option<&str>) -> Identity {
        let mut known = lock(&self.known);
        if known.at.is_none_or(|at| at.elapsed() > FRESH) {
            known.at = Some(Instant::now());
            match self.state.devices() {
                Ok(devices) => known.devices = devices,
                Err(e) => tracing::debug!("who boots is not known: {e}"),
            }
        }
        let same_mac = |d: &&Device| mac.is_some() && d.mac.as_deref() == mac;
        let same_serial = |d: &&Device| {
            let (Some(of), Some(part)) = (&d.serial, serial) else { return false };
            of.ends_with(&part.to_ascii_lowercase())
        };
        let device = known.devices.iter().find(same_mac).or_else(|| known.devices.iter().find(same_serial));
        let before = device.and_then(|d| d.address.parse().ok());
        Identity {
            serial: device.and_then(|d| d.serial.as_deref().map(Into::into)),
            mac: mac.map(Into::into).or_else(|| device.and_then(|d| d.mac.as_deref().map(Into::into))),
            address: ip.or(before).unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        }
    }

    fn note(&self, pi: Identity, kind: &str, stage: &str, text: String) {
        pi.log(kind, &text);
        let event = DeviceEvent { at_ms: now_ms(), kind: kind.into(), text };
        let change = Change { stage: Some(stage.into()), events: vec![event], ..Change::of(pi) };
        self.recorder.note(change);
    }

    /// A Pi was answered by DHCP.
    pub fn dhcp(&self, report: &dhcp::Report) {
        let mac = report.mac.to_string();
        let pi = self.who(report.ip.map(IpAddr::V4), Some(&mac), None);
        if report.refused {
            return self.refused(pi, &mac, report.text.clone());
        }
        self.note(pi, "dhcp", "booting", report.text.clone());
    }

    /// It is not in the device list: said once for each name.
    fn refused(&self, pi: Identity, name: &str, text: String) {
        let mut refused = lock(&self.refused);
        if refused.len() < MISSES_MAX && refused.insert(name.to_owned()) {
            drop(refused);
            self.note(pi, "refused", "refused", text);
        }
    }

    /// When there are more Pis than may be served at once, everybody who looks is to see it.
    fn storm(&self, load: tftp::Load) {
        let mut storm = lock(&self.storm);
        let before = *storm;
        *storm = load;
        drop(storm);
        if load.waiting == before.waiting && load.refused == before.refused {
            return;
        }
        let refused = match load.refused {
            0 => String::new(),
            n => format!(", {n} were told to ask again later"),
        };
        let text = (load.waiting > 0).then(|| {
            format!(
                "{} files are being sent, {} requests wait for their turn{refused}",
                load.active, load.waiting
            )
        });
        match (&text, before.waiting) {
            (Some(text), 0) => tracing::warn!("tftp: {text}"),
            (None, 1..) => tracing::info!("tftp: nobody waits any more{refused}"),
            _ => {}
        }
        self.recorder.alert("tftp", text);
    }

    /// A Pi asked for a file by TFTP.
    pub fn tftp(&self, report: &tftp::Report) {
        self.storm(report.load);
        let tftp::Report { peer, asked, what, proven, .. } = report;
        self.file(&Asked { service: "tftp", ip: peer.ip(), name: asked, proven: *proven }, what);
    }

    /// A Pi asked for a file by HTTP. `asked`: the name without a `/` in front.
    pub fn http(&self, ip: IpAddr, asked: &str, what: &What) {
        self.file(&Asked { service: "http", ip, name: asked, proven: true }, what);
    }

    fn file(&self, asked: &Asked<'_>, what: &What) {
        let Asked { service, ip, name: file, proven } = *asked;
        let text = match what {
            What::Sent { name, bytes, took, sent_twice } => {
                let missed = lock(&self.misses).of.remove(&ip).unwrap_or_default();
                let mut text = format!("{name}: {bytes} bytes in {:.3} s", took.as_secs_f64());
                if *sent_twice > 0 {
                    text += &format!(", {sent_twice} blocks sent again");
                }
                if !missed.is_empty() {
                    text += &format!("; before that it asked for what is not there: {}", missed.join(", "));
                }
                text
            }
            What::Refused(name) => {
                let serial = Some(name.as_str()).filter(|n| n.len() <= 16 && !n.contains(':'));
                let service = service.to_ascii_uppercase();
                let text =
                    format!("gets no files by {service}: {name} is not in the device list (--only-known)");
                let mut pi = self.who(Some(ip), None, serial);
                // By what it said of itself it can be let in; its address may be another's tomorrow.
                let is_serial =
                    |n: &&str| matches!(n.len(), 8 | 16) && n.bytes().all(|b| b.is_ascii_hexdigit());
                let said = serial.filter(is_serial).map(str::to_ascii_lowercase);
                pi.serial = pi.serial.or_else(|| said.as_deref().map(Into::into));
                return self.refused(pi, name, text);
            }
            What::Waiting(place) => format!("{file}: waits for its turn, {place} are first"),
            What::Missing => {
                self.missing(asked);
                return;
            }
            What::Stopped => {
                tracing::debug!("{ip}: {service}: {file} was not wanted after all");
                return;
            }
            What::Failed(why) if !proven => {
                // Anybody sends packets to port 69, and writes into them who is said to have sent them.
                tracing::debug!("{ip}: {service}: {file}: {why}");
                return;
            }
            What::Failed(why) => {
                tracing::warn!(address = %ip, event = service, file, "a file was not sent: {why}");
                format!("{file}: {why}")
            }
        };
        let mac = match ip {
            IpAddr::V4(ip) => hardware_address(ip),
            IpAddr::V6(_) => None,
        };
        let own = tftp::folder::own_part(file).map(|(own, _)| own);
        let pi = self.who(Some(ip), mac.as_deref(), own);
        let stage = if matches!(what, What::Waiting(_)) { "waiting" } else { "booting" };
        self.note(pi, service, stage, text);
    }

    /// Pis ask for a dozen files that need not exist: a line in the log for each name, not for each Pi.
    fn missing(&self, asked: &Asked<'_>) {
        let Asked { service, ip, name, .. } = *asked;
        let common = tftp::folder::own_part(name).map_or(name, |(_, rest)| rest);
        let mut misses = lock(&self.misses);
        if misses.said.len() < MISSES_MAX && misses.said.insert(common.to_owned()) {
            tracing::info!("{ip}: {service}: there is no {common} (said once)");
        }
        if misses.of.len() >= MISSES_MAX {
            misses.of.clear();
        }
        let of = misses.of.entry(ip).or_default();
        if of.len() < MISSES_OF_ONE && !of.iter().any(|n| n == common) {
            of.push(common.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Sqlite;

    #[test]
    fn packets_that_ask_for_nothing_make_no_device() {
        let folder = tempfile::tempdir().unwrap();
        let state: Arc<dyn State> = Arc::new(Sqlite::serve(folder.path()).unwrap());
        let (recorder, thread) = Recorder::start(Arc::clone(&state)).unwrap();
        let timeline = Timeline::new(Arc::clone(&recorder), Arc::clone(&state));
        let tell = |host: u8, asked: &str, proven| {
            timeline.tftp(&tftp::Report {
                peer: ([127, 0, 0, host], 1000).into(),
                asked: asked.into(),
                what: What::Failed("not a request".into()),
                proven,
                load: tftp::Load::default(),
            });
        };
        tell(2, "", false);
        tell(4, "kernel8.img", false);
        tell(3, "kernel8.img", true);
        recorder.close();
        thread.join().unwrap();
        let devices = state.devices().unwrap();
        let addresses: Vec<_> = devices.iter().map(|d| d.address.as_str()).collect();
        assert_eq!(addresses, ["127.0.0.3"]);
    }
}
