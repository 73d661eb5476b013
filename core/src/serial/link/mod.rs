//! One end of a line: bytes and time in, bytes and events out.

mod receive;
mod transmit;

use heapless::Vec;

use super::frame::{Decoder, FRAME_MAX};

/// How many streams there can be at once.
pub const STREAMS: usize = 8;
/// How many frames may be under way.
const WINDOW: u8 = 8;
/// The head of a record's frame: kind, session, number, acknowledged.
const HEAD: usize = 5;
/// The most bytes of a stream in one record.
const BYTES_MAX: usize = FRAME_MAX - HEAD - 2;
/// How many bytes of a stream may be under way to one side.
pub(super) const CREDIT: u16 = 2048;
/// How long the first acknowledgement may take, in milliseconds.
const FIRST_WAIT_MS: u64 = 1000;
const WAIT_MIN_MS: u64 = 50;
const WAIT_MAX_MS: u64 = 8000;
/// A line on which nothing is acknowledged for so long is dead, in milliseconds.
const DEAD_MS: u64 = 30_000;
/// After so long without a word of the listener the dialler asks for one, in milliseconds.
const QUIET_MS: u64 = 10_000;

const HELLO: u8 = 0;
const WELCOME: u8 = 1;
const RECORD: u8 = 2;
const ACK: u8 = 3;
const MISSING: u8 = 4;

const OPEN: u8 = 0;
const BYTES: u8 = 1;
const END: u8 = 2;
const CUT: u8 = 3;
const MORE: u8 = 4;

/// Which end of the line this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Role {
    /// It says hello, and opens streams.
    Dialler,
    /// It waits to be dialled.
    Listener,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event<'a> {
    /// The other end is there. All earlier streams are gone.
    Up,
    /// The other end is gone, and with it all streams.
    Down,
    /// The dialler opens a stream to a service.
    Opened {
        /// Which.
        stream: usize,
        /// The service's usual port.
        port: u16,
    },
    /// Bytes of a stream; say [`Link::consumed`] when there is room for as many more.
    Bytes {
        /// Which.
        stream: usize,
        /// They.
        bytes: &'a [u8],
    },
    /// No more bytes come.
    Ended {
        /// Which.
        stream: usize,
    },
    /// The stream is cut in both directions.
    Cut {
        /// Which.
        stream: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    /// No other end.
    Down,
    /// Dialler: hello was said.
    Dialling,
    Up,
}

/// One stream, seen from one end.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// It is open in some direction, or was cut and the other end does not know yet.
    used: bool,
    /// How many bytes we may send.
    credit: u16,
    /// How many bytes the other end may send again and has not been told of.
    more: u16,
    open: Option<u16>,
    end: bool,
    cut: bool,
    we_ended: bool,
    peer_ended: bool,
    /// The other end has cut it.
    peer_cut: bool,
    /// We have cut it, and the other end has not said so yet.
    gone: bool,
    /// What still comes is thrown away.
    deaf: bool,
}

/// One end of a line. Give it what is read and ask it what to write; see the module's page.
#[derive(Debug)]
pub struct Link {
    role: Role,
    session: u16,
    state: State,
    decoder: Decoder,
    streams: [Stream; STREAMS],
    /// Records that are not acknowledged, by their numbers.
    window: [Vec<u8, { BYTES_MAX + 2 }>; WINDOW as usize],
    /// The first number that is not acknowledged, the next to be written, the next to be given.
    base: u8,
    cursor: u8,
    next: u8,
    /// The number that is expected from the other end.
    expected: u8,
    ack_due: bool,
    missing_due: bool,
    missing_said: bool,
    /// How far ahead of the missing one the last frame was.
    ahead: u8,
    hello_due: bool,
    wait_ms: u64,
    /// When something is to be said again.
    deadline_ms: u64,
    /// When something was acknowledged last, or there was nothing to be.
    alive_ms: u64,
    /// Something was written that is not acknowledged.
    under_way: bool,
    /// Where the search for a free stream begins: places are used in turn.
    turn: usize,
    /// What is measured: a number, and when it was written first.
    measured: Option<(u8, u64)>,
}

/// Without the bytes that it may have to send again.
#[cfg(feature = "defmt")]
impl defmt::Format for Link {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(
            f,
            "Link({}, {}, session {=u16:#x}, {} frames unacknowledged)",
            self.role,
            self.state,
            self.session,
            self.next.wrapping_sub(self.base)
        )
    }
}

