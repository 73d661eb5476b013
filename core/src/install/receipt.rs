//! The proof of a finished installation: one block, written last.
//!
//! In a root filesystem of our making it is a file. With the image of a whole disk it lies in the gap before the first
//! partition, and names the partitions that the image brought: a card that another program has written since is not
//! taken for ours.

use crate::hash::Hash;
use crate::install::Installation;
#[cfg(feature = "std")]
use crate::install::More;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// The proof's name in the root directory.
pub const NAME: &str = ".piman-proof";

/// The name, in the root directory, of what the server is still to be told of the installation.
pub const UNSAID: &str = ".piman-unsaid";

/// Whether the agent writes what has this name in the root directory: no archive brings it, since it is of one
/// installation.
#[must_use]
pub fn is_own(name: &[u8]) -> bool {
    [NAME, UNSAID].iter().any(|own| own.as_bytes() == name)
}

/// The size of a proof, in bytes: one block, so that it is written at once.
pub const SIZE: usize = 4096;

const HEADING: &str = "piman-proof 1";

/// How an image came to the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Way {
    /// The archive, extracted.
    Archive,
    /// The image, in chunks.
    Image,
}

/// What a finished installation leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Proof {
    /// What was installed: BLAKE3 of the archive.
    pub image: Hash,
    /// How.
    pub path: Way,
    /// By which version of the agent.
    pub agent: String,
    /// When, in seconds since 1970; a small number if the Pi did not know the time.
    pub time: u64,
    /// The number that piman gave this installation; `None` from a server that gives none.
    pub installation: Option<Installation>,
    /// The counter of a signed image; 0: it was not checked who made it.
    pub counter: u64,
    /// What made the card this Pi's own: BLAKE3 of the bundle.
    pub personal: Option<Hash>,
    /// What the image of a whole disk brought; `None`: an image of a root filesystem.
    pub disk: Option<DiskMarks>,
}

/// The partitions that the image of a whole disk brought.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DiskMarks {
    /// The number of the one with the root filesystem; 0: it is not known.
    pub root: u8,
    /// All of them, up to [`PARTS_MAX`].
    #[cfg_attr(feature = "defmt", defmt(Debug2Format))]
    pub parts: Vec<PartMark>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PartMark {
    /// Its number.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// A fingerprint of the kind and the identity of the filesystem in it; 0: none that stays the same.
    pub content: u64,
}

/// The most partitions that a proof names.
pub const PARTS_MAX: usize = 32;

/// How far before the first partition the proof of a whole disk's image may lie, in bytes.
pub const GAP_MAX: u64 = 16 << 20;

impl DiskMarks {
    fn parse(text: &str) -> Option<Self> {
        // How many follow is said, so that a block that was written in part is not taken for a proof.
        let (root, count) = text.lines().find_map(|l| l.strip_prefix("disk "))?.split_once(' ')?;
        let (root, count) = (root.parse().ok()?, count.parse().ok()?);
        let part = |line: &str| {
            let mut fields = line.split(' ');
            let number = fields.next()?.parse().ok()?;
            let offset = fields.next()?.parse().ok()?;
            let content = u64::from_str_radix(fields.next()?, 16).ok()?;
            fields.next().is_none().then_some(PartMark { number, offset, content })
        };
        let lines = text.lines().filter_map(|l| l.strip_prefix("part "));
        let parts = lines.map(part).collect::<Option<Vec<_>>>()?;
        (parts.len() == count && (1..=PARTS_MAX).contains(&count)).then_some(Self { root, parts })
    }
}

