//! The proof of a finished installation: one block in the root filesystem, written last,
//! and the check of a card for it.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use mkext4::reader::{Fs, ReadAt};
use piman_core::hash::Hash;
use piman_core::install::Installation;

use crate::card::disk::{RootArea, Window, is_root_withheld, open_to_read, root_in_table};
use piman_core::install::receipt::{NAME, Proof, SIZE};

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

    /// The counter of the signed image that is installed; 0: there is none.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.proof().map_or(0, |proof| proof.counter)
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
        if is_root_withheld(disk) {
            return Card::Empty("the installation was not finished".into());
        }
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
    if let Some(wrong) = broken(&fs, journal_waits(disk, root)) {
        return Card::Empty(format!("the root filesystem is damaged: {wrong}"));
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

/// What is wrong with a filesystem, by a quick look: at what the kernel wrote down when it found
/// an error, and at the descriptors of its groups. `journal_waits` says that these are
/// only right after it was replayed.
fn broken<R: ReadAt>(fs: &Fs<R>, journal_waits: bool) -> Option<String> {
    const HAS_ERRORS: u16 = 2;
    let sb = fs.superblock();
    if sb.state & HAS_ERRORS != 0 {
        return Some("the kernel has found errors in it".into());
    }
    let has_sums = sb.feature_ro_compat & mkext4::spec::ro_compat::METADATA_CSUM != 0;
    let wrong = |group: &u64| {
        let Ok((raw, group_desc)) = fs.group_desc_raw(*group).and_then(|r| Ok((r, fs.group_desc(*group)?)))
        else {
            return true;
        };
        let outside = [group_desc.block_bitmap, group_desc.inode_bitmap, group_desc.inode_table]
            .iter()
            .any(|block| !(1..sb.blocks_count).contains(block));
        let number = u32::try_from(*group).unwrap_or(u32::MAX);
        outside || has_sums && descriptor_sum(fs.fs_seed(), number, raw) != group_desc.checksum
    };
    let group = (0..sb.group_count()).find(wrong).filter(|_| !journal_waits)?;
    Some(format!("the descriptor of its group {group} is wrong"))
}

/// The checksum of a group's descriptor, without the two bytes where it is.
fn descriptor_sum(seed: u32, group: u32, raw: &[u8]) -> u16 {
    use mkext4::csum::crc32c_raw;
    const PLACE: usize = 0x1e;
    let sum = crc32c_raw(seed, &group.to_le_bytes());
    let sum = crc32c_raw(sum, raw.get(..PLACE).unwrap_or_default());
    let sum = crc32c_raw(sum, &[0; 2]);
    crc32c_raw(sum, raw.get(PLACE + 2..).unwrap_or_default()) as u16
}

/// Whether the root filesystem of a disk was not unmounted, so that its journal has to be
/// replayed before it is what it should be.
#[must_use]
pub fn has_journal_to_replay(disk: &File, bytes: u64) -> bool {
    root_in_table(disk, bytes).is_some_and(|root| journal_waits(disk, &root))
}

fn journal_waits(disk: &File, root: &RootArea) -> bool {
    let mut sb = [0; 1024];
    let read = Window::new(disk, root.offset, root.length).read_exact_at(SUPERBLOCK, &mut sb);
    read.is_ok() && sb.get(MAGIC) == Some(&[0x53, 0xef]) && sb[INCOMPAT] & NEEDS_RECOVERY != 0
}

const SUPERBLOCK: u64 = 1024;
/// Where the superblock says what it is, and what must be known to read it.
const MAGIC: std::ops::Range<usize> = 0x38..0x3a;
const INCOMPAT: usize = 0x60;
const NEEDS_RECOVERY: u8 = 4;

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
