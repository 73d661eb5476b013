//! The client's login and the records over any byte stream with `embedded_io_async`'s traits. Time-outs belong to the
//! stream.

use core::fmt;

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use heapless::Vec;

use super::hello::{FIRST, HELLO_MAX, HELLO_MIN, hello_length};
use super::login::{Client, END_LENGTH, Keys, LoginFault, Terms};
use super::record::{Inbox, OVERHEAD, Opened, Outbox, RecordError};
use crate::error::{Error, PeerError};
use crate::stream::put;

/// Why there is no protected connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SecureError<E> {
    /// The connection failed.
    Link(Error<E>),
    /// The server closed it without an answer.
    Closed,
    /// The login failed.
    Login(LoginFault),
}

impl<E> From<Error<E>> for SecureError<E> {
    fn from(e: Error<E>) -> Self {
        Self::Link(e)
    }
}

impl<E> From<LoginFault> for SecureError<E> {
    fn from(e: LoginFault) -> Self {
        Self::Login(e)
    }
}

impl<E: fmt::Display> fmt::Display for SecureError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(e) => e.fmt(f),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Login(e) => e.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for SecureError<E> {}

/// Why a protected connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ProtectedError<E> {
    /// The stream failed.
    Io(E),
    /// The stream takes no more bytes (a write of 0).
    WriteZero,
    /// What came is not what the peer sent, or not all of it.
    Record(RecordError),
}

impl<E> From<RecordError> for ProtectedError<E> {
    fn from(e: RecordError) -> Self {
        Self::Record(e)
    }
}

impl<E: fmt::Display> fmt::Display for ProtectedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::WriteZero => f.write_str("the peer takes no more bytes"),
            Self::Record(e) => e.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for ProtectedError<E> {}

impl<E: embedded_io_async::Error> embedded_io_async::Error for ProtectedError<E> {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(e) => e.kind(),
            Self::WriteZero => ErrorKind::WriteZero,
            Self::Record(RecordError::Truncated) => ErrorKind::ConnectionAborted,
            Self::Record(_) => ErrorKind::InvalidData,
        }
    }
}

/// Memory for the records of a connection.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Buffers<'b> {
    /// For what comes: [`OVERHEAD`] longer than the longest content that is taken.
    pub incoming: &'b mut [u8],
    /// For what is sent: [`OVERHEAD`] longer than the longest content that is sent.
    pub outgoing: &'b mut [u8],
}

/// Logs in as a client; `terms.record_max` is made to fit the buffer. Everything from now on goes through what is
/// returned.
///
/// # Errors
/// [`SecureError`]; close the connection.
pub async fn login<'b, T: Read + Write>(
    mut io: T,
    terms: &Terms<'_>,
    buffers: Buffers<'b>,
) -> Result<Protected<'b, T>, SecureError<T::Error>> {
    let fits = u16::try_from(buffers.incoming.len().saturating_sub(OVERHEAD)).unwrap_or(u16::MAX);
    let terms = Terms { record_max: terms.record_max.min(fits), ..*terms };
    let mut client = Client::new(&terms);
    put(&mut io, client.hello()).await?;
    io.flush().await.map_err(Error::Io)?;
    let mut hello = Vec::<u8, HELLO_MAX>::new();
    // A refusal has three bytes.
    read_to(&mut io, &mut hello, 3).await?;
    if !matches!(hello.as_slice(), [FIRST, 0, _]) {
        // What has another first byte will not become longer.
        hello_length(&hello)?;
        read_to(&mut io, &mut hello, HELLO_MIN).await?;
        let length = hello_length(&hello)?.unwrap_or(HELLO_MIN);
        read_to(&mut io, &mut hello, length).await?;
    }
    let proof = client.proceed(&hello)?;
    put(&mut io, &proof).await?;
    io.flush().await.map_err(Error::Io)?;
    let mut end = [0; END_LENGTH];
    let mut filled = 0;
    while let Some(rest) = end.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match io.read(rest).await.map_err(Error::Io)? {
            0 => return Err(SecureError::Closed),
            n => filled += n,
        }
    }
    Ok(Protected::new(io, &client.finish(&end)?, buffers))
}

