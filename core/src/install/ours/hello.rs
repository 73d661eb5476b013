//! Who a Pi is, what it can do and what it has: the first of our lines on a connection.

use core::fmt;

use super::{
    Fingerprint, Found, Installation, MARK, field, hash, name, number, put, put_installation, put_name,
};
use crate::hash::Hash;
use crate::text::{Sink, ToText};

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
    fn parse(text: &[u8]) -> Self {
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
    /// It has a public key, and installs nothing that is not signed for it.
    pub signed: bool,
    /// It waits a moment for an answer to this line before it reports: an old server, which does not
    /// answer, then reads the report by itself.
    pub answer: bool,
    /// It can write the image of a whole disk, with a partition table of its own.
    pub disk: bool,
    /// It can make a card one Pi's own, as a server says.
    pub personal: bool,
    /// It can make the image of a root filesystem as large as the partition.
    pub grow: bool,
    /// It can begin with an image that is still being made.
    pub early: bool,
}

/// The words with `+` between them.
impl Can {
    fn parse(text: &[u8]) -> Self {
        let has = |word| has(text, word);
        Self {
            signed: has("signed"),
            answer: has("answer"),
            disk: has("disk"),
            grow: has("grow"),
            personal: has("personal"),
            early: has("early"),
        }
    }

    fn put(self, to: &mut impl Sink, key: &str) {
        let words = [
            (self.signed, "signed"),
            (self.answer, "answer"),
            (self.disk, "disk"),
            (self.grow, "grow"),
            (self.personal, "personal"),
            (self.early, "early"),
        ];
        let mut before = key;
        for (_, word) in words.iter().filter(|(can, _)| *can) {
            to.text(before);
            to.text(word);
            before = "+";
        }
    }
}

fn has(words: &[u8], word: &str) -> bool {
    words.split(|b| *b == b'+').any(|w| w == word.as_bytes())
}

/// Who a Pi is and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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
    /// By which ways it can install.
    pub paths: Paths,
    /// What else it can do.
    pub can: Can,
    /// What is on its disk; `None` from an agent that cannot say.
    pub found: Option<Found>,
    /// The fingerprint of that.
    pub print: Option<Fingerprint>,
    /// What made the card this Pi's own, if anything did.
    pub personal: Option<Hash>,
}

impl<'a> Hello<'a> {
    pub(super) fn parse(fields: &'a [u8]) -> Self {
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
            paths: field(fields, "paths").map(Paths::parse).unwrap_or_default(),
            can: field(fields, "can").map(Can::parse).unwrap_or_default(),
            found: Found::parse(fields),
            print: Fingerprint::field(fields, "print"),
            personal: hash(fields, "personal"),
        }
    }
}

/// What follows the mark. What revision 0 knows comes first and always; what is newer follows if there
/// is any.
impl ToText for Hello<'_> {
    fn write_text(&self, to: &mut impl Sink) {
        to.text(" hello");
        put_name(to, " serial=", self.serial, 40);
        put_name(to, " mac=", self.mac, 20);
        put_name(to, " model=", self.model, 64);
        put_name(to, " agent=", self.agent, 24);
        put(to, " disk=", self.disk_bytes);
        put(to, " root=", self.root_bytes);
        to.text(" card=");
        match &self.card {
            Some(id) => id.write_text(to),
            None => to.byte(b'-'),
        }
        to.text(" paths=");
        to.text(self.paths.word());
        if self.revision > 0 {
            put(to, " rev=", self.revision.into());
        }
        if self.card_id.is_some() {
            put_name(to, " cid=", self.card_id, 40);
        }
        put_installation(to, self.installation);
        self.can.put(to, " can=");
        if let Some(found) = self.found {
            to.text(" found=");
            to.text(found.word());
        }
        Fingerprint::put(to, " print=", self.print);
        if let Some(personal) = &self.personal {
            to.text(" personal=");
            personal.write_text(to);
        }
    }
}

/// The line, without its end.
impl fmt::Display for Hello<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)?;
        self.show(f)
    }
}
