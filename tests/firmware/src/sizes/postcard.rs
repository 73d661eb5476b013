//! One side of the rpc service with a peer of ours, in postcard over frames: a call, an answer.

use embedded_io_async::{Read, Write};
use piman_core::messages::{MessageStream, Role, Timeless};
use piman_core::rpc::auth::Authenticator;
use piman_core::rpc::{AnswerOut, CallOut, Codec, Encode, Place, Session, Step, Tuple, login};

use super::Service;
use super::frames::Last;
use super::pickle::Room;
use crate::probe::Line;
use crate::script;

/// Postcard over frames.
pub struct Postcard;

/// A hash that costs nothing: the real one is the caller's.
struct Key;

impl Authenticator for Key {
    fn tag(&self, _parts: &[&[u8]]) -> [u8; 32] {
        [7; 32]
    }
}

impl Service for Postcard {
    const SCRIPT: &'static [u8] = script!(
        b"\xff",
        b"\xff",
        b"\0\0\0\x27\x06\x02\x04\x01C\x04\x20abcdefghijklmnopqrstuvwxyz012345",
        b"\xff",
        b"\0\0\0\x27\x06\x02\x04\x01P\x04\x20",
        &[7; 32],
        b"\xff",
        // A call of opcode 2 with (3,).
        b"\0\0\0\x0f\x06\x05\x04\x01R\x02\x04\x02\x0e\x06\x01\x02\x06\x09\0",
        b"\xff",
        // The answer to our call: 9.
        b"\0\0\0\x0d\x06\x03\x04\x01A\x02\x80\x80\x08\x06\x01\x02\x12",
    );

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        talk(io, buf).await.unwrap_or(false)
    }
}

async fn talk(io: &mut Line, buf: &mut [u8]) -> Option<bool> {
    let mut frames = MessageStream::open(io, Timeless, Role::Client, 64, buf).await.ok()?;
    login(&mut frames, &Key, [9; 32]).await.ok()?;
    calls(&mut frames).await
}

/// A call in each direction.
pub(super) async fn calls<T: Read + Write>(frames: &mut MessageStream<'_, T, Timeless>) -> Option<bool> {
    let mut session = Session::new([Place::default(); 2], 2);
    let mut last = Last::new();
    let (retcode, _) = session.calls.begin(1 << 16, 1000).ok()?;
    write_line(frames, &mut last, &CallOut { opcode: 1, retcode, args: &Tuple(&[&2_i64, &"two"]) }).await?;
    let mut room = Room::new();
    let mut answered = false;
    while frames.receive(&mut last).await.ok()? {
        let answer = {
            let value = room.decode(Codec::Postcard, last.message()?)?;
            match session.handle(value) {
                Step::Run(call) => Some((call.retcode, { call.args }.next()?.int()?)),
                Step::Answered { mut values, .. } => {
                    answered = values.next()?.int()? == 9;
                    None
                }
                Step::Busy { .. }
                | Step::Unreadable { .. }
                | Step::Spoilt { .. }
                | Step::Late
                | Step::Broken => return None,
            }
        };
        if let Some((retcode, value)) = answer {
            write_line(frames, &mut last, &AnswerOut { retcode, value: &(value + 1) }).await?;
            session.answered();
        }
    }
    Some(answered)
}

async fn write_line<T: Read + Write>(
    frames: &mut MessageStream<'_, T, Timeless>,
    last: &mut Last,
    message: &dyn Encode,
) -> Option<()> {
    let mut buf = [0; 64];
    let n = Codec::Postcard.encode(message, &mut buf).ok()?;
    frames.send(n as u64, &mut buf.get(..n)?, last).await.ok()
}
