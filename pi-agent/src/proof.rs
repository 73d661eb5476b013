//! The proof of a finished installation: one block in the root filesystem, written last,
//! and the check of a card for it.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::path::Path;

use mkext4::reader::{Fs, ReadAt};
use piman_core::hash::Hash;
use piman_core::install::Installation;
use piman_core::install::layout::filesystem_bytes;

use crate::disk::{RootArea, Window, open_to_read, root_in_table};

/// The proof's name in the root directory.
pub const NAME: &str = ".piman-proof";

/// The size of a proof, in bytes: one block, so that it is written at once.
pub const SIZE: usize = 4096;

const HEADING: &str = "piman-proof 1";

/// How an image came to the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The archive, extracted.
    Stream,
    /// The image, in chunks.
    Image,
}

/// What a finished installation leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What was installed: BLAKE3 of the archive.
    pub image: Hash,
    /// How.
    pub path: Way,
    /// By which version of the agent.
    pub agent: String,
    /// When, in seconds since 1970; a Pi that was not told the time writes a small number.
    pub time: u64,
    /// How piman calls this installation; a server of old does not.
    pub installation: Option<Installation>,
}

impl Proof {
    /// The proof of an installation that ends now, by this agent.
    #[must_use]
    pub fn now(image: Hash, path: Way, installation: Option<Installation>) -> Self {
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
        Self { image, path, agent: env!("CARGO_PKG_VERSION").into(), time, installation }
    }

    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        let Self { image, path, agent, time, installation } = self;
        let path = match path {
            Way::Stream => "stream",
            Way::Image => "image",
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{HEADING}\nimage {image}\npath {path}\nagent {agent}\ntime {time}\n");
        if let Some(installation) = installation {
            let _ = writeln!(text, "installation {installation}");
        }
        let mut block = text.into_bytes();
        block.resize(SIZE, b'\n');
        block
    }

    /// Reads a block; `None` if it is no proof, as in an installation that was broken off.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(block).ok()?;
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
                "stream" => Way::Stream,
                "image" => Way::Image,
                _ => return None,
            },
            agent: field("agent")?.into(),
            time: field("time")?.parse().ok()?,
            installation: field("installation").and_then(Installation::parse),
        })
    }
}

/// What is on a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Card {
    /// A finished installation.
    Installed(Proof),
    /// A system without a proof: installed by something else, or not to its end.
    Unmarked,
    /// No usable system, and why.
    Empty(String),
}

impl Card {
    /// Whether to report `IS_INSTALLED`. `trust_unmarked` takes a system without a proof
    /// for installed, as the old script did.
    #[must_use]
    pub fn is_installed(&self, trust_unmarked: bool) -> bool {
        match self {
            Self::Installed(_) => true,
            Self::Unmarked => trust_unmarked,
            Self::Empty(_) => false,
        }
    }

    /// The image that is installed.
    #[must_use]
    pub fn image(&self) -> Option<Hash> {
        self.proof().map(|proof| proof.image)
    }

    /// By which installation, if piman gave it a number.
    #[must_use]
    pub fn installation(&self) -> Option<Installation> {
        self.proof().and_then(|proof| proof.installation)
    }

    fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Installed(proof) => Some(proof),
            Self::Unmarked | Self::Empty(_) => None,
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed(p) => write!(f, "installed: image {:.16} by agent {}", p.image, p.agent),
            Self::Unmarked => f.write_str("not installed: there is a system, but no proof that it is whole"),
            Self::Empty(why) => write!(f, "not installed: {why}"),
        }
    }
}

/// Looks at a disk or a file in place of one, without mounting or writing anything.
///
/// # Errors
/// If it is no disk or cannot be read: then nothing is known about it.
pub fn check(path: &Path) -> anyhow::Result<Card> {
    let (file, bytes) = open_to_read(path)?;
    Ok(look(&file, bytes))
}

/// Looks at an open disk of so many bytes.
#[must_use]
pub fn look(disk: &File, bytes: u64) -> Card {
    let Some(root) = root_in_table(disk, bytes) else {
        return Card::Empty("there is no partition table with a root partition".into());
    };
    look_at_root(disk, &root)
}

fn look_at_root(disk: &File, root: &RootArea) -> Card {
    let fs = match Fs::open(Replayed(Window::new(disk, root.offset, root.length))) {
        Ok(fs) => fs,
        Err(mkext4::Error::Unsupported(what)) => {
            return Card::Empty(format!("the root filesystem has {what}"));
        }
        Err(e) => return Card::Empty(format!("there is no root filesystem ({e})")),
    };
    let sb = fs.superblock();
    if sb.blocks_count.saturating_mul(4096) > root.length {
        return Card::Empty("the root filesystem is larger than its partition".into());
    }
    match (read(&fs, NAME), fs.lookup(mkext4::spec::ROOT_INO, b"bin")) {
        (Ok(Some(block)), _) => match Proof::parse(&block) {
            Some(proof) => Card::Installed(proof),
            None => Card::Empty("the installation was not finished".into()),
        },
        (Ok(None), Ok(Some(_))) => Card::Unmarked,
        (Ok(None), Ok(None)) => Card::Empty("the root filesystem holds no system".into()),
        (Err(e), _) | (_, Err(e)) => Card::Empty(format!("the root filesystem is damaged ({e})")),
    }
}

/// The content of a small file in the root directory.
fn read<R: ReadAt>(fs: &Fs<R>, name: &str) -> mkext4::Result<Option<Vec<u8>>> {
    let Some(number) = fs.lookup(mkext4::spec::ROOT_INO, name.as_bytes())? else { return Ok(None) };
    let inode = fs.inode(number)?;
    if inode.size != SIZE as u64 {
        return Ok(Some(Vec::new()));
    }
    fs.read_file(number).map(Some)
}

/// A filesystem as it is after its journal was replayed, as far as its superblock says: a
/// system that was switched off has a journal to replay, which the reader would refuse. The
/// proof and the directory it is in were on the medium before the proof counted.
struct Replayed<'d>(Window<'d>);

impl ReadAt for Replayed<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        const SUPERBLOCK: u64 = 1024;
        const INCOMPAT: usize = 0x60;
        const NEEDS_RECOVERY: u8 = 4;
        const CHECKSUM: usize = 0x3fc;
        self.0.read_exact_at(offset, buf)?;
        let (SUPERBLOCK, Ok(sb)) = (offset, <&mut [u8; 1024]>::try_from(buf)) else { return Ok(()) };
        if sb[INCOMPAT] & NEEDS_RECOVERY != 0
            && mkext4::csum::superblock(&sb[..]).to_le_bytes() == sb[CHECKSUM..]
        {
            sb[INCOMPAT] &= !NEEDS_RECOVERY;
            let sum = mkext4::csum::superblock(&sb[..]).to_le_bytes();
            sb[CHECKSUM..].copy_from_slice(&sum);
        }
        Ok(())
    }
}

/// Whether an image for a filesystem of so many bytes belongs on this root partition.
#[must_use]
pub fn fits(root: &RootArea, filesystem: u64) -> bool {
    filesystem <= root.length && filesystem == filesystem_bytes(root.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_and_back() {
        for path in [Way::Stream, Way::Image] {
            for installation in [None, Some(Installation(5))] {
                let proof = Proof::now(Hash([7; 32]), path, installation);
                let block = proof.encode();
                assert_eq!(block.len(), SIZE);
                assert_eq!(Proof::parse(&block), Some(proof));
            }
        }
    }

    #[test]
    fn a_torn_or_empty_block_is_no_proof() {
        let block = Proof::now(Hash([7; 32]), Way::Image, None).encode();
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
