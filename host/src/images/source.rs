//! The archive of the root filesystem: open once per version, checked in the background,
//! and watched for being replaced, rewritten or deleted.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use embedded_io_adapters::std::FromStd;
use piman_core::archive::Reader;
use piman_core::hash::Hash;
use piman_core::hosted::unpack::{Decoder, packing};
use piman_core::install::summing::ChunkHasher;
use tokio::sync::watch;

use super::fitness::{Evidence, Finding, Fitness};
use crate::state::State;
use crate::state::archive_facts::{Content, Stamp};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;

/// How often the file is looked at when nobody asks for it.
const LOOK: Duration = Duration::from_millis(500);
/// How old the last change must be before what was found is worth keeping, in milliseconds.
const SETTLED_MS: u64 = 100;

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
        let known = state.known(&self.path).inspect_err(|e| tracing::warn!("{}: {e}", self.path.display()));
        known.ok()?.filter(|(stamp, _)| *stamp == self.stamp).map(|(_, facts)| Arc::new(facts))
    }

    fn keep(&self, state: &dyn State, facts: &Content) {
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
    fn check(&self, go_on: &dyn Fn(u64) -> bool) -> Result<Content, String> {
        let mut hashing = Hashing { archive: self, at: 0, summing: ChunkHasher::new(), go_on };
        let Inspected { fitness, entries, unpacked_bytes } =
            inspect(&mut hashing).map_err(|e| format!("{e:#}"))?;
        // What is behind the last member belongs to the file's identity too.
        io::copy(&mut hashing, &mut io::sink()).map_err(|e| format!("it cannot be read: {e}"))?;
        self.unchanged().map_err(|e| e.to_string())?;
        let (id, sums) = hashing.summing.finish();
        Ok(Content { id, sums, unpacked_bytes, entries, fitness })
    }
}

fn open(path: &Path) -> Result<Archive, String> {
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
pub enum SourceState {
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
    /// The operator wants what cannot boot, too.
    takes_unfit: AtomicBool,
    /// What was found has to be reported again.
    again: AtomicBool,
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
            return Err(unusable(format!(
                "it is a folder; add it with `piman image add {}`",
                path.display()
            )));
        }
        let archive = Archive::open(path).map_err(|e| unusable(e.to_string()))?;
        let mut begin = [0; 4];
        let n = archive.file.read_at(&mut begin, 0).map_err(|e| unusable(e.to_string()))?;
        if packing(begin.get(..n).unwrap_or_default()).is_none() {
            let add = format!(
                "`piman image add {}` says what it is, and takes plain tar, xz and bzip2",
                path.display()
            );
            let reason = format!("it is neither gzip nor zstd; {add}");
            return Err(unusable(if n == 0 { "it is empty".into() } else { reason }));
        }
        let now = Now { archive: Ok(Arc::new(archive)), closed: false };
        Ok(Self::new(path, now))
    }

    /// What is at a path, whether it can be used or not.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let now = Now { archive: open(path).map(Arc::new), closed: false };
        Self::new(path, now)
    }

    fn new(path: &Path, now: Now) -> Self {
        Self {
            path: path.into(),
            takes_unfit: AtomicBool::new(false),
            again: AtomicBool::new(false),
            now: Mutex::new(now),
            news: watch::Sender::new(0),
        }
    }

    /// Whether what cannot boot is installed, too.
    pub fn take_unfit(&self, yes: bool) {
        if self.takes_unfit.swap(yes, Ordering::Relaxed) != yes {
            let is_reported = self.lock().archive.as_ref().is_ok_and(|a| a.verdict.get().is_some());
            self.again.store(is_reported, Ordering::Relaxed);
            self.news.send_modify(|n| *n += 1);
        }
    }

    /// Why this is not installed although it is whole.
    fn refusal(&self, facts: &Content) -> Option<String> {
        let unfit = facts.fitness.unfit().filter(|_| !self.takes_unfit.load(Ordering::Relaxed))?;
        Some(format!(
            "{} is not fit for a Pi: {unfit}; nothing is installed until it is replaced, or taken as it is with \
             `piman image add --force` (`piman serve --allow-unfit` for --rootfs)",
            self.path.display()
        ))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is now. Looks at the file (one `stat`), so a replaced one is noticed at once.
    pub fn servable(&self) -> SourceState {
        match &self.look().archive {
            Err(reason) => SourceState::Bad(reason.clone()),
            Ok(archive) => match archive.verdict.get() {
                Some(Ok(facts)) => match self.refusal(facts) {
                    Some(reason) => SourceState::Bad(reason),
                    None => SourceState::Good(Arc::clone(archive), facts.id),
                },
                Some(Err(reason)) => SourceState::Bad(reason.clone()),
                None => {
                    let done = archive.checked_bytes.load(Ordering::Relaxed).saturating_mul(100);
                    let percent = done.checked_div(archive.bytes()).unwrap_or(0);
                    SourceState::Checking(u8::try_from(percent).unwrap_or(99).min(99))
                }
            },
        }
    }

    /// Waits until there is a good one.
    pub async fn good(&self) -> (Arc<Archive>, Hash) {
        let mut news = self.news.subscribe();
        loop {
            if let SourceState::Good(archive, id) = self.servable() {
                return (archive, id);
            }
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    fn look(&self) -> MutexGuard<'_, Now> {
        // Locked first: of two who look around a replacement the later one has the newer file.
        let mut now = self.lock();
        let found = fs::metadata(&self.path).map(|m| Stamp::of(&m));
        if let (Ok(found), Ok(known)) = (&found, &now.archive)
            && found.is_content_of(&known.stamp)
        {
            return now;
        }
        let new = open(&self.path).map(Arc::new);
        // Who waits for a change looks again; an archive that stays bad is no change.
        let is_news = new.as_ref().err() != now.archive.as_ref().err();
        if new.is_ok() || is_news {
            now.archive = new;
            self.news.send_modify(|n| *n += 1);
        }
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
            let mut told = None;
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
                        told = None;
                        source.check(&archive, first, &*state, &tell);
                        first = false;
                    }
                    Ok(archive) if source.again.swap(false, Ordering::Relaxed) => {
                        if let Some(verdict) = archive.verdict.get() {
                            source.report(&archive, verdict, &tell);
                        }
                    }
                    Err(reason) if told.as_ref() != Some(&reason) => {
                        tell(Err(&reason));
                        told = Some(reason);
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
            self.report(archive, archive.verdict.get_or_init(|| Ok(facts)), tell);
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
        if let Ok(facts) = &verdict {
            archive.keep(state, facts);
        }
        self.report(archive, archive.verdict.get_or_init(|| verdict.map(Arc::new)), tell);
    }

    /// Says what became of a version.
    fn report(
        &self,
        archive: &Arc<Archive>,
        verdict: &Result<Arc<Content>, String>,
        tell: &impl Fn(Result<(&Arc<Archive>, Hash), &str>),
    ) {
        match verdict {
            Ok(facts) => {
                for finding in &facts.fitness.findings {
                    tracing::warn!("{}: {finding}", self.path.display());
                }
                match self.refusal(facts) {
                    Some(reason) => tell(Err(&reason)),
                    None => tell(Ok((archive, facts.id))),
                }
            }
            Err(reason) => tell(Err(reason)),
        }
        self.news.send_modify(|n| *n += 1);
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether it was closed: then nobody looks at it any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

#[cfg(test)]
mod tests;
