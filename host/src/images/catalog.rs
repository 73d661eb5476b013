//! The archives of a server: which Pi gets which, and each open once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

use piman_core::hash::Hash;

use crate::images::source::{Archive, Source, SourceState};
use crate::state::{About, Catalogue, Identity, State, StateError};
use crate::sys::lock::lock;

/// What became of an archive.
#[derive(Debug)]
pub enum News<'a> {
    /// This version is good, and has this identity.
    Good(&'a Arc<Archive>, Hash),
    /// What is wrong and what to do.
    Bad(&'a str),
    /// It is no concern of this server any more.
    Dropped,
}

/// Hears the news of each version of each archive, and from whom.
pub type Tell = Box<dyn Fn(&Catalog, &Path, News<'_>) + Send + Sync>;

/// The archives that are in use, by path.
pub struct Catalog {
    state: Arc<dyn State>,
    /// What `--rootfs` names: for everyone who gets nothing else.
    fallback: Option<PathBuf>,
    /// Whether all are installed, also those that cannot boot.
    takes_unfit: AtomicBool,
    sources: Mutex<ImageSources>,
    /// Whether the catalogue had an answer when it was last read.
    answered: AtomicBool,
    tell: Tell,
    /// Itself, for the threads that watch.
    this: Weak<Self>,
}

#[derive(Default)]
struct ImageSources {
    sources: HashMap<PathBuf, Arc<Source>>,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Catalog {
    /// A catalog with an archive for everyone who gets nothing else, and what the catalogue in
    /// the state has. All are being checked when this returns.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn open(
        state: Arc<dyn State>,
        fallback: Option<Source>,
        takes_unfit: bool,
        tell: Tell,
    ) -> std::io::Result<Arc<Self>> {
        let catalog = Arc::new_cyclic(|this| Self {
            state,
            fallback: fallback.as_ref().map(|source| source.path().to_owned()),
            takes_unfit: AtomicBool::new(takes_unfit),
            sources: Mutex::default(),
            answered: AtomicBool::new(false),
            tell,
            this: Weak::clone(this),
        });
        if let Some(source) = fallback {
            source.take_unfit(takes_unfit);
            catalog.lock().put(Arc::new(source), &catalog)?;
        }
        if let Err(e) = catalog.follow() {
            tracing::error!("images cannot be read, so only --rootfs is installed: {e}");
        }
        Ok(catalog)
    }

    /// Does what the catalogue says now: what is new in it is opened, and what is neither in it nor
    /// for everyone is dropped.
    ///
    /// # Errors
    /// [`StateError`] if the catalogue cannot be read; then everything stays as it was.
    pub fn follow(&self) -> Result<(), StateError> {
        let catalogue = self.state.catalogue()?;
        self.answered.fetch_or(!catalogue.images.is_empty(), Ordering::Relaxed);
        for image in &catalogue.images {
            if let Some(source) = self.source(&image.path) {
                source.take_unfit(self.takes_unfit(&catalogue, &image.path));
            }
        }
        let is_meant = |path: &Path| {
            self.fallback.as_deref() == Some(path) || catalogue.images.iter().any(|i| i.path == path)
        };
        let mut dropped = Vec::new();
        self.lock().sources.retain(|path, source| {
            let keep = is_meant(path);
            if !keep {
                source.close();
                dropped.push(path.clone());
            }
            keep
        });
        for path in dropped {
            tracing::info!("{} is not in the list of images any more", path.display());
            self.tell(&path, News::Dropped);
        }
        Ok(())
    }

    /// From now on what cannot boot is installed, too, or not.
    ///
    /// # Errors
    /// [`StateError`] if the catalogue cannot be read.
    pub fn take_unfit(&self, yes: bool) -> Result<(), StateError> {
        self.takes_unfit.store(yes, Ordering::Relaxed);
        if let Some(source) = self.fallback.as_deref().and_then(|path| self.source(path)) {
            source.take_unfit(yes);
        }
        self.follow()
    }

    fn tell(&self, path: &Path, news: News<'_>) {
        (self.tell)(self, path, news);
    }

    fn lock(&self) -> MutexGuard<'_, ImageSources> {
        lock(&self.sources)
    }

    /// The archive that is meant for this Pi, before its disk is erased for it.
    ///
    /// # Errors
    /// Says why there is none, and what to do.
    pub fn meant_for(&self, pi: &Identity) -> Result<Arc<Source>, String> {
        // Another image than the one that is meant for it is worse than none.
        self.find(pi, false)
    }

    /// The archive that this Pi gets, which was told to format: where no image was ever named, that of `--rootfs` is
    /// the only one, and no error of the state keeps it from its Pi.
    ///
    /// # Errors
    /// Says why there is none, and what to do.
    pub fn of(&self, pi: &Identity) -> Result<Arc<Source>, String> {
        self.find(pi, !self.answered.load(Ordering::Relaxed))
    }

    fn find(&self, pi: &Identity, or_fallback: bool) -> Result<Arc<Source>, String> {
        let path = match self.state.image_of(pi) {
            Ok(path) => {
                self.answered.fetch_or(path.is_some(), Ordering::Relaxed);
                path.or_else(|| self.fallback.clone())
            }
            Err(e) if !or_fallback => return Err(format!("which image it gets cannot be read: {e}")),
            Err(_) => self.fallback.clone(),
        };
        let path = path.ok_or(
            "no image is meant for it: `piman image default NAME` or `piman image assign NAME --for DEVICE`",
        )?;
        self.source(&path).ok_or_else(|| "the server is being stopped".into())
    }

    /// Whether what is at this path is installed although it cannot boot.
    fn takes_unfit(&self, catalogue: &Catalogue, path: &Path) -> bool {
        self.takes_unfit.load(Ordering::Relaxed)
            || catalogue.images.iter().any(|i| i.path == path && i.takes_unfit)
    }

    /// What is at this path; `None` while the server is being stopped.
    fn source(&self, path: &Path) -> Option<Arc<Source>> {
        let mut sources = self.lock();
        if let Some(source) = sources.sources.get(path) {
            return Some(Arc::clone(source));
        }
        let source = Arc::new(Source::at(path));
        // What cannot be read is asked again by `follow`.
        source.take_unfit(self.state.catalogue().is_ok_and(|c| self.takes_unfit(&c, path)));
        match sources.put(Arc::clone(&source), self) {
            Ok(()) => Some(source),
            Err(e) => {
                tracing::error!("{} cannot be watched: {e}", path.display());
                None
            }
        }
    }

    /// All that are good now.
    pub fn good(&self) -> Vec<(Arc<Archive>, Hash)> {
        let sources: Vec<_> = self.lock().sources.values().cloned().collect();
        let good = |source: Arc<Source>| match source.servable() {
            SourceState::Good(archive, id) => Some((archive, id)),
            _ => None,
        };
        sources.into_iter().filter_map(good).collect()
    }

    /// Whether any is still being checked.
    pub fn is_checking(&self) -> bool {
        let sources: Vec<_> = self.lock().sources.values().cloned().collect();
        sources.iter().any(|source| matches!(source.servable(), SourceState::Checking(_)))
    }

    /// The hashes of all, if all are known and good: then whatever belongs to another one is
    /// needed no more.
    pub fn all(&self) -> Option<Vec<Hash>> {
        self.follow()
            .inspect_err(|e| tracing::warn!("images cannot be read, so none is removed: {e}"))
            .ok()?;
        let good = self.good();
        (good.len() == self.lock().sources.len()).then(|| good.into_iter().map(|(_, id)| id).collect())
    }

    /// What an operator says of an image.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    pub fn about(&self, archive: &Archive) -> Result<About, StateError> {
        self.state.about(archive.path())
    }

    /// The one with this hash, if it is good.
    pub fn by_id(&self, id: Hash) -> Option<Arc<Archive>> {
        self.good().into_iter().find(|(_, found)| *found == id).map(|(archive, _)| archive)
    }

    /// Ends the threads, and returns them.
    #[must_use]
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        let mut sources = self.lock();
        sources.closed = true;
        sources.sources.values().for_each(|source| source.close());
        std::mem::take(&mut sources.threads)
    }
}

