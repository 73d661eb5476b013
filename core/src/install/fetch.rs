//! Ranges on the fetch connection, where our own agents get archives and images.
//!
//! A request is one line, `fetch KIND ID OFFSET LENGTH`; the answer is one line, and after
//! `ok LENGTH` exactly so many bytes. Requests may be sent ahead; they are answered in order,
//! on a connection that stays open until the agent closes it.
//!
//! | answer | means |
//! |---|---|
//! | `ok LENGTH` | the bytes follow |
//! | `wait PLACE` | all slots are taken, so many Pis are first; another answer follows |
//! | `no REASON` | there is no such object or range; asking again does not help |
//!
//! `KIND` is `archive`, `table` or `chunks`, since revision 1 of our lines `sums` and
//! `manifest`, and since revision 2 `personal`; a server that has the newer ones says so in its offer. `next` is for
//! tables that say that they are not whole.

use core::fmt::{self, Display};
use core::str;

use crate::hash::Hash;

/// What a range is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// The archive, as it is stored; its id is its BLAKE3 hash.
    Archive,
    /// The chunk table of an image; its id is its BLAKE3 hash.
    Table,
    /// The chunks of an image as they are stored, one after another; their id is their table's.
    Chunks,
    /// The chunk hashes of an archive ([`sums`](super::sums)); their id is the archive's.
    Sums,
    /// The signed manifest of an image ([`manifest`](super::manifest)); its id is the archive's.
    Manifest,
    /// What makes a card one Pi's own ([`personal`](super::personal)); its id is its BLAKE3 hash.
    Personal,
    /// Which table has more chunks of an image that is being made ([`Next`](super::table::Next)); its id is the table
    /// that is known. It waits until there are more.
    Next,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Archive, Self::Table, Self::Chunks, Self::Sums, Self::Manifest, Self::Personal, Self::Next];

    const fn word(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Table => "table",
            Self::Chunks => "chunks",
            Self::Sums => "sums",
            Self::Manifest => "manifest",
            Self::Personal => "personal",
            Self::Next => "next",
        }
    }
}

/// A range that an agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Request {
    /// Of what.
    pub kind: Kind,
    /// Of which one.
    pub id: Hash,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Request {
    /// Reads one line; `None` for anything that is not exactly a request.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(line).ok()?.trim_ascii_end().split(' ');
        let ("fetch", kind) = (words.next()?, words.next()?) else { return None };
        let request = Self {
            kind: Kind::ALL.into_iter().find(|k| k.word() == kind)?,
            id: Hash::parse(words.next()?)?,
            offset: words.next()?.parse().ok()?,
            length: words.next()?.parse().ok()?,
        };
        request.offset.checked_add(request.length)?;
        words.next().is_none().then_some(request)
    }
}

/// The line, without its end.
impl Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, id, offset, length } = self;
        write!(f, "fetch {} {id} {offset} {length}", kind.word())
    }
}

/// What is answered to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Answer<'a> {
    /// So many bytes follow.
    Ok(u64),
    /// So many others are first; another answer follows.
    Wait(u32),
    /// There is no such thing here.
    No(&'a str),
}

impl<'a> Answer<'a> {
    /// Reads one line; `None` for anything that is not exactly an answer.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (word, rest) = str::from_utf8(line).ok()?.trim_ascii_end().split_once(' ')?;
        match word {
            "ok" => Some(Self::Ok(rest.parse().ok()?)),
            "wait" => Some(Self::Wait(rest.parse().ok()?)),
            "no" => Some(Self::No(rest)),
            _ => None,
        }
    }
}

/// The line, without its end.
impl Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(length) => write!(f, "ok {length}"),
            Self::Wait(place) => write!(f, "wait {place}"),
            Self::No(reason) => write!(f, "no {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn requests_and_back() {
        for kind in Kind::ALL {
            let request = Request { kind, id: Hash([3; 32]), offset: 1 << 40, length: 4096 };
            assert_eq!(Request::parse(request.to_string().as_bytes()), Some(request));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let id = Hash([3; 32]);
        for bad in [
            std::string::String::new(),
            std::format!("fetch table {id} 0"),
            std::format!("fetch table {id} 0 1 2"),
            std::format!("fetch table {id} -1 1"),
            std::format!("fetch table {id} 1 {}", u64::MAX),
            std::format!("fetch ../x {id} 0 1"),
            std::format!("fetch  table {id} 0 1"),
        ] {
            assert_eq!(Request::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn answers_and_back() {
        for answer in
            [Answer::Ok(7), Answer::Wait(3), Answer::No("such image: ask again on the control connection")]
        {
            assert_eq!(Answer::parse(answer.to_string().as_bytes()), Some(answer));
        }
        assert_eq!(Answer::parse(b"ok"), None);
        assert_eq!(Answer::parse(b"ok x"), None);
    }
}
