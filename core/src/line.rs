//! Lines out of a stream that was cut anywhere, in the caller's buffer.

use crate::window::Window;

/// The longest line that counts, in bytes with its end; longer ones are noise.
pub const LINE_MAX: usize = 1024;

/// A line was longer than the buffer. It is skipped to its end; reading goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooLong;

/// Cuts a stream into lines.
///
/// Read into [`spare`](Self::spare), say how much with [`filled`](Self::filled), take
/// lines with [`next_line`](Self::next_line) until it has none, read again. At the end of
/// the stream a last line without a newline is [`rest`](Self::rest).
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Framer<'b> {
    window: Window<'b>,
    skipping: bool,
}

impl<'b> Framer<'b> {
    /// A framer over `buf`; its length is the longest line that is understood
    /// ([`LINE_MAX`] for our services) and must not be 0.
    #[must_use]
    pub fn new(buf: &'b mut [u8]) -> Self {
        Self { window: Window::new(buf), skipping: false }
    }

    /// Where to read the next bytes to. Never empty after `next_line` returned
    /// `Ok(None)`, so that a read of 0 bytes can only mean the end of the stream.
    pub fn spare(&mut self) -> &mut [u8] {
        self.window.spare()
    }

    /// Says that the first `n` bytes of `spare` are filled; more than there were count as all.
    pub fn filled(&mut self, n: usize) {
        self.window.filled(n);
    }

    /// The next whole line without its end (`\n` or `\r\n`), or `None` if more must be read.
    ///
    /// # Errors
    /// [`TooLong`], once for each line that does not fit the buffer: the peer's fault.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let Some(at) = self.window.fresh().iter().position(|&b| b == b'\n') else {
                self.window.look();
                if self.skipping {
                    self.window.take_all();
                } else if self.window.is_full() {
                    self.window.take_all();
                    self.skipping = true;
                    return Err(TooLong);
                }
                return Ok(None);
            };
            if core::mem::take(&mut self.skipping) {
                self.window.take(at + 1);
                continue;
            }
            let line = self.window.take(at + 1);
            return Ok(Some(without_return(line.split_last().map_or(line, |(_, line)| line))));
        }
    }

    /// At the end of the stream: the last line, if it has no newline.
    #[must_use]
    pub fn rest(&mut self) -> Option<&[u8]> {
        let line = self.window.take_all();
        (!line.is_empty() && !self.skipping).then(|| without_return(line))
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    if let [line @ .., b'\r'] = line { line } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Every line and every `TooLong` of `input`, read in pieces of `chunk` bytes.
    fn lines(input: &[u8], chunk: usize, room: usize) -> Vec<Result<Vec<u8>, TooLong>> {
        let mut buf = std::vec![0; room];
        let mut framer = Framer::new(&mut buf);
        let mut input = input;
        let mut out = Vec::new();
        loop {
            loop {
                match framer.next_line() {
                    Ok(Some(line)) => out.push(Ok(line.to_vec())),
                    Ok(None) => break,
                    Err(e) => out.push(Err(e)),
                }
            }
            let spare = framer.spare();
            assert!(!spare.is_empty());
            let n = chunk.min(spare.len()).min(input.len());
            if n == 0 {
                out.extend(framer.rest().map(|l| Ok(l.to_vec())));
                return out;
            }
            spare[..n].copy_from_slice(&input[..n]);
            input = &input[n..];
            framer.filled(n);
        }
    }

    #[test]
    fn cuts_do_not_matter() {
        let input = b"one\r\ntwo\n\nthis one is far too long\nfour\r\n\rfive";
        let want = [
            Ok(b"one".to_vec()),
            Ok(b"two".to_vec()),
            Ok(Vec::new()),
            Err(TooLong),
            Ok(b"four".to_vec()),
            Ok(b"\rfive".to_vec()),
        ];
        for chunk in 1..=input.len() {
            assert_eq!(lines(input, chunk, 12), want, "pieces of {chunk}");
        }
    }

    #[test]
    fn a_line_of_exactly_the_room_fits_with_its_newline() {
        assert_eq!(lines(b"1234567\n", 3, 8), [Ok(b"1234567".to_vec())]);
        assert_eq!(lines(b"12345678\nok\n", 3, 8), [Err(TooLong), Ok(b"ok".to_vec())]);
    }

    #[test]
    fn the_end_of_a_skipped_line_is_no_line() {
        assert_eq!(lines(b"123456789", 4, 8), [Err(TooLong)]);
    }
}
