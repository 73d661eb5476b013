//! The lines that only our own peers understand, on the control connection.
//!
//! Each is `PIMAN/1`, a verb, and fields `key=value` in any order; unknown keys are passed
//! over, so that fields can be added. To an old peer, and to a peer of another version,
//! such a line is noise.
//!
//! | line | from | says |
//! |---|---|---|
//! | `hello serial= mac= model= agent= disk= root= card= paths=` | Pi | who it is and what it can do, before its first report |
//! | `progress stage= done= total=` | Pi | how far it is, in bytes (0 of 0: not counted) |
//! | `committed id=` | Pi | the proof is on the card: this image is installed |
//! | `failed stage= text=…` | Pi | what went wrong and what to do; the text goes to the end of the line |
//! | `offer id= bytes= rootfs= fetch= table= table-bytes= chunk-bytes=` | piman | what to install, after `format` in the same block |
//! | `wait seconds= percent=` | piman | in place of `format`: the image is being prepared |

use core::fmt::{self, Write as _};
use core::str;

use crate::hash::Hash;

/// What every line of ours begins with; the number is the version.
pub(super) const MARK: &str = "PIMAN/1";

/// The longest text or name in a line of ours, in bytes.
pub const TEXT_MAX: usize = 400;

/// The longest value of a field that is a name, in bytes.
const NAME_MAX: usize = 64;

/// The verb and the fields of a line of ours; `None` if it is not one.
pub(super) fn split(line: &[u8]) -> Option<(&str, &str)> {
    let line = str::from_utf8(line).ok()?.trim_ascii();
    let rest = line.strip_prefix(MARK)?.strip_prefix(' ')?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

fn field<'a>(fields: &'a str, key: &str) -> Option<&'a str> {
    fields
        .split_ascii_whitespace()
        .find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
        .filter(|v| !v.is_empty() && *v != "-")
}

/// A value that people will see: printable ASCII without white space, of bounded length.
fn name<'a>(fields: &'a str, key: &str) -> Option<&'a str> {
    field(fields, key).filter(|v| v.len() <= NAME_MAX && v.bytes().all(|b| b.is_ascii_graphic()))
}

pub(super) fn number<T: str::FromStr>(fields: &str, key: &str) -> Option<T> {
    field(fields, key)?.parse().ok()
}

fn hash(fields: &str, key: &str) -> Option<Hash> {
    Hash::parse(field(fields, key)?)
}

/// Writes `text` as a value of one field: `-` for nothing, `_` for white space.
struct Name<'a>(Option<&'a str>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(str::trim) {
            None | Some("") => f.write_char('-'),
            Some(text) => text.chars().take(NAME_MAX).try_for_each(|c| {
                f.write_char(match c {
                    c if c.is_whitespace() => '_',
                    c if c.is_ascii_graphic() => c,
                    _ => '?',
                })
            }),
        }
    }
}

/// Writes `text` on one line, at most [`TEXT_MAX`] bytes of it.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = TEXT_MAX;
        for c in self.0.trim().chars() {
            let c = if c.is_control() { ' ' } else { c };
            let Some(left) = room.checked_sub(c.len_utf8()) else { break };
            room = left;
            f.write_char(c)?;
        }
        Ok(())
    }
}

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
        let has = |word| text.split('+').any(|w| w == word);
        Self { stream: has("stream"), image: has("image") }
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

/// Who a Pi is and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello<'a> {
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
    /// The image that is installed on the card.
    pub card: Option<Hash>,
    /// What it can do.
    pub paths: Paths,
}

impl<'a> Hello<'a> {
    fn parse(fields: &'a str) -> Self {
        Self {
            serial: name(fields, "serial"),
            mac: name(fields, "mac"),
            model: name(fields, "model"),
            agent: name(fields, "agent"),
            disk_bytes: number(fields, "disk").unwrap_or(0),
            root_bytes: number(fields, "root").unwrap_or(0),
            card: hash(fields, "card"),
            paths: field(fields, "paths").map(Paths::parse).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Hello<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, mac, model, agent, disk_bytes, root_bytes, card, paths } = *self;
        write!(f, "{MARK} hello serial={} mac={} model={} ", Name(serial), Name(mac), Name(model))?;
        write!(f, "agent={} disk={disk_bytes} root={root_bytes} card=", Name(agent))?;
        match card {
            Some(id) => write!(f, "{id}")?,
            None => f.write_char('-')?,
        }
        write!(f, " paths={}", paths.word())
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
    pub const ALL: [Self; 9] = [
        Self::Disk,
        Self::Prepare,
        Self::Partition,
        Self::Filesystem,
        Self::Transfer,
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
            Self::Sync => "sync",
            Self::Commit => "commit",
            Self::Mount => "mount",
            Self::Boot => "boot",
        }
    }

