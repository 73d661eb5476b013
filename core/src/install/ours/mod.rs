//! The lines that only our own peers understand, on the control connection.
//!
//! Each is `PIMAN/1`, a verb, and fields `key=value` in any order; unknown keys are passed
//! over, so that fields can be added. To an old peer, and to a peer of another version,
//! such a line is noise. What was added counts as a revision, which both sides name
//! (`rev=`; nothing is 0): they need not be of the same, and no field but those of revision 0
//! has to be there.
//!
//! | line | from | says |
//! |---|---|---|
//! | `hello serial= mac= model= agent= disk= root= card= paths=` | Pi | who it is and what it can do, before its first report |
//! | ... `rev= cid= installation= can=` | | since revision 1: what the card calls itself, which installation it holds, what else the agent can do (`early`: begin with an image that is still being made, [`Next`](super::table::Next)) |
//! | `hello rev= seconds= nanos=` | piman | the answer to a greeting with `can=answer`: it understands these lines; and the time in UTC, where the Pi should get it |
//! | ... `found= print=` | | since revision 2: what is on its disk, and the fingerprint of that |
//! | `disk text=…` | Pi | since revision 2: what is on its disk, for people; the text goes to the end of the line |
//! | `progress stage= done= total=` | Pi | how far it is, in bytes (0 of 0: not counted) |
//! | `committed id=` | Pi | the proof is on the card: this image is installed |
//! | ... `installation=` | | since revision 1: by which installation |
//! | `failed stage= text=…` | Pi | what went wrong and what to do; the text goes to the end of the line |
//! | `offer id= bytes= rootfs= fetch= table= table-bytes= chunk-bytes=` | piman | what to install, after `format` in the same block |
//! | ... `rev= sums= manifest-bytes= unpacked= entries= counter= installation=` | | since revision 1: chunk hashes and signature on the fetch port, sizes, against rollback, how this installation is called |
//! | ... `erase=` | | since revision 2: the fingerprint of what is to be erased; without it nobody's data is |
//! | ... `personal= personal-bytes= boot-bytes=` | | since revision 2: what makes the card this Pi's own ([`personal`](super::personal)); the size of a boot partition that is filled |
//! | `personal personal= personal-bytes= fetch= installation=` | piman | after `boot` in the same block: do this to the card before |
//! | `wait seconds= percent=` | piman | in place of `format`: not now, ask again |
//! | ... `text=…` | | since revision 2: why, and the command that decides; to the end of the line |
//! | ... `never=1` | | since revision 2: what there is will never have room on this disk: an agent that can ends |

mod clock;
mod found;
mod hello;
mod offer;
mod personal;

use core::fmt;
use core::str;

use crate::hash::Hash;
use crate::text::{self, Sink, ToText};

pub use clock::Clock;
pub use found::{Fingerprint, Found};
pub use hello::{Can, Hello, Paths};
pub use offer::{ImageOffer, More, Offer};
pub use personal::{BootPersonal, Personal};

/// The revision of our lines that this code speaks.
pub const REVISION: u16 = 2;

/// What every line of ours begins with; the number is the version.
pub(crate) const MARK: &str = "PIMAN/1";

/// The longest text or name in a line of ours, in bytes.
pub const TEXT_MAX: usize = 400;

/// The longest value of a field that is a name, in bytes.
const NAME_MAX: usize = 64;

/// The verb and the fields of a line of ours; `None` if it is not one.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = text::after(text::after(line.trim_ascii(), MARK.as_bytes())?, b" ")?;
    let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
    rest.split_at_checked(end)
}

pub(super) fn field<'a>(fields: &'a [u8], key: &str) -> Option<&'a [u8]> {
    fields
        .split(u8::is_ascii_whitespace)
        .find_map(|f| text::after(text::after(f, key.as_bytes())?, b"="))
        .filter(|v| !matches!(*v, b"" | b"-"))
}

/// A value that people will see: printable ASCII without white space, of bounded length.
fn name<'a>(fields: &'a [u8], key: &str) -> Option<&'a str> {
    let name = field(fields, key).filter(|v| v.len() <= NAME_MAX && v.iter().all(u8::is_ascii_graphic))?;
    str::from_utf8(name).ok()
}

pub(super) fn number<T: Number>(fields: &[u8], key: &str) -> Option<T> {
    T::field(fields, key)
}

