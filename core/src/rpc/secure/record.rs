//! Records: each is sealed with the key of its direction and its number, so that none can be changed, left out,
//! repeated, moved or sent back, and the last one says that it is the last.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 2 | big-endian: the length of the content, plus 0x8000 in the last record, which has no content |
//! | 2 | length | the content under ChaCha20-Poly1305 (RFC 8439) |
//! | | 16 | the tag, which covers the first two bytes as well |
//!
//! The nonce is 4 zero bytes and the number of the record in its direction, from 0, 8 bytes little-endian.

use core::fmt;
use core::ops::Range;

use chacha20_poly1305::{ChaCha20Poly1305, Key, Nonce};

use super::login::Keys;

/// What stands before the content, in bytes.
pub const HEADER: usize = 2;
/// What stands after it, in bytes.
pub const TAG: usize = 16;
/// What a record has beside its content, in bytes.
pub const OVERHEAD: usize = HEADER + TAG;
/// The longest content of any record, in bytes.
pub const RECORD_MAX: usize = 16 << 10;
/// The longest content that every side must take, in bytes.
pub const RECORD_MIN: usize = 64;
/// Marks the last record.
const LAST: u16 = 0x8000;

/// Why records end before the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RecordError {
    /// A record is not the next one that the other side sealed.
    Forged,
    /// A record is longer than this side takes, or empty.
    Length,
    /// The stream ended without a last record.
    Truncated,
    /// The last record was sent: nothing can follow it.
    Ended,
    /// There are no more numbers.
    Exhausted,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forged => {
                "what came is not what the peer sent: somebody changed, left out or repeated a part of it"
            }
            Self::Length => "the peer sends a record of a length that is not allowed",
            Self::Truncated => {
                "the connection was cut: the peer did not end it, so it has failed or somebody else has cut it"
            }
            Self::Ended => "this side has ended the connection already",
            Self::Exhausted => "the connection has sent all records that it can: connect again",
        })
    }
}

impl core::error::Error for RecordError {}

/// A key and the number of the next record.
struct Counter {
    key: [u8; 32],
    next: Option<u64>,
}

impl Counter {
    fn cipher(&mut self) -> Result<ChaCha20Poly1305, RecordError> {
        let n = self.next.ok_or(RecordError::Exhausted)?;
        self.next = n.checked_add(1);
        let mut nonce = [0; 12];
        for (to, from) in nonce.iter_mut().skip(4).zip(n.to_le_bytes()) {
            *to = from;
        }
        Ok(ChaCha20Poly1305::new(Key::new(self.key), Nonce::new(nonce)))
    }
}

/// Collects what is to be sent and seals it.
///
/// [`push`](Self::push) until it takes nothing, [`seal`](Self::seal), send what is [`pending`](Self::pending) and count
/// it with [`sent`](Self::sent). The buffer may be exchanged while [`is_idle`](Self::is_idle).
pub struct Outbox<B> {
    counter: Counter,
    /// Of a record's content.
    max: usize,
    buffer: B,
    /// Collected and not sealed.
    content: usize,
    /// Sealed and not sent.
    sealed: Range<usize>,
    ended: bool,
}

impl<B> fmt::Debug for Outbox<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbox({} bytes collected, {} sealed)", self.content, self.sealed.len())
    }
}

#[cfg(feature = "defmt")]
impl<B> defmt::Format for Outbox<B> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Outbox({} bytes collected, {} sealed)", self.content, self.sealed.len())
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Outbox<B> {
    /// With a buffer of more than [`OVERHEAD`] bytes; records are as long as it and the other side allow.
    #[must_use]
    pub fn new(keys: &Keys, buffer: B) -> Self {
        let counter = Counter { key: keys.ours, next: Some(0) };
        Self { counter, max: keys.record_max, buffer, content: 0, sealed: 0..0, ended: false }
    }

    /// The buffer, to exchange it while [`is_idle`](Self::is_idle).
    pub fn buffer(&mut self) -> &mut B {
        &mut self.buffer
    }

    /// Whether nothing is collected and nothing is to be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.content == 0 && self.sealed.is_empty()
    }

    /// Collects as much of `bytes` as has room; 0: [`seal`](Self::seal) and send first.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if !self.sealed.is_empty() || self.ended {
            return 0;
        }
        let end = (HEADER + self.max).min(self.buffer.as_ref().len().saturating_sub(TAG));
        let room = self.buffer.as_mut().get_mut(HEADER + self.content..end).unwrap_or_default();
        let n = room.len().min(bytes.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.content += n;
        n
    }

    /// Seals what is collected; does nothing if that is nothing, or if the record before is not sent.
    ///
    /// # Errors
    /// [`RecordError`]: close the connection.
    pub fn seal(&mut self) -> Result<(), RecordError> {
        if self.content == 0 || !self.sealed.is_empty() {
            return Ok(());
        }
        self.seal_as(self.content as u16)
    }

    /// Seals the last record; all others must be sent before. Does nothing if it is sealed already.
    ///
    /// # Errors
    /// [`RecordError`]: close the connection.
    pub fn end(&mut self) -> Result<(), RecordError> {
        if self.ended || !self.is_idle() {
            return Ok(());
        }
        self.ended = true;
        self.seal_as(LAST)
    }

    fn seal_as(&mut self, header: u16) -> Result<(), RecordError> {
        let cipher = self.counter.cipher()?;
        let header = header.to_be_bytes();
        let length = core::mem::take(&mut self.content);
        let buffer = self.buffer.as_mut().split_first_chunk_mut();
        let (first, rest) = buffer.ok_or(RecordError::Length)?;
        let (content, rest) = rest.split_at_mut_checked(length).ok_or(RecordError::Length)?;
        let tag = rest.first_chunk_mut().ok_or(RecordError::Length)?;
        *first = header;
        *tag = cipher.encrypt(content, Some(&header));
        self.sealed = 0..length + OVERHEAD;
        Ok(())
    }

    /// What is to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.buffer.as_ref().get(self.sealed.clone()).unwrap_or_default()
    }

    /// So many bytes of it were sent.
    pub fn sent(&mut self, n: usize) {
        self.sealed.start = self.sealed.start.saturating_add(n).min(self.sealed.end);
    }
}

