//! One connection of the frames service: its hooks, its queue, and the loop between them.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use piman_core::frame::{Frames, Mail, Role, SendError};
use piman_core::{Error, error::PeerError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::ahead::{Ahead, Clock};
use super::plugins::Plugins;

/// Parts of a message of up to so many bytes are read at once; each connection has so much memory.
const PIECE: usize = 8192;

/// How connections behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The largest message that is taken, in bytes.
    pub limit: u32,
    /// How many messages may wait to be sent on one connection.
    pub queue: usize,
    /// How long the greeting may take, and a read or write in the midst of a message.
    pub stall: Duration,
    /// After how long without a message [`Hooks::idle`] is called, again and again.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { limit: 64 << 20, queue: 64, stall: Duration::from_secs(30), idle: Duration::from_secs(60) }
    }
}

/// What a program does with one connection. All of it happens in the task of the connection: what
/// takes long belongs elsewhere.
pub trait Hooks: Send + 'static {
    /// The connection is open.
    fn start(&mut self, peer: &Peer) {
        let _ = peer;
    }

    /// A message has come.
    fn message(&mut self, peer: &Peer, message: Vec<u8>);

    /// Nothing has come for [`Settings::idle`].
    fn idle(&mut self, peer: &Peer) {
        let _ = peer;
    }

    /// The connection is over; `why` if it was not closed in order.
    fn close(&mut self, peer: &Peer, why: Option<&Failure>) {
        let _ = (peer, why);
    }
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The peer refused it.
    #[error("the server refuses the connection: {}", refusal(*.0))]
    Refused(u8),
    /// The peer did not greet in time.
    #[error("the peer did not greet within {} s: does it speak the frames protocol?", .0.as_secs())]
    Silent(Duration),
    /// Anything else.
    #[error("{0}")]
    Link(Error<std::io::Error>),
}

fn refusal(code: u8) -> &'static str {
    use piman_core::frame::{CONFLICT, FULL};
    match code {
        FULL => "it has too many connections; try later",
        CONFLICT => "it has a conflict, such as this client being connected already",
        _ => "it gives no reason",
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
    /// Too many messages wait already.
    #[error("too many messages wait to be sent to this peer")]
    Full,
    /// The peer does not take it.
    #[error("the peer does not take the message (code {0:#04x}; 0 means too large)")]
    Rejected(u8),
    /// A plugin of ours failed, or the message is larger than any may be.
    #[error("the message cannot be sent: it is larger than the protocol allows or a plugin fails")]
    Unfit,
}

/// A message on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    message: Arc<[u8]>,
    done: Option<oneshot::Sender<Result<(), NotSent>>>,
}

/// A connection, to send on from anywhere.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    queue: mpsc::Sender<Outgoing>,
    stop: Arc<watch::Sender<bool>>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, settings: &Settings) -> (Self, Ends) {
        let (queue, outgoing) = mpsc::channel(settings.queue.max(1));
        let (stop, stopped) = watch::channel(false);
        (Self { address, queue, stop: Arc::new(stop) }, Ends { outgoing, stopped })
    }

    /// The address of the other side.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a message and waits until the peer has taken it.
    ///
    /// # Errors
    /// [`NotSent`].
    pub async fn send(&self, message: impl Into<Arc<[u8]>>) -> Result<(), NotSent> {
        let (done, sent) = oneshot::channel();
        let outgoing = Outgoing { message: message.into(), done: Some(done) };
        self.queue.send(outgoing).await.map_err(|_| NotSent::Closed)?;
        sent.await.unwrap_or(Err(NotSent::Closed))
    }

    /// Puts a message into the queue and does not wait: for hooks.
    ///
    /// # Errors
    /// [`NotSent::Closed`] or [`NotSent::Full`]. What the peer thinks of it is not heard.
    pub fn queue(&self, message: impl Into<Arc<[u8]>>) -> Result<(), NotSent> {
        self.queue.try_send(Outgoing { message: message.into(), done: None }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotSent::Full,
            mpsc::error::TrySendError::Closed(_) => NotSent::Closed,
        })
    }

    /// Closes the connection after what is in the queue now.
    pub fn close(&self) {
        // Nobody listens if it is closed already.
        let _ = self.stop.send(true);
    }

    /// Returns when the connection is over.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The other ends of what a [`Peer`] holds.
