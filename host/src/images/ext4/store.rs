//! Images in the state folder: found by archive, made one at a time, swept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use piman_core::hash::Hash;
use piman_core::install::table::{Header, Scope, TABLE_MAX, Table};
use piman_core::install::{ImageOffer, table};
use rustix::fs::{FlockOperation, flock};

use super::pack::{UNFINISHED, temporary};
use super::{Built, Error, Order, Progress, build};
use crate::sys::files::{make_private, sync_folder};
use crate::sys::lock::lock;

/// The folder of the images in the state folder.
pub const FOLDER: &str = "images";
const TABLE: &str = "table";
const CHUNKS: &str = "chunks";

/// All images of a state folder. An image is two files, named by the hash of its table:
/// `HASH.table` and `HASH.chunks`; the table appears last, so an image with a table is whole.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    images: Mutex<Vec<Arc<Image>>>,
    /// One image is made at a time.
    building: Mutex<()>,
}

/// An image, or the first chunks of one that is being made. Its files stay readable as long as it is held, even if they are swept.
#[derive(Debug)]
pub struct Image {
    hash: Hash,
    header: Header,
    table: Vec<u8>,
    chunks: Arc<File>,
    /// All its chunks together, in bytes.
    stored: u64,
    /// When it was made.
    made: SystemTime,
}

impl Image {
    /// BLAKE3 of its table, which names it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// What its table says once.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }

    /// The chunk table as it is sent.
    #[must_use]
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// All chunks as they are sent, one after another, for reads at a position.
    #[must_use]
    pub fn chunks(&self) -> &Arc<File> {
        &self.chunks
    }

    /// How many bytes its chunks have together.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// Of an image that is being made, those chunks that there are.
    pub(super) fn begun(header: Header, table: Vec<u8>, chunks: Arc<File>, stored: u64) -> Self {
        let hash = Hash(*blake3::hash(&table).as_bytes());
        Self { hash, header, table, chunks, stored, made: SystemTime::now() }
    }

    /// What an agent is told of it.
    #[must_use]
    pub fn offer(&self) -> ImageOffer {
        ImageOffer {
            table: self.hash,
            // At most TABLE_MAX, checked when it was opened.
            table_bytes: u32::try_from(self.table.len()).unwrap_or(u32::MAX),
            chunk_bytes: self.header.stored_bytes,
            whole_disk: matches!(self.header.scope, Scope::Disk(_)),
        }
    }

    /// Reads all chunks and compares their hashes; gives the numbers of those that are damaged.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn damaged(&self) -> io::Result<Vec<u32>> {
        let mut damaged = Vec::new();
        let mut buf = vec![0; table::CHUNK_MAX as usize];
        let entries = Table::parse(&self.table).map_err(io::Error::other)?;
        for (index, entry) in (0..).zip(entries.iter()) {
            let stored = buf.get_mut(..entry.stored as usize).unwrap_or_default();
            self.chunks.read_exact_at(stored, entry.position)?;
            if blake3::hash(stored).as_bytes() != &entry.stored_hash.0 {
                damaged.push(index);
            }
        }
        Ok(damaged)
    }

    fn open(folder: &Path, hash: Hash) -> io::Result<Self> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let file = File::open(path(folder, hash, TABLE))?;
        let meta = file.metadata()?;
        let length = usize::try_from(meta.len()).ok().filter(|n| *n <= TABLE_MAX);
        let mut table = vec![0; length.ok_or_else(|| bad("the table is too large"))?];
        file.read_exact_at(&mut table, 0)?;
        if blake3::hash(&table).as_bytes() != &hash.0 {
            return Err(bad("the table is not the one of its name"));
        }
        let header = Table::parse(&table).map_err(|e| bad(&e.to_string()))?.header();
        if !header.whole {
            return Err(bad("its table says that chunks are missing"));
        }
        if header.scope == (Scope::Root { grows: false }) {
            return Err(bad("it is for root partitions of one size, and there is one for all sizes now"));
        }
        let chunks = File::open(path(folder, hash, CHUNKS))?;
        if chunks.metadata()?.len() != header.stored_bytes {
            return Err(bad("the chunks have another size than the table says"));
        }
        let made = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let stored = header.stored_bytes;
        Ok(Self { hash, header, table, chunks: Arc::new(chunks), stored, made })
    }
}

