//! Getting and putting a file over a blocking socket, resumed until it is done.

use std::io::{self, Read as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use embedded_io_adapters::std::FromStd;
use piman_core::Error;
use piman_core::blocking::{self, Blocking};
use piman_core::error::PeerError;
use piman_core::hash::Hash;
use piman_core::transfer::{
    Body, Download, End, Input, Machine, Name, Pause, Probe, Refusal, Storage, Upload, advance,
};
use rustix::io::Errno;

use super::local::{Source, Target};
use super::upload::HASH_PACE;
use crate::net::min_rate::{Limits, Watch};
use crate::net::socket::{dial, timely};
use crate::net::tcp::Info;
use crate::sys::files::is_full;

/// What is moved at once.
const PIECE: usize = 256 * 1024;
/// How long the other side may need to bring a file to its disk, and longer by what the bytes took: something
/// slow in between may still have some of them.
const COMMIT: Duration = Duration::from_secs(15 * 60);

/// How long is waited, and how often tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection.
    pub connect: Duration,
    /// For an answer, or the next byte.
    pub silence: Duration,
    /// How long the server may take no byte of a file; `None`: for as long as its system answers.
    pub stall: Option<Duration>,
    /// So many attempts in a row may fail without a byte moved.
    pub tries: u32,
    /// Between two attempts at first; it doubles up to 30 s.
    pub pause: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            stall: None,
            tries: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The file has so many bytes, and so many are there already.
    Begins {
        /// Bytes that need not be moved.
        start: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// So many bytes are there by now.
    Moved(u64),
    /// It broke off and is tried again.
    Again(&'a str),
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that were moved, over all attempts.
    pub moved: u64,
    /// The server had exactly this file.
    pub already: bool,
    /// The first byte that the last attempt moved.
    pub resumed_at: u64,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The server said no to a download.
    #[error("the server has no such file, or it is being uploaded right now")]
    NotThere,
    /// The server said no to an upload.
    #[error("the server refuses it: it has a file of that name, or someone else is uploading it")]
    Taken,
    /// The server has no room.
    #[error("the server has not enough space")]
    ServerFull,
    /// We have no room.
    #[error("there is not enough space here")]
    Full,
    /// Something is wrong with the server.
    #[error("the server reports an error; its log says more")]
    Server,
    /// Something else is listening there.
    #[error("what answers there is no transfer service")]
    ProtocolError,
    /// Our file.
    #[error("{0}")]
    Local(io::Error),
    /// The connection.
    #[error("the connection failed: {0}")]
    Connection(io::Error),
}

impl TransferError {
    /// The exit code for it: 3 refused, 4 no space, 5 connection, 1 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotThere | Self::Taken => 3,
            Self::ServerFull | Self::Full => 4,
            Self::Connection(_) | Self::ProtocolError => 5,
            Self::Server | Self::Local(_) => 1,
        }
    }
}

