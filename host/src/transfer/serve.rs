//! One connection of the server: time-outs, and the bytes moved the quick way.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use embedded_io_adapters::tokio_1::FromTokio;
use piman_core::Error;
use piman_core::error::PeerError;
use piman_core::transfer::{
    BadName, Body, End, Input, Machine, Name, Pause, REQUEST_LEN, Refusal, Request, Server, Step, advance,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::folder::{FileRefusal, Folder};
use super::storage::{Activity, ConnectionStorage, DiskPool, PIECE};
use super::upload::HASH_PACE;
use crate::net::gate::moved;
use crate::net::min_rate::{Limits, MinRate, Watch};
use crate::net::sendfile;

/// What a peer sends after the end is read for so long, so that it sees the answer and not a reset.
const LINGER: Duration = Duration::from_secs(2);
/// And so many bytes of it.
const LINGER_BYTES: u64 = 16 << 20;

/// How long a client may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For everything that it says before the bytes of the file, together.
    pub talk: Duration,
    /// For the bytes of a file, whoever sends them.
    pub limits: Limits,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { talk: Duration::from_secs(60), limits: Limits::NONE }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Transfers {
    folder: Arc<Folder>,
    pool: Arc<DiskPool>,
    timeouts: RwLock<Timeouts>,
}

/// How a connection ended.
#[derive(Debug)]
pub struct Served {
    /// What it was about, if the client said so.
    pub name: Option<Name>,
    /// The name that it asked for, if that cannot be served, and why not.
    pub bad_name: Option<(String, BadName)>,
    /// How it ended.
    pub end: Result<End, io::Error>,
    /// Why it was refused.
    pub refusal: Option<FileRefusal>,
    /// Whether the client sent.
    pub upload: bool,
    /// How long it took.
    pub took: Duration,
}

impl Transfers {
    /// Serves `folder`.
    #[must_use]
    pub fn new(folder: Arc<Folder>, timeouts: Timeouts) -> Self {
        Self { folder, pool: Arc::default(), timeouts: RwLock::new(timeouts) }
    }

    /// For connections that begin something from now on.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.write().unwrap_or_else(PoisonError::into_inner) = timeouts;
    }

    fn timeouts(&self) -> Timeouts {
        *self.timeouts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: TcpStream) -> Served {
        let began = Instant::now();
        let activity = Arc::new(Activity::default());
        // A client that has gone again has no address.
        let peer = stream.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip().to_canonical());
        let mut storage =
            ConnectionStorage::new(self.folder.clone(), self.pool.clone(), activity.clone(), peer);
        let mut io = FromTokio::new(stream);
        let mut upload = false;
        let mut server = Noting::default();
        let end = self.drive(&mut io, &mut server, &mut storage, &activity, &mut upload).await;
        let (name, refusal) = (storage.name.take(), storage.refusal.take());
        // The name is free before the client can know that it is over.
        drop(storage);
        if !matches!(end, Ok(End::Closed) | Err(_)) {
            linger(io.inner_mut()).await;
        }
        Served { name, bad_name: server.bad_name, end, refusal, upload, took: began.elapsed() }
    }

    async fn drive(
        &self,
        io: &mut FromTokio<TcpStream>,
        server: &mut Noting,
        storage: &mut ConnectionStorage,
        activity: &Activity,
        upload: &mut bool,
    ) -> Result<End, io::Error> {
        let mut input = Input::Start;
        loop {
            let talk = advance(io, server, storage, input);
            let moved = match self.patiently(activity, talk).await?? {
                Pause::End(end) => return Ok(end),
                Pause::Body(Body::Out { start, size }) => {
                    let file = storage.file().ok_or_else(|| io::Error::other("no file is open"))?;
                    let mut watch = Watch::new(io.inner(), self.timeouts().limits)?;
                    sendfile::send(io.inner(), &file, start, size - start, &mut watch, |_| Ok(())).await?;
                    // Nothing follows. A socket that is closed with bytes in it gives a slow peer a minute for them.
                    watch.delivered(size - start).await?;
                    Ok(())
                }
                Pause::Body(Body::In { start, size }) => {
                    *upload = true;
                    self.receive(io.inner(), storage, start, size).await?
                }
            };
            input = moved.map_or_else(Input::Broken, |()| Input::Moved);
        }
    }

    /// Gives the talk its time; what the disk takes is not the client's.
    async fn patiently<T>(
        &self,
        activity: &Activity,
        talk: impl Future<Output = Result<T, Error<io::Error>>>,
    ) -> Result<Result<T, io::Error>, io::Error> {
        let mut talk = pin!(talk);
        let mut deadline = Instant::now() + self.timeouts().talk;
        loop {
            if let Ok(said) = timeout_at(deadline, &mut talk).await {
                return Ok(said.map_err(broken));
            }
            let more = match activity.take_work() {
                Some(hashed) => self.timeouts().talk + Duration::from_secs(hashed / HASH_PACE),
                None => return Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")),
            };
            deadline = Instant::now() + more;
        }
    }

    /// Moves the bytes of an upload to the disk. A client that sends nothing has no buffer.
    async fn receive(
        &self,
        stream: &TcpStream,
        storage: &mut ConnectionStorage,
        start: u64,
        size: u64,
    ) -> io::Result<Result<(), Refusal>> {
        let mut at = start;
        let limits = self.timeouts().limits;
        let mut pace = MinRate::new(limits.slowest, limits.span);
        while at < size {
            let began = Instant::now();
            match limits.stall {
                // Keepalive finds out whether its system is still there.
                None => stream.readable().await?,
                Some(stall) => timeout(stall, stream.readable()).await.unwrap_or_else(|_| {
                    let text = format!("the client has sent nothing for {} s", stall.as_secs());
                    Err(io::Error::new(io::ErrorKind::TimedOut, text))
                })?,
            }
            let waited = began.elapsed();
            let pool = self.pool.clone();
            let turn = pool.writing.acquire().await.map_err(io::Error::other)?;
            let mut piece = pool.buffer();
            let want = usize::try_from(size - at).unwrap_or(usize::MAX).min(PIECE);
            let (len, ended) = fill(stream, piece.get_mut(..want).unwrap_or_default())?;
            if len > 0 {
                moved();
                match storage.write(at, piece, len).await {
                    Ok(buffer) => pool.give_back(buffer),
                    Err(no) => return Ok(Err(no)),
                }
                at += len as u64;
            } else {
                pool.give_back(piece);
            }
            drop(turn);
            pace.note(waited, len as u64)?;
            if ended && at < size {
                return Err(broken(Error::Peer(PeerError::Closed)));
            }
        }
        Ok(Ok(()))
    }
}

