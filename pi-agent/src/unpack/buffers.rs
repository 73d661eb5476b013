//! Buffers that go round between two threads: one fills them, one drains them.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The size of a buffer of unpacked data, in bytes.
const BUFFER: usize = 512 << 10;

/// The two ends of a pipe of so many buffers. Together they let the network go on while the
/// disk is slow for a moment, and the other way round.
pub(super) fn pipe(buffers: usize) -> (Filler, Drainer) {
    let (full, filled) = sync_channel(buffers + 1);
    let (drained, empty) = sync_channel(buffers);
    for _ in 0..buffers {
        // There is room: the channel was made for this many.
        let _ = drained.try_send(Vec::new());
    }
    (Filler { full, empty }, Drainer { filled, drained, buffer: Vec::new(), at: 0 })
}

/// The end that is filled. Dropping it without [`fail`](Self::fail) is the end of the data.
pub(super) struct Filler {
    full: SyncSender<io::Result<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
}

/// How filling ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// With the end of what was read from.
    All,
    /// With the end of the one who drains.
    Unwanted,
}

impl Filler {
    /// Passes on everything from `source`.
    ///
    /// # Errors
    /// Those of `source`; what came before was passed on.
    pub(super) fn fill_from(&mut self, source: &mut impl Read) -> io::Result<Filled> {
        loop {
            let Some(mut buffer) = self.buffer() else { return Ok(Filled::Unwanted) };
            buffer.resize(BUFFER, 0);
            let (length, result) = fill(&mut buffer, source);
            buffer.truncate(length);
            if length > 0 && !self.pass(buffer) {
                return Ok(Filled::Unwanted);
            }
            if !result? {
                return Ok(Filled::All);
            }
        }
    }

    /// Waits for a buffer to be filled; `None` if nobody drains any more.
    pub(super) fn buffer(&self) -> Option<Vec<u8>> {
        self.empty.recv().ok()
    }

    /// Passes a buffer on; whether anybody still drains.
    pub(super) fn pass(&self, buffer: Vec<u8>) -> bool {
        self.full.send(Ok(buffer)).is_ok()
    }

    /// Ends the data with an error like this one.
    pub(super) fn fail(&self, error: &io::Error) {
        // Nobody is there to hear it if this fails.
        let _ = self.full.send(Err(io::Error::new(error.kind(), error.to_string())));
    }
}

/// Fills the buffer as far as possible; whether there may be more.
fn fill(buffer: &mut [u8], source: &mut impl Read) -> (usize, io::Result<bool>) {
    let mut length = 0;
    while let Some(spare) = buffer.get_mut(length..).filter(|s| !s.is_empty()) {
        match source.read(spare) {
            Ok(0) => return (length, Ok(false)),
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (length, Err(e)),
        }
    }
    (length, Ok(true))
}

/// The end that is drained.
#[derive(Debug)]
pub(super) struct Drainer {
    filled: Receiver<io::Result<Vec<u8>>>,
    drained: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
}

impl BufRead for Drainer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.buffer.len() {
            let next = match self.filled.recv() {
                Ok(next) => next?,
                Err(_) => return Ok(&[]),
            };
            let old = std::mem::replace(&mut self.buffer, next);
            self.at = 0;
            if old.capacity() > 0 {
                // Nobody fills any more if this fails.
                let _ = self.drained.try_send(old);
            }
        }
        Ok(self.buffer.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.at = self.at.saturating_add(n).min(self.buffer.len());
    }
}

impl Read for Drainer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), piece.get(..length)) {
            to.copy_from_slice(from);
        }
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_goes_in_comes_out_and_then_the_error() {
        let data: Vec<u8> = (0..5_000_000_u32).map(|i| (i >> 3) as u8).collect();
        let (mut filler, mut drainer) = pipe(8);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(filler.fill_from(&mut &*data).unwrap(), Filled::All);
                filler.fail(&io::ErrorKind::InvalidData.into());
                drop(filler);
            });
            let mut out = vec![0; data.len()];
            drainer.read_exact(&mut out).unwrap();
            assert!(out == data);
            assert_eq!(drainer.fill_buf().unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(drainer.fill_buf().unwrap().is_empty());
        });
    }

    #[test]
    fn who_fills_stops_when_nobody_drains() {
        let (mut filler, mut drainer) = pipe(8);
        thread::scope(|scope| {
            let endless = scope.spawn(move || filler.fill_from(&mut io::repeat(7)).unwrap());
            assert_eq!(drainer.fill_buf().unwrap().len(), BUFFER);
            drop(drainer);
            assert_eq!(endless.join().unwrap(), Filled::Unwanted);
        });
    }
}
