//! Calls of a server of either kind: each is run in a thread of its own, and its answer is encoded.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, bail};
use piman_core::rpc::{AnswerOut, Codec, Failure, NO_CALL, Place, Session, Step, Value};

use super::Service;
use super::functions::{self, Call};
use super::value::Answer;

/// The longest answer, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// A call that has ended.
pub(super) struct Ended {
    retcode: u32,
    answer: Answer,
    /// Whether it ever began; one that was one too many did not.
    ran: bool,
}

/// What a thread that ran a call hands back; the byte wakes the connection's thread.
pub(super) struct Back {
    pub(super) answers: Sender<Ended>,
    pub(super) wake: UnixStream,
}

impl Back {
    fn end(&self, ended: Ended) -> io::Result<()> {
        // Without a connection nobody waits for it.
        if self.answers.send(ended).is_ok() { (&self.wake).write_all(&[1]) } else { Ok(()) }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { answers: self.answers.clone(), wake: self.wake.try_clone()? })
    }
}

/// Answers a call by an error.
pub(super) fn refuse(retcode: u32, error: String, back: &Back) -> anyhow::Result<()> {
    Ok(back.end(Ended { retcode, answer: Err(error), ran: false })?)
}

/// Starts what a message asks for, or refuses it if too much is under way.
pub(super) fn begin_one(
    service: &Arc<Service>,
    session: &mut Session<[Place; 0]>,
    value: Value<'_>,
    back: &Back,
) -> anyhow::Result<()> {
    if let Some((retcode, error)) = begin(service, session, value, back)? {
        refuse(retcode, error, back)?;
    }
    Ok(())
}

/// Starts what a message asks for; the number of a call that is refused, and the error.
pub(super) fn begin(
    service: &Arc<Service>,
    session: &mut Session<[Place; 0]>,
    value: Value<'_>,
    back: &Back,
) -> anyhow::Result<Option<(u32, String)>> {
    match session.handle(value) {
        Step::Run(call) => {
            let (retcode, call) = (call.retcode, Call::of(call));
            if let Err(e) = start(service, retcode, call, back) {
                // The other calls go on.
                let answer = Err(format!("OSError: starting a thread for the call: {e}"));
                back.end(Ended { retcode, answer, ran: true })?;
            }
        }
        Step::Busy { retcode } => {
            return Ok(Some((retcode, "RuntimeError: too many calls are under way".into())));
        }
        Step::Unreadable { retcode } => return Ok(Some((retcode, format!("TypeError: {NO_CALL}")))),
        // We ask nothing.
        Step::Answered { .. } | Step::Spoilt { .. } | Step::Late => {}
        Step::Broken => bail!("the server says what is no call"),
    }
    Ok(None)
}

/// Runs a call in a thread of its own.
fn start(service: &Arc<Service>, retcode: u32, call: Call, back: &Back) -> io::Result<()> {
    let (service, back) = (Arc::clone(service), back.try_clone()?);
    let name = format!("call {}", call.opcode);
    let run = move || {
        let answer = functions::run(&service, &call);
        // The connection may be gone by now.
        let _ = back.end(Ended { retcode, answer, ran: true });
    };
    thread::Builder::new().name(name).spawn(run).map(drop)
}

/// The message that answers a call.
pub(super) fn encode(
    codec: Codec,
    session: &mut Session<[Place; 0]>,
    Ended { retcode, answer, ran }: &Ended,
) -> anyhow::Result<Vec<u8>> {
    let retcode = *retcode;
    if *ran {
        session.answered();
    }
    let mut buf = vec![0; ANSWER_MAX];
    let encoded = match answer {
        Ok(value) => codec.encode(&AnswerOut { retcode, value }, &mut buf),
        Err(text) => {
            let (class, message) = text.split_once(": ").unwrap_or(("RuntimeError", text));
            let value = &Failure { class, message };
            codec.encode(&AnswerOut { retcode, value }, &mut buf)
        }
    };
    let n = encoded.or_else(|_| {
        let value = &Failure { class: "MemoryError", message: "the result is too large" };
        codec.encode(&AnswerOut { retcode, value }, &mut buf)
    });
    buf.truncate(n.context("encoding an answer")?);
    Ok(buf)
}
