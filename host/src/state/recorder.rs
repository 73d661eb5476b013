//! Between the wire and the state: takes notes without waiting, and saves them in batches.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Batch, Change, Identity, OpenOrder, State, now_ms};

/// How many devices may have unsaved changes; more are not noted.
const DEVICES_MAX: usize = 20_000;
/// How many happenings of one device are kept until they are saved; more are counted only.
const HAPPENINGS_MAX: usize = 32;
/// How long notes are collected before they are saved.
const COLLECT: Duration = Duration::from_millis(50);
/// How long to wait after the state could not be written.
const AGAIN: Duration = Duration::from_secs(2);

/// Takes notes of what happens. A note costs a lock and a map entry, never a wait for the disk;
/// notes on one device between two saves become one.
pub struct Recorder {
    state: Arc<dyn State>,
    notes: Mutex<Notes>,
    wake: Condvar,
    /// What became of orders, at once: the state learns it a moment later.
    orders: Mutex<HashMap<(i64, u64), Standing>>,
    /// When it was last said that orders cannot be read.
    said: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Notes {
    changes: HashMap<String, Change>,
    rest: Batch,
    dropped: usize,
    saving: bool,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Given,
    Completed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            orders: Mutex::default(),
            said: Mutex::default(),
        });
        let writer = Arc::clone(&recorder);
        let thread = thread::Builder::new().name("state".into()).spawn(move || writer.run())?;
        Ok((recorder, thread))
    }

    /// Takes note of a change.
    pub fn note(&self, change: Change) {
        let mut notes = lock(&self.notes);
        let room = notes.changes.len() < DEVICES_MAX;
        let over = match notes.changes.entry(change.identity.key()) {
            Entry::Occupied(mut old) => old.get_mut().merge(change, HAPPENINGS_MAX),
            Entry::Vacant(_) if !room => 1,
            Entry::Vacant(new) => {
                new.insert(change);
                0
            }
        };
        notes.dropped += over;
        drop(notes);
        self.wake.notify_all();
    }

    /// Takes note that the server itself has a trouble, or that it is over.
    pub fn trouble(&self, kind: &'static str, text: Option<String>) {
        let mut notes = lock(&self.notes);
        notes.rest.troubles.retain(|(k, _)| *k != kind);
        notes.rest.troubles.push((kind, text));
        drop(notes);
        self.wake.notify_all();
    }

    /// The orders that are open for this Pi. If the state cannot be read there are none:
    /// nothing on a card is ever erased because of an error.
    pub fn open_orders(&self, pi: &Identity) -> Vec<OpenOrder> {
        let mut open = match self.state.open_orders(pi) {
            Ok(open) => open,
            Err(e) => {
                // Whoever asks often must not fill the log with it.
                let mut said = lock(&self.said);
                if said.is_some_and(|at| at.elapsed() < AGAIN) {
                    return Vec::new();
                }
                *said = Some(Instant::now());
                log::error!("orders cannot be read, so {pi} is not reinstalled: {e}");
                return Vec::new();
            }
        };
        if !open.is_empty() {
            let known = lock(&self.orders);
            open.retain_mut(|order| match known.get(&(order.id, order.ordered_ms)) {
                Some(Standing::Completed) => false,
                Some(Standing::Given) => {
                    order.given = true;
                    true
                }
                None => true,
            });
        }
        open
    }

    /// This Pi was told to format: its orders are given. Returns how many.
    pub fn give(&self, pi: &Identity) -> usize {
        let open = self.open_orders(pi);
        self.stand(open.iter().filter(|o| !o.given), Standing::Given);
        open.len()
    }

    /// The installation of this Pi is complete: so are its orders that were given. Returns how many.
    pub fn complete(&self, pi: &Identity) -> usize {
        let mut open = self.open_orders(pi);
        open.retain(|o| o.given);
        self.stand(open.iter(), Standing::Completed);
        open.len()
    }

    fn stand<'a>(&self, orders: impl Iterator<Item = &'a OpenOrder>, standing: Standing) {
        let now = now_ms();
        for order in orders {
            lock(&self.orders).insert((order.id, order.ordered_ms), standing);
            let mut notes = lock(&self.notes);
            match standing {
                Standing::Given => notes.rest.given.push((*order, now)),
                Standing::Completed => notes.rest.completed.push((*order, now)),
            }
        }
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
            drop(notes);
            if !closed {
                thread::sleep(COLLECT);
            }
            let batch = self.take();
            let saved = self.state.save(&batch);
            let mut notes = lock(&self.notes);
            notes.saving = false;
            if let Err(e) = saved {
                if notes.closed {
                    log::error!("what happened last is not saved: {e}");
                    drop(notes);
                    self.wake.notify_all();
                    return;
                }
                log::error!("what happens is not saved (tried again in {AGAIN:?}): {e}");
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
        if mem::take(&mut notes.dropped) > 0 {
            log::warn!("more happened than is kept: some of it is missing from the devices' events");
        }
        let mut batch = mem::take(&mut notes.rest);
        batch.changes = mem::take(&mut notes.changes).into_values().collect();
        batch
    }
}

impl Notes {
    /// What could not be saved is older than what came since.
    fn put_back(&mut self, old: Batch) {
        for change in old.changes {
            match self.changes.entry(change.identity.key()) {
                Entry::Vacant(place) => {
                    place.insert(change);
                }
                Entry::Occupied(mut place) => {
                    let newer = mem::replace(place.get_mut(), change);
                    self.dropped += place.get_mut().merge(newer, HAPPENINGS_MAX);
                }
            }
        }
        self.rest.given.splice(..0, old.given);
        self.rest.completed.splice(..0, old.completed);
        for (kind, text) in old.troubles {
            if !self.rest.troubles.iter().any(|(k, _)| *k == kind) {
                self.rest.troubles.push((kind, text));
            }
        }
    }
}
