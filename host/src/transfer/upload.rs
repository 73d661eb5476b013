//! One upload on the disk, from its temporary name to its own.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use piman_core::hash::Hash;
use piman_core::transfer::Name;

use super::folder::{Claim, FileRefusal, Folder};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;

/// The least rate at which a peer is expected to hash what it has, in bytes a second.
pub(super) const HASH_PACE: u64 = 10_000_000;

/// How much is read at once to be hashed.
const HASH_PIECE: usize = 256 * 1024;

/// An upload that is not complete. While it lives nobody else can upload this name; dropped, it
/// stays for a while to be resumed, unless nothing was received.
#[derive(Debug)]
pub struct Upload {
    folder: Arc<Folder>,
    file: File,
    temporary: String,
    name: Name,
    /// What is there beyond this is given up when the first bytes come.
    keeps: Option<u64>,
    published: bool,
}

impl Folder {
    /// Takes the name for one upload and opens what is there of an earlier attempt.
    ///
    /// # Errors
    /// [`FileRefusal::Exists`], [`FileRefusal::Busy`], or the disk.
    pub fn part(self: &Arc<Self>, name: &Name, keep: bool) -> Result<Upload, FileRefusal> {
        match rustix::fs::statat(&self.root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(FileRefusal::Exists),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        // By its hash, since a name may be as long as the filesystem allows.
        let temporary = format!("{:.32}.part", blake3::hash(name.as_str().as_bytes()).to_hex());
        let mut claims = self.claims();
        if claims.contains_key(&temporary) {
            return Err(FileRefusal::Busy);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.parts, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        // Against another server on the same folder; it goes with the process.
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(FileRefusal::Busy),
            Err(e) => return Err(e.into()),
        }
        let file = File::from(fd);
        if file.metadata()?.nlink() == 0 {
            // The other server was done with it in between.
            return Err(FileRefusal::Busy);
        }
        claims.insert(temporary.clone(), Claim::default());
        drop(claims);
        let keeps = (!keep).then_some(0);
        Ok(Upload { folder: self.clone(), file, temporary, name: name.clone(), keeps, published: false })
    }
}

impl Upload {
    /// How many bytes are there.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The file, to be hashed.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Keeps the first `start` bytes and sets room aside for the rest of `size`, which this address brings.
    ///
    /// # Errors
    /// [`FileRefusal::NoSpace`], [`FileRefusal::Quota`], or the disk.
    pub fn reserve(&mut self, start: u64, size: u64, peer: IpAddr) -> Result<(), FileRefusal> {
        if start < self.len()? && !self.folder.may_replace(&self.temporary, peer) {
            return Err(FileRefusal::Busy);
        }
        self.folder.reserve(&self.temporary, size.saturating_sub(start), peer)?;
        self.keeps = Some(start);
        Ok(())
    }

    fn give_up_the_rest(&mut self) -> io::Result<()> {
        match self.keeps.take() {
            Some(start) => self.file.set_len(start.min(self.len()?)),
            None => Ok(()),
        }
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FileRefusal> {
        self.give_up_the_rest()?;
        self.folder.make_room(bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)?;
        self.folder.written(&self.temporary, bytes.len() as u64);
        Ok(())
    }

    /// Brings it to the disk and makes it visible under its name.
    ///
    /// # Errors
    /// [`FileRefusal::Exists`] if someone put a file of this name there by other means, or the disk's.
    pub fn publish(&mut self) -> Result<(), FileRefusal> {
        self.give_up_the_rest()?;
        self.file.set_permissions(PermissionsExt::from_mode(0o644))?;
        self.file.sync_all()?;
        self.folder.publish(&self.temporary, &self.name)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.published && self.len().is_ok_and(|n| n == 0) {
            self.folder.remove(&self.temporary);
        }
        // Before the claim, so that who comes next finds both free. What cannot be unlocked is
        // unlocked when the file is closed, right after this.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        self.folder.release(&self.temporary);
    }
}

/// The BLAKE3 hash of the first `bytes` bytes of a file.
///
/// # Errors
/// If it cannot be read, or is shorter.
pub(super) fn hash(file: &File, bytes: u64) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    hash_on(file, &mut 0, bytes, &mut hasher)?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}

/// Hashes on from `at` to the first `bytes` bytes of a file.
///
/// # Errors
/// If it cannot be read, or is shorter.
pub(super) fn hash_on(file: &File, at: &mut u64, bytes: u64, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let mut buf = vec![0; HASH_PIECE];
    while *at < bytes {
        let room = usize::try_from(bytes - *at).unwrap_or(usize::MAX).min(buf.len());
        let room = buf.get_mut(..room).unwrap_or_default();
        let n = file.read_at(room, *at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(room.get(..n).unwrap_or_default());
        *at += n as u64;
    }
    Ok(())
}
