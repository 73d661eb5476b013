//! One connection of the messages service: its hooks, its queue, and the loop between them.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use piman_core::messages::{MessageStream, Role, SendError};
use piman_core::{Error, error::PeerError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::ahead::{Ahead, Clock};
use super::incoming::{Budget, Incoming};
use super::plugins::Plugins;

/// Parts of a message of up to so many bytes are read at once; each connection has so much memory.
const PIECE: usize = 8192;
/// At most this many messages of the peer are taken before one of ours that waits.
const FIRST_MAX: usize = 16;
/// How often [`Hooks::ready`] is asked while it says no.
const LOOK: Duration = Duration::from_millis(3);

/// How connections behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The largest message that is taken, in bytes.
    pub limit: u32,
    /// How many messages may wait to be sent on one connection.
    pub queue: usize,
    /// How many bytes may wait there; one message may be larger.
    pub queue_bytes: usize,
    /// How many connections a server takes from one address.
    pub per_address: usize,
    /// What all connections together may hold of messages that are not complete.
    pub budget: Option<Arc<Budget>>,
    /// How long the greeting may take, and a read or write in the midst of a message.
    pub stall: Duration,
    /// After how long without a message [`Hooks::idle`] is called, again and again.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limit: 64 << 20,
            queue: 64,
            queue_bytes: usize::MAX,
            per_address: usize::MAX,
            budget: None,
            stall: Duration::from_secs(30),
            idle: Duration::from_secs(60),
        }
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

    /// Whether the next message of this peer may be taken now. If not, it is asked again soon; what
    /// goes to the peer does not wait for it.
    fn ready(&mut self) -> bool {
        true
    }

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
    #[error("the server refuses the connection: {}", piman_core::messages::refusal(*.0))]
    Refused(u8),
    /// The peer did not greet in time.
    #[error("the peer did not greet within {} s: does it speak the messages protocol?", .0.as_secs())]
    Timeout(Duration),
    /// It was cut by [`Peer::cut`].
    #[error("this side cut the connection")]
    Cut,
    /// Anything else.
    #[error("{0}")]
    Link(Error<std::io::Error>),
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
    _waits: Waits,
}

/// Counts the bytes of a message that waits or is being sent.
#[derive(Debug)]
struct Waits {
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Whether a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// No.
    No,
    /// After what is in the queue.
    Close,
    /// At once.
    Cut,
}

/// A connection, to send on from anywhere.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    listener: usize,
    queue: mpsc::Sender<Outgoing>,
    /// The bytes in the queue.
    waiting: Arc<AtomicUsize>,
    queue_bytes: usize,
    stop: Arc<watch::Sender<Stop>>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, listener: usize, settings: &Settings) -> (Self, Ends) {
        let (queue, outgoing) = mpsc::channel(settings.queue.max(1));
        let (stop, stopped) = watch::channel(Stop::No);
        let (waiting, queue_bytes) = (Arc::default(), settings.queue_bytes);
        let peer = Self { address, listener, queue, waiting, queue_bytes, stop: Arc::new(stop) };
        (peer, Ends { outgoing, stopped })
    }

    fn outgoing(&self, message: Arc<[u8]>, done: Option<oneshot::Sender<Result<(), NotSent>>>) -> Outgoing {
        let bytes = message.len();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        Outgoing { message, done, _waits: Waits { bytes, waiting: Arc::clone(&self.waiting) } }
    }

    /// The address of the other side.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// On which of the server's addresses it came in, counted from 0; 0 for a connection that this
    /// side made.
    #[must_use]
    pub fn listener(&self) -> usize {
        self.listener
    }

    /// Whether more than half of the queue is taken.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.waiting() * 2 > self.queue.max_capacity()
            || self.waiting.load(Ordering::Relaxed) > self.queue_bytes / 2
    }

    /// How many messages wait to be sent.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity().saturating_sub(self.queue.capacity())
    }

    /// Sends a message and waits until the peer has taken it.
    ///
    /// # Errors
    /// [`NotSent`].
    pub async fn send(&self, message: impl Into<Arc<[u8]>>) -> Result<(), NotSent> {
        let (done, sent) = oneshot::channel();
        let outgoing = self.outgoing(message.into(), Some(done));
        self.queue.send(outgoing).await.map_err(|_| NotSent::Closed)?;
        sent.await.unwrap_or(Err(NotSent::Closed))
    }

    /// Puts a message into the queue and does not wait: for hooks.
    ///
    /// # Errors
    /// [`NotSent::Closed`] or [`NotSent::Full`]. What the peer thinks of it is not heard.
    pub fn queue(&self, message: impl Into<Arc<[u8]>>) -> Result<(), NotSent> {
        let message = message.into();
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 && waiting.saturating_add(message.len()) > self.queue_bytes {
            return Err(NotSent::Full);
        }
        self.queue.try_send(self.outgoing(message, None)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotSent::Full,
            mpsc::error::TrySendError::Closed(_) => NotSent::Closed,
        })
    }

    /// Closes the connection after what is in the queue now.
    pub fn close(&self) {
        self.ask(Stop::Close);
    }

    /// Ends the connection at once: what is in the queue is lost.
    pub fn cut(&self) {
        self.ask(Stop::Cut);
    }

    fn ask(&self, how: Stop) {
        self.stop.send_if_modified(|stop| {
            let more = *stop != Stop::Cut && *stop != how;
            if more {
                *stop = how;
            }
            more
        });
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
    stopped: watch::Receiver<Stop>,
}

