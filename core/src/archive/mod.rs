//! Reading tar archives: a small parser that never panics, never holds more than its limits,
//! and reads the archive front to back through any [`BufRead`](embedded_io::BufRead);
//! a reader of `std` is wrapped in `embedded_io_adapters::std::FromStd`.
//!
//! Understood: v7, ustar, GNU (long names and links, numbers in base 256, sparse files) and
//! pax (`x` and `g` headers with `path`, `linkpath`, `size`, `uid`, `gid`, `mtime`,
//! `SCHILY.acl.*`, `SCHILY.xattr.*`, `LIBARCHIVE.xattr.*` and `GNU.sparse.*` of versions 0.0, 0.1 and 1.0).
//! Unknown types of entries are files, as the standard has it; volume labels are passed over.
//!
//! Not supported, and passed over in silence as GNU tar does without its options for them: SELinux labels
//! (`RHT.security.selinux`), user and group *names* (the numbers count), access and change times. An access control
//! list that names somebody without a number is left out, which is logged. Refused: archives of several
//! volumes.
//!
//! ```
//! use piman_core::archive::{Error, Kind, Reader};
//!
//! /// The bytes of all files in an archive that lies in memory.
//! fn stored(tar: &[u8]) -> Result<u64, Error<core::convert::Infallible>> {
//!     let (mut reader, mut stored) = (Reader::new(tar), 0);
//!     while let Some(entry) = reader.next_entry()? {
//!         let Kind::File(file) = &entry.kind else { continue };
//!         for segment in file.segments() {
//!             // `segment.length` bytes at `segment.offset` of the file: what `content` gives next.
//!             stored += segment.length;
//!         }
//!     }
//!     reader.drain()?; // gzip's checksum is behind the end of the archive
//!     Ok(stored)
//! }
//! assert_eq!(stored(&[0; 1024]).unwrap(), 0);
//! ```

mod acl;
mod entry;
mod error;
mod header;
mod path;
mod pax;
mod reader;
mod sparse;

pub use entry::{Entry, File, Kind, Segment, Time, Xattr};
pub use error::{Damage, Error};
pub use path::{UnsafePath, components};
pub use reader::Reader;

/// The longest name or link target, in bytes.
pub const NAME_MAX: usize = 4096;
/// The deepest directory that an entry may be in; extracting keeps the directories on the way open.
pub const DEPTH_MAX: usize = 500;
/// The longest pax headers of one entry, in bytes.
pub const PAX_MAX: u64 = 1 << 20;
/// The most parts that a sparse file may have; each takes 16 bytes of memory.
pub const SEGMENTS_MAX: usize = 1 << 20;
/// The most extended attributes that an entry may have.
pub const XATTRS_MAX: usize = 4096;
