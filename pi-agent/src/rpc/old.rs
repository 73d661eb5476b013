//! One connection to a server that may be an old TCPTalks server: the login that both kinds of servers take, and
//! pickles one after another if it is an old one.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use piman_core::rpc::auth::{EITHER, LOGIN_MAX, LoginOut, Verdict};
use piman_core::rpc::pickle::{self, Pickler, Scanner};
use piman_core::rpc::secure::FIRST;
use piman_core::rpc::{
    Codec, DEPTH_MAX, DecodeError, Encode, Head, Memory, Place, Protocol, Session, Slot, Value, WEIGHT_MAX,
};

use super::Service;
use super::calls::{Back, Ended, begin_one, encode, refuse};
use super::socket::readable;

/// The longest call, in bytes.
const CALL_MAX: usize = 64 << 10;
/// Which call a message belongs to is known from its first bytes.
const BEGINNING: usize = 4096;

/// What comes off the stream.
enum Pickle {
    /// A whole message.
    Whole(Vec<u8>),
    /// The beginning of one that is too long; the rest of it is skipped.
    Overlong(Vec<u8>),
}

/// Takes whole pickles off the front of what was read.
pub(super) struct Pickles {
    bytes: Vec<u8>,
    scanned: usize,
    scanner: Scanner,
    /// In the midst of a message that is too long.
    skips: bool,
}

impl Pickles {
    pub(super) fn new() -> Self {
        // Without a limit of its own: also of a message that is too long the end has to be found.
        Self { bytes: Vec::new(), scanned: 0, scanner: Scanner::new(u64::MAX), skips: false }
    }

    /// Reads more; 0 at the end of the stream.
    fn read(&mut self, mut from: impl Read) -> std::io::Result<usize> {
        let mut piece = [0; 4096];
        let n = from.read(&mut piece)?;
        self.bytes.extend_from_slice(piece.get(..n).unwrap_or_default());
        Ok(n)
    }

    /// Whether the stream may end here: no message is half here.
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && !self.skips
    }

    /// The next message, of up to `max` bytes. One that is longer is reported once, and skipped.
    fn next(&mut self, max: usize) -> Result<Option<Pickle>, DecodeError> {
        loop {
            let fresh = self.bytes.get(self.scanned..).unwrap_or_default();
            if let Some(n) = self.scanner.feed(fresh)? {
                let rest = self.bytes.split_off(self.scanned + n);
                let message = std::mem::replace(&mut self.bytes, rest);
                self.scanned = 0;
                if std::mem::take(&mut self.skips) {
                    continue;
                }
                let whole = message.len() <= max;
                return Ok(Some(if whole { Pickle::Whole(message) } else { Pickle::Overlong(message) }));
            }
            if self.skips {
                self.bytes.clear();
            }
            self.scanned = self.bytes.len();
            if self.skips || self.scanner.at_least() <= max as u64 {
                return Ok(None);
            }
            (self.skips, self.scanned) = (true, 0);
            return Ok(Some(Pickle::Overlong(std::mem::take(&mut self.bytes))));
        }
    }
}

/// What the server has answered the login by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// It is an old one and lets us in.
    Old,
    /// It is one of ours and waits for the protected login.
    Ours,
}

