//! Who may transfer now, who waits for it, and who gives way.
//!
//! The address of a request may be forged. Until the client has answered once, its request is a greeting: one of a
//! bounded number, of which the oldest give way to new ones, and none has a place among the transfers. Those are for
//! clients that have answered. When all places are taken, the address with the most gives one up for an address with
//! fewer, and whoever hardly moves gives way to whoever waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::limits::Limits;
use crate::sys::lock::lock;

/// Whoever gets fewer than [`SLOW_BYTES`] in this time gives way when others wait.
const SLOW_SPAN: Duration = Duration::from_secs(5);
const SLOW_BYTES: u64 = 32 << 10;
/// How often it is looked for somebody who gives way to those who wait.
const LOOK: Duration = Duration::from_secs(1);

/// How much there is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Transfers that go on.
    pub active: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Requests that were refused since the start: too many in all, or of one address.
    pub refused: u64,
}

/// The gate of a server.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    current: Mutex<Current>,
    refused: AtomicU64,
}

type Key = (SocketAddr, String);

#[derive(Debug, Default)]
struct Current {
    numbers: HashMap<Key, u64>,
    seats: BTreeMap<u64, Seat>,
    /// The numbers of those seats that are greetings.
    greetings: BTreeSet<u64>,
    by_address: HashMap<IpAddr, Counts>,
    all: Counts,
    next: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    greeting: usize,
    waiting: usize,
    active: usize,
}

impl Counts {
    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Greeting => &mut self.greeting,
            Stage::Waiting => &mut self.waiting,
            Stage::Active => &mut self.active,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client has not answered yet.
    Greeting,
    /// It has, and waits for its turn.
    Waiting,
    /// It is its turn.
    Active,
}

#[derive(Debug)]
struct Seat {
    address: IpAddr,
    stage: Stage,
    wake: Arc<Wake>,
    pace: Pace,
}

/// Each has a waiter of its own: one of both would take what is meant for the other.
#[derive(Debug, Default)]
struct Wake {
    /// The turn has come, or never will.
    turn: Notify,
    /// It has to give way.
    out: Notify,
}

/// How a transfer moves.
#[derive(Debug, Clone, Copy)]
struct Pace {
    bytes: u64,
    /// What it had when this span began.
    before: u64,
    since: Instant,
    was_slow: bool,
}

impl Pace {
    fn note(&mut self, bytes: u64, now: Instant) {
        self.bytes = bytes;
        if now.duration_since(self.since) >= SLOW_SPAN {
            self.was_slow = bytes.saturating_sub(self.before) < SLOW_BYTES;
            (self.before, self.since) = (bytes, now);
        }
    }

    /// Whether it hardly moves.
    fn is_slow(&self, now: Instant) -> bool {
        let stands = now.duration_since(self.since) >= SLOW_SPAN
            && self.bytes.saturating_sub(self.before) < SLOW_BYTES;
        self.was_slow || stands
    }
}

/// One request being answered; over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    gate: Arc<Admission>,
    key: Key,
    number: u64,
    wake: Arc<Wake>,
}

/// What becomes of a request.
pub(super) enum Entry {
    New(Turn),
    /// The same request is being answered already: the client was impatient.
    Repeated,
}

/// What becomes of a client that has answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// It is its turn.
    Begin,
    /// So many others are first.
    Waits(u32),
    /// That is too much.
    Refused(&'static str),
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, current: Mutex::default(), refused: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }

    /// A request has come, from whoever this is.
    pub(super) fn enter(self: &Arc<Self>, peer: SocketAddr, name: &str) -> Entry {
        let key = (peer, name.to_owned());
        let mut current = self.lock();
        if current.numbers.contains_key(&key) {
            return Entry::Repeated;
        }
        current.make_room_for_greeting(peer.ip(), &self.limits);
        let number = current.next;
        current.next += 1;
        let wake = Arc::new(Wake::default());
        let pace = Pace { bytes: 0, before: 0, since: Instant::now(), was_slow: false };
        let seat = Seat { address: peer.ip(), stage: Stage::Greeting, wake: Arc::clone(&wake), pace };
        current.numbers.insert(key.clone(), number);
        current.put(number, seat);
        Entry::New(Turn { gate: Arc::clone(self), key, number, wake })
    }

    pub(super) fn load(&self) -> Load {
        let Counts { active, waiting, .. } = self.lock().all;
        Load { active, waiting, refused: self.refused.load(Ordering::Relaxed) }
    }
}

impl Current {
    fn put(&mut self, number: u64, seat: Seat) {
        *self.all.of(seat.stage) += 1;
        *self.by_address.entry(seat.address).or_default().of(seat.stage) += 1;
        if seat.stage == Stage::Greeting {
            self.greetings.insert(number);
        }
        self.seats.insert(number, seat);
    }

    /// Takes a seat away. Its holder notices, or knows it.
    fn take(&mut self, number: u64) -> Option<Seat> {
        let seat = self.seats.remove(&number)?;
        self.greetings.remove(&number);
        let count = self.all.of(seat.stage);
        *count = count.saturating_sub(1);
        if let Some(counts) = self.by_address.get_mut(&seat.address) {
            let count = counts.of(seat.stage);
            *count = count.saturating_sub(1);
            if *counts == Counts::default() {
                self.by_address.remove(&seat.address);
            }
        }
        Some(seat)
    }

    fn oust(&mut self, number: u64) {
        if let Some(seat) = self.take(number) {
            seat.wake.out.notify_one();
            seat.wake.turn.notify_one();
        }
    }