impl Images {
    /// Opens (or makes) the folder `images` in the state folder. What was not finished and
    /// what is damaged is removed, and said in the log. Several processes may use it.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
    pub fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join(FOLDER);
        make_private(&folder)?;
        let images = Self { folder, images: Mutex::default(), building: Mutex::new(()) };
        images.scan()?;
        remove_unfinished(&images.folder)?;
        Ok(images)
    }

    /// The newest image of an archive, also if another process has made it meanwhile.
    #[must_use]
    pub fn find(&self, archive: Hash) -> Option<Arc<Image>> {
        let wanted = |i: &&Arc<Image>| i.header.archive == archive;
        let find = || self.lock().iter().filter(wanted).max_by_key(|i| i.made).cloned();
        find().or_else(|| {
            if let Err(e) = self.scan() {
                tracing::warn!("{}: {e}", self.folder.display());
            }
            find()
        })
    }

    /// The image with this table.
    #[must_use]
    pub fn by_table(&self, hash: Hash) -> Option<Arc<Image>> {
        self.lock().iter().find(|i| i.hash == hash).cloned()
    }

    /// The image with this table, also if another process has made it meanwhile.
    #[must_use]
    pub fn find_table(&self, hash: Hash) -> Option<Arc<Image>> {
        self.by_table(hash).or_else(|| {
            if let Err(e) = self.scan() {
                tracing::warn!("{}: {e}", self.folder.display());
            }
            self.by_table(hash)
        })
    }

    /// All images.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Image>> {
        self.lock().clone()
    }

    /// Gives the image of `archive` (BLAKE3 `id`); makes it if there is none. Blocks for as long as that takes, and
    /// while another one is being made; a server calls it on a thread of its own.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub fn build(
        &self,
        archive: &File,
        id: Hash,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<Arc<Image>, Error> {
        self.build_by(build, archive, id, progress, stop)
    }

    /// The same, made by `make`.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub fn build_by(
        &self,
        make: impl FnOnce(&Order<'_>) -> Result<Built, Error>,
        archive: &File,
        id: Hash,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<Arc<Image>, Error> {
        let _one = lock(&self.building);
        if let Some(image) = self.find(id) {
            return Ok(image);
        }
        let order = Order { archive, id: Some(id), folder: &self.folder, progress, stop };
        let image = self.keep(make(&order)?).map_err(Error::io("keeping the image"))?;
        let image = self.take_in(image);
        if let Some(early) = progress.early() {
            early.finish(Arc::clone(&image));
        }
        Ok(image)
    }

    fn take_in(&self, image: Image) -> Arc<Image> {
        let mut images = self.lock();
        // Whoever looked for it meanwhile may have taken it in already.
        if let Some(known) = images.iter().find(|i| i.hash == image.hash) {
            return Arc::clone(known);
        }
        let image = Arc::new(image);
        images.push(Arc::clone(&image));
        image
    }

    /// Puts what was made under its names: the chunks, then the table.
    fn keep(&self, built: Built) -> io::Result<Image> {
        let hash = Hash(*blake3::hash(&built.table).as_bytes());
        let mut named = temporary(&self.folder)?;
        named.write_all(&built.table)?;
        named.as_file().sync_all()?;
        // Held, and so locked, until the table is there.
        let _chunks = built.chunks.persist(path(&self.folder, hash, CHUNKS)).map_err(|e| e.error)?;
        named.persist(path(&self.folder, hash, TABLE)).map_err(|e| {
            remove(&self.folder, hash);
            e.error
        })?;
        sync_folder(&self.folder)?;
        Image::open(&self.folder, hash)
    }

    /// Removes all images of other archives than `current` that nobody holds. Returns how many.
    pub fn sweep(&self, current: &[Hash]) -> usize {
        let mut images = self.lock();
        let before = images.len();
        images.retain(|image| {
            let keep = current.contains(&image.header.archive) || Arc::strong_count(image) > 1;
            if !keep {
                tracing::info!("image {:.16} is not needed any more and is removed", image.hash);
                remove(&self.folder, image.hash);
            }
            keep
        });
        before - images.len()
    }

    /// Takes in the images that are new in the folder, removes those that are damaged. One that
    /// only cannot be read now stays: a signed one would not be made again.
    fn scan(&self) -> io::Result<()> {
        for (hash, _) in files(&self.folder)?.into_iter().filter(|(_, kind)| kind == TABLE) {
            let mut images = self.lock();
            if images.iter().any(|i| i.hash == hash) {
                continue;
            }
            match Image::open(&self.folder, hash) {
                Ok(image) => images.push(Arc::new(image)),
                Err(e) if is_damage(&e) => {
                    tracing::warn!("image {hash:.16} is removed: {e}");
                    remove(&self.folder, hash);
                }
                Err(e) => tracing::warn!("image {hash:.16} cannot be read now: {e}"),
            }
        }
        Ok(())
    }

    /// No code panics while it holds the lock, so what it guards is always whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Image>>> {
        lock(&self.images)
    }
}