/// What a field can be a number of.
pub(super) trait Number: Sized {
    /// `None` if it is no number, or too large.
    fn field(fields: &[u8], key: &str) -> Option<Self>;
}

impl Number for u64 {
    fn field(fields: &[u8], key: &str) -> Option<Self> {
        text::parse(field(fields, key)?)
    }
}

macro_rules! numbers {
    ($($type:ident)*) => {
        $(impl Number for $type {
            #[inline]
            fn field(fields: &[u8], key: &str) -> Option<Self> {
                // It is at most the largest of its type.
                up_to(fields, key, Self::MAX.into()).map(|n| n as Self)
            }
        })*
    };
}

numbers!(u8 u16 u32);

/// One for all types of smaller numbers.
fn up_to(fields: &[u8], key: &str, max: u32) -> Option<u32> {
    u64::field(fields, key)?.try_into().ok().filter(|n| *n <= max)
}

fn hash(fields: &[u8], key: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    hash.read(fields, key).then_some(hash)
}

impl Hash {
    /// Reads a field into it, where it stays; `false` if it is missing or no hash.
    fn read(&mut self, fields: &[u8], key: &str) -> bool {
        field(fields, key).is_some_and(|digits| self.read_hex(digits))
    }
}

/// Writes the key, as ` key=`, and a number.
pub(super) fn put(to: &mut impl Sink, key: &str, number: u64) {
    to.text(key);
    text::number(to, number, 0)
}

/// A field that is exactly 16 hexadecimal digits.
fn hex_field(fields: &[u8], key: &str) -> Option<u64> {
    hex16(field(fields, key)?)
}

/// Reads exactly 16 hexadecimal digits.
fn hex16(digits: &[u8]) -> Option<u64> {
    let mut bytes = [0; 8];
    text::read_hex(&mut bytes, digits).then_some(u64::from_be_bytes(bytes))
}

/// How piman calls one installation of one Pi, so that its end is known whatever happens on
/// the way: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Installation(pub u64);

impl Installation {
    /// Reads exactly 16 hexadecimal digits; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex16(text.as_bytes()).map(Self)
    }

    fn field(fields: &[u8]) -> Option<Self> {
        hex_field(fields, "installation").map(Self)
    }
}

impl ToText for Installation {
    fn write_text(&self, to: &mut impl Sink) {
        text::hex(to, &self.0.to_be_bytes())
    }
}

/// The 16 digits.
impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

/// Writes ` installation=` and its digits, if there is one.
fn put_installation(to: &mut impl Sink, installation: Option<Installation>) {
    let Some(installation) = installation else { return };
    to.text(" installation=");
    installation.write_text(to)
}

/// Writes the key, as ` key=`, and a text as its value: `-` for nothing, `_` for white space, at most
/// so many characters.
fn put_name(to: &mut impl Sink, key: &str, text: Option<&str>, length: usize) {
    to.text(key);
    let text = text.unwrap_or_default().as_bytes().trim_ascii();
    if text.is_empty() {
        return to.byte(b'-');
    }
    // Each character by its first byte.
    for byte in text.iter().filter(|b| *b & 0xC0 != 0x80).take(length) {
        to.byte(match *byte {
            b if b.is_ascii_whitespace() => b'_',
            b if b.is_ascii_graphic() => b,
            _ => b'?',
        });
    }
}

/// The fields before ` text=`, and what follows it to the end of the line.
pub(super) fn split_text(fields: &[u8]) -> (&[u8], Option<&[u8]>) {
    const KEY: &[u8] = b" text=";
    let at = fields.windows(KEY.len()).position(|part| part == KEY).unwrap_or(fields.len());
    let (before, rest) = fields.split_at_checked(at).unwrap_or((fields, b""));
    (before, text::after(rest, KEY))
}

/// Writes `text` on one line, at most [`TEXT_MAX`] bytes of it.
pub(super) fn put_text(to: &mut impl Sink, text: &str) {
    let (mut rest, mut room) = (text.trim_ascii(), TEXT_MAX);
    while let Some(first) = rest.as_bytes().first() {
        // The first byte of a character says how long it is: none is cut at the end.
        let length = [1, 1, 2, 3, 4].get(first.leading_ones() as usize).unwrap_or(&1);
        let (Some((character, after)), true) = (rest.split_at_checked(*length), *length <= room) else {
            break;
        };
        // Control characters are one byte, or two from 0xC2 0x80 to 0xC2 0x9F.
        let is_control = first.is_ascii_control() || character.as_bytes() < &[0xC2, 0xA0] && *length == 2;
        to.text(if is_control { " " } else { character });
        (rest, room) = (after, room - length);
    }
}

