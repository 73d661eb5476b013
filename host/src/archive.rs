//! The archive of the root filesystem: open once per version, checked in the background,
//! and watched for being replaced, rewritten or deleted.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pi_agent::archive::Reader;
use pi_agent::decode::Decoder;
use pi_agent::sums::Summing;
use piman_core::hash::Hash;
use tokio::sync::watch;

use crate::state::{State, now_ms};

/// How often the file is looked at when nobody asks for it.
const LOOK: Duration = Duration::from_millis(500);
/// How old the last change must be before what was found is worth keeping, in milliseconds.
const SETTLED_MS: u64 = 100;

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Changes with every write, also if somebody sets the time of the last one back; and with
    /// the name, so it says nothing of a file that is open.
    changed: (i64, i64),
}

impl Stamp {
    fn of(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            bytes: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }

    /// Whether it is the same file with the same content, whatever its name is now.
    fn is_content_of(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }

    /// When it was changed, in milliseconds since 1970.
    fn changed_ms(&self) -> u64 {
        let (seconds, nanoseconds) = self.changed;
        let part = u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000;
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).saturating_add(part)
    }

    /// Reads what its `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        let stamp = Self {
            device: next()?.parse().ok()?,
            inode: next()?.parse().ok()?,
            bytes: next()?.parse().ok()?,
            modified: (next()?.parse().ok()?, next()?.parse().ok()?),
            changed: (next()?.parse().ok()?, next()?.parse().ok()?),
        };
        words.next().is_none().then_some(stamp)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, bytes, modified, changed } = self;
        write!(f, "{device} {inode} {bytes} {} {} {} {}", modified.0, modified.1, changed.0, changed.1)
    }
}

/// One version of the archive. The file stays open, so whoever holds this can finish with
/// it after it was replaced.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    checked_bytes: AtomicU64,
    verdict: OnceLock<Result<Arc<Content>, String>>,
}

/// What is known of an archive that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// BLAKE3 of the whole file: the image's identity.
    pub id: Hash,
    /// The hashes of its chunks, as the fetch port sends them.
    pub sums: Vec<u8>,
    /// The size of what is packed in it, in bytes.
    pub unpacked_bytes: u64,
    /// How many entries it has.
    pub entries: u64,
}

impl Archive {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        // Whoever reads it reads it from front to back.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        Ok(Self {
            path: path.into(),
            file,
            stamp: Stamp::of(&meta),
            checked_bytes: AtomicU64::new(0),
            verdict: OnceLock::new(),
        })
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

    /// BLAKE3 of the whole file, once it has been checked and is good.
    #[must_use]
    pub fn id(&self) -> Option<Hash> {
        self.facts().map(|facts| facts.id)
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
    fn known(&self, state: &dyn State) -> Option<Arc<Content>> {
        let known = state.known(&self.path).inspect_err(|e| log::warn!("{}: {e}", self.path.display()));
        known.ok()?.filter(|(stamp, _)| *stamp == self.stamp).map(|(_, facts)| Arc::new(facts))
    }

    fn keep(&self, state: &dyn State, facts: &Content) {
        // A write within the resolution of its times would go unnoticed.
        if now_ms() < self.stamp.changed_ms() + SETTLED_MS {
            return;
        }
        if let Err(e) = state.keep(&self.path, &self.stamp, facts) {
            log::warn!("what is known of {} is not kept: {e}", self.path.display());
        }
    }

    /// Reads it to its end, hashes it, and keeps what it found for whoever comes later; a version
    /// that is known is not read again. `progress` is told how many bytes were read.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or changes meanwhile.
    pub fn facts_of(path: &Path, state: &dyn State, progress: &dyn Fn(u64)) -> anyhow::Result<Arc<Content>> {
        let archive = open(path).map_err(anyhow::Error::msg)?;
        if let Some(facts) = archive.known(state) {
            return Ok(facts);
        }
        let go_on = |at| {
            progress(at);
            true
        };
        let facts =
            archive.check(&go_on).map_err(|e| anyhow::anyhow!("{} is not usable: {e}", path.display()))?;
        archive.keep(state, &facts);
        Ok(Arc::new(facts))
    }

    /// Decodes everything, so that every checksum in it is compared, and hashes it.
    fn check(&self, go_on: &dyn Fn(u64) -> bool) -> Result<Content, String> {
        let mut hashing = Hashing { archive: self, at: 0, summing: Summing::new(), go_on };
        let (entries, unpacked_bytes) = decode(&mut hashing).map_err(|e| format!("{e:#}"))?;
        // What is behind the last member belongs to the file's identity too.
        io::copy(&mut hashing, &mut io::sink()).map_err(|e| format!("it cannot be read: {e}"))?;
        self.unchanged().map_err(|e| e.to_string())?;
        let (id, sums) = hashing.summing.finish();
        Ok(Content { id, sums, unpacked_bytes, entries })
    }
}

