//! The messages of a transfer as bytes.

use super::name::{BadName, NAME_MAX, Name};
use crate::hash::Hash;

/// The length of a request in bytes, and of the longest message.
pub const REQUEST_LEN: usize = 1 + NAME_MAX;

/// A name that no file can have, since it begins with a dot. To download it is to ask whether the server
/// knows ranges. An old server has no such file and says `F` and 0, which it can; a server that knows them says
/// `F` and [`RANGES`].
pub const PROBE: &[u8] = b".piman-ranges";

/// Where the size would be in the answer to [`PROBE`]: the server knows the operation `R` in its first form.
pub const RANGES: u64 = u64::from_be_bytes(*b"ranges-1");

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Operation {
    /// `D`: get a file from its first byte.
    Download,
    /// `U`: put a file from its first byte.
    Upload,
    /// `R`, ours: get or put what is missing of a file.
    Ranges,
    /// `D` with the name [`PROBE`], ours: does the server know `R`?
    Probe,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Download, Self::Upload, Self::Ranges];

    const fn byte(self) -> u8 {
        match self {
            Self::Download | Self::Probe => b'D',
            Self::Upload => b'U',
            Self::Ranges => b'R',
        }
    }
}

/// A request off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Request {
    /// What is wanted.
    pub operation: Operation,
    /// Of which file.
    pub name: Result<Name, BadName>,
}

impl Request {
    /// Reads the 256 bytes; `None` if the operation is not known.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (first, name) = bytes.split_first()?;
        let mut operation = Operation::ALL.into_iter().find(|o| o.byte() == *first)?;
        let probes = |name: &[u8]| name.strip_prefix(PROBE).is_some_and(|rest| rest.iter().all(|b| *b == 0));
        if operation == Operation::Download && probes(name) {
            operation = Operation::Probe;
        }
        Some(Self { operation, name: Name::parse(name) })
    }
}

/// Why it is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such file, someone else is transferring it, or its name is not allowed.
    Refused,
    /// There is such a file already.
    Exists,
    /// Not enough space.
    NoSpace,
    /// Something is broken there.
    Failed,
}

/// The byte that says yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Status {
    /// `T`.
    Go,
    /// `F`.
    No,
    /// `E`.
    Error,
    /// `S`, after `R` only: not enough space.
    Space,
    /// `R`: the server knows ranges.
    Ranges,
}

impl Status {
    const ALL: [Self; 5] = [Self::Go, Self::No, Self::Error, Self::Space, Self::Ranges];

    const fn byte(self) -> u8 {
        match self {
            Self::Go => b'T',
            Self::No => b'F',
            Self::Error => b'E',
            Self::Space => b'S',
            Self::Ranges => b'R',
        }
    }

    /// Reads one byte; `None` for anything else.
    #[must_use]
    pub fn parse(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.byte() == byte)
    }

    /// What a peer that knows ranges is told.
    pub(super) const fn refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Refused | Refusal::Exists => Self::No,
            Refusal::NoSpace => Self::Space,
            Refusal::Failed => Self::Error,
        }
    }

    /// What an old peer is told: it knows no `S`.
    pub(super) const fn old(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSpace => Self::No,
            other => Self::refusal(other),
        }
    }
}

/// A message of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Message<'m> {
    /// The client's first 256 bytes.
    Request(Operation, &'m Name),
    /// The same, for the name [`PROBE`].
    Probe,
    /// One byte.
    Status(Status),
    /// The server's 9 bytes before a download: whether, and how large.
    Offer(Status, u64),
    /// The client's 8 bytes before an upload.
    Size(u64),
    /// Ranges, download: the client has so many bytes with this hash. 41 bytes, `D` first.
    Have(u64, Hash),
    /// Ranges, upload: the client's file has so many bytes. 9 bytes, `U` first.
    Want(u64),
    /// Ranges, download: whether, the size, and from which byte it goes on. 17 bytes.
    From(Status, u64, u64),
    /// Ranges, upload: whether, and what the server has of it. 41 bytes.
    Partial(Status, u64, Hash),
}

impl Message<'_> {
    /// Writes the message into `buf` and returns what is to be sent.
    pub fn encode<'b>(&self, buf: &'b mut [u8; REQUEST_LEN]) -> &'b [u8] {
        buf.fill(0);
        let mut out = Out { buf, len: 0 };
        match self {
            Self::Request(operation, name) => out.request(*operation, name.as_str().as_bytes()),
            Self::Probe => out.request(Operation::Probe, PROBE),
            Self::Status(status) => out.put(&[status.byte()]),
            Self::Size(size) => out.put(&size.to_be_bytes()),
            Self::Offer(status, size) => out.number(status.byte(), *size, &[]),
            Self::Have(have, hash) => out.number(b'D', *have, &hash.0),
            Self::Want(size) => out.number(b'U', *size, &[]),
            Self::From(status, size, start) => out.number(status.byte(), *size, &start.to_be_bytes()),
            Self::Partial(status, have, hash) => out.number(status.byte(), *have, &hash.0),
        }
        let Out { buf, len } = out;
        buf.get(..len).unwrap_or_default()
    }
}

struct Out<'b> {
    buf: &'b mut [u8; REQUEST_LEN],
    len: usize,
}

impl Out<'_> {
    /// A byte, a name, and zeros to the end.
    fn request(&mut self, operation: Operation, name: &[u8]) {
        self.put(&[operation.byte()]);
        self.put(name);
        self.len = REQUEST_LEN;
    }

    /// A byte, a number, and what follows it.
    fn number(&mut self, first: u8, number: u64, rest: &[u8]) {
        self.put(&[first]);
        self.put(&number.to_be_bytes());
        self.put(rest);
    }

    fn put(&mut self, bytes: &[u8]) {
        for (to, from) in self.buf.iter_mut().skip(self.len).zip(bytes) {
            *to = *from;
        }
        self.len += bytes.len();
    }
}

/// The number at `at`, or `None` if the message is shorter.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The hash at `at`, or `None` if the message is shorter.
pub(super) fn hash(bytes: &[u8], at: usize) -> Option<Hash> {
    Some(Hash(bytes.get(at..at + 32)?.try_into().ok()?))
}
