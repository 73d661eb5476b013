//! What all connections of one server share.

use std::collections::HashMap;
use std::hash::Hash as Key;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::builds::Builds;
use crate::busy::Busy;
use crate::config::Settings;
use crate::library::Library;
use crate::lock::lock;
use crate::slots::{Slot, Slots, Ticket};
use crate::state::{Change, Happening, Identity, Recorder, now_ms};

/// How many addresses are remembered in memory.
const ADDRESSES_MAX: usize = 20_000;

/// The server that a connection belongs to.
pub struct Service {
    /// What it was told.
    pub settings: Settings,
    /// The port that sends the root filesystem.
    pub rootfs_port: u16,
    /// The port that sends ranges.
    pub fetch_port: u16,
    /// What to install.
    pub library: Arc<Library>,
    /// The same as images.
    pub builds: Arc<Builds>,
    /// What is remembered.
    pub recorder: Arc<Recorder>,
    /// Who may transfer.
    pub slots: Arc<Slots>,
    /// What keeps the server from ending at once when it is told to.
    pub busy: Busy,
    /// Who was last heard on the control connection from an address.
    pub heard: Recent<IpAddr, Identity>,
    /// Pis, by key, that were told to wait, and why if something is wrong: that they ask again
    /// is no news.
    pub waiting: Recent<String, String>,
    /// Old Pis that were told to format.
    pub installs: Installs,
}

impl Service {
    /// Who is behind this address, as far as is known.
    pub fn who(&self, address: IpAddr) -> Identity {
        self.heard.find(&address).unwrap_or_else(|| Identity::of(address))
    }

    /// Takes note of what happened to a Pi.
    pub fn happened(&self, pi: &Identity, kind: &str, text: String, change: Change) {
        log::info!("{pi}: {text}");
        let happening = Happening { at_ms: now_ms(), kind: kind.into(), text };
        self.recorder.note(Change { happenings: vec![happening], ..change });
    }

    /// Puts a Pi at the end of the line for a transfer.
    #[must_use]
    pub fn line_up(&self, pi: Identity) -> InLine<'_> {
        InLine { service: self, pi, ticket: self.slots.queue(), told: 0 }
    }

    /// When more Pis want to be served than may at once, everybody who looks is to see it.
    fn show_slots(&self) {
        let waiting = self.slots.waiting();
        let of = self.settings.slots;
        let text = (waiting > 0 && of > 0).then(|| {
            format!("{} of {of} slots are taken, {waiting} transfers wait for one", self.slots.taken())
        });
        self.recorder.trouble("slots", text);
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

/// A Pi in the line for a transfer; it gives its place up when this is dropped.
pub struct InLine<'a> {
    service: &'a Service,
    pi: Identity,
    ticket: Ticket,
    told: u32,
}

impl InLine<'_> {
    /// Waits for a slot.
    ///
    /// # Errors
    /// How many are first, when that has changed: the Pi is to be told, and then to wait again.
    pub async fn turn(&mut self) -> Result<Slot, u32> {
        let place = match self.ticket.turn(self.told).await {
            Ok(slot) => return Ok(slot),
            Err(place) => place,
        };
        let text = format!("waits for its turn, {place} transfers are first");
        if self.told == 0 {
            let change = Change { stage: Some("waiting".into()), ..Change::of(self.pi.clone()) };
            self.service.happened(&self.pi, "slots", text, change);
            self.service.show_slots();
        } else {
            log::info!("{}: {text}", self.pi);
        }
        self.told = place;
        Err(place)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.told > 0 {
            // Whoever leaves without a slot is not to be counted any more.
            self.ticket.leave();
            self.service.show_slots();
        }
    }
}

/// A map of bounded size: when it is full, everything older than the newest half goes.
#[derive(Debug)]
pub struct Recent<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Key + Eq + Clone, V: Clone> Recent<K, V> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, (Instant, V)>> {
        lock(&self.0)
    }

    /// What is known under this key.
    pub fn find(&self, key: &K) -> Option<V> {
        self.lock().get(key).map(|(_, v)| v.clone())
    }

    /// Forgets.
    pub fn remove(&self, key: &K) {
        self.lock().remove(key);
    }

    /// Remembers.
    pub fn put(&self, key: K, value: V) {
        let mut map = self.lock();
        if map.len() >= ADDRESSES_MAX && !map.contains_key(&key) {
            let mut times: Vec<Instant> = map.values().map(|(at, _)| *at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            map.retain(|_, (at, _)| *at > median);
        }
        map.insert(key, (Instant::now(), value));
    }
}

/// What an old Pi has done since it was told to format. It proves nothing by one thing alone:
/// one kind reports the end first and downloads then, the other does it the other way round.
#[derive(Debug, Default)]
pub struct Installs(Recent<IpAddr, Install>);

#[derive(Debug, Clone, Copy)]
struct Install {
    told: Instant,
    formatted: bool,
    downloaded: bool,
}

/// What an old Pi did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// It reported `IS_FORMATTED`.
    Formatted,
    /// It got the whole archive by a transfer that began then.
    Downloaded(Instant),
}

impl Installs {
    /// It was told to format, now.
    pub fn told(&self, address: IpAddr) {
        self.0.put(address, Install { told: Instant::now(), formatted: false, downloaded: false });
    }

    /// Returns whether the installation is complete by this; then it is forgotten.
    fn advance(&self, address: IpAddr, with: Advance) -> bool {
        let mut known = self.0.lock();
        let Some((_, install)) = known.get_mut(&address) else { return false };
        match with {
            Advance::Formatted => install.formatted = true,
            Advance::Downloaded(began) if began >= install.told => install.downloaded = true,
            // What it got it may have formatted away since.
            Advance::Downloaded(_) => {}
        }
        let complete = install.formatted && install.downloaded;
        if complete {
            known.remove(&address);
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_pi_is_installed_by_both_in_either_order() {
        let (installs, pi) = (Installs::default(), IpAddr::from([10, 0, 0, 1]));
        let before = Instant::now();
        assert!(!installs.advance(pi, Advance::Formatted), "nobody told it to");
        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Formatted));
        assert!(!installs.advance(pi, Advance::Downloaded(before)), "from before it formatted");
        assert!(!installs.advance([10, 0, 0, 10].into(), Advance::Downloaded(Instant::now())));
        assert!(installs.advance(pi, Advance::Downloaded(Instant::now())));
        assert!(!installs.advance(pi, Advance::Downloaded(Instant::now())), "it is over");

        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Downloaded(Instant::now())));
        installs.told(pi);
        assert!(!installs.advance(pi, Advance::Formatted), "it was told again, so it begins anew");
        assert!(installs.advance(pi, Advance::Downloaded(Instant::now())));
    }

    #[test]
    fn what_is_recent_is_bounded() {
        let recent = Recent::default();
        for n in 0..=ADDRESSES_MAX {
            recent.put(n, n);
        }
        assert!(recent.lock().len() <= ADDRESSES_MAX);
        assert_eq!(recent.find(&ADDRESSES_MAX), Some(ADDRESSES_MAX));
    }
}
