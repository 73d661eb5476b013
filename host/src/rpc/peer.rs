//! A peer that is connected, and calls of its functions.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use piman_core::rpc::Codec;
use tokio::sync::{mpsc, oneshot, watch};

use super::data::Data;

/// So much longer a call waits than its connection does, whose answer says more.
const GRACE: Duration = Duration::from_millis(200);

/// How many messages may wait to be sent.
const QUEUE: usize = 64;

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Too many calls are under way.
    #[error("too many calls wait for an answer")]
    TooMany,
    /// The arguments are too large.
    #[error("the arguments are larger than a message may be")]
    TooLarge,
    /// The answer has come, but it cannot be read.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// The function failed; its error.
    #[error("{0}")]
    Function(String),
}

pub(super) type Reply = oneshot::Sender<Result<Data, CallError>>;

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    Call { opcode: u8, args: Vec<Data>, keywords: Vec<(Data, Data)>, within: Duration, reply: Reply },
    Answer { retcode: u32, result: Result<Data, String> },
}

/// A peer that is connected.
#[derive(Debug, Clone)]
pub struct Peer {
    address: Option<IpAddr>,
    codec: Codec,
    protected: bool,
    pub(super) queue: mpsc::Sender<Outgoing>,
    stop: Arc<watch::Sender<bool>>,
}

/// The other ends of what a [`Peer`] holds.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) queue: mpsc::Receiver<Outgoing>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Peer {
    pub(super) fn new(address: Option<IpAddr>, codec: Codec, protected: bool) -> (Self, Ends) {
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let peer = Self { address, codec, protected, queue, stop: Arc::new(stop) };
        (peer, Ends { queue: outgoing, stop: stopped })
    }

    /// Its address; `None` for this machine's operator.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// How it encodes messages; old peers use pickles.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether its login bound both sides, and all that is said is sealed; not so with old peers, and with small ones
    /// that cannot.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// Whether this is the same connection.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stop, &other.stop)
    }

    /// Calls a function of the peer and waits for what it returns.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, opcode: u8, args: Vec<Data>, within: Duration) -> Result<Data, CallError> {
        self.call_with(opcode, args, Vec::new(), within).await
    }

    /// As [`call`](Self::call), with arguments by name.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call_with(
        &self,
        opcode: u8,
        args: Vec<Data>,
        keywords: Vec<(Data, Data)>,
        within: Duration,
    ) -> Result<Data, CallError> {
        let (reply, answer) = oneshot::channel();
        let deadline = tokio::time::Instant::now() + within;
        let send = self.queue.send(Outgoing::Call { opcode, args, keywords, within, reply });
        match tokio::time::timeout_at(deadline, send).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(CallError::Closed),
            Err(_) => return Err(CallError::TimedOut(within)),
        }
        // The connection counts the time as well, but not while it waits for the peer's greeting.
        match tokio::time::timeout_at(deadline + GRACE, answer).await {
            Ok(answer) => answer.unwrap_or(Err(CallError::Closed)),
            Err(_) => Err(CallError::TimedOut(within)),
        }
    }

    /// Closes the connection.
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
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("operator"),
        }
    }
}
