//! A proxy between two sides that stammers: pieces of random size, random delays, lines that break.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Forwards to `server` from a port of its own, which is returned. With `cut`, each connection
/// breaks after about so many bytes in both directions together.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn stammer(server: SocketAddr, seed: u64, cut: Option<i64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let Ok(server) = TcpStream::connect(server) else { continue };
            let left = Arc::new(AtomicI64::new(cut.unwrap_or(i64::MAX)));
            let seed = seed.wrapping_add(n as u64 * 2);
            for (from, to, seed) in [(&client, &server, seed), (&server, &client, seed + 1)] {
                if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                    let left = left.clone();
                    thread::spawn(move || forward(from, to, seed, &left));
                }
            }
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, seed: u64, left: &AtomicI64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let _ = to.set_nodelay(true);
    let mut buf = [0; 20_000];
    loop {
        let most = if next(3) == 0 { 1 + next(3) } else { 1 + next(buf.len() as u64 - 1) };
        let n = match from.read(&mut buf[..most as usize]) {
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => n,
        };
        if next(4) == 0 {
            thread::sleep(Duration::from_micros(next(3000)));
        }
        let cut = left.fetch_sub(n as i64, Ordering::Relaxed) < n as i64;
        if cut || to.write_all(&buf[..n]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// A proxy that does something to the bytes from the server, at places counted over all of its
/// connections.
#[derive(Debug, Clone)]
pub struct Tampering {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    /// Cuts that were made.
    cuts: Arc<AtomicU64>,
}

/// What a proxy does to the stream.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Breaks the connection before the byte with this number, in ascending order.
    pub cuts: Vec<u64>,
    /// Flips a bit of the byte with this number.
    pub flips: Vec<u64>,
    /// Bytes per second at most; 0: as fast as it goes.
    pub bytes_per_second: u64,
}

impl Tampering {
    /// Forwards from `listen` to `server`.
    ///
    /// # Panics
    /// If the address cannot be bound.
    #[must_use]
    pub fn new(listen: SocketAddr, server: SocketAddr, faults: Faults) -> Self {
        let listener = TcpListener::bind(listen).expect("the address is free");
        let proxy = Self {
            address: listener.local_addr().expect("its address"),
            sent: Arc::default(),
            connections: Arc::default(),
            cuts: Arc::default(),
        };
        let (own, faults) = (proxy.clone(), Arc::new(faults));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                own.connections.fetch_add(1, Ordering::Relaxed);
                // A server that is away refuses: so does the proxy, as far as it can.
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                thread::spawn(move || {
                    let _ = io::copy(&mut &from, &mut &to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let (own, faults) = (own.clone(), Arc::clone(&faults));
                thread::spawn(move || own.forward(&server, &client, &faults));
            }
        });
        proxy
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes forwarded from the server so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Cuts that were made so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    fn forward(&self, mut from: &TcpStream, mut to: &TcpStream, faults: &Faults) {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            let at = self.sent.load(Ordering::SeqCst);
            let next = faults.cuts.get(self.cuts.load(Ordering::SeqCst) as usize);
            let cut = next.and_then(|cut| usize::try_from(cut.checked_sub(at)?).ok()).filter(|cut| *cut < n);
            let end = cut.unwrap_or(n);
            for flip in &faults.flips {
                if let Some(byte) = flip.checked_sub(at).and_then(|i| buf[..end].get_mut(i as usize)) {
                    *byte ^= 0x10;
                }
            }
            self.sent.fetch_add(end as u64, Ordering::SeqCst);
            self.cuts.fetch_add(u64::from(cut.is_some()), Ordering::SeqCst);
            if to.write_all(&buf[..end]).is_err() || cut.is_some() {
                break;
            }
            if let Some(nanos) = (n as u64 * 1_000_000_000).checked_div(faults.bytes_per_second) {
                thread::sleep(Duration::from_nanos(nanos));
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// A way to a server that is closed until it is opened: connections are taken, and what they say is
/// kept until then.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Takes connections on `listener` for `server`; in the network namespace of the calling thread.
    #[must_use]
    pub fn new(listener: TcpListener, server: SocketAddr) -> Self {
        let gate = Self::default();
        let closed = gate.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let closed = closed.clone();
                thread::spawn(move || closed.let_through(&client, server));
            }
        });
        gate
    }

    /// Lets everything through, from now on.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn let_through(&self, client: &TcpStream, server: SocketAddr) {
        let is_open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(is_open, |open| !*open));
        let Ok(server) = TcpStream::connect(server) else { return };
        for (from, to) in [(client, &server), (&server, client)] {
            let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}
