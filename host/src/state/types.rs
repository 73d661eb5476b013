//! What is kept of the Pis: who they are, what happened to them, what was ordered, and what a change is.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use piman_core::hash::Hash;
use piman_core::install::{Fingerprint, Found, Installation};
use serde::Serialize;
use tracing::Level;

use crate::images::fitness::BootFrom;
use crate::images::personalise::profile::{Profile, Secret};
use crate::state::decision::Scope;
use crate::state::keys::PendingKey;
use crate::sys::clock::now_ms;

/// Who a Pi is: its serial number, then its hardware address, then its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The serial number, in lower case.
    pub serial: Option<Box<str>>,
    /// The hardware address, `b8:27:eb:00:00:01`.
    pub mac: Option<Box<str>>,
    /// Where it connects from.
    pub address: IpAddr,
}

impl Identity {
    /// A Pi of which only the address is known.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self { serial: None, mac: None, address }
    }

    /// Logs what happened to this Pi: its names as fields, so that lines can be searched by them, the event in one
    /// word, and the rest for people. An ordinary boot is one line at `info`, its decision; what comes before and
    /// after it is for those who look closely.
    pub fn log(&self, event: &str, text: &str) {
        let level = match event {
            "error" | "failed" => Level::ERROR,
            "boot" | "format" | "installed" | "formatted" | "waits" | "slots" | "refused" => Level::INFO,
            _ => Level::DEBUG,
        };
        let (serial, mac, address) = (self.serial.as_deref(), self.mac.as_deref(), self.address);
        crate::log_at!(level, target: "piman::pi", serial, mac, %address, event, "{text}");
    }

    /// The name that its device is kept under.
    #[must_use]
    pub fn key(&self) -> String {
        match (&self.serial, &self.mac) {
            (Some(name), _) | (None, Some(name)) => name.to_string(),
            (None, None) => self.address.to_string(),
        }
    }
}

/// For log lines: the address, and the serial number or hardware address.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.serial, &self.mac) {
            (Some(name), _) | (None, Some(name)) => write!(f, "{} ({name})", self.address),
            (None, None) => write!(f, "{}", self.address),
        }
    }
}

/// An order that is not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpenOrder {
    /// Its number.
    pub id: i64,
    /// When it was made; with the number, this names the order even when a state was begun anew.
    pub ordered_ms: u64,
    /// Whether a Pi was told to format because of it.
    pub claimed: bool,
    /// How that installation is called, if the Pi knows such names.
    pub installation: Option<Installation>,
    /// The disk's content that it allows to erase; `None`: it is for the Pi, whatever of ours is on its disk.
    pub print: Option<Fingerprint>,
}

/// An order with its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct Order {
    pub id: i64,
    /// A serial number, hardware address or address; it must be a Pi's exactly.
    pub name: String,
    pub ordered_ms: u64,
    /// By whom.
    pub source: String,
    pub claimed_ms: Option<u64>,
    pub completed_ms: Option<u64>,
    pub cancelled_ms: Option<u64>,
    /// The Pi that it was given to, by the name that it is kept under.
    pub claimed_by: Option<String>,
    pub installation: Option<String>,
    /// The fingerprint of the content that may be erased, if the order is for a certain one.
    pub print: Option<String>,
}

/// What happened to a Pi, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What kind, one word.
    pub kind: String,
    /// In words.
    pub text: String,
}

/// What is known of a Pi.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct Device {
    /// The name it is kept under: serial number, else hardware address, else address.
    pub key: String,
    pub serial: Option<String>,
    pub mac: Option<String>,
    pub address: String,
    pub model: Option<String>,
    pub agent: Option<String>,
    pub disk_bytes: u64,
    pub root_bytes: u64,
    /// The image that the Pi found on its card.
    pub card: Option<String>,
    /// What the Pi found on its disk: one word.
    pub found: Option<String>,
    /// The same in words.
    pub disk: Option<String>,
    /// The fingerprint of that.
    pub print: Option<String>,
    /// Why it waits, and the command that decides.
    pub waits: Option<String>,
    /// What it was doing last.
    pub stage: Option<String>,
    pub done_bytes: u64,
    /// 0: not known.
    pub total_bytes: u64,
    /// The image that it was last told to install, or has installed.
    pub image: Option<String>,
    pub first_seen_ms: u64,
    pub last_seen_ms: u64,
    pub last_error: Option<String>,
    pub last_error_ms: Option<u64>,
    /// Whether a reinstall is ordered by one of its names.
    pub reinstall_ordered: bool,
    /// Whether it is ordered to apply its profile at the next boot.
    pub personalise_ordered: bool,
    /// Its number among all Pis, once it has one.
    pub ordinal: Option<u32>,
    /// The host name that it was given last.
    pub hostname: Option<String>,
}

