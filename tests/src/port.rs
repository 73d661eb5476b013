//! A port for a server that is ended and started again.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that is free, and that the system gives to no client as its own meanwhile: a client
/// that dials a server which is away could otherwise get the server's port, and meet itself.
/// No other call in this process gets it.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn steady() -> u16 {
    let [port] = several();
    port
}

/// Several such ports.
///
/// # Panics
/// If there are not so many.
#[must_use]
pub fn several<const N: usize>() -> [u16; N] {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Below what the system gives to clients; programs that run at once begin at different places.
    let candidate = || (process::id() + TRIED.fetch_add(1, Ordering::Relaxed) * 7) % 12_000 + 20_000;
    let candidates = (0..1000).filter_map(|_| u16::try_from(candidate()).ok());
    let mut free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    std::array::from_fn(|_| free.next().expect("one of a thousand ports is free"))
}
