//! One version of an archive or a disk image: open, hashed, and judged.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use embedded_io_adapters::std::FromStd;
use piman_core::archive::Reader;
use piman_core::hosted::unpack::Decoder;
use piman_core::install::summing::ChunkHasher;

use crate::images::disk_image::{self, DiskImage, Pieces};
use crate::images::fitness::{Evidence, Finding, Fitness};
use crate::state::State;
use crate::state::archive_facts::{Content, Stamp};
use crate::sys::clock::now_ms;

/// How old the last change must be before what was found is worth keeping, in milliseconds.
const SETTLED_MS: u64 = 100;

/// One version of the archive. The file stays open, so whoever holds this can finish with
/// it after it was replaced.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    pub(super) file: File,
    pub(super) stamp: Stamp,
    pub(super) checked_bytes: AtomicU64,
    pub(super) verdict: OnceLock<Result<Arc<Content>, String>>,
    /// Whether it begins as a disk image.
    pub(super) is_disk: bool,
    disk: OnceLock<Option<DiskFacts>>,
}

/// What is decided by of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFacts {
    /// How large a disk has to be, in bytes.
    pub bytes: u64,
    /// The number of the partition with the root filesystem, if it was found.
    pub root: Option<u8>,
    /// Whether the last partition and its filesystem are to grow to the end of the disk.
    pub grows: bool,
}

impl From<&DiskImage> for DiskFacts {
    fn from(image: &DiskImage) -> Self {
        Self { bytes: image.bytes, root: image.root, grows: image.growth == disk_image::Growth::Last }
    }
}

impl Archive {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        // Whoever reads it reads it from front to back.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let mut head = [0; 2048];
        let n = file.read_at(&mut head, 0)?;
        let head = head.get(..n).unwrap_or_default();
        Ok(Self {
            path: path.into(),
            is_disk: disk_image::begins(head),
            file,
            stamp: Stamp::of(&meta),
            checked_bytes: AtomicU64::new(0),
            verdict: OnceLock::new(),
            disk: OnceLock::new(),
        })
    }

    /// What is decided by if this is a disk image and no archive; it is read for that, once.
    pub fn disk(&self) -> Option<DiskFacts> {
        if !self.is_disk {
            return None;
        }
        *self.disk.get_or_init(|| {
            let image = DiskImage::of_copy(&self.file);
            let image = image.inspect_err(|e| tracing::error!("{}: {e:#}", self.path.display()));
            image.ok().as_ref().map(DiskFacts::from)
        })
    }

    /// Whether this is a disk image, also one that cannot be read.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        self.is_disk
    }

    /// The open file; read it at offsets only, since it is shared.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// What is known of it, once it has been checked and is good.
    #[must_use]
    pub fn facts(&self) -> Option<&Arc<Content>> {
        self.verdict.get()?.as_ref().ok()
    }

    /// Whether the open file still is as it was opened; replaced by another it is, rewritten
    /// in its place it is not.
    ///
    /// # Errors
    /// If it was changed, or cannot be looked at.
    pub fn unchanged(&self) -> io::Result<()> {
        if Stamp::of(&self.file.metadata()?).is_content_of(&self.stamp) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} was changed while it was being read", self.path.display())))
    }

    /// What was found of this very version before.
    pub(super) fn known(&self, state: &dyn State) -> Option<Arc<Content>> {
        let known = state.known(&self.path).inspect_err(|e| tracing::warn!("{}: {e}", self.path.display()));
        known.ok()?.filter(|(stamp, _)| *stamp == self.stamp).map(|(_, facts)| Arc::new(facts))
    }

    pub(super) fn keep(&self, state: &dyn State, facts: &Content) {
        // A write within the resolution of its times would go unnoticed.
        if now_ms() < self.stamp.changed_ms().saturating_add(SETTLED_MS) {
            return;
        }
        if let Err(e) = state.keep(&self.path, &self.stamp, facts) {
            tracing::warn!("what is known of {} is not kept: {e}", self.path.display());
        }
    }

    /// Reads it to its end, hashes it, and keeps what it found for whoever comes later; a version
    /// that is known is not read again. `progress` is told how many bytes were read.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or changes meanwhile; it is called `shown` then.
    pub fn facts_of(
        path: &Path,
        shown: &Path,
        state: &dyn State,
        progress: &dyn Fn(u64),
    ) -> anyhow::Result<Arc<Content>> {
        let archive = open(path).map_err(anyhow::Error::msg)?;
        if let Some(facts) = archive.known(state) {
            return Ok(facts);
        }
        let go_on = |at| {
            progress(at);
            true
        };
        let facts =
            archive.check(&go_on).map_err(|e| anyhow::anyhow!("{} is not usable: {e}", shown.display()))?;
        archive.keep(state, &facts);
        Ok(Arc::new(facts))
    }

    /// Decodes everything, so that every checksum in it is compared, and hashes it.
    pub(super) fn check(&self, go_on: &dyn Fn(u64) -> bool) -> Result<Content, String> {
        let mut hashing = Hashing { archive: self, at: 0, summing: ChunkHasher::new(), go_on };
        let inspected = if self.is_disk { self.inspect_disk() } else { inspect(&mut hashing) };
        let Inspected { fitness, entries, unpacked_bytes } = inspected.map_err(|e| format!("{e:#}"))?;
        // What is behind the last member belongs to the file's identity too.
        let rest = hashing.drain();
        rest.map_err(|e| format!("it cannot be read: {e}"))?;
        self.unchanged().map_err(|e| e.to_string())?;
        let (id, sums) = hashing.summing.finish();
        Ok(Content { id, sums, unpacked_bytes, entries, fitness })
    }
}

