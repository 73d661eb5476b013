//! One side of the rpc service with an old peer, in pickle: a login, a call, an answer.

use embedded_io_async::Read;
use piman_core::rpc::auth::{LoginOut, Verdict};
use piman_core::rpc::pickle::Assembler;
use piman_core::rpc::{
    AnswerOut, CallOut, Codec, DEPTH_MAX, Encode, Memory, Place, Session, Slot, Step, Tuple, Value,
};
use piman_core::stream::put;

use super::Service;
use crate::probe::Line;
use crate::script;

/// Pickles of Python.
pub struct Pickle;

/// Room for one message.
pub struct Room {
    slots: [Slot; 24],
    stack: [u32; 12],
    memo: [u32; 12],
    text: [u8; 32],
}

impl Room {
    /// Nothing in it.
    pub fn new() -> Self {
        Self { slots: [Slot::default(); 24], stack: [0; 12], memo: [0; 12], text: [0; 32] }
    }

    /// Reads one message.
    pub fn decode<'m>(&'m mut self, codec: Codec, message: &'m [u8]) -> Option<Value<'m>> {
        let Self { slots, stack, memo, text } = self;
        codec.decode(message, Memory { slots, stack, memo, text, depth_max: DEPTH_MAX, weight_max: 100 }).ok()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Service for Pickle {
    const SCRIPT: &'static [u8] = script!(
        // The verdict, protocol 4.
        b"\x80\x04\x95\x0e\0\0\0\0\0\0\0C\x01A\x94K\xaa\x88\x85\x94\x87\x94.",
        // A call of opcode 2 with (3,), protocol 4.
        b"\x80\x04\x95\x12\0\0\0\0\0\0\0(C\x01R\x94K\x02K\x07K\x03\x85\x94}\x94t\x94.",
        // The answer to our call, protocol 4.
        b"\x80\x04\x95\x13\0\0\0\0\0\0\0C\x01A\x94J\0\0\x01\0K\x09\x85\x94\x87\x94.",
    );

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        talk(io, buf).await.unwrap_or(false)
    }
}

async fn talk(io: &mut Line, buf: &mut [u8]) -> Option<bool> {
    let (incoming, outgoing) = buf.split_at_mut(512);
    let mut assembler = Assembler::new(incoming);
    let mut session = Session::new([Place::default(); 2], 2);
    let mut room = Room::new();
    write_line(io, outgoing, &LoginOut(Some("password"))).await?;
    let (mut admitted, mut answered) = (false, false);
    loop {
        while let Some(message) = assembler.next_message().ok()? {
            let value = room.decode(Codec::Pickle, message)?;
            if !admitted {
                admitted = Verdict::parse(value)?.0;
                let (retcode, _) = session.calls.begin(1 << 16, 1000).ok()?;
                write_line(io, outgoing, &CallOut { opcode: 1, retcode, args: &Tuple(&[&2_i64, &"two"]) })
                    .await?;
                continue;
            }
            match session.handle(value) {
                Step::Run(call) => {
                    let mut args = call.args;
                    let value = args.next()?.int()?;
                    write_line(io, outgoing, &AnswerOut { retcode: call.retcode, value: &(value + 1) })
                        .await?;
                    session.answered();
                }
                Step::Answered { mut values, .. } => answered = values.next()?.int()? == 9,
                Step::Busy { .. }
                | Step::Unreadable { .. }
                | Step::Spoilt { .. }
                | Step::Late
                | Step::Broken => return None,
            }
        }
        let n = io.read(assembler.spare()).await.ok()?;
        if n == 0 {
            return Some(answered);
        }
        assembler.filled(n);
    }
}

async fn write_line(io: &mut Line, buf: &mut [u8], message: &dyn Encode) -> Option<()> {
    let n = Codec::Pickle.encode(message, buf).ok()?;
    put(io, buf.get(..n)?).await.ok()
}