/// The server's machine, and what the log is to know of a name that it refuses.
#[derive(Default)]
struct Noting {
    server: Server,
    bad_name: Option<(String, BadName)>,
}

impl Machine for Noting {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        // Nothing else that a client says is as long.
        if let Input::Received(bytes) = input
            && bytes.len() == REQUEST_LEN
            && let Some(Request { name: Err(why), .. }) = Request::parse(bytes)
        {
            let name = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default());
            self.bad_name = Some((name.trim_end_matches('\0').to_owned(), why));
        }
        self.server.handle(input)
    }
}

/// Takes what is there; how many bytes, and whether the stream has ended.
fn fill(stream: &TcpStream, piece: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut len = 0;
    loop {
        let room = piece.get_mut(len..).unwrap_or_default();
        if room.is_empty() {
            return Ok((len, false));
        }
        match stream.try_read(room) {
            Ok(0) => return Ok((len, true)),
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok((len, false)),
            // What came before the failure is worth keeping: it is resumed from there.
            Err(_) if len > 0 => return Ok((len, true)),
            Err(e) => return Err(e),
        }
    }
}

/// Closes so that the peer sees the last answer: unread bytes would make it a reset.
async fn linger(stream: &mut TcpStream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(LINGER_BYTES);
        // Either way it is over.
        let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
}

fn broken(e: Error<io::Error>) -> io::Error {
    match e {
        Error::Io(e) => e,
        Error::Peer(PeerError::Closed) => io::Error::new(io::ErrorKind::UnexpectedEof, e.to_string()),
        other => io::Error::other(other.to_string()),
    }
}

impl Served {
    /// How important it is for the log.
    #[must_use]
    pub fn level(&self) -> tracing::Level {
        match self.end {
            Ok(End::Done { .. }) => tracing::Level::INFO,
            Ok(End::Ranges) => tracing::Level::DEBUG,
            _ => tracing::Level::WARN,
        }
    }
}

/// One line for the log.
impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.bad_name) {
            (Some(name), _) => write!(f, "{:?}: ", name.as_str())?,
            (None, Some((name, _))) => write!(f, "{name:?}: ")?,
            (None, None) => f.write_str("no file: ")?,
        }
        match &self.end {
            Ok(End::Done { start, size }) => {
                let what = if self.upload { "received" } else { "sent" };
                write!(f, "{what} {} bytes in {:.1} s", size - start, self.took.as_secs_f64())?;
                if *start > 0 { write!(f, ", resumed at {start}") } else { Ok(()) }
            }
            Ok(End::Ranges) => f.write_str("the client asked whether uploads and downloads can be resumed"),
            Ok(End::Stopped) => f.write_str("the client has no room for it"),
            Ok(End::Closed) => f.write_str("the client went away"),
            Ok(End::ProtocolError) => f.write_str("the client does not speak this protocol"),
            Ok(_) => match (&self.refusal, &self.bad_name) {
                (Some(why), _) => write!(f, "refused: {why}"),
                (None, Some((_, why))) => write!(f, "refused: {why}"),
                (None, None) => f.write_str("refused"),
            },
            Err(e) => {
                let what = if self.upload { "broken off, may be resumed" } else { "broken off" };
                write!(f, "{what}: {e}")
            }
        }
    }
}