/// What a Pi said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "as in `Hello` of the core")]
pub struct Facts {
    pub model: Option<Box<str>>,
    pub agent: Option<Box<str>>,
    pub disk_bytes: u64,
    pub root_bytes: u64,
    pub card: Option<Hash>,
    pub found: Option<Found>,
    pub print: Option<Fingerprint>,
}

/// What became different about one device since the last time it was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who.
    pub identity: Identity,
    /// When it was last heard, in milliseconds since 1970.
    pub seen_ms: u64,
    /// What it said of itself.
    pub facts: Option<Facts>,
    /// What it is doing.
    pub stage: Option<Box<str>>,
    /// Bytes done, and bytes to do (0: not known).
    pub progress: Option<(u64, u64)>,
    /// The image that it was told to install, or has installed.
    pub image: Option<Hash>,
    /// What is on its disk, in words.
    pub disk: Option<Box<str>>,
    /// Why it waits; `Some(None)`: it waits no more.
    pub waits: Option<Option<Box<str>>>,
    /// What went wrong; `Some(None)` clears it.
    pub error: Option<Option<Box<str>>>,
    /// What happened, in order.
    pub events: Vec<DeviceEvent>,
    /// Whether the Pi has shown that it is the one. Of a Pi with a key, what has not is recorded as an event alone.
    pub is_proven: bool,
}

impl Change {
    /// Nothing but that it was heard now.
    #[must_use]
    pub fn of(identity: Identity) -> Self {
        Self {
            identity,
            seen_ms: now_ms(),
            facts: None,
            stage: None,
            progress: None,
            image: None,
            disk: None,
            waits: None,
            error: None,
            events: Vec::new(),
            is_proven: false,
        }
    }

    /// Whether it is more than how far a Pi is.
    pub(super) fn is_news(&self) -> bool {
        self.facts.is_some()
            || self.image.is_some()
            || self.disk.is_some()
            || self.waits.is_some()
            || self.error.is_some()
            || !self.events.is_empty()
    }

    /// Adds what is newer. At most `limit` events are kept; returns how many were not.
    pub(super) fn merge(&mut self, newer: Self, limit: usize) -> usize {
        self.identity = newer.identity;
        self.seen_ms = self.seen_ms.max(newer.seen_ms);
        self.facts = newer.facts.or(self.facts.take());
        self.stage = newer.stage.or(self.stage.take());
        self.progress = newer.progress.or(self.progress);
        self.image = newer.image.or(self.image);
        self.disk = newer.disk.or(self.disk.take());
        self.waits = newer.waits.or(self.waits.take());
        self.error = newer.error.or(self.error.take());
        let room = limit.saturating_sub(self.events.len());
        let over = newer.events.len().saturating_sub(room);
        self.events.extend(newer.events.into_iter().take(room));
        over
    }
}

/// What is saved at once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// By device.
    pub changes: Vec<Change>,
    /// Orders that are completed, and when.
    pub completed: Vec<(OpenOrder, u64)>,
    /// Pis whose profile, as it was at this moment, was applied: so are the orders that were made until then.
    pub personalised: Vec<(Identity, u64)>,
    /// The server's own alerts: a word, and what is the matter (`None`: it is over).
    pub alerts: Vec<(String, Option<String>)>,
    /// Who says the name of a Pi with a key, and has not shown that it is that one.
    pub pending_keys: Vec<PendingKey>,
}

impl Batch {
    /// Whether there is nothing to save.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.completed.is_empty()
            && self.personalised.is_empty()
            && self.alerts.is_empty()
            && self.pending_keys.is_empty()
    }
}

/// An archive with a name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct Registered {
    pub name: String,
    pub path: PathBuf,
    /// Whether it is for everyone who has no other.
    pub is_default: bool,
    pub added_ms: u64,
    /// Whether it is installed although it cannot boot as far as can be seen.
    pub takes_unfit: bool,
    pub about: About,
}

/// What an operator says of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// What it is for.
    pub description: Option<String>,
    /// Which version of it this is.
    pub release: Option<String>,
    /// From what cards with it boot, whatever its files say.
    pub boot: Option<BootFrom>,
    /// How large the boot partition is to be, in bytes.
    pub boot_bytes: Option<u64>,
}

/// Which image a Pi or a group gets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Choice {
    pub who: String,
    pub is_group: bool,
    pub image: String,
}

