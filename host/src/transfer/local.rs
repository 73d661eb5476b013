//! The client's file, as the core's storage: blocking, since a client has nothing else to do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use piman_core::hash::Hash;
use piman_core::transfer::{Name, Refusal, Storage};
use rustix::fs::{CWD, FlockOperation, OFlags};
use rustix::io::Errno;

use super::upload;
use crate::sys::files::{is_full, rename_new};

/// A file that is put.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) failure: Option<io::Error>,
}

impl Source {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a plain file"));
        }
        Ok(Self { size: metadata.len(), file, failure: None })
    }
}

/// Opening a pipe by mistake must not wait for a writer.
fn nonblocking() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default()
}

impl Storage for Source {
    async fn open(&mut self, _: &Name) -> Result<u64, Refusal> {
        Ok(self.size)
    }

    async fn create(&mut self, _: &Name, _: bool) -> Result<u64, Refusal> {
        Err(Refusal::Failed)
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        upload::hash(&self.file, bytes).map_err(|e| keep(&mut self.failure, e))
    }

    async fn reserve(&mut self, _: u64, _: u64) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        self.file.read_at(buf, offset).map_err(|e| keep(&mut self.failure, e))
    }

    async fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }
}

/// Where a file is got to. What is there of an earlier attempt lies beside it under a name of its own.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    folder: PathBuf,
    part: PathBuf,
    replace: bool,
    file: File,
    committed: bool,
    /// The hash of what is there up to here, so that it is taken once.
    hashed: (u64, blake3::Hasher),
    pub(super) failure: Option<io::Error>,
}

impl Target {
    /// Takes `path`; with `replace`, a file of that name is replaced when all is there.
    ///
    /// # Errors
    /// If there is such a file and it is not to be replaced, if another process gets the
    /// same file, or nothing can be made there.
    pub fn open(path: &Path, replace: bool) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
        }
        if !replace && path.symlink_metadata().is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists; remove it, or use --force to replace it",
            ));
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // By its hash, since a name may be as long as the filesystem allows.
        let part = format!(".piman-{:.16}.part", blake3::hash(name.as_encoded_bytes()).to_hex());
        let part = folder.join(part);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default())
            .open(&part)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another process is getting this file",
                ));
            }
            Err(e) => return Err(e.into()),
        }
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process has just got this file",
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            folder,
            part,
            replace,
            file,
            committed: false,
            hashed: (0, blake3::Hasher::new()),
            failure: None,
        })
    }

    /// How many bytes are there of an earlier attempt.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn have(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Hashes what is there, and says how much it is.
    pub(super) fn prepare(&mut self) -> io::Result<u64> {
        let have = self.have()?;
        self.hash_up_to(have)?;
        Ok(have)
    }

    fn hash_up_to(&mut self, bytes: u64) -> io::Result<Hash> {
        if self.hashed.0 > bytes {
            self.hashed = (0, blake3::Hasher::new());
        }
        let (at, hasher) = &mut self.hashed;
        upload::hash_on(&self.file, at, bytes, hasher)?;
        Ok(Hash(*hasher.finalize().as_bytes()))
    }

    fn room(&self, start: u64, size: u64) -> io::Result<bool> {
        self.file.set_len(start)?;
        let disk = rustix::fs::fstatvfs(&self.file)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize) >= size.saturating_sub(start))
    }

    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.replace {
            fs::rename(&self.part, &self.path)?;
        } else {
            rename_new(CWD, &self.part, CWD, &self.path)?;
        }
        File::open(&self.folder)?.sync_all()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.committed && self.have().is_ok_and(|n| n == 0) {
            // An empty one is of no use to anybody, and harmless if it stays.
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl Storage for Target {
    async fn open(&mut self, _: &Name) -> Result<u64, Refusal> {
        Err(Refusal::Failed)
    }

    async fn create(&mut self, _: &Name, keep_it: bool) -> Result<u64, Refusal> {
        if !keep_it {
            self.hashed = (0, blake3::Hasher::new());
        }
        let have = if keep_it { self.have() } else { self.file.set_len(0).map(|()| 0) };
        have.map_err(|e| keep(&mut self.failure, e))
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        self.hash_up_to(bytes).map_err(|e| keep(&mut self.failure, e))
    }

    async fn reserve(&mut self, start: u64, size: u64) -> Result<(), Refusal> {
        if self.hashed.0 > start {
            self.hashed = (0, blake3::Hasher::new());
        }
        match self.room(start, size) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::NoSpace),
            Err(e) => Err(keep(&mut self.failure, e)),
        }
    }

    async fn read_at(&mut self, _: u64, _: &mut [u8]) -> Result<usize, Refusal> {
        Err(Refusal::Failed)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.file.write_all_at(bytes, offset).map_err(|e| keep(&mut self.failure, e))
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        self.publish().map_err(|e| keep(&mut self.failure, e))?;
        self.committed = true;
        Ok(())
    }
}

fn keep(failure: &mut Option<io::Error>, e: io::Error) -> Refusal {
    let refusal = if is_full(&e) { Refusal::NoSpace } else { Refusal::Failed };
    *failure = Some(e);
    refusal
}
