//! Where a message ends: a pickle has no length in front, it ends at its STOP instruction.

use super::opcode::{Argument, STOP, argument};
use crate::rpc::arena::DecodeError;
use crate::window::Window;

#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    Opcode,
    Skip(u64),
    Length { bytes: u8, have: u8, value: u64 },
    Lines(u8),
}

/// Looks for the end of a message in bytes that come piece by piece.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Scanner {
    state: State,
    limit: u64,
    seen: u64,
}

impl Scanner {
    /// For messages of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { state: State::Opcode, limit, seen: 0 }
    }

    /// Changes the longest message, also for the one that is under way.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Looks at the next bytes. If the message ends in them: how many of them belong to it.
    ///
    /// # Errors
    /// [`DecodeError::Unknown`], or [`DecodeError::NoRoom`] as soon as it is clear that the message
    /// is longer than the limit. The stream cannot be understood after that.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match self.state {
                State::Skip(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += usize::try_from(here).unwrap_or(usize::MAX);
                    self.state = if left == here { State::Opcode } else { State::Skip(left - here) };
                    self.count(here)?;
                    continue;
                }
                State::Opcode => {
                    let argument = argument(*byte).ok_or(DecodeError::Unknown(*byte))?;
                    if *byte == STOP {
                        self.count(1)?;
                        *self = Self::new(self.limit);
                        return Ok(Some(at + 1));
                    }
                    self.state = match argument {
                        Argument::None => State::Opcode,
                        Argument::Fixed(n) => State::Skip(n.into()),
                        Argument::Counted(bytes) => State::Length { bytes, have: 0, value: 0 },
                        Argument::Lines(n) => State::Lines(n),
                    };
                }
                State::Length { bytes, have, value } => {
                    let value = value | u64::from(*byte) << (8 * u32::from(have));
                    self.state = if have + 1 < bytes {
                        State::Length { bytes, have: have + 1, value }
                    } else if value >= self.limit.saturating_sub(self.seen) {
                        // One byte is for the length itself.
                        return Err(DecodeError::NoRoom);
                    } else if value == 0 {
                        State::Opcode
                    } else {
                        State::Skip(value)
                    };
                }
                State::Lines(left) if *byte == b'\n' => {
                    self.state = if left == 1 { State::Opcode } else { State::Lines(left - 1) };
                }
                State::Lines(_) => {}
            }
            at += 1;
            self.count(1)?;
        }
        Ok(None)
    }

    /// How long the message is at least, in bytes: what was seen of it, and what it has announced. Whoever
    /// takes no message of that length skips it: a scanner without a limit finds its end in constant memory.
    #[must_use]
    pub fn at_least(&self) -> u64 {
        match self.state {
            State::Skip(left) => self.seen.saturating_add(left),
            _ => self.seen,
        }
    }

    fn count(&mut self, n: u64) -> Result<(), DecodeError> {
        self.seen = self.seen.saturating_add(n);
        if self.seen > self.limit { Err(DecodeError::NoRoom) } else { Ok(()) }
    }
}

/// Cuts a stream into messages, in the caller's buffer, whose length is the longest message.
///
/// Read into [`spare`](Self::spare), say how much with [`filled`](Self::filled), take messages with
/// [`next_message`](Self::next_message) until it has none, read again.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Assembler<'b> {
    window: Window<'b>,
    scanner: Scanner,
}

impl<'b> Assembler<'b> {
    /// An assembler over `buf`, which must not be empty.
    #[must_use]
    pub fn new(buf: &'b mut [u8]) -> Self {
        let scanner = Scanner::new(buf.len() as u64);
        Self { window: Window::new(buf), scanner }
    }

    /// Where to read the next bytes to. Never empty after `next_message` returned `Ok(None)`.
    pub fn spare(&mut self) -> &mut [u8] {
        self.window.spare()
    }

    /// Says that the first `n` bytes of `spare` are filled.
    pub fn filled(&mut self, n: usize) {
        self.window.filled(n);
    }

    /// Whether the stream may end here: no message is half here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.window.is_empty()
    }

    /// The next whole message, or `None` if more must be read.
    ///
    /// # Errors
    /// As [`Scanner::feed`]; close the connection.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let Some(n) = self.scanner.feed(self.window.fresh())? else {
            self.window.look();
            return if self.window.is_full() { Err(DecodeError::NoRoom) } else { Ok(None) };
        };
        Ok(Some(self.window.take(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const STREAM: &[u8] =
        b"N.X\x03\x00\x00\x00...Vone.two\n.cone.\ntwo.\n.\x8d\x01\0\0\0\0\0\0\0.\x95........C\0.";

    /// The refusal stays one: nothing that follows is taken for a message, nothing overflows.
    #[test]
    fn fed_after_a_refusal_it_refuses_again() {
        let mut scanner = Scanner::new(4);
        assert_eq!(scanner.feed(b"V12345"), Err(DecodeError::NoRoom));
        assert_eq!(scanner.feed(b"\n\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), Err(DecodeError::NoRoom));
        assert_eq!(scanner.feed(b"."), Err(DecodeError::NoRoom));
    }

    #[test]
    fn cuts_do_not_matter() {
        for chunk in 1..=STREAM.len() {
            let mut buf = [0; 24];
            let mut assembler = Assembler::new(&mut buf);
            let (mut rest, mut got) = (STREAM, Vec::new());
            while !rest.is_empty() {
                let spare = assembler.spare();
                assert!(!spare.is_empty());
                let n = chunk.min(spare.len()).min(rest.len());
                spare[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                assembler.filled(n);
                while let Some(message) = assembler.next_message().unwrap() {
                    got.push(message.to_vec());
                }
            }
            assert!(assembler.is_idle());
            assert_eq!(got.len(), 4, "pieces of {chunk}");
            assert_eq!(got.concat(), STREAM);
        }
    }

    #[test]
    fn what_is_too_long_is_seen_at_its_length() {
        let mut scanner = Scanner::new(100);
        assert_eq!(scanner.feed(b"X\x60\0\0"), Ok(None));
        assert_eq!(scanner.feed(b"\0"), Err(DecodeError::NoRoom));
        assert_eq!(Scanner::new(100).feed(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), Err(DecodeError::NoRoom));
        assert_eq!(Scanner::new(4).feed(b"NNNN."), Err(DecodeError::NoRoom));
        assert_eq!(Scanner::new(4).feed(b"\xff"), Err(DecodeError::Unknown(0xFF)));
    }

    #[test]
    fn what_is_too_long_can_be_skipped() {
        let mut scanner = Scanner::new(u64::MAX);
        assert_eq!(scanner.feed(b"NX\0\0\0\x08"), Ok(None));
        // Known before it has come.
        assert_eq!(scanner.at_least(), 6 + (8 << 24));
        let piece = [b'.'; 1 << 16];
        for _ in 0..(8 << 24) / piece.len() {
            assert_eq!(scanner.feed(&piece), Ok(None));
        }
        assert_eq!(scanner.feed(b"0.N."), Ok(Some(2)));
        assert_eq!((scanner.at_least(), scanner.feed(b"N.")), (0, Ok(Some(2))));
    }
}
