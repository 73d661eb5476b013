//! One connection's view of the folder, as the core's storage. Everything that may wait for the
//! disk runs on the threads that are there for it.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use piman_core::hash::Hash;
use piman_core::transfer::{Name, Refusal, Storage};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::folder::{FileRefusal, Folder};
use super::hashing::Hashing;
use super::upload::Upload;
use crate::sys::lock::lock;

/// How much of an upload is taken and written at once.
pub(super) const PIECE: usize = 256 * 1024;

/// How much of the disk the connections may use at once.
#[derive(Debug)]
pub(super) struct DiskPool {
    /// Files being hashed.
    pub(super) hashing: Hashing,
    /// Pieces being written, each with a buffer.
    pub(super) writing: Semaphore,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Default for DiskPool {
    fn default() -> Self {
        Self { hashing: Hashing::default(), writing: Semaphore::new(16), buffers: Mutex::default() }
    }
}

impl DiskPool {
    /// A buffer of [`PIECE`] bytes; there are never more than there are turns to write.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let old = lock(&self.buffers).pop();
        old.unwrap_or_else(|| vec![0; PIECE])
    }

    /// For the next one.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        lock(&self.buffers).push(buffer);
    }
}

/// What the disk is busy with on behalf of one connection, for its time-outs.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// It is right now.
    busy: AtomicBool,
    /// Bytes hashed; the peer may have as many to hash.
    hashed: AtomicU64,
}

impl Activity {
    /// Whether the disk is busy, or has been since this was asked last; then also how many bytes
    /// were hashed in that time.
    pub(super) fn take_work(&self) -> Option<u64> {
        let hashed = self.hashed.swap(0, Ordering::Relaxed);
        (self.busy.load(Ordering::Relaxed) || hashed > 0).then_some(hashed)
    }
}

#[derive(Debug, Clone)]
enum Held {
    Nothing,
    File(Arc<File>),
    Upload(Arc<Mutex<Upload>>),
}

/// One connection's view.
#[derive(Debug)]
pub(super) struct ConnectionStorage {
    folder: Arc<Folder>,
    pool: Arc<DiskPool>,
    activity: Arc<Activity>,
    peer: IpAddr,
    held: Held,
    /// For the log: what and why not.
    pub(super) name: Option<Name>,
    pub(super) refusal: Option<FileRefusal>,
}

impl ConnectionStorage {
    pub(super) fn new(
        folder: Arc<Folder>,
        pool: Arc<DiskPool>,
        activity: Arc<Activity>,
        peer: IpAddr,
    ) -> Self {
        Self { folder, pool, activity, peer, held: Held::Nothing, name: None, refusal: None }
    }

    /// The file that is being sent.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        match &self.held {
            Held::File(file) => Some(file.clone()),
            Held::Nothing | Held::Upload(_) => None,
        }
    }

    /// Writes the first `len` bytes of a piece of an upload and gives its buffer back.
    pub(super) async fn write(
        &mut self,
        offset: u64,
        piece: Vec<u8>,
        len: usize,
    ) -> Result<Vec<u8>, Refusal> {
        let Held::Upload(part) = self.held.clone() else { return Err(Refusal::Failed) };
        self.on_disk(move || {
            lock(&part).write_at(offset, piece.get(..len).unwrap_or_default())?;
            Ok(piece)
        })
        .await
    }

    /// Runs `work` where it may block, and keeps what the log should know.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, FileRefusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.activity.busy.store(true, Ordering::Relaxed);
        let done = spawn_blocking(work).await;
        self.activity.busy.store(false, Ordering::Relaxed);
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(refusal)) => {
                // It is over: the name is free before the client hears of it.
                self.held = Held::Nothing;
                let wire = refusal.wire();
                self.refusal = Some(refusal);
                Err(wire)
            }
            // The runtime is being shut down.
            Err(_) => Err(Refusal::Failed),
        }
    }
}

impl Storage for ConnectionStorage {
    async fn open(&mut self, name: &Name) -> Result<u64, Refusal> {
        self.name = Some(name.clone());
        let (folder, name) = (self.folder.clone(), name.clone());
        let (file, size) = self.on_disk(move || folder.file(&name)).await?;
        self.held = Held::File(Arc::new(file));
        Ok(size)
    }

    async fn create(&mut self, name: &Name, keep: bool) -> Result<u64, Refusal> {
        self.name = Some(name.clone());
        let (folder, name) = (self.folder.clone(), name.clone());
        let (part, have) = self
            .on_disk(move || {
                let part = folder.part(&name, keep)?;
                let have = part.len()?;
                Ok((part, have))
            })
            .await?;
        self.held = Held::Upload(Arc::new(Mutex::new(part)));
        Ok(have)
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        let held = self.held.clone();
        let file = self
            .on_disk(move || match held {
                Held::Nothing => Err(FileRefusal::NotThere),
                Held::File(file) => Ok(file),
                Held::Upload(part) => Ok(Arc::new(lock(&part).file().try_clone()?)),
            })
            .await?;
        let pool = self.pool.clone();
        // To wait for a turn is to be busy, too.
        self.activity.busy.store(true, Ordering::Relaxed);
        let hashed = pool.hashing.hash(self.peer, file, bytes).await;
        self.activity.busy.store(false, Ordering::Relaxed);
        self.activity.hashed.fetch_add(bytes, Ordering::Relaxed);
        match hashed {
            Ok(hash) => Ok(hash),
            Err(e) => self.on_disk(move || Err(e.into())).await,
        }
    }

    async fn reserve(&mut self, start: u64, size: u64) -> Result<(), Refusal> {
        let Held::Upload(part) = self.held.clone() else { return Err(Refusal::Failed) };
        let peer = self.peer;
        self.on_disk(move || lock(&part).reserve(start, size, peer)).await
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        // For a driver without sendfile; a page cache that has to be filled makes it wait.
        let Held::File(file) = &self.held else { return Err(Refusal::Failed) };
        file.read_at(buf, offset).map_err(|_| Refusal::Failed)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.write(offset, bytes.to_vec(), bytes.len()).await.map(drop)
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        let Held::Upload(part) = self.held.clone() else { return Err(Refusal::Failed) };
        self.on_disk(move || lock(&part).publish()).await?;
        self.held = Held::Nothing;
        Ok(())
    }
}