/// Whether an image that cannot be opened will never be whole again; open files, memory, rights and
/// disks may come back.
fn is_damage(e: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(e.kind(), InvalidData | UnexpectedEof | NotFound)
}

/// The files in the folder that are called after an image.
fn files(folder: &Path) -> io::Result<Vec<(Hash, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some((stem, kind)) = name.to_str().and_then(|n| n.split_once('.'))
            && let Some(hash) = Hash::parse(stem)
        {
            files.push((hash, kind.to_owned()));
        }
    }
    Ok(files)
}

fn path(folder: &Path, hash: Hash, kind: &str) -> PathBuf {
    folder.join(format!("{hash}.{kind}"))
}

/// Removes an image: its table first, so that it is never one without chunks.
fn remove(folder: &Path, hash: Hash) {
    for kind in [TABLE, CHUNKS] {
        let path = path(folder, hash, kind);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("{}: {e}", path.display()),
            _ => {}
        }
    }
}

/// Removes what a process that is no more left unfinished.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    let tables: Vec<_> = files(folder)?.into_iter().filter(|(_, kind)| kind == TABLE).collect();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let stem = name.strip_suffix(CHUNKS).and_then(|n| n.strip_suffix('.')).and_then(Hash::parse);
        let has_no_table = stem.is_some_and(|hash| !tables.iter().any(|(table, _)| *table == hash));
        // Whoever still works on a file has it locked.
        let path = entry.path();
        if (has_no_table || name.starts_with(UNFINISHED))
            && File::open(&path).is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockExclusive).is_ok())
        {
            tracing::info!("{} was not finished and is removed", path.display());
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of one chunk in a temporary file, of the archive with this hash.
    fn built(folder: &Path, archive: u8) -> Built {
        let chunk = [archive; 8192];
        let entry = table::Entry {
            offset: 0,
            length: 8192,
            stored: 8192,
            position: 0,
            stored_hash: Hash(*blake3::hash(&chunk).as_bytes()),
            hash: Hash(*blake3::hash(&chunk).as_bytes()),
        };
        let header = Header {
            scope: Scope::Root { grows: true },
            whole: true,
            chunks: 1,
            total_bytes: 1 << 30,
            used_bytes: 8192,
            stored_bytes: 8192,
            archive: Hash([archive; 32]),
            proof_offset: 4096,
            entries: 1,
        };
        let mut chunks = temporary(folder).unwrap();
        chunks.write_all(&chunk).unwrap();
        Built { table: [&header.encode()[..], &entry.encode()].concat(), chunks }
    }

    fn with_images(archives: &[u8]) -> (tempfile::TempDir, Vec<Hash>) {
        let state = tempfile::tempdir().unwrap();
        let images = Images::open(state.path()).unwrap();
        let folder = &images.folder;
        let hashes = archives.iter().map(|a| images.keep(built(folder, *a)).unwrap().hash).collect();
        (state, hashes)
    }

    #[test]
    fn images_are_found_after_a_restart_and_when_new() {
        let (state, hashes) = with_images(&[1, 2]);
        let images = Images::open(state.path()).unwrap();
        let image = images.find(Hash([2; 32])).unwrap();
        assert_eq!(image.hash(), hashes[1]);
        assert_eq!(image.offer().table_bytes as usize, image.table().len());
        assert!(image.damaged().unwrap().is_empty());
        assert!(images.by_table(hashes[0]).is_some());
        assert!(images.find(Hash([3; 32])).is_none());
        // By another process.
        Images::open(state.path()).unwrap().keep(built(&images.folder, 3)).unwrap();
        assert!(images.find(Hash([3; 32])).is_some());
        assert_eq!(images.all().len(), 3);
    }

    #[test]
    fn what_nobody_needs_is_swept() {
        let (state, hashes) = with_images(&[1, 2, 3]);
        let images = Images::open(state.path()).unwrap();
        let held = images.by_table(hashes[0]).unwrap();
        assert_eq!(images.sweep(&[Hash([3; 32])]), 1);
        assert!(images.by_table(hashes[1]).is_none() && images.by_table(hashes[2]).is_some());
        drop(held);
        assert_eq!(images.sweep(&[Hash([3; 32])]), 1);
        assert_eq!(Images::open(state.path()).unwrap().all().len(), 1);
        assert_eq!(fs::read_dir(&images.folder).unwrap().count(), 2);
    }

    #[test]
    fn what_is_damaged_or_unfinished_is_removed_but_not_what_is_being_made() {
        let (state, hashes) = with_images(&[1, 2, 3]);
        let folder = state.path().join("images");
        let working = built(&folder, 9);
        fs::write(folder.join(format!("{UNFINISHED}abc")), b"x").unwrap();
        fs::write(path(&folder, Hash([9; 32]), CHUNKS), b"x").unwrap();
        File::options().write(true).open(path(&folder, hashes[0], CHUNKS)).unwrap().set_len(5).unwrap();
        let table = path(&folder, hashes[1], TABLE);
        let mut bytes = fs::read(&table).unwrap();
        bytes[100] ^= 1;
        fs::write(&table, bytes).unwrap();
        let images = Images::open(state.path()).unwrap();
        assert_eq!(images.all().iter().map(|i| i.hash()).collect::<Vec<_>>(), hashes[2..]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        images.keep(working).unwrap();
        assert!(images.find(Hash([9; 32])).is_some());
        // What cannot be opened at the moment is no damage, and is found when it can be again.
        let (chunks, away) = (path(&folder, hashes[2], CHUNKS), folder.join("away"));
        fs::rename(&chunks, &away).unwrap();
        std::os::unix::fs::symlink(&chunks, &chunks).unwrap();
        let unread = Images::open(state.path()).unwrap();
        assert!(unread.by_table(hashes[2]).is_none());
        fs::rename(&away, &chunks).unwrap();
        assert!(unread.find_table(hashes[2]).is_some());
        // A chunk that rots on the disk is found when it is looked for.
        File::options()
            .write(true)
            .open(path(&folder, hashes[2], CHUNKS))
            .unwrap()
            .write_all_at(b"!", 77)
            .unwrap();
        assert_eq!(images.by_table(hashes[2]).unwrap().damaged().unwrap(), [0]);
    }
}