fn open(path: &Path) -> Result<Archive, String> {
    Archive::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("{} is gone; put it back", path.display()),
        _ => format!("{} cannot be read: {e}", path.display()),
    })
}

/// Reads all entries and all that follows them, to the end of the packed data. Returns how many
/// entries there are, and how many bytes were packed.
fn decode(archive: impl Read) -> anyhow::Result<(u64, u64)> {
    let unpacked = BufReader::with_capacity(1 << 18, Decoder::new(archive)?);
    let mut reader = Reader::new(unpacked);
    let mut entries = 0_u64;
    while reader.next_entry()?.is_some() {
        entries += 1;
    }
    let before = reader.position();
    let rest = io::copy(&mut reader.into_inner(), &mut io::sink())?;
    anyhow::ensure!(entries > 0, "there is nothing in it");
    Ok((entries, before + rest))
}

enum Kind {
    Gzip,
    Zstd,
}

fn kind(begin: &[u8]) -> Option<Kind> {
    match begin {
        [0x1f, 0x8b, ..] => Some(Kind::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Kind::Zstd),
        _ => None,
    }
}

/// Reads the archive at its own offset, hashing what passes.
struct Hashing<'a> {
    archive: &'a Archive,
    at: u64,
    summing: Summing,
    go_on: &'a dyn Fn(u64) -> bool,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !(self.go_on)(self.at) {
            return Err(io::Error::other("it was changed while it was being checked"));
        }
        let n = self.archive.file.read_at(buf, self.at)?;
        self.summing.update(buf.get(..n).unwrap_or_default());
        self.at += n as u64;
        self.archive.checked_bytes.store(self.at, Ordering::Relaxed);
        Ok(n)
    }
}

/// Whether there is something to install.
#[derive(Debug, Clone)]
pub enum Servable {
    /// Yes: this, with its identity.
    Good(Arc<Archive>, Hash),
    /// That is being found out; so many per cent are done.
    Checking(u8),
    /// No, for this reason.
    Bad(String),
}

/// Why a server cannot start with an archive.
#[derive(Debug, thiserror::Error)]
#[error("the root filesystem {path}: {reason}")]
pub struct Unusable {
    path: String,
    reason: String,
}

/// The archive at a path, whichever version of it is there now.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    now: Mutex<Now>,
    /// Counts what changes, for those who wait.
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Now {
    archive: Result<Arc<Archive>, String>,
    closed: bool,
}

impl Source {
    /// Opens the archive and looks at its beginning.
    ///
    /// # Errors
    /// [`Unusable`] if it is missing, a folder, cannot be read, or begins neither as gzip nor as zstd.
    pub fn open(path: &Path) -> Result<Self, Unusable> {
        let unusable = |reason: String| Unusable { path: path.display().to_string(), reason };
        let meta = fs::metadata(path).map_err(|e| {
            unusable(match e.kind() {
                ErrorKind::NotFound => {
                    "there is no such file; name a .tar.gz or .tar.zst with --rootfs".into()
                }
                _ => format!("{e}"),
            })
        })?;
        if meta.is_dir() {
            let pack = format!("tar --xattrs -C {} -czf rootfs.tgz .", path.display());
            return Err(unusable(format!("it is a folder; pack it with `{pack}`")));
        }
        let archive = Archive::open(path).map_err(|e| unusable(e.to_string()))?;
        let mut begin = [0; 4];
        let n = archive.file.read_at(&mut begin, 0).map_err(|e| unusable(e.to_string()))?;
        if kind(begin.get(..n).unwrap_or_default()).is_none() {
            let reason = "it is neither gzip nor zstd; pack the root filesystem with `tar --xattrs -czf`";
            return Err(unusable(if n == 0 { "it is empty".into() } else { reason.into() }));
        }
        let now = Now { archive: Ok(Arc::new(archive)), closed: false };
        Ok(Self { path: path.into(), now: Mutex::new(now), news: watch::Sender::new(0) })
    }

