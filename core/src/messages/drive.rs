//! The driver of a frames talk over any byte stream with `embedded_io_async`'s traits.
//! Time-outs belong to the stream, except the one that the protocol itself needs.

use core::fmt;
use core::future::{Future, poll_fn};
use core::ops::Range;
use core::pin::pin;
use core::task::Poll;

use embedded_io_async::{Error as _, ErrorKind, Read, Write};

use super::link::{Link, NotNow, Piece, Role, Step};
use super::{GO, SIZE_MAX};
use crate::error::{Error, PeerError};
use crate::stream::put;

/// Where messages from the peer go, part by part.
pub trait MessageSink {
    /// Takes one part. A message of size 0 is one empty part.
    fn piece(&mut self, piece: Piece<'_>) -> impl Future<Output = ()>;
}

/// The bytes of a message to be sent.
pub trait Body {
    /// The next bytes of the message, at least one; empty if there are no more.
    fn piece(&mut self) -> impl Future<Output = &[u8]>;
}

impl Body for &[u8] {
    async fn piece(&mut self) -> &[u8] {
        core::mem::take(self)
    }
}

/// The clock of the driver.
pub trait Timer {
    /// Whether it is one; `false` for [`Timeless`].
    const TELLS_TIME: bool = true;

    /// Returns after [`QUIET_MS`](super::QUIET_MS).
    fn quiet(&mut self) -> impl Future<Output = ()>;
}

/// No clock. A refusal by the code 0 then shows only when the stream's own read times out with
/// [`TimedOut`](embedded_io_async::ErrorKind::TimedOut).
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Timeless;

impl Timer for Timeless {
    const TELLS_TIME: bool = false;

    async fn quiet(&mut self) {
        core::future::pending().await
    }
}

/// Why a message was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SendError<E> {
    /// The connection is lost.
    Link(Error<E>),
    /// The peer does not want the message: the code is [`TOO_LARGE`](super::TOO_LARGE) or its
    /// own. The connection lives on.
    Rejected(u8),
    /// The message is larger than the protocol allows; nothing was sent.
    TooLarge,
    /// The body had fewer bytes than its size said. The connection must be closed.
    Short,
}

impl<E> From<Error<E>> for SendError<E> {
    fn from(e: Error<E>) -> Self {
        Self::Link(e)
    }
}

impl<E: fmt::Display> fmt::Display for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(e) => e.fmt(f),
            Self::Rejected(super::TOO_LARGE) => f.write_str("the message is larger than the peer takes"),
            Self::Rejected(code) => write!(f, "the peer does not want the message (code {code:#04x})"),
            Self::TooLarge => write!(f, "the message is larger than {SIZE_MAX} bytes"),
            Self::Short => f.write_str("the message ended before the size that was announced"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for SendError<E> {}

/// One side of a frames talk over a stream.
#[derive(Debug)]
pub struct MessageStream<'b, T, C> {
    io: T,
    timer: C,
    link: Link,
    buf: &'b mut [u8],
    /// What was read and is not used yet.
    unused: Range<usize>,
}

/// Whatever the stream and the timer are.
#[cfg(feature = "defmt")]
impl<T, C> defmt::Format for MessageStream<'_, T, C> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "MessageStream({}, {} bytes unread)", self.link, self.unused.len())
    }
}

/// What the link says to what was read and is not used yet.
fn next_step<'b>(link: &mut Link, buf: &'b [u8], unused: &mut Range<usize>) -> Step<'b> {
    let mut input = buf.get(unused.clone()).unwrap_or_default();
    let before = input.len();
    let step = link.handle(&mut input);
    unused.start += before - input.len();
    step
}

/// Where the driver stopped.
enum Stop {
    /// More must be read.
    Read,
    /// A message from the peer is complete.
    Message,
    Granted,
    Rejected(u8),
}