/// The parts of an installation, as events and progress name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Stage {
    /// Finding and checking the disk.
    Disk,
    /// Waiting until piman has made the image; counted in per cent.
    Prepare,
    /// The partition table and the boot partition.
    Partition,
    /// Making the root filesystem.
    Filesystem,
    /// Fetching, and extracting or writing at the same time.
    Transfer,
    /// Making the card this Pi's own.
    Personalise,
    /// Bringing everything to the medium.
    Sync,
    /// Writing the proof.
    Commit,
    /// Mounting the root filesystem.
    Mount,
    /// Handing over to the installed system.
    Boot,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Self; 10] = [
        Self::Disk,
        Self::Prepare,
        Self::Partition,
        Self::Filesystem,
        Self::Transfer,
        Self::Personalise,
        Self::Sync,
        Self::Commit,
        Self::Mount,
        Self::Boot,
    ];

    /// The word on the wire and in tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Prepare => "prepare",
            Self::Partition => "partition",
            Self::Filesystem => "filesystem",
            Self::Transfer => "transfer",
            Self::Personalise => "personalise",
            Self::Sync => "sync",
            Self::Commit => "commit",
            Self::Mount => "mount",
            Self::Boot => "boot",
        }
    }

    fn parse(fields: &[u8]) -> Option<Self> {
        let word = field(fields, "stage")?;
        Self::ALL.into_iter().find(|s| s.word().as_bytes() == word)
    }
}

/// What our agent says beside the old reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Notice<'a> {
    /// Who it is.
    Hello(Hello<'a>),
    /// What is on its disk.
    Disk {
        /// What was found, or why it cannot be read, for people.
        text: &'a str,
    },
    /// How far it is.
    Progress {
        /// What it is doing.
        stage: Stage,
        /// Bytes done.
        done: u64,
        /// Bytes to do; 0 if unknown.
        total: u64,
    },
    /// The proof is on the card.
    Committed {
        /// The image that is installed.
        id: Hash,
        /// By which installation, if piman gave it a number.
        installation: Option<Installation>,
    },
    /// The installation failed; the agent says whether it tries again in the text.
    Failed {
        /// What it was doing.
        stage: Stage,
        /// What happened and what to do, for people.
        text: &'a str,
    },
}

impl<'a> Notice<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        // Whatever is in a line, it is a text.
        str::from_utf8(line).ok()?;
        let (verb, fields) = split(line)?;
        match verb {
            b"hello" => Some(Self::Hello(Hello::parse(fields))),
            b"disk" => Some(Self::Disk { text: str::from_utf8(split_text(fields).1?).ok()? }),
            b"progress" => Some(Self::Progress {
                stage: Stage::parse(fields)?,
                done: number(fields, "done")?,
                total: number(fields, "total")?,
            }),
            b"committed" => {
                let installation = Installation::field(fields);
                Some(Self::Committed { id: hash(fields, "id")?, installation })
            }
            b"failed" => {
                let (fields, text) = split_text(fields);
                Some(Self::Failed { stage: Stage::parse(fields)?, text: str::from_utf8(text?).ok()? })
            }
            _ => None,
        }
    }
}

impl ToText for Notice<'_> {
    fn write_text(&self, to: &mut impl Sink) {
        to.text(MARK);
        match self {
            Self::Hello(hello) => hello.write_text(to),
            Self::Disk { text } => {
                to.text(" disk text=");
                put_text(to, text)
            }
            Self::Progress { stage, done, total } => {
                to.text(" progress stage=");
                to.text(stage.word());
                put(to, " done=", *done);
                put(to, " total=", *total)
            }
            Self::Committed { id, installation } => {
                to.text(" committed id=");
                id.write_text(to);
                put_installation(to, *installation)
            }
            Self::Failed { stage, text } => {
                to.text(" failed stage=");
                to.text(stage.word());
                to.text(" text=");
                put_text(to, text)
            }
        }
    }
}

/// The line, without its end.
impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

#[cfg(test)]
mod tests;
