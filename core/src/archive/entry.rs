//! What an archive says about each of its entries.

use alloc::vec::Vec;

/// One entry of an archive. Its content, if it is a file, is read from the [`Reader`](super::Reader) before
/// the next entry is asked for; what is not read is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Entry {
    /// The name as it is written; see [`components`](super::components).
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When it was changed last.
    pub mtime: Time,
    /// Extended attributes; no name occurs twice.
    pub xattrs: Vec<Xattr>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// A file, with what the archive stores of it.
    File(File),
    /// A directory.
    Directory,
    /// A symbolic link to this target, as it is written.
    Symlink(Vec<u8>),
    /// Another name of the entry of this name, which came before.
    Hardlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// The driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// The size of a file and which parts of it are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct File {
    /// Size in bytes, with holes.
    pub size: u64,
    /// `None` if all of it is stored. Else the parts that are, in order, without overlap, none
    /// empty and none beyond `size`; the rest is holes.
    pub sparse: Option<Vec<Segment>>,
}

impl File {
    /// The parts that are stored: the content that the [`Reader`](super::Reader) gives is these, one after
    /// the other.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        let whole = Segment { offset: 0, length: self.size };
        let whole = (self.sparse.is_none() && self.size > 0).then_some(whole);
        self.sparse.iter().flatten().copied().chain(whole)
    }
}

/// A part of a file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Segment {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanos: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Xattr {
    /// With its name space: `security.capability`.
    pub name: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}
