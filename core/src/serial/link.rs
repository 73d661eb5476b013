//! One end of a line: bytes and time in, bytes and events out.

use heapless::Vec;

use super::frame::{Decoder, FRAME_MAX, Found, WIRE_MAX, encode};

/// How many streams there can be at once.
pub const STREAMS: usize = 8;
/// How many frames may be under way.
const WINDOW: u8 = 8;
/// The head of a record's frame: kind, session, number, acknowledged.
const HEAD: usize = 5;
/// The most bytes of a stream in one record.
const BYTES_MAX: usize = FRAME_MAX - HEAD - 2;
/// How many bytes of a stream may be under way to one side.
const CREDIT: u16 = 2048;
/// How long the first acknowledgement may take, in milliseconds.
const FIRST_WAIT_MS: u64 = 1000;
const WAIT_MIN_MS: u64 = 50;
const WAIT_MAX_MS: u64 = 8000;
/// A line on which nothing is acknowledged for so long is dead, in milliseconds.
const DEAD_MS: u64 = 30_000;

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
    /// The other end is there. All streams of before are gone.
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
        if self.state != State::Up || self.role != Role::Dialler {
            return None;
        }
        let mut places = (self.turn..STREAMS).chain(0..self.turn);
        let stream = places.find(|at| self.streams.get(*at).is_some_and(|s| !s.used))?;
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

    /// Reads from the front of `input` until something has happened, or to its end.
    pub fn receive(&mut self, input: &mut &[u8], now_ms: u64) -> Option<Event<'_>> {
        loop {
            let (byte, rest) = input.split_first()?;
            *input = rest;
            match self.decoder.take(*byte) {
                Found::Nothing => {}
                Found::Damage => self.miss(),
                Found::Frame => {
                    // The borrow of an event ends the loop; a copy of the head decides whether there is one.
                    match self.frame(now_ms) {
                        Outcome::Nothing => {}
                        outcome => return self.event(outcome),
                    }
                }
            }
        }
    }

    fn event(&self, outcome: Outcome) -> Option<Event<'_>> {
        Some(match outcome {
            Outcome::Nothing => return None,
            Outcome::Up => Event::Up,
            Outcome::Opened(stream, port) => Event::Opened { stream, port },
            Outcome::Bytes(stream) => {
                Event::Bytes { stream, bytes: self.decoder.frame().get(HEAD + 2..).unwrap_or_default() }
            }
            Outcome::Ended(stream) => Event::Ended { stream },
            Outcome::Cut(stream) => Event::Cut { stream },
        })
    }

    fn miss(&mut self) {
        if self.state == State::Up && !self.missing_said {
            self.missing_due = true;
            self.missing_said = true;
        }
    }

    fn frame(&mut self, now_ms: u64) -> Outcome {
        let frame = self.decoder.frame();
        let Some((&[kind, high, low], rest)) = frame.split_first_chunk() else { return Outcome::Nothing };
        let session = u16::from_be_bytes([high, low]);
        match (kind, self.role, self.state) {
            (HELLO, Role::Listener, state) => {
                self.hello_due = true;
                if state == State::Up && session == self.session {
                    // Our welcome was lost.
                    return Outcome::Nothing;
                }
                self.restart(session, now_ms);
                return Outcome::Up;
            }
            (WELCOME, Role::Dialler, State::Dialling) if session == self.session => {
                self.restart(session, now_ms);
                self.hello_due = false;
                return Outcome::Up;
            }
            _ if self.state != State::Up || session != self.session => return Outcome::Nothing,
            _ => {}
        }
        let (number, ack, record) = match (kind, rest) {
            (RECORD, [number, ack, record @ ..]) => (Some(*number), *ack, record),
            (ACK | MISSING, [ack]) => (None, *ack, &[][..]),
            _ => return Outcome::Nothing,
        };
        let head = match record {
            [kind, stream, bytes @ ..] => {
                let number = <[u8; 2]>::try_from(bytes).map(u16::from_be_bytes).ok();
                Some((*kind, usize::from(*stream), number, bytes.len()))
            }
            _ => None,
        };
        self.acknowledged(ack, kind == MISSING, now_ms);
        let Some(number) = number else { return Outcome::Nothing };
        if number != self.expected {
            // It was there already and our acknowledgement was lost, or one before it is missing.
            self.ack_due = true;
            let ahead = number.wrapping_sub(self.expected);
            if ahead < WINDOW {
                if ahead <= self.ahead {
                    // The other end has gone back, and what is missing was lost again.
                    self.missing_said = false;
                }
                self.ahead = ahead;
                self.miss();
            }
            return Outcome::Nothing;
        }
        self.expected = self.expected.wrapping_add(1);
        self.ack_due = true;
        self.missing_said = false;
        self.ahead = 0;
        match head {
            Some((kind, stream, number, length)) => self.record(kind, stream, number, length),
            None => Outcome::Nothing,
        }
    }

    fn record(&mut self, kind: u8, at: usize, number: Option<u16>, length: usize) -> Outcome {
        let listens = self.role == Role::Listener;
        let Some(stream) = self.streams.get_mut(at) else { return Outcome::Nothing };
        match (kind, number) {
            (OPEN, Some(port)) if listens => {
                *stream = Stream { used: true, credit: CREDIT, ..Stream::default() };
                Outcome::Opened(at, port)
            }
            _ if !stream.used => Outcome::Nothing,
            // Both were cut, or the other end has heard that ours was, or both had ended already.
            (CUT | END, _) if stream.gone && (kind == CUT || stream.we_ended) => {
                *stream = Stream::default();
                Outcome::Nothing
            }
            _ if stream.gone => Outcome::Nothing,
            (BYTES, _) if stream.deaf || stream.cut => {
                // No more than a frame.
                stream.more = stream.more.saturating_add(length as u16).min(CREDIT);
                Outcome::Nothing
            }
            (BYTES, _) if length > 0 && !stream.peer_ended => Outcome::Bytes(at),
            (END, _) => {
                stream.peer_ended = true;
                if stream.we_ended {
                    *stream = Stream::default();
                }
                Outcome::Ended(at)
            }
            (CUT, _) => {
                (stream.cut, stream.peer_cut) = (true, true);
                Outcome::Cut(at)
            }
            (MORE, Some(credit)) => {
                stream.credit = stream.credit.saturating_add(credit);
                Outcome::Nothing
            }
            _ => Outcome::Nothing,
        }
    }

    fn acknowledged(&mut self, ack: u8, missing: bool, now_ms: u64) {
        let (done, under_way) = (ack.wrapping_sub(self.base), self.next.wrapping_sub(self.base));
        if done > under_way {
            return;
        }
        if done > 0 {
            if let Some((number, since)) = self.measured
                && number.wrapping_sub(self.base) < done
            {
                let took = now_ms.saturating_sub(since);
                self.wait_ms = (self.wait_ms + 3 * (2 * took + WAIT_MIN_MS)) / 4;
                self.wait_ms = self.wait_ms.clamp(WAIT_MIN_MS, WAIT_MAX_MS);
                self.measured = None;
            }
            if self.cursor.wrapping_sub(self.base) < done {
                self.cursor = ack;
            }
            self.base = ack;
            self.under_way = self.cursor != self.base;
            self.alive_ms = now_ms;
            self.deadline_ms = now_ms + self.wait_ms;
        }
        if missing {
            self.go_back();
        }
    }

    fn go_back(&mut self) {
        self.cursor = self.base;
        self.measured = None;
    }

    fn restart(&mut self, session: u16, now_ms: u64) {
        let hello_due = self.hello_due;
        let decoder = core::mem::take(&mut self.decoder);
        *self = Self::new(self.role, session);
        (self.decoder, self.state, self.hello_due) = (decoder, State::Up, hello_due);
        self.alive_ms = now_ms;
    }

    /// The next bytes to be written, if there are any.
    pub fn transmit<'o>(&mut self, now_ms: u64, out: &'o mut Vec<u8, WIRE_MAX>) -> Option<&'o [u8]> {
        let mut frame = Vec::<u8, FRAME_MAX>::new();
        let [high, low] = self.session.to_be_bytes();
        if self.hello_due {
            self.hello_due = false;
            self.deadline_ms = now_ms + FIRST_WAIT_MS;
            let kind = if self.role == Role::Dialler { HELLO } else { WELCOME };
            // It fits.
            let _ = frame.extend_from_slice(&[kind, high, low]);
            encode(&frame, out);
            return Some(out);
        }
        if self.state != State::Up {
            return None;
        }
        self.offer();
        if core::mem::take(&mut self.missing_due) {
            self.ack_due = false;
            let _ = frame.extend_from_slice(&[MISSING, high, low, self.expected]);
        } else if self.cursor != self.next {
            if !core::mem::replace(&mut self.under_way, true) {
                self.alive_ms = now_ms;
                self.deadline_ms = now_ms + self.wait_ms;
            }
            self.measured = self.measured.or(Some((self.cursor, now_ms)));
            let _ = frame.extend_from_slice(&[RECORD, high, low, self.cursor, self.expected]);
            if let Some(record) = self.window.get(usize::from(self.cursor % WINDOW)) {
                let _ = frame.extend_from_slice(record);
            }
            self.cursor = self.cursor.wrapping_add(1);
            self.ack_due = false;
        } else if core::mem::take(&mut self.ack_due) {
            let _ = frame.extend_from_slice(&[ACK, high, low, self.expected]);
        } else {
            return None;
        }
        encode(&frame, out);
        Some(out)
    }

    /// Puts what streams have to say besides bytes into the window, as far as there is room.
    fn offer(&mut self) {
        for at in 0..STREAMS {
            while self.next.wrapping_sub(self.base) < WINDOW {
                let Some(stream) = self.streams.get_mut(at) else { break };
                if let Some(port) = stream.open.take() {
                    self.push(OPEN, at, &port.to_be_bytes());
                } else if stream.cut {
                    let gone = !stream.peer_cut;
                    let we_ended = stream.we_ended;
                    *stream = Stream { used: gone, gone, we_ended, ..Stream::default() };
                    self.push(CUT, at, &[]);
                } else if stream.used && stream.end {
                    (stream.end, stream.we_ended) = (false, true);
                    if stream.peer_ended {
                        *stream = Stream::default();
                    }
                    self.push(END, at, &[]);
                } else if stream.used && stream.more >= CREDIT / 2 {
                    let more = core::mem::take(&mut stream.more);
                    self.push(MORE, at, &more.to_be_bytes());
                } else {
                    break;
                }
            }
        }
    }

    fn push(&mut self, kind: u8, stream: usize, bytes: &[u8]) {
        if let Some(place) = self.window.get_mut(usize::from(self.next % WINDOW)) {
            place.clear();
            // No more than BYTES_MAX, and there are few streams.
            let _ = place.extend_from_slice(&[kind, stream as u8]);
            let _ = place.extend_from_slice(bytes);
            self.next = self.next.wrapping_add(1);
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
        let waits = self.state == State::Dialling || (self.state == State::Up && self.under_way);
        waits.then_some(self.deadline_ms)
    }
}

enum Outcome {
    Nothing,
    Up,
    Opened(usize, u16),
    Bytes(usize),
    Ended(usize),
    Cut(usize),
}