    fn parse(fields: &str) -> Option<Self> {
        let word = field(fields, "stage")?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// What our agent says beside the old reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// Who it is.
    Hello(Hello<'a>),
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
        let (verb, fields) = split(line)?;
        match verb {
            "hello" => Some(Self::Hello(Hello::parse(fields))),
            "progress" => Some(Self::Progress {
                stage: Stage::parse(fields)?,
                done: number(fields, "done")?,
                total: number(fields, "total")?,
            }),
            "committed" => Some(Self::Committed { id: hash(fields, "id")? }),
            "failed" => {
                let (fields, text) = fields.split_once(" text=")?;
                Some(Self::Failed { stage: Stage::parse(fields)?, text })
            }
            _ => None,
        }
    }
}

/// The line, without its end.
impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(hello) => hello.fmt(f),
            Self::Progress { stage, done, total } => {
                write!(f, "{MARK} progress stage={} done={done} total={total}", stage.word())
            }
            Self::Committed { id } => write!(f, "{MARK} committed id={id}"),
            Self::Failed { stage, text } => {
                write!(f, "{MARK} failed stage={} text={}", stage.word(), Text(text))
            }
        }
    }
}

/// What to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Offer {
    /// BLAKE3 of the whole archive: the image's identity, by whichever path it comes.
    pub id: Hash,
    /// The archive's size, in bytes.
    pub bytes: u64,
    /// The port that sends the whole archive.
    pub rootfs_port: u16,
    /// The port that sends ranges.
    pub fetch_port: u16,
    /// The same as a chunked image for this card; `None`: by stream only.
    pub image: Option<ImageOffer>,
}

/// Where the chunk table of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ImageOffer {
    /// BLAKE3 of the chunk table, which names the image when fetching.
    pub table: Hash,
    /// The size of the table, in bytes.
    pub table_bytes: u32,
    /// The size of all chunks as they are stored, in bytes.
    pub chunk_bytes: u64,
}

impl Offer {
    pub(super) fn parse(fields: &str) -> Option<Self> {
        let image = || {
            Some(ImageOffer {
                table: hash(fields, "table")?,
                table_bytes: number(fields, "table-bytes")?,
                chunk_bytes: number(fields, "chunk-bytes")?,
            })
        };
        Some(Self {
            id: hash(fields, "id")?,
            bytes: number(fields, "bytes")?,
            rootfs_port: number(fields, "rootfs")?,
            fetch_port: number(fields, "fetch")?,
            image: image(),
        })
    }
}

/// The line, without its end.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, bytes, rootfs_port, fetch_port, image } = self;
        write!(f, "{MARK} offer id={id} bytes={bytes} rootfs={rootfs_port} fetch={fetch_port}")?;
        if let Some(ImageOffer { table, table_bytes, chunk_bytes }) = image {
            write!(f, " table={table} table-bytes={table_bytes} chunk-bytes={chunk_bytes}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Report;
    use std::string::{String, ToString};

    #[test]
    fn notices_and_back() {
        let hello = Hello {
            serial: Some("10000000abcdef01"),
            mac: Some("b8:27:eb:00:00:01"),
            model: Some("Raspberry_Pi_4"),
            agent: Some("0.1.0"),
            disk_bytes: 31_914_983_424,
            root_bytes: 31_864_651_776,
            card: Some(Hash([0xab; 32])),
            paths: Paths { stream: true, image: true },
        };
        for notice in [
            Notice::Hello(hello),
            Notice::Hello(Hello::default()),
            Notice::Progress { stage: Stage::Transfer, done: 7, total: u64::MAX },
            Notice::Committed { id: Hash([1; 32]) },
            Notice::Failed { stage: Stage::Disk, text: "no card: put one in, text=really" },
        ] {
            let line = notice.to_string();
            assert!(line.len() < crate::line::LINE_MAX);
            assert_eq!(Report::parse(line.as_bytes()), Report::Ours(notice), "{line}");
        }
    }

    #[test]
    fn what_people_see_is_one_harmless_line() {
        let hello = Hello { model: Some(" Raspberry Pi\n\u{7}4 é"), serial: Some(""), ..Hello::default() };
        let line = hello.to_string();
        assert!(line.contains("model=Raspberry_Pi_?4_? ") && line.contains("serial=- "), "{line}");
        let long = "é\n".repeat(1000);
        let line = Notice::Failed { stage: Stage::Sync, text: &long }.to_string();
        assert!(line.len() < TEXT_MAX + 64 && !line.contains('\n'));
    }

    #[test]
    fn another_version_is_noise() {
        for line in ["PIMAN/2 hello", "PIMAN/1", "PIMAN/1 dance", "PIMAN/1hello", "PIMAN/1 committed id=12"] {
            assert_eq!(Report::parse(line.as_bytes()), Report::Noise(line.as_bytes()));
        }
        let long = String::from("PIMAN/1 hello serial=") + &"x".repeat(65);
        assert_eq!(Report::parse(long.as_bytes()), Report::Ours(Notice::Hello(Hello::default())));
    }

    #[test]
    fn offers_and_back() {
        let mut offer =
            Offer { id: Hash([9; 32]), bytes: 651 << 20, rootfs_port: 4444, fetch_port: 4445, image: None };
        for image in
            [None, Some(ImageOffer { table: Hash([7; 32]), table_bytes: 28_000, chunk_bytes: 1 << 33 })]
        {
            offer.image = image;
            let line = offer.to_string();
            let (verb, fields) = split(line.as_bytes()).unwrap();
            assert_eq!((verb, Offer::parse(fields)), ("offer", Some(offer)));
        }
    }
}