    /// What is at a path, whether it can be used or not.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let now = Now { archive: open(path).map(Arc::new), closed: false };
        Self { path: path.into(), now: Mutex::new(now), news: watch::Sender::new(0) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is now. Looks at the file (one `stat`), so a replaced one is noticed at once.
    pub fn servable(&self) -> Servable {
        match &self.look().archive {
            Err(reason) => Servable::Bad(reason.clone()),
            Ok(archive) => match archive.verdict.get() {
                Some(Ok(facts)) => Servable::Good(Arc::clone(archive), facts.id),
                Some(Err(reason)) => Servable::Bad(reason.clone()),
                None => {
                    let done = archive.checked_bytes.load(Ordering::Relaxed).saturating_mul(100);
                    let percent = done.checked_div(archive.bytes()).unwrap_or(0);
                    Servable::Checking(u8::try_from(percent).unwrap_or(99).min(99))
                }
            },
        }
    }

    /// Waits until there is a good one.
    pub async fn good(&self) -> (Arc<Archive>, Hash) {
        let mut news = self.news.subscribe();
        loop {
            if let Servable::Good(archive, id) = self.servable() {
                return (archive, id);
            }
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> MutexGuard<'_, Now> {
        let found = fs::metadata(&self.path).map(|m| Stamp::of(&m));
        let mut now = self.lock();
        match (&found, &now.archive) {
            (Ok(found), Ok(known)) if found.is_content_of(&known.stamp) => return now,
            (Err(_), Err(_)) => return now,
            _ => {}
        }
        now.archive = open(&self.path).map(Arc::new);
        self.news.send_modify(|n| *n += 1);
        now
    }

    /// Starts the thread that looks and checks, until [`close`](Self::close). `tell` hears
    /// what became of each version: its identity, or what is wrong and what to do. What was
    /// found is kept in `state`, so that a version is read once and not at every start.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn watch(
        self: &Arc<Self>,
        state: Arc<dyn State>,
        tell: impl Fn(Result<(&Arc<Archive>, Hash), &str>) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let source = Arc::clone(self);
        thread::Builder::new().name("archive".into()).spawn(move || {
            let mut first = true;
            let mut told_gone = false;
            loop {
                let (now, closed) = {
                    let now = source.look();
                    (now.archive.clone(), now.closed)
                };
                if closed {
                    return;
                }
                match now {
                    Ok(archive) if archive.verdict.get().is_none() => {
                        told_gone = false;
                        source.check(&archive, first, &*state, &tell);
                        first = false;
                    }
                    Err(reason) if !told_gone => {
                        told_gone = true;
                        tell(Err(&reason));
                    }
                    _ => thread::park_timeout(LOOK),
                }
            }
        })
    }

    /// Whether this version is the one that is there.
    fn is_now(&self, archive: &Arc<Archive>) -> bool {
        let now = self.lock();
        !now.closed && now.archive.as_ref().is_ok_and(|a| Arc::ptr_eq(a, archive))
    }

    fn check(
        &self,
        archive: &Arc<Archive>,
        first: bool,
        state: &dyn State,
        tell: &impl Fn(Result<(&Arc<Archive>, Hash), &str>),
    ) {
        if let Some(facts) = archive.known(state) {
            tell(Ok((
                archive,
                archive.verdict.get_or_init(|| Ok(facts)).as_ref().map_or(Hash::default(), |f| f.id),
            )));
            self.news.send_modify(|n| *n += 1);
            return;
        }
        if !first {
            // It may still be being written.
            thread::park_timeout(2 * LOOK);
            drop(self.look());
        }
        let verdict = archive.check(&|_| self.is_now(archive));
        drop(self.look());
        if !self.is_now(archive) {
            return; // What was found is about a version that is no more.
        }
        let verdict = verdict.map_err(|reason| {
            format!(
                "{} is not usable: {reason}; nothing is installed until it is replaced by a good one",
                self.path.display()
            )
        });
        match archive.verdict.get_or_init(|| verdict.map(Arc::new)) {
            Ok(facts) => {
                archive.keep(state, facts);
                tell(Ok((archive, facts.id)));
            }
            Err(reason) => tell(Err(reason)),
        }
        self.news.send_modify(|n| *n += 1);
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.lock().closed = true;
    }
}