impl Link {
    /// An end of a line. `session` is the dialler's, and another one each time.
    #[must_use]
    pub fn new(role: Role, session: u16) -> Self {
        let dials = role == Role::Dialler;
        Self {
            role,
            session,
            state: if dials { State::Dialling } else { State::Down },
            decoder: Decoder::default(),
            streams: Default::default(),
            window: Default::default(),
            base: 0,
            cursor: 0,
            next: 0,
            expected: 0,
            ack_due: false,
            missing_due: false,
            missing_said: false,
            ahead: 0,
            hello_due: dials,
            wait_ms: FIRST_WAIT_MS,
            deadline_ms: 0,
            alive_ms: 0,
            under_way: false,
            turn: 0,
            measured: None,
        }
    }

    /// Whether the other end is there.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Opens a stream to a service, by its usual port; `None` if all are taken or nobody is there.
    pub fn open(&mut self, port: u16) -> Option<usize> {
        self.open_of(port, |_| true)
    }

    /// The same, of the streams that are free also for whoever asks.
    pub(super) fn open_of(&mut self, port: u16, free: impl Fn(usize) -> bool) -> Option<usize> {
        if self.state != State::Up || self.role != Role::Dialler {
            return None;
        }
        let mut places = (self.turn..STREAMS).chain(0..self.turn);
        let stream = places.find(|at| free(*at) && self.streams.get(*at).is_some_and(|s| !s.used))?;
        self.turn = (stream + 1) % STREAMS;
        *self.streams.get_mut(stream)? =
            Stream { used: true, credit: CREDIT, open: Some(port), ..Stream::default() };
        Some(stream)
    }

    /// How many bytes of this stream are taken now.
    #[must_use]
    pub fn room(&self, stream: usize) -> usize {
        // One place is for what is not bytes.
        let full = self.next.wrapping_sub(self.base) + 1 >= WINDOW;
        match self.streams.get(stream) {
            Some(s) if s.used && s.open.is_none() && !s.end && !s.we_ended && !s.cut && !s.gone && !full => {
                BYTES_MAX.min(s.credit.into())
            }
            _ => 0,
        }
    }

    /// Sends bytes; how many of them were taken.
    pub fn send(&mut self, stream: usize, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room(stream));
        let Some(s) = self.streams.get_mut(stream).filter(|_| n > 0) else { return 0 };
        // No more than the credit, which is u16.
        s.credit -= n as u16;
        self.push(BYTES, stream, bytes.get(..n).unwrap_or_default());
        n
    }

    /// No more bytes follow.
    pub fn end(&mut self, stream: usize) {
        if let Some(s) = self.streams.get_mut(stream).filter(|s| s.used && !s.we_ended) {
            s.end = true;
        }
    }

    /// Cuts the stream in both directions; what is under way may be lost.
    pub fn cut(&mut self, stream: usize) {
        let listens = self.role == Role::Listener;
        if let Some(s) = self.streams.get_mut(stream).filter(|s| s.used && !s.gone) {
            // After the listener's last word the dialler may use the place anew at any moment.
            if s.we_ended && listens { s.deaf = true } else { s.cut = true }
        }
    }

    /// So many bytes of the stream were handed on.
    pub fn consumed(&mut self, stream: usize, n: usize) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.more = s.more.saturating_add(u16::try_from(n).unwrap_or(u16::MAX)).min(CREDIT);
        }
    }

    /// Time has passed; what came of it, if anything.
    pub fn tick(&mut self, now_ms: u64) -> Option<Event<'static>> {
        match self.state {
            State::Dialling if now_ms >= self.deadline_ms => self.hello_due = true,
            State::Up if self.under_way && now_ms.saturating_sub(self.alive_ms) > DEAD_MS => {
                *self = Self::new(self.role, self.session.wrapping_add(1));
                return Some(Event::Down);
            }
            // A listener that was started again waits for a hello, and nothing else would show that it was. No
            // credit for a stream, whichever, means nothing to it, but it is acknowledged.
            State::Up if self.is_idle() && now_ms.saturating_sub(self.alive_ms) >= QUIET_MS => {
                self.push(MORE, 0, &[0, 0]);
            }
            // Nothing came of what is under way.
            State::Up if self.under_way && now_ms >= self.deadline_ms => {
                self.wait_ms = (2 * self.wait_ms).min(WAIT_MAX_MS);
                self.deadline_ms = now_ms + self.wait_ms;
                self.go_back();
            }
            _ => {}
        }
        None
    }

    /// When to call [`tick`](Self::tick) next.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.is_idle() {
            return Some(self.alive_ms.saturating_add(QUIET_MS));
        }
        let waits = self.state == State::Dialling || (self.state == State::Up && self.under_way);
        waits.then_some(self.deadline_ms)
    }

    /// A dialler that waits for nothing: the listener's silence says nothing.
    fn is_idle(&self) -> bool {
        self.state == State::Up && self.role == Role::Dialler && self.next == self.base
    }
}
