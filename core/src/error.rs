//! What can go wrong while a session is driven, by who is at fault.

use core::fmt;

/// Why a driver stopped before its session had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error<E> {
    /// The transport failed: nobody's decision, try again.
    Io(E),
    /// The peer did what the protocol does not allow.
    Peer(PeerError),
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PeerError {
    /// The stream ended before the session had.
    Closed,
    /// The stream takes no more bytes (a write of 0).
    WriteZero,
    /// It refused the connection, with the code of its service.
    Refused(u8),
    /// It said what the protocol does not allow.
    Broken,
    /// It ordered something, and did not show that it may.
    NotTrusted,
}

impl<E> From<E> for Error<E> {
    fn from(e: E) -> Self {
        Self::Io(e)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "the connection failed: {e}"),
            Self::Peer(PeerError::Closed) => f.write_str("the peer closed the connection too early"),
            Self::Peer(PeerError::WriteZero) => f.write_str("the peer takes no more bytes"),
            Self::Peer(PeerError::Refused(code)) => {
                write!(f, "the peer refused the connection (code {code:#04x})")
            }
            Self::Peer(PeerError::NotTrusted) => f.write_str("the peer did not show that it may order this"),
            Self::Peer(PeerError::Broken) => f.write_str("the peer does not speak this protocol"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for Error<E> {}
