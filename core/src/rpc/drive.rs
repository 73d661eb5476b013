//! The client's login between our own peers, over an open frames talk.

use core::fmt;

use embedded_io_async::{Read, Write};
use heapless::Vec;

use super::arena::{DEPTH_MAX, Memory, Slot};
use super::auth::{Authenticator, Challenge, Handshake, Verdict, same};
use super::postcard;
use super::value::Value;
use super::write::Encode;
use crate::error::Error;
use crate::messages::{MessageSink, MessageStream, Piece, SendError, Timer};

/// The longest message of a login, in bytes.
const MESSAGE_MAX: usize = 64;

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LoginError<E> {
    /// The connection failed.
    Link(Error<E>),
    /// The server closed the connection.
    Closed,
    /// The server has another key.
    Denied,
    /// The server does not know the key: it is not the one that is meant.
    ServerNotTrusted,
    /// The server does not speak this protocol.
    Unauthenticated,
}

impl<E> From<Error<E>> for LoginError<E> {
    fn from(e: Error<E>) -> Self {
        Self::Link(e)
    }
}

impl<E: fmt::Display> fmt::Display for LoginError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(e) => e.fmt(f),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Denied => f.write_str("the password is wrong"),
            Self::ServerNotTrusted => {
                f.write_str("the server does not know the password; is it the right server?")
            }
            Self::Unauthenticated => f.write_str("the server does not speak this protocol"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for LoginError<E> {}

/// The message that came last.
#[derive(Default)]
struct Last {
    bytes: Vec<u8, MESSAGE_MAX>,
    too_long: bool,
}

impl MessageSink for Last {
    async fn piece(&mut self, piece: Piece<'_>) {
        if piece.offset == 0 {
            self.bytes.clear();
            self.too_long = false;
        }
        self.too_long |= self.bytes.extend_from_slice(piece.bytes).is_err();
    }
}

impl Last {
    fn look<T>(&self, look: impl Fn(Value<'_>) -> Option<T>) -> Option<T> {
        let mut seen = None;
        self.show(&mut |value| seen = look(value));
        seen
    }

    /// Shows the value that was sent, if it was one. Of no type, so that there is one for all that looks.
    fn show(&self, to: &mut dyn FnMut(Value<'_>)) {
        let mut slots = [Slot::default(); 16];
        let memory = Memory {
            slots: &mut slots,
            stack: &mut [],
            memo: &mut [],
            text: &mut [],
            depth_max: DEPTH_MAX,
            weight_max: 16,
        };
        if let (Ok(value), false) = (postcard::decode(&self.bytes, memory), self.too_long) {
            to(value);
        }
    }
}

/// Proves to the server that this client has the key, and wants the same from the server. `nonce` are
/// 32 random bytes that are never used again.
///
/// # Errors
/// [`LoginError`]; close the connection.
pub async fn login<T: Read + Write, C: Timer>(
    frames: &mut MessageStream<'_, T, C>,
    key: &impl Authenticator,
    nonce: [u8; 32],
) -> Result<(), LoginError<T::Error>> {
    let mut last = Last::default();
    send(frames, &Handshake::Hello(nonce), &mut last).await?;
    receive(frames, &mut last).await?;
    let Some(Handshake::Challenge(server)) = last.look(Handshake::parse) else {
        return Err(LoginError::Unauthenticated);
    };
    let challenge = Challenge { client: nonce, server };
    send(frames, &Handshake::Proof(challenge.client_proof(key)), &mut last).await?;
    receive(frames, &mut last).await?;
    match last.look(Handshake::parse) {
        Some(Handshake::Proof(proof)) if same(&challenge.server_proof(key), &proof) => Ok(()),
        // A server without a password accepts everybody, and has no password to prove.
        Some(Handshake::Proof(_)) => Err(LoginError::ServerNotTrusted),
        _ if last.look(Verdict::parse) == Some(Verdict(false)) => Err(LoginError::Denied),
        _ => Err(LoginError::Unauthenticated),
    }
}

async fn send<T: Read + Write, C: Timer>(
    frames: &mut MessageStream<'_, T, C>,
    step: &Handshake,
    last: &mut Last,
) -> Result<(), LoginError<T::Error>> {
    let mut buf = [0; MESSAGE_MAX];
    let mut out = postcard::Writer::new(&mut buf);
    // Every step fits.
    step.encode(&mut out).map_err(|_| LoginError::Unauthenticated)?;
    let n = out.finish();
    let mut message = buf.get(..n).unwrap_or_default();
    match frames.send(n as u64, &mut message, last).await {
        Ok(()) => Ok(()),
        Err(SendError::Link(e)) => Err(LoginError::Link(e)),
        Err(_) => Err(LoginError::Unauthenticated),
    }
}

async fn receive<T: Read + Write, C: Timer>(
    frames: &mut MessageStream<'_, T, C>,
    last: &mut Last,
) -> Result<(), LoginError<T::Error>> {
    if frames.receive(last).await? { Ok(()) } else { Err(LoginError::Closed) }
}
