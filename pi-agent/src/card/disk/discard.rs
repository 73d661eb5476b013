//! Telling a disk that a part of it holds nothing any more, so that it can write there faster and wear less.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};

use super::{Disk, RootArea, ioctl};

/// How much is discarded by one request, in bytes: cards take seconds for some.
const STEP: u64 = 1 << 30;

impl Disk {
    /// Discards a part of the disk. What is read there afterwards may be anything.
    ///
    /// # Errors
    /// The disk's; many cannot be told.
    pub fn discard(&self, area: RootArea) -> io::Result<()> {
        let end = area.offset.saturating_add(area.length);
        let mut at = area.offset;
        while at < end {
            let length = STEP.min(end - at);
            if self.device {
                ioctl::discard(&self.file, at, length)?;
            } else {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, hole, at, length)?;
            }
            at += length;
        }
        Ok(())
    }
}
