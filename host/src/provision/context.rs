//! What all connections of one server share.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Settings;
use crate::config::live::Live;
use crate::images::build_queue::BuildQueue;
use crate::images::catalog::Catalog;
use crate::net::drain::Drain;
use crate::net::queue::{FairQueue, Permit, QueuePlace};
use crate::provision::bounded_cache::BoundedCache;
use crate::provision::bundles::Bundles;
use crate::provision::legacy::{Advance, Installs};
use crate::provision::names::{Held, Names};
use crate::provision::proof::ProvenPis;
use crate::provision::server_key::ServerKeys;
use crate::state::{Change, DeviceEvent, Identity, Listed, Recorder};
use crate::sys::clock::now_ms;

/// The server that a connection belongs to.
pub struct InstallContext {
    /// What it is told.
    pub live: Arc<Live>,
    /// The port that sends the root filesystem.
    pub rootfs_port: u16,
    /// The port that sends ranges.
    pub fetch_port: u16,
    /// What to install.
    pub catalog: Arc<Catalog>,
    /// The same as images.
    pub builds: Arc<BuildQueue>,
    /// What makes cards their Pis' own.
    pub bundles: Bundles,
    /// What is remembered.
    pub recorder: Arc<Recorder>,
    /// Who may transfer.
    pub slots: Arc<FairQueue>,
    /// What keeps the server from ending at once when it is told to.
    pub drain: Drain,
    /// Who was last heard on the control connection from an address.
    pub last_identity: BoundedCache<IpAddr, Identity>,
    /// From which address a Pi uses its name.
    pub names: Names,
    /// The Pis that have shown who they are and are connected.
    pub proven: ProvenPis,
    /// By which the server shows who it is.
    pub keys: ServerKeys,
    /// Pis, by key, that were told to wait, and why if something is wrong: that they ask again
    /// is no news.
    pub waiting: BoundedCache<String, String>,
    /// Pis, by key, that are not in the device list: each is logged once.
    pub refused: BoundedCache<String, ()>,
    /// Old Pis that were told to format.
    pub installs: Installs,
}

impl InstallContext {
    /// What it is told now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.live.now()
    }

    /// Who is behind this address, as far as is known.
    pub fn who(&self, address: IpAddr) -> Identity {
        self.last_identity.find(&address).unwrap_or_else(|| Identity::of(address))
    }

    /// The name under which records of this address are kept, which is in use as long as what comes with it: that of its
    /// Pi, unless another address uses it.
    #[must_use]
    pub fn records_of(&self, address: IpAddr) -> (String, Option<Held>) {
        let pi = self.who(address);
        match self.names.hold(&pi) {
            Some(held) => (pi.key(), Some(held)),
            None => {
                tracing::warn!(
                    "telemetry: {pi} says a name that another address uses: its records go by its address"
                );
                (Identity::of(address).key(), None)
            }
        }
    }

    /// Whether it may have what is installed: with `--only-known`, if it is in the device list.
    ///
    /// # Errors
    /// If it is not, or that cannot be read: with what to do.
    pub fn may_download(&self, pi: &Identity) -> Result<(), String> {
        if !self.settings().only_known {
            return Ok(());
        }
        match self.recorder.is_listed(pi) {
            Ok(Listed::Yes | Listed::LastSeenHere) => Ok(()),
            Ok(Listed::No) => {
                let reason = not_listed(pi);
                self.refuse(pi, &reason);
                Err(reason)
            }
            Err(e) => Err(format!("the device list cannot be read: {e}")),
        }
    }

    /// Takes note that it is not served; said once.
    pub fn refuse(&self, pi: &Identity, reason: &str) {
        if self.refused.find(&pi.key()).is_none() {
            self.refused.put(pi.key(), ());
            self.happened(pi, "refused", format!("is not served: {reason}"), Change::of(pi.clone()));
        }
    }

    /// Takes note of what happened to a Pi.
    pub fn happened(&self, pi: &Identity, kind: &str, text: String, change: Change) {
        pi.log(kind, &text);
        let event = DeviceEvent { at_ms: now_ms(), kind: kind.into(), text };
        let is_proven = change.is_proven || self.proven.has(pi);
        self.recorder.note(Change { events: vec![event], is_proven, ..change });
    }

    /// Puts a Pi at the end of the line for a transfer.
    #[must_use]
    pub fn line_up(&self, pi: Identity) -> QueueGuard<'_> {
        QueueGuard { service: self, pi, ticket: self.slots.queue(), told: 0, logged: 0 }
    }

    /// When more Pis want to be served than may at once, everybody who looks is to see it.
    fn show_slots(&self) {
        let waiting = self.slots.waiting();
        let of = self.slots.slots();
        let text = (waiting > 0 && of > 0).then(|| {
            format!("{} of {of} slots are taken, {waiting} transfers wait for one", self.slots.taken())
        });
        self.recorder.alert("slots", text);
    }

    /// An old Pi has reported the end, or got everything: when both are so, it is installed.
    pub fn advance(&self, address: IpAddr, with: Advance) {
        if self.installs.advance(address, with) {
            let pi = Identity::of(address);
            let orders = self.recorder.complete(&pi, None);
            let text = match orders {
                0 => "installed: it got the whole archive and reported the end".to_owned(),
                _ => "installed as ordered: it got the whole archive and reported the end".to_owned(),
            };
            let change =
                Change { stage: Some("installed".into()), error: Some(None), ..Change::of(pi.clone()) };
            self.happened(&pi, "installed", text, change);
        }
    }
}

/// Why a Pi is refused with `--only-known`, and the command that lets it in.
#[must_use]
pub fn not_listed(pi: &Identity) -> String {
    format!("it is not in the device list (--only-known); let it in with: piman devices add {}", pi.key())
}

/// A Pi in the line for a transfer; it gives its place up when this is dropped.
pub struct QueueGuard<'a> {
    service: &'a InstallContext,
    pi: Identity,
    ticket: QueuePlace,
    told: u32,
    /// The place that the log has.
    logged: u32,
}

impl QueueGuard<'_> {
    /// Waits for a slot.
    ///
    /// # Errors
    /// How many are first, when that has changed: the Pi is to be told, and then to wait again.
    pub async fn turn(&mut self) -> Result<Permit, u32> {
        let place = match self.ticket.turn(self.told).await {
            Ok(slot) => return Ok(slot),
            Err(place) => place,
        };
        let text = format!("waits for its turn, {place} transfers are first");
        if self.told == 0 {
            let change = Change { stage: Some("waiting".into()), ..Change::of(self.pi.clone()) };
            self.service.happened(&self.pi, "slots", text, change);
            self.service.show_slots();
            self.logged = place;
        } else if place <= self.logged / 2 {
            // Not each step of a long line.
            self.pi.log("slots", &text);
            self.logged = place;
        }
        self.told = place;
        Err(place)
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        if self.told > 0 {
            // Whoever leaves without a slot is not to be counted any more.
            self.ticket.leave();
            self.service.show_slots();
        }
    }
}