/// Reads until there are `length` bytes, and not one more.
async fn read_to<T: Read>(
    io: &mut T,
    bytes: &mut Vec<u8, HELLO_MAX>,
    length: usize,
) -> Result<(), SecureError<T::Error>> {
    let mut piece = [0; HELLO_MAX];
    while bytes.len() < length.min(HELLO_MAX) {
        let room = piece.get_mut(..length - bytes.len()).unwrap_or_default();
        match io.read(room).await.map_err(Error::Io)? {
            0 => return Err(SecureError::Closed),
            n => {
                let read = room.get(..n).ok_or(Error::Peer(PeerError::Broken))?;
                bytes.extend_from_slice(read).map_err(|_| Error::Peer(PeerError::Broken))?;
            }
        }
    }
    Ok(())
}

/// A byte stream through which everything goes in records. A read of 0 is the end that the peer has sent; a stream
/// that only stops is an error.
///
/// What is written is sealed and sent by [`flush`](Write::flush), or when the buffer is full. Nothing is lost when a
/// read or a write is cancelled, if the stream below loses nothing.
#[derive(Debug)]
pub struct Protected<'b, T> {
    io: T,
    inbox: Inbox<&'b mut [u8]>,
    outbox: Outbox<&'b mut [u8]>,
}

/// Whatever the stream is.
#[cfg(feature = "defmt")]
impl<T> defmt::Format for Protected<'_, T> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Protected({}, {})", self.inbox, self.outbox)
    }
}

impl<'b, T: Read + Write> Protected<'b, T> {
    /// Over a stream on which both sides have logged in.
    pub fn new(io: T, keys: &Keys, buffers: Buffers<'b>) -> Self {
        let (inbox, outbox) = (Inbox::new(keys, buffers.incoming), Outbox::new(keys, buffers.outgoing));
        Self { io, inbox, outbox }
    }

    /// Whether a read returns at once: there is something that was opened and not read.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        !self.inbox.is_idle()
    }

    /// The stream below, to wait for it or to close it.
    pub fn stream(&mut self) -> &mut T {
        &mut self.io
    }

    /// Says to the peer that nothing follows.
    ///
    /// # Errors
    /// [`ProtectedError`].
    pub async fn end(&mut self) -> Result<(), ProtectedError<T::Error>> {
        self.drain().await?;
        self.outbox.end()?;
        self.flush().await
    }

    /// Sends all that is sealed or collected.
    async fn drain(&mut self) -> Result<(), ProtectedError<T::Error>> {
        loop {
            self.outbox.seal()?;
            if self.outbox.is_idle() {
                return Ok(());
            }
            match self.io.write(self.outbox.pending()).await.map_err(ProtectedError::Io)? {
                0 => return Err(ProtectedError::WriteZero),
                n => self.outbox.sent(n),
            }
        }
    }
}

impl<T: Read + Write> ErrorType for Protected<'_, T> {
    type Error = ProtectedError<T::Error>;
}

impl<T: Read + Write> Read for Protected<'_, T> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Self::Error> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.inbox.open()? {
                Opened::Content => return Ok(self.inbox.take(buf)),
                Opened::End => return Ok(0),
                Opened::More => {}
            }
            let n = self.io.read(self.inbox.spare()).await.map_err(ProtectedError::Io)?;
            self.inbox.filled(n);
        }
    }
}

impl<T: Read + Write> Write for Protected<'_, T> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Self::Error> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.outbox.push(buf) {
                0 => {
                    self.outbox.seal()?;
                    if self.outbox.is_idle() {
                        // This side has ended the connection, or there is no room for a record at all.
                        return Err(RecordError::Ended.into());
                    }
                    self.drain().await?;
                }
                n => return Ok(n),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Self::Error> {
        self.drain().await?;
        self.io.flush().await.map_err(ProtectedError::Io)
    }
}
