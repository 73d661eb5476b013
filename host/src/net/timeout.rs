//! Timeouts as a decorator around a tokio stream.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::net::socket::Living;
use embedded_io_adapters::tokio_1::FromTokio;
use embedded_io_async::{ErrorType, Read, Write};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a control connection may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the first report, from the beginning of the connection.
    pub first_report: Duration,
    /// Between two reads after it.
    pub idle: Duration,
    /// For one write.
    pub write: Duration,
}

/// How far a Pi's reports are, as whoever hears them says.
#[derive(Debug, Default)]
pub struct TalkState {
    reported: AtomicBool,
    ended: AtomicBool,
}

impl TalkState {
    /// A report that counts has come.
    pub fn report(&self) {
        self.reported.store(true, Ordering::Relaxed);
    }

    /// The last report that counts has come: from now on the Pi has the time of one pause for all that it still
    /// sends.
    pub fn end(&self) {
        self.report();
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A stream that fails with `TimedOut` when its peer is too slow.
pub struct Timed<'a> {
    stream: FromTokio<Living>,
    timeouts: &'a Timeouts,
    deadline: Instant,
    heard: &'a TalkState,
    ended: bool,
}

impl<'a> Timed<'a> {
    /// Whoever hears the reports says so to `heard`.
    #[must_use]
    pub fn new(stream: TcpStream, timeouts: &'a Timeouts, heard: &'a TalkState) -> Self {
        let deadline = Instant::now() + timeouts.first_report;
        Self { stream: FromTokio::new(Living::new(stream)), timeouts, deadline, heard, ended: false }
    }
}

impl ErrorType for Timed<'_> {
    type Error = io::Error;
}

impl Read for Timed<'_> {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.heard.reported.load(Ordering::Relaxed) && !self.ended {
            self.deadline = Instant::now() + self.timeouts.idle;
            self.ended = self.heard.ended.load(Ordering::Relaxed);
        }
        timeout_at(self.deadline, self.stream.read(buf)).await.unwrap_or_else(|_| Err(silent()))
    }
}

impl Write for Timed<'_> {
    async fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        timeout(self.timeouts.write, self.stream.write(buf)).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().await
    }
}

fn silent() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the peer was silent for too long")
}