/// Logs in until `end`. `incoming` gets what the server sends.
///
/// # Errors
/// If the server does not answer, answers by something else, or wants another password.
pub(super) fn login(
    mut stream: &TcpStream,
    protocol: Protocol,
    password: Option<&str>,
    incoming: &mut Pickles,
    end: Instant,
) -> anyhow::Result<Server> {
    let mut login = if protocol == Protocol::Auto { EITHER.to_vec() } else { Vec::new() };
    login.extend(encoded(&LoginOut(password))?);
    stream.write_all(&login).context("sending the login")?;
    if protocol == Protocol::Auto {
        let mut first = [0];
        limit(stream, end)?;
        let n = stream.peek(&mut first).map_err(|e| unanswered(e, false))?;
        if n == 1 && first == [FIRST] {
            // Its login follows from here.
            stream.read_exact(&mut first).context("login")?;
            return Ok(Server::Ours);
        }
    }
    let mut begun = false;
    loop {
        if let Some(message) = incoming.next(LOGIN_MAX).map_err(no_answer)? {
            let Pickle::Whole(message) = message else { return Err(no_answer(DecodeError::NoRoom)) };
            return match with_value(&message, |value| Ok(Verdict::parse(value))) {
                Ok(Some(Verdict(true))) => Ok(Server::Old),
                Ok(Some(Verdict(false))) if password.is_some() => bail!("login: the password is wrong"),
                Ok(Some(Verdict(false))) => {
                    bail!("login: the server wants a password: give it with --password-file FILE")
                }
                Ok(None) | Err(_) => Err(no_answer(DecodeError::Malformed)),
            };
        }
        limit(stream, end)?;
        if incoming.read(stream).map_err(|e| unanswered(e, begun))? == 0 {
            return Err(unanswered(ErrorKind::UnexpectedEof.into(), begun));
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
    incoming: &mut Pickles,
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
        while let Some(message) = incoming.next(CALL_MAX).context("reading a call of the server")? {
            let message = match message {
                Pickle::Whole(message) => message,
                Pickle::Overlong(beginning) => {
                    let beginning = beginning.get(..BEGINNING).unwrap_or(&beginning);
                    unreadable(beginning, &format!("the message is longer than {CALL_MAX} bytes"), back)?;
                    continue;
                }
            };
            let begun = with_value(&message, |value| begin_one(service, &mut session, value, back));
            match begun.map_err(|e| e.downcast::<DecodeError>()) {
                Ok(()) => {}
                Err(Ok(e)) => unreadable(&message, &e.to_string(), back)?,
                Err(Err(other)) => return Err(other),
            }
        }
        if !readable(stream, woken, None)? {
            // Answers are there.
            while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
            continue;
        }
        if incoming.read(stream).context("reading a call of the server")? == 0 {
            ensure!(incoming.is_idle(), "the server closed the connection in the middle of a message");
            return Ok(());
        }
    }
}

/// Answers a call that cannot be read, if that much of it can be.
fn unreadable(message: &[u8], why: &str, back: &Back) -> anyhow::Result<()> {
    log::warn!("a message of the server cannot be read: {why}");
    match with_memory(message, |memory| match pickle::head(message, memory) {
        Some(Head::Call { retcode }) => Some(retcode),
        _ => None,
    }) {
        Some(retcode) => refuse(retcode, format!("ValueError: {why}"), back),
        None => Ok(()),
    }
}

/// Decodes one message and hands it on.
fn with_value<T>(message: &[u8], look: impl FnOnce(Value<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    with_memory(message, |memory| look(pickle::decode(message, memory)?))
}

/// Memory to decode in, in proportion to the message.
fn with_memory<T>(message: &[u8], run: impl FnOnce(Memory<'_>) -> T) -> T {
    let n = message.len() + 16;
    let (mut slots, mut stack, mut memo) = (vec![Slot::default(); 2 * n], vec![0; n], vec![0; n]);
    let mut text = vec![0; 2 * n];
    run(Memory {
        slots: &mut slots,
        stack: &mut stack,
        memo: &mut memo,
        text: &mut text,
        depth_max: DEPTH_MAX,
        weight_max: WEIGHT_MAX,
    })
}

/// A message of a login.
fn encoded(value: &dyn Encode) -> anyhow::Result<Vec<u8>> {
    let mut buf = vec![0; LOGIN_MAX];
    let encode = |buf: &mut [u8]| {
        let mut out = Pickler::new(buf)?;
        value.encode(&mut out)?;
        out.finish()
    };
    let n = encode(&mut buf).context("the password is too long for a login")?;
    buf.truncate(n);
    Ok(buf)
}
