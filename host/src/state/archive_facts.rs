//! What is known of an archive, and of which version of it.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use piman_core::hash::Hash;

use crate::images::fitness::Fitness;

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    pub(crate) bytes: u64,
    modified: (i64, i64),
    /// Changes with every write, also if somebody sets the time of the last one back; and with
    /// the name, so it says nothing of a file that is open.
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file with this metadata.
    pub(crate) fn of(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            bytes: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }

    /// Whether it is the same file with the same content, whatever its name is now.
    pub(crate) fn is_content_of(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }

    /// When it was changed, in milliseconds since 1970.
    pub(crate) fn changed_ms(&self) -> u64 {
        let (seconds, nanoseconds) = self.changed;
        let part = u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000;
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).saturating_add(part)
    }

    /// Reads what its `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        let stamp = Self {
            device: next()?.parse().ok()?,
            inode: next()?.parse().ok()?,
            bytes: next()?.parse().ok()?,
            modified: (next()?.parse().ok()?, next()?.parse().ok()?),
            changed: (next()?.parse().ok()?, next()?.parse().ok()?),
        };
        words.next().is_none().then_some(stamp)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, bytes, modified, changed } = self;
        write!(f, "{device} {inode} {bytes} {} {} {} {}", modified.0, modified.1, changed.0, changed.1)
    }
}

/// What is known of an archive that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// BLAKE3 of the whole file: the image's identity.
    pub id: Hash,
    /// The hashes of its chunks, as the fetch port sends them.
    pub sums: Vec<u8>,
    /// The size of what is packed in it, in bytes; what is used of a disk image.
    pub unpacked_bytes: u64,
    /// How many entries it has; 0: it is a disk image.
    pub entries: u64,
    /// Whether what it holds can run on a Pi.
    pub fitness: Fitness,
}

impl Content {
    /// Whether it is a disk image and no archive.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        self.entries == 0
    }
}
