//! Whether a disk is still the one that was looked at: a card may be changed in its reader, and a file be replaced, while
//! the agent waits for a decision about it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::anyhow;
use piman_core::install::Stage;

use super::{Disk, usage};
use crate::failure::{Cause, Failure};
use crate::image::Aligned;

/// How much of its start is compared, in bytes: the table, and the first things behind it.
const START: usize = 64 << 10;

/// What a disk was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The device's number, or the file's.
    node: Option<[u64; 3]>,
    /// The kernel counts the media that it has seen.
    sequence: Option<String>,
    id: Option<String>,
    /// A hash of its start; `None` if that cannot be read.
    start: Option<blake3::Hash>,
}

impl Disk {
    /// What it is now.
    pub(crate) fn seen(&self) -> Seen {
        let node = fs::metadata(&self.path).ok().map(|meta| match self.device {
            true => [0, 0, meta.rdev()],
            false => [meta.dev(), meta.ino(), 0],
        });
        let sysfs = self.file.metadata().ok().filter(|_| self.device).map(|meta| usage::sysfs(meta.rdev()));
        let sequence = sysfs.and_then(|folder| fs::read_to_string(folder.join("diskseq")).ok());
        Seen { node, sequence, id: self.id(), start: self.start() }
    }

    /// Past the kernel's memory of the disk, which another card does not change.
    fn start(&self) -> Option<blake3::Hash> {
        use std::os::unix::fs::FileExt;
        let direct = self.direct().ok()?;
        let length = usize::try_from(self.bytes / 4096 * 4096).unwrap_or(START).min(START);
        let mut buffer = Aligned::new(length);
        let read = direct.read_exact_at(buffer.first_mut(length), 0);
        read.or_else(|_| self.file.read_exact_at(buffer.first_mut(length), 0)).ok()?;
        Some(blake3::hash(buffer.first(length)))
    }

    /// Says if it is not what was seen.
    ///
    /// # Errors
    /// [`Cause::Refused`].
    pub(crate) fn is_still(&self, seen: &Seen) -> Result<(), Failure> {
        if self.seen() == *seen {
            return Ok(());
        }
        let shown = Path::display(&self.path);
        let error = anyhow!(
            "{shown} is another disk, or holds something else, than when it was looked at: start again, so that it is \
             looked at anew; nothing was changed"
        );
        Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error })
    }
}
