//! The dialler's end of a line on any executor: streams with `embedded_io_async`'s traits, and the driver under them.

use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt;
use core::future::{Future, pending, poll_fn};
use core::pin::pin;
use core::task::{Poll, Waker};

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use heapless::{Deque, Vec};

use super::link::CREDIT;
use super::{Event, Link, Role, WIRE_MAX};
use crate::error::{Error, PeerError};
use crate::stream::put;

/// What tells the driver the time, and passes it.
pub trait Clock {
    /// Milliseconds since any moment; it never goes back.
    fn now_ms(&self) -> u64;

    /// Returns after so many milliseconds. It may be dropped before.
    fn sleep(&self, ms: u64) -> impl Future<Output = ()>;
}

/// Why a stream of a line does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum StreamError {
    /// The other end cut it, or is gone.
    Cut,
    /// It was said that nothing more is written.
    Finished,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "the stream was cut by the other end of the line",
            Self::Finished => "the stream was finished: nothing more can be written",
        })
    }
}

impl core::error::Error for StreamError {}

impl embedded_io_async::Error for StreamError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Cut => ErrorKind::ConnectionReset,
            Self::Finished => ErrorKind::BrokenPipe,
        }
    }
}

/// Who waits for something: one task. Another that comes lets the first look again.
#[derive(Debug, Default)]
struct Waiting(Option<Waker>);

