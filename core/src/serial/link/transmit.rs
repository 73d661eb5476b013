//! What goes: what is owed to the other end, and records as far as the window allows.

use heapless::Vec;

use super::super::frame::{FRAME_MAX, WIRE_MAX, encode};
use super::*;

impl Link {
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

    pub(super) fn push(&mut self, kind: u8, stream: usize, bytes: &[u8]) {
        if let Some(place) = self.window.get_mut(usize::from(self.next % WINDOW)) {
            place.clear();
            // No more than BYTES_MAX, and there are few streams.
            let _ = place.extend_from_slice(&[kind, stream as u8]);
            let _ = place.extend_from_slice(bytes);
            self.next = self.next.wrapping_add(1);
        }
    }
}
