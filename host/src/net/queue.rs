//! Slots for transfers: first come first served, and everybody knows their place.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::sys::lock::lock;

/// A number of slots; 0 means that there is no limit.
#[derive(Debug)]
pub struct FairQueue {
    slots: AtomicUsize,
    line: Mutex<Line>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Line {
    taken: usize,
    next: u64,
    waiting: BTreeSet<u64>,
}

/// A slot; it is free again when this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<FairQueue>);

/// A place in the line; it is given up when this is dropped.
#[derive(Debug)]
pub struct QueuePlace {
    slots: Arc<FairQueue>,
    number: u64,
}

impl FairQueue {
    /// So many slots.
    #[must_use]
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { slots: AtomicUsize::new(slots), line: Mutex::default(), moved: Notify::new() })
    }

    /// How many there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// From now on there are so many; nobody who has one loses it.
    pub fn set_slots(&self, slots: usize) {
        self.slots.store(slots, Ordering::Relaxed);
        self.moved.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// Goes to the end of the line.
    pub fn queue(self: &Arc<Self>) -> QueuePlace {
        let mut line = self.lock();
        let number = line.next;
        line.next += 1;
        line.waiting.insert(number);
        QueuePlace { slots: Arc::clone(self), number }
    }

    /// How many wait for one.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// How many transfers have a slot.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().taken
    }
}

impl QueuePlace {
    /// Takes a slot, if it is this one's turn; else how many are before it.
    ///
    /// # Errors
    /// The place in the line: so many others, waiting or being served in the slot that this
    /// one needs, are first (1 at least).
    pub fn take(&self) -> Result<Permit, u32> {
        let mut line = self.slots.lock();
        let before = line.waiting.range(..self.number).count();
        let slots = self.slots.slots();
        let free = slots == 0 || line.taken + before < slots;
        if !free {
            return Err(u32::try_from(before + 1).unwrap_or(u32::MAX));
        }
        line.taken += 1;
        line.waiting.remove(&self.number);
        let others = !line.waiting.is_empty();
        drop(line);
        if others {
            self.slots.moved.notify_waiters();
        }
        Ok(Permit(Arc::clone(&self.slots)))
    }

    /// Waits for a slot, or until the place in the line is another than `told` (0 at first).
    ///
    /// # Errors
    /// The place, as in [`take`](Self::take).
    pub async fn turn(&self, told: u32) -> Result<Permit, u32> {
        loop {
            let moved = self.slots.moved.notified();
            let mut moved = std::pin::pin!(moved);
            // From here on no move is missed.
            moved.as_mut().enable();
            match self.take() {
                Err(place) if place == told => moved.await,
                turn => return turn,
            }
        }
    }
}

impl QueuePlace {
    /// Gives the place up.
    pub fn leave(&self) {
        if self.slots.lock().waiting.remove(&self.number) {
            self.slots.moved.notify_waiters();
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut line = self.0.lock();
        line.taken = line.taken.saturating_sub(1);
        drop(line);
        self.0.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served() {
        let slots = FairQueue::new(2);
        let [a, b, c, d] = [0; 4].map(|_| slots.queue());
        assert_eq!(c.take().unwrap_err(), 3);
        let first = a.take().unwrap();
        let _second = b.take().unwrap();
        assert_eq!((c.take().unwrap_err(), d.take().unwrap_err()), (1, 2));
        drop(first);
        assert_eq!(d.take().unwrap_err(), 2, "another was first");
        drop(c);
        let _third = d.take().unwrap();
        assert_eq!((slots.taken(), slots.waiting()), (2, 0));
    }

    #[tokio::test]
    async fn those_who_wait_are_told_their_place() {
        let slots = FairQueue::new(1);
        let first = slots.queue().take().unwrap();
        let (second, third) = (slots.queue(), slots.queue());
        assert_eq!(third.turn(0).await.unwrap_err(), 2);
        let (place, ()) = tokio::join!(third.turn(2), async { drop(second) });
        assert_eq!(place.unwrap_err(), 1);
        let (turn, ()) = tokio::join!(third.turn(1), async { drop(first) });
        drop(turn.unwrap());
        assert_eq!(slots.taken(), 0);
    }

    #[test]
    fn no_limit() {
        let slots = FairQueue::new(0);
        let all: Vec<_> = (0..100).map(|_| slots.queue().take().unwrap()).collect();
        assert_eq!(slots.taken(), all.len());
    }
}