/// How far a message is that is sent.
#[derive(Clone, Copy)]
enum Sending {
    /// For its turn.
    Waits,
    /// Whether the peer takes it.
    Asks,
    /// It is sent, or rejected with this code.
    Over(Option<u8>),
}

impl<'b, T: Read + Write, C: Timer> MessageStream<'b, T, C> {
    /// Greets and waits for the peer's greeting. `limit` is the largest message that is taken,
    /// in bytes; parts of up to `buf.len()` bytes (at least 1) reach the inbox. The stream must take
    /// 5 bytes before the peer reads, and lose nothing when a read is cancelled (the latter
    /// not if the timer is [`Timeless`]).
    ///
    /// # Errors
    /// [`Error::Io`] if the stream fails; [`PeerError::Refused`] if the peer does not want us.
    pub async fn open(
        io: T,
        timer: C,
        role: Role,
        limit: u32,
        buf: &'b mut [u8],
    ) -> Result<Self, Error<T::Error>> {
        let mut frames = Self { io, timer, link: Link::new(role, limit), buf, unused: 0..0 };
        put(&mut frames.io, &[GO]).await?;
        frames.io.flush().await?;
        loop {
            match next_step(&mut frames.link, frames.buf, &mut frames.unused) {
                Step::Greeted => return Ok(frames),
                Step::Refused(code) => return Err(Error::Peer(PeerError::Refused(code))),
                _ => frames.fill().await?,
            }
        }
    }

