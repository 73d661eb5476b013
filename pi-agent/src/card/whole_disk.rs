//! The image of a whole disk on a card: its proof, which lies in the gap before the first partition, and what that is
//! bound to.
//!
//! The image brings its own partition table, and grows by its own means at its first boot: partitions get longer, the
//! disk gets another identifier, there may be more partitions, and some are only then given a filesystem. Where a
//! partition begins, and the identity of a filesystem that is written to, stay. A card that another program has written
//! since has others.

use std::fs::File;

use piman_core::install::receipt::{DiskMarks, GAP_MAX, PARTS_MAX, PartMark, Proof, SIZE};

use super::content::filesystem::{detect, is_ext};
use super::content::fingerprint;
use super::content::source::{DiskSource, Region, Unreadable};
use super::content::table::{self, Part, Table};
use super::disk::{RootArea, is_root_withheld, sector_bytes};

/// Filesystems that live as long as the system on them. Others are made anew by updates (squashfs), or at the first boot.
const LASTING: [&str; 8] = ["ext2", "ext3", "ext4", "vfat", "btrfs", "xfs", "f2fs", "exfat"];
/// How much is read at once, in bytes.
const PIECE: u64 = 1 << 20;
/// So many proofs are looked for.
const PROOFS_MAX: usize = 16;

/// The image of a whole disk that was found on a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WholeDisk {
    /// What was installed.
    pub(crate) proof: Proof,
    /// The partition with its root filesystem, if that is known and it is one that the kernel's ext4 may know.
    pub(crate) root: Option<RootArea>,
}

/// What of a whole disk's image is on an open disk of so many bytes; `None`: nothing, or no more what was installed.
///
/// # Errors
/// If the disk cannot be read.
pub(crate) fn find(disk: &File, bytes: u64) -> Result<Option<WholeDisk>, Unreadable> {
    let source = DiskSource { file: disk, bytes, sector: sector_bytes(disk) };
    let whole = Region::whole(&source);
    let table = table::read(&whole)?;
    let Some((_, proof)) = proof_in_gap(&whole, &table)? else { return Ok(None) };
    let Some(marks) = proof.disk.as_ref() else { return Ok(None) };
    for mark in &marks.parts {
        let part = table.parts.iter().find(|part| (part.number, part.offset) == (mark.number, mark.offset));
        let Some(part) = part else { return Ok(None) };
        if mark.content != 0 && content(&whole, part)? != mark.content {
            return Ok(None);
        }
    }
    let root = root_of(&whole, &table, marks.root)?;
    Ok(Some(WholeDisk { proof, root }))
}

/// Where proofs lie in the gap, in bytes, the last one first, whatever they are bound to: there are two while one is being
/// replaced. While an installation is under way nothing says where the gap was.
///
/// # Errors
/// If the disk cannot be read.
pub(crate) fn proofs_at(disk: &File, bytes: u64) -> Result<Vec<u64>, Unreadable> {
    let source = DiskSource { file: disk, bytes, sector: sector_bytes(disk) };
    let whole = Region::whole(&source);
    let mut end = match is_root_withheld(disk) {
        true => GAP_MAX,
        false => table::read(&whole)?.parts.iter().map(|part| part.offset).min().unwrap_or(0),
    };
    let mut found = Vec::new();
    while found.len() < PROOFS_MAX
        && let Some((at, _)) = last_proof(&whole, end)?
    {
        found.push(at);
        end = at;
    }
    Ok(found)
}

/// Whether a proof may lie there, on a disk with this table: where it is looked for, and nothing else is.
pub(crate) fn is_in_gap(table: &Table, offset: u64) -> bool {
    let first = table.parts.iter().map(|part| part.offset).min();
    let after = offset.saturating_add(SIZE as u64);
    offset > 0 && first.is_some_and(|first| after <= first && first - offset <= GAP_MAX)
}

/// What the proof of an image is to be bound to, and where its root filesystem is. `whole` is the disk as it will be.
///
/// # Errors
/// If the disk cannot be read.
pub(crate) fn marks(whole: &Region<'_>, root: u8) -> Result<(DiskMarks, Table), Unreadable> {
    let table = table::read(whole)?;
    let mut parts = Vec::new();
    for part in table.parts.iter().take(PARTS_MAX) {
        parts.push(PartMark { number: part.number, offset: part.offset, content: content(whole, part)? });
    }
    Ok((DiskMarks { root, parts }, table))
}

/// The partition with the root filesystem.
///
/// # Errors
/// If the disk cannot be read.
pub(crate) fn root_of(whole: &Region<'_>, table: &Table, root: u8) -> Result<Option<RootArea>, Unreadable> {
    let Some(part) = table.parts.iter().find(|part| part.number == u32::from(root)) else { return Ok(None) };
    let is_ext = is_ext(&whole.part(part.offset, part.length))?;
    Ok(is_ext.then_some(RootArea { offset: part.offset, length: part.length }))
}

/// A fingerprint of what is in a partition: what it is, and its identity.
fn content(whole: &Region<'_>, part: &Part) -> Result<u64, Unreadable> {
    let found = detect(&whole.part(part.offset, part.length))?;
    // The kinds of ext differ by features, which may be switched on.
    let kind = |kind: &'static str| if kind.starts_with("ext") { "ext" } else { kind };
    let lasting = found.filter(|found| LASTING.contains(&found.kind));
    Ok(lasting.map_or(0, |found| fingerprint(&[kind(found.kind).as_bytes(), &found.identity])))
}

/// The last block before the first partition that is a proof of a whole disk's image, and where it is.
fn proof_in_gap(whole: &Region<'_>, table: &Table) -> Result<Option<(u64, Proof)>, Unreadable> {
    match table.parts.iter().map(|part| part.offset).min() {
        Some(end) => last_proof(whole, end),
        None => Ok(None),
    }
}

/// The last block before `end` that is one.
pub(super) fn last_proof(whole: &Region<'_>, end: u64) -> Result<Option<(u64, Proof)>, Unreadable> {
    let end = end.min(whole.length()) / SIZE as u64 * SIZE as u64;
    let mut piece = vec![0; usize::try_from(PIECE).unwrap_or(0)];
    let mut upper = end;
    // The first block is the table's.
    while upper > SIZE as u64 && upper > end.saturating_sub(GAP_MAX) {
        let lower = upper.saturating_sub(PIECE).max(SIZE as u64);
        let length = usize::try_from(upper - lower).unwrap_or(0);
        let Some(bytes) = piece.get_mut(..length) else { return Ok(None) };
        whole.read(lower, bytes)?;
        let blocks = bytes.chunks_exact(SIZE).enumerate().rev();
        let found =
            blocks.filter_map(|(n, block)| Some((n, Proof::parse(block)?))).find(|(_, p)| p.disk.is_some());
        if let Some((n, proof)) = found {
            return Ok(Some((lower + (n * SIZE) as u64, proof)));
        }
        upper = lower;
    }
    Ok(None)
}
