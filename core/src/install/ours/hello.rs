//! Who a Pi is, what it can do and what it has: the first of our lines on a connection.

use core::fmt::{self, Write as _};

use super::{Installation, MARK, Name, field, hash, name, number};
use crate::hash::Hash;

/// By which ways an agent can install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Paths {
    /// The archive from the rootfs port, extracted on the Pi.
    pub stream: bool,
    /// The image in chunks, written at its place.
    pub image: bool,
}

impl Paths {
    fn parse(text: &str) -> Self {
        Self { stream: has(text, "stream"), image: has(text, "image") }
    }

    const fn word(self) -> &'static str {
        match (self.stream, self.image) {
            (true, true) => "stream+image",
            (true, false) => "stream",
            (false, true) => "image",
            (false, false) => "-",
        }
    }
}

/// What an agent can do beyond the first revision of our lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Can {
    /// It fetches archives in ranges, checks each chunk and goes on where it was.
    pub resume: bool,
    /// It has a public key, and installs nothing that is not signed for it.
    pub signed: bool,
}

impl Can {
    fn parse(text: &str) -> Self {
        Self { resume: has(text, "resume"), signed: has(text, "signed") }
    }

    const fn word(self) -> Option<&'static str> {
        match (self.resume, self.signed) {
            (true, true) => Some("resume+signed"),
            (true, false) => Some("resume"),
            (false, true) => Some("signed"),
            (false, false) => None,
        }
    }
}

fn has(words: &str, word: &str) -> bool {
    words.split('+').any(|w| w == word)
}

/// The beginning of an archive that an agent got and checked on an earlier connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Have {
    /// Of which archive.
    pub id: Hash,
    /// How much of it, in bytes.
    pub bytes: u64,
}

/// Who a Pi is and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello<'a> {
    /// The revision of our lines that the agent speaks, [`REVISION`](super::REVISION) or 0.
    pub revision: u16,
    /// The Pi's serial number, as its device tree has it.
    pub serial: Option<&'a str>,
    /// The hardware address of the interface that reaches piman, `b8:27:eb:00:00:01`.
    pub mac: Option<&'a str>,
    /// The board, white space as `_`.
    pub model: Option<&'a str>,
    /// The agent's version.
    pub agent: Option<&'a str>,
    /// The size of the card, in bytes; 0 if unknown.
    pub disk_bytes: u64,
    /// The room for the root filesystem with this agent's layout, in bytes; 0 if unknown.
    pub root_bytes: u64,
    /// What the card calls itself: its CID, or the disk's serial number.
    pub card_id: Option<&'a str>,
    /// The image that is installed on the card.
    pub card: Option<Hash>,
    /// By which installation, if piman gave that one a number.
    pub installation: Option<Installation>,
    /// What it has of an archive already.
    pub have: Option<Have>,
    /// By which ways it can install.
    pub paths: Paths,
    /// What else it can do.
    pub can: Can,
}

impl<'a> Hello<'a> {
    pub(super) fn parse(fields: &'a str) -> Self {
        let have = || Some(Have { id: hash(fields, "have")?, bytes: number(fields, "have-bytes")? });
        Self {
            revision: number(fields, "rev").unwrap_or(0),
            serial: name(fields, "serial"),
            mac: name(fields, "mac"),
            model: name(fields, "model"),
            agent: name(fields, "agent"),
            disk_bytes: number(fields, "disk").unwrap_or(0),
            root_bytes: number(fields, "root").unwrap_or(0),
            card_id: name(fields, "cid"),
            card: hash(fields, "card"),
            installation: Installation::field(fields),
            have: have(),
            paths: field(fields, "paths").map(Paths::parse).unwrap_or_default(),
            can: field(fields, "can").map(Can::parse).unwrap_or_default(),
        }
    }
}

/// What revision 0 knows comes first and always; what is newer follows if there is any.
impl fmt::Display for Hello<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, mac, model, agent, disk_bytes, root_bytes, card, paths, .. } = *self;
        write!(f, "{MARK} hello serial={} mac={} ", Name::upto(serial, 40), Name::upto(mac, 20))?;
        write!(f, "model={} agent={} ", Name::upto(model, 64), Name::upto(agent, 24))?;
        write!(f, "disk={disk_bytes} root={root_bytes} card=")?;
        match card {
            Some(id) => write!(f, "{id}")?,
            None => f.write_char('-')?,
        }
        write!(f, " paths={}", paths.word())?;
        let Self { revision, card_id, installation, have, can, .. } = *self;
        if revision > 0 {
            write!(f, " rev={revision}")?;
        }
        if card_id.is_some() {
            write!(f, " cid={}", Name::upto(card_id, 40))?;
        }
        if let Some(installation) = installation {
            write!(f, " installation={installation}")?;
        }
        if let Some(Have { id, bytes }) = have {
            write!(f, " have={id} have-bytes={bytes}")?;
        }
        can.word().map_or(Ok(()), |word| write!(f, " can={word}"))
    }
}