impl Archive {
    /// What there is in a disk image.
    fn inspect_disk(&self) -> anyhow::Result<Inspected> {
        let image = DiskImage::of_copy(&self.file)?;
        let _ = self.disk.set(Some(DiskFacts::from(&image)));
        Ok(Inspected { unpacked_bytes: image.used_bytes(), entries: 0, fitness: image.fitness })
    }
}

pub(super) fn open(path: &Path) -> Result<Archive, String> {
    Archive::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("{} is gone; put it back", path.display()),
        _ => format!("{} cannot be read: {e}", path.display()),
    })
}

/// What there is in an archive.
pub(crate) struct Inspected {
    /// What is wrong with the system in it.
    pub(crate) fitness: Fitness,
    /// How many entries it has.
    pub(crate) entries: u64,
    /// How many bytes were packed.
    pub(crate) unpacked_bytes: u64,
}

/// Reads all entries and all that follows them, to the end of the packed data. What no installation could
/// extract is an error, by whichever way it would be installed.
pub(crate) fn inspect(archive: impl Read) -> anyhow::Result<Inspected> {
    let whole = Arc::<AtomicBool>::default();
    let decoder = Decoder::new(archive)?.telling_whole(Arc::clone(&whole));
    let buffered = FromStd::new(BufReader::with_capacity(1 << 18, decoder));
    let mut reader = Reader::new(buffered).ending_with(whole);
    let mut evidence = Evidence::new();
    while let Some(entry) = reader.next_entry()? {
        evidence.add(entry, &mut reader)?;
    }
    reader.drain()?;
    anyhow::ensure!(evidence.entries() > 0, "there is nothing in it");
    let mut fitness = evidence.judge();
    if reader.is_unmarked() {
        fitness.add_first(Finding::no_end());
    }
    Ok(Inspected { fitness, entries: evidence.entries(), unpacked_bytes: reader.position() })
}

/// Reads the archive at its own offset, hashing what passes.
struct Hashing<'a> {
    archive: &'a Archive,
    at: u64,
    summing: ChunkHasher,
    go_on: &'a dyn Fn(u64) -> bool,
}

impl Hashing<'_> {
    /// Hashes what is left.
    fn drain(&mut self) -> io::Result<()> {
        if self.archive.is_disk {
            return self.drain_disk();
        }
        let mut buf = vec![0; 1 << 20];
        while self.read(&mut buf)? > 0 {}
        Ok(())
    }

    /// The same for a disk image, of which nothing was hashed yet: most of it may be holes.
    fn drain_disk(&mut self) -> io::Result<()> {
        let mut pieces = Pieces::of(&self.archive.file)?;
        loop {
            self.is_still_wanted()?;
            let piece = pieces.next_piece()?;
            if piece.is_empty() {
                return Ok(());
            }
            self.summing.update(piece);
            self.passed(pieces.at());
        }
    }

    fn is_still_wanted(&self) -> io::Result<()> {
        match (self.go_on)(self.at) {
            true => Ok(()),
            false => Err(io::Error::other("it was changed while it was being checked")),
        }
    }

    fn passed(&mut self, at: u64) {
        self.at = at;
        self.archive.checked_bytes.store(at, Ordering::Relaxed);
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.is_still_wanted()?;
        let n = self.archive.file.read_at(buf, self.at)?;
        self.summing.update(buf.get(..n).unwrap_or_default());
        self.passed(self.at + n as u64);
        Ok(n)
    }
}
