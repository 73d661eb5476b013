//! One connection to a server that may be an old TCPTalks server: the login that both kinds of servers take, and
//! pickles one after another if it is an old one.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use piman_core::frame::GO;
use piman_core::talks::auth::{EITHER, LoginOut, Verdict};
use piman_core::talks::pickle::{Assembler, Pickler};
use piman_core::talks::{
    Codec, DEPTH_MAX, DecodeError, Encode, Memory, Place, Protocol, Session, Slot, Value, WEIGHT_MAX,
};

use super::Service;
use super::line::{Back, Ended, begin_one, encode, readable};

/// What the server has answered the login by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// It is an old one and lets us in.
    Old,
    /// It is one of ours and has sent the greeting of frames, which is not read yet.
    Ours,
}

/// Logs in until `end`. `assembler` gets what the server sends.
///
/// # Errors
/// If the server does not answer, answers by something else, or wants another password.
pub(super) fn login(
    mut stream: &TcpStream,
    protocol: Protocol,
    password: Option<&str>,
    assembler: &mut Assembler<'_>,
    end: Instant,
) -> anyhow::Result<Server> {
    let mut login = if protocol == Protocol::Auto { EITHER.to_vec() } else { Vec::new() };
    login.extend(pickle(&LoginOut(password))?);
    stream.write_all(&login).context("sending the login")?;
    if protocol == Protocol::Auto {
        let mut first = [0];
        limit(stream, end)?;
        let n = stream.peek(&mut first).map_err(|e| unanswered(e, false))?;
        if n == 1 && first == [GO] {
            return Ok(Server::Ours);
        }
    }
    let mut begun = false;
    loop {
        if let Some(message) = assembler.next_message().map_err(no_answer)? {
            return match with_value(message, |value| Ok(Verdict::parse(value))) {
                Ok(Some(Verdict(true))) => Ok(Server::Old),
                Ok(Some(Verdict(false))) if password.is_some() => bail!("login: the password is wrong"),
                Ok(Some(Verdict(false))) => {
                    bail!("login: the server wants a password: give it with --password-file FILE")
                }
                Ok(None) | Err(_) => Err(no_answer(DecodeError::Malformed)),
            };
        }
        limit(stream, end)?;
        match stream.read(assembler.spare()).map_err(|e| unanswered(e, begun))? {
            0 => return Err(unanswered(ErrorKind::UnexpectedEof.into(), begun)),
            n => assembler.filled(n),
        }
        begun = true;
    }
}

fn limit(stream: &TcpStream, end: Instant) -> anyhow::Result<()> {
    // 0 would be no limit at all.
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).context("setting the socket's options")
}

fn no_answer(e: DecodeError) -> anyhow::Error {
    anyhow!(
        "login: the server answered by something else than a TCPTalks or piman server does ({e}): is it another service?"
    )
}

fn unanswered(e: std::io::Error, begun: bool) -> anyhow::Error {
    let text = match (e.kind(), begun) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => {
            "login: the server did not answer in time: is it a TCPTalks or piman server, and is it free for another client?"
        }
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset, true) => {
            "login: the server closed the connection in the middle of its answer"
        }
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset, false) => {
            "login: the server closed the connection without an answer: is it a TCPTalks or piman server, and is it free for another client?"
        }
        _ => return anyhow::Error::new(e).context("login"),
    };
    anyhow::Error::msg(text)
}

/// Serves the calls of an old server until the connection ends.
///
/// # Errors
/// If the connection fails, or the server sends what is no message.
pub(super) fn serve(
    service: &Arc<Service>,
    mut stream: &TcpStream,
    assembler: &mut Assembler<'_>,
    back: &Back,
    answered: &Receiver<Ended>,
    mut woken: &UnixStream,
    running_max: u32,
) -> anyhow::Result<()> {
    let mut session: Session<[Place; 0]> = Session::new([], running_max);
    loop {
        while let Ok(ended) = answered.try_recv() {
            let answer = encode(Codec::Pickle, &mut session, &ended)?;
            stream.write_all(&answer).context("sending an answer")?;
        }
        while let Some(message) = assembler.next_message().context("reading a call of the server")? {
            let begun = with_value(message, |value| begin_one(service, &mut session, value, back));
            if let Err(e) = begun.map_err(|e| e.downcast::<DecodeError>()) {
                match e {
                    Ok(e) => log::warn!("a message of the server is dropped: {e}"),
                    Err(other) => return Err(other),
                }
            }
        }
        if !readable(stream, woken)? {
            // Answers are there.
            while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
            continue;
        }
        match stream.read(assembler.spare()).context("reading a call of the server")? {
            0 if assembler.is_idle() => return Ok(()),
            0 => bail!("the server closed the connection in the middle of a message"),
            n => assembler.filled(n),
        }
    }
}

/// Decodes one message and hands it on.
fn with_value<T>(message: &[u8], look: impl FnOnce(Value<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let n = message.len() + 16;
    let (mut slots, mut stack, mut memo) = (vec![Slot::default(); 2 * n], vec![0; n], vec![0; n]);
    let mut text = vec![0; 2 * n];
    let memory = Memory {
        slots: &mut slots,
        stack: &mut stack,
        memo: &mut memo,
        text: &mut text,
        depth_max: DEPTH_MAX,
        weight_max: WEIGHT_MAX,
    };
    look(Codec::Pickle.decode(message, memory)?)
}

/// A message of a login.
fn pickle(value: &dyn Encode) -> anyhow::Result<Vec<u8>> {
    let mut buf = vec![0; piman_core::talks::auth::LOGIN_MAX];
    let encode = |buf: &mut [u8]| {
        let mut out = Pickler::new(buf)?;
        value.encode(&mut out)?;
        out.finish()
    };
    let n = encode(&mut buf).context("the password is too long for a login")?;
    buf.truncate(n);
    Ok(buf)
}