impl Waiting {
    fn register(&mut self, waker: &Waker) {
        match &self.0 {
            Some(known) if known.will_wake(waker) => {}
            _ => {
                if let Some(other) = self.0.replace(waker.clone()) {
                    other.wake();
                }
            }
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// Room for one stream, which somebody has.
#[derive(Debug, Default)]
struct Place {
    /// Which stream of the line.
    stream: Option<usize>,
    received: Deque<u8, { CREDIT as usize }>,
    peer_ended: bool,
    finished: bool,
    cut: bool,
    reader: Waiting,
    writer: Waiting,
}

#[derive(Debug)]
struct State<const N: usize> {
    link: Link,
    places: [Place; N],
    /// The sender has something to look at.
    changed: bool,
    sender: Waiting,
    opener: Waiting,
}

impl<const N: usize> State<N> {
    /// Something was said that the other end is to be told.
    fn change(&mut self) {
        self.changed = true;
        self.sender.wake();
    }

    fn wake_streams(&mut self) {
        for place in &mut self.places {
            place.reader.wake();
            place.writer.wake();
        }
        self.opener.wake();
    }

    fn cut_all(&mut self) {
        cut_all(&mut self.places);
        self.wake_streams();
    }

    fn receive(&mut self, mut input: &[u8], now_ms: u64) {
        let Self { link, places, .. } = self;
        while let Some(event) = link.receive(&mut input, now_ms) {
            let mut too_many = None;
            match event {
                Event::Bytes { stream, bytes } => {
                    if let Some(place) = held(places, stream)
                        && bytes.iter().any(|byte| place.received.push_back(*byte).is_err())
                    {
                        place.cut = true;
                        too_many = Some(stream);
                    }
                }
                Event::Ended { stream } => {
                    if let Some(place) = held(places, stream) {
                        place.peer_ended = true;
                    }
                }
                Event::Cut { stream } => {
                    if let Some(place) = held(places, stream) {
                        place.cut = true;
                    }
                }
                Event::Up | Event::Down => cut_all(places),
                // The dialler opens streams, and nobody else.
                Event::Opened { .. } => {}
            }
            if let Some(stream) = too_many {
                warning!("the other end of the line sends more than it may");
                link.cut(stream);
            }
        }
        self.change();
        self.wake_streams();
    }
}

fn held(places: &mut [Place], stream: usize) -> Option<&mut Place> {
    places.iter_mut().find(|p| p.stream == Some(stream))
}

fn cut_all(places: &mut [Place]) {
    for place in places.iter_mut().filter(|p| p.stream.is_some()) {
        place.cut = true;
    }
}

/// The dialler's end of a line, with room for `N` streams at once: 2 KiB each, which is what the other end may send
/// ahead, and at most [`STREAMS`](super::STREAMS) of use.
///
/// [`run`](Self::run) moves the bytes; it is one task, or joined with what uses the streams.
#[derive(Debug)]
pub struct Line<C, const N: usize> {
    state: RefCell<State<N>>,
    clock: C,
}

/// Whatever the clock is.
#[cfg(feature = "defmt")]
impl<C, const N: usize> defmt::Format for Line<C, N> {
    fn format(&self, f: defmt::Formatter<'_>) {
        match self.state.try_borrow() {
            Ok(state) => defmt::write!(f, "Line({})", state.link),
            Err(_) => defmt::write!(f, "Line"),
        }
    }
}

impl<C: Clock, const N: usize> Line<C, N> {
    /// A line that nobody has answered on yet. `session` is another one each time, so that the other end notices
    /// that this one has begun anew.
    #[must_use]
    pub fn new(session: u16, clock: C) -> Self {
        let state = State {
            link: Link::new(Role::Dialler, session),
            places: core::array::from_fn(|_| Place::default()),
            changed: false,
            sender: Waiting::default(),
            opener: Waiting::default(),
        };
        Self { state: RefCell::new(state), clock }
    }

    /// Moves bytes between the line and its streams until the line fails: its two directions at the same time.
    /// Neither `from` nor `to` is ever cancelled but by dropping all of this.
    ///
    /// # Errors
    /// [`Error::Io`] if the line fails, [`PeerError::Closed`] if it ends. All streams are cut then.
    pub async fn run<R: Read, W: Write<Error = R::Error>>(
        &self,
        from: &mut R,
        to: &mut W,
    ) -> Result<Infallible, Error<R::Error>> {
        let mut receive = pin!(self.receive(from));
        let mut send = pin!(self.send(to));
        let ended = poll_fn(|cx| match receive.as_mut().poll(cx) {
            Poll::Pending => send.as_mut().poll(cx),
            ended => ended,
        })
        .await;
        self.state.borrow_mut().cut_all();
        ended
    }

    async fn receive<R: Read>(&self, from: &mut R) -> Result<Infallible, Error<R::Error>> {
        let mut buf = [0; 128];
        loop {
            let n = from.read(&mut buf).await?;
            if n == 0 {
                return Err(Error::Peer(PeerError::Closed));
            }
            self.state.borrow_mut().receive(buf.get(..n).unwrap_or_default(), self.clock.now_ms());
        }
    }

    async fn send<W: Write>(&self, to: &mut W) -> Result<Infallible, Error<W::Error>> {
        let mut frame = Vec::<u8, WIRE_MAX>::new();
        loop {
            let now = self.clock.now_ms();
            let gone = self.state.borrow_mut().link.tick(now).is_some();
            if gone {
                warning!("the other end of the line does not answer any more");
                self.state.borrow_mut().cut_all();
            }
            while let Some(bytes) = self.next_frame(&mut frame) {
                put(to, bytes).await?;
                to.flush().await?;
            }
            self.changed().await;
        }
    }

    fn next_frame<'f>(&self, frame: &'f mut Vec<u8, WIRE_MAX>) -> Option<&'f [u8]> {
        let state = &mut *self.state.borrow_mut();
        let bytes = state.link.transmit(self.clock.now_ms(), frame)?;
        // A stream that was to be opened can be written to by now.
        state.wake_streams();
        Some(bytes)
    }

    /// Until the sender has something to do.
    async fn changed(&self) {
        let until = self.state.borrow().link.deadline_ms();
        let now = self.clock.now_ms();
        let mut due = pin!(async {
            match until {
                Some(at) => self.clock.sleep(at.saturating_sub(now).max(1)).await,
                None => pending().await,
            }
        });
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            if core::mem::take(&mut state.changed) {
                return Poll::Ready(());
            }
            state.sender.register(cx.waker());
            drop(state);
            due.as_mut().poll(cx)
        })
        .await;
    }

    /// Opens a stream to a service by its usual port, as soon as the other end is there and a stream is free.
    pub async fn open(&self, port: u16) -> Stream<'_, C, N> {
        let place = poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            let held = |at: usize, places: &[Place]| places.iter().any(|p| p.stream == Some(at));
            if let Some(at) = state.places.iter().position(|p| p.stream.is_none())
                && let Some(stream) = state.link.open_of(port, |s| !held(s, &state.places))
                && let Some(place) = state.places.get_mut(at)
            {
                *place = Place { stream: Some(stream), ..Place::default() };
                state.change();
                return Poll::Ready(at);
            }
            state.opener.register(cx.waker());
            Poll::Pending
        })
        .await;
        Stream { line: self, place }
    }
}

