//! Between the wire and the state: takes notes without waiting, and saves them in batches.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use piman_core::hash::Hash;
use piman_core::install::trust::PublicKey;
use piman_core::install::{Installation, Question};

use super::decision::{Ask, Claimed, Policy};
use super::keys::{Keys, PendingKey};
use super::{Batch, Change, Identity, Listed, OpenOrder, PersonalFacts, State, StateError};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;
use crate::sys::random;

/// How many devices may have unsaved changes; more are not noted.
const DEVICES_MAX: usize = 20_000;
/// How many of them may be of one address: whoever makes up names takes no place of others.
const DEVICES_OF_ONE: usize = 64;
/// How long a first contact waits for what is just being saved.
const SAVED_WITHIN: Duration = Duration::from_secs(2);
/// How many events of one device are kept until they are saved; more are counted only.
const HAPPENINGS_MAX: usize = 32;
/// The same for all devices together.
const EVENTS_MAX: usize = 100_000;
/// How long mere progress is collected before it is saved; what has happened is saved at once.
const COLLECT: Duration = Duration::from_millis(250);
/// How long is between two saves at least: what happens to many Pis at once is saved together.
const BREATH: Duration = Duration::from_millis(10);
/// How long a claim waits until orders that are completed are saved as such.
const SETTLE: Duration = Duration::from_secs(2);
/// How long to wait after the state could not be written.
const AGAIN: Duration = Duration::from_secs(2);

/// Takes notes of what happens. A note costs a lock and a map entry, never a wait for the disk;
/// notes on one device between two saves become one.
pub struct Recorder {
    state: Arc<dyn State>,
    notes: Mutex<Notes>,
    wake: Condvar,
    /// Orders that are completed: the state learns it a moment later.
    completed: Mutex<HashSet<(i64, u64)>>,
    /// Installations that are complete and whose orders could not be read then.
    unread: Mutex<Vec<(Identity, Option<Installation>)>>,
}

#[derive(Default)]
struct Notes {
    /// By device, and whether it has shown that it is that one.
    changes: HashMap<(String, bool), Change>,
    /// How many of them are of an address.
    of_address: HashMap<IpAddr, usize>,
    /// The events in them.
    events: usize,
    rest: Batch,
    dropped: usize,
    saving: bool,
    /// Whether there is more than progress.
    urgent: bool,
    closed: bool,
}

/// A number that no other installation has.
fn new_number() -> Installation {
    Installation(u64::from_le_bytes(random::bytes()))
}

