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
    /// Until the first byte, from the beginning of the connection.
    pub first_byte: Duration,
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
    began: Instant,
    deadline: Instant,
    heard: &'a TalkState,
    ended: bool,
    /// It has sent something.
    said: bool,
}

impl<'a> Timed<'a> {
    /// Whoever hears the reports says so to `heard`.
    #[must_use]
    pub fn new(stream: TcpStream, timeouts: &'a Timeouts, heard: &'a TalkState) -> Self {
        let began = Instant::now();
        Self {
            stream: FromTokio::new(Living::new(stream)),
            timeouts,
            began,
            deadline: began + timeouts.first_byte,
            heard,
            ended: false,
            said: false,
        }
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
        let read =
            timeout_at(self.deadline, self.stream.read(buf)).await.unwrap_or_else(|_| Err(silent()))?;
        if !std::mem::replace(&mut self.said, true) {
            self.deadline = self.began + self.timeouts.first_report;
        }
        Ok(read)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_says_nothing_at_all_has_little_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let timeouts = Timeouts {
            first_byte: Duration::from_millis(200),
            first_report: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(60),
        };
        let ends = async |says: &'static [u8]| {
            let mut client = TcpStream::connect(address).await.unwrap();
            let (served, _) = listener.accept().await.unwrap();
            let (began, heard) = (Instant::now(), TalkState::default());
            let mut timed = Timed::new(served, &timeouts, &heard);
            tokio::io::AsyncWriteExt::write_all(&mut client, says).await.unwrap();
            let error = loop {
                if let Err(e) = timed.read(&mut [0; 16]).await {
                    break e;
                }
            };
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            began.elapsed()
        };
        assert!(ends(b"").await < timeouts.first_report);
        assert!(ends(b"no report").await >= timeouts.first_report);
    }
}
