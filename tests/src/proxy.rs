//! A proxy between two sides that stammers: pieces of random size, random delays, lines that break.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::chance::Random;

/// Forwards to `server` from a port of its own, which is returned. With `cut`, each connection
/// breaks after about so many bytes in both directions together.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn stammer(server: SocketAddr, seed: u64, cut: Option<i64>) -> SocketAddr {
    stammer_with(server, seed, cut, Stammer { one_in: 4, ..QUICK })
}

/// The same, some four megabytes a second: there is time to be in the middle of something.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn stammer_slowly(server: SocketAddr, seed: u64) -> SocketAddr {
    stammer_with(server, seed, None, QUICK)
}

/// How a proxy stammers.
#[derive(Debug, Clone, Copy)]
pub struct Stammer {
    /// The largest piece, in bytes; a third of them have one to three.
    pub piece: usize,
    /// The longest pause.
    pub pause: Duration,
    /// After one piece in so many there is one.
    pub one_in: u64,
}

const QUICK: Stammer = Stammer { piece: 20_000, pause: Duration::from_millis(3), one_in: 1 };

/// The same, in a way of its own.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn stammer_as(server: SocketAddr, seed: u64, how: Stammer) -> SocketAddr {
    stammer_with(server, seed, None, how)
}

fn stammer_with(server: SocketAddr, seed: u64, cut: Option<i64>, how: Stammer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    // What is in buffers when something is killed is little.
    set_socket_recv_buffer_size(&listener, 64 << 10).expect("a buffer");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let Ok(server) = TcpStream::connect(server) else { continue };
            set_socket_send_buffer_size(&server, 64 << 10).expect("a buffer");
            let left = Arc::new(AtomicI64::new(cut.unwrap_or(i64::MAX)));
            let seed = seed.wrapping_add(n as u64 * 2);
            for (from, to, seed) in [(&client, &server, seed), (&server, &client, seed + 1)] {
                if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                    let left = left.clone();
                    thread::spawn(move || forward(from, to, seed, how, &left));
                }
            }
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, seed: u64, how: Stammer, left: &AtomicI64) {
    let mut random = Random::new(seed);
    let mut next = move |below: u64| random.below(below);
    let _ = to.set_nodelay(true);
    let mut buf = vec![0; how.piece];
    let pause = u64::try_from(how.pause.as_micros()).unwrap_or(u64::MAX);
    loop {
        let most = if next(3) == 0 { 1 + next(3) } else { 1 + next(buf.len() as u64) };
        let n = match from.read(&mut buf[..most as usize]) {
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => n,
        };
        if next(how.one_in) == 0 {
            thread::sleep(Duration::from_micros(next(pause)));
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
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Bytes from the server.
    sent: u64,
    connections: u64,
    /// Cuts that were made.
    cuts: usize,
    /// Holds that are over.
    holds: usize,
    /// Connections that are held.
    held: usize,
}

/// What a proxy does to the stream.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Breaks the connection before the byte with this number, in ascending order.
    pub cuts: Vec<u64>,
    /// Keeps the byte with this number and all behind it back until the client has gone, in
    /// ascending order.
    pub holds: Vec<u64>,
    /// Flips a bit of the byte with this number.
    pub flips: Vec<u64>,
    /// Bytes per second at most; 0: as fast as it goes.
    pub bytes_per_second: u64,
}

/// What becomes of a connection behind a piece.
#[derive(PartialEq)]
enum Then {
    GoOn,
    Cut,
    Hold(usize),
}

impl Tampering {
    /// Forwards from `listen` to `server`.
    ///
    /// # Panics
    /// If the address cannot be bound.
    #[must_use]
    pub fn new(listen: SocketAddr, server: SocketAddr, faults: Faults) -> Self {
        let listener = TcpListener::bind(listen).expect("the address is free");
        let proxy = Self { address: listener.local_addr().expect("its address"), counts: Arc::default() };
        let (own, faults) = (proxy.clone(), Arc::new(faults));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                own.counts().connections += 1;
                // A server that is away refuses: so does the proxy, as far as it can.
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                let (here, gone) = mpsc::channel();
                thread::spawn(move || {
                    let _ = io::copy(&mut &from, &mut &to);
                    let _ = to.shutdown(Shutdown::Write);
                    drop::<mpsc::Sender<()>>(here);
                });
                let (own, faults) = (own.clone(), Arc::clone(&faults));
                thread::spawn(move || own.forward(&server, &client, &faults, &gone));
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
        self.counts().sent
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts().connections
    }

    /// Cuts that were made so far.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.counts().cuts
    }

    /// Connections that are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.counts().held
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does to a piece what is to be done; returns how much of it is sent, and what then.
    fn tamper(&self, piece: &mut [u8], faults: &Faults) -> (usize, Then) {
        let mut counts = self.counts();
        let before = |place: Option<&u64>| {
            let ahead = usize::try_from(place?.checked_sub(counts.sent)?).ok()?;
            (ahead < piece.len()).then_some(ahead)
        };
        let cut = before(faults.cuts.get(counts.cuts)).map(|end| (end, Then::Cut));
        let hold = before(faults.holds.get(counts.holds)).map(|end| (end, Then::Hold(counts.holds)));
        let first = cut.into_iter().chain(hold).min_by_key(|(end, _)| *end);
        let (end, then) = first.unwrap_or((piece.len(), Then::GoOn));
        for flip in &faults.flips {
            let ahead = flip.checked_sub(counts.sent).and_then(|i| usize::try_from(i).ok());
            if let Some(byte) = ahead.and_then(|i| piece[..end].get_mut(i)) {
                *byte ^= 0x10;
            }
        }
        counts.sent += end as u64;
        counts.cuts += usize::from(then == Then::Cut);
        (end, then)
    }

    fn forward(&self, mut from: &TcpStream, mut to: &TcpStream, faults: &Faults, gone: &mpsc::Receiver<()>) {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            let (end, then) = self.tamper(&mut buf[..n], faults);
            if to.write_all(&buf[..end]).is_err() || then == Then::Cut {
                break;
            }
            if let Then::Hold(number) = then {
                self.counts().held += 1;
                // It says nothing, it only goes.
                let _ = gone.recv();
                let mut counts = self.counts();
                counts.held -= 1;
                counts.holds = counts.holds.max(number + 1);
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

/// A way to a server that can be shut: connections break then, and new ones are refused until it is opened again.
#[derive(Debug)]
pub struct Door {
    listen: SocketAddr,
    server: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
}

impl Door {
    /// An open one at this address.
    ///
    /// # Panics
    /// If the address is taken.
    #[must_use]
    pub fn new(listen: SocketAddr, server: SocketAddr) -> Self {
        let mut door = Self { listen, server, open: Arc::default(), accepting: None };
        door.open();
        door
    }

    /// Lets through again.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn open(&mut self) {
        let listener = TcpListener::bind(self.listen).expect("the door's address");
        let shut = Arc::<AtomicBool>::default();
        let (stop, streams, server) = (Arc::clone(&shut), Arc::clone(&self.open), self.server);
        let thread = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
                streams.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        self.accepting = Some((shut, thread));
    }

    /// Breaks what is open, and refuses what comes.
    pub fn shut(&mut self) {
        let Some((shut, thread)) = self.accepting.take() else { return };
        shut.store(true, Ordering::Relaxed);
        // So that it looks.
        drop(TcpStream::connect(self.listen));
        let _ = thread.join();
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