impl Recorder {
    /// A recorder and the thread that saves; the thread ends after [`close`](Self::close).
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(state: Arc<dyn State>) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let recorder = Arc::new(Self {
            state,
            notes: Mutex::default(),
            wake: Condvar::new(),
            completed: Mutex::default(),
            unread: Mutex::default(),
        });
        let writer = Arc::clone(&recorder);
        let thread = thread::Builder::new().name("state".into()).spawn(move || writer.run())?;
        Ok((recorder, thread))
    }

    /// Takes note of a change.
    pub fn note(&self, change: Change) {
        let urgent = change.is_news();
        self.put(change, urgent);
    }

    /// Takes note of a change that is to be seen at once, small as it is.
    pub fn news(&self, change: Change) {
        self.put(change, true);
    }

    fn put(&self, change: Change, urgent: bool) {
        let mut notes = lock(&self.notes);
        notes.urgent |= urgent;
        notes.put(change);
        drop(notes);
        self.wake.notify_all();
    }

    /// Takes note that the server itself has an alert, or that it is over.
    pub fn alert(&self, kind: &str, text: Option<String>) {
        let mut notes = lock(&self.notes);
        notes.rest.alerts.retain(|(k, _)| *k != kind);
        notes.rest.alerts.push((kind.to_owned(), text));
        drop(notes);
        self.wake.notify_all();
    }

    /// The orders that are open for this Pi.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn open_orders(&self, pi: &Identity) -> Result<Vec<OpenOrder>, StateError> {
        let mut open = self.state.open_orders(pi)?;
        let of_this = |(of, _): &mut (Identity, _)| of.key() == pi.key();
        for (_, number) in lock(&self.unread).extract_if(.., of_this) {
            self.mark(&open, number);
        }
        if !open.is_empty() {
            let completed = lock(&self.completed);
            open.retain(|order| !completed.contains(&(order.id, order.ordered_ms)));
        }
        Ok(open)
    }

    /// Whether this Pi is in the device list.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn is_listed(&self, pi: &Identity) -> Result<Listed, StateError> {
        self.state.is_listed(pi)
    }

    /// What happens with this Pi by what is on its disk.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn policy_of(&self, pi: &Identity, base: Policy) -> Result<Policy, StateError> {
        self.state.policy_of(pi, base)
    }

    /// Claims what is ordered for this Pi, or what a policy allows, before it is told to format; what is returned
    /// is on the disk. `None`: nothing is, or not any more.
    ///
    /// # Errors
    /// [`StateError`] if that cannot be written; the Pi must not lose what it has then.
    pub fn claim(
        &self,
        pi: &Identity,
        question: &Question,
        disk: &str,
        (policy, image): (Option<&str>, Option<Hash>),
    ) -> Result<Option<Claimed>, StateError> {
        // What is completed must be written before orders are looked for again.
        let unsaved = !lock(&self.completed).is_empty();
        if unsaved {
            self.flush(SETTLE);
        }
        let Question { found, print, .. } = *question;
        self.state.claim(&Ask { pi, found, print, disk, number: new_number(), policy, image })
    }

    /// Whether an open order was given to this Pi as this installation.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn is_claimed(&self, pi: &Identity, number: Option<Installation>) -> Result<bool, StateError> {
        if number.is_none() {
            return Ok(false);
        }
        Ok(self.open_orders(pi)?.iter().any(|o| o.claimed && o.installation == number))
    }

    /// Whether this Pi was given this image last, as this installation.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn is_given(
        &self,
        pi: &Identity,
        image: Hash,
        number: Option<Installation>,
    ) -> Result<bool, StateError> {
        self.state.is_given(pi, image, number)
    }

    /// An installation of this Pi is complete: so are the orders that it was given as this one.
    /// One without a number, of a Pi that knows none, completes all that were given. Returns how
    /// many were completed; those that cannot be read now are before they are read again.
    pub fn complete(&self, pi: &Identity, number: Option<Installation>) -> usize {
        match self.open_orders(pi) {
            Ok(open) => self.mark(&open, number),
            Err(e) => {
                tracing::error!("{pi}: reading which order is completed (done later): {e}");
                let mut unread = lock(&self.unread);
                if unread.len() < DEVICES_MAX {
                    unread.push((pi.clone(), number));
                }
                0
            }
        }
    }

    /// Marks those of these orders as completed that were given as this installation.
    fn mark(&self, open: &[OpenOrder], number: Option<Installation>) -> usize {
        let done = || open.iter().filter(|o| o.claimed && (number.is_none() || o.installation == number));
        let now = now_ms();
        for order in done() {
            lock(&self.completed).insert((order.id, order.ordered_ms));
            lock(&self.notes).rest.completed.push((*order, now));
        }
        self.wake.notify_all();
        done().count()
    }

    /// What this Pi's bundle depends on.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read, or the Pi's number cannot be written.
    pub fn personal_of(&self, pi: &Identity) -> Result<PersonalFacts, StateError> {
        self.state.personal_of(pi)
    }

    /// Gives a host name to a Pi; returns the Pi that has it already.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    pub fn give_host_name(&self, pi: &Identity, name: &str) -> Result<Option<String>, StateError> {
        self.state.give_host_name(pi, name)
    }

    /// Whether this Pi is ordered to apply its profile.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn is_personal_ordered(&self, pi: &Identity) -> Result<bool, StateError> {
        self.state.is_personal_ordered(pi)
    }

    /// Notes that this is begun, and returns how it is called; `None`: it is not ordered any more.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    pub fn begin_personal(&self, pi: &Identity) -> Result<Option<Installation>, StateError> {
        self.state.begin_personal(pi, new_number())
    }

    /// When it was ordered that a profile is applied to this Pi's card as this installation, in milliseconds since 1970;
    /// `None`: it was not, so this is an installation of an image.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn personal_ordered_ms(
        &self,
        pi: &Identity,
        number: Installation,
    ) -> Result<Option<u64>, StateError> {
        let number = number.to_string();
        let names = [pi.serial.as_deref(), pi.mac.as_deref(), Some(&*pi.address.to_string())];
        let orders = self.state.personal_orders()?.into_iter();
        let of_it = orders.filter(|order| {
            order.installation.as_deref() == Some(&*number) && names.contains(&Some(&*order.name))
        });
        Ok(of_it.map(|order| order.ordered_ms).max())
    }

    /// A profile as it was at this moment was applied: so is what had been ordered before.
    pub fn personalised(&self, pi: &Identity, rendered_ms: u64) {
        let mut notes = lock(&self.notes);
        if notes.rest.personalised.len() < DEVICES_MAX {
            notes.rest.personalised.push((pi.clone(), rendered_ms));
        }
        drop(notes);
        self.wake.notify_all();
    }

    /// The keys that matter for a Pi that says who it is.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn keys_of(&self, pi: &Identity) -> Result<Keys, StateError> {
        self.state.keys_of(pi)
    }

    /// Pins the key that a Pi has shown at its first contact; returns whether it is the Pi's. What was said of it until
    /// then counts: nobody had to show anything.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    pub fn pin(&self, pi: &Identity, key: PublicKey) -> Result<bool, StateError> {
        let mut notes = lock(&self.notes);
        let end = Instant::now() + SAVED_WITHIN;
        while notes.saving
            && let Some(left) = end.checked_duration_since(Instant::now())
        {
            notes = self.wake.wait_timeout(notes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let said = notes.take(&pi.key());
        drop(notes);
        let pinned = self.state.pin(&pi.key(), key, "first contact", false);
        if let Some(said) = said {
            let is_proven = matches!(pinned, Ok(true));
            self.put(Change { is_proven, ..said }, true);
        }
        pinned
    }

    /// Takes note of somebody who has not shown that it is the Pi that it says it is.
    pub fn pending_key(&self, pending: PendingKey) {
        let mut notes = lock(&self.notes);
        if notes.rest.pending_keys.len() < DEVICES_MAX {
            notes.rest.pending_keys.push(pending);
        }
        drop(notes);
        self.wake.notify_all();
    }

    /// Waits until all notes taken so far are saved, or the time is up.
    pub fn flush(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut notes = lock(&self.notes);
        while notes.saving || !notes.changes.is_empty() || !notes.rest.is_empty() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            notes = self.wake.wait_timeout(notes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the thread after what can still be saved is saved.
    pub fn close(&self) {
        lock(&self.notes).closed = true;
        self.wake.notify_all();
    }

    fn run(&self) {
        loop {
            let mut notes = lock(&self.notes);
            while notes.changes.is_empty() && notes.rest.is_empty() {
                if notes.closed {
                    return;
                }
                notes = self.wake.wait(notes).unwrap_or_else(PoisonError::into_inner);
            }
            let closed = notes.closed;
            let idle = |n: &mut Notes| !n.urgent && !n.closed && n.rest.is_empty();
            drop(self.wake.wait_timeout_while(notes, COLLECT, idle));
            if !closed {
                thread::sleep(BREATH);
            }
            let batch = self.take();
            let saved = self.state.save(&batch);
            if saved.is_ok() {
                let mut completed = lock(&self.completed);
                for (order, _) in &batch.completed {
                    completed.remove(&(order.id, order.ordered_ms));
                }
            }
            let mut notes = lock(&self.notes);
            notes.saving = false;
            if let Err(e) = saved {
                if notes.closed {
                    tracing::error!("what happened last is not saved: {e}");
                    drop(notes);
                    self.wake.notify_all();
                    return;
                }
                tracing::error!("what happens is not saved (tried again in {AGAIN:?}): {e}");
                notes.put_back(batch);
                let _ = self.wake.wait_timeout_while(notes, AGAIN, |n| !n.closed);
            } else {
                drop(notes);
                self.wake.notify_all();
            }
        }
    }

    fn take(&self) -> Batch {
        let mut notes = lock(&self.notes);
        notes.saving = true;
        notes.urgent = false;
        if mem::take(&mut notes.dropped) > 0 {
            tracing::warn!("more happened than is kept: some of it is missing from the devices' events");
        }
        let mut batch = mem::take(&mut notes.rest);
        batch.changes = mem::take(&mut notes.changes).into_values().collect();
        notes.of_address = HashMap::new();
        notes.events = 0;
        batch
    }
}

impl Notes {
    fn put(&mut self, mut change: Change) {
        let room = EVENTS_MAX.saturating_sub(self.events);
        self.dropped += change.events.len().saturating_sub(room);
        change.events.truncate(room);
        let new = change.events.len();
        let full = self.changes.len() >= DEVICES_MAX;
        let of_address = self.of_address.entry(change.identity.address).or_default();
        let over = match self.changes.entry((change.identity.key(), change.is_proven)) {
            Entry::Occupied(mut old) => old.get_mut().merge(change, HAPPENINGS_MAX),
            Entry::Vacant(_) if full || *of_address >= DEVICES_OF_ONE => new.max(1),
            Entry::Vacant(place) => {
                *of_address += 1;
                place.insert(change);
                0
            }
        };
        self.events += new.saturating_sub(over);
        self.dropped += over;
    }

    /// Takes out what nobody has vouched for of what was said of a Pi.
    fn take(&mut self, key: &str) -> Option<Change> {
        let said = self.changes.remove(&(key.to_owned(), false))?;
        self.events = self.events.saturating_sub(said.events.len());
        if let Some(of_address) = self.of_address.get_mut(&said.identity.address) {
            *of_address = of_address.saturating_sub(1);
        }
        Some(said)
    }

    /// What could not be saved is older than what came since.
    fn put_back(&mut self, old: Batch) {
        for change in old.changes {
            self.events += change.events.len();
            match self.changes.entry((change.identity.key(), change.is_proven)) {
                Entry::Vacant(place) => {
                    place.insert(change);
                }
                Entry::Occupied(mut place) => {
                    let newer = mem::replace(place.get_mut(), change);
                    self.dropped += place.get_mut().merge(newer, HAPPENINGS_MAX);
                }
            }
        }
        self.rest.completed.splice(..0, old.completed);
        self.rest.personalised.splice(..0, old.personalised);
        self.rest.pending_keys.splice(..0, old.pending_keys);
        for (kind, text) in old.alerts {
            if !self.rest.alerts.iter().any(|(k, _)| *k == kind) {
                self.rest.alerts.push((kind, text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DeviceEvent;

    fn note(notes: &mut Notes, serial: String, address: [u8; 4], events: usize) {
        let identity = Identity { serial: Some(serial.into()), mac: None, address: address.into() };
        let event = DeviceEvent { at_ms: 1, kind: "hello".into(), text: "here".into() };
        notes.put(Change { events: vec![event; events], ..Change::of(identity) });
    }

    #[test]
    fn made_up_names_take_no_place_of_others() {
        let mut notes = Notes::default();
        for n in 0..30_000 {
            note(&mut notes, format!("made up {n}"), [10, 9, 9, 9], 1);
        }
        assert_eq!(notes.changes.len(), DEVICES_OF_ONE);
        note(&mut notes, "real".into(), [10, 0, 0, 1], 1);
        assert!(notes.changes.contains_key(&("real".into(), false)));
    }

    #[test]
    fn unsaved_events_have_a_limit_in_all() {
        let mut notes = Notes::default();
        for n in 0..8000_u32 {
            let [_, _, c, d] = n.to_be_bytes();
            note(&mut notes, format!("pi {n}"), [10, 0, c, d], 32);
        }
        let held: usize = notes.changes.values().map(|c| c.events.len()).sum();
        assert_eq!((held, notes.events), (EVENTS_MAX, EVENTS_MAX));
        assert_eq!(notes.dropped, 8000 * 32 - EVENTS_MAX);
        assert_eq!(notes.changes.len(), 8000, "that they were seen is still noted");
    }
}
