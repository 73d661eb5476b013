//! Who may have a connection when there are too many: limits in total and for each address.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::sys::lock::lock;

tokio::task_local! {
    /// The seat of the connection that this task serves.
    static SEAT: Arc<Seat>;
}

/// The peer of the connection that this task serves has sent or taken something.
pub fn moved() {
    // A connection that was never let in through a gate has no seat.
    let _ = SEAT.try_with(|seat| seat.moved());
}

/// Limits the connections of one listener, in total and for each address.
///
/// When it is full, the address with the most connections gives one up for an address that has at least two fewer:
/// the one that has been idle for longest.
#[derive(Debug)]
pub struct Gate {
    pub(super) name: &'static str,
    total: usize,
    per_address: usize,
    began: Instant,
    open: Mutex<Open>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, Vec<Arc<Seat>>>,
    said: Option<Instant>,
}

/// What is known of one connection.
#[derive(Debug)]
struct Seat {
    began: Instant,
    /// When its peer last sent or took something, in milliseconds since `began`.
    moved_ms: AtomicU64,
    leave: Notify,
}

impl Seat {
    fn moved(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }
}

/// The right to one connection; it ends when this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
    seat: Arc<Seat>,
}

impl Gate {
    /// A gate for the listener called `name`.
    #[must_use]
    pub fn new(name: &'static str, total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            total,
            per_address,
            began: Instant::now(),
            open: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Lets one more connection in, or not.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let mut open = self.lock();
        let here = open.by_address.get(&address).map_or(0, Vec::len);
        let room = here < self.per_address && (open.total < self.total || open.give_way(here));
        if room {
            let seat =
                Arc::new(Seat { began: self.began, moved_ms: AtomicU64::new(0), leave: Notify::new() });
            seat.moved();
            open.total += 1;
            open.by_address.entry(address).or_default().push(Arc::clone(&seat));
            return Some(Pass { gate: Arc::clone(self), address, seat });
        }
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // One line a second at most: whoever floods the port must not flood the log.
        if open.said.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            open.said = Some(Instant::now());
            let whose = if here < self.per_address { "in total" } else { "from this address" };
            tracing::warn!(
                "{}: {address} is refused: {} connections are open {whose} ({refused} refused so far)",
                self.name,
                if here < self.per_address { open.total } else { here }
            );
        }
        None
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().total
    }
}

impl Open {
    /// Makes room for an address that has `here` connections; whether that was possible.
    fn give_way(&mut self, here: usize) -> bool {
        // Every address has one at most: nobody is greedy, and nothing needs to be looked at.
        if self.by_address.len() >= self.total {
            return false;
        }
        let greediest = self.by_address.iter().max_by_key(|(_, seats)| seats.len());
        let Some((address, most)) = greediest.map(|(address, seats)| (*address, seats.len())) else {
            return false;
        };
        if most < here.saturating_add(2) {
            return false;
        }
        let Some(seats) = self.by_address.get_mut(&address) else { return false };
        let oldest = seats.iter().enumerate().min_by_key(|(_, seat)| seat.moved_ms.load(Ordering::Relaxed));
        let Some(at) = oldest.map(|(at, _)| at) else { return false };
        seats.swap_remove(at).leave.notify_one();
        self.total -= 1;
        true
    }

    /// The connection is over, unless it has given way before.
    fn remove(&mut self, address: IpAddr, seat: &Arc<Seat>) {
        let Some(seats) = self.by_address.get_mut(&address) else { return };
        if let Some(at) = seats.iter().position(|other| Arc::ptr_eq(other, seat)) {
            seats.swap_remove(at);
            self.total = self.total.saturating_sub(1);
        }
        if seats.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

impl Pass {
    /// Serves the connection until that is done, or until it has to give way to another one.
    pub async fn serve(self, serving: impl Future<Output = ()>) {
        self.hold(serving).await;
    }

    /// As [`serve`](Self::serve), with the connection still counted afterwards.
    pub async fn hold(&self, serving: impl Future<Output = ()>) {
        let seat = Arc::clone(&self.seat);
        tokio::select! {
            () = SEAT.scope(seat, serving) => {}
            () = self.seat.leave.notified() => {
                tracing::debug!("{}: {}: closed for an address with fewer connections", self.gate.name, self.address);
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().remove(self.address, &self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn limits_in_total_and_by_address() {
        let gate = Gate::new("control", 3, 2);
        let (a, b) = (address(1), address(2));
        let first = gate.enter(a).unwrap();
        let _second = gate.enter(a).unwrap();
        assert!(gate.enter(a).is_none());
        let _third = gate.enter(b).unwrap();
        assert!(gate.enter(b).is_none(), "it would have as many as the other one now");
        drop(first);
        assert!(gate.enter(b).is_some());
        assert_eq!(gate.open(), 2);
    }

    #[tokio::test]
    async fn the_idlest_of_the_greediest_gives_way() {
        let gate = Gate::new("control", 64, 32);
        let mut greedy = Vec::new();
        for n in [1, 2] {
            for _ in 0..32 {
                greedy.push(gate.enter(address(n)).unwrap());
            }
        }
        greedy.iter().for_each(|pass| pass.seat.moved_ms.store(1000, Ordering::Relaxed));
        greedy[40].seat.moved_ms.store(10, Ordering::Relaxed);
        greedy[7].seat.moved_ms.store(20, Ordering::Relaxed);
        // One of each of the two goes, and each time the idlest of it.
        let _others = [gate.enter(address(3)).unwrap(), gate.enter(address(4)).unwrap()];
        assert_eq!(gate.open(), 64);
        for pass in [greedy.remove(40), greedy.remove(7)] {
            pass.serve(std::future::pending()).await;
        }
        assert_eq!(gate.open(), 64, "they were not counted any more");
        assert!(gate.enter(address(1)).is_none(), "the greedy one gets nothing by this");
        // All others get one, whoever holds the rest.
        let rest: Vec<_> = (5..65).map(|n| gate.enter(address(n)).unwrap()).collect();
        assert!(gate.enter(address(99)).is_none(), "each has one");
        drop((greedy, rest));
        assert_eq!(gate.open(), 2);
    }

    #[tokio::test]
    async fn whoever_moves_is_not_idle() {
        let gate = Gate::new("control", 2, 2);
        let [quiet, busy] = [(); 2].map(|()| gate.enter(address(1)).unwrap());
        std::thread::sleep(Duration::from_millis(5));
        let (seat, idle) = (Arc::clone(&busy.seat), Arc::clone(&quiet.seat));
        busy.serve(async { moved() }).await;
        assert!(seat.moved_ms.load(Ordering::Relaxed) > idle.moved_ms.load(Ordering::Relaxed));
    }
}
