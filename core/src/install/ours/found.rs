//! What an agent found on its disk, and the fingerprint that names it.

use core::fmt;

use super::{field, hex_field, hex16};
use crate::text::{self, Sink, ToText};

/// What is on a disk, as far as it decides whether the disk may be erased. *Cannot be read* is never
/// *nothing there*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Found {
    /// Nothing: no table, no filesystem.
    Blank,
    /// An installation of ours, complete.
    Ours,
    /// An installation of ours that did not end.
    Incomplete,
    /// An installation of ours that was complete, with something wrong now.
    Damaged,
    /// Something else: somebody's data.
    Foreign,
    /// It could not be found out.
    Unreadable,
}

impl Found {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Blank, Self::Ours, Self::Incomplete, Self::Damaged, Self::Foreign, Self::Unreadable];

    /// The word on the wire, in the configuration and in tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Ours => "ours",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Unreadable => "unreadable",
        }
    }

    /// The finding with this word; `None` if there is no such finding.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|found| found.word() == word)
    }

    /// Whether an agent erases it only for an offer that names its fingerprint ([`More::erase`](super::More)), or
    /// because its own operator allows it.
    #[must_use]
    pub const fn asks(self) -> bool {
        matches!(self, Self::Damaged | Self::Foreign | Self::Unreadable)
    }

    /// A word that a newer agent may say counts as foreign: what is not known is not erased.
    pub(super) fn parse(fields: &[u8]) -> Option<Self> {
        let word = field(fields, "found")?;
        Some(Self::ALL.into_iter().find(|found| found.word().as_bytes() == word).unwrap_or(Self::Foreign))
    }
}

/// The word.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A fingerprint of what is on a disk, made by the agent: an order that names it is for this disk with this
/// content and for no other. On the wire 16 hexadecimal digits; 0 is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fingerprint(core::num::NonZeroU64);

impl Fingerprint {
    /// `None` for 0.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Reads exactly 16 hexadecimal digits; anything else, and 0, is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex16(text.as_bytes()).and_then(Self::new)
    }

    pub(super) fn field(fields: &[u8], key: &str) -> Option<Self> {
        hex_field(fields, key).and_then(Self::new)
    }

    /// Writes the key, as ` key=`, and the digits, if there is one.
    pub(super) fn put(to: &mut impl Sink, key: &str, print: Option<Self>) {
        let Some(print) = print else { return };
        to.text(key);
        print.write_text(to)
    }
}

impl ToText for Fingerprint {
    fn write_text(&self, to: &mut impl Sink) {
        text::hex(to, &self.get().to_be_bytes())
    }
}

/// The 16 digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}
