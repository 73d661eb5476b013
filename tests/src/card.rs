//! A card of our own below everything: a file that the kernel reads and writes through FUSE.
//! It writes down every write and flush in their order, can lie, and says what a real card
//! could hold after its power was cut at any moment.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::chance::Random;

/// The largest write that the kernel sends, in bytes.
const WRITE_MAX: u32 = 1 << 20;
const BLOCK: usize = 4096;

/// What reached the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These bytes at this place; they may be in the card's cache only.
    Write(u64, Vec<u8>),
    /// Everything before it is on the medium.
    Flush,
}

/// Which of the writes that were not flushed a power cut leaves on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All.
    All,
    /// None.
    None,
    /// Some, by chance from this seed; and of these some in part.
    Some(u64),
    /// Only the last one.
    Last,
    /// All but the first one.
    ButFirst,
}

/// How a card is not what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It is honest.
    None,
    /// It has so many bytes, and uses them over and over.
    Wraps(u64),
    /// It forgets what is written from this byte on.
    Forgets(u64),
    /// It changes a bit of each block that is written between these bytes.
    Rots(u64, u64),
    /// It fails to write from this byte on.
    Fails(u64),
    /// It fails to read between these bytes, but for blocks that were written since.
    Unreadable(u64, u64),
}

/// What is known of a card.
#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    events: Vec<Event>,
    lie: Lie,
    /// How long a flush takes.
    flush: Duration,
}

/// A card that the kernel has as a file; gone when dropped.
#[derive(Debug)]
pub struct Card {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    daemon: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Card {
    /// A card that holds this.
    ///
    /// # Panics
    /// If it cannot be mounted, which needs root and `/dev/fuse`.
    #[must_use]
    pub fn new(bytes: Vec<u8>, lie: Lie) -> Self {
        let fuse = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("card.img");
        File::create(&path).expect("a file to mount at");
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
        let options = CString::new(options).expect("no zero in it");
        mount("card", &path, "fuse", MountFlags::empty(), options.as_c_str()).expect("mounting by FUSE");
        let state = Arc::new(Mutex::new(State { bytes, events: Vec::new(), lie, flush: Duration::ZERO }));
        let shared = Arc::clone(&state);
        let daemon = thread::Builder::new().name("card".into()).spawn(move || serve(fuse, &shared));
        Self { path, state, daemon: daemon.ok(), _folder: folder }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on each flush takes so long.
    pub fn flush_slowly(&self, takes: Duration) {
        self.lock().flush = takes;
    }

    /// What it holds now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// What reached it since it was made, or since this was called before.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // The daemon ends when the kernel lets go of it; busy or not, nothing waits for it then.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        if let Some(daemon) = self.daemon.take().filter(|_| !thread::panicking()) {
            let _ = daemon.join();
        }
    }
}

// --- What a power cut leaves ----------------------------------------------------------

/// A medium on its way through the events.
#[derive(Debug, Clone)]
pub struct Medium {
    flushed: Vec<u8>,
    /// Blocks that are not zero.
    used: BTreeSet<usize>,
}

impl Medium {
    /// Before the first event.
    #[must_use]
    pub fn new(before: Vec<u8>) -> Self {
        let zero = |block: &[u8]| block.iter().all(|b| *b == 0);
        let used = (0..).zip(before.chunks(BLOCK)).filter(|(_, b)| !zero(b)).map(|(i, _)| i).collect();
        Self { flushed: before, used }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).expect("it fits");
        self.flushed[at..at + bytes.len()].copy_from_slice(bytes);
        self.used.extend(at / BLOCK..(at + bytes.len()).div_ceil(BLOCK));
    }

    /// What these events leave, which end with a power cut, as a file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn cut(&self, events: &[Event], cut: Cut, file: &File) {
        let mut medium = Overlay { file, below: self };
        medium.begin();
        let flushed = events.iter().rposition(|e| *e == Event::Flush).map_or(0, |n| n + 1);
        let (flushed, cached) = events.split_at(flushed);
        flushed.iter().for_each(|e| medium.apply(e));
        let last = cached.len().saturating_sub(1);
        let mut random = Random::new(match cut {
            Cut::Some(seed) => seed,
            _ => 0,
        });
        for (i, event) in cached.iter().enumerate() {
            let kept = match cut {
                Cut::All => true,
                Cut::None => false,
                Cut::Last => i == last,
                Cut::ButFirst => i > 0,
                Cut::Some(_) => random.below(2) == 0,
            };
            match event {
                // Whole sectors are written or not.
                Event::Write(at, bytes) if matches!(cut, Cut::Some(_)) && random.below(4) == 0 => {
                    let sectors = bytes.len() as u64 / 512;
                    let part = random.below(sectors + 1) as usize * 512;
                    medium.apply(&Event::Write(*at, bytes[..part].to_vec()));
                }
                event if kept => medium.apply(event),
                _ => {}
            }
        }
    }

    /// Goes on behind these events, which end with a flush.
    pub fn advance(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Write(at, bytes) = event {
                self.write(*at, bytes);
            }
        }
    }
}

struct Overlay<'a> {
    file: &'a File,
    below: &'a Medium,
}

impl Overlay<'_> {
    fn begin(&mut self) {
        self.file.set_len(0).expect("truncating");
        self.file.set_len(self.below.flushed.len() as u64).expect("a sparse file");
        for block in &self.below.used {
            let at = block * BLOCK;
            let end = (at + BLOCK).min(self.below.flushed.len());
            self.file.write_all_at(&self.below.flushed[at..end], at as u64).expect("writing");
        }
    }

    fn apply(&mut self, event: &Event) {
        if let Event::Write(at, bytes) = event {
            self.file.write_all_at(bytes, *at).expect("writing");
        }
    }
}

