//! Byte streams in memory: a script that plays one side, and worlds of streams between two sides with a
//! clock that moves only when nobody can go on. Both sides run against each other in one thread, the same
//! way every time, and a deadlock is seen at once.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use embedded_io_async::{ErrorType, Read, Write};
use piman_core::messages::{QUIET_MS, Timer};

/// A peer whose words are fixed: gives its input in pieces of `chop` bytes, then ends; keeps what it is told.
#[derive(Debug)]
pub struct Script<'a> {
    input: &'a [u8],
    chop: usize,
    /// What the session sent.
    pub output: Vec<u8>,
}

impl<'a> Script<'a> {
    /// Says `input` in pieces of `chop` bytes.
    #[must_use]
    pub fn new(input: &'a [u8], chop: usize) -> Self {
        Self { input, chop, output: Vec::new() }
    }
}

impl ErrorType for Script<'_> {
    type Error = Infallible;
}

impl Read for Script<'_> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        let n = self.chop.min(buf.len()).min(self.input.len());
        let (piece, rest) = self.input.split_at(n);
        buf[..n].copy_from_slice(piece);
        self.input = rest;
        Ok(n)
    }
}

impl Write for Script<'_> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        let n = self.chop.min(buf.len());
        self.output.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What a stream holds in each direction, in bytes, where nothing depends on it.
pub const ROOM: usize = 4096;

/// What all ends of one simulation share.
#[derive(Clone, Default)]
pub struct World {
    /// How often anything went on.
    progress: Rc<Cell<u64>>,
    now_ms: Rc<Cell<u64>>,
    /// When the next sleeper wakes.
    alarm_ms: Rc<Cell<Option<u64>>>,
}

impl World {
    /// A new world at the time 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Two ends of a stream. `room` bytes are under way in each direction at most, and no read
    /// or write moves more than `chop` bytes.
    #[must_use]
    pub fn stream(&self, room: usize, chop: usize) -> (End, End) {
        let pipes = [Rc::new(RefCell::new(Pipe::default())), Rc::new(RefCell::new(Pipe::default()))];
        let end = |from: usize, to: usize| End {
            world: self.clone(),
            from: pipes[from].clone(),
            to: pipes[to].clone(),
            room,
            chop,
            budget: None,
        };
        (end(0, 1), end(1, 0))
    }

    /// Milliseconds since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Returns after so many milliseconds.
    pub async fn sleep(&self, ms: u64) {
        let at = self.now_ms.get() + ms;
        poll_fn(|_| {
            if self.now_ms.get() >= at {
                self.went_on();
                return Poll::Ready(());
            }
            self.alarm_ms.set(Some(self.alarm_ms.get().map_or(at, |a| a.min(at))));
            Poll::Pending
        })
        .await;
    }

    /// Runs all of `tasks` to their ends.
    ///
    /// # Panics
    /// If none of those that are left can ever go on: a deadlock.
    pub fn run(&self, tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
        let mut tasks = tasks;
        let mut context = Context::from_waker(Waker::noop());
        while !tasks.is_empty() {
            let (before, left) = (self.progress.get(), tasks.len());
            self.alarm_ms.set(None);
            tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            if self.progress.get() == before && tasks.len() == left {
                let alarm = self.alarm_ms.get();
                self.now_ms
                    .set(alarm.unwrap_or_else(|| panic!("deadlock: {left} tasks wait for each other")));
            }
        }
    }

    /// Runs two sides to their ends; what both say.
    ///
    /// # Panics
    /// If neither can ever go on.
    pub fn both<A: Future, B: Future>(&self, a: A, b: B) -> (A::Output, B::Output) {
        let (mut first, mut second) = (None, None);
        self.run(vec![Box::pin(async { first = Some(a.await) }), Box::pin(async { second = Some(b.await) })]);
        (first.expect("it has ended"), second.expect("it has ended"))
    }

    fn went_on(&self) {
        self.progress.set(self.progress.get() + 1);
    }
}

/// The clock of a frames talk.
impl Timer for World {
    async fn quiet(&mut self) {
        self.sleep(QUIET_MS.into()).await;
    }
}

#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    start: usize,
    closed: bool,
}

/// One end of a stream; dropping it closes both directions.
pub struct End {
    world: World,
    from: Rc<RefCell<Pipe>>,
    to: Rc<RefCell<Pipe>>,
    room: usize,
    chop: usize,
    budget: Option<usize>,
}

impl End {
    /// The connection is cut, in both directions, as soon as this end has written so many more bytes; with
    /// `None` it is not.
    pub fn cut_after(&mut self, bytes: impl Into<Option<usize>>) {
        self.budget = bytes.into();
        if self.budget == Some(0) {
            self.close();
        }
    }

    fn close(&self) {
        self.from.borrow_mut().closed = true;
        self.to.borrow_mut().closed = true;
        self.world.went_on();
    }

    /// Whether there is something to read, or the end.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let pipe = self.from.borrow();
        pipe.closed || pipe.start < pipe.bytes.len()
    }

    /// Waits until there is something to read, or the end.
    pub async fn readable(&self) {
        poll_fn(|_| if self.is_readable() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

impl ErrorType for End {
    type Error = Infallible;
}

impl Read for End {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        poll_fn(|_| {
            let mut pipe = self.from.borrow_mut();
            let n = (pipe.bytes.len() - pipe.start).min(buf.len()).min(self.chop);
            if n == 0 && !pipe.closed && !buf.is_empty() {
                return Poll::Pending;
            }
            buf[..n].copy_from_slice(&pipe.bytes[pipe.start..][..n]);
            pipe.start += n;
            if pipe.start == pipe.bytes.len() {
                pipe.bytes.clear();
                pipe.start = 0;
            }
            self.world.went_on();
            Poll::Ready(Ok(n))
        })
        .await
    }
}

impl Write for End {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        poll_fn(|_| {
            let mut pipe = self.to.borrow_mut();
            if pipe.closed {
                self.world.went_on();
                return Poll::Ready(Ok(0));
            }
            let free = self.room.saturating_sub(pipe.bytes.len() - pipe.start);
            let n = free.min(buf.len()).min(self.chop).min(self.budget.unwrap_or(usize::MAX));
            if n == 0 && !buf.is_empty() {
                return Poll::Pending;
            }
            let start = std::mem::take(&mut pipe.start);
            pipe.bytes.drain(..start);
            pipe.bytes.extend_from_slice(&buf[..n]);
            drop(pipe);
            if let Some(left) = self.budget {
                self.cut_after(left - n);
            }
            self.world.went_on();
            Poll::Ready(Ok(n))
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