/// All images, and who gets which.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// By name.
    pub images: Vec<Registered>,
    /// Pis first, then groups.
    pub choices: Vec<Choice>,
    /// Pis and the group that each is in.
    pub members: Vec<(String, String)>,
}

/// A change of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Edit {
    /// Gives an archive a name; one of that name gets this path.
    Add { name: String, path: PathBuf, takes_unfit: bool, about: About },
    /// Forgets an image, and that somebody gets it.
    Remove { name: String },
    /// Makes it the default; `None`: no image is.
    Default { name: Option<String> },
    /// Gives it to a Pi or a group; `None`: no image of its own.
    Choose { who: String, is_group: bool, image: Option<String> },
    /// Puts a Pi into a group, out of the one it was in; `None`: into none.
    Join { device: String, group: Option<String> },
}

/// Whether a Pi is in the device list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// It is.
    Yes,
    /// Nothing but its address is known, where one that is was seen last: enough to go on with a download, not for a
    /// decision.
    LastSeenHere,
    /// It is not.
    No,
}

/// A Pi of the device list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct ListedPi {
    /// A serial number or its last 8 digits, a hardware address, or an address.
    pub name: String,
    /// What people call it.
    pub label: Option<String>,
    pub added_ms: u64,
    /// By whom.
    pub source: String,
}

/// What a server has to know of the state before it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preview {
    /// How many images there are.
    pub images: usize,
    /// The name and the archive of the one that is for everyone who has no other.
    pub default: Option<(String, PathBuf)>,
}

impl Preview {
    /// The same of a state that is open.
    #[must_use]
    pub fn of(catalogue: &Catalogue) -> Self {
        let default = catalogue.images.iter().find(|image| image.is_default);
        Self {
            images: catalogue.images.len(),
            default: default.map(|image| (image.name.clone(), image.path.clone())),
        }
    }
}

/// What an order to reinstall led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordered {
    /// It is new.
    New,
    /// There was one already, made at this moment (milliseconds since 1970).
    Already {
        /// When it was made.
        ordered_ms: u64,
        /// Whether the Pi was told to format and has not finished.
        claimed: bool,
        /// Whether it is now for another content of the disk than it was.
        rebound: bool,
    },
}

/// A profile as an operator wrote it, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The TOML.
    pub text: Secret,
    /// The same, with the files in it that it names.
    pub profile: Profile,
}

/// A profile of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct StoredProfile {
    /// For whom.
    pub scope: Scope,
    pub written: Written,
    pub changed_ms: u64,
    /// By whom.
    pub source: String,
}

/// What a Pi's bundle depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonalFacts {
    /// The server's, its group's and its own profile as one; `None`: there is none of them.
    pub profile: Option<Profile>,
    /// Its group.
    pub group: Option<String>,
    /// Its number among all Pis.
    pub ordinal: u32,
}

/// An order to apply a Pi's profile at its next boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it; times in milliseconds since 1970")]
pub struct PersonalOrder {
    pub id: i64,
    /// A serial number, hardware address or address.
    pub name: String,
    pub ordered_ms: u64,
    /// By whom.
    pub source: String,
    /// As what it was begun.
    pub installation: Option<String>,
    pub completed_ms: Option<u64>,
    pub cancelled_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_pi_is() {
        let mut pi = Identity::of([172, 30, 1, 10].into());
        assert_eq!((pi.key(), pi.to_string()), ("172.30.1.10".into(), "172.30.1.10".into()));
        pi.mac = Some("b8:27:eb:00:00:01".into());
        assert_eq!(pi.key(), "b8:27:eb:00:00:01");
        pi.serial = Some("10000000abcdef01".into());
        assert_eq!(pi.to_string(), "172.30.1.10 (10000000abcdef01)");
    }

    #[test]
    fn newer_changes_win_and_happenings_are_bounded() {
        let pi = Identity::of([10, 0, 0, 1].into());
        let event = || DeviceEvent { at_ms: 1, kind: "x".into(), text: "y".into() };
        let mut change =
            Change { progress: Some((1, 9)), error: Some(Some("bad".into())), ..Change::of(pi.clone()) };
        let newer = Change { progress: Some((2, 9)), events: vec![event(); 5], ..Change::of(pi.clone()) };
        assert_eq!(change.merge(newer, 3), 2);
        assert_eq!((change.progress, change.events.len()), (Some((2, 9)), 3));
        assert_eq!(change.error, Some(Some("bad".into())));
        change.merge(Change { error: Some(None), ..Change::of(pi) }, 3);
        assert_eq!(change.error, Some(None));
    }
}
