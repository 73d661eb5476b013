//! The moment in which a disk is written to for the first time.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// How often it is looked whether nobody waits any more.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Waits for the first write to a disk, and does something in that moment.
#[derive(Debug)]
pub struct FirstWrite<T> {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Option<T>>,
}

impl<T: Send + 'static> FirstWrite<T> {
    /// Watches a block device, or a file in place of one, from now on: what a program writes to it. What the kernel
    /// writes where it is mounted is not seen.
    ///
    /// # Panics
    /// If it cannot be watched.
    pub fn watch(disk: &Path, then: impl FnOnce() -> T + Send + 'static) -> Self {
        let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        add_watch(&watch, disk, WatchFlags::MODIFY).expect("a disk to watch");
        let over = Arc::new(AtomicBool::new(false));
        let no_more = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut then = Some(then);
            loop {
                // What was written before it was over counts.
                let last = no_more.load(Ordering::Acquire);
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                let pause = if last { Timespec { tv_sec: 0, tv_nsec: 0 } } else { LOOK };
                let _ = poll(&mut fds, Some(&pause));
                let mut buf = [MaybeUninit::uninit(); 4096];
                if Reader::new(&watch, &mut buf).next().is_ok() {
                    return then.take().map(|then| then());
                }
                if last {
                    return None;
                }
            }
        });
        Self { over, thread }
    }

    /// What was done in that moment; `None`: nothing was written.
    ///
    /// # Panics
    /// If what was done did.
    #[must_use]
    pub fn end(self) -> Option<T> {
        self.over.store(true, Ordering::Release);
        self.thread.join().expect("what is done at the first write")
    }

    /// Waits until it has come, or this long.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        let until = std::time::Instant::now() + at_most;
        while !self.thread.is_finished() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_micros(500));
        }
        self.thread.is_finished()
    }
}
