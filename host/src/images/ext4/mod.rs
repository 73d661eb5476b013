//! Images: an archive as an ext4 filesystem in chunks, made once for cards of all sizes.
//!
//! | file | what lives there |
//! |---|---|
//! | `tree` | what an archive says should be there |
//! | `scan` | an archive, read once, as a tree |
//! | `need` | how large that has to be |
//! | `plan` | a tree as the layout of a filesystem |
//! | `build` | that layout and its archive as a filesystem and its chunks |
//! | `blocks` | the content of a file as its blocks have it |
//! | `front` | how far its content is written, for what packs it |
//! | `spool` | that filesystem while it is made |
//! | `early` | what of an image can be fetched while it is made |
//! | `pack` | the used parts of a filesystem as chunks and their table |
//! | `store` | images in the state folder, [`Images`] |
//! | `verify` | a filesystem compared with an archive |
//! | `acl` | access control lists as ext4 stores them |

mod acl;
mod blocks;
mod build;
mod early;
mod front;
mod need;
pub(super) mod pack;
mod plan;
mod scan;
mod spool;
mod store;
pub(super) mod tree;
mod verify;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use piman_core::install::table::Header;

pub use build::{Order, build};
pub use early::{Early, Following};
pub use need::GROWS_TO;
pub use pack::Built;
pub use store::{FOLDER, Image, Images};
pub use verify::{Comparison, compare};

/// The proof's name in the root directory, which the agent fills in.
pub(crate) const PROOF: &str = piman_core::install::receipt::NAME;

/// What every ext4 filesystem has in its root directory.
pub(crate) const LOST_FOUND: &str = "lost+found";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that images cannot hold; extracting on the Pi can.
    #[error("`{name}` is not UTF-8, which an image cannot hold: install this archive with `--path archive`")]
    NotUtf8 {
        /// The name, escaped.
        name: String,
    },
    /// Something else that images cannot hold; extracting on the Pi may.
    #[error("an image cannot hold this archive: {0}; install it with `--path archive`")]
    Unsupported(String),
    /// The archive is damaged.
    #[error("the archive is damaged")]
    Archive(#[source] piman_core::archive::Error<io::Error>),
    /// An entry that cannot be extracted anywhere.
    #[error("the archive is wrong: `{name}` {why}")]
    Entry {
        /// The entry's name, escaped.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The archive is not the one whose hash was given, or changed meanwhile.
    #[error("the archive changed while it was being read")]
    Changed,
    /// The state folder or the archive's file failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The filesystem made is not what it should be: our own fault.
    #[error("the image made is wrong, which is a defect of piman: {0}")]
    Wrong(String),
    /// What a disk image is cannot be sent to cards.
    #[error("the disk image is not usable: {0}")]
    Disk(String),
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether the archive may still be installed by stream.
    #[must_use]
    pub const fn leaves_stream(&self) -> bool {
        matches!(self, Self::NotUtf8 { .. } | Self::Unsupported(_) | Self::Wrong(_) | Self::Io { .. })
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What packs an archive reports damage as such; all else is the file's fault.
impl From<piman_core::archive::Error<io::Error>> for Error {
    fn from(e: piman_core::archive::Error<io::Error>) -> Self {
        match e {
            piman_core::archive::Error::Read(source)
                if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Io { what: "reading the archive".into(), source }
            }
            e => Self::Archive(e),
        }
    }
}

/// What mkext4 says after its input was checked.
impl From<mkext4::Error> for Error {
    fn from(e: mkext4::Error) -> Self {
        match e {
            mkext4::Error::Io(source) => Self::Io { what: "writing the filesystem".into(), source },
            e => Self::Unsupported(e.to_string()),
        }
    }
}

/// How far an image is: for displays, and for Pis that do not wait until it is whole.
#[derive(Debug, Default)]
pub struct Progress {
    percent: AtomicU32,
    early: OnceLock<Arc<Early>>,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { percent: AtomicU32::new(0), early: OnceLock::new() }
    }

    /// From 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u32 {
        self.percent.load(Relaxed).min(100)
    }

    /// The chunks so far, once the first are being made.
    #[must_use]
    pub fn early(&self) -> Option<&Arc<Early>> {
        self.early.get()
    }

    /// From now on chunks of an image with this header are appended to this file.
    pub(super) fn begin_chunks(&self, header: Header, chunks: &File) -> Result<&Early, Error> {
        let chunks = chunks.try_clone().map_err(Error::io("opening the chunks for those who fetch them"))?;
        Ok(self.early.get_or_init(|| Arc::new(Early::new(header, chunks))))
    }

    /// `done` of `total` bytes of a part that goes from one percentage to another.
    pub(crate) fn set(&self, part: (u32, u32), done: u64, total: u64) {
        let (from, to) = part;
        let share = u128::from(done.min(total)) * u128::from(to - from) / u128::from(total.max(1));
        self.percent.store(from + u32::try_from(share).unwrap_or(0), Relaxed);
    }
}