/// Gets `name` from `server` (host and port).
///
/// # Errors
/// [`TransferError`]; what was got so far stays beside the target for the next time.
pub fn get(
    server: (&str, u16),
    name: &Name,
    target: &mut Target,
    deadlines: Deadlines,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Outcome, TransferError> {
    let mut ranges = Ranges::default();
    attempts(deadlines, tell, |tell, moved| {
        // Before there is a server that waits for it.
        let have = target.prepare().map_err(|e| Failure::Final(TransferError::Local(e)))?;
        let mut machine = Download::new(name.clone(), have == 0 || ranges.are_known(server, deadlines)?);
        let stream = connect(server, deadlines)?;
        patience(&stream, deadlines, have)?;
        let end = one(&stream, &mut machine, target, |_| None, (deadlines, tell), moved);
        ranges.after(&end)?;
        if let Some(e) = target.failure.take() {
            return Err(Failure::Final(local(e)));
        }
        end
    })
    .map_err(|e| if let TransferError::Taken = e { TransferError::NotThere } else { e })
}

/// Puts the file at `path` to `server` (host and port) under `name`.
///
/// # Errors
/// [`TransferError`]; what the server got so far stays there for a while.
pub fn put(
    path: &Path,
    server: (&str, u16),
    name: &Name,
    deadlines: Deadlines,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Outcome, TransferError> {
    let mut source = Source::open(path).map_err(TransferError::Local)?;
    let mut ranges = Ranges::default();
    attempts(deadlines, tell, |tell, moved| {
        let mut machine = Upload::new(name.clone(), ranges.are_known(server, deadlines)?);
        let stream = connect(server, deadlines)?;
        patience(&stream, deadlines, source.size)?;
        let file = source.file.try_clone().map_err(|e| Failure::Final(TransferError::Local(e)))?;
        let end = one(&stream, &mut machine, &mut source, |_| Some(&file), (deadlines, tell), moved);
        ranges.after(&end)?;
        if let Some(e) = source.failure.take() {
            return Err(Failure::Final(local(e)));
        }
        end
    })
}

/// Whether the server knows ranges. It is not asked for any before it has shown that.
#[derive(Default)]
struct Ranges(Known);

#[derive(Default)]
enum Known {
    /// Nobody has asked.
    #[default]
    Nothing,
    /// It has said so.
    Yes,
    /// It said so, and then did not know them after all.
    Never,
}

impl Ranges {
    /// Asks on a connection of its own if need be, in a way that an old server can answer.
    fn are_known(&mut self, server: (&str, u16), deadlines: Deadlines) -> Result<bool, Failure> {
        match self.0 {
            Known::Yes => return Ok(true),
            Known::Never => return Ok(false),
            Known::Nothing => {}
        }
        let stream = connect(server, deadlines)?;
        let mut io = Blocking(FromStd::new(&stream));
        let known = match blocking::run(advance(&mut io, &mut Probe::default(), &mut NoFile, Input::Start)) {
            Ok(end) => matches!(end, Pause::End(End::Ranges)),
            // So does one that does not expect the question; if it was the network, the next attempt asks again.
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => false,
            Err(e) => return Err(again(e)),
        };
        if known {
            self.0 = Known::Yes;
        }
        Ok(known)
    }

    /// Takes note of how an attempt ended.
    fn after(&mut self, end: &Result<End, Failure>) -> Result<(), Failure> {
        if matches!(end, Ok(End::NoRanges)) {
            self.0 = Known::Never;
            return Err(Failure::AtOnce);
        }
        Ok(())
    }
}

/// What a session that moves no file has for a storage.
struct NoFile;

impl Storage for NoFile {
    async fn open(&mut self, _: &Name) -> Result<u64, Refusal> {
        Err(Refusal::Failed)
    }

    async fn create(&mut self, _: &Name, _: bool) -> Result<u64, Refusal> {
        Err(Refusal::Failed)
    }

    async fn hash(&mut self, _: u64) -> Result<Hash, Refusal> {
        Err(Refusal::Failed)
    }

    async fn reserve(&mut self, _: u64, _: u64) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn read_at(&mut self, _: u64, _: &mut [u8]) -> Result<usize, Refusal> {
        Err(Refusal::Failed)
    }

    async fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }
}

/// How an attempt failed.
enum Failure {
    /// Another may do better.
    Again(io::Error),
    /// Another way may do, at once.
    AtOnce,
    /// That is it.
    Final(TransferError),
}

fn local(e: io::Error) -> TransferError {
    if is_full(&e) { TransferError::Full } else { TransferError::Local(e) }
}

/// Tries until it is done, or nothing gets on any more.
fn attempts(
    deadlines: Deadlines,
    tell: &mut dyn FnMut(Progress<'_>),
    mut attempt: impl FnMut(&mut dyn FnMut(Progress<'_>), &mut u64) -> Result<End, Failure>,
) -> Result<Outcome, TransferError> {
    let (mut failed, mut pause, mut total) = (0, deadlines.pause, 0);
    loop {
        let mut moved = 0;
        let end = attempt(tell, &mut moved);
        total += moved;
        let failure = match end {
            Ok(End::Done { start, size }) => {
                return Ok(Outcome { size, moved: total, already: false, resumed_at: start });
            }
            Ok(End::Already { size }) => {
                return Ok(Outcome { size, moved: total, already: true, resumed_at: size });
            }
            Ok(End::Refused(Refusal::NoSpace)) => return Err(TransferError::ServerFull),
            Ok(End::Refused(Refusal::Failed)) => return Err(TransferError::Server),
            Ok(End::Refused(_)) => return Err(TransferError::Taken),
            Ok(End::Stopped) => return Err(TransferError::Full),
            Ok(End::Broken(_)) => {
                return Err(TransferError::Local(io::Error::other("the file became shorter")));
            }
            Ok(End::Closed) => closed(),
            Ok(_) => return Err(TransferError::ProtocolError),
            Err(Failure::Final(e)) => return Err(e),
            Err(Failure::AtOnce) => continue,
            Err(Failure::Again(e)) => e,
        };
        if moved > 0 {
            (failed, pause) = (0, deadlines.pause);
        }
        failed += 1;
        if failed >= deadlines.tries {
            return Err(TransferError::Connection(failure));
        }
        tell(Progress::Again(&failure.to_string()));
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it too early")
}

fn connect((host, port): (&str, u16), deadlines: Deadlines) -> Result<TcpStream, Failure> {
    dial(host, port, deadlines.connect, deadlines.silence).map_err(Failure::Again)
}

/// The server may have to hash so many bytes before it answers.
fn patience(stream: &TcpStream, deadlines: Deadlines, hashed: u64) -> Result<(), Failure> {
    let silence = deadlines.silence + Duration::from_secs(hashed / HASH_PACE);
    stream.set_read_timeout(Some(silence)).map_err(Failure::Again)
}

/// One connection.
fn one<'f, S: Storage>(
    stream: &TcpStream,
    machine: &mut dyn Machine,
    storage: &mut S,
    file: impl Fn(&S) -> Option<&'f std::fs::File>,
    (deadlines, tell): (Deadlines, &mut dyn FnMut(Progress<'_>)),
    moved: &mut u64,
) -> Result<End, Failure> {
    let mut io = Blocking(FromStd::new(stream));
    let mut input = Input::Start;
    loop {
        input = match blocking::run(advance(&mut io, machine, storage, input)).map_err(again)? {
            Pause::End(end) => return Ok(end),
            Pause::Body(Body::Out { start, size }) => {
                tell(Progress::Begins { start, size });
                let Some(file) = file(storage) else { return Err(Failure::Again(closed())) };
                let mut sent = |at| {
                    *moved = at - start;
                    tell(Progress::Moved(at));
                };
                let at = send(stream, file, start..size, deadlines.stall, &mut sent)?;
                if at < size { Input::Broken(Refusal::Failed) } else { Input::Moved }
            }
            Pause::Body(Body::In { start, size }) => {
                tell(Progress::Begins { start, size });
                receive(stream, storage, start, size, tell, moved)?
            }
        };
    }
}

/// Sends a part of the file; returns how far it got if the file has become shorter. A server that takes nothing
/// for a while is not silent as long as its system answers.
fn send(
    stream: &TcpStream,
    file: &std::fs::File,
    part: std::ops::Range<u64>,
    stall: Option<Duration>,
    sent: &mut dyn FnMut(u64),
) -> Result<u64, Failure> {
    let began = Instant::now();
    let mut watch = Watch::new(stream, Limits { stall, ..Limits::NONE }).map_err(Failure::Again)?;
    stream.set_write_timeout(Some(watch.tick())).map_err(Failure::Again)?;
    let (mut at, end) = (part.start, part.end);
    while at < end {
        let want = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        let asked = Instant::now();
        match rustix::fs::sendfile(stream, file, Some(&mut at), want) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => return Err(Failure::Again(e.into())),
        }
        watch.waited(asked.elapsed()).map_err(Failure::Again)?;
        sent(at);
    }
    // The server's time begins when it has everything.
    let mut pause = Duration::from_millis(1);
    while at == end && Info::of(stream).map_err(Failure::Again)?.is_outstanding() {
        thread::sleep(pause);
        watch.waited(pause).map_err(Failure::Again)?;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    // Now it brings it to its disk.
    stream.set_read_timeout(Some(COMMIT + began.elapsed())).map_err(Failure::Again)?;
    Ok(at)
}

fn receive<'i>(
    mut stream: &TcpStream,
    storage: &mut impl Storage,
    start: u64,
    size: u64,
    tell: &mut dyn FnMut(Progress<'_>),
    moved: &mut u64,
) -> Result<Input<'i>, Failure> {
    let mut buf = vec![0; PIECE];
    let mut at = start;
    while at < size {
        let want = usize::try_from(size - at).map_or(PIECE, |left| left.min(PIECE));
        let n = match stream.read(buf.get_mut(..want).unwrap_or_default()) {
            Ok(0) => return Err(Failure::Again(closed())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Again(late(e))),
        };
        let piece = buf.get(..n).unwrap_or_default();
        if let Err(refusal) = blocking::run(storage.write_at(at, piece)) {
            return Ok(Input::Broken(refusal));
        }
        at += n as u64;
        *moved += n as u64;
        tell(Progress::Moved(at));
    }
    Ok(Input::Moved)
}

fn again(e: Error<io::Error>) -> Failure {
    Failure::Again(match e {
        Error::Io(e) => late(e),
        Error::Peer(PeerError::Closed) => closed(),
        other => io::Error::other(other.to_string()),
    })
}

fn late(e: io::Error) -> io::Error {
    timely(e, "the server was silent for too long")
}
