//! The archives of a server: which Pi gets which, and each open once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use piman_core::hash::Hash;

use crate::archive::{Archive, Servable, Source};
use crate::state::{Identity, State};

/// What is told of each version of each archive: its identity, or what is wrong and what to do.
pub type Tell = Arc<dyn Fn(&Path, Result<(&Arc<Archive>, Hash), &str>) + Send + Sync>;

/// The archives that are in use, by path.
pub struct Library {
    state: Arc<dyn State>,
    /// What `--rootfs` names: for everyone who gets nothing else.
    fallback: Option<PathBuf>,
    shelf: Mutex<Shelf>,
    /// Whether the catalogue had an answer when it was last read.
    answered: AtomicBool,
    tell: Tell,
}

#[derive(Default)]
struct Shelf {
    sources: HashMap<PathBuf, Arc<Source>>,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Library {
    /// A library with an archive for everyone who gets nothing else, and what the catalogue in
    /// the state has. All are being checked when this returns.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn open(state: Arc<dyn State>, fallback: Option<Source>, tell: Tell) -> std::io::Result<Arc<Self>> {
        let library = Arc::new(Self {
            state,
            fallback: fallback.as_ref().map(|source| source.path().to_owned()),
            shelf: Mutex::default(),
            answered: AtomicBool::new(false),
            tell,
        });
        if let Some(source) = fallback {
            library.lock().put(Arc::new(source), &library.state, &library.tell)?;
        }
        match library.state.catalogue() {
            Ok(catalogue) => {
                library.answered.store(!catalogue.images.is_empty(), Ordering::Relaxed);
                for image in catalogue.images {
                    library.source(&image.path);
                }
            }
            Err(e) => log::error!("images cannot be read, so only --rootfs is installed: {e}"),
        }
        Ok(library)
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The archive that this Pi gets.
    ///
    /// # Errors
    /// Says why there is none, and what to do.
    pub fn of(&self, pi: &Identity) -> Result<Arc<Source>, String> {
        let path = match self.state.image_of(pi) {
            Ok(path) => {
                self.answered.fetch_or(path.is_some(), Ordering::Relaxed);
                path.or_else(|| self.fallback.clone())
            }
            // Another image than the one that is meant for it is worse than none.
            Err(e) if self.answered.load(Ordering::Relaxed) => {
                return Err(format!("which image it gets cannot be read: {e}"));
            }
            Err(_) => self.fallback.clone(),
        };
        let path = path.ok_or(
            "no image is meant for it: `piman image default NAME` or `piman image assign NAME --for DEVICE`",
        )?;
        self.source(&path).ok_or_else(|| "the server is being stopped".into())
    }

    /// What is at this path; `None` while the server is being stopped.
    fn source(&self, path: &Path) -> Option<Arc<Source>> {
        let mut shelf = self.lock();
        if let Some(source) = shelf.sources.get(path) {
            return Some(Arc::clone(source));
        }
        let source = Arc::new(Source::at(path));
        match shelf.put(Arc::clone(&source), &self.state, &self.tell) {
            Ok(()) => Some(source),
            Err(e) => {
                log::error!("{} cannot be watched: {e}", path.display());
                None
            }
        }
    }

    /// All that are good now.
    pub fn good(&self) -> Vec<(Arc<Archive>, Hash)> {
        let sources: Vec<_> = self.lock().sources.values().cloned().collect();
        let good = |source: Arc<Source>| match source.servable() {
            Servable::Good(archive, id) => Some((archive, id)),
            _ => None,
        };
        sources.into_iter().filter_map(good).collect()
    }

    /// Whether any is still being checked.
    pub fn is_checking(&self) -> bool {
        let sources: Vec<_> = self.lock().sources.values().cloned().collect();
        sources.iter().any(|source| matches!(source.servable(), Servable::Checking(_)))
    }

    /// The hashes of all, if all are good: then whatever belongs to another one is needed no more.
    pub fn all(&self) -> Option<Vec<Hash>> {
        let good = self.good();
        (good.len() == self.lock().sources.len()).then(|| good.into_iter().map(|(_, id)| id).collect())
    }

    /// The one with this hash, if it is good.
    pub fn by_id(&self, id: Hash) -> Option<Arc<Archive>> {
        self.good().into_iter().find(|(_, found)| *found == id).map(|(archive, _)| archive)
    }

    /// Ends the threads, and returns them.
    #[must_use]
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        let mut shelf = self.lock();
        shelf.closed = true;
        shelf.sources.values().for_each(|source| source.close());
        std::mem::take(&mut shelf.threads)
    }
}

impl Shelf {
    fn put(&mut self, source: Arc<Source>, state: &Arc<dyn State>, tell: &Tell) -> std::io::Result<()> {
        if self.closed {
            return Err(std::io::Error::other("the server is being stopped"));
        }
        let (tell, path) = (Arc::clone(tell), source.path().to_owned());
        let name = path.clone();
        self.threads.push(source.watch(Arc::clone(state), move |found| tell(&path, found))?);
        self.sources.insert(name, source);
        Ok(())
    }
}
