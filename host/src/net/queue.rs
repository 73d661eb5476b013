//! Slots for transfers: first come first served, and everybody knows their place.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::sys::lock::lock;

/// How often those who wait hear of another place at most: in a long line it changes for all of them whenever one of
/// them is served.
const NEWS: Duration = Duration::from_secs(1);

/// A number of slots; 0 means that there is no limit.
#[derive(Debug)]
pub struct FairQueue {
    slots: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    taken: usize,
    next: u64,
    /// By number: the first is the next.
    waiting: Vec<(u64, Arc<Notify>)>,
}

impl Line {
    fn place(&self, number: u64) -> usize {
        self.waiting.partition_point(|(other, _)| *other < number)
    }

    fn leave(&mut self, number: u64) -> bool {
        let at = self.place(number);
        let is_here = self.waiting.get(at).is_some_and(|(other, _)| *other == number);
        if is_here {
            self.waiting.remove(at);
        }
        is_here
    }

    /// Wakes those whose turn it is.
    fn wake(&self, slots: usize) {
        let free = if slots == 0 { usize::MAX } else { slots.saturating_sub(self.taken) };
        self.waiting.iter().take(free).for_each(|(_, wake)| wake.notify_one());
    }
}

/// A slot; it is free again when this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<FairQueue>);

/// A place in the line; it is given up when this is dropped.
#[derive(Debug)]
pub struct QueuePlace {
    slots: Arc<FairQueue>,
    number: u64,
    wake: Arc<Notify>,
}

impl FairQueue {
    /// So many slots.
    #[must_use]
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { slots: AtomicUsize::new(slots), line: Mutex::default() })
    }

    /// How many there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// From now on there are so many; nobody who has one loses it.
    pub fn set_slots(&self, slots: usize) {
        self.slots.store(slots, Ordering::Relaxed);
        self.lock().wake(slots);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// Goes to the end of the line.
    pub fn queue(self: &Arc<Self>) -> QueuePlace {
        let mut line = self.lock();
        let number = line.next;
        line.next += 1;
        let wake = Arc::new(Notify::new());
        line.waiting.push((number, Arc::clone(&wake)));
        QueuePlace { slots: Arc::clone(self), number, wake }
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
        let before = line.place(self.number);
        let slots = self.slots.slots();
        let free = slots == 0 || line.taken + before < slots;
        if !free {
            return Err(u32::try_from(before + 1).unwrap_or(u32::MAX));
        }
        line.taken += 1;
        line.leave(self.number);
        Ok(Permit(Arc::clone(&self.slots)))
    }

    /// Waits for a slot, or until the place in the line is another than `told` (0 at first), for a moment at least.
    ///
    /// # Errors
    /// The place, as in [`take`](Self::take).
    pub async fn turn(&self, told: u32) -> Result<Permit, u32> {
        let mut news = told == 0;
        loop {
            match self.take() {
                Err(place) if news && place != told => return Err(place),
                Err(_) => {}
                permit => return permit,
            }
            news = timeout(NEWS, self.wake.notified()).await.is_err();
        }
    }

    /// Gives the place up.
    pub fn leave(&self) {
        let mut line = self.slots.lock();
        if line.leave(self.number) {
            line.wake(self.slots.slots());
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
        line.wake(self.0.slots());
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

    #[tokio::test]
    async fn a_long_line_is_not_told_of_every_step() {
        let slots = FairQueue::new(1);
        let mut serving = Some(slots.queue().take().unwrap());
        let news = Arc::new(AtomicUsize::new(0));
        let line: Vec<_> = (0..300)
            .map(|_| {
                let (place, news) = (slots.queue(), Arc::clone(&news));
                tokio::spawn(async move {
                    let mut told = 0;
                    let _slot = loop {
                        match place.turn(told).await {
                            Ok(slot) => break slot,
                            Err(place) => told = place,
                        }
                        news.fetch_add(1, Ordering::Relaxed);
                    };
                    // A hundred are served each second.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                })
            })
            .collect();
        tokio::task::yield_now().await;
        serving.take();
        for one in line {
            one.await.unwrap();
        }
        let news = news.load(Ordering::Relaxed);
        assert!((300..1500).contains(&news), "{news}");
    }

    #[test]
    fn no_limit() {
        let slots = FairQueue::new(0);
        let all: Vec<_> = (0..100).map(|_| slots.queue().take().unwrap()).collect();
        assert_eq!(slots.taken(), all.len());
    }
}
