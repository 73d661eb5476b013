//! One side of the messages service: a message out, a message in.

use piman_core::messages::{MessageSink, MessageStream, Piece, Role, Timeless};

use super::Service;
use crate::probe::Line;
use crate::script;

/// A message in each direction.
pub struct Messages;

/// Room for the message that came last.
pub struct Last {
    bytes: [u8; 64],
    used: usize,
}

impl Last {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self { bytes: [0; 64], used: 0 }
    }

    /// The message.
    pub fn message(&self) -> Option<&[u8]> {
        self.bytes.get(..self.used)
    }
}

impl Default for Last {
    fn default() -> Self {
        Self::new()
    }
}

impl MessageSink for Last {
    async fn piece(&mut self, piece: Piece<'_>) {
        if piece.offset == 0 {
            self.used = 0;
        }
        for (to, from) in self.bytes.iter_mut().skip(self.used).zip(piece.bytes) {
            *to = *from;
            self.used += 1;
        }
    }
}

impl Service for Messages {
    const SCRIPT: &'static [u8] = script!(b"\xff", b"\xff", b"\0\0\0\x05hello", b"\0\0\0\x05world");

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        let Ok(mut frames) = MessageStream::open(io, Timeless, Role::Client, 1 << 20, buf).await else {
            return false;
        };
        let mut last = Last::new();
        let mut body = &b"how are you"[..];
        frames.send(body.len() as u64, &mut body, &mut last).await.is_ok()
            && frames.receive(&mut last).await == Ok(true)
            && frames.receive(&mut last).await == Ok(true)
            && last.message() == Some(b"world")
    }
}
