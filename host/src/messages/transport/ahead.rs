//! A tokio stream as the core's drivers want it, which can also wait for the peer without reading
//! past what is wanted, and which gives up on a peer that stands still.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Duration;

use embedded_io_async::{ErrorType, Read, Write};
use piman_core::messages::{QUIET_MS, Timer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// A stream that can look ahead by one byte.
#[derive(Debug)]
pub(crate) struct Ahead<S> {
    stream: S,
    first: Option<u8>,
    stall: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Ahead<S> {
    /// `stall` is how long one read or write may take while a message is under way.
    pub(crate) fn new(stream: S, stall: Duration) -> Self {
        Self { stream, first: None, stall }
    }

    /// Waits, for ever, until the peer says something or closes; returns the first byte of what
    /// it says, which is also read by the next read. Loses nothing when it is cancelled.
    ///
    /// # Errors
    /// If the connection fails.
    pub(crate) async fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.first.is_none() {
            let mut byte = [0];
            self.first = (self.stream.read(&mut byte).await? > 0).then_some(byte[0]);
        }
        Ok(self.first)
    }

    /// The stream itself; a byte that was peeked at is not in it any more.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// Says that nothing more is sent, for as long as a peer may take to hear it.
    pub(crate) async fn finish(&mut self) {
        // The peer may have gone before; then there is nobody to tell.
        let _ = timeout(LINGER, self.stream.shutdown()).await;
    }

    /// Ends the connection so that the peer gets all that was sent: a close with bytes unread
    /// would be a reset, which overtakes them.
    pub(crate) async fn close(&mut self) {
        let drain = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 4096];
            while self.stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        // The peer may have gone before; then there is nothing to save.
        let _ = timeout(LINGER, drain).await;
    }
}

impl<S: AsFd> Ahead<S> {
    /// Whether the peer has said something, or closed, already. The kernel is asked: the runtime learns of it
    /// a moment later.
    pub(crate) fn has_input(&self) -> bool {
        let mut asked = [PollFd::new(&self.stream, PollFlags::IN)];
        // What cannot be asked fails when it is read.
        self.first.is_some() || poll(&mut asked, Some(&Timespec::default())) != Ok(0)
    }
}

/// How long a closed connection waits for the peer to close too.
const LINGER: Duration = Duration::from_secs(1);

impl<S> ErrorType for Ahead<S> {
    type Error = io::Error;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Ahead<S> {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let (Some(byte), Some(place)) = (self.first, buf.first_mut()) {
            *place = byte;
            self.first = None;
            return Ok(1);
        }
        timeout(self.stall, self.stream.read(buf)).await.unwrap_or_else(|_| Err(stalled()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Ahead<S> {
    async fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        timeout(self.stall, self.stream.write(buf)).await.unwrap_or_else(|_| Err(stalled()))
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(self.stall, self.stream.flush()).await.unwrap_or_else(|_| Err(stalled()))
    }
}

fn stalled() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the peer stands still")
}

/// The clock of a frames talk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock;

impl Timer for Clock {
    async fn quiet(&mut self) {
        tokio::time::sleep(Duration::from_millis(QUIET_MS.into())).await;
    }
}
