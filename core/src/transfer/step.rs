//! What goes into a session of a transfer and what comes out of it.

use super::name::Name;
use super::wire::{Message, Refusal};
use crate::hash::Hash;

/// A session: something happened, what is next?
pub trait Machine: Send {
    /// Takes what the last step brought and says what to do now. The session keeps the file's name: a step
    /// borrows it.
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m>;
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Input<'a> {
    /// The connection stands. Given once, first.
    Start,
    /// The message has been sent.
    Sent,
    /// The bytes that were to be read, all of them.
    Received(&'a [u8]),
    /// The stream ended before all of them were there.
    Closed,
    /// What the storage says.
    Answer(Result<Value, Refusal>),
    /// All bytes of the body have been moved.
    Moved,
    /// The body could not be moved, since the storage failed.
    Broken(Refusal),
}

/// What a storage answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Value {
    /// To [`Ask::Open`] and [`Ask::Create`].
    Bytes(u64),
    /// To [`Ask::Hash`].
    Hash(Hash),
    /// To [`Ask::Reserve`] and [`Ask::Commit`].
    Done,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Step<'m> {
    /// Read exactly so many bytes, at most [`REQUEST_LEN`](super::REQUEST_LEN).
    Read(usize),
    /// Send this.
    Send(Message<'m>),
    /// Ask the storage.
    Ask(Ask<'m>),
    /// Move the bytes of the file.
    Body(Body),
    /// It is over; close the connection.
    End(End),
}

/// A question to the storage; [`Storage`](super::Storage) says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Ask<'m> {
    /// How large is this file?
    Open(&'m Name),
    /// May this file be made, and how much of it is there?
    Create {
        /// Its name.
        name: &'m Name,
        /// What is there of an earlier attempt stays.
        keep: bool,
    },
    /// What is the hash of its first bytes?
    Hash(u64),
    /// Is there room?
    Reserve {
        /// So many bytes stay.
        start: u64,
        /// So many there will be.
        size: u64,
    },
    /// Make it visible.
    Commit,
}

/// The bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Body {
    /// From the storage to the peer.
    Out {
        /// The first byte.
        start: u64,
        /// The size of the file: the byte after the last.
        size: u64,
    },
    /// From the peer to the storage.
    In {
        /// The first byte.
        start: u64,
        /// The size of the file: the byte after the last.
        size: u64,
    },
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum End {
    /// Everything was moved; the receiver has committed it.
    Done {
        /// The first byte that was moved: not 0 if it was resumed.
        start: u64,
        /// The size of the file.
        size: u64,
    },
    /// Nothing was moved, the other side has exactly this file.
    Already {
        /// The size of the file.
        size: u64,
    },
    /// The server refused it.
    Refused(Refusal),
    /// The client went without taking the file: it has no room.
    Stopped,
    /// The storage on our side failed.
    Broken(Refusal),
    /// The client asked whether the server knows ranges, and it does.
    Ranges,
    /// The server does not know ranges; without them it may work.
    NoRanges,
    /// The stream ended too early.
    Closed,
    /// The peer said something that the protocol does not know.
    ProtocolError,
}

/// An answer to another question is the driver's mistake, reported as a failure.
pub(super) fn refusal(answer: Result<Value, Refusal>) -> Refusal {
    answer.err().unwrap_or(Refusal::Failed)
}
