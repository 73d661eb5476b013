//! The protected login to a server of ours, and the stream that comes of it.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{self, Blocking};
use piman_core::rpc::Protocol;
use piman_core::rpc::secure::{
    Buffers, LoginFault, OVERHEAD, Protected, RANDOM_LENGTH, SecureError, Status, Terms, login,
};

use super::Service;
use super::socket::STALL;

/// The longest content of a record, in bytes.
pub(super) const RECORD: usize = 4096;
/// Memory for a record, in bytes.
pub(super) const BUFFER: usize = RECORD + OVERHEAD;

/// What is protected.
pub(super) type Stream<'b> = Protected<'b, Blocking<FromStd<Limited>>>;

/// A socket of which all reads together may take until a moment.
#[derive(Debug)]
pub(super) struct Limited {
    stream: TcpStream,
    end: Rc<Cell<Option<Instant>>>,
}

impl Limited {
    /// Without a moment a read may take [`STALL`].
    fn limit(&self) -> io::Result<()> {
        let left = match self.end.get() {
            None => STALL,
            Some(end) => end.saturating_duration_since(Instant::now()),
        };
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the server did not answer in time"));
        }
        self.stream.set_read_timeout(Some(left))
    }
}

impl Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.limit()?;
        self.stream.read(buf)
    }
}

impl Write for Limited {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// When the login has to be over; [`over`](Self::over) ends that limit.
pub(super) struct Deadline(Rc<Cell<Option<Instant>>>);

impl Deadline {
    /// The login is over: from now on each read has a time of its own.
    pub(super) fn over(&self) {
        self.0.set(None);
    }
}

/// Logs in until `end`.
///
/// # Errors
/// If there is no login; says why, and what to do about it.
pub(super) fn enter<'b>(
    service: &Service,
    stream: TcpStream,
    password: Option<&str>,
    protocol: Protocol,
    end: Instant,
    [incoming, outgoing]: &'b mut [[u8; BUFFER]; 2],
) -> anyhow::Result<(Stream<'b>, Deadline)> {
    let random = random()?;
    let terms = Terms {
        password,
        name: service.identity.serial.as_deref().unwrap_or_default(),
        // A record is shorter than 64 KiB.
        record_max: RECORD as u16,
        asked: protocol != Protocol::Piman,
        random: &random,
    };
    let deadline = Rc::new(Cell::new(Some(end)));
    let io = Blocking(FromStd::new(Limited { stream, end: Rc::clone(&deadline) }));
    let stream = blocking::run(login(io, &terms, Buffers { incoming, outgoing }));
    Ok((stream.map_err(|e| refused(e, protocol))?, Deadline(deadline)))
}

fn refused(e: SecureError<io::Error>, protocol: Protocol) -> anyhow::Error {
    let old = match protocol {
        Protocol::Piman => {
            "; if it is an old TCPTalks server, say --protocol pickle (a password then crosses the network in clear)"
        }
        _ => "",
    };
    match e {
        SecureError::Login(LoginFault::PasswordWanted) => {
            anyhow!("login: the server wants a password: give it with --password-file FILE")
        }
        SecureError::Login(LoginFault::NotSpoken) => anyhow!("login: {e}{old}"),
        SecureError::Login(LoginFault::Refused(Status::NameTaken)) => {
            anyhow!("login: {e}; if no other Pi has this serial number, another host pretends to be this one")
        }
        SecureError::Closed => anyhow!("login: the server closed the connection without an answer{old}"),
        e => anyhow!("login: {e}"),
    }
}

fn random() -> anyhow::Result<[u8; RANDOM_LENGTH]> {
    let mut random = [0; RANDOM_LENGTH];
    let n = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    ensure!(n.context("asking the kernel for random bytes")? == random.len(), "too few random bytes");
    Ok(random)
}