/// Greets, then serves one connection to its end. `opened` hears whether it came about.
pub(super) async fn run<S: AsyncRead + AsyncWrite + AsFd + Unpin>(
    mut stream: Ahead<S>,
    role: Role,
    (peer, ends): (Peer, Ends),
    settings: &Settings,
    mut plugins: Plugins,
    hooks: &mut impl Hooks,
    opened: oneshot::Sender<Result<(), Failure>>,
) {
    let mut buf = vec![0; PIECE].into_boxed_slice();
    let open = MessageStream::open(&mut stream, Clock, role, settings.limit, &mut buf);
    let mut frames = match timeout(settings.stall, open).await {
        Ok(Ok(frames)) => frames,
        failed => {
            let failure = match failed {
                Ok(Err(Error::Peer(PeerError::Refused(code)))) => Failure::Refused(code),
                Ok(Err(Error::Io(e))) if e.kind() == ErrorKind::TimedOut => Failure::Timeout(settings.stall),
                Ok(Err(e)) => Failure::Link(e),
                _ => Failure::Timeout(settings.stall),
            };
            // Whoever waited for it may be gone.
            let _ = opened.send(Err(failure));
            return;
        }
    };
    let _ = opened.send(Ok(()));
    hooks.start(&peer);
    let mut stopped = ends.stopped.clone();
    let ended = tokio::select! {
        ended = serve(&mut frames, ends, settings, &mut plugins, hooks, &peer) => ended,
        () = stop(&mut stopped, Stop::Cut) => Err(Failure::Cut),
    };
    if ended.is_ok() {
        stream.close().await;
    }
    hooks.close(&peer, ended.as_ref().err());
}

async fn serve<S: AsyncRead + AsyncWrite + AsFd + Unpin>(
    frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
    Ends { mut outgoing, mut stopped }: Ends,
    settings: &Settings,
    plugins: &mut Plugins,
    hooks: &mut impl Hooks,
    peer: &Peer,
) -> Result<(), Failure> {
    let mut incoming = Incoming::new(peer.to_string(), settings.budget.clone());
    loop {
        deliver(&mut incoming, settings, plugins, hooks, peer);
        let (unused, held) = (frames.has_unused(), incoming.has_whole());
        tokio::select! {
            // Our answers first, so that a peer that sends without pause fills no queue.
            biased;
            Some(next) = outgoing.recv() => {
                // An old peer takes a size that crosses its own for a refusal: what it has begun goes
                // first, unless too much waits here.
                for _ in 0..FIRST_MAX {
                    let here = !incoming.has_whole() && (frames.has_unused() || frames.stream().has_input());
                    let calm = outgoing.len() * 2 <= outgoing.max_capacity() && hooks.ready();
                    if !here || !calm {
                        break;
                    }
                    if !receive(frames, &mut incoming).await? {
                        return Ok(());
                    }
                    deliver(&mut incoming, settings, plugins, hooks, peer);
                }
                send(frames, next, plugins, &mut incoming).await?;
            }
            () = stop(&mut stopped, Stop::Close) => return Ok(()),
            first = async {
                while !hooks.ready() {
                    sleep(LOOK).await;
                }
                if unused || held { Ok(Some(0)) } else { frames.stream().peek().await }
            } => {
                if incoming.has_whole() {
                    continue;
                }
                let first = first.map_err(|e| Failure::Link(Error::Io(e)))?;
                if first.is_none() || !receive(frames, &mut incoming).await? {
                    return Ok(());
                }
            }
            () = sleep(settings.idle) => hooks.idle(peer),
        }
    }
}

/// Hands over what has come, as far as it may be taken now. What came while a message of ours was sent can
/// have to wait.
fn deliver(
    incoming: &mut Incoming,
    settings: &Settings,
    plugins: &mut Plugins,
    hooks: &mut impl Hooks,
    peer: &Peer,
) {
    while hooks.ready()
        && let Some(message) = incoming.next()
    {
        match plugins.incoming(message, settings.limit) {
            Ok(message) => hooks.message(peer, message),
            Err(e) => tracing::warn!("{peer}: a message is dropped: {e}"),
        }
    }
}

/// Takes the next message; `false` if the peer has closed the connection.
async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
    incoming: &mut Incoming,
) -> Result<bool, Failure> {
    // A peer that has closed between two messages has said all that it had to say.
    if !frames.has_unused() && matches!(frames.stream().peek().await, Ok(None)) {
        return Ok(false);
    }
    frames.receive(incoming).await.map_err(Failure::Link)
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
    Outgoing { message, done, _waits }: Outgoing,
    plugins: &mut Plugins,
    incoming: &mut Incoming,
) -> Result<(), Failure> {
    let result = match plugins.outgoing(&message) {
        Err(e) => {
            tracing::warn!("a message cannot be sent: {e}");
            Err(NotSent::Unfit)
        }
        Ok(message) => match frames.send(message.len() as u64, &mut &*message, incoming).await {
            Ok(()) => Ok(()),
            Err(SendError::Rejected(code)) => Err(NotSent::Rejected(code)),
            Err(SendError::Link(e)) => return Err(Failure::Link(e)),
            Err(_) => Err(NotSent::Unfit),
        },
    };
    if let (Err(e), None) = (result, &done) {
        tracing::warn!("a message was not sent: {e}");
    }
    if let Some(done) = done {
        // Whoever sent it may not want to know.
        let _ = done.send(result);
    }
    Ok(())
}

/// Returns when the connection is to end in this way, or more quickly.
async fn stop(stopped: &mut watch::Receiver<Stop>, how: Stop) {
    let asked = |stop: &Stop| *stop == how || *stop == Stop::Cut;
    if stopped.wait_for(asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}
