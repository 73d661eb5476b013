//! What comes: frames, in order or not, and what they mean for the streams.

use super::super::frame::Found;
use super::*;

enum Outcome {
    Nothing,
    Up,
    Opened(usize, u16),
    Bytes(usize),
    Ended(usize),
    Cut(usize),
}

impl Link {
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

    pub(super) fn go_back(&mut self) {
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
}
