//! Images for path B: which there are, and making those that are missing, one at a time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use piman_core::hash::Hash;
use piman_core::install::ImageOffer;

use crate::images::disk_image;
use crate::images::ext4::{Early, Error, Following, Image, Images, Progress};
use crate::images::source::Archive;
use crate::state::Recorder;
use crate::sys::lock::lock;

/// After this, what could not be made is tried again: the disk may have room now.
const AGAIN: Duration = Duration::from_secs(600);

/// Why there is nothing of a disk image.
const NO_IMAGES: &str = "a disk image is sent in chunks, and this server makes none";

/// What there is for a Pi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// An image.
    Ready(ImageOffer),
    /// It is being made; the progress in per cent.
    Making(u8),
    /// It is being made, and these chunks of it are there; the progress in per cent.
    Begun(ImageOffer, u8),
    /// There is no image, but the Pi can extract the archive by itself.
    Archive,
    /// The archive cannot be installed by any path.
    Impossible(String),
    /// It will never have room on this card.
    TooSmall(String),
}

/// The images of one server.
pub struct BuildQueue {
    images: Option<Images>,
    recorder: Arc<Recorder>,
    work: Mutex<Work>,
    wake: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Work {
    waiting: VecDeque<Job>,
    now: Option<(Job, Arc<Progress>)>,
    /// What Pis may still be fetching that began with it before it was whole.
    before: Option<Arc<Early>>,
    failed: HashMap<Hash, Failure>,
}

#[derive(Clone)]
struct Job {
    archive: Arc<Archive>,
    id: Hash,
}

struct Failure {
    at: Instant,
    /// What to do about it.
    instead: Availability,
}

impl BuildQueue {
    /// The images in the state folder, and a thread that makes more; `None` makes none.
    ///
    /// # Errors
    /// If the folder cannot be used, or the system has no thread left.
    pub fn start(
        state: Option<&Path>,
        recorder: Arc<Recorder>,
    ) -> io::Result<(Arc<Self>, Option<JoinHandle<()>>)> {
        let builds = Arc::new(Self {
            images: state.map(Images::open).transpose()?,
            recorder,
            work: Mutex::default(),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        if builds.images.is_none() {
            return Ok((builds, None));
        }
        let worker = Arc::clone(&builds);
        let thread = thread::Builder::new().name("images".into()).spawn(move || worker.run())?;
        Ok((builds, Some(thread)))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        lock(&self.work)
    }

    /// The image with this table, for whoever fetches it, whole or not.
    pub fn by_table(&self, table: Hash) -> Option<Arc<Image>> {
        let early = || self.early().iter().find_map(|early| early.by_table(table));
        self.images.as_ref()?.by_table(table).or_else(early)
    }

    /// What has more chunks than this table of an image that is being made.
    pub fn after(&self, table: Hash) -> Following {
        let mut following = self.early().into_iter().map(|early| early.after(table));
        following.find(|f| !matches!(f, Following::Nothing)).unwrap_or(Following::Nothing)
    }

    /// The image that is being made, and the one before.
    fn early(&self) -> Vec<Arc<Early>> {
        let work = self.lock();
        let now = work.now.as_ref().and_then(|(_, progress)| progress.early());
        now.into_iter().chain(&work.before).cloned().collect()
    }

    /// The image of this archive with this table, also if another process has made it, for a root partition or disk of so
    /// many bytes.
    pub fn find(&self, table: Hash, archive: &Archive, room: u64) -> Option<Availability> {
        self.images.as_ref()?.find_table(table).map(|image| fitted(&image, archive, room))
    }

    /// What there is of this archive for a root partition or disk of so many bytes. A missing image is begun, or put at
    /// the end of the line.
    pub fn prepare(&self, archive: &Arc<Archive>, id: Hash, room: u64) -> Availability {
        let Some(images) = &self.images else {
            return if archive.is_disk() {
                Availability::Impossible(NO_IMAGES.into())
            } else {
                Availability::Archive
            };
        };
        {
            let mut work = self.lock();
            match &work.now {
                Some((now, progress)) if now.id == id => {
                    let percent = u8::try_from(progress.percent()).unwrap_or(99).min(99);
                    let begun = progress.early().and_then(|early| early.newest());
                    return begun.map_or(Availability::Making(percent), |image| {
                        match fitted(&image, archive, room) {
                            Availability::Ready(offer) if !image.header().whole => {
                                Availability::Begun(offer, percent)
                            }
                            other => other,
                        }
                    });
                }
                _ if work.waiting.iter().any(|w| w.id == id) => return Availability::Making(0),
                _ => {}
            }
            match work.failed.get(&id) {
                Some(failure) if failure.at.elapsed() < AGAIN => return failure.instead.clone(),
                Some(_) => drop(work.failed.remove(&id)),
                None => {}
            }
        }
        if let Some(image) = images.find(id) {
            return fitted(&image, archive, room);
        }
        let mut work = self.lock();
        // Another connection may have been faster.
        if !work.waiting.iter().any(|w| w.id == id) {
            work.waiting.push_back(Job { archive: Arc::clone(archive), id });
        }
        drop(work);
        self.wake.notify_all();
        Availability::Making(0)
    }

    /// A new archive is there: makes its image, and forgets those that are of none of all archives. `None`: not all are
    /// known yet.
    pub fn renew(&self, archive: &Arc<Archive>, id: Hash, all: Option<&[Hash]>) {
        let Some(images) = &self.images else { return };
        if let Some(all) = all {
            let mut work = self.lock();
            work.waiting.retain(|job| all.contains(&job.id));
            work.failed.retain(|of, _| all.contains(of));
            drop(work);
            images.sweep(all);
            // It is no concern of this server any more.
            if !all.contains(&id) {
                return;
            }
        }
        if let Availability::Making(_) | Availability::Begun(..) = self.prepare(archive, id, u64::MAX) {
            tracing::info!("the image of {id:.16} is made ahead");
        }
    }

    /// Ends the thread, also in the middle of an image.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.notify_all();
    }

    fn next(&self) -> Option<(Job, Arc<Progress>)> {
        let mut work = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(job) = work.waiting.pop_front() {
                let now = (job, Arc::new(Progress::new()));
                work.now = Some(now.clone());
                return Some(now);
            }
            // With a limit, since `stop` does not hold the lock when it notifies.
            let wait = self.wake.wait_timeout(work, Duration::from_millis(500));
            work = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run(&self) {
        let Some(images) = &self.images else { return };
        while let Some((job, progress)) = self.next() {
            let (id, began, file) = (job.id, Instant::now(), job.archive.file());
            let made = if job.archive.is_disk() {
                images.build_by(disk_image::build, file, id, &progress, &self.stop)
            } else {
                images.build(file, id, &progress, &self.stop)
            };
            let mut work = self.lock();
            work.now = None;
            match made {
                Ok(image) => {
                    work.before = progress.early().cloned();
                    let (seconds, stored) = (began.elapsed().as_secs_f64(), image.header().stored_bytes);
                    tracing::info!(
                        "image {:.16} of {id:.16} is ready: {stored} bytes, {seconds:.1} s",
                        image.hash()
                    );
                    self.recorder.alert("image", None);
                }
                Err(Error::Stopped | Error::Changed) => {}
                Err(e) => {
                    let leaves_archive = e.leaves_stream() && !job.archive.is_disk();
                    let text = format!("{:#}", anyhow::Error::from(e));
                    tracing::error!("there is no image of {id:.16}: {text}");
                    let instead = match leaves_archive {
                        true => Availability::Archive,
                        false => Availability::Impossible(text.clone()),
                    };
                    self.recorder.alert("image", Some(text));
                    work.failed.insert(id, Failure { at: Instant::now(), instead });
                }
            }
        }
    }
}

/// An image for a place of so many bytes.
fn fitted(image: &Image, archive: &Archive, room: u64) -> Availability {
    match image.header().total_bytes {
        needed if needed > room => Availability::TooSmall(too_small(archive, needed, room)),
        _ => Availability::Ready(image.offer()),
    }
}

/// What never has room on a card, in words for people.
pub(crate) fn too_small(archive: &Archive, needed: u64, room: u64) -> String {
    let shown = archive.path().display();
    if archive.is_disk() {
        return format!(
            "{shown} needs a disk of {needed} bytes at least, and the one of this Pi has {room}: use a larger card, or \
             assign a smaller image to it"
        );
    }
    format!(
        "the image of {shown} does not fit a root partition of {room} bytes: it needs at least {needed} bytes ({} MiB) \
         there; use a larger card, or assign a smaller image to this Pi",
        needed.div_ceil(1 << 20)
    )
}