/// What an [`Inbox`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Opened {
    /// Content: [`Inbox::take`] it.
    Content,
    /// Not a whole record: read more.
    More,
    /// The other side has ended the connection.
    End,
}

/// Opens what comes.
///
/// Read into [`spare`](Self::spare) and count it with [`filled`](Self::filled); [`open`](Self::open) says what there
/// is. The buffer may be exchanged while [`is_idle`](Self::is_idle).
pub struct Inbox<B> {
    counter: Counter,
    buffer: B,
    /// Opened and not taken.
    content: Range<usize>,
    /// Read and not opened; behind the content.
    sealed: Range<usize>,
    state: Result<(), RecordError>,
}

impl<B> fmt::Debug for Inbox<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} bytes opened, {} sealed)", self.content.len(), self.sealed.len())
    }
}

#[cfg(feature = "defmt")]
impl<B> defmt::Format for Inbox<B> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Inbox({} bytes opened, {} sealed)", self.content.len(), self.sealed.len())
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Inbox<B> {
    /// With a buffer that is [`OVERHEAD`] longer than the `record_max` of this side.
    #[must_use]
    pub fn new(keys: &Keys, buffer: B) -> Self {
        let counter = Counter { key: keys.theirs, next: Some(0) };
        Self { counter, buffer, content: 0..0, sealed: 0..0, state: Ok(()) }
    }

    /// The buffer, to exchange it while [`is_idle`](Self::is_idle).
    pub fn buffer(&mut self) -> &mut B {
        &mut self.buffer
    }

    /// Whether nothing is in the buffer.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.content.is_empty() && self.sealed.is_empty()
    }

    /// Whether there is content that was not taken.
    #[must_use]
    pub fn has_content(&self) -> bool {
        !self.content.is_empty()
    }

    /// Where to read to after [`Opened::More`]; never empty then.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.content.is_empty() && self.sealed.start > 0 {
            let length = self.sealed.len();
            self.buffer.as_mut().copy_within(self.sealed.clone(), 0);
            (self.content, self.sealed) = (0..0, 0..length);
        }
        self.buffer.as_mut().get_mut(self.sealed.end..).unwrap_or_default()
    }

    /// So many bytes were read; 0 is the end of the stream.
    pub fn filled(&mut self, n: usize) {
        if n == 0 && self.state.is_ok() {
            self.state = Err(RecordError::Truncated);
        }
        self.sealed.end = self.sealed.end.saturating_add(n).min(self.buffer.as_ref().len());
    }

    /// Opens the next record, if it is here whole and all content was taken.
    ///
    /// # Errors
    /// [`RecordError`], from now on: close the connection.
    pub fn open(&mut self) -> Result<Opened, RecordError> {
        if !self.content.is_empty() {
            return Ok(Opened::Content);
        }
        match self.state {
            Ok(()) => {}
            Err(RecordError::Ended) => return Ok(Opened::End),
            Err(e) => return Err(e),
        }
        self.open_next().inspect_err(|e| self.state = Err(*e))
    }

    fn open_next(&mut self) -> Result<Opened, RecordError> {
        let start = self.sealed.start;
        let all = self.buffer.as_mut();
        let most = all.len().saturating_sub(OVERHEAD);
        let sealed = all.get_mut(self.sealed.clone()).unwrap_or_default();
        let Some((header, rest)) = sealed.split_first_chunk_mut() else { return Ok(Opened::More) };
        let (length, last) = match u16::from_be_bytes(*header) {
            LAST => (0, true),
            0 => return Err(RecordError::Length),
            n if usize::from(n) > most || n > LAST => return Err(RecordError::Length),
            n => (usize::from(n), false),
        };
        let Some((content, rest)) = rest.split_at_mut_checked(length) else { return Ok(Opened::More) };
        let Some(tag) = rest.first_chunk() else { return Ok(Opened::More) };
        let cipher = self.counter.cipher()?;
        cipher.decrypt(content, *tag, Some(&*header)).map_err(|_| RecordError::Forged)?;
        self.content = start + HEADER..start + HEADER + length;
        self.sealed.start = start + OVERHEAD + length;
        if last {
            self.state = Err(RecordError::Ended);
            return Ok(Opened::End);
        }
        Ok(Opened::Content)
    }

    /// Takes content into `to`; how much, in bytes.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        let content = self.buffer.as_ref().get(self.content.clone()).unwrap_or_default();
        let n = content.len().min(to.len());
        for (to, from) in to.iter_mut().zip(content) {
            *to = *from;
        }
        self.content.start += n;
        if self.content.is_empty() && self.sealed.is_empty() {
            (self.content, self.sealed) = (0..0, 0..0);
        }
        n
    }
}