    /// Waits until the next message has gone into `inbox` whole. `false`: the peer has closed
    /// the connection between two messages.
    ///
    /// # Errors
    /// [`Error::Io`] if the stream fails or [`Error::Peer`] if the peer breaks the protocol.
    pub async fn receive(&mut self, inbox: &mut impl MessageSink) -> Result<bool, Error<T::Error>> {
        loop {
            match self.advance(inbox).await? {
                Stop::Message => return Ok(true),
                Stop::Granted | Stop::Rejected(_) => {}
                Stop::Read => {
                    if self.fill_or_end().await? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Sends one message of `size` bytes. Messages from the peer that come meanwhile go into
    /// `inbox`.
    ///
    /// # Errors
    /// [`SendError`], which says whether the connection lives on.
    pub async fn send(
        &mut self,
        size: u64,
        body: &mut impl Body,
        inbox: &mut impl MessageSink,
    ) -> Result<(), SendError<T::Error>> {
        let mut sending = Sending::Waits;
        loop {
            // What is here already goes first, and so does a message that is half here.
            let stop = self.advance(inbox).await?;
            match (sending, stop) {
                (Sending::Waits, Stop::Read) => {
                    if self.link.must_keep_quiet() {
                        self.keep_quiet().await?;
                        continue;
                    }
                    match self.link.start(size) {
                        Ok(start) => {
                            put(&mut self.io, &start).await?;
                            self.io.flush().await.map_err(Error::Io)?;
                            sending = Sending::Asks;
                        }
                        Err(NotNow::TooLarge) => return Err(SendError::TooLarge),
                        Err(NotNow::Busy) => self.fill().await?,
                    }
                }
                (Sending::Asks, Stop::Read) => {
                    if !self.link.is_in_doubt() {
                        self.fill().await?;
                    } else if self.fill_or_quiet(1).await?
                        && let Step::Rejected(code) = self.link.quiet()
                    {
                        return Err(SendError::Rejected(code));
                    }
                }
                (Sending::Asks, Stop::Granted) => {
                    self.send_body(size, body).await?;
                    sending = Sending::Over(None);
                }
                // The peer may have been kept waiting for our answer.
                (Sending::Asks, Stop::Rejected(code)) => sending = Sending::Over(Some(code)),
                (Sending::Over(code), Stop::Read) => {
                    return code.map_or(Ok(()), |code| Err(SendError::Rejected(code)));
                }
                (_, Stop::Message | Stop::Granted | Stop::Rejected(_)) => {}
            }
        }
    }

    async fn send_body(&mut self, size: u64, body: &mut impl Body) -> Result<(), SendError<T::Error>> {
        let mut left = u32::try_from(size).unwrap_or(u32::MAX);
        while left > 0 {
            let piece = body.piece().await;
            let piece = piece.get(..left as usize).unwrap_or(piece);
            if piece.is_empty() {
                return Err(SendError::Short);
            }
            put(&mut self.io, piece).await?;
            left = self.link.sent(u32::try_from(piece.len()).unwrap_or(u32::MAX));
        }
        Ok(self.io.flush().await.map_err(Error::Io)?)
    }

    /// Whether bytes of the peer were read that no call has used yet: then
    /// [`receive`](Self::receive) before waiting for the stream.
    #[must_use]
    pub fn has_unused(&self) -> bool {
        !self.unused.is_empty()
    }

    /// The stream, to wait for it or to close it.
    pub fn stream(&mut self) -> &mut T {
        &mut self.io
    }

    /// Does what can be done without reading.
    async fn advance(&mut self, inbox: &mut impl MessageSink) -> Result<Stop, Error<T::Error>> {
        loop {
            match next_step(&mut self.link, self.buf, &mut self.unused) {
                Step::Read => return Ok(Stop::Read),
                Step::Answer(byte) => {
                    put(&mut self.io, &[byte]).await?;
                    self.io.flush().await?;
                }
                Step::Piece(piece) => {
                    let last = piece.is_last();
                    inbox.piece(piece).await;
                    if last {
                        return Ok(Stop::Message);
                    }
                }
                Step::Granted => return Ok(Stop::Granted),
                Step::Rejected(code) => return Ok(Stop::Rejected(code)),
                Step::Refused(code) => return Err(Error::Peer(PeerError::Refused(code))),
                Step::Greeted => {}
                Step::Broken => return Err(Error::Peer(PeerError::Broken)),
            }
        }
    }

    /// Reads at least one byte; only called when all that was read is used.
    async fn fill(&mut self) -> Result<(), Error<T::Error>> {
        if self.fill_or_end().await? { Err(Error::Peer(PeerError::Closed)) } else { Ok(()) }
    }

    /// Reads at least one byte, or returns whether the stream ended where it may.
    async fn fill_or_end(&mut self) -> Result<bool, Error<T::Error>> {
        match self.io.read(self.buf).await? {
            0 if self.link.is_idle() => Ok(true),
            0 => Err(Error::Peer(PeerError::Closed)),
            n => {
                self.unused = 0..n.min(self.buf.len());
                Ok(false)
            }
        }
    }

    /// Reads at least one byte, or returns that it was quiet `times` times.
    async fn fill_or_quiet(&mut self, times: u8) -> Result<bool, Error<T::Error>> {
        let n = {
            let mut read = pin!(self.io.read(self.buf));
            let timer = &mut self.timer;
            let mut quiet = pin!(async {
                for _ in 0..times {
                    timer.quiet().await;
                }
            });
            poll_fn(|cx| {
                if let Poll::Ready(n) = read.as_mut().poll(cx) {
                    return Poll::Ready(Some(n));
                }
                quiet.as_mut().poll(cx).map(|()| None)
            })
            .await
        };
        match n {
            None => Ok(true),
            Some(Err(e)) if e.kind() == ErrorKind::TimedOut => Ok(true),
            Some(Err(e)) => Err(Error::Io(e)),
            Some(Ok(0)) => Err(Error::Peer(PeerError::Closed)),
            Some(Ok(n)) => {
                self.unused = 0..n.min(self.buf.len());
                Ok(false)
            }
        }
    }

    /// After a refusal of ours: until the peer must have seen that it was one.
    async fn keep_quiet(&mut self) -> Result<(), Error<T::Error>> {
        if !C::TELLS_TIME || self.fill_or_quiet(2).await? {
            self.link.kept_quiet();
        }
        Ok(())
    }
}
