//! One side of the frames service: a message out, a message in.

use piman_core::frame::{Frames, Inbox, Piece, Role, Timeless};

use super::Service;
use crate::probe::Line;
use crate::script;

/// A message in each direction.
pub struct Messages;

/// How many bytes came.
pub struct Count(usize);

impl Inbox for Count {
    async fn piece(&mut self, piece: Piece<'_>) {
        self.0 += piece.bytes.len();
    }
}

impl Service for Messages {
    const SCRIPT: &'static [u8] = script!(b"\xff", b"\xff", b"\0\0\0\x05hello", b"\0\0\0\x05hello");

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        let Ok(mut frames) = Frames::open(io, Timeless, Role::Client, 1 << 20, buf).await else {
            return false;
        };
        let mut count = Count(0);
        let mut body = &b"how are you"[..];
        frames.send(body.len() as u64, &mut body, &mut count).await.is_ok()
            && frames.receive(&mut count).await == Ok(true)
            && frames.receive(&mut count).await == Ok(true)
            && count.0 == 10
    }
}