impl Proof {
    /// The proof of an installation that ends now, by this agent.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn now(image: Hash, path: Way, more: More) -> Self {
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
        let More { installation, counter, personal, .. } = more;
        let (agent, personal) = (env!("CARGO_PKG_VERSION").into(), personal.map(|p| p.hash));
        Self { image, path, agent, time, installation, counter, personal, disk: None }
    }

    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        let Self { image, path, agent, time, installation, counter, personal, disk } = self;
        let path = match path {
            Way::Archive => "stream",
            Way::Image => "image",
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{HEADING}\nimage {image}\npath {path}\nagent {agent}\ntime {time}\n");
        if let Some(installation) = installation {
            let _ = writeln!(text, "installation {installation}");
        }
        if *counter > 0 {
            let _ = writeln!(text, "counter {counter}");
        }
        if let Some(personal) = personal {
            let _ = writeln!(text, "personal {personal}");
        }
        if let Some(DiskMarks { root, parts }) = disk {
            let _ = writeln!(text, "disk {root} {}", parts.len().min(PARTS_MAX));
            for PartMark { number, offset, content } in parts.iter().take(PARTS_MAX) {
                let _ = writeln!(text, "part {number} {offset} {content:016x}");
            }
        }
        let mut block = text.into_bytes();
        block.resize(SIZE, b'\n');
        block
    }

    /// Reads a block; `None` if it is not a whole proof, as after an interrupted installation.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(block).ok()?;
        let (heading, fields) = text.split_once('\n')?;
        if heading != HEADING {
            return None;
        }
        let field = |key: &str| {
            fields.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).filter(|v| v.len() <= 64)
        };
        Some(Self {
            image: Hash::parse(field("image")?)?,
            path: match field("path")? {
                "stream" => Way::Archive,
                "image" => Way::Image,
                _ => return None,
            },
            agent: field("agent")?.into(),
            time: field("time")?.parse().ok()?,
            installation: field("installation").and_then(Installation::parse),
            counter: field("counter").and_then(|n| n.parse().ok()).unwrap_or(0),
            personal: field("personal").and_then(Hash::parse),
            disk: DiskMarks::parse(text),
        })
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn a_proof_and_back() {
        for path in [Way::Archive, Way::Image] {
            for (installation, counter) in [(None, 0), (Some(Installation(5)), 7)] {
                let more = More { installation, counter, ..More::default() };
                let proof = Proof::now(Hash([7; 32]), path, more);
                let block = proof.encode();
                assert_eq!(block.len(), SIZE);
                assert_eq!(Proof::parse(&block), Some(proof));
            }
        }
    }

    #[test]
    fn the_proof_of_a_whole_disk() {
        let part = |number| PartMark { number, offset: u64::MAX, content: u64::from(number) << 56 };
        let disk = Some(DiskMarks { root: 255, parts: (1..=32).map(part).collect() });
        let proof = Proof { disk, ..Proof::now(Hash([7; 32]), Way::Image, More::default()) };
        let block = proof.encode();
        assert_eq!((block.len(), Proof::parse(&block)), (SIZE, Some(proof)));
        let text = core::str::from_utf8(&block).unwrap();
        for (old, new) in [
            ("disk 255", "disk 256"),
            (" 32\n", " 33\n"),
            ("part 1 ", "part x "),
            ("part 1 ", "\n"),
            ("0000\npart 3 ", "0000 5\npart 3 "),
        ] {
            let changed = text.replacen(old, new, 1);
            assert_ne!(changed, text);
            assert_eq!(Proof::parse(changed.as_bytes()).unwrap().disk, None, "{new}");
        }
    }

    /// A proof in a file is written again in its place: only its first sector changes, which a disk writes at once.
    #[test]
    fn the_longest_proof_in_a_file_is_one_sector() {
        let personal = Some(Hash([0xff; 32]));
        let proof = Proof {
            image: Hash([0xff; 32]),
            path: Way::Archive,
            agent: "x".repeat(64),
            time: u64::MAX,
            installation: Some(Installation(u64::MAX)),
            counter: u64::MAX,
            personal,
            disk: None,
        };
        let block = proof.encode();
        assert_eq!(Proof::parse(&block), Some(proof));
        assert!(block[512..].iter().all(|byte| *byte == b'\n'));
    }

    #[test]
    fn a_torn_or_empty_block_is_no_proof() {
        let block = Proof::now(Hash([7; 32]), Way::Image, More::default()).encode();
        let end = block.iter().rposition(|b| *b != b'\n').unwrap();
        assert_eq!(Proof::parse(&[b'\n'; SIZE]), None);
        assert_eq!(Proof::parse(&[0; SIZE]), None);
        assert_eq!(Proof::parse(&[0xff; SIZE]), None);
        for n in 0..end - 12 {
            let mut torn = block[..n].to_vec();
            torn.resize(SIZE, b'\n');
            assert_eq!(Proof::parse(&torn), None, "{n} bytes of it");
        }
    }
}
