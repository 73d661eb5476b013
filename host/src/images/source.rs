//! The archive of the root filesystem: open once per version, checked in the background,
//! and watched for being replaced, rewritten or deleted.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use piman_core::hash::Hash;
use piman_core::hosted::unpack::packing;
use tokio::sync::watch;

use crate::state::State;
use crate::state::archive_facts::{Content, Stamp};
use crate::sys::lock::lock;

mod archive;

use archive::open;
pub use archive::{Archive, DiskFacts};
pub(crate) use archive::{Inspected, inspect};

/// How often the file is looked at when nobody asks for it.
const LOOK: Duration = Duration::from_millis(500);

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
        if archive.is_disk {
            let path = path.display();
            return Err(unusable(format!(
                "it is an image of a disk; add it with `piman image add {path}`, and make it the default with \
                 `piman image default NAME`"
            )));
        }
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
            // Here, where nobody waits for it.
            let _ = archive.disk();
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
                let from = facts.fitness.system.boot.from();
                for finding in facts.fitness.findings_for(from, facts.is_disk()) {
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
