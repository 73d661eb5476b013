//! The archive from the fetch port, chunk by chunk: each is compared with its hash before a
//! byte of it is unpacked, a damaged one is fetched again, and after a connection broke the next
//! one goes on at the byte that is missing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::TcpStream;

use anyhow::anyhow;
use piman_core::install::Stage;
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::sums::table_bytes;

use super::Expected;
use super::buffers::Filler;
use crate::failure::{Cause, Failure};
use crate::fetch::{DAMAGED_MAX, Link, Retry, Source, Trouble};
use piman_core::install::summing::ChunkHashes;

/// Chunks that are asked for ahead, so that the server always has something to send.
const AHEAD: usize = 3;

/// Buffers for chunks that wait to be unpacked.
pub(super) const BUFFERS: usize = 4;

/// An archive and the hashes of its chunks.
pub struct ChunkSource<'l, F> {
    source: Source<'l, F>,
    archive: Expected,
    sums: ChunkHashes,
    /// The first chunk that was never asked for.
    next: u32,
    /// Chunks to be asked for once more.
    again: VecDeque<u32>,
    /// Chunks that were asked for on this connection, in this order.
    asked: VecDeque<u32>,
    /// How much of the chunk that is next came before its connection broke, in bytes.
    part: usize,
    /// Chunks that came before one that had to be fetched again.
    early: BTreeMap<u32, Vec<u8>>,
    /// What it took.
    pub tally: Tally,
}

/// What it took to fetch an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes of the archive that came, also those of damaged chunks.
    pub fetched_bytes: u64,
    /// Chunks that came damaged and were fetched again.
    pub repaired: u32,
    /// Connections that broke.
    pub broken: u32,
}

impl<'l, F: FnMut() -> io::Result<TcpStream> + Send> ChunkSource<'l, F> {
    /// Fetches the hashes of the chunks and compares them with the archive's own. `connect`
    /// makes a connection to the fetch port, with the caller's time-outs.
    ///
    /// # Errors
    /// `Network` when connections keep breaking or the server has given the archive up;
    /// `Image` if the hashes stay wrong.
    pub fn open(connect: F, link: &'l Link, retry: Retry, archive: Expected) -> Result<Self, Failure> {
        let Expected { hash: id, bytes } = archive;
        let Some(length) = table_bytes(bytes) else {
            return Err(fail(Cause::Image, anyhow!("the archive offered is too large: {bytes} bytes")));
        };
        let mut source = Source::new(connect, link, retry, "the archive");
        let table = if length == 0 {
            // One chunk, whose hash is the archive's: what is to be seen is that it can be had.
            let request = Request { kind: Kind::Archive, id, offset: 0, length: bytes.min(1) };
            source.table(&request, |_| true, "")?;
            Vec::new()
        } else {
            let request = Request { kind: Kind::Sums, id, offset: 0, length: length.into() };
            let advice = "touch the archive on the server, which reads it again then";
            source.table(&request, |table| ChunkHashes::parse(id, bytes, table).is_ok(), advice)?
        };
        let sums = ChunkHashes::parse(id, bytes, &table).map_err(|wrong| fail(Cause::Image, wrong.into()))?;
        Ok(Self {
            source,
            archive,
            sums,
            next: 0,
            again: VecDeque::new(),
            asked: VecDeque::new(),
            part: 0,
            early: BTreeMap::new(),
            tally: Tally::default(),
        })
    }

    /// What all chunks together are.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.archive
    }

    /// Passes all chunks on, in their order; ends early if nobody wants them any more.
    pub(super) fn fetch(&mut self, filler: Filler) -> Result<(), Failure> {
        let outcome = self.fetch_into(&filler);
        self.tally.broken = self.source.broken();
        // The server learns at once that no more is wanted.
        self.source.close();
        if outcome.is_err() {
            filler.fail(&io::ErrorKind::ConnectionAborted.into());
        }
        outcome
    }

    fn fetch_into(&mut self, filler: &Filler) -> Result<(), Failure> {
        for index in 0..self.sums.chunks() {
            let Some(buffer) = filler.buffer() else { return Ok(()) };
            let chunk = self.chunk(index, buffer)?;
            if !filler.pass(chunk) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The chunk with this number, which is the next in order.
    fn chunk(&mut self, index: u32, mut buffer: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let mut damaged = 0;
        while !self.early.contains_key(&index) {
            let came = match self.receive_one(&mut buffer) {
                Ok(came) => came,
                Err(trouble) => {
                    // Asked for once more, in their order, on another connection.
                    self.asked.drain(..).rev().for_each(|i| self.again.push_front(i));
                    self.source.pause(trouble)?;
                    continue;
                }
            };
            if self.sums.is(came, &buffer) {
                if came == index {
                    return Ok(buffer);
                }
                self.early.insert(came, std::mem::take(&mut buffer));
                continue;
            }
            let at = self.sums.range(came).start;
            if came == index {
                damaged += 1;
            }
            if damaged > DAMAGED_MAX {
                return Err(fail(
                    Cause::Image,
                    anyhow!(
                        "chunk {came} of the archive (from byte {at} on) came damaged {damaged} times: the \
                         archive on the server is damaged, replace it by a good one"
                    ),
                ));
            }
            log::warn!("chunk {came} of the archive (from byte {at} on) came damaged and is fetched again");
            self.tally.repaired += 1;
            self.again.push_front(came);
        }
        Ok(self.early.remove(&index).unwrap_or_default())
    }

    /// Asks ahead and receives one chunk; gives its number.
    fn receive_one(&mut self, buffer: &mut Vec<u8>) -> Result<u32, Trouble> {
        // After a failure one at a time, so that each attempt can get on.
        let ahead = if self.source.is_doubtful() { 1 } else { AHEAD };
        let id = self.archive.hash;
        let connection = self.source.connection()?;
        while self.asked.len() < ahead {
            let index = match self.again.pop_front() {
                Some(index) => index,
                None if self.early.len() < AHEAD && self.next < self.sums.chunks() => {
                    self.next += 1;
                    self.next - 1
                }
                None => break,
            };
            let range = self.sums.range(index);
            // Only the first that is asked for can have come in part.
            let part = if self.asked.is_empty() { self.part as u64 } else { 0 };
            let (offset, length) = (range.start + part, range.end - range.start - part);
            self.asked.push_back(index);
            connection.ask(&Request { kind: Kind::Archive, id, offset, length })?;
        }
        let Some(&index) = self.asked.front() else {
            return Err(Trouble::No("nothing is left to ask for".into()));
        };
        let range = self.sums.range(index);
        // Not longer than a chunk, which fits.
        buffer.resize((range.end - range.start) as usize, 0);
        let before = std::mem::take(&mut self.part);
        let mut filled = before;
        let came = connection.receive_rest(buffer, &mut filled);
        if filled > before {
            self.tally.fetched_bytes += (filled - before) as u64;
            self.source.went_well();
        }
        if let Err(trouble) = came {
            self.part = filled;
            return Err(trouble);
        }
        self.asked.pop_front();
        Ok(index)
    }
}

fn fail(cause: Cause, error: anyhow::Error) -> Failure {
    Failure { stage: Stage::Transfer, cause, error }
}
