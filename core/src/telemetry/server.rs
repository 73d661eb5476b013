//! The server's side: records out of pieces, each written before it is acknowledged.

use core::future::Future;

use embedded_io_async::{Read, Write};

use super::{GREETING, PROCESSED, RECEIVED};
use crate::error::Error;
use crate::stream::put;
use crate::window::to_front;

/// Cuts pieces into whole records, in the caller's buffer.
///
/// Read a piece into [`spare`](Self::spare), say how much with [`filled`](Self::filled), write
/// what it returns, then acknowledge with [`acknowledgement`](Self::acknowledgement).
#[derive(Debug)]
pub struct Records<'b> {
    buf: &'b mut [u8],
    /// The beginning of a record whose end has not come.
    end: usize,
    /// What was returned last is still in front of it.
    start: usize,
}

/// How full it is.
#[cfg(feature = "defmt")]
impl defmt::Format for Records<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Records({} of {} bytes)", self.end.saturating_sub(self.start), self.buf.len())
    }
}

impl<'b> Records<'b> {
    /// Over `buf`; its length is the longest record with its newline
    /// ([`RECORD_MAX`](super::RECORD_MAX)) and must be 2 at least. A longer one is kept in several lines.
    #[must_use]
    pub fn new(buf: &'b mut [u8]) -> Self {
        Self { buf, start: 0, end: 0 }
    }

    /// Where to read the next piece to; never empty.
    pub fn spare(&mut self) -> &mut [u8] {
        self.close_up();
        let room = self.room();
        self.buf.get_mut(self.end..room).unwrap_or_default()
    }

    /// Says that the first `n` bytes of `spare` are filled; returns all whole records, the last
    /// of which ends in a newline. Empty if there is none yet.
    #[must_use]
    pub fn filled(&mut self, n: usize) -> &[u8] {
        let fresh = self.end;
        let room = self.room();
        self.end = (self.end + n).min(room);
        let newline = self.buf.get(fresh..self.end).and_then(|b| b.iter().rposition(|&b| b == b'\n'));
        if let Some(at) = newline {
            self.start = fresh + at + 1;
        } else if self.end == room {
            warning!("a record is too long: it is kept in several lines");
            return self.rest();
        }
        self.buf.get(..self.start).unwrap_or_default()
    }

    /// At the end of the stream: the last record if it has no newline, with one.
    #[must_use]
    pub fn rest(&mut self) -> &[u8] {
        self.close_up();
        if self.end > 0
            && let Some(byte) = self.buf.get_mut(self.end)
        {
            *byte = b'\n';
            self.end += 1;
        }
        self.start = self.end;
        self.buf.get(..self.end).unwrap_or_default()
    }

    /// What to say when the records that [`filled`](Self::filled) returned have been written.
    #[must_use]
    pub fn acknowledgement(&self) -> &'static [u8] {
        if self.start == self.end { PROCESSED } else { RECEIVED }
    }

    /// One byte is kept for the newline of a record that has none.
    fn room(&self) -> usize {
        self.buf.len().saturating_sub(1)
    }

    fn close_up(&mut self) {
        if self.start > 0 {
            to_front(self.buf, self.start, self.end);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

/// Where records are kept. One value serves one connection.
pub trait Journal {
    /// Why it cannot.
    type Error;

    /// Writes whole records, the last of which ends in a newline: all of them or none. When it
    /// returns they are where they are meant to be. To wait until there is room is to let the client wait.
    ///
    /// # Errors
    /// The journal's own; the connection ends without an acknowledgement.
    fn append(&mut self, records: &[u8]) -> impl Future<Output = Result<(), Self::Error>>;
}

/// Serves one client until it closes; returns how the journal failed, if it did.
/// `buf` bounds the length of a record ([`RECORD_MAX`](super::RECORD_MAX)).
///
/// # Errors
/// [`Error::Io`] if the stream fails: a last record without a newline is written then, too.
pub async fn serve<T: Read + Write, J: Journal>(
    io: &mut T,
    buf: &mut [u8],
    journal: &mut J,
) -> Result<Result<(), J::Error>, Error<T::Error>> {
    let mut records = Records::new(buf);
    let stopped = pieces(io, &mut records, journal).await;
    if let Ok(Err(_)) = stopped {
        return stopped;
    }
    let rest = records.rest();
    let kept = if rest.is_empty() { Ok(()) } else { journal.append(rest).await };
    stopped.map(|_| kept)
}

async fn pieces<T: Read + Write, J: Journal>(
    io: &mut T,
    records: &mut Records<'_>,
    journal: &mut J,
) -> Result<Result<(), J::Error>, Error<T::Error>> {
    put(io, GREETING).await?;
    io.flush().await?;
    loop {
        let n = io.read(records.spare()).await?;
        if n == 0 {
            return Ok(Ok(()));
        }
        let whole = records.filled(n);
        if !whole.is_empty()
            && let Err(e) = journal.append(whole).await
        {
            return Ok(Err(e));
        }
        put(io, records.acknowledgement()).await?;
        io.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// What is kept of `input` in pieces of `chunk` bytes, and the acknowledgements.
    fn kept(input: &[u8], chunk: usize, room: usize) -> (Vec<u8>, Vec<&'static [u8]>) {
        let mut buf = std::vec![0; room];
        let mut records = Records::new(&mut buf);
        let (mut out, mut acks, mut input) = (Vec::new(), Vec::new(), input);
        while !input.is_empty() {
            let spare = records.spare();
            let n = chunk.min(spare.len()).min(input.len());
            assert!(n > 0);
            spare[..n].copy_from_slice(&input[..n]);
            input = &input[n..];
            out.extend_from_slice(records.filled(n));
            acks.push(records.acknowledgement());
        }
        out.extend_from_slice(records.rest());
        (out, acks)
    }

    #[test]
    fn cuts_do_not_matter() {
        let input = b"1,2,3\r\n\n4,5\n\xff\0\n6,7";
        for chunk in 1..=input.len() {
            assert_eq!(kept(input, chunk, 9).0, b"1,2,3\r\n\n4,5\n\xff\0\n6,7\n", "pieces of {chunk}");
        }
    }

    #[test]
    fn a_piece_that_ends_within_a_record_is_told_from_one_that_does_not() {
        let (_, acks) = kept(b"1\n2\n34\n5", 2, 9);
        assert_eq!(acks, [PROCESSED, PROCESSED, RECEIVED, RECEIVED]);
    }

    #[test]
    fn nothing_of_a_long_record_is_lost() {
        for chunk in 1..12 {
            assert_eq!(kept(b"123456789\nab\n", chunk, 5).0, b"1234\n5678\n9\nab\n", "pieces of {chunk}");
        }
    }
}
