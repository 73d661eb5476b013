//! What can be wrong with an archive, and where.

use alloc::vec::Vec;
use core::fmt;

/// Why an archive cannot be read on. Reading must end here: what follows has no meaning.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Error<E> {
    /// The bytes could not be had: the fault of whatever gives them, not of the archive.
    Read(E),
    /// The archive is damaged, or uses what is not supported.
    Damaged {
        /// Bytes of the unpacked archive before the damage.
        at: u64,
        /// The entry that is damaged; empty if its name is not known yet.
        entry: Vec<u8>,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Damage {
    /// It ends before its end marker.
    Truncated,
    /// A block that should be a header has a wrong checksum: no tar archive, or a damaged one.
    Checksum,
    /// A single block of zeros stands between entries.
    LoneZeroBlock,
    /// The named field holds no number, or one that is out of range.
    Number(&'static str),
    /// The named thing is longer than our limits.
    TooLong(&'static str),
    /// A pax header is malformed in the named way.
    Pax(&'static str),
    /// The map of a sparse file is malformed in the named way.
    Sparse(&'static str),
    /// An entry has no name.
    NoName,
    /// Something that cannot be installed.
    Unsupported(&'static str),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the archive is truncated: it has no end marker"),
            Self::Checksum => f.write_str("no tar header here, or a damaged one (wrong checksum)"),
            Self::LoneZeroBlock => f.write_str("a block of zeros stands between entries"),
            Self::Number(field) => write!(f, "the {field} is not a number in range"),
            Self::TooLong(what) => write!(f, "the {what} is too long"),
            Self::Pax(why) => write!(f, "malformed pax header: {why}"),
            Self::Sparse(why) => write!(f, "malformed sparse file: {why}"),
            Self::NoName => f.write_str("an entry without a name"),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
        }
    }
}

impl<E> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(_) => f.write_str("reading the archive"),
            Self::Damaged { at, entry, damage } if entry.is_empty() => write!(f, "{damage} (at byte {at})"),
            Self::Damaged { at, entry, damage } => {
                write!(f, "`{}`: {damage} (at byte {at})", entry.escape_ascii())
            }
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for Error<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Read(error) => Some(error),
            Self::Damaged { .. } => None,
        }
    }
}

/// For those who read an entry's content through [`std::io::Read`]: `UnexpectedEof` for a
/// truncated archive, `InvalidData` for any other damage.
#[cfg(feature = "std")]
impl From<Error<Self>> for std::io::Error {
    fn from(error: Error<Self>) -> Self {
        let kind = match error {
            Error::Read(error) => return error,
            Error::Damaged { damage: Damage::Truncated, .. } => std::io::ErrorKind::UnexpectedEof,
            Error::Damaged { .. } => std::io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
