//! One connection of the server: time-outs, and waiting while the disk is full.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedded_io_async::{ErrorType, Read, Write};
use piman_core::Error;
use piman_core::telemetry::{Journal, RECORD_MAX, serve};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::record_file::RecordFile;
use super::record_store::RecordStore;
use crate::net::gate::moved;
use crate::net::listen::{Gate, Pass, accept};
use crate::net::socket::{LOOK, answers};
use crate::sys::files::is_full;
use crate::sys::lock::lock;

/// How long a client may take no acknowledgement. It is long: whether its system is there is found out sooner.
const WRITE_STALL: Duration = Duration::from_secs(300);
/// The pause between two looks whether there is room again.
const RETRY: Duration = Duration::from_secs(1);
/// So many bytes at least are counted at once.
const AT_ONCE: u64 = 64 << 10;
/// How often missing space is logged.
const SAY: u32 = 60;

/// What all connections share.
#[derive(Debug)]
pub struct TelemetryServer {
    store: Arc<RecordStore>,
}

/// As whom an address is known.
pub struct Named {
    /// The name of its file.
    pub name: String,
    /// What is kept as long as it is connected.
    pub kept: Box<dyn Send>,
}

/// How a connection ended.
#[derive(Debug)]
pub struct Served {
    /// Bytes of whole records that were written.
    pub bytes: u64,
    /// Why it ended, if not by the client's wish.
    pub end: Result<(), io::Error>,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            Ok(()) => write!(f, "closed after {} bytes", self.bytes),
            Err(e) => write!(f, "ended after {} bytes: {e}", self.bytes),
        }
    }
}

impl TelemetryServer {
    /// Keeps records in `store`.
    #[must_use]
    pub fn new(store: Arc<RecordStore>) -> Self {
        Self { store }
    }

    /// Serves one connection of the client that is known as `who` to its end.
    pub async fn serve(&self, stream: TcpStream, who: &str) -> Served {
        // A client that has gone again has no address.
        let peer = stream.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip().to_canonical());
        let stream = Arc::new(stream);
        let mut line = Socket(stream.clone());
        let file = self.store.file(who);
        let mut desk = Connection { store: &self.store, file, who, peer, stream, bytes: 0, left: 0 };
        // One byte more: the longest record fits with its newline.
        let mut buf = vec![0; RECORD_MAX + 1];
        let end = match serve(&mut line, &mut buf, &mut desk).await {
            Ok(kept) => kept,
            Err(Error::Io(e)) => Err(e),
            Err(e) => Err(io::Error::other(e.to_string())),
        };
        Served { bytes: desk.bytes, end }
    }
}

/// Serves clients on `listener` for ever; `who` says as whom an address is known.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn run(
    listener: std::net::TcpListener,
    gate: Arc<Gate>,
    streams: Arc<TelemetryServer>,
    who: impl Fn(IpAddr) -> Named + Send + Sync + 'static,
    tune: fn(&TcpStream),
) -> anyhow::Result<()> {
    let serve = move |stream: TcpStream, address, pass: Pass| {
        let (streams, Named { name: who, kept }) = (streams.clone(), who(address));
        pass.serve(Box::pin(async move {
            tune(&stream);
            tracing::info!("telemetry: {who}: connected");
            let served = streams.serve(stream, &who).await;
            let level = if served.end.is_ok() { tracing::Level::INFO } else { tracing::Level::WARN };
            crate::log_at!(level, "telemetry: {who}: {served}");
            drop(kept);
        }))
    };
    accept(listener, gate, serve).await
}

/// The socket as the core's driver wants it. It may be silent for as long as it likes (keepalive
/// finds out whether it is there), but it has to take what it is told.
struct Socket(Arc<TcpStream>);

impl ErrorType for Socket {
    type Error = io::Error;
}

impl Read for Socket {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match timeout(LOOK, self.0.readable()).await {
                Ok(ready) => ready?,
                Err(_) => answers(&self.0)?,
            }
            match self.0.try_read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    moved();
                    return done;
                }
            }
        }
    }
}

impl Write for Socket {
    async fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            match timeout(WRITE_STALL, self.0.writable()).await {
                Ok(ready) => ready?,
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client takes no acknowledgement",
                    ));
                }
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where one connection's records go.
struct Connection<'a> {
    store: &'a RecordStore,
    file: Arc<Mutex<RecordFile>>,
    who: &'a str,
    peer: IpAddr,
    stream: Arc<TcpStream>,
    bytes: u64,
    /// How much of what counts already it has not brought yet.
    left: u64,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.store.give_back(self.peer, self.left);
    }
}

impl Connection<'_> {
    async fn write(&mut self, records: &[u8]) -> io::Result<()> {
        let bytes = records.len() as u64;
        if self.left < bytes {
            let more = bytes.max(AT_ONCE);
            self.store.take(self.peer, more)?;
            self.left += more;
        }
        self.append_all(records).await?;
        self.left -= bytes;
        Ok(())
    }

    async fn append_all(&self, records: &[u8]) -> io::Result<()> {
        if !self.store.syncs() {
            // Into the page cache: shorter than to hand it to another thread.
            return lock(&self.file).append(records);
        }
        let (file, records) = (self.file.clone(), records.to_vec());
        tokio::task::spawn_blocking(move || lock(&file).append(&records)).await.map_err(io::Error::other)?
    }

    /// Waits a little; fails if the client is gone meanwhile.
    async fn pause(&self) -> io::Result<()> {
        let mut byte = [0];
        match timeout(RETRY, self.stream.peek(&mut byte)).await {
            Err(_) => Ok(()),
            Ok(Ok(0)) => Err(io::Error::other("the client went before there was room for its record")),
            Ok(Ok(_)) => {
                tokio::time::sleep(RETRY).await;
                Ok(())
            }
            Ok(Err(e)) => Err(e),
        }
    }
}

impl Journal for Connection<'_> {
    type Error = io::Error;

    async fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let mut failed = 0u32;
        loop {
            match self.write(records).await {
                Ok(()) => break,
                Err(e) if waits(&e) => {
                    if failed.is_multiple_of(SAY) {
                        tracing::error!(
                            "telemetry: {}: cannot write: {e}; nothing is acknowledged until it can be written",
                            self.who
                        );
                    }
                    failed = failed.saturating_add(1);
                    self.pause().await?;
                }
                Err(e) => return Err(e),
            }
        }
        if failed > 0 {
            tracing::info!("telemetry: {}: there is room again", self.who);
        }
        self.bytes += records.len() as u64;
        Ok(())
    }
}

/// Whether somebody may do something about it.
fn waits(e: &io::Error) -> bool {
    is_full(e) || e.kind() == io::ErrorKind::ReadOnlyFilesystem
}
