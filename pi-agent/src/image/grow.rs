//! The root filesystem as it is in the image, made as large as its partition.

use std::io;

use anyhow::anyhow;
use piman_core::install::Stage;
use piman_core::install::grow::{self, BLOCK_BYTES, Block, Disk, Refusal};
use piman_core::install::table::BLOCK;

use super::area::{Aligned, Medium};
use super::{Pending, write};
use crate::failure::{Cause, Failure, OrFail};
use crate::telemetry::display::size;

/// The size of a group, in bytes: more than this is never left over at the end of a partition, but behind the largest
/// filesystem.
const GROUP: u64 = 128 << 20;
/// Blocks that follow each other are written together, up to so many bytes.
const TOGETHER: usize = 256 << 10;

/// Makes the filesystem of an image as large as the medium, if it is one that grows, and brings that to the medium; the
/// first block is not written. To be called once, after [`install`](super::install).
///
/// # Errors
/// [`Cause::Image`] if the image cannot grow; [`Cause::Disk`] if the disk fails.
pub fn grow(medium: &impl Medium, pending: &mut Pending) -> Result<(), Failure> {
    if !pending.grows {
        return Ok(());
    }
    const WHAT: &str = "making the root filesystem as large as its partition";
    let first = pending.first.first_chunk::<BLOCK_BYTES>().copied();
    let mut first = first.ok_or_else(|| refused(Refusal::Superblock))?;
    let mut writes = Writes { medium, buffer: Aligned::new(TOGETHER), at: 0, filled: 0, done: (0, 0) };
    let shape = match grow::grow(&mut first, medium.length(), &mut writes) {
        Ok(shape) => shape,
        Err(grow::Failure::Refused(why)) => return Err(refused(why)),
        Err(grow::Failure::Disk(e)) => return Err(e).or_fail(Stage::Filesystem, Cause::Disk, WHAT),
    };
    writes.flush().and_then(|()| medium.sync()).or_fail(Stage::Filesystem, Cause::Disk, WHAT)?;
    let (count, bytes) = writes.done;
    pending.first = first.to_vec();
    pending.summary.writes += count;
    pending.summary.written_bytes += bytes;
    pending.summary.total_bytes = shape.bytes();
    log::info!("the root filesystem has {} now", size(shape.bytes()));
    if medium.length().saturating_sub(shape.bytes()) >= GROUP {
        log::warn!(
            "what is behind that stays unused, of {}: to fill it, let this Pi extract the archive (piman.path=archive)",
            size(medium.length())
        );
    }
    Ok(())
}

fn refused(why: Refusal) -> Failure {
    let error = anyhow!(
        "the root filesystem of the image cannot be made as large as its partition: {why}; make the image again on the \
         server"
    );
    Failure { stage: Stage::Filesystem, cause: Cause::Image, error }
}

/// Writes blocks that follow each other together.
struct Writes<'m, M> {
    medium: &'m M,
    buffer: Aligned,
    /// Where the bytes in the buffer belong.
    at: u64,
    filled: usize,
    /// How many writes of how many bytes there were.
    done: (u32, u64),
}

impl<M: Medium> Writes<'_, M> {
    fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.medium.write_at(self.at, self.buffer.first(self.filled))?;
            self.done = (self.done.0 + 1, self.done.1 + self.filled as u64);
            self.filled = 0;
        }
        Ok(())
    }
}

impl<M: Medium> Disk for Writes<'_, M> {
    type Error = io::Error;

    fn read(&mut self, block: u64, into: &mut Block) -> io::Result<()> {
        // What is read is never in the buffer: only blocks of the image are, before they are written.
        let mut buffer = Aligned::new(BLOCK_BYTES);
        self.medium.read_at(block * BLOCK, buffer.first_mut(BLOCK_BYTES))?;
        into.copy_from_slice(buffer.first(BLOCK_BYTES));
        Ok(())
    }

    fn write(&mut self, block: u64, bytes: &Block) -> io::Result<()> {
        let place = block * BLOCK;
        if place != self.at + self.filled as u64 || self.filled == TOGETHER {
            self.flush()?;
            self.at = place;
        }
        let all = self.buffer.first_mut(TOGETHER);
        match all.get_mut(self.filled..).and_then(|rest| rest.get_mut(..BLOCK_BYTES)) {
            Some(place) => place.copy_from_slice(bytes),
            None => return write(self.medium, place, bytes),
        }
        self.filled += BLOCK_BYTES;
        Ok(())
    }
}
