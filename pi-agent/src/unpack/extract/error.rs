//! Why an archive could not be extracted: the archive, one of its entries, or the disk.

use std::{fmt, io};

use rustix::io::Errno;

use crate::failure::Cause;
use piman_core::archive;

/// Why extraction ended.
#[derive(Debug)]
pub enum Error {
    /// The archive could not be read, or is damaged.
    Archive(archive::Error<io::Error>),
    /// An entry that must not, or cannot, be created: the archive's fault.
    Entry {
        /// Its name.
        entry: Vec<u8>,
        /// Why not.
        why: String,
    },
    /// The disk or the kernel refused.
    Disk {
        /// What could not be created.
        entry: Vec<u8>,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// The process may not do this.
    NotRoot,
}

impl Error {
    /// Whose fault it is; `None` if the archive's bytes could not be had, which only the one
    /// who gives them can tell.
    #[must_use]
    pub const fn cause(&self) -> Option<Cause> {
        match self {
            Self::Archive(archive::Error::Read(_)) => None,
            Self::Archive(archive::Error::Damaged { .. }) | Self::Entry { .. } => Some(Cause::Image),
            Self::Disk { .. } => Some(Cause::Disk),
            Self::NotRoot => Some(Cause::Refused),
        }
    }

    pub(super) fn entry(entry: &[u8], why: impl Into<String>) -> Self {
        Self::Entry { entry: entry.to_vec(), why: why.into() }
    }
}

impl From<archive::Error<io::Error>> for Error {
    fn from(error: archive::Error<io::Error>) -> Self {
        Self::Archive(error)
    }
}

/// Says what was being done to which entry when the kernel refused.
pub(super) trait While<T> {
    fn doing(self, doing: &'static str, entry: &[u8]) -> Result<T, Error>;
}

impl<T> While<T> for Result<T, Errno> {
    fn doing(self, doing: &'static str, entry: &[u8]) -> Result<T, Error> {
        self.map_err(|errno| Error::Disk { entry: entry.to_vec(), doing, errno })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(error) => error.fmt(f),
            Self::Entry { entry, why } => write!(f, "`{}`: {why}", entry.escape_ascii()),
            Self::Disk { entry, doing, errno } => {
                let entry = entry.escape_ascii();
                match *errno {
                    Errno::NOSPC | Errno::DQUOT => write!(
                        f,
                        "the disk is full: no room for `{entry}` ({doing}); \
                         the root partition must be larger or the archive smaller"
                    ),
                    Errno::ROFS => write!(f, "the filesystem is read-only, {doing} `{entry}`"),
                    Errno::IO => write!(f, "the disk fails, {doing} `{entry}`"),
                    _ => write!(f, "{doing} `{entry}`"),
                }
            }
            Self::NotRoot => f.write_str(
                "extracting an archive needs root, for owners and devices; as an ordinary user, install by the image path",
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Archive(error) => error.source(),
            Self::Disk { errno, .. } => Some(errno),
            Self::Entry { .. } | Self::NotRoot => None,
        }
    }
}