/// A stream of a line. Dropped, it is cut: [`close`](Self::close) ends it in order.
#[derive(Debug)]
pub struct Stream<'l, C: Clock, const N: usize> {
    line: &'l Line<C, N>,
    place: usize,
}

/// Which it is.
#[cfg(feature = "defmt")]
impl<C: Clock, const N: usize> defmt::Format for Stream<'_, C, N> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Stream({})", self.place)
    }
}

impl<C: Clock, const N: usize> Stream<'_, C, N> {
    /// Says that nothing more will be written. What the other end still says can be read.
    pub fn finish(&mut self) {
        self.with(|place, link| {
            if let Some(stream) = place.stream {
                place.finished = true;
                link.end(stream);
            }
        });
    }

    /// Ends the stream in order: waits for the end of what the other end says, which is dropped.
    ///
    /// # Errors
    /// [`StreamError::Cut`]: perhaps not everything that was written has arrived.
    pub async fn close(mut self) -> Result<(), StreamError> {
        self.finish();
        while self.read(&mut [0; 32]).await? > 0 {}
        Ok(())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Place, &mut Link) -> T) -> Option<T> {
        let state = &mut *self.line.state.borrow_mut();
        let changed = change(state.places.get_mut(self.place)?, &mut state.link);
        state.change();
        Some(changed)
    }

    async fn until<T>(
        &self,
        mut attempt: impl FnMut(&mut Place, &mut Link, &Waker) -> Poll<Result<T, StreamError>>,
    ) -> Result<T, StreamError> {
        poll_fn(|cx| {
            let state = &mut *self.line.state.borrow_mut();
            let Some(place) = state.places.get_mut(self.place).filter(|p| !p.cut) else {
                return Poll::Ready(Err(StreamError::Cut));
            };
            let done = attempt(place, &mut state.link, cx.waker());
            if done.is_ready() {
                state.change();
            }
            done
        })
        .await
    }
}

impl<C: Clock, const N: usize> Drop for Stream<'_, C, N> {
    fn drop(&mut self) {
        self.with(|place, link| {
            if let Some(stream) = place.stream.filter(|_| !(place.finished && place.peer_ended)) {
                link.cut(stream);
            }
            *place = Place::default();
        });
        self.line.state.borrow_mut().opener.wake();
    }
}

impl<C: Clock, const N: usize> ErrorType for Stream<'_, C, N> {
    type Error = StreamError;
}

impl<C: Clock, const N: usize> Read for Stream<'_, C, N> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, StreamError> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.until(|place, link, waker| {
            let mut n = 0;
            for (to, from) in buf.iter_mut().zip(core::iter::from_fn(|| place.received.pop_front())) {
                *to = from;
                n += 1;
            }
            if n == 0 && !place.peer_ended {
                place.reader.register(waker);
                return Poll::Pending;
            }
            if let Some(stream) = place.stream.filter(|_| !place.peer_ended) {
                link.consumed(stream, n);
            }
            Poll::Ready(Ok(n))
        })
        .await
    }
}

impl<C: Clock, const N: usize> Write for Stream<'_, C, N> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, StreamError> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.until(|place, link, waker| {
            if place.finished {
                return Poll::Ready(Err(StreamError::Finished));
            }
            match place.stream.map_or(0, |stream| link.send(stream, buf)) {
                0 => {
                    place.writer.register(waker);
                    Poll::Pending
                }
                n => Poll::Ready(Ok(n)),
            }
        })
        .await
    }

    /// What was written is on its way already; the line repeats what is lost.
    async fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