impl ImageSources {
    fn put(&mut self, source: Arc<Source>, catalog: &Catalog) -> std::io::Result<()> {
        if self.closed {
            return Err(std::io::Error::other("the server is being stopped"));
        }
        let (this, watched) = (Weak::clone(&catalog.this), Arc::clone(&source));
        let on_checked = move |found: Result<(&Arc<Archive>, Hash), &str>| {
            // Without a catalog there is nobody to hear it.
            let Some(catalog) = this.upgrade() else { return };
            let path = watched.path();
            match found {
                Ok((archive, id)) => catalog.tell(path, News::Good(archive, id)),
                Err(reason) => catalog.tell(path, News::Bad(reason)),
            }
            // It was dropped while this was on its way.
            if watched.is_closed() {
                catalog.tell(path, News::Dropped);
            }
        };
        self.threads.retain(|thread| !thread.is_finished());
        self.threads.push(source.watch(Arc::clone(&catalog.state), on_checked)?);
        self.sources.insert(source.path().to_owned(), source);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::state::{Edit, Sqlite};

    fn pack(path: &Path, text: &str) {
        let file = File::create(path).unwrap();
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
        tar.into_inner().unwrap().finish().unwrap();
    }

    #[test]
    fn the_library_follows_the_catalogue() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a", "b", "c"] {
            pack(&path(name), name);
        }
        let state: Arc<dyn State> = Arc::new(Sqlite::serve(folder.path()).unwrap());
        let add = |name: &str| {
            state
                .edit(&Edit::Add {
                    name: name.into(),
                    path: path(name),
                    takes_unfit: true,
                    about: About::default(),
                })
                .unwrap()
        };
        assert!(add("b"));
        let (told, news) = mpsc::channel();
        let tell = move |_: &Catalog, path: &Path, news: News<'_>| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let kind = match news {
                News::Good(..) => "good",
                News::Bad(_) => "bad",
                News::Dropped => "dropped",
            };
            let _ = told.send((name, kind));
        };
        let fallback = Source::open(&path("a")).unwrap();
        let catalog = Catalog::open(Arc::clone(&state), Some(fallback), true, Box::new(tell)).unwrap();
        let wait = |name: &str, kind: &str| {
            while news.recv_timeout(Duration::from_secs(60)).unwrap() != (name.to_owned(), kind) {}
        };
        wait("a", "good");
        let both = || catalog.all().filter(|all| all.len() == 2);
        while both().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }

        // Nothing is needed no more before what was added has been read.
        assert!(add("c"));
        let all = catalog.all();
        assert!(all.is_none_or(|all| all.len() == 3), "c is not known, or it is among them");
        wait("c", "good");
        assert_eq!(catalog.all().unwrap().len(), 3);

        // What was removed stands in nobody's way, also if it is gone.
        fs::remove_file(path("b")).unwrap();
        wait("b", "bad");
        assert_eq!(catalog.all(), None);
        assert!(state.edit(&Edit::Remove { name: "b".into() }).unwrap());
        assert_eq!(catalog.all().unwrap().len(), 2);
        wait("b", "dropped");
        for thread in catalog.close() {
            thread.thread().unpark();
            thread.join().unwrap();
        }
    }
}
