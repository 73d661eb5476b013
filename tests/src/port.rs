//! A port for a server that is ended and started again.

use std::net::TcpListener;
use std::process;

/// A port that is free, and that the system gives to no client as its own meanwhile: a client
/// that dials a server which is away could otherwise get the server's port, and meet itself.
///
/// # Panics
/// If there is none.
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
    let first = u16::try_from(process::id() % 10_000).expect("it is below 10,000");
    let free = |n: u16| TcpListener::bind(("127.0.0.1", 20_000 + (first + n * 7) % 12_000)).ok();
    // All are held until there are enough.
    let listeners: Vec<TcpListener> = (0..1000).filter_map(free).take(N).collect();
    std::array::from_fn(|n| {
        let listener = listeners.get(n).expect("one of a thousand ports is free");
        listener.local_addr().expect("it is bound").port()
    })
}