// --- FUSE -----------------------------------------------------------------------------
// As in linux/fuse.h: a header and fields in the byte order of this machine.

const ENOSYS: i32 = 38;
const EIO: i32 = 5;

struct Request<'a> {
    opcode: u32,
    unique: u64,
    body: &'a [u8],
}

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().expect("eight bytes"))
    }
}

fn serve(mut fuse: File, state: &Mutex<State>) {
    let mut buf = vec![0; WRITE_MAX as usize + BLOCK];
    loop {
        let n = match fuse.read(&mut buf) {
            Ok(n) if n >= 40 => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::NotFound) => continue,
            // Unmounted.
            _ => return,
        };
        let head = |at: usize| u32::from_ne_bytes(buf[at..at + 4].try_into().expect("four bytes"));
        let unique = u64::from_ne_bytes(buf[8..16].try_into().expect("eight bytes"));
        let request = Request { opcode: head(4), unique, body: &buf[40..n] };
        let reply = state.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
        let (error, body) = match reply {
            Some(Ok(body)) => (0, body),
            Some(Err(error)) => (-error, Vec::new()),
            None => continue,
        };
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend((16 + body.len() as u32).to_ne_bytes());
        out.extend(error.to_ne_bytes());
        out.extend(request.unique.to_ne_bytes());
        out.extend(body);
        // Whoever asked may be gone.
        let _ = fuse.write_all(&out);
    }
}

impl State {
    /// `None` for what is not answered.
    fn answer(&mut self, request: &Request<'_>) -> Option<Result<Vec<u8>, i32>> {
        const FORGET: u32 = 2;
        const GETATTR: u32 = 3;
        const SETATTR: u32 = 4;
        const OPEN: u32 = 14;
        const READ: u32 = 15;
        const WRITE: u32 = 16;
        const STATFS: u32 = 17;
        const RELEASE: u32 = 18;
        const FSYNC: u32 = 20;
        const FLUSH: u32 = 25;
        const INIT: u32 = 26;
        const ACCESS: u32 = 34;
        const INTERRUPT: u32 = 36;
        const DESTROY: u32 = 38;
        const BATCH_FORGET: u32 = 42;
        Some(match request.opcode {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => Ok(init()),
            GETATTR | SETATTR => Ok(attributes(self.bytes.len() as u64)),
            // Direct: nothing of it is kept in the kernel's cache.
            OPEN => Ok([7_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat()),
            READ => self.read(request.u64(8), request.u32(16) as usize),
            WRITE => {
                let (at, length) = (request.u64(8), request.u32(16));
                self.write(at, &request.body[40..40 + length as usize])
                    .map(|()| [length.to_ne_bytes(), [0; 4]].concat())
            }
            FSYNC => {
                thread::sleep(self.flush);
                self.events.push(Event::Flush);
                Ok(Vec::new())
            }
            STATFS => Ok(vec![0; 80]),
            RELEASE | FLUSH | ACCESS | DESTROY => Ok(Vec::new()),
            _ => Err(ENOSYS),
        })
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, i32> {
        let end = (at + length as u64).min(self.bytes.len() as u64);
        let span = |from: u64, to: u64| self.bytes[from as usize..to as usize].to_vec();
        match self.lie {
            _ if at >= end => Ok(Vec::new()),
            Lie::Wraps(has) => Ok((at..end).map(|b| self.bytes[(b % has) as usize]).collect()),
            Lie::Unreadable(from, to)
                if (at.max(from)..end.min(to)).step_by(BLOCK).any(|b| !self.is_written(b)) =>
            {
                Err(EIO)
            }
            _ => Ok(span(at, end)),
        }
    }

    /// Whether something was written to this byte.
    fn is_written(&self, byte: u64) -> bool {
        self.events.iter().any(|event| {
            let Event::Write(at, bytes) = event else { return false };
            (*at..at + bytes.len() as u64).contains(&byte)
        })
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), i32> {
        let end = at + bytes.len() as u64;
        match self.lie {
            _ if end > self.bytes.len() as u64 => return Err(EIO),
            Lie::Fails(from) if end > from => return Err(EIO),
            Lie::Wraps(has) => (at..).zip(bytes).for_each(|(b, v)| self.bytes[(b % has) as usize] = *v),
            Lie::Forgets(from) if at >= from => {}
            _ => self.bytes[at as usize..end as usize].copy_from_slice(bytes),
        }
        if let Lie::Rots(from, to) = self.lie {
            let blocks = at.next_multiple_of(BLOCK as u64)..end.min(to);
            blocks.step_by(BLOCK).filter(|b| *b >= from).for_each(|b| self.bytes[b as usize + 77] ^= 4);
        }
        self.events.push(Event::Write(at, bytes.to_vec()));
        Ok(())
    }
}

fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::with_capacity(64);
    for word in [7, 31, 0, BIG_WRITES | MAX_PAGES, 0x000c_0010, WRITE_MAX, 1, WRITE_MAX / 4096] {
        out.extend(u32::to_ne_bytes(word));
    }
    out.resize(64, 0);
    out
}

fn attributes(size: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    // For how long they hold: for ever.
    out.extend([u64::from(u32::MAX).to_ne_bytes(), [0; 8]].concat());
    for word in [1, size, size / 512, 0, 0, 0] {
        out.extend(u64::to_ne_bytes(word));
    }
    for word in [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
        out.extend(u32::to_ne_bytes(word));
    }
    out
}
