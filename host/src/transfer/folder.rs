//! The folder that is served: what may be seen, what is under way, what is really free.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use piman_core::transfer::{Name, Refusal};
use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::net::quota::{Allowance, OverQuota, Quota};
use crate::net::reserve::Reserve;
use crate::sys::files::{is_full, rename_new};
use crate::sys::lock::lock;

/// Where uploads lie until they are complete, in the folder itself: it is the same filesystem,
/// and no client can name it.
const PARTS: &str = ".piman-uploads";
/// So long nobody else may begin anew what one address has begun.
const ALONE: Duration = Duration::from_secs(3600);
/// How many parts it is remembered of who wrote to them.
const WRITERS_MAX: usize = 4096;

/// A folder that is served. Shared by all connections.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    pub(super) root: OwnedFd,
    pub(super) parts: OwnedFd,
    /// What uploads under way still need, by the name of the part.
    claims: Mutex<HashMap<String, Claim>>,
    /// Who wrote to a part, and when.
    writers: Mutex<HashMap<String, (IpAddr, Instant)>>,
    reserve: Reserve,
    quota: Quota,
}

/// What one upload still needs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Claim {
    bytes: u64,
    /// Whose quota it is of.
    peer: Option<IpAddr>,
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
    #[error(
        "{needed} more bytes are needed, {free} are free, beside {reserve} that are kept free (--reserve-mib)"
    )]
    NoSpace {
        /// Bytes that would have to be written.
        needed: u64,
        /// Bytes that nobody has a claim on.
        free: u64,
        /// Bytes that uploads leave free.
        reserve: u64,
    },
    /// More than this address, or all, may bring.
    #[error("{0} (--transfer-peer-quota-mib, --transfer-quota-mib)")]
    Quota(#[from] OverQuota),
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
            Self::NoSpace { .. } | Self::Quota(_) => Refusal::NoSpace,
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
        let Allowance { reserve, quotas } = Allowance::NONE;
        let (claims, writers, quota) = (Mutex::default(), Mutex::default(), Quota::new(quotas));
        Ok(Self { path: path.to_owned(), root, parts, claims, writers, reserve, quota })
    }

    /// The same with these limits.
    #[must_use]
    pub fn limited(self, allowance: Allowance) -> Self {
        Self { reserve: allowance.reserve, quota: Quota::new(allowance.quotas), ..self }
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

    /// Gives up the claim on a part; what was not brought does not count.
    pub(super) fn release(&self, temporary: &str) {
        let claim = self.claims().remove(temporary).unwrap_or_default();
        if let Some(peer) = claim.peer {
            self.quota.give_back(peer, claim.bytes);
        }
    }

    /// Sets the bytes aside that a part still needs. What was broken off before counts as free: it goes when the bytes
    /// come, and not because somebody says that they will.
    pub(super) fn reserve(&self, temporary: &str, needed: u64, peer: IpAddr) -> Result<(), FileRefusal> {
        let mut claims = self.claims();
        let claimed = claims.iter().filter(|(t, _)| *t != temporary).map(|(_, claim)| claim.bytes);
        let claimed = claimed.fold(0u64, u64::saturating_add);
        let disk = self.reserve.free(&self.parts)?;
        let mut free = disk.bytes.saturating_sub(claimed);
        if free < needed {
            let old = self.abandoned(&claims, Duration::ZERO);
            let old = old.iter().fold(0u64, |sum, part| sum.saturating_add(part.bytes));
            free = disk.bytes.saturating_add(old).saturating_sub(claimed);
        }
        if free < needed {
            return Err(FileRefusal::NoSpace { needed, free, reserve: disk.reserve });
        }
        self.quota.take(peer, needed, free)?;
        claims.insert(temporary.to_owned(), Claim { bytes: needed, peer: Some(peer) });
        Ok(())
    }

    /// Whether this address may begin anew what is there of a part: another one's is left alone for a while.
    pub(super) fn may_replace(&self, temporary: &str, peer: IpAddr) -> bool {
        let writers = lock(&self.writers);
        writers.get(temporary).is_none_or(|(writer, at)| *writer == peer || at.elapsed() >= ALONE)
    }

    /// Makes room for bytes that have come: if there is none, what was broken off before goes, the oldest before the
    /// others.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), FileRefusal> {
        if self.reserve.free(&self.parts)?.bytes >= bytes {
            return Ok(());
        }
        let claims = self.claims();
        for part in self.abandoned(&claims, Duration::ZERO) {
            self.discard(&part.temporary);
            if self.reserve.free(&self.parts)?.bytes >= bytes {
                return Ok(());
            }
        }
        let disk = self.reserve.free(&self.parts)?;
        Err(FileRefusal::NoSpace { needed: bytes, free: disk.bytes, reserve: disk.reserve })
    }

    /// Takes note that so many of the bytes that were set aside are on the disk.
    pub(super) fn written(&self, temporary: &str, bytes: u64) {
        let mut claims = self.claims();
        let Some(claim) = claims.get_mut(temporary) else { return };
        claim.bytes = claim.bytes.saturating_sub(bytes);
        let Some(peer) = claim.peer else { return };
        drop(claims);
        let mut writers = lock(&self.writers);
        if writers.len() >= WRITERS_MAX {
            writers.retain(|_, (_, at)| at.elapsed() < ALONE);
        }
        if writers.len() < WRITERS_MAX || writers.contains_key(temporary) {
            writers.insert(temporary.to_owned(), (peer, Instant::now()));
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
    fn abandoned(&self, claims: &HashMap<String, Claim>, age: Duration) -> Vec<Abandoned> {
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

    pub(super) fn claims(&self) -> MutexGuard<'_, HashMap<String, Claim>> {
        // Every change to the map is one step: it is whole even if a thread died.
        lock(&self.claims)
    }
}
