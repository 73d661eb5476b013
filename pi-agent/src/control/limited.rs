//! The stream of a control connection, with deadlines.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A stream on which everything together has to happen before a deadline: a server that
/// sends a byte a second does not hold the Pi for ever.
#[derive(Debug)]
pub(super) struct Limited {
    pub(super) stream: TcpStream,
    pub(super) until: Instant,
    /// What counts until the server has shown that it understands our lines.
    pub(super) unheard: Option<Unanswered>,
}

/// The deadlines of a server that has been greeted.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// It has shown that it understands.
    pub(super) heard: Arc<AtomicBool>,
    /// For the answer to the greeting; a read fails once at this moment.
    pub(super) answer: Option<Instant>,
    /// For the decision.
    pub(super) decision: Instant,
}

impl Limited {
    /// When a read has to be over.
    fn read_until(&mut self) -> Instant {
        match &mut self.unheard {
            Some(unheard) if !unheard.heard.load(Ordering::Relaxed) => match unheard.answer {
                Some(answer) if answer <= Instant::now() => {
                    unheard.answer = None;
                    answer
                }
                Some(answer) => answer,
                None => unheard.decision,
            },
            _ => self.until,
        }
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn in_time<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => late(),
        _ => e,
    })
}

pub(super) fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the server did not answer in time")
}

impl io::Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let until = self.read_until();
        self.stream.set_read_timeout(Some(left(until)?))?;
        let read = in_time(io::Read::read(&mut self.stream, buf));
        if read.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::TimedOut)
            && let Some(unheard) = &mut self.unheard
        {
            // It is said once that the answer is late.
            unheard.answer = None;
        }
        read
    }
}

impl io::Write for Limited {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.until)?))?;
        in_time(io::Write::write(&mut self.stream, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut self.stream)
    }
}

/// How many bytes were written and not acknowledged by the other end's machine.
#[expect(
    unsafe_code,
    reason = "SIOCOUTQ and its argument's type are promised to rustix here, from linux/sockios.h"
)]
pub(super) fn unsent(stream: &TcpStream) -> io::Result<i32> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: SIOCOUTQ writes one int.
    Ok(unsafe { rustix::ioctl::ioctl(stream, rustix::ioctl::Getter::<SIOCOUTQ, i32>::new()) }?)
}
