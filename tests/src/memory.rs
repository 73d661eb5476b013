//! Byte streams in memory: a script that plays one side, and a pipe between two.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use embedded_io_async::{ErrorType, Read, Write};

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

/// What a line holds between two sides, in bytes.
const UNDER_WAY: usize = 4096;

#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<u8>,
    closed: bool,
    /// How many bytes still go through before the line is cut.
    left: Option<usize>,
}

/// One end of a pipe in memory; dropped, the other end reads to the end.
#[derive(Debug)]
pub struct End {
    read: Rc<RefCell<Lane>>,
    write: Rc<RefCell<Lane>>,
    chop: usize,
}

/// A pipe that moves at most `chop` bytes at a time. Of what the second end writes only
/// `cut` bytes arrive, if that is given; then both directions are closed.
#[must_use]
pub fn pipe(chop: usize, cut: Option<usize>) -> (End, End) {
    let there = Rc::new(RefCell::new(Lane::default()));
    let back = Rc::new(RefCell::new(Lane { left: cut, ..Lane::default() }));
    let first = End { read: back.clone(), write: there.clone(), chop };
    (first, End { read: there, write: back, chop })
}

impl Drop for End {
    fn drop(&mut self) {
        self.read.borrow_mut().closed = true;
        self.write.borrow_mut().closed = true;
    }
}

impl ErrorType for End {
    type Error = Infallible;
}

impl Read for End {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        poll_fn(|_| {
            let mut lane = self.read.borrow_mut();
            let n = self.chop.min(buf.len()).min(lane.bytes.len());
            if n == 0 && !lane.closed {
                return Poll::Pending;
            }
            for to in &mut buf[..n] {
                *to = lane.bytes.pop_front().unwrap_or_default();
            }
            Poll::Ready(Ok(n))
        })
        .await
    }
}

impl Write for End {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        poll_fn(|_| {
            let mut lane = self.write.borrow_mut();
            if lane.closed {
                return Poll::Ready(Ok(0));
            }
            // A bounded number of bytes is under way, as on a line.
            if lane.bytes.len() > UNDER_WAY {
                return Poll::Pending;
            }
            let n = self.chop.min(buf.len());
            let n = lane.left.map_or(n, |left| n.min(left));
            lane.bytes.extend(&buf[..n]);
            if let Some(left) = &mut lane.left {
                *left -= n;
                if *left == 0 {
                    lane.closed = true;
                    self.read.borrow_mut().closed = true;
                }
            }
            Poll::Ready(Ok(n))
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Runs two sides against each other until both have ended.
///
/// # Panics
/// If neither gets on any more.
pub fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let mut context = Context::from_waker(Waker::noop());
    let (mut first, mut second) = (None, None);
    for _ in 0..10_000_000 {
        if first.is_none()
            && let Poll::Ready(out) = a.as_mut().poll(&mut context)
        {
            first = Some(out);
        }
        if second.is_none()
            && let Poll::Ready(out) = b.as_mut().poll(&mut context)
        {
            second = Some(out);
        }
        if first.is_some() && second.is_some() {
            break;
        }
    }
    (first.expect("the first side hangs"), second.expect("the second side hangs"))
}
