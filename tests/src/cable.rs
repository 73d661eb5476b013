//! Two serial ports and a bad cable between them: pseudo-terminals, and a thread that carries bytes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::chance::Random;

/// How bad a cable is: one in so many bytes; 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Are lost.
    pub lost: u64,
    /// Have one bit turned.
    pub flipped: u64,
}

/// A cable; what it has carried is lost with it.
#[derive(Debug)]
pub struct Cable {
    /// The devices at its ends.
    pub ends: [PathBuf; 2],
    /// Held so that a port without a program is not hung up.
    _held: [File; 2],
    pulled: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Cable {
    /// A cable with these faults, the same ones each time.
    ///
    /// # Panics
    /// If there are no pseudo-terminals.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        let (a, a_path, a_held) = port();
        let (b, b_path, b_held) = port();
        let (pulled, carried, stop) = (Arc::default(), Arc::default(), Arc::default());
        let copy = |fd: &OwnedFd| File::from(fd.try_clone().expect("a second handle"));
        for (from, to, seed) in [(copy(&a), copy(&b), 1), (b.into(), a.into(), 2)] {
            let (pulled, carried, stop) = (Arc::clone(&pulled), Arc::clone(&carried), Arc::clone(&stop));
            thread::spawn(move || carry(from, to, faults, seed, &pulled, &carried, &stop));
        }
        Self { ends: [a_path, b_path], _held: [a_held, b_held], pulled, carried, stop }
    }

    /// Nothing gets through, or everything again.
    pub fn pull(&self, pulled: bool) {
        self.pulled.store(pulled, Ordering::Relaxed);
    }

    /// How many bytes it has carried, both ways together.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The side of the cable, and the device.
fn port() -> (OwnedFd, PathBuf, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
    let name = ptsname(&master, Vec::new()).expect("it has a name");
    let path = PathBuf::from(name.to_str().expect("a plain name"));
    let held = File::options().read(true).write(true).open(&path).expect("the device");
    // Nothing is echoed before a program has opened it.
    let mut settings = tcgetattr(&held).expect("a terminal");
    settings.make_raw();
    tcsetattr(&held, OptionalActions::Now, &settings).expect("a terminal");
    (master, path, held)
}

fn carry(
    mut from: File,
    mut to: File,
    faults: Faults,
    seed: u64,
    pulled: &AtomicBool,
    carried: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut random = Random::new(seed);
    let mut buf = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        let n = match from.read(&mut buf) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        carried.fetch_add(n as u64, Ordering::Relaxed);
        if pulled.load(Ordering::Relaxed) {
            continue;
        }
        let mut out = Vec::with_capacity(n);
        for (i, byte) in buf[..n].iter().enumerate() {
            if !random.one_in(faults.lost) {
                out.push(if random.one_in(faults.flipped) { byte ^ 1 << (i % 8) } else { *byte });
            }
        }
        // A line of about 10 Mbit/s: fast for a test, and never in one piece.
        thread::sleep(Duration::from_micros(n as u64));
        if to.write_all(&out).is_err() {
            return;
        }
    }
}