#[derive(Debug)]
pub(super) struct Ends {
    outgoing: mpsc::Receiver<Outgoing>,
    stopped: watch::Receiver<bool>,
}

/// Greets, then serves one connection to its end. `opened` hears whether it came about.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: Ahead<S>,
    role: Role,
    (peer, ends): (Peer, Ends),
    settings: &Settings,
    mut plugins: Plugins,
    hooks: &mut impl Hooks,
    opened: oneshot::Sender<Result<(), Failure>>,
) {
    let mut buf = vec![0; PIECE].into_boxed_slice();
    let open = Frames::open(&mut stream, Clock, role, settings.limit, &mut buf);
    let mut frames = match timeout(settings.stall, open).await {
        Ok(Ok(frames)) => frames,
        failed => {
            let failure = match failed {
                Ok(Err(Error::Peer(PeerError::Refused(code)))) => Failure::Refused(code),
                Ok(Err(Error::Io(e))) if e.kind() == ErrorKind::TimedOut => Failure::Silent(settings.stall),
                Ok(Err(e)) => Failure::Link(e),
                _ => Failure::Silent(settings.stall),
            };
            // Whoever waited for it may be gone.
            let _ = opened.send(Err(failure));
            return;
        }
    };
    let _ = opened.send(Ok(()));
    hooks.start(&peer);
    let ended = serve(&mut frames, ends, settings, &mut plugins, hooks, &peer).await;
    if ended.is_ok() {
        stream.close().await;
    }
    hooks.close(&peer, ended.as_ref().err());
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, &mut Ahead<S>, Clock>,
    Ends { mut outgoing, mut stopped }: Ends,
    settings: &Settings,
    plugins: &mut Plugins,
    hooks: &mut impl Hooks,
    peer: &Peer,
) -> Result<(), Failure> {
    let mut mail = Mail::default();
    loop {
        for message in mail.whole.drain(..) {
            match plugins.incoming(message, settings.limit) {
                Ok(message) => hooks.message(peer, message),
                Err(e) => log::warn!("{peer}: a message is dropped: {e}"),
            }
        }
        let unused = frames.has_unused();
        tokio::select! {
            // Our answers first, so that a peer that sends without pause fills no queue.
            biased;
            Some(next) = outgoing.recv() => send(frames, next, plugins, &mut mail).await?,
            () = stop(&mut stopped) => return Ok(()),
            first = async { if unused { Ok(Some(0)) } else { frames.stream().peek().await } } => {
                let first = first.map_err(|e| Failure::Link(Error::Io(e)))?;
                if first.is_none() || !frames.receive(&mut mail).await.map_err(Failure::Link)? {
                    return Ok(());
                }
            }
            () = sleep(settings.idle) => hooks.idle(peer),
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, &mut Ahead<S>, Clock>,
    Outgoing { message, done }: Outgoing,
    plugins: &mut Plugins,
    mail: &mut Mail,
) -> Result<(), Failure> {
    let result = match plugins.outgoing(&message) {
        Err(e) => {
            log::warn!("a message cannot be sent: {e}");
            Err(NotSent::Unfit)
        }
        Ok(message) => match frames.send(message.len() as u64, &mut &*message, mail).await {
            Ok(()) => Ok(()),
            Err(SendError::Rejected(code)) => Err(NotSent::Rejected(code)),
            Err(SendError::Link(e)) => return Err(Failure::Link(e)),
            Err(_) => Err(NotSent::Unfit),
        },
    };
    if let (Err(e), None) = (result, &done) {
        log::warn!("a message was not sent: {e}");
    }
    if let Some(done) = done {
        // Whoever sent it may not want to know.
        let _ = done.send(result);
    }
    Ok(())
}

/// Returns when the connection is to be closed.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
