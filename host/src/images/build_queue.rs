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
use crate::images::ext4::{Error, Image, Images, Progress};
use crate::images::source::Archive;
use crate::state::Recorder;
use crate::sys::lock::lock;

/// How many images of one archive are made at most: one for each size of card, and no more
/// because somebody claims to have cards of all sizes.
const IMAGES_MAX: usize = 32;
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
    failed: HashMap<(Hash, u64), Failure>,
}

#[derive(Clone)]
struct Job {
    archive: Arc<Archive>,
    id: Hash,
    /// 0 for a disk image: that is the same for cards of all sizes.
    filesystem_bytes: u64,
}

struct Failure {
    at: Instant,
    /// What to do about it.
    instead: Availability,
}

/// What an image of this size is for.
fn cards(size: u64) -> String {
    match size {
        0 => "cards of all sizes".into(),
        size => format!("root filesystems of {size} bytes"),
    }
}

impl Job {
    fn key(&self) -> (Hash, u64) {
        (self.id, self.filesystem_bytes)
    }
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

    /// The image with this table, for whoever fetches it.
    pub fn by_table(&self, table: Hash) -> Option<Arc<Image>> {
        self.images.as_ref()?.by_table(table)
    }

    /// The image with this table, as it is offered, also if another process has made it.
    pub fn offer_of(&self, table: Hash) -> Option<ImageOffer> {
        self.images.as_ref()?.find_table(table).map(|image| image.offer())
    }

    /// What there is of this archive for a root filesystem of this size; of a disk image, which is the same for cards of
    /// all sizes, whatever the size is. A missing image is begun, or put at the end of the line.
    pub fn prepare(&self, archive: &Arc<Archive>, id: Hash, filesystem_bytes: u64) -> Availability {
        let filesystem_bytes = if archive.is_disk() { 0 } else { filesystem_bytes };
        let Some(images) = &self.images else {
            return if archive.is_disk() {
                Availability::Impossible(NO_IMAGES.into())
            } else {
                Availability::Archive
            };
        };
        let job = Job { archive: Arc::clone(archive), id, filesystem_bytes };
        {
            let mut work = self.lock();
            match &work.now {
                Some((now, progress)) if now.key() == job.key() => {
                    return Availability::Making(u8::try_from(progress.percent()).unwrap_or(99).min(99));
                }
                _ if work.waiting.iter().any(|w| w.key() == job.key()) => return Availability::Making(0),
                _ => {}
            }
            match work.failed.get(&job.key()) {
                Some(failure) if failure.at.elapsed() < AGAIN => return failure.instead.clone(),
                Some(_) => drop(work.failed.remove(&job.key())),
                None => {}
            }
        }
        if let Some(image) = images.find(id, filesystem_bytes) {
            return Availability::Ready(image.offer());
        }
        let made = images.all().iter().filter(|i| i.header().archive == id).count();
        let mut work = self.lock();
        let waiting = work.waiting.iter().filter(|w| w.id == id).count();
        if made + waiting >= IMAGES_MAX && !archive.is_disk() {
            tracing::warn!(
                "no image for {filesystem_bytes} bytes: there are {IMAGES_MAX} of this archive already"
            );
            return Availability::Archive;
        }
        // Another connection may have been faster.
        if !work.waiting.iter().any(|w| w.key() == job.key()) {
            work.waiting.push_back(job);
        }
        drop(work);
        self.wake.notify_all();
        Availability::Making(0)
    }

    /// A new archive is there: makes its images of these sizes, and forgets those that are of
    /// none of all archives. `None`: not all are known yet.
    pub fn renew(&self, archive: &Arc<Archive>, id: Hash, all: Option<&[Hash]>, sizes: &[u64]) {
        let Some(images) = &self.images else { return };
        if let Some(all) = all {
            let mut work = self.lock();
            work.waiting.retain(|job| all.contains(&job.id));
            work.failed.retain(|(of, _), _| all.contains(of));
            drop(work);
            images.sweep(all);
            // It is no concern of this server any more.
            if !all.contains(&id) {
                return;
            }
        }
        let one = [0];
        for size in if archive.is_disk() { &one } else { sizes } {
            if let Availability::Making(_) = self.prepare(archive, id, *size) {
                tracing::info!("an image of {:.16} for {} is made ahead", id, cards(*size));
            }
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
            let (id, size) = job.key();
            let began = Instant::now();
            let file = job.archive.file();
            let made = if job.archive.is_disk() {
                images.build_by(disk_image::build, file, id, size, &progress, &self.stop)
            } else {
                images.build(file, id, size, &progress, &self.stop)
            };
            let mut work = self.lock();
            work.now = None;
            match made {
                Ok(image) => {
                    let (seconds, stored) = (began.elapsed().as_secs_f64(), image.header().stored_bytes);
                    tracing::info!(
                        "image {:.16} for {} is ready: {stored} bytes, {seconds:.1} s",
                        image.hash(),
                        cards(size)
                    );
                    self.recorder.alert("image", None);
                }
                Err(Error::Stopped | Error::Changed) => {}
                Err(e) => {
                    let (stream, is_too_small) = (e.leaves_stream(), matches!(e, Error::TooSmall { .. }));
                    let text = format!("{:#}", anyhow::Error::from(e));
                    tracing::error!("there is no image for {}: {text}", cards(size));
                    let instead = match (stream, is_too_small) {
                        (true, _) if !job.archive.is_disk() => Availability::Archive,
                        (false, true) => Availability::TooSmall(text.clone()),
                        _ => Availability::Impossible(text.clone()),
                    };
                    self.recorder.alert("image", Some(text));
                    work.failed.insert((id, size), Failure { at: Instant::now(), instead });
                }
            }
        }
    }
}
