//! Reading tar archives: a small parser that never panics, never holds more than its limits,
//! and reads the archive front to back through any [`BufRead`](std::io::BufRead).
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
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use piman_core::hosted::archive::{Kind, Reader};
//! use std::io::{BufReader, Read};
//! let input = BufReader::with_capacity(256 << 10, std::fs::File::open("root.tar")?);
//! let mut reader = Reader::new(input);
//! while let Some(entry) = reader.next_entry()? {
//!     if let Kind::File(file) = &entry.kind {
//!         for segment in file.segments() {
//!             // `segment.length` bytes at `segment.offset` of the file:
//!             let mut data = vec![0; usize::try_from(segment.length)?];
//!             reader.read_exact(&mut data)?;
//!         }
//!     }
//! }
//! reader.drain()?; // gzip's checksum is behind the end of the archive
//! # Ok(()) }
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
