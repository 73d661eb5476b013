//! The folder that is served: what may be seen, what is under way, what is really free.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use piman_core::transfer::{Name, Refusal};
use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::files::{is_full, rename_new};
use crate::sys::lock::lock;

/// Where uploads lie until they are complete, in the folder itself: it is the same filesystem,
/// and no client can name it.
const PARTS: &str = ".piman-uploads";

/// A folder that is served. Shared by all connections.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    pub(super) root: OwnedFd,
    pub(super) parts: OwnedFd,
    /// Bytes that uploads under way still need, by the name of the part.
    claims: Mutex<HashMap<String, u64>>,
}

/// A part without a claim.
#[derive(Debug)]
struct Abandoned {
    written: SystemTime,
    /// On the disk.
    bytes: u64,
    temporary: String,
}

/// Why a file is refused, with what the log should say.
#[derive(Debug, thiserror::Error)]
pub enum FileRefusal {
    /// No such file, or not one that is served.
    #[error("there is no such file")]
    NotThere,
    /// There is one already.
    #[error("the file exists")]
    Exists,
    /// Someone else uploads it right now.
    #[error("someone else is uploading it")]
    Busy,
    /// More than is free.
    #[error("{needed} more bytes are needed, {free} are free")]
    NoSpace {
        /// Bytes that would have to be written.
        needed: u64,
        /// Bytes that nobody has a claim on.
        free: u64,
    },
    /// The disk or its filesystem.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FileRefusal {
    /// What the client is told.
    #[must_use]
    pub fn wire(&self) -> Refusal {
        match self {
            Self::NotThere | Self::Busy => Refusal::Refused,
            Self::Exists => Refusal::Exists,
            Self::NoSpace { .. } => Refusal::NoSpace,
            Self::Io(e) if is_full(e) => Refusal::NoSpace,
            Self::Io(_) => Refusal::Failed,
        }
    }
}

impl From<Errno> for FileRefusal {
    fn from(e: Errno) -> Self {
        Self::Io(e.into())
    }
}

impl Folder {
    /// Whether `path` can be served, without making anything in it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn check(path: &Path) -> io::Result<()> {
        let parts = path.join(PARTS);
        if !fs::metadata(path)?.is_dir() || fs::symlink_metadata(&parts).is_ok_and(|m| !m.is_dir()) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?)
    }

    /// Serves `path`, which must exist. Uploads that were broken off before are found again.
    ///
    /// # Errors
    /// If it is no folder, or nothing can be made in it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        match fs::DirBuilder::new().mode(0o700).create(path.join(PARTS)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let parts = rustix::fs::openat(&root, PARTS, flags | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { path: path.to_owned(), root, parts, claims: Mutex::default() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a complete file to be sent, and says how large it is.
    ///
    /// # Errors
    /// [`FileRefusal::NotThere`] for anything that is not a plain file: links are not followed.
    pub fn file(&self, name: &Name) -> Result<(File, u64), FileRefusal> {
        // Without blocking: opening a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.root, name.as_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => {
                return Err(FileRefusal::NotThere);
            }
            Err(e) => return Err(e.into()),
        };
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(FileRefusal::NotThere) }
    }

    /// Removes what was broken off and not taken up again for `age`; returns how many.
    pub fn sweep(&self, age: Duration) -> usize {
        let claims = self.claims();
        let mut swept = 0;
        for part in self.abandoned(&claims, age) {
            swept += usize::from(self.discard(&part.temporary));
        }
        swept
    }

    /// Gives up the claim on a part.
    pub(super) fn release(&self, temporary: &str) {
        self.claims().remove(temporary);
    }

    /// Sets the bytes aside that a part still needs. If there are not enough, what was broken
    /// off before goes first, the oldest before the others.
    pub(super) fn reserve(&self, temporary: &str, needed: u64) -> Result<(), FileRefusal> {
        let mut claims = self.claims();
        let claimed = claims.iter().filter(|(t, _)| *t != temporary).map(|(_, bytes)| *bytes);
        let claimed = claimed.fold(0u64, u64::saturating_add);
        let free = || -> io::Result<u64> {
            let disk = rustix::fs::fstatvfs(&self.parts)?;
            Ok(disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(claimed))
        };
        let old = if free()? < needed { self.abandoned(&claims, Duration::ZERO) } else { Vec::new() };
        let all = old.iter().fold(free()?, |sum, part| sum.saturating_add(part.bytes));
        // Nothing is given up if that would not be enough.
        for part in old.iter().take_while(|_| all >= needed) {
            if free()? >= needed {
                break;
            }
            self.discard(&part.temporary);
        }
        let free = free()?;
        if free < needed {
            return Err(FileRefusal::NoSpace { needed, free });
        }
        claims.insert(temporary.to_owned(), needed);
        Ok(())
    }

    /// Takes note that so many of the bytes that were set aside are on the disk.
    pub(super) fn written(&self, temporary: &str, bytes: u64) {
        if let Some(needed) = self.claims().get_mut(temporary) {
            *needed = needed.saturating_sub(bytes);
        }
    }

    /// Makes a part visible under its name, unless there is such a file by now.
    pub(super) fn publish(&self, temporary: &str, name: &Name) -> Result<(), FileRefusal> {
        let named = rename_new(&self.parts, Path::new(temporary), &self.root, Path::new(name.as_str()));
        named.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => FileRefusal::Exists,
            _ => FileRefusal::Io(e),
        })?;
        rustix::fs::fsync(&self.root)?;
        Ok(())
    }

    /// Removes the part of an upload that has a claim on it.
    pub(super) fn remove(&self, temporary: &str) {
        if let Err(e) = rustix::fs::unlinkat(&self.parts, temporary, AtFlags::empty()) {
            tracing::warn!("an empty part stays until it is swept: {e}");
        }
    }

    /// Removes a part that nobody has a claim on.
    fn discard(&self, temporary: &str) -> bool {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(&self.parts, temporary, flags, Mode::empty()) else { return false };
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok()
            && rustix::fs::unlinkat(&self.parts, temporary, AtFlags::empty()).is_ok()
    }

    /// Parts without a claim that nothing was written to for `age`, the oldest first.
    fn abandoned(&self, claims: &HashMap<String, u64>, age: Duration) -> Vec<Abandoned> {
        let mut found = Vec::new();
        // By its path, since a listing of a handle would need its place kept.
        let Ok(entries) = fs::read_dir(self.path.join(PARTS)) else { return found };
        for entry in entries.flatten() {
            let Ok(temporary) = entry.file_name().into_string() else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let Ok(written) = metadata.modified() else { continue };
            let is_old = written.elapsed().unwrap_or_default() >= age;
            if is_old && !claims.contains_key(&temporary) {
                found.push(Abandoned { written, bytes: metadata.blocks().saturating_mul(512), temporary });
            }
        }
        found.sort_by_key(|part| part.written);
        found
    }

    pub(super) fn claims(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        // Every change to the map is one step: it is whole even if a thread died.
        lock(&self.claims)
    }
}