    fn set_stage(&mut self, number: u64, stage: Stage) {
        if let Some(mut seat) = self.take(number) {
            seat.stage = stage;
            seat.pace.since = Instant::now();
            seat.wake.turn.notify_one();
            self.put(number, seat);
        }
    }

    fn at(&self, address: IpAddr) -> Counts {
        self.by_address.get(&address).copied().unwrap_or_default()
    }

    fn make_room_for_greeting(&mut self, address: IpAddr, limits: &Limits) {
        let oldest = if self.at(address).greeting >= limits.per_address {
            let here = |number: &&u64| self.seats.get(number).is_some_and(|seat| seat.address == address);
            self.greetings.iter().find(here).copied()
        } else if self.all.greeting >= limits.greetings {
            self.greetings.first().copied()
        } else {
            None
        };
        if let Some(number) = oldest {
            self.oust(number);
        }
    }

    /// The seats of a stage.
    fn staged(&self, stage: Stage) -> impl DoubleEndedIterator<Item = (u64, &Seat)> {
        self.seats.iter().filter(move |(_, seat)| seat.stage == stage).map(|(number, seat)| (*number, seat))
    }

    /// The address with the most seats of this stage, if it has at least two more than `here`.
    fn greediest(&self, stage: Stage, here: usize) -> Option<IpAddr> {
        let counts = self.by_address.iter().map(|(address, counts)| (*address, *counts.clone().of(stage)));
        let (address, most) = counts.max_by_key(|(_, count)| *count)?;
        (most >= here.saturating_add(2)).then_some(address)
    }

    /// Whose turn it is gets it.
    fn promote(&mut self, limits: &Limits, now: Instant) {
        loop {
            // The address with the fewest is first, and among those the one that came first.
            let first = self
                .staged(Stage::Waiting)
                .map(|(number, seat)| (self.at(seat.address).active, number))
                .min();
            let Some((here, number)) = first else { return };
            if self.all.active < limits.transfers.max(1) {
                self.set_stage(number, Stage::Active);
                continue;
            }
            let Some(out) = self.victim(here, now) else { return };
            self.oust(out);
        }
    }

    /// Who gives way to an address that has `here` transfers.
    fn victim(&self, here: usize, now: Instant) -> Option<u64> {
        let active = || self.staged(Stage::Active);
        if let Some(greedy) = self.greediest(Stage::Active, here) {
            let of_it = active().filter(|(_, seat)| seat.address == greedy);
            return of_it.min_by_key(|(_, seat)| (!seat.pace.is_slow(now), seat.pace.bytes)).map(|(n, _)| n);
        }
        let slow = active().filter(|(_, seat)| seat.pace.is_slow(now));
        slow.min_by_key(|(_, seat)| seat.pace.bytes.saturating_sub(seat.pace.before)).map(|(n, _)| n)
    }
}

impl Turn {
    /// Who asked.
    pub(super) fn peer(&self) -> SocketAddr {
        self.key.0
    }

    /// The client has answered: its address is its own.
    pub(super) fn answered(&self) -> Answered {
        let limits = &self.gate.limits;
        let address = self.peer().ip();
        let mut current = self.gate.lock();
        let Counts { waiting, active, .. } = current.at(address);
        let full = current.all.waiting >= limits.waiting && current.all.active >= limits.transfers.max(1);
        let refused = if waiting + active >= limits.per_address {
            Some("too many transfers to this address")
        } else if full {
            // The last of those that wait has waited for the shortest time.
            let greedy = current.greediest(Stage::Waiting, waiting);
            let last = greedy.and_then(|greedy| {
                current.staged(Stage::Waiting).rev().find(|(_, seat)| seat.address == greedy).map(|(n, _)| n)
            });
            last.map(|number| current.oust(number)).is_none().then_some("the server is busy, ask again later")
        } else {
            None
        };
        if let Some(text) = refused {
            self.gate.refused.fetch_add(1, Ordering::Relaxed);
            return Answered::Refused(text);
        }
        current.set_stage(self.number, Stage::Waiting);
        let before = current.staged(Stage::Waiting).take_while(|(number, _)| *number < self.number).count();
        current.promote(limits, Instant::now());
        match current.seats.get(&self.number).map(|seat| seat.stage) {
            Some(Stage::Active) => Answered::Begin,
            _ => Answered::Waits(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)),
        }
    }

    /// The client has so many bytes.
    pub(super) fn moved(&self, bytes: u64) {
        if let Some(seat) = self.gate.lock().seats.get_mut(&self.number) {
            seat.pace.note(bytes, Instant::now());
        }
    }

    fn stage(&self) -> Option<Stage> {
        self.gate.lock().seats.get(&self.number).map(|seat| seat.stage)
    }

    /// Waits for the turn; whether it came, or had to give way.
    pub(super) async fn granted(&self) -> bool {
        loop {
            match self.stage() {
                None => return false,
                Some(Stage::Active) => return true,
                Some(_) => {}
            }
            if timeout(LOOK, self.wake.turn.notified()).await.is_err() {
                self.gate.lock().promote(&self.gate.limits, Instant::now());
            }
        }
    }

    /// Waits until it has to give way.
    pub(super) async fn ousted(&self) {
        while self.stage().is_some() {
            self.wake.out.notified().await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut current = self.gate.lock();
        current.numbers.remove(&self.key);
        if current.take(self.number).is_some_and(|seat| seat.stage == Stage::Active) {
            current.promote(&self.gate.limits, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
